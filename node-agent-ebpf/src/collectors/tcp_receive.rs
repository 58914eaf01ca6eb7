// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What becomes of received TCP packets, added up by target, port and outcome.
//!
//! Hooks where the kernel has fentry: entry and exit of `tcp_v4_rcv` and `tcp_v6_rcv` (every packet), in between the entries of
//! `tcp_v4_do_rcv`, `tcp_v6_do_rcv`, `tcp_timewait_state_process`, `tcp_check_req` and the exit of `tcp_add_backlog`, each of which
//! says where the packet in hand went. A packet is in hand of one CPU from entry to exit, in a softirq, which nothing of its kind
//! interrupts. tp_btf `kfree_skb` says what was dropped.
//! Elsewhere: tp_btf `tcp_probe` (what an established connection takes) and `kfree_skb`.
//! Cost: some 80 ns for each packet of the node, 250 ns for a target's.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::{btf_tracepoint, fentry, fexit, map};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, FExitContext};
use node_agent_common::event::Attribution;
use node_agent_common::fields;
use node_agent_common::sock::state;
use node_agent_common::tcp_receive::{
    INDEX, MAX_ROWS, OPTION_BY_PORT, OPTION_FULL, OPTIONS, Outcome, Receive, ReceiveKey, ReceiveValue,
};

use crate::aggregate::{self, Sums};
use crate::kernel::{constant, follow};
use crate::ring::Hit;
use crate::skb::{self, SKB_DATA, SKB_HEAD, SKB_LEN, SKB_TRANSPORT};
use crate::sock::{self, Direct, Read, SK_STATE};
use crate::{atomic, counters, netns};

/// `SKB_DROP_REASON_NO_SOCKET` of enum `skb_drop_reason`.
#[unsafe(no_mangle)]
static REASON_NO_SOCKET: u64 = fields::MISSING;
/// Not 0 where `kfree_skb` names the socket that the packet was for.
#[unsafe(no_mangle)]
static RECEIVE_HAS_RX_SK: u64 = 0;

/// The packet in hand of this CPU.
#[repr(C)]
#[derive(Clone, Copy)]
struct InHand {
    /// Its address; 0 for none.
    skb: u64,
    /// Whose it is: no session where it is nobody's.
    slots: u64,
    cgroup_id: u64,
    netns: u64,
    segments: u64,
    bytes: u64,
    attribution: u32,
    outcome: u32,
    reason: u32,
    lport: u32,
}

#[map]
static IN_HAND: PerCpuArray<InHand> = PerCpuArray::with_max_entries(1, 0);

/// What is added up.
#[map]
static RECEIVE: HashMap<ReceiveKey, ReceiveValue> = HashMap::with_max_entries(MAX_ROWS, BPF_F_NO_PREALLOC);
#[map]
static RECEIVE_ZEROS: Array<ReceiveValue> = Array::with_max_entries(1, 0);

const SUMS: Sums<Receive> = Sums { entries: &RECEIVE, zeros: &RECEIVE_ZEROS };

/// [`OPTION_BY_PORT`] and [`OPTION_FULL`].
#[map]
static RECEIVE_OPTIONS: Array<u64> = Array::with_max_entries(OPTIONS, 0);

#[inline(always)]
fn option(which: u32) -> u64 {
    RECEIVE_OPTIONS.get(which).copied().unwrap_or(0)
}

/// The packet in hand, if it is this one.
#[inline(always)]
fn in_hand(skb: *const u8) -> Option<*mut InHand> {
    let packet = IN_HAND.get_ptr_mut(0)?;
    // SAFETY: the map's value, of this CPU.
    if unsafe { (*packet).skb } == skb as u64 { Some(packet) } else { None }
}

/// Gives the packet to a socket's cgroup.
///
/// # Safety
/// `packet` is the map's value, `sk` a typed pointer to a full socket.
#[inline(always)]
unsafe fn give(packet: *mut InHand, sk: *const u8, outcome: Outcome) {
    // SAFETY: as promised.
    unsafe {
        (*packet).outcome = outcome as u32;
        match sock::owner(sk, INDEX) {
            Some(hit) => {
                (*packet).slots = hit.slots;
                (*packet).cgroup_id = hit.cgroup_id;
                (*packet).netns = hit.netns;
                (*packet).attribution = Attribution::Socket as u32;
            }
            // Somebody's, but nobody's who asked.
            None => {
                (*packet).slots = 0;
                (*packet).attribution = Attribution::Socket as u32;
            }
        }
    }
}

/// Bytes of payload and the local port, by the header at `header`.
#[inline(always)]
unsafe fn header(packet: *const u8, header: *const u8, to: *mut InHand) {
    // SAFETY: the packet's own bytes are read by probes: reading what is not there gives zeros.
    unsafe {
        // Port of the destination at byte 2, length of the header in words in the upper half of byte 12.
        let ports = sock::peek(header);
        let offset = sock::peek(header.wrapping_add(12)) & 0xff;
        (*to).lport = u32::from(u16::from_be((ports >> 16) as u16));
        let length = Direct::number(packet, &SKB_LEN);
        let own = (offset >> 4) * 4;
        (*to).bytes = length.saturating_sub(own);
        (*to).segments = skb::segments(packet);
    }
}

