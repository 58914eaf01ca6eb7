// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What the collectors of sockets have in common: both ends of a flow, the states of TCP, and the places read.

use crate::fields;

/// Both ends of a socket's flow, as the kernel side fills them in; the columns are
/// [`FLOW_COLUMNS`](crate::table::FLOW_COLUMNS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Socket cookie; 0 where it is not known.
    pub sock_id: u64,
    /// Local address; IPv4 in the first four bytes.
    pub laddr: [u8; 16],
    /// Remote address; IPv4 in the first four bytes.
    pub raddr: [u8; 16],
    /// Local port, host order.
    pub lport: u16,
    /// Remote port, host order.
    pub rport: u16,
    /// Address family of the socket.
    pub family: u16,
    /// IP protocol.
    pub protocol: u16,
}

/// States of a TCP socket. The kernel exports them to programs in `tcp_info`, so they cannot change; the loader asserts
/// that its BTF says the same.
pub mod state {
    /// Data may flow both ways.
    pub const ESTABLISHED: u32 = 1;
    /// A SYN was sent.
    pub const SYN_SENT: u32 = 2;
    /// The handshake's last segment has arrived.
    pub const SYN_RECV: u32 = 3;
    /// Closed here first; the FIN is not acknowledged.
    pub const FIN_WAIT1: u32 = 4;
    /// Closed here first; the FIN is acknowledged.
    pub const FIN_WAIT2: u32 = 5;
    /// Only as `TIME_WAIT` mini-sockets, never in the state hook.
    pub const TIME_WAIT: u32 = 6;
    /// No connection.
    pub const CLOSE: u32 = 7;
    /// The peer closed first.
    pub const CLOSE_WAIT: u32 = 8;
    /// The peer closed first; our FIN is not acknowledged.
    pub const LAST_ACK: u32 = 9;
    /// A listener.
    pub const LISTEN: u32 = 10;
    /// Both sides closed at once.
    pub const CLOSING: u32 = 11;
    /// Only as request mini-sockets, never in the state hook.
    pub const NEW_SYN_RECV: u32 = 12;
    /// The word for it in tables: the kernel's name without `TCP_`.
    pub const fn name(state: u32) -> Option<&'static str> {
        let mut i = 0;
        while i < NAMES.len() {
            if NAMES[i].1 == state {
                return Some(WORDS[i]);
            }
            i += 1;
        }
        None
    }

    /// All those words.
    pub const WORDS: &[&str] = &{
        let mut words = [""; NAMES.len()];
        let mut i = 0;
        while i < NAMES.len() {
            words[i] = NAMES[i].0.split_at("TCP_".len()).1;
            i += 1;
        }
        words
    };

    /// The enumerators that [`states`](self) repeats, for the loader's assertion.
    pub const NAMES: &[(&str, u32)] = &[
        ("TCP_ESTABLISHED", ESTABLISHED),
        ("TCP_SYN_SENT", SYN_SENT),
        ("TCP_SYN_RECV", SYN_RECV),
        ("TCP_FIN_WAIT1", FIN_WAIT1),
        ("TCP_FIN_WAIT2", FIN_WAIT2),
        ("TCP_TIME_WAIT", TIME_WAIT),
        ("TCP_CLOSE", CLOSE),
        ("TCP_CLOSE_WAIT", CLOSE_WAIT),
        ("TCP_LAST_ACK", LAST_ACK),
        ("TCP_LISTEN", LISTEN),
        ("TCP_CLOSING", CLOSING),
        ("TCP_NEW_SYN_RECV", NEW_SYN_RECV),
    ];
}

