// SPDX-License-Identifier: Apache-2.0

//! The JSON files of a session: what was asked for, what each node says it wrote, and the verdict.
//!
//! | file | written by | when |
//! | --- | --- | --- |
//! | `_tracelake/session.json` | operator, or `tracelake record` | first |
//! | `_tracelake/<node>_<boot>.json` | the node's agent | when all its objects are acknowledged |
//! | `_tracelake/manifest-<n>.json` | operator, or `tracelake record` | last; again when a lost node returns |
//!
//! All are created once and never overwritten. Fields may be added; readers ignore unknown ones.
//! Invariant: an object that no manifest lists does not exist for a reader.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::coverage::CoverageRow;
use crate::finding::plain;
use crate::ledger::{LedgerRow, Terms};

/// The version of the whole layout. Readers refuse a higher one; additions do not raise it.
pub const FORMAT_VERSION: u32 = 1;

/// What is said of nodes that are not complete: reasons, names with each, and characters of both.
const MOST_REASONS: usize = 20;
const MOST_NAMES: usize = 3;
const MOST_NAME: usize = 253;
const MOST_REASON: usize = 1_000;

/// `_tracelake/session.json`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionFile {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Namespace of the resource; `local` for `tracelake record`.
    pub namespace: String,
    /// Name of the resource.
    pub session: String,
    /// UID of the resource.
    pub uid: String,
    /// Which cluster: UID of its `kube-system` namespace; empty outside of clusters.
    pub cluster_id: String,
    /// Version of the program that wrote this file.
    pub version: String,
    /// When the window opened, RFC 3339.
    pub start_time: String,
    /// The resource's `spec`, as accepted; the command and options for `tracelake record`.
    pub spec: serde_json::Value,
    /// Version of each table's schema when the session began.
    pub schemas: BTreeMap<String, u32>,
}

/// One object that the store acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectEntry {
    /// Relative to the session's folder.
    pub key: String,
    /// Rows.
    pub rows: u64,
    /// Events that the rows stand for.
    pub weight: u64,
    /// Length of the object.
    pub bytes: u64,
    /// SHA-256 of the content, hexadecimal.
    pub sha256: String,
}

/// What one agent process was: a row of `session_nodes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Incarnation {
    /// 32 hexadecimal digits.
    pub incarnation: String,
    /// Version of the agent.
    pub agent_version: String,
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub arch: String,
    /// When the session began in this process, boot time in nanoseconds.
    pub started_ns: u64,
    /// When it ended, or was last known to run, boot time in nanoseconds.
    pub ended_ns: u64,
    /// Whether it ended in order; if not, its last moments are a gap.
    pub clean: bool,
    /// Clock anchor: this moment in boot time, nanoseconds ...
    pub anchor_ns: u64,
    /// ... was this moment in UTC, microseconds since 1970.
    pub anchor_utc_us: i64,
}

/// `_tracelake/<node>_<boot>.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeManifest {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Kubernetes name of the node.
    pub node: String,
    /// Boot id, 32 hexadecimal digits.
    pub boot: String,
    /// Every agent process that took part, in order.
    pub incarnations: Vec<Incarnation>,
    /// Every acknowledged object, this file excepted.
    pub objects: Vec<ObjectEntry>,
    /// The same rows as the objects of table `ledger`.
    pub ledger: Vec<LedgerRow>,
    /// The same rows as the objects of table `coverage`.
    pub coverage: Vec<CoverageRow>,
}

impl NodeManifest {
    /// The sums of this node's ledger and objects.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for row in &self.ledger {
            totals.emitted = totals.emitted.saturating_add(row.emitted.unwrap_or(0));
            totals.unknown |= row.emitted.is_none();
            totals.terms.merge(&row.terms);
            totals.rows = totals.rows.saturating_add(row.rows);
        }
        totals.objects = self.objects.len() as u64;
        totals.bytes = self.objects.iter().fold(0, |bytes: u64, object| bytes.saturating_add(object.bytes));
        totals
    }
}

/// How much a node or a session came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Hits on targets, as far as known.
    pub emitted: u64,
    /// Whether some incarnation crashed, so that `emitted` is a lower bound.
    pub unknown: bool,
    /// The ledger's right side.
    pub terms: Terms,
    /// Rows of event tables.
    pub rows: u64,
    /// Acknowledged objects, all tables.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Totals {
    /// Adds another account.
    pub fn merge(&mut self, other: &Self) {
        self.emitted = self.emitted.saturating_add(other.emitted);
        self.unknown |= other.unknown;
        self.terms.merge(&other.terms);
        self.rows = self.rows.saturating_add(other.rows);
        self.objects = self.objects.saturating_add(other.objects);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Whether a session's data are all there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every segment of every node was acknowledged, and the store lists it.
    Complete,
    /// Some node did not say that it was done, or an object that it lists is not in the store.
    Incomplete,
}

