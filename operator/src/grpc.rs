// SPDX-License-Identifier: Apache-2.0
//! The agents' port: one stream per node, and upload grants; and what users read ([`crate::data`]).
//!
//! In: TLS connections to our certificate. Out: the node's plans, its reports to the hub, presigned URLs.
//! Every call is authenticated by its token ([`crate::token`]); the token says which node speaks. A stream ends
//! with its token, with its pod, or when the node opens another one. Grant URLs are never logged.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dataset::key::{Boot, Key};
use futures::{Stream, StreamExt};
use node_api::v1::grant_request::Object;
use node_api::v1::node_server::{Node, NodeServer};
use node_api::v1::{AgentMessage, GrantRequest, GrantResponse, Hello, Plan, agent_message};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use node_api::plan::MESSAGE_MAX;

use crate::connections::{Addresses, Held};
use crate::data::{self, Readers};
use crate::hub::{GrantRefusal, Hub};
use crate::metrics::Metrics;
use crate::token::{Agent, Authenticator, Refusal};

/// A stream's first message has to come within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a stream asks whether its pod is still there (a local look-up, see `agents.rs`).
const POD_PERIOD: Duration = Duration::from_secs(5);
/// A peer that does not answer a ping in this time is gone, so a lost node is noticed within half a minute.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// For calls that came just before the end. Streams do not end by themselves, and the next operator waits for this one.
const LAST_ANSWERS: Duration = Duration::from_millis(250);
/// Calls at once on one connection: an agent has its stream and asks for a few grants.
const STREAMS: u32 = 16;
/// S3 takes no larger object in one PUT.
const OBJECT_MAX: u64 = 5 << 30;

/// The service.
pub struct Service {
    hub: Arc<Hub>,
    authenticator: Arc<Authenticator>,
    metrics: Metrics,
}

impl Service {
    /// Hands plans out from, and reports in to, `hub`.
    pub fn new(hub: Arc<Hub>, authenticator: Arc<Authenticator>, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { hub, authenticator, metrics })
    }

    async fn authenticate<T>(&self, request: &Request<T>) -> Result<Agent, Status> {
        let token = node_api::token::bearer(request.metadata());
        let peer = request.remote_addr();
        self.authenticator.authenticate(token).await.map_err(|refusal| self.refuse(refusal, peer))
    }

    fn refuse(&self, refusal: Refusal, peer: Option<std::net::SocketAddr>) -> Status {
        self.metrics.refuse(refusal);
        tracing::warn!(reason = refusal.label(), peer = peer.map(tracing::field::display), "call refused");
        status(refusal)
    }

    fn refuse_grant(&self, refusal: GrantRefusal, node: &str, session: &str) -> Status {
        self.metrics.refuse_grant(refusal);
        tracing::warn!(reason = refusal.label(), node, session, "grant refused");
        match refusal {
            GrantRefusal::NotPlanned => Status::failed_precondition("this node has no such session"),
            GrantRefusal::UnknownTable => {
                Status::invalid_argument("the session's collectors fill no such table")
            }
            GrantRefusal::InvalidRequest => {
                Status::invalid_argument("boot, sequence, length or checksum cannot be those of an object")
            }
            GrantRefusal::StoreNotReady => {
                Status::unavailable("the session's store cannot be used now, ask again")
            }
        }
    }

    /// Moves one stream's messages until it ends, and says why it ended.
    async fn attend(
        &self,
        agent: Agent,
        hello: Hello,
        mut incoming: Streaming<AgentMessage>,
        outgoing: mpsc::Sender<Result<Plan, Status>>,
    ) {
        let node = hello.node.clone();
        let mut stream = self.hub.connect(hello);
        tracing::info!(node, pod = agent.pod, "agent connected");
        let lifetime = agent.expires.duration_since(SystemTime::now()).unwrap_or_default();
        let expiry = tokio::time::sleep(lifetime);
        tokio::pin!(expiry);
        let mut pod_ticks = tokio::time::interval(POD_PERIOD);
        let end: Option<Status> = loop {
            tokio::select! {
                message = incoming.next() => match message {
                    Some(Ok(AgentMessage { kind: Some(agent_message::Kind::Report(report)) })) => {
                        self.metrics.reports.inc();
                        for session in stream.report(report) {
                            self.metrics.reports_foreign.inc();
                            tracing::info!(node, session, "report on a session that this node does not have");
                        }
                    }
                    // A kind of a later version: this one does without.
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => break None,
                },
                plan = stream.plan() => match plan {
                    Some(plan) => {
                        self.metrics.plans.inc();
                        // A peer that reads nothing must not outlive its token and pod here.
                        let sent = tokio::time::timeout(KEEPALIVE, outgoing.send(Ok(plan))).await;
                        if !matches!(sent, Ok(Ok(()))) {
                            break None;
                        }
                    }
                    None => break Some(Status::aborted("another stream of this node took over")),
                },
                () = &mut expiry => break Some(self.refuse_quietly(Refusal::Expired)),
                _ = pod_ticks.tick() => {
                    if self.authenticator.check_pod(&agent).await == Err(Refusal::PodGone) {
                        break Some(self.refuse(Refusal::PodGone, None));
                    }
                }
            }
        };
        drop(stream);
        let reason = end.as_ref().map_or("closed", Status::message).to_owned();
        tracing::info!(node, pod = agent.pod, reason, "agent disconnected");
        if let Some(end) = end {
            // The agent may be gone already, or not reading.
            let _ = outgoing.try_send(Err(end));
        }
    }

    /// A token's end in mid-stream is the ordinary course of things: the agent comes back with the next one.
    fn refuse_quietly(&self, refusal: Refusal) -> Status {
        status(refusal)
    }

    async fn give(&self, agent: &Agent, request: GrantRequest) -> Result<GrantResponse, Status> {
        let session = request.session_uid.as_str();
        let refuse = |refusal| self.refuse_grant(refusal, &agent.node, session);
        let (key, sha256) =
            object(&agent.node, &request).ok_or_else(|| refuse(GrantRefusal::InvalidRequest))?;
        let store = self.hub.granted(&agent.node, session, &key, request.length).map_err(refuse)?;
        match store.grant(&key, request.length, &sha256).await {
            Ok(grant) => {
                self.metrics.grants.inc();
                Ok(GrantResponse {
                    put_url: grant.put_url,
                    put_headers: grant.put_headers,
                    head_url: grant.head_url,
                    ca_bundle: grant.ca_bundle,
                    key: key.relative(),
                    guarded: grant.guard.is_some(),
                    refused_networks: grant
                        .guard
                        .map(|guard| guard.refused.iter().map(ToString::to_string).collect())
                        .unwrap_or_default(),
                })
            }
            Err(problem) => {
                tracing::warn!(
                    reason = problem.reason,
                    message = problem.message,
                    session,
                    "grant not signed"
                );
                // Tried, so that the session says so.
                store.renew();
                Err(refuse(GrantRefusal::StoreNotReady))
            }
        }
    }
}

