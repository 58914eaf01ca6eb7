// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `tcp_retransmits` table: one row per retransmission of a TCP socket.

use crate::event;
use crate::sock::Flow;
use crate::table::{self, COMMON_COLUMNS, CollectorInfo, Column, FLOW_COLUMNS, Param, ParamType, Table};

/// Position of the table in the kernel's counters.
pub const INDEX: u32 = 3;

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
    pub struct TcpRetransmitEvent: tag 52, table INDEX, columns after table::AFTER_FLOW => {
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
        /// Sequence number of the first byte.
        seq: u32 => Int64 "id",
        /// 0 when it was sent, else the error of handing it to IP. Kernels before 6.17 tell of those that were sent only.
        err: i32 => Int32 "errno",
        /// tcp_sock.srtt_us: eighths of a microsecond.
        srtt_raw: u32,
        /// Retransmission timeout in the kernel's ticks.
        rto_ticks: u32,
        /// Congestion window at that moment.
        snd_cwnd: u32 => Int64 "segments",
        /// Segments that are in flight or lost.
        packets_out: u32 => Int64 "segments",
        /// Segments that this connection has retransmitted so far, these included.
        total_retrans: u32 => Int64 "segments",
        /// Zero.
        reserved: u32,
    }
    derived {
        /// rto (the timer ran out), fast (acknowledgements told of a loss), tlp (a probe for a lost tail), syn, synack, or other
        /// (as after the path's MTU became smaller).
        kind => Dict "",
        /// State of the socket, as the kernel calls it without TCP_.
        state => Dict "",
        /// Last smoothed round trip; null when none was measured.
        srtt_us => Int64 "us" null,
        /// Retransmission timeout at that moment; null for synack.
        rto_ms => Int64 "ms" null,
    }
}

const COLUMNS: [Column; COMMON_COLUMNS.len() + FLOW_COLUMNS.len() + TcpRetransmitEvent::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &FLOW_COLUMNS, TcpRetransmitEvent::COLUMNS]);

/// The table.
pub const TABLE: Table = Table {
    name: "tcp_retransmits",
    collector: "tcpRetransmits",
    doc: "One row per packet that TCP sent again; segments says how many it was on the wire.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "tcpRetransmits",
    doc: "Which connections of the target sent segments again, why, and how their path looked at that moment. Exact: kernel \
          tracepoints; the sum of segments is what the kernel counts as RetransSegs. A row belongs to the cgroup that made the \
          socket, for synack the listener. Not seen: segments that the network card sends again by itself.",
    tables: &[&TABLE],
    params: &[
        Param {
            name: "kinds",
            ty: ParamType::Words(Kind::NAMES),
            default: "",
            doc: "Only rows of these kinds.",
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
