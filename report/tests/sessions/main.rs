// SPDX-License-Identifier: Apache-2.0

//! Reports of whole sessions: the numbers of `shop.md` added up by hand, and golden files of JSON and text; what is left out of
//! TCP health (`health.rs`); what is said where nodes, rows or a manifest are missing (`missing.rs`).

extern crate tracelake_report as report;

#[path = "../support/duckdb.rs"]
mod duckdb;
mod health;
mod missing;
#[path = "../support/mod.rs"]
mod support;

use dataset::coverage::CoverageKind;
use duckdb::{DuckDb, golden};
use report::compare::Comparison;
use report::tcp_health::score;
use report::{Report, Section};
use support::{Session, coverage};

/// The term of that name.
fn term<'a>(health: &'a score::Health, name: &str) -> &'a score::Term {
    health.terms.iter().find(|term| term.name == name).unwrap()
}

async fn report(session: &Session) -> Report {
    let written = session.write().await;
    Report::new(&written.contents, &written.tables().await).await.unwrap_or_else(|error| panic!("{error}"))
}

fn data<T>(section: &Section<T>) -> &T {
    match section {
        Section::Data(data) => data,
        Section::Absent(why) | Section::Unread(why) => panic!("{why}"),
    }
}

#[tokio::test]
async fn the_shops_health_is_what_one_adds_up_by_hand() {
    let report = report(&Session::shop()).await;
    let tcp = data(&report.tcp_health);
    let term = |health: &score::Health, name: &str| {
        let term = health.terms.iter().find(|term| term.name == name).unwrap().clone();
        (term.numerator.unwrap(), term.denominator.unwrap(), term.taken)
    };
    let is = |health: &score::Health, name: &str, numerator: u64, denominator: u64, taken: f64| {
        let found = term(health, name);
        assert_eq!((found.0, found.1), (numerator, denominator), "{name}");
        assert!((found.2 - taken).abs() < 1e-9, "{name} takes {} off, not {taken}", found.2);
    };
    // 9,000 + 1,000 + 5,000 + 2,000 + 95 + 5 segments received; 105 + 95 lost, the 30 of UDP not.
    let loss = 200.0 / 17_300.0;
    is(&tcp.all, "loss_ratio", 200, 17_300, 25.0 * (loss - 0.001) / 0.019);
    is(&tcp.all, "refused_ratio", 5, 17_100, 0.0);
    // 10 x 6 + 35 + 5 segments of data again, not the 12 SYN, nor the 3 that were not sent. Sent: 90 x 40 + 8 x 25 + 100 x 52,
    // and of the adopted connection's 4,000 segments the quarter that its 1,000,000 of 4,000,000 bytes stand for.
    let again = 100.0 / 10_000.0;
    is(&tcp.all, "retrans_ratio", 100, 10_000, 25.0 * (again - 0.005) / 0.045);
    // 6 refused and 4 timed out; 90 + 8 + 2 established; 3 given up count nowhere.
    let failed = 10.0 / 110.0;
    is(&tcp.all, "connect_failure_ratio", 10, 110, 20.0 * (failed - 0.01) / 0.19);
    let overflow = 1.0 / 101.0;
    is(&tcp.all, "accept_overflow_ratio", 1, 101, 15.0 * overflow / 0.01);
    is(&tcp.all, "backlog_ratio", 1_000, 17_000, 0.0);
    is(&tcp.all, "reset_ratio", 8, 200, 0.0);
    // Of four in CLOSE_WAIT one left it, one entered it 10 s before the end, and 61 s before the end is just enough.
    let leaks = tcp.all.terms.iter().find(|term| term.name == "leak_suspects").unwrap();
    assert_eq!((leaks.numerator, leaks.denominator), (Some(2), Some(1)));
    // 13.894 + 2.778 + 8.517 + 14.851 of a hundred, everything known.
    assert_eq!((tcp.all.score, tcp.all.coverage), (Some(60), 1.0));
    // 100 - min(20, 10 x 1.17 %) - 0 (5.8 % went the slow way) - min(20, 5 x 9.09 %).
    let v0 = 100.0 - 10.0 * 20_000.0 / 17_100.0 - 20.0;
    assert!((tcp.all.tcp_health_v0 - v0).abs() < 1e-9, "{}", tcp.all.tcp_health_v0);
    // 90 of 250 us, 8 of 901,234 ns and 2 of 1,004 ms.
    let handshake = tcp.all.handshake.unwrap();
    assert_eq!(
        (handshake.count, handshake.p50_ns, handshake.p95_ns, handshake.p99_ns, handshake.max_ns),
        (100, 250_000, 901_000, 1_000_000_000, 1_004_000_000)
    );
    // By pod: web has lost 105 of 10,105, its 95 of 5,200 segments again, and dropped 1 of 101.
    let web = tcp.pods.iter().find(|pod| pod.pod.as_deref() == Some("web")).unwrap();
    is(&web.health, "loss_ratio", 105, 10_105, 25.0 * (105.0 / 10_105.0 - 0.001) / 0.019);
    is(&web.health, "retrans_ratio", 95, 5_200, 25.0 * (95.0 / 5_200.0 - 0.005) / 0.045);
    // Nobody connected from there.
    let connects = web.health.terms.iter().find(|term| term.name == "connect_failure_ratio").unwrap();
    assert_eq!((connects.value, connects.null_because.as_deref()), (None, Some("fewer than 5")));
    // Every advice has its own cause.
    let causes: Vec<&str> = tcp.advice.iter().map(|one| one.cause.as_str()).collect();
    for cause in ["QDISC_DROP", "SOCKET_BACKLOG", "ECONNREFUSED", "ETIMEDOUT", "NETFILTER_DROP"] {
        assert_eq!(causes.iter().filter(|one| one.contains(cause)).count(), 1, "{cause}: {causes:?}");
    }
    assert!(!causes.iter().any(|cause| cause.contains("SOCKET_RCVBUFF")), "UDP is none of TCP's: {causes:?}");
}

