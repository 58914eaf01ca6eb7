// SPDX-License-Identifier: Apache-2.0
//! Step 2, pure: a spec becomes a [`ValidatedSession`] or is rejected.
//!
//! In: the spec, the catalogue. Out: everything later steps need, with defaults filled in, so that none of them
//! reads the spec again; or the condition that says what is wrong and what would be right. What one object
//! can show is the schema's business (`crds`); here is what needs the catalogue.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crds::conditions::reason;
use crds::{OnExceeded, TraceSessionSpec, WorkloadRef};
use dataset::catalogue::{self, CatalogueError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;
use node_api::v1::{Budget, CollectorPlan};

/// Which pods, by one of three ways.
#[derive(Clone, Debug)]
pub enum Selection {
    /// By labels.
    Labels(Selector),
    /// By name.
    Names(BTreeSet<String>),
    /// By the workload that owns them.
    Workload(WorkloadRef),
}

/// A spec that can be acted on.
#[derive(Clone, Debug)]
pub struct ValidatedSession {
    /// What to record, as agents are told.
    pub collectors: Vec<CollectorPlan>,
    /// Which pods.
    pub selection: Selection,
    /// Labels that their nodes must carry.
    pub node_selector: BTreeMap<String, String>,
    /// Which of their containers; empty: all.
    pub containers: Vec<String>,
    /// Length of the window.
    pub duration: Duration,
    /// For uploads, after the window.
    pub drain_timeout: Duration,
    /// How long to wait for a store.
    pub start_deadline: Duration,
    /// When agents begin a new file, milliseconds.
    pub rollover_interval_ms: u64,
    /// And at which size.
    pub rollover_bytes: u64,
    /// Bytes uploaded at which the session ends.
    pub budget_bytes: Option<u64>,
    /// What the session may cost each node, as agents are told.
    pub budget: Option<Budget>,
}

/// Why a spec cannot be acted on, as the condition `Accepted` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// A constant of `crds::conditions::reason`.
    pub reason: &'static str,
    /// What is known instead.
    pub message: String,
}

fn invalid(message: String) -> Rejection {
    Rejection { reason: reason::INVALID_PARAMETER, message }
}

/// Checks a spec.
///
/// # Errors
/// The first thing that is wrong.
pub fn validate(spec: &TraceSessionSpec) -> Result<ValidatedSession, Rejection> {
    let selection = selection(spec)?;
    spec.collectors.iter().try_for_each(check)?;
    Ok(accepted(spec, selection))
}

/// The spec of a session that has begun: an operator accepted it, perhaps of another version. What this one does not know of
/// collectors is for the agents to say, and if it does not know how to choose pods, no more are chosen. Rejected, a session would
/// lose what it has recorded.
pub fn begun(spec: &TraceSessionSpec) -> ValidatedSession {
    let selection = selection(spec).unwrap_or_else(|rejection| {
        tracing::error!(
            message = rejection.message,
            "the pods of a session that has begun cannot be chosen, none are any more"
        );
        Selection::Names(BTreeSet::new())
    });
    accepted(spec, selection)
}

fn selection(spec: &TraceSessionSpec) -> Result<Selection, Rejection> {
    let target = &spec.target;
    Ok(match (&target.pod_selector, &target.workload_ref, &target.pod_names) {
        (Some(selector), None, None) => {
            let selector = Selector::try_from(LabelSelector::from(selector));
            Selection::Labels(selector.map_err(|error| invalid(format!("target.podSelector: {error}")))?)
        }
        (None, Some(workload), None) => Selection::Workload(workload.clone()),
        (None, None, Some(names)) => Selection::Names(names.iter().cloned().collect()),
        _ => {
            return Err(invalid(
                "target: exactly one of podSelector, workloadRef and podNames must be set".to_owned(),
            ));
        }
    })
}

fn accepted(spec: &TraceSessionSpec, selection: Selection) -> ValidatedSession {
    let target = &spec.target;
    ValidatedSession {
        collectors: spec.collectors.iter().map(collector).collect(),
        selection,
        node_selector: target.node_selector.clone(),
        containers: target.containers.clone(),
        duration: spec.duration.duration(),
        drain_timeout: spec.drain_timeout.duration(),
        start_deadline: spec.start_deadline(),
        rollover_interval_ms: millis(spec.rollover.interval.duration()),
        rollover_bytes: spec.rollover.size.bytes(),
        budget_bytes: spec.budget.as_ref().and_then(|budget| Some(budget.bytes.as_ref()?.bytes())),
        budget: spec.budget.as_ref().and_then(budget),
    }
}

/// What of a budget is the nodes' business; none, if nothing is.
fn budget(asked: &crds::Budget) -> Option<Budget> {
    let budget = Budget {
        events_per_second: asked.events_per_second.and_then(|events| events.try_into().ok()).unwrap_or(0),
        cpu_millis: asked.cpu.as_ref().map_or(0, crds::Cpu::millis),
        stop: asked.on_exceeded == OnExceeded::Stop,
    };
    (budget.events_per_second > 0 || budget.cpu_millis > 0).then_some(budget)
}

