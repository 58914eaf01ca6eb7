// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Reads sockets: whose they are, where they lead, and what TCP has counted.
//!
//! In: a `struct sock`, either as a typed pointer (tracepoint argument, iterator: plain loads) or as a number (the key of
//! a map entry: probe reads, [`Probe`]). Out: a [`Flow`], the fields of a [`ConnectionEvent`].
//! A socket belongs to the cgroup that made it. On softirq paths the current task is whoever was interrupted, so these
//! functions never look at it.

use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_jiffies64, bpf_probe_read_kernel, bpf_skc_to_tcp_sock,
};
use node_agent_common::event::Attribution;
use node_agent_common::fields;
use node_agent_common::sock::{Flow, state};
use node_agent_common::tcp_connections::{ConnectionEvent, flag};

use crate::kernel::{self, address, constant, exists, follow, load};
use crate::ring::Hit;
use crate::{counters, target};

node_agent_common::declare_sock_fields!();
node_agent_common::declare_tcp_fields!();

/// Number of the bit `SOCK_DONE` (enum `sock_flags`) in `sk_flags`: the peer's FIN was received.
#[unsafe(no_mangle)]
pub(crate) static SOCK_DONE_BIT: u64 = fields::MISSING;

/// `IPPROTO_TCP`: a number of the protocol itself.
pub(crate) const TCP: u64 = 6;
/// `AF_INET6` of Linux's ABI.
pub(crate) const INET6: u64 = 10;

/// A way to read members of a kernel structure.
pub(crate) trait Read {
    /// The integer at `place`, of whatever width the running kernel gives it, bit-field or not.
    ///
    /// # Safety
    /// `base` is what the implementation expects, of the structure that `place` is in.
    unsafe fn number(base: *const u8, place: &'static u64) -> u64;
}

/// Plain loads from typed pointers: 2 ns each.
pub(crate) struct Direct;
/// As [`Direct`], in the program's order, where another CPU may write between two of them.
pub(crate) struct InOrder;
/// Probe reads from any address: 8-10 ns each.
pub(crate) struct Probe;

#[inline(always)]
fn bits(packed: u64, value: u64) -> u64 {
    match fields::bits(packed) {
        (_, 0) => value,
        (shift, width) => (value >> (shift & 63)) & ((1 << (width & 63)) - 1),
    }
}

impl Read for Direct {
    #[inline(always)]
    unsafe fn number(base: *const u8, place: &'static u64) -> u64 {
        let packed = constant(place);
        // The width is a constant to the verifier, which follows one of these only.
        // SAFETY: as promised by the caller.
        let value = unsafe {
            match fields::size(packed) {
                1 => u64::from(load::<u8>(base, place)),
                2 => u64::from(load::<u16>(base, place)),
                4 => u64::from(load::<u32>(base, place)),
                _ => load::<u64>(base, place),
            }
        };
        bits(packed, value)
    }
}

impl Read for InOrder {
    #[inline(always)]
    unsafe fn number(base: *const u8, place: &'static u64) -> u64 {
        let packed = constant(place);
        let from = address(base, place);
        // SAFETY: as promised by the caller.
        let value = unsafe {
            match fields::size(packed) {
                1 => u64::from(read_volatile(from)),
                2 => u64::from(read_volatile(from.cast::<u16>())),
                4 => u64::from(read_volatile(from.cast::<u32>())),
                _ => read_volatile(from.cast::<u64>()),
            }
        };
        bits(packed, value)
    }
}

impl Read for Probe {
    #[inline(always)]
    unsafe fn number(base: *const u8, place: &'static u64) -> u64 {
        let packed = constant(place);
        let mut value = 0u64;
        let size = match fields::size(packed) {
            1 => 1,
            2 => 2,
            4 => 4,
            _ => 8,
        };
        // SAFETY: at most 8 bytes into 8; a bad address reads as zero. Little-endian, as every supported machine.
        unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size, address(base, place).cast()) };
        bits(packed, value)
    }
}

/// The word at any address; a bad one reads as 0.
#[inline(always)]
pub(crate) fn peek(at: *const u8) -> u64 {
    let mut word = 0u64;
    // SAFETY: 8 bytes into 8.
    unsafe { bpf_probe_read_kernel((&raw mut word).cast(), 8, at.cast()) };
    word
}

/// Whether the socket is one of TCP.
///
/// # Safety
/// `sk` is a typed pointer to a full `struct sock`.
#[inline(always)]
pub(crate) unsafe fn is_tcp(sk: *const u8) -> bool {
    // SAFETY: a member of the type.
    unsafe { Direct::number(sk, &SK_PROTOCOL) == TCP }
}

