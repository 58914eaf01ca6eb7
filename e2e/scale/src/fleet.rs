// SPDX-License-Identifier: Apache-2.0

//! The agents: their real connections to the operator, and in place of the kernel a decision maker that says yes to every
//! plan.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use node_agent::agent::{OperatorLink, ReceivedPlan};
use node_agent::operator::{Client, Config};
use node_api::v1::{self, Activity, Stage};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::replica::GRPC;
use crate::world::{COLLECTOR, SERVICE, SYSTEM, World};

const POLL: Duration = Duration::from_millis(50);
/// Between two reports of an agent that has something to say: what the real one keeps as well.
const REPORTS: Duration = Duration::from_secs(2);

/// All agents.
pub(crate) struct Fleet {
    agents: Vec<Arc<Agent>>,
    /// When a session's plan came to which node.
    arrivals: Arc<Arrivals>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Arrivals {
    seen: Mutex<HashMap<String, BTreeMap<usize, Instant>>>,
    changed: Notify,
}

struct Agent {
    connected: watch::Receiver<bool>,
    /// Sessions of the newest plan; none until one came since [`Fleet::forget_plans`].
    planned: AtomicBool,
    sessions: Mutex<BTreeMap<String, (String, u32)>>,
    reports: watch::Sender<v1::Report>,
    events: AtomicU64,
}

impl Fleet {
    pub(crate) fn start(world: &World, folder: &Path) -> Result<Self> {
        let (arrivals, stop) = (Arc::new(Arrivals::default()), CancellationToken::new());
        let mut agents = Vec::new();
        for (index, node) in world.nodes().enumerate() {
            let client = Client::new(Config {
                endpoint: format!("https://{GRPC}"),
                server_name: format!("{SERVICE}.{SYSTEM}.svc"),
                ca_dir: folder.to_owned(),
                token_file: world.token_file(folder, index),
            })?;
            let (plans, received) = mpsc::channel(4);
            let (reports, to_send) = watch::channel(v1::Report::default());
            let hello = v1::Hello {
                node,
                boot: format!("{index:032x}"),
                incarnation: format!("{:032x}", index + 1),
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                kernel: "6.12.0".to_owned(),
                arch: "x86_64".to_owned(),
                capabilities: vec![v1::Capability {
                    collector: COLLECTOR.to_owned(),
                    supported: true,
                    reason: String::new(),
                }],
                known_plans: Vec::new(),
            };
            let (hello_sender, hello) = watch::channel(hello);
            let (connected, is_connected) = watch::channel(false);
            let link = OperatorLink { plans, reports: to_send, hello, connected };
            let agent = Arc::new(Agent {
                connected: is_connected,
                planned: AtomicBool::new(false),
                sessions: Mutex::default(),
                reports,
                events: AtomicU64::new(0),
            });
            tokio::spawn(client.run(link, stop.clone()));
            tokio::spawn(decide(agent.clone(), index, received, hello_sender, arrivals.clone()));
            agents.push(agent);
        }
        Ok(Self { agents, arrivals, stop })
    }

    pub(crate) async fn all_connected(&self, patience: Duration) -> Result<()> {
        self.all("are connected", patience, |agent| *agent.connected.borrow()).await
    }

    /// From here on [`all_planned`](Self::all_planned) waits for plans that come from now on.
    pub(crate) fn forget_plans(&self) {
        self.agents.iter().for_each(|agent| agent.planned.store(false, Ordering::Relaxed));
    }

    pub(crate) async fn all_planned(&self, patience: Duration) -> Result<()> {
        self.all("have a plan", patience, |agent| agent.planned.load(Ordering::Relaxed)).await
    }

