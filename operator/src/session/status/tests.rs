// SPDX-License-Identifier: Apache-2.0
//! Statuses from observations, without a clock or a client.

use std::time::Duration;

use dataset::ledger::{Term, Terms};
use expect_test::{Expect, expect};
use node_api::v1::{CollectorReport, SessionReport, Stage, Totals};
use tokio::time::Instant;

use super::*;

struct Case {
    session: TraceSession,
    views: BTreeMap<String, NodeView>,
    now: i64,
    finished: Option<Finished>,
    deadline_passed: bool,
    crowded: bool,
    matching: usize,
    early: Option<Early>,
}

const END: i64 = 1_790_000_300;

fn case(now: i64, nodes: &[(&str, Stage, bool)]) -> Case {
    let yaml = "{metadata: {name: s, generation: 3}, spec: {target: {podSelector: {}}, duration: 5m, \
                collectors: [{name: processes}, {name: tcpConnections, optional: true}]}}";
    let views = nodes.iter().map(|(name, stage, connected)| {
        let unsupported = *stage == Stage::Failed;
        let report = SessionReport {
            stage: (*stage).into(),
            reason: if unsupported { node_api::reason::UNSUPPORTED.to_owned() } else { String::new() },
            message: if unsupported { "no BTF".to_owned() } else { String::new() },
            collectors: vec![
                CollectorReport { name: "processes".to_owned(), running: !unsupported, ..Default::default() },
                CollectorReport {
                    name: "tcpConnections".to_owned(),
                    running: false,
                    reason: "MissingTracepoint".to_owned(),
                    message: "inet_sock_set_state".to_owned(),
                },
            ],
            ..Default::default()
        };
        let heard = *stage != Stage::Unspecified;
        (
            (*name).to_owned(),
            NodeView { connected: *connected, lost_since: None, report: heard.then_some(report) },
        )
    });
    let (session, views) = (serde_yaml::from_str(yaml).unwrap(), views.collect());
    Case {
        session,
        views,
        now,
        finished: None,
        deadline_passed: false,
        crowded: false,
        matching: nodes.len(),
        early: None,
    }
}

impl Case {
    fn status(&self) -> TraceSessionStatus {
        let since = Instant::now();
        let later = since + Duration::from_secs(120);
        let state =
            |(name, view): (&String, &NodeView)| (name.clone(), nodes::state(view, since, later, false));
        let states: BTreeMap<_, _> = self.views.iter().map(state).collect();
        status(&Observed {
            session: &self.session,
            now: Timestamp::from_second(self.now).unwrap(),
            rejection: None,
            store: StoreState::Ready,
            dataset: None,
            window: (!self.deadline_passed)
                .then(|| (Timestamp::from_second(END - 300).unwrap(), Timestamp::from_second(END).unwrap())),
            early: self.early,
            targets: TargetState::Pods { matching: self.matching, planned: self.views.len() },
            states: &states,
            views: &self.views,
            deadline_passed: self.deadline_passed,
            crowded: self.crowded,
            finished: self.finished.clone(),
        })
    }
}

fn check(status: &TraceSessionStatus, expected: Expect) {
    let mut text = format!("{:?} {}\n", status.phase.unwrap(), status.nodes.as_ref().unwrap().summary);
    for node in &status.failing_nodes {
        text += &format!("failing {}: {} {}\n", node.name, node.reason, node.message);
    }
    for one in &status.conditions {
        text += &format!("{}={} {}: {}\n", one.type_, one.status, one.reason, one.message);
    }
    expected.assert_eq(&text);
}

