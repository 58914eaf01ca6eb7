// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `tcp_receive` table: what became of received TCP segments, in each window.

use crate::aggregate;
use crate::table::{
    self, COMMON_COLUMNS, CollectorInfo, Column, Cost, Param, ParamType, Table, WINDOW_COLUMNS,
};

/// Position of the table in the kernel's counters.
pub const INDEX: u32 = 13;

/// Combinations of target, port and outcome in one window; beyond it packets are counted as lost (`map_full`).
pub const MAX_ROWS: u32 = 65_536;

/// Position in the map of options: slots that want rows per port.
pub const OPTION_BY_PORT: u32 = 0;
/// Position in the map of options: not 0 where the hooks that see every packet are attached; a word of its own.
pub const OPTION_FULL: u32 = 1;
/// How many options there are.
pub const OPTIONS: u32 = 2;

/// Words of the parameter `hooks`.
pub const HOOKS: &[&str] = &["auto", "full"];

/// What became of a packet; the `outcome` column has the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// Its socket took it at once.
    Direct = 1,
    /// Its socket was in use, and takes it later.
    Backlog = 2,
    /// It was for a listener.
    Listen = 3,
    /// It was for a handshake.
    NewSynRecv = 4,
    /// It was for a connection that waits for late segments.
    TimeWait = 5,
    /// Nobody listens.
    NoSocket = 6,
    /// It was dropped.
    Dropped = 7,
    /// None of these was seen.
    Unknown = 8,
}

impl Outcome {
    /// The words of the column, in the order of the values, which begin with 1.
    pub const NAMES: &[&str] =
        &["direct", "backlog", "listen", "new_syn_recv", "time_wait", "no_socket", "dropped", "unknown"];
}

aggregate! {
    /// Packets with one outcome in one window.
    pub struct Receive: tag 112, table INDEX, columns after table::AFTER_WINDOW =>
    key ReceiveKey {
        /// An Outcome.
        outcome_raw: u32,
        /// enum skb_drop_reason; 0 where nothing was dropped.
        reason_raw: u32,
        /// Local port, host order; 0 where rows are not by port.
        lport_raw: u32,
        /// 1 where every packet was seen.
        full: u32,
    }
    value ReceiveValue {
        /// Segments on the wire; one packet of the stack may be several.
        Sum segments: u64 => Int64 "segments",
        /// Payload of its segments.
        Sum bytes: u64 => Int64 "B",
    }
    derived {
        /// Local port; null without the parameter byPort.
        lport => Int32 "id" null,
        /// direct (its socket took it at once), backlog (its socket was in use and takes it later), listen (for a listener),
        /// new_syn_recv (for a handshake), time_wait (for a connection that waits for late segments), no_socket (nobody listens),
        /// dropped or unknown. Each packet has one.
        outcome => Dict "",
        /// Why it was dropped, as the kernel calls it without SKB_DROP_REASON_; null for other outcomes.
        drop_reason => Dict "" null,
        /// full (every packet is in one row) or tracepoint (the kernel has no fentry: direct has what a connection took, at once or
        /// later, and only no_socket and dropped are told from it).
        hooks => Dict "",
    }
}

const COLUMNS: [Column; COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + Receive::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, Receive::COLUMNS]);

/// The table.
pub const TABLE: Table = Table {
    name: "tcp_receive",
    collector: "tcpReceive",
    doc: "One row per window, local port and outcome of received TCP packets. weight is the number of packets.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "tcpReceive",
    question: "What became of the TCP packets that the target received: do readers keep up, what was refused, what \
               was dropped and why?",
    doc: "Where the kernel has fentry, every packet that reaches TCP is followed to its one outcome; elsewhere see \
          the column hooks. A packet belongs to the cgroup that made its socket (a handshake's to its listener's); \
          without a socket, to the pod that the network namespace is of.",
    exact: "With hooks full: packets, segments and bytes by outcome; their sum is what the kernel counts as InSegs.",
    bounded: "With hooks tracepoint (no fentry): direct has what a connection took, at once or later; only no_socket \
              and dropped are told from it, and a packet that is taken and then dropped is counted twice.",
    unseen: "Packets that do not reach TCP: dropped by a filter, by IP or by the network card (packetDrops has those \
             of the stack).",
    cost: Cost::Hot,
    tables: &[&TABLE],
    params: &[
        Param { name: "byPort", ty: ParamType::Bool, default: "true", doc: "Rows for each local port." },
        Param {
            name: "hooks",
            ty: ParamType::Choice(HOOKS),
            default: HOOKS[0],
            doc: "auto takes the best hooks of each node (column hooks); with full a node whose kernel does not let every packet be \
                  seen does not run the collector.",
        },
    ],
    events: true,
};
