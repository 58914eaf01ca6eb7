// SPDX-License-Identifier: Apache-2.0
//! Page faults of known programs, against /proc and getrusage, which read the thread's and the process's own counters at
//! other moments and by other ways, and against the number of pages that were touched.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use tracelake_node_agent::engine::CollectorSpec;

use crate::expectations::has_fentry;
use crate::support::{Burst, Recording, Row, TestCgroup, answer, number, program, usage, wait_for};

/// Pages that are touched at an order.
pub(crate) const PAGES: usize = 2_000;
/// Children that the workload forks, and pages that each of them touches.
const CHILDREN: usize = 20;
const CHILD_PAGES: usize = 100;
/// Children that each of two threads forks one after the other.
const CHURNED: usize = 2_000;

fn faults(events: bool) -> CollectorSpec {
    CollectorSpec {
        name: "pageFaults".into(),
        params: [("events".to_owned(), events.to_string())].into(),
        interval: Duration::from_millis(300),
        ..CollectorSpec::default()
    }
}

fn sum<'a>(rows: impl IntoIterator<Item = &'a Row>, column: &str) -> i64 {
    rows.into_iter().map(|row| number(row, column)).sum()
}

#[test]
fn faults_of_a_process_and_its_children_are_those_that_the_kernel_reports() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("faults", &cgroup.path);
    // Before the session: not its faults.
    burst.go("touch");
    let mut recording = Recording::start(faults(false), &[]);
    recording.targets(&[cgroup.target()]);
    let before = burst.faults();
    burst.go("touch");
    // Into another window.
    recording.await_rows();
    burst.go("touch");
    let after = burst.faults();
    let children: i64 = burst.go("fork").parse().expect("minor faults of the children");
    let done = burst.faults();
    let pid = i64::from(burst.child.id());
    let (rows, counters) = recording.finish();

    let (own, others): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| number(row, "pid") == pid);
    assert!(after.1 - before.1 >= 2 * PAGES as i64, "every page was touched: {before:?} {after:?}");
    assert_eq!((sum(&own, "major"), sum(&own, "minor")), (done.0 - before.0, done.1 - before.1));
    assert!(own.len() >= 2, "windows of 300 ms: {own:?}");
    assert!(children >= (CHILDREN * CHILD_PAGES) as i64);
    assert_eq!(sum(&others, "minor"), children, "children's faults");
    let all = own.iter().chain(&others);
    assert_eq!(all.clone().map(|row| number(row, "weight")).sum::<i64>().cast_unsigned(), counters.emitted);
    for row in all {
        assert_eq!(number(row, "weight"), number(row, "major") + number(row, "minor"));
        assert!(number(row, "window_ns") > 0 && !row.contains_key("cpu") && !row.contains_key("address"));
        assert_eq!(number(row, "cgroup_id"), cgroup.id().cast_signed());
    }
}

/// Only where the kernel has fentry: that others say so stands in the expectations.
#[test]
fn faults_that_are_told_apart_are_those_that_the_kernel_reports() {
    if !has_fentry() {
        return;
    }
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("faults", &cgroup.path);
    let spec = CollectorSpec {
        name: "pageFaults".into(),
        params: [("detail".to_owned(), "fexit".to_owned())].into(),
        interval: Duration::from_millis(300),
        ..CollectorSpec::default()
    };
    let mut recording = Recording::start(spec, &[]);
    recording.targets(&[cgroup.target()]);
    let before = burst.faults();
    burst.go("touch");
    recording.await_rows();
    burst.go("share");
    let after = burst.faults();
    burst.go("fail");
    let done = burst.faults();
    let pid = i64::from(burst.child.id());
    let (rows, counters) = recording.finish();

    let (own, others): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| number(row, "pid") == pid);
    assert_eq!((sum(&own, "major"), sum(&own, "minor")), (done.0 - before.0, done.1 - before.1));
    let of = |kind: &str, column: &str| sum(own.iter().filter(|row| row["kind"] == kind), column);
    assert!(after.1 - before.1 >= 2 * PAGES as i64, "every page was touched");
    for kind in ["anon", "shmem"] {
        let (faults, writes) = (of(kind, "minor") + of(kind, "major"), of(kind, "writes"));
        assert!(faults >= PAGES as i64 && (PAGES as i64..=faults).contains(&writes), "{kind}: {own:?}");
    }
    assert_eq!(of("unknown", "minor"), 0, "{own:?}");
    // The child's access beyond the end of its file, which killed it.
    assert_eq!((sum(&own, "failed"), sum(&others, "failed")), (0, 1), "{others:?}");
    let all = || own.iter().chain(&others);
    for row in all() {
        let slots = row["latency_hist"].split_whitespace().map(|slot| slot.parse::<i64>().expect("a number"));
        let ended = number(row, "major") + number(row, "minor");
        assert_eq!(number(row, "weight"), ended, "{row:?}");
        assert_eq!(slots.sum::<i64>(), ended + number(row, "retries") + number(row, "failed"), "{row:?}");
    }
    assert_eq!(sum(all(), "weight").cast_unsigned(), counters.emitted);
}