/// The key that a request asks for, of this node only, and the checksum.
fn object(node: &str, request: &GrantRequest) -> Option<(Key, [u8; 32])> {
    let boot: Boot = request.boot.parse().ok()?;
    let sha256 = <[u8; 32]>::try_from(request.sha256.as_slice()).ok()?;
    if request.length == 0 || request.length > OBJECT_MAX {
        return None;
    }
    let key = match request.object.as_ref()? {
        Object::Segment(segment) => Key::segment(&segment.table, node, &boot, segment.sequence).ok()?,
        Object::NodeManifest(_) => Key::node_manifest(node, &boot).ok()?,
    };
    Some((key, sha256))
}

fn status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::NoToken => Status::unauthenticated("no_token: the call carries no bearer token"),
        Refusal::WrongAudience => Status::unauthenticated("wrong_audience: the token is for somebody else"),
        Refusal::Expired => Status::unauthenticated("expired: come back with the next token"),
        Refusal::InvalidToken => Status::unauthenticated("invalid_token: the API server does not accept it"),
        Refusal::WrongServiceAccount => {
            Status::permission_denied("wrong_service_account: the token is not a node agent's")
        }
        Refusal::NotBound => Status::permission_denied(
            "not_bound: the token names no node and pod; Kubernetes 1.32 or newer is needed",
        ),
        Refusal::WrongNode => Status::permission_denied("wrong_node: the token is of another node"),
        Refusal::PodGone => Status::permission_denied("pod_gone: the token's pod does not exist any more"),
        Refusal::ReviewFailed => Status::unavailable("review_failed: the API server cannot be asked now"),
        Refusal::TooManyConnections => {
            Status::resource_exhausted("too_many_connections: the address has as many as it may")
        }
    }
}

type Plans = Pin<Box<dyn Stream<Item = Result<Plan, Status>> + Send>>;

/// The generated server wants a service by value; this shares one.
struct Shared(Arc<Service>);

#[tonic::async_trait]
impl Node for Shared {
    type ConnectStream = Plans;

