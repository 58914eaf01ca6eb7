// SPDX-License-Identifier: Apache-2.0
//! The rings, of which CPUs share some: what every CPU has at the same time arrives, none of it twice, none lost.

use std::collections::BTreeMap;
use std::process::Stdio;

use tracelake_node_agent::engine::CollectorSpec;

use crate::support::{Recording, TestCgroup, number, program, start_in};

/// Children of the program on each CPU.
const FORKS: i64 = 100;

#[test]
fn events_of_every_cpu_at_once_arrive_exactly() {
    let cgroup = TestCgroup::new();
    let spec = CollectorSpec { name: "processes".into(), ..CollectorSpec::default() };
    let mut recording = Recording::start(spec, &[]);
    recording.targets(&[cgroup.target()]);
    let cpus = aya::util::online_cpus().expect("CPUs are listed");
    let start = |cpu: &u32| {
        let mut command = program(&format!("fork-on:{cpu}"));
        command.stdin(Stdio::piped());
        start_in(&cgroup.path, command)
    };
    let mut running: Vec<_> = cpus.iter().map(start).collect();
    // Each waits for the end of its input.
    let begin: Vec<_> = running.iter_mut().map(|child| child.stdin.take()).collect();
    drop(begin);
    running.iter_mut().for_each(|child| assert!(child.wait().expect("it is ours").success()));
    let (rows, counters) = recording.finish();
    assert_eq!(counters.ring_full + counters.map_full + counters.recursion, 0, "{counters:?}");
    let mut started: BTreeMap<i64, i64> = BTreeMap::new();
    for row in rows.iter().filter(|row| row["kind"] == "start") {
        *started.entry(number(row, "cpu")).or_default() += 1;
    }
    let parents: Vec<i64> = running.iter().map(|child| i64::from(child.id())).collect();
    let of_parents =
        rows.iter().filter(|row| row["kind"] == "start" && parents.contains(&number(row, "ppid")));
    assert_eq!(of_parents.count() as i64, FORKS * cpus.len() as i64, "{started:?}");
    for cpu in cpus {
        assert!(started.get(&i64::from(cpu)).is_some_and(|&forks| forks >= FORKS), "CPU {cpu}: {started:?}");
    }
}

/// The program: forks on one CPU.
pub(crate) fn workload(cpu: i32) -> ! {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    // SAFETY: an all-zero set is valid; the calls change this process, and its children leave at once.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(usize::try_from(cpu).expect("a CPU"), &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0, "there is a CPU {cpu}");
        for _ in 0..FORKS {
            match libc::fork() {
                0 => libc::_exit(0),
                child => assert_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child),
            }
        }
    }
    std::process::exit(0);
}
