// SPDX-License-Identifier: Apache-2.0
//! `processes` against known programs: exact counts, codes, parents and usage.

use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use tracelake_node_agent::engine::{CollectorSpec, PodTarget, TableCounters, TargetSpec};

use crate::support::{Recording, Row, TestCgroup, Usage, number, program, schedule, start_in, wait};

fn processes(params: &[(&str, &str)]) -> CollectorSpec {
    CollectorSpec {
        name: "processes".into(),
        params: params.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        interval: Duration::from_secs(1),
        ..CollectorSpec::default()
    }
}

fn of_kind<'a>(rows: &'a [Row], kind: &str) -> Vec<&'a Row> {
    rows.iter().filter(|row| row["kind"] == kind).collect()
}

fn lossless(counters: &TableCounters) {
    assert_eq!(
        (counters.ring_full, counters.map_full, counters.decode_error, counters.recursion, counters.filtered),
        (0, 0, 0, 0, 0),
        "{counters:?}"
    );
}

#[test]
fn each_of_23_programs_joins_executes_and_exits_with_its_code() {
    let cgroup = TestCgroup::new();
    let mut recording = Recording::start(processes(&[]), &[]);
    recording.targets(&[cgroup.target()]);
    let mut expected = Vec::new();
    for code in 0..23 {
        let child = start_in(&cgroup.path, program(&format!("exit:{code}")));
        expected.push((i64::from(child.id()), code));
        let (status, _) = wait(&child);
        assert_eq!(libc::WEXITSTATUS(status), code as i32);
    }
    let (rows, counters) = recording.finish();
    lossless(&counters);
    assert_eq!(counters.emitted, 69);
    for (kind, count) in [("joined", 23), ("exec", 23), ("exit", 23), ("start", 0), ("snapshot", 0)] {
        assert_eq!(of_kind(&rows, kind).len(), count, "{kind}");
    }
    let exits: Vec<_> =
        of_kind(&rows, "exit").iter().map(|row| (number(row, "pid"), number(row, "exit_code"))).collect();
    assert_eq!(exits, expected);
    for row in &rows {
        assert_eq!(number(row, "ppid"), i64::from(std::process::id()));
        assert_eq!(number(row, "cgroup_id").unsigned_abs(), cgroup.id());
        assert_eq!((&*row["node"], &*row["attribution"], &*row["weight"]), ("test-node", "task", "1"));
        assert_eq!(row["cgroup_path"], cgroup.path.file_name().unwrap().to_str().unwrap());
    }
    assert!(
        of_kind(&rows, "exec").iter().all(|row| row["exe"] == "/proc/self/exe" && !row.contains_key("args"))
    );
    let starts = |kind| of_kind(&rows, kind).iter().map(|row| number(row, "start_ns")).collect::<Vec<_>>();
    assert_eq!(starts("joined"), starts("exit"), "a process keeps its identity");
}

#[test]
fn every_one_of_100_forks_has_a_start_and_an_exit_and_the_right_parent() {
    let cgroup = TestCgroup::new();
    let mut recording = Recording::start(processes(&[]), &[]);
    recording.targets(&[cgroup.target()]);
    let parent = start_in(&cgroup.path, program("fork:100"));
    wait(&parent);
    let (rows, counters) = recording.finish();
    lossless(&counters);
    let starts = of_kind(&rows, "start");
    assert_eq!((starts.len(), of_kind(&rows, "exit").len(), counters.emitted), (100, 101, 203));
    assert!(starts.iter().all(|row| number(row, "ppid") == i64::from(parent.id())));
}

#[test]
fn what_the_kernel_skips_when_programs_preempt_each_other_is_counted() {
    const PROGRAMS: usize = 8;
    let cgroup = TestCgroup::new();
    let mut recording = Recording::start(processes(&[]), &[]);
    recording.targets(&[cgroup.target()]);
    let programs: Vec<_> = (0..PROGRAMS)
        .map(|_| {
            let mut command = program("fork:100");
            // SAFETY: one system call between fork and exec.
            unsafe { command.pre_exec(|| schedule(libc::SCHED_OTHER, 0)) };
            start_in(&cgroup.path, command)
        })
        .collect();
    programs.iter().for_each(|program| _ = wait(program));
    let (rows, counters) = recording.finish();
    lossless(&TableCounters { recursion: 0, ..counters.clone() });
    let happened = PROGRAMS * 203;
    // Skipped runs may also be those of processes outside: rows and skipped runs together are at least what happened.
    assert!(rows.len() <= happened, "{} rows of {happened} events", rows.len());
    assert!(rows.len() + counters.recursion as usize >= happened, "{} rows, {counters:?}", rows.len());
}

