// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The `tcp_connections` table: one row per TCP connection, written when it ends or when the session does.
//!
//! The kernel keeps one [`ConnectionEvent`] per socket in a map and sends it as the row. It copies the kernel's own
//! numbers; what has to be computed from them (payload without SYN and FIN, why the connection ended) is computed here,
//! in user space, where it can be tested against every combination.

use crate::event;
use crate::sock::{Flow, chrono, state};
use crate::table::{
    self, COMMON_COLUMNS, CollectorInfo, Column, Cost, FLOW_COLUMNS, PROCESS_COLUMNS, Param, ParamType, Table,
};

/// Position of the table in the kernel's counters.
pub const INDEX: u32 = 1;

/// Sockets that can be followed at the same time; beyond it a new connection is counted as lost (`map_full`). Entries
/// take memory (about 300 B) only while their socket lives; the table itself takes 16 B per possible entry.
pub const MAX_CONNECTIONS: u32 = 131_072;

/// Bits of [`ConnectionEvent::flags`].
pub mod flag {
    /// The connection was opened here, by connect.
    pub const ACTIVE: u32 = 1;
    /// The connection was opened by the peer.
    pub const PASSIVE: u32 = 1 << 1;
    /// A FIN was queued: its number is among those acknowledged once everything is.
    pub const FIN_SENT: u32 = 1 << 2;
    /// The peer's FIN was received in order: it is counted among the bytes received.
    pub const FIN_RECEIVED: u32 = 1 << 3;
    /// The peer's reset was accepted.
    pub const RST_RECEIVED: u32 = 1 << 4;
    /// A reset was sent.
    pub const RST_SENT: u32 = 1 << 5;
    /// The socket reached CLOSE: the numbers are final.
    pub const CLOSED: u32 = 1 << 6;
    /// The handshake is over, also where nobody saw when.
    pub const ESTABLISHED: u32 = 1 << 7;
    /// The row was sent: what is left of the entry only keeps the socket from being adopted again.
    pub const SENT: u32 = 1 << 8;
}

/// Arguments of the program that writes one open connection at a session's end, in this order; the agent runs it for each.
#[derive(Clone, Copy, Debug)]
pub struct FlushArgs {
    /// Key of the connection in the map: the socket's address.
    pub key: u64,
    /// The socket's cookie, by which the program tells that neither entry nor socket was reused meanwhile.
    pub sock_id: u64,
    /// The session's slot, as a mask.
    pub slots: u64,
    /// One of [`flush`].
    pub mode: u64,
}

/// How that program is run.
pub mod flush {
    /// The row is written; a full ring loses it.
    pub const WRITE: u64 = 0;
    /// A full ring is an answer, and nothing is lost.
    pub const WAIT_FOR_ROOM: u64 = 1;
    /// No row: the connection is counted as lost for the session, whatever became of the socket.
    pub const GIVE_UP: u64 = 2;
}

/// Answers of that program.
pub mod flushed {
    /// Nothing is left to do for this entry.
    pub const DONE: u32 = 0;
    /// The entry changed while it was read: look at it again.
    pub const AGAIN: u32 = 1;
    /// The ring has no room: wait until it was drained.
    pub const RING_FULL: u32 = 2;
}

