// SPDX-License-Identifier: Apache-2.0

//! Every metric of the agent, declared once: `tracelake_<stage>_<noun>_<unit>_total`.
//!
//! In: calls from the stages. Out: OpenMetrics text. Labels come from enums, never from sessions or
//! pods: those are in the reports, and would grow the number of series without bound.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use node_api::v1;

use crate::pipeline::upload::UploadError;

type Labelled = Family<[(&'static str, &'static str); 1], Counter<u64, AtomicU64>>;

/// The agent's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    unattributed_seen: Mutex<BTreeMap<&'static str, u64>>,
    events_seen: Mutex<BTreeMap<String, Terms>>,
    upload_objects: Counter,
    upload_bytes: Counter,
    upload_errors: Labelled,
    spool_bytes: Gauge,
    recovery_discarded: Counter,
    recovery_quarantined: Counter,
    discarded: Counter,
    sessions: Gauge,
    sessions_recording: Gauge,
    plans_received: Counter,
    plans_refused: Counter,
    operator_connected: Gauge,
    unattributed: Labelled,
    events: Labelled,
}

/// Events of one session by where they ended, in the order of [`TERMS`].
type Terms = [u64; 6];
const TERMS: [&str; 6] = ["emitted", "exported", "sampled_out", "rate_limited", "filtered", "lost"];

/// Tables of packets that no socket claims.
const NETWORK_TABLES: [&str; 2] = ["packet_drops", "tcp_receive"];

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("tracelake");
        macro_rules! metrics {
            ($($field:ident: $name:literal, $help:literal;)*) => {{
                $(let $field = Default::default(); registry.register($name, $help, Clone::clone(&$field));)*
                Self { registry: Mutex::default(), unattributed_seen: Mutex::default(),
                    events_seen: Mutex::default(), $($field),* }
            }};
        }
        let metrics = metrics! {
            upload_objects: "upload_objects", "Segments that the store acknowledged";
            upload_bytes: "upload_bytes", "Bytes of segments that the store acknowledged";
            upload_errors: "upload_errors", "Failed attempts to upload, by kind; each is tried again";
            spool_bytes: "spool_used_bytes", "Bytes in the spool, sealed or being written";
            recovery_discarded: "recovery_discarded_files", "Files found at the start that had not been sealed";
            recovery_quarantined: "recovery_quarantined_files", "Sealed files found damaged at the start";
            discarded: "spool_discarded_events", "Events of sessions that were over before these were uploaded";
            sessions: "agent_sessions", "Sessions that this node holds data of or records";
            sessions_recording: "agent_recording_sessions", "Sessions that are being recorded";
            plans_received: "plan_messages", "Plans received";
            plans_refused: "plan_refused_bodies", "Bodies of plans that this agent's own checks refused";
            unattributed: "hook_unattributed_events", "Packets of no socket, in a network that no session records this table of";
            events: "session_events", "Events of targets, by where they ended: emitted is the sum of the others, once all is uploaded";
            operator_connected: "operator_connected", "Whether a stream to the operator is up";
        };
        // Every series is there from the start, so that a rate over it is never missing.
        for kind in <UploadError as strum::VariantNames>::VARIANTS {
            let _ = metrics.upload_errors.get_or_create(&[("kind", kind)]);
        }
        for table in NETWORK_TABLES {
            let _ = metrics.unattributed.get_or_create(&[("table", table)]);
        }
        for term in TERMS {
            let _ = metrics.events.get_or_create(&[("term", term)]);
        }
        Self { registry: Mutex::new(registry), ..metrics }
    }
}

impl Metrics {
    pub(crate) fn uploaded(&self, bytes: u64) {
        self.upload_objects.inc();
        self.upload_bytes.inc_by(bytes);
    }

    pub(crate) fn upload_failed(&self, error: &UploadError) {
        self.upload_errors.get_or_create(&[("kind", error.into())]).inc();
    }

    pub(crate) fn recovered(&self, discarded: u64, quarantined: u64) {
        self.recovery_discarded.inc_by(discarded);
        self.recovery_quarantined.inc_by(quarantined);
    }

    pub(crate) fn discarded(&self, events: u64) {
        self.discarded.inc_by(events);
    }

    pub(crate) fn plan(&self, refused: u64) {
        self.plans_received.inc();
        self.plans_refused.inc_by(refused);
    }

    pub(crate) fn state(&self, sessions: usize, recording: usize, spool_bytes: u64) {
        self.sessions.set(sessions as i64);
        self.sessions_recording.set(recording as i64);
        self.spool_bytes.set(i64::try_from(spool_bytes).unwrap_or(i64::MAX));
    }

    /// All there is since hooks were attached; nothing while there are none.
    pub(crate) fn unattributed(&self, all: Vec<(&'static str, u64)>) {
        let mut seen = self.unattributed_seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (table, hits) in &all {
            // Fewer than before are of hooks that were attached since.
            let before = seen.get(table).copied().filter(|before| before <= hits).unwrap_or(0);
            self.unattributed.get_or_create(&[("table", table)]).inc_by(hits - before);
        }
        *seen = all.into_iter().collect();
    }

    /// What the sessions of this node have counted so far, all of them. What a process before this one counted of a session
    /// is counted with the first of its totals.
    pub(crate) fn events<'a>(&self, sessions: impl Iterator<Item = (&'a str, &'a v1::Totals)>) {
        let mut seen = self.events_seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut now = BTreeMap::new();
        for (uid, t) in sessions {
            let terms = [t.emitted, t.exported, t.sampled_out, t.rate_limited, t.filtered, t.lost];
            let before = seen.remove(uid).unwrap_or_default();
            for ((name, value), before) in TERMS.iter().zip(terms).zip(before) {
                self.events.get_or_create(&[("term", name)]).inc_by(value.saturating_sub(before));
            }
            now.insert(uid.to_owned(), terms);
        }
        *seen = now;
    }

    pub(crate) fn connected(&self, connected: bool) {
        self.operator_connected.set(i64::from(connected));
    }

    /// All metrics as OpenMetrics text.
    ///
    /// # Errors
    /// When formatting fails, which text in memory does not.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::upload::GrantError;

    #[test]
    fn every_count_is_exported_under_the_projects_name() {
        let metrics = Metrics::default();
        metrics.uploaded(7);
        metrics.upload_failed(&UploadError::Grant(GrantError::Unavailable("away".into())));
        // The second attachment began anew.
        for hits in [vec![3], vec![5], vec![2], vec![], vec![4]] {
            metrics.unattributed(hits.into_iter().map(|hits| ("packet_drops", hits)).collect());
        }
        // One session grows, another begins, the first one is forgotten.
        let totals = |emitted, lost| v1::Totals { emitted, lost, ..v1::Totals::default() };
        for sessions in [
            vec![("a", totals(5, 0))],
            vec![("a", totals(7, 1)), ("b", totals(3, 0))],
            vec![("b", totals(3, 1))],
        ] {
            metrics.events(sessions.iter().map(|(uid, totals)| (*uid, totals)));
        }
        let text = metrics.encode().unwrap();
        for line in [
            "tracelake_session_events_total{term=\"emitted\"} 10",
            "tracelake_session_events_total{term=\"lost\"} 2",
            "tracelake_session_events_total{term=\"exported\"} 0",
            "tracelake_hook_unattributed_events_total{table=\"packet_drops\"} 11",
            "tracelake_upload_bytes_total 7",
            "tracelake_upload_errors_total{kind=\"Grant\"} 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(
            text.lines().filter(|line| !line.starts_with('#')).all(|line| line.starts_with("tracelake_")),
            "{text}"
        );
    }
}