/// A packet reaches TCP: its header is where its data begin.
///
/// # Safety
/// `skb` is a typed `struct sk_buff`.
#[inline(always)]
unsafe fn begin(skb: *const u8) -> i32 {
    let Some(packet) = IN_HAND.get_ptr_mut(0) else { return 0 };
    // SAFETY: members of the type; the map's value.
    unsafe {
        (*packet).skb = skb as u64;
        (*packet).outcome = Outcome::Unknown as u32;
        (*packet).reason = 0;
        (*packet).slots = 0;
        (*packet).attribution = 0;
        let net = skb::net(skb);
        if !net.is_null()
            && let Some(hit) = netns::owner(net, INDEX)
        {
            (*packet).slots = hit.slots;
            (*packet).cgroup_id = hit.cgroup_id;
            (*packet).netns = hit.netns;
            (*packet).attribution = Attribution::Netns as u32;
        }
        // At once, for whomever: a packet that is put behind others in a backlog may be gone when it is known whose it is.
        header(skb, follow(skb, &SKB_DATA), packet);
    }
    0
}

/// Adds the packet for the sessions that want rows by port, or for the others.
#[inline(always)]
fn add(packet: &InHand, slots: u64, by_port: bool, full: u32) {
    if slots == 0 {
        return;
    }
    let attribution = if packet.attribution == Attribution::Netns as u32 {
        Attribution::Netns
    } else {
        Attribution::Socket
    };
    let hit = Hit { slots, cgroup_id: packet.cgroup_id, netns: packet.netns, attribution };
    aggregate::add(
        &SUMS,
        &hit,
        |key: *mut ReceiveKey| {
            // SAFETY: the key is ours.
            unsafe {
                (*key).outcome_raw = packet.outcome;
                (*key).reason_raw = packet.reason;
                (*key).lport_raw = if by_port { packet.lport } else { 0 };
                (*key).full = full;
            }
        },
        |value: *mut ReceiveValue| {
            // SAFETY: words of the map's value.
            unsafe {
                atomic::add(addr_of_mut!((*value).segments), packet.segments);
                atomic::add(addr_of_mut!((*value).bytes), packet.bytes);
            }
        },
    );
}

/// Adds the packet for everybody who wants it.
#[inline(always)]
fn add_all(packet: &InHand, full: u32) {
    let by_port = option(OPTION_BY_PORT);
    add(packet, packet.slots & by_port, true, full);
    add(packet, packet.slots & !by_port, false, full);
}

/// TCP is through with the packet in hand.
#[inline(always)]
fn end() -> i32 {
    let Some(packet) = IN_HAND.get_ptr_mut(0) else { return 0 };
    // SAFETY: the map's value, of this CPU.
    unsafe {
        if (*packet).skb != 0 && (*packet).slots != 0 {
            add_all(&*packet, 1);
        } else if (*packet).skb != 0 && (*packet).attribution == 0 {
            counters::unattributed(INDEX);
        }
        (*packet).skb = 0;
    }
    0
}

/// Entry of `tcp_v4_rcv(skb)`.
#[fentry]
pub fn receive_v4(ctx: FEntryContext) -> i32 {
    // SAFETY: the argument is a `struct sk_buff *`.
    unsafe { begin(ctx.arg(0)) }
}

/// Exit of `tcp_v4_rcv`.
#[fexit]
pub fn received_v4(_ctx: FExitContext) -> i32 {
    end()
}

/// Entry of `tcp_v6_rcv(skb)`.
#[fentry]
pub fn receive_v6(ctx: FEntryContext) -> i32 {
    // SAFETY: as above.
    unsafe { begin(ctx.arg(0)) }
}

/// Exit of `tcp_v6_rcv`.
#[fexit]
pub fn received_v6(_ctx: FExitContext) -> i32 {
    end()
}

/// A socket takes the packet: (socket, packet). It also runs for packets of the backlog, which are in nobody's hand.
///
/// # Safety
/// `sk` is a typed pointer to a full socket.
#[inline(always)]
unsafe fn take(sk: *const u8, skb: *const u8) -> i32 {
    let Some(packet) = in_hand(skb) else { return 0 };
    // SAFETY: members of the type.
    unsafe {
        let listens = Direct::number(sk, &SK_STATE) as u32 == state::LISTEN;
        give(packet, sk, if listens { Outcome::Listen } else { Outcome::Direct });
    }
    0
}

/// Entry of `tcp_v4_do_rcv(sk, skb)`.
#[fentry]
pub fn receive_do_v4(ctx: FEntryContext) -> i32 {
    // SAFETY: the function's arguments.
    unsafe { take(ctx.arg(0), ctx.arg(1)) }
}