#[tokio::test]
async fn the_shops_memory_is_a_step_function_that_ends_with_the_process() {
    let report = report(&Session::shop()).await;
    let memory = data(&report.memory);
    let mib = |bytes: u64| bytes >> 20;
    assert_eq!((memory.processes_total, mib(memory.peak_bytes)), (3, 330 + 50 + 2));
    let series = |name: &str| {
        let series = memory.process_series.iter().find(|one| one.name.starts_with(name)).unwrap();
        series.values.iter().map(|value| value.map(|bytes| mib(bytes as u64))).collect::<Vec<_>>()
    };
    assert_eq!((memory.step_us, memory.pods[0].values.len()), (1_000_000, 100));
    // What is resident at the end of each second. postgres ran before: unknown until its first row at 10 s, then 100 + 20, from
    // 40 s on 300 + 20 + 10, from 60 s on 200 + 20 + 10.
    let of = |values: &[(Option<u64>, usize)]| {
        values.iter().flat_map(|(value, bins)| std::iter::repeat_n(*value, *bins)).collect::<Vec<_>>()
    };
    assert_eq!(series("postgres"), of(&[(None, 9), (Some(120), 30), (Some(330), 20), (Some(230), 41)]));
    assert_eq!(series("walwriter"), of(&[(None, 29), (Some(2), 71)]));
    // sh began while traced: 0 before. exec gave it another memory, and it ended.
    assert_eq!(series("gzip"), of(&[(Some(0), 19), (Some(1), 10), (Some(50), 20), (Some(0), 51)]));
    let postgres = &memory.processes[0];
    assert_eq!(mib(postgres.swap_peak_bytes), 100);
}

