// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! How full the queues of the targets' TCP listeners are, and what they drop.
//!
//! Hooks: `iter/task_file` at each window's end, tp_btf `inet_sock_set_state` for beginnings and ends. Drops are the socket's
//! own counter (`sk_drops`). Where the kernel has fentry: `tcp_conn_request(.., sk, skb)` and `tcp_v4_syn_recv_sock(sk, skb, ..)`,
//! `tcp_v6_syn_recv_sock`, the places that find the queue of connections full; the sums are the kernel's ListenOverflows.
//! Cost: nothing per connection but a hash lookup per SYN and per handshake of any listener, where there is fentry.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_sock_from_file};
use aya_ebpf::macros::{btf_tracepoint, fentry, map};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext};
use node_agent_common::aggregate::{Histogram, SLOTS};
use node_agent_common::sock::{Flow, state};
use node_agent_common::tcp_listen_queue::{
    INDEX, ListenQueue, ListenQueueKey, ListenQueueValue, MAX_LISTENERS, OPTION_HISTOGRAM, OPTIONS,
};

use super::processes::Task;
use crate::aggregate::{self, Sums};
use crate::atomic;
use crate::counters::{self, Loss};
use crate::kernel::{self, follow};
use crate::ring::Hit;
use crate::skb;
use crate::sock::{self, Direct, Read, SK_PROTOCOL, SK_STATE, SOCKET_SK};

node_agent_common::declare_listen_fields!();

/// What is known of a listener.
#[repr(C)]
#[derive(Clone, Copy)]
struct Listener {
    /// Tells it from another at the same address.
    sock_id: u64,
    /// Sessions that have had its drops so far, and the newest session of that time.
    slots: u64,
    newest: u64,
    /// The last pass that met it.
    pass: u64,
    /// How many of its drops have a row.
    drops: u64,
    /// Overflows that have no row yet.
    overflows: u64,
    /// Who holds it; 0 where nobody looked yet.
    start_ns: u64,
    pid: u64,
    comm: [u8; 16],
}

/// Address of a listener to what is known of it.
#[map]
static LISTENERS: HashMap<u64, Listener> = HashMap::with_max_entries(MAX_LISTENERS, BPF_F_NO_PREALLOC);

/// Slots that have an option on: [`OPTION_HISTOGRAM`].
#[map]
static LISTEN_OPTIONS: Array<u64> = Array::with_max_entries(OPTIONS, 0);

/// Number of the pass, raised by the agent before each.
#[map]
static LISTEN_PASSES: Array<u64> = Array::with_max_entries(1, 0);

/// Address of a listener to how long its queue was when segments arrived, as far as it has no row yet. Only while some
/// session wants it.
#[map]
static LISTEN_LENGTHS: HashMap<u64, Histogram> = HashMap::with_max_entries(MAX_LISTENERS, BPF_F_NO_PREALLOC);
#[map]
static LISTEN_LENGTHS_ZEROS: Array<Histogram> = Array::with_max_entries(1, 0);

/// What is added up.
#[map]
static LISTEN_QUEUE: HashMap<ListenQueueKey, ListenQueueValue> =
    HashMap::with_max_entries(MAX_LISTENERS, BPF_F_NO_PREALLOC);
#[map]
static LISTEN_QUEUE_ZEROS: Array<ListenQueueValue> = Array::with_max_entries(1, 0);

const SUMS: Sums<ListenQueue> = Sums { entries: &LISTEN_QUEUE, zeros: &LISTEN_QUEUE_ZEROS };

/// Enters a listener; of one that is not new, what it dropped before is not the session's.
///
/// # Safety
/// `sk` is a typed pointer to a TCP socket.
#[inline(always)]
unsafe fn enter(sk: *const u8, sock_id: u64, slots: u64) -> Option<*mut Listener> {
    // SAFETY: members of the type.
    let drops = unsafe { Direct::number(sk, &SK_DROPS) };
    let known = Listener {
        sock_id,
        slots,
        newest: counters::newest(),
        pass: 0,
        drops,
        overflows: 0,
        start_ns: 0,
        pid: 0,
        comm: [0; 16],
    };
    let _ = LISTEN_LENGTHS.remove(sk as u64);
    let _ = LISTENERS.insert(sk as u64, known, 0);
    let entered = LISTENERS.get_ptr_mut(sk as u64);
    if entered.is_none() {
        counters::admit_many(slots, INDEX, 1);
        counters::lose_many(slots, INDEX, Loss::MapFull as u32, 1);
    }
    entered
}

