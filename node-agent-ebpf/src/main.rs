// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The kernel programs of every collector: one object, loaded program by program as sessions need them.
//!
//! In: kernel hooks, and maps that the agent fills (targets, limits, options). Out: records in the rings, counters.
//! Loses: what finds a full ring or map, counted there. A program never blocks, never wakes the agent, and returns 0.
//! Invariant: before the clock is read or a record reserved, the cgroup has been looked up and somebody wants the event.
//! One object for all, so that maps are shared without pins; a verifier's refusal stays with its program.
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "see `atomic`")]
#![no_std]
#![no_main]
#![allow(unreachable_pub, reason = "programs and constants are public for the linker, in private modules")]
#![allow(clippy::missing_safety_doc, reason = "programs have no callers but the kernel")]

mod aggregate;
mod atomic;
mod collectors;
mod counters;
mod kernel;
mod netns;
mod ring;
mod skb;
mod sock;
mod target;

/// Some helpers (probe reads, kernel clocks for tracing) are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses programs that could reach this; there is nothing else to do here.
    unsafe { core::hint::unreachable_unchecked() }
}
