// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! `nodeInfo`: which networks the targets have, and a process that lives in each.
//!
//! Hook: `iter/task` when a window ends. Nothing is counted here: the agent reads the files of those processes.

use aya_ebpf::helpers::generated::bpf_seq_write;
use node_agent_common::node_info::{NET_INDEX, NetNamespace};

use super::processes::{TASK_PID, TASK_START_BOOTTIME, TASK_TGID};
use crate::kernel::load;
use crate::{counters, netns, target};

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
            pid: load::<u32>(this, &TASK_TGID).into(),
        };
        bpf_seq_write(*meta, (&raw const found).cast(), size_of::<NetNamespace>() as u32);
    }
    0
}