#[test]
fn each_fault_by_itself_has_its_address() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("faults", &cgroup.path);
    let mut recording = Recording::start(faults(true), &[]);
    recording.targets(&[cgroup.target()]);
    let place = burst.go("touch");
    let (start, page) = place.split_once(' ').expect("address and page size");
    let (start, page): (i64, i64) = (start.parse().expect("a number"), page.parse().expect("a number"));
    let (rows, _) = recording.finish();
    let range = start..start + PAGES as i64 * page;
    let mut touched: Vec<i64> =
        rows.iter().map(|row| number(row, "address")).filter(|at| range.contains(at)).collect();
    touched.sort_unstable();
    let expected: Vec<i64> = (0..PAGES as i64).map(|index| start + index * page).collect();
    assert_eq!(touched, expected, "one fault for each page, at the address that was written");
    for row in rows.iter().filter(|row| range.contains(&number(row, "address"))) {
        assert_eq!((row["write"].as_str(), row["exec"].as_str()), ("true", "false"));
        assert!(!row.contains_key("minor") && !row.contains_key("window_ns") && number(row, "ip") != 0);
    }
}

#[test]
fn a_slot_that_is_used_again_has_nothing_of_the_session_before() {
    let (first, second) = (TestCgroup::new(), TestCgroup::new());
    let (mut one, mut other) = (Burst::start("faults", &first.path), Burst::start("faults", &second.path));
    let mut recording = Recording::start(faults(false), &[]);
    recording.targets(&[first.target()]);
    one.go("touch");
    let before = other.faults();
    let rows = recording.replace(faults(false), &[second.target()]);
    assert!(sum(&rows, "minor") >= PAGES as i64);
    one.go("touch");
    other.go("touch");
    let after = other.faults();
    let (rows, _) = recording.finish();
    assert!(rows.iter().all(|row| number(row, "cgroup_id").unsigned_abs() == second.id()), "{rows:?}");
    assert_eq!(sum(&rows, "minor"), after.1 - before.1);
}

/// The thread gets the first one's id, and its process goes on under the same one.
#[test]
fn a_thread_that_executes_a_program_keeps_its_own_faults() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("faults", &cgroup.path);
    let mut recording = Recording::start(faults(false), &[]);
    recording.targets(&[cgroup.target()]);
    let before = burst.faults();
    burst.go("become");
    let there = burst.faults();
    // Into another window.
    recording.await_weight((there.0 + there.1 - before.0 - before.1).cast_unsigned());
    burst.go("touch");
    let after = burst.faults();
    let (rows, _) = recording.finish();
    assert!(after.1 - before.1 >= 2 * PAGES as i64, "{before:?} {after:?}");
    assert_eq!((sum(&rows, "major"), sum(&rows, "minor")), (after.0 - before.0, after.1 - before.1));
}

/// A pass runs beside all this: it meets processes as they end, while others begin in the memory that they leave.
#[test]
fn faults_of_processes_that_end_under_a_pass_are_their_own() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("faults", &cgroup.path);
    let mut recording =
        Recording::start(CollectorSpec { interval: Duration::from_millis(1), ..faults(false) }, &[]);
    recording.targets(&[cgroup.target()]);
    let children = burst.go("churn");
    let pid = i64::from(burst.child.id());
    let (rows, _) = recording.finish();
    let mut sums: BTreeMap<i64, i64> = BTreeMap::new();
    for row in rows.iter().filter(|row| number(row, "pid") != pid) {
        *sums.entry(number(row, "pid")).or_default() += number(row, "minor");
    }
    let numbers: Vec<i64> = children.split(' ').map(|one| one.parse().expect("a number")).collect();
    let known: BTreeMap<i64, i64> = numbers.chunks(2).map(|one| (one[0], one[1])).collect();
    assert_eq!(known.len(), 2 * CHURNED);
    assert_eq!(sums, known);
}

