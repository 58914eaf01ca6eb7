// SPDX-License-Identifier: Apache-2.0

//! Reports of whole sessions: the numbers of `sessions/shop.md` added up by hand, golden files of JSON and text, and what
//! is said where collectors, rows, nodes or a manifest are missing.

extern crate tracelake_report as report;

#[path = "support/duckdb.rs"]
mod duckdb;
mod support;

use dataset::coverage::CoverageKind;
use dataset::ledger::Term;
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
        Section::Absent(why) => panic!("{why}"),
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
async fn memory_of_which_nobody_has_heard_since_a_gap_is_not_held_over_it() {
    let mut session = Session::shop();
    // From 70 s to 80 s after the beginning; postgres is looked at again afterwards, walwriter is not.
    let mut gap = coverage("b", "db", "memoryRss", CoverageKind::Gap);
    (gap.from_utc_us, gap.to_utc_us) = (gap.from_utc_us + 70_000_000, gap.from_utc_us + 80_000_000);
    session.coverage.push(gap);
    // What the agent before it had seen from the start, the next one has not.
    let mut late = coverage("b", "db", "memoryRss", CoverageKind::Traced);
    (late.from_utc_us, late.from_start) = (late.from_utc_us + 80_000_000, false);
    session.coverage.push(late);
    let cells = session.tables.get_mut("memory_rss").unwrap();
    let mut row = cells[1].clone();
    (row[0], row[7], row[9]) = ("190000000000".to_owned(), "9".to_owned(), (200 << 20).to_string());
    cells.push(row);
    let report = report(&session).await;
    let memory = data(&report.memory);
    let at = |series: &[report::view::Series], name: &str, second: usize| {
        let one = series.iter().find(|one| one.name.starts_with(name)).unwrap();
        one.values[second].map(|bytes| bytes as u64 >> 20)
    };
    assert_eq!((at(&memory.pods, "db", 68), at(&memory.pods, "db", 98)), (Some(232), Some(230)));
    let walwriter = |second| at(&memory.process_series, "walwriter", second);
    assert_eq!((walwriter(68), walwriter(70)), (Some(2), None));
    assert_eq!(at(&memory.process_series, "postgres", 98), Some(230));
    assert_eq!((report.account.containers, report.account.from_start), (3, 3));
    // Nobody came back.
    session.coverage.iter_mut().filter(|row| row.kind == CoverageKind::Gap).for_each(|row| row.to_utc_us += 20_000_000);
    let cells = session.tables.get_mut("memory_rss").unwrap();
    cells.pop();
    let gone = self::report(&session).await;
    assert_eq!(at(&data(&gone.memory).pods, "db", 98), None);
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
async fn a_process_whose_end_may_have_been_missed_is_not_said_to_be_alive_and_leads_no_list() {
    // A row for each of two that ran before: one on a node without gaps, and postgres, last seen at 100 s.
    let ended = |report: &Report| -> Vec<String> {
        let view = report.views().iter().find(|view| view.id == "processes").unwrap();
        let table = view.tables.iter().find(|table| table.title.starts_with("Processes that ran")).unwrap();
        table.rows.iter().map(|row| format!("{} {}", row[0].text, row[8].text)).collect()
    };
    assert_eq!(ended(&report(&Session::shop()).await)[0], "postgres alive at the end");
    let mut gap = Session::shop();
    let row = coverage("b", "db", "processes", CoverageKind::Gap);
    gap.coverage.push(dataset::coverage::CoverageRow { from_utc_us: row.from_utc_us + 50_000_000, ..row });
    let mut cut = Session::shop();
    cut.lost.push(("b", "processes", Term::SampledOut, 1));
    let mut rebooted = Session::shop();
    let row = coverage("b", "db", "processes", CoverageKind::Traced);
    let (boot, from) = ("f".repeat(32), row.from_utc_us + 90_000_000);
    rebooted.coverage.iter_mut().for_each(|row| row.to_utc_us -= 20_000_000);
    rebooted.coverage.push(dataset::coverage::CoverageRow { boot, from_utc_us: from, ..row });
    for session in [gap, cut, rebooted] {
        let report = report(&session).await;
        assert_eq!(ended(&report), ["postgres end not seen", "gzip signal 9", "true exit 0"]);
        assert_eq!(data(&report.processes).totals.end_unseen, 1);
        let text = report::text::report(&report, report::text::Style::default());
        assert!(text.contains("The end of 1 process may have been missed"), "{text}");
    }
}

#[tokio::test]
async fn the_shops_other_sections_add_up() {
    let report = report(&Session::shop()).await;
    let faults = data(&report.page_faults);
    assert_eq!((faults.totals.major, faults.totals.minor, faults.totals.processes), (Some(42), Some(13_460), 2));
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
    let names = "| ts_ns | window_ns | node | pod | tx_bytes | rx_bytes |\n| --- | --- | --- | --- | --- | --- |\n";
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
async fn a_section_without_its_collector_says_so_and_takes_nothing_off_the_score() {
    let all = [
        "tcpReceive",
        "packetDrops",
        "tcpListenQueue",
        "memoryRss",
        "pageFaults",
        "cpuSched",
        "tcpThroughput",
    ];
    let session = all.iter().fold(Session::shop(), |session, collector| session.without(collector));
    let report = report(&session).await;
    let absent = |why: &str| why.ends_with("was not in the session");
    assert!(matches!(&report.memory, Section::Absent(why) if absent(why)));
    assert!(matches!(&report.page_faults, Section::Absent(why) if absent(why)));
    assert!(matches!(&report.scheduling, Section::Absent(why) if absent(why)));
    assert!(matches!(&report.drops, Section::Absent(why) if absent(why)));
    assert!(matches!(&report.throughput, Section::Absent(why) if absent(why)));
    let tcp = data(&report.tcp_health);
    // Left: retransmissions (25), attempts (20) and resets (10). Without throughput nobody knows what the adopted connection
    // sent in the session, so its 5 segments are left out with it.
    let again = tcp.all.terms.iter().find(|term| term.name == "retrans_ratio").unwrap();
    assert_eq!((again.numerator, again.denominator), (Some(95), Some(9_000)));
    assert!((tcp.all.coverage - 0.55).abs() < 1e-9);
    let taken: f64 = 25.0 * (95.0 / 9_000.0 - 0.005) / 0.045 + 20.0 * (10.0 / 110.0 - 0.01) / 0.19;
    assert_eq!(tcp.all.score, Some((100.0 - taken / 0.55).round() as u32));
    let text = report::text::report(&report, report::text::Style::default());
    assert!(text.contains("Memory over time: memoryRss was not in the session\n"), "{text}");
}

#[tokio::test]
async fn a_session_without_pods_has_an_account_and_nothing_else() {
    let report = report(&Session::empty()).await;
    assert_eq!((report.account.verdict, report.account.emitted), ("complete", 0));
    let text = report::text::report(&report, report::text::Style::default());
    assert_eq!(text.matches("was asked for, but traced no container").count(), 7 + 5, "{text}");
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
        (&"tracelake-comparison/1".into(), &"tracelake-report/1".into())
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
async fn what_was_lost_and_not_covered_comes_first() {
    let mut session = Session::shop();
    session.nodes.insert("c".to_owned(), "NodeLost: it did not answer for 10 min".to_owned());
    session.lost.push(("a", "processes", Term::LostRingFull, 17));
    session.coverage.push(coverage("b", "db", "memoryRss", CoverageKind::Gap));
    session.coverage.push(coverage("b", "", "cpuSched", CoverageKind::Unsupported));
    session.coverage.last_mut().unwrap().reason = "no tracepoint sched_switch".to_owned();
    let report = report(&session).await;
    assert_eq!((report.account.verdict, report.account.lost), ("incomplete", 17));
    let text = report::text::report(&report, report::text::Style::default());
    let first = text.split("TCP health").next().unwrap();
    for said in [
        "incomplete",
        "Node c is not complete",
        "What it recorded and its manifest does not list is not in this report",
        "NodeLost: it did not answer",
        "lost_ring_full",
        "17",
        "Nobody looked for 100 s",
        "no tracepoint sched_switch",
    ] {
        assert!(first.contains(said), "{said}: {first}");
    }
}

#[tokio::test]
async fn a_node_manifest_that_is_gone_from_the_store_is_said() {
    let written = Session::shop().write().await.without_manifest_of("b").await;
    let report = Report::new(&written.contents, &written.tables().await).await.unwrap();
    // Itself, and the totals, in which it is missing.
    assert_eq!((report.account.verdict, report.account.findings_total), ("complete", 2));
    assert!(report.account.findings[0].contains("b_0123456789abcdef"), "{:?}", report.account.findings);
    let verdict = &report.views()[0].figures[0].cell;
    assert_eq!((verdict.text.as_str(), verdict.level), ("complete", Some(report::view::Level::Crit)));
}

#[tokio::test]
async fn a_session_that_runs_is_said_to_run() {
    let mut session = Session::shop();
    session.over = false;
    let report = report(&session).await;
    assert_eq!(report.account.verdict, "running");
    let text = report::text::report(&report, report::text::Style::default());
    assert!(text.contains("The session is not over: this is what 2 nodes that had written a manifest"), "{text}");
    let mut session = Session::empty();
    session.over = false;
    let text = report::text::report(&self::report(&session).await, report::text::Style::default());
    assert!(text.contains("nothing that was recorded is in this report"), "{text}");
    assert!(text.contains("Processes: no node has written yet what processes traced\n"), "{text}");
}

#[tokio::test]
async fn of_nodes_without_a_manifest_nothing_is_said_to_be_there_and_many_are_one_line() {
    let mut session = Session::shop().without("memoryRss").not_on("b", "tcpReceive", Some("no tp_btf"));
    session.spec["collectors"].as_array_mut().unwrap().push(serde_json::json!({"name": "memoryRss"}));
    for node in 0..3_000 {
        session.silent.insert(format!("lost-{node:04}"), "NodeLost".to_owned());
    }
    let report = report(&session).await;
    let account = &report.account;
    assert_eq!((account.incomplete_nodes.len(), account.incomplete_nodes_total), (1, 3_000));
    let lost = &report.views()[0].advice[0];
    let named = "Nodes lost-0000, lost-0001, lost-0002, lost-0003, lost-0004 and 2995 more are not complete";
    assert_eq!((lost.cause.as_str(), lost.evidence.as_str()), (named, "NodeLost"));
    assert!(lost.next.starts_with("Nothing of it is in this report"), "{}", lost.next);
    assert_eq!((account.unsupported.len(), account.unsupported[0].nodes.nodes), (1, 1));
    let said = "memoryRss traced no container on the nodes that wrote a manifest; others did not";
    assert!(matches!(&report.memory, Section::Absent(why) if why == said), "{:?}", report.memory);
}

#[tokio::test]
async fn a_gap_without_a_target_names_no_collector() {
    let mut session = Session::shop();
    session.coverage.push(coverage("b", "", "", CoverageKind::Gap));
    let report = report(&session).await;
    assert!(!report.account.collectors.contains_key(""), "{:?}", report.account.collectors);
    let gap = &report.views()[0].advice[0];
    assert_eq!(gap.evidence, "on node b, without a target then: ");
}

#[tokio::test]
async fn an_object_that_is_gone_takes_its_sections_with_it_and_no_others() {
    let written = Session::shop().write().await;
    let key = &written.contents.tables()["page_faults"][0].key;
    std::fs::remove_file(written.folder.path().join(key)).unwrap();
    let report = Report::new(&written.contents, &written.tables().await).await.unwrap();
    let said = "the session's tables cannot be queried";
    assert!(matches!(&report.page_faults, Section::Absent(why) if why.starts_with(said)));
    assert_eq!(data(&report.tcp_health).all.score, Some(60));
    data(&report.throughput);
}

#[tokio::test]
async fn lists_of_nodes_have_an_end() {
    let mut session = Session::shop();
    for one in 0..30 {
        session.silent.insert(format!("lost-{one:02}"), format!("its own reason {one:02}"));
        let row = coverage("b", "", "cpuSched", CoverageKind::Unsupported);
        session.coverage.push(dataset::coverage::CoverageRow { reason: format!("reason {one:02}"), ..row });
    }
    let report = report(&session).await;
    let account = &report.account;
    assert_eq!((account.incomplete_nodes.len(), account.incomplete_nodes_total), (20, 30));
    assert_eq!((account.unsupported.len(), account.unsupported_total), (20, 30));
    let notes = report.views()[0].notes.join("\n");
    assert!(notes.contains("10 more nodes that are not complete are not listed"), "{notes}");
    assert!(notes.contains("10 more collectors that nodes did not run"), "{notes}");
}

#[tokio::test]
async fn parameters_that_leave_something_out_make_a_term_null() {
    let mut session = Session::shop();
    session.spec["collectors"] = serde_json::json!([
        {"name": "tcpConnections", "params": {"includeFailed": "false"}}, {"name": "packetDrops", "params": {"classes": "loss"}}
    ]);
    let report = report(&session).await;
    let tcp = data(&report.tcp_health);
    let why = |name: &str| tcp.all.terms.iter().find(|term| term.name == name).unwrap().null_because.clone();
    assert_eq!(
        why("connect_failure_ratio").as_deref(),
        Some("the session left some out: tcpConnections.includeFailed = false")
    );
    assert_eq!(why("loss_ratio").as_deref(), Some("the session left some out: packetDrops.classes = loss"));
    assert_eq!(why("backlog_ratio"), None);
}

#[tokio::test]
async fn an_agent_that_was_started_again_doubles_no_memory() {
    let mut session = Session::shop();
    let cells = session.tables.get_mut("memory_rss").unwrap();
    let column = |name: &str| cells[0].iter().position(|one| one == name).unwrap();
    let (ts, mm_id, member, bytes) = (column("ts_ns"), column("mm_id"), column("member"), column("bytes"));
    // The new agent calls the memory of postgres by another id, and nobody has written a 0 for the former.
    for (kind, resident) in [("anon", 200 << 20), ("file", 20 << 20), ("shmem", 10 << 20)] {
        let mut row = cells[1].clone();
        row[ts] = "170000000000".to_owned();
        row[mm_id] = "9".to_owned();
        row[member] = kind.to_owned();
        row[bytes] = (resident as u64).to_string();
        cells.push(row);
    }
    let (before, after) = (report(&Session::shop()).await, report(&session).await);
    let (before, after) = (data(&before.memory), data(&after.memory));
    assert_eq!((before.peak_bytes, &before.process_series), (after.peak_bytes, &after.process_series));
    assert_eq!(before.processes, after.processes);
}

#[tokio::test]
async fn sockets_that_never_left_a_state_are_told_only_where_every_change_of_state_was_kept() {
    let mut session = Session::shop();
    session.lost.push(("b", "tcp_states", Term::SampledOut, 3));
    let report = report(&session).await;
    let terms = &data(&report.tcp_health).all.terms;
    let why = terms.iter().find(|term| term.name == "leak_suspects").unwrap().null_because.clone();
    let said = "the session left some out: 3 events of tcp_states were sampled out, limited or lost";
    assert_eq!(why.as_deref(), Some(said));
}

#[tokio::test]
async fn terms_of_tables_that_were_cut_have_no_value() {
    let mut session = Session::shop();
    session.lost.push(("a", "tcp_connections", Term::RateLimited, 500));
    session.lost.push(("a", "packet_drops", Term::LostMapFull, 20));
    // Too little to move a ratio.
    session.lost.push(("a", "tcp_receive", Term::LostMapFull, 3));
    let report = report(&session).await;
    let tcp = data(&report.tcp_health);
    let why = |health: &score::Health, name: &str| term(health, name).null_because.clone();
    // Of the session's 213 + 1 + 500 events.
    let said = |share: &str, table: &str| {
        Some(format!("the session left some out: {share} of the events of {table} were rate limited or lost"))
    };
    assert_eq!(why(&tcp.all, "connect_failure_ratio"), said("70.0 %", "tcp_connections"));
    assert_eq!(why(&tcp.all, "loss_ratio"), said("10.4 %", "packet_drops"));
    assert_eq!(why(&tcp.all, "refused_ratio"), None);
    // 25 for losses, 25 for what was sent again, 20, 15 and 10 for connections.
    assert!((tcp.all.coverage - 0.05).abs() < 1e-9, "{}", tcp.all.coverage);
    let db = tcp.pods.iter().find(|pod| pod.pod.as_deref() == Some("db")).unwrap();
    assert_eq!(why(&db.health, "loss_ratio"), None, "its node cut nothing");
    let web = tcp.pods.iter().find(|pod| pod.pod.as_deref() == Some("web")).unwrap();
    assert_eq!(why(&web.health, "loss_ratio"), said("18.7 %", "packet_drops"));
    // Of eleven tables a terminal shows eight: these first, and every term.
    let text = report::text::report(&report, report::text::Style::default());
    let ledger: Vec<&str> = text.split("What became of every event").nth(1).unwrap().lines().skip(3).collect();
    let begin = |line: usize, table: &str| assert!(ledger[line].trim_start().starts_with(table), "{ledger:#?}");
    for (line, table) in ["packet_drops", "tcp_receive", "tcp_connections"].into_iter().enumerate() {
        begin(line, table);
    }
    for term in &tcp.all.terms {
        assert!(text.matches(&format!("\n  {} ", term.name)).count() >= 2, "{}: {text}", term.name);
    }
    let account = &report.views()[0];
    let limited = account.advice.iter().find(|one| one.cause.starts_with("Events were cut")).unwrap();
    assert_eq!(limited.evidence, "500 of 28,442 events, of tcp_connections");
}

#[tokio::test]
async fn an_adopted_connection_stands_for_others_and_counts_where_all_that_it_sent_is_known() {
    let again = |report: &Report| {
        let term = term(&data(&report.tcp_health).all, "retrans_ratio").clone();
        (term.numerator.unwrap(), term.denominator.unwrap())
    };
    // The quarter of 4,000 segments for each of ten such connections, instead of one.
    let mut sampled = Session::shop();
    let cells = sampled.tables.get_mut("tcp_connections").unwrap();
    let weight = cells[0].iter().position(|name| name == "weight").unwrap();
    cells.last_mut().unwrap()[weight] = "10".to_owned();
    assert_eq!(again(&report(&sampled).await), (100, 10_000 + 9 * 1_000));
    // In one window it was beyond topN: neither its 1,000 segments nor the 5 that were sent again.
    let mut beyond = Session::shop();
    let cells = beyond.tables.get_mut("tcp_throughput").unwrap();
    let mut row = cells[3].clone();
    row[2] = "b".to_owned();
    row[3] = "db".to_owned();
    cells.push(row);
    assert_eq!(again(&report(&beyond).await), (95, 9_000));
}

#[tokio::test]
async fn counters_of_a_network_whose_number_another_one_had_are_no_difference_of_both() {
    // Another pod of the same name got the same inode; and of one network the counters began anew.
    let mut session = Session::shop().with(
        "net_counters",
        "\
| ts_ns | window_ns | node | pod | pod_uid | attribution | netns | counter | value |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 110000000000 | 10000000000 | a | web | one | netns | 1 | TcpExtTCPToZeroWindowAdv | 900000 |
| 120000000000 | 10000000000 | a | web | one | netns | 1 | TcpExtTCPToZeroWindowAdv | 900003 |
| 130000000000 | 10000000000 | a | web | two | netns | 1 | TcpExtTCPToZeroWindowAdv | 0 |
| 140000000000 | 10000000000 | a | web | two | netns | 1 | TcpExtTCPToZeroWindowAdv | 4 |
| 110000000000 | 10000000000 | b | db | db | netns | 2 | TcpExtTCPToZeroWindowAdv | 50 |
| 120000000000 | 10000000000 | b | db | db | netns | 2 | TcpExtTCPToZeroWindowAdv | 60 |
| 130000000000 | 10000000000 | b | db | db | netns | 2 | TcpExtTCPToZeroWindowAdv | 1 |
| 140000000000 | 10000000000 | b | db | db | netns | 2 | TcpExtTCPToZeroWindowAdv | 2 |
",
    );
    for (node, pod) in [("a", "web"), ("a", "client"), ("b", "db")] {
        session.coverage.push(coverage(node, pod, "nodeInfo", CoverageKind::Traced));
    }
    let report = report(&session).await;
    let tcp = data(&report.tcp_health);
    let closed = |pod: &str| {
        let pod = tcp.pods.iter().find(|one| one.pod.as_deref() == Some(pod)).unwrap();
        term(&pod.health, "windows_closed").numerator
    };
    assert_eq!((closed("web"), closed("db")), (Some(3 + 4), Some(10 + 1)));
}

#[tokio::test]
async fn collectors_that_traced_and_saw_nothing_are_not_said_to_have_traced_nothing() {
    let mut session = Session::shop();
    session.tables.retain(|name, _| !name.starts_with("tcp_") && name != "packet_drops");
    let report = report(&session).await;
    for term in &data(&report.tcp_health).all.terms {
        assert!(!term.null_because.as_deref().unwrap_or_default().contains("traced nothing"), "{term:?}");
    }
}

#[tokio::test]
async fn a_collector_that_a_node_did_not_run_is_in_neither_side_of_what_is_added_up() {
    for reason in [Some("MissingTracepoint: no tp_btf"), None] {
        let mut session = Session::shop().not_on("a", "tcpReceive", reason).with(
            "net_counters",
            "\
| ts_ns | window_ns | node | pod | attribution | netns | counter | value |
| --- | --- | --- | --- | --- | --- | --- | --- |
| 110000000000 | 10000000000 | a | web | netns | 1 | TcpInSegs | 70 |
| 200000000000 | 10000000000 | a | web | netns | 1 | TcpInSegs | 170 |
",
        );
        for (node, pod) in [("a", "web"), ("a", "client"), ("b", "db")] {
            session.coverage.push(coverage(node, pod, "nodeInfo", CoverageKind::Traced));
        }
        let report = report(&session).await;
        let tcp = data(&report.tcp_health);
        // Only db's 2,000 + 95 + 5 received, and 95 lost there.
        let loss = term(&tcp.all, "loss_ratio");
        assert_eq!((loss.numerator, loss.denominator), (Some(95), Some(2_195)));
        assert_eq!(term(&tcp.all, "refused_ratio").denominator, Some(2_100));
        // What needs no tcpReceive is of all of them.
        assert_eq!(term(&tcp.all, "retrans_ratio").denominator, Some(10_000));
        let web = tcp.pods.iter().find(|pod| pod.pod.as_deref() == Some("web")).unwrap();
        let why = format!(
            "tcpReceive did not run on node a: {}",
            reason.unwrap_or("the node's coverage does not name it")
        );
        let loss = term(&web.health, "loss_ratio");
        assert_eq!((loss.value, loss.null_because.as_deref()), (None, Some(why.as_str())));
        assert!(tcp.missing.contains(&why), "{:?}", tcp.missing);
        assert!(!tcp.advice.iter().any(|advice| advice.cause.contains("QDISC_DROP")), "{:?}", tcp.advice);
        let text = report::text::report(&report, report::text::Style::default());
        assert!(text.contains("tcpReceive did not run on node a\n"), "{text}");
    }
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
