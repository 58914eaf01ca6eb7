// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Adds events up in maps, by key and window.
//!
//! A window has a number, and keys hold it: to end a window, the agent raises the number, waits until every program that
//! saw the old one has ended, and takes out the entries with the old one, which nothing changes any more. So no event is
//! between two windows. The key also holds the set of sessions: an event costs one entry, however many record it.
//! A full map is counted `map_full`, as events that have no row.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use node_agent_common::aggregate::{Aggregate, Histogram, SLOTS};
use node_agent_common::counters::MAX_TABLES;
use node_agent_common::event::Header;

use crate::atomic;
use crate::counters::{self, Loss};
use crate::ring::Hit;

/// Number of the window that is being added up, by table.
#[map]
static WINDOWS: Array<u64> = Array::with_max_entries(MAX_TABLES, 0);

/// Where a table is added up, and a value of zeros, which would not fit the stack.
pub(crate) struct Sums<A: Aggregate> {
    pub(crate) entries: &'static HashMap<A::Key, A::Value>,
    pub(crate) zeros: &'static Array<A::Value>,
}

/// Counts an event, and adds to the entry of its key for the sessions that get it. `key` writes everything but the header,
/// `add` changes words atomically.
#[inline(always)]
pub(crate) fn add<A: Aggregate>(
    sums: &Sums<A>,
    hit: &Hit,
    key: impl FnOnce(*mut A::Key),
    add: impl FnOnce(*mut A::Value),
) {
    // Sums are sampled as the session asked, in both sets alike: what stands in an entry is by one weight.
    let Some(set) = counters::limits_in_use() else { return };
    let slots = counters::admit(hit.slots, A::TABLE, set);
    if slots != 0 && !amend(sums, &Hit { slots, ..*hit }, 1, key, add) {
        counters::lose(slots, A::TABLE, Loss::MapFull as u32, set);
    }
}

/// As [`add`], for `events` at once that the kernel has counted itself.
#[inline(always)]
pub(crate) fn add_many<A: Aggregate>(
    sums: &Sums<A>,
    hit: &Hit,
    events: u64,
    key: impl FnOnce(*mut A::Key),
    add: impl FnOnce(*mut A::Value),
) {
    counters::admit_many(hit.slots, A::TABLE, events);
    if !amend(sums, hit, events, key, add) {
        counters::lose_many(hit.slots, A::TABLE, Loss::MapFull as u32, events);
    }
}

/// As [`add`], of what is there when somebody looks: no event, and counted only where it finds no room.
#[inline(always)]
pub(crate) fn look<A: Aggregate>(
    sums: &Sums<A>,
    hit: &Hit,
    key: impl FnOnce(*mut A::Key),
    add: impl FnOnce(*mut A::Value),
) {
    if !amend(sums, hit, 0, key, add) {
        counters::admit_many(hit.slots, A::TABLE, 1);
        counters::lose_many(hit.slots, A::TABLE, Loss::MapFull as u32, 1);
    }
}

/// Adds without counting anything as having happened; false when the map has no room.
#[inline(always)]
pub(crate) fn amend<A: Aggregate>(
    sums: &Sums<A>,
    hit: &Hit,
    events: u64,
    key: impl FnOnce(*mut A::Key),
    add: impl FnOnce(*mut A::Value),
) -> bool {
    let window = WINDOWS.get(A::TABLE).copied().unwrap_or(0);
    let mut whole = MaybeUninit::<A::Key>::uninit();
    let place = whole.as_mut_ptr();
    key(place);
    // SAFETY: a key begins with its header (contract of `Aggregate`); every byte is written, as there is no padding.
    let whole = unsafe {
        place.cast::<Header>().write(Header {
            tag: A::TAG,
            cpu: 0,
            attribution: hit.attribution as u8,
            limits: 0,
            reserved: [0; 2],
            slots: hit.slots,
            ts_ns: window,
            cgroup_id: hit.cgroup_id,
            netns: hit.netns,
        });
        whole.assume_init_ref()
    };
    let entry = match sums.entries.get_ptr_mut(whole) {
        Some(entry) => entry,
        None => {
            let Some(zeros) = sums.zeros.get(0) else { return false };
            // Another CPU may be first: its entry is as good.
            let _ = sums.entries.insert(whole, zeros, u64::from(BPF_NOEXIST));
            match sums.entries.get_ptr_mut(whole) {
                Some(entry) => entry,
                None => return false,
            }
        }
    };
    // SAFETY: a value begins with its count (contract of `Aggregate`).
    unsafe { atomic::add(entry.cast::<u64>(), events) };
    add(entry);
    true
}

/// Uses an entry, so that this CPU has room for some at hand from then on. The kernel begins with room for one where values
/// are large, and fetches more once it may be interrupted: the second new entry within one run finds nothing otherwise.
#[inline(always)]
pub(crate) fn warm<A: Aggregate>(sums: &Sums<A>) {
    let Some(zeros) = sums.zeros.get(0) else { return };
    let none = MaybeUninit::<A::Key>::zeroed();
    // SAFETY: a key is made of integers (contract of `Aggregate`); one without sessions is nobody's.
    let none = unsafe { none.assume_init_ref() };
    if sums.entries.insert(none, zeros, u64::from(BPF_NOEXIST)).is_ok() {
        let _ = sums.entries.remove(none);
    }
}

/// The slot of a value in a histogram.
///
/// Exported, so that the verifier follows its branches once: side by side, two of them would give it millions of paths.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn histogram_slot(value: u64) -> u32 {
    // Six comparisons: the instruction set has no count of leading zeros.
    let (mut rest, mut slot) = (value, 0u32);
    if rest >> 32 != 0 {
        rest >>= 32;
        slot += 32;
    }
    if rest >> 16 != 0 {
        rest >>= 16;
        slot += 16;
    }
    if rest >> 8 != 0 {
        rest >>= 8;
        slot += 8;
    }
    if rest >> 4 != 0 {
        rest >>= 4;
        slot += 4;
    }
    if rest >> 2 != 0 {
        rest >>= 2;
        slot += 2;
    }
    if rest >> 1 != 0 {
        slot += 1;
    }
    slot
}

/// Counts a value in a histogram.
///
/// # Safety
/// `histogram` lies in a map's value.
#[inline(always)]
pub(crate) unsafe fn count(histogram: *mut Histogram, value: u64) {
    let slot = histogram_slot(value) as usize;
    let slot = if slot < SLOTS { slot } else { SLOTS - 1 };
    // SAFETY: as promised; the slot is within.
    unsafe { atomic::add(histogram.cast::<u64>().add(slot), 1) };
}
