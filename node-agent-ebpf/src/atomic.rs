// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Atomic changes of words in maps. The standard library leaves these methods out for targets without compare-and-swap;
//! BPF has the instructions (since 5.12), and the compiler's intrinsics reach them.
//!
//! Two orders for a reason: LLVM makes an addition without the fetch flag of every relaxed one, also where its result is
//! used, which then is the operand. Whoever needs the result asks for a stronger order.

use core::intrinsics::AtomicOrdering::{AcqRel, Acquire, Relaxed};
use core::intrinsics::{atomic_and, atomic_cxchg, atomic_or, atomic_xadd, atomic_xchg};

/// Adds.
///
/// # Safety
/// `word` points into a map's value and is aligned.
#[inline(always)]
pub(crate) unsafe fn add(word: *mut u64, value: u64) {
    // SAFETY: as promised by the caller.
    unsafe { atomic_xadd::<u64, u64, { Relaxed }>(word, value) };
}

/// Adds and returns what was there before.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn fetch_add(word: *mut u64, value: u64) -> u64 {
    // SAFETY: as promised by the caller.
    unsafe { atomic_xadd::<u64, u64, { AcqRel }>(word, value) }
}

/// Sets bits and returns what was there before.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn or(word: *mut u64, bits: u64) -> u64 {
    // SAFETY: as promised by the caller.
    unsafe { atomic_or::<u64, u64, { AcqRel }>(word, bits) }
}

/// Keeps only these bits and returns what was there before.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn and(word: *mut u64, bits: u64) -> u64 {
    // SAFETY: as promised by the caller.
    unsafe { atomic_and::<u64, u64, { AcqRel }>(word, bits) }
}

/// Puts a value and returns what was there before.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn swap(word: *mut u64, value: u64) -> u64 {
    // SAFETY: as promised by the caller.
    unsafe { atomic_xchg::<u64, { AcqRel }>(word, value) }
}

/// What a counter that now is `now` has grown by since `seen`, for one of those that ask at once: `seen` is `now` then. None of
/// it for who looked earlier than `seen` was.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn claim(seen: *mut u64, now: u64) -> u64 {
    // A pass and a hook at most ask at once, and each time that one comes to nothing the other has got on.
    for _ in 0..4 {
        // SAFETY: as promised by the caller.
        unsafe {
            let before = seen.read_volatile();
            let grown = now.wrapping_sub(before);
            if grown.cast_signed() <= 0 {
                return 0;
            }
            if atomic_cxchg::<u64, { AcqRel }, { Acquire }>(seen, before, now).1 {
                return grown;
            }
        }
    }
    0
}
