// SPDX-License-Identifier: Apache-2.0
//! Sessions, and the store of the chart's values, against a mocked API server that counts writes, and against a real S3 server in this process.

mod api;
mod chart;
mod ending;
mod faults;
mod owners;
#[path = "../store_s3/servers.rs"]
#[allow(dead_code, reason = "shared with the tests of grants, which use the rest")]
mod servers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{Api, SESSION};
use crds::conditions::{self, reason, session as condition};
use crds::{Phase, TraceSession};
use dataset::key::{Key, SessionPrefix};
use dataset::ledger::{LedgerRow, Term, Terms};
use dataset::manifest::{FORMAT_VERSION, NodeManifest, Verdict};
use dataset::reader;
use kube::runtime::controller::Action;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use node_api::plan::Body;
use node_api::v1::{Activity, CollectorReport, Hello, Report, SessionReport, Stage, Totals};
use servers::{BUCKET, Server, writer};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;
use tracelake_operator::hub::{Hub, SessionId, Stream};
use tracelake_operator::metrics::Metrics;
use tracelake_operator::session::dereference::Owners;
use tracelake_operator::session::limits::{Limits, Places};
use tracelake_operator::session::listed::Listed;
use tracelake_operator::session::memory::{Clock, Memories};
use tracelake_operator::session::pods::PodWatches;
use tracelake_operator::session::validate::Selection;
use tracelake_operator::session::{self, Context, Nodes, ReconcileError, begin, reconcile, standby};
use tracelake_operator::store::ResolvedStore;

const UID: &str = "0b7d4fd2-0000-4000-8000-000000000001";
const BOOT: &str = "0123456789abcdef0123456789abcdef";

fn spec() -> String {
    "target: {podSelector: {}}
  collectors: [{name: processes}]
  duration: 1h
  drainTimeout: 1s
  storeRef: {name: main}
  rollover: {interval: 60s, size: 64Mi}"
        .to_owned()
}

struct Scenario {
    api: Api,
    context: Arc<Context>,
    hub: Arc<Hub>,
    due: UnboundedReceiver<ObjectRef<TraceSession>>,
}

