// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `cpu_sched` table: how long each process ran, and waited to run, in each window.

use crate::aggregate::Histogram;
use crate::table::{
    self, COMMON_COLUMNS, CollectorInfo, Column, Cost, PROCESS_COLUMNS, Param, ParamType, Table,
    WINDOW_COLUMNS,
};
use crate::{aggregate, fields};

/// Position of the table in the kernel's counters.
pub const INDEX: u32 = 5;

/// Processes, or with perThread threads, that can run in one window; beyond it slices are counted as lost (`map_full`).
pub const MAX_ROWS: u32 = 32_768;
/// Threads that can be followed at the same time; slices of one beyond are counted as lost (`map_full`).
pub const MAX_THREADS: u32 = 131_072;

/// Position in the map of options: slots that want a row per thread.
pub const OPTION_PER_THREAD: u32 = 0;
/// How many options there are.
pub const OPTIONS: u32 = 1;

aggregate! {
    /// Slices of one process, or of one thread, in one window.
    pub struct CpuSlices: tag 72, table INDEX, columns after table::AFTER_WINDOW_PROCESS =>
    key CpuSlicesKey {
        /// When the process began, nanoseconds since boot.
        start_ns: u64,
        /// Thread group.
        pid: u32,
        /// Thread; the thread group for a row per process.
        tid: u32,
        /// Name of the thread, or of the process's first one.
        comm: [u8; 16],
    }
    value CpuSlicesValue {
        /// Time on a CPU; that of a slice which goes on at the window's end is split.
        Sum run_sum: u64 => Int64 "ns",
        /// Time ready to run but not running, of slices that ended in the window.
        Sum wait_sum: u64 => Int64 "ns",
        /// Slices that ended because the thread had to wait for something.
        Sum voluntary: u64 => Int64 "switches",
        /// Slices that ended though the thread could have gone on.
        Sum involuntary: u64 => Int64 "switches",
        /// Slices that began on another CPU than the one before.
        Sum migrations: u64 => Int64 "switches",
        /// Lengths of the slices that ended in the window.
        Sum run_hist: Histogram => Histogram "ns",
        /// Waiting times before them; 0 for those that did not wait.
        Sum wait_hist: Histogram => Histogram "ns",
    }
    derived {}
}

fields! {
    /// What the hooks of scheduling read of a task.
    pub SCHED_FIELDS, declare_sched_fields {
        TASK_ON_CPU: "task_struct", "on_cpu";
        TASK_VOLUNTARY: "task_struct", "nvcsw";
        TASK_INVOLUNTARY: "task_struct", "nivcsw";
        TASK_DELAY: "task_struct", "sched_info.run_delay";
    }
}

const COLUMNS: [Column;
    COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + PROCESS_COLUMNS.len() + CpuSlices::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, &PROCESS_COLUMNS, CpuSlices::COLUMNS]);

/// The table.
pub const TABLE: Table = Table {
    name: "cpu_sched",
    collector: "cpuSched",
    doc: "One row per process and window: time on a CPU, time waiting for one, and how slices ended. weight is the number of \
          slices that ended in the window.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "cpuSched",
    question: "How long did the target's processes run, and how long did they wait for a CPU?",
    doc: "Every switch of the scheduler, added up in the kernel as sums and histograms. A slice is the time from \
          being put on a CPU to being taken off; waiting is the time from waking up, or from being taken off while \
          able to run, to being put on. A slice that goes on at a window's end gives its time to both windows, and \
          is counted in the later one.",
    exact: "Slices, switches and their sums, as the scheduler's own accounts (schedstat) have them.",
    bounded: "Processes that run before the session begins count from their next switch. Histograms have powers of \
              two.",
    unseen: "Time that a hypervisor or an interrupt took while a process was on the CPU: it is in run_sum.",
    cost: Cost::Hot,
    tables: &[&TABLE],
    params: &[Param {
        name: "perThread",
        ty: ParamType::Bool,
        default: "false",
        doc: "A row per thread instead of one per process.",
    }],
    events: true,
};
