// SPDX-License-Identifier: Apache-2.0
//! Between sessions and streams: the latest plan of every node out, the latest report of every node in.
//!
//! In: what each session wants of each node ([`Hub::publish`]), and what each node's stream brings
//! ([`Hub::connect`], [`Stream::report`]). Out: a [`Plan`] for a stream whenever its node's has changed
//! ([`Stream::plan`]), what the nodes say of a session ([`Hub::nodes`]), and a trigger to reconcile it.
//!
//! Lost: nothing that matters. Only the latest of each is kept, because both are whole state; a message
//! that is overwritten before it was read had nothing that the next one has not.
//!
//! Invariant: no plan leaves before every session that exists has been published once ([`Hub::hold`]): to an
//! agent a session that is not listed is over, and an operator that has just started must not end what runs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crds::TraceSession;
use dataset::key::{Boot, Key};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use node_api::plan::{BYTES_MAX, Body};
use node_api::v1::{Activity, Hello, Plan, Report, SessionRef, SessionReport};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::store::ResolvedStore;

/// A session by namespace, name and UID.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: a session of the same name made later is another.
    pub uid: String,
}

impl SessionId {
    /// Of a resource.
    pub fn of(session: &TraceSession) -> Self {
        Self {
            namespace: session.namespace().unwrap_or_default(),
            name: session.name_any(),
            uid: session.uid().unwrap_or_default(),
        }
    }

    /// How the controller names it.
    pub fn object_ref(&self) -> ObjectRef<TraceSession> {
        ObjectRef::new(&self.name).within(&self.namespace)
    }
}

/// What one session wants of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// The plan.
    pub body: Arc<Body>,
    /// Collect, or drain.
    pub activity: Activity,
}

/// What one session wants of all nodes.
#[derive(Clone)]
pub struct Published {
    /// Which session.
    pub id: SessionId,
    /// When its window ends.
    pub end: Timestamp,
    /// Names of its collectors.
    pub collectors: Vec<String>,
    /// By node.
    pub nodes: BTreeMap<String, Assignment>,
    /// Where its grants lead; none while the store cannot be resolved.
    pub store: Option<Arc<ResolvedStore>>,
}

/// What the hub knows of one node.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// A stream is up.
    pub connected: bool,
    /// Since when there has been none; `None` if there never was one since this operator started.
    pub lost_since: Option<Instant>,
    /// The latest report on the session asked for, which does not name it.
    pub report: Option<SessionReport>,
}

#[derive(Default)]
struct Node {
    /// The number of the stream that is up.
    stream: Option<u64>,
    lost_since: Option<Instant>,
    reports: HashMap<String, SessionReport>,
    /// Sessions that it holds, as far as is known, and that are not its own any more.
    leaving: usize,
    /// Raised when the node's plan may have changed.
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<String, Node>,
    sessions: HashMap<String, Published>,
    /// Sessions that must be published before any plan leaves.
    held: HashSet<String>,
    /// Sessions whose reports changed since the last [`Hub::flush`].
    dirty: HashSet<String>,
    /// By session: what was granted to it.
    granted: HashMap<String, Granted>,
    streams: u64,
}

/// Tables and boots of one node that are told apart in one session; what lies beyond counts each time it is asked for.
const MOST_SERIES: usize = 512;
/// Sessions of others that one report is told to have had.
const FOREIGN_MAX: usize = 8;
/// Bytes of a text in a report.
const TEXT_MAX: usize = 1 << 10;
/// Collectors in a report of one session; a session names no more.
const COLLECTORS_MAX: usize = 32;
/// Objects of one table that may be granted before earlier ones are.
const MOST_AHEAD: usize = 256;

/// The bytes for which grants were given, each object once: a node asks again for what it did not get through, and for several
/// objects at once.
#[derive(Default)]
struct Granted {
    bytes: u64,
    /// By node.
    series: HashMap<Arc<str>, OfNode>,
}

/// By table and boot.
type OfNode = HashMap<(Arc<str>, Boot), Series>;

/// Which sequence numbers were counted: all below `next`, and those ahead.
#[derive(Default)]
struct Series {
    next: u64,
    ahead: BTreeSet<u64>,
}

impl Series {
    /// Whether the number is new.
    fn count(&mut self, sequence: u64) -> bool {
        if sequence < self.next || !self.ahead.insert(sequence) {
            return false;
        }
        // Numbers that were never sealed leave gaps, which are not waited for without end.
        if self.ahead.len() > MOST_AHEAD {
            self.next = self.ahead.first().copied().unwrap_or(self.next);
        }
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
        true
    }
}

