// SPDX-License-Identifier: Apache-2.0
//! The agents' port over real TLS on loopback: who is let in, what arrives, and what a replaced CA does to it.

#[path = "reconcile/api.rs"]
#[allow(dead_code, reason = "shared with the tests of sessions, which use the rest")]
mod api;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use api::Api;
use base64::Engine;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use node_api::plan::Body;
use node_api::v1::node_client::NodeClient;
use node_api::v1::{
    Activity, AgentMessage, CollectorPlan, GrantRequest, GrantResponse, Hello, NodeManifest, Plan, Report,
    Segment, SessionPlan, SessionReport, Stage, agent_message, grant_request,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tracelake_operator::ca::{self, Keeper, Settings};
use tracelake_operator::data::Readers;
use tracelake_operator::grpc::{self, Service};
use tracelake_operator::hub::{Assignment, GrantRefusal, Hub, Published, SessionId};
use tracelake_operator::metrics::{Metrics, reason};
use tracelake_operator::store::{Credential, ResolvedStore};
use tracelake_operator::token::{Authenticator, Pods, Refusal, Review};

/// What the operators of this process log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The lines that hold all of these words.
fn logged(words: &[&str]) -> usize {
    let log = LOG.0.lock().unwrap();
    let text = String::from_utf8_lossy(&log);
    text.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

static LOG: LazyLock<Log> = LazyLock::new(|| {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    log
});

const SECRET: &str = "/api/v1/namespaces/tracelake/secrets/tracelake-operator-tls";
const CONFIG_MAP: &str = "/api/v1/namespaces/tracelake/configmaps/tracelake-ca";
const NAME: &str = "operator.tracelake.svc";

/// The API server's answer to a token review: each token is of the node that it names.
struct Reviews;

impl Review for Reviews {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, kube::Error>> {
        let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(token.split('.').nth(1).unwrap())
            .unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        if claims["aud"][0] != node_api::TOKEN_AUDIENCE {
            let refused = TokenReviewStatus { authenticated: Some(false), ..TokenReviewStatus::default() };
            return Box::pin(async move { Ok(refused) });
        }
        let pod = text(&claims["kubernetes.io"]["pod"]["name"]);
        let extra = BTreeMap::from([
            ("authentication.kubernetes.io/node-name".to_owned(), vec![text(&claims["node"])]),
            ("authentication.kubernetes.io/pod-name".to_owned(), vec![pod.clone()]),
            ("authentication.kubernetes.io/pod-uid".to_owned(), vec![format!("uid-{pod}")]),
        ]);
        let user =
            UserInfo { username: Some(text(&claims["sub"])), extra: Some(extra), ..UserInfo::default() };
        let status = TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![node_api::TOKEN_AUDIENCE.to_owned()]),
            user: Some(user),
            error: None,
        };
        Box::pin(async move { Ok(status) })
    }
}

/// Every pod exists until it is named here.
#[derive(Default)]
struct Gone(Mutex<Vec<String>>);

impl Pods for Gone {
    fn uid<'a>(&'a self, pod: &'a str) -> BoxFuture<'a, Result<Option<String>, kube::Error>> {
        let gone = self.0.lock().unwrap().iter().any(|one| one == pod);
        Box::pin(async move { Ok((!gone).then(|| format!("uid-{pod}"))) })
    }
}

fn token(node: &str, account: &str, lifetime: i64) -> String {
    token_for(node_api::TOKEN_AUDIENCE, node, account, lifetime)
}

fn token_for(audience: &str, node: &str, account: &str, lifetime: i64) -> String {
    let claims = serde_json::json!({"sub": format!("system:serviceaccount:tracelake:{account}"), "node": node,
        "aud": [audience], "exp": Timestamp::now().as_second() + lifetime,
        "kubernetes.io": {"pod": {"name": format!("agent-{node}"), "uid": format!("uid-agent-{node}")}}});
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims.to_string());
    format!("e30.{payload}.signature")
}

