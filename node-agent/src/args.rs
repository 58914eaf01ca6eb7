// SPDX-License-Identifier: Apache-2.0

//! Flags, and the order in which the agent's parts are built and stopped.
//!
//! Front to back: engine, segment thread, spool, uploads, operator's stream, HTTP. Stopped in the same
//! order: the engine closes its sessions, their last rows are sealed, then the process ends; what is
//! not uploaded is in the spool for the next one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use anyhow::Context;
use clap::Parser;
use node_agent::agent::{self, Agent};
use node_agent::engine::{Engine, EngineConfig};
use node_agent::metrics::Metrics;
use node_agent::operator;
use node_agent::pipeline::OUTPUTS;
use node_agent::pipeline::segment::{Segments, Sinks};
use node_agent::pipeline::spool::Spool;
use node_agent::pipeline::upload::{Destination, Uploader};
use node_agent::session::{self, Node};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info};

use crate::{http as server, telemetry};

/// Records chosen pods of this node with eBPF, as the operator says.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// Kubernetes name of this node.
    #[arg(long, env = "TRACELAKE_NODE_NAME")]
    node_name: String,
    /// Where the operator answers: `https://host:port`.
    #[arg(long, env = "TRACELAKE_OPERATOR_ADDRESS")]
    operator_address: String,
    /// The name that the operator's certificate carries; by default the address's host.
    #[arg(long, env = "TRACELAKE_OPERATOR_SERVER_NAME")]
    operator_server_name: Option<String>,
    /// The mounted ConfigMap with the operator's CA; read again for every connection.
    #[arg(long, env = "TRACELAKE_OPERATOR_CA_DIR", default_value = "/etc/tracelake/operator-ca")]
    operator_ca_dir: PathBuf,
    /// The projected ServiceAccount token; read again for every connection.
    #[arg(long, env = "TRACELAKE_TOKEN_FILE", default_value = "/var/run/secrets/tracelake/token")]
    token_file: PathBuf,
    /// Where sealed files wait for the store: the one writable host path.
    #[arg(long, env = "TRACELAKE_SPOOL_DIR", default_value = "/var/lib/tracelake/spool")]
    spool_dir: PathBuf,
    /// What the spool may hold, in bytes; above it rows are counted as lost.
    #[arg(long, env = "TRACELAKE_SPOOL_MAX_BYTES", default_value_t = 4 << 30)]
    spool_max_bytes: u64,
    /// Sessions that this node records at the same time; further ones wait. At most 64.
    #[arg(long, env = "TRACELAKE_MAX_SESSIONS", value_parser = clap::value_parser!(u32).range(1..=64))]
    max_sessions: Option<u32>,
    /// The node's cgroup v2 tree; by default where this process sees it mounted.
    #[arg(long, env = "TRACELAKE_CGROUP_ROOT")]
    cgroup_root: Option<PathBuf>,
    /// Where /metrics, /healthz and /readyz answer.
    #[arg(long, env = "TRACELAKE_HTTP_ADDRESS", default_value = "0.0.0.0:8080")]
    http_address: SocketAddr,
    /// Log lines as JSON or as text.
    #[arg(long, env = "TRACELAKE_LOG_FORMAT", default_value = "json")]
    log_format: telemetry::Format,
}

/// Parses flags and runs until SIGTERM.
pub(crate) fn parse_and_run() -> anyhow::Result<()> {
    let args = Args::parse();
    telemetry::start(args.log_format);
    // On every line, for those who read many agents' together.
    let span = tracing::info_span!("agent", node = args.node_name);
    let _entered = span.clone().entered();
    // Two workers: uploads and the stream wait for the network, the work is on threads of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let handle = runtime.handle().clone();
    let stop = CancellationToken::new();

    let (outputs, batches) = sync_channel(OUTPUTS);
    let config = EngineConfig {
        node: args.node_name.clone(),
        cgroup_root: args.cgroup_root,
        max_sessions: args.max_sessions,
        ..EngineConfig::default()
    };
    let engine = Engine::start(config, outputs).context("the engine cannot start")?;
    let sinks = Sinks::default();
    let segments = Segments::new(sinks.clone()).spawn(batches).context("cannot start the segment thread")?;
    let spool = Spool::open(&args.spool_dir, args.spool_max_bytes)?;
    let metrics = Arc::new(Metrics::default());
    let server_name = match args.operator_server_name {
        Some(name) => name,
        None => host(&args.operator_address)?,
    };
    let client = operator::Client::new(operator::Config {
        endpoint: args.operator_address,
        server_name,
        ca_dir: args.operator_ca_dir,
        token_file: args.token_file,
    })?;
    let uname = session::uname();
    let node = Node {
        name: args.node_name.as_str().into(),
        boot: Node::current_boot()?,
        incarnation: Node::new_incarnation(),
        kernel: uname.release,
        arch: uname.machine,
        spool,
        sinks,
        uploader: Uploader::new(Destination::Granted(client.grants()), metrics.clone()),
        runtime: handle.clone(),
        metrics: metrics.clone(),
    };
    let hello = agent::hello(&node, Engine::capabilities());
    for capability in &hello.capabilities {
        let (collector, supported, reason) =
            (&capability.collector, capability.supported, &capability.reason);
        info!(collector, supported, reason, "capability");
    }
    let (agent, link) = Agent::new(node, engine, hello)?;
    let connected = link.connected.subscribe();
    let (agent_stop, stream_stop) = (stop.clone(), stop.clone());
    let decider = std::thread::Builder::new().name("agent".into()).spawn({
        let span = span.clone();
        move || span.in_scope(|| agent.run(&agent_stop))
    })?;
    let stream = runtime.spawn(client.run(link, stream_stop).instrument(span));
    runtime.block_on(async {
        let server = server::serve(args.http_address, metrics, connected, stop.clone()).await?;
        let ended = tokio::select! {
            ended = telemetry::terminated() => ended.context("cannot wait for signals"),
            ended = server => ended.context("the HTTP server ended")?.context("the HTTP server failed"),
        };
        stop.cancel();
        ended
    })?;
    info!("stopping");
    // The agent drops the engine with itself, which ends the segment thread's input.
    decider.join().map_err(|_| anyhow::anyhow!("the agent's thread panicked"))?;
    segments.join().map_err(|_| anyhow::anyhow!("the segment thread panicked"))?;
    runtime.block_on(async { _ = tokio::time::timeout(std::time::Duration::from_secs(2), stream).await });
    Ok(())
}

fn host(address: &str) -> anyhow::Result<String> {
    let uri: ::http::Uri =
        address.parse().with_context(|| format!("operator address {address:?} is not a URL"))?;
    Ok(uri.host().with_context(|| format!("operator address {address:?} names no host"))?.to_owned())
}
