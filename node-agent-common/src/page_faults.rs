// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `page_faults` table: page faults of each process and window, or each by itself.

use crate::aggregate::Histogram;
use crate::table::{
    self, COMMON_COLUMNS, CollectorInfo, Column, Cost, PROCESS_COLUMNS, Param, ParamType, Table,
    WINDOW_COLUMNS,
};
use crate::{aggregate, event, fields};

/// Position of the table in the kernel's counters.
pub const INDEX: u32 = 4;

/// Processes that can have faults in one window; beyond it they are counted as lost (`map_full`).
pub const MAX_PROCESSES: u32 = 65_536;
/// Threads that can be followed at the same time.
pub const MAX_THREADS: u32 = 131_072;

/// Position in the map of options: slots that want faults told apart by their outcome.
pub const OPTION_DETAIL: u32 = 0;
/// How many options there are.
pub const OPTIONS: u32 = 1;

/// Words of the parameter `detail`.
pub const DETAILS: &[&str] = &["counters", "fexit"];

/// What the memory was mapped from; the `kind` column has the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Nothing: the process's own.
    Anon = 1,
    /// A file.
    File = 2,
    /// A file of tmpfs, or shared memory.
    Shmem = 3,
    /// Its beginning was not seen.
    Unknown = 4,
}

impl Kind {
    /// The words of the column, in the order of the values, which begin with 1.
    pub const NAMES: &[&str] = &["anon", "file", "shmem", "unknown"];
}

/// Bits of the processor's error code: the protocol between it and the kernel, for each architecture its own.
pub mod cause {
    /// The access was a write.
    pub const WRITE: u64 = 1 << 1;
    /// The access fetched an instruction.
    pub const EXEC: u64 = 1 << 4;
}

aggregate! {
    /// Faults of one process in one window.
    pub struct PageFaults: tag 64, table INDEX, columns after table::AFTER_WINDOW_PROCESS =>
    key PageFaultsKey {
        /// When the process began, nanoseconds since boot.
        start_ns: u64,
        /// Thread group.
        pid: u32,
        /// A Kind; 0 where faults are not told apart.
        kind_raw: u32,
        /// Name of the first thread.
        comm: [u8; 16],
    }
    value PageFaultsValue {
        /// Faults that needed I/O; null for a row about a single fault.
        Sum major: u64 => Int64 "faults" null,
        /// Faults without I/O; null for a row about a single fault.
        Sum minor: u64 => Int64 "faults" null,
        /// Those of both that were writes; this and the next four only with detail fexit.
        Sum writes: u64 => Int64 "faults" null,
        /// Those that fetched an instruction.
        Sum execs: u64 => Int64 "faults" null,
        /// Attempts that had to be made again; unless a signal ends the thread, each becomes a fault or a failed one.
        Sum retries: u64 => Int64 "faults" null,
        /// Faults that the kernel's handler could not resolve: beyond a file's end, no memory, a damaged page.
        Sum failed: u64 => Int64 "faults" null,
        /// How long each attempt took.
        Sum latency_hist: Histogram => Histogram "ns" null,
    }
    derived {
        /// Address that was accessed; only for a row about a single fault.
        address => Int64 "B" null,
        /// Address of the instruction; only for a row about a single fault.
        ip => Int64 "B" null,
        /// Whether the access was a write; only for a row about a single fault.
        write => Bool "" null,
        /// Whether the access fetched an instruction; only for a row about a single fault.
        exec => Bool "" null,
        /// What the memory was mapped from: anon, file, shmem (tmpfs too) or unknown; only with detail fexit.
        kind => Dict "" null,
    }
}

event! {
    /// One fault in user mode.
    pub struct PageFaultEvent: tag 65, table INDEX => {
        /// When the process began, nanoseconds since boot.
        start_ns: u64,
        /// Address that was accessed.
        address: u64,
        /// Address of the instruction.
        ip: u64,
        /// The processor's error code.
        error_code: u64,
        /// Thread group.
        pid: u32,
        /// Thread.
        tid: u32,
        /// Name of the thread.
        comm: [u8; 16],
    }
}

fields! {
    /// What the hook of single faults reads of the registers.
    pub REGS_FIELDS, declare_regs_fields {
        REGS_IP: "pt_regs", "ip";
    }
}

fields! {
    /// What the hooks of faults that are told apart read.
    pub VMA_FIELDS, declare_vma_fields {
        VMA_FILE: "vm_area_struct", "vm_file";
        FILE_INODE: "file", "f_inode";
        INODE_SB: "inode", "i_sb";
        SB_MAGIC: "super_block", "s_magic";
    }
}

const COLUMNS: [Column;
    COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + PROCESS_COLUMNS.len() + PageFaults::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, &PROCESS_COLUMNS, PageFaults::COLUMNS]);

/// The table.
pub const TABLE: Table = Table {
    name: "page_faults",
    collector: "pageFaults",
    doc: "One row per process and window with its page faults, with detail fexit one per kind of memory too; with the parameter \
          events one row per fault in user mode.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "pageFaults",
    question: "How many page faults did each process of the target have, with and without I/O?",
    doc: "No hook on the fault: the kernel counts faults of every thread as getrusage reports them, and the \
          collector takes the difference at the end of each window and when a thread ends; faults while another \
          process's memory is accessed count for who accesses. With the parameter events, each fault in user mode is \
          a row of its own, with address and instruction, and rows per window are left out; sampleEvery and \
          maxEventsPerSecond are about these rows, sums leave nothing out.",
    exact: "Major and minor faults of every process, as getrusage has them. With events: every fault in user mode.",
    bounded: "With events whether a fault was major is not known. With events or detail each fault costs its process something \
              (docs/benchmarks.md), and the class is C.",
    unseen: "With events: faults inside the kernel, as read(2) into a new page. Without: faults of a thread between its exit hook \
             and its end. With detail: accesses outside of any mapping, which end in a signal and are no fault that is handled.",
    cost: Cost::Moderate,
    tables: &[&TABLE],
    params: &[
        Param {
            name: "events",
            ty: ParamType::Bool,
            default: "false",
            doc: "Each fault by itself, instead of sums per process. Can be millions a second: combine it with sampleEvery.",
        },
        Param {
            name: "detail",
            ty: ParamType::Choice(DETAILS),
            default: DETAILS[0],
            doc: "Where sums come from. counters: the kernel's own, at no cost to a fault. fexit: hooks on the function that handles faults \
              tell them apart by kind, access and outcome, and how long each took, which every fault of the target pays for; a node \
              whose kernel has no fentry does not run the collector then. Without effect with events.",
        },
    ],
    events: true,
};