/// Whether a collector can be had as it is asked for.
fn check(asked: &crds::Collector) -> Result<(), Rejection> {
    let name = asked.name.as_str();
    let valid = catalogue::validate(name, &asked.params).map_err(|error| {
        let reason = match error {
            CatalogueError::UnknownCollector { .. } => reason::UNKNOWN_COLLECTOR,
            CatalogueError::UnknownParam { .. } | CatalogueError::InvalidParam { .. } => {
                reason::INVALID_PARAMETER
            }
        };
        Rejection { reason, message: error.to_string() }
    })?;
    let CollectorPlan { sample_every, max_events_per_second, .. } = collector(asked);
    if !valid.info.events && (sample_every > 1 || max_events_per_second > 0) {
        return Err(invalid(format!(
            "collector {name} looks once per window: sampleEvery and maxEventsPerSecond do not apply to it"
        )));
    }
    if !valid.info.has_windows() && asked.interval.is_some() {
        return Err(invalid(format!(
            "collector {name} writes a row per event: interval does not apply to it"
        )));
    }
    Ok(())
}

fn collector(asked: &crds::Collector) -> CollectorPlan {
    CollectorPlan {
        name: asked.name.as_str().to_owned(),
        params: asked.params.clone(),
        interval_ms: asked.interval.as_ref().map_or(0, |interval| millis(interval.duration())),
        sample_every: u32::try_from(asked.sample_every).unwrap_or(1).max(1),
        max_events_per_second: asked.max_events_per_second.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        optional: asked.optional,
        sha256: Vec::new(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(yaml: &str, expected: &Expect) {
        let spec: TraceSessionSpec = serde_yaml::from_str(yaml).unwrap();
        let text = match validate(&spec) {
            Ok(valid) => format!("{:#?}", valid.collectors),
            Err(rejection) => format!("{}: {}", rejection.reason, rejection.message),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn an_unknown_collector_is_rejected_with_the_known_ones_also_when_optional() {
        check(
            "{target: {podSelector: {}}, duration: 1m, collectors: [{name: procesess, optional: true}]}",
            &expect![[
                r#"UnknownCollector: there is no collector "procesess"; known collectors: cpuSched, memoryRss, nodeInfo, packetDrops, pageFaults, processes, tcpConnections, tcpListenQueue, tcpReceive, tcpRetransmits, tcpStates, tcpThroughput"#
            ]],
        );
    }

    #[test]
    fn an_unknown_parameter_is_rejected_with_the_known_ones() {
        check(
            "{target: {podSelector: {}}, duration: 1m, collectors: [{name: processes, params: {colour: red}}]}",
            &expect![[
                r#"InvalidParameter: collector processes has no parameter "colour"; its parameters: args, renames, threads"#
            ]],
        );
    }

    #[test]
    fn what_does_not_apply_to_a_collector_is_rejected() {
        check(
            "{target: {podSelector: {}}, duration: 1m, collectors: [{name: processes, interval: 5s}]}",
            &expect![
                "InvalidParameter: collector processes writes a row per event: interval does not apply to it"
            ],
        );
        check(
            "{target: {podSelector: {}}, duration: 1m, collectors: [{name: nodeInfo, sampleEvery: 5}]}",
            &expect![
                "InvalidParameter: collector nodeInfo looks once per window: sampleEvery and maxEventsPerSecond do not apply to it"
            ],
        );
    }

    #[test]
    fn what_has_begun_is_planned_as_it_was_though_this_version_does_not_know_it() {
        let yaml = "{target: {podSelector: {}}, duration: 1m, collectors: [{name: processes}, \
             {name: ofTheFuture, params: {a: b}, interval: 5s}]}";
        let spec: TraceSessionSpec = serde_yaml::from_str(yaml).unwrap();
        assert_eq!(validate(&spec).unwrap_err().reason, reason::UNKNOWN_COLLECTOR);
        let begun = begun(&spec);
        let future = &begun.collectors[1];
        assert_eq!((&*future.name, &*future.params["a"], future.interval_ms), ("ofTheFuture", "b", 5_000));
        assert!(matches!(begun.selection, Selection::Labels(_)));
    }

    #[test]
    fn a_session_is_accepted_with_its_defaults() {
        check(
            "{target: {workloadRef: {kind: Deployment, name: web}}, duration: 1m, collectors: [{name: processes, sampleEvery: 10}]}",
            &expect![[r#"
                [
                    CollectorPlan {
                        name: "processes",
                        params: {},
                        interval_ms: 0,
                        sample_every: 10,
                        max_events_per_second: 0,
                        optional: false,
                        sha256: [],
                    },
                ]"#]],
        );
    }
}
