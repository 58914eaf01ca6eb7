// SPDX-License-Identifier: Apache-2.0
//! What the engine is asked for, and what it hands on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;

use crate::budget::Budget;
use crate::collectors::{ParamError, Params};
use crate::kernel::load::KernelError;
use crate::pipeline::cost::Cost;
use crate::pipeline::unsealed::Mark;

/// How the engine is set up.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Name of the node, as in the `node` column.
    pub node: String,
    /// Where the cgroup v2 tree lies; none for where this process sees it mounted. Hybrid hosts have it in `unified`.
    pub cgroup_root: Option<PathBuf>,
    /// Bytes of each ring, a power of two; none for what fits the number of CPUs.
    pub ring_bytes: Option<usize>,
    /// Entries of each map that adds events up; none for what its table says.
    pub map_rows: Option<u32>,
    /// Sessions that may be open at the same time; none for as many as there are slots.
    pub max_sessions: Option<u32>,
}

/// A session to open.
#[derive(Clone, Debug)]
pub struct SessionSpec {
    /// UID, unique on the node.
    pub uid: Arc<str>,
    /// What it collects.
    pub collectors: Vec<CollectorSpec>,
    /// Names of the containers whose rows it wants; empty for all.
    pub containers: Vec<String>,
    /// How long rows wait at most before a batch is sealed; jittered by a tenth.
    pub rollover_interval: Duration,
    /// At about how many bytes in memory a batch is sealed.
    pub rollover_bytes: u64,
    /// What it may cost this node.
    pub budget: Budget,
}

/// One collector of a session.
#[derive(Clone, Debug, Default)]
pub struct CollectorSpec {
    /// Name (camelCase).
    pub name: String,
    /// Its parameters, as in the catalogue.
    pub params: Params,
    /// Period of aggregates; collectors of events do not use it.
    pub interval: Duration,
    /// One row for this many events; 0 and 1 mean each.
    pub sample_every: u32,
    /// Events per second that may become rows on this node; 0 means all.
    pub max_events_per_second: u64,
    /// Whether the session does without it where it cannot run.
    pub optional: bool,
}

/// Rows of one table of one session, nearly in order of time (CPUs deliver apart).
#[derive(Clone, Debug)]
pub struct Batch {
    /// UID of the session.
    pub session: Arc<str>,
    /// Name of the table.
    pub table: &'static str,
    /// The rows, with the schema of `dataset`.
    pub rows: RecordBatch,
    /// Events that they stand for.
    pub weight: u64,
    /// Lives until they are sealed.
    pub mark: Mark,
    /// Takes what writing them costs.
    pub cost: Cost,
}

/// What the engine hands on.
#[derive(Clone, Debug)]
pub enum Output {
    /// Rows.
    Batch(Batch),
    /// No further batch of this session will come.
    Closed {
        /// UID of the session.
        session: Arc<str>,
    },
}

/// What became of one table's events since its session opened. All but `sampled_out` only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableCounters {
    /// Name of the table.
    pub table: &'static str,
    /// Hits on a target.
    pub emitted: u64,
    /// Hits that no row stands for: fewer than `sampleEvery` per CPU, for each time that this number changed.
    pub sampled_out: u64,
    /// Hits beyond `maxEventsPerSecond`.
    pub rate_limited: u64,
    /// Hits that the session's parameters or containers leave out.
    pub filtered: u64,
    /// Hits that found their ring full.
    pub ring_full: u64,
    /// Hits that found the collector's map full.
    pub map_full: u64,
    /// Runs that the kernel skipped because the same program ran on that CPU; also in `emitted`, as nobody can say which
    /// of them were hits.
    pub recursion: u64,
    /// Hits whose record could not be made a row.
    pub decode_error: u64,
    /// Every row of an event before this time, nanoseconds since boot, is in a sealed file.
    pub sealed_ns: u64,
}

/// What came of one collector when its session was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorOutcome {
    /// Name of the collector (camelCase).
    pub collector: String,
    /// Whether it runs.
    pub state: CollectorState,
}

/// See [`CollectorOutcome`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CollectorState {
    /// It records.
    Running,
    /// This node cannot run it.
    Unsupported {
        /// One word for machines.
        reason: &'static str,
        /// What is missing, for people.
        message: String,
    },
}

/// Why the engine cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// As many have a place as may.
    #[error(
        "all {0} places for sessions on this node are taken, by sessions that record or whose last rows are on their way; this \
         one begins when a place is free"
    )]
    NodeCapacity(u32),
    /// The session is open already.
    #[error("session {0} is open already")]
    Duplicate(Arc<str>),
    /// There is no such session.
    #[error("there is no open session {0}")]
    UnknownSession(String),
    /// No such collector.
    #[error("there is no collector `{name}`; known: {known}")]
    UnknownCollector {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// Some cgroups are not recorded: a map is full.
    #[error("{0}")]
    TargetsMissing(String),
    /// A parameter is wrong.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The system refuses.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}
