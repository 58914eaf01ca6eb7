// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Payload of the targets' TCP connections, added up per connection and window.
//!
//! Hooks: `iter/task_file` at each window's end, tp_btf `inet_sock_set_state` for beginnings and ends, `tcp_destroy_sock`.
//! The kernel counts for each socket itself, so data cost nothing: what is paid is a pass over all open files per window,
//! 0.2 us each, and a hash lookup per change of state of sockets that are nobody's.
//! A pass runs beside what it looks at: a connection may end, and another begin, between two of its instructions. Its order
//! of reads and the time at which entries are removed are what makes the sums exact nevertheless.
//! Not seen before they end: what sockets carry that no process holds any more.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_sock_from_file};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::BtfTracePointContext;
use node_agent_common::sock::{Flow, state};
use node_agent_common::tcp_throughput::{
    INDEX, MAX_CONNECTIONS, MAX_ROWS, Throughput, ThroughputKey, ThroughputValue,
};

use super::processes::Task;
use crate::aggregate::{self, Sums};
use crate::atomic;
use crate::counters::{self, Loss};
use crate::kernel::{self, constant, exists, follow};
use crate::ring::Hit;
use crate::sock::{
    self, Direct, InOrder, Read, SK_FLAGS, SK_OWNED, SK_PROTOCOL, SK_SLOCK, SK_STATE, SOCK_DONE_BIT,
    SOCKET_SK, TCP_BYTES_ACKED, TCP_BYTES_RECEIVED, TCP_BYTES_RETRANS, TCP_BYTES_SENT, TCP_SND_UNA,
    TCP_WRITE_SEQ,
};

/// What the kernel has counted for a socket: payload.
#[repr(C)]
#[derive(Clone, Copy)]
struct Counts {
    received: u64,
    sent: u64,
    acked: u64,
    retransmitted: u64,
}

/// How much of a connection is accounted for. An entry stays until its socket is destroyed, which cannot be while a pass has
/// the socket's file in hand. It would be another connection's memory under the pass otherwise: removed entries are used
/// again at once.
#[repr(C)]
#[derive(Clone, Copy)]
struct Carried {
    /// Tells it from another at the same address.
    sock_id: u64,
    /// Sessions for which this is so, and the newest session of that time.
    slots: u64,
    newest: u64,
    /// The last pass that met it.
    pass: u64,
    counts: Counts,
    /// Who holds it; 0 where nobody looked yet.
    start_ns: u64,
    pid: u64,
    comm: [u8; 16],
}

/// Address of a socket to what is known of its connection.
#[map]
static CARRIED: HashMap<u64, Carried> = HashMap::with_max_entries(MAX_CONNECTIONS, BPF_F_NO_PREALLOC);

/// Number of the pass, raised by the agent before each.
#[map]
static THROUGHPUT_PASSES: Array<u64> = Array::with_max_entries(1, 0);

/// What is added up.
#[map]
static THROUGHPUT: HashMap<ThroughputKey, ThroughputValue> =
    HashMap::with_max_entries(MAX_ROWS, BPF_F_NO_PREALLOC);
#[map]
static THROUGHPUT_ZEROS: Array<ThroughputValue> = Array::with_max_entries(1, 0);

const SUMS: Sums<Throughput> = Sums { entries: &THROUGHPUT, zeros: &THROUGHPUT_ZEROS };

/// What a SYN adds to what is acknowledged.
const SYN: u64 = 1;
const NOTHING: Counts = Counts { received: 0, sent: 0, acked: 0, retransmitted: 0 };

/// Who looks: a hook, which the socket's owner runs, or a pass beside it.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Hook,
    Pass,
}

/// What the kernel has counted so far. The numbers of SYN and FIN are in it.
///
/// # Safety
/// `tcp` is a typed `struct tcp_sock`.
#[inline(always)]
unsafe fn counts(tcp: *const u8) -> Counts {
    // SAFETY: members of the type.
    unsafe {
        Counts {
            received: InOrder::number(tcp, &TCP_BYTES_RECEIVED),
            sent: InOrder::number(tcp, &TCP_BYTES_SENT),
            acked: InOrder::number(tcp, &TCP_BYTES_ACKED),
            retransmitted: InOrder::number(tcp, &TCP_BYTES_RETRANS),
        }
    }
}

