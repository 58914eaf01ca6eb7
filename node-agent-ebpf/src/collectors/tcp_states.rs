// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Changes of the states of targets' TCP sockets and resets they send or accept: a record each, or counted by port.
//!
//! Hooks: tp_btf `inet_sock_set_state`, `tcp_send_reset`, `tcp_receive_reset` (6.1 to 7.x; `reason` of `tcp_send_reset` where the
//! tracepoint has it); where the kernel has fentry, `tcp_time_wait`.
//! Cost: one hash lookup for sockets that are nobody's.
//! Not seen: resets without a socket, or from a mini-socket: nothing there says whose they are.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::{btf_tracepoint, fentry, map};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext};
use node_agent_common::sock::state;
use node_agent_common::tcp_states::{
    INDEX, Kind, MAX_ROWS, MAX_SOCKETS, NO_REASON, TcpStateCounts, TcpStateCountsKey, TcpStateCountsValue,
    TcpStateEvent,
};

use crate::aggregate::{self, Sums};
use crate::kernel::constant;
use crate::ring::{self, Hit};
use crate::sock::{self, Direct, INET_SPORT, Read, SK_DPORT, SK_ERR, SK_PROTOCOL, SK_STATE};

/// When a socket came into its state.
#[repr(C)]
#[derive(Clone, Copy)]
struct Since {
    /// Tells it from another at the same address; 0 for one that a listener has just made and not given its cookie yet.
    sock_id: u64,
    state: u32,
    /// Which end's port the connection is counted by.
    side: u32,
    at_ns: u64,
}

/// The end that serves: as the connection's beginning told, which these say; else nobody saw it.
const LOCAL: u32 = 1;
const REMOTE: u32 = 2;

/// Address of a target's socket to when it came into its state. A full map costs a column's value.
#[map]
static SINCE: HashMap<u64, Since> = HashMap::with_max_entries(MAX_SOCKETS, BPF_F_NO_PREALLOC);

/// What is counted, for sessions that want no rows of each.
#[map]
static TCP_STATE_COUNTS: HashMap<TcpStateCountsKey, TcpStateCountsValue> =
    HashMap::with_max_entries(MAX_ROWS, BPF_F_NO_PREALLOC);
#[map]
static TCP_STATE_COUNTS_ZEROS: Array<TcpStateCountsValue> = Array::with_max_entries(1, 0);

const SUMS: Sums<TcpStateCounts> = Sums { entries: &TCP_STATE_COUNTS, zeros: &TCP_STATE_COUNTS_ZEROS };

/// Not 0 where `tcp_send_reset` says why.
#[unsafe(no_mangle)]
static SEND_RESET_HAS_REASON: u64 = 0;

/// What happened.
#[derive(Clone, Copy)]
struct Change {
    kind: Kind,
    /// 0 where the socket has none yet.
    sock_id: u64,
    old: u32,
    new: u32,
    since_ns: u64,
    reason: u32,
    side: u32,
}

/// # Safety
/// `tcp` is a typed `struct tcp_sock`.
#[inline(always)]
unsafe fn send(tcp: *const u8, hit: &Hit, ts_ns: u64, change: Change) {
    let (sums, each) = hit.split(INDEX);
    if let Some(hit) = sums {
        // SAFETY: as promised.
        unsafe { count(tcp, &hit, change) };
    }
    let Some(hit) = each else { return };
    ring::emit_at::<TcpStateEvent>(&hit, ts_ns, |record| {
        // SAFETY: the record is ours, the socket as promised.
        unsafe {
            sock::flow(tcp, &raw mut (*record).flow);
            (*record).flow.sock_id = change.sock_id;
            (*record).since_ns = change.since_ns;
            (*record).what = change.kind as u32;
            (*record).old = change.old;
            (*record).new = change.new;
            (*record).reset_reason_raw = change.reason;
            (*record).error = Direct::number(tcp, &SK_ERR) as i32;
            (*record).reserved = 0;
        }
    });
}

/// # Safety
/// `tcp` is a typed `struct tcp_sock`.
#[inline(always)]
unsafe fn count(tcp: *const u8, hit: &Hit, change: Change) {
    // SAFETY: as promised; ports are in network order in the kernel.
    let (local, remote) = unsafe {
        let port = |place| u16::from_be(Direct::number(tcp, place) as u16);
        (port(&INET_SPORT), port(&SK_DPORT))
    };
    // Ports of clients are many: what is counted goes by the server's. Who begins to connect has no own port yet.
    let is_remote = match change.side {
        LOCAL => false,
        REMOTE => true,
        _ => remote != 0 && (local == 0 || remote < local),
    };
    aggregate::add(
        &SUMS,
        hit,
        |key: *mut TcpStateCountsKey| {
            // SAFETY: the key is ours.
            unsafe {
                (*key).what = change.kind as u32;
                (*key).old = change.old;
                (*key).new = change.new;
                (*key).reset_reason_raw = change.reason;
                (*key).lport = if is_remote { 0 } else { local };
                (*key).rport = if is_remote { remote } else { 0 };
                (*key).reserved = 0;
            }
        },
        |_| {},
    );
}

