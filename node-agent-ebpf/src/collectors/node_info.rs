// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! `nodeInfo`: which networks the targets have, and a process that lives in each.
//!
//! Hook: `iter/task` when a window ends. Nothing is counted here: the agent reads the files of those processes.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_seq_write};
use node_agent_common::fields::{offset, size};
use node_agent_common::node_info::{NET_INDEX, NetNamespace};

use super::processes::{TASK_PID, TASK_START_BOOTTIME, TASK_TGID};
use crate::kernel::{constant, load};
use crate::sock::{Probe, Read};
use crate::{counters, netns, target};

node_agent_common::declare_pid_fields!();

/// A task's number in the namespace of process ids of whoever reads the pass: a node that is a container has one of its own.
/// A pass shows only what its reader's namespace holds, so the reader's level is one that the task has.
///
/// # Safety
/// `task` is a typed pointer to a task.
#[inline(always)]
unsafe fn number_here(task: *const u8) -> u64 {
    // SAFETY: addresses are plain numbers here, read by a helper; a bad one reads as zero.
    unsafe {
        let pid = |task| Probe::number(task, &TASK_THREAD_PID) as *const u8;
        let level = Probe::number(pid(bpf_get_current_task() as *const u8), &PID_LEVEL);
        let namespace = constant(&UPID_NS);
        let step = offset(namespace) as u64 + u64::from(size(namespace));
        Probe::number(pid(task).wrapping_add((level * step) as usize), &PID_NUMBER)
    }
}

/// What runs now: the context is (meta, task), and meta begins with the file that the agent reads.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn node_networks(ctx: *mut u64) -> i32 {
    // SAFETY: the iterator's context is two pointers, the second of them to a task, or null at the end.
    unsafe {
        let meta = *ctx as *const *mut aya_ebpf::bindings::seq_file;
        let this = *ctx.add(1) as *const u8;
        if this.is_null() || load::<u32>(this, &TASK_PID) != load::<u32>(this, &TASK_TGID) {
            return 0;
        }
        let Some(net) = netns::learn(this) else { return 0 };
        let slots = counters::enabled(target::slots(net.cgroup_id), NET_INDEX);
        if slots == 0 {
            return 0;
        }
        let found = NetNamespace {
            cookie: net.cookie,
            cgroup_id: net.cgroup_id,
            slots,
            netns: net.inum,
            start_ns: load(this, &TASK_START_BOOTTIME),
            pid: number_here(this),
        };
        bpf_seq_write(*meta, (&raw const found).cast(), size_of::<NetNamespace>() as u32);
    }
    0
}
