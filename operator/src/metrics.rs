// SPDX-License-Identifier: Apache-2.0
//! Every metric of the operator, declared here and nowhere else.
//!
//! Labels come from enums or from constants of `crds`, never from users' objects: their number is bounded.

use prometheus_client::encoding::{EncodeLabelSet, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::data::Denial;
use crate::hub::GrantRefusal;
use crate::token::Refusal;

/// A label whose value is one of a few words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Word(pub &'static str);

impl prometheus_client::encoding::EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

/// One label, `reason`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// Why.
    pub reason: Word,
}

/// One label, `result`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `ok` or `error`.
    pub result: Word,
}

/// One label, `kind`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// Kind of an object.
    pub kind: Word,
}

/// The counters and gauges; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Calls refused, by reason.
    pub refused: Family<Reason, Counter>,
    /// Grants given.
    pub grants: Counter,
    /// Grants refused, by reason.
    pub grants_refused: Family<Reason, Counter>,
    /// Pages of data that users got.
    pub reads: Counter,
    /// Pages denied, by reason.
    pub reads_denied: Family<Reason, Counter>,
    /// Plans sent.
    pub plans: Counter,
    /// Reports received.
    pub reports: Counter,
    /// Sessions of other nodes that agents reported on, which nobody hears.
    pub reports_foreign: Counter,
    /// Streams that are up.
    pub streams: Gauge,
    /// Sessions that nodes are asked to work on.
    pub sessions: Gauge,
    /// 1 for the replica that leads.
    pub leads: Gauge,
    /// Reconciles, by outcome.
    pub reconciles: Family<Outcome, Counter>,
    /// Writes to a session's status, by outcome.
    pub status_writes: Family<Outcome, Counter>,
    /// Manifests written: ok of a complete session, error of an incomplete one.
    pub manifests: Family<Outcome, Counter>,
    /// Unix time of the last change that a watch brought, by kind. Where nothing changes it stays.
    pub watch_seen: Family<Kind, Gauge>,
}

impl Metrics {
    /// Registers everything under `tracelake_operator_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("tracelake_operator");
        registry.register("calls_refused", "Agents' calls refused, by reason", self.refused.clone());
        registry.register("grants", "Upload grants given", self.grants.clone());
        registry.register("grants_refused", "Upload grants refused, by reason", self.grants_refused.clone());
        registry.register("reads", "Pages of data listed and signed for users", self.reads.clone());
        registry.register(
            "reads_denied",
            "Pages of data denied to users, by reason",
            self.reads_denied.clone(),
        );
        registry.register("plans_sent", "Plans sent to agents", self.plans.clone());
        registry.register("reports_received", "Reports received from agents", self.reports.clone());
        registry.register(
            "reports_foreign",
            "Reports on sessions that the agent's node does not have, which are left out",
            self.reports_foreign.clone(),
        );
        registry.register("streams", "Agents whose stream is up", self.streams.clone());
        registry.register("sessions", "Sessions that nodes work on", self.sessions.clone());
        registry.register("leads", "Whether this replica leads", self.leads.clone());
        registry.register("reconciles", "Reconciles of sessions, by result", self.reconciles.clone());
        registry.register(
            "status_writes",
            "Writes to sessions' status, by result",
            self.status_writes.clone(),
        );
        registry.register(
            "manifests",
            "Manifests written, by result: ok of a complete session, error of an incomplete one",
            self.manifests.clone(),
        );
        registry.register(
            "watch_seen_timestamp_seconds",
            "When a watch last brought a change, by kind",
            self.watch_seen.clone(),
        );
        // Every reason is there from the start, so that a rate over it is never missing.
        for refusal in <Refusal as strum::IntoEnumIterator>::iter() {
            let _ = self.refused.get_or_create(&reason(refusal.label()));
        }
        for family in [&self.reconciles, &self.status_writes, &self.manifests] {
            for ok in [true, false] {
                let _ = family.get_or_create(&outcome(ok));
            }
        }
        let _ = self.watch_seen.get_or_create(&Kind { kind: Word("TraceSession") });
        for refusal in <GrantRefusal as strum::IntoEnumIterator>::iter() {
            let _ = self.grants_refused.get_or_create(&reason(refusal.label()));
        }
        for denial in <Denial as strum::IntoEnumIterator>::iter() {
            let _ = self.reads_denied.get_or_create(&reason(denial.label()));
        }
    }

    /// Counts a refused call.
    pub fn refuse(&self, refusal: Refusal) {
        self.refused.get_or_create(&reason(refusal.label())).inc();
    }

    /// Counts a denied read.
    pub fn deny(&self, denial: Denial) {
        self.reads_denied.get_or_create(&reason(denial.label())).inc();
    }

    /// Counts a refused grant.
    pub fn refuse_grant(&self, refusal: GrantRefusal) {
        self.grants_refused.get_or_create(&reason(refusal.label())).inc();
    }
}

/// A set of one label `reason`.
pub fn reason(reason: &'static str) -> Reason {
    Reason { reason: Word(reason) }
}

/// A set of one label `result`.
pub fn outcome(ok: bool) -> Outcome {
    Outcome { result: Word(if ok { "ok" } else { "error" }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_a_label_from_the_start() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.refuse(Refusal::PodGone);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"tracelake_operator_calls_refused_total{reason="pod_gone"} 1"#,
            r#"tracelake_operator_calls_refused_total{reason="no_token"} 0"#,
            r#"tracelake_operator_calls_refused_total{reason="wrong_audience"} 0"#,
            r#"tracelake_operator_calls_refused_total{reason="expired"} 0"#,
            r#"tracelake_operator_calls_refused_total{reason="wrong_service_account"} 0"#,
            r#"tracelake_operator_calls_refused_total{reason="wrong_node"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