event! {
    /// A connection, as far as it is known; the value of the kernel's map and the record in the ring.
    pub struct ConnectionEvent: tag 32, table INDEX, columns after table::AFTER_PROCESS_FLOW => {
        /// Both ends.
        flow: Flow,
        /// When the opening or accepting process began; 0 where it is not known.
        start_ns: u64,
        /// When the SYN was sent or, for a passive connection, when the handshake ended: before that there is no socket.
        /// Nanoseconds since boot; null when the session began later.
        opened_ns: u64 => Int64 "ns" null,
        /// When the connection was established, nanoseconds since boot; null when it never was or the session began later.
        established_ns: u64 => Int64 "ns" null,
        /// When the socket reached CLOSE, nanoseconds since boot; null for open_at_stop. On the side that closes first
        /// TIME_WAIT comes after it and is not part of the connection.
        closed_ns: u64 => Int64 "ns" null,
        /// When a process accepted the connection; 0 where nobody saw it.
        accepted_ns: u64,
        /// tcp_sock.bytes_acked: with SYN and FIN.
        acked_raw: u64,
        /// tcp_sock.bytes_received: with FIN.
        received_raw: u64,
        /// Payload handed to IP, retransmissions included.
        bytes_sent: u64 => Int64 "B",
        /// Payload retransmitted.
        bytes_retrans: u64 => Int64 "B",
        /// Opening or accepting process; 0 where it is not known or not of the session.
        pid: u32,
        /// Its thread.
        tid: u32,
        /// Bits of `flag`.
        flags: u32,
        /// Segments received.
        segs_in: u32 => Int64 "segments",
        /// Segments sent.
        segs_out: u32 => Int64 "segments",
        /// Segments sent that carried payload.
        data_segs_out: u32 => Int64 "segments",
        /// Segments retransmitted, SYN included.
        retrans_segs: u32 => Int64 "segments",
        /// tcp_sock.srtt_us: eighths of a microsecond.
        srtt_raw: u32,
        /// Smallest round trip; all ones when none was measured.
        min_rtt_raw: u32,
        /// Congestion window when the row was made.
        snd_cwnd: u32 => Int64 "segments",
        /// First sequence number that is not acknowledged.
        snd_una: u32,
        /// Next sequence number to send.
        snd_nxt: u32,
        /// Next sequence number to queue.
        write_seq: u32,
        /// The socket's error when it was closed (sk_err): 0 for none, 111 refused, 110 timed out, 104 reset by the peer.
        error: i32 => Int32 "errno",
        /// State before CLOSE or, while it is open, the state now.
        state: u32,
        /// tcp_sock.chrono_stat, of periods that were over: ticks of each kind of [`chrono`](crate::sock::chrono), from 1 on.
        chrono_stat: [u32; 3],
        /// Which of them the period was of that was not over, a number of [`chrono`](crate::sock::chrono) or 0.
        chrono: u32,
        /// For how long it had lasted.
        chrono_ticks: u32,
        /// Name of the opening or accepting thread.
        comm: [u8; 16],
        /// Name of the congestion control.
        ca_name: [u8; 16],
    }
    derived {
        /// active (opened here by connect; pid, tid, start_ns and comm are the opener's), passive (opened by the peer; they
        /// are the accepter's, if that was seen) or adopted (its beginning was not seen: the session began later). They are
        /// null where that process is in another cgroup than the one that made the socket.
        direction => Dict "",
        /// From opened_ns to established_ns; null for passive connections, whose handshake has no socket, and where either
        /// was not seen.
        handshake_ns => Int64 "ns" null,
        /// From established_ns to accept: how long the connection waited in the listener's queue. Null where either was not
        /// seen, which is always so where `hooks` in the coverage lacks fentry.
        accept_delay_ns => Int64 "ns" null,
        /// From established_ns (else opened_ns) to closed_ns, or to the session's end for open_at_stop; null for adopted.
        duration_ns => Int64 "ns" null,
        /// Payload that the peer acknowledged, SYN and FIN not counted.
        bytes_acked => Int64 "B",
        /// Payload received in order, FIN not counted.
        bytes_received => Int64 "B",
        /// Last smoothed round trip; null when none was measured.
        srtt_us => Int64 "us" null,
        /// Smallest round trip measured; null when none was.
        min_rtt_us => Int64 "us" null,
        /// How long this side had something to send or to be acknowledged, in ticks of the kernel's timer (1 to 10 ms), as
        /// `ss -i` shows it (busy).
        busy_ns => Int64 "ns" null,
        /// Of that, how long the peer's window had no room: its program did not read (rwnd_limited).
        rwnd_limited_ns => Int64 "ns" null,
        /// And how long this side's send buffer was too small (sndbuf_limited).
        sndbuf_limited_ns => Int64 "ns" null,
        /// Congestion control algorithm.
        ca_name => Dict "" null,
        /// fin (closed by both sides' agreement), rst_in (reset by the peer), rst_out (reset by this side), refused (answered
        /// by a reset before it was established), timeout, error (another error: see the column), aborted (given up by this side before it was
        /// established, without a reset) or open_at_stop (still open when the session ended).
        end_reason => Dict "",
    }
}