struct Operator {
    api: Api,
    keeper: Keeper,
    hub: Arc<Hub>,
    metrics: Metrics,
    pods: Arc<Gone>,
    address: std::net::SocketAddr,
    stop: CancellationToken,
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Operator {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        LazyLock::force(&LOG);
        let api = Api::default();
        let settings = Settings { names: vec![NAME.to_owned()], propagation: Duration::from_secs(60) };
        let mut keeper = Keeper::new(api.client(), "tracelake", "tracelake", settings);
        keeper.step(Timestamp::now()).await.unwrap();
        let (hub, _due) = Hub::new();
        let (metrics, pods) = (Metrics::default(), Arc::new(Gone::default()));
        let authenticator = Authenticator::new(Arc::new(Reviews), pods.clone(), "tracelake", "node-agent");
        let service = Service::new(hub.clone(), Arc::new(authenticator), metrics.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let tls = node_api::tls::server(keeper.serving()).unwrap();
        let readers = Arc::new(Readers::new(api.client(), api::stores(api.client()), metrics.clone()));
        tokio::spawn(grpc::serve(listener, tls, service, readers, stop.clone()));
        Self { api, keeper, hub, metrics, pods, address, stop }
    }

    /// What agents find in the mounted ConfigMap.
    fn published(&self) -> String {
        self.api.0.lock().unwrap().objects[CONFIG_MAP]["data"][node_api::CA_KEY].as_str().unwrap().to_owned()
    }

    async fn channel(&self, ca: &str) -> Result<Channel, tonic::transport::Error> {
        let tls = node_api::tls::client(ca.as_bytes(), NAME).unwrap();
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        endpoint.tls_config(tls).unwrap().connect_timeout(Duration::from_secs(10)).connect().await
    }

    async fn client(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel(&self.published()).await.unwrap())
    }

    /// A stream of `node` with a token, opened with a hello of `claimed`.
    async fn connect(&self, token: Option<&str>, claimed: &str) -> Result<Agent, Status> {
        let (out, messages) = mpsc::channel(4);
        let hello = Hello { node: claimed.to_owned(), ..Hello::default() };
        out.send(AgentMessage { kind: Some(agent_message::Kind::Hello(hello)) }).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(messages));
        if let Some(token) = token {
            node_api::token::attach(request.metadata_mut(), token).unwrap();
        }
        let plans = self.client().await.connect(request).await?.into_inner();
        Ok(Agent { out, plans })
    }

    fn refused(&self, refusal: Refusal) -> u64 {
        self.metrics.refused.get_or_create(&reason(refusal.label())).get()
    }

    fn grants_refused(&self, refusal: GrantRefusal) -> u64 {
        self.metrics.grants_refused.get_or_create(&reason(refusal.label())).get()
    }

    fn publish(&self, node: &str) {
        self.publish_session("session-uid", node, None);
    }

    fn publish_session(&self, uid: &str, node: &str, store: Option<Arc<ResolvedStore>>) {
        let collectors = vec![CollectorPlan { name: "processes".to_owned(), ..CollectorPlan::default() }];
        let plan = SessionPlan { uid: uid.to_owned(), collectors, ..SessionPlan::default() };
        let assignment = Assignment { body: Body::of(&plan).into(), activity: Activity::Collect };
        self.hub.publish(Published {
            id: SessionId { namespace: "shop".to_owned(), name: uid.to_owned(), uid: uid.to_owned() },
            end: Timestamp::now() + SignedDuration::from_secs(300),
            collectors: vec!["processes".to_owned()],
            nodes: [(node.to_owned(), assignment)].into(),
            store,
        });
    }
}

struct Agent {
    out: mpsc::Sender<AgentMessage>,
    plans: Streaming<Plan>,
}

impl Agent {
    async fn plan(&mut self) -> Plan {
        self.plans.message().await.unwrap().expect("the stream is up")
    }

    /// How the stream ends.
    async fn end(&mut self) -> Status {
        loop {
            match self.plans.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a reason"),
                Err(status) => return status,
            }
        }
    }

    async fn report(&self, stage: Stage) {
        self.report_of(&["session-uid"], stage).await;
    }

    async fn report_of(&self, uids: &[&str], stage: Stage) {
        let session = |uid: &&str| SessionReport {
            uid: (*uid).to_owned(),
            stage: stage.into(),
            ..SessionReport::default()
        };
        let report = Report { sessions: uids.iter().map(session).collect() };
        self.out.send(AgentMessage { kind: Some(agent_message::Kind::Report(report)) }).await.unwrap();
    }
}

async fn until(what: &str, test: impl Fn() -> bool) {
    let wait = async {
        while !test() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("not within 30 s: {what}"));
}

fn stage(operator: &Operator, node: &str) -> Option<Stage> {
    let views = operator.hub.nodes("session-uid", &[node.to_owned()]);
    views[node].report.as_ref().map(SessionReport::stage)
}

