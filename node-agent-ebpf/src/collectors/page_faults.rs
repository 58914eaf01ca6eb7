// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Page faults of the targets' processes: sums per window, or each by itself.
//!
//! Hooks: `iter/task` at each window's end, tp_btf `sched_process_fork` (a new thread has had none), `sched_process_exit` (its
//! last ones), `sched_process_free` and `cgroup_attach_task`; for single faults tp_btf `page_fault_user`, which x86 has on every kernel.
//! Where a session asks for it, fentry and fexit on `handle_mm_fault`: the kernel counts at that function's end, by the rule that
//! is repeated here. What was mapped is looked up at the entry: at the exit the mapping may be gone.
//! The kernel keeps the counters itself, so a fault costs nothing: what is paid is a pass over all tasks per window, some
//! 100 ns each, and 0.2 us for each thread of a target that ends.
//! Not seen: faults of a thread between its exit hook and its end.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use aya_ebpf::macros::{btf_tracepoint, fentry, fexit, map};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, FExitContext};
use node_agent_common::event::Attribution;
use node_agent_common::fields;
use node_agent_common::page_faults::{
    INDEX, Kind, MAX_PROCESSES, MAX_THREADS, OPTION_DETAIL, OPTIONS, PageFaultEvent, PageFaults,
    PageFaultsKey, PageFaultsValue,
};

use super::processes::{TASK_EXIT_STATE, TASK_MAJ_FLT, TASK_MIN_FLT, TASK_PID, Task};
use crate::aggregate::{self, Sums};
use crate::counters::Loss;
use crate::kernel::{self, CGROUP_ROOT, ROOT_HIERARCHY_ID, constant, follow, load};
use crate::ring::{self, Hit};
use crate::{atomic, counters, target};

/// How many of a thread's faults are accounted for. An entry stays until its thread is freed, an RCU grace period after its
/// end: a pass may have it in hand for as long. It would be another thread's memory otherwise, since removed entries are used
/// again at once.
#[repr(C)]
#[derive(Clone, Copy)]
struct Seen {
    /// The cgroup that it was in.
    cgroup_id: u64,
    /// Sessions for which this is so, and the newest session of that time.
    slots: u64,
    newest: u64,
    maj_flt: u64,
    min_flt: u64,
}

/// Address of a thread to what was seen of it; its id may become another's while it executes a program. Not preallocated: most
/// nodes use little of it.
#[map]
static FAULTS_SEEN: HashMap<u64, Seen> = HashMap::with_max_entries(MAX_THREADS, BPF_F_NO_PREALLOC);

/// What is added up.
#[map]
static PAGE_FAULTS: HashMap<PageFaultsKey, PageFaultsValue> =
    HashMap::with_max_entries(MAX_PROCESSES, BPF_F_NO_PREALLOC);
#[map]
static PAGE_FAULTS_ZEROS: Array<PageFaultsValue> = Array::with_max_entries(1, 0);

const SUMS: Sums<PageFaults> = Sums { entries: &PAGE_FAULTS, zeros: &PAGE_FAULTS_ZEROS };

/// Slots that have an option on: [`OPTION_DETAIL`].
#[map]
static PAGE_FAULT_OPTIONS: Array<u64> = Array::with_max_entries(OPTIONS, 0);

/// An attempt to resolve a fault, from its beginning to its end.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attempt {
    began_ns: u64,
    kind: u64,
}

/// Thread id to its attempt. Only while some session wants faults told apart.
#[map]
static FAULT_ATTEMPTS: HashMap<u32, Attempt> = HashMap::with_max_entries(MAX_THREADS, BPF_F_NO_PREALLOC);

#[inline(always)]
fn detailed() -> u64 {
    PAGE_FAULT_OPTIONS.get(OPTION_DETAIL).copied().unwrap_or(0)
}

/// The sessions that want sums of the cgroup, by the kernel's counters.
#[inline(always)]
fn wanted(cgroup_id: u64) -> u64 {
    counters::enabled(target::slots(cgroup_id), INDEX) & !counters::each(INDEX) & !detailed()
}