#[test]
fn signal_is_told_apart_from_exit_code() {
    let cgroup = TestCgroup::new();
    let mut recording = Recording::start(processes(&[]), &[]);
    recording.targets(&[cgroup.target()]);
    wait(&start_in(&cgroup.path, program(&format!("signal:{}", libc::SIGKILL))));
    wait(&start_in(&cgroup.path, program("exit:9")));
    let (rows, _) = recording.finish();
    let ends: Vec<_> =
        of_kind(&rows, "exit").iter().map(|row| (number(row, "exit_code"), number(row, "signal"))).collect();
    assert_eq!(ends, [(0, i64::from(libc::SIGKILL)), (9, 0)]);
}

/// The one exit of a program, whose CPU time is what wait4 says, and wait4's usage.
fn usage_of(what: &str) -> (Row, Usage) {
    // The scheduler's last update may lie one tick back; 10 ms is the longest tick there is. A machine that emulates another
    // may stop it for longer just then, which counts there as CPU time: the best of three.
    let mut far = Vec::new();
    for _ in 0..3 {
        let (exit, usage) = one_usage_of(what);
        let cpu = number(&exit, "utime_ns") + number(&exit, "stime_ns");
        if (usage.cpu.as_nanos() as i64 - cpu).abs() <= 11_000_000 {
            return (exit, usage);
        }
        far.push(format!("{cpu} ns here, {:?} by wait4", usage.cpu));
    }
    panic!("{what}: {far:?}");
}

fn one_usage_of(what: &str) -> (Row, Usage) {
    let cgroup = TestCgroup::new();
    let mut recording = Recording::start(processes(&[]), &[]);
    recording.targets(&[cgroup.target()]);
    let child = start_in(&cgroup.path, program(what));
    let (_, usage) = wait(&child);
    let (rows, _) = recording.finish();
    let exits = of_kind(&rows, "exit");
    assert_eq!(exits.len(), 1, "{exits:?}");
    (exits[0].clone(), usage)
}

#[test]
fn usage_agrees_with_getrusage() {
    let (exit, usage) = usage_of("work:200");
    assert_eq!(number(&exit, "max_rss_bytes"), usage.max_rss);
    assert!((number(&exit, "min_flt") - usage.min_flt).abs() <= 2, "{exit:?} {usage:?}");
    assert!(number(&exit, "min_flt") > 1000);
}

#[test]
fn a_first_thread_that_ends_before_the_others_is_in_the_process_usage() {
    let (exit, usage) = usage_of("first-ends:100");
    assert!(usage.cpu.as_millis() >= 200, "each of two threads worked: {usage:?}");
    assert_eq!((exit["group_dead"].as_str(), exit["comm"].as_str()), ("true", "exe"));
    assert_eq!((number(&exit, "pid"), number(&exit, "exit_code")), (number(&exit, "tid"), 0));
}

#[test]
fn process_that_runs_before_the_session_has_a_snapshot_before_its_exit() {
    let cgroup = TestCgroup::new();
    let mut command = program("wait:5");
    command.stdin(Stdio::piped());
    let mut child = start_in(&cgroup.path, command);
    let mut recording = Recording::start(processes(&[]), &[]);
    recording.targets(&[cgroup.target()]);
    drop(child.stdin.take());
    wait(&child);
    let (rows, counters) = recording.finish();
    lossless(&counters);
    let kinds: Vec<_> = rows.iter().map(|row| row["kind"].as_str()).collect();
    assert_eq!(kinds, ["snapshot", "exit"]);
    assert_eq!(number(&rows[1], "exit_code"), 5);
    assert_eq!(number(&rows[0], "start_ns"), number(&rows[1], "start_ns"));
}