impl Scenario {
    /// A session as a user made it just now, of this spec.
    fn new(spec: &str, endpoint: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let api = Api::default();
        let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap();
        api.apply(
            SESSION,
            &format!(
                "apiVersion: tracelake.dev/v1alpha1
kind: TraceSession
metadata: {{name: checkout, namespace: shop, uid: {UID}, generation: 1, creationTimestamp: '{now}'}}
spec:
  {spec}"
            ),
        );
        api.apply(
            "/apis/tracelake.dev/v1alpha1/clustertracestores/main",
            &format!(
                "apiVersion: tracelake.dev/v1alpha1
kind: ClusterTraceStore
metadata: {{name: main, uid: store-uid, generation: 1}}
spec: {{s3: {{bucket: {BUCKET}, prefix: team, endpoint: '{endpoint}'}}, credentials: {{secretRef: {{name: key}}}}}}"
            ),
        );
        // AKWRITER, writer-secret
        api.apply(
            "/api/v1/namespaces/tracelake/secrets/key",
            "{apiVersion: v1, kind: Secret, metadata: {name: key, namespace: tracelake},
 data: {accessKeyId: QUtXUklURVI=, secretAccessKey: d3JpdGVyLXNlY3JldA==}}",
        );
        Self::over(api)
    }

    /// An operator that knows nothing but what the API server holds.
    fn over(api: Api) -> Self {
        let client = api.client();
        let (hub, due) = Hub::new();
        let context = Context {
            client: client.clone(),
            hub: hub.clone(),
            stores: api::stores(client.clone()),
            pods: PodWatches::new(client.clone(), hub.clone()),
            nodes: Nodes::none(),
            owners: Owners::new(client.clone()),
            recorder: Recorder::new(client, Reporter { controller: "test".to_owned(), instance: None }),
            metrics: Metrics::default(),
            cluster_id: "cluster".to_owned(),
            memories: Memories::default(),
            store_places: reconcile::StorePlaces::default(),
            clock: Clock::default(),
            limits: Limits { sessions_per_namespace: Some(2), ..Limits::default() },
            places: Places::default(),
            started: tokio::time::Instant::now(),
        };
        Self { api, context: Arc::new(context), hub, due }
    }

    /// One pass over the session as it now is; where its store is asked first, also the one when it has answered.
    async fn pass(&self) -> Action {
        self.try_pass().await.unwrap()
    }

    async fn try_pass(&self) -> Result<Action, ReconcileError> {
        let next = reconcile::reconcile(self.api.session(), self.context.clone()).await?;
        if next != Action::requeue(begin::ASKED) {
            return Ok(next);
        }
        let store = self.context.stores.resolve(&self.api.session()).await.unwrap();
        within(Duration::from_secs(60), "an answer of the store", || store.known().is_ok()).await;
        reconcile::reconcile(self.api.session(), self.context.clone()).await
    }

    /// Waits until the session is to be looked at.
    async fn told(&mut self) {
        let one = tokio::time::timeout(Duration::from_secs(20), self.due.recv()).await;
        one.expect("the session is to be looked at").expect("the hub is there");
    }

    fn phase(&self) -> Option<Phase> {
        self.api.status().phase
    }

    fn condition(&self, type_: &str) -> (String, String) {
        let status = self.api.status();
        let one =
            conditions::get(&status.conditions, type_).unwrap_or_else(|| panic!("no condition {type_}"));
        (one.status.clone(), one.reason.clone())
    }

    fn connect(&self, node: &str) -> Stream {
        self.hub.connect(Hello { node: node.to_owned(), boot: BOOT.to_owned(), ..Hello::default() })
    }

    /// Marks the window as open since a minute ago, as an operator before this one left it.
    fn started(&self) {
        let start = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() - 60).unwrap();
        let end = start + jiff::SignedDuration::from_hours(1);
        self.api.change(SESSION, |session| {
            session["status"] = serde_json::json!({"phase": "Preparing", "startTime": start.to_string(),
                "endTime": end.to_string(), "dataset": {"uri": "s3://traces/team/shop/checkout", "schemaVersion": 1,
                "region": "us-east-1", "bucket": BUCKET, "prefix": "team", "forcePathStyle": true,
                "endpoint": "http://127.0.0.1:9", "storeRef": {"kind": "ClusterTraceStore", "name": "main"}}});
        });
    }

    /// The session's folder, with the operator's credentials.
    fn store(&self, endpoint: &str) -> ResolvedStore {
        let mut s3 = servers::s3(endpoint, BUCKET);
        s3.prefix = "team".to_owned();
        let prefix = SessionPrefix::new("team", "shop", "checkout", UID).unwrap();
        ResolvedStore::direct(s3, &writer(), prefix, None, None).unwrap()
    }
}

fn report(stage: Stage, emitted: u64) -> Report {
    let session = SessionReport {
        uid: UID.to_owned(),
        stage: stage.into(),
        collectors: vec![CollectorReport {
            name: "processes".to_owned(),
            running: true,
            ..Default::default()
        }],
        totals: Some(Totals { emitted, exported: emitted, ..Totals::default() }),
        targets: 1,
        ..SessionReport::default()
    };
    Report { sessions: vec![session] }
}

/// What a node writes when it is done and had nothing to say.
async fn write_node_manifest(store: &ResolvedStore, node: &str) {
    write_account(store, node, 0).await;
}

/// The same of one that had so many events, all of containers that nobody asked for.
async fn write_account(store: &ResolvedStore, node: &str, filtered: u64) {
    let mut terms = Terms::default();
    terms.add(Term::Filtered, filtered);
    let row = LedgerRow {
        node: node.to_owned(),
        boot: BOOT.to_owned(),
        incarnation: BOOT.to_owned(),
        table: "processes".to_owned(),
        emitted: Some(filtered),
        terms,
        rows: 0,
    };
    let manifest = NodeManifest {
        format_version: FORMAT_VERSION,
        node: node.to_owned(),
        boot: BOOT.to_owned(),
        incarnations: Vec::new(),
        objects: Vec::new(),
        ledger: if filtered > 0 { vec![row] } else { Vec::new() },
        coverage: Vec::new(),
    };
    let key = Key::node_manifest(node, &BOOT.parse().unwrap()).unwrap();
    reader::create_json(store.object_store().as_ref(), store.prefix(), &key, &manifest).await.unwrap();
}

