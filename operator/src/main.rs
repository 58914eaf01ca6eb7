// SPDX-License-Identifier: Apache-2.0
//! The operator's process: wiring, and an orderly end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use crds::TraceSession;
use futures::FutureExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef};
use kube::{Api, Client, ResourceExt};
use prometheus_client::registry::Registry;
use rand::Rng;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracelake_operator::agents::AgentPods;
use tracelake_operator::args::{Args, Command};
use tracelake_operator::hub::Hub;
use tracelake_operator::lease::Election;
use tracelake_operator::metrics::Metrics;
use tracelake_operator::session::{
    self, Context,
    dereference::Owners,
    memory::{Clock, Memories},
    pods::PodWatches,
    standby,
};
use tracelake_operator::store::{self, Stores};
use tracelake_operator::token::{ApiReview, Authenticator};
use tracelake_operator::{api_server, ca, check, data, grpc, hooks, http, schedule, telemetry};

/// After a signal, for agents to forget what they were told to; and then for streams to close, before the process ends.
const GRACE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);
/// For the API server to say what is there before a leader can begin.
const PREPARED: Duration = Duration::from_secs(60);
/// Between two questions until then, up to half of it more or less.
const PAUSE: Duration = Duration::from_secs(2);
/// For what is under way when a leader is asked to stop.
const SETTLED: Duration = Duration::from_millis(2_500);

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
    let mut config = api_server::config().await?;
    // A command asks once.
    config.default_retry = args.command.is_some();
    let client = api_server::client(config.clone()).context("make a client of the API server")?;
    match &args.command {
        None => {}
        Some(Command::Check { timeout_seconds }) => {
            return check::run(client, &args, Duration::from_secs(*timeout_seconds)).await;
        }
        Some(Command::Uninstall { timeout_seconds }) => {
            let timeout = Duration::from_secs(*timeout_seconds);
            return hooks::uninstall(client, &args.namespace, &args.leader_service(), timeout).await;
        }
    }
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let role = http::Role::default();
    let shown = http::Shown {
        registry: Arc::new(registry),
        metrics: metrics.clone(),
        hub: hub.clone(),
        role: role.clone(),
    };
    let listener = TcpListener::bind(args.http_address).await.context("bind --http-address")?;
    tokio::spawn(http::serve(listener, shown, stop.clone()));

    let replica = args.replica()?;
    let watched = role.clone();
    let looked = move |answered| watched.looked(answered);
    let mut election = Election::join(config, &args.namespace, &replica, looked)?;
    let mut watches = Watches::start(&client, &args, (hub, due), &stop);
    let turn = tokio::select! {
        turn = stop.run_until_cancelled(election.turn()) => turn,
        () = standby::follow(client.clone(), &watches.pods, &mut watches.due, || role.follows()) => None,
    };
    if turn.is_none() {
        election.release().await;
        return Ok(());
    }
    role.leads();
    tracing::info!("this replica leads");
    tokio::select! {
        ended = lead(&args, &replica, client, watches, metrics, role, stop) => {
            election.release().await;
            ended
        }
        // What is under way ends with the process, before the Lease can be another's; nothing is waited for.
        lost = election.lost() => {
            tracing::error!(%lost, "this replica leads no longer and ends");
            std::process::exit(1);
        }
    }
}

/// What every replica follows, so that the next leader need not list it first: on a large cluster that takes seconds.
struct Watches {
    hub: Arc<Hub>,
    /// Sessions that the hub wants looked at.
    due: UnboundedReceiver<ObjectRef<TraceSession>>,
    pods: PodWatches,
    nodes: session::Nodes,
    agents: AgentPods,
}

impl Watches {
    fn start(
        client: &Client,
        args: &Args,
        (hub, due): (Arc<Hub>, UnboundedReceiver<ObjectRef<TraceSession>>),
        stop: &CancellationToken,
    ) -> Self {
        Self {
            pods: PodWatches::new(client.clone(), hub.clone()),
            hub,
            due,
            nodes: session::Nodes::watch(client.clone(), stop.clone()),
            agents: AgentPods::start(client.clone(), args.agents(), &args.agent_labels, stop.clone()),
        }
    }
}

