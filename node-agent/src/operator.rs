// SPDX-License-Identifier: Apache-2.0
//! The agent's side of its conversation with the operator: the stream, and upload grants.
//!
//! In: plans from the operator, handed to the agent in the order they came; reports from the agent, sent when they
//! changed. Out: the agent's hello and reports; [`GrantSource`] for the uploads.
//!
//! Lost: nothing. Plans and reports are whole state; what was under way when a stream ended is said again on the next.
//! Collection never depends on the stream: it may be down for hours.
//!
//! The token file is read at every connect and every grant, because the kubelet replaces it; the CA file is read at
//! every connect and watched meanwhile, so that a replaced CA makes a new stream and nothing else. All pauses
//! are random up to their bound: thousands of agents lose an operator at the same moment.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::BoxFuture;
use node_api::egress::Guard;
use node_api::plan::MESSAGE_MAX;
use node_api::v1::grant_request::Object;
use node_api::v1::node_client::NodeClient;
use node_api::v1::{self, AgentMessage, agent_message};
use rand::Rng;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::agent::{OperatorLink, ReceivedPlan};
use crate::kernel::clock::boot_ns;
use crate::pipeline::upload::{Grant, GrantError, GrantRequest, GrantSource, ObjectName};

/// Reports are at least this far apart.
const REPORT_SPACING: Duration = Duration::from_secs(2);
/// The first pause before a reconnect, and the longest: another replica of the operator leads within seconds.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A stream that lived this long was a good one: the next pause is short again.
const GOOD_LIFE: Duration = Duration::from_secs(30);
/// How often the CA file is looked at while a stream is up.
const CA_PERIOD: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For TCP alone, which asks again after 1 and 2 more seconds: the address may be that of an operator that is no more, and
/// another one is told meanwhile.
const TCP_TIMEOUT: Duration = Duration::from_secs(4);
const GRANT_TIMEOUT: Duration = Duration::from_secs(15);
/// A peer that does not answer a ping in this time is gone.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Where the operator is and how to know it.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://<service>.<namespace>.svc:<port>`
    pub endpoint: String,
    /// The name that the operator's certificate is for.
    pub server_name: String,
    /// The folder where the CA's ConfigMap is mounted. It may be empty until the operator has started once.
    pub ca_dir: PathBuf,
    /// The projected ServiceAccount token.
    pub token_file: PathBuf,
}

/// See the module.
pub struct Client {
    config: Arc<Config>,
    /// The connection that is up, shared by the stream and the grants.
    channel: watch::Sender<Option<Channel>>,
}

impl Client {
    /// A client that connects when it runs.
    ///
    /// # Errors
    /// When the endpoint is not an `https` URL.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(config.endpoint.clone())
            .with_context(|| format!("operator endpoint {:?} is not a URL", config.endpoint))?;
        anyhow::ensure!(
            endpoint.uri().scheme_str() == Some("https"),
            "operator endpoint {:?} must begin with https://",
            config.endpoint
        );
        Ok(Self { config: Arc::new(config), channel: watch::Sender::new(None) })
    }

    /// Where upload grants come from; works while [`run`](Self::run) does.
    pub fn grants(&self) -> Arc<dyn GrantSource> {
        Arc::new(Grants { config: self.config.clone(), channel: self.channel.subscribe() })
    }

    /// Keeps a stream up until stopped, or until the agent takes no more plans.
    pub async fn run(self, mut link: OperatorLink, stop: CancellationToken) {
        let mut bound = PAUSE_MIN;
        while !stop.is_cancelled() && !link.plans.is_closed() {
            let began = Instant::now();
            let ended = stop.run_until_cancelled(self.stream(&mut link)).await;
            self.channel.send_replace(None);
            link.connected.send_replace(false);
            let Some(ended) = ended else { break };
            if began.elapsed() >= GOOD_LIFE {
                bound = PAUSE_MIN;
            }
            let pause = bound.mul_f64(rand::rng().random_range(0.2..1.0));
            match ended {
                Ok(reason) => tracing::info!(reason, "stream to the operator ended, will reconnect"),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(
                        error,
                        pause_ms = pause.as_millis() as u64,
                        "no stream to the operator, will retry"
                    );
                    bound = (bound * 2).min(PAUSE_MAX);
                }
            }
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    /// One stream, from connect to end. The value says why it ended in order.
    async fn stream(&self, link: &mut OperatorLink) -> anyhow::Result<&'static str> {
        let ca = read_ca(&self.config.ca_dir).await?;
        let channel = self.connect(&ca).await?;
        let (outgoing, messages) = mpsc::channel(4);
        let hello = link.hello.borrow_and_update().clone();
        outgoing.send(message(agent_message::Kind::Hello(hello))).await.context("stream closed")?;
        let mut request = Request::new(ReceiverStream::new(messages));
        attach_token(&mut request, &self.config.token_file).await?;
        let mut client = client(channel.clone());
        let response = tokio::time::timeout(CONNECT_TIMEOUT, client.connect(request)).await;
        let mut plans = response.context("the operator did not answer")?.map_err(refusal)?.into_inner();
        self.channel.send_replace(Some(channel));
        link.connected.send_replace(true);
        tracing::info!(endpoint = self.config.endpoint, "stream to the operator is up");

        // The operator may have restarted: it is told everything at once.
        link.reports.mark_changed();
        let mut ca_ticks = tokio::time::interval(CA_PERIOD);
        let mut next_report = tokio::time::Instant::now();
        loop {
            let spaced_report = async {
                tokio::time::sleep_until(next_report).await;
                link.reports.changed().await
            };
            tokio::select! {
                plan = plans.message() => match plan {
                    Ok(Some(plan)) => {
                        let received = ReceivedPlan { plan, received_ns: boot_ns() };
                        if link.plans.send(received).await.is_err() {
                            return Ok("the agent is stopping");
                        }
                    }
                    Ok(None) => return Ok("the operator closed it"),
                    Err(status) if status.code() == Code::Unauthenticated => return Ok("the token was replaced"),
                    Err(status) => return Err(refusal(status)),
                },
                changed = spaced_report => {
                    if changed.is_err() {
                        return Ok("the agent is stopping");
                    }
                    let report = link.reports.borrow_and_update().clone();
                    if outgoing.send(message(agent_message::Kind::Report(report))).await.is_err() {
                        return Ok("the operator closed it");
                    }
                    next_report = tokio::time::Instant::now() + REPORT_SPACING;
                }
                _ = ca_ticks.tick() => {
                    // A file that is gone or half written says nothing yet.
                    if read_ca(&self.config.ca_dir).await.is_ok_and(|now| now != ca) {
                        return Ok("the operator's CA changed");
                    }
                }
            }
        }
    }

    async fn connect(&self, ca: &[u8]) -> anyhow::Result<Channel> {
        let tls = node_api::tls::client(ca, &self.config.server_name)?;
        let endpoint = Endpoint::from_shared(self.config.endpoint.clone())?
            .tls_config(tls)?
            .connect_timeout(TCP_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        endpoint.connect().await.with_context(|| format!("connect to {}", self.config.endpoint))
    }
}

