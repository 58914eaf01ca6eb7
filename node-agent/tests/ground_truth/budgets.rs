// SPDX-License-Identifier: Apache-2.0
//! Budgets on a running kernel: however often the sampling changes, each event is counted by one weight, and what is not in a
//! row is counted as sampled out.

use std::time::{Duration, Instant};

use tracelake_node_agent::budget::{Budget, Excess};
use tracelake_node_agent::engine::{CollectorSpec, EngineConfig, EngineError, SessionSpec};
use tracelake_node_agent::kernel::clock;

use crate::page_faults::PAGES;
use crate::support::{Burst, Recording, Row, TestCgroup, number};

/// Far below what the workload does.
const EVENTS: u64 = 1_000;

fn faults() -> CollectorSpec {
    CollectorSpec {
        name: "pageFaults".into(),
        params: [("events".to_owned(), "true".to_owned())].into(),
        ..CollectorSpec::default()
    }
}

/// A session beside that of [`Recording`].
fn session(uid: &str, budget: Budget) -> SessionSpec {
    SessionSpec {
        uid: uid.into(),
        collectors: vec![faults()],
        containers: Vec::new(),
        rollover_interval: Duration::from_millis(200),
        rollover_bytes: 1 << 20,
        budget,
    }
}

/// Has the workload do something until the governor says something, as the agent asks it: five times a second.
fn govern(recording: &mut Recording, mut work: impl FnMut(), until: impl Fn(&Excess) -> bool) -> Excess {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(60), "the governor says something within a minute");
        work();
        if let Some((session, excess)) = recording.engine.govern().into_iter().find(|(_, one)| until(one)) {
            assert_eq!(session, recording.session);
            return excess;
        }
    }
}

/// How many of a second's events may become rows, of a workload that runs as fast as the machine lets it: the last second of
/// these rows, which were sampled all along. Every look gives the events a weight by which those that it has counted fit, or are a
/// quarter too many at most. It has counted no fewer than the slowest of these seconds had, in a second and at most `late` more,
/// and cannot know by how much the next second is faster. A twentieth is for the rows at the edges, which stand for events of the
/// second before.
fn most_rows(rows: &[Row], late: Duration) -> f64 {
    const SECOND: i64 = 1_000_000_000;
    let at: Vec<i64> = rows.iter().map(|row| number(row, "ts_ns")).collect();
    // Sums up to each row: an emulated CPU would add up seconds for minutes.
    let upto: Vec<i64> = std::iter::once(0)
        .chain(rows.iter().scan(0, |sum, row| {
            *sum += number(row, "weight");
            Some(*sum)
        }))
        .collect();
    let events = |after: i64| -> i64 {
        let before = |time: i64| upto[at.partition_point(|at| *at <= time)];
        before(after + SECOND) - before(after)
    };
    let last = at.last().expect("a row") - SECOND;
    let slowest = at.iter().take_while(|at| **at <= last).map(|at| events(*at)).min();
    let faster = events(last) as f64 / slowest.expect("more than a second was sampled") as f64;
    1.25 * EVENTS as f64 * faster * (1.0 + late.as_secs_f64()) * 1.05
}

