// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The tables `node_info`, `node_memory`, `node_net` and `net_counters`: what the node is, its memory over time, and its
//! networks, with those of the targets.
//!
//! No hooks: the agent reads the kernel's own files, and finds targets' networks by a pass over tasks.

use crate::aggregate;
use crate::table::{self, COMMON_COLUMNS, CollectorInfo, Column, Cost, Table, WINDOW_COLUMNS};

/// Position of `node_info` in the kernel's counters.
pub const INFO_INDEX: u32 = 9;
/// Position of `node_memory`.
pub const MEMORY_INDEX: u32 = 10;
/// Position of `node_net`.
pub const NET_INDEX: u32 = 11;

/// Position of `net_counters`.
pub const COUNTERS_INDEX: u32 = 14;

/// Bytes of a text, including a NUL.
pub const TEXT: usize = 128;
/// Bytes of an interface's name, including the NUL.
pub const IFNAME: usize = 16;
/// Bytes of a counter's name, including the NUL.
pub const COUNTER: usize = 40;

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
            /// Whether the kernel describes its types (BTF): wherever this row could be made it does.
            Last btf: u64 => Bool "",
            /// Whether programs can be attached to the entry and exit of kernel functions.
            Last has_fentry: u64 => Bool "",
            /// Whether the kernel offers kprobes to perf_event_open.
            Last has_kprobe: u64 => Bool "",
            /// Whether the kernel attaches one program to many functions.
            Last has_kprobe_multi: u64 => Bool "",
            /// Whether the kernel offers the processor's own counters.
            Last has_pmu: u64 => Bool "",
        }
        derived {
            /// When the node booted.
            boot_time => TimeUtc "us",
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

    /// Keys of /proc/meminfo and their columns, in the order of the record's values. Left out: keys that are constants of the
    /// architecture or always 0 (VmallocTotal, VmallocChunk, NFS_Unstable).
    pub const MEMINFO: [(&str, usize); 57] = [
        ("MemTotal", at::mem_total),
        ("MemFree", at::mem_free),
        ("MemAvailable", at::mem_available),
        ("Buffers", at::buffers),
        ("Cached", at::cached),
        ("SwapCached", at::swap_cached),
        ("SwapTotal", at::swap_total),
        ("SwapFree", at::swap_free),
        ("Dirty", at::dirty),
        ("Writeback", at::writeback),
        ("AnonPages", at::anon_pages),
        ("Mapped", at::mapped),
        ("Shmem", at::shmem),
        ("SReclaimable", at::slab_reclaimable),
        ("SUnreclaim", at::slab_unreclaimable),
        ("KernelStack", at::kernel_stack),
        ("PageTables", at::page_tables),
        ("Committed_AS", at::committed),
        ("AnonHugePages", at::anon_huge_pages),
        ("HugePages_Total", at::huge_pages_total),
        ("HugePages_Free", at::huge_pages_free),
        ("HugePages_Rsvd", at::huge_pages_rsvd),
        ("HugePages_Surp", at::huge_pages_surp),
        ("Hugepagesize", at::huge_page_size),
        ("Hugetlb", at::hugetlb),
        ("Active", at::active),
        ("Inactive", at::inactive),
        ("Active(anon)", at::active_anon),
        ("Inactive(anon)", at::inactive_anon),
        ("Active(file)", at::active_file),
        ("Inactive(file)", at::inactive_file),
        ("Unevictable", at::unevictable),
        ("Mlocked", at::mlocked),
        ("Zswap", at::zswap),
        ("Zswapped", at::zswapped),
        ("KReclaimable", at::kernel_reclaimable),
        ("Slab", at::slab),
        ("SecPageTables", at::sec_page_tables),
        ("Bounce", at::bounce),
        ("CommitLimit", at::commit_limit),
        ("VmallocUsed", at::vmalloc_used),
        ("Percpu", at::percpu),
        ("HardwareCorrupted", at::hardware_corrupted),
        ("ShmemHugePages", at::shmem_huge_pages),
        ("ShmemPmdMapped", at::shmem_pmd_mapped),
        ("FileHugePages", at::file_huge_pages),
        ("FilePmdMapped", at::file_pmd_mapped),
        ("CmaTotal", at::cma_total),
        ("CmaFree", at::cma_free),
        ("DirectMap4k", at::direct_map_4k),
        ("DirectMap2M", at::direct_map_2m),
        ("DirectMap1G", at::direct_map_1g),
        ("Unaccepted", at::unaccepted),
        ("Balloon", at::balloon),
        ("GPUActive", at::gpu_active),
        ("GPUReclaim", at::gpu_reclaim),
        ("WritebackTmp", at::writeback_tmp),
    ];
    /// The value of a key that the kernel does not tell.
    pub const ABSENT: u64 = u64::MAX;

    aggregate! {
        /// Memory of the node at a window's end.
        pub struct NodeMemory: tag 97, table MEMORY_INDEX, columns after table::AFTER_WINDOW =>
        key NodeMemoryKey {
            /// Zero.
            reserved: u64,
        }
        value NodeMemoryValue {
            /// Values of MEMINFO, or ABSENT.
            Last meminfo_raw: [u64; MEMINFO.len()],
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
            /// MemTotal: memory that the kernel manages.
            mem_total => Int64 "B",
            /// MemFree: memory that holds nothing.
            mem_free => Int64 "B",
            /// MemAvailable: what programs could get without swapping, as the kernel estimates.
            mem_available => Int64 "B",
            /// Buffers: cached blocks of block devices.
            buffers => Int64 "B",
            /// Cached: the page cache, without swap.
            cached => Int64 "B",
            /// SwapCached: in memory, and still in swap as well.
            swap_cached => Int64 "B",
            /// SwapTotal: room for what is moved out.
            swap_total => Int64 "B",
            /// SwapFree: swap that holds nothing.
            swap_free => Int64 "B",
            /// Dirty: waits to be written.
            dirty => Int64 "B",
            /// Writeback: is being written.
            writeback => Int64 "B",
            /// AnonPages: programs' own memory, mapped by them.
            anon_pages => Int64 "B",
            /// Mapped: files that are mapped by programs.
            mapped => Int64 "B",
            /// Shmem: shared memory and tmpfs.
            shmem => Int64 "B",
            /// SReclaimable: the kernel's own objects that it could give up.
            slab_reclaimable => Int64 "B",
            /// SUnreclaim: the kernel's own objects that it cannot give up.
            slab_unreclaimable => Int64 "B",
            /// KernelStack: the kernel's stacks of all threads.
            kernel_stack => Int64 "B",
            /// PageTables: what maps addresses to memory.
            page_tables => Int64 "B",
            /// Committed_AS: what programs have asked for, used or not.
            committed => Int64 "B",
            /// AnonHugePages: programs' own memory in huge pages.
            anon_huge_pages => Int64 "B",
            /// HugePages_Total: a number of pages, not of bytes.
            huge_pages_total => Int64 "pages",
            /// HugePages_Free: a number of pages, not of bytes.
            huge_pages_free => Int64 "pages",
            /// HugePages_Rsvd: a number of pages, not of bytes, that are promised.
            huge_pages_rsvd => Int64 "pages" null,
            /// HugePages_Surp: a number of pages, not of bytes, beyond the pool.
            huge_pages_surp => Int64 "pages" null,
            /// Hugepagesize: bytes of a huge page of the usual size.
            huge_page_size => Int64 "B" null,
            /// Hugetlb: memory in pools of huge pages of all sizes.
            hugetlb => Int64 "B" null,
            /// Active: used lately: what is given up last.
            active => Int64 "B" null,
            /// Inactive: not used lately: what is given up first.
            inactive => Int64 "B" null,
            /// Active(anon): the share of programs' own memory in Active.
            active_anon => Int64 "B" null,
            /// Inactive(anon): the share of programs' own memory in Inactive.
            inactive_anon => Int64 "B" null,
            /// Active(file): the share of the page cache in Active.
            active_file => Int64 "B" null,
            /// Inactive(file): the share of the page cache in Inactive.
            inactive_file => Int64 "B" null,
            /// Unevictable: cannot be given up.
            unevictable => Int64 "B" null,
            /// Mlocked: locked by programs.
            mlocked => Int64 "B" null,
            /// Zswap: memory that holds compressed pages.
            zswap => Int64 "B" null,
            /// Zswapped: what those were before they were compressed.
            zswapped => Int64 "B" null,
            /// KReclaimable: all that the kernel could give up of its own.
            kernel_reclaimable => Int64 "B" null,
            /// Slab: the kernel's own objects.
            slab => Int64 "B" null,
            /// SecPageTables: page tables of virtual machines.
            sec_page_tables => Int64 "B" null,
            /// Bounce: copies for devices that reach not all of memory.
            bounce => Int64 "B" null,
            /// CommitLimit: what programs may ask for where that is limited.
            commit_limit => Int64 "B" null,
            /// VmallocUsed: memory that the kernel mapped for itself.
            vmalloc_used => Int64 "B" null,
            /// Percpu: the kernel's variables of each CPU.
            percpu => Int64 "B" null,
            /// HardwareCorrupted: taken out of use as it is defective.
            hardware_corrupted => Int64 "B" null,
            /// ShmemHugePages: shared memory in huge pages.
            shmem_huge_pages => Int64 "B" null,
            /// ShmemPmdMapped: the same, mapped as such.
            shmem_pmd_mapped => Int64 "B" null,
            /// FileHugePages: page cache in huge pages.
            file_huge_pages => Int64 "B" null,
            /// FilePmdMapped: the same, mapped as such.
            file_pmd_mapped => Int64 "B" null,
            /// CmaTotal: set aside for devices that need it in one piece.
            cma_total => Int64 "B" null,
            /// CmaFree: what is free of it.
            cma_free => Int64 "B" null,
            /// DirectMap4k: the kernel's own map, by pages of 4 KiB.
            direct_map_4k => Int64 "B" null,
            /// DirectMap2M: the same by pages of 2 MiB.
            direct_map_2m => Int64 "B" null,
            /// DirectMap1G: the same by pages of 1 GiB.
            direct_map_1g => Int64 "B" null,
            /// Unaccepted: of a confidential VM, not taken into use yet.
            unaccepted => Int64 "B" null,
            /// Balloon: given back to the VM's host.
            balloon => Int64 "B" null,
            /// GPUActive: in use by graphics processors.
            gpu_active => Int64 "B" null,
            /// GPUReclaim: kept for graphics processors, and could be given up.
            gpu_reclaim => Int64 "B" null,
            /// WritebackTmp: copies of what FUSE writes back.
            writeback_tmp => Int64 "B" null,
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
        /// One interface at a window's end.
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
            /// Name of the interface in its network namespace: the node's own where no pod is named.
            ifname => Dict "id",
        }
    }
}