/// Id of the cgroup that made the socket.
///
/// # Safety
/// `sk` is a typed pointer to a full `struct sock`.
#[inline(always)]
pub(crate) unsafe fn cgroup_id(sk: *const u8) -> u64 {
    // SAFETY: members of the type.
    unsafe { kernel::cgroup_id(follow(sk, &SK_CGROUP)) }
}

/// Whose the socket is, if a session records `table` for it.
///
/// # Safety
/// As [`cgroup_id`].
#[inline(always)]
pub(crate) unsafe fn owner(sk: *const u8, table: u32) -> Option<Hit> {
    // SAFETY: as promised by the caller.
    unsafe {
        let cgroup_id = cgroup_id(sk);
        let slots = counters::enabled(target::slots(cgroup_id), table);
        if slots == 0 {
            return None;
        }
        Some(Hit { slots, cgroup_id, netns: netns(sk), attribution: Attribution::Socket })
    }
}

/// Whether this is a socket and not one of the mini-sockets that stand for a handshake or for `TIME_WAIT`, which end before
/// most of a socket's members.
///
/// # Safety
/// `sk` is a typed pointer to a `struct sock`, or null.
#[inline(always)]
pub(crate) unsafe fn is_full(sk: *const u8) -> bool {
    // First, since newer kernels want to see it: an argument of some hooks may be null.
    if sk.is_null() {
        return false;
    }
    // SAFETY: as promised by the caller; the state is among the members that all of them have.
    let state = unsafe { Direct::number(sk, &SK_STATE) } as u32;
    state != state::TIME_WAIT && state != state::NEW_SYN_RECV
}

/// Inode of the socket's network namespace.
///
/// # Safety
/// As [`cgroup_id`].
#[inline(always)]
pub(crate) unsafe fn netns(sk: *const u8) -> u64 {
    // SAFETY: members of the type.
    unsafe { Direct::number(follow(sk, &SK_NET), &NET_INUM) }
}

/// The socket's cookie; made now if nobody asked before.
///
/// # Safety
/// As [`cgroup_id`].
#[inline(always)]
pub(crate) unsafe fn cookie(sk: *const u8) -> u64 {
    // SAFETY: the helper takes typed sockets.
    unsafe { bpf_get_socket_cookie(sk.cast_mut().cast()) }
}

/// The same socket as a typed `struct tcp_sock`; null when it is none.
///
/// # Safety
/// As [`cgroup_id`].
#[inline(always)]
pub(crate) unsafe fn tcp_sock(sk: *const u8) -> *const u8 {
    // SAFETY: the helper takes typed sockets and checks them.
    unsafe { bpf_skc_to_tcp_sock(sk.cast_mut().cast()).cast_const().cast() }
}

/// Fills in what TCP has counted, and why the socket is in error.
///
/// # Safety
/// `tcp` is a `struct tcp_sock` that `R` can read, `to` a record that may be written.
#[inline(always)]
pub(crate) unsafe fn counters<R: Read>(tcp: *const u8, to: *mut ConnectionEvent) {
    // SAFETY: as promised by the caller.
    unsafe {
        (*to).acked_raw = R::number(tcp, &TCP_BYTES_ACKED);
        (*to).received_raw = R::number(tcp, &TCP_BYTES_RECEIVED);
        (*to).bytes_sent = R::number(tcp, &TCP_BYTES_SENT);
        (*to).bytes_retrans = R::number(tcp, &TCP_BYTES_RETRANS);
        (*to).segs_in = R::number(tcp, &TCP_SEGS_IN) as u32;
        (*to).segs_out = R::number(tcp, &TCP_SEGS_OUT) as u32;
        (*to).data_segs_out = R::number(tcp, &TCP_DATA_SEGS_OUT) as u32;
        (*to).retrans_segs = R::number(tcp, &TCP_TOTAL_RETRANS) as u32;
        (*to).srtt_raw = R::number(tcp, &TCP_SRTT_US) as u32;
        (*to).min_rtt_raw = R::number(tcp, &TCP_RTT_MIN) as u32;
        (*to).snd_cwnd = R::number(tcp, &TCP_SND_CWND) as u32;
        (*to).snd_una = R::number(tcp, &TCP_SND_UNA) as u32;
        (*to).snd_nxt = R::number(tcp, &TCP_SND_NXT) as u32;
        (*to).write_seq = R::number(tcp, &TCP_WRITE_SEQ) as u32;
        (*to).error = R::number(tcp, &SK_ERR) as i32;
        let done = constant(&SOCK_DONE_BIT) & 63;
        if R::number(tcp, &SK_FLAGS) >> done & 1 != 0 {
            (*to).flags |= flag::FIN_RECEIVED;
        }
    }
}

