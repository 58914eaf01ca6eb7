// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Packets that the kernel drops, added up by target, reason, place and protocol.
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
    INDEX, LOCATION, MAX_LOCATIONS, MAX_ROWS, PacketDrops, PacketDropsKey, PacketDropsValue,
};

use crate::aggregate::{self, Sums};
use crate::kernel::{constant, follow};
use crate::ring::Hit;
use crate::skb::{self, SKB_LEN, SKB_SK};
use crate::sock::{self, Direct, Read, SK_NET, SK_STATE};
use crate::{atomic, netns};

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
        let (hit, state) = if sock::is_full(rx) {
            (sock::owner(rx, INDEX), tcp_state(rx))
        } else if sock::is_full(from) && (net.is_null() || follow(from, &SK_NET) == net) {
            (sock::owner(from, INDEX), tcp_state(from))
        } else if net.is_null() {
            (None, 0)
        } else {
            (netns::owner(net, INDEX), 0)
        };
        if let Some(hit) = hit {
            count(packet, &hit, Drop { location, reason, state, ethertype });
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
}

/// # Safety
/// `packet` is a typed `struct sk_buff`.
#[inline(always)]
unsafe fn count(packet: *const u8, hit: &Hit, drop: Drop) {
    // SAFETY: as promised.
    unsafe {
        if DROP_LOCATIONS.get_ptr(drop.location).is_none() {
            name(drop.location);
        }
        let (ip_proto, segments) = (skb::ip_proto(packet, drop.ethertype), skb::segments(packet));
        let bytes = Direct::number(packet, &SKB_LEN);
        aggregate::add(
            &SUMS,
            hit,
            |key: *mut PacketDropsKey| {
                (*key).location_raw = drop.location;
                (*key).reason_raw = drop.reason;
                (*key).state_raw = drop.state;
                (*key).ethertype_raw = drop.ethertype;
                (*key).ip_proto_raw = u32::from(ip_proto);
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