    async fn all(&self, what: &str, patience: Duration, is: impl Fn(&Agent) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let count = self.agents.iter().filter(|agent| is(agent)).count();
            if count == self.agents.len() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{count} of {} agents {what}", self.agents.len());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until every one of these nodes was told to record this session; returns when the last one was.
    pub(crate) async fn has_plan(
        &self,
        uid: &str,
        nodes: &[usize],
        since: Instant,
        patience: Duration,
    ) -> Result<Duration> {
        let wait = async {
            loop {
                let changed = self.arrivals.changed.notified();
                {
                    let seen = self.arrivals.seen.lock().expect("no panic while held");
                    let last = seen.get(uid).and_then(|arrived| {
                        nodes.iter().map(|node| arrived.get(node).copied()).collect::<Option<Vec<_>>>()
                    });
                    if let Some(last) = last.and_then(|times| times.into_iter().max()) {
                        return last.saturating_duration_since(since);
                    }
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, wait).await.with_context(|| {
            let seen = self.arrivals.seen.lock().expect("no panic while held");
            format!("{} of {} nodes have session {uid}", seen.get(uid).map_or(0, BTreeMap::len), nodes.len())
        })
    }

    /// For this long every agent has recorded something whenever it may report.
    pub(crate) async fn busy(&self, length: Duration) {
        let until = Instant::now() + length;
        while Instant::now() < until {
            let began = Instant::now();
            for agent in &self.agents {
                agent.events.fetch_add(1_000, Ordering::Relaxed);
                agent.report();
            }
            tokio::time::sleep(REPORTS.saturating_sub(began.elapsed())).await;
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Agent {
    /// Every session records, and all its events are in files that wait for nothing.
    fn report(&self) {
        let events = self.events.load(Ordering::Relaxed);
        let totals = v1::Totals { emitted: events, exported: events, rows: events, ..v1::Totals::default() };
        let sessions = self.sessions.lock().expect("no panic while held");
        let sessions = sessions.iter().map(|(uid, (hash, targets))| v1::SessionReport {
            uid: uid.clone(),
            plan_hash: hash.clone(),
            stage: Stage::Running.into(),
            collectors: vec![v1::CollectorReport {
                name: COLLECTOR.to_owned(),
                running: true,
                ..v1::CollectorReport::default()
            }],
            totals: Some(totals),
            targets: *targets,
            ..v1::SessionReport::default()
        });
        self.reports.send_replace(v1::Report { sessions: sessions.collect() });
    }
}

/// Takes plans and reports that they are carried out.
async fn decide(
    agent: Arc<Agent>,
    index: usize,
    mut plans: mpsc::Receiver<ReceivedPlan>,
    hello: watch::Sender<v1::Hello>,
    arrivals: Arc<Arrivals>,
) {
    let mut bodies: HashMap<String, u32> = HashMap::new();
    while let Some(ReceivedPlan { plan, .. }) = plans.recv().await {
        let came = Instant::now();
        let hashes: HashMap<&str, &str> =
            plan.sessions.iter().map(|session| (session.uid.as_str(), session.hash.as_str())).collect();
        for body in &plan.bodies {
            if let Some(hash) = hashes.get(body.uid.as_str()) {
                bodies.insert((*hash).to_owned(), body.targets.len() as u32);
            }
        }
        let wanted = plan.sessions.iter().filter(|session| session.activity() == Activity::Collect);
        let wanted: BTreeMap<String, (String, u32)> = wanted
            .filter_map(|one| Some((one.uid.clone(), (one.hash.clone(), *bodies.get(&one.hash)?))))
            .filter(|(_, (_, targets))| *targets > 0)
            .collect();
        let fresh: Vec<String> = {
            let mut sessions = agent.sessions.lock().expect("no panic while held");
            let fresh = wanted.keys().filter(|uid| !sessions.contains_key(*uid)).cloned().collect();
            *sessions = wanted;
            fresh
        };
        if !fresh.is_empty() {
            let mut seen = arrivals.seen.lock().expect("no panic while held");
            for uid in fresh {
                seen.entry(uid).or_default().entry(index).or_insert(came);
            }
            drop(seen);
            arrivals.changed.notify_waiters();
        }
        bodies.retain(|hash, _| plan.sessions.iter().any(|session| session.hash == *hash));
        hello.send_modify(|hello| hello.known_plans = bodies.keys().cloned().collect());
        agent.planned.store(true, Ordering::Relaxed);
        agent.report();
    }
}
