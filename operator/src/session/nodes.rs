// SPDX-License-Identifier: Apache-2.0
//! What each node of a session is doing, from its stream and its report. Pure.
//!
//! In: [`NodeView`] of every expected node. Out: one [`NodeState`] each, and sums. Only expected nodes are
//! counted (those that had a pod in the window): a sum over whoever happens to report would call a session
//! done before its nodes were known.

use std::collections::BTreeMap;
use std::time::Duration;

use crds::conditions::reason;
use crds::{CollectorStatus, FailingNode, NodeCounts, Totals};
use dataset::ledger::Term;
use dataset::manifest;
use node_api::v1::{self, Stage};
use tokio::time::Instant;

use crate::hub::NodeView;

/// A node without a stream for this long is lost: longer than an agent's restart, and than its longest wait before
/// it reconnects.
pub const LOST_AFTER: Duration = Duration::from_secs(45);
/// `nodes.names` holds at most this many, as its kind says: of more, an operator that restarts waits for these.
pub const NAMES_MAX: usize = 5_000;
/// `failingNodes` names at most this many.
pub const FAILING_MAX: usize = 5;

/// What one node is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Nothing heard yet.
    Waiting,
    /// Loads its hooks.
    Preparing,
    /// Records.
    Running,
    /// Uploads.
    Draining,
    /// Everything is acknowledged.
    Done,
    /// Cannot run any of the collectors.
    Unsupported(String),
    /// Cannot collect, for another reason: constant and sentence.
    Failed(String, String),
    /// Does not answer: the constant.
    Lost(&'static str),
}

impl NodeState {
    /// Whether the state says why there is no more of this node than there is. Whom a session waits for is said by [`is_done`].
    pub fn is_settled(&self) -> bool {
        matches!(self, Self::Done | Self::Unsupported(_) | Self::Failed(..))
    }
}

/// Whether the node says that nothing more will come of the session. One that cannot record now, or has no place for it, may
/// hold rows from before: it uploads them when it is told to drain, and says so then.
pub fn is_done(view: &NodeView) -> bool {
    view.report.as_ref().is_some_and(|report| report.stage() == Stage::Done)
}

/// Whether there is more of the session on this node than its failure: objects in the store, or bytes that wait for it.
fn has_data(report: &v1::SessionReport) -> bool {
    report.totals.as_ref().is_some_and(|totals| totals.objects_uploaded > 0 || totals.bytes_pending > 0)
}

/// What this node is doing. `expected_since` is when this process learnt that it has a pod; `last`: nobody waits longer.
pub fn state(view: &NodeView, expected_since: Instant, now: Instant, last: bool) -> NodeState {
    let stage = view.report.as_ref().map(v1::SessionReport::stage);
    match (stage, &view.report) {
        // Final, whether or not the agent is still there.
        (Some(Stage::Done), Some(report)) if report.reason.is_empty() => return NodeState::Done,
        // What it recorded before it failed, or had no place, is waited for like any other's, and missed.
        (Some(Stage::Failed | Stage::Preparing), Some(report)) if last && has_data(report) => {}
        (Some(Stage::Done | Stage::Failed), Some(report))
            if report.reason == node_api::reason::UNSUPPORTED =>
        {
            return NodeState::Unsupported(report.message.clone());
        }
        (Some(Stage::Done | Stage::Failed), Some(report)) => {
            return NodeState::Failed(constant(&report.reason), report.message.clone());
        }
        // It tries again and again, until one of its sessions ends.
        (Some(Stage::Preparing), Some(report)) if report.reason == node_api::reason::NODE_CAPACITY => {
            return NodeState::Failed(reason::NODE_CAPACITY.to_owned(), report.message.clone());
        }
        _ => {}
    }
    if !view.connected {
        let since = view.lost_since.map_or(expected_since, |lost| lost.max(expected_since));
        if last || now.saturating_duration_since(since) >= LOST_AFTER {
            let ever = view.lost_since.is_some();
            return NodeState::Lost(if ever { reason::NODE_LOST } else { reason::NO_AGENT });
        }
    }
    match stage {
        Some(Stage::Preparing) => NodeState::Preparing,
        Some(Stage::Running) => NodeState::Running,
        Some(Stage::Draining) => NodeState::Draining,
        _ => NodeState::Waiting,
    }
}

