// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What targets' TCP sockets send again: a record per packet, or sums by connection.
//!
//! Hooks: tp_btf `tcp_retransmit_skb` (6.1 to 7.x; since 6.17 with the result, also of what failed), `tcp_retransmit_synack`.
//! The kernel counts RetransSegs in segments, of which one packet may be several: so does `segments`.
//! Cost: one hash lookup for sockets that are nobody's. Retransmissions are rare where the network is well.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::BtfTracePointContext;
use node_agent_common::fields;
use node_agent_common::sock::{Flow, state};
use node_agent_common::tcp_retransmits::{
    INDEX, Kind, MAX_ROWS, TcpRetransmitEvent, TcpRetransmitSums, TcpRetransmitSumsKey,
    TcpRetransmitSumsValue,
};

use crate::aggregate::{self, Sums};
use crate::atomic;
use crate::kernel::{address, constant};
use crate::ring::{self, Hit};
use crate::skb::{SKB_CB, SKB_LEN, TCP_CB_FLAGS, TCP_CB_SEGS, TCP_CB_SEQ};
use crate::sock::{
    self, Direct, ICSK_CA_STATE, ICSK_PENDING, ICSK_RTO, Probe, Read, SK_STATE, TCP_PACKETS_OUT,
    TCP_SND_CWND, TCP_SRTT_US, TCP_TOTAL_RETRANS,
};

/// Not 0 where `tcp_retransmit_skb` says whether it was sent.
#[unsafe(no_mangle)]
static RETRANSMIT_HAS_ERR: u64 = 0;
/// `TCP_CA_Recovery` and `TCP_CA_Loss` of enum `tcp_ca_state`.
#[unsafe(no_mangle)]
static CA_RECOVERY: u64 = fields::MISSING;
#[unsafe(no_mangle)]
static CA_LOSS: u64 = fields::MISSING;

/// `ICSK_TIME_LOSS_PROBE` of include/net/inet_connection_sock.h: a macro, and so not in the BTF.
const TIME_LOSS_PROBE: u64 = 5;
/// The bit of SYN among the flags of a segment: the protocol's.
const FLAG_SYN: u64 = 2;

/// What is added up, for sessions that want no row per packet.
#[map]
static TCP_RETRANSMIT_SUMS: HashMap<TcpRetransmitSumsKey, TcpRetransmitSumsValue> =
    HashMap::with_max_entries(MAX_ROWS, BPF_F_NO_PREALLOC);
#[map]
static TCP_RETRANSMIT_SUMS_ZEROS: Array<TcpRetransmitSumsValue> = Array::with_max_entries(1, 0);

const SUMS: Sums<TcpRetransmitSums> =
    Sums { entries: &TCP_RETRANSMIT_SUMS, zeros: &TCP_RETRANSMIT_SUMS_ZEROS };

/// What was sent again.
#[derive(Clone, Copy)]
struct Again {
    kind: Kind,
    err: i32,
    segments: u64,
    bytes: u64,
}

/// Adds it up for the sessions that want sums; returns the hit of those that want each packet.
#[inline(always)]
fn add_up(hit: &Hit, again: Again, flow: impl FnOnce(*mut Flow)) -> Option<Hit> {
    let (sums, each) = hit.split(INDEX);
    if let Some(hit) = sums {
        aggregate::add(
            &SUMS,
            &hit,
            |key: *mut TcpRetransmitSumsKey| {
                // SAFETY: the key is ours.
                unsafe {
                    flow(addr_of_mut!((*key).flow));
                    (*key).what = again.kind as u32;
                    (*key).err = again.err;
                }
            },
            |value: *mut TcpRetransmitSumsValue| {
                // SAFETY: words of the map's value.
                unsafe {
                    atomic::add(addr_of_mut!((*value).segments), again.segments);
                    atomic::add(addr_of_mut!((*value).bytes), again.bytes);
                }
            },
        );
    }
    each
}

