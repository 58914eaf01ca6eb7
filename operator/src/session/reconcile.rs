// SPDX-License-Identifier: Apache-2.0
//! One pass over one session: what is wanted, what is there, what follows.
//!
//! ```text
//! validate --> open the window --> dereference --> build --> publish --> (close) --> status
//!  pure         store, client       client          pure      hub          store       pure, then one write
//! ```
//! Level-triggered: every pass starts from the resource, the pods and the reports as they are, so a trigger may be
//! lost or repeated. What has begun goes on with the API server or the store away: plans are published
//! before the status is written, and a store that does not answer ends nothing but grants.
//!
//! Passes are few, and a store may be anybody's: whether it works is asked beside the pass, and what a pass itself asks of it
//! has a time and a place in [`StorePlaces`], of which no store and no namespace may take all.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crds::conditions::reason;
use crds::{Phase, TraceSession, TraceSessionStatus};
use dataset::closing::Effort;
use dataset::manifest::Verdict;
use dataset::reader::ReadError;
use jiff::{SignedDuration, Timestamp};
use kube::runtime::controller::Action;
use kube::runtime::events::Recorder;
use kube::{Client, ResourceExt};
use node_api::lanes::{Lanes, Place};
use node_api::plan::Body;
use node_api::v1::Activity;
use tokio::time::Instant;

use super::build::Selected;
use super::dereference::{ORPHAN, Owners};
use super::limits::{Limits, Places};
use super::memory::{Clock, Kept, Late, Memories, Memory};
use super::nodes::{self, NodeState};
use super::pods::{NotListed, PodWatches};
use super::status::{Early, Finished, Observed, StoreState, TargetState, status};
use super::validate::{Rejection, Selection, ValidatedSession, begun, validate};
use super::write::{Writer, Written};
use super::{LARGE, Nodes, WAITING, build, finish};
use crate::hub::{Assignment, Hub, NodeView, Published, SessionId};
use crate::metrics::Metrics;
use crate::store::{ResolvedStore, StoreProblem, Stores};

/// A session in its window is looked at this often when nothing happens: its store's Secret may have changed.
const IDLE: Duration = Duration::from_secs(60);
/// While a node does not answer, or a store is awaited.
pub(super) const WATCHFUL: Duration = Duration::from_secs(5);
/// For what a session's beginning or end asks of its store. A store that does not answer must not hold a place among the reconciles,
/// and a listing without end must not keep the session from ending.
const STORE_PATIENCE: Duration = Duration::from_secs(60);
/// The same for a folder that takes much memory to look through; shorter than a pass may take.
const LARGE_PATIENCE: Duration = Duration::from_secs(240);
/// After such an attempt that failed.
const LARGE_AGAIN: Duration = Duration::from_secs(300);
/// New nodes of a session wait so long for others: each time they are written down, all nodes of the session are.
const GATHER: Duration = Duration::from_millis(500);
/// For the first list of the nodes.
const NODES_PATIENCE: Duration = Duration::from_secs(10);

/// What a pass needs.
pub struct Context {
    /// For writes and look-ups.
    pub client: Client,
    /// Plans out, reports in.
    pub hub: Arc<Hub>,
    /// Stores by reference.
    pub stores: Arc<Stores>,
    /// Pods of namespaces with sessions.
    pub pods: PodWatches,
    /// Labels of nodes.
    pub nodes: Nodes,
    /// Owners of owners.
    pub owners: Owners,
    /// Events.
    pub recorder: Recorder,
    /// Counters.
    pub metrics: Metrics,
    /// UID of the namespace `kube-system`.
    pub cluster_id: String,
    /// Between passes.
    pub memories: Memories,
    /// Places for what passes ask of stores.
    pub store_places: StorePlaces,
    /// The present.
    pub clock: Clock,
    /// What sessions may have at most.
    pub limits: Limits,
    /// Which sessions record.
    pub places: Places,
    /// When this process began.
    pub started: Instant,
}

/// Places for what passes ask of stores: fewer than passes run side by side. Stores that do not answer must not keep other sessions
/// from being published, and with them, after a restart, every plan; nor one store, or one namespace's, the others from theirs.
pub struct StorePlaces {
    pub(super) opening: Lanes,
    closing: Lanes,
    /// For folders that take much memory to look through.
    large: Lanes,
}

impl Default for StorePlaces {
    fn default() -> Self {
        Self { opening: Lanes::new(WAITING), closing: Lanes::new(WAITING), large: Lanes::new(LARGE) }
    }
}

