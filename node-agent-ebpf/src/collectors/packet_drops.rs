// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Packets that the kernel drops, added up by target, reason, place and protocol, or each by itself.
//!
//! Hook: tp_btf `kfree_skb` (skb, location, reason[, rx_sk since 6.11]), which is for drops; what was consumed has another.
//! The socket that a packet carries is the sender's until the receiver's was looked up, also in another pod's namespace
//! behind a veth: so it counts only if it is of the namespace that the packet is in.
//! Places are addresses, which a least-privileged agent cannot name: the kernel does, once for each.
//! Cost: two hash lookups for a drop that is nobody's; some 250 ns for a target's.
//! Not seen: who a packet is for that is dropped before any lookup in the node's own namespace.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::bpf_snprintf;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use aya_ebpf::programs::BtfTracePointContext;
use node_agent_common::packet_drops::{
    INDEX, LOCATION, MAX_LOCATIONS, MAX_ROWS, PacketDropEvent, PacketDrops, PacketDropsKey, PacketDropsValue,
};

use crate::aggregate::{self, Sums};
use crate::kernel::{constant, follow};
use crate::ring::{self, Hit};
use crate::skb::{self, SKB_IIF, SKB_LEN, SKB_SK};
use crate::sock::{self, Direct, Read, SK_COOKIE, SK_NET, SK_STATE};
use crate::{atomic, counters, netns};

/// Not 0 where `kfree_skb` names the socket that the packet was for.
#[unsafe(no_mangle)]
static DROP_HAS_RX_SK: u64 = 0;

/// What is added up.
#[map]
static PACKET_DROPS: HashMap<PacketDropsKey, PacketDropsValue> =
    HashMap::with_max_entries(MAX_ROWS, BPF_F_NO_PREALLOC);
#[map]
static PACKET_DROPS_ZEROS: Array<PacketDropsValue> = Array::with_max_entries(1, 0);

const SUMS: Sums<PacketDrops> = Sums { entries: &PACKET_DROPS, zeros: &PACKET_DROPS_ZEROS };

/// Names of places.
#[map]
static DROP_LOCATIONS: LruHashMap<u64, [u8; LOCATION]> = LruHashMap::with_max_entries(MAX_LOCATIONS, 0);

/// How the kernel writes the name of a function.
#[unsafe(no_mangle)]
static DROP_FORMAT: [u8; 4] = *b"%ps\0";

/// A packet is dropped.
#[btf_tracepoint(function = "kfree_skb")]
pub fn packet_drop(ctx: BtfTracePointContext) -> i32 {
    let (packet, location, reason): (*const u8, u64, u32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    // SAFETY: (`struct sk_buff *`, code address, reason, and where the constant says so `struct sock *` or null).
    unsafe {
        let ethertype = skb::ethertype(packet);
        if ethertype != skb::IPV4 && ethertype != skb::IPV6 && ethertype != skb::ARP {
            return 0;
        }
        let rx: *const u8 = if constant(&DROP_HAS_RX_SK) != 0 { ctx.arg(3) } else { core::ptr::null() };
        let (net, from) = (skb::net(packet), follow(packet, &SKB_SK));
        // A packet of somebody's socket is not of the namespace's pod, whoever that somebody is.
        let none = core::ptr::null();
        let (hit, sk) = if sock::is_full(rx) {
            (sock::owner(rx, INDEX), rx)
        } else if sock::is_full(from) && (net.is_null() || follow(from, &SK_NET) == net) {
            (sock::owner(from, INDEX), from)
        } else if net.is_null() {
            (None, none)
        } else {
            (netns::owner(net, INDEX), none)
        };
        let Some(hit) = hit else {
            if sk.is_null() {
                counters::unattributed(INDEX);
            }
            return 0;
        };
        let state = if sk.is_null() { 0 } else { tcp_state(sk) };
        let ip_proto = u32::from(skb::ip_proto(packet, ethertype));
        let drop = Drop { location, reason, state, ethertype, ip_proto };
        if DROP_LOCATIONS.get_ptr(location).is_none() {
            name(location);
        }
        let (sums, each) = hit.split(INDEX);
        if let Some(hit) = sums {
            count(packet, &hit, drop);
        }
        if let Some(hit) = each {
            let sock_id = if sk.is_null() { 0 } else { Direct::number(sk, &SK_COOKIE) };
            // What came through a device knows by which one; an answer of no socket yet, as a SYN-ACK, is sent all the same.
            let inbound = Direct::number(packet, &SKB_IIF) != 0 || from.is_null();
            send(packet, &hit, drop, sock_id, inbound);
        }
    }
    0
}

/// State of a TCP socket; 0 of others.
///
/// # Safety
/// `sk` is a typed pointer to a full socket.
#[inline(always)]
unsafe fn tcp_state(sk: *const u8) -> u32 {
    // SAFETY: members of the type.
    unsafe { if sock::is_tcp(sk) { Direct::number(sk, &SK_STATE) as u32 } else { 0 } }
}

#[derive(Clone, Copy)]
struct Drop {
    location: u64,
    reason: u32,
    state: u32,
    ethertype: u32,
    ip_proto: u32,
}

/// # Safety
/// `packet` is a typed `struct sk_buff`.
#[inline(always)]
unsafe fn send(packet: *const u8, hit: &Hit, drop: Drop, sock_id: u64, inbound: bool) {
    ring::emit::<PacketDropEvent>(hit, |record| {
        // SAFETY: the record is ours, the packet as promised.
        unsafe {
            let flow = addr_of_mut!((*record).flow);
            skb::flow(packet, drop.ethertype, drop.ip_proto as u8, inbound, flow);
            (*flow).sock_id = sock_id;
            (*record).location_raw = drop.location;
            (*record).reason_raw = drop.reason;
            (*record).state_raw = drop.state;
            (*record).ethertype_raw = drop.ethertype;
            (*record).ip_proto_raw = drop.ip_proto;
            (*record).segments = skb::segments(packet) as u32;
            (*record).bytes = Direct::number(packet, &SKB_LEN) as u32;
            (*record).location_name =
                DROP_LOCATIONS.get_ptr(drop.location).map_or([0; LOCATION], |name| *name);
        }
    });
}

/// # Safety
/// `packet` is a typed `struct sk_buff`.
#[inline(always)]
unsafe fn count(packet: *const u8, hit: &Hit, drop: Drop) {
    // SAFETY: as promised.
    unsafe {
        let (segments, bytes) = (skb::segments(packet), Direct::number(packet, &SKB_LEN));
        aggregate::add(
            &SUMS,
            hit,
            |key: *mut PacketDropsKey| {
                (*key).location_raw = drop.location;
                (*key).reason_raw = drop.reason;
                (*key).state_raw = drop.state;
                (*key).ethertype_raw = drop.ethertype;
                (*key).ip_proto_raw = drop.ip_proto;
            },
            |value: *mut PacketDropsValue| {
                atomic::add(addr_of_mut!((*value).segments), segments);
                atomic::add(addr_of_mut!((*value).bytes), bytes);
            },
        );
    }
}

/// Has the kernel name a place.
#[inline(never)]
fn name(location: u64) {
    let mut text = [0u8; LOCATION];
    // SAFETY: the buffers are as long as said, the format is a constant of the object.
    unsafe {
        bpf_snprintf(
            text.as_mut_ptr().cast(),
            LOCATION as u32,
            DROP_FORMAT.as_ptr().cast(),
            (&raw const location).cast_mut().cast(),
            8,
        );
    }
    let _ = DROP_LOCATIONS.insert(location, text, 0);
}
