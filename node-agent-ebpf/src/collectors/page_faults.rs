// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Page faults of the targets' processes: sums per window, or each by itself.
//!
//! Hooks: `iter/task` at each window's end, tp_btf `sched_process_fork` (a new thread has had none), `sched_process_exit` (its
//! last ones), `sched_process_exec` (its id may change) and `cgroup_attach_task`; for single faults tp_btf `page_fault_user`, which x86 has on every kernel.
//! The kernel keeps the counters itself, so a fault costs nothing: what is paid is a pass over all tasks per window, some
//! 100 ns each, and 0.2 us for each thread of a target that ends.
//! Not seen: faults of a thread between its exit hook and its end.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::BtfTracePointContext;
use node_agent_common::event::Attribution;
use node_agent_common::page_faults::{
    INDEX, MAX_PROCESSES, MAX_THREADS, PageFaultEvent, PageFaults, PageFaultsKey, PageFaultsValue,
};

use super::processes::{TASK_EXIT_STATE, TASK_MAJ_FLT, TASK_MIN_FLT, TASK_PID, Task};
use crate::aggregate::{self, Sums};
use crate::counters::Loss;
use crate::kernel::{self, CGROUP_ROOT, ROOT_HIERARCHY_ID, follow, load};
use crate::ring::{self, Hit};
use crate::{atomic, counters, target};

/// How many of a thread's faults are accounted for.
#[repr(C)]
#[derive(Clone, Copy)]
struct Seen {
    /// Tells the thread from another with the same id: when its process began.
    start_ns: u64,
    /// The cgroup that it was in.
    cgroup_id: u64,
    /// Sessions for which this is so, and the newest session of that time.
    slots: u64,
    newest: u64,
    maj_flt: u64,
    min_flt: u64,
}

/// Thread id to what was seen of it. Not preallocated: most nodes use little of it.
#[map]
static FAULTS_SEEN: HashMap<u32, Seen> = HashMap::with_max_entries(MAX_THREADS, BPF_F_NO_PREALLOC);

/// What is added up.
#[map]
static PAGE_FAULTS: HashMap<PageFaultsKey, PageFaultsValue> =
    HashMap::with_max_entries(MAX_PROCESSES, BPF_F_NO_PREALLOC);
#[map]
static PAGE_FAULTS_ZEROS: Array<PageFaultsValue> = Array::with_max_entries(1, 0);

const SUMS: Sums<PageFaults> = Sums { entries: &PAGE_FAULTS, zeros: &PAGE_FAULTS_ZEROS };

/// The sessions that want sums of the cgroup.
#[inline(always)]
fn wanted(cgroup_id: u64) -> u64 {
    counters::enabled(target::slots(cgroup_id), INDEX) & !counters::each(INDEX)
}

/// Accounts for what a thread has had since it was seen last, and takes down what is seen now. A thread that is seen for the
/// first time had its faults before the session, unless it is new.
///
/// # Safety
/// `task` was made from a typed pointer.
#[inline(always)]
unsafe fn account(task: &Task, cgroup_id: u64, is_new: bool, stays: bool) {
    // SAFETY: members of the type; the entry is the map's, and its counters are changed atomically.
    unsafe {
        let slots = wanted(cgroup_id);
        let maj_flt: u64 = load(task.task, &TASK_MAJ_FLT);
        let min_flt: u64 = load(task.task, &TASK_MIN_FLT);
        match FAULTS_SEEN.get_ptr_mut(task.tid) {
            Some(seen) if (*seen).start_ns == task.start_ns => {
                // What it had in another cgroup is that one's.
                let was_in = (*seen).cgroup_id;
                let owed = counters::since((*seen).slots & wanted(was_in), (*seen).newest);
                let major = atomic::claim(addr_of_mut!((*seen).maj_flt), maj_flt);
                let minor = atomic::claim(addr_of_mut!((*seen).min_flt), min_flt);
                if owed != 0 && major + minor != 0 {
                    add(task, &hit(owed, was_in), major, minor);
                }
                (*seen).cgroup_id = cgroup_id;
                (*seen).slots = slots;
                (*seen).newest = counters::newest();
                if !stays || slots == 0 {
                    let _ = FAULTS_SEEN.remove(task.tid);
                }
            }
            _ if stays && slots != 0 => {
                let (maj_flt, min_flt) = if is_new { (0, 0) } else { (maj_flt, min_flt) };
                let newest = counters::newest();
                let fresh = Seen { start_ns: task.start_ns, cgroup_id, slots, newest, maj_flt, min_flt };
                if FAULTS_SEEN.insert(task.tid, fresh, 0).is_err() {
                    // What this thread has until there is room: nobody can say how many.
                    counters::admit_many(slots, INDEX, 1);
                    counters::lose_many(slots, INDEX, Loss::MapFull as u32, 1);
                }
            }
            _ => {}
        }
    }
}

