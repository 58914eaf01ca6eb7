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

/// What happened to a session's events of one table on one CPU, in events.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Hits on a target.
    pub emitted: u64,
    /// Hits since the last row that stands for them: skipped by sampling and not yet represented.
    pub sampled_out: u64,
    /// Beyond `maxEventsPerSecond`.
    pub rate_limited: u64,
    /// The ring had no room.
    pub ring_full: u64,
    /// A map that the collector keeps state in had no room.
    pub map_full: u64,
}

/// How a session wants its events of one table; written when the slot is given out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// One row for this many events; 0 and 1 mean each.
    pub sample_every: u64,
    /// Events per second and node that may pass; 0 means all.
    pub max_per_second: u64,
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

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C) structs of u64 only: no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Limits {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RateWindow {}
}
