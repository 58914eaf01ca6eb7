// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Resident memory of the targets' processes at the end of each window.
//!
//! Hook: `iter/task` at each window's end. The kernel's tracepoint `rss_stat` fires for every page and does not carry the sum,
//! so looking costs less and says more. Since 6.2 each CPU keeps a share of the count (`struct percpu_counter`), at an
//! offset that only the kernel's symbol table knows: `iter/ksym` finds it, once, also for an agent that is shown no addresses.
//! Cost: a pass over all tasks per window, some 100 ns each, and 2 us for each process of a target and 100 CPUs.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use node_agent_common::event::Attribution;
use node_agent_common::memory_rss::{
    INDEX, MAX_CPUS, MAX_ROWS, MEMBERS, MemoryRss, MemoryRssKey, MemoryRssValue,
};

use super::processes::{TASK_MM, TASK_PID, TASK_TGID, Task};
use crate::aggregate::{self, Sums};
use crate::kernel::{self, address, constant, follow, load};
use crate::ring::Hit;
use crate::sock::peek;
use crate::{counters, target};

node_agent_common::declare_rss_fields!();

/// Bytes from one counter of `rss_stat` to the next.
#[unsafe(no_mangle)]
static RSS_STRIDE: u64 = 8;
/// Not 0 where CPUs keep shares.
#[unsafe(no_mangle)]
static RSS_HAS_SHARES: u64 = 0;
/// CPUs that the machine may have.
#[unsafe(no_mangle)]
static RSS_CPUS: u64 = 1;

/// Address of the array of the CPUs' offsets; 0 until it was found.
#[map]
static PER_CPU_OFFSETS: Array<u64> = Array::with_max_entries(1, 0);

/// What is added up.
#[map]
static MEMORY_RSS: HashMap<MemoryRssKey, MemoryRssValue> =
    HashMap::with_max_entries(MAX_ROWS, BPF_F_NO_PREALLOC);
#[map]
static MEMORY_RSS_ZEROS: Array<MemoryRssValue> = Array::with_max_entries(1, 0);

const SUMS: Sums<MemoryRss> = Sums { entries: &MEMORY_RSS, zeros: &MEMORY_RSS_ZEROS };

/// What the CPUs hold of a counter whose shares are at `shares`.
///
/// Exported, so that the verifier checks the loop once.
#[unsafe(no_mangle)]
extern "C" fn rss_shares(shares: u64, offsets: u64) -> i64 {
    let mut sum = 0i64;
    let mut cpu = 0;
    while cpu < MAX_CPUS {
        if cpu >= constant(&RSS_CPUS) {
            break;
        }
        let offset = peek(offsets.wrapping_add(cpu * 8) as *const u8);
        let mut share = 0i32;
        // SAFETY: 4 bytes into 4.
        unsafe { bpf_probe_read_kernel((&raw mut share).cast(), 4, shares.wrapping_add(offset) as *const _) };
        sum = sum.wrapping_add(i64::from(share));
        cpu += 1;
    }
    sum
}

/// A window ends: the context is (meta, task).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn rss_pass(ctx: *mut u64) -> i32 {
    // SAFETY: the iterator's context is two pointers, the second of them to a task, or null at the end.
    unsafe {
        let this = *ctx.add(1) as *const u8;
        if this.is_null() || load::<u32>(this, &TASK_PID) != load::<u32>(this, &TASK_TGID) {
            return 0;
        }
        let cgroup_id = kernel::task_cgroup_id(this);
        let slots = counters::enabled(target::slots(cgroup_id), INDEX);
        let mm = follow(this, &TASK_MM);
        if slots == 0 || mm.is_null() {
            return 0;
        }
        let task = Task::new(this);
        let code: u64 = load(mm, &MM_START_CODE);
        let stat = address(mm, &MM_RSS_STAT) as u64;
        let offsets = PER_CPU_OFFSETS.get(0).copied().unwrap_or(0);
        let hit = Hit { slots, cgroup_id, netns: 0, attribution: Attribution::Task };
        let mut member = 0;
        while member < MEMBERS.len() as u64 {
            let counter = stat.wrapping_add(member * constant(&RSS_STRIDE));
            let pages = if constant(&RSS_HAS_SHARES) == 0 {
                peek(counter as *const u8).cast_signed()
            } else {
                let count = peek(address(counter as *const u8, &PERCPU_COUNT)).cast_signed();
                let shares = peek(address(counter as *const u8, &PERCPU_COUNTERS));
                let held = if offsets == 0 { 0 } else { rss_shares(shares, offsets) };
                count.wrapping_add(held)
            };
            let pages = if pages < 0 { 0 } else { pages.cast_unsigned() };
            aggregate::add(
                &SUMS,
                &hit,
                |key: *mut MemoryRssKey| {
                    (*key).start_ns = task.start_ns;
                    (*key).mm_raw = code;
                    (*key).pid = task.pid;
                    (*key).member_raw = member as u32;
                    task.comm(addr_of_mut!((*key).comm));
                },
                |value: *mut MemoryRssValue| {
                    (*value).pages = pages;
                    if (*value).peak_pages < pages {
                        (*value).peak_pages = pages;
                    }
                },
            );
            member += 1;
        }
    }
    0
}

/// Finds the array of the CPUs' offsets: the context is (meta, symbol).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/ksym")]
pub unsafe extern "C" fn per_cpu_offsets(ctx: *mut u64) -> i32 {
    const NAME: [u64; 3] = [u64::from_le_bytes(*b"__per_cp"), u64::from_le_bytes(*b"u_offset"), 0];
    // SAFETY: the second word of the iterator's context is a `struct kallsym_iter *`, or null at the end.
    unsafe {
        let symbol = *ctx.add(1) as *const u8;
        if symbol.is_null() {
            return 0;
        }
        let mut name = [0u64; 3];
        // 17 bytes: with the NUL, and nothing of what an earlier name left behind it.
        bpf_probe_read_kernel((&raw mut name).cast(), 17, address(symbol, &KSYM_NAME).cast());
        if name[0] == NAME[0] && name[1] == NAME[1] && name[2] == NAME[2] {
            let at: u64 = load(symbol, &KSYM_VALUE);
            if let Some(place) = PER_CPU_OFFSETS.get_ptr_mut(0) {
                *place = at;
            }
        }
    }
    0
}