/// Waits until it is so, for less time than passes wait that nobody asked for.
async fn soon(what: &str, is_so: impl Fn() -> bool) {
    within(Duration::from_secs(20), what, is_so).await;
}

async fn within(patience: Duration, what: &str, is_so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + patience;
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "{what} within {patience:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_a_node_reports_is_in_the_status_at_once_though_no_pass_is_due() {
    let scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    scenario.started();
    scenario.api.add_pod("web-1", "node-1");
    let stream = scenario.connect("node-1");
    // Published and heard of once, so that the next pass is a minute away.
    scenario.pass().await;
    stream.report(report(Stage::Preparing, 0));
    let (api, stop) = (scenario.api.clone(), CancellationToken::new());
    let (_, writer) = kube::runtime::reflector::store();
    let running = session::run(scenario.context, writer, Listed::default(), scenario.due, stop.clone());
    let running = tokio::spawn(running);
    soon("the first pass", || !api.writes().is_empty()).await;
    stream.report(report(Stage::Running, 1));
    soon("the phase", || api.status().phase == Some(Phase::Running)).await;
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_replica_that_waits_has_the_pods_of_running_sessions_and_no_others_when_its_turn_comes() {
    let mut scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    scenario.started();
    scenario.api.add_pod("web-0", "node-1");
    let pods = "GET /api/v1/namespaces/shop/pods";
    let id = SessionId::of(&scenario.api.session());
    {
        // More than what waits could say in a day must not pile up: the hub's wishes are a leader's.
        scenario.hub.trigger(id.object_ref());
        let follows = std::cell::Cell::new(false);
        let waits = standby::follow(scenario.api.client(), &scenario.context.pods, &mut scenario.due, || {
            follows.set(true)
        });
        tokio::select! {
            () = waits => unreachable!("it follows for ever"),
            () = soon("it follows", || follows.get()) => {}
        }
        assert_eq!(scenario.api.came(pods).len(), 1, "it is ready with the pods at hand");
    }
    assert!(scenario.due.try_recv().is_err(), "what the hub wants is for a leader");
    scenario.pass().await;
    let plan = scenario.hub.published(UID).expect("published");
    assert_eq!(plan.nodes.keys().collect::<Vec<_>>(), ["node-1"]);
    assert_eq!(scenario.api.came(pods).len(), 1, "nothing is listed again");
    // Gone while nobody watched: the namespace is let go of, and listed anew for who comes next.
    scenario.context.pods.retain(|_| false);
    scenario.context.pods.acquire(&id, &Selection::Names(["web-0".to_owned()].into())).await.unwrap();
    assert_eq!(scenario.api.came(pods).len(), 2);
}

#[tokio::test]
async fn what_happens_to_a_sessions_pods_is_in_its_plans_and_what_happens_to_others_is_not_looked_at() {
    let spec = spec().replace("{podSelector: {}}", "{podSelector: {matchLabels: {app: web}}}");
    let mut scenario = Scenario::new(&spec, "http://127.0.0.1:9");
    scenario.started();
    let pod = |name: &str, app: &str, node: &str, status: &str| {
        format!(
            "{{metadata: {{name: {name}, labels: {{app: {app}}}}}, spec: {{nodeName: {node}}}, status: {{{status}}}}}"
        )
    };
    scenario.api.happens("ADDED", &pod("web-0", "web", "node-1", ""));
    scenario.pass().await;
    let bodies = |scenario: &Scenario| -> BTreeMap<String, Arc<Body>> {
        let nodes = scenario.hub.published(UID).expect("published").nodes;
        nodes.into_iter().map(|(node, assignment)| (node, assignment.body)).collect()
    };
    let first = bodies(&scenario);
    assert_eq!(first.keys().collect::<Vec<_>>(), ["node-1"]);
    scenario.pass().await;
    assert!(Arc::ptr_eq(&first["node-1"], &bodies(&scenario)["node-1"]), "nothing is made anew");
    // That all pods were listed.
    scenario.told().await;
    let is_quiet = async |scenario: &mut Scenario| {
        tokio::time::timeout(Duration::from_millis(300), scenario.due.recv()).await.is_err()
    };
    assert!(is_quiet(&mut scenario).await);
    scenario.api.happens("ADDED", &pod("db-0", "db", "node-3", ""));
    scenario.api.happens("ADDED", &pod("web-1", "web", "node-2", ""));
    scenario.told().await;
    assert!(is_quiet(&mut scenario).await, "of the other pod nobody is told");
    scenario.pass().await;
    assert_eq!(bodies(&scenario).keys().collect::<Vec<_>>(), ["node-1", "node-2"]);
    assert_eq!(first["node-1"], bodies(&scenario)["node-1"]);

    let id = "a".repeat(64);
    let running = format!("containerStatuses: [{{name: main, containerID: 'containerd://{id}'}}]");
    scenario.api.happens("MODIFIED", &pod("web-0", "web", "node-1", &running));
    scenario.told().await;
    scenario.pass().await;
    assert_eq!(bodies(&scenario)["node-1"].plan().targets[0].containers[0].id, id);

    scenario.api.happens("MODIFIED", &pod("web-0", "db", "node-1", &running));
    scenario.told().await;
    scenario.api.happens("DELETED", &pod("web-1", "web", "node-2", ""));
    scenario.told().await;
    scenario.pass().await;
    let last = bodies(&scenario);
    assert_eq!(last.keys().collect::<Vec<_>>(), ["node-1", "node-2"], "they keep what they recorded");
    assert!(last.values().all(|body| body.plan().targets.is_empty()));
}

#[tokio::test]
async fn a_node_is_written_down_before_it_records_so_that_the_next_operator_waits_for_it() {
    let scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    scenario.started();
    scenario.api.add_pod("web-0", "node-1");
    scenario.pass().await;
    let planned = || scenario.hub.published(UID).expect("published").nodes.into_keys().collect::<Vec<_>>();
    let names = || scenario.api.status().nodes.unwrap_or_default().names;
    assert_eq!((planned(), names()), (vec!["node-1".to_owned()], vec!["node-1".to_owned()]));
    // Less than five seconds after that write, and node-1 has never been heard of: neither holds it back.
    scenario.api.0.lock().unwrap().refusing = true;
    scenario.api.happens("ADDED", "{metadata: {name: web-1}, spec: {nodeName: node-2}}");
    let mut refused = false;
    for _ in 0..100 {
        refused |= scenario.try_pass().await.is_err();
        assert_eq!(planned(), ["node-1"], "it goes on, and nothing else begins");
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(refused);
    scenario.api.0.lock().unwrap().refusing = false;
    scenario.pass().await;
    assert_eq!((planned(), names()), (vec!["node-1".to_owned(), "node-2".to_owned()], planned()));

    // The pod has gone when the next operator looks for the first time.
    scenario.api.happens("DELETED", "{metadata: {name: web-1}, spec: {nodeName: node-2}}");
    let next = Scenario::over(scenario.api.clone());
    next.pass().await;
    let plan = next.connect("node-2").plan().await.unwrap();
    assert_eq!(plan.sessions.len(), 1, "it keeps what it recorded");
}

#[tokio::test]
async fn a_session_that_has_begun_goes_on_under_an_operator_that_does_not_know_its_collectors() {
    let spec = spec().replace("[{name: processes}]", "[{name: processes}, {name: ofTheFuture}]");
    let scenario = Scenario::new(&spec, "http://127.0.0.1:9");
    scenario.api.add_pod("web-0", "node-1");
    scenario.started();
    scenario.pass().await;
    let mut stream = scenario.connect("node-1");
    let plan = stream.plan().await.unwrap();
    let names: Vec<_> = plan.bodies[0].collectors.iter().map(|collector| collector.name.as_str()).collect();
    assert_eq!(names, ["processes", "ofTheFuture"]);
    assert_eq!(scenario.phase(), Some(Phase::Preparing));
    // One that has not begun is refused.
    scenario.api.change(SESSION, |session| session["status"] = serde_json::json!({}));
    let next = Scenario::over(scenario.api.clone());
    next.pass().await;
    assert_eq!(next.phase(), Some(Phase::Failed));
}

#[tokio::test]
async fn a_workload_without_pods_that_goes_is_missed() {
    let spec = spec().replace("{podSelector: {}}", "{workloadRef: {kind: Deployment, name: web}}");
    let scenario = Scenario::new(&spec, "http://127.0.0.1:9");
    scenario.started();
    let path = "/apis/apps/v1/namespaces/shop/deployments/web";
    scenario.api.apply(
        path,
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop, uid: web}}",
    );
    scenario.pass().await;
    let resolved = |scenario: &Scenario| scenario.condition(condition::TARGETS_RESOLVED).1;
    assert_eq!(resolved(&scenario), reason::NO_PODS);
    scenario.api.remove(path);
    // The status is written again after a while.
    scenario.context.clock.advance(Duration::from_secs(60));
    scenario.pass().await;
    assert_eq!(resolved(&scenario), reason::WORKLOAD_NOT_FOUND);
}

