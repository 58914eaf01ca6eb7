// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! One record per TCP connection, when its end is certain or its session is over.
//!
//! Hooks: tp_btf `inet_sock_set_state`, `tcp_send_reset`, `tcp_receive_reset`, `tcp_destroy_sock` (6.1 to 7.x; only leading
//! arguments are read, which are the same everywhere), `iter/task_file` to adopt what is open, and a program that the agent
//! runs for each connection still open at a session's end. Where the kernel has fentry, `security_sock_graft` says when a
//! process accepts a connection, and which: accept calls it with the socket locked, so not before ESTABLISHED.
//! Cost: two hash lookups per state change of sockets that are nobody's; below 1 us for a target's, 6 changes a connection.
//! Not seen: opening of what was open before; reset sent in answer to data that arrives for a socket that is gone already.
//!
//! The state hook sees SYN_RECV (a passive socket's birth, too early for its cookie) but neither NEW_SYN_RECV nor TIME_WAIT: those are
//! mini-sockets, and the socket itself goes to CLOSE. It runs *before* the state is stored, and, where this side aborts, *before*
//! the reset is sent: then the counters are taken at CLOSE and the record waits for `tcp_destroy_sock`.
//! Invariants: an entry lives until its socket is destroyed, so that nothing adopts a connection that has had its record; a
//! session's bit is taken out of an entry atomically, by the end or by the session's flush, so each gets one record.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_get_current_comm, bpf_get_current_task_btf, bpf_sock_from_file};
use aya_ebpf::macros::{btf_tracepoint, fentry, map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, RawTracePointContext};
use node_agent_common::event::Attribution;
use node_agent_common::sock::state;
use node_agent_common::tcp_connections::{ConnectionEvent, INDEX, MAX_CONNECTIONS, flag, flush, flushed};

use super::processes::{TASK_GROUP_LEADER, TASK_START_BOOTTIME};
use crate::atomic;
use crate::counters::{self, Loss};
use crate::kernel::{self, follow, load};
use crate::ring::{self, Hit};
use crate::sock::{self, Direct, Probe, Read, SK_COOKIE, SK_PROTOCOL, SK_STATE, SOCKET_SK};
use crate::target;

/// Address of a socket to its connection. `header.slots` holds the sessions that wait for the record.
#[map]
static CONNECTIONS: HashMap<u64, ConnectionEvent> =
    HashMap::with_max_entries(MAX_CONNECTIONS, BPF_F_NO_PREALLOC);

/// What a new entry is made from: zeros, never written.
#[map]
static NOTHING: Array<ConnectionEvent> = Array::with_max_entries(1, 0);

/// Connections that found [`CONNECTIONS`] full. From the first on, an unknown connection that changes its state may be one
/// that was counted as lost already: then it gets no record, so that none is accounted for twice.
#[map]
static CONNECTIONS_FULL: Array<u64> = Array::with_max_entries(1, 0);

/// The socket of a hook, typed, and who wants to know of it.
#[derive(Clone, Copy)]
struct Sock {
    tcp: *const u8,
    key: u64,
    /// Sessions that record the cgroup now.
    slots: u64,
    cgroup_id: u64,
}

/// The word of the sessions that wait; changed atomically only.
#[inline(always)]
fn waiting(entry: *mut ConnectionEvent) -> *mut u64 {
    // SAFETY: a place in a map's value, computed only.
    unsafe { &raw mut (*entry).header.slots }
}

#[inline(always)]
fn is_full() -> bool {
    CONNECTIONS_FULL.get(0).is_some_and(|count| *count != 0)
}

/// Enters a connection; what is not known of it is zero. Filled in place, since it would take half of the stack. The
/// sessions come first and the cookie last: an entry that has a cookie and no session is one that nobody waits for any
/// more, and the agent may remove it.
///
/// # Safety
/// `sock.tcp` is a typed `struct tcp_sock`.
#[inline(always)]
unsafe fn enter(
    sock: &Sock,
    flags: u32,
    opened_ns: u64,
    opened_by_current: bool,
) -> Option<*mut ConnectionEvent> {
    let nothing = NOTHING.get(0)?;
    let entered = CONNECTIONS.insert(sock.key, nothing, u64::from(BPF_NOEXIST));
    let Some(entry) = CONNECTIONS.get_ptr_mut(sock.key) else {
        no_room(sock.slots);
        return None;
    };
    if entered.is_err() {
        return Some(entry);
    }
    // SAFETY: a value of the map, of integers only. The socket is typed; the current task is one.
    unsafe {
        atomic::or(waiting(entry), sock.slots);
        (*entry).header.cgroup_id = sock.cgroup_id;
        (*entry).header.netns = sock::netns(sock.tcp);
        (*entry).flags = flags;
        (*entry).opened_ns = opened_ns;
        (*entry).min_rtt_raw = u32::MAX;
        if opened_by_current {
            sign(entry);
        }
        sock::flow(sock.tcp, &raw mut (*entry).flow);
        core::ptr::write_volatile(&raw mut (*entry).flow.sock_id, sock::cookie(sock.tcp));
    }
    Some(entry)
}

