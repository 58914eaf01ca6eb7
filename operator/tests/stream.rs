// SPDX-License-Identifier: Apache-2.0
//! The agents' port over real TLS on loopback: who is let in, what arrives, and what a replaced CA does to it.

#[path = "reconcile/api.rs"]
#[allow(dead_code, reason = "shared with the tests of sessions, which use the rest")]
mod api;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::Api;
use base64::Engine;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use node_api::v1::node_client::NodeClient;
use node_api::v1::{
    Activity, AgentMessage, GrantRequest, Hello, Plan, Report, Segment, SessionPlan, SessionReport, Stage,
    agent_message, grant_request,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tracelake_operator::ca::{self, Keeper, Settings};
use tracelake_operator::grpc::{self, Service};
use tracelake_operator::hub::{Assignment, Hub, Published, SessionId};
use tracelake_operator::metrics::{Metrics, reason};
use tracelake_operator::token::{Authenticator, Pods, Refusal, Review};

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
    let claims = serde_json::json!({"sub": format!("system:serviceaccount:tracelake:{account}"), "node": node,
        "aud": [node_api::TOKEN_AUDIENCE], "exp": Timestamp::now().as_second() + lifetime,
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
        tokio::spawn(grpc::serve(listener, tls, service, stop.clone()));
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

    fn publish(&self, node: &str) {
        let plan = SessionPlan { uid: "session-uid".to_owned(), ..SessionPlan::default() };
        let hash = node_api::plan::hash(&plan);
        let assignment = Assignment { plan: plan.into(), hash, activity: Activity::Collect };
        self.hub.publish(Published {
            id: SessionId {
                namespace: "shop".to_owned(),
                name: "s".to_owned(),
                uid: "session-uid".to_owned(),
            },
            end: Timestamp::now() + SignedDuration::from_secs(300),
            nodes: [(node.to_owned(), assignment)].into(),
            store: None,
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
        let session =
            SessionReport { uid: "session-uid".to_owned(), stage: stage.into(), ..SessionReport::default() };
        let report = Report { sessions: vec![session] };
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

#[tokio::test]
async fn a_grant_is_for_a_node_that_has_the_session_only() {
    let operator = Operator::start().await;
    operator.publish("node-1");
    let ask = async |node: &str| {
        let mut request = Request::new(GrantRequest {
            session_uid: "session-uid".to_owned(),
            boot: "0".repeat(32),
            object: Some(grant_request::Object::Segment(Segment { table: "ledger".to_owned(), sequence: 0 })),
            length: 1,
            sha256: vec![0; 32],
        });
        node_api::token::attach(request.metadata_mut(), &token(node, "node-agent", 600)).unwrap();
        operator.client().await.grant(request).await.err().unwrap().code()
    };
    assert_eq!(ask("node-2").await, Code::FailedPrecondition);
    // Its own node gets as far as the store, which is not resolved here.
    assert_eq!(ask("node-1").await, Code::Unavailable);
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
