// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Keeps other tasks off the CPU while a program runs.
//!
//! The kernel skips a program on a CPU where the same program runs already. Programs on function entries may be preempted
//! on every kernel, those on tracepoints since 7.0: a task that takes the CPU in the middle would lose its own event.
//! What is left are the few instructions around the two calls; a skipped run is counted by the kernel (`recursion`).
//! Kernels before 6.15, where the loader leaves the calls out, do not preempt programs on tracepoints.

use core::mem::transmute;

use node_agent_common::kfunc;

/// Runs `program` with preemption off.
#[inline(always)]
pub(crate) fn alone(program: impl FnOnce() -> i32) -> i32 {
    // SAFETY: not addresses but numbers of calls, for which the loader puts in the kernel's functions; they take nothing.
    let (disable, enable) = unsafe {
        (
            transmute::<usize, unsafe extern "C" fn()>(kfunc::PREEMPT_DISABLE as usize),
            transmute::<usize, unsafe extern "C" fn()>(kfunc::PREEMPT_ENABLE as usize),
        )
    };
    // SAFETY: paired, as the verifier checks.
    unsafe { disable() };
    let result = program();
    // SAFETY: as above.
    unsafe { enable() };
    result
}