/// Writes down the current process as the one that opened or accepted the connection, if it is in the cgroup that made the
/// socket: sockets are handed on, and who gets the row may not trace the other.
///
/// # Safety
/// `entry` is a value of the map.
#[inline(always)]
unsafe fn sign(entry: *mut ConnectionEvent) {
    // SAFETY: as promised; the current task is one.
    unsafe {
        let task = bpf_get_current_task_btf().cast_const().cast::<u8>();
        let cgroup_id = kernel::task_cgroup_id(task);
        if cgroup_id != (*entry).header.cgroup_id {
            return;
        }
        let id = bpf_get_current_pid_tgid();
        (*entry).pid = (id >> 32) as u32;
        (*entry).tid = id as u32;
        bpf_get_current_comm((&raw mut (*entry).comm).cast(), 16);
        (*entry).start_ns = load(follow(task, &TASK_GROUP_LEADER), &TASK_START_BOOTTIME);
    }
}

/// A connection that cannot be followed is a hit, and lost.
#[inline(always)]
fn no_room(slots: u64) {
    if let Some(count) = CONNECTIONS_FULL.get_ptr_mut(0) {
        // SAFETY: a word of the map's value.
        unsafe { atomic::add(count, 1) };
    }
    lose_rows(slots);
}

/// Counts connections as hits that have no row because the map had no room.
#[inline(always)]
fn lose_rows(slots: u64) {
    let Some(set) = counters::limits_in_use() else { return };
    let admitted = counters::admit(slots, INDEX, set);
    counters::lose(admitted, INDEX, Loss::MapFull as u32, set);
}

/// Sends a connection to `slots`, at the time of its end if that is behind it.
///
/// # Safety
/// `entry` may be read: a value of the map, or a copy.
#[inline(always)]
unsafe fn send(entry: *const ConnectionEvent, slots: u64) {
    // SAFETY: as promised; the record is ours.
    unsafe {
        let hit = Hit {
            slots,
            cgroup_id: (*entry).header.cgroup_id,
            netns: (*entry).header.netns,
            attribution: Attribution::Socket,
        };
        let ts_ns = if (*entry).flags & flag::CLOSED != 0 { (*entry).closed_ns } else { ring::now() };
        ring::emit_at::<ConnectionEvent>(&hit, ts_ns, |record| {
            core::ptr::copy_nonoverlapping(entry, record, 1)
        });
    }
}

/// Sends a connection whose end is certain to all that wait for it, once.
#[inline(never)]
fn finish(entry: *mut ConnectionEvent) {
    // SAFETY: a value of the map.
    unsafe {
        if (*entry).flags & flag::SENT != 0 {
            return;
        }
        // The bits first: what finds the flag may trust that nobody else sends for a bit it still sees.
        let slots = atomic::and(waiting(entry), 0);
        (*entry).flags |= flag::SENT;
        if slots != 0 {
            send(entry, slots);
        }
    }
}

/// Takes down what is final at CLOSE.
///
/// # Safety
/// `tcp` is a typed `struct tcp_sock`, `entry` a value of the map.
#[inline(always)]
unsafe fn close(tcp: *const u8, entry: *mut ConnectionEvent, last: u32) {
    // SAFETY: as promised.
    unsafe {
        (*entry).closed_ns = ring::now();
        (*entry).state = last;
        sock::counters::<Direct>(tcp, entry);
        sock::congestion_control(tcp, entry);
        sock::chrono(tcp, entry);
        sock::flow(tcp, &raw mut (*entry).flow);
        (*entry).flags |= flag::CLOSED;
    }
}

/// A socket is about to change its state.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let sk: *const u8 = ctx.arg(0);
    let (old, new) = (ctx.arg::<i32>(1) as u32, ctx.arg::<i32>(2) as u32);
    // SAFETY: (`struct sock *`, old state, new state).
    unsafe {
        if new == state::LISTEN || new == state::CLOSE && (old == state::LISTEN || old == state::CLOSE) {
            return 0;
        }
        if Direct::number(sk, &SK_PROTOCOL) != sock::TCP {
            return 0;
        }
        let cgroup_id = sock::cgroup_id(sk);
        let slots = counters::enabled(target::slots(cgroup_id), INDEX);
        let key = sk as u64;
        // An entry outlives its target: a pod's last connections close after its cgroup is gone.
        let entry = CONNECTIONS.get_ptr_mut(key);
        if slots == 0 && entry.is_none() {
            return 0;
        }
        let tcp = sock::tcp_sock(sk);
        if tcp.is_null() {
            return 0;
        }
        change(&Sock { tcp, key, slots, cgroup_id }, entry, old, new);
    }
    0
}

