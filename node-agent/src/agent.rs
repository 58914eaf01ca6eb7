// SPDX-License-Identifier: Apache-2.0

//! Takes whole-state plans, drives the recording, and says in whole-state reports what came of it.
//!
//! In: [`ReceivedPlan`]s of the operator's stream; what the spool holds from before. Out: a `Report`
//! whenever something changed, and sessions in the engine.
//! Loses: nothing; a session that is no longer listed is given up, which is what the plan says.
//!
//! One thread owns the engine and all sessions and takes every decision in turn, so nothing here is
//! locked. It wakes for each plan and five times a second. Uploads run elsewhere, on tokio.
//!
//! Invariants:
//! 1. A window ends on this node's own clock, whether or not the operator is there.
//! 2. Nothing is given up before a plan says so: an agent that starts without an operator goes on with
//!    what it finds on its disk.
//! 3. Whatever a plan says, what is not valid is reported and never reaches the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use dataset::ledger::Term;
use dataset::manifest::Totals;
use node_api::{reason, v1};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::budget::{Excess, Told};
use crate::engine::{CollectorState, EngineError, TargetSpec};
use crate::kernel::clock;
use crate::pipeline::spool::Spool;
use crate::plan::{self, Activity, MAX_WINDOW, StoredPlan, ValidPlan};
use crate::session::{Node, Recorder, Session};

/// How often windows, counters and uploads are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often a report is made: it sums up every segment, and the stream sends every few seconds.
const REPORT: Duration = Duration::from_secs(1);
/// How long the last rows of all sessions may take when the agent is told to end.
const INTERRUPT: Duration = Duration::from_secs(8);
/// How long after a plan could not be stored it is tried again.
const SAVE_AGAIN: Duration = Duration::from_secs(2);
/// A window's end that moves by less is the network's latency, not news.
const SLACK_NS: u64 = 1_000_000_000;

/// A plan and when it came: its remaining times count from there.
#[derive(Clone, Debug)]
pub struct ReceivedPlan {
    /// As sent. Bodies come once per stream, so no message may be skipped.
    pub plan: v1::Plan,
    /// Boot time in nanoseconds when it was received ([`clock::boot_ns`]).
    pub received_ns: u64,
}

/// The agent's ends of its conversation with the operator, held by `operator::Client::run`.
pub struct OperatorLink {
    /// Every plan that arrives, in order.
    pub plans: mpsc::Sender<ReceivedPlan>,
    /// The latest whole report; to be sent on change, a few seconds apart at least, and at once after a (re)connect.
    pub reports: watch::Receiver<v1::Report>,
    /// What to open the next stream with; `known_plans` is kept up to date.
    pub hello: watch::Receiver<v1::Hello>,
    /// Set while a stream is up (for `/readyz` and metrics).
    pub connected: watch::Sender<bool>,
}

/// One session and what the operator wants of it.
struct Managed {
    session: Session,
    body: Option<(v1::SessionPlan, ValidPlan)>,
    stored: Option<StoredPlan>,
    targets: Vec<TargetSpec>,
    /// Why it does not record though it should: a constant, then a sentence.
    trouble: Option<(&'static str, String)>,
    /// Whether its plan says more than this version understands.
    strange: bool,
    /// What came of its budget.
    told: Told,
    /// Whether its budget came when it recorded already: from an operator or agent that was upgraded.
    late_budget: bool,
    /// When `stored` could not be written to the disk, if it is not there.
    unsaved: Option<Instant>,
    /// Since when it is known: of those that wait for a place, who came first has the next.
    since: Instant,
}

/// The agent's one decider.
pub struct Agent<R> {
    node: Node,
    recorder: R,
    sessions: BTreeMap<String, Managed>,
    /// What is said of sessions of the plan that this agent cannot begin, as it does not take their plans.
    refused: Vec<v1::SessionReport>,
    reports: watch::Sender<v1::Report>,
    hello: watch::Sender<v1::Hello>,
    plans: mpsc::Receiver<ReceivedPlan>,
    connected: watch::Receiver<bool>,
    reported: Instant,
}

impl<R: Recorder> Agent<R> {
    /// Takes up what the spool holds. `hello` says who this agent is; its known plans are filled in here.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub fn new(node: Node, recorder: R, hello: v1::Hello) -> anyhow::Result<(Self, OperatorLink)> {
        let (plans_tx, plans) = mpsc::channel(16);
        let (reports, reports_rx) = watch::channel(v1::Report::default());
        let (hello, hello_rx) = watch::channel(hello);
        let (connected_tx, connected) = watch::channel(false);
        let mut agent = Self {
            node,
            recorder,
            sessions: BTreeMap::new(),
            refused: Vec::new(),
            reports,
            hello,
            plans,
            connected,
            reported: Instant::now(),
        };
        for uid in agent.node.spool.sessions()? {
            if let Err(error) = agent.take_up(&uid) {
                error!(session = uid, %error, "what the spool holds of a session cannot be read");
            }
        }
        agent.publish();
        let link =
            OperatorLink { plans: plans_tx, reports: reports_rx, hello: hello_rx, connected: connected_tx };
        Ok((agent, link))
    }

