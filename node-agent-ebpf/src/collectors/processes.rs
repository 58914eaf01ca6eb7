// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Beginnings, program changes and ends of processes.
//!
//! Hooks: tp_btf `sched_process_fork`, `sched_process_exec`, `sched_process_exit`, `cgroup_attach_task`, `task_rename`, and
//! `iter/task` for what runs already. Arguments are the same from 6.1 to 7.x, but for `group_dead` of the exit (6.16 and newer); elsewhere
//! it comes from `signal->live`, which several last threads may see as 0 at once: see [`is_last`].
//! Since 6.16 `sched_process_exit` comes before the memory is taken down, so what that costs would be missing: there
//! fentry `cgroup_task_exit` (`cgroup_exit` up to 6.18) takes its place where the kernel has fentry.
//! Cost: below 1 us per event on a target, a hash lookup on others.
//! Not seen: what threads used that end at the very moment of the process's end; CPU time since the scheduler's last update.
//! Invariant: [`KNOWN`] says of each process who has had its beginning, so every exit has exactly one before it, whether
//! the process was forked, moved in, listed by the iterator, or was seen by none of them in time.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::helpers::generated;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::macros::{btf_tracepoint, fentry, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext};
use node_agent_common::event::Attribution;
use node_agent_common::processes::{
    INDEX, Kind, OPTION_ARGS, OPTION_RENAMES, OPTION_THREADS, OPTIONS, ProcessEvent, ProcessExec, TEXT,
};
use node_agent_common::target::MAX_TARGETS;

use crate::kernel::{self, CGROUP_ROOT, ROOT_HIERARCHY_ID, address, constant, follow, load};
use crate::ring::{self, Hit};
use crate::{atomic, counters, target};

node_agent_common::declare_task_fields!();

/// Not 0 where `sched_process_exit` says whether the whole process ends.
#[unsafe(no_mangle)]
static EXIT_HAS_GROUP_DEAD: u64 = 0;

/// `SIGNAL_GROUP_EXIT` of include/linux/sched/signal.h: the same since 2.6, a macro and so not in the BTF.
const SIGNAL_GROUP_EXIT: u32 = 4;

/// A live process or thread in a target.
#[repr(C)]
#[derive(Clone, Copy)]
struct Known {
    /// Tells it from another with the same id.
    start_ns: u64,
    /// Sessions that have had its beginning.
    slots: u64,
}

/// Thread id to what is known of it. Not preallocated: most nodes use little of it.
#[map]
static KNOWN: HashMap<u32, Known> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// Processes of several threads that end: beginning and id, to what is known of it, [`FIRST_ENDED`] and [`TOLD`].
#[map]
static ENDED: LruHashMap<[u64; 2], u64> = LruHashMap::with_max_entries(4096, 0);
/// The first thread is past its end.
const FIRST_ENDED: u64 = 1;
/// The end of the process has been told.
const TOLD: u64 = 2;

/// Cgroup id to the sessions that want what runs in it listed; filled by the agent for one pass of the iterator.
#[map]
static SNAPSHOT: HashMap<u64, u64> = HashMap::with_max_entries(MAX_TARGETS, BPF_F_NO_PREALLOC);

/// Slots that have an option on: [`OPTION_THREADS`], [`OPTION_ARGS`], [`OPTION_RENAMES`].
#[map]
static PROCESS_OPTIONS: Array<u64> = Array::with_max_entries(OPTIONS, 0);

#[inline(always)]
fn option(which: u32) -> u64 {
    PROCESS_OPTIONS.get(which).copied().unwrap_or(0)
}

/// Who a task is.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    pub(crate) task: *const u8,
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    /// When its process began.
    pub(crate) start_ns: u64,
}

impl Task {
    /// # Safety
    /// `task` is a typed pointer to a `struct task_struct`.
    #[inline(always)]
    pub(crate) unsafe fn new(task: *const u8) -> Task {
        // SAFETY: members of the type; the leader is a task as well.
        unsafe {
            Task {
                task,
                pid: load(task, &TASK_TGID),
                tid: load(task, &TASK_PID),
                start_ns: load(follow(task, &TASK_GROUP_LEADER), &TASK_START_BOOTTIME),
            }
        }
    }