impl ConnectionEvent {
    const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The word in the `direction` column.
    pub const fn direction(&self) -> &'static str {
        if self.has(flag::ACTIVE) {
            "active"
        } else if self.has(flag::PASSIVE) {
            "passive"
        } else {
            "adopted"
        }
    }

    /// The word in the `end_reason` column.
    pub const fn end_reason(&self) -> &'static str {
        const REFUSED: i32 = 111;
        const TIMED_OUT: i32 = 110;
        let state = self.state;
        if !self.has(flag::CLOSED) {
            "open_at_stop"
        } else if state == state::SYN_SENT && (self.has(flag::RST_RECEIVED) || self.error == REFUSED) {
            "refused"
        } else if self.has(flag::RST_RECEIVED) {
            "rst_in"
        } else if self.error == TIMED_OUT {
            // Keep-alive gives up with a reset: the silence is the reason.
            "timeout"
        } else if self.has(flag::RST_SENT) {
            "rst_out"
        } else if self.error != 0 {
            "error"
        } else if self.has(flag::FIN_SENT) {
            "fin"
        } else {
            "aborted"
        }
    }

    /// Payload that the peer acknowledged. The kernel's counter runs with the sequence numbers, so the SYN of the side
    /// that connects and the FIN count one each.
    pub const fn bytes_acked(&self) -> u64 {
        let fin = (self.has(flag::FIN_SENT) && self.snd_una == self.write_seq) as u64;
        let syn = if self.has(flag::ACTIVE) {
            self.has(flag::ESTABLISHED) as u64
        } else if self.has(flag::PASSIVE) {
            0
        } else {
            // Nobody saw who connected: what was numbered beyond the payload and the FIN is the SYN.
            let fin_numbered = (self.has(flag::FIN_SENT) && self.snd_nxt == self.write_seq) as u64;
            let numbered = self.acked_raw.wrapping_add(self.snd_nxt.wrapping_sub(self.snd_una) as u64);
            let payload = self.bytes_sent.wrapping_sub(self.bytes_retrans);
            (numbered == payload.wrapping_add(fin_numbered).wrapping_add(1)) as u64
        };
        self.acked_raw.saturating_sub(fin + syn)
    }

    /// Ticks in which there was something to send or to be acknowledged, and of those the ones in which the peer's window and this
    /// side's send buffer had no room. The last period lasts until the row was made.
    pub const fn busy_rwnd_sndbuf_ticks(&self) -> [u64; 3] {
        let [mut busy, mut rwnd, mut sndbuf] = self.chrono_stat;
        match self.chrono as usize {
            chrono::BUSY => busy = busy.wrapping_add(self.chrono_ticks),
            chrono::RWND_LIMITED => rwnd = rwnd.wrapping_add(self.chrono_ticks),
            chrono::SNDBUF_LIMITED => sndbuf = sndbuf.wrapping_add(self.chrono_ticks),
            _ => {}
        }
        [busy as u64 + rwnd as u64 + sndbuf as u64, rwnd as u64, sndbuf as u64]
    }

    /// Payload received in order.
    pub const fn bytes_received(&self) -> u64 {
        self.received_raw.saturating_sub(self.has(flag::FIN_RECEIVED) as u64)
    }

    /// Nanoseconds from the SYN to ESTABLISHED, where both were seen.
    pub const fn handshake_ns(&self) -> Option<u64> {
        if self.has(flag::PASSIVE) || self.opened_ns == 0 || self.established_ns == 0 {
            return None;
        }
        Some(self.established_ns.saturating_sub(self.opened_ns))
    }

    /// Nanoseconds from ESTABLISHED to accept, where both were seen.
    pub const fn accept_delay_ns(&self) -> Option<u64> {
        if self.accepted_ns == 0 || self.established_ns == 0 {
            return None;
        }
        Some(self.accepted_ns.saturating_sub(self.established_ns))
    }

    /// Nanoseconds the connection lasted, where its beginning was seen; until the row was made if it is open.
    pub const fn duration_ns(&self) -> Option<u64> {
        let from = if self.established_ns != 0 { self.established_ns } else { self.opened_ns };
        let to = if self.has(flag::CLOSED) { self.closed_ns } else { self.header.ts_ns };
        if from == 0 { None } else { Some(to.saturating_sub(from)) }
    }

    /// Smoothed round trip in microseconds.
    pub const fn srtt_us(&self) -> Option<u32> {
        if self.srtt_raw == 0 { None } else { Some(self.srtt_raw >> 3) }
    }

    /// Smallest round trip in microseconds. The kernel's filter starts with all ones.
    pub const fn min_rtt_us(&self) -> Option<u32> {
        if self.min_rtt_raw == u32::MAX { None } else { Some(self.min_rtt_raw) }
    }
}

