// SPDX-License-Identifier: Apache-2.0
//! Step 5, pure: what is known becomes the status, and what changed becomes Events.
//!
//! In: [`Observed`]. Out: the whole status; written only if it differs from the one that is there. Nothing here reads
//! a clock, so the same observation gives the same status, and an idle session costs no write.

use std::collections::BTreeMap;

use crds::conditions::{self, reason, session as condition};
use crds::{DatasetStatus, OnExceeded, Phase, TraceSession, TraceSessionStatus};
use dataset::manifest::{self, Verdict};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::nodes::{self, NodeState};
use super::validate::Rejection;
use crate::hub::NodeView;

/// Where the session stands with its store.
#[derive(Clone, Debug)]
pub enum StoreState {
    /// Not asked in this pass: the condition stays as it is.
    Unasked,
    /// It answered the probe, and nothing is known to be wrong since.
    Ready,
    /// It cannot be used: reason and message.
    Problem(String, String),
}

/// The pods that match, or why there are none.
#[derive(Clone, Debug)]
pub enum TargetState {
    /// Not looked at in this pass.
    Unasked,
    /// Pods that match, and those of them that are on a node which takes part.
    Pods {
        /// By the target.
        matching: usize,
        /// In the plans.
        planned: usize,
    },
    /// The workload named does not exist.
    WorkloadMissing(String),
}

/// Why the window ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Early {
    /// `stop` was set, or the session is being deleted.
    Stopped,
    /// A budget is used up that a node watches, or any one in a pass before this.
    Budget,
    /// Its bytes are.
    Bytes {
        /// Uploaded, or granted to be.
        used: u64,
        /// After which it ends.
        limit: u64,
        /// The session's own limit, else the chart's.
        own: bool,
    },
}

/// How the session ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The manifest's key and verdict; none if it could not be written before the session had to end.
    pub manifest: Option<(String, Verdict)>,
    /// Why it is not complete.
    pub reason: String,
    /// What the manifest of a complete one comes to.
    pub totals: Option<manifest::Totals>,
}

/// Everything the status is made from.
pub struct Observed<'a> {
    /// The resource as it is.
    pub session: &'a TraceSession,
    /// The present.
    pub now: Timestamp,
    /// Why the spec is not accepted.
    pub rejection: Option<&'a Rejection>,
    /// The store.
    pub store: StoreState,
    /// Where the data go; set when the window opens.
    pub dataset: Option<DatasetStatus>,
    /// Beginning and end of the window, once it is open.
    pub window: Option<(Timestamp, Timestamp)>,
    /// Why it ended before its time.
    pub early: Option<Early>,
    /// The pods.
    pub targets: TargetState,
    /// What every expected node does.
    pub states: &'a BTreeMap<String, NodeState>,
    /// What every expected node reports.
    pub views: &'a BTreeMap<String, NodeView>,
    /// It could not begin in time.
    pub deadline_passed: bool,
    /// Its namespace records as many sessions as it may.
    pub crowded: bool,
    /// Set when the session is over.
    pub finished: Option<Finished>,
}

/// The status that follows.
pub fn status(seen: &Observed<'_>) -> TraceSessionStatus {
    let mut status = seen.session.status.clone().unwrap_or_default();
    status.observed_generation = seen.session.metadata.generation;
    if let Some((start, end)) = seen.window {
        status.start_time = Some(time(start));
        status.end_time = Some(time(end));
        status.nodes = Some(nodes::counts(seen.states, seen.views));
        status.failing_nodes = nodes::failing(seen.states, seen.views, seen.finished.is_some());
        let asked = seen.session.spec.collectors.iter().map(|collector| collector.name.to_string());
        status.collectors = nodes::collectors(asked, seen.views, &status.collectors);
        status.totals = Some(match seen.finished.as_ref().and_then(|finished| finished.totals.as_ref()) {
            // Nodes that nobody heard of since the operator restarted are in the manifest all the same.
            Some(totals) => nodes::listed(totals, status.totals.as_ref()),
            None => nodes::totals(seen.views, status.totals.as_ref()),
        });
    }
    if let Some(dataset) = &seen.dataset {
        status.dataset = Some(dataset.clone());
    }
    if let (Some(dataset), Some((key, _))) =
        (&mut status.dataset, seen.finished.as_ref().and_then(|finished| finished.manifest.as_ref()))
    {
        dataset.manifest = Some(key.clone());
    }
    let phase = phase(seen, status.phase);
    status.phase = Some(phase);
    if phase.is_over() && status.completion_time.is_none() {
        status.completion_time = Some(time(seen.now));
    }
    set_conditions(seen, phase, &mut status);
    status
}