#[tokio::test]
async fn the_shops_processes_are_one_row_for_each_life() {
    let report = report(&Session::shop()).await;
    let processes = data(&report.processes);
    let totals = processes.totals;
    assert_eq!((totals.processes, totals.started, totals.ended, totals.failed), (3, 2, 2, 1));
    assert_eq!(totals.cpu_ns, 11_000_000_000 + 1_000_000);
    // The same id twice; alive at both ends; the thread's end is not the process's.
    let lives: Vec<_> = processes
        .processes
        .iter()
        .map(|one| {
            (one.pid, one.started, one.from_us - support::BOOTED_US, one.to_us.map(|to| to - one.from_us))
        })
        .collect();
    assert_eq!(
        lives,
        [
            (90, false, 5_000_000, None),
            (71, true, 112_000_000, Some(33_000_000)),
            (71, true, 150_000_000, Some(1_000)),
        ]
    );
    let history: Vec<&str> = processes.processes[1].history.iter().map(|(_, exe)| exe.as_str()).collect();
    assert_eq!(history, ["/bin/sh", "/usr/bin/gzip"]);
    assert_eq!(processes.processes[1].signal, Some(9));
}

#[tokio::test]
async fn a_process_has_its_last_name_whether_it_ended_or_not() {
    // A container's first process, renamed once it serves; one that calls itself otherwise; one whose last thread has a name of its own.
    let text = "\
| ts_ns | weight | node | pod | pid | tid | ppid | start_ns | comm | kind | is_thread | exe | exit_code | signal | group_dead |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 101000000000 | 1 | a | web | 7 | 7 | 1 | 101000000000 | runc:[2:INIT] | start | false | | | | |
| 102000000000 | 1 | a | web | 7 | 7 | 1 | 101000000000 | nginx | exec | false | /usr/sbin/nginx | | | |
| 9900000000 | 1 | b | db | 8 | 8 | 1 | 9900000000 | zsh | snapshot | false | | | | |
| 103000000000 | 1 | b | db | 8 | 8 | 1 | 9900000000 | postgres | exec | false | /bin/postgres | | | |
| 104000000000 | 1 | b | db | 8 | 8 | 1 | 9900000000 | checkpointer | rename | false | | | | |
| 105000000000 | 1 | b | db | 8 | 9 | 1 | 9900000000 | zz-thread | rename | true | | | | |
| 101000000000 | 1 | a | web | 10 | 10 | 1 | 100500000000 | sh | start | false | | | | |
| 102000000000 | 1 | a | web | 10 | 10 | 1 | 100500000000 | java | exec | false | /bin/java | | | |
| 103000000000 | 1 | a | web | 10 | 10 | 1 | 100500000000 | java | exit | false | | 0 | 0 | false |
| 104000000000 | 1 | a | web | 10 | 11 | 1 | 100500000000 | gc-worker | exit | true | | 0 | 0 | true |
";
    let mut session = Session::shop();
    session.tables.insert("processes".to_owned(), support::rows::cells(&mut text.lines()));
    let written = session.write().await;
    let engine = written.tables().await;
    let report = Report::new(&written.contents, &engine).await.unwrap();
    let processes = &data(&report.processes).processes;
    let mut names: Vec<_> =
        processes.iter().map(|one| (one.pid, one.comm.as_deref(), one.to_us.is_some())).collect();
    names.sort_unstable();
    let expected = [(7, Some("nginx"), false), (8, Some("checkpointer"), false), (10, Some("java"), true)];
    assert_eq!(names, expected);
    // The view that `tracelake sql` has says the same.
    let view = "SELECT pid, comm FROM process_table ORDER BY pid";
    let rows = report::Engine::rows(&engine, view).await.unwrap();
    let of_view: Vec<_> = rows.iter().map(|row| row["comm"].as_str()).collect();
    assert_eq!(of_view, [Some("nginx"), Some("checkpointer"), Some("java")]);
}

