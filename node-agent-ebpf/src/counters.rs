// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Counts, per session and table, what becomes of each event, where it becomes it; applies sampling and rate limits.
//!
//! Counters are per CPU and atomic: a softirq may interrupt a program on the same CPU between load and store.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use node_agent_common::counters::{
    BEGAN_NUMBERS, Counters, LIMIT_SETS, Limits, MAX_TABLES, RateWindow, SET_SLOT_TABLES, SET_TABLES,
    SLOT_TABLES, in_set, set_table, slot_table,
};
use node_agent_common::target::SLOTS;

use crate::{atomic, ring};

/// What became of events; see [`slot_table`] for the index.
#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(SLOT_TABLES, 0);

/// What each session gets, in each set; see [`set_slot_table`](node_agent_common::counters::set_slot_table) for the index.
#[map]
static LIMITS: Array<Limits> = Array::with_max_entries(SET_SLOT_TABLES, 0);

/// Slots that have any limit, in each set; see [`set_table`] for the index.
#[map]
static LIMITED: Array<u64> = Array::with_max_entries(SET_TABLES, 0);

/// The set by which events are admitted now.
#[map]
static LIMITS_IN_USE: Array<u64> = Array::with_max_entries(1, 0);

/// Hits since the last row that stands for them, skipped by sampling and not yet represented: by set, as each has a number
/// of its own to reach.
#[map]
static SAMPLED_OUT: PerCpuArray<u64> = PerCpuArray::with_max_entries(SET_SLOT_TABLES, 0);

/// Where each session's rate stands.
#[map]
static RATES: Array<RateWindow> = Array::with_max_entries(SLOT_TABLES, 0);

/// Slots that record a table. Zero ends a session at once, whatever its targets still say.
#[map]
static ENABLED: Array<u64> = Array::with_max_entries(MAX_TABLES, 0);

/// The number of each slot's session, in the order in which sessions began; after the last slot, the newest of all.
#[map]
static BEGAN: Array<u64> = Array::with_max_entries(BEGAN_NUMBERS, 0);

/// Slots whose session has a row stand for several events of a table.
#[map]
static SAMPLED: Array<u64> = Array::with_max_entries(MAX_TABLES, 0);

/// Slots whose session wants each event of a table by itself, where a table may also add up.
#[map]
static EACH: Array<u64> = Array::with_max_entries(MAX_TABLES, 0);

const NANOSECONDS: u64 = 1_000_000_000;

/// Hits of each table that nothing says whose they are.
#[map]
static UNATTRIBUTED: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_TABLES, 0);

/// Counts a hit that no socket claims, in a network namespace that is no target's or the node's own.
#[inline(always)]
pub(crate) fn unattributed(table: u32) {
    if let Some(hits) = UNATTRIBUTED.get_ptr_mut(table) {
        // SAFETY: a word of the map's value.
        unsafe { atomic::add(hits, 1) };
    }
}

/// Which of `slots` record `table`.
#[inline(always)]
pub(crate) fn enabled(slots: u64, table: u32) -> u64 {
    match ENABLED.get(table) {
        Some(enabled) => slots & *enabled,
        None => 0,
    }
}

/// Which of `slots` sample `table`.
#[inline(always)]
pub(crate) fn sampled(slots: u64, table: u32) -> u64 {
    match SAMPLED.get(table) {
        Some(sampled) => slots & *sampled,
        None => 0,
    }
}

/// The slots that want each event of `table` by itself; the others want sums.
#[inline(always)]
pub(crate) fn each(table: u32) -> u64 {
    EACH.get(table).copied().unwrap_or(0)
}

/// The number of the newest session, to be kept with what is seen of a socket or a task: see [`since`].
#[inline(always)]
pub(crate) fn newest() -> u64 {
    BEGAN.get(BEGAN_NUMBERS - 1).copied().unwrap_or(0)
}

/// Which of `slots` were their sessions' already when session `newest` was the newest: what a socket or a task has done
/// since then is theirs. A slot may have been another session's at that time.
///
/// Exported, as [`admit`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn since(slots: u64, newest: u64) -> u64 {
    let (mut rest, mut own) = (slots, slots);
    let mut round = 0;
    while round < SLOTS {
        if rest == 0 {
            break;
        }
        let bit = rest & rest.wrapping_neg();
        if BEGAN.get(bit.trailing_zeros()).is_none_or(|number| *number > newest) {
            own &= !bit;
        }
        rest &= !bit;
        round += 1;
    }
    own
}

/// The set of limits that is in use: to be asked once for an event, and given to all that is done about it. There always is one;
/// a caller that had to go on without would have the verifier follow everything twice.
#[inline(always)]
pub(crate) fn limits_in_use() -> Option<u32> {
    LIMITS_IN_USE.get(0).map(|set| *set as u32 % LIMIT_SETS)
}

