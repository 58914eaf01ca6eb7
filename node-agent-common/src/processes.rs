// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `processes` table: beginnings, program changes and ends of processes.

use crate::event;
use crate::table::{
    self, COMMON_COLUMNS, CollectorInfo, Column, Cost, PROCESS_COLUMNS, Param, ParamType, Table,
};

/// Position of the table in the kernel's counters.
pub const INDEX: u32 = 0;

/// Bytes of a file name or of arguments that a record has room for.
pub const TEXT: usize = 256;

/// Position in the map of options: slots that want threads.
pub const OPTION_THREADS: u32 = 0;
/// Position in the map of options: slots that want arguments.
pub const OPTION_ARGS: u32 = 1;
/// Position in the map of options: slots that want changes of names.
pub const OPTION_RENAMES: u32 = 2;
/// How many options there are.
pub const OPTIONS: u32 = 3;

/// What happened to the process; the `kind` column has the lower-case name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// It was there when the session reached its target.
    Snapshot = 1,
    /// It was forked inside the target.
    Start = 2,
    /// It was moved into the target from outside, as container runtimes do.
    Joined = 3,
    /// It runs another program.
    Exec = 4,
    /// It ended.
    Exit = 5,
    /// It, or one of its threads, has another name.
    Rename = 6,
}

impl Kind {
    /// The word in the `kind` column; `None` for a value that no hook writes.
    pub const fn name(value: u32) -> Option<&'static str> {
        match value {
            1 => Some("snapshot"),
            2 => Some("start"),
            3 => Some("joined"),
            4 => Some("exec"),
            5 => Some("exit"),
            6 => Some("rename"),
            _ => None,
        }
    }
}

event! {
    /// Something happened to a process or thread.
    pub struct ProcessEvent: tag 16, table INDEX, columns after table::AFTER_PROCESS => {
        /// When the process began, nanoseconds since boot.
        start_ns: u64,
        /// Page faults that needed I/O, all threads that ended before included; exit only.
        maj_flt: u64 => Int64 "faults" null,
        /// Page faults without I/O, as maj_flt; exit only.
        min_flt: u64 => Int64 "faults" null,
        /// User CPU time, all threads that ended before included, as getrusage reports it; up to the scheduler's last
        /// update, at most one tick short. On kernels since 6.16 without fentry (coverage: hooks is tp_btf alone) also
        /// without what taking down the memory took. Exit only.
        utime_ns: u64 => Int64 "ns" null,
        /// System CPU time, as utime_ns; exit only.
        stime_ns: u64 => Int64 "ns" null,
        /// Time on a CPU by the scheduler's clock, to which user and system time are scaled.
        runtime_ns: u64,
        /// Largest resident set in pages.
        max_rss_pages: u64,
        /// A Kind.
        what: u32,
        /// Thread group.
        pid: u32,
        /// Thread.
        tid: u32,
        /// Process id of the parent at that moment, numbered as pid is.
        ppid: u32 => Int64 "id",
        /// Real user id as the node sees it.
        uid: u32 => Int64 "id",
        /// Nice value.
        nice: i32 => Int32 "nice",
        /// Wait status: exit code in bits 8-15, signal in bits 0-6.
        status: u32,
        /// Not 0 when the row is about the whole process.
        whole: u32,
        /// Name of the thread.
        comm: [u8; 16],
    }
    derived {
        /// snapshot (ran already when its target was joined), start (forked), joined (moved in from outside), exec (runs
        /// another program), rename (another name, in comm; only with the parameter renames, and at every exec too) or
        /// exit. Every process has one of the first three before anything else.
        kind => Dict "",
        /// Whether the row is about a thread other than the first; only with the parameter threads.
        is_thread => Bool "",
        /// File name given to execve, at most 255 bytes; exec only.
        exe => Text "" null,
        /// Arguments of the program separated by spaces, at most 256 bytes; exec only, with the parameter args.
        args => Text "" null,
        /// Path of the process's cgroup below the cgroup root; null when it was gone before it could be read.
        cgroup_path => Dict "" null,
        /// Exit code; exit only.
        exit_code => Int32 "code" null,
        /// Signal that ended it, 0 for none; exit only.
        signal => Int32 "signal" null,
        /// Whether the whole process ended with this row; exit only.
        group_dead => Bool "" null,
        /// Largest resident set the process ever had; exit only.
        max_rss_bytes => Int64 "B" null,
    }
}

event! {
    /// A process runs another program.
    pub struct ProcessExec: tag 17, table INDEX => {
        /// When the process began, nanoseconds since boot.
        start_ns: u64,
        /// Thread group.
        pid: u32,
        /// Thread.
        tid: u32,
        /// Process id of the parent.
        ppid: u32,
        /// Real user id.
        uid: u32,
        /// Nice value.
        nice: i32,
        /// Bytes of args that count.
        args_len: u32,
        /// Name of the thread.
        comm: [u8; 16],
        /// File name given to execve, NUL-terminated.
        exe: [u8; TEXT],
        /// Arguments, each NUL-terminated.
        args: [u8; TEXT],
    }
}

const COLUMNS: [Column; COMMON_COLUMNS.len() + PROCESS_COLUMNS.len() + ProcessEvent::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &PROCESS_COLUMNS, ProcessEvent::COLUMNS]);

/// The table.
pub const TABLE: Table = Table {
    name: "processes",
    collector: "processes",
    doc: "One row per beginning, program change and end of a process.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "processes",
    question: "Which processes ran in the target, who started them, what did they execute, how did they end, and \
               what did they use?",
    doc: "Tracepoints of fork, exec and exit; a process belongs to the cgroup that it is in at that moment. \
          Processes that ran before are listed as snapshot, those that a container runtime moves in as joined, so no \
          exit comes without a beginning.",
    exact: "Every beginning, program change and end, with exit code, signal and resource usage as getrusage has \
            them.",
    bounded: "Paths and arguments at 256 bytes. On kernels since 6.16 without fentry, CPU time of exit rows lacks \
              the tear-down of memory. Of threads that end side by side with their process the last microseconds may \
              be missing.",
    unseen: "Processes that live outside of the target's cgroups, though the target caused them.",
    cost: Cost::Moderate,
    tables: &[&TABLE],
    params: &[
        Param {
            name: "args",
            ty: ParamType::Bool,
            default: "false",
            doc: "Record the arguments of executed programs, at most 256 bytes. They may hold secrets.",
        },
        Param {
            name: "renames",
            ty: ParamType::Bool,
            default: "false",
            doc: "Also record changes of names (prctl, pthread_setname_np, exec); those of threads other than a process's \
                  first with the parameter threads as well.",
        },
        Param {
            name: "threads",
            ty: ParamType::Bool,
            default: "false",
            doc: "Also record beginnings and ends of threads other than a process's first.",
        },
    ],
    events: true,
};