impl Granted {
    fn count(&mut self, key: &Key, length: u64) {
        let Key::Segment { table, node, boot, sequence, .. } = key else { return };
        let of_node = self.series.entry(node.clone()).or_default();
        let name = (table.clone(), boot.clone());
        let is_known = of_node.len() < MOST_SERIES || of_node.contains_key(&name);
        if !is_known || of_node.entry(name).or_default().count(*sequence) {
            self.bytes = self.bytes.saturating_add(length);
        }
    }
}

/// See the module.
pub struct Hub {
    state: Mutex<State>,
    triggers: mpsc::UnboundedSender<ObjectRef<TraceSession>>,
    open: watch::Sender<bool>,
}

impl Hub {
    /// A hub, and the sessions it wants reconciled, as they become due.
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<ObjectRef<TraceSession>>) {
        let (triggers, due) = mpsc::unbounded_channel();
        (Arc::new(Self { state: Mutex::default(), triggers, open: watch::Sender::new(true) }), due)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Keeps all plans back until each of these sessions was published or withdrawn.
    pub fn hold(&self, uids: impl IntoIterator<Item = String>) {
        let mut state = self.state();
        state.held.extend(uids);
        self.open.send_replace(state.held.is_empty());
    }

    /// Whether plans leave.
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Sets what a session wants. Nodes whose plan changed get it at once.
    pub fn publish(&self, published: Published) {
        let mut state = self.state();
        let uid = published.id.uid.clone();
        let before = state.sessions.insert(uid.clone(), published);
        self.release(&mut state, &uid);
        let now = &state.sessions[&uid];
        let moved = before.as_ref().is_some_and(|before| before.end != now.end);
        let mut changed: Vec<String> = Vec::new();
        for (node, assignment) in &now.nodes {
            if moved || before.as_ref().and_then(|before| before.nodes.get(node)) != Some(assignment) {
                changed.push(node.clone());
            }
        }
        if let Some(before) = &before {
            changed.extend(before.nodes.keys().filter(|node| !now.nodes.contains_key(*node)).cloned());
        }
        Self::raise(&mut state, changed);
    }

    /// The session is over: agents stop it and forget it.
    pub fn withdraw(&self, uid: &str) {
        let mut state = self.state();
        self.release(&mut state, uid);
        state.granted.remove(uid);
        if let Some(before) = state.sessions.remove(uid) {
            for node in before.nodes.keys() {
                if let Some(node) = state.nodes.get_mut(node) {
                    node.leaving += usize::from(node.reports.remove(uid).is_some());
                }
            }
            Self::raise(&mut state, before.nodes.into_keys());
        }
    }

    /// Withdraws every session whose UID `exists` does not know, and no longer waits for such.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        let gone: Vec<String> = {
            let state = self.state();
            state.sessions.keys().chain(&state.held).filter(|uid| !exists(uid)).cloned().collect()
        };
        gone.iter().for_each(|uid| self.withdraw(uid));
    }

    fn release(&self, state: &mut State, uid: &str) {
        if state.held.remove(uid) && state.held.is_empty() {
            self.open.send_replace(true);
        }
    }

    fn raise(state: &mut State, nodes: impl IntoIterator<Item = String>) {
        for node in nodes {
            state.nodes.entry(node).or_default().version.send_modify(|version| *version += 1);
        }
    }

    /// What the session wants now, if it is published.
    pub fn published(&self, uid: &str) -> Option<Published> {
        self.state().sessions.get(uid).cloned()
    }

    /// What each of these nodes says of a session.
    pub fn nodes<'a>(
        &self,
        uid: &str,
        nodes: impl IntoIterator<Item = &'a String>,
    ) -> BTreeMap<String, NodeView> {
        let state = self.state();
        let view = |name: &String| match state.nodes.get(name) {
            None => NodeView::default(),
            Some(node) => NodeView {
                connected: node.stream.is_some(),
                lost_since: node.lost_since,
                report: node.reports.get(uid).cloned(),
            },
        };
        nodes.into_iter().map(|name| (name.clone(), view(name))).collect()
    }

    /// Streams that are up.
    pub fn streams(&self) -> usize {
        self.state().nodes.values().filter(|node| node.stream.is_some()).count()
    }

    /// Sessions that are published.
    pub fn sessions(&self) -> usize {
        self.state().sessions.len()
    }

    /// Whether every agent that is connected has forgotten what it was told to forget.
    pub fn is_settled(&self) -> bool {
        self.state().nodes.values().all(|node| node.stream.is_none() || node.leaving == 0)
    }

    /// Asks for a reconcile now.
    pub fn trigger(&self, session: ObjectRef<TraceSession>) {
        // The receiver is gone only when the process ends.
        let _ = self.triggers.send(session);
    }

    /// Asks for a reconcile of every session whose reports changed since the last call. Called on a timer, so that
    /// thousands of reports a second cost a few reconciles.
    pub fn flush(&self) {
        let due: Vec<_> = {
            let mut state = self.state();
            let dirty = std::mem::take(&mut state.dirty);
            dirty.iter().filter_map(|uid| Some(state.sessions.get(uid)?.id.object_ref())).collect()
        };
        due.into_iter().for_each(|session| self.trigger(session));
    }

    /// Takes over a node's stream; one that was up before ends.
    pub fn connect(self: &Arc<Self>, hello: Hello) -> Stream {
        let mut state = self.state();
        state.streams += 1;
        let number = state.streams;
        let node = state.nodes.entry(hello.node.clone()).or_default();
        node.stream = Some(number);
        node.lost_since = None;
        let mut version = node.version.subscribe();
        version.mark_changed();
        // Wakes the stream before this one, which finds that it is not the node's any more.
        node.version.send_modify(|version| *version += 1);
        Self::mark_all(&mut state, &hello.node);
        let known = hello.known_plans.into_iter().collect();
        Stream { hub: self.clone(), node: hello.node, number, version, open: self.open.subscribe(), known }
    }

    /// The node's sessions have to be looked at again: it came or went.
    fn mark_all(state: &mut State, node: &str) {
        let uids =
            state.sessions.iter().filter(|(_, p)| p.nodes.contains_key(node)).map(|(uid, _)| uid.clone());
        let uids: Vec<_> = uids.collect();
        state.dirty.extend(uids);
    }

    /// The bytes of a session for which grants were given since this operator started.
    pub fn granted_bytes(&self, uid: &str) -> u64 {
        self.state().granted.get(uid).map_or(0, |granted| granted.bytes)
    }

    /// Where a grant for so many bytes at this key of a session leads, if the session was given to the node.
    pub fn granted(
        &self,
        node: &str,
        uid: &str,
        key: &Key,
        length: u64,
    ) -> Result<Arc<ResolvedStore>, GrantRefusal> {
        let mut state = self.state();
        let state = &mut *state;
        let session = state.sessions.get(uid).ok_or(GrantRefusal::NotPlanned)?;
        if !session.nodes.contains_key(node) {
            return Err(GrantRefusal::NotPlanned);
        }
        if let Key::Segment { table, .. } = key {
            let table = dataset::catalogue::table(table).ok_or(GrantRefusal::UnknownTable)?;
            let always = dataset::bookkeeping::TABLES.iter().any(|one| one.name == table.name);
            if !always && !session.collectors.iter().any(|name| name == table.collector) {
                return Err(GrantRefusal::UnknownTable);
            }
        }
        let store = session.store.clone().ok_or(GrantRefusal::StoreNotReady)?;
        state.granted.entry(uid.to_owned()).or_default().count(key, length);
        Ok(store)
    }
}