/// Counts an event for each of `slots` and says which of them get a row for it, by that set of limits.
///
/// Exported, so that the verifier checks it once and not for every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn admit(slots: u64, table: u32, set: u32) -> u64 {
    let limited = LIMITED.get(set_table(set, table)).copied().unwrap_or(0);
    // Bits are taken out of what the verifier cannot know. Putting known ones together gives it 2^64 different answers to
    // follow, and every program is refused as too large.
    let (mut rest, mut admitted) = (slots, slots);
    let mut round = 0;
    while round < SLOTS {
        if rest == 0 {
            break;
        }
        let bit = rest & rest.wrapping_neg();
        let index = slot_table(bit.trailing_zeros(), table);
        match COUNTERS.get_ptr_mut(index) {
            // SAFETY: a pointer into the map's value.
            Some(counters) => unsafe { atomic::add(&raw mut (*counters).emitted, 1) },
            None => admitted &= !bit,
        }
        if limited & bit != 0 && admit_limited(index, set) == 0 {
            admitted &= !bit;
        }
        rest &= !bit;
        round += 1;
    }
    admitted
}

/// Whether an event gets a row of a session that has limits, by index and set; 0 if not.
///
/// Exported, as [`admit`]: sessions without limits do not pay for it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn admit_limited(index: u32, set: u32) -> u32 {
    let (index, own) = (index % SLOT_TABLES, in_set(set, index));
    let Some(limits) = LIMITS.get(own) else { return 0 };
    // SAFETY: pointers into the maps' values.
    unsafe {
        if limits.max_per_second != 0 {
            let Some(rate) = RATES.get_ptr_mut(index) else { return 0 };
            // The clock costs as much as all the rest: it is read for those only that have a limit.
            let second = ring::now() / NANOSECONDS;
            // Two CPUs may both begin the second: a few events more may pass then, and none goes uncounted. One that read its
            // clock before must not begin the last second anew.
            if (*rate).second < second {
                (*rate).second = second;
                (*rate).used = 0;
            }
            if atomic::fetch_add(&raw mut (*rate).used, 1) >= limits.max_per_second {
                if let Some(counters) = COUNTERS.get_ptr_mut(index) {
                    atomic::add(&raw mut (*counters).rate_limited, 1);
                }
                return 0;
            }
        }
        if limits.sample_every > 1 {
            let Some(skipped) = SAMPLED_OUT.get_ptr_mut(own) else { return 0 };
            // Equal, not greater: a nested event must not take a second row for the same number of events.
            if atomic::fetch_add(skipped, 1) + 1 != limits.sample_every {
                return 0;
            }
            atomic::add(skipped, limits.sample_every.wrapping_neg());
        }
    }
    1
}

/// Counts many events at once for each of `slots`: those that the kernel has counted itself. Sampling and rate limits are
/// about single events, and do not apply.
///
/// Exported, as [`admit`].
#[unsafe(no_mangle)]
pub(crate) extern "C" fn admit_many(slots: u64, table: u32, events: u64) {
    let mut rest = slots;
    let mut round = 0;
    while round < SLOTS {
        if rest == 0 {
            break;
        }
        let bit = rest & rest.wrapping_neg();
        if let Some(counters) = COUNTERS.get_ptr_mut(slot_table(bit.trailing_zeros(), table)) {
            // SAFETY: a pointer into the map's value.
            unsafe { atomic::add(&raw mut (*counters).emitted, events) };
        }
        rest &= !bit;
        round += 1;
    }
}

/// How an event that was admitted was lost afterwards.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Loss {
    /// The ring had no room.
    RingFull,
    /// A map had no room.
    MapFull,
}

/// Counts the events that a row would have stood for as lost, for each of `slots`, which that set of limits admitted.
///
/// Exported, as [`admit`].
#[unsafe(no_mangle)]
pub(crate) extern "C" fn lose(slots: u64, table: u32, loss: u32, set: u32) {
    lose_each(slots, table, loss, |index| {
        LIMITS.get(in_set(set, index)).map_or(1, |limits| limits.sample_every.max(1))
    });
}

/// Counts so many events as lost, for each of `slots`: those of [`admit_many`].
///
/// Exported, as [`admit`].
#[unsafe(no_mangle)]
pub(crate) extern "C" fn lose_many(slots: u64, table: u32, loss: u32, events: u64) {
    lose_each(slots, table, loss, |_| events);
}

#[inline(always)]
fn lose_each(slots: u64, table: u32, loss: u32, events: impl Fn(u32) -> u64) {
    let mut rest = slots;
    let mut slot = 0;
    while slot < SLOTS {
        if rest == 0 {
            break;
        }
        if rest & 1 != 0 {
            let index = slot_table(slot, table);
            if let Some(counters) = COUNTERS.get_ptr_mut(index) {
                // SAFETY: a pointer into the map's value.
                let counter = unsafe {
                    if loss == Loss::RingFull as u32 {
                        &raw mut (*counters).ring_full
                    } else {
                        &raw mut (*counters).map_full
                    }
                };
                // SAFETY: as above.
                unsafe { atomic::add(counter, events(index)) };
            }
        }
        rest >>= 1;
        slot += 1;
    }
}
