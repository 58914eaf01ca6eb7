// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Which cgroups are targets of which sessions, kept by the kernel itself as cgroups come and go.
//!
//! Hooks: tp_btf `cgroup_mkdir`, `cgroup_rmdir` (6.1 to 7.x, same arguments). A pod's UID in the new cgroup's name, in its
//! parent's name, or a parent that is a target already, makes the cgroup a target before anything can run in it: a
//! container's first `execve` is seen. Only the v2 hierarchy (id 0): v1 fires the same tracepoint and its ids overlap.
//! Cost: mkdir 1.4-2.6 us, rmdir 0.6-0.8 us. The name is taken anchored at its end (a search in a loop costs the verifier
//! 112,000 instructions, this 1,700).
//! Not seen: cgroups that existed before; the agent scans for those after it has entered the UID.

use aya_ebpf::helpers::{bpf_probe_read_kernel_buf, bpf_probe_read_kernel_str_bytes};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::BtfTracePointContext;
use node_agent_common::target::{
    CGROUP_NAME, CgroupGone, CgroupMade, HINTS, MAX_PODS, MAX_TARGETS, PodKey, hint,
};

use crate::atomic;
use crate::kernel::{self, CGROUP_KN, CGROUP_PARENT, CGROUP_ROOT, CSS_CGROUP, KN_NAME, ROOT_HIERARCHY_ID};
use crate::ring;

/// Cgroup id to the sessions that record it.
#[map]
static TARGETS: HashMap<u64, u64> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// Not 0 where a cgroup of that [`hint`] may be a target.
#[map]
static TARGET_HINTS: Array<u8> = Array::with_max_entries(HINTS, 0);

/// Pod to the sessions that record it.
#[map]
static PODS: HashMap<PodKey, u64> = HashMap::with_max_entries(MAX_PODS, 0);

/// What went wrong here: cgroups that found [`TARGETS`] full, control records that found the ring full.
#[map]
static TARGET_ERRORS: Array<u64> = Array::with_max_entries(2, 0);

const MAP_FULL: u32 = 0;
const RING_FULL: u32 = 1;

/// The sessions that record the cgroup.
#[inline(always)]
pub(crate) fn slots(cgroup_id: u64) -> u64 {
    if TARGET_HINTS.get(hint(cgroup_id)).is_none_or(|hint| *hint == 0) {
        return 0;
    }
    // SAFETY: the value is one word, read once.
    unsafe { TARGETS.get(cgroup_id) }.copied().unwrap_or(0)
}

fn error(which: u32) {
    if let Some(count) = TARGET_ERRORS.get_ptr_mut(which) {
        // SAFETY: a word of the map's value.
        unsafe { atomic::add(count, 1) };
    }
}

/// A cgroup was made.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup: *const u8 = ctx.arg(0);
    // SAFETY: the tracepoint's first argument is a `struct cgroup *`; each step loads a member of the type before.
    unsafe {
        if kernel::load::<i32>(kernel::follow(cgroup, &CGROUP_ROOT), &ROOT_HIERARCHY_ID) != 0 {
            return 0;
        }
        let parent = kernel::follow(kernel::follow(cgroup, &CGROUP_PARENT), &CSS_CGROUP);
        let parent_id = kernel::cgroup_id(parent);
        let name = kernel::follow(kernel::follow(cgroup, &CGROUP_KN), &KN_NAME);
        let inherited = slots(parent_id);
        let own = pod_slots(name);
        let slots = inherited | own | pod_slots(kernel::follow(kernel::follow(parent, &CGROUP_KN), &KN_NAME));
        if slots == 0 {
            return 0;
        }
        let id = kernel::cgroup_id(cgroup);
        let _ = TARGET_HINTS.set(hint(id), 1, 0);
        if TARGETS.insert(id, slots, 0).is_err() {
            error(MAP_FULL);
            return 0;
        }
        let sent = ring::control::<CgroupMade>(slots, id, |record| {
            (*record).parent_id = parent_id;
            let _ = bpf_probe_read_kernel_str_bytes(name, &mut (*record).name);
        });
        if !sent {
            error(RING_FULL);
        }
    }
    0
}

/// A cgroup was removed.
#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup: *const u8 = ctx.arg(0);
    // SAFETY: as in `cgroup_mkdir`.
    unsafe {
        if kernel::load::<i32>(kernel::follow(cgroup, &CGROUP_ROOT), &ROOT_HIERARCHY_ID) != 0 {
            return 0;
        }
        let id = kernel::cgroup_id(cgroup);
        let slots = slots(id);
        if slots == 0 {
            return 0;
        }
        let _ = TARGETS.remove(id);
        if !ring::control::<CgroupGone>(slots, id, |record| (*record).unused = 0) {
            error(RING_FULL);
        }
    }
    0
}

const UID: usize = 36;
const HASH: usize = 32;
const SLICE: [u8; 6] = *b".slice";

/// The sessions that wait for the pod whose cgroup has this name (`pod<uid>`, `kubepods-burstable-pod<uid_>.slice`,
/// `pod<hash>`); the containers' own names match nothing.
#[inline(always)]
fn pod_slots(name: *const u8) -> u64 {
    let mut text = [0u8; CGROUP_NAME];
    // SAFETY: a kernel string; the helper stops at its end.
    let Ok(read) = (unsafe { bpf_probe_read_kernel_str_bytes(name, &mut text) }) else { return 0 };
    let mut length = read.len();
    let mut end = [0u8; SLICE.len()];
    if length > SLICE.len() && length < CGROUP_NAME {
        // SAFETY: inside the string.
        let _ = unsafe { bpf_probe_read_kernel_buf(name.wrapping_add(length - SLICE.len()), &mut end) };
        if end == SLICE {
            length -= SLICE.len();
        }
    }
    let by_uid = keyed(name, length, UID);
    if by_uid != 0 { by_uid } else { keyed(name, length, HASH) }
}

#[inline(always)]
fn keyed(name: *const u8, length: usize, digits: usize) -> u64 {
    if length < digits + 3 || length >= CGROUP_NAME {
        return 0;
    }
    let at = name.wrapping_add(length - digits);
    let mut marker = [0u8; 3];
    let mut key: PodKey = [0; 36];
    // SAFETY: inside the string, whose length was read.
    unsafe {
        if bpf_probe_read_kernel_buf(at.wrapping_sub(3), &mut marker).is_err() || marker != *b"pod" {
            return 0;
        }
        if bpf_probe_read_kernel_buf(at, &mut key[..digits]).is_err() {
            return 0;
        }
        if digits == UID {
            key[8] = separator(key[8]);
            key[13] = separator(key[13]);
            key[18] = separator(key[18]);
            key[23] = separator(key[23]);
        }
        PODS.get(key).copied().unwrap_or(0)
    }
}

#[inline(always)]
fn separator(byte: u8) -> u8 {
    if byte == b'_' { b'-' } else { byte }
}
