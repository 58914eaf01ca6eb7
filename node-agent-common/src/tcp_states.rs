// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `tcp_states` table: changes of TCP sockets' states and resets, each by itself or counted by window.

use crate::sock::{Flow, state};
use crate::table::{
    self, COMMON_COLUMNS, CollectorInfo, Column, Cost, OPTIONAL_FLOW_COLUMNS, Param, ParamType, Table,
    WINDOW_COLUMNS,
};
use crate::{aggregate, event};

/// Position of the table in the kernel's counters.
pub const INDEX: u32 = 2;

/// Sockets whose time in their state is known at the same time; beyond it `in_state_ns` is null.
pub const MAX_SOCKETS: u32 = 131_072;
/// Combinations of target, port and change in one window, where they are counted; beyond it they are lost (`map_full`).
pub const MAX_ROWS: u32 = 16_384;

/// Words of the parameter `mode`.
pub const MODES: &[&str] = &["event", "aggregate"];

/// [`TcpStateEvent::reset_reason_raw`] where the kernel tells none.
pub const NO_REASON: u32 = u32::MAX;

/// What happened; the `kind` column has the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The socket changed its state.
    Transition = 1,
    /// It sent a reset.
    RstSent = 2,
    /// It accepted a reset.
    RstReceived = 3,
    /// A mini-socket took over, to wait for late segments.
    TimeWait = 4,
}

impl Kind {
    /// The words of the column, in the order of the values, which begin with 1.
    pub const NAMES: &[&str] = &["transition", "rst_sent", "rst_received", "time_wait"];
}

event! {
    /// A change of state, or a reset.
    pub struct TcpStateEvent: tag 48, table INDEX, columns after table::AFTER_WINDOW_FLOW => {
        /// Both ends.
        flow: Flow,
        /// When the socket entered the state it leaves; 0 where that is not known.
        since_ns: u64,
        /// A Kind.
        what: u32,
        /// State before, or now.
        old: u32,
        /// State after.
        new: u32,
        /// Why a reset was sent: enum sk_rst_reason.
        reset_reason_raw: u32,
        /// The socket's error (sk_err) at that moment, 0 for none; null for a row per window.
        error: i32 => Int32 "errno" null,
        /// Zero.
        reserved: u32,
    }
    derived {
        /// transition (the socket changed its state), rst_sent, rst_received (an accepted one) or time_wait (a mini-socket took
        /// over the connection to wait for late segments; the socket itself goes to CLOSE).
        kind => Dict "",
        /// State before, as the kernel calls it without TCP_; for resets the state they found.
        old_state => Dict "" null,
        /// State after; null for resets.
        new_state => Dict "" null,
        /// How long the socket was in old_state; null where its beginning was not seen, for resets and for a row per window.
        in_state_ns => Int64 "ns" null,
        /// Why the reset was sent, as the kernel calls it without SK_RST_REASON_; null before kernel 6.10 and for other kinds.
        reset_reason => Dict "" null,
    }
}

aggregate! {
    /// Changes of one kind in one window.
    pub struct TcpStateCounts: tag 49, table INDEX =>
    key TcpStateCountsKey {
        /// A Kind.
        what: u32,
        /// State before, or now.
        old: u32,
        /// State after.
        new: u32,
        /// Why resets were sent: enum sk_rst_reason.
        reset_reason_raw: u32,
        /// Local port, host order, if it is the one that counts; else 0.
        lport: u16,
        /// Remote port, host order, if it is the one that counts; else 0.
        rport: u16,
        /// Zero.
        reserved: u32,
    }
    value TcpStateCountsValue {}
}

const COLUMNS: [Column;
    COMMON_COLUMNS.len() + WINDOW_COLUMNS.len() + OPTIONAL_FLOW_COLUMNS.len() + TcpStateEvent::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &WINDOW_COLUMNS, &OPTIONAL_FLOW_COLUMNS, TcpStateEvent::COLUMNS]);

/// The table.
pub const TABLE: Table = Table {
    name: "tcp_states",
    collector: "tcpStates",
    doc: "One row per change of a TCP socket's state, and per reset that a socket sent or accepted; with mode aggregate one row \
          per window, port and change, whose weight says how many there were.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "tcpStates",
    question: "Which states did the target's TCP sockets go through, how long did they stay in each, and which \
               resets did they send and accept?",
    doc: "Tracepoints; about six rows for each end of a connection, or counts with mode aggregate. A row belongs to \
          the cgroup that made the socket (an accepted one to its listener's), never to the process that the change \
          happened to run in. In the change from LISTEN to SYN_RECV the new socket has neither peer nor sock_id yet: \
          they are 0.",
    exact: "Every change of state of a socket, every reset that a socket sent or accepted.",
    bounded: "TIME_WAIT is a state of mini-sockets: it has a row of kind time_wait where the kernel has fentry \
              (coverage: hooks). reset_reason is null before kernel 6.10. in_state_ns is known for 131,072 sockets \
              at a time.",
    unseen: "NEW_SYN_RECV, a state of mini-sockets. Resets that no socket sends, as to a port where nobody listens.",
    cost: Cost::Moderate,
    tables: &[&TABLE],
    params: &[
        Param {
            name: "mode",
            ty: ParamType::Choice(MODES),
            default: MODES[0],
            doc: "event: a row for each. aggregate: counts per window, by kind, states and the server's port (lport of what the target \
                  accepted, rport of what it opened; the lower one where the session saw no beginning), with no other column of the \
                  flow; ports then goes by that port.",
        },
        Param {
            name: "kinds",
            ty: ParamType::Words(Kind::NAMES),
            default: "",
            doc: "Only rows of these kinds.",
        },
        Param {
            name: "states",
            ty: ParamType::Words(state::WORDS),
            default: "",
            doc: "Only rows in which one of these is the state before or after.",
        },
        Param {
            name: "ports",
            ty: ParamType::Ports { max: 64 },
            default: "",
            doc: "Only sockets whose local or remote port is among these, such as 443,8000-8080.",
        },
    ],
    events: true,
};
