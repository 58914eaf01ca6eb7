// SPDX-License-Identifier: Apache-2.0
//! The operator's process: wiring, and an orderly end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector;
use kube::{Api, Client, ResourceExt};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracelake_operator::agents::AgentPods;
use tracelake_operator::args::{Args, Command};
use tracelake_operator::hub::Hub;
use tracelake_operator::metrics::Metrics;
use tracelake_operator::session::{
    self, Context,
    dereference::Owners,
    memory::{Clock, Memories},
    pods::PodWatches,
};
use tracelake_operator::store::{self, Stores};
use tracelake_operator::token::{ApiReview, Authenticator};
use tracelake_operator::{ca, grpc, hooks, http, schedule, telemetry};

/// After a signal, for agents to forget what they were told to; and then for streams to close, before the process ends.
const GRACE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

fn main() -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    let args = Args::parse();
    telemetry::start(&args.log)?;
    tokio::runtime::Runtime::new()?.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let (hub, due) = Hub::new();
    stop_on_signal(stop.clone(), hub.clone())?;
    let client = client().await?;
    match &args.command {
        None => {}
        Some(Command::Uninstall { timeout_seconds }) => {
            return hooks::uninstall(client, &args.namespace, Duration::from_secs(*timeout_seconds)).await;
        }
    }
    let cluster_id = cluster_id(&client).await?;
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);

    let serving = Arc::new(AtomicBool::new(false));
    let shown = http::Shown {
        registry: Arc::new(registry),
        metrics: metrics.clone(),
        hub: hub.clone(),
        serving: serving.clone(),
    };
    let listener = TcpListener::bind(args.http_address).await.context("bind --http-address")?;
    tokio::spawn(http::serve(listener, shown, stop.clone()));

    let settings = ca::Settings { names: args.dns_names(), propagation: args.ca_propagation() };
    let mut keeper = ca::Keeper::new(client.clone(), &args.namespace, args.agents(), settings);
    keeper.step(jiff::Timestamp::now()).await.context("prepare the operator's CA")?;
    let tls = node_api::tls::server(keeper.serving())?;
    tokio::spawn(keeper.run(stop.clone()));

    let stores = Arc::new(Stores::new(client.clone(), args.stores()));
    let pod = std::env::var("HOSTNAME").ok();
    let reporter = Reporter { controller: "tracelake-operator".to_owned(), instance: pod };
    let recorder = Recorder::new(client.clone(), reporter);
    let context = Arc::new(Context {
        client: client.clone(),
        hub: hub.clone(),
        stores: stores.clone(),
        pods: PodWatches::new(client.clone(), hub.clone()),
        nodes: session::Nodes::watch(client.clone(), stop.clone()),
        owners: Owners::new(client.clone()),
        recorder: recorder.clone(),
        metrics: metrics.clone(),
        cluster_id,
        memories: Memories::default(),
        endings: tokio::sync::Semaphore::new(session::ENDINGS),
        clock: Clock::default(),
        limits: args.limits(),
        places: session::limits::Places::default(),
        started: tokio::time::Instant::now(),
    });
    session::hold_started(&context).await.context("list TraceSessions")?;
    let (known, writer) = reflector::store();
    let listed = session::listed::Listed::default();
    let sessions = tokio::spawn(session::run(context, writer, listed.clone(), due, stop.clone()));
    let schedules =
        schedule::run(client.clone(), recorder.clone(), known, listed, args.limits(), stop.clone());
    let schedules = tokio::spawn(schedules);
    if let Some(store) = args.chart_store.clone() {
        tokio::spawn(store::chart::keep(client.clone(), recorder, store, stop.clone()));
    }
    let store_controllers = tokio::spawn(store::run(client.clone(), stores, stop.clone()));

    let pods = AgentPods::start(client.clone(), args.agents(), &args.agent_labels, stop.clone());
    let review = Arc::new(ApiReview::new(client));
    let authenticator =
        Authenticator::new(review, Arc::new(pods), args.agents(), &args.agent_service_account);
    let service = grpc::Service::new(hub, Arc::new(authenticator), metrics);
    let listener = TcpListener::bind(args.grpc_address).await.context("bind --grpc-address")?;
    serving.store(true, Ordering::Relaxed);
    tracing::info!(grpc = %args.grpc_address, http = %args.http_address, version = env!("CARGO_PKG_VERSION"), "operator started");
    let agents = grpc::serve(listener, tls, service, stop.clone());

    // None of these ends by itself; an operator with a part missing is replaced by the kubelet.
    let ended = tokio::select! {
        result = agents => result.context("serve agents").map(|()| "agents"),
        result = sessions => result.context("reconcile sessions").map(|()| "sessions"),
        result = schedules => result.context("reconcile schedules").map(|()| "schedules"),
        result = store_controllers => result.context("reconcile stores").map(|()| "stores"),
    };
    let asked = stop.is_cancelled();
    stop.cancel();
    match ended {
        Ok(_) if asked => {
            tracing::info!("operator stopped");
            Ok(())
        }
        Ok(part) => Err(anyhow::anyhow!("{part} ended by itself")),
        Err(error) => Err(error),
    }
}

async fn client() -> anyhow::Result<Client> {
    let mut config = kube::Config::infer().await.context("find the API server")?;
    config.connect_timeout = Some(Duration::from_secs(10));
    Client::try_from(config).context("make a client of the API server")
}

/// What tells this cluster from others in a dataset.
async fn cluster_id(client: &Client) -> anyhow::Result<String> {
    let namespace = Api::<Namespace>::all(client.clone()).get_metadata("kube-system").await;
    Ok(namespace.context("read namespace kube-system")?.uid().unwrap_or_default())
}

fn stop_on_signal(stop: CancellationToken, hub: Arc<Hub>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // At an uninstallation nobody comes after this operator who would tell the agents to clear their spools.
        let settled = async {
            while !hub.is_settled() {
                tokio::time::sleep(POLL).await;
            }
        };
        if tokio::time::timeout(GRACE, settled).await.is_err() {
            tracing::warn!("agents still hold sessions that are over");
        }
        stop.cancel();
        tokio::time::sleep(GRACE).await;
        tracing::warn!("not stopped in time, leaving");
        std::process::exit(1);
    });
    Ok(())
}
