// SPDX-License-Identifier: Apache-2.0
//! Slices of a known program, against the scheduler's own account in /proc/PID/schedstat and /proc/PID/status.

use std::time::{Duration, Instant};

use tracelake_node_agent::engine::CollectorSpec;

use crate::support::{Burst, Recording, Row, TestCgroup, answer, number};

/// Naps of the workload at an order, and how long it works then.
const NAPS: usize = 50;
const WORK: Duration = Duration::from_millis(150);

/// What the kernel says of a sleeping program.
#[derive(Clone, Copy, Debug)]
struct Account {
    run_ns: i64,
    wait_ns: i64,
    voluntary: i64,
    involuntary: i64,
}

fn account(burst: &Burst) -> Account {
    let schedstat = burst.proc("schedstat");
    let numbers: Vec<i64> =
        schedstat.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    let status = burst.proc("status");
    let switches = |name: &str| -> i64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel counts");
        line.trim_start_matches(':').trim().parse().expect("a number")
    };
    Account {
        run_ns: numbers[0],
        wait_ns: numbers[1],
        voluntary: switches("voluntary_ctxt_switches"),
        involuntary: switches("nonvoluntary_ctxt_switches"),
    }
}

#[test]
fn slices_and_waiting_are_the_schedulers_own() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("sched", &cgroup.path);
    let spec = CollectorSpec {
        name: "cpuSched".into(),
        interval: Duration::from_millis(100),
        ..CollectorSpec::default()
    };
    let mut recording = Recording::start(spec, &[]);
    recording.targets(&[cgroup.target()]);
    let before = account(&burst);
    burst.go("work");
    // Into another window.
    recording.await_rows();
    burst.go("work");
    let after = account(&burst);
    let pid = i64::from(burst.child.id());
    let (rows, counters) = recording.finish();

    let rows: Vec<Row> = rows.into_iter().filter(|row| number(row, "pid") == pid).collect();
    let sum = |column: &str| rows.iter().map(|row| number(row, column)).sum::<i64>();
    // Not the third number of schedstat: that one leaves out slices of a thread that was preempted on its way to sleep.
    let slices = after.voluntary + after.involuntary - before.voluntary - before.involuntary;
    assert!(slices >= 2 * NAPS as i64, "{before:?} {after:?}");
    assert_eq!(sum("weight"), slices, "{before:?} {after:?} {counters:?}");
    assert_eq!(sum("voluntary"), after.voluntary - before.voluntary);
    assert_eq!(sum("involuntary"), after.involuntary - before.involuntary);
    assert_eq!(sum("wait_sum"), after.wait_ns - before.wait_ns);
    assert_eq!(sum("run_sum"), after.run_ns - before.run_ns);
    assert!(rows.len() >= 2, "windows of 100 ms");
    let counted = |column: &str| -> i64 {
        let slots = rows.iter().flat_map(|row| row[column].split(' ').map(str::to_owned).collect::<Vec<_>>());
        slots.filter(|slot| !slot.is_empty()).map(|slot| slot.parse::<i64>().expect("a number")).sum()
    };
    assert_eq!((counted("run_hist"), counted("wait_hist")), (slices, slices));
}

#[test]
fn sessions_with_windows_rows_and_sampling_of_their_own_add_up_to_the_same() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("sched", &cgroup.path);
    let spec = |millis, per_thread: bool| CollectorSpec {
        name: "cpuSched".into(),
        interval: Duration::from_millis(millis),
        params: [("perThread".to_owned(), per_thread.to_string())].into(),
        ..CollectorSpec::default()
    };
    let sampled = CollectorSpec { sample_every: 5, ..spec(100, false) };
    for second in [spec(350, true), sampled] {
        let sample_every = i64::from(second.sample_every.max(1));
        let mut recording = Recording::start(spec(100, false), &[]);
        recording.open_second(second, &[cgroup.target()]);
        recording.targets(&[cgroup.target()]);
        burst.go("work");
        let (first, second) = recording.finish_both();
        let sum = |rows: &[Row], column: &str| rows.iter().map(|row| number(row, column)).sum::<i64>();
        for column in ["weight", "voluntary", "involuntary"] {
            let (one, other) = (sum(&first, column), sum(&second, column));
            // What no row stands for yet: fewer slices on each CPU than a row stands for.
            let left = (sample_every - 1) * aya::util::nr_cpus().expect("CPUs are counted") as i64;
            assert!((one - other).abs() <= left + sample_every, "{column}: {one} and {other}");
        }
        if sample_every > 1 {
            // Its rows hold whole slices: what one still runs at a window's end is in none.
            assert!(second.iter().all(|row| number(row, "weight") > 0), "{second:?}");
        } else {
            for column in ["run_sum", "wait_sum"] {
                assert_eq!(sum(&first, column), sum(&second, column), "{column}");
            }
        }
    }
}

/// The program of this test.
pub(crate) fn workload() -> ! {
    answer(|_| {
        for _ in 0..NAPS {
            std::thread::sleep(Duration::from_millis(1));
        }
        let end = Instant::now() + WORK;
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        String::new()
    })
}
