// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The tables `node_info`, `node_memory` and `node_net`: what the node is, its memory and its interfaces over time.
//!
//! No hooks: the agent reads the kernel's own files. Rows are about the node, not about a target.

use crate::aggregate;
use crate::table::{self, COMMON_COLUMNS, CollectorInfo, Column, Cost, Table, WINDOW_COLUMNS};

/// Position of `node_info` in the kernel's counters.
pub const INFO_INDEX: u32 = 9;
/// Position of `node_memory`.
pub const MEMORY_INDEX: u32 = 10;
/// Position of `node_net`.
pub const NET_INDEX: u32 = 11;

/// Bytes of a text, including a NUL.
pub const TEXT: usize = 128;
/// Bytes of an interface's name, including the NUL.
pub const IFNAME: usize = 16;

/// The table that says what the node is.
pub mod info {
    use super::{INFO_INDEX, TEXT, aggregate, table};
    aggregate! {
        /// What the node is.
        pub struct NodeInfo: tag 96, table INFO_INDEX, columns after table::AFTER_WINDOW =>
        key NodeInfoKey {
            /// The kernel's release.
            kernel_raw: [u8; TEXT],
            /// The machine's architecture.
            arch_raw: [u8; TEXT],
            /// The processor's name.
            cpu_model_raw: [u8; TEXT],
            /// Setting of transparent huge pages.
            thp_raw: [u8; TEXT],
            /// Boot id.
            boot_id_raw: [u8; TEXT],
        }
        value NodeInfoValue {
            /// Processor packages.
            Last sockets: u64 => Int64 "sockets",
            /// Physical cores of all packages.
            Last cores: u64 => Int64 "cores",
            /// CPUs as the scheduler sees them.
            Last threads: u64 => Int64 "CPUs",
            /// Data cache of the first level, of one core; 0 where the kernel does not tell.
            Last l1d_bytes: u64 => Int64 "B",
            /// Cache of the second level, of one core or the cores that share it; 0 where the kernel does not tell.
            Last l2_bytes: u64 => Int64 "B",
            /// Cache of the third level, of the cores that share it; 0 where there is none or the kernel does not tell.
            Last l3_bytes: u64 => Int64 "B",
            /// Memory that the kernel manages.
            Last ram_bytes: u64 => Int64 "B",
            /// Swap space.
            Last swap_bytes: u64 => Int64 "B",
            /// Bytes of a page.
            Last page_size: u64 => Int64 "B",
            /// Nanoseconds from boot time to UTC, as in ts_ns and time_utc.
            Last clock_offset_ns: u64 => Int64 "ns",
        }
        derived {
            /// The kernel's release, as uname -r prints it.
            kernel => Text "",
            /// The machine's architecture, as uname -m prints it.
            arch => Dict "",
            /// The processor's name; null where the kernel does not tell.
            cpu_model => Text "" null,
            /// Setting of transparent huge pages: always, madvise or never; null where the kernel has none.
            thp => Dict "" null,
            /// The node's boot id.
            boot_id => Text "id",
        }
    }
}

/// The table of memory over time.
pub mod memory {
    use super::{MEMORY_INDEX, aggregate, table};
    aggregate! {
        /// Memory of the node at a window's end.
        pub struct NodeMemory: tag 97, table MEMORY_INDEX, columns after table::AFTER_WINDOW =>
        key NodeMemoryKey {
            /// Zero.
            reserved: u64,
        }
        value NodeMemoryValue {
            /// MemTotal of /proc/meminfo.
            Last mem_total: u64 => Int64 "B",
            /// MemFree: memory that holds nothing.
            Last mem_free: u64 => Int64 "B",
            /// MemAvailable: what programs could get without swapping, as the kernel estimates.
            Last mem_available: u64 => Int64 "B",
            /// Buffers: cached blocks of block devices.
            Last buffers: u64 => Int64 "B",
            /// Cached: the page cache, without swap.
            Last cached: u64 => Int64 "B",
            /// SwapCached: in memory, and still in swap as well.
            Last swap_cached: u64 => Int64 "B",
            /// SwapTotal: room for what is moved out.
            Last swap_total: u64 => Int64 "B",
            /// SwapFree: swap that holds nothing.
            Last swap_free: u64 => Int64 "B",
            /// Dirty: waits to be written.
            Last dirty: u64 => Int64 "B",
            /// Writeback: is being written.
            Last writeback: u64 => Int64 "B",
            /// AnonPages: programs' own memory, mapped by them.
            Last anon_pages: u64 => Int64 "B",
            /// Mapped: files that are mapped by programs.
            Last mapped: u64 => Int64 "B",
            /// Shmem: shared memory and tmpfs.
            Last shmem: u64 => Int64 "B",
            /// SReclaimable: the kernel's own objects that it could give up.
            Last slab_reclaimable: u64 => Int64 "B",
            /// SUnreclaim: the kernel's own objects that it cannot give up.
            Last slab_unreclaimable: u64 => Int64 "B",
            /// KernelStack: the kernel's stacks of all threads.
            Last kernel_stack: u64 => Int64 "B",
            /// PageTables: what maps addresses to memory.
            Last page_tables: u64 => Int64 "B",
            /// Committed_AS: what programs have asked for, used or not.
            Last committed: u64 => Int64 "B",
            /// AnonHugePages: programs' own memory in huge pages.
            Last anon_huge_pages: u64 => Int64 "B",
            /// HugePages_Total: a number of pages, not of bytes.
            Last huge_pages_total: u64 => Int64 "pages",
            /// HugePages_Free: a number of pages, not of bytes.
            Last huge_pages_free: u64 => Int64 "pages",
            /// Hundredths of a percent, plus one; 0 where the kernel does not tell.
            Last cpu_some_raw: u64,
            /// As cpu_some_raw.
            Last memory_some_raw: u64,
            /// As cpu_some_raw.
            Last memory_full_raw: u64,
            /// As cpu_some_raw.
            Last io_some_raw: u64,
            /// As cpu_some_raw.
            Last io_full_raw: u64,
        }
        derived {
            /// Share of the last 10 s in which some task waited for a CPU (/proc/pressure); null where the kernel does not tell.
            cpu_some => Float64 "%" null,
            /// Share of the last 10 s in which some task waited for memory.
            memory_some => Float64 "%" null,
            /// Share of the last 10 s in which all tasks waited for memory.
            memory_full => Float64 "%" null,
            /// Share of the last 10 s in which some task waited for I/O.
            io_some => Float64 "%" null,
            /// Share of the last 10 s in which all tasks waited for I/O.
            io_full => Float64 "%" null,
        }
    }
}