#[test]
fn what_a_budget_leaves_out_is_counted_and_every_weight_is_right_while_it_changes() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("faults", &cgroup.path);
    let budget = Budget { events_per_second: EVENTS, ..Budget::default() };
    let mut recording = Recording::on(budget, faults());
    recording.targets(&[cgroup.target()]);
    let before = burst.faults();
    let excess = govern(&mut recording, || drop(burst.go("touch")), |_| true);
    assert!(!excess.stopped && excess.message.contains("of page_faults 1 of "), "{excess:?}");
    // Faults while the limits change, several times, there and back.
    let rest = || std::thread::sleep(Duration::from_millis(200));
    govern(&mut recording, rest, |excess| excess.message.contains("all become rows again"));
    let again = govern(&mut recording, || drop(burst.go("touch")), |_| true);
    let (sampled, sampled_ns) = (Instant::now(), clock::boot_ns().cast_signed());
    let (mut asked, mut late, mut said) = (sampled, Duration::ZERO, vec![(Duration::ZERO, again.message)]);
    while sampled.elapsed() < Duration::from_secs(4) {
        burst.go("touch");
        let new =
            recording.engine.govern().into_iter().map(|(_, excess)| (sampled.elapsed(), excess.message));
        said.extend(new);
        late = late.max(std::mem::replace(&mut asked, Instant::now()).elapsed());
    }
    let after = burst.faults();
    let (rows, counters) = recording.finish();
    let weights: Vec<i64> = rows.iter().map(|row| number(row, "weight")).collect();
    assert!(weights.contains(&1) && weights.iter().any(|&weight| weight > 1), "before and while sampling");
    let known = (after.0 + after.1 - before.0 - before.1).cast_unsigned();
    // Faults inside the kernel are in the process's own count alone.
    assert!((known * 99 / 100..=known).contains(&counters.emitted), "{counters:?}, of {known} faults");
    assert_eq!(counters.ring_full + counters.recursion, 0, "{counters:?}");
    // `finish` has compared both sides exactly, with what no row stands for, which may be nothing; this shows that the left side is
    // not the rows' own sum.
    assert!(counters.emitted > 10 * PAGES as u64, "{counters:?}");
    let sampled = &rows[rows.partition_point(|row| number(row, "ts_ns") <= sampled_ns)..];
    let last = number(rows.last().expect("a row"), "ts_ns");
    let second = |row: &&Row| last - number(row, "ts_ns") < 1_000_000_000;
    let (rate, most) = (sampled.iter().filter(second).count(), most_rows(sampled, late));
    let changes = sampled.chunk_by(|one, next| one["weight"] == next["weight"]);
    let changes: Vec<_> = changes
        .map(|rows| (number(&rows[0], "ts_ns") - sampled_ns, rows.len(), &rows[0]["weight"]))
        .collect();
    assert!(
        rate as f64 <= most,
        "{rate} rows in the last second, of {most:.0} that may be; after {late:?} at most {said:?}; {changes:?}"
    );
}

#[test]
fn a_session_that_is_to_stop_is_told_so_and_is_not_sampled() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("faults", &cgroup.path);
    let budget = Budget { events_per_second: EVENTS, stop: true, ..Budget::default() };
    let mut recording = Recording::on(budget, faults());
    recording.targets(&[cgroup.target()]);
    let excess = govern(&mut recording, || drop(burst.go("touch")), |_| true);
    assert!(excess.stopped, "{excess:?}");
    let (rows, counters) = recording.finish();
    assert!(rows.iter().all(|row| row["weight"] == "1"));
    assert_eq!(counters.sampled_out, 0);
}

#[test]
fn cpu_time_beyond_its_budget_is_answered_by_sampling() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("faults", &cgroup.path);
    // One row costs the agent about half a microsecond at least; the workload makes far more than 2,000 a second.
    let mut recording = Recording::on(Budget { cpu_millis: 1, ..Budget::default() }, faults());
    recording.targets(&[cgroup.target()]);
    let excess = govern(&mut recording, || drop(burst.go("touch")), |_| true);
    assert_eq!(excess.budget, "cpu", "{excess:?}");
    // Where a row costs much, as on an emulated CPU, one stands for thousands of events.
    (0..30).for_each(|_| drop(burst.go("touch")));
    let (rows, _) = recording.finish();
    assert!(number(rows.last().expect("a row"), "weight") > 1);
}

#[test]
fn what_the_process_does_besides_is_not_for_a_session_to_pay() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("faults", &cgroup.path);
    // Half of what this thread takes, which is a CPU of its own, for longer than an average is made of. What rows cost is far below it,
    // also where the machine that emulates this one has other things to do.
    let mut recording = Recording::on(Budget { cpu_millis: 500, ..Budget::default() }, faults());
    recording.targets(&[cgroup.target()]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(7) {
        burst.go("touch");
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_millis(500) {
            std::hint::black_box(asked);
        }
        let said = recording.engine.govern();
        assert!(said.is_empty(), "{said:?}");
    }
    let (rows, _) = recording.finish();
    assert!(rows.len() > PAGES && rows.iter().all(|row| row["weight"] == "1"), "{} rows", rows.len());
}