impl StorePlaces {
    /// A place to look through what a session left in its store, and how much of it may be held; none: a little later.
    pub(super) fn closing(&self, store: &ResolvedStore, large: bool) -> Option<(Place, Effort)> {
        let (places, effort) =
            if large { (&self.large, Effort::Large) } else { (&self.closing, Effort::Ordinary) };
        store.place(places).map(|place| (place, effort))
    }
}

impl Context {
    /// Gives a session's place to who waits for it.
    pub fn vacate(&self, id: &SessionId) {
        if let Some(next) = self.places.free(id) {
            self.hub.trigger(next.object_ref());
        }
    }
}

/// Why a pass ended early; it is repeated with backoff.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server refused or cannot be reached.
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    /// Pods cannot be listed.
    #[error(transparent)]
    Pods(#[from] NotListed),
    /// Nodes cannot be listed.
    #[error("the cluster's nodes are not listed yet")]
    Nodes,
    /// It took too long.
    #[error("the pass took too long")]
    Timeout,
    /// The object has no UID: it did not come from an API server.
    #[error("the session has no UID")]
    NoUid,
}

/// One pass.
///
/// # Errors
/// When the API server fails; the pass is then repeated.
pub async fn reconcile(shown: Arc<TraceSession>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let uid = shown.uid().ok_or(ReconcileError::NoUid)?;
    let memory = context.memories.of(&uid);
    let mut memory = memory.lock().await;
    let session = memory.freshest(&shown);
    let id = SessionId { namespace: session.namespace().unwrap_or_default(), name: session.name_any(), uid };
    Pass { context: &context, id, now: context.clock.utc(), instant: context.clock.now() }
        .run(&mut memory, session)
        .await
}

/// One pass over one session, at one moment.
pub(super) struct Pass<'a> {
    pub(super) context: &'a Context,
    pub(super) id: SessionId,
    pub(super) now: Timestamp,
    pub(super) instant: Instant,
}

/// What a status is made from besides the resource itself.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) rejection: Option<Rejection>,
    pub(super) store: Option<StoreState>,
    pub(super) dataset: Option<crds::DatasetStatus>,
    pub(super) window: Option<(Timestamp, Timestamp)>,
    pub(super) early: Option<Early>,
    pub(super) targets: Option<TargetState>,
    pub(super) states: BTreeMap<String, NodeState>,
    pub(super) views: BTreeMap<String, NodeView>,
    pub(super) deadline_passed: bool,
    pub(super) crowded: bool,
    pub(super) finished: Option<Finished>,
}

