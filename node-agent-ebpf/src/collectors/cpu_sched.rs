// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Time on a CPU and time waiting for one, of the targets' threads, added up per process and window.
//!
//! Hooks: tp_btf `sched_switch` (preempt, prev, next[, prev_state]); `iter/task` at each window's end for threads that are on
//! a CPU just then. Times and switches are the kernel's own accounts (`sum_exec_runtime`, `sched_info.run_delay`, `nvcsw`,
//! `nivcsw`), whose growth from one switch to the next is what the slice took: exact by definition, and no hook for each wakeup.
//! An entry stays until its thread is freed (tp_btf `sched_process_free`), an RCU grace period after its end: see page_faults.
//! Cost: one hash lookup for tasks that are nobody's; some 250 ns for each slice of a target's.
//! Invariant: an entry of [`THREADS`] is used only if the kernel's counts of switches say that its thread has left no CPU since.
//! That it was put on one need not have been seen: kernels skip hooks (`recursion`), and some run none for their first process.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use node_agent_common::cpu_sched::{
    CpuSlices, CpuSlicesKey, CpuSlicesValue, INDEX, MAX_ROWS, MAX_THREADS, OPTION_PER_THREAD, OPTIONS,
};
use node_agent_common::event::Attribution;

use super::processes::{TASK_EXIT_STATE, TASK_PID, TASK_RUNTIME, Task};
use crate::aggregate::{self, Sums};
use crate::counters::Loss;
use crate::kernel::{self, load};
use crate::ring::Hit;
use crate::sock::{Direct, Read};
use crate::{atomic, counters, target};

node_agent_common::declare_sched_fields!();

/// Where a target's thread stood when it was off a CPU last: there the accounts stand still, so that the slice that it is in,
/// or the one that is to come, is what they will have grown by.
#[repr(C)]
#[derive(Clone, Copy)]
struct Thread {
    /// How often it had been taken off a CPU: because it had to wait, and though it could have gone on.
    voluntary: u64,
    involuntary: u64,
    /// Sessions that record it from the slice's beginning, and the newest session of that time.
    slots: u64,
    newest: u64,
    /// How long it had waited.
    delay_ns: u64,
    /// How much of its run time is added up, and how much it was.
    added_ns: u64,
    begun_ns: u64,
    /// The CPU of its last slice, plus one; 0 when none was seen.
    cpu: u64,
}

impl Thread {
    /// Of a task that is off a CPU.
    ///
    /// # Safety
    /// `task` is a typed pointer to a task.
    #[inline(always)]
    unsafe fn of(task: *const u8, slots: u64) -> Thread {
        // SAFETY: members of the type.
        unsafe {
            let ((voluntary, involuntary), run_ns) = (switches(task), load::<u64>(task, &TASK_RUNTIME));
            Thread {
                voluntary,
                involuntary,
                slots,
                newest: counters::newest(),
                delay_ns: load(task, &TASK_DELAY),
                added_ns: run_ns,
                begun_ns: run_ns,
                cpu: 0,
            }
        }
    }
}

/// Address of a thread to where it stands; its id may become another's while it executes a program. Not preallocated: most
/// nodes use little of it.
#[map]
static THREADS: HashMap<u64, Thread> = HashMap::with_max_entries(MAX_THREADS, BPF_F_NO_PREALLOC);

/// What is added up.
#[map]
static CPU_SLICES: HashMap<CpuSlicesKey, CpuSlicesValue> =
    HashMap::with_max_entries(MAX_ROWS, BPF_F_NO_PREALLOC);
#[map]
static CPU_SLICES_ZEROS: Array<CpuSlicesValue> = Array::with_max_entries(1, 0);

const SUMS: Sums<CpuSlices> = Sums { entries: &CPU_SLICES, zeros: &CPU_SLICES_ZEROS };

/// Slots that have an option on: [`OPTION_PER_THREAD`].
#[map]
static CPU_SCHED_OPTIONS: Array<u64> = Array::with_max_entries(OPTIONS, 0);

/// Tasks with this id are the idle ones, of which each CPU has one.
const IDLE: u32 = 0;

#[inline(always)]
fn wanted(cgroup_id: u64) -> u64 {
    counters::enabled(target::slots(cgroup_id), INDEX)
}

#[inline(always)]
fn hit(slots: u64, cgroup_id: u64) -> Hit {
    Hit { slots, cgroup_id, netns: 0, attribution: Attribution::Task }
}

/// # Safety
/// `task` was made from a typed pointer; `key` may be written.
#[inline(always)]
unsafe fn identity(task: &Task, per_thread: bool, key: *mut CpuSlicesKey) {
    // SAFETY: as promised.
    unsafe {
        (*key).start_ns = task.start_ns;
        (*key).pid = task.pid;
        if per_thread {
            (*key).tid = task.tid;
            task.comm(addr_of_mut!((*key).comm));
        } else {
            (*key).tid = task.pid;
            task.leader_comm(addr_of_mut!((*key).comm));
        }
    }
}

