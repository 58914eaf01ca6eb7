// SPDX-License-Identifier: Apache-2.0

//! An operator that is away and comes back: as an agent sees it, over real TLS on loopback.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use node_agent::agent::{OperatorLink, ReceivedPlan};
use node_agent::operator::{Client, Config};
use node_agent::pipeline::upload::{GrantError, GrantRequest, ObjectName};
use node_api::v1::node_server::{Node, NodeServer};
use node_api::v1::{
    self, AgentMessage, GrantResponse, Plan, Report, SessionRef, SessionReport, agent_message,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

const NAME: &str = "operator.tracelake.svc";
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends one plan and keeps what it is told.
#[derive(Clone, Default)]
struct Operator(Arc<Mutex<Vec<Report>>>);

#[tonic::async_trait]
impl Node for Operator {
    type ConnectStream = ReceiverStream<Result<Plan, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (out, plans) = mpsc::channel(1);
        let (told, mut messages) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            let sessions = vec![SessionRef { uid: "uid".to_owned(), ..SessionRef::default() }];
            out.send(Ok(Plan { sessions, bodies: Vec::new() })).await.unwrap();
            while let Ok(Some(message)) = messages.message().await {
                if let Some(agent_message::Kind::Report(report)) = message.kind {
                    told.lock().unwrap().push(report);
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(plans)))
    }

    async fn grant(&self, _: Request<v1::GrantRequest>) -> Result<Response<GrantResponse>, Status> {
        Err(Status::unavailable("not asked in this test"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f15_an_agent_comes_back_after_growing_random_pauses_and_tells_everything() {
    _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
    std::fs::write(folder.path().join(node_api::CA_KEY), made.cert.pem()).unwrap();
    std::fs::write(folder.path().join("token"), "token").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(Config {
        endpoint: format!("https://{}", listener.local_addr().unwrap()),
        server_name: NAME.to_owned(),
        ca_dir: folder.path().to_owned(),
        token_file: folder.path().join("token"),
    })
    .unwrap();
    let grants = client.grants();
    let (plans, mut received) = mpsc::channel::<ReceivedPlan>(4);
    let (reports, reported) = watch::channel(Report::default());
    let (connected, mut is_up) = watch::channel(false);
    let hello = watch::channel(v1::Hello::default()).1;
    let stop = CancellationToken::new();
    let running = client.run(OperatorLink { plans, reports: reported, hello, connected }, stop.clone());
    let running = tokio::spawn(running);

    // Away: connections are accepted by nobody who answers.
    let mut came = Vec::new();
    while came.len() < 6 {
        let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
        drop(accepted.expect("it does not try again").unwrap());
        came.push(Instant::now());
    }
    let pauses: Vec<Duration> = came.windows(2).map(|two| two[1].duration_since(two[0])).collect();
    let mut bound = Duration::from_millis(500);
    for pause in &pauses {
        assert!(*pause >= bound / 5, "no hot loop: {pauses:?}");
        bound = (bound * 2).min(Duration::from_secs(10));
    }
    assert!(pauses.windows(2).any(|two| two[1] != two[0] * 2), "random, not merely doubled: {pauses:?}");
    // Uploads are told at once, and try again.
    let request = GrantRequest {
        session: "uid".into(),
        boot: "0".repeat(32).into(),
        object: ObjectName::NodeManifest,
        length: 1,
        sha256: [0; 32],
    };
    let refused = grants.grant(&request).await.err().expect("there is nobody to grant");
    assert!(matches!(refused, GrantError::Unavailable(_)), "{refused}");
    // What changed meanwhile is whole state.
    let session = SessionReport { uid: "uid".to_owned(), ..SessionReport::default() };
    reports.send_replace(Report { sessions: vec![session.clone()] });

    let operator = Operator::default();
    let identity = Identity::from_pem(made.cert.pem(), made.signing_key.serialize_pem());
    let served = Server::builder().tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
    let mut served = served;
    let router = served.add_service(NodeServer::new(operator.clone()));
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    let up = tokio::time::timeout(PATIENCE, is_up.wait_for(|up| *up)).await;
    up.expect("it does not come back").unwrap();
    let plan = tokio::time::timeout(PATIENCE, received.recv()).await.unwrap().unwrap();
    assert_eq!(plan.plan.sessions[0].uid, "uid");
    let began = Instant::now();
    while operator.0.lock().unwrap().is_empty() {
        assert!(began.elapsed() < PATIENCE, "it tells nothing");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(operator.0.lock().unwrap()[0].sessions, [session]);
    stop.cancel();
    running.await.unwrap();
}
