// SPDX-License-Identifier: Apache-2.0
//! The hub without network: what leaves, what is kept, who is heard.

use futures::FutureExt;
use node_api::v1::{SessionPlan, Stage, Target};

use super::*;

fn hello(node: &str) -> Hello {
    Hello { node: node.to_owned(), ..Hello::default() }
}

fn published(uid: &str, nodes: &[&str]) -> Published {
    let assignment = |collector: &str| {
        let collector = node_api::v1::CollectorPlan { name: collector.to_owned(), ..Default::default() };
        let plan = SessionPlan { uid: uid.to_owned(), collectors: vec![collector], ..SessionPlan::default() };
        Assignment { body: Body::of(&plan).into(), activity: Activity::Collect }
    };
    Published {
        id: SessionId { namespace: "shop".to_owned(), name: format!("s-{uid}"), uid: uid.to_owned() },
        end: Timestamp::now() + jiff::SignedDuration::from_secs(300),
        collectors: vec!["processes".to_owned()],
        nodes: nodes.iter().map(|node| ((*node).to_owned(), assignment("processes"))).collect(),
        store: None,
    }
}

fn report(uid: &str, stage: Stage) -> Report {
    let session = SessionReport { uid: uid.to_owned(), stage: stage.into(), ..SessionReport::default() };
    Report { sessions: vec![session] }
}