/// What a slice, or the part of one, adds.
#[derive(Clone, Copy)]
struct Share {
    run_ns: u64,
    /// Not where the slice goes on.
    ended: Option<Slice>,
}

/// A slice that is over.
#[derive(Clone, Copy)]
struct Slice {
    run_ns: u64,
    waited_ns: u64,
    /// The thread could have gone on.
    preempted: bool,
    moved: u64,
}

/// # Safety
/// `value` is a map's.
#[inline(always)]
unsafe fn add(value: *mut CpuSlicesValue, share: Share) {
    // SAFETY: words of the map's value.
    unsafe {
        atomic::add(addr_of_mut!((*value).run_sum), share.run_ns);
        let Some(slice) = share.ended else { return };
        atomic::add(addr_of_mut!((*value).wait_sum), slice.waited_ns);
        let end = if slice.preempted {
            addr_of_mut!((*value).involuntary)
        } else {
            addr_of_mut!((*value).voluntary)
        };
        atomic::add(end, 1);
        atomic::add(addr_of_mut!((*value).migrations), slice.moved);
        aggregate::count(addr_of_mut!((*value).run_hist), slice.run_ns);
        aggregate::count(addr_of_mut!((*value).wait_hist), slice.waited_ns);
    }
}

/// Adds a share for the sessions that want rows per thread, or for the others.
///
/// # Safety
/// `task` was made from a typed pointer.
#[inline(always)]
unsafe fn give(task: &Task, hit: &Hit, per_thread: bool, share: Share) {
    if hit.slots == 0 {
        return;
    }
    // SAFETY: as promised by the caller.
    let (key, value) =
        (|key| unsafe { identity(task, per_thread, key) }, |value| unsafe { add(value, share) });
    if share.ended.is_some() {
        aggregate::add(&SUMS, hit, key, value);
    } else {
        aggregate::amend(&SUMS, hit, 0, key, value);
    }
}

/// # Safety
/// `task` was made from a typed pointer.
#[inline(always)]
unsafe fn give_each(task: &Task, cgroup_id: u64, slots: u64, share: Share) {
    let per_thread = CPU_SCHED_OPTIONS.get(OPTION_PER_THREAD).copied().unwrap_or(0);
    // SAFETY: as promised by the caller.
    unsafe {
        give(task, &hit(slots & !per_thread, cgroup_id), false, share);
        give(task, &hit(slots & per_thread, cgroup_id), true, share);
    }
}

/// Adds up a slice that is over, for the sessions that have it from its beginning.
///
/// # Safety
/// `task` was made from a typed pointer, `thread` is a map's value.
#[inline(always)]
unsafe fn end(task: &Task, thread: *mut Thread, cgroup_id: u64, slots: u64, slice: Slice, run_ns: u64) {
    // SAFETY: as promised by the caller.
    unsafe {
        let own = counters::since((*thread).slots & slots, (*thread).newest);
        let sampled = counters::sampled(own, INDEX);
        let rest =
            Share { run_ns: atomic::claim(addr_of_mut!((*thread).added_ns), run_ns), ended: Some(slice) };
        give_each(task, cgroup_id, own & !sampled, rest);
        // A slice that stands for several is given whole, and at its end only.
        give_each(task, cgroup_id, sampled, Share { run_ns: slice.run_ns, ended: Some(slice) });
    }
}

/// How often a task was taken off a CPU: because it had to wait, and though it could have gone on.
///
/// # Safety
/// `task` is a typed pointer to a task.
#[inline(always)]
unsafe fn switches(task: *const u8) -> (u64, u64) {
    // SAFETY: members of the type.
    unsafe { (load(task, &TASK_VOLUNTARY), load(task, &TASK_INVOLUNTARY)) }
}

/// A CPU goes from one task to another.
#[btf_tracepoint(function = "sched_switch")]
pub fn cpu_switch(ctx: BtfTracePointContext) -> i32 {
    let (prev, next): (*const u8, *const u8) = (ctx.arg(1), ctx.arg(2));
    // SAFETY: (whether it was preempted, `struct task_struct *` twice[, the first one's state]).
    unsafe {
        leave(prev);
        enter(next);
    }
    0
}

