// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Reads kernel structures at places that the loader found in the running kernel's BTF.
//!
//! Arguments of BTF tracepoints are typed pointers: the verifier follows plain loads from them (2 ns instead of 8-10 for
//! a probe read) and the kernel handles a bad address. That holds as long as each step loads a member exactly.

use core::ptr::read_volatile;

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use node_agent_common::fields::{MISSING, offset};

node_agent_common::declare_base_fields!();

/// The loader's value of a constant; volatile, since the compiler sees only what stands in the object.
#[inline(always)]
pub(crate) fn constant(place: &'static u64) -> u64 {
    // SAFETY: a static of the object.
    unsafe { read_volatile(place) }
}

/// Whether the running kernel has the place.
#[inline(always)]
pub(crate) fn exists(place: &'static u64) -> bool {
    constant(place) != MISSING
}

/// The member at `place` of the structure at `base`.
///
/// # Safety
/// `base` came from a typed argument or from such a load, and `T` has the member's width.
#[inline(always)]
pub(crate) unsafe fn load<T: Copy>(base: *const u8, place: &'static u64) -> T {
    // SAFETY: the verifier checks the type at that offset; a bad address reads as zero.
    unsafe { *base.add(offset(constant(place))).cast::<T>() }
}

/// The address of the member at `place`, for helpers that read from it.
#[inline(always)]
pub(crate) fn address(base: *const u8, place: &'static u64) -> *const u8 {
    // Wrapping, since the compiler must not assume an object around it.
    base.wrapping_add(offset(constant(place)))
}

/// A pointer member.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub(crate) unsafe fn follow(base: *const u8, place: &'static u64) -> *const u8 {
    // SAFETY: as promised by the caller.
    unsafe { load::<*const u8>(base, place) }
}

/// Id of a cgroup: its kernfs node's, which user space sees as the directory's inode.
///
/// # Safety
/// `cgroup` is a typed pointer to a `struct cgroup`.
#[inline(always)]
pub unsafe fn cgroup_id(cgroup: *const u8) -> u64 {
    // SAFETY: each step loads a member of the type before.
    unsafe { load(follow(cgroup, &CGROUP_KN), &KN_ID) }
}

/// Id of a task's cgroup in the v2 hierarchy.
///
/// # Safety
/// `task` is a typed pointer to a `struct task_struct`.
#[inline(always)]
pub(crate) unsafe fn task_cgroup_id(task: *const u8) -> u64 {
    // SAFETY: each step loads a member of the type before.
    unsafe { cgroup_id(follow(follow(task, &TASK_CGROUPS), &CSS_SET_DFL_CGRP)) }
}

/// The CPU that this runs on.
#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: the helper has no arguments.
    unsafe { bpf_get_smp_processor_id() as u32 }
}