/// Fills in for how long what held the sender back. It runs once in a connection's life, so by probes: one function serves typed
/// sockets and numbers alike.
#[inline(never)]
pub(crate) fn chrono(tcp: *const u8, to: *mut ConnectionEvent) {
    // SAFETY: `to` is a record that may be written; a bad address reads as zeros.
    unsafe {
        // Sums are kept of periods that are over, at one less than what they are of (tcp_chrono_set). The last one is added in
        // user space. https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp_output.c
        let sums = address(tcp, &TCP_CHRONO_STAT);
        bpf_probe_read_kernel((&raw mut (*to).chrono_stat).cast(), size_of::<[u32; 3]>() as u32, sums.cast());
        (*to).chrono = Probe::number(tcp, &TCP_CHRONO_TYPE) as u32;
        let since = Probe::number(tcp, &TCP_CHRONO_START) as u32;
        (*to).chrono_ticks = (bpf_jiffies64() as u32).wrapping_sub(since);
    }
}

/// Fills in addresses and ports, not the cookie. The local port is the one that stays until the socket is gone
/// (`inet_sport`); `skc_num` is cleared before CLOSE is announced.
///
/// # Safety
/// `tcp` is a typed `struct tcp_sock`, `to` may be written.
#[inline(always)]
pub(crate) unsafe fn flow(tcp: *const u8, to: *mut Flow) {
    // SAFETY: as promised; ports are in network order in the kernel.
    unsafe {
        addresses(tcp, to);
        (*to).lport = u16::from_be(Direct::number(tcp, &INET_SPORT) as u16);
    }
}

/// What sockets and requests have at the same places.
#[inline(always)]
unsafe fn addresses(common: *const u8, to: *mut Flow) {
    // SAFETY: as promised by the callers.
    unsafe {
        let family = Direct::number(common, &SK_FAMILY);
        (*to).family = family as u16;
        (*to).protocol = TCP as u16;
        (*to).rport = u16::from_be(Direct::number(common, &SK_DPORT) as u16);
        let (mut laddr, mut raddr) = ([0u64; 2], [0u64; 2]);
        if family == INET6 && exists(&SK_V6_DADDR) && exists(&SK_V6_RCV_SADDR) {
            laddr = pair(common, &SK_V6_RCV_SADDR);
            raddr = pair(common, &SK_V6_DADDR);
        } else {
            laddr[0] = Direct::number(common, &SK_RCV_SADDR);
            raddr[0] = Direct::number(common, &SK_DADDR);
        }
        (*to).laddr = bytes(laddr);
        (*to).raddr = bytes(raddr);
    }
}

/// Fills in both ends of a handshake that has no socket yet, the cookie too if it has one.
///
/// # Safety
/// `request` is a typed `struct request_sock`, which begins as a socket does; `to` may be written.
#[inline(always)]
pub(crate) unsafe fn request_flow(request: *const u8, to: *mut Flow) {
    // SAFETY: as promised.
    unsafe {
        addresses(request, to);
        (*to).lport = Direct::number(request, &SK_NUM) as u16;
        (*to).sock_id = Direct::number(request, &SK_COOKIE);
    }
}

/// Fills in the name of the congestion control.
///
/// # Safety
/// `tcp` is a `struct tcp_sock`, `to` a record that may be written.
#[inline(always)]
pub(crate) unsafe fn congestion_control(tcp: *const u8, to: *mut ConnectionEvent) {
    // SAFETY: 16 bytes at both ends; a bad address reads as zeros. The pointer is read by a probe too, so that one
    // function serves typed sockets and numbers alike; it runs once in a connection's life.
    unsafe {
        let operations = Probe::number(tcp, &ICSK_CA_OPS) as *const u8;
        bpf_probe_read_kernel((&raw mut (*to).ca_name).cast(), 16, address(operations, &CA_OPS_NAME).cast());
    }
}

/// 16 bytes as two words.
#[inline(always)]
unsafe fn pair(base: *const u8, place: &'static u64) -> [u64; 2] {
    let at = address(base, place);
    // SAFETY: a member of 16 bytes of a typed structure.
    unsafe { [*at.cast::<u64>(), *at.wrapping_add(8).cast::<u64>()] }
}

#[inline(always)]
fn bytes(words: [u64; 2]) -> [u8; 16] {
    // SAFETY: 16 bytes are 16 bytes.
    unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>(words) }
}