/// Entry of `tcp_v6_do_rcv(sk, skb)`.
#[fentry]
pub fn receive_do_v6(ctx: FEntryContext) -> i32 {
    // SAFETY: as above.
    unsafe { take(ctx.arg(0), ctx.arg(1)) }
}

/// Exit of `tcp_add_backlog(sk, skb[, reason])`: returns whether the packet had to be dropped.
#[fexit]
pub fn receive_backlog(ctx: FExitContext) -> i32 {
    let Some(packet) = in_hand(ctx.arg::<*const u8>(1)) else { return 0 };
    let Ok(refused) = ctx.ret::<u64>() else { return 0 };
    // SAFETY: the first argument is a full socket.
    unsafe {
        let reason = (*packet).reason;
        give(packet, ctx.arg(0), if refused & 0xff == 0 { Outcome::Backlog } else { Outcome::Dropped });
        (*packet).reason = reason;
    }
    0
}

/// Entry of `tcp_timewait_state_process(tw, skb, ..)`: a mini-socket, of which only the namespace is known.
#[fentry]
pub fn receive_time_wait(ctx: FEntryContext) -> i32 {
    if let Some(packet) = in_hand(ctx.arg::<*const u8>(1)) {
        // SAFETY: the map's value.
        unsafe { (*packet).outcome = Outcome::TimeWait as u32 };
    }
    0
}

/// Entry of `tcp_check_req(sk, skb, req, ..)`: the socket is the listener.
#[fentry]
pub fn receive_request(ctx: FEntryContext) -> i32 {
    if let Some(packet) = in_hand(ctx.arg::<*const u8>(1)) {
        // SAFETY: the function's first argument is a full socket.
        unsafe { give(packet, ctx.arg(0), Outcome::NewSynRecv) };
    }
    0
}

/// A packet is dropped: (packet, place, reason[, socket]).
#[btf_tracepoint(function = "kfree_skb")]
pub fn receive_drop(ctx: BtfTracePointContext) -> i32 {
    let (skb, reason): (*const u8, u32) = (ctx.arg(0), ctx.arg(2));
    let refused = u64::from(reason) == constant(&REASON_NO_SOCKET);
    let outcome = if refused { Outcome::NoSocket } else { Outcome::Dropped } as u32;
    let reason = if refused { 0 } else { reason };
    if option(OPTION_FULL) != 0 {
        if let Some(packet) = in_hand(skb) {
            // SAFETY: the map's value.
            unsafe {
                // What a mini-socket has seen to is given back by the same call.
                if (*packet).outcome != Outcome::TimeWait as u32 {
                    (*packet).outcome = outcome;
                    (*packet).reason = reason;
                }
            }
        }
        return 0;
    }
    // SAFETY: (`struct sk_buff *`, .., and where the constant says so `struct sock *` or null).
    unsafe {
        let rx: *const u8 = if constant(&RECEIVE_HAS_RX_SK) != 0 { ctx.arg(3) } else { core::ptr::null() };
        let net = skb::net(skb);
        let hit = if sock::is_full(rx) && sock::is_tcp(rx) {
            sock::owner(rx, INDEX)
        } else if refused && !net.is_null() && u64::from(skb::ip_proto(skb, skb::ethertype(skb))) == sock::TCP
        {
            let hit = netns::owner(net, INDEX);
            if hit.is_none() {
                counters::unattributed(INDEX);
            }
            hit
        } else {
            None
        };
        if let Some(hit) = hit {
            alone(skb, &hit, outcome, reason);
        }
    }
    0
}

/// An established connection takes a packet: (socket, packet), only where not every packet is seen.
#[btf_tracepoint(function = "tcp_probe")]
pub fn receive_probe(ctx: BtfTracePointContext) -> i32 {
    if option(OPTION_FULL) != 0 {
        return 0;
    }
    // SAFETY: (`struct sock *`, `struct sk_buff *`).
    unsafe {
        if let Some(hit) = sock::owner(ctx.arg(0), INDEX) {
            alone(ctx.arg(1), &hit, Outcome::Direct as u32, 0);
        }
    }
    0
}

/// Adds a packet that is in nobody's hand.
///
/// # Safety
/// `skb` is a typed `struct sk_buff` whose transport header is known.
#[inline(always)]
unsafe fn alone(skb: *const u8, hit: &Hit, outcome: u32, reason: u32) {
    let mut packet = InHand {
        skb: 0,
        slots: hit.slots,
        cgroup_id: hit.cgroup_id,
        netns: hit.netns,
        segments: 0,
        bytes: 0,
        attribution: hit.attribution as u32,
        outcome,
        reason,
        lport: 0,
    };
    // SAFETY: members of the type.
    unsafe {
        let at = Direct::number(skb, &SKB_TRANSPORT) as usize;
        header(skb, follow(skb, &SKB_HEAD).wrapping_add(at), addr_of_mut!(packet));
    }
    add_all(&packet, 0);
}
