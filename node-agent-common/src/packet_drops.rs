// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `packet_drops` table: packets that the kernel dropped, by reason and place, in each window.

use crate::aggregate;
use crate::table::{self, COMMON_COLUMNS, CollectorInfo, Column, Param, ParamType, Table, WINDOW_COLUMNS};

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
    pub struct PacketDrops: tag 80, table INDEX, columns after table::AFTER_WINDOW =>
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

const COLUMNS: [Column; COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + PacketDrops::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, PacketDrops::COLUMNS]);

/// The table.
pub const TABLE: Table = Table {
    name: "packet_drops",
    collector: "packetDrops",
    doc: "One row per window and kind of drop: reason, place, protocol. weight is the number of packets.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "packetDrops",
    doc: "Which packets of the target the kernel dropped, why and where. Exact for IP and ARP: every drop with a reason is \
          counted in the kernel. A drop belongs to the socket that the packet was for or from; without one, to the pod that the \
          network namespace is of (attribution netns; not for pods in the node's own namespace). Drops that belong to neither \
          have no row. Not seen: what the network card or an XDP program drops.",
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
    ],
    events: true,
};