#[tokio::test]
async fn a_running_session_with_nothing_new_costs_no_write() {
    let scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    scenario.started();
    scenario.api.add_pod("web-0", "node-1");
    scenario.pass().await;
    let mut stream = scenario.connect("node-1");
    stream.report(report(Stage::Running, 10));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Running));
    assert!(stream.plan().await.is_some());
    scenario.api.writes();
    // Twenty minutes of passes, with the same report again and again; the clock moves, so no write is only put off.
    for _ in 0..20 {
        scenario.context.clock.advance(Duration::from_secs(60));
        stream.report(report(Stage::Running, 10));
        scenario.pass().await;
    }
    assert_eq!(scenario.api.writes(), Vec::<String>::new());
    assert!(futures::FutureExt::now_or_never(stream.plan()).is_none(), "an unchanged plan was sent again");
}

#[tokio::test]
async fn a_store_and_its_secret_are_read_once_a_minute_for_all_sessions_that_run_there() {
    let scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    scenario.started();
    let mut sessions = vec![scenario.api.session()];
    for name in ["one", "two"] {
        let mut other = (*sessions[0]).clone();
        other.metadata.name = Some(name.to_owned());
        other.metadata.uid = Some(format!("0b7d4fd2-0000-4000-8000-{name:0>12}"));
        let path = format!("/apis/tracelake.dev/v1alpha1/namespaces/shop/tracesessions/{name}");
        scenario.api.apply(&path, &serde_json::to_string(&other).unwrap());
        sessions.push(Arc::new(other));
    }
    let secret = "GET /api/v1/namespaces/tracelake/secrets/key";
    let store = "GET /apis/tracelake.dev/v1alpha1/clustertracestores/main";
    let look = |session: &Arc<TraceSession>| reconcile::reconcile(session.clone(), scenario.context.clone());
    for minute in 1..=3 {
        for session in &sessions {
            look(session).await.unwrap();
            scenario.context.clock.advance(Duration::from_secs(20));
        }
        assert_eq!([secret, store].map(|what| scenario.api.came(what).len()), [minute; 2]);
    }
    // All of them in the moment when the minute is over.
    for all in futures::future::join_all(sessions.iter().map(look)).await {
        all.unwrap();
    }
    assert_eq!([secret, store].map(|what| scenario.api.came(what).len()), [4; 2]);
}

