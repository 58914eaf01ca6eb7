// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `tcp_throughput` table: payload of each TCP connection in each window.

use crate::aggregate;
use crate::sock::Flow;
use crate::table::{
    self, COMMON_COLUMNS, CollectorInfo, Column, Cost, OPTIONAL_FLOW_COLUMNS, PROCESS_COLUMNS, Param,
    ParamType, Table, WINDOW_COLUMNS,
};

/// Position of the table in the kernel's counters.
pub const INDEX: u32 = 8;

/// Connections that can be followed at the same time; beyond it a connection is not seen before it ends, and then counted as
/// lost (`map_full`).
pub const MAX_CONNECTIONS: u32 = 131_072;
/// Connections that can have payload in one window.
pub const MAX_ROWS: u32 = 65_536;

/// Words for what a row is about.
pub const BY: &[&str] = &["flow", "port", "pod"];

/// What the agent has made of rows about connections.
pub mod grouped {
    /// Nothing: the row is about one.
    pub const NOT: u32 = 0;
    /// The sum of those of a port or a cgroup.
    pub const ASKED_FOR: u32 = 1;
    /// The sum of those beyond topN.
    pub const OTHERS: u32 = 2;
}

aggregate! {
    /// Payload of one connection in one window.
    pub struct Throughput: tag 92, table INDEX, columns after table::AFTER_WINDOW_PROCESS_FLOW =>
    key ThroughputKey {
        /// Both ends.
        flow: Flow,
        /// When the process began, nanoseconds since boot; 0 where it is not known.
        start_ns: u64,
        /// Thread group.
        pid: u32,
        /// What the row is about; the kernel makes rows of connections only: see [`grouped`].
        grouped: u32,
        /// Name of the process's first thread.
        comm: [u8; 16],
    }
    value ThroughputValue {
        /// Payload received in order.
        Sum rx_bytes: u64 => Int64 "B",
        /// Payload handed to IP, retransmissions included.
        Sum tx_bytes: u64 => Int64 "B",
        /// Payload that the peer acknowledged.
        Sum acked_bytes: u64 => Int64 "B",
        /// Payload sent again.
        Sum retrans_bytes: u64 => Int64 "B",
    }
    derived {
        /// Payload received per second, over the whole window.
        rx_bps => Float64 "bit/s",
        /// Payload sent per second, over the whole window.
        tx_bps => Float64 "bit/s",
        /// Place among the window's rows of the target's node, by payload in both directions, from 1; null for others.
        rank => Int32 "id" null,
        /// Whether the row is the sum of all beyond topN; its process and flow columns are null.
        others => Bool "",
    }
}

const COLUMNS: [Column;
    COMMON_COLUMNS.len()
        + WINDOW_COLUMNS.len()
        + PROCESS_COLUMNS.len()
        + OPTIONAL_FLOW_COLUMNS.len()
        + Throughput::COLUMNS.len()] = table::concat(&[
    &COMMON_COLUMNS,
    &WINDOW_COLUMNS,
    &PROCESS_COLUMNS,
    &OPTIONAL_FLOW_COLUMNS,
    Throughput::COLUMNS,
]);

/// The table.
pub const TABLE: Table = Table {
    name: "tcp_throughput",
    collector: "tcpThroughput",
    doc: "One row per window and TCP connection with payload in it (or per port or container: see the parameter by), the topN \
          busiest of each target's node; one more row sums up the others of each cgroup.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "tcpThroughput",
    question: "How much payload do the target's TCP connections carry, over time?",
    doc: "No hook in the path of data: the kernel counts for each socket, whoever sends and by whatever call \
          (sendfile, splice and io_uring among them), and the collector takes the difference at the end of each \
          window and of the connection. The process is the one with the lowest id that holds the socket at a \
          window's end, else the one that connected or closed it.",
    exact: "Bytes received, sent, acknowledged and sent again, of every connection, in sum over its windows.",
    bounded: "topN connections per window have a row of their own, the others share one per cgroup. What a \
              connection carries while no process holds it (not accepted yet, or closed and still sending) is in its \
              row when it ends, and in none where the session ends first.",
    unseen: "Headers, and what is not TCP. Connections of TCP Fast Open that are closed before their handshake ends.",
    cost: Cost::Moderate,
    tables: &[&TABLE],
    params: &[
        Param {
            name: "ports",
            ty: ParamType::Ports { max: 64 },
            default: "",
            doc: "Only connections whose local or remote port is among these, such as 443,8000-8080.",
        },
        Param {
            name: "topN",
            ty: ParamType::Integer { min: 1, max: 10_000 },
            default: "50",
            doc: "Connections (or ports, or containers: see by) per window that have a row of their own.",
        },
        Param {
            name: "by",
            ty: ParamType::Choice(BY),
            default: "flow",
            doc: "What a row is about: flow (a connection), port (all connections of a container with one port, which is the lower \
                  of the connection's two, as a server's is: lport or rport says which side has it, the other columns of process \
                  and flow are null) or pod (all connections of a container: those columns are null).",
        },
    ],
    events: false,
};
