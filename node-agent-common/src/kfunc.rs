// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Calls of kernel functions that are no helpers: numbers in the object, which the loader replaces by the ids that the
//! functions have in the running kernel's BTF, or by nothing where the kernel does not have them.

/// Stands for `bpf_preempt_disable` (6.10). Both are far beyond any helper's number.
pub const PREEMPT_DISABLE: u32 = 0x7472_6b01;
/// Stands for `bpf_preempt_enable` (6.10).
pub const PREEMPT_ENABLE: u32 = 0x7472_6b02;

/// Number in the object, name in the kernel.
pub const ALL: [(u32, &str); 2] =
    [(PREEMPT_DISABLE, "bpf_preempt_disable"), (PREEMPT_ENABLE, "bpf_preempt_enable")];