const COLUMNS: [Column;
    COMMON_COLUMNS.len() + PROCESS_COLUMNS.len() + FLOW_COLUMNS.len() + ConnectionEvent::COLUMNS.len()] =
    table::concat(&[&COMMON_COLUMNS, &PROCESS_COLUMNS, &FLOW_COLUMNS, ConnectionEvent::COLUMNS]);

/// The table.
pub const TABLE: Table = Table {
    name: "tcp_connections",
    collector: "tcpConnections",
    doc: "One row per TCP connection, with the kernel's own counters when it ended.",
    columns: &COLUMNS,
    index: INDEX,
};

/// The collector.
pub const COLLECTOR: CollectorInfo = CollectorInfo {
    name: "tcpConnections",
    question: "Which TCP connections did the target have, with whom, how long, how much payload went each way, how \
               well did the path behave, and how did each end?",
    doc: "The kernel's changes of state, with the kernel's own counters at the end of each connection. A connection \
          belongs to the cgroup that made its socket (an accepted one to its listener's), whoever uses it later. \
          Connections open at the start are adopted; those open at the end are written as open_at_stop. A row is \
          written once the end is certain; where a reset may still follow, that is when the process closes the \
          socket. IPv4 through IPv6 sockets is shown as IPv4.",
    exact: "Connections, payload, segments, retransmissions, errors and times of state changes.",
    bounded: "The time of accept and the accepting process are null where the kernel has no fentry. handshake_ns of \
              accepted connections is null: no socket exists during that handshake. 131,072 connections at a time; \
              beyond it they are counted as lost.",
    unseen: "What never became a socket: a SYN that was answered by a reset, a handshake that the peer did not \
             finish. Connections open at the start that no process holds (not yet accepted, or closed already) \
             appear when they change state.",
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
            name: "minDuration",
            ty: ParamType::Duration { min_ms: 0, max_ms: 86_400_000 },
            default: "0s",
            doc: "Only connections that lasted at least this long. Adopted ones pass.",
        },
        Param {
            name: "includeFailed",
            ty: ParamType::Bool,
            default: "true",
            doc: "Also connections that were never established.",
        },
        Param {
            name: "flushOpen",
            ty: ParamType::Bool,
            default: "true",
            doc: "Also connections that are still open when the session ends.",
        },
    ],
    events: true,
};

#[cfg(feature = "aya")]
mod pod {
    // SAFETY: repr(C), integers and arrays of them, no padding (`event!` asserts it): every bit pattern is valid.
    unsafe impl aya::Pod for super::ConnectionEvent {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    fn connection(flags: u32, state: u32) -> ConnectionEvent {
        let zeros = [0; size_of::<ConnectionEvent>()];
        let event = ConnectionEvent::read(&zeros).expect("has the length of the record");
        ConnectionEvent { flags, state, ..event }
    }

    #[test]
    fn syn_and_fin_are_no_payload() {
        let closed = flag::CLOSED | flag::ESTABLISHED | flag::FIN_SENT | flag::FIN_RECEIVED;
        let active = ConnectionEvent {
            acked_raw: 102,
            received_raw: 51,
            snd_una: 9,
            write_seq: 9,
            ..connection(closed | flag::ACTIVE, state::FIN_WAIT2)
        };
        assert_eq!((active.bytes_acked(), active.bytes_received()), (100, 50));
        let passive = ConnectionEvent { flags: closed | flag::PASSIVE, acked_raw: 101, ..active };
        assert_eq!(passive.bytes_acked(), 100);
        let fin_not_acked = ConnectionEvent { snd_una: 8, ..passive };
        assert_eq!(fin_not_acked.bytes_acked(), 101);
    }

    #[test]
    fn a_refused_connection_acknowledged_nothing() {
        let refused =
            ConnectionEvent { error: 111, ..connection(flag::ACTIVE | flag::CLOSED, state::SYN_SENT) };
        assert_eq!((refused.bytes_acked(), refused.end_reason()), (0, "refused"));
    }

