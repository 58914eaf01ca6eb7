// SPDX-License-Identifier: Apache-2.0

//! The agent between a plan and an engine: what it does with the operator away, over restarts, reboots and the window's end.
//!
//! The engine is synthetic and writes down what it is told; spool, plans on disk and reports are the real ones.

extern crate tracelake_node_agent as node_agent;

#[allow(dead_code, reason = "each test of the agent uses a part of it")]
mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use node_agent::agent::{Agent, OperatorLink, ReceivedPlan};
use node_agent::budget::Excess;
use node_agent::engine::{
    CollectorOutcome, EngineError, SessionSpec, TableCounters, TargetCoverage, TargetSpec,
};
use node_agent::kernel::clock;
use node_agent::session::Recorder;
use node_api::plan::TARGETS_MAX;
use node_api::v1::{self, Activity, Stage};
use support::{Server, Synthetic, World};

const UID: &str = "6f8d2e8a-5d25-4f1c-9d55-2b8c9a4e7f10";
const PATIENCE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(600);

/// What the session's folder holds of its plan.
fn stored(root: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(root.join(UID).join("plan.json")).unwrap()).unwrap()
}

type Calls = Arc<Mutex<Vec<String>>>;

/// Writes down what it is told.
struct Watched {
    engine: Synthetic,
    calls: Calls,
    excess: Option<Excess>,
}

impl Watched {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
}

impl Recorder for Watched {
    fn open(&mut self, spec: SessionSpec) -> Result<Vec<CollectorOutcome>, EngineError> {
        let names: Vec<_> = spec.collectors.iter().map(|collector| collector.name.clone()).collect();
        self.note(format!("open {} for {}", names.join(","), spec.uid));
        self.engine.open(spec)
    }

    fn set_targets(&mut self, session: &str, targets: &[TargetSpec]) -> Result<(), EngineError> {
        self.note(format!("{} targets", targets.len()));
        self.engine.set_targets(session, targets)
    }

    fn mend(&mut self) -> Result<(), EngineError> {
        self.engine.mend()
    }

    fn govern(&mut self) -> Vec<(String, Excess)> {
        self.excess.take().map(|excess| (UID.to_owned(), excess)).into_iter().collect()
    }

    fn close(&mut self, session: &str, names: bool) {
        self.note("close".to_owned());
        self.engine.close(session, names);
    }

    fn learn(&mut self, targets: &[TargetSpec]) {
        let names = targets.iter().map(|target| match target {
            TargetSpec::Pod(pod) => pod.containers.len(),
            TargetSpec::Cgroup { .. } => 0,
        });
        self.note(format!("{} names", names.sum::<usize>()));
    }

    fn counters(&self, session: &str) -> Vec<TableCounters> {
        self.engine.counters(session)
    }

    fn coverage(&self, session: &str) -> Vec<TargetCoverage> {
        self.engine.coverage(session)
    }
}

/// One agent process on the node whose spool is `root`; nobody answers it but the store.
struct Process {
    agent: Agent<Watched>,
    link: OperatorLink,
    calls: Calls,
}

impl Process {
    fn start(root: &Path, server: &Server, boot: &str) -> Self {
        Self::start_over(root, server, boot, None)
    }

    /// Its engine says so of the session's budget when it is asked first.
    fn start_over(root: &Path, server: &Server, boot: &str, excess: Option<Excess>) -> Self {
        let world = World::start(root, u64::MAX, support::granted(server));
        let mut node = world.node;
        node.boot = boot.parse().unwrap();
        let calls = Calls::default();
        let recorder = Watched { engine: world.engine, calls: calls.clone(), excess };
        let (agent, link) = Agent::new(node, recorder, v1::Hello::default()).unwrap();
        Self { agent, link, calls }
    }

    /// What the engine was told since the last question.
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn stage(&mut self) -> Option<Stage> {
        let report = self.link.reports.borrow();
        report.sessions.iter().find(|session| session.uid == UID).map(v1::SessionReport::stage)
    }

