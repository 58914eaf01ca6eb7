// SPDX-License-Identifier: Apache-2.0

//! What is said where nodes, manifests, objects or stretches of time are missing.

use std::sync::Arc;

use dataset::coverage::{CoverageKind, CoverageRow};
use dataset::ledger::Term;
use object_store::local::LocalFileSystem;
use query::Limits;
use report::{Report, ReportError, Section};

use super::{data, report};
use crate::support::{Session, coverage};

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
    session
        .coverage
        .iter_mut()
        .filter(|row| row.kind == CoverageKind::Gap)
        .for_each(|row| row.to_utc_us += 20_000_000);
    let cells = session.tables.get_mut("memory_rss").unwrap();
    cells.pop();
    let gone = self::report(&session).await;
    assert_eq!(at(&data(&gone.memory).pods, "db", 98), None);
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
    gap.coverage.push(CoverageRow { from_utc_us: row.from_utc_us + 50_000_000, ..row });
    let mut cut = Session::shop();
    cut.lost.push(("b", "processes", Term::SampledOut, 1));
    let mut rebooted = Session::shop();
    let row = coverage("b", "db", "processes", CoverageKind::Traced);
    let (boot, from) = ("f".repeat(32), row.from_utc_us + 90_000_000);
    rebooted.coverage.iter_mut().for_each(|row| row.to_utc_us -= 20_000_000);
    rebooted.coverage.push(CoverageRow { boot, from_utc_us: from, ..row });
    for session in [gap, cut, rebooted] {
        let report = report(&session).await;
        assert_eq!(ended(&report), ["postgres end not seen", "gzip signal 9", "true exit 0"]);
        assert_eq!(data(&report.processes).totals.end_unseen, 1);
        let text = report::text::report(&report, report::text::Style::default());
        assert!(text.contains("The end of 1 process may have been missed"), "{text}");
    }
}

#[tokio::test]
async fn a_session_without_pods_has_an_account_and_nothing_else() {
    let report = report(&Session::empty()).await;
    assert_eq!((report.account.verdict, report.account.emitted), ("complete", 0));
    let text = report::text::report(&report, report::text::Style::default());
    assert_eq!(text.matches("was asked for, but traced no container").count(), 7 + 5, "{text}");
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
    assert_eq!((report.account.verdict, report.account.findings_total), ("complete", 1));
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
    assert!(
        text.contains("The session is not over: this is what 2 nodes that had written a manifest"),
        "{text}"
    );
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
    let said = "an object of the session cannot be read";
    assert!(matches!(&report.page_faults, Section::Unread(why) if why.starts_with(said)));
    assert_eq!(report.unread().collect::<Vec<_>>(), ["Page faults"]);
    assert_eq!(data(&report.tcp_health).all.score, Some(60));
    data(&report.throughput);
}

#[tokio::test]
async fn an_object_that_is_damaged_wherever_takes_its_sections_with_it() {
    let damages: [fn(&mut Vec<u8>); 3] = [
        |content| content.truncate(content.len() / 2),
        // Its footer, and what is before that.
        |content| content.iter_mut().rev().take(4).for_each(|byte| *byte = b'x'),
        |content| content.iter_mut().skip(4).take(400).for_each(|byte| *byte = b'x'),
    ];
    for (at, damage) in damages.into_iter().enumerate() {
        let written = Session::shop().write().await;
        let path = written.folder.path().join(&written.contents.tables()["page_faults"][0].key);
        let mut content = std::fs::read(&path).unwrap();
        damage(&mut content);
        std::fs::write(&path, content).unwrap();
        let report = Report::new(&written.contents, &written.tables().await).await;
        let report = report.unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(report.unread().collect::<Vec<_>>(), ["Page faults"], "{at}");
    }
}

#[tokio::test]
async fn what_may_be_there_and_cannot_be_asked_now_ends_the_report() {
    let written = Session::shop().write().await;
    let path = written.folder.path().join(&written.contents.tables()["page_faults"][0].key);
    // A file that is there, and that the store fails to open.
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let failed = Report::new(&written.contents, &written.tables().await).await;
    assert!(matches!(&failed, Err(ReportError::Query(said)) if said.contains("page_faults")), "{failed:?}");
    let written = Session::shop().write().await;
    let store = Arc::new(LocalFileSystem::new_with_prefix(written.folder.path()).unwrap());
    let limits = Limits { memory_bytes: 1_000, ..Limits::default() };
    let tables = query::open(store, &written.contents, &limits).await.unwrap();
    let failed = Report::new(&written.contents, &tables).await;
    assert!(matches!(&failed, Err(ReportError::Query(_))), "{failed:?}");
}

#[tokio::test]
async fn lists_of_nodes_have_an_end() {
    let mut session = Session::shop();
    for one in 0..30 {
        session.silent.insert(format!("lost-{one:02}"), format!("its own reason {one:02}"));
        let row = coverage("b", "", "cpuSched", CoverageKind::Unsupported);
        session.coverage.push(CoverageRow { reason: format!("reason {one:02}"), ..row });
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