#[tokio::test]
async fn changes_within_five_seconds_are_one_write_and_a_phase_is_written_at_once() {
    let scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    scenario.started();
    scenario.api.add_pod("web-0", "node-1");
    scenario.pass().await;
    let stream = scenario.connect("node-1");
    stream.report(report(Stage::Running, 1));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Running), "a phase does not wait");
    scenario.api.writes();
    for emitted in 2..40 {
        scenario.context.clock.advance(Duration::from_millis(100));
        stream.report(report(Stage::Running, emitted));
        scenario.pass().await;
    }
    assert_eq!(scenario.api.writes(), Vec::<String>::new(), "four seconds after the last write");
    scenario.context.clock.advance(Duration::from_secs(2));
    scenario.pass().await;
    assert_eq!(scenario.api.writes(), [format!("PATCH {SESSION}/status")]);
    assert_eq!(scenario.api.status().totals.unwrap().emitted, 39);
}

#[tokio::test]
async fn an_unknown_collector_is_written_once_and_the_session_is_over() {
    let scenario = Scenario::new(&spec().replace("processes", "procesess"), "http://127.0.0.1:9");
    for _ in 0..3 {
        scenario.pass().await;
        scenario.context.clock.advance(Duration::from_secs(60));
    }
    assert_eq!(scenario.api.writes(), [format!("PATCH {SESSION}/status")]);
    assert_eq!(scenario.phase(), Some(Phase::Failed));
    assert_eq!(
        scenario.condition(condition::ACCEPTED),
        ("False".to_owned(), reason::UNKNOWN_COLLECTOR.to_owned())
    );
    assert!(scenario.api.events().contains(&reason::UNKNOWN_COLLECTOR.to_owned()));
}

