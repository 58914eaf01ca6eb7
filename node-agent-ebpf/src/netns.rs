// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Which network namespaces are targets', for packets that no socket claims.
//!
//! Hooks: tp_btf `sched_process_exec` (what runs in a pod has entered its namespace by then), `iter/task` for what runs
//! already. Namespaces are told apart by their cookie, which is never used again, unlike the inode. The node's own is left out:
//! pods that live in it share it with everything else; the agent says which one that is.
//! A pod's rows have the pod's own cgroup, as all its containers are in the namespace.
//! Not seen: namespaces of pods that share the node's process ids.

use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{Array, LruHashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use node_agent_common::event::Attribution;

use crate::kernel::{self, CGROUP_PARENT, CSS_CGROUP, CSS_SET_DFL_CGRP, TASK_CGROUPS, follow};
use crate::ring::Hit;
use crate::sock::{Direct, NET_INUM, Read};
use crate::{counters, target};

node_agent_common::declare_netns_fields!();

/// Cookie of a network namespace to the target that it is of.
#[map]
static NETNS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);

/// Cookie of the node's own namespace.
#[map]
static NETNS_OF_NODE: Array<u64> = Array::with_max_entries(1, 0);

/// Whether it is the node's own namespace; none is told from it before the agent has said which one that is.
#[inline(always)]
fn is_of_node(cookie: u64) -> bool {
    NETNS_OF_NODE.get(0).is_none_or(|node| *node == cookie || *node == 0)
}

/// Levels of cgroups between a pod's and its processes', at most: runtimes make one for a container, some another in it.
const LEVELS: usize = 4;

/// The outermost target that a cgroup lies in, itself included: for a pod the pod's own.
///
/// # Safety
/// `cgroup` is a typed pointer to a `struct cgroup`.
#[inline(always)]
unsafe fn outermost(cgroup: *const u8) -> Option<u64> {
    let (mut cgroup, mut found) = (cgroup, None);
    for _ in 0..LEVELS {
        // SAFETY: each step loads a member of the type before; above the root all of them read as zero.
        unsafe {
            let id = kernel::cgroup_id(cgroup);
            if target::slots(id) == 0 {
                break;
            }
            found = Some(id);
            cgroup = follow(follow(cgroup, &CGROUP_PARENT), &CSS_CGROUP);
        }
    }
    found
}

/// A target's namespace.
pub(crate) struct Network {
    pub(crate) cookie: u64,
    pub(crate) inum: u64,
    pub(crate) cgroup_id: u64,
}

/// The network namespace of a target's task, and whose it is.
///
/// # Safety
/// `task` is a typed pointer to a task.
#[inline(always)]
pub(crate) unsafe fn learn(task: *const u8) -> Option<Network> {
    // SAFETY: each step loads a member of the type before.
    unsafe {
        if target::slots(kernel::task_cgroup_id(task)) == 0 {
            return None;
        }
        let namespaces = follow(task, &TASK_NSPROXY);
        let net = follow(namespaces, &NSPROXY_NET);
        let cookie = Direct::number(net, &NET_COOKIE);
        if namespaces.is_null() || cookie == 0 || is_of_node(cookie) {
            return None;
        }
        // Who enters a pod's namespaces from elsewhere, as network plugins and people with a debugger do, is not the one whose
        // they are: that is the first process of the namespace of processes, if it lives in the same network.
        let first = follow(follow(namespaces, &NSPROXY_PID), &PID_NS_REAPER);
        if Direct::number(follow(follow(first, &TASK_NSPROXY), &NSPROXY_NET), &NET_COOKIE) != cookie {
            return None;
        }
        let owner = outermost(follow(follow(first, &TASK_CGROUPS), &CSS_SET_DFL_CGRP))?;
        let inum = Direct::number(net, &NET_INUM);
        // Nobody takes over what another target has.
        match NETNS.get(cookie).filter(|known| target::slots(**known) != 0) {
            Some(known) => Some(Network { cookie, inum, cgroup_id: *known }),
            None => {
                let _ = NETNS.insert(cookie, owner, 0);
                Some(Network { cookie, inum, cgroup_id: owner })
            }
        }
    }
}

/// Whose the namespace is, if a session records `table` for it.
///
/// # Safety
/// `net` is a typed pointer to a `struct net`.
#[inline(always)]
pub(crate) unsafe fn owner(net: *const u8, table: u32) -> Option<Hit> {
    // SAFETY: as promised; the value is one word, read once.
    unsafe {
        let cookie = Direct::number(net, &NET_COOKIE);
        if is_of_node(cookie) {
            return None;
        }
        let cgroup_id = NETNS.get(cookie).copied()?;
        let slots = counters::enabled(target::slots(cgroup_id), table);
        if slots == 0 {
            return None;
        }
        let netns = Direct::number(net, &NET_INUM);
        Some(Hit { slots, cgroup_id, netns, attribution: Attribution::Netns })
    }
}

/// A program begins in the namespace that it will use.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn netns_exec(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the first argument is a `struct task_struct *`.
    unsafe { learn(ctx.arg(0)) };
    0
}

/// What runs already: the context is (meta, task).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn netns_scan(ctx: *mut u64) -> i32 {
    // SAFETY: the iterator's context is two pointers, the second of them to a task, or null at the end.
    unsafe {
        let this = *ctx.add(1) as *const u8;
        if !this.is_null() {
            learn(this);
        }
    }
    0
}

/// Takes down the node's own namespace: that of the first process of the agent's pid namespace, which is the node's. The
/// agent runs this once.
#[raw_tracepoint]
pub fn netns_of_node(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: the current task is one; each step loads a member of the type before.
    unsafe {
        let this = bpf_get_current_task_btf().cast_const().cast::<u8>();
        let pids = follow(follow(this, &TASK_NSPROXY), &NSPROXY_PID);
        let first = follow(pids, &PID_NS_REAPER);
        let net = follow(follow(first, &TASK_NSPROXY), &NSPROXY_NET);
        if let Some(node) = NETNS_OF_NODE.get_ptr_mut(0) {
            *node = Direct::number(net, &NET_COOKIE);
        }
    }
    0
}
