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
    let collectors: Result<Vec<_>, _> = spec.collectors.iter().map(collector).collect();
    let target = &spec.target;
    let selection = match (&target.pod_selector, &target.workload_ref, &target.pod_names) {
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
    };
    Ok(ValidatedSession {
        collectors: collectors?,
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
    })
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

fn collector(asked: &crds::Collector) -> Result<CollectorPlan, Rejection> {
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
    let sample_every = u32::try_from(asked.sample_every).unwrap_or(1).max(1);
    let max_events_per_second = asked.max_events_per_second.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
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
    Ok(CollectorPlan {
        name: name.to_owned(),
        params: asked.params.clone(),
        interval_ms: asked.interval.as_ref().map_or(0, |interval| millis(interval.duration())),
        sample_every,
        max_events_per_second,
        optional: asked.optional,
        sha256: Vec::new(),
    })
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