fn client(channel: Channel) -> NodeClient<Channel> {
    NodeClient::new(channel).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
}

fn message(kind: agent_message::Kind) -> AgentMessage {
    AgentMessage { kind: Some(kind) }
}

/// What the operator answered, without the metadata that a status prints.
fn refusal(status: Status) -> anyhow::Error {
    anyhow::anyhow!("the operator answered {:?}: {}", status.code(), status.message())
}

/// All certificates of the mounted ConfigMap.
async fn read_ca(dir: &Path) -> anyhow::Result<Vec<u8>> {
    let file = dir.join(node_api::CA_KEY);
    tokio::fs::read(&file).await.with_context(|| {
        format!(
            "read {}; the operator writes its ConfigMap when it starts for the first time",
            file.display()
        )
    })
}

async fn attach_token<T>(request: &mut Request<T>, file: &Path) -> anyhow::Result<()> {
    let token =
        tokio::fs::read_to_string(file).await.with_context(|| format!("read token {}", file.display()))?;
    node_api::token::attach(request.metadata_mut(), &token)
        .with_context(|| format!("token {}", file.display()))
}

struct Grants {
    config: Arc<Config>,
    channel: watch::Receiver<Option<Channel>>,
}

impl Grants {
    async fn ask(&self, wanted: &GrantRequest) -> Result<Grant, GrantError> {
        let unavailable = |why: String| GrantError::Unavailable(why);
        let channel = self.channel.borrow().clone();
        let channel = channel.ok_or_else(|| unavailable("there is no stream to it now".to_owned()))?;
        let object = match &wanted.object {
            ObjectName::Segment { table, sequence } => {
                Object::Segment(v1::Segment { table: table.clone(), sequence: *sequence })
            }
            ObjectName::NodeManifest => Object::NodeManifest(v1::NodeManifest {}),
        };
        let mut request = Request::new(v1::GrantRequest {
            session_uid: wanted.session.to_string(),
            boot: wanted.boot.to_string(),
            object: Some(object),
            length: wanted.length,
            sha256: wanted.sha256.to_vec(),
        });
        request.set_timeout(GRANT_TIMEOUT);
        attach_token(&mut request, &self.config.token_file)
            .await
            .map_err(|error| unavailable(format!("{error:#}")))?;
        let mut client = client(channel);
        let answer = tokio::time::timeout(GRANT_TIMEOUT, client.grant(request)).await;
        let answer = answer.map_err(|_| unavailable("it did not answer in time".to_owned()))?;
        let given = answer.map_err(|status| {
            let why = format!("{:?}: {}", status.code(), status.message());
            match status.code() {
                Code::PermissionDenied | Code::FailedPrecondition | Code::InvalidArgument => {
                    GrantError::Refused(why)
                }
                _ => GrantError::Unavailable(why),
            }
        })?;
        let v1::GrantResponse { put_url, put_headers, head_url, ca_bundle, key, guarded, refused_networks } =
            given.into_inner();
        // One that cannot be read is not left out: it may be where the store is.
        let refused: Result<_, String> = refused_networks.iter().map(|text| text.parse()).collect();
        let guard = Guard { refused: refused.map_err(unavailable)? };
        Ok(Grant { put_url, put_headers, head_url, ca_bundle, key, guard: guarded.then_some(guard) })
    }
}

impl GrantSource for Grants {
    fn grant<'a>(&'a self, request: &'a GrantRequest) -> BoxFuture<'a, Result<Grant, GrantError>> {
        Box::pin(self.ask(request))
    }
}