#[test]
fn threads_and_arguments_are_recorded_when_asked_for() {
    let cgroup = TestCgroup::new();
    let mut recording = Recording::start(processes(&[("threads", "true"), ("args", "true")]), &[]);
    recording.targets(&[cgroup.target()]);
    wait(&start_in(&cgroup.path, program("threads:7")));
    let (rows, counters) = recording.finish();
    lossless(&counters);
    let threads = |kind: &str| of_kind(&rows, kind).iter().filter(|row| row["is_thread"] == "true").count();
    assert_eq!((threads("start"), threads("exit")), (7, 7));
    let whole: Vec<_> =
        of_kind(&rows, "exit").into_iter().filter(|row| row["group_dead"] == "true").collect();
    assert_eq!(whole.len(), 1);
    assert_eq!(of_kind(&rows, "exec")[0]["args"], "/proc/self/exe workload");
}

#[test]
fn a_process_whose_threads_end_side_by_side_has_one_end() {
    let cgroup = TestCgroup::new();
    let mut recording = Recording::start(processes(&[]), &[]);
    recording.targets(&[cgroup.target()]);
    // Joined before the end, alive at the end, replaced by the program that one of them executes, and first to end.
    let ways = ["threads:7", "live-threads:7", "exec-by-thread:0", "first-ends:1"].iter().cycle().take(32);
    let mut running: Vec<_> = ways.map(|what| start_in(&cgroup.path, program(what))).collect();
    let mut pids: Vec<i64> = running.iter().map(|child| i64::from(child.id())).collect();
    running.iter_mut().for_each(|child| assert!(child.wait().expect("it is ours").success()));
    let (rows, counters) = recording.finish();
    lossless(&counters);
    let mut ended: Vec<i64> = of_kind(&rows, "exit").iter().map(|row| number(row, "pid")).collect();
    ended.sort_unstable();
    pids.sort_unstable();
    assert_eq!(ended, pids);
}

#[test]
fn renames_are_recorded_when_asked_for() {
    let cgroup = TestCgroup::new();
    let mut asked = Recording::start(processes(&[("renames", "true"), ("threads", "true")]), &[]);
    asked.targets(&[cgroup.target()]);
    wait(&start_in(&cgroup.path, program("rename:7")));
    let (rows, counters) = asked.finish();
    lossless(&counters);
    let names = |thread: &str| -> Vec<_> {
        let renames = of_kind(&rows, "rename").into_iter();
        let renames = renames.filter(|row| row["is_thread"] == thread);
        let mut names: Vec<_> = renames.map(|row| row["comm"].clone()).collect();
        names.sort();
        names
    };
    let mut expected: Vec<_> = (0..7).map(|number| format!("a-long-name-{number}")).collect();
    // By execve, after the file.
    expected.push("exe".to_owned());
    assert_eq!(names("false"), expected);
    assert_eq!(names("true"), ["own-name-of-the"], "the kernel keeps 15 bytes");
    let mut plain = Recording::start(processes(&[]), &[]);
    plain.targets(&[cgroup.target()]);
    wait(&start_in(&cgroup.path, program("rename:7")));
    let (rows, counters) = plain.finish();
    lossless(&counters);
    assert_eq!(of_kind(&rows, "rename").len(), 0);
}

#[test]
fn sampled_rows_stand_for_every_event() {
    let cgroup = TestCgroup::new();
    let mut recording = Recording::start(CollectorSpec { sample_every: 10, ..processes(&[]) }, &[]);
    recording.targets(&[cgroup.target()]);
    wait(&start_in(&cgroup.path, program("fork:100")));
    let (rows, counters) = recording.finish();
    assert_eq!(counters.emitted, 203);
    assert!(rows.iter().all(|row| row["weight"] == "10"));
    assert_eq!(rows.len() as u64 * 10 + counters.sampled_out, 203);
    assert!(!rows.is_empty() && counters.sampled_out > 0);
}