#[tokio::test]
async fn sampled_processes_are_counted_by_what_their_rows_stand_for() {
    // One of ten rows is there; what came before the session, and what a budget had not sampled yet, stands for itself.
    let text = "\
| ts_ns | weight | node | pod | pid | tid | ppid | start_ns | comm | kind | is_thread | exe | exit_code | signal | group_dead | utime_ns | stime_ns | max_rss_bytes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 100000000000 | 1 | a | web | 7 | 7 | 1 | 1000 | nginx | snapshot | false | | | | | | | |
| 110000000000 | 10 | a | web | 8 | 8 | 7 | 110000000000 | sh | start | false | | | | | | | |
| 120000000000 | 10 | a | web | 9 | 9 | 7 | 119000000000 | gzip | exec | false | /bin/gzip | | | | | | |
| 130000000000 | 10 | a | web | 10 | 10 | 7 | 129000000000 | gzip | exit | false | | 1 | 0 | true | 3000000 | 1000000 | 4096 |
| 140000000000 | 10 | a | web | 11 | 11 | 7 | 139000000000 | gzip | exit | false | | 0 | 0 | true | 2000000 | 0 | 8192 |
| 150000000000 | 1 | a | web | 12 | 12 | 7 | 149000000000 | sh | exit | false | | 0 | 0 | true | 500000 | 500000 | 4096 |
";
    let mut session = Session::shop();
    session.tables.insert("processes".to_owned(), support::rows::cells(&mut text.lines()));
    let report = report(&session).await;
    let processes = data(&report.processes);
    let totals = processes.totals;
    // Who came: one that was there, ten of whom one is seen, and one whose beginning was lost and not left out.
    assert_eq!((totals.processes, totals.started, totals.ended, totals.failed), (12, 10, 21, 10));
    assert_eq!((totals.cpu_ns, totals.weight), (10 * 4_000_000 + 10 * 2_000_000 + 1_000_000, 10));
    let programs: Vec<_> = processes
        .programs
        .iter()
        .map(|one| (one.program.as_deref().unwrap(), one.processes, one.ended, one.failed, one.cpu_ns))
        .collect();
    assert_eq!(
        programs,
        [("gzip", 0, 20, 10, 60_000_000), ("sh", 11, 1, 0, 1_000_000), ("nginx", 1, 0, 0, 0)],
        "their sums are the totals'"
    );
    let text = report::text::report(&report, report::text::Style::default());
    assert!(text.contains("counts and CPU time are estimates"), "{text}");
    assert!(!text.contains("none of which ran longer"), "{text}");
}

#[tokio::test]
async fn the_shops_other_sections_add_up() {
    let report = report(&Session::shop()).await;
    let faults = data(&report.page_faults);
    assert_eq!(
        (faults.totals.major, faults.totals.minor, faults.totals.processes),
        (Some(42), Some(13_460), 2)
    );
    let gzip = faults.processes.iter().find(|one| one.comm.as_deref() == Some("gzip")).unwrap();
    assert_eq!(
        (gzip.major, gzip.minor, gzip.major_at_exit, gzip.minor_at_exit),
        (Some(1), Some(12_900), Some(2), Some(13_000))
    );
    // 12,000 in the window from 20 s to 30 s.
    let web = faults.minor.iter().find(|series| series.name == "web").unwrap();
    assert_eq!(web.values[2], Some(1_200.0));

    let scheduling = data(&report.scheduling);
    assert_eq!(scheduling.all.wait_ns, 3_000_400_000);
    assert_eq!(scheduling.all.wait_hist.iter().sum::<u64>(), 100);
    assert_eq!(scheduling.programs[0].comm.as_deref(), Some("gzip"));

    let drops = data(&report.drops);
    let loss = drops.classes.iter().find(|class| class.class == "loss").unwrap();
    assert_eq!((loss.packets, loss.segments), (50 + 80 + 30, 105 + 95 + 30));

    let again = data(&report.retransmits);
    let kinds: Vec<_> = again.kinds.iter().map(|kind| (kind.kind.as_str(), kind.segments)).collect();
    assert_eq!(kinds, [("fast", 60), ("rto", 35), ("syn", 12), ("tlp", 5)]);
    assert_eq!(again.not_sent, 3);

    let throughput = data(&report.throughput);
    let web = &throughput.pods[0];
    assert_eq!((web.pod.as_deref(), web.moved.tx_bytes, web.peak_bps), (Some("web"), 38_000_000, 22_400_000));
    let sent = throughput.sent.iter().find(|series| series.name == "web").unwrap();
    assert_eq!(sent.values[..3], [Some(10e6), Some(20.4e6), Some(0.0)]);
}

