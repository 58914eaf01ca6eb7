// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `packet_drops` table: packets that the kernel dropped, by reason and place in each window, or each by itself.

use crate::sock::Flow;
use crate::table::{
    self, COMMON_COLUMNS, CollectorInfo, Column, Cost, OPTIONAL_FLOW_COLUMNS, Param, ParamType, Table,
    WINDOW_COLUMNS,
};
use crate::{aggregate, event};

/// Position of the table in the kernel's counters.
pub const INDEX: u32 = 6;

/// Combinations of target, reason, place and protocol in one window; beyond it drops are counted as lost (`map_full`).
pub const MAX_ROWS: u32 = 16_384;
/// Places in the kernel's code whose names are known at the same time.
pub const MAX_LOCATIONS: u32 = 512;
/// Bytes of a place's name, including the NUL.
pub const LOCATION: usize = 64;

/// What a drop means; the `class` column has the word.
pub const CLASSES: &[&str] = &["loss", "refused", "policy", "teardown", "unknown"];

/// Words for protocols of the link layer, and their numbers.
pub const ETHERTYPES: &[&str] = &["IP", "IPv6", "ARP"];
/// See [`ETHERTYPES`].
pub const ETHERTYPE_NUMBERS: [u32; 3] = [0x0800, 0x86dd, 0x0806];

aggregate! {
    /// Drops of one kind in one window.
    pub struct PacketDrops: tag 80, table INDEX, columns after table::AFTER_WINDOW_FLOW =>
    key PacketDropsKey {
        /// Address in the kernel's code.
        location_raw: u64,
        /// enum skb_drop_reason, the subsystem in bits 31 to 16.
        reason_raw: u32,
        /// State of the socket, 0 for none.
        state_raw: u32,
        /// Protocol of the link layer.
        ethertype_raw: u32,
        /// Protocol above IP, 0 where it is not IP.
        ip_proto_raw: u32,
    }
    value PacketDropsValue {
        /// Segments on the wire; one packet of the stack may be several.
        Sum segments: u64 => Int64 "segments",
        /// Bytes of the packets as the stack held them.
        Sum bytes: u64 => Int64 "B",
    }
    derived {
        /// Why, as the kernel calls it without SKB_DROP_REASON_.
        reason => Dict "",
        /// loss (it was wanted, and there was no room or it was damaged), refused (nobody listens), policy (a filter said so),
        /// teardown (left over from a connection that ended) or unknown.
        class => Dict "",
        /// Function of the kernel that dropped it; null where it has no name.
        location => Dict "" null,
        /// Protocol of the link layer: 2048 for IPv4, 34525 for IPv6, 2054 for ARP.
        ethertype => Int32 "id",
        /// Protocol above IP: 6 for TCP, 17 for UDP, 1 for ICMP; null where it is not IP.
        ip_proto => Int32 "id" null,
        /// State of the TCP socket that it was for or from, as the kernel calls it without TCP_; null without one.
        sk_state => Dict "" null,
    }
}

event! {
    /// One dropped packet.
    pub struct PacketDropEvent: tag 81, table INDEX => {
        /// Both ends; of the family 0 where the packet has none.
        flow: Flow,
        /// Address in the kernel's code.
        location_raw: u64,
        /// enum skb_drop_reason, the subsystem in bits 31 to 16.
        reason_raw: u32,
        /// State of the socket, 0 for none.
        state_raw: u32,
        /// Protocol of the link layer.
        ethertype_raw: u32,
        /// Protocol above IP, 0 where it is not IP.
        ip_proto_raw: u32,
        /// Segments on the wire.
        segments: u32,
        /// Bytes of the packet as the stack held it.
        bytes: u32,
        /// Name of the place: there may have been no window yet to learn it in.
        location_name: [u8; LOCATION],
    }
}

const COLUMNS: [Column;
    COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + OPTIONAL_FLOW_COLUMNS.len() + PacketDrops::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, &OPTIONAL_FLOW_COLUMNS, PacketDrops::COLUMNS]);

/// The table.
pub const TABLE: Table = Table {
    name: "packet_drops",
    collector: "packetDrops",
    doc: "One row per window and kind of drop: reason, place, protocol. weight is the number of packets. With the parameter events \
          one row per packet, with both its ends.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "packetDrops",
    question: "Which packets of the target did the kernel drop, why and where?",
    doc: "The tracepoint of drops. A drop belongs to the socket that the packet was for or from; without one, to the \
          pod that the network namespace is of (attribution netns; not for pods in the node's own namespace). Drops \
          that belong to neither have no row.",
    exact: "IPv4, IPv6 and ARP: every drop with a reason, by the kernel's own name of it.",
    bounded: "On kernels before 6.11 drops of packets that a socket had taken (backlog, receive buffer) may lack their socket. \
              With events, ports are those of TCP and UDP, of IPv6 without extension headers, and sock_id is null where neither \
              another collector nor ss has asked for the socket's cookie before.",
    unseen: "What the network card or an XDP program drops. Packets without a socket of pods with hostNetwork or \
             hostPID.",
    cost: Cost::Moderate,
    tables: &[&TABLE],
    params: &[
        Param {
            name: "classes",
            ty: ParamType::Words(CLASSES),
            default: "",
            doc: "Only drops of these classes.",
        },
        Param {
            name: "ethertypes",
            ty: ParamType::Words(ETHERTYPES),
            default: "",
            doc: "Only packets of these protocols of the link layer.",
        },
        Param {
            name: "events",
            ty: ParamType::Bool,
            default: "false",
            doc: "Each packet by itself, instead of sums. Can be many in an attack: combine it with maxEventsPerSecond.",
        },
    ],
    events: true,
};