    #[inline(always)]
    fn is_thread(&self) -> bool {
        self.pid != self.tid
    }

    #[inline(always)]
    unsafe fn ppid(&self) -> u32 {
        // SAFETY: the parent is a task.
        unsafe { load(follow(self.task, &TASK_REAL_PARENT), &TASK_TGID) }
    }

    #[inline(always)]
    unsafe fn uid(&self) -> u32 {
        // SAFETY: members of the type.
        unsafe { load(follow(self.task, &TASK_CRED), &CRED_UID) }
    }

    #[inline(always)]
    unsafe fn nice(&self) -> i32 {
        // Priorities 100 to 139 are nice -20 to 19.
        // SAFETY: a member of the type.
        unsafe { load::<i32>(self.task, &TASK_STATIC_PRIO) - 120 }
    }

    /// # Safety
    /// This and the next: made from a typed pointer; `to` may be written.
    #[inline(always)]
    pub(crate) unsafe fn comm(&self, to: *mut [u8; 16]) {
        // SAFETY: 16 bytes at both ends.
        unsafe { generated::bpf_probe_read_kernel(to.cast(), 16, address(self.task, &TASK_COMM).cast()) };
    }

    /// Name of the process's first thread.
    #[inline(always)]
    pub(crate) unsafe fn leader_comm(&self, to: *mut [u8; 16]) {
        // SAFETY: 16 bytes at both ends; the leader is a task as well.
        unsafe {
            let leader = follow(self.task, &TASK_GROUP_LEADER);
            generated::bpf_probe_read_kernel(to.cast(), 16, address(leader, &TASK_COMM).cast());
        }
    }
}

/// Sessions that want rows about the task, of those that record its cgroup.
#[inline(always)]
fn wanted(task: &Task, cgroup_id: u64) -> u64 {
    let slots = counters::enabled(target::slots(cgroup_id), INDEX);
    if slots != 0 && task.is_thread() { slots & option(OPTION_THREADS) } else { slots }
}

#[inline(always)]
fn hit(slots: u64, cgroup_id: u64) -> Hit {
    Hit { slots, cgroup_id, netns: 0, attribution: Attribution::Task }
}

/// Sends the beginning to those of `slots` that have not had it.
///
/// # Safety
/// `task` was made from a typed pointer.
#[inline(always)]
unsafe fn begin(task: &Task, cgroup_id: u64, slots: u64, kind: Kind) {
    let mut fresh = slots;
    let known = KNOWN.get_ptr_mut(task.tid);
    // SAFETY: a pointer into the map's value; the word is changed atomically only.
    unsafe {
        match known {
            Some(known) if (*known).start_ns == task.start_ns => {
                fresh = slots & !atomic::or(addr_of_mut!((*known).slots), slots);
            }
            // A full map costs no row: a process that is not known here gets its beginning again before its exit.
            _ => _ = KNOWN.insert(task.tid, Known { start_ns: task.start_ns, slots }, 0),
        }
        if fresh != 0 {
            event(task, &hit(fresh, cgroup_id), kind);
        }
    }
}

/// Sends a row without usage.
#[inline(always)]
unsafe fn event(task: &Task, hit: &Hit, kind: Kind) {
    // SAFETY: the task is a typed pointer.
    ring::emit::<ProcessEvent>(hit, |record| unsafe { without_usage(task, record, kind) });
}

#[inline(always)]
unsafe fn without_usage(task: &Task, record: *mut ProcessEvent, kind: Kind) {
    // SAFETY: the record is ours; the task is a typed pointer.
    unsafe {
        identity(task, record, kind);
        (*record).maj_flt = 0;
        (*record).min_flt = 0;
        (*record).utime_ns = 0;
        (*record).stime_ns = 0;
        (*record).runtime_ns = 0;
        (*record).max_rss_pages = 0;
        (*record).status = 0;
        (*record).whole = 0;
    }
}