/// The table of interfaces over time.
pub mod net {
    use super::{IFNAME, NET_INDEX, aggregate, table};
    aggregate! {
        /// One interface of the node at a window's end.
        pub struct NodeNet: tag 98, table NET_INDEX, columns after table::AFTER_WINDOW =>
        key NodeNetKey {
            /// The interface.
            ifname_raw: [u8; IFNAME],
        }
        value NodeNetValue {
            /// Bytes received since the interface was made.
            Last rx_bytes: u64 => Int64 "B",
            /// Packets received.
            Last rx_packets: u64 => Int64 "packets",
            /// Packets that were received damaged.
            Last rx_errors: u64 => Int64 "packets",
            /// Packets that arrived and were dropped.
            Last rx_drops: u64 => Int64 "packets",
            /// Bytes sent.
            Last tx_bytes: u64 => Int64 "B",
            /// Packets sent.
            Last tx_packets: u64 => Int64 "packets",
            /// Packets that could not be sent.
            Last tx_errors: u64 => Int64 "packets",
            /// Packets that were to be sent and were dropped.
            Last tx_drops: u64 => Int64 "packets",
        }
        derived {
            /// Name of the interface in the node's own network namespace.
            ifname => Dict "id",
        }
    }
}

const INFO_COLUMNS: [Column; COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + info::NodeInfo::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, info::NodeInfo::COLUMNS]);
const MEMORY_COLUMNS: [Column;
    COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + memory::NodeMemory::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, memory::NodeMemory::COLUMNS]);
const NET_COLUMNS: [Column; COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + net::NodeNet::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, net::NodeNet::COLUMNS]);

/// What the node is.
pub const INFO: Table = Table {
    name: "node_info",
    collector: "nodeInfo",
    doc: "One row per node and session: processors, caches, memory, kernel.",
    columns: &INFO_COLUMNS,
    index: INFO_INDEX,
};

/// Memory of the node.
pub const MEMORY: Table = Table {
    name: "node_memory",
    collector: "nodeInfo",
    doc: "One row per node and window: /proc/meminfo in bytes and /proc/pressure, at the window's end.",
    columns: &MEMORY_COLUMNS,
    index: MEMORY_INDEX,
};

/// Interfaces of the node.
pub const NET: Table = Table {
    name: "node_net",
    collector: "nodeInfo",
    doc: "One row per interface of the node and window: /proc/net/dev at the window's end.",
    columns: &NET_COLUMNS,
    index: NET_INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "nodeInfo",
    question: "What are the session's nodes, and how do their memory and interfaces fare meanwhile?",
    doc: "The background for what other tables show: the kernel's own files, read at the end of each window; nothing is hooked. \
          Rows are about the whole node: attribution is none, and they name no pod.",
    exact: "What the files say at that moment. Counters of interfaces run since the interface was made: take differences.",
    bounded: "One look per window; a value in between is not seen.",
    unseen: "Interfaces of pods: those of the node's own network namespace have rows.",
    cost: Cost::Rare,
    tables: &[&INFO, &MEMORY, &NET],
    params: &[],
    events: false,
};