impl Verdict {
    /// As in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
        }
    }
}

/// One node in a [`Manifest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestNode {
    /// Kubernetes name of the node.
    pub node: String,
    /// Keys of its node manifests, relative to the session's folder; empty if it never wrote one.
    pub manifests: Vec<String>,
    /// Sums over those.
    pub totals: Totals,
    /// Why this node is not complete; empty if it is.
    pub reason: String,
}

/// `_tracelake/manifest-<n>.json`: the list of everything that a reader may read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// As in its key; readers take the highest.
    pub number: u64,
    /// When it was written, RFC 3339.
    pub time: String,
    /// Whether everything is there.
    pub verdict: Verdict,
    /// Nodes that took part or should have.
    pub nodes: Vec<ManifestNode>,
    /// Sums over nodes.
    pub totals: Totals,
}

impl Manifest {
    /// Sums up nodes. The verdict is complete only if no node gives a reason against it.
    pub fn new(number: u64, time: String, nodes: Vec<ManifestNode>) -> Self {
        let mut totals = Totals::default();
        nodes.iter().for_each(|node| totals.merge(&node.totals));
        let complete = nodes.iter().all(|node| node.reason.is_empty());
        let verdict = if complete { Verdict::Complete } else { Verdict::Incomplete };
        Self { format_version: FORMAT_VERSION, number, time, verdict, nodes, totals }
    }

    /// Which nodes are not complete and why, to be said: a line for each reason, however many nodes it is of.
    pub fn incomplete(&self) -> Vec<String> {
        let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for node in self.nodes.iter().filter(|node| !node.reason.is_empty()) {
            reasons.entry(&node.reason).or_default().push(&node.node);
        }
        let (all, mut told) = (reasons.values().map(Vec::len).sum::<usize>(), 0);
        let mut lines = Vec::new();
        let mut reasons: Vec<(&str, Vec<&str>)> = reasons.into_iter().collect();
        reasons.sort_by_key(|(_, nodes)| std::cmp::Reverse(nodes.len()));
        for (reason, nodes) in reasons.iter().take(MOST_REASONS) {
            told += nodes.len();
            let names: Vec<String> =
                nodes.iter().take(MOST_NAMES).map(|node| plain(node, MOST_NAME)).collect();
            let more = match nodes.len() - names.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let word = if nodes.len() == 1 { "node" } else { "nodes" };
            lines.push(format!("{word} {}{more}: {}", names.join(", "), plain(reason, MOST_REASON)));
        }
        if all > told {
            lines.push(format!("{} more nodes, for other reasons", all - told));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Term;

    fn node(name: &str, reason: &str, exported: u64) -> ManifestNode {
        let mut totals = Totals { emitted: exported, objects: 1, ..Totals::default() };
        totals.terms.add(Term::Exported, exported);
        ManifestNode { node: name.into(), manifests: vec![], totals, reason: reason.into() }
    }

    #[test]
    fn a_manifest_is_complete_only_if_every_node_is() {
        let both = Manifest::new(1, String::new(), vec![node("a", "", 3), node("b", "", 4)]);
        assert_eq!((both.verdict, both.totals.terms.get(Term::Exported)), (Verdict::Complete, 7));
        let one = Manifest::new(2, String::new(), vec![node("a", "", 3), node("b", "NodeLost", 0)]);
        assert_eq!(one.verdict, Verdict::Incomplete);
    }

    #[test]
    fn nodes_that_are_not_complete_are_told_by_reason_however_many_there_are() {
        let lost = (0..3_000).map(|i| node(&format!("n{i:04}"), "NodeLost", 0));
        let own = (0..50).map(|i| node(&format!("x{i}"), &format!("Failed: {i:02}\u{1b}[31m"), 0));
        let nodes: Vec<ManifestNode> = [node("a", "", 3)].into_iter().chain(own).chain(lost).collect();
        let lines = Manifest::new(1, String::new(), nodes).incomplete();
        assert_eq!(lines.len(), 21, "{lines:?}");
        assert_eq!(lines[0], "nodes n0000, n0001, n0002 and 2997 more: NodeLost");
        assert_eq!(lines[2], "node x1: Failed: 01\\u{1b}[31m");
        assert_eq!(lines[20], "31 more nodes, for other reasons");
    }

    #[test]
    fn a_manifest_is_read_back_as_it_was_written_and_unknown_fields_are_ignored() {
        let manifest = Manifest::new(1, "2026-11-23T00:00:00Z".into(), vec![node("a", "", 3)]);
        let mut json = serde_json::to_value(&manifest).unwrap();
        json["fieldOfTheFuture"] = 1.into();
        assert_eq!(serde_json::from_value::<Manifest>(json).unwrap(), manifest);
    }
}