#[inline(always)]
unsafe fn identity(task: &Task, record: *mut ProcessEvent, kind: Kind) {
    // SAFETY: the record is ours; the task is a typed pointer.
    unsafe {
        (*record).start_ns = task.start_ns;
        (*record).what = kind as u32;
        (*record).pid = task.pid;
        (*record).tid = task.tid;
        (*record).ppid = task.ppid();
        (*record).uid = task.uid();
        (*record).nice = task.nice();
        task.comm(addr_of_mut!((*record).comm));
    }
}

/// A task was forked; it has its cgroup by now.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: (parent, child), both `struct task_struct *`.
    unsafe {
        let child: *const u8 = ctx.arg(1);
        let cgroup_id = kernel::task_cgroup_id(child);
        if target::slots(cgroup_id) == 0 {
            return 0;
        }
        let task = Task::new(child);
        let slots = wanted(&task, cgroup_id);
        if slots != 0 {
            begin(&task, cgroup_id, slots, Kind::Start);
        }
    }
    0
}

/// A task runs another program: the memory and the name are the new program's by now.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: (task, old pid, `struct linux_binprm *`).
    unsafe {
        let current: *const u8 = ctx.arg(0);
        let cgroup_id = kernel::task_cgroup_id(current);
        let slots = counters::enabled(target::slots(cgroup_id), INDEX);
        if slots == 0 {
            return 0;
        }
        let task = Task::new(current);
        let before = ctx.arg::<i32>(1) as u32;
        if before != task.pid {
            // A thread takes the first one's place: that one's end was not the process's, and its own id is gone.
            let _ = ENDED.remove([task.start_ns, u64::from(task.pid)]);
            let _ = KNOWN.remove(before);
        }
        begin(&task, cgroup_id, slots, Kind::Snapshot);
        let bprm: *const u8 = ctx.arg(2);
        let filename = follow(bprm, &BPRM_FILENAME);
        let with_args = slots & option(OPTION_ARGS) != 0;
        ring::emit::<ProcessExec>(&hit(slots, cgroup_id), |record| {
            (*record).start_ns = task.start_ns;
            (*record).pid = task.pid;
            (*record).tid = task.tid;
            (*record).ppid = task.ppid();
            (*record).uid = task.uid();
            (*record).nice = task.nice();
            task.comm(addr_of_mut!((*record).comm));
            let exe = addr_of_mut!((*record).exe).cast::<u8>();
            *exe = 0;
            bpf_probe_read_kernel_str(exe.cast(), TEXT as u32, filename.cast());
            (*record).args_len = 0;
            if with_args {
                let mm = follow(task.task, &TASK_MM);
                let (start, end) = (load::<u64>(mm, &MM_ARG_START), load::<u64>(mm, &MM_ARG_END));
                let length = end.wrapping_sub(start);
                let length = if length < TEXT as u64 { length as u32 } else { TEXT as u32 };
                let args = addr_of_mut!((*record).args).cast::<u8>();
                if generated::bpf_probe_read_user(args.cast(), length, start as *const _) == 0 {
                    (*record).args_len = length;
                }
            }
        });
    }
    0
}

/// A task gets another name: (task, name). The task still has the old one.
#[btf_tracepoint(function = "task_rename")]
pub fn task_rename(ctx: BtfTracePointContext) -> i32 {
    let renames = option(OPTION_RENAMES);
    if renames == 0 {
        return 0;
    }
    // SAFETY: (`struct task_struct *`, name).
    unsafe {
        let renamed: *const u8 = ctx.arg(0);
        let cgroup_id = kernel::task_cgroup_id(renamed);
        if target::slots(cgroup_id) & renames == 0 {
            return 0;
        }
        let task = Task::new(renamed);
        let slots = wanted(&task, cgroup_id) & renames;
        if slots == 0 {
            return 0;
        }
        begin(&task, cgroup_id, slots, Kind::Snapshot);
        let name: *const u8 = ctx.arg(1);
        ring::emit::<ProcessEvent>(&hit(slots, cgroup_id), |record| {
            without_usage(&task, record, Kind::Rename);
            bpf_probe_read_kernel_str(addr_of_mut!((*record).comm).cast(), 16, name.cast());
        });
    }
    0
}