#[tokio::test]
async fn plans_go_down_and_reports_come_up() {
    let operator = Operator::start().await;
    operator.publish("node-1");
    let mut agent = operator.connect(Some(&token("node-1", "node-agent", 600)), "node-1").await.unwrap();
    assert_eq!(agent.plan().await.sessions[0].uid, "session-uid");
    agent.report(Stage::Running).await;
    until("the report arrives", || stage(&operator, "node-1") == Some(Stage::Running)).await;
    let mut other = operator.connect(Some(&token("node-2", "node-agent", 600)), "node-2").await.unwrap();
    assert!(other.plan().await.sessions.is_empty(), "a node gets its own plan only");
    drop(agent);
    until("the stream is down", || operator.hub.streams() == 1).await;
}

#[tokio::test]
async fn who_has_no_right_is_refused_and_counted() {
    let operator = Operator::start().await;
    let refused = operator.connect(None, "node-1").await.err().unwrap();
    assert_eq!((refused.code(), operator.refused(Refusal::NoToken)), (Code::Unauthenticated, 1));
    let expired = token("node-1", "node-agent", -5);
    let refused = operator.connect(Some(&expired), "node-1").await.err().unwrap();
    assert_eq!((refused.code(), operator.refused(Refusal::Expired)), (Code::Unauthenticated, 1));
    let stranger = token("node-1", "default", 600);
    let refused = operator.connect(Some(&stranger), "node-1").await.err().unwrap();
    assert_eq!((refused.code(), operator.refused(Refusal::WrongServiceAccount)), (Code::PermissionDenied, 1));
    let mut other = operator.connect(Some(&token("node-2", "node-agent", 600)), "node-1").await.unwrap();
    assert_eq!(other.end().await.code(), Code::PermissionDenied);
    assert_eq!(operator.refused(Refusal::WrongNode), 1);
    operator.pods.0.lock().unwrap().push("agent-node-3".to_owned());
    let refused = operator.connect(Some(&token("node-3", "node-agent", 600)), "node-3").await.err().unwrap();
    assert_eq!((refused.code(), operator.refused(Refusal::PodGone)), (Code::PermissionDenied, 1));
    assert_eq!(operator.hub.streams(), 0);
}

#[tokio::test]
async fn a_stream_ends_with_its_token_and_with_its_pod() {
    let operator = Operator::start().await;
    let mut short = operator.connect(Some(&token("node-1", "node-agent", 2)), "node-1").await.unwrap();
    assert_eq!(short.end().await.code(), Code::Unauthenticated);
    let mut agent = operator.connect(Some(&token("node-2", "node-agent", 600)), "node-2").await.unwrap();
    agent.plan().await;
    operator.pods.0.lock().unwrap().push("agent-node-2".to_owned());
    assert_eq!(agent.end().await.code(), Code::PermissionDenied);
    assert_eq!(operator.refused(Refusal::PodGone), 1);
}

/// Where grants of these tests lead; nobody is there, as signing asks nobody.
fn store(uid: &str) -> Arc<ResolvedStore> {
    let s3 = crds::S3 {
        bucket: "traces".to_owned(),
        prefix: String::new(),
        endpoint: Some("http://127.0.0.1:9".to_owned()),
        region: "us-east-1".to_owned(),
        force_path_style: None,
        ca_bundle: None,
    };
    let credential = Credential::Key {
        access_key_id: "id".to_owned(),
        secret_access_key: "key".to_owned(),
        session_token: None,
    };
    let prefix = dataset::key::SessionPrefix::new("", "shop", uid, uid).unwrap();
    Arc::new(ResolvedStore::direct(s3, &credential, prefix, None, None).unwrap())
}

fn wanted(uid: &str, object: grant_request::Object) -> GrantRequest {
    GrantRequest {
        session_uid: uid.to_owned(),
        boot: "0".repeat(32),
        object: Some(object),
        length: 1,
        sha256: vec![0; 32],
    }
}

fn segment(table: &str, sequence: u64) -> grant_request::Object {
    grant_request::Object::Segment(Segment { table: table.to_owned(), sequence })
}

/// An operator with two nodes, each with a session of its own, and a thief who has the token of node-1.
struct Thief {
    operator: Operator,
    token: String,
}

impl Thief {
    async fn new() -> Self {
        let operator = Operator::start().await;
        for (uid, node) in [("mine", "node-1"), ("theirs", "node-2")] {
            operator.publish_session(uid, node, Some(store(uid)));
        }
        Self { operator, token: token("node-1", "node-agent", 600) }
    }

    async fn grant(&self, wanted: GrantRequest) -> Result<GrantResponse, Status> {
        let mut request = Request::new(wanted);
        node_api::token::attach(request.metadata_mut(), &self.token).unwrap();
        self.operator.client().await.grant(request).await.map(tonic::Response::into_inner)
    }

