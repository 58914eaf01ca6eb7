// SPDX-License-Identifier: Apache-2.0
//! A network of a test's own, and what the kernel says of it and of one socket in it.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::{fs, thread};

use crate::support::as_root;

/// The namespace's counters of TCP.
pub(crate) struct Snmp {
    pub(crate) active_opens: u64,
    pub(crate) passive_opens: u64,
    pub(crate) retransmitted: u64,
    /// Packets that reached TCP.
    pub(crate) received: u64,
}

impl Snmp {
    pub(crate) fn now() -> Snmp {
        let text = fs::read_to_string("/proc/thread-self/net/snmp").expect("the kernel counts");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let names = lines.next().expect("names of TCP's counters").split(' ');
        let values: BTreeMap<_, _> = names.zip(lines.next().expect("their values").split(' ')).collect();
        let value = |name| values[name].parse().expect("is a number");
        Snmp {
            active_opens: value("ActiveOpens"),
            passive_opens: value("PassiveOpens"),
            retransmitted: value("RetransSegs"),
            received: value("InSegs"),
        }
    }

    pub(crate) fn since(self, before: &Snmp) -> Snmp {
        Snmp {
            active_opens: self.active_opens - before.active_opens,
            passive_opens: self.passive_opens - before.passive_opens,
            retransmitted: self.retransmitted - before.retransmitted,
            received: self.received - before.received,
        }
    }
}

/// Runs a test in a thread with a network of its own ([`own_network`]).
pub(crate) fn in_own_network<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let test = scope.spawn(|| {
            own_network();
            test()
        });
        test.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves this thread, and what it starts from now on, into a network namespace with a loopback device.
pub(crate) fn own_network() {
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    let mut request =
        Request { name: [0; 16], flags: (libc::IFF_UP | libc::IFF_RUNNING) as i16, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: no pointers but to `request`, which has the size of `struct ifreq`.
    as_root(|| unsafe {
        assert_eq!(
            libc::unshare(libc::CLONE_NEWNET),
            0,
            "cannot unshare: {} (root is needed)",
            std::io::Error::last_os_error()
        );
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let result = libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw mut request);
        assert_eq!(result, 0, "cannot set lo up: {}", std::io::Error::last_os_error());
        libc::close(socket);
    });
}

/// The beginning of `struct tcp_info`, of include/uapi/linux/tcp.h; what libc declares ends earlier.
#[repr(C)]
#[derive(Default)]
pub(crate) struct TcpInfo {
    bytes: [u8; 8],
    before_unacked: [u32; 4],
    pub(crate) unacked: u32,
    before_total: [u32; 18],
    pub(crate) total_retrans: u32,
    pacing: [u64; 2],
    pub(crate) bytes_acked: u64,
    pub(crate) bytes_received: u64,
    segments: [u32; 2],
    pub(crate) notsent_bytes: u32,
    min_rtt: u32,
    pub(crate) data_segs_in: u32,
    pub(crate) data_segs_out: u32,
}

pub(crate) fn tcp_info(stream: &TcpStream) -> TcpInfo {
    let mut info = TcpInfo::default();
    let mut length = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is made of integers.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    assert_eq!((result, length as usize), (0, size_of::<TcpInfo>()));
    info
}

/// The socket's cookie, as `ss -e` shows it.
pub(crate) fn cookie(stream: &TcpStream) -> u64 {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`.
    let result = unsafe {
        let (at, length) = ((&raw mut cookie).cast(), &raw mut length);
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, at, length)
    };
    assert_eq!(result, 0);
    cookie
}

/// Closing the socket sends a reset.
pub(crate) fn close_by_reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the kernel reads the struct.
    let result = unsafe {
        let (at, length) = ((&raw const linger).cast(), size_of::<libc::linger>() as libc::socklen_t);
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, at, length)
    };
    assert_eq!(result, 0);
}