/// Moves what one histogram has to another.
///
/// # Safety
/// Both lie in maps' values.
#[inline(always)]
unsafe fn hand_over(from: *mut Histogram, to: *mut Histogram) {
    let mut slot = 0;
    while slot < SLOTS {
        // SAFETY: as promised; the slot is within.
        unsafe {
            let counted = atomic::swap(from.cast::<u64>().add(slot), 0);
            if counted != 0 {
                atomic::add(to.cast::<u64>().add(slot), counted);
            }
        }
        slot += 1;
    }
}

/// Forgets a listener.
#[inline(always)]
fn forget(sk: *const u8) {
    let _ = LISTENERS.remove(sk as u64);
    let _ = LISTEN_LENGTHS.remove(sk as u64);
}

/// Adds what a listener has now, for the sessions that record it.
///
/// # Safety
/// `tcp` is the listener `sk` as a typed `struct tcp_sock`, `listener` a map's value.
#[inline(always)]
unsafe fn report(sk: *const u8, tcp: *const u8, listener: *mut Listener, hit: &Hit) {
    // SAFETY: as promised; the flow is filled in.
    unsafe {
        // A session that came since has not asked for what was before.
        let owed = counters::since((*listener).slots & hit.slots, (*listener).newest);
        (*listener).slots = hit.slots;
        (*listener).newest = counters::newest();
        let dropped = atomic::claim(addr_of_mut!((*listener).drops), Direct::number(tcp, &SK_DROPS));
        let overflows = atomic::swap(addr_of_mut!((*listener).overflows), 0);
        let mut flow =
            Flow { sock_id: 0, laddr: [0; 16], raddr: [0; 16], lport: 0, rport: 0, family: 0, protocol: 0 };
        sock::flow(tcp, addr_of_mut!(flow));
        let give = |slots: u64, dropped: u64, overflows: u64, lengths: *mut Histogram| {
            if slots == 0 {
                return;
            }
            aggregate::look(
                &SUMS,
                &Hit { slots, ..*hit },
                |key: *mut ListenQueueKey| {
                    (*key).sock_id = (*listener).sock_id;
                    (*key).start_ns = (*listener).start_ns;
                    (*key).pid = (*listener).pid as u32;
                    (*key).lport = flow.lport;
                    (*key).family = flow.family;
                    (*key).comm = (*listener).comm;
                    (*key).laddr_raw = flow.laddr;
                },
                |value: *mut ListenQueueValue| {
                    (*value).accept_len = Direct::number(tcp, &SK_ACK_BACKLOG);
                    (*value).accept_max = Direct::number(tcp, &SK_MAX_ACK_BACKLOG);
                    (*value).syn_len = Direct::number(tcp, &ICSK_QUEUE_LEN);
                    (*value).syn_young = Direct::number(tcp, &ICSK_QUEUE_YOUNG);
                    atomic::add(addr_of_mut!((*value).drops), dropped);
                    atomic::add(addr_of_mut!((*value).overflows), overflows);
                    if !lengths.is_null() {
                        hand_over(lengths, addr_of_mut!((*value).accept_hist));
                    }
                },
            );
        };
        let none = core::ptr::null_mut();
        if owed == 0 {
            // Nobody's who is here now.
            let _ = LISTEN_LENGTHS.remove(sk as u64);
        }
        give(owed, dropped, overflows, LISTEN_LENGTHS.get_ptr_mut(sk as u64).unwrap_or(none));
        give(hit.slots & !owed, 0, 0, none);
    }
}

/// Takes down who holds the listener.
///
/// # Safety
/// `task` is a typed pointer, `listener` a map's value.
#[inline(always)]
unsafe fn hold(task: *const u8, listener: *mut Listener) {
    // SAFETY: as promised.
    unsafe {
        let task = Task::new(task);
        (*listener).start_ns = task.start_ns;
        (*listener).pid = u64::from(task.pid);
        task.leader_comm(addr_of_mut!((*listener).comm));
    }
}

/// A window ends: the context is (meta, task, fd, file).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub unsafe extern "C" fn listen_pass(ctx: *mut u64) -> i32 {
    // SAFETY: the words of the iterator's context, the last of them null at the end.
    unsafe {
        let (task, file) = (*ctx.add(1) as *const u8, *ctx.add(3) as *const u8);
        if task.is_null() || file.is_null() {
            return 0;
        }
        let socket: *const u8 = bpf_sock_from_file(file.cast_mut().cast()).cast_const().cast();
        if socket.is_null() {
            return 0;
        }
        let sk = follow(socket, &SOCKET_SK);
        if sk.is_null()
            || Direct::number(sk, &SK_STATE) as u32 != state::LISTEN
            || Direct::number(sk, &SK_PROTOCOL) != sock::TCP
        {
            return 0;
        }
        let Some(hit) = sock::owner(sk, INDEX) else {
            if LISTENERS.get_ptr(sk as u64).is_some() {
                forget(sk);
            }
            return 0;
        };
        let tcp = sock::tcp_sock(sk);
        if tcp.is_null() {
            return 0;
        }
        let (sock_id, pass) = (sock::cookie(tcp), LISTEN_PASSES.get(0).copied().unwrap_or(1));
        let known = LISTENERS.get_ptr_mut(sk as u64).filter(|known| (**known).sock_id == sock_id);
        let Some(listener) = known.or_else(|| enter(sk, sock_id, hit.slots)) else { return 0 };
        // Processes share listeners; the first one that is met holds it, as long as it lives.
        let is_first = (*listener).pass != pass;
        // One that was handed a socket of another's is not named in that one's rows.
        if (is_first || (*listener).pid == 0) && kernel::task_cgroup_id(task) == hit.cgroup_id {
            hold(task, listener);
        }
        if is_first {
            (*listener).pass = pass;
            report(sk, tcp, listener, &hit);
        }
    }
    0
}