/// A moment as a status holds it.
pub(crate) fn time(at: Timestamp) -> Time {
    // The API server keeps seconds; anything finer would look like a change at every comparison.
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

fn phase(seen: &Observed<'_>, before: Option<Phase>) -> Phase {
    if seen.rejection.is_some() || seen.deadline_passed {
        return Phase::Failed;
    }
    let Some((_, end)) = seen.window else { return Phase::Pending };
    let running = seen.states.values().any(|state| *state == NodeState::Running);
    match &seen.finished {
        Some(finished) => {
            let failed =
                |state: &NodeState| matches!(state, NodeState::Failed(..) | NodeState::Unsupported(_));
            if !seen.states.is_empty() && seen.states.values().all(failed) {
                return Phase::Failed;
            }
            match finished.manifest {
                Some((_, Verdict::Complete)) => Phase::Completed,
                _ => Phase::Incomplete,
            }
        }
        None if seen.now >= end => Phase::Draining,
        // A node that stops answering does not undo that the session runs.
        None if running || before == Some(Phase::Running) => Phase::Running,
        None => Phase::Preparing,
    }
}

fn set_conditions(seen: &Observed<'_>, phase: Phase, status: &mut TraceSessionStatus) {
    let generation = seen.session.metadata.generation;
    let now = time(seen.now);
    let mut list = std::mem::take(&mut status.conditions);
    let mut set = |type_: &str, value: bool, reason: &str, message: &str| {
        conditions::set(&mut list, type_, Some(value), reason, message, generation, &now);
    };
    match seen.rejection {
        Some(rejection) => {
            set(condition::ACCEPTED, false, rejection.reason, &rejection.message);
            set(condition::COLLECTING, false, reason::WAITING, "the session is not accepted");
            status.conditions = list;
            return;
        }
        None => set(condition::ACCEPTED, true, reason::VALID, "every collector and parameter is known"),
    }
    match &seen.store {
        StoreState::Unasked => {}
        StoreState::Ready => {
            set(
                condition::STORE_READY,
                true,
                reason::PROBE_SUCCEEDED,
                "the store can be written, read and listed",
            );
        }
        StoreState::Problem(reason, message) => set(condition::STORE_READY, false, reason, message),
    }
    match &seen.targets {
        TargetState::Unasked => {}
        TargetState::Pods { matching, planned: 0 } => {
            let why = match matching {
                0 => "no pod matches yet".to_owned(),
                _ => format!("{}, none of them on a node that is selected yet", count(*matching, "pod")),
            };
            let message = format!("{why}; waiting until the window ends");
            set(condition::TARGETS_RESOLVED, false, reason::NO_PODS, &message);
        }
        TargetState::Pods { planned, .. } => {
            let nodes = seen.states.len();
            let message = format!("{}, {}", count(*planned, "pod"), count(nodes, "node"));
            set(condition::TARGETS_RESOLVED, true, reason::PODS_FOUND, &message);
        }
        TargetState::WorkloadMissing(workload) => {
            let message = format!("there is no {workload} in this namespace; waiting until the window ends");
            set(condition::TARGETS_RESOLVED, false, reason::WORKLOAD_NOT_FOUND, &message);
        }
    }
    let (value, why, message) = collecting(seen, phase);
    set(condition::COLLECTING, value, why, &message);
    let (value, why, message) = uploaded(seen, phase);
    set(condition::UPLOADED, value, why, &message);
    let (value, why, message) = degraded(seen, status);
    set(condition::DEGRADED, value, why, &message);
    if let Some((why, message)) = budget_exceeded(seen) {
        set(condition::BUDGET_EXCEEDED, true, why, &message);
    } else if before(seen, condition::BUDGET_EXCEEDED).is_none_or(|before| before.status != "True") {
        set(condition::BUDGET_EXCEEDED, false, reason::AS_EXPECTED, "");
    }
    status.conditions = list;
}

/// A condition as it was.
fn before<'a>(seen: &Observed<'a>, type_: &str) -> Option<&'a Condition> {
    conditions::get(&seen.session.status.as_ref()?.conditions, type_)
}

