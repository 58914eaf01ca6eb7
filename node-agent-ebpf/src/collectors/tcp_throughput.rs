// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Payload of the targets' TCP connections, added up per connection and window.
//!
//! Hooks: `iter/task_file` at each window's end, tp_btf `inet_sock_set_state` for beginnings and ends.
//! The kernel counts for each socket itself, so data cost nothing: what is paid is a pass over all open files per window,
//! 0.2 us each, and a hash lookup per change of state of sockets that are nobody's.
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
use crate::kernel::{self, constant, follow};
use crate::ring::Hit;
use crate::sock::{
    self, Direct, Read, SK_FLAGS, SK_PROTOCOL, SK_STATE, SOCK_DONE_BIT, SOCKET_SK, TCP_BYTES_ACKED,
    TCP_BYTES_RECEIVED, TCP_BYTES_RETRANS, TCP_BYTES_SENT, TCP_SND_UNA, TCP_WRITE_SEQ,
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

/// How much of a connection is accounted for.
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

/// What the kernel has counted so far. The numbers of SYN and FIN are not payload: the SYN counts before a connection is
/// entered, the FIN is taken off here.
///
/// # Safety
/// `tcp` is a typed `struct tcp_sock`, in state `now`.
#[inline(always)]
unsafe fn counts(tcp: *const u8, now: u32) -> Counts {
    // SAFETY: members of the type.
    unsafe {
        let done = constant(&SOCK_DONE_BIT) & 63;
        let fin_received = Direct::number(tcp, &SK_FLAGS) >> done & 1;
        let fin_sent = matches!(
            now,
            state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING | state::LAST_ACK | state::TIME_WAIT
        );
        let all_acked = Direct::number(tcp, &TCP_SND_UNA) == Direct::number(tcp, &TCP_WRITE_SEQ);
        Counts {
            received: Direct::number(tcp, &TCP_BYTES_RECEIVED).wrapping_sub(fin_received),
            sent: Direct::number(tcp, &TCP_BYTES_SENT),
            acked: Direct::number(tcp, &TCP_BYTES_ACKED).wrapping_sub(u64::from(fin_sent && all_acked)),
            retransmitted: Direct::number(tcp, &TCP_BYTES_RETRANS),
        }
    }
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
/// `tcp` is a typed `struct tcp_sock` in state `now`, `carried` its entry.
#[inline(always)]
unsafe fn account(tcp: *const u8, carried: *mut Carried, hit: &Hit, now: u32) {
    // SAFETY: as promised; words of map values are changed atomically.
    unsafe {
        let counts = counts(tcp, now);
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
            // Nobody's any more; should it become somebody's again, what it carries meanwhile is not theirs.
            if CARRIED.get_ptr(sk as u64).is_some() {
                let _ = CARRIED.remove(sk as u64);
            }
            return 0;
        };
        let tcp = sock::tcp_sock(sk);
        if tcp.is_null() {
            return 0;
        }
        let (sock_id, pass) = (sock::cookie(tcp), THROUGHPUT_PASSES.get(0).copied().unwrap_or(1));
        let carried = match CARRIED.get_ptr_mut(sk as u64) {
            Some(known) if (*known).sock_id == sock_id => known,
            stale => {
                if stale.is_some() {
                    let _ = CARRIED.remove(sk as u64);
                }
                let Some(entered) = enter(sk, sock_id, hit.slots, counts(tcp, now)) else { return 0 };
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
            account(tcp, carried, &hit, now);
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
            let _ = CARRIED.remove(sk as u64);
            return 0;
        };
        let tcp = sock::tcp_sock(sk);
        if tcp.is_null() {
            return 0;
        }
        let sock_id = sock::cookie(tcp);
        if new == state::SYN_SENT {
            let _ = CARRIED.remove(sk as u64);
            let nothing = Counts { received: 0, sent: 0, acked: 0, retransmitted: 0 };
            let task = bpf_get_current_task_btf().cast_const().cast::<u8>();
            if let Some(carried) = enter(sk, sock_id, hit.slots, nothing)
                && kernel::task_cgroup_id(task) == hit.cgroup_id
            {
                hold(task, carried);
            }
            return 0;
        }
        let known = match CARRIED.get_ptr_mut(sk as u64) {
            Some(known) if (*known).sock_id == sock_id => Some(known),
            _ => None,
        };
        if begins {
            // What is counted by now is the SYN, and on this side nothing else.
            let counts = counts(tcp, old);
            match known {
                Some(known) => (*known).counts.acked = counts.acked,
                None => {
                    let _ = CARRIED.remove(sk as u64);
                    let _ = enter(sk, sock_id, hit.slots, Counts { received: 0, ..counts });
                }
            }
            return 0;
        }
        if let Some(carried) = known {
            account(tcp, carried, &hit, old);
        }
        let _ = CARRIED.remove(sk as u64);
    }
    0
}
