// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Places in kernel structures that the programs read, declared once for both sides.
//!
//! Rust's BPF programs have no CO-RE relocations. Each place is a constant of the object, [`MISSING`] until the loader
//! writes the running kernel's own value, taken from its BTF; the verifier then sees plain constants.

/// The value of a place that the running kernel does not have.
pub const MISSING: u64 = u64::MAX;

/// One place: `path` inside `type_name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The constant in the object.
    pub symbol: &'static str,
    /// Name of the struct.
    pub type_name: &'static str,
    /// Member, nested members separated by dots.
    pub path: &'static str,
    /// Whether a program can do without it.
    pub optional: bool,
}

/// What a place's constant holds: byte offset, bytes to load, and for bit-fields where the bits lie in them.
pub const fn pack(offset: u32, size: u32, bit_offset: u32, bit_width: u32) -> u64 {
    offset as u64 | (bit_offset as u64) << 32 | (bit_width as u64) << 40 | (size as u64) << 48
}

/// Byte offset in a packed place.
#[inline(always)]
pub const fn offset(packed: u64) -> usize {
    (packed & 0xffff_ffff) as usize
}

/// Bytes to load at a packed place.
#[inline(always)]
pub const fn size(packed: u64) -> u32 {
    (packed >> 48) as u32
}

/// First bit and number of bits of a bit-field in a packed place; a width of 0 means all of the loaded value.
#[inline(always)]
pub const fn bits(packed: u64) -> (u32, u32) {
    ((packed >> 32) as u32 & 0xff, (packed >> 40) as u32 & 0xff)
}

/// Declares places: a list for the loader, and a macro that the object uses to declare its constants.
///
/// ```ignore
/// fields! {
///     /// What the hooks read of a thing.
///     pub THING_FIELDS, declare_thing_fields {
///         THING_ID: "thing", "id";
///         THING_NEW: "thing", "part.new", optional;
///     }
/// }
/// ```
#[macro_export]
macro_rules! fields {
    (
        $(#[doc = $doc:literal])+
        pub $list:ident, $declare:ident { $( $symbol:ident: $type:literal, $path:literal $(, $optional:ident)?; )* }
    ) => {
        $(#[doc = $doc])+
        pub const $list: &[$crate::fields::Field] = &[
            $( $crate::fields::Field {
                symbol: stringify!($symbol),
                type_name: $type,
                path: $path,
                optional: $crate::fields!(@optional $($optional)?),
            }, )*
        ];

        /// Declares the constants of the list beside it; for the object only.
        #[macro_export]
        macro_rules! $declare {
            () => { $( #[doc = concat!("`", $type, ".", $path, "`")] #[unsafe(no_mangle)] pub static $symbol: u64 = $crate::fields::MISSING; )* };
        }
    };
    (@optional) => { false };
    (@optional optional) => { true };
}

fields! {
    /// What every hook needs to find a task's or a cgroup's id.
    pub BASE_FIELDS, declare_base_fields {
        TASK_CGROUPS: "task_struct", "cgroups";
        CSS_SET_DFL_CGRP: "css_set", "dfl_cgrp";
        CGROUP_KN: "cgroup", "kn";
        CGROUP_ROOT: "cgroup", "root";
        CGROUP_PARENT: "cgroup", "self.parent";
        CSS_CGROUP: "cgroup_subsys_state", "cgroup";
        ROOT_HIERARCHY_ID: "cgroup_root", "hierarchy_id";
        KN_ID: "kernfs_node", "id";
        KN_NAME: "kernfs_node", "name";
    }
}

fields! {
    /// What the hooks read that learn which network namespaces are targets'.
    pub NETNS_FIELDS, declare_netns_fields {
        TASK_NSPROXY: "task_struct", "nsproxy";
        NSPROXY_NET: "nsproxy", "net_ns";
        NSPROXY_PID: "nsproxy", "pid_ns_for_children";
        PID_NS_REAPER: "pid_namespace", "child_reaper";
        NET_COOKIE: "net", "net_cookie";
    }
}

fields! {
    /// What a pass over tasks reads to tell a process by the number that its reader knows it by.
    pub PID_FIELDS, declare_pid_fields {
        TASK_THREAD_PID: "task_struct", "thread_pid";
        PID_LEVEL: "pid", "level";
        PID_NUMBER: "pid", "numbers.nr";
        UPID_NS: "upid", "ns";
    }
}

fields! {
    /// What the hooks of `processes` read of a task.
    pub TASK_FIELDS, declare_task_fields {
        TASK_TGID: "task_struct", "tgid";
        TASK_PID: "task_struct", "pid";
        TASK_COMM: "task_struct", "comm";
        TASK_GROUP_LEADER: "task_struct", "group_leader";
        TASK_REAL_PARENT: "task_struct", "real_parent";
        TASK_START_BOOTTIME: "task_struct", "start_boottime";
        TASK_STATIC_PRIO: "task_struct", "static_prio";
        TASK_CRED: "task_struct", "cred";
        CRED_UID: "cred", "uid.val";
        TASK_EXIT_CODE: "task_struct", "exit_code";
        TASK_EXIT_STATE: "task_struct", "exit_state";
        TASK_MAJ_FLT: "task_struct", "maj_flt";
        TASK_MIN_FLT: "task_struct", "min_flt";
        TASK_UTIME: "task_struct", "utime";
        TASK_STIME: "task_struct", "stime";
        TASK_RUNTIME: "task_struct", "se.sum_exec_runtime";
        TASK_MM: "task_struct", "mm";
        MM_ARG_START: "mm_struct", "arg_start";
        MM_ARG_END: "mm_struct", "arg_end";
        TASK_SIGNAL: "task_struct", "signal";
        SIGNAL_LIVE: "signal_struct", "live.counter";
        SIGNAL_NR_THREADS: "signal_struct", "nr_threads";
        SIGNAL_FLAGS: "signal_struct", "flags";
        SIGNAL_GROUP_EXIT_CODE: "signal_struct", "group_exit_code";
        SIGNAL_MAJ_FLT: "signal_struct", "maj_flt";
        SIGNAL_MIN_FLT: "signal_struct", "min_flt";
        SIGNAL_UTIME: "signal_struct", "utime";
        SIGNAL_STIME: "signal_struct", "stime";
        SIGNAL_RUNTIME: "signal_struct", "sum_sched_runtime";
        SIGNAL_MAXRSS: "signal_struct", "maxrss";
        BPRM_FILENAME: "linux_binprm", "filename";
    }
}