#[test]
fn a_session_runs_as_soon_as_one_node_does() {
    let case = case(END - 100, &[("a", Stage::Running, true), ("b", Stage::Preparing, true)]);
    check(
        &case.status(),
        expect![[r#"
        Running 1/2
        Accepted=True Valid: every collector and parameter is known
        StoreReady=True ProbeSucceeded: the store can be written, read and listed
        TargetsResolved=True PodsFound: 2 pods, 2 nodes
        Collecting=True Recording: 1 of 2 nodes record
        Uploaded=False Waiting: the window is not over
        Degraded=False AsExpected: 
        BudgetExceeded=False AsExpected: 
    "#]],
    );
}

#[test]
fn nodes_that_do_not_answer_are_lost_and_counted() {
    let case = case(END - 100, &[("a", Stage::Running, true), ("b", Stage::Unspecified, false)]);
    check(
        &case.status(),
        expect![[r#"
        Running 1/2
        failing b: NoAgent no agent of this node is connected
        Accepted=True Valid: every collector and parameter is known
        StoreReady=True ProbeSucceeded: the store can be written, read and listed
        TargetsResolved=True PodsFound: 2 pods, 2 nodes
        Collecting=True Recording: 1 of 2 nodes record
        Uploaded=False Waiting: the window is not over
        Degraded=True NoAgent: no agent of b is connected
        BudgetExceeded=False AsExpected: 
    "#]],
    );
}

fn says(case: &mut Case, node: &str, reason: &str, message: &str) {
    let report = case.views.get_mut(node).and_then(|view| view.report.as_mut()).unwrap();
    (report.reason, report.message) = (reason.to_owned(), message.to_owned());
}

#[test]
fn a_node_that_recorded_nothing_is_not_done() {
    let mut case = case(END + 1, &[("a", Stage::Done, true), ("b", Stage::Done, true)]);
    says(
        &mut case,
        "b",
        node_api::reason::NEVER_STARTED,
        "the window ended before this node recorded anything",
    );
    case.finished = Some(Finished {
        manifest: Some(("_tracelake/manifest-1.json".to_owned(), Verdict::Incomplete)),
        reason: "node b: NeverStarted".to_owned(),
        totals: None,
    });
    check(
        &case.status(),
        expect![[r#"
        Incomplete 1/2
        failing b: NeverStarted the window ended before this node recorded anything
        Accepted=True Valid: every collector and parameter is known
        StoreReady=True ProbeSucceeded: the store can be written, read and listed
        TargetsResolved=True PodsFound: 2 pods, 2 nodes
        Collecting=False WindowEnded: the window is over
        Uploaded=False NodeFailed: node b: NeverStarted
        Degraded=True NodeFailed: b cannot collect; see failingNodes
        BudgetExceeded=False AsExpected: 
    "#]],
    );
}

#[test]
fn a_session_that_finds_every_slot_taken_waits_and_says_so() {
    let mut case = case(END - 100, &[("a", Stage::Preparing, true)]);
    says(&mut case, "a", node_api::reason::NODE_CAPACITY, "this node records 64 sessions already");
    check(
        &case.status(),
        expect![[r#"
        Preparing 0/1
        failing a: NodeCapacity this node records 64 sessions already
        Accepted=True Valid: every collector and parameter is known
        StoreReady=True ProbeSucceeded: the store can be written, read and listed
        TargetsResolved=True PodsFound: 1 pod, 1 node
        Collecting=False NodeCapacity: every node records as many sessions as it can; waiting for one to end
        Uploaded=False Waiting: the window is not over
        Degraded=True NodeFailed: a cannot collect; see failingNodes
        BudgetExceeded=False AsExpected: 
    "#]],
    );
}

#[test]
fn a_node_that_does_not_take_a_plan_over_makes_the_session_degraded() {
    let mut case = case(END - 100, &[("a", Stage::Running, true)]);
    says(&mut case, "a", node_api::reason::PLAN_REFUSED, "2000 targets, expected 1 to 1024");
    let degraded = |case: &Case| {
        let status = case.status();
        let degraded = conditions::get(&status.conditions, condition::DEGRADED).unwrap().clone();
        (degraded.status, degraded.reason, status.failing_nodes[0].reason.clone())
    };
    let partly = ("True".to_owned(), reason::TARGETS_MISSING.to_owned(), "PlanRefused".to_owned());
    assert_eq!(degraded(&case), partly);
    // One that never began says so as well.
    case.views.get_mut("a").unwrap().report.as_mut().unwrap().stage = Stage::Failed.into();
    let failed = ("True".to_owned(), reason::NODE_FAILED.to_owned(), "PlanRefused".to_owned());
    assert_eq!(degraded(&case), failed);
}

#[test]
fn the_manifest_of_an_agent_that_crashed_does_not_take_back_what_was_emitted() {
    let mut terms = Terms::default();
    terms.add(Term::Exported, 3);
    let listed = |emitted, unknown, shown: i64| {
        let totals = manifest::Totals { emitted, unknown, terms, ..Default::default() };
        nodes::listed(&totals, Some(&crds::Totals { emitted: shown, ..Default::default() })).emitted
    };
    assert_eq!((listed(2, true, 4), listed(2, true, 0), listed(3, false, 9)), (4, 3, 3));
}

#[test]
fn totals_never_fall_and_are_no_more_than_was_emitted() {
    let of = |emitted, exported, bytes_pending| {
        Some(Totals { emitted, exported, bytes_pending, ..Totals::default() })
    };
    let mut case = case(END - 100, &[("a", Stage::Running, true), ("b", Stage::Running, true)]);
    let tell = |case: &mut Case, a, b| {
        for (node, totals) in [("a", a), ("b", b)] {
            case.views.get_mut(node).unwrap().report.as_mut().unwrap().totals = totals;
        }
        let status = case.status();
        let totals = status.totals.clone().unwrap();
        case.session.status = Some(status);
        (totals.emitted, totals.exported, totals.bytes_pending)
    };
    assert_eq!(tell(&mut case, of(100, 100, 0), of(80, 30, 9)), (180, 130, 9));
    // The operator began anew, and one of them is away.
    assert_eq!(
        tell(&mut case, None, of(90, 90, 1)),
        (180, 130, 1),
        "nothing is exported that was not emitted"
    );
    assert_eq!(tell(&mut case, of(100, 100, 0), of(90, 90, 2)), (190, 190, 2));
    // What is accounted for at different moments was emitted.
    let lost = Totals { lost: 60, ..of(90, 30, 0).unwrap() };
    assert_eq!(tell(&mut case, None, Some(lost)), (250, 190, 0));
}

#[test]
fn a_node_that_cannot_upload_says_why_and_is_named_at_the_end() {
    let mut case = case(END - 100, &[("a", Stage::Running, true)]);
    says(&mut case, "a", "StoreError", "the store answered 403 AccessDenied");
    check(
        &case.status(),
        expect![[r#"
        Running 1/1
        failing a: StoreError the store answered 403 AccessDenied
        Accepted=True Valid: every collector and parameter is known
        StoreReady=True ProbeSucceeded: the store can be written, read and listed
        TargetsResolved=True PodsFound: 1 pod, 1 node
        Collecting=True Recording: 1 of 1 node record
        Uploaded=False Waiting: the window is not over
        Degraded=False AsExpected: 
        BudgetExceeded=False AsExpected: 
    "#]],
    );
    case.now = END + 1;
    case.finished = Some(Finished {
        manifest: Some(("_tracelake/manifest-1.json".to_owned(), Verdict::Incomplete)),
        reason: "node a: DrainTimeout".to_owned(),
        totals: None,
    });
    check(
        &case.status(),
        expect![[r#"
        Incomplete 1/1
        failing a: DrainTimeout it had not uploaded everything when drainTimeout passed: StoreError: the store answered 403 AccessDenied
        Accepted=True Valid: every collector and parameter is known
        StoreReady=True ProbeSucceeded: the store can be written, read and listed
        TargetsResolved=True PodsFound: 1 pod, 1 node
        Collecting=False WindowEnded: the window is over
        Uploaded=False DrainTimeout: node a: DrainTimeout
        Degraded=True DrainTimeout: a had not uploaded everything in time
        BudgetExceeded=False AsExpected: 
    "#]],
    );
}

#[test]
fn a_node_that_records_some_of_its_pods_only_degrades_the_session() {
    let mut case = case(END - 100, &[("a", Stage::Running, true)]);
    says(&mut case, "a", node_api::reason::TARGETS_MISSING, "map TARGETS is full");
    check(
        &case.status(),
        expect![[r#"
        Running 1/1
        failing a: TargetsMissing map TARGETS is full
        Accepted=True Valid: every collector and parameter is known
        StoreReady=True ProbeSucceeded: the store can be written, read and listed
        TargetsResolved=True PodsFound: 1 pod, 1 node
        Collecting=True Recording: 1 of 1 node record
        Uploaded=False Waiting: the window is not over
        Degraded=True TargetsMissing: a records only some of its pods; see failingNodes
        BudgetExceeded=False AsExpected: 
    "#]],
    );
}

#[test]
fn pods_that_are_on_no_selected_node_are_told_from_none() {
    let mut case = case(END - 100, &[]);
    case.matching = 3;
    check(
        &case.status(),
        expect![[r#"
        Preparing 0/0
        Accepted=True Valid: every collector and parameter is known
        StoreReady=True ProbeSucceeded: the store can be written, read and listed
        TargetsResolved=False NoPods: 3 pods, none of them on a node that is selected yet; waiting until the window ends
        Collecting=False Waiting: waiting for pods
        Uploaded=False Waiting: the window is not over
        Degraded=False AsExpected: 
        BudgetExceeded=False AsExpected: 
    "#]],
    );
}

#[test]
fn a_collector_that_some_nodes_cannot_run_is_counted_and_degrades_a_session_that_needs_it() {
    let mut case = case(END - 100, &[("a", Stage::Running, true), ("b", Stage::Running, true)]);
    let report = case.views.get_mut("b").and_then(|view| view.report.as_mut()).unwrap();
    let tcp = report.collectors.iter_mut().find(|one| one.name == "tcpConnections").unwrap();
    (tcp.running, tcp.reason) = (true, String::new());
    case.session.spec.collectors.iter_mut().for_each(|asked| asked.optional = false);
    let status = case.status();
    let shown = |name: &str| {
        let one = status.collectors.iter().find(|one| one.name == name).unwrap();
        (one.nodes_running, one.nodes_unsupported, one.reason.clone())
    };
    assert_eq!(shown("processes"), (2, 0, None));
    assert_eq!(shown("tcpConnections"), (1, 1, Some("MissingTracepoint: inet_sock_set_state".to_owned())));
    check(
        &status,
        expect![[r#"
        Running 2/2
        Accepted=True Valid: every collector and parameter is known
        StoreReady=True ProbeSucceeded: the store can be written, read and listed
        TargetsResolved=True PodsFound: 2 pods, 2 nodes
        Collecting=True Recording: 2 of 2 nodes record
        Uploaded=False Waiting: the window is not over
        Degraded=True CollectorUnsupported: tcpConnections does not run on 1 node: MissingTracepoint: inet_sock_set_state
        BudgetExceeded=False AsExpected: 
    "#]],
    );
}

#[test]
fn a_session_that_no_node_can_run_says_why_and_fails() {
    let mut case = case(END - 100, &[("a", Stage::Failed, true)]);
    check(
        &case.status(),
        expect![[r#"
        Preparing 0/1
        failing a: Unsupported no BTF
        Accepted=True Valid: every collector and parameter is known
        StoreReady=True ProbeSucceeded: the store can be written, read and listed
        TargetsResolved=True PodsFound: 1 pod, 1 node
        Collecting=False Unsupported: no node can run any of the collectors; see failingNodes
        Uploaded=False Waiting: the window is not over
        Degraded=True CollectorUnsupported: a can run none of the collectors
        BudgetExceeded=False AsExpected: 
    "#]],
    );
    case.now = END + 1;
    case.finished = Some(Finished { manifest: None, reason: String::new(), totals: None });
    assert_eq!(case.status().phase, Some(Phase::Failed));
}

#[test]
fn a_session_without_pods_ends_complete_with_nothing() {
    let mut case = case(END + 1, &[]);
    case.finished = Some(Finished {
        manifest: Some(("_tracelake/manifest-1.json".to_owned(), Verdict::Complete)),
        reason: String::new(),
        totals: None,
    });
    check(
        &case.status(),
        expect![[r#"
        Completed 0/0
        Accepted=True Valid: every collector and parameter is known
        StoreReady=True ProbeSucceeded: the store can be written, read and listed
        TargetsResolved=False NoPods: no pod matches yet; waiting until the window ends
        Collecting=False WindowEnded: the window is over
        Uploaded=True AllAcknowledged: _tracelake/manifest-1.json says what is there
        Degraded=False AsExpected: 
        BudgetExceeded=False AsExpected: 
    "#]],
    );
}

#[test]
fn the_same_observation_gives_the_same_status_and_no_event() {
    let mut case = case(END - 100, &[("a", Stage::Running, true)]);
    let first = case.status();
    assert_eq!(
        notes(&TraceSessionStatus::default(), &first).iter().map(|n| n.reason.as_str()).collect::<Vec<_>>(),
        ["Running"]
    );
    case.session.status = Some(first.clone());
    case.now += 60;
    let second = case.status();
    assert_eq!(first, second);
    assert_eq!(notes(&first, &second), []);
}

#[test]
fn a_session_that_fails_before_its_window_says_why_in_its_event() {
    let mut case = case(END - 100, &[]);
    case.deadline_passed = true;
    let status = case.status();
    let why = "no store became ready before startDeadline; nothing was collected".to_owned();
    let failed = Note { warning: true, reason: "Failed".to_owned(), message: why };
    assert_eq!(notes(&TraceSessionStatus::default(), &status).first(), Some(&failed));
    let uploaded = conditions::get(&status.conditions, condition::UPLOADED).unwrap();
    assert_eq!((&*uploaded.status, &*uploaded.reason), ("False", reason::NOTHING_COLLECTED));
}

/// What the condition says after a node has said that about its budget.
fn budget(case: &mut Case, node: &str, stopped: bool, message: &str) -> String {
    let report = case.views.get_mut(node).and_then(|view| view.report.as_mut()).unwrap();
    let (budget, message) = ("cpu".to_owned(), message.to_owned());
    report.excess = Some(node_api::v1::Excess { budget, stopped, message });
    let status = case.status();
    let now = conditions::get(&status.conditions, condition::BUDGET_EXCEEDED).unwrap().clone();
    case.session.status = Some(status);
    format!("{} {}: {}", now.status, now.reason, now.message)
}

#[test]
fn a_budget_that_was_not_enough_stays_named_with_its_node() {
    let mut case = case(END - 100, &[("a", Stage::Running, true), ("b", Stage::Running, true)]);
    assert_eq!(budget(&mut case, "b", false, "cpu is 1m"), "True Sampling: b: cpu is 1m");
    assert_eq!(budget(&mut case, "a", false, "cpu is 1m"), "True Sampling: a (and 1 other node): cpu is 1m");
    // An operator that has just started has heard of nobody.
    let said = |case: &Case| {
        let status = case.status();
        conditions::get(&status.conditions, condition::BUDGET_EXCEEDED).unwrap().reason.clone()
    };
    case.views.values_mut().for_each(|view| view.report = None);
    assert_eq!(said(&case), reason::SAMPLING);
}

#[test]
fn a_node_that_ended_a_session_for_its_budget_is_named_and_stays_so() {
    let mut case = case(END - 100, &[("a", Stage::Running, true), ("b", Stage::Draining, true)]);
    case.session.spec.budget = serde_yaml::from_str("{cpu: 1m, onExceeded: Stop}").unwrap();
    case.early = Some(Early::Budget);
    assert_eq!(budget(&mut case, "b", true, "cpu is 1m"), "True BudgetStopped: b: cpu is 1m");
    assert_eq!(budget(&mut case, "a", true, "another word"), "True BudgetStopped: b: cpu is 1m");
}

#[test]
fn a_node_that_ended_a_session_is_named_also_where_something_else_ended_the_window() {
    for early in [None, Some(Early::Stopped)] {
        let mut case = case(END + 1, &[("a", Stage::Draining, true)]);
        case.early = early;
        // No node ends a session that is to be sampled, whatever it says.
        case.session.spec.budget = serde_yaml::from_str("{cpu: 1m}").unwrap();
        assert_eq!(budget(&mut case, "a", true, "cpu is 1m"), "False AsExpected: ");
        case.session.spec.budget = serde_yaml::from_str("{cpu: 1m, onExceeded: Stop}").unwrap();
        assert_eq!(budget(&mut case, "a", true, "cpu is 1m"), "True BudgetStopped: a: cpu is 1m");
    }
}