    fn take_up(&mut self, uid: &str) -> anyhow::Result<()> {
        let mut session = Session::resume(self.node.clone(), uid.into())?;
        let stored = StoredPlan::load(&self.node.spool.session_dir(uid)?);
        let body = stored.as_ref().and_then(|stored| {
            let body = stored.body()?;
            let valid = plan::validate(&body, &stored.hash).ok()?;
            (body.uid == uid).then_some((body, valid))
        });
        let targets = body.as_ref().map(|(_, valid)| valid.targets.clone()).unwrap_or_default();
        let strange = body.as_ref().is_some_and(|(body, valid)| is_strange(body, &valid.hash));
        let same_boot = stored.as_ref().is_some_and(|stored| stored.boot == self.node.boot.as_str());
        let told = Told::before(stored.as_ref().and_then(|stored| stored.excess.clone()));
        // What has ended for its budget is over whatever the operator says is left.
        let holds = same_boot || told.stopped();
        if holds
            && let Some(stored) = &stored
            && stored.activity == Activity::Drain
        {
            session.drain(&mut self.recorder)?;
        }
        info!(session = uid, plan = stored.is_some(), same_boot, "taken up from the spool");
        // After a reboot the window's end means nothing; the operator says how much is left.
        let stored = stored.filter(|_| holds);
        let managed = Managed { body, stored, targets, strange, told, ..Managed::new(session) };
        self.sessions.insert(uid.to_owned(), managed);
        Ok(())
    }

    /// Runs until told to stop; then seals what is open and leaves it in the spool.
    pub fn run(mut self, stop: &CancellationToken) {
        let runtime = self.node.runtime.clone();
        while !stop.is_cancelled() {
            let next = runtime.block_on(async {
                tokio::select! {
                    plan = self.plans.recv() => plan,
                    () = tokio::time::sleep(TICK) => None,
                    () = stop.cancelled() => None,
                }
            });
            if let Some(received) = next {
                self.apply(received);
            }
            self.tick();
        }
        self.interrupt();
    }

