// SPDX-License-Identifier: Apache-2.0
//! Losses, each made on purpose: every one is counted where it happens, under its own name, and the ledger's two sides are
//! counted apart: a counter that is wrong shows.

use std::time::Duration;

use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues, loaded_maps};
use node_agent_common::counters::{Counters, slot_table};
use node_agent_common::{page_faults, processes};
use tracelake_node_agent::engine::{CollectorSpec, EngineConfig};

use crate::support::{Burst, Recording, TestCgroup, answer, as_root, number, program, start_in, wait};

/// Threads and their naps at an order: more threads than the map of the test has room for.
const THREADS: usize = 8;
const NAPS: usize = 20;
const ROOM: u32 = 4;

fn of(name: &str, params: &[(&str, &str)]) -> CollectorSpec {
    CollectorSpec {
        name: name.into(),
        interval: Duration::from_millis(200),
        params: params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..CollectorSpec::default()
    }
}

#[test]
fn what_a_consumer_that_stops_for_five_seconds_has_no_room_for_is_counted() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("faults", &cgroup.path);
    // One batch has room, and nobody takes it: the drain thread stands still with the first one after it.
    let config = EngineConfig { ring_bytes: Some(16 << 10), ..EngineConfig::default() };
    let mut recording = Recording::with(config, 1, of("pageFaults", &[("events", "true")]), &[]);
    recording.targets(&[cgroup.target()]);
    burst.go("touch");
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..4 {
        burst.go("touch");
        std::thread::sleep(Duration::from_secs(1));
    }
    let (rows, counters) = recording.finish();
    assert!(counters.ring_full > 0, "five seconds of faults fit 16 KiB: {counters:?}");
    assert_eq!(counters.emitted, rows.len() as u64 + counters.ring_full, "{counters:?}");
    let pages = 5 * crate::page_faults::PAGES as u64;
    assert!(
        counters.emitted >= pages,
        "each of {pages} faults was counted, with a row or without: {counters:?}"
    );
}

#[test]
fn what_finds_a_map_full_is_counted() {
    let cgroup = TestCgroup::new();
    let mut burst = Burst::start("many-threads", &cgroup.path);
    let config = EngineConfig { map_rows: Some(ROOM), ..EngineConfig::default() };
    // One window, so that nothing makes room meanwhile.
    let spec =
        CollectorSpec { interval: Duration::from_secs(3_600), ..of("cpuSched", &[("perThread", "true")]) };
    let mut recording = Recording::with(config, 4096, spec, &[]);
    recording.targets(&[cgroup.target()]);
    let count = |burst: &Burst| -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", burst.child.id())).expect("it lives");
        let status = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status"));
        let all: Vec<String> =
            tasks.map(|task| status(task.expect("a thread")).expect("that lives")).collect();
        let switches = all.iter().flat_map(|text| text.lines()).filter(|line| line.contains("ctxt_switches"));
        let number = |line: &str| line.rsplit_once(char::is_whitespace).expect("a number").1.parse::<u64>();
        switches.map(|line| number(line).expect("a number")).sum()
    };
    // Once they all wait.
    let slices = |burst: &Burst| loop {
        let first = count(burst);
        std::thread::sleep(Duration::from_millis(100));
        if count(burst) == first {
            break first;
        }
    };
    let before = slices(&burst);
    burst.go("nap");
    let after = slices(&burst);
    let (rows, counters) = recording.finish();
    assert_eq!(rows.len(), ROOM as usize, "{rows:?}");
    let kept: i64 = rows.iter().map(|row| number(row, "weight")).sum();
    assert!(counters.map_full > 0, "{THREADS} threads in {ROOM} rows: {counters:?}");
    assert_eq!(counters.emitted, kept.cast_unsigned() + counters.map_full, "{counters:?}");
    assert_eq!(counters.emitted, after - before, "switches by the kernel's own count");
}

/// Adds one to a counter of the newest engine's first session, on its first CPU.
fn break_counter(table: u32, counter: impl Fn(&mut Counters) -> &mut u64) {
    let map = as_root(|| {
        let maps = loaded_maps().filter_map(Result::ok).filter(|map| map.name_as_str() == Some("COUNTERS"));
        let newest = maps.map(|map| map.id()).max().expect("the engine has counters");
        MapData::from_id(newest).expect("it is there")
    });
    let map = Map::PerCpuArray(map);
    let mut map = PerCpuArray::<MapData, Counters>::try_from(map).expect("it is one");
    let index = slot_table(0, table);
    let mut values = map.get(&index, 0).expect("it can be read").to_vec();
    *counter(&mut values[0]) += 1;
    map.set(index, PerCpuValues::try_from(values).expect("one for each CPU"), 0).expect("and written");
}

/// One of the counters.
type Counter = fn(&mut Counters) -> &mut u64;

#[test]
fn a_counter_that_is_wrong_by_one_shows() {
    // A table with a row for each event, and one that is added up.
    let (events, sums) = ((processes::INDEX, "processes"), (page_faults::INDEX, "pageFaults"));
    let counters: [((u32, &str), Counter); 5] = [
        (events, |c| &mut c.emitted),
        (events, |c| &mut c.ring_full),
        (events, |c| &mut c.rate_limited),
        (sums, |c| &mut c.emitted),
        (sums, |c| &mut c.map_full),
    ];
    let broken = counters.into_iter().map(Some);
    for (position, one) in [None].into_iter().chain(broken).enumerate() {
        let ((table, name), counter) = one.map_or((events, None), |(table, counter)| (table, Some(counter)));
        let cgroup = TestCgroup::new();
        let mut recording = Recording::start(of(name, &[]), &[]);
        recording.targets(&[cgroup.target()]);
        wait(&start_in(&cgroup.path, program("exit:0")));
        if let Some(counter) = counter {
            break_counter(table, counter);
        }
        let (found, rows, balances) = recording.finish_unbalanced();
        assert_eq!(balances, counter.is_none(), "counter {position} of {name}: {found:?}, {rows} rows");
    }
}

/// The program of these tests.
pub(crate) fn workload() -> ! {
    use std::sync::{Arc, Barrier};
    let (begin, end) = (Arc::new(Barrier::new(THREADS + 1)), Arc::new(Barrier::new(THREADS + 1)));
    for _ in 0..THREADS {
        let (begin, end) = (begin.clone(), end.clone());
        std::thread::spawn(move || {
            loop {
                begin.wait();
                (0..NAPS).for_each(|_| std::thread::sleep(Duration::from_millis(1)));
                end.wait();
            }
        });
    }
    answer(move |_| {
        begin.wait();
        end.wait();
        // The others are on their way back to the barrier.
        std::thread::sleep(Duration::from_millis(100));
        String::new()
    })
}