/// Why there is no grant; the name in snake_case is the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::EnumIter)]
#[strum(serialize_all = "snake_case")]
pub enum GrantRefusal {
    /// The session was not given to this node, or is over.
    NotPlanned,
    /// The session's collectors do not fill such a table.
    UnknownTable,
    /// Boot, sequence, length or checksum cannot be.
    InvalidRequest,
    /// The store cannot be resolved now.
    StoreNotReady,
}

impl GrantRefusal {
    /// As in the metric.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// One node's stream, as the hub sees it. Dropping it says that the stream is down.
pub struct Stream {
    hub: Arc<Hub>,
    node: String,
    number: u64,
    version: watch::Receiver<u64>,
    open: watch::Receiver<bool>,
    /// Hashes whose bodies the agent holds.
    known: HashSet<String>,
}

impl Stream {
    /// Waits until the node's plan may have changed; `None` when another stream took over.
    ///
    /// Cancel-safe: a change that was not returned is returned by the next call.
    pub async fn plan(&mut self) -> Option<Plan> {
        // Both senders live in the hub, which this stream keeps.
        let _ = self.open.wait_for(|open| *open).await;
        let _ = self.version.changed().await;
        let hub = self.hub.clone();
        let state = hub.state();
        let ours = state.nodes.get(&self.node).is_some_and(|node| node.stream == Some(self.number));
        ours.then(|| self.compose(&state, Timestamp::now()))
    }