/// Whether an agent cannot upload because of the store.
pub fn troubled_by_store(views: &BTreeMap<String, NodeView>) -> bool {
    let reports = views.values().filter_map(|view| view.report.as_ref());
    let words = [node_api::reason::STORE_ERROR, node_api::reason::STORE_UNREACHABLE];
    reports.map(|report| report.reason.as_str()).any(|reason| words.contains(&reason))
}

/// A reason as an agent sent it, if it can stand in a status.
fn constant(reason: &str) -> String {
    let good =
        !reason.is_empty() && reason.len() <= 63 && reason.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if good { reason.to_owned() } else { reason::NODE_FAILED.to_owned() }
}

/// Counts by state.
pub fn counts(states: &BTreeMap<String, NodeState>, views: &BTreeMap<String, NodeView>) -> NodeCounts {
    let mut counts = NodeCounts {
        expected: number(states.len()),
        ready: number(views.values().filter(|view| view.connected && view.report.is_some()).count()),
        names: states.keys().take(NAMES_MAX).cloned().collect(),
        ..NodeCounts::default()
    };
    for state in states.values() {
        match state {
            NodeState::Waiting | NodeState::Preparing => {}
            NodeState::Running => counts.running += 1,
            NodeState::Draining => counts.draining += 1,
            NodeState::Done => counts.done += 1,
            NodeState::Unsupported(_) => counts.unsupported += 1,
            NodeState::Failed(..) => counts.failed += 1,
            NodeState::Lost(_) => counts.lost += 1,
        }
    }
    counts.summary = format!("{}/{}", counts.running + counts.draining + counts.done, counts.expected);
    counts
}

/// At most five nodes that are in trouble, by name, as their agents say; once the session is over (`finished`), also those
/// that still had something to upload.
pub fn failing(
    states: &BTreeMap<String, NodeState>,
    views: &BTreeMap<String, NodeView>,
    finished: bool,
) -> Vec<FailingNode> {
    let failing = states.iter().filter_map(|(name, state)| {
        let said =
            views.get(name).and_then(|view| view.report.as_ref()).filter(|said| !said.reason.is_empty());
        let (reason, message) = match state {
            NodeState::Failed(reason, message) => (reason.clone(), message.clone()),
            NodeState::Unsupported(message) => (reason::UNSUPPORTED.to_owned(), message.clone()),
            NodeState::Lost(reason) if *reason == reason::NO_AGENT => {
                ((*reason).to_owned(), "no agent of this node is connected".to_owned())
            }
            NodeState::Lost(reason) => ((*reason).to_owned(), "the agent's stream is down".to_owned()),
            NodeState::Done => return None,
            _ if finished => {
                let why =
                    said.map_or_else(String::new, |said| format!(": {}: {}", said.reason, said.message));
                let message = format!("it had not uploaded everything when drainTimeout passed{why}");
                (reason::DRAIN_TIMEOUT.to_owned(), message)
            }
            _ => said.map(|said| (constant(&said.reason), said.message.clone()))?,
        };
        Some(FailingNode { name: name.clone(), reason, message: message.chars().take(1024).collect() })
    });
    failing.take(FAILING_MAX).collect()
}

