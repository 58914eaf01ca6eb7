// SPDX-License-Identifier: Apache-2.0
//! Memory of a program that touches a known number of pages, against /proc/PID/smaps_rollup, which walks its page tables:
//! the other files of /proc tell counters, of which each CPU may hold back a share.

use std::time::Duration;

use tracelake_node_agent::engine::CollectorSpec;

use crate::support::{Burst, Recording, TestCgroup, answer, number};

/// Pages of its own, and shared ones, that an order adds.
const ANON: i64 = 3_000;
const SHARED: i64 = 1_000;

/// A line of smaps_rollup, in bytes.
fn rollup(burst: &Burst, name: &str) -> i64 {
    let text = burst.proc("smaps_rollup");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel adds up");
    let kib: i64 =
        line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse().expect("a number");
    kib << 10
}

#[test]
fn resident_memory_is_what_the_page_tables_hold() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("memory", &cgroup.path);
    let spec = CollectorSpec {
        name: "memoryRss".into(),
        interval: Duration::from_millis(200),
        params: [("minChangeKiB".to_owned(), "0".to_owned())].into(),
        ..CollectorSpec::default()
    };
    let mut recording = Recording::start(spec, &[]);
    recording.targets(&[cgroup.target()]);
    recording.await_rows();
    burst.go("touch");
    let (rss, anon) = (rollup(&burst, "Rss"), rollup(&burst, "Anonymous"));
    let pid = i64::from(burst.child.id());
    let (rows, _) = recording.finish();

    let of = |member: &str| -> Vec<i64> {
        let rows = rows.iter().filter(|row| number(row, "pid") == pid && row["member"] == member);
        rows.map(|row| number(row, "bytes")).collect()
    };
    // SAFETY: the call takes no pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let (file, own, shared, swap) = (of("file"), of("anon"), of("shmem"), of("swap"));
    let last = |values: &[i64]| *values.last().expect("a row of each kind");
    let total = last(&file) + last(&own) + last(&shared);
    // On 6.1 each thread holds back up to 64 pages of the counter.
    let release = tracelake_node_agent::session::uname().release;
    let slack = if release.starts_with("6.1.") { 64 * page } else { 0 };
    assert!(
        (total - rss).abs() <= slack,
        "{total} here, {rss} in the page tables: {file:?} {own:?} {shared:?}"
    );
    assert!((last(&own) - anon).abs() <= slack, "{own:?}, {anon} in the page tables");
    // Where the program itself lies in a tmpfs, its pages are shared memory, too.
    assert!(last(&shared) - shared[0] >= SHARED * page - slack, "{shared:?}");
    assert!(last(&own) - own[0] >= ANON * page - slack, "{own:?}");
    assert_eq!(last(&swap), 0);
    let peaks = rows.iter().all(|row| number(row, "peak_bytes") >= number(row, "bytes"));
    assert!(peaks && rows.iter().all(|row| row.contains_key("window_ns")));
}

#[test]
fn memory_of_a_process_that_ends_goes_down_to_nothing() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("memory", &cgroup.path);
    // More than the least change that is shown.
    burst.go("touch");
    let pid = i64::from(burst.child.id());
    let spec = CollectorSpec {
        name: "memoryRss".into(),
        interval: Duration::from_millis(200),
        ..CollectorSpec::default()
    };
    let mut recording = Recording::start(spec, &[]);
    recording.targets(&[cgroup.target()]);
    recording.await_rows();
    drop(burst);
    recording.await_rows();
    let (rows, counters) = recording.finish();
    let (rows, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| number(row, "pid") == pid);
    assert!(!rows.is_empty(), "{counters:?} {others:?}");
    for member in ["file", "anon", "shmem"] {
        let bytes: Vec<i64> =
            rows.iter().filter(|row| row["member"] == member).map(|row| number(row, "bytes")).collect();
        assert!(bytes.is_empty() || (bytes[0] > 0 && bytes.last() == Some(&0)), "{member}: {bytes:?}");
        assert!(!bytes.is_empty() || member != "anon", "{rows:?}");
    }
}

/// The program of this test.
pub(crate) fn workload() -> ! {
    answer(|_| {
        for (pages, flags) in [(ANON, libc::MAP_PRIVATE), (SHARED, libc::MAP_SHARED)] {
            // SAFETY: asks for memory of this process's own, and writes inside it.
            unsafe {
                let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).expect("a size");
                let pages = usize::try_from(pages).expect("a number");
                let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_ANONYMOUS);
                let memory = libc::mmap(std::ptr::null_mut(), pages * page, access, flags, -1, 0);
                assert_ne!(memory, libc::MAP_FAILED);
                libc::madvise(memory, pages * page, libc::MADV_NOHUGEPAGE);
                (0..pages).for_each(|index| memory.cast::<u8>().add(index * page).write_volatile(1));
            }
        }
        String::new()
    })
}