impl Pass<'_> {
    pub(super) fn writer(&self) -> Writer<'_> {
        Writer::new(&self.context.client, &self.context.recorder, &self.context.metrics, self.instant)
    }

    async fn run(&self, memory: &mut Memory, session: Arc<TraceSession>) -> Result<Action, ReconcileError> {
        if session.status.as_ref().and_then(|status| status.phase).is_some_and(Phase::is_over) {
            return self.over(memory, session).await;
        }
        let status = session.status.as_ref();
        let window =
            status.and_then(|status| Some((status.start_time.as_ref()?.0, status.end_time.as_ref()?.0)));
        let valid = match (&memory.valid, window) {
            (Some(valid), _) => valid.clone(),
            (None, Some(_)) => Arc::new(begun(&session.spec)),
            (None, None) => match validate(&session.spec) {
                Ok(valid) => Arc::new(valid),
                Err(rejection) => {
                    let findings = Findings { rejection: Some(rejection), ..Findings::default() };
                    return self.conclude(memory, session, findings).await;
                }
            },
        };
        memory.valid = Some(valid.clone());
        match window {
            Some((start, end)) => self.started(memory, session, &valid, start, end).await,
            None => self.waiting(memory, session, &valid).await,
        }
    }

    /// The window is or was open.
    pub(super) async fn started(
        &self,
        memory: &mut Memory,
        session: Arc<TraceSession>,
        valid: &ValidatedSession,
        start: Timestamp,
        planned_end: Timestamp,
    ) -> Result<Action, ReconcileError> {
        let before = session.status.clone().unwrap_or_default();
        let known: BTreeSet<&String> =
            before.nodes.iter().flat_map(|nodes| &nodes.names).chain(memory.expected.keys()).collect();
        let (end, early) = self.end(&session, &before, valid, start, planned_end, known);
        if self.now < end {
            // A session that has begun has its place, also one that began under another limit.
            self.context.places.take(&self.id, None);
        } else {
            self.context.vacate(&self.id);
        }
        let store = self.store(memory, &session).await;
        let selected = self.select(memory, valid, start).await?;
        let expected = self.expect(memory, &before, selected.bodies.keys(), self.now < end);
        let activity = if self.now < end { Activity::Collect } else { Activity::Drain };
        let body = |node: &String| selected.bodies.get(node).cloned();
        let granting = store.as_ref().ok().cloned();
        let publish =
            |nodes: &BTreeSet<String>| self.publish(valid, (end, activity), nodes, body, granting.clone());
        // Whoever leads next has to know of a node before it records: what nobody waits for is given up. Only of what was published
        // by another operator nobody here knows, and that goes on at once.
        let is_growing = is_growing(&before, &expected);
        let acting = is_growing.then(|| self.context.hub.published(&self.id.uid)).flatten().map(|held| {
            let named = before.nodes.iter().flat_map(|nodes| &nodes.names);
            let acting: BTreeSet<String> = held.nodes.into_keys().chain(named.cloned()).collect();
            expected.intersection(&acting).cloned().collect()
        });
        publish(acting.as_ref().unwrap_or(&expected));

        let views = self.context.hub.nodes(&self.id.uid, &expected);
        let last = self.now >= after(end, valid.drain_timeout);
        let states = states(&views, &memory.expected, self.instant, last);
        let problem = match &store {
            Ok(store) => store.problem(nodes::troubled_by_store(&views)),
            Err(problem) => Some(problem.clone()),
        };
        let mut findings = Findings {
            store: Some(match problem {
                Some(problem) => StoreState::Problem(problem.reason.to_owned(), problem.message),
                None => StoreState::Ready,
            }),
            window: Some((start, end)),
            early,
            // After the window pods come and go without meaning anything.
            targets: (self.now < end).then(|| selected.targets.clone()),
            states,
            views,
            ..Findings::default()
        };
        if self.now >= end {
            let settled = findings.views.values().all(nodes::is_done);
            if settled || last {
                findings.finished = self.close(memory, &findings.states, store, last).await;
            }
            if let (Some(problem), Some(StoreState::Ready)) = (&memory.close_problem, &findings.store) {
                findings.store =
                    Some(StoreState::Problem(problem.reason.to_owned(), problem.message.clone()));
            }
            if findings.finished.is_some() {
                return self.conclude(memory, session, findings).await;
            }
        }
        let next = self.status(&session, &findings);
        // An operator that has just started has not heard its agents yet: what they did is still true.
        let unheard = findings.views.values().any(|view| view.report.is_none());
        let gathering = memory
            .last_write
            .map_or(Duration::ZERO, |at| GATHER.saturating_sub(self.instant.saturating_duration_since(at)));
        let written = if is_growing && acting.is_some() && !gathering.is_zero() {
            Written::Later(gathering)
        } else if is_growing {
            let written = self.writer().news(memory, &session, next).await?;
            publish(&expected);
            written
        } else if next.phase == before.phase
            && unheard
            && self.instant < self.context.started + nodes::LOST_AFTER
        {
            Written::Later(WATCHFUL)
        } else {
            self.writer().status(memory, &session, next).await?
        };
        let boundary = if self.now < end { end } else { after(end, valid.drain_timeout) };
        let uneasy = self.now >= end
            || matches!(findings.store, Some(StoreState::Problem(..)))
            || findings.views.values().any(|view| !view.connected);
        let wait = if uneasy { WATCHFUL } else { IDLE };
        Ok(Action::requeue(later(written, wait.min(until(boundary, self.now)))))
    }

    /// When the window ends, and why if before its time.
    fn end(
        &self,
        session: &TraceSession,
        before: &TraceSessionStatus,
        valid: &ValidatedSession,
        start: Timestamp,
        planned: Timestamp,
        known: BTreeSet<&String>,
    ) -> (Timestamp, Option<Early>) {
        let deleted = session.metadata.deletion_timestamp.as_ref().map(|at| at.0);
        let uploaded = before.totals.as_ref().map_or(0, |totals| totals.bytes_uploaded);
        // Grants are this operator's own count, uploads what nodes say since the session began.
        let bytes = u64::try_from(uploaded).unwrap_or(0).max(self.context.hub.granted_bytes(&self.id.uid));
        // Of a session that is to stop, one node is enough; no node stops one that is to be sampled.
        let stopped = valid.budget.is_some_and(|budget| budget.stop)
            && self.context.hub.nodes(&self.id.uid, known).values().any(|view| {
                let report = view.report.as_ref();
                report.and_then(|report| report.excess.as_ref()).is_some_and(|excess| excess.stopped)
            });
        let spent = match self.context.limits.bytes(valid) {
            Some(limit) if bytes >= limit => {
                Some(Early::Bytes { used: bytes, limit, own: valid.budget_bytes == Some(limit) })
            }
            _ => stopped.then_some(Early::Budget),
        };
        let full = after(start, valid.duration);
        let said = |type_, why| {
            crds::conditions::get(&before.conditions, type_).is_some_and(|condition| condition.reason == why)
        };
        // A user's stop stays the reason, also where a node tells afterwards that it had stopped by itself.
        let early = if said(crds::conditions::session::BUDGET_EXCEEDED, reason::BUDGET_STOPPED)
            && !said(crds::conditions::session::COLLECTING, reason::STOPPED)
        {
            Some(Early::Budget)
        } else if (session.spec.stop || deleted.is_some()) && (planned < full || self.now < planned) {
            Some(Early::Stopped)
        } else {
            spent.filter(|_| self.now < planned)
        };
        match early {
            None => (planned, None),
            // Once moved, the end stays where it is.
            Some(early) => {
                (planned.min(deleted.unwrap_or(self.now).max(start)).min(self.now.max(start)), Some(early))
            }
        }
    }

    /// A started session's store, as it was within the last minute; if that cannot be read, as it was before.
    pub(super) async fn store(
        &self,
        memory: &mut Memory,
        session: &TraceSession,
    ) -> Result<Arc<ResolvedStore>, StoreProblem> {
        match self.context.stores.resolve_started(session, self.instant).await {
            Ok(store) => Ok(memory.store.insert(Arc::new(store)).clone()),
            // The API server being away says nothing about the store.
            Err(problem) if problem.reason == reason::STORE_UNAVAILABLE => {
                memory.store.clone().ok_or(problem)
            }
            // With a namespace its Secret and the right to read it go as well, and often first; the key is still good.
            Err(problem)
                if session.metadata.deletion_timestamp.is_some()
                    && [reason::SECRET_NOT_FOUND, reason::SECRET_FORBIDDEN].contains(&problem.reason) =>
            {
                memory.store.clone().ok_or(problem)
            }
            Err(problem) => Err(problem),
        }
    }

    /// The pods and their plans. When they cannot be learnt, those that were published stay as they are.
    pub(super) async fn select(
        &self,
        memory: &mut Memory,
        valid: &ValidatedSession,
        start: Timestamp,
    ) -> Result<Arc<Selected>, ReconcileError> {
        match self.look_up(memory, valid, start).await {
            Ok(selected) => Ok(selected),
            Err(error) => match self.context.hub.published(&self.id.uid) {
                Some(held) => {
                    tracing::warn!(%error, "pods cannot be looked up, plans stay as they are");
                    let bodies = held.nodes.into_iter().map(|(node, held)| (node, held.body)).collect();
                    Ok(Arc::new(Selected { targets: TargetState::Unasked, bodies }))
                }
                None => Err(error),
            },
        }
    }

    async fn look_up(
        &self,
        memory: &mut Memory,
        valid: &ValidatedSession,
        start: Timestamp,
    ) -> Result<Arc<Selected>, ReconcileError> {
        let (pods, version) = self.context.pods.acquire(&self.id, &valid.selection).await?;
        if let Some(kept) = &memory.selected
            && kept.version == version
            && kept.until.is_none_or(|until| self.instant < until)
        {
            return Ok(kept.selected.clone());
        }
        let matched = self
            .context
            .owners
            .matching(&self.id.namespace, &valid.selection, pods.state(), self.instant)
            .await?;
        if !valid.node_selector.is_empty() {
            // A node that is not listed yet would look like one that is not selected.
            let listed = self.context.nodes.listed.complete();
            tokio::time::timeout(NODES_PATIENCE, listed).await.map_err(|_| ReconcileError::Nodes)?;
        }
        let labels = |node: &str| self.context.nodes.labels(node);
        let selected = Arc::new(Selected::of(&self.id, valid, &matched, start, labels));
        // Else labels of nodes decide as well, or whether there is a workload, of which pods do not tell where it has none.
        let is_workload = matches!(valid.selection, Selection::Workload(_));
        let by_pods_alone = valid.node_selector.is_empty() && !(is_workload && matched.pods.is_empty());
        let until = matched.has_orphans.then(|| self.instant + ORPHAN);
        memory.selected = by_pods_alone.then(|| Kept { version, until, selected: selected.clone() });
        Ok(selected)
    }

    /// The nodes that have, or had, a pod in the window.
    fn expect<'n>(
        &self,
        memory: &mut Memory,
        before: &TraceSessionStatus,
        now: impl Iterator<Item = &'n String>,
        open: bool,
    ) -> BTreeSet<String> {
        let known = before.nodes.iter().flat_map(|nodes| &nodes.names).cloned();
        let mut expected: BTreeSet<String> = known.collect();
        if open {
            expected.extend(now.cloned());
        }
        // Between two writes of the status only memory knows.
        expected.extend(memory.expected.keys().cloned());
        let since = self.instant;
        for node in &expected {
            memory.expected.entry(node.clone()).or_insert(since);
        }
        expected
    }

    /// Hands out what these nodes have to do until the end; a node of which `body` knows nothing keeps what it recorded.
    pub(super) fn publish(
        &self,
        valid: &ValidatedSession,
        (end, activity): (Timestamp, Activity),
        nodes: &BTreeSet<String>,
        body: impl Fn(&String) -> Option<Arc<Body>>,
        store: Option<Arc<ResolvedStore>>,
    ) {
        let empty = LazyCell::new(|| Arc::new(Body::of(&build::empty(&self.id, valid))));
        let assign = |node: &String| {
            let body = body(node).unwrap_or_else(|| empty.clone());
            (node.clone(), Assignment { body, activity })
        };
        let nodes = nodes.iter().map(assign).collect();
        let collectors = valid.collectors.iter().map(|collector| collector.name.clone()).collect();
        self.context.hub.publish(Published { id: self.id.clone(), end, collectors, nodes, store });
    }

    /// Writes the manifest; none if the store fails and there is still time.
    pub(super) async fn close(
        &self,
        memory: &mut Memory,
        states: &BTreeMap<String, NodeState>,
        store: Result<Arc<ResolvedStore>, StoreProblem>,
        last_chance: bool,
    ) -> Option<Finished> {
        let written = match store {
            Ok(store) => {
                // Who took long for nothing leaves the one place for large folders to the others for a while.
                let waits = memory.large_failed.is_some_and(|at| self.instant < at + LARGE_AGAIN);
                if waits && !last_chance {
                    return None;
                }
                let Some((_place, effort)) = self.context.store_places.closing(&store, memory.large) else {
                    tracing::debug!("many sessions end, this one a little later");
                    // Those that end before it may hang. Who is over gets a manifest when there is a place.
                    let since = *memory.no_place.get_or_insert(self.instant);
                    let effort = if memory.large { Effort::Large } else { Effort::Ordinary };
                    return (last_chance && self.instant >= since + patience(effort)).then(|| {
                        let reason =
                            "no manifest: other sessions have not come to an end on the store in time";
                        Finished { manifest: None, reason: reason.to_owned(), totals: None }
                    });
                };
                memory.no_place = None;
                let closed = async {
                    match finish::close(&store, states, self.now, effort).await {
                        Err(ReadError::TooLarge { .. }) if effort == Effort::Ordinary => Ok(None),
                        closed => closed.map(Some),
                    }
                };
                let closed = within(patience(effort), closed).await;
                if closed.is_err() {
                    store.renew();
                }
                memory.large_failed =
                    (closed.is_err() && effort == Effort::Large).then(|| self.context.clock.now());
                closed
            }
            Err(problem) => Err(problem),
        };
        memory.close_problem = written.as_ref().err().cloned();
        match written {
            Ok(None) => {
                tracing::info!("the session's folder takes more memory than most to look through");
                memory.large = true;
                self.context.hub.trigger(self.id.object_ref());
                None
            }
            Ok(Some((finished, manifest))) => {
                let complete = manifest.verdict == Verdict::Complete;
                self.context.metrics.manifests.get_or_create(&crate::metrics::outcome(complete)).inc();
                let late = finish::late(&manifest);
                memory.late = Some(Late { done: done(states, &late.missing), ..late });
                Some(finished)
            }
            Err(problem) if last_chance => {
                tracing::error!(
                    reason = problem.reason,
                    message = problem.message,
                    "session ends without a manifest"
                );
                Some(Finished { manifest: None, reason: format!("no manifest: {problem}"), totals: None })
            }
            Err(problem) => {
                tracing::warn!(
                    reason = problem.reason,
                    message = problem.message,
                    "manifest not written, will retry"
                );
                None
            }
        }
    }

    pub(super) fn status(&self, session: &TraceSession, findings: &Findings) -> TraceSessionStatus {
        status(&Observed {
            session,
            now: self.now,
            rejection: findings.rejection.as_ref(),
            store: findings.store.clone().unwrap_or(StoreState::Unasked),
            dataset: findings.dataset.clone(),
            window: findings.window,
            early: findings.early,
            targets: findings.targets.clone().unwrap_or(TargetState::Unasked),
            states: &findings.states,
            views: &findings.views,
            deadline_passed: findings.deadline_passed,
            crowded: findings.crowded,
            finished: findings.finished.clone(),
        })
    }

    /// The session is over: says so, and lets go.
    pub(super) async fn conclude(
        &self,
        memory: &mut Memory,
        session: Arc<TraceSession>,
        findings: Findings,
    ) -> Result<Action, ReconcileError> {
        let next = self.status(&session, &findings);
        let written = self.writer().status(memory, &session, next).await?;
        if let Written::Later(wait) = written {
            return Ok(Action::requeue(wait));
        }
        let session = memory.freshest(&session);
        Box::pin(self.over(memory, session)).await
    }
}

