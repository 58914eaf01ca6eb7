// SPDX-License-Identifier: Apache-2.0

//! For every target and collector: traced from when to when, by which hooks, and why not.
//!
//! A row is a stretch of time of one target under one collector. Together the rows of a target say
//! what a missing event means: inside a `traced` row it did not happen (or the ledger counts it as
//! lost), inside a `gap` nobody looked, and an `unsupported` collector never did.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What happened in a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CoverageKind {
    /// Hooks were attached and the target was in their filter.
    Traced,
    /// The agent was not running: it crashed, and the next one went on.
    Gap,
    /// This node cannot run this collector, `reason` says why.
    Unsupported,
}

impl CoverageKind {
    /// As in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Traced => "traced",
            Self::Gap => "gap",
            Self::Unsupported => "unsupported",
        }
    }
}

impl fmt::Display for CoverageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One row of the coverage table. Names are empty where the row is about no single pod or container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CoverageRow {
    /// Kubernetes name of the node.
    pub node: String,
    /// Boot id, 32 hexadecimal digits.
    pub boot: String,
    /// One life of the agent's process; for a gap, the one that ended it or, if none did, that began it.
    pub incarnation: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod; for `tracelake record` empty.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// The collector, as the resource calls it.
    pub collector: String,
    /// What the row says.
    pub kind: CoverageKind,
    /// Beginning, boot time in nanoseconds.
    pub from_ns: u64,
    /// End, boot time in nanoseconds.
    pub to_ns: u64,
    /// Beginning, UTC in microseconds since 1970.
    pub from_utc_us: i64,
    /// End, UTC in microseconds since 1970.
    pub to_utc_us: i64,
    /// Whether the hooks were there before the target's first process: nothing came earlier unseen.
    pub from_start: bool,
    /// The hooks in use, separated by commas.
    pub hooks: String,
    /// Why the stretch ended, or why there is none; empty for the window's end.
    pub reason: String,
}