#[test]
fn rate_limit_cuts_and_counts_what_it_cuts() {
    let cgroup = TestCgroup::new();
    let mut recording = Recording::start(CollectorSpec { max_events_per_second: 5, ..processes(&[]) }, &[]);
    recording.targets(&[cgroup.target()]);
    wait(&start_in(&cgroup.path, program("fork:100")));
    let (rows, counters) = recording.finish();
    assert_eq!(counters.emitted, 203);
    assert_eq!(rows.len() as u64 + counters.rate_limited, 203, "{counters:?}");
    // Programs on several CPUs may find the same last place in a second.
    let most = 5 + std::thread::available_parallelism().map_or(1, usize::from);
    let mut seconds = std::collections::BTreeMap::<i64, usize>::new();
    rows.iter().for_each(|row| *seconds.entry(number(row, "ts_ns") / 1_000_000_000).or_default() += 1);
    assert!(seconds.values().all(|rows| *rows <= most), "{seconds:?}");
}

#[test]
fn first_exec_of_a_container_is_seen_200_times_of_200() {
    const ROUNDS: usize = 200;
    let mut cgroup = TestCgroup::new();
    let mut recording = Recording::start(processes(&[]), &[]);
    let uid = |round: usize| format!("0a1b2c3d-0000-4111-8222-{round:012x}");
    let sandbox = "a".repeat(64);
    let container = |round: usize| format!("{round:064x}");
    let targets: Vec<_> = (0..ROUNDS)
        .map(|round| {
            TargetSpec::Pod(PodTarget {
                uid: uid(round),
                namespace: "shop".into(),
                pod: format!("checkout-{round}"),
                cgroup_name: None,
                host_network: false,
                containers: vec![("app".into(), container(round))],
            })
        })
        .collect();
    recording.targets(&targets);
    for round in 0..ROUNDS {
        // Half of them named as kubelet's systemd driver names them.
        let (pod, name) = if round % 2 == 0 {
            (format!("kubepods/pod{}", uid(round)), container(round))
        } else {
            let slice = format!("kubepods-burstable-pod{}.slice", uid(round).replace('-', "_"));
            (format!("kubepods.slice/{slice}"), format!("cri-containerd-{}.scope", container(round)))
        };
        let pause = cgroup.child(&format!("{pod}/{sandbox}"));
        wait(&start_in(&pause, program("exit:0")));
        let path = cgroup.child(&format!("{pod}/{name}"));
        wait(&start_in(&path, program("exit:0")));
    }
    let (rows, counters, coverage) = recording.finish_with_coverage();
    // Six events for each round; the sandboxes' three are not the user's.
    assert_eq!((counters.emitted, counters.filtered), (6 * ROUNDS as u64, 3 * ROUNDS as u64), "{counters:?}");
    let execs = of_kind(&rows, "exec");
    assert_eq!(execs.len(), ROUNDS);
    for (round, row) in execs.iter().enumerate() {
        assert_eq!(row["pod_uid"], uid(round));
        assert_eq!(
            (&*row["namespace"], row["pod"].as_str(), &*row["container"]),
            ("shop", format!("checkout-{round}").as_str(), "app")
        );
    }
    assert_eq!(coverage.len(), ROUNDS);
    assert!(coverage.iter().all(|target| target.from_start && target.reason.is_empty()), "{:?}", coverage[0]);
}

#[test]
fn pod_whose_cgroups_exist_already_is_joined_and_only_named_containers_are_kept() {
    const UID: &str = "0a1b2c3d-0000-4111-8222-0123456789ab";
    let mut cgroup = TestCgroup::new();
    let pod = format!("kubepods/pod{UID}");
    let _sandbox = cgroup.child(&format!("{pod}/{}", "a".repeat(64)));
    let app = cgroup.child(&format!("{pod}/{}", "b".repeat(64)));
    let sidecar = cgroup.child(&format!("{pod}/{}", "c".repeat(64)));
    let mut recording = Recording::start(processes(&[]), &["app"]);
    recording.targets(&[TargetSpec::Pod(PodTarget {
        uid: UID.into(),
        namespace: "shop".into(),
        pod: "checkout".into(),
        cgroup_name: None,
        host_network: false,
        containers: vec![("app".into(), "b".repeat(64)), ("sidecar".into(), "c".repeat(64))],
    })]);
    wait(&start_in(&app, program("exit:1")));
    wait(&start_in(&sidecar, program("exit:2")));
    let (rows, counters, coverage) = recording.finish_with_coverage();
    assert_eq!((rows.len(), counters.filtered), (3, 3));
    assert!(rows.iter().all(|row| row["container"] == "app"));
    assert!(coverage.iter().all(|target| !target.from_start));
}