/// # Safety
/// `sock.tcp` is typed, `entry` a value of the map.
#[inline(always)]
unsafe fn change(sock: &Sock, entry: Option<*mut ConnectionEvent>, old: u32, new: u32) {
    // SAFETY: as promised.
    unsafe {
        if new == state::SYN_SENT {
            if let Some(entry) = entry {
                // The socket was disconnected and is used again, or its destruction was missed.
                finish(entry);
                let _ = CONNECTIONS.remove(sock.key);
            }
            if sock.slots != 0 {
                enter(sock, flag::ACTIVE, ring::now(), true);
            }
            return;
        }
        if new == state::SYN_RECV {
            // When two segments end the same handshake at once, two sockets are born and one vanishes without a further
            // word (the kernel counts both as PassiveOpens). The one that goes on is entered by its next change.
            return;
        }
        // An entry whose destruction was missed has the address of another socket now, perhaps another tenant's. One without
        // a cookie is this socket's, being adopted at this moment.
        let entry = match entry {
            Some(stale) if (*stale).flow.sock_id != 0 && (*stale).flow.sock_id != sock::cookie(sock.tcp) => {
                finish(stale);
                let _ = CONNECTIONS.remove(sock.key);
                if sock.slots == 0 {
                    return;
                }
                None
            }
            entry => entry,
        };
        let entry = match entry {
            Some(entry) => entry,
            None => {
                let born = old == state::SYN_RECV;
                if !born && is_full() {
                    return;
                }
                // Otherwise neither opened while somebody looked nor held by a process when its session began.
                let (flags, opened_ns) = if born { (flag::PASSIVE, ring::now()) } else { (since(old), 0) };
                match enter(sock, flags, opened_ns, false) {
                    Some(entry) => entry,
                    None => return,
                }
            }
        };
        if sock.slots != 0 && (*entry).flags & flag::SENT == 0 {
            // A session may have begun, or the target have joined one, since the entry was made.
            atomic::or(waiting(entry), sock.slots);
        }
        (*entry).state = new;
        match new {
            state::ESTABLISHED => {
                (*entry).established_ns = ring::now();
                // A reset that answered a stray segment before was not this connection's end.
                (*entry).flags = (*entry).flags & !flag::RST_SENT | flag::ESTABLISHED;
                sock::flow(sock.tcp, &raw mut (*entry).flow);
            }
            state::FIN_WAIT1 | state::LAST_ACK => (*entry).flags |= flag::FIN_SENT,
            state::CLOSE => {
                close(sock.tcp, entry, old);
                let certain = (*entry).error != 0
                    || (*entry).flags & (flag::RST_RECEIVED | flag::RST_SENT) != 0
                    || old == state::LAST_ACK
                    || old == state::CLOSING
                    || old == state::SYN_SENT;
                if certain {
                    finish(entry);
                }
            }
            _ => {}
        }
    }
}

/// What is known of a connection by the state it is found in.
#[inline(always)]
fn since(found: u32) -> u32 {
    match found {
        state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING | state::LAST_ACK => {
            flag::ESTABLISHED | flag::FIN_SENT
        }
        state::SYN_SENT | state::SYN_RECV => 0,
        _ => flag::ESTABLISHED,
    }
}

#[inline(always)]
fn mark(sk: u64, bit: u32) {
    if let Some(entry) = CONNECTIONS.get_ptr_mut(sk) {
        // SAFETY: a value of the map; the socket is locked, so nobody else changes its flags.
        unsafe { (*entry).flags |= bit };
    }
}

/// A reset is sent. The socket is used as a key only: it may be null, a listener or a mini-socket.
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tcp_send_reset(ctx: BtfTracePointContext) -> i32 {
    mark(ctx.arg::<*const u8>(0) as u64, flag::RST_SENT);
    0
}

/// A reset was accepted; CLOSE follows.
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_receive_reset(ctx: BtfTracePointContext) -> i32 {
    mark(ctx.arg::<*const u8>(0) as u64, flag::RST_RECEIVED);
    0
}

/// A process accepts a connection: entry of `security_sock_graft(sk, socket)`.
#[fentry]
pub fn tcp_accept(ctx: FEntryContext) -> i32 {
    let sk: *const u8 = ctx.arg(0);
    let Some(entry) = CONNECTIONS.get_ptr_mut(sk as u64) else { return 0 };
    // SAFETY: a `struct sock *`, which the caller has locked; the entry is the map's.
    unsafe {
        let tcp = sock::tcp_sock(sk);
        if !tcp.is_null() && (*entry).flow.sock_id == sock::cookie(tcp) && (*entry).flags & flag::SENT == 0 {
            (*entry).accepted_ns = ring::now();
            sign(entry);
        }
    }
    0
}

