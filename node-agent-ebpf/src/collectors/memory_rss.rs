// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Resident memory of the targets' processes at the end of each window.
//!
//! Hook: `iter/task` at each window's end. The kernel's tracepoint `rss_stat` fires for every page and does not carry the sum,
//! so looking costs less and says more. Since 6.2 each CPU keeps a share of the count (`struct percpu_counter`), at an
//! offset that no symbol table shows on every kernel: it is taken from a per-CPU map, whose memory lies at the same offsets.
//! Cost: a pass over all tasks per window, some 100 ns each, and 2 us for each process of a target and 100 CPUs.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::{bpf_map_lookup_percpu_elem, bpf_probe_read_kernel};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
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

/// Each CPU's offset: what is added to the address of a per-CPU variable. The word after the last is 1 once they are there.
#[map]
static CPU_OFFSETS: Array<u64> = Array::with_max_entries(MAX_CPUS + 1, 0);

/// Memory of which each CPU has its own, to find the offsets by.
#[map]
static ANCHOR: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What is added up.
#[map]
static MEMORY_RSS: HashMap<MemoryRssKey, MemoryRssValue> =
    HashMap::with_max_entries(MAX_ROWS, BPF_F_NO_PREALLOC);
#[map]
static MEMORY_RSS_ZEROS: Array<MemoryRssValue> = Array::with_max_entries(1, 0);

const SUMS: Sums<MemoryRss> = Sums { entries: &MEMORY_RSS, zeros: &MEMORY_RSS_ZEROS };

/// A pointer as a number: the verifier tells them apart, and what it reads back from memory is a number.
#[inline(always)]
fn number<T>(pointer: *const T) -> u64 {
    let held = pointer;
    peek((&raw const held).cast())
}

/// Fills [`CPU_OFFSETS`], once.
///
/// Exported, so that the verifier checks the loop once.
#[unsafe(no_mangle)]
extern "C" fn cpu_offsets() -> u32 {
    let Some(ready) = CPU_OFFSETS.get_ptr_mut(MAX_CPUS) else { return 0 };
    // SAFETY: a word of the map's value.
    if unsafe { *ready } != 0 {
        return 0;
    }
    let map = &raw const ANCHOR;
    let per_cpu = peek(address(number(map) as *const u8, &ARRAY_PPTRS));
    let (first, mut cpu) = (0u32, 0);
    while cpu < MAX_CPUS {
        if u64::from(cpu) >= constant(&RSS_CPUS) {
            break;
        }
        // SAFETY: the map and its first key; null for a CPU that cannot be.
        let own =
            unsafe { bpf_map_lookup_percpu_elem(map.cast_mut().cast(), (&raw const first).cast(), cpu) };
        if let (Some(offset), false) = (CPU_OFFSETS.get_ptr_mut(cpu), own.is_null()) {
            // SAFETY: a word of the map's value.
            unsafe { *offset = number(own).wrapping_sub(per_cpu) };
        }
        cpu += 1;
    }
    // SAFETY: as above.
    unsafe { *ready = 1 };
    0
}

/// What the CPUs hold of a counter whose shares are at `shares`.
///
/// Exported, as [`cpu_offsets`].
#[unsafe(no_mangle)]
extern "C" fn rss_shares(shares: u64) -> i64 {
    let mut sum = 0i64;
    let mut cpu = 0;
    while cpu < MAX_CPUS {
        if u64::from(cpu) >= constant(&RSS_CPUS) {
            break;
        }
        let offset = CPU_OFFSETS.get(cpu).copied().unwrap_or(0);
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
        if constant(&RSS_HAS_SHARES) != 0 {
            cpu_offsets();
        }
        let hit = Hit { slots, cgroup_id, netns: 0, attribution: Attribution::Task };
        let mut member = 0;
        while member < MEMBERS.len() as u64 {
            let counter = stat.wrapping_add(member * constant(&RSS_STRIDE));
            let pages = if constant(&RSS_HAS_SHARES) == 0 {
                peek(counter as *const u8).cast_signed()
            } else {
                let count = peek(address(counter as *const u8, &PERCPU_COUNT)).cast_signed();
                let shares = peek(address(counter as *const u8, &PERCPU_COUNTERS));
                count.wrapping_add(rss_shares(shares))
            };
            let pages = if pages < 0 { 0 } else { pages.cast_unsigned() };
            aggregate::look(
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