/// Why the socket sends again now.
///
/// # Safety
/// `tcp` is a typed `struct tcp_sock`.
#[inline(always)]
unsafe fn kind(tcp: *const u8, flags: u64) -> Kind {
    // SAFETY: members of the type.
    unsafe {
        let congestion = Direct::number(tcp, &ICSK_CA_STATE);
        if flags & FLAG_SYN != 0 {
            Kind::Syn
        } else if congestion == constant(&CA_LOSS) {
            Kind::Rto
        } else if congestion == constant(&CA_RECOVERY) {
            // The probe's timer may still be set: it is the usual one while nothing is lost.
            Kind::Fast
        } else if Direct::number(tcp, &ICSK_PENDING) == TIME_LOSS_PROBE {
            Kind::Tlp
        } else {
            Kind::Other
        }
    }
}

/// A packet was sent again.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tcp_retransmit_skb(ctx: BtfTracePointContext) -> i32 {
    let (sk, skb): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    let err = if constant(&RETRANSMIT_HAS_ERR) != 0 { ctx.arg::<i32>(2) } else { 0 };
    // SAFETY: (`struct sock *`, `struct sk_buff *`, and where the constant says so the result).
    unsafe {
        let Some(hit) = sock::owner(sk, INDEX) else { return 0 };
        let tcp = sock::tcp_sock(sk);
        if tcp.is_null() {
            return 0;
        }
        let control = address(skb, &SKB_CB);
        let again = Again {
            kind: kind(tcp, Probe::number(control, &TCP_CB_FLAGS)),
            err,
            segments: Probe::number(control, &TCP_CB_SEGS),
            bytes: Direct::number(skb, &SKB_LEN),
        };
        let flow = |to: *mut Flow| {
            sock::flow(tcp, to);
            (*to).sock_id = sock::cookie(tcp);
        };
        let Some(hit) = add_up(&hit, again, flow) else { return 0 };
        ring::emit::<TcpRetransmitEvent>(&hit, |record| {
            flow(addr_of_mut!((*record).flow));
            (*record).what = again.kind as u32;
            (*record).state_raw = Direct::number(tcp, &SK_STATE) as u32;
            (*record).segments = again.segments as u32;
            (*record).bytes = again.bytes as u32;
            (*record).seq = Probe::number(control, &TCP_CB_SEQ) as u32;
            (*record).err = err;
            (*record).srtt_raw = Direct::number(tcp, &TCP_SRTT_US) as u32;
            (*record).rto_ticks = Direct::number(tcp, &ICSK_RTO) as u32;
            (*record).snd_cwnd = Direct::number(tcp, &TCP_SND_CWND) as u32;
            (*record).packets_out = Direct::number(tcp, &TCP_PACKETS_OUT) as u32;
            (*record).total_retrans = Direct::number(tcp, &TCP_TOTAL_RETRANS) as u32;
            (*record).reserved = 0;
        });
    }
    0
}

/// A listener answers a SYN again.
#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub fn tcp_retransmit_synack(ctx: BtfTracePointContext) -> i32 {
    let (sk, request): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    // SAFETY: (the listener, a `struct sock *`; `struct request_sock *`).
    unsafe {
        let Some(hit) = sock::owner(sk, INDEX) else { return 0 };
        let again = Again { kind: Kind::SynAck, err: 0, segments: 1, bytes: 0 };
        let Some(hit) = add_up(&hit, again, |to| sock::request_flow(request, to)) else { return 0 };
        ring::emit::<TcpRetransmitEvent>(&hit, |record| {
            sock::request_flow(request, addr_of_mut!((*record).flow));
            (*record).what = Kind::SynAck as u32;
            (*record).state_raw = state::NEW_SYN_RECV;
            (*record).segments = 1;
            (*record).bytes = 0;
            (*record).seq = 0;
            (*record).err = 0;
            (*record).srtt_raw = 0;
            (*record).rto_ticks = 0;
            (*record).snd_cwnd = 0;
            (*record).packets_out = 0;
            (*record).total_retrans = 0;
            (*record).reserved = 0;
        });
    }
    0
}