#[tokio::test]
async fn a_session_waits_for_a_place_in_its_namespace_and_says_so() {
    let scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    let others = ["one", "two"].map(|uid| SessionId {
        namespace: "shop".to_owned(),
        name: uid.to_owned(),
        uid: uid.to_owned(),
    });
    assert!(others.iter().all(|other| scenario.context.places.take(other, None)));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Pending));
    let waits = ("False".to_owned(), reason::NAMESPACE_CAPACITY.to_owned());
    assert_eq!(scenario.condition(condition::COLLECTING), waits);
    let next = scenario.context.places.free(&others[0]);
    assert_eq!(next.map(|next| next.uid).as_deref(), Some(UID), "it is its turn");
    scenario.context.clock.advance(Duration::from_secs(6));
    scenario.pass().await;
    // It has its place, and asks its store, which is not there; others have the place meanwhile.
    assert_eq!(scenario.condition(condition::STORE_READY).1, reason::STORE_UNAVAILABLE);
    assert_eq!(scenario.condition(condition::COLLECTING).1, reason::WAITING);
    assert!(scenario.context.places.take(&others[0], Some(2)));
}

#[tokio::test]
async fn a_session_that_asks_for_more_than_any_may_have_is_refused() {
    let mut scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    Arc::get_mut(&mut scenario.context).unwrap().limits.duration = Some(Duration::from_secs(1));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Failed));
    assert_eq!(
        scenario.condition(condition::ACCEPTED),
        ("False".to_owned(), reason::LIMIT_EXCEEDED.to_owned())
    );
    assert!(scenario.api.writes().iter().all(|write| !write.contains("finalizers")), "nothing was begun");
}

#[tokio::test]
async fn without_its_secret_a_session_waits_and_says_so_and_begins_when_it_is_mended() {
    let server = Server::in_process().await;
    let scenario = Scenario::new(&spec(), &server.endpoint);
    let path = "/api/v1/namespaces/tracelake/secrets/key";
    let secret = scenario.api.0.lock().unwrap().objects.remove(path).unwrap();
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Pending));
    assert_eq!(
        scenario.condition(condition::STORE_READY),
        ("False".to_owned(), reason::SECRET_NOT_FOUND.to_owned())
    );
    assert!(scenario.hub.published(UID).is_none(), "nothing is collected");
    scenario.api.0.lock().unwrap().objects.insert(path.to_owned(), secret);
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Preparing));
    assert_eq!(scenario.condition(condition::STORE_READY).0, "True");
    assert!(scenario.api.status().start_time.is_some());
}