    /// Asks for what is refused for this reason, counted and logged once.
    async fn is_refused(&self, what: &str, wanted: GrantRequest, refusal: GrantRefusal) {
        let words = ["WARN", "grant refused", refusal.label(), "node=\"node-1\""];
        let (count, lines) = (self.operator.grants_refused(refusal), logged(&words));
        let answer = self.grant(wanted).await.map(|grant| grant.key);
        assert!(answer.is_err(), "{what}: {answer:?}");
        assert_eq!(self.operator.grants_refused(refusal), count + 1, "{what}");
        assert!(logged(&words) > lines, "{what}");
    }
}

#[tokio::test]
async fn f27_a_stolen_token_reads_no_plan_of_another_node() {
    let thief = Thief::new().await;
    let mut stream = thief.operator.connect(Some(&thief.token), "node-2").await.unwrap();
    let end = stream.plans.message().await.expect_err("no plan comes");
    assert_eq!(end.code(), Code::PermissionDenied);
    assert_eq!(thief.operator.refused(Refusal::WrongNode), 1);
    assert!(logged(&["WARN", "hello for another node", "node=\"node-1\"", "claimed=\"node-2\""]) > 0);
    assert_eq!(thief.operator.hub.streams(), 0, "node-2's own stream would not be ended by it");
    let mut own = thief.operator.connect(Some(&thief.token), "node-1").await.unwrap();
    let plan = own.plan().await;
    assert_eq!(plan.sessions.iter().map(|one| one.uid.as_str()).collect::<Vec<_>>(), ["mine"]);
}

#[tokio::test]
async fn f27_a_stolen_token_reports_for_no_other_node_and_no_session_that_its_node_has_not() {
    let thief = Thief::new().await;
    let operator = &thief.operator;
    let mut stream = operator.connect(Some(&thief.token), "node-1").await.unwrap();
    stream.plan().await;
    stream.report_of(&["theirs", "mine", "nobodys"], Stage::Done).await;
    let seen = |uid: &str, node: &str| operator.hub.nodes(uid, &[node.to_owned()])[node].report.is_some();
    until("its own report arrives", || seen("mine", "node-1")).await;
    for (uid, node) in [("theirs", "node-1"), ("theirs", "node-2"), ("mine", "node-2"), ("nobodys", "node-1")]
    {
        assert!(!seen(uid, node), "{uid} of {node}");
    }
    let foreign = operator.metrics.reports_foreign.get();
    assert_eq!(foreign, 1, "the session that another node has is counted, one that is over is not");
    assert!(logged(&["report on a session that this node does not have", "node=\"node-1\"", "theirs"]) > 0);
}

#[tokio::test]
async fn f27_a_stolen_token_gets_no_grant_outside_its_own_nodes_keys_of_its_own_sessions() {
    let thief = Thief::new().await;
    let manifest = || grant_request::Object::NodeManifest(NodeManifest {});
    // What it may have, its key made of the token's node: none of it can be another's.
    let own = thief.grant(wanted("mine", segment("processes", 7))).await.unwrap();
    assert_eq!(own.key, format!("processes/node-1_{}_000007.parquet", "0".repeat(32)));
    let own = thief.grant(wanted("mine", manifest())).await.unwrap();
    assert_eq!(own.key, format!("_tracelake/node-1_{}.json", "0".repeat(32)));
    assert!(own.put_url.contains("/shop/mine/mine/_tracelake/node-1_"), "in its session's folder");
    // Create-only, and bound to its content: an object that is there is not overwritten (tests/store_s3).
    let signed: Vec<&str> = own.put_headers.keys().map(String::as_str).collect();
    assert_eq!(signed, ["if-none-match", "x-amz-checksum-sha256"]);
    assert!(own.put_url.contains("X-Amz-SignedHeaders=host%3Bif-none-match%3Bx-amz-checksum-sha256"));

    for object in [segment("processes", 0), manifest()] {
        thief
            .is_refused("another node's session", wanted("theirs", object.clone()), GrantRefusal::NotPlanned)
            .await;
        thief.is_refused("no session", wanted("nobodys", object.clone()), GrantRefusal::NotPlanned).await;
        thief.is_refused("a folder", wanted("../theirs/theirs", object), GrantRefusal::NotPlanned).await;
    }
    thief
        .is_refused(
            "another table",
            wanted("mine", segment("tcp_connections", 0)),
            GrantRefusal::UnknownTable,
        )
        .await;
    for table in ["../../theirs/theirs/processes", "..", "_tracelake", "a/b", "", "processes\0"] {
        thief.is_refused(table, wanted("mine", segment(table, 0)), GrantRefusal::InvalidRequest).await;
    }
    for boot in ["", "../../x", "node-2_00000000000000000000000000000000", &"0".repeat(33), &"X".repeat(32)] {
        let forged = GrantRequest { boot: boot.to_owned(), ..wanted("mine", manifest()) };
        thief.is_refused(boot, forged, GrantRefusal::InvalidRequest).await;
    }
    let good = wanted("mine", segment("processes", 0));
    for (what, bad) in [
        ("no object", GrantRequest { object: None, ..good.clone() }),
        ("no length", GrantRequest { length: 0, ..good.clone() }),
        ("a length beyond one PUT", GrantRequest { length: u64::MAX, ..good.clone() }),
        ("no checksum", GrantRequest { sha256: Vec::new(), ..good.clone() }),
        ("half a checksum", GrantRequest { sha256: vec![0; 16], ..good.clone() }),
    ] {
        thief.is_refused(what, bad, GrantRefusal::InvalidRequest).await;
    }
    // No grant and no token is ever logged.
    assert_eq!(logged(&["X-Amz-Signature"]) + logged(&[&thief.token]), 0);
}

