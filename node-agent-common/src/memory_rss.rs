// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `memory_rss` table: resident memory of each process over time, by kind.

use crate::table::{
    self, COMMON_COLUMNS, CollectorInfo, Column, Cost, PROCESS_COLUMNS, Param, ParamType, Table,
    WINDOW_COLUMNS,
};
use crate::{aggregate, fields};

/// Position of the table in the kernel's counters.
pub const INDEX: u32 = 12;

/// Processes that can have rows in one window, each of them four; beyond it they are counted as lost (`map_full`).
pub const MAX_ROWS: u32 = 131_072;
/// CPUs whose shares are added; a machine with more has rows that are off by the shares of the others.
pub const MAX_CPUS: u32 = 1024;

/// The kinds of memory that the kernel counts, in its order; the `member` column has the word.
pub const MEMBERS: [&str; 4] = ["file", "anon", "swap", "shmem"];
/// The kernel's names for them, for the loader's assertion.
pub const ENUMERATORS: [&str; 4] = ["MM_FILEPAGES", "MM_ANONPAGES", "MM_SWAPENTS", "MM_SHMEMPAGES"];

aggregate! {
    /// One kind of memory of one process at a window's end.
    pub struct MemoryRss: tag 104, table INDEX, columns after table::AFTER_WINDOW_PROCESS =>
    key MemoryRssKey {
        /// When the process began, nanoseconds since boot.
        start_ns: u64,
        /// Tells the memory from that of the program that the process executed before: the beginning of its code.
        mm_raw: u64,
        /// Thread group.
        pid: u32,
        /// Position in MEMBERS.
        member_raw: u32,
        /// Name of the first thread.
        comm: [u8; 16],
    }
    value MemoryRssValue {
        /// Pages, as the kernel counts them.
        Last pages: u64,
        /// The largest number of pages met in the window.
        Max peak_pages: u64,
    }
    derived {
        /// file (mapped files), anon (memory of its own), shmem (shared memory) or swap (not resident: moved out).
        member => Dict "",
        /// Bytes at the window's end.
        bytes => Int64 "B",
        /// The most that was met in the window.
        peak_bytes => Int64 "B",
        /// Tells one memory of a process from the next: it gets another one by execve.
        mm_id => Int64 "id",
    }
}

fields! {
    /// What the pass over tasks reads of a process's memory.
    pub RSS_FIELDS, declare_rss_fields {
        MM_RSS_STAT: "mm_struct", "rss_stat";
        MM_START_CODE: "mm_struct", "start_code";
        PERCPU_COUNT: "percpu_counter", "count";
        PERCPU_COUNTERS: "percpu_counter", "counters";
        ARRAY_PPTRS: "bpf_array", "pptrs";
    }
}

const COLUMNS: [Column;
    COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + PROCESS_COLUMNS.len() + MemoryRss::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, &PROCESS_COLUMNS, MemoryRss::COLUMNS]);

/// The table.
pub const TABLE: Table = Table {
    name: "memory_rss",
    collector: "memoryRss",
    doc: "One row per process, kind of memory and window in which it changed: resident memory at the window's end.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "memoryRss",
    question: "How much memory does each process of the target have resident, over time?",
    doc: "Looked at once per window: file + anon + shmem is resident, swap is what was moved out. Threads share one \
          memory, which is shown once; a child of vfork shows its parent's until it executes a program.",
    exact: "The page tables' content at the moment of the look, on kernels since 6.2, where shares of CPUs are added \
            as the kernel itself does.",
    bounded: "On 6.1 up to 64 pages per thread are not in the kernel's counter yet. Peaks between two looks are not \
              seen (the processes table has the largest at exit).",
    unseen: "Processes that lived between two looks; memory that no process maps (page cache, tmpfs).",
    cost: Cost::Rare,
    tables: &[&TABLE],
    params: &[Param {
        name: "minChangeKiB",
        ty: ParamType::Integer { min: 0, max: 1 << 30 },
        default: "1024",
        doc: "Only rows whose memory changed by at least so many KiB since the last row of its kind; 0 for all.",
    }],
    events: false,
};
