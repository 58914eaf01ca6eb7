// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `tcp_retransmits` table: what TCP sockets sent again, each packet by itself or added up by connection and window.

use crate::sock::Flow;
use crate::table::{
    self, COMMON_COLUMNS, CollectorInfo, Column, Cost, FLOW_COLUMNS, Param, ParamType, Table, WINDOW_COLUMNS,
};
use crate::{aggregate, event};

/// Position of the table in the kernel's counters.
pub const INDEX: u32 = 3;

/// Connections and kinds in one window, where they are added up; beyond it they are counted as lost (`map_full`).
pub const MAX_ROWS: u32 = 32_768;

/// Why a segment was sent again; the `kind` column has the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The retransmission timer ran out.
    Rto = 1,
    /// Acknowledgements told of a loss.
    Fast = 2,
    /// A probe for a lost tail.
    Tlp = 3,
    /// A SYN was not answered.
    Syn = 4,
    /// A SYN-ACK was not answered.
    SynAck = 5,
    /// None of these, as after a smaller path MTU.
    Other = 6,
}

impl Kind {
    /// The words of the column, in the order of the values, which begin with 1.
    pub const NAMES: &[&str] = &["rto", "fast", "tlp", "syn", "synack", "other"];
}

event! {
    /// Segments were sent again.
    pub struct TcpRetransmitEvent: tag 52, table INDEX, columns after table::AFTER_WINDOW_FLOW => {
        /// Both ends.
        flow: Flow,
        /// A Kind.
        what: u32,
        /// State of the socket.
        state_raw: u32,
        /// Segments on the wire; one packet of the stack may be several.
        segments: u32 => Int64 "segments",
        /// Payload sent again.
        bytes: u32 => Int64 "B",
        /// Sequence number of the first byte; null for a row per window, as all that is about one moment.
        seq: u32 => Int64 "id" null,
        /// 0 when it was sent, else the error of handing it to IP. Kernels before 6.17 tell of those that were sent only.
        err: i32 => Int32 "errno",
        /// tcp_sock.srtt_us: eighths of a microsecond.
        srtt_raw: u32,
        /// Retransmission timeout in the kernel's ticks.
        rto_ticks: u32,
        /// Congestion window at that moment.
        snd_cwnd: u32 => Int64 "segments" null,
        /// Segments that are in flight or lost.
        packets_out: u32 => Int64 "segments" null,
        /// Segments that this connection has retransmitted so far, these included.
        total_retrans: u32 => Int64 "segments" null,
        /// Zero.
        reserved: u32,
    }
    derived {
        /// rto (the timer ran out), fast (acknowledgements told of a loss), tlp (a probe for a lost tail), syn, synack, or other
        /// (as after the path's MTU became smaller).
        kind => Dict "",
        /// State of the socket, as the kernel calls it without TCP_; null for a row per window.
        state => Dict "" null,
        /// Last smoothed round trip; null when none was measured.
        srtt_us => Int64 "us" null,
        /// Retransmission timeout at that moment; null for synack.
        rto_ms => Int64 "ms" null,
    }
}

aggregate! {
    /// What a connection sent again in one window.
    pub struct TcpRetransmitSums: tag 53, table INDEX =>
    key TcpRetransmitSumsKey {
        /// Both ends.
        flow: Flow,
        /// A Kind.
        what: u32,
        /// 0 for what was sent, else the error of handing it to IP.
        err: i32,
    }
    value TcpRetransmitSumsValue {
        /// Segments on the wire.
        Sum segments: u64,
        /// Payload sent again.
        Sum bytes: u64,
    }
}

const COLUMNS: [Column;
    COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + FLOW_COLUMNS.len() + TcpRetransmitEvent::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, &FLOW_COLUMNS, TcpRetransmitEvent::COLUMNS]);

/// The table.
pub const TABLE: Table = Table {
    name: "tcp_retransmits",
    collector: "tcpRetransmits",
    doc: "One row per packet that TCP sent again; segments says how many it was on the wire. With perFlowAggregate one row per \
          window, connection, kind and err, whose weight is the number of packets.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "tcpRetransmits",
    question: "Which connections of the target sent segments again, why, and how did their path look at that moment?",
    doc: "Tracepoints of retransmission. A row belongs to the cgroup that made the socket, for synack the listener. \
          One packet of the stack may be several segments on the wire: sum segments, not rows.",
    exact: "Packets and segments: the sum of segments with err 0 is what the kernel counts as RetransSegs, less those that IP could \
            not send.",
    bounded: "kind is told by the state of congestion control at that moment. Kernels before 6.17 do not tell of \
              retransmissions that could not be sent.",
    unseen: "Segments that the network card sends again by itself.",
    cost: Cost::Rare,
    tables: &[&TABLE],
    params: &[
        Param {
            name: "kinds",
            ty: ParamType::Words(Kind::NAMES),
            default: "",
            doc: "Only rows of these kinds.",
        },
        Param {
            name: "perFlowAggregate",
            ty: ParamType::Bool,
            default: "false",
            doc: "Sums per connection and window instead of a row per packet, for networks that lose much.",
        },
        Param {
            name: "ports",
            ty: ParamType::Ports { max: 64 },
            default: "",
            doc: "Only connections whose local or remote port is among these, such as 443,8000-8080.",
        },
    ],
    events: true,
};