/// A task ends. Up to 6.15 its memory is gone by now; its usage and cgroup are still there.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: (task) and, where the constant says so, (group_dead).
    unsafe {
        let group_dead = (constant(&EXIT_HAS_GROUP_DEAD) != 0).then(|| ctx.arg::<u64>(1) & 0xff != 0);
        exit(ctx.arg(0), group_dead)
    }
}

/// The same moment where the tracepoint comes too early: entry of `cgroup_task_exit(task)`, after memory and files.
#[fentry]
pub fn process_exit(ctx: FEntryContext) -> i32 {
    // SAFETY: the function's argument is a `struct task_struct *`.
    unsafe { exit(ctx.arg(0), None) }
}

/// # Safety
/// `current` is a typed pointer to the task that ends.
#[inline(always)]
unsafe fn exit(current: *const u8, group_dead: Option<bool>) -> i32 {
    // SAFETY: as promised by the caller; each step loads a member of the type before.
    unsafe {
        let cgroup_id = kernel::task_cgroup_id(current);
        let slots = counters::enabled(target::slots(cgroup_id), INDEX);
        if slots == 0 {
            return 0;
        }
        let task = Task::new(current);
        let signal = follow(current, &TASK_SIGNAL);
        let group_dead = group_dead.unwrap_or_else(|| is_last(&task, signal));
        if task.is_thread() {
            let slots = slots & option(OPTION_THREADS);
            if slots != 0 {
                begin(&task, cgroup_id, slots, Kind::Snapshot);
                end(&task, current, signal, &hit(slots, cgroup_id), false);
            }
            let _ = KNOWN.remove(task.tid);
        }
        if group_dead {
            let process = Task { task: follow(current, &TASK_GROUP_LEADER), tid: task.pid, ..task };
            begin(&process, cgroup_id, slots, Kind::Snapshot);
            end(&process, current, signal, &hit(slots, cgroup_id), true);
            let _ = KNOWN.remove(process.tid);
        }
    }
    0
}

/// Whether the process is told to have ended with this task, which comes here to its end.
///
/// No task is left alive before the last ones are here. The first task tells, unless it ended before others; of those one
/// tells. So the sums lack nothing but the last moments of a thread that ends on another CPU just then.
///
/// # Safety
/// `task` was made from a typed pointer, `signal` is its.
#[inline(always)]
unsafe fn is_last(task: &Task, signal: *const u8) -> bool {
    // SAFETY: members of the types; the entry is the map's, and its word is changed atomically.
    unsafe {
        let process = [task.start_ns, u64::from(task.pid)];
        if task.is_thread() {
            if load::<i32>(signal, &SIGNAL_LIVE) != 0 {
                return false;
            }
        } else if load::<i32>(signal, &SIGNAL_NR_THREADS) == 1 {
            return ENDED.get(process).is_none_or(|known| known & TOLD == 0);
        }
        // Before the entry: who sees that the first thread is gone sees what it left there.
        let is_gone = load::<i32>(follow(task.task, &TASK_GROUP_LEADER), &TASK_EXIT_STATE) != 0;
        let _ = ENDED.insert(process, 0, u64::from(BPF_NOEXIST));
        let Some(known) = ENDED.get_ptr_mut(process) else { return !task.is_thread() };
        if task.is_thread() {
            if !is_gone && atomic::fetch_add(known, 0) & FIRST_ENDED == 0 {
                return false;
            }
        } else {
            // First this, then whether others are alive: who ends after them finds it.
            atomic::or(known, FIRST_ENDED);
            if load::<i32>(signal, &SIGNAL_LIVE) != 0 {
                return false;
            }
        }
        atomic::or(known, TOLD) & TOLD == 0
    }
}

