// SPDX-License-Identifier: Apache-2.0

//! The operator at the size of a large cluster: its real process, a real API server, the agents' real connections; nodes and
//! pods are objects without machines, and no agent touches a kernel.
//!
//! In: `KUBECONFIG` of an API server with nothing but etcd behind it, the operator's binary, an S3 store. Out: one
//! line of JSON ([`Outcome`]); `cargo xtask bench --scale` starts all that and makes `docs/scale.md` of it.
//!
//! | module | is |
//! | --- | --- |
//! | [`world`] | nodes, pods, tokens, store and sessions in the API server |
//! | [`fleet`] | the agents: `node_agent::operator` with a decision maker that records nothing |
//! | [`replica`] | processes of the operator, what they cost, and what they ask of the API server |

mod fleet;
mod replica;
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Serialize;

use fleet::Fleet;
use replica::{Cost, Replica};
use world::World;

/// Measures the operator at scale; started by `cargo xtask bench --scale`.
#[derive(Parser, Clone, Debug)]
struct Args {
    /// The operator's binary.
    #[arg(long)]
    operator: PathBuf,
    /// An S3 store that the operator reaches, `http://...`.
    #[arg(long)]
    store: String,
    /// Its keys, as ID:SECRET.
    #[arg(long)]
    store_keys: String,
    #[arg(long, default_value_t = 5_000)]
    nodes: usize,
    #[arg(long, default_value_t = 20_000)]
    pods: usize,
    #[arg(long, default_value_t = 200)]
    sessions: usize,
    /// Seconds in which nothing new happens.
    #[arg(long, default_value_t = 300)]
    idle: u64,
    /// Seconds in which every agent has something to report.
    #[arg(long, default_value_t = 60)]
    busy: u64,
}

/// Everything that was measured; times in seconds.
#[derive(Debug, Serialize)]
struct Outcome {
    nodes: usize,
    pods: usize,
    sessions: usize,
    /// Of these, sessions of every node.
    wide_sessions: usize,
    /// From the first connection until every agent had its stream.
    connected: f64,
    /// From `apply` to the plan on the last node: sessions of a part of the nodes, and of all.
    narrow: Vec<f64>,
    wide: Vec<f64>,
    /// While sessions were applied.
    applying: Cost,
    idle: Cost,
    busy: Cost,
    /// Writes of a session's status in a minute of the busy time.
    status_writes_per_session_minute: f64,
    /// After the leader was killed, and after it was asked to stop: until another leads, and until every agent has its plan.
    killed: Takeover,
    stopped: Takeover,
}

#[derive(Debug, Serialize)]
struct Takeover {
    leads: f64,
    streams: f64,
    plans: f64,
    /// Sessions whose window moved, or that left the phase Running.
    disturbed: usize,
}

/// For anything to happen that takes more than a moment.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two sessions that are applied.
const SPACING: Duration = Duration::from_millis(250);
/// Without a change of any status, a session has settled.
const SETTLED: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    rustls::crypto::ring::default_provider().install_default().ok().context("another TLS provider")?;
    raise_file_limit()?;
    tokio::runtime::Runtime::new()?.block_on(run(Args::parse()))
}

async fn run(args: Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let world = World::make(&args, folder.path()).await?;
    let mut first = Replica::start(&args, &world, "operator-0", folder.path())?;
    first.leads(PATIENCE).await?;
    world.publish_ca(folder.path()).await?;
    world.await_store(PATIENCE).await?;
    eprintln!("the operator leads, its store is ready");

    let began = Instant::now();
    let fleet = Arc::new(Fleet::start(&world, folder.path())?);
    fleet.all_connected(PATIENCE).await?;
    let connected = began.elapsed().as_secs_f64();
    eprintln!("{} agents are connected after {connected:.1} s", args.nodes);
    let mut second = Replica::start(&args, &world, "operator-1", folder.path())?;

    let before = Cost::begin(&world, &first).await?;
    let (mut narrow, mut wide) = (Vec::new(), Vec::new());
    for session in world.sessions() {
        let applied = Instant::now();
        let uid = world.apply(&session).await?;
        let took = fleet.has_plan(&uid, &session.nodes, applied, PATIENCE).await?;
        if session.wide { &mut wide } else { &mut narrow }.push(took.as_secs_f64());
        tokio::time::sleep(SPACING).await;
    }
    let applying = before.end(&world, &first).await?;
    eprintln!("{} sessions are on their nodes", narrow.len() + wide.len());

    let started = world.settle(SETTLED, PATIENCE).await?;
    ensure!(started.len() == args.sessions, "{} sessions run", started.len());
    let before = Cost::begin(&world, &first).await?;
    tokio::time::sleep(Duration::from_secs(args.idle)).await;
    let idle = before.end(&world, &first).await?;
    eprintln!("idle: {idle:?}");

    let before = Cost::begin(&world, &first).await?;
    fleet.busy(Duration::from_secs(args.busy)).await;
    let busy = before.end(&world, &first).await?;
    let minutes = busy.seconds / 60.0;
    let writes = busy.requests.iter().filter(|(what, _)| what.contains("tracesessions/status"));
    let writes: u64 = writes.map(|(_, count)| count).sum();
    eprintln!("busy: {busy:?}");

    let killed = takeover(&world, &fleet, &started, &mut first, &second, true).await?;
    eprintln!("killed: {killed:?}");
    let mut first = Replica::start(&args, &world, "operator-2", folder.path())?;
    let stopped = takeover(&world, &fleet, &started, &mut second, &first, false).await?;
    eprintln!("stopped: {stopped:?}");
    first.kill()?;

    let outcome = Outcome {
        nodes: args.nodes,
        pods: args.pods,
        sessions: args.sessions,
        wide_sessions: wide.len(),
        connected,
        narrow,
        wide,
        applying,
        idle,
        busy,
        status_writes_per_session_minute: writes as f64 / minutes / args.sessions as f64,
        killed,
        stopped,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// Ends the replica that leads, and waits until the next one does all that it did.
async fn takeover(
    world: &World,
    fleet: &Fleet,
    started: &std::collections::BTreeMap<String, String>,
    old: &mut Replica,
    next: &Replica,
    kill: bool,
) -> Result<Takeover> {
    next.waits(PATIENCE).await?;
    fleet.forget_plans();
    let began = Instant::now();
    if kill {
        old.kill()?
    } else {
        old.stop()?
    }
    next.leads(PATIENCE).await?;
    let leads = began.elapsed().as_secs_f64();
    fleet.all_connected(PATIENCE).await?;
    let streams = began.elapsed().as_secs_f64();
    fleet.all_planned(PATIENCE).await?;
    let plans = began.elapsed().as_secs_f64();
    let now = world.settle(SETTLED, PATIENCE).await?;
    let disturbed = started.iter().filter(|(name, start)| now.get(*name) != Some(start)).count();
    Ok(Takeover { leads, streams, plans, disturbed })
}

/// A connection of each agent is a file here and another in the operator, which inherits the limit.
fn raise_file_limit() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid pointer to a struct that lives as long as the call.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    ensure!(read == 0, "getrlimit: {}", std::io::Error::last_os_error());
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(set == 0, "setrlimit: {}", std::io::Error::last_os_error());
    Ok(())
}
