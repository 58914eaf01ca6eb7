// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Counters that the kernel side keeps per session and table: one word per CPU, counted where each thing happens.

use crate::target::SLOTS;

/// Tables the kernel side has room for; see [`TABLES`](crate::catalogue::TABLES).
pub const MAX_TABLES: u32 = 32;

/// Numbers that say when sessions began: one for each slot, and the newest of all.
pub const BEGAN_NUMBERS: u32 = SLOTS + 1;

/// Entries of the arrays that have one per session and table.
pub const SLOT_TABLES: u32 = SLOTS * MAX_TABLES;

/// Position of a session's table in those arrays.
pub const fn slot_table(slot: u32, table: u32) -> u32 {
    (slot % SLOTS) * MAX_TABLES + table % MAX_TABLES
}

/// Sets of limits: by one hooks admit events, the other is written for the next change. What is done by a set is kept apart
/// from the other's, and each record says by which one it was admitted, so that no event is counted by the weight of another
/// time.
pub const LIMIT_SETS: u32 = 2;

/// Entries of the arrays that have one per set, session and table.
pub const SET_SLOT_TABLES: u32 = LIMIT_SETS * SLOT_TABLES;

/// Position of a session's table in those arrays, by its position in the arrays without sets.
pub const fn in_set(set: u32, slot_table: u32) -> u32 {
    (set % LIMIT_SETS) * SLOT_TABLES + slot_table % SLOT_TABLES
}

/// Position of a session's table in those arrays.
pub const fn set_slot_table(set: u32, slot: u32, table: u32) -> u32 {
    in_set(set, slot_table(slot, table))
}

/// Entries of the array that has one per set and table.
pub const SET_TABLES: u32 = LIMIT_SETS * MAX_TABLES;

/// Position of a table in that array.
pub const fn set_table(set: u32, table: u32) -> u32 {
    (set % LIMIT_SETS) * MAX_TABLES + table % MAX_TABLES
}

/// What happened to a session's events of one table on one CPU, in events.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Hits on a target.
    pub emitted: u64,
    /// Beyond `maxEventsPerSecond`.
    pub rate_limited: u64,
    /// The ring had no room.
    pub ring_full: u64,
    /// A map that the collector keeps state in had no room.
    pub map_full: u64,
}

/// How a session wants its events of one table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// One row for this many events; 0 and 1 mean each.
    pub sample_every: u64,
    /// Events per second and node that may pass; 0 means all.
    pub max_per_second: u64,
}

impl Limits {
    /// Whether some event may be left out.
    pub const fn limits(&self) -> bool {
        self.sample_every > 1 || self.max_per_second != 0
    }
}

/// The second that a rate limit counts in, and what passed in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RateWindow {
    /// Seconds since boot.
    pub second: u64,
    /// Events that asked to pass.
    pub used: u64,
}

#[cfg(feature = "aya")]
mod pod {
    // SAFETY: repr(C) structs of u64 only: no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Limits {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RateWindow {}
}