/// A new mapping of so many pages without huge ones.
fn map(pages: usize) -> (*mut u8, usize) {
    // SAFETY: asks for memory of this process's own; the length is right.
    unsafe {
        let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).expect("a size");
        let memory = libc::mmap(
            std::ptr::null_mut(),
            pages * page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(memory, libc::MAP_FAILED);
        assert_eq!(libc::madvise(memory, pages * page, libc::MADV_NOHUGEPAGE), 0);
        (memory.cast(), page)
    }
}

/// Maps a file in memory, so many pages long, and touches so many; the size of a page.
fn share(length: usize, pages: usize) -> usize {
    // SAFETY: asks for a file and memory of this process's own; the lengths are right.
    unsafe {
        let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).expect("a size");
        let file = libc::memfd_create(c"shared".as_ptr(), 0);
        assert!(file >= 0 && libc::ftruncate(file, (length * page) as libc::off_t) == 0);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let memory = libc::mmap(std::ptr::null_mut(), pages * page, access, libc::MAP_SHARED, file, 0);
        assert_ne!(memory, libc::MAP_FAILED);
        touch(memory.cast(), page, pages);
        libc::munmap(memory, pages * page);
        libc::close(file);
        page
    }
}

fn touch(memory: *mut u8, page: usize, pages: usize) {
    for index in 0..pages {
        // SAFETY: inside the mapping.
        unsafe { memory.add(index * page).write_volatile(1) };
    }
}

/// Forks a child that touches so many pages, and waits for it; its id, and its minor faults by its parent's account.
fn fork_and_touch(pages: usize) -> (libc::pid_t, i64) {
    // SAFETY: the child only touches memory and leaves.
    match unsafe { libc::fork() } {
        0 => {
            let (memory, page) = map(pages);
            touch(memory, page, pages);
            // SAFETY: ends this process.
            unsafe { libc::_exit(0) }
        }
        child => (child, wait_for(child).1.min_flt),
    }
}

/// Children with more pages or fewer, one after the other: what [`fork_and_touch`] says of each.
fn churn() -> Vec<String> {
    let child = |index: usize| {
        let (child, minor) = fork_and_touch(1 + index % CHILD_PAGES);
        format!("{child} {minor}")
    };
    (0..CHURNED).map(child).collect()
}

/// The program of these tests.
pub(crate) fn workload() -> ! {
    answer(|order| match order {
        "touch" => {
            let (memory, page) = map(PAGES);
            touch(memory, page, PAGES);
            // SAFETY: the mapping that was made above.
            unsafe { libc::munmap(memory.cast(), PAGES * page) };
            format!("{} {page}", memory as usize)
        }
        "become" => {
            std::thread::spawn(|| {
                let (memory, page) = map(PAGES);
                touch(memory, page, PAGES);
                // Into another window.
                std::thread::sleep(Duration::from_millis(700));
                println!();
                let error = program("faults").stdin(Stdio::inherit()).exec();
                panic!("this very program is executed: {error}");
            });
            loop {
                std::thread::park();
            }
        }
        "churn" => {
            let halves = [(); 2].map(|()| std::thread::spawn(churn));
            let both = halves.map(|half| half.join().expect("it ends well"));
            both.concat().join(" ")
        }
        "share" => {
            let page = share(PAGES, PAGES);
            page.to_string()
        }
        "fail" => {
            // SAFETY: the child only touches memory, the last page of which has no file behind it.
            match unsafe { libc::fork() } {
                0 => {
                    share(1, 2);
                    unreachable!("the bus error ends it")
                }
                child => {
                    // SAFETY: waits for that child.
                    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
                }
            }
            String::new()
        }
        "fork" => {
            let before = usage(libc::RUSAGE_CHILDREN).min_flt;
            for _ in 0..CHILDREN {
                fork_and_touch(CHILD_PAGES);
            }
            (usage(libc::RUSAGE_CHILDREN).min_flt - before).to_string()
        }
        other => panic!("no order {other}"),
    })
}