/// The table of the protocols' counters over time.
pub mod counters {
    use super::{COUNTER, COUNTERS_INDEX, aggregate, table};
    aggregate! {
        /// One counter of a network namespace at a window's end.
        pub struct NetCounter: tag 120, table COUNTERS_INDEX, columns after table::AFTER_WINDOW =>
        key NetCounterKey {
            /// The counter's name.
            counter_raw: [u8; COUNTER],
        }
        value NetCounterValue {
            /// What it says since the namespace was made; take differences. TcpCurrEstab is a number of connections.
            Last value: u64 => Int64 "count",
        }
        derived {
            /// Name of the counter, as nstat prints it.
            counter => Dict "",
        }
    }
}

/// Where a target's network namespace is to be found; what a pass over tasks tells of each first thread of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NetNamespace {
    /// Cookie of the namespace.
    pub cookie: u64,
    /// The target that it is of.
    pub cgroup_id: u64,
    /// Sessions that record it.
    pub slots: u64,
    /// Inode of the namespace.
    pub netns: u64,
    /// When a process that lives in it began, nanoseconds since boot.
    pub start_ns: u64,
    /// That process, by the number that it has in the agent's /proc.
    pub pid: u64,
}

impl NetNamespace {
    /// What a pass has told, one after another.
    pub fn all(bytes: &[u8]) -> impl Iterator<Item = NetNamespace> {
        // SAFETY: as many bytes as the type has, which is made of integers.
        bytes
            .chunks_exact(size_of::<Self>())
            .map(|one| unsafe { one.as_ptr().cast::<Self>().read_unaligned() })
    }
}