/// # Safety
/// `prev` is a typed pointer to a task.
#[inline(always)]
unsafe fn leave(prev: *const u8) {
    // SAFETY: members of the type; the entry is the map's.
    unsafe {
        if load::<u32>(prev, &TASK_PID) == IDLE {
            return;
        }
        let ends = load::<i32>(prev, &TASK_EXIT_STATE) != 0;
        let cgroup_id = kernel::task_cgroup_id(prev);
        let slots = wanted(cgroup_id);
        if slots != 0 {
            // The kernel has counted this switch already.
            let mut now = Thread::of(prev, slots);
            now.cpu = u64::from(kernel::cpu()) + 1;
            match THREADS.get_ptr_mut(prev as u64) {
                Some(thread) => {
                    let is_next =
                        (*thread).voluntary + (*thread).involuntary + 1 == now.voluntary + now.involuntary;
                    if is_next {
                        let slice = Slice {
                            run_ns: now.begun_ns.wrapping_sub((*thread).begun_ns),
                            waited_ns: now.delay_ns.wrapping_sub((*thread).delay_ns),
                            preempted: (*thread).voluntary == now.voluntary,
                            moved: u64::from((*thread).cpu != 0 && (*thread).cpu != now.cpu),
                        };
                        // Takes what is not added up yet, beside a pass that may be doing so.
                        end(&Task::new(prev), thread, cgroup_id, slots, slice, now.begun_ns);
                    } else {
                        (*thread).added_ns = now.added_ns;
                    }
                    (*thread).voluntary = now.voluntary;
                    (*thread).involuntary = now.involuntary;
                    (*thread).slots = slots;
                    (*thread).newest = now.newest;
                    (*thread).delay_ns = now.delay_ns;
                    (*thread).begun_ns = now.begun_ns;
                    (*thread).cpu = now.cpu;
                }
                // It was on its CPU when the session began. Where there is no room, its next slice says so.
                None if !ends => _ = THREADS.insert(prev as u64, now, 0),
                None => {}
            }
        }
    }
}

/// # Safety
/// `next` is a typed pointer to a task.
#[inline(always)]
unsafe fn enter(next: *const u8) {
    // SAFETY: members of the type; the entry is the map's.
    unsafe {
        if load::<u32>(next, &TASK_PID) == IDLE {
            return;
        }
        let slots = wanted(kernel::task_cgroup_id(next));
        if slots == 0 {
            return;
        }
        // The scheduler adds the waiting before a slice after this hook.
        let now = Thread::of(next, slots);
        if let Some(thread) = THREADS.get_ptr_mut(next as u64) {
            if (*thread).voluntary == now.voluntary && (*thread).involuntary == now.involuntary {
                (*thread).slots = slots;
                (*thread).newest = now.newest;
            } else {
                *thread = now;
            }
        } else if THREADS.insert(next as u64, now, 0).is_err() {
            counters::admit_many(slots, INDEX, 1);
            counters::lose_many(slots, INDEX, Loss::MapFull as u32, 1);
        }
    }
}

/// A thread is freed.
#[btf_tracepoint(function = "sched_process_free")]
pub fn cpu_free(ctx: BtfTracePointContext) -> i32 {
    let _ = THREADS.remove(ctx.arg::<u64>(0));
    0
}

/// The agent runs this on each CPU: interrupts are off in [`cpu_switch`], which may need an entry for each kind of row.
#[raw_tracepoint]
pub fn cpu_warm(_ctx: RawTracePointContext) -> i32 {
    aggregate::warm(&SUMS);
    0
}

/// A window ends, or a session begins: the context is (meta, task). Threads that are on a CPU give what they have run so
/// far; of others that are met for the first time it is noted how long they have waited until now.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn cpu_pass(ctx: *mut u64) -> i32 {
    // SAFETY: the iterator's context is two pointers, the second of them to a task, or null at the end.
    unsafe {
        let this = *ctx.add(1) as *const u8;
        if this.is_null() {
            return 0;
        }
        let cgroup_id = kernel::task_cgroup_id(this);
        let slots = wanted(cgroup_id);
        // One that has ended may be freed meanwhile.
        if slots == 0 || load::<i32>(this, &TASK_EXIT_STATE) != 0 {
            return 0;
        }
        let task = Task::new(this);
        let (voluntary, involuntary) = switches(this);
        let runs = Direct::number(this, &TASK_ON_CPU) != 0;
        match THREADS.get_ptr_mut(this as u64) {
            Some(thread) if (*thread).voluntary == voluntary && (*thread).involuntary == involuntary => {
                if runs {
                    let own = counters::since((*thread).slots & slots, (*thread).newest);
                    let run_ns = atomic::claim(addr_of_mut!((*thread).added_ns), load(this, &TASK_RUNTIME));
                    let share = Share { run_ns, ended: None };
                    give_each(&task, cgroup_id, own & !counters::sampled(own, INDEX), share);
                } else {
                    (*thread).slots = slots;
                    (*thread).newest = counters::newest();
                }
            }
            // It may have been put on a CPU meanwhile, and entered there.
            None if !runs => {
                let _ = THREADS.insert(this as u64, Thread::of(this, slots), u64::from(BPF_NOEXIST));
            }
            _ => {}
        }
    }
    0
}