/// Accounts for what a thread has had since it was seen last, and takes down what is seen now. A thread that is seen for the
/// first time had its faults before the session, unless it is new.
///
/// # Safety
/// `task` was made from a typed pointer.
#[inline(always)]
unsafe fn account(task: &Task, cgroup_id: u64, is_new: bool) {
    // SAFETY: members of the type; the entry is the map's, and its counters are changed atomically.
    unsafe {
        let slots = wanted(cgroup_id);
        let maj_flt: u64 = load(task.task, &TASK_MAJ_FLT);
        let min_flt: u64 = load(task.task, &TASK_MIN_FLT);
        match FAULTS_SEEN.get_ptr_mut(task.task as u64) {
            Some(seen) if !is_new => {
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
            }
            left if slots != 0 => {
                let (maj_flt, min_flt) = if is_new { (0, 0) } else { (maj_flt, min_flt) };
                let fresh = Seen { cgroup_id, slots, newest: counters::newest(), maj_flt, min_flt };
                if let Some(left) = left {
                    // Of a thread that was at this address before, whose free was not seen: kernels skip hooks at times.
                    *left = fresh;
                } else if FAULTS_SEEN.insert(task.task as u64, fresh, 0).is_err() {
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
                (*key).kind_raw = 0;
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
        if target::slots(cgroup_id) == 0 && FAULTS_SEEN.get_ptr(task.task as u64).is_none() {
            return 0;
        }
        account(&task, cgroup_id, false);
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
            account(&Task::new(child), cgroup_id, true);
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
        if FAULTS_SEEN.get_ptr(task.task as u64).is_some() {
            account(&task, kernel::task_cgroup_id(this), false);
        }
    }
    0
}

/// A thread is freed.
#[btf_tracepoint(function = "sched_process_free")]
pub fn page_fault_free(ctx: BtfTracePointContext) -> i32 {
    let _ = FAULTS_SEEN.remove(ctx.arg::<u64>(0));
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
        if target::slots(cgroup_id) != 0 || FAULTS_SEEN.get_ptr(task.task as u64).is_some() {
            account(&task, cgroup_id, false);
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

/// Bits of enum `fault_flag`, of the running kernel.
#[unsafe(no_mangle)]
static FAULT_WRITE: u64 = fields::MISSING;
#[unsafe(no_mangle)]
static FAULT_EXEC: u64 = fields::MISSING;
#[unsafe(no_mangle)]
static FAULT_TRIED: u64 = fields::MISSING;
/// Bits of enum `vm_fault_reason`; errors are several.
#[unsafe(no_mangle)]
static RESULT_MAJOR: u64 = fields::MISSING;
#[unsafe(no_mangle)]
static RESULT_RETRY: u64 = fields::MISSING;
#[unsafe(no_mangle)]
static RESULT_ERROR: u64 = fields::MISSING;

/// `TMPFS_MAGIC` of include/uapi/linux/magic.h.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The sessions that want the current task's faults told apart, and its cgroup.
#[inline(always)]
fn apart(this: *const u8) -> (u64, u64) {
    // SAFETY: the current task is one.
    let cgroup_id = unsafe { kernel::task_cgroup_id(this) };
    let slots = counters::enabled(target::slots(cgroup_id), INDEX) & !counters::each(INDEX) & detailed();
    (slots, cgroup_id)
}

#[inline(always)]
fn current() -> *const u8 {
    // SAFETY: the helper has no arguments.
    unsafe { bpf_get_current_task_btf().cast_const().cast::<u8>() }
}

/// A fault is about to be handled: entry of `handle_mm_fault(vma, address, flags, regs)`.
#[fentry]
pub fn page_fault_begin(ctx: FEntryContext) -> i32 {
    let this = current();
    if apart(this).0 == 0 {
        return 0;
    }
    // SAFETY: the current task is one; the first argument is a `struct vm_area_struct *`.
    unsafe {
        let file = follow(ctx.arg(0), &VMA_FILE);
        let kind = if file.is_null() {
            Kind::Anon
        } else if load::<u64>(follow(follow(file, &FILE_INODE), &INODE_SB), &SB_MAGIC) == TMPFS_MAGIC {
            Kind::Shmem
        } else {
            Kind::File
        };
        let attempt = Attempt { began_ns: ring::now(), kind: kind as u64 };
        let _ = FAULT_ATTEMPTS.insert(load::<u32>(this, &TASK_PID), attempt, 0);
    }
    0
}

/// A fault was handled, or could not be: exit of the same function.
#[fexit]
pub fn page_fault_end(ctx: FExitContext) -> i32 {
    let this = current();
    let (slots, cgroup_id) = apart(this);
    if slots == 0 {
        return 0;
    }
    let Ok(result) = ctx.ret::<u32>() else { return 0 };
    let (result, flags) = (u64::from(result), u64::from(ctx.arg::<u32>(2)));
    let has = |value: u64, bits: &'static u64| u64::from(value & constant(bits) != 0);
    // SAFETY: the current task is one; the entry is copied out of the map.
    unsafe {
        let task = Task::new(this);
        let attempt = FAULT_ATTEMPTS.get_ptr(task.tid).map(|attempt| *attempt);
        let _ = FAULT_ATTEMPTS.remove(task.tid);
        let (took_ns, kind) =
            attempt.map_or((0, Kind::Unknown as u64), |a| (ring::now().wrapping_sub(a.began_ns), a.kind));
        // As the kernel accounts for it (mm_account_fault): what is to be tried again counts when it has ended.
        let retry = has(result, &RESULT_RETRY);
        let failed = has(result, &RESULT_ERROR) & (1 - retry);
        let done = 1 - (retry | failed);
        let major = done & (has(result, &RESULT_MAJOR) | has(flags, &FAULT_TRIED));
        aggregate::add_many(
            &SUMS,
            &hit(slots, cgroup_id),
            done,
            |key: *mut PageFaultsKey| {
                (*key).start_ns = task.start_ns;
                (*key).pid = task.pid;
                (*key).kind_raw = kind as u32;
                task.leader_comm(addr_of_mut!((*key).comm));
            },
            |value: *mut PageFaultsValue| {
                atomic::add(addr_of_mut!((*value).major), major);
                atomic::add(addr_of_mut!((*value).minor), done - major);
                atomic::add(addr_of_mut!((*value).writes), done & has(flags, &FAULT_WRITE));
                atomic::add(addr_of_mut!((*value).execs), done & has(flags, &FAULT_EXEC));
                atomic::add(addr_of_mut!((*value).retries), retry);
                atomic::add(addr_of_mut!((*value).failed), failed);
                if attempt.is_some() {
                    aggregate::count(addr_of_mut!((*value).latency_hist), took_ns);
                }
            },
        );
    }
    0
}

node_agent_common::declare_vma_fields!();
node_agent_common::declare_regs_fields!();