#[tokio::test]
async fn a_rate_is_of_the_time_that_was_traced_at_both_ends_of_the_session() {
    // From 100 s to 145 s; windows of 10 s end at 108 s, 118 s and so on, the last one with the session. 8,000 bits per second.
    let mut session = Session::shop();
    for row in &mut session.coverage {
        (row.to_ns, row.to_utc_us) = (145_000_000_000, support::BOOTED_US + 145_000_000);
    }
    session.tables.remove("tcp_throughput");
    let rows = [(108, 8_000), (118, 10_000), (128, 10_000), (138, 10_000), (145, 7_000)];
    let rows = rows.map(|(end, bytes)| format!("| {end}000000000 | 10000000000 | a | web | {bytes} | 0 |\n"));
    let names =
        "| ts_ns | window_ns | node | pod | tx_bytes | rx_bytes |\n| --- | --- | --- | --- | --- | --- |\n";
    let mut session = session.with("tcp_throughput", &(names.to_owned() + &rows.concat()));
    let last = session.tables.get_mut("tcp_throughput").unwrap().last_mut().unwrap();
    last[1] = "7000000000".to_owned();
    let report = report(&session).await;
    let throughput = data(&report.throughput);
    assert_eq!((throughput.step_us, throughput.sent[0].name.as_str()), (10_000_000, "web"));
    assert_eq!(throughput.sent[0].values, [Some(8_000.0); 5]);
}

#[tokio::test]
async fn single_faults_are_not_said_to_be_none_with_io() {
    let mut session = Session::shop();
    session.spec["collectors"] = serde_json::json!([{"name": "pageFaults", "params": {"events": true}}]);
    session.tables.remove("page_faults");
    let single = |session: &Report| data(&session.page_faults).totals;
    let none = report(&session).await;
    assert_eq!((single(&none).major, single(&none).single), (None, 0), "no row, and no count");
    let session = session.with(
        "page_faults",
        "\
| ts_ns | node | pod | pid | start_ns | comm | weight | address |
| --- | --- | --- | --- | --- | --- | --- | --- |
| 120000000000 | a | web | 71 | 112000000000 | gzip | 10 | 4096 |
",
    );
    let report = report(&session).await;
    let faults = data(&report.page_faults);
    assert_eq!((single(&report).major, single(&report).minor, single(&report).single), (None, None, 10));
    assert_eq!((faults.processes[0].major, faults.processes[0].single), (None, 10));
    assert_eq!(faults.read_again, None);
    let view = report.views().iter().find(|view| view.id == "page-faults").unwrap();
    assert_eq!((view.figures[0].cell.text.as_str(), view.tables[0].rows[0][4].text.as_str()), ("–", "–"));
}

#[tokio::test]
async fn the_shops_report_is_the_golden_one() {
    let session = Session::shop();
    let report = report(&session).await;
    golden("shop.json", &(serde_json::to_string_pretty(&report).unwrap() + "\n"));
    golden("shop.txt", &report::text::report(&report, report::text::Style::default()));
}

/// Two engines that share no code answer every query alike.
#[tokio::test]
async fn duckdb_says_the_same() {
    let written = Session::shop().write().await;
    let folder = written.folder.path();
    let other = Report::new(&written.contents, &DuckDb::over(&written.contents, folder, folder)).await;
    golden(
        "shop.json",
        &(serde_json::to_string_pretty(&other.unwrap_or_else(|error| panic!("{error}"))).unwrap() + "\n"),
    );
}