#[test]
fn what_a_session_cost_that_has_ended_is_not_for_another_to_pay() {
    let (one, other) = (TestCgroup::new(), TestCgroup::new());
    let (mut flood, mut few) = (Burst::start("faults", &one.path), Burst::start("faults", &other.path));
    let mut recording = Recording::start(faults(), &[]);
    recording.targets(&[one.target()]);
    // The flood takes a CPU and more, for three seconds of five.
    let budget = Budget { cpu_millis: 400, ..Budget::default() };
    recording.engine.open(session("few", budget)).expect("there is a place");
    recording.engine.set_targets("few", &[other.target()]).expect("the targets are set");
    recording.engine.govern();
    let began = Instant::now();
    few.go("touch");
    while began.elapsed() < Duration::from_secs(3) {
        flood.go("touch");
    }
    recording.end();
    // Longer than an average is made of.
    while began.elapsed() < Duration::from_secs(7) {
        few.go("touch");
        let said = recording.engine.govern();
        assert!(said.is_empty(), "{said:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let counters = &recording.engine.counters("few")[0];
    assert!(counters.emitted >= 2 * PAGES as u64 && counters.sampled_out == 0, "{counters:?}");
}

/// Has a program run on one CPU: what it does is skipped there alone.
fn pin(pid: u32) {
    let cpu = aya::util::online_cpus().expect("CPUs are listed")[0] as usize;
    // SAFETY: an all-zero set is valid; the call reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(libc::sched_setaffinity(pid.cast_signed(), size_of_val(&set), &raw const set), 0);
    }
}

#[test]
fn a_session_whose_sampling_stays_gets_its_rows_beside_others_whose_sampling_changes() {
    // More than happens between two changes.
    const EVERY: u64 = 3_000;
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("faults", &cgroup.path);
    pin(burst.child.id());
    let mut recording = Recording::start(CollectorSpec { sample_every: EVERY as u32, ..faults() }, &[]);
    recording.targets(&[cgroup.target()]);
    for number in 0..12 {
        // Each of them has the sampling change once at least.
        let uid = format!("change-{number}");
        let budget = Budget { events_per_second: 100, ..Budget::default() };
        recording.engine.open(session(&uid, budget)).expect("there is a place");
        recording.engine.set_targets(&uid, &[cgroup.target()]).expect("the targets are set");
        burst.go("touch");
        let asked = Instant::now();
        while !recording.engine.govern().iter().any(|(session, _)| *session == uid) {
            assert!(asked.elapsed() < Duration::from_secs(30), "the governor says something of {uid}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let (rows, counters) = recording.finish();
    assert!(rows.iter().all(|row| number(row, "weight").cast_unsigned() == EVERY));
    assert_eq!(counters.emitted, rows.len() as u64 * EVERY + counters.sampled_out, "{counters:?}");
    // Each set of limits has skipped fewer than a row would stand for.
    assert!(counters.sampled_out < 2 * EVERY, "{} rows, {counters:?}", rows.len());
    assert!(counters.emitted > 12 * PAGES as u64, "{counters:?}");
}

#[test]
fn a_node_has_places_for_as_many_sessions_as_it_may_record() {
    let config = EngineConfig { max_sessions: Some(1), ..EngineConfig::default() };
    let mut recording = Recording::with(config, 4096, faults(), &[]);
    let second = session("session-2", Budget::default());
    let refused = recording.engine.open(second.clone());
    assert!(matches!(refused, Err(EngineError::NodeCapacity(1))), "{refused:?}");
    recording.end();
    recording.engine.open(second).expect("a place is free again");
}