/// Since when the socket is in `state`, and which end serves; 0 where nobody saw it.
#[inline(always)]
fn since(key: u64, sock_id: u64, state: u32) -> (u64, u32) {
    let Some(since) = SINCE.get_ptr(key) else { return (0, 0) };
    // SAFETY: words of the map's value.
    unsafe {
        if (*since).sock_id != sock_id && (*since).sock_id != 0 {
            return (0, 0);
        }
        (if (*since).state == state { (*since).at_ns } else { 0 }, (*since).side)
    }
}

/// A socket is about to change its state.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn tcp_state_change(ctx: BtfTracePointContext) -> i32 {
    let sk: *const u8 = ctx.arg(0);
    let (old, new) = (ctx.arg::<i32>(1) as u32, ctx.arg::<i32>(2) as u32);
    // SAFETY: (`struct sock *`, old state, new state).
    unsafe {
        if Direct::number(sk, &SK_PROTOCOL) != sock::TCP {
            return 0;
        }
        let Some(hit) = sock::owner(sk, INDEX) else { return 0 };
        let tcp = sock::tcp_sock(sk);
        if tcp.is_null() {
            return 0;
        }
        let (key, now) = (sk as u64, ring::now());
        // A socket that a listener makes is a copy of it still.
        let is_copy = new == state::SYN_RECV && old == state::LISTEN;
        let sock_id = if is_copy { 0 } else { sock::cookie(tcp) };
        let (since_ns, known) = if is_copy { (0, LOCAL) } else { since(key, sock_id, old) };
        let side = match new {
            state::SYN_SENT => REMOTE,
            state::LISTEN => LOCAL,
            _ => known,
        };
        if new == state::CLOSE {
            let _ = SINCE.remove(key);
        } else {
            let _ = SINCE.insert(key, Since { sock_id, state: new, side, at_ns: now }, 0);
        }
        let kind = Kind::Transition;
        send(tcp, &hit, now, Change { kind, sock_id, old, new, since_ns, reason: NO_REASON, side });
    }
    0
}

/// # Safety
/// `sk` is a typed pointer to a `struct sock`, or null.
#[inline(always)]
unsafe fn reset(sk: *const u8, kind: Kind, reason: u32) -> i32 {
    // SAFETY: as promised by the caller.
    unsafe {
        if !sock::is_full(sk) {
            return 0;
        }
        let Some(hit) = sock::owner(sk, INDEX) else { return 0 };
        let tcp = sock::tcp_sock(sk);
        if tcp.is_null() {
            return 0;
        }
        let old = Direct::number(sk, &SK_STATE) as u32;
        let sock_id = sock::cookie(tcp);
        let (_, side) = since(sk as u64, sock_id, old);
        send(tcp, &hit, ring::now(), Change { kind, sock_id, old, new: 0, since_ns: 0, reason, side });
    }
    0
}

/// A reset is sent.
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tcp_state_reset_sent(ctx: BtfTracePointContext) -> i32 {
    let reason = if constant(&SEND_RESET_HAS_REASON) != 0 { ctx.arg::<i32>(2) as u32 } else { NO_REASON };
    // SAFETY: (`struct sock *` or null, `struct sk_buff *`, and where the constant says so the reason).
    unsafe { reset(ctx.arg(0), Kind::RstSent, reason) }
}

/// A reset was accepted; CLOSE follows.
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_state_reset_received(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: (`struct sock *`).
    unsafe { reset(ctx.arg(0), Kind::RstReceived, NO_REASON) }
}

/// A mini-socket takes over: entry of `tcp_time_wait(sk, state, timeout)`.
#[fentry]
pub fn tcp_state_time_wait(ctx: FEntryContext) -> i32 {
    let sk: *const u8 = ctx.arg(0);
    // SAFETY: the first argument is a `struct sock *`.
    unsafe {
        let Some(hit) = sock::owner(sk, INDEX) else { return 0 };
        let tcp = sock::tcp_sock(sk);
        if tcp.is_null() {
            return 0;
        }
        let old = Direct::number(sk, &SK_STATE) as u32;
        // The second argument is FIN_WAIT2 where the mini-socket is to stay in that state for a while.
        let new = ctx.arg::<i32>(1) as u32;
        let sock_id = sock::cookie(tcp);
        let (since_ns, side) = since(sk as u64, sock_id, old);
        let kind = Kind::TimeWait;
        send(tcp, &hit, ring::now(), Change { kind, sock_id, old, new, since_ns, reason: NO_REASON, side });
    }
    0
}