/// Nor do they differ where a node has gaps, and rows are spread over the intervals that they reach into.
#[tokio::test]
async fn duckdb_says_the_same_of_a_session_with_gaps() {
    let mut session = Session::shop();
    for collector in ["processes", "memoryRss"] {
        let mut gap = coverage("b", "db", collector, CoverageKind::Gap);
        (gap.from_utc_us, gap.to_utc_us) = (gap.from_utc_us + 67_000_000, gap.to_utc_us - 3_000_000);
        session.coverage.push(gap);
    }
    for row in session.coverage.iter_mut().filter(|row| row.kind == CoverageKind::Traced) {
        (row.from_utc_us, row.to_utc_us) = (row.from_utc_us + 4_000_000, row.to_utc_us - 4_000_000);
    }
    let written = session.write().await;
    let folder = written.folder.path();
    let ours = Report::new(&written.contents, &written.tables().await).await.unwrap();
    let other = Report::new(&written.contents, &DuckDb::over(&written.contents, folder, folder)).await;
    let json = |report: &Report| serde_json::to_string_pretty(report).unwrap();
    assert_eq!(json(&ours), json(&other.unwrap_or_else(|error| panic!("{error}"))));
}

#[tokio::test]
async fn two_sessions_stand_side_by_side() {
    let mut worse = Session::shop().without("pageFaults").without("cpuSched");
    // Ten times as much is sent again.
    let cells = worse.tables.get_mut("tcp_retransmits").unwrap();
    let weight = cells[0].iter().position(|name| name == "weight").unwrap();
    cells[1..].iter_mut().for_each(|row| row[weight] += "0");
    let both = Comparison::new(report(&Session::shop()).await, report(&worse).await);
    let of = |name: &str| both.figures.iter().find(|figure| figure.name == name).unwrap();
    assert_eq!(
        (of("retrans_ratio").change.as_str(), of("loss_ratio").change.as_str()),
        ("+9.00 % of the whole", "the same")
    );
    // 25 instead of 2.78 points.
    assert_eq!(of("Health, of 100").change, "−22");
    assert_eq!(of("Segments sent again").change, "10 times");
    assert_eq!(of("With I/O (major)").b, None);
    let json = serde_json::to_value(&both).unwrap();
    assert_eq!(
        (&json["format"], &json["b"]["format"]),
        (&"tracelake-comparison/2".into(), &"tracelake-report/2".into())
    );
    golden("comparison.txt", &report::compare::text(&both, report::text::Style::default()));
}

#[tokio::test]
async fn totals_of_sessions_of_different_lengths_are_compared_per_second() {
    let mut half = Session::shop();
    half.coverage.iter_mut().for_each(|row| row.to_utc_us -= 50_000_000);
    let both = Comparison::new(report(&Session::shop()).await, report(&half).await);
    let of = |name: &str| both.figures.iter().find(|figure| figure.name == name).unwrap().change.as_str();
    // As many in half the time.
    assert_eq!((of("Segments sent again"), of("Most resident at once")), ("+100.0 % per second", "the same"));
    let text = report::compare::text(&both, report::text::Style::default());
    assert!(text.contains("A lasted 100 s, B 50.0 s: A was longer"), "{text}");
}

#[tokio::test]
async fn names_that_are_hostile_do_no_harm_to_a_terminal() {
    let mut session = Session::shop();
    let cells = session.tables.get_mut("processes").unwrap();
    let comm = cells[0].iter().position(|name| name == "comm").unwrap();
    let exe = cells[0].iter().position(|name| name == "exe").unwrap();
    for row in &mut cells[1..] {
        row[comm] = "\u{1b}]0;own\u{7}".to_owned();
        if !row[exe].is_empty() {
            row[exe] = "/bin/\u{202e}'; DROP TABLE processes; --".to_owned();
        }
    }
    let report = report(&session).await;
    let text = report::text::report(&report, report::text::Style::default());
    assert!(!text.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{text}");
    assert!(text.contains("DROP TABLE processes"), "{text}");
}