/// What holds a sender back (enum `tcp_chrono`): the loader asserts that the kernel's BTF says the same.
pub mod chrono {
    /// Data is under way; nothing else does.
    pub const BUSY: usize = 1;
    /// The peer's window.
    pub const RWND_LIMITED: usize = 2;
    /// This side's send buffer.
    pub const SNDBUF_LIMITED: usize = 3;
    /// The enumerators that [`chrono`](self) repeats, for the loader's assertion.
    pub const NAMES: &[(&str, u32)] = &[
        ("TCP_CHRONO_BUSY", BUSY as u32),
        ("TCP_CHRONO_RWND_LIMITED", RWND_LIMITED as u32),
        ("TCP_CHRONO_SNDBUF_LIMITED", SNDBUF_LIMITED as u32),
    ];
}

fields! {
    /// What the hooks read of a socket. Paths start at the outermost struct: one base pointer serves them all.
    pub SOCK_FIELDS, declare_sock_fields {
        SK_PROTOCOL: "sock", "sk_protocol";
        SK_ERR: "sock", "sk_err";
        SK_CGROUP: "sock", "sk_cgrp_data.cgroup";
        SK_FLAGS: "sock", "__sk_common.skc_flags";
        SK_OWNED: "sock", "sk_lock.owned";
        SK_SLOCK: "sock", "sk_lock.slock.rlock.raw_lock.val.counter", optional;
        SK_NET: "sock", "__sk_common.skc_net.net";
        SK_COOKIE: "sock", "__sk_common.skc_cookie.counter";
        SK_STATE: "sock", "__sk_common.skc_state";
        SK_FAMILY: "sock", "__sk_common.skc_family";
        SK_DPORT: "sock", "__sk_common.skc_dport";
        SK_NUM: "sock", "__sk_common.skc_num";
        SK_DADDR: "sock", "__sk_common.skc_daddr";
        SK_RCV_SADDR: "sock", "__sk_common.skc_rcv_saddr";
        SK_V6_DADDR: "sock", "__sk_common.skc_v6_daddr", optional;
        SK_V6_RCV_SADDR: "sock", "__sk_common.skc_v6_rcv_saddr", optional;
        NET_INUM: "net", "ns.inum";
        SOCKET_SK: "socket", "sk";
    }
}

fields! {
    /// What the hooks read of a TCP socket, which begins with its `struct sock`.
    pub TCP_FIELDS, declare_tcp_fields {
        INET_SPORT: "tcp_sock", "inet_conn.icsk_inet.inet_sport";
        ICSK_CA_OPS: "tcp_sock", "inet_conn.icsk_ca_ops";
        CA_OPS_NAME: "tcp_congestion_ops", "name";
        TCP_BYTES_ACKED: "tcp_sock", "bytes_acked";
        TCP_BYTES_RECEIVED: "tcp_sock", "bytes_received";
        TCP_BYTES_SENT: "tcp_sock", "bytes_sent";
        TCP_BYTES_RETRANS: "tcp_sock", "bytes_retrans";
        TCP_SEGS_IN: "tcp_sock", "segs_in";
        TCP_SEGS_OUT: "tcp_sock", "segs_out";
        TCP_DATA_SEGS_OUT: "tcp_sock", "data_segs_out";
        TCP_TOTAL_RETRANS: "tcp_sock", "total_retrans";
        TCP_SRTT_US: "tcp_sock", "srtt_us";
        TCP_RTT_MIN: "tcp_sock", "rtt_min.s.v";
        TCP_SND_CWND: "tcp_sock", "snd_cwnd";
        TCP_PACKETS_OUT: "tcp_sock", "packets_out";
        ICSK_CA_STATE: "tcp_sock", "inet_conn.icsk_ca_state";
        ICSK_PENDING: "tcp_sock", "inet_conn.icsk_pending";
        ICSK_RTO: "tcp_sock", "inet_conn.icsk_rto";
        TCP_SND_UNA: "tcp_sock", "snd_una";
        TCP_SND_NXT: "tcp_sock", "snd_nxt";
        TCP_WRITE_SEQ: "tcp_sock", "write_seq";
        TCP_CHRONO_STAT: "tcp_sock", "chrono_stat";
        TCP_CHRONO_START: "tcp_sock", "chrono_start";
        TCP_CHRONO_TYPE: "tcp_sock", "chrono_type";
    }
}