    fn interrupt(&mut self) {
        for managed in self.sessions.values_mut() {
            managed.session.interrupt(&mut self.recorder);
        }
        let until = Instant::now() + INTERRUPT;
        while self.sessions.values().any(|managed| !managed.session.is_idle()) {
            if Instant::now() >= until {
                error!("the last rows did not come in time; the next agent counts them as a gap");
                break;
            }
            for managed in self.sessions.values_mut() {
                managed.session.tick(&self.recorder);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        info!("everything is sealed, the next agent goes on");
    }

    /// Makes the plan so.
    pub fn apply(&mut self, received: ReceivedPlan) {
        let ReceivedPlan { plan, received_ns } = received;
        let mut bodies: BTreeMap<String, v1::SessionPlan> = BTreeMap::new();
        for body in plan.bodies {
            bodies.insert(node_api::plan::hash(&body), body);
        }
        // A body with fields that this version does not know hashes differently here: it is found by its session.
        let by_uid: BTreeMap<String, String> =
            bodies.iter().map(|(hash, body)| (body.uid.clone(), hash.clone())).collect();
        let listed: BTreeSet<&str> = plan.sessions.iter().map(|session| session.uid.as_str()).collect();
        let gone: Vec<String> =
            self.sessions.keys().filter(|uid| !listed.contains(uid.as_str())).cloned().collect();
        for uid in gone {
            self.give_up(&uid);
        }
        let mut refused = 0;
        let before = std::mem::take(&mut self.refused);
        for session in &plan.sessions {
            let found = bodies.get(&session.hash).or_else(|| bodies.get(by_uid.get(&session.uid)?));
            let strange = found.is_some_and(|body| is_strange(body, &session.hash));
            let Err(message) = self.apply_session(session, found, strange, received_ns) else { continue };
            let is_unknown = !self.sessions.contains_key(&session.uid);
            // A body comes once, and what it was refused for stays true.
            let known = before.iter().find(|report| report.uid == session.uid && found.is_none());
            if let (true, Some(known)) = (is_unknown, known) {
                self.refused.push(not_begun(session, known.message.clone()));
            } else if is_unknown && found.is_none() {
                debug!(session = session.uid, "its body comes with another message");
            } else {
                warn!(session = session.uid, message, "a session of the plan is refused");
                refused += 1;
                self.refused.extend(is_unknown.then(|| not_begun(session, message)));
            }
        }
        self.node.metrics.plan(refused);
        self.publish();
    }

    fn apply_session(
        &mut self,
        wanted: &v1::SessionRef,
        body: Option<&v1::SessionPlan>,
        strange: bool,
        received_ns: u64,
    ) -> Result<(), String> {
        let mut refused = None;
        let valid = match body {
            Some(body) if body.uid == wanted.uid => match plan::validate(body, &wanted.hash) {
                Ok(valid) => Some((body.clone(), valid)),
                // The session, if it is known, goes on as it was; its window's end and its activity are to be obeyed still.
                Err(error) => {
                    refused = Some(error.to_string());
                    None
                }
            },
            Some(body) => return Err(format!("its body is of session {:?}", body.uid)),
            None => None,
        };
        if !self.sessions.contains_key(&wanted.uid) {
            // Without a body its UID is not checked yet, and it would be part of a path.
            let Some((_, valid)) = &valid else {
                return Err(refused.unwrap_or_else(|| "its body did not come".to_owned()));
            };
            let session = Session::resume(self.node.clone(), valid.spec.uid.clone())
                .map_err(|error| error.to_string())?;
            self.sessions.insert(wanted.uid.clone(), Managed::new(session));
        }
        let managed = self.sessions.get_mut(&wanted.uid).ok_or("it is gone")?;
        if let Some((body, valid)) = valid {
            if managed.trouble.as_ref().is_some_and(|(why, _)| *why == reason::PLAN_REFUSED) {
                managed.trouble = None;
            }
            let recording = managed.body.as_ref().filter(|_| managed.session.is_recording());
            if recording.is_some_and(|(old, _)| {
                old.collectors != body.collectors || old.containers != body.containers
            }) {
                warn!(
                    session = wanted.uid,
                    "collectors of a running session do not change; only its targets were taken over"
                );
            }
            managed.late_budget |= recording.is_some_and(|(old, _)| old.budget != body.budget);
            managed.body = Some((body, valid));
            managed.strange = strange;
        }
        // A plan that was under way when the window ended comes late.
        let collect = wanted.activity == v1::Activity::Collect as i32
            && wanted.remaining_ms > 0
            && !managed.session.is_over()
            && !managed.told.stopped();
        let remaining = Duration::from_millis(wanted.remaining_ms).min(MAX_WINDOW);
        let end = received_ns.saturating_add(remaining.as_nanos() as u64);
        let activity = if collect { Activity::Collect } else { Activity::Drain };
        let (hash, boot) = (wanted.hash.as_str(), self.node.boot.as_str());
        let news = managed.stored.as_ref().is_none_or(|stored| {
            stored.hash != hash
                || stored.activity != activity
                || (collect && stored.window_end_ns.abs_diff(end) > SLACK_NS)
        });
        if news && let Some((body, valid)) = &managed.body {
            let ended = managed.stored.as_ref().filter(|stored| stored.activity == Activity::Drain);
            let ended = ended.filter(|stored| stored.boot == boot).map(|stored| stored.window_end_ns);
            let end = if collect { end } else { ended.unwrap_or(received_ns) };
            // Under the hash of its own: an old body must not be taken for the one that was refused, which would never be
            // sent again.
            managed.stored = Some(StoredPlan::new(&valid.hash, body, activity, boot, end));
            managed.session.set_window_end(end);
            managed.save(&self.node.spool);
        }
        managed.pursue(&mut self.recorder);
        match refused {
            None => Ok(()),
            Some(message) => {
                managed.trouble = Some((reason::PLAN_REFUSED, message.clone()));
                Err(message)
            }
        }
    }

    fn give_up(&mut self, uid: &str) {
        let Some(managed) = self.sessions.remove(uid) else { return };
        match managed.session.discard(&mut self.recorder) {
            Ok(0) => info!(session = uid, "the session is over and forgotten"),
            Ok(events) => {
                error!(session = uid, events, "the session is over; what was not uploaded is discarded")
            }
            Err(error) => error!(session = uid, %error, "a session's spool cannot be removed"),
        }
    }

    /// Takes every step that is due, and reports if something changed.
    pub fn tick(&mut self) {
        for (uid, excess) in self.recorder.govern() {
            if let Some(managed) = self.sessions.get_mut(&uid) {
                managed.exceed(&self.node.spool, excess);
            }
        }
        let missing = self.recorder.mend().err().map(|error| (reason::TARGETS_MISSING, error.to_string()));
        let mut sessions: Vec<&mut Managed> = self.sessions.values_mut().collect();
        sessions.sort_by_key(|managed| managed.since);
        for managed in sessions {
            managed.pursue(&mut self.recorder);
            managed.miss(missing.as_ref());
            managed.told.turn(Instant::now());
            if managed.unsaved.is_some_and(|tried| tried.elapsed() >= SAVE_AGAIN) {
                managed.save(&self.node.spool);
            }
            managed.session.tick(&self.recorder);
        }
        if self.reported.elapsed() >= REPORT {
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.reported = Instant::now();
        let recording = self.sessions.values().filter(|managed| managed.session.is_recording()).count();
        self.node.metrics.state(self.sessions.len(), recording, self.node.spool.used_bytes());
        self.node.metrics.unattributed(self.recorder.unattributed());
        self.node.metrics.connected(*self.connected.borrow());
        let known: Vec<String> = self
            .sessions
            .values()
            // One that lacks fields is wanted again: the version after this one may know them.
            .filter_map(|managed| Some(&managed.body.as_ref()?.0).zip(managed.stored.as_ref()))
            .filter(|(body, stored)| node_api::plan::matches(body, &stored.hash))
            .map(|(_, stored)| stored.hash.clone())
            .collect();
        self.hello.send_if_modified(|hello| {
            let changed = hello.known_plans != known;
            hello.known_plans = known;
            changed
        });
        let sessions = self.sessions.iter().map(|(uid, managed)| managed.report(uid));
        let report = v1::Report { sessions: sessions.chain(self.refused.iter().cloned()).collect() };
        let counted = report.sessions.iter().filter_map(|one| Some((one.uid.as_str(), one.totals.as_ref()?)));
        self.node.metrics.events(counted);
        self.reports.send_if_modified(|last| {
            let changed = *last != report;
            *last = report;
            changed
        });
    }
}

impl Managed {
    /// One of which nothing is known yet.
    fn new(session: Session) -> Self {
        Self {
            session,
            body: None,
            stored: None,
            targets: Vec::new(),
            trouble: None,
            strange: false,
            told: Told::default(),
            late_budget: false,
            unsaved: None,
            since: Instant::now(),
        }
    }

    /// Takes note of what came of its budget; a session that is to stop records nothing more, whatever the disk says. That
    /// it was sampled is kept for the next process; how far is not worth a write each time, it finds that out by itself.
    fn exceed(&mut self, spool: &Spool, excess: Excess) {
        warn!(session = %self.session.uid, budget = excess.budget, message = excess.message, "over its budget");
        let (stopped, first) = (excess.stopped, self.told.said().is_none());
        self.told.hear(excess, Instant::now());
        if stopped {
            let now = clock::boot_ns();
            self.session.set_window_end(now);
            if let Some(stored) = &mut self.stored {
                (stored.activity, stored.window_end_ns) = (Activity::Drain, now);
            }
        }
        if stopped || first {
            self.save(spool);
        }
    }

    /// Makes the plan in force durable. What the disk refuses is tried again.
    fn save(&mut self, spool: &Spool) {
        let Some(stored) = &mut self.stored else { return };
        stored.excess = self.told.said().cloned();
        let dir = spool.session_dir(&self.session.uid).map_err(anyhow::Error::from);
        let saved = dir.and_then(|dir| Ok(stored.save(&dir)?));
        self.unsaved = saved.err().map(|error| {
            error!(session = %self.session.uid, %error, "the plan cannot be stored, will retry; a restart would need the operator");
            Instant::now()
        });
    }

    /// Takes note of cgroups that are not recorded because the kernel's maps are full, as long as nothing worse is known.
    fn miss(&mut self, missing: Option<&(&'static str, String)>) {
        let known = self.trouble.as_ref().is_some_and(|(reason, _)| *reason == reason::TARGETS_MISSING);
        match missing {
            None if known => self.trouble = None,
            Some((_, error)) if self.trouble.is_none() && self.session.is_recording() => {
                warn!(session = %self.session.uid, error, "some cgroups are not recorded, will retry");
                self.trouble = missing.cloned();
            }
            _ => {}
        }
    }

    /// Brings the session to what its plan says now.
    fn pursue(&mut self, recorder: &mut dyn Recorder) {
        let (Some(stored), Some((_, valid))) = (&self.stored, &self.body) else { return };
        if stored.activity == Activity::Drain || clock::boot_ns() >= stored.window_end_ns {
            // The plan that ends a session is often the first with the names of its last containers.
            if self.targets != valid.targets {
                self.session.learn(recorder, &valid.targets);
                self.targets = valid.targets.clone();
            }
            if let Err(error) = self.session.drain(recorder) {
                self.trouble = Some(("SpoolFailed", error.to_string()));
            }
            return;
        }
        if !self.session.is_recording() {
            if !self.session.is_idle() || valid.spec.collectors.is_empty() {
                return;
            }
            if let Err(error) = self.session.start(recorder, valid.spec.clone(), Some(stored.window_end_ns)) {
                let reason = match error.downcast_ref() {
                    Some(EngineError::NodeCapacity(_) | EngineError::Duplicate(_)) => reason::NODE_CAPACITY,
                    _ => "StartFailed",
                };
                let trouble = Some((reason, error.to_string()));
                if self.trouble != trouble {
                    warn!(session = %self.session.uid, reason, %error, "the session cannot start, will retry");
                }
                self.trouble = trouble;
                return;
            }
            (self.trouble, self.targets, self.late_budget) = (None, Vec::new(), false);
        }
        if self.targets != valid.targets {
            match self.session.set_targets(recorder, &valid.targets) {
                Ok(()) => {
                    (self.trouble, self.targets) = (None, valid.targets.clone());
                }
                Err(error) => {
                    warn!(session = %self.session.uid, %error, "the targets cannot be set, will retry");
                    self.trouble = Some((reason::TARGETS_FAILED, error.to_string()));
                }
            }
        }
    }

    fn report(&self, uid: &str) -> v1::SessionReport {
        let session = &self.session;
        let mut collectors: Vec<v1::CollectorReport> = session
            .outcomes()
            .iter()
            .map(|outcome| {
                let (reason, message) = match &outcome.state {
                    CollectorState::Running => (String::new(), String::new()),
                    CollectorState::Unsupported { reason, message } => {
                        ((*reason).to_owned(), message.clone())
                    }
                };
                let running = outcome.state == CollectorState::Running;
                v1::CollectorReport { name: outcome.collector.clone(), running, reason, message }
            })
            .collect();
        collectors.extend(self.body.iter().flat_map(|(_, valid)| &valid.refused).map(|refused| {
            v1::CollectorReport {
                name: refused.collector.clone(),
                running: false,
                reason: reason::PLAN_REFUSED.to_owned(),
                message: refused.message.clone(),
            }
        }));
        let runs = collectors.iter().any(|collector| collector.running);
        let draining = self.stored.as_ref().is_some_and(|stored| stored.activity == Activity::Drain)
            || !session.is_recording();
        let stage = if session.is_done() {
            v1::Stage::Done
        } else if session.is_recording() {
            if runs { v1::Stage::Running } else { v1::Stage::Failed }
        } else if draining && self.is_over() {
            v1::Stage::Draining
        } else if self.trouble.as_ref().is_some_and(|(reason, _)| *reason == "StartFailed")
            || self.body.as_ref().is_some_and(|(_, valid)| valid.spec.collectors.is_empty())
        {
            v1::Stage::Failed
        } else {
            v1::Stage::Preparing
        };
        let (reason, message) = self.reason(stage, &collectors);
        v1::SessionReport {
            uid: uid.to_owned(),
            plan_hash: self.body.as_ref().map(|(_, valid)| valid.hash.clone()).unwrap_or_default(),
            stage: stage as i32,
            reason,
            message,
            collectors,
            totals: Some(totals(&session.totals(), session.bytes_pending())),
            manifests: session.manifests(),
            targets: u32::try_from(self.targets.len()).unwrap_or(u32::MAX),
            excess: self.told.said().map(|excess| v1::Excess {
                budget: excess.budget.clone(),
                stopped: excess.stopped,
                message: excess.message.clone(),
            }),
        }
    }

    fn is_over(&self) -> bool {
        self.stored.as_ref().is_none_or(|stored| {
            stored.activity == Activity::Drain || clock::boot_ns() >= stored.window_end_ns
        })
    }

    /// The most important trouble: what keeps it from recording, then what keeps it from uploading. Once it is done: why
    /// nothing was recorded.
    fn reason(&self, stage: v1::Stage, collectors: &[v1::CollectorReport]) -> (String, String) {
        if stage == v1::Stage::Done && self.session.has_recorded() {
            return Default::default();
        }
        if matches!(stage, v1::Stage::Failed | v1::Stage::Done)
            && !collectors.iter().any(|collector| collector.running)
            && let Some(first) = collectors.iter().find(|collector| !collector.running)
        {
            let message = format!("{}: {}: {}", first.name, first.reason, first.message);
            return (reason::UNSUPPORTED.to_owned(), message);
        }
        if let Some((reason, message)) = &self.trouble {
            return ((*reason).to_owned(), message.clone());
        }
        if let Some(error) = self.session.upload_error() {
            let reason: &'static str = (&error).into();
            return (reason.to_owned(), error.to_string());
        }
        if stage == v1::Stage::Done {
            let message = "the window ended before this node recorded anything";
            return (reason::NEVER_STARTED.to_owned(), message.to_owned());
        }
        if self.strange {
            let message = format!(
                "the plan has fields that this agent (version {}) does not know, and they have no effect here",
                env!("CARGO_PKG_VERSION")
            );
            return ("PlanFieldUnknown".to_owned(), message);
        }
        if self.late_budget {
            let message =
                "its budget came when it recorded already, and has no effect here until it begins anew";
            return ("BudgetIgnored".to_owned(), message.to_owned());
        }
        Default::default()
    }
}

/// Of a session that this agent knows nothing of but that it does not take its plan.
fn not_begun(wanted: &v1::SessionRef, message: String) -> v1::SessionReport {
    let is_open = wanted.activity == v1::Activity::Collect as i32;
    v1::SessionReport {
        uid: wanted.uid.clone(),
        stage: if is_open { v1::Stage::Failed } else { v1::Stage::Done } as i32,
        reason: reason::PLAN_REFUSED.to_owned(),
        message,
        ..Default::default()
    }
}

/// Whether the plan has fields that this agent does not know and that belong to none of its collectors, which are refused for
/// theirs.
fn is_strange(body: &v1::SessionPlan, hash: &str) -> bool {
    !node_api::plan::matches(body, hash) && body.collectors.iter().all(node_api::plan::is_whole)
}

fn totals(totals: &Totals, bytes_pending: u64) -> v1::Totals {
    v1::Totals {
        emitted: totals.emitted,
        exported: totals.terms.get(Term::Exported),
        sampled_out: totals.terms.get(Term::SampledOut),
        rate_limited: totals.terms.get(Term::RateLimited),
        filtered: totals.terms.get(Term::Filtered),
        lost: totals.terms.lost(),
        rows: totals.rows,
        bytes_uploaded: totals.bytes,
        objects_uploaded: totals.objects,
        bytes_pending,
    }
}

/// What the first message of a stream says.
pub fn hello(node: &Node, capabilities: Vec<crate::engine::Capability>) -> v1::Hello {
    v1::Hello {
        node: node.name.to_string(),
        boot: node.boot.to_string(),
        incarnation: node.incarnation.to_string(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: node.kernel.clone(),
        arch: node.arch.clone(),
        capabilities: capabilities
            .into_iter()
            .map(|capability| v1::Capability {
                collector: capability.collector.to_owned(),
                supported: capability.supported,
                reason: capability.reason,
            })
            .collect(),
        known_plans: Vec::new(),
    }
}