#[tokio::test]
async fn f27_a_stolen_token_ends_with_its_pod_and_one_for_somebody_else_never_begins() {
    let thief = Thief::new().await;
    let operator = &thief.operator;
    let own = || wanted("mine", segment("processes", 0));
    assert!(thief.grant(own()).await.is_ok());
    let mut stream = operator.connect(Some(&thief.token), "node-1").await.unwrap();
    stream.plan().await;
    // The administrator deletes the pod: what was good a moment ago is refused, on the stream and for grants.
    operator.pods.0.lock().unwrap().push("agent-node-1".to_owned());
    assert_eq!(thief.grant(own()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(stream.end().await.code(), Code::PermissionDenied);
    let again = operator.connect(Some(&thief.token), "node-1").await.err().unwrap();
    assert_eq!(again.code(), Code::PermissionDenied);
    assert_eq!(operator.refused(Refusal::PodGone), 3);
    assert!(logged(&["WARN", "call refused", "pod_gone"]) >= 3);

    // What any pod has for the API server, and what was made for somebody else.
    for audience in ["https://kubernetes.default.svc", "vault"] {
        let count = operator.refused(Refusal::WrongAudience);
        let other = Thief { token: token_for(audience, "node-2", "node-agent", 600), ..Thief::new().await };
        let foreign = operator.connect(Some(&other.token), "node-2").await.err().unwrap();
        assert_eq!(foreign.code(), Code::Unauthenticated, "{audience}");
        assert_eq!(operator.refused(Refusal::WrongAudience), count + 1, "{audience}");
        assert_eq!(other.grant(own()).await.unwrap_err().code(), Code::Unauthenticated, "{audience}");
    }
    assert!(logged(&["WARN", "call refused", "wrong_audience"]) >= 4);
}

#[tokio::test]
async fn a_replaced_ca_ends_no_stream_and_every_agent_can_always_connect() {
    let mut operator = Operator::start().await;
    operator.publish("node-1");
    let before = operator.published();
    let mut agent = operator.connect(Some(&token("node-1", "node-agent", 600)), "node-1").await.unwrap();
    agent.plan().await;

    // Somebody deletes the Secret.
    operator.api.0.lock().unwrap().objects.remove(SECRET);
    let start = Timestamp::now();
    operator.keeper.step(start).await.unwrap();
    let both = operator.published();
    assert_eq!(both.matches("BEGIN CERTIFICATE").count(), 2, "old and new together");
    for ca in [&before, &both] {
        operator.channel(ca).await.unwrap();
    }
    // The kubelets have had their time; the new CA is used.
    operator.keeper.step(start + SignedDuration::from_secs(61)).await.unwrap();
    operator.channel(&both).await.unwrap();
    assert!(operator.channel(&before).await.is_err(), "the new certificate is of the new CA");
    // Much later the old one is not trusted any more.
    operator.keeper.step(start + SignedDuration::from_hours(2)).await.unwrap();
    let after = operator.published();
    assert_eq!(after.matches("BEGIN CERTIFICATE").count(), 1);
    operator.channel(&after).await.unwrap();

    agent.report(Stage::Running).await;
    until("the first stream still works", || stage(&operator, "node-1") == Some(Stage::Running)).await;

    // An annotation asks for another.
    operator.api.change(SECRET, |secret| secret["metadata"]["annotations"][ca::ROTATE] = "now".into());
    operator.keeper.step(Timestamp::now()).await.unwrap();
    assert_eq!(operator.published().matches("BEGIN CERTIFICATE").count(), 2);
}