/// The same without the FINs, which are no payload; the SYN counts before a connection is entered. `None` when the socket has
/// closed meanwhile: then the hook of its end has everything.
///
/// The counters are read before what tells whether a FIN is in them, and the kernel counts a FIN before it says so, with the
/// socket locked for as long: a pass that meets it locked takes one off to be safe (where spinlocks sleep, only if a process
/// has locked it). So a number is too small by one at times, which the next look adds, and never too large.
///
/// # Safety
/// As [`counts`].
#[inline(always)]
unsafe fn payload(tcp: *const u8, by: By) -> Option<Counts> {
    // SAFETY: members of the type.
    unsafe {
        let mut counts = counts(tcp);
        let is_busy = by == By::Pass
            && (InOrder::number(tcp, &SK_OWNED) != 0
                || exists(&SK_SLOCK) && InOrder::number(tcp, &SK_SLOCK) != 0);
        let is_done = InOrder::number(tcp, &SK_FLAGS) >> (constant(&SOCK_DONE_BIT) & 63) & 1 != 0;
        if (is_done || is_busy) && counts.received != 0 {
            counts.received -= 1;
        }
        let now = InOrder::number(tcp, &SK_STATE) as u32;
        if now == state::CLOSE {
            return None;
        }
        let fin_sent = matches!(now, state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING | state::LAST_ACK);
        let all_acked = InOrder::number(tcp, &TCP_SND_UNA) == InOrder::number(tcp, &TCP_WRITE_SEQ);
        if fin_sent && (all_acked || is_busy) && counts.acked != 0 {
            counts.acked -= 1;
        }
        Some(counts)
    }
}

/// What is known of a connection; what is left of another at its socket's address is forgotten.
#[inline(always)]
fn find(sk: *const u8, sock_id: u64) -> Option<*mut Carried> {
    let known = CARRIED.get_ptr_mut(sk as u64)?;
    // SAFETY: a map's value.
    if unsafe { (*known).sock_id } == sock_id {
        return Some(known);
    }
    let _ = CARRIED.remove(sk as u64);
    None
}

/// Enters a connection with what it has carried before anybody looked. One that finds no room is a hit, and lost.
#[inline(always)]
fn enter(sk: *const u8, sock_id: u64, slots: u64, counts: Counts) -> Option<*mut Carried> {
    let newest = counters::newest();
    let fresh = Carried { sock_id, slots, newest, pass: 0, counts, start_ns: 0, pid: 0, comm: [0; 16] };
    let _ = CARRIED.insert(sk as u64, fresh, u64::from(BPF_NOEXIST));
    let entered = CARRIED.get_ptr_mut(sk as u64);
    if entered.is_none() {
        counters::admit_many(slots, INDEX, 1);
        counters::lose_many(slots, INDEX, Loss::MapFull as u32, 1);
    }
    entered
}

/// Takes down who holds the socket.
///
/// # Safety
/// `task` is a typed pointer, `carried` a map's value.
#[inline(always)]
unsafe fn hold(task: *const u8, carried: *mut Carried) {
    // SAFETY: as promised.
    unsafe {
        let task = Task::new(task);
        (*carried).start_ns = task.start_ns;
        (*carried).pid = u64::from(task.pid);
        task.leader_comm(addr_of_mut!((*carried).comm));
    }
}

/// Accounts for what a connection has carried since it was looked at last.
///
/// # Safety
/// `tcp` is a typed `struct tcp_sock`, `carried` its entry.
#[inline(always)]
unsafe fn account(tcp: *const u8, by: By, carried: *mut Carried, hit: &Hit) {
    // SAFETY: as promised; words of map values are changed atomically.
    unsafe {
        let Some(counts) = payload(tcp, by) else { return };
        let received = atomic::claim(addr_of_mut!((*carried).counts.received), counts.received);
        let sent = atomic::claim(addr_of_mut!((*carried).counts.sent), counts.sent);
        let acked = atomic::claim(addr_of_mut!((*carried).counts.acked), counts.acked);
        let retransmitted =
            atomic::claim(addr_of_mut!((*carried).counts.retransmitted), counts.retransmitted);
        // A session that came since has not asked for what was before.
        let owed = counters::since((*carried).slots & hit.slots, (*carried).newest);
        (*carried).slots = hit.slots;
        (*carried).newest = counters::newest();
        if owed == 0 || received | sent | acked | retransmitted == 0 {
            return;
        }
        let mut flow = Flow {
            sock_id: (*carried).sock_id,
            laddr: [0; 16],
            raddr: [0; 16],
            lport: 0,
            rport: 0,
            family: 0,
            protocol: 0,
        };
        sock::flow(tcp, addr_of_mut!(flow));
        aggregate::look(
            &SUMS,
            &Hit { slots: owed, ..*hit },
            |key: *mut ThroughputKey| {
                (*key).flow = flow;
                (*key).start_ns = (*carried).start_ns;
                (*key).pid = (*carried).pid as u32;
                (*key).grouped = 0;
                (*key).comm = (*carried).comm;
            },
            |value: *mut ThroughputValue| {
                atomic::add(addr_of_mut!((*value).rx_bytes), received);
                atomic::add(addr_of_mut!((*value).tx_bytes), sent);
                atomic::add(addr_of_mut!((*value).acked_bytes), acked);
                atomic::add(addr_of_mut!((*value).retrans_bytes), retransmitted);
            },
        );
    }
}