/// Which budget was not enough, where, and what is done about it; none where all are, or nothing new is known.
fn budget_exceeded(seen: &Observed<'_>) -> Option<(&'static str, String)> {
    let before = before(seen, condition::BUDGET_EXCEEDED);
    if before.is_some_and(|before| before.reason == reason::BUDGET_STOPPED) {
        return None;
    }
    let excesses = |stopped: bool| {
        let said =
            seen.views.iter().filter_map(|(node, view)| Some((node, view.report.as_ref()?.excess.as_ref()?)));
        let mut said = said.filter(move |(_, excess)| excess.stopped == stopped);
        let (node, first) = said.next()?;
        let others = match said.count() {
            0 => String::new(),
            others => format!(" (and {})", count(others, "other node")),
        };
        Some(format!("{node}{others}: {}", first.message))
    };
    // Whatever ended the window: a node may have stopped just before. None stops a session that is to be sampled.
    let stops = seen.session.spec.budget.as_ref().is_some_and(|one| one.on_exceeded == OnExceeded::Stop);
    if let Some(message) = excesses(true).filter(|_| stops) {
        return Some((reason::BUDGET_STOPPED, message));
    }
    if let Some(Early::Bytes { used, limit, own }) = seen.early {
        let whose = if own { "budget.bytes" } else { "limits.bytes of this cluster's chart" };
        let message =
            format!("bytes: {used} uploaded or about to be, {limit} by {whose}: the window was ended");
        return Some((reason::BUDGET_STOPPED, message));
    }
    if seen.early == Some(Early::Budget) {
        return Some((reason::BUDGET_STOPPED, "a budget is used up: the window was ended".to_owned()));
    }
    excesses(false).map(|message| (reason::SAMPLING, message))
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn collecting(seen: &Observed<'_>, phase: Phase) -> (bool, &'static str, String) {
    let states = seen.states;
    let running = states.values().filter(|state| **state == NodeState::Running).count();
    let all = |test: fn(&NodeState) -> bool| !states.is_empty() && states.values().all(test);
    let unsupported = |state: &NodeState| matches!(state, NodeState::Unsupported(_));
    if seen.deadline_passed && seen.early == Some(Early::Stopped) {
        return (
            false,
            reason::STOPPED,
            "the session was stopped before it began; nothing was collected".to_owned(),
        );
    }
    if seen.deadline_passed {
        let why = if seen.crowded {
            "as many sessions of the namespace recorded as may until startDeadline"
        } else {
            "no store became ready before startDeadline"
        };
        return (false, reason::START_DEADLINE_EXCEEDED, format!("{why}; nothing was collected"));
    }
    if seen.crowded {
        let message = "as many sessions of the namespace record as may; waiting for one to end".to_owned();
        return (false, reason::NAMESPACE_CAPACITY, message);
    }
    if all(unsupported) {
        return (
            false,
            reason::UNSUPPORTED,
            "no node can run any of the collectors; see failingNodes".to_owned(),
        );
    }
    if phase == Phase::Failed && seen.early != Some(Early::Stopped) {
        return (false, reason::NODE_FAILED, "no node recorded anything; see failingNodes".to_owned());
    }
    if matches!(phase, Phase::Draining) || phase.is_over() {
        return match seen.early {
            Some(Early::Stopped) => (false, reason::STOPPED, "the session was stopped".to_owned()),
            _ => (false, reason::WINDOW_ENDED, "the window is over".to_owned()),
        };
    }
    if running > 0 {
        return (true, reason::RECORDING, format!("{} of {} record", running, count(states.len(), "node")));
    }
    if all(|state| matches!(state, NodeState::Failed(reason, _) if reason == reason::NODE_CAPACITY)) {
        let message = "every node records as many sessions as it can; waiting for one to end".to_owned();
        return (false, reason::NODE_CAPACITY, message);
    }
    let message = match seen.window {
        None => "waiting for the store",
        Some(_) if states.is_empty() => "waiting for pods",
        Some(_) => "waiting for the nodes",
    };
    (false, reason::WAITING, message.to_owned())
}

fn uploaded(seen: &Observed<'_>, phase: Phase) -> (bool, &'static str, String) {
    match &seen.finished {
        Some(Finished { manifest: Some((key, Verdict::Complete)), .. }) => {
            (true, reason::ALL_ACKNOWLEDGED, format!("{key} says what is there"))
        }
        Some(finished) => {
            let settled = seen.states.values().all(NodeState::is_settled);
            let failed = seen.states.values().any(|state| matches!(state, NodeState::Failed(..)));
            let why = if settled && failed {
                reason::NODE_FAILED
            } else if settled && finished.manifest.is_some() {
                reason::OBJECTS_MISSING
            } else {
                reason::DRAIN_TIMEOUT
            };
            (false, why, finished.reason.clone())
        }
        None if phase == Phase::Draining => {
            (false, reason::UPLOADING, "nodes upload what they have".to_owned())
        }
        None if phase.is_over() => (false, reason::NOTHING_COLLECTED, "nothing was collected".to_owned()),
        None => (false, reason::WAITING, "the window is not over".to_owned()),
    }
}

fn degraded(seen: &Observed<'_>, status: &TraceSessionStatus) -> (bool, &'static str, String) {
    let named = |test: fn(&NodeState) -> bool| -> Option<String> {
        let mut names = seen.states.iter().filter(|(_, state)| test(state)).map(|(name, _)| name.as_str());
        let first = names.next()?;
        let others = names.count();
        Some(if others == 0 {
            first.to_owned()
        } else {
            format!("{first} and {}", count(others, "other node"))
        })
    };
    if let Some(nodes) = named(|state| matches!(state, NodeState::Failed(..))) {
        return (true, reason::NODE_FAILED, format!("{nodes} cannot collect; see failingNodes"));
    }
    if let Some(nodes) = named(|state| matches!(state, NodeState::Lost(why) if *why == reason::NODE_LOST)) {
        return (true, reason::NODE_LOST, format!("the agent of {nodes} does not answer"));
    }
    if let Some(nodes) = named(|state| matches!(state, NodeState::Lost(_))) {
        return (true, reason::NO_AGENT, format!("no agent of {nodes} is connected"));
    }
    let partly = |view: &NodeView| {
        let said = view.report.as_ref().map(|report| report.reason.as_str());
        said.is_some_and(|said| {
            [
                node_api::reason::PLAN_REFUSED,
                node_api::reason::TARGETS_FAILED,
                node_api::reason::TARGETS_MISSING,
            ]
            .contains(&said)
        })
    };
    if let Some((node, view)) = seen.views.iter().find(|(_, view)| partly(view)) {
        let is_refused =
            view.report.as_ref().is_some_and(|report| report.reason == node_api::reason::PLAN_REFUSED);
        let what = if is_refused { "does not take its plan" } else { "records only some of its pods" };
        return (true, reason::TARGETS_MISSING, format!("{node} {what}; see failingNodes"));
    }
    if seen.finished.is_some()
        && let Some(nodes) = named(|state| !state.is_settled())
    {
        return (true, reason::DRAIN_TIMEOUT, format!("{nodes} had not uploaded everything in time"));
    }
    let required = |name: &str| {
        seen.session.spec.collectors.iter().any(|asked| asked.name.as_str() == name && !asked.optional)
    };
    if let Some(one) = status.collectors.iter().find(|one| one.nodes_unsupported > 0 && required(&one.name)) {
        let nodes = count(usize::try_from(one.nodes_unsupported).unwrap_or(0), "node");
        let why = one.reason.as_deref().unwrap_or_default();
        return (true, reason::COLLECTOR_UNSUPPORTED, format!("{} does not run on {nodes}: {why}", one.name));
    }
    let optional = seen.session.spec.collectors.iter().all(|asked| asked.optional);
    if let (Some(nodes), false) = (named(|state| matches!(state, NodeState::Unsupported(_))), optional) {
        return (true, reason::COLLECTOR_UNSUPPORTED, format!("{nodes} can run none of the collectors"));
    }
    if status.totals.as_ref().is_some_and(|totals| totals.lost > 0) {
        // The number stands in totals; here it would make every loss a new message.
        return (
            true,
            reason::EVENTS_LOST,
            "events were lost; totals.lost says how many, table ledger where".to_owned(),
        );
    }
    (false, reason::AS_EXPECTED, String::new())
}

/// An Event to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Warning, or Normal.
    pub warning: bool,
    /// A constant.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// What is worth an Event between two statuses: each change of phase, and each new trouble.
pub fn notes(before: &TraceSessionStatus, after: &TraceSessionStatus) -> Vec<Note> {
    let mut notes = Vec::new();
    if before.phase != after.phase
        && let Some(phase) = after.phase
    {
        let warning = matches!(phase, Phase::Incomplete | Phase::Failed);
        // What failed did so before there was anything to upload.
        let about = match phase {
            Phase::Completed | Phase::Incomplete => condition::UPLOADED,
            _ => condition::COLLECTING,
        };
        let message =
            conditions::get(&after.conditions, about).map(|c| c.message.clone()).unwrap_or_default();
        notes.push(Note { warning, reason: format!("{phase:?}"), message });
    }
    for (type_, bad) in condition::TROUBLES {
        let Some(now) = conditions::get(&after.conditions, type_).filter(|c| c.status == *bad) else {
            continue;
        };
        let known = conditions::get(&before.conditions, type_);
        if known.is_none_or(|known| known.status != now.status || known.reason != now.reason) {
            notes.push(Note { warning: true, reason: now.reason.clone(), message: now.message.clone() });
        }
    }
    notes
}

#[cfg(test)]
mod tests;