#[inline(always)]
fn hit(slots: u64, cgroup_id: u64) -> Hit {
    Hit { slots, cgroup_id, netns: 0, attribution: Attribution::Task }
}

/// # Safety
/// `task` was made from a typed pointer.
#[inline(always)]
unsafe fn add(task: &Task, hit: &Hit, major: u64, minor: u64) {
    aggregate::add_many(
        &SUMS,
        hit,
        major.wrapping_add(minor),
        |key| {
            // SAFETY: the key is ours; the task is a typed pointer.
            unsafe {
                (*key).start_ns = task.start_ns;
                (*key).pid = task.pid;
                (*key).reserved = 0;
                task.leader_comm(addr_of_mut!((*key).comm));
            }
        },
        |value| {
            // SAFETY: words of the map's value.
            unsafe {
                atomic::add(addr_of_mut!((*value).major), major);
                atomic::add(addr_of_mut!((*value).minor), minor);
            }
        },
    );
}

/// A window ends: the context is (meta, task).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn page_fault_pass(ctx: *mut u64) -> i32 {
    // SAFETY: the iterator's context is two pointers, the second of them to a task, or null at the end.
    unsafe {
        let this = *ctx.add(1) as *const u8;
        if this.is_null() || load::<i32>(this, &TASK_EXIT_STATE) != 0 {
            return 0;
        }
        let cgroup_id = kernel::task_cgroup_id(this);
        let task = Task::new(this);
        if target::slots(cgroup_id) == 0 && FAULTS_SEEN.get_ptr(task.tid).is_none() {
            return 0;
        }
        account(&task, cgroup_id, false, true);
    }
    0
}

/// A task was forked: it has had no fault.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn page_fault_fork(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: (parent, child), both `struct task_struct *`.
    unsafe {
        let child: *const u8 = ctx.arg(1);
        let cgroup_id = kernel::task_cgroup_id(child);
        if target::slots(cgroup_id) != 0 {
            account(&Task::new(child), cgroup_id, true, true);
        }
    }
    0
}

/// A program is executed: a thread that is not the first takes over the first one's id, and keeps its counters.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn page_fault_exec(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: (`struct task_struct *`, its id before); the entry is copied out of the map.
    unsafe {
        let (before, tid) = (ctx.arg::<i32>(1) as u32, load::<u32>(ctx.arg(0), &TASK_PID));
        if before != tid
            && let Some(seen) = FAULTS_SEEN.get_ptr(before)
        {
            let seen = *seen;
            let _ = FAULTS_SEEN.insert(tid, seen, 0);
            let _ = FAULTS_SEEN.remove(before);
        }
    }
    0
}

/// A thread ends.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn page_fault_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the first argument is a `struct task_struct *`.
    unsafe {
        let this: *const u8 = ctx.arg(0);
        let task = Task::new(this);
        if FAULTS_SEEN.get_ptr(task.tid).is_some() {
            account(&task, kernel::task_cgroup_id(this), false, false);
        }
    }
    0
}

/// A task was moved into a cgroup: what it had before is not of that one.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn page_fault_move(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: (`struct cgroup *`, path, `struct task_struct *`, threadgroup).
    unsafe {
        let cgroup: *const u8 = ctx.arg(0);
        if load::<i32>(follow(cgroup, &CGROUP_ROOT), &ROOT_HIERARCHY_ID) != 0 {
            return 0;
        }
        let cgroup_id = kernel::cgroup_id(cgroup);
        let task = Task::new(ctx.arg(2));
        if target::slots(cgroup_id) != 0 || FAULTS_SEEN.get_ptr(task.tid).is_some() {
            account(&task, cgroup_id, false, true);
        }
    }
    0
}

/// A fault in user mode: (address, registers, error code).
#[btf_tracepoint(function = "page_fault_user")]
pub fn page_fault_single(ctx: BtfTracePointContext) -> i32 {
    let wanted = counters::each(INDEX);
    if wanted == 0 {
        return 0;
    }
    // SAFETY: the current task is one; the second argument is a `struct pt_regs *`.
    unsafe {
        let this = bpf_get_current_task_btf().cast_const().cast::<u8>();
        let cgroup_id = kernel::task_cgroup_id(this);
        let slots = counters::enabled(target::slots(cgroup_id), INDEX) & wanted;
        if slots == 0 {
            return 0;
        }
        let (address, regs, error_code): (u64, *const u8, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
        let task = Task::new(this);
        ring::emit::<PageFaultEvent>(&hit(slots, cgroup_id), |record| {
            (*record).start_ns = task.start_ns;
            (*record).address = address;
            (*record).ip = load(regs, &REGS_IP);
            (*record).error_code = error_code;
            (*record).pid = task.pid;
            (*record).tid = task.tid;
            task.comm(addr_of_mut!((*record).comm));
        });
    }
    0
}

node_agent_common::declare_regs_fields!();