    #[test]
    fn the_syn_of_an_adopted_connection_is_found_by_arithmetic() {
        // 1,000 bytes were sent, 200 of them again; 300 are not acknowledged, and the FIN neither.
        let base = ConnectionEvent {
            bytes_sent: 1_200,
            bytes_retrans: 200,
            snd_una: u32::MAX - 99,
            snd_nxt: 201,
            write_seq: 201,
            ..connection(flag::ESTABLISHED | flag::FIN_SENT, state::FIN_WAIT1)
        };
        let connected = ConnectionEvent { acked_raw: 701, ..base };
        let accepted = ConnectionEvent { acked_raw: 700, ..base };
        assert_eq!((connected.bytes_acked(), accepted.bytes_acked()), (700, 700));
    }

    #[test]
    fn a_period_that_is_not_over_counts_for_what_it_is_of() {
        let kept = ConnectionEvent {
            chrono_stat: [100, 20, 3],
            chrono_ticks: 7,
            ..connection(flag::ACTIVE, state::ESTABLISHED)
        };
        let of = |chrono: usize| ConnectionEvent { chrono: chrono as u32, ..kept }.busy_rwnd_sndbuf_ticks();
        assert_eq!(of(0), [123, 20, 3], "nothing is under way");
        assert_eq!(of(chrono::BUSY), [130, 20, 3]);
        assert_eq!(of(chrono::RWND_LIMITED), [130, 27, 3]);
        assert_eq!(of(chrono::SNDBUF_LIMITED), [130, 20, 10]);
    }

    #[test]
    fn every_end_has_its_name() {
        let end = |flags, state, error| {
            ConnectionEvent { error, ..connection(flags | flag::CLOSED, state) }.end_reason()
        };
        assert_eq!(end(flag::FIN_SENT | flag::FIN_RECEIVED, state::FIN_WAIT2, 0), "fin");
        assert_eq!(end(flag::FIN_SENT, state::LAST_ACK, 0), "fin");
        assert_eq!(end(flag::RST_RECEIVED, state::ESTABLISHED, 104), "rst_in");
        assert_eq!(end(flag::RST_RECEIVED, state::CLOSE_WAIT, 32), "rst_in");
        assert_eq!(end(flag::RST_RECEIVED, state::SYN_SENT, 111), "refused");
        assert_eq!(end(flag::RST_SENT, state::ESTABLISHED, 0), "rst_out");
        assert_eq!(end(flag::RST_SENT | flag::FIN_SENT, state::FIN_WAIT2, 0), "rst_out");
        assert_eq!(end(flag::RST_SENT, state::ESTABLISHED, 110), "timeout");
        assert_eq!(end(0, state::SYN_SENT, 110), "timeout");
        assert_eq!(end(0, state::SYN_SENT, 113), "error");
        assert_eq!(end(0, state::SYN_SENT, 0), "aborted");
        assert_eq!(connection(flag::ACTIVE, state::ESTABLISHED).end_reason(), "open_at_stop");
    }

    #[test]
    fn times_that_were_not_seen_are_null() {
        let mut open = connection(flag::ACTIVE | flag::ESTABLISHED, state::ESTABLISHED);
        assert_eq!((open.handshake_ns(), open.duration_ns()), (None, None));
        (open.opened_ns, open.established_ns, open.header.ts_ns) = (100, 130, 1_030);
        assert_eq!((open.handshake_ns(), open.duration_ns()), (Some(30), Some(900)));
        assert_eq!(open.accept_delay_ns(), None);
        open.accepted_ns = 137;
        assert_eq!(open.accept_delay_ns(), Some(7));
        (open.flags, open.closed_ns) = (open.flags | flag::CLOSED, 630);
        assert_eq!(open.duration_ns(), Some(500));
        (open.srtt_raw, open.min_rtt_raw) = (0, u32::MAX);
        assert_eq!((open.srtt_us(), open.min_rtt_us()), (None, None));
        (open.srtt_raw, open.min_rtt_raw) = (807, 0);
        assert_eq!((open.srtt_us(), open.min_rtt_us()), (Some(100), Some(0)));
    }
}
