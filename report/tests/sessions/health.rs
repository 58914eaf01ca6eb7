// SPDX-License-Identifier: Apache-2.0

//! TCP health where something is left out, cut, sampled or not run: what is not known is in neither side of a term.

use dataset::coverage::{CoverageKind, CoverageRow};
use dataset::ledger::Term;
use report::tcp_health::score;
use report::{Report, Section};

use super::{data, report, term};
use crate::support::{Session, coverage};

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
async fn sockets_that_nobody_watched_all_the_time_since_are_no_suspects() {
    let suspects = async |session: &Session| {
        let report = report(session).await;
        let terms = data(&report.tcp_health).all.terms.clone();
        terms.iter().find(|term| term.name == "leak_suspects").unwrap().numerator
    };
    // Entered 25 s and 39 s after the beginning, of 100 s.
    assert_eq!(suspects(&Session::shop()).await, Some(2));
    let row = coverage("b", "db", "tcpStates", CoverageKind::Gap);
    let after = |seconds: i64| row.from_utc_us + seconds * 1_000_000;
    for (gap, left) in [((30, 35), 1), ((30, 40), 0), ((5, 6), 2)] {
        let mut session = Session::shop();
        let (from_utc_us, to_utc_us) = (after(gap.0), after(gap.1));
        session.coverage.push(CoverageRow { from_utc_us, to_utc_us, ..row.clone() });
        assert_eq!(suspects(&session).await, Some(left), "{gap:?}");
    }
    // What is not seen for a minute: the node's tracing ended before the session's.
    let mut short = Session::shop();
    let of_node = short.coverage.iter_mut().filter(|row| row.node == "b");
    of_node.for_each(|row| row.to_utc_us -= 10_000_000);
    assert_eq!(suspects(&short).await, Some(1));
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
    let ledger: Vec<&str> =
        text.split("What became of every event").nth(1).unwrap().lines().skip(3).collect();
    let begin =
        |line: usize, table: &str| assert!(ledger[line].trim_start().starts_with(table), "{ledger:#?}");
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