    fn until(&mut self, stage: Stage) {
        let began = Instant::now();
        while self.stage() != Some(stage) {
            assert!(began.elapsed() < PATIENCE, "not {stage:?} but {:?}", self.stage());
            self.agent.tick();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn body() -> v1::SessionPlan {
    v1::SessionPlan {
        uid: UID.to_owned(),
        namespace: "shop".to_owned(),
        name: "checkout".to_owned(),
        collectors: vec![v1::CollectorPlan { name: "processes".to_owned(), ..v1::CollectorPlan::default() }],
        targets: vec![v1::Target {
            pod_uid: "0a4c6d1e-2f3b-4c5d-8e9f-a0b1c2d3e4f5".to_owned(),
            namespace: "shop".to_owned(),
            pod: "redis".to_owned(),
            ..v1::Target::default()
        }],
        rollover_interval_ms: 60_000,
        rollover_bytes: 1 << 20,
        ..v1::SessionPlan::default()
    }
}

fn plan(activity: Activity, remaining: Duration, bodies: Vec<v1::SessionPlan>) -> ReceivedPlan {
    plan_of(&body(), activity, remaining, bodies)
}

/// A plan whose one session has the body `named`, which comes with it only if it is among `bodies`.
fn plan_of(
    named: &v1::SessionPlan,
    activity: Activity,
    remaining: Duration,
    bodies: Vec<v1::SessionPlan>,
) -> ReceivedPlan {
    let session = v1::SessionRef {
        uid: UID.to_owned(),
        hash: node_api::plan::hash(named),
        activity: activity.into(),
        remaining_ms: u64::try_from(remaining.as_millis()).unwrap(),
    };
    ReceivedPlan { plan: v1::Plan { sessions: vec![session], bodies }, received_ns: clock::boot_ns() }
}

fn opened() -> Vec<String> {
    vec![format!("open processes for {UID}"), "1 targets".to_owned()]
}

#[tokio::test(flavor = "multi_thread")]
async fn f15_an_agent_that_restarts_goes_on_from_the_plan_on_disk_and_ends_on_time_without_the_operator() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let mut first = Process::start(root.path(), &server, support::BOOT);
    first.agent.apply(plan(Activity::Collect, Duration::from_secs(2), vec![body()]));
    assert_eq!(first.calls(), opened());
    // It is killed: nothing is told to the engine, nothing is sealed.
    drop(first);

    let mut second = Process::start(root.path(), &server, support::BOOT);
    assert_eq!(*second.link.hello.borrow().known_plans, [node_api::plan::hash(&body())]);
    second.agent.tick();
    assert_eq!(second.calls(), opened());
    second.until(Stage::Running);
    second.until(Stage::Draining);
    assert_eq!(second.calls(), ["close"]);

    // The window is over on this node's clock: a plan that was under way does not open it again.
    second.agent.apply(plan(Activity::Collect, LONG, Vec::new()));
    assert_eq!(second.calls(), Vec::<String>::new());
    second.agent.apply(plan(Activity::Drain, Duration::ZERO, Vec::new()));
    second.until(Stage::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_that_ends_a_session_names_its_last_containers() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let mut process = Process::start(root.path(), &server, support::BOOT);
    process.agent.apply(plan(Activity::Collect, LONG, vec![body()]));
    process.calls();
    let mut named = body();
    named.targets[0].containers = vec![v1::Container { name: "app".to_owned(), id: "a".repeat(64) }];
    process.agent.apply(plan_of(&named, Activity::Drain, Duration::ZERO, vec![named.clone()]));
    assert_eq!(process.calls(), ["1 names", "close"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_told_to_drain_records_nothing_after_a_restart() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let mut first = Process::start(root.path(), &server, support::BOOT);
    first.agent.apply(plan(Activity::Collect, LONG, vec![body()]));
    first.agent.apply(plan(Activity::Drain, Duration::ZERO, Vec::new()));
    assert_eq!(first.calls(), [&*opened()[0], "1 targets", "close"]);
    drop(first);
    let mut second = Process::start(root.path(), &server, support::BOOT);
    second.until(Stage::Done);
    assert_eq!(second.calls(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_nothing_is_recorded_until_the_operator_says_what_is_left_of_the_window() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let mut first = Process::start(root.path(), &server, support::BOOT);
    first.agent.apply(plan(Activity::Collect, LONG, vec![body()]));
    drop(first);
    let mut second = Process::start(root.path(), &server, "fedcba9876543210fedcba9876543210");
    second.agent.tick();
    assert_eq!(second.calls(), Vec::<String>::new());
    // It has the body from before: the plan need not bring it.
    second.agent.apply(plan(Activity::Collect, LONG, Vec::new()));
    assert_eq!(second.calls(), opened());
}

#[tokio::test(flavor = "multi_thread")]
async fn f17_an_agent_that_hears_nothing_of_a_deletion_stops_at_the_end_of_the_window_and_gives_up_when_it_hears()
 {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    server.faults.always(support::Fault::Refuse(503));
    let mut process = Process::start(root.path(), &server, support::BOOT);
    process.agent.apply(plan(Activity::Collect, Duration::from_secs(1), vec![body()]));
    assert_eq!(process.calls(), opened());
    // The session is deleted, its finalizer is taken away after drainTimeout, and this node is told nothing of it.
    process.until(Stage::Draining);
    assert_eq!(process.calls(), ["close"]);
    // It keeps what it has, for an operator that may still want it ...
    let pending = |process: &Process| {
        process.link.reports.borrow().sessions[0].totals.as_ref().map_or(0, |totals| totals.bytes_pending)
    };
    let began = Instant::now();
    while pending(&process) == 0 {
        assert!(began.elapsed() < PATIENCE, "nothing is kept");
        process.agent.tick();
        std::thread::sleep(Duration::from_millis(20));
    }
    // ... until the first plan after the partition, which does not name it.
    process.agent.apply(ReceivedPlan { plan: v1::Plan::default(), received_ns: clock::boot_ns() });
    assert_eq!((process.stage(), process.calls()), (None, Vec::new()));
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn f17_a_session_that_is_no_longer_listed_ends_and_leaves_no_file() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let mut process = Process::start(root.path(), &server, support::BOOT);
    process.agent.apply(plan(Activity::Collect, LONG, vec![body()]));
    let nothing = ReceivedPlan { plan: v1::Plan::default(), received_ns: clock::boot_ns() };
    process.agent.apply(nothing);
    assert_eq!(process.calls(), [&*opened()[0], "1 targets", "close"]);
    assert_eq!(process.stage(), None);
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_refused_costs_its_session_nothing_that_runs() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let mut process = Process::start(root.path(), &server, support::BOOT);
    process.agent.apply(plan(Activity::Collect, LONG, vec![body()]));
    process.calls();
    let bad = v1::SessionPlan { name: "../checkout".to_owned(), ..body() };
    process.agent.apply(plan_of(&bad, Activity::Collect, LONG, vec![bad.clone()]));
    assert_eq!(process.calls(), Vec::<String>::new());
    assert_eq!(process.stage(), Some(Stage::Running));
    let report = process.link.reports.borrow().sessions[0].clone();
    assert_eq!(
        (&*report.reason, report.message.contains("../checkout")),
        ("PlanRefused", true),
        "{report:?}"
    );

    // It still ends when it is told to, though the body that goes with that is not known here.
    process.agent.apply(plan_of(&bad, Activity::Drain, Duration::ZERO, Vec::new()));
    assert_eq!(process.calls(), ["close"]);
    process.until(Stage::Done);
    assert_eq!(*process.link.hello.borrow().known_plans, [node_api::plan::hash(&body())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_cannot_begin_as_its_plan_is_refused_says_so_and_begins_when_there_is_a_better_one() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let mut process = Process::start(root.path(), &server, support::BOOT);
    let wide = v1::SessionPlan { targets: vec![v1::Target::default(); TARGETS_MAX + 1], ..body() };
    let said = |process: &Process| {
        let report = process.link.reports.borrow().clone();
        report.sessions.into_iter().map(|one| (one.stage(), one.reason, one.message)).collect::<Vec<_>>()
    };
    // What has no body yet gets it with the next message.
    process.agent.apply(plan_of(&wide, Activity::Collect, LONG, Vec::new()));
    assert_eq!(said(&process), []);
    process.agent.apply(plan_of(&wide, Activity::Collect, LONG, vec![wide.clone()]));
    let refused =
        |stage| vec![(stage, "PlanRefused".to_owned(), "1025 targets, expected 1 to 1024".to_owned())];
    assert_eq!(said(&process), refused(Stage::Failed));
    // The operator does not send it twice on one stream.
    process.agent.apply(plan_of(&wide, Activity::Drain, Duration::ZERO, Vec::new()));
    assert_eq!(said(&process), refused(Stage::Done));
    assert!(process.link.hello.borrow().known_plans.is_empty(), "but on the next");
    process.agent.apply(plan(Activity::Collect, LONG, vec![body()]));
    assert_eq!(process.calls(), opened());
    assert_eq!((said(&process).len(), process.stage()), (1, Some(Stage::Running)));
    process.agent.apply(ReceivedPlan { plan: v1::Plan::default(), received_ns: clock::boot_ns() });
    assert_eq!(said(&process), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_over_its_budget_says_so_and_one_that_is_to_stop_does_not_begin_again() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let excess =
        |stopped| Some(Excess { budget: "cpu".to_owned(), stopped, message: "cpu is 1m".to_owned() });
    let said = |process: &Process| process.link.reports.borrow().sessions[0].excess.clone().unwrap();
    let mut sampled = Process::start_over(root.path(), &server, support::BOOT, excess(false));
    sampled.agent.apply(plan(Activity::Collect, LONG, vec![body()]));
    sampled.until(Stage::Running);
    sampled.agent.tick();
    assert_eq!(stored(root.path())["excess"]["stopped"], false);
    sampled.agent.apply(plan(Activity::Collect, LONG, Vec::new()));
    assert_eq!((said(&sampled).budget.as_str(), said(&sampled).stopped), ("cpu", false));
    assert_eq!(sampled.calls(), opened());
    drop(sampled);

    // Another change of the sampling is not worth a write.
    let file = root.path().join(UID).join("plan.json");
    let before = std::fs::metadata(&file).unwrap().modified().unwrap();
    let mut changed = Process::start_over(root.path(), &server, support::BOOT, excess(false));
    changed.agent.tick();
    assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), before);
    drop(changed);

    let mut stopped = Process::start_over(root.path(), &server, support::BOOT, excess(true));
    stopped.agent.tick();
    stopped.until(Stage::Done);
    assert!(said(&stopped).stopped);
    stopped.calls();
    // The operator does not know yet.
    stopped.agent.apply(plan(Activity::Collect, LONG, Vec::new()));
    assert_eq!(stopped.calls(), Vec::<String>::new());
    drop(stopped);

    let mut restarted = Process::start(root.path(), &server, support::BOOT);
    restarted.agent.apply(plan(Activity::Collect, LONG, Vec::new()));
    restarted.until(Stage::Done);
    assert_eq!(restarted.calls(), Vec::<String>::new());
    assert!(said(&restarted).stopped, "why it ended outlives the process");
}

fn over() -> Excess {
    Excess { budget: "cpu".to_owned(), stopped: true, message: "cpu is 1m".to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_of_a_session_that_stopped_ends_there_for_whoever_makes_its_account() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let mut process = Process::start_over(root.path(), &server, support::BOOT, Some(over()));
    process.agent.apply(plan(Activity::Collect, LONG, vec![body()]));
    process.agent.tick();
    process.until(Stage::Done);
    let incarnations = root.path().join(UID).join(support::BOOT).join("incarnations");
    let checkpoint = std::fs::read_dir(incarnations).unwrap().next().unwrap().unwrap().path();
    let checkpoint: serde_json::Value = serde_json::from_slice(&std::fs::read(checkpoint).unwrap()).unwrap();
    assert!(checkpoint["window_end_ns"].as_u64().unwrap() <= clock::boot_ns(), "{checkpoint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_to_stop_does_so_though_its_folder_is_away_and_over_a_reboot() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let mut process = Process::start_over(root.path(), &server, support::BOOT, Some(over()));
    process.agent.apply(plan(Activity::Collect, LONG, vec![body()]));
    process.calls();
    let (folder, away) = (root.path().join(UID), tempfile::tempdir().unwrap());
    std::fs::rename(&folder, away.path().join(UID)).unwrap();
    std::fs::write(&folder, "in its place").unwrap();
    process.agent.tick();
    assert_eq!(process.calls(), ["close"]);
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(away.path().join(UID), &folder).unwrap();
    let began = Instant::now();
    while stored(root.path())["activity"] != "drain" {
        assert!(began.elapsed() < PATIENCE, "the disk is tried again: {}", stored(root.path()));
        process.agent.tick();
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(process);

    let mut rebooted = Process::start(root.path(), &server, "fedcba9876543210fedcba9876543210");
    rebooted.agent.apply(plan(Activity::Collect, LONG, vec![body()]));
    rebooted.until(Stage::Done);
    assert_eq!(rebooted.calls(), Vec::<String>::new());
    let said = rebooted.link.reports.borrow().sessions[0].excess.clone().unwrap();
    assert!(said.stopped, "why it ended outlives the boot");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_comes_while_its_session_records_is_said_to_have_no_effect_until_that_begins_anew() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let reason = |process: &Process| process.link.reports.borrow().sessions[0].reason.clone();
    let mut process = Process::start(root.path(), &server, support::BOOT);
    process.agent.apply(plan(Activity::Collect, LONG, vec![body()]));
    let budget = Some(v1::Budget { events_per_second: 1, ..v1::Budget::default() });
    let upgraded = v1::SessionPlan { budget, ..body() };
    process.agent.apply(plan_of(&upgraded, Activity::Collect, LONG, vec![upgraded.clone()]));
    assert_eq!((process.calls(), reason(&process).as_str()), (opened(), "BudgetIgnored"));
    drop(process);
    let mut restarted = Process::start(root.path(), &server, support::BOOT);
    restarted.until(Stage::Running);
    assert_eq!(reason(&restarted), "");
}