const INFO_COLUMNS: [Column; COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + info::NodeInfo::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, info::NodeInfo::COLUMNS]);
const MEMORY_COLUMNS: [Column;
    COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + memory::NodeMemory::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, memory::NodeMemory::COLUMNS]);
const NET_COLUMNS: [Column; COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + net::NodeNet::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, net::NodeNet::COLUMNS]);

const COUNTER_COLUMNS: [Column;
    COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + counters::NetCounter::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, counters::NetCounter::COLUMNS]);

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

/// Interfaces of the node and of targets.
pub const NET: Table = Table {
    name: "node_net",
    collector: "nodeInfo",
    doc: "One row per interface and window, of the node and of each target with a network of its own: /proc/net/dev at the window's end.",
    columns: &NET_COLUMNS,
    index: NET_INDEX,
};

/// Counters of the node's network and of targets'.
pub const COUNTERS: Table = Table {
    name: "net_counters",
    collector: "nodeInfo",
    doc: "One row per counter and window, of the node's network and of each target's own: what nstat prints of IP, UDP and TCP, at the window's end, of the counters that tell traffic and trouble.",
    columns: &COUNTER_COLUMNS,
    index: COUNTERS_INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "nodeInfo",
    question: "What are the session's nodes, and how do their memory and networks fare meanwhile?",
    doc: "The background for what other tables show: the kernel's own files, read at the end of each window, with a pass over the \
          tasks that finds the targets' networks. Rows about the node have attribution none and name no pod; rows of a \
          target's network are the pod's.",
    exact: "What the files say at that moment. Counters run since their interface or network was made: take differences.",
    bounded: "One look per window; a value in between is not seen, and what was counted after a network's last look is not.",
    unseen: "A target's network that no process of its own lives in: that of a pod with hostPID, or of a program that record runs in \
             a network of its own. Pods with hostNetwork share the node's. A target may have several networks (netns tells them \
             apart), of which 16 have rows. With containers chosen, the pod's network has rows all the same: it is theirs.",
    cost: Cost::Rare,
    tables: &[&INFO, &MEMORY, &NET, &COUNTERS],
    params: &[],
    events: false,
};
