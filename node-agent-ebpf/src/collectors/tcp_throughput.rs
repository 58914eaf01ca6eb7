// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Payload of the targets' TCP connections, added up per connection and window.
//!
//! Hooks: `iter/task_file` at each window's end, tp_btf `inet_sock_set_state` for beginnings and ends, `tcp_destroy_sock`.
//! The kernel counts for each socket itself, so data cost nothing: what is paid is a pass over all open files per window,
//! 0.2 us each, and a hash lookup per change of state of sockets that are nobody's.
//! A pass runs beside what it looks at: a connection may end, and another begin, between two of its instructions. Its order
//! of reads and the time at which entries are removed are what makes the sums exact nevertheless.
//! Not seen before they end: sockets that no process holds.

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
    /// From what the kernel counts as acknowledged to the number of the first byte that is not, modulo 2^32.
    base: u64,
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

/// What a sequence number has bits for.
const NUMBERS: u64 = u32::MAX as u64;
/// What a SYN adds to what is acknowledged.
const SYN: u64 = 1;
const NOTHING: Counts = Counts { received: 0, sent: 0, acked: 0, retransmitted: 0 };

/// Who looks: a hook, which the socket's owner runs, or a pass beside it.
#[derive(Clone, Copy)]
enum By {
    Hook,
    Pass,
}

/// What the kernel has counted so far, and the base of what is acknowledged. The numbers of SYN and FIN are not payload: the
/// SYN counts before a connection is entered, a FIN is taken off here. `None` when the socket has closed meanwhile: then the
/// hook of its end has everything.
///
/// Every counter is read before what tells whether a FIN is in it: one that comes between makes the number too small by
/// one, which the next look adds, and never too large. A FIN that is received counts before the socket says so, and the
/// socket is locked for as long: a pass that meets it so takes off one to be safe.
///
/// # Safety
/// `tcp` is a typed `struct tcp_sock`, which the hooks have locked.
#[inline(always)]
unsafe fn counts(tcp: *const u8, by: By, base: Option<u64>) -> Option<(Counts, u64)> {
    // SAFETY: members of the type.
    unsafe {
        let received = InOrder::number(tcp, &TCP_BYTES_RECEIVED);
        let is_busy = matches!(by, By::Pass)
            && (InOrder::number(tcp, &SK_OWNED) != 0
                || exists(&SK_SLOCK) && InOrder::number(tcp, &SK_SLOCK) != 0);
        let is_done = InOrder::number(tcp, &SK_FLAGS) >> (constant(&SOCK_DONE_BIT) & 63) & 1 != 0;
        let fin_received = u64::from((is_done || is_busy) && received != 0);
        let una = InOrder::number(tcp, &TCP_SND_UNA);
        let mut acked = InOrder::number(tcp, &TCP_BYTES_ACKED);
        let base = base.unwrap_or(una.wrapping_sub(acked) & NUMBERS);
        let now = InOrder::number(tcp, &SK_STATE) as u32;
        if now == state::CLOSE {
            return None;
        }
        if matches!(now, state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING | state::LAST_ACK) {
            // The last number is the FIN's, and acknowledged if the count reaches beyond it.
            let last = InOrder::number(tcp, &TCP_WRITE_SEQ).wrapping_sub(1);
            let payload = last.wrapping_sub(base) & NUMBERS;
            acked = acked.wrapping_sub(u64::from(acked & NUMBERS == payload.wrapping_add(1) & NUMBERS));
        }
        let counts = Counts {
            received: received.wrapping_sub(fin_received),
            sent: InOrder::number(tcp, &TCP_BYTES_SENT),
            acked,
            retransmitted: InOrder::number(tcp, &TCP_BYTES_RETRANS),
        };
        Some((counts, base))
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
fn enter(sk: *const u8, sock_id: u64, slots: u64, (counts, base): (Counts, u64)) -> Option<*mut Carried> {
    let newest = counters::newest();
    let fresh = Carried { sock_id, slots, newest, pass: 0, base, counts, start_ns: 0, pid: 0, comm: [0; 16] };
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
        let Some((counts, _)) = counts(tcp, by, Some((*carried).base)) else { return };
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
fn disown(sk: *const u8) {
    if let Some(known) = CARRIED.get_ptr_mut(sk as u64) {
        // SAFETY: a map's value.
        unsafe { (*known).slots = 0 };
    }
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
        if matches!(now, state::LISTEN | state::CLOSE | state::SYN_SENT)
            || Direct::number(sk, &SK_PROTOCOL) != sock::TCP
        {
            return 0;
        }
        let Some(hit) = sock::owner(sk, INDEX) else {
            disown(sk);
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
                let Some(before) = counts(tcp, By::Pass, None) else { return 0 };
                let Some(entered) = enter(sk, sock_id, hit.slots, before) else { return 0 };
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
    let ends = new == state::CLOSE && old != state::CLOSE && old != state::LISTEN;
    if !(begins || ends || new == state::SYN_SENT) {
        return 0;
    }
    // SAFETY: (`struct sock *`, old state, new state); the current task is one.
    unsafe {
        if Direct::number(sk, &SK_PROTOCOL) != sock::TCP {
            return 0;
        }
        let Some(hit) = sock::owner(sk, INDEX) else {
            disown(sk);
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
                None => enter(sk, sock_id, hit.slots, (NOTHING, 0)),
            };
            if let Some(carried) = entered
                && kernel::task_cgroup_id(task) == hit.cgroup_id
            {
                hold(task, carried);
            }
            return 0;
        }
        if begins {
            let Some((counts, base)) = counts(tcp, By::Hook, None) else { return 0 };
            match known {
                Some(known) => {
                    (*known).counts.acked = SYN;
                    (*known).base = base;
                }
                // Data that came with the last segment of the handshake count as received in the session.
                None => {
                    let _ = enter(sk, sock_id, hit.slots, (Counts { received: 0, ..counts }, base));
                }
            }
            return 0;
        }
        if let Some(carried) = known {
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