/// Whether some of the `expected` nodes, which are those of the status and others, have no place there yet, and it has room.
fn is_growing(before: &TraceSessionStatus, expected: &BTreeSet<String>) -> bool {
    let named = before.nodes.as_ref().map_or(0, |nodes| nodes.names.len());
    named < expected.len().min(nodes::NAMES_MAX)
}

/// What a store says within [`STORE_PATIENCE`].
pub(super) async fn in_time<T>(work: impl Future<Output = Result<T, ReadError>>) -> Result<T, StoreProblem> {
    within(STORE_PATIENCE, work).await
}

/// For looking through a folder: a large one is more than a thousand pages of a listing, one after the other.
fn patience(effort: Effort) -> Duration {
    if effort == Effort::Large { LARGE_PATIENCE } else { STORE_PATIENCE }
}

async fn within<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, ReadError>>,
) -> Result<T, StoreProblem> {
    match tokio::time::timeout(patience, work).await {
        Ok(result) => result.map_err(|error| unreadable(&error)),
        Err(_) => {
            let message = format!("no answer within {} s", patience.as_secs());
            Err(StoreProblem { reason: reason::STORE_UNAVAILABLE, message })
        }
    }
}

pub(super) fn states(
    views: &BTreeMap<String, NodeView>,
    since: &BTreeMap<String, Instant>,
    now: Instant,
    last: bool,
) -> BTreeMap<String, NodeState> {
    let state = |(name, view): (&String, &NodeView)| {
        (name.clone(), nodes::state(view, since.get(name).copied().unwrap_or(now), now, last))
    };
    views.iter().map(state).collect()
}