    /// The node's whole plan, with those bodies that the agent lacks, as far as one message has room: the next one has more.
    fn compose(&mut self, state: &State, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let mut current = HashSet::new();
        let mut bytes = 0;
        for (uid, session) in &state.sessions {
            let Some(assignment) = session.nodes.get(&self.node) else { continue };
            let remaining = Duration::try_from(session.end.duration_since(now)).unwrap_or_default();
            plan.sessions.push(SessionRef {
                uid: uid.clone(),
                hash: assignment.body.hash().to_owned(),
                activity: assignment.activity.into(),
                remaining_ms: if assignment.activity == Activity::Collect { millis(remaining) } else { 0 },
            });
            if !self.known.contains(assignment.body.hash()) {
                bytes += assignment.body.bytes();
                if bytes > BYTES_MAX && !plan.bodies.is_empty() {
                    self.version.mark_changed();
                    continue;
                }
                plan.bodies.push(assignment.body.plan());
            }
            current.insert(assignment.body.hash().to_owned());
        }
        plan.sessions.sort_by(|a, b| a.uid.cmp(&b.uid));
        // The agent keeps bodies of what is listed only.
        self.known = current;
        plan
    }

    /// Takes the node's whole report. Returns the sessions in it that only other nodes have: an honest agent knows of none but
    /// those that it was given, perhaps by an operator before this one.
    pub fn report(&self, report: Report) -> Vec<String> {
        let mut state = self.hub.state();
        let state = &mut *state;
        let Some(node) = state.nodes.get_mut(&self.node) else { return Vec::new() };
        if node.stream != Some(self.number) {
            return Vec::new();
        }
        let others = |uid: &str| {
            let published = state.sessions.get(uid);
            published.is_some_and(|p| !p.nodes.contains_key(&self.node)) && !node.reports.contains_key(uid)
        };
        let foreign = report.sessions.iter().map(|session| &session.uid).filter(|uid| others(uid));
        let foreign = foreign.take(FOREIGN_MAX).cloned().collect();
        let held = report.sessions.len();
        let reported: HashMap<String, SessionReport> = report
            .sessions
            .into_iter()
            // A node speaks of sessions that it was given; anything else would only take memory.
            .filter(|s| state.sessions.get(&s.uid).is_some_and(|p| p.nodes.contains_key(&self.node)))
            .map(|mut session| (std::mem::take(&mut session.uid), presentable(session)))
            .collect();
        for (uid, session) in &reported {
            if node.reports.get(uid) != Some(session) {
                state.dirty.insert(uid.clone());
            }
        }
        node.leaving = held - reported.len();
        node.reports = reported;
        foreign
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        let Some(node) = state.nodes.get_mut(&self.node) else { return };
        if node.stream == Some(self.number) {
            node.stream = None;
            node.lost_since = Some(Instant::now());
            Hub::mark_all(&mut state, &self.node);
        }
    }
}

/// The report as it is kept: without what nobody asks it for, and with words that a status and a manifest have room for.
/// Whoever has taken a node over may send megabytes, and the API server takes no object with them.
fn presentable(mut report: SessionReport) -> SessionReport {
    report.plan_hash = String::new();
    report.collectors.truncate(COLLECTORS_MAX);
    let collectors = report.collectors.iter_mut();
    let words =
        collectors.flat_map(|collector| [&mut collector.name, &mut collector.reason, &mut collector.message]);
    let excess = report.excess.iter_mut().flat_map(|excess| [&mut excess.budget, &mut excess.message]);
    words.chain(excess).chain([&mut report.reason, &mut report.message]).for_each(cut);
    report
}

/// One line of at most [`TEXT_MAX`] bytes: of a longer text the beginning, and the end, where a verifier's log says why.
fn cut(text: &mut String) {
    if text.contains(char::is_control) {
        *text = text.replace(char::is_control, " ");
    }
    if text.len() > TEXT_MAX {
        const BETWEEN: &str = " ... ";
        let head = text.floor_char_boundary(TEXT_MAX / 2 - BETWEEN.len());
        let tail = text.ceil_char_boundary(text.len() - TEXT_MAX / 2);
        *text = format!("{}{BETWEEN}{}", &text[..head], &text[tail..]);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
