// SPDX-License-Identifier: Apache-2.0
//! The kernel programs' clock (CLOCK_BOOTTIME) and its relation to UTC.

use rustix::time::{ClockId, clock_gettime};

fn read(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Nanoseconds since boot, as `bpf_ktime_get_boot_ns` counts them.
pub fn boot_ns() -> u64 {
    read(ClockId::Boottime).unsigned_abs()
}

/// What to add to a boot time for nanoseconds since the epoch, now. Changes when the wall clock is set or slewed.
pub fn utc_offset_ns() -> i64 {
    let before = read(ClockId::Boottime);
    let utc = read(ClockId::Realtime);
    let after = read(ClockId::Boottime);
    utc - (before + (after - before) / 2)
}

/// Length of the kernel's timer tick (1 / CONFIG_HZ): what the coarse clocks advance by.
pub fn tick_ns() -> u64 {
    let resolution = rustix::time::clock_getres(ClockId::MonotonicCoarse);
    resolution.tv_nsec.unsigned_abs()
}