/// How many of `late` are done.
pub(super) fn done(states: &BTreeMap<String, NodeState>, late: &BTreeSet<String>) -> usize {
    late.iter().filter(|node| states.get(*node) == Some(&NodeState::Done)).count()
}

fn unreadable(error: &ReadError) -> StoreProblem {
    let reason = match error {
        ReadError::Store { .. } | ReadError::Write { .. } | ReadError::Full { .. } => {
            reason::STORE_UNAVAILABLE
        }
        _ => reason::STORE_ERROR,
    };
    let message = match error {
        // An answer's body may hold anything; its kind is enough, the log of the store has the rest.
        ReadError::Store { what, source } | ReadError::Write { what, source } => {
            format!("{what}: {}", crate::store::kind(source))
        }
        other => other.to_string(),
    };
    StoreProblem { reason, message }
}

/// So long after a time, however late that is.
pub(super) fn after(at: Timestamp, duration: Duration) -> Timestamp {
    let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    at.saturating_add(duration).unwrap_or(Timestamp::MAX)
}

/// From `now` to `at`; nothing if it has passed.
pub(super) fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

/// When to look again, given that a write may be waiting. A second's fraction keeps sessions apart.
pub(super) fn later(written: Written, wait: Duration) -> Duration {
    let wait = wait + Duration::from_millis(u64::from(rand::random::<u8>()));
    match written {
        Written::Current => wait,
        Written::Later(write) => wait.min(write),
    }
}
