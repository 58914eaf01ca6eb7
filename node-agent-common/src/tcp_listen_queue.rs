// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `tcp_listen_queue` table: how full each listener's queues are, and what did not fit, in each window.

use crate::aggregate::Histogram;
use crate::table::{
    self, COMMON_COLUMNS, CollectorInfo, Column, Cost, PROCESS_COLUMNS, Param, ParamType, Table,
    WINDOW_COLUMNS,
};
use crate::{aggregate, fields};

/// Position of the table in the kernel's counters.
pub const INDEX: u32 = 7;

/// Listeners that can be followed at the same time; beyond it a listener is counted as lost (`map_full`) in each window.
pub const MAX_LISTENERS: u32 = 16_384;

/// Position in the map of options: slots that want a histogram of the queue's length.
pub const OPTION_HISTOGRAM: u32 = 0;
/// How many options there are.
pub const OPTIONS: u32 = 1;

aggregate! {
    /// One listener in one window.
    pub struct ListenQueue: tag 88, table INDEX, columns after table::AFTER_WINDOW_PROCESS =>
    key ListenQueueKey {
        /// Socket cookie, as in tcp_connections.
        sock_id: u64 => Int64 "id",
        /// When the process began, nanoseconds since boot; 0 where it is not known.
        start_ns: u64,
        /// Thread group.
        pid: u32,
        /// Local port, host order.
        lport: u16 => Int32 "id",
        /// Address family of the socket.
        family: u16,
        /// Name of the process's first thread.
        comm: [u8; 16],
        /// Local address; IPv4 in the first four bytes.
        laddr_raw: [u8; 16],
    }
    value ListenQueueValue {
        /// Connections that wait to be accepted, at the window's end.
        Last accept_len: u64 => Int64 "connections",
        /// The smaller of listen's backlog and net.core.somaxconn. While more than so many wait, what comes is dropped: one more
        /// than this may wait.
        Last accept_max: u64 => Int64 "connections",
        /// Handshakes that wait for the client's last segment, at the window's end.
        Last syn_len: u64 => Int64 "requests",
        /// Those of them whose SYN-ACK was not sent again yet.
        Last syn_young: u64 => Int64 "requests",
        /// What the listener dropped in the window for whatever reason: SYNs and last segments of handshakes.
        Sum drops: u64 => Int64 "segments",
        /// Those of them that were dropped because the queue of connections was full; null where the kernel has no fentry.
        Sum overflows: u64 => Int64 "segments" null,
        /// How many connections waited to be accepted, looked at by each SYN and each last segment of a handshake; null without
        /// the parameter histogram, and where the kernel has no fentry.
        Sum accept_hist: Histogram => Histogram "connections" null,
    }
    derived {
        /// Local address.
        laddr => Ip "id",
    }
}

fields! {
    /// What the hooks read of a listener.
    pub LISTEN_FIELDS, declare_listen_fields {
        SK_ACK_BACKLOG: "sock", "sk_ack_backlog";
        SK_MAX_ACK_BACKLOG: "sock", "sk_max_ack_backlog";
        SK_DROPS: "sock", "sk_drops.counter";
        ICSK_QUEUE_LEN: "tcp_sock", "inet_conn.icsk_accept_queue.qlen.counter";
        ICSK_QUEUE_YOUNG: "tcp_sock", "inet_conn.icsk_accept_queue.young.counter";
    }
}

const COLUMNS: [Column;
    COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + PROCESS_COLUMNS.len() + ListenQueue::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, &PROCESS_COLUMNS, ListenQueue::COLUMNS]);

/// The table.
pub const TABLE: Table = Table {
    name: "tcp_listen_queue",
    collector: "tcpListenQueue",
    doc: "One row per TCP listener and window: how full its queues were at the window's end, and what it dropped in it.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "tcpListenQueue",
    question: "Do the target's TCP listeners keep up with what connects to them?",
    doc: "Listeners are looked at once per window; drops are the kernel's own count. The process is the one with the \
          lowest id that holds the socket.",
    exact: "Drops from the session's beginning to the listener's end; with fentry also overflows, and the histogram \
            of the parameter of that name.",
    bounded: "Lengths are those of one moment per window. overflows and accept_hist are null where the kernel has no \
              fentry. 16,384 listeners at a time.",
    unseen: "Listeners that no process holds, and the queues of MPTCP's own listeners.",
    cost: Cost::Moderate,
    tables: &[&TABLE],
    params: &[
        Param {
            name: "ports",
            ty: ParamType::Ports { max: 64 },
            default: "",
            doc: "Only listeners on these ports, such as 443,8000-8080.",
        },
        Param {
            name: "histogram",
            ty: ParamType::Bool,
            default: "false",
            doc: "Also a histogram of the queue's length as arriving segments find it, in accept_hist.",
        },
    ],
    events: false,
};