/// A listener begins or ends.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn listen_change(ctx: BtfTracePointContext) -> i32 {
    let sk: *const u8 = ctx.arg(0);
    let (old, new) = (ctx.arg::<i32>(1) as u32, ctx.arg::<i32>(2) as u32);
    // SAFETY: (`struct sock *`, old state, new state); the current task is one.
    unsafe {
        let ends = old == state::LISTEN && new == state::CLOSE;
        if !(ends || new == state::LISTEN) || Direct::number(sk, &SK_PROTOCOL) != sock::TCP {
            return 0;
        }
        let Some(hit) = sock::owner(sk, INDEX) else { return 0 };
        let tcp = sock::tcp_sock(sk);
        if tcp.is_null() {
            return 0;
        }
        let sock_id = sock::cookie(tcp);
        if !ends {
            let _ = enter(sk, sock_id, hit.slots);
            return 0;
        }
        if let Some(listener) = LISTENERS.get_ptr_mut(sk as u64)
            && (*listener).sock_id == sock_id
        {
            let task = bpf_get_current_task_btf().cast_const().cast::<u8>();
            if (*listener).pid == 0 && kernel::task_cgroup_id(task) == hit.cgroup_id {
                hold(task, listener);
            }
            report(sk, tcp, listener, &hit);
        }
        forget(sk);
    }
    0
}

/// Counts an overflow, if the queue of connections is full as the kernel reckons it, and the queue's length for those that
/// want it.
///
/// # Safety
/// `sk` is a typed pointer to a listener.
#[inline(always)]
unsafe fn arrive(sk: *const u8) -> i32 {
    let Some(listener) = LISTENERS.get_ptr_mut(sk as u64) else { return 0 };
    // SAFETY: members of the type; a word of the map's value.
    unsafe {
        let length = Direct::number(sk, &SK_ACK_BACKLOG);
        if length > Direct::number(sk, &SK_MAX_ACK_BACKLOG) {
            atomic::add(addr_of_mut!((*listener).overflows), 1);
        }
        if (*listener).slots & LISTEN_OPTIONS.get(OPTION_HISTOGRAM).copied().unwrap_or(0) != 0 {
            count(sk, length);
        }
    }
    0
}

#[inline(always)]
fn count(sk: *const u8, length: u64) {
    let key = sk as u64;
    if LISTEN_LENGTHS.get_ptr(key).is_none() {
        let Some(zeros) = LISTEN_LENGTHS_ZEROS.get(0) else { return };
        // Another CPU may be first: its entry is as good.
        let _ = LISTEN_LENGTHS.insert(key, zeros, u64::from(BPF_NOEXIST));
    }
    if let Some(lengths) = LISTEN_LENGTHS.get_ptr_mut(key) {
        // SAFETY: a map's value.
        unsafe { aggregate::count(lengths, length) };
    }
}

/// A SYN arrives: entry of `tcp_conn_request(request_ops, af_ops, sk, skb)`.
#[fentry]
pub fn listen_syn(ctx: FEntryContext) -> i32 {
    // SAFETY: the third argument is the listener.
    unsafe { arrive(ctx.arg(2)) }
}

/// A handshake's last segment arrives: entry of `tcp_v4_syn_recv_sock(sk, skb, ..)`.
#[fentry]
pub fn listen_ack_v4(ctx: FEntryContext) -> i32 {
    // SAFETY: the first argument is the listener.
    unsafe { arrive(ctx.arg(0)) }
}

/// The same for IPv6; IPv4 through IPv6 sockets goes on to the one above.
#[fentry]
pub fn listen_ack_v6(ctx: FEntryContext) -> i32 {
    let packet: *const u8 = ctx.arg(1);
    // SAFETY: (the listener, `struct sk_buff *`).
    unsafe {
        if skb::ethertype(packet) != skb::IPV6 {
            return 0;
        }
        arrive(ctx.arg(0))
    }
}