/// A socket ceases to exist.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    let sk: *const u8 = ctx.arg(0);
    let Some(entry) = CONNECTIONS.get_ptr_mut(sk as u64) else { return 0 };
    // SAFETY: a `struct sock *`; the entry is the map's.
    unsafe {
        if (*entry).flags & flag::CLOSED == 0 {
            // The change to CLOSE was missed: another one was being handled on this CPU. Or an earlier socket's destruction
            // was, and this one only has its address.
            let tcp = sock::tcp_sock(sk);
            if !tcp.is_null() && (*entry).flow.sock_id == sock::cookie(tcp) {
                close(tcp, entry, (*entry).state);
            }
        }
        finish(entry);
    }
    let _ = CONNECTIONS.remove(sk as u64);
    0
}

/// Adopts the sockets that processes hold; the context is (meta, task, fd, file).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub unsafe extern "C" fn tcp_adopt(ctx: *mut u64) -> i32 {
    // SAFETY: the fourth word of the iterator's context is a `struct file *`, or null at the end.
    unsafe {
        let file = *ctx.add(3) as *const u8;
        if file.is_null() {
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
        let found = Direct::number(sk, &SK_STATE) as u32;
        if found == state::CLOSE || found == state::LISTEN || Direct::number(sk, &SK_PROTOCOL) != sock::TCP {
            return 0;
        }
        let cgroup_id = sock::cgroup_id(sk);
        let slots = counters::enabled(target::slots(cgroup_id), INDEX);
        if slots == 0 {
            return 0;
        }
        let tcp = sock::tcp_sock(sk);
        if tcp.is_null() {
            return 0;
        }
        // While the iterator holds the file, the socket is not destroyed: an entry found or made here is this socket's.
        let sock = Sock { tcp, key: sk as u64, slots, cgroup_id };
        if let Some(entry) = CONNECTIONS.get_ptr_mut(sock.key) {
            if (*entry).flags & flag::SENT == 0 {
                atomic::or(waiting(entry), slots);
            }
        } else if let Some(entry) = enter(&sock, since(found), 0, false)
            && (*entry).state == 0
        {
            (*entry).state = found;
        }
    }
    0
}

/// Sends one open connection at a session's end. Never attached: the agent runs it for each entry of the map, with
/// `FlushArgs` as the arguments, after it has taken the session's targets away and all programs that saw them have ended.
#[raw_tracepoint]
pub fn tcp_flush(ctx: RawTracePointContext) -> i32 {
    let (key, sock_id, session) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u64>(2));
    let mode = ctx.arg::<u64>(3);
    let Some(entry) = CONNECTIONS.get_ptr_mut(key) else { return flushed::DONE as i32 };
    // SAFETY: the entry is the map's; the socket is read by probes only, and believed if its cookie is still the entry's.
    unsafe {
        if core::ptr::read_volatile(waiting(entry)) & session == 0 {
            return flushed::DONE as i32;
        }
        // Sent already, and the session came to wait for it at that very moment.
        if mode == flush::GIVE_UP || (*entry).flags & flag::SENT != 0 {
            let before = atomic::and(waiting(entry), !session);
            lose_rows(before & session);
            return flushed::DONE as i32;
        }
        if mode == flush::WAIT_FOR_ROOM && !ring::has_room() {
            return flushed::RING_FULL as i32;
        }
        let mut copy: ConnectionEvent = core::ptr::read(entry);
        let sk = key as *const u8;
        if copy.flags & flag::CLOSED == 0 {
            sock::counters::<Probe>(sk, &raw mut copy);
            sock::congestion_control(sk, &raw mut copy);
            sock::chrono(sk, &raw mut copy);
            copy.state = Probe::number(sk, &SK_STATE) as u32;
        }
        // Both may be reused at any moment; cookies never are. If both still carry it here, the copy is of this connection.
        if Probe::number(sk, &SK_COOKIE) != sock_id
            || core::ptr::read_volatile(&raw const (*entry).flow.sock_id) != sock_id
        {
            return flushed::AGAIN as i32;
        }
        let before = atomic::and(waiting(entry), !session);
        if core::ptr::read_volatile(&raw const (*entry).flow.sock_id) != sock_id {
            // Reused between the two: give another connection its session back.
            atomic::or(waiting(entry), before & session);
            return flushed::AGAIN as i32;
        }
        if before & session != 0 {
            send(&raw const copy, before & session);
        }
    }
    flushed::DONE as i32
}