/// A connection is nobody's any more. Should it become somebody's again, what it carries meanwhile is not theirs.
#[inline(always)]
fn disown(sk: *const u8) -> Option<*mut Carried> {
    let known = CARRIED.get_ptr_mut(sk as u64)?;
    // SAFETY: a map's value.
    unsafe { (*known).slots = 0 };
    Some(known)
}

/// A window ends: the context is (meta, task, fd, file).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub unsafe extern "C" fn throughput_pass(ctx: *mut u64) -> i32 {
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
        if sk.is_null() {
            return 0;
        }
        let now = Direct::number(sk, &SK_STATE) as u32;
        // Of one that has not begun, the hook knows what is in its counters.
        if matches!(now, state::LISTEN | state::CLOSE | state::SYN_SENT | state::SYN_RECV)
            || Direct::number(sk, &SK_PROTOCOL) != sock::TCP
        {
            return 0;
        }
        let Some(hit) = sock::owner(sk, INDEX) else {
            let _ = disown(sk);
            return 0;
        };
        let tcp = sock::tcp_sock(sk);
        if tcp.is_null() {
            return 0;
        }
        let (sock_id, pass) = (sock::cookie(tcp), THROUGHPUT_PASSES.get(0).copied().unwrap_or(1));
        let carried = match find(sk, sock_id) {
            Some(known) => known,
            None => {
                let Some(entered) = enter(sk, sock_id, hit.slots, counts(tcp)) else { return 0 };
                entered
            }
        };
        // Processes share sockets; the first one that is met holds it.
        let is_first = (*carried).pass != pass;
        // One that was handed a socket of another's is not named in that one's rows.
        if (is_first || (*carried).pid == 0) && kernel::task_cgroup_id(task) == hit.cgroup_id {
            hold(task, carried);
        }
        if is_first {
            (*carried).pass = pass;
            account(tcp, By::Pass, carried, &hit);
        }
    }
    0
}

/// A connection begins or ends.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn throughput_change(ctx: BtfTracePointContext) -> i32 {
    let sk: *const u8 = ctx.arg(0);
    let (old, new) = (ctx.arg::<i32>(1) as u32, ctx.arg::<i32>(2) as u32);
    let begins = new == state::ESTABLISHED;
    // By the process that closes it: no pass meets it any more, and its end may be far.
    let closes = matches!(new, state::FIN_WAIT1 | state::LAST_ACK);
    let ends = new == state::CLOSE && old != state::CLOSE && old != state::LISTEN;
    if !(begins || closes || ends || new == state::SYN_SENT) {
        return 0;
    }
    // SAFETY: (`struct sock *`, old state, new state); the current task is one.
    unsafe {
        if Direct::number(sk, &SK_PROTOCOL) != sock::TCP {
            return 0;
        }
        let Some(hit) = sock::owner(sk, INDEX) else {
            if let Some(known) = disown(sk)
                && new == state::SYN_SENT
            {
                (*known).counts = NOTHING;
            }
            return 0;
        };
        let tcp = sock::tcp_sock(sk);
        if tcp.is_null() {
            return 0;
        }
        let sock_id = sock::cookie(tcp);
        let known = find(sk, sock_id);
        if new == state::SYN_SENT {
            let task = bpf_get_current_task_btf().cast_const().cast::<u8>();
            let entered = match known {
                // A socket may connect again, and the kernel counts anew.
                Some(known) => {
                    (*known).counts = NOTHING;
                    (*known).slots = hit.slots;
                    (*known).newest = counters::newest();
                    Some(known)
                }
                None => enter(sk, sock_id, hit.slots, NOTHING),
            };
            if let Some(carried) = entered
                && kernel::task_cgroup_id(task) == hit.cgroup_id
            {
                hold(task, carried);
            }
            return 0;
        }
        if begins {
            // What is counted by now is the SYN, if this end sent one that was acknowledged, and data that came or went with
            // the handshake, which are the connection's.
            let is_active = known.is_some() || old == state::SYN_SENT;
            let syn = if is_active { counts(tcp).acked.min(SYN) } else { 0 };
            match known {
                Some(known) => (*known).counts.acked = syn,
                None => _ = enter(sk, sock_id, hit.slots, Counts { acked: syn, ..NOTHING }),
            }
            return 0;
        }
        if let Some(carried) = known {
            let task = bpf_get_current_task_btf().cast_const().cast::<u8>();
            if closes && (*carried).pid == 0 && kernel::task_cgroup_id(task) == hit.cgroup_id {
                hold(task, carried);
            }
            account(tcp, By::Hook, carried, &hit);
        }
    }
    0
}

/// A socket is destroyed, which no process has open any more.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn throughput_destroy(ctx: BtfTracePointContext) -> i32 {
    let _ = CARRIED.remove(ctx.arg::<u64>(0));
    0
}