    async fn connect(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Plans>, Status> {
        let agent = self.0.authenticate(&request).await?;
        let peer = request.remote_addr();
        let mut incoming = request.into_inner();
        let (outgoing, plans) = mpsc::channel(1);
        let service = self.0.clone();
        // The response's headers leave at once: an agent may wait for them before it speaks.
        tokio::spawn(async move {
            let first = tokio::time::timeout(HELLO_TIMEOUT, incoming.message()).await;
            let hello = match first {
                Ok(Ok(Some(AgentMessage { kind: Some(agent_message::Kind::Hello(hello)) }))) => hello,
                Ok(Ok(_)) => {
                    let _ = outgoing
                        .send(Err(Status::invalid_argument("the first message is not a hello")))
                        .await;
                    return;
                }
                Ok(Err(_)) => return,
                Err(_) => {
                    let _ = outgoing.send(Err(Status::deadline_exceeded("no hello in time"))).await;
                    return;
                }
            };
            if hello.node != agent.node {
                tracing::warn!(node = agent.node, claimed = hello.node, "hello for another node");
                let _ = outgoing.send(Err(service.refuse(Refusal::WrongNode, peer))).await;
                return;
            }
            service.attend(agent, hello, incoming, outgoing).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(plans))))
    }

    async fn grant(&self, request: Request<GrantRequest>) -> Result<Response<GrantResponse>, Status> {
        let agent = self.0.authenticate(&request).await?;
        self.0.give(&agent, request.into_inner()).await.map(Response::new)
    }
}

/// Serves agents, and readers of data, on `listener` until stopped.
///
/// # Errors
/// When the server fails as a whole; a connection's failure ends that connection only.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    service: Arc<Service>,
    readers: Arc<Readers>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (accepted, connections) = mpsc::channel(64);
    let metrics = service.metrics.clone();
    let accepting = tokio::spawn(accept(listener, TlsAcceptor::from(tls), accepted, metrics, stop.clone()));
    let node = NodeServer::new(Shared(service))
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS)
        .add_service(node)
        .add_service(data::server(readers))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), async {
            stop.cancelled().await;
            // Streams never end by themselves; agents reconnect to the next operator.
        });
    let grace = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    let result = tokio::select! {
        result = served => result,
        () = grace => Ok(()),
    };
    accepting.abort();
    result
}

type Connection = Result<Held<TlsStream<TcpStream>>, std::io::Error>;

/// Accepts, and shakes hands in a task each, so that a slow peer holds up nobody. Of one address so many at a time.
async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    accepted: mpsc::Sender<Connection>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let addresses = Addresses::default();
    while let Some(connection) = stop.run_until_cancelled(listener.accept()).await {
        let (stream, peer) = match connection {
            Ok(connection) => connection,
            Err(error) => {
                // Out of descriptors, most likely: accepting again at once would spin.
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = addresses.take(peer.ip()) else {
            // Not louder: whoever comes so often is not to fill the log. The metric tells.
            metrics.refuse(Refusal::TooManyConnections);
            tracing::debug!(%peer, "one connection more than an address may hold");
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (tls, accepted) = (tls.clone(), accepted.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                // The server is gone only when the process ends.
                Ok(Ok(stream)) => drop(accepted.send(Ok(Held::new(stream, place))).await),
                Ok(Err(error)) => tracing::debug!(%error, %peer, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_api::v1::{NodeManifest, Segment};

    fn request(table: &str) -> GrantRequest {
        GrantRequest {
            session_uid: "u".to_owned(),
            boot: "0".repeat(32),
            object: Some(Object::Segment(Segment { table: table.to_owned(), sequence: 3 })),
            length: 10,
            sha256: vec![0; 32],
        }
    }

    #[test]
    fn keys_are_composed_for_the_tokens_node_only() {
        let (key, _) = object("node-1", &request("processes")).unwrap();
        assert_eq!(key.relative(), format!("processes/node-1_{}_000003.parquet", "0".repeat(32)));
        let manifest = GrantRequest { object: Some(Object::NodeManifest(NodeManifest {})), ..request("") };
        assert_eq!(
            object("node-1", &manifest).unwrap().0.relative(),
            format!("_tracelake/node-1_{}.json", "0".repeat(32))
        );
    }

    #[test]
    fn what_cannot_be_an_object_is_refused() {
        let good = request("processes");
        for bad in [
            GrantRequest { boot: "../../x".to_owned(), ..good.clone() },
            GrantRequest { sha256: vec![0; 31], ..good.clone() },
            GrantRequest { length: 0, ..good.clone() },
            GrantRequest { length: OBJECT_MAX + 1, ..good.clone() },
            GrantRequest { object: None, ..good.clone() },
            request("../other"),
            request("_tracelake"),
        ] {
            assert!(object("node-1", &bad).is_none(), "{bad:?}");
        }
    }
}
