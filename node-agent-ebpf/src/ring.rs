// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Sends records to the agent.
//!
//! CPUs share rings in small groups (one shared by all loses 2-6 times its throughput on many cores). Records are built in
//! place and submitted without waking anybody: the agent looks every few milliseconds, so a burst costs no context switch.
//! Order is kept within a ring only; user space sorts by time.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE};
use aya_ebpf::btf_maps::{ArrayOfMaps, RingBuf};
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::helpers::generated::bpf_ringbuf_query;
use aya_ebpf::macros::btf_map;
use node_agent_common::event::{Attribution, Event, Header};

use crate::counters::{self, Loss};
use crate::kernel;

/// Most rings there can be.
const MAX_RINGS: usize = 64;

/// The rings; the agent makes them (their number follows the CPUs) and puts them in.
#[btf_map]
static RINGS: ArrayOfMaps<RingBuf<u8, 4096>, MAX_RINGS> = ArrayOfMaps::new();

/// Number of rings minus one; a power of two minus one.
#[unsafe(no_mangle)]
static RING_MASK: u64 = 0;

/// An event on a target.
#[derive(Clone, Copy)]
pub(crate) struct Hit {
    /// Sessions that record it.
    pub(crate) slots: u64,
    /// The cgroup by which it was attributed.
    pub(crate) cgroup_id: u64,
    /// Inode of the network namespace, 0 if unknown.
    pub(crate) netns: u64,
    /// How it was attributed.
    pub(crate) attribution: Attribution,
}

impl Hit {
    /// The hit for the sessions that want sums of `table`, and for those that want each event; none where no session does.
    #[inline(always)]
    pub(crate) fn split(&self, table: u32) -> (Option<Hit>, Option<Hit>) {
        let each = counters::each(table);
        let part = |slots: u64| (slots != 0).then_some(Hit { slots, ..*self });
        (part(self.slots & !each), part(self.slots & each))
    }
}

/// Nanoseconds since boot.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper has no arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Counts the event, and sends a record to the sessions that get a row for it. `fill` writes everything but the header.
#[inline(always)]
pub(crate) fn emit<T: Event + 'static>(hit: &Hit, fill: impl FnOnce(*mut T)) {
    emit_at(hit, now(), fill);
}

/// As [`emit`], for an event that is told of later than it happened. Its rate is that of now: a limit whose second went
/// back with it would begin anew each time.
#[inline(always)]
pub(crate) fn emit_at<T: Event + 'static>(hit: &Hit, ts_ns: u64, fill: impl FnOnce(*mut T)) {
    let Some(set) = counters::limits_in_use() else { return };
    let slots = counters::admit(hit.slots, T::TABLE, set);
    if slots == 0 {
        return;
    }
    if !send(ts_ns, slots, set, hit, fill) {
        counters::lose(slots, T::TABLE, Loss::RingFull as u32, set);
    }
}

/// Sends a record that is no row; false when the ring had no room.
#[inline(always)]
pub(crate) fn control<T: Event + 'static>(slots: u64, cgroup_id: u64, fill: impl FnOnce(*mut T)) -> bool {
    send(now(), slots, 0, &Hit { slots, cgroup_id, netns: 0, attribution: Attribution::Task }, fill)
}

/// Whether this CPU's ring is at most three quarters full: for programs that can come back later.
#[inline(always)]
pub(crate) fn has_room() -> bool {
    let Some(ring) = RINGS.get(kernel::cpu() & kernel::constant(&RING_MASK) as u32) else { return false };
    let ring = core::ptr::from_ref(ring).cast_mut().cast();
    // SAFETY: a ring of the map; the helper only reads its positions.
    let (used, size) = unsafe {
        (
            bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)),
            bpf_ringbuf_query(ring, u64::from(BPF_RB_RING_SIZE)),
        )
    };
    used < size - size / 4
}

#[inline(always)]
fn send<T: Event + 'static>(ts_ns: u64, slots: u64, set: u32, hit: &Hit, fill: impl FnOnce(*mut T)) -> bool {
    let cpu = kernel::cpu();
    let Some(ring) = RINGS.get(cpu & kernel::constant(&RING_MASK) as u32) else { return false };
    let Some(mut entry) = ring.reserve_untyped::<T>(0) else { return false };
    let record = entry.as_mut_ptr();
    fill(record);
    // SAFETY: the record begins with its header (contract of `Event`) and is ours until it is submitted.
    unsafe {
        record.cast::<Header>().write(Header {
            tag: T::TAG,
            cpu: cpu as u16,
            attribution: hit.attribution as u8,
            limits: set as u8,
            reserved: [0; 2],
            slots,
            ts_ns,
            cgroup_id: hit.cgroup_id,
            netns: hit.netns,
        });
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}