#[test]
fn session_that_ended_records_nothing_and_its_slot_starts_afresh() {
    let (first, second) = (TestCgroup::new(), TestCgroup::new());
    let held = |cgroup: &TestCgroup| {
        let mut command = program("wait:0");
        command.stdin(Stdio::piped());
        start_in(&cgroup.path, command)
    };
    let mut long_lived = [held(&first), held(&second)];
    let mut recording = Recording::start(processes(&[]), &[]);
    recording.targets(&[first.target()]);
    // One engine has one slot to give out first: the second session gets that of the first.
    let rows = recording.replace(processes(&[]), &[second.target()]);
    assert_eq!(rows.iter().map(|row| row["kind"].as_str()).collect::<Vec<_>>(), ["snapshot"], "{rows:?}");
    wait(&start_in(&first.path, program("exit:0")));
    for child in &mut long_lived {
        drop(child.stdin.take());
        wait(child);
    }
    let (rows, counters) = recording.finish();
    lossless(&counters);
    assert_eq!(
        rows.iter().map(|row| row["kind"].as_str()).collect::<Vec<_>>(),
        ["snapshot", "exit"],
        "{rows:?}"
    );
    assert!(rows.iter().all(|row| number(row, "cgroup_id").unsigned_abs() == second.id()));
}

#[test]
fn cgroups_that_a_full_ring_did_not_announce_are_found_by_looking() {
    const CGROUPS: usize = 300;
    let mut cgroup = TestCgroup::new();
    let mut recording = Recording::with_rings(Some(4096), processes(&[]), &[]);
    recording.targets(&[cgroup.target()]);
    // Made without a pause: a ring of one page has room for some ten records, and is emptied every few milliseconds.
    let paths: Vec<_> = (0..CGROUPS).map(|i| cgroup.child(&i.to_string())).collect();
    recording.engine.mend().expect("there is room for them");
    let mut codes = Vec::new();
    for (code, path) in (0..3).zip(paths.iter().step_by(CGROUPS / 3)) {
        wait(&start_in(path, program(&format!("exit:{code}"))));
        codes.push((path.strip_prefix(crate::support::root()).unwrap().to_str().unwrap().to_owned(), code));
    }
    let (rows, _) = recording.finish();
    let exits: Vec<_> = of_kind(&rows, "exit")
        .iter()
        .map(|row| (row.get("cgroup_path").cloned().unwrap_or_default(), number(row, "exit_code")))
        .collect();
    assert_eq!(exits, codes, "rows of cgroups that nobody knows have no path");
}

#[test]
fn sessions_of_the_same_target_see_the_same_as_if_each_were_alone() {
    let cgroup = TestCgroup::new();
    let mut recording = Recording::start(processes(&[]), &[]);
    recording.targets(&[cgroup.target()]);
    let mut command = program("wait:0");
    command.stdin(Stdio::piped());
    let mut child = start_in(&cgroup.path, command);
    recording.await_emitted(2);
    recording.open_second(processes(&[("args", "true")]), &[cgroup.target()]);
    drop(child.stdin.take());
    wait(&child);
    wait(&start_in(&cgroup.path, program("exit:0")));
    let (first, second) = recording.finish_both();
    let kinds = |rows: &[Row]| rows.iter().map(|row| row["kind"].clone()).collect::<Vec<_>>();
    assert_eq!(kinds(&first), ["joined", "exec", "exit", "joined", "exec", "exit"]);
    assert_eq!(kinds(&second), ["snapshot", "exit", "joined", "exec", "exit"]);
    assert!(
        first.iter().all(|row| !row.contains_key("args")),
        "arguments go to the session that asked for them"
    );
    assert_eq!(second[3]["args"], "/proc/self/exe workload");
}