/// Each collector, in the session's order, and on how many nodes it runs.
pub fn collectors(
    asked: impl IntoIterator<Item = String>,
    views: &BTreeMap<String, NodeView>,
    before: &[CollectorStatus],
) -> Vec<CollectorStatus> {
    let mut all = Vec::new();
    for name in asked {
        let mut status = CollectorStatus { name, nodes_running: 0, nodes_unsupported: 0, reason: None };
        let reports = views.values().filter_map(|view| view.report.as_ref());
        for report in
            reports.flat_map(|report| &report.collectors).filter(|report| report.name == status.name)
        {
            if report.running {
                status.nodes_running += 1;
            } else if !report.reason.is_empty() {
                status.nodes_unsupported += 1;
                let reason = format!("{}: {}", report.reason, report.message);
                status.reason.get_or_insert_with(|| reason.chars().take(1024).collect());
            }
        }
        // Nodes that stopped, or are gone, ran it all the same.
        if let Some(before) = before.iter().find(|before| before.name == status.name) {
            status.nodes_running = status.nodes_running.max(before.nodes_running);
            status.nodes_unsupported = status.nodes_unsupported.max(before.nodes_unsupported);
            status.reason = status.reason.or_else(|| before.reason.clone());
        }
        all.push(status);
    }
    all
}

/// A manifest's account. Of an agent that crashed nobody knows how many events it had: not fewer than are accounted for, nor than
/// were shown `before`.
pub fn listed(totals: &manifest::Totals, before: Option<&Totals>) -> Totals {
    let shown = before.map_or(0, |before| before.emitted);
    let emitted = signed(totals.emitted);
    Totals {
        emitted: if totals.unknown { emitted.max(shown).max(signed(totals.terms.total())) } else { emitted },
        exported: signed(totals.terms.get(Term::Exported)),
        sampled_out: signed(totals.terms.get(Term::SampledOut)),
        rate_limited: signed(totals.terms.get(Term::RateLimited)),
        filtered: signed(totals.terms.get(Term::Filtered)),
        lost: signed(totals.terms.lost()),
        rows: signed(totals.rows),
        bytes_uploaded: signed(totals.bytes),
        objects_uploaded: signed(totals.objects),
        bytes_pending: 0,
    }
}

/// The sum of the nodes' accounts. No term but `bytesPending` ever falls below what was shown `before`: after a
/// restart of the operator, nodes report again one by one, and one that is gone does not. Terms that are of different moments
/// then are no more than was emitted all the same.
pub fn totals(views: &BTreeMap<String, NodeView>, before: Option<&Totals>) -> Totals {
    let mut sum = v1::Totals::default();
    for one in views.values().filter_map(|view| view.report.as_ref()?.totals.as_ref()) {
        let add = |to: &mut u64, term: u64| *to = to.saturating_add(term);
        add(&mut sum.emitted, one.emitted);
        add(&mut sum.exported, one.exported);
        add(&mut sum.sampled_out, one.sampled_out);
        add(&mut sum.rate_limited, one.rate_limited);
        add(&mut sum.filtered, one.filtered);
        add(&mut sum.lost, one.lost);
        add(&mut sum.rows, one.rows);
        add(&mut sum.bytes_uploaded, one.bytes_uploaded);
        add(&mut sum.objects_uploaded, one.objects_uploaded);
        add(&mut sum.bytes_pending, one.bytes_pending);
    }
    let zero = Totals::default();
    let before = before.unwrap_or(&zero);
    let rising = |now: u64, before: i64| signed(now).max(before);
    let mut totals = Totals {
        emitted: rising(sum.emitted, before.emitted),
        exported: rising(sum.exported, before.exported),
        sampled_out: rising(sum.sampled_out, before.sampled_out),
        rate_limited: rising(sum.rate_limited, before.rate_limited),
        filtered: rising(sum.filtered, before.filtered),
        lost: rising(sum.lost, before.lost),
        rows: rising(sum.rows, before.rows),
        bytes_uploaded: rising(sum.bytes_uploaded, before.bytes_uploaded),
        objects_uploaded: rising(sum.objects_uploaded, before.objects_uploaded),
        bytes_pending: signed(sum.bytes_pending),
    };
    let Totals { exported, sampled_out, rate_limited, filtered, lost, .. } = totals;
    let accounted = [exported, sampled_out, rate_limited, filtered, lost];
    totals.emitted = totals.emitted.max(accounted.into_iter().fold(0, i64::saturating_add));
    totals
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn number(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