/// Sends an exit: the usage of one thread, or with `whole` of the process, which ends with the task `current`.
#[inline(always)]
unsafe fn end(task: &Task, current: *const u8, signal: *const u8, hit: &Hit, whole: bool) {
    ring::emit::<ProcessEvent>(hit, |record| {
        // SAFETY: the record is ours; task and signal are typed pointers.
        unsafe {
            let this = task.task;
            identity(task, record, Kind::Exit);
            (*record).maj_flt = load(this, &TASK_MAJ_FLT);
            (*record).min_flt = load(this, &TASK_MIN_FLT);
            (*record).utime_ns = load(this, &TASK_UTIME);
            (*record).stime_ns = load(this, &TASK_STIME);
            (*record).runtime_ns = load(this, &TASK_RUNTIME);
            (*record).max_rss_pages = load(signal, &SIGNAL_MAXRSS);
            (*record).whole = u32::from(whole);
            (*record).status = load(this, &TASK_EXIT_CODE);
            if whole {
                (*record).maj_flt += load::<u64>(signal, &SIGNAL_MAJ_FLT);
                (*record).min_flt += load::<u64>(signal, &SIGNAL_MIN_FLT);
                (*record).utime_ns += load::<u64>(signal, &SIGNAL_UTIME);
                (*record).stime_ns += load::<u64>(signal, &SIGNAL_STIME);
                (*record).runtime_ns += load::<u64>(signal, &SIGNAL_RUNTIME);
                // A first thread that ended before is kept until the process is waited for, and is in no sum.
                if load::<u32>(current, &TASK_PID) != task.pid {
                    (*record).maj_flt += load::<u64>(current, &TASK_MAJ_FLT);
                    (*record).min_flt += load::<u64>(current, &TASK_MIN_FLT);
                    (*record).utime_ns += load::<u64>(current, &TASK_UTIME);
                    (*record).stime_ns += load::<u64>(current, &TASK_STIME);
                    (*record).runtime_ns += load::<u64>(current, &TASK_RUNTIME);
                }
                // What wait(2) reports: the group's code after exit_group or a signal, else the first thread's own.
                (*record).status = if load::<u32>(signal, &SIGNAL_FLAGS) & SIGNAL_GROUP_EXIT != 0 {
                    load(signal, &SIGNAL_GROUP_EXIT_CODE)
                } else {
                    load(follow(this, &TASK_GROUP_LEADER), &TASK_EXIT_CODE)
                };
            }
        }
    });
}

/// A process was moved into a cgroup.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: (`struct cgroup *`, path, `struct task_struct *`, threadgroup).
    unsafe {
        let cgroup: *const u8 = ctx.arg(0);
        if load::<i32>(follow(cgroup, &CGROUP_ROOT), &ROOT_HIERARCHY_ID) != 0 {
            return 0;
        }
        let cgroup_id = kernel::cgroup_id(cgroup);
        let slots = target::slots(cgroup_id);
        if slots == 0 {
            return 0;
        }
        let task = Task::new(ctx.arg(2));
        let slots = wanted(&task, cgroup_id);
        if slots != 0 {
            begin(&task, cgroup_id, slots, Kind::Joined);
        }
    }
    0
}

/// Lists what runs in the cgroups of [`SNAPSHOT`]; the context is (meta, task).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn process_snapshot(ctx: *mut u64) -> i32 {
    // SAFETY: the iterator's context is two pointers, the second of them to a task, or null at the end.
    unsafe {
        let this = *ctx.add(1) as *const u8;
        if this.is_null() || load::<i32>(this, &TASK_EXIT_STATE) != 0 {
            return 0;
        }
        let cgroup_id = kernel::task_cgroup_id(this);
        let asked = SNAPSHOT.get(cgroup_id).copied().unwrap_or(0);
        if asked == 0 {
            return 0;
        }
        let task = Task::new(this);
        let slots = asked & wanted(&task, cgroup_id);
        if slots != 0 && load::<i32>(follow(this, &TASK_SIGNAL), &SIGNAL_LIVE) > 0 {
            begin(&task, cgroup_id, slots, Kind::Snapshot);
        }
    }
    0
}