#[tokio::test]
async fn a_node_gets_its_own_sessions_and_each_body_once() {
    let (hub, _due) = Hub::new();
    hub.publish(published("a", &["node-1"]));
    hub.publish(published("b", &["node-2"]));
    let mut stream = hub.connect(hello("node-1"));
    let first = stream.plan().await.unwrap();
    assert_eq!(first.sessions.iter().map(|s| s.uid.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(first.bodies.len(), 1);
    assert!(first.sessions[0].remaining_ms > 290_000);
    hub.publish(published("c", &["node-1"]));
    let second = stream.plan().await.unwrap();
    assert_eq!(second.sessions.len(), 2);
    assert_eq!(second.bodies.iter().map(|body| body.uid.as_str()).collect::<Vec<_>>(), ["c"]);
    // Somebody else's session is no reason to send anything.
    hub.publish(published("d", &["node-2"]));
    assert!(stream.plan().now_or_never().is_none());
    hub.withdraw("a");
    assert_eq!(stream.plan().await.unwrap().sessions.len(), 1);
}

#[tokio::test]
async fn bodies_that_the_agent_has_on_disk_are_not_sent() {
    let (hub, _due) = Hub::new();
    let session = published("a", &["node-1"]);
    let hash = session.nodes["node-1"].body.hash().to_owned();
    hub.publish(session);
    let mut stream = hub.connect(Hello { known_plans: vec![hash], ..hello("node-1") });
    let plan = stream.plan().await.unwrap();
    assert_eq!((plan.sessions.len(), plan.bodies.len()), (1, 0));
}

#[tokio::test]
async fn bodies_for_which_one_message_has_no_room_come_with_the_next_and_no_session_is_left_out_of_any() {
    let (hub, _due) = Hub::new();
    for uid in ["a", "b", "c", "d"] {
        let mut session = published(uid, &["node-1"]);
        let pod = |i: usize| Target { pod_uid: format!("{i:01000}"), ..Target::default() };
        let count = if uid == "d" { 1 } else { BYTES_MAX * 2 / 3 / 1_000 };
        let plan = SessionPlan {
            uid: uid.to_owned(),
            targets: (0..count).map(pod).collect(),
            ..SessionPlan::default()
        };
        session.nodes.get_mut("node-1").unwrap().body = Body::of(&plan).into();
        hub.publish(session);
    }
    let mut stream = hub.connect(hello("node-1"));
    let mut came = Vec::new();
    while let Some(plan) = stream.plan().now_or_never() {
        let plan = plan.unwrap();
        assert_eq!(plan.sessions.len(), 4, "what is not listed is over to an agent");
        let bytes: usize = plan.bodies.iter().map(|body| Body::of(body).bytes()).sum();
        assert!(bytes <= BYTES_MAX, "{bytes} bytes");
        came.extend(plan.bodies.into_iter().map(|body| body.uid));
    }
    came.sort();
    assert_eq!(came, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn no_plan_leaves_before_every_session_was_published() {
    let (hub, _due) = Hub::new();
    hub.hold(["a".to_owned(), "b".to_owned(), "gone".to_owned()]);
    let mut stream = hub.connect(hello("node-1"));
    hub.publish(published("a", &["node-1"]));
    assert!(stream.plan().now_or_never().is_none());
    hub.publish(published("b", &["node-1"]));
    assert!(!hub.is_open());
    hub.retain(|uid| uid != "gone");
    assert!(hub.is_open());
    assert_eq!(stream.plan().await.unwrap().sessions.len(), 2);
}

#[tokio::test]
async fn a_newer_stream_of_a_node_ends_the_older_one() {
    let (hub, _due) = Hub::new();
    let mut old = hub.connect(hello("node-1"));
    assert!(old.plan().await.is_some());
    let new = hub.connect(hello("node-1"));
    assert!(old.plan().await.is_none());
    drop(old);
    assert_eq!(hub.streams(), 1);
    drop(new);
    assert_eq!(hub.streams(), 0);
}

#[tokio::test]
async fn a_changed_report_triggers_its_session_once_and_the_same_report_does_not() {
    let (hub, mut due) = Hub::new();
    hub.publish(published("a", &["node-1"]));
    let stream = hub.connect(hello("node-1"));
    hub.flush();
    assert_eq!(due.try_recv().unwrap().name, "s-a");
    stream.report(report("a", Stage::Running));
    stream.report(report("a", Stage::Running));
    stream.report(report("unknown", Stage::Running));
    hub.flush();
    assert_eq!(due.try_recv().unwrap().name, "s-a");
    assert!(due.try_recv().is_err());
    // The report is whole state: a session that it does not name has none.
    assert!(hub.nodes("a", &["node-1".to_owned()])["node-1"].report.is_none());
    stream.report(report("a", Stage::Done));
    hub.flush();
    assert!(due.try_recv().is_ok());
    let view = &hub.nodes("a", &["node-1".to_owned()])["node-1"];
    assert_eq!(view.report.as_ref().unwrap().stage(), Stage::Done);
    drop(stream);
    let view = &hub.nodes("a", &["node-1".to_owned()])["node-1"];
    assert!(!view.connected && view.lost_since.is_some() && view.report.is_some());
}

#[tokio::test]
async fn an_agent_has_forgotten_a_session_when_its_report_no_longer_names_it() {
    let (hub, _due) = Hub::new();
    hub.publish(published("a", &["node-1"]));
    let stream = hub.connect(hello("node-1"));
    stream.report(report("a", Stage::Draining));
    assert!(hub.is_settled());
    hub.withdraw("a");
    assert!(!hub.is_settled());
    stream.report(report("a", Stage::Draining));
    assert!(!hub.is_settled());
    stream.report(Report::default());
    assert!(hub.is_settled());
    // Nobody waits for an agent that is away.
    stream.report(report("b", Stage::Running));
    assert!(!hub.is_settled());
    drop(stream);
    assert!(hub.is_settled());
}

#[test]
fn grants_are_for_planned_sessions_and_their_tables_only() {
    let (hub, _due) = Hub::new();
    hub.publish(published("a", &["node-1"]));
    let boot = "0".repeat(32).parse().unwrap();
    let key = |table: &str| Key::segment(table, "node-1", &boot, 0).unwrap();
    let refusal = |node: &str, uid: &str, key: &Key| hub.granted(node, uid, key, 1).err().unwrap();
    assert_eq!(refusal("node-2", "a", &key("processes")), GrantRefusal::NotPlanned);
    assert_eq!(refusal("node-1", "b", &key("processes")), GrantRefusal::NotPlanned);
    assert_eq!(refusal("node-1", "a", &key("nonsense")), GrantRefusal::UnknownTable);
    assert_eq!(refusal("node-1", "a", &key("tcp_connections")), GrantRefusal::UnknownTable);
    // Far enough to need the store, which this session has not.
    assert_eq!(refusal("node-1", "a", &key("processes")), GrantRefusal::StoreNotReady);
    assert_eq!(refusal("node-1", "a", &key("ledger")), GrantRefusal::StoreNotReady);
}

#[test]
fn granted_bytes_count_an_object_once_however_often_it_is_asked_for() {
    let boots = ["0", "1"].map(|digit| digit.repeat(32).parse().unwrap());
    let mut granted = Granted::default();
    let mut expected = 0;
    for (node, boot, sequence, length, counts) in [
        ("node-1", 0, 0, 10, true),
        ("node-1", 0, 0, 10, false),
        ("node-1", 0, 2, 20, true),
        ("node-1", 0, 1, 30, true),
        ("node-1", 0, 2, 20, false),
        ("node-1", 0, 0, 10, false),
        ("node-2", 0, 0, 40, true),
        ("node-1", 1, 0, 80, true),
    ] {
        granted.count(&Key::segment("processes", node, &boots[boot], sequence).unwrap(), length);
        expected += if counts { length } else { 0 };
        assert_eq!(granted.bytes, expected, "{node} {boot} {sequence}");
    }
}

#[test]
fn what_a_node_makes_up_to_be_counted_takes_no_memory() {
    let mut granted = Granted::default();
    for boot in 0..2_000 {
        let boot = format!("{boot:032x}").parse().unwrap();
        granted.count(&Key::segment("processes", "node-1", &boot, 1_000_000).unwrap(), 1);
    }
    for sequence in (0..10_000).step_by(2) {
        let boot = "f".repeat(32).parse().unwrap();
        granted.count(&Key::segment("processes", "node-2", &boot, sequence).unwrap(), 1);
    }
    assert_eq!(granted.bytes, 2_000 + 5_000);
    let ahead = |node: &str| granted.series[node].values().map(|series| series.ahead.len()).max();
    assert_eq!((granted.series["node-1"].len(), ahead("node-2")), (MOST_SERIES, Some(MOST_AHEAD)));
}

#[tokio::test]
async fn what_a_node_says_is_cut_to_what_a_status_has_room_for() {
    let (hub, _due) = Hub::new();
    hub.publish(published("a", &["node-1"]));
    let stream = hub.connect(hello("node-1"));
    let long = "x\u{1b}[31m\u{1F980}".repeat(1 << 10);
    let mut said = report("a", Stage::Failed);
    let session = &mut said.sessions[0];
    (session.reason, session.message) = (long.clone(), long.clone());
    session.excess =
        Some(node_api::v1::Excess { budget: long.clone(), message: long.clone(), stopped: true });
    let collector = node_api::v1::CollectorReport {
        name: long.clone(),
        reason: long.clone(),
        message: long.clone(),
        running: false,
    };
    session.collectors = vec![collector; COLLECTORS_MAX + 1];
    stream.report(said);
    let node = "node-1".to_owned();
    let views = hub.nodes("a", [&node]);
    let held = views[&node].report.as_ref().unwrap();
    let excess = held.excess.as_ref().unwrap();
    let texts = held.collectors.iter().flat_map(|one| [&one.name, &one.reason, &one.message]);
    let mut texts = texts.chain([&held.reason, &held.message, &excess.budget, &excess.message]);
    assert!(held.collectors.len() <= COLLECTORS_MAX && texts.all(|text| text.len() <= TEXT_MAX));
    assert!(held.message.starts_with("x [31m\u{1F980}x") && held.message.ends_with("x [31m\u{1F980}"));
    assert!(!held.message.contains(char::is_control), "{}", held.message);
    // What is short stays as it is.
    let mut said = report("a", Stage::Failed);
    said.sessions[0].message = "caf\u{e9}: no BTF\nat all".to_owned();
    stream.report(said);
    assert_eq!(hub.nodes("a", [&node])[&node].report.as_ref().unwrap().message, "caf\u{e9}: no BTF at all");
}