#[tokio::test]
async fn a_start_that_somebody_else_wrote_into_the_store_is_believed_only_where_it_can_be() {
    let now = jiff::Timestamp::now();
    let hour = jiff::SignedDuration::from_hours(1);
    let seconds = jiff::SignedDuration::from_secs(20);
    // What a time plus a duration cannot be must not end the operator. One that is early is taken for the session's creation; the last but
    // one is of an operator whose clock was ahead.
    let starts = [
        ("9999-12-30T21:59:59Z".to_owned(), false),
        ("-009999-01-02T01:59:59Z".to_owned(), true),
        ((now + hour).to_string(), false),
        ((now - hour).to_string(), true),
        ((now + seconds).to_string(), true),
        (now.to_string(), true),
    ];
    for (start, is_believed) in starts {
        let server = Server::in_process().await;
        let scenario = Scenario::new(&spec(), &server.endpoint);
        scenario.api.add_pod("web-0", "node-1");
        let (store, first) =
            (scenario.store(&server.endpoint), serde_json::json!({"uid": UID, "startTime": start}));
        let put = reader::create_json(store.object_store().as_ref(), store.prefix(), &Key::Session, &first);
        put.await.unwrap();
        scenario.pass().await;
        let status = scenario.api.status();
        let Some(began) = status.start_time else {
            assert!(!is_believed, "{start}");
            let said = scenario.condition(condition::STORE_READY);
            assert_eq!(said, ("False".to_owned(), reason::STORE_ERROR.to_owned()), "{start}");
            continue;
        };
        assert!(is_believed, "{start}");
        let late = began.0.duration_since(now);
        assert!(late < seconds && late > -seconds, "{start}: {began:?}");
    }
}

#[tokio::test]
async fn a_session_goes_from_its_first_file_to_a_complete_manifest() {
    let server = Server::in_process().await;
    let scenario = Scenario::new(&spec(), &server.endpoint);
    let store = scenario.store(&server.endpoint);
    scenario.api.add_pod("web-0", "node-1");
    let mut stream = scenario.connect("node-1");
    assert!(stream.plan().await.unwrap().sessions.is_empty());

    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Preparing));
    assert_eq!(scenario.api.session().metadata.finalizers, Some(vec![crds::SESSION_FINALIZER.to_owned()]));
    let contents = reader::load(store.object_store().as_ref(), store.prefix()).await.unwrap();
    assert_eq!(contents.session.unwrap().uid, UID);
    let plan = stream.plan().await.unwrap();
    assert_eq!(plan.sessions[0].activity(), Activity::Collect);
    assert_eq!(plan.bodies[0].targets[0].pod_uid, "uid-web-0");

    stream.report(report(Stage::Running, 5));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Running));
    assert_eq!(scenario.condition(condition::COLLECTING).0, "True");
    assert_eq!(scenario.api.status().nodes.unwrap().summary, "1/1");

    scenario.api.change(SESSION, |session| session["spec"]["stop"] = true.into());
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Draining));
    assert_eq!(scenario.condition(condition::COLLECTING), ("False".to_owned(), reason::STOPPED.to_owned()));
    assert_eq!(stream.plan().await.unwrap().sessions[0].activity(), Activity::Drain);

    write_node_manifest(&store, "node-1").await;
    stream.report(report(Stage::Done, 5));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Completed));
    assert_eq!(scenario.condition(condition::UPLOADED).0, "True");
    let status = scenario.api.status();
    assert_eq!(status.dataset.unwrap().manifest.as_deref(), Some("_tracelake/manifest-1.json"));
    assert_eq!(scenario.api.session().metadata.finalizers.clone().unwrap_or_default(), Vec::<String>::new());
    let contents = reader::load(store.object_store().as_ref(), store.prefix()).await.unwrap();
    assert_eq!(contents.manifest.unwrap().verdict, Verdict::Complete);
    assert!(stream.plan().await.unwrap().sessions.is_empty(), "the agent may forget the session");
    for phase in ["Preparing", "Running", "Draining", "Completed"] {
        assert!(scenario.api.events().contains(&phase.to_owned()), "no Event {phase}");
    }
}