/// All that one replica alone does, until it is stopped.
async fn lead(
    args: &Args,
    replica: &str,
    client: Client,
    watches: Watches,
    metrics: Metrics,
    role: http::Role,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Watches { hub, due, pods, nodes, agents } = watches;
    let settings = ca::Settings { names: args.dns_names(), propagation: args.ca_propagation() };
    let mut keeper = ca::Keeper::new(client.clone(), &args.namespace, args.agents(), settings);
    // A leader that waits for an answer for ever would keep the others from leading.
    let prepared = stop.run_until_cancelled(answered(async || {
        let cluster_id = cluster_id(&client).await?;
        keeper.step(jiff::Timestamp::now()).await.context("prepare the operator's CA")?;
        Ok(cluster_id)
    }));
    let Some(prepared) = prepared.await else { return Ok(()) };
    let cluster_id = prepared?;
    let tls = node_api::tls::server(keeper.serving())?;

    let stores = Arc::new(Stores::new(client.clone(), args.stores()));
    let reporter =
        Reporter { controller: "tracelake-operator".to_owned(), instance: Some(replica.to_owned()) };
    let recorder = Recorder::new(client.clone(), reporter);
    let context = Arc::new(Context {
        client: client.clone(),
        hub: hub.clone(),
        stores: stores.clone(),
        pods,
        nodes,
        owners: Owners::new(client.clone()),
        recorder: recorder.clone(),
        metrics: metrics.clone(),
        cluster_id,
        memories: Memories::default(),
        store_places: session::reconcile::StorePlaces::default(),
        clock: Clock::default(),
        limits: args.limits(),
        places: session::limits::Places::default(),
        started: tokio::time::Instant::now(),
    });
    let held = stop.run_until_cancelled(answered(async || {
        session::hold_started(&context).await.context("list TraceSessions")
    }));
    let Some(held) = held.await else { return Ok(()) };
    held?;
    let (known, writer) = reflector::store();
    let listed = session::listed::Listed::default();
    let mut parts = JoinSet::<(&str, anyhow::Result<()>)>::new();
    parts.spawn(keeper.run(stop.clone()).map(|()| ("certificates", Ok(()))));
    let sessions = session::run(context, writer, listed.clone(), due, stop.clone());
    parts.spawn(sessions.map(|()| ("sessions", Ok(()))));
    let schedules =
        schedule::run(client.clone(), recorder.clone(), known, listed, args.limits(), stop.clone());
    parts.spawn(schedules.map(|()| ("schedules", Ok(()))));
    if let Some(store) = args.chart_store.clone() {
        tokio::spawn(store::chart::keep(client.clone(), recorder, store, stop.clone()));
    }
    let readers = Arc::new(data::Readers::new(client.clone(), stores.clone(), metrics.clone()));
    parts.spawn(store::run(client.clone(), stores, stop.clone()).map(|()| ("stores", Ok(()))));

    let review = Arc::new(ApiReview::new(client.clone(), node_api::TOKEN_AUDIENCE));
    let authenticator =
        Authenticator::new(review, Arc::new(agents), args.agents(), &args.agent_service_account);
    let service = grpc::Service::new(hub.clone(), Arc::new(authenticator), metrics);
    tracing::info!(grpc = %args.grpc_address, http = %args.http_address, version = env!("CARGO_PKG_VERSION"), "operator started");
    let (accepts, accepting) = oneshot::channel();
    let (address, stopped) = (args.grpc_address, stop.clone());
    let serving = async move {
        // Thousands of agents at once would take the CPUs from the passes whose plans they come for. Until then they are refused at
        // once: those that waited in the listener's queue, which is short, would try again later than those that were told.
        if stopped.run_until_cancelled(open(&hub)).await.is_none() {
            return Ok(());
        }
        let listener = TcpListener::bind(address).await.context("bind --grpc-address")?;
        let _ = accepts.send(());
        Ok(grpc::serve(listener, tls, service, readers, stopped).await?)
    };
    parts.spawn(serving.map(|ended| ("agents", ended)));
    let announcement = args.announcement(replica);
    let (told, announced, announcer) = (role.clone(), announcement.clone(), client.clone());
    tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        if accepting.await.is_err() {
            return;
        }
        match announced {
            Some(announcement) => announcement.keep(announcer, || told.serves()).await,
            None => told.serves(),
        }
    }));

    // None of these ends by itself; an operator with a part missing is replaced by the kubelet.
    let ended = parts.join_next().await.context("the operator has parts")?;
    let asked = stop.is_cancelled();
    stop.cancel();
    if let Some(announcement) = announcement {
        announcement.withdraw(client).await;
    }
    // The Lease is given back when nothing writes any more: what has not ended by then is dropped.
    let all = async { while parts.join_next().await.is_some() {} };
    if tokio::time::timeout(SETTLED, all).await.is_err() {
        tracing::warn!("some reconciles did not end in time, they are begun again by the next operator");
        parts.shutdown().await;
    }
    let (part, ended) = ended.context("a part panicked")?;
    ended.with_context(|| format!("serve {part}"))?;
    ensure!(asked, "{part} ended by itself");
    tracing::info!("operator stopped");
    Ok(())
}

/// Waits until every session that had begun was looked at.
async fn open(hub: &Hub) {
    while !hub.is_open() {
        tokio::time::sleep(POLL).await;
    }
}

/// What is answered, however often it has to be asked within [`PREPARED`]: a leader that gave up at the first refusal would be
/// started again, and ask for all of it again, while the API server has too much to do.
async fn answered<T>(mut ask: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let asking = async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "the API server cannot say what is there, will retry");
                }
            }
            tokio::time::sleep(PAUSE.mul_f64(rand::rng().random_range(0.5..1.5))).await;
        }
    };
    let within = tokio::time::timeout(PREPARED, asking).await;
    within.context("the API server does not answer as it should; the log says what it answered")
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
