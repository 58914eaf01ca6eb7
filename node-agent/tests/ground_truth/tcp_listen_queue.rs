// SPDX-License-Identifier: Apache-2.0
//! A listener whose queue holds two connections and that accepts none, against the namespace's ListenOverflows and
//! ListenDrops, and what the program asked for.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use tracelake_node_agent::engine::CollectorSpec;

use crate::expectations::has_fentry;
use crate::network::in_own_network;
use crate::support::{Burst, Recording, Row, TestCgroup, answer, number};

/// The argument of listen; the kernel lets one more wait.
const BACKLOG: i32 = 1;
/// Connects that find the queue full.
const TOO_MANY: usize = 8;

/// Counters of the program's network namespace that `/proc/PID/net/netstat` names.
fn netstat(burst: &Burst) -> BTreeMap<String, i64> {
    let text = burst.proc("net/netstat");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let names = lines.next().expect("names").split(' ');
    let values = lines.next().expect("values").split(' ');
    names.zip(values).map(|(name, value)| (name.to_owned(), value.parse().expect("a number"))).collect()
}

#[test]
fn a_full_queue_shows_its_length_and_what_it_dropped() {
    in_own_network(|| {
        let cgroup = TestCgroup::new();
        let spec = CollectorSpec {
            name: "tcpListenQueue".into(),
            interval: Duration::from_millis(200),
            params: [("histogram".to_owned(), "true".to_owned())].into(),
            ..CollectorSpec::default()
        };
        let mut burst = Burst::start("listen", &cgroup.path);
        // One listener is there before the session, and what it dropped by then is not the session's.
        let early: i64 = burst.go("fill").parse().expect("a port");
        let mut recording = Recording::start(spec, &[]);
        recording.targets(&[cgroup.target()]);
        let before = netstat(&burst);
        let late: i64 = burst.go("fill").parse().expect("a port");
        std::thread::sleep(Duration::from_millis(500));
        let after = netstat(&burst);
        let (rows, counters) = recording.finish();

        let delta = |name: &str| after[name] - before[name];
        assert_eq!(delta("ListenOverflows"), TOO_MANY as i64, "the kernel counts what was asked for");
        let sum = |port: i64, column: &str| -> i64 {
            rows.iter().filter(|row| number(row, "lport") == port).map(|row| number(row, column)).sum()
        };
        assert_eq!((sum(late, "drops"), sum(early, "drops")), (delta("ListenDrops"), 0));
        if has_fentry() {
            assert_eq!((sum(late, "overflows"), sum(early, "overflows")), (TOO_MANY as i64, 0));
            // Two segments of each connection that found none or one waiting; all others found two.
            assert_eq!(lengths(&rows, late), [2 * (BACKLOG as i64 + 1), TOO_MANY as i64]);
            assert!(lengths(&rows, early).is_empty(), "what arrived before the session: {rows:?}");
        }
        let last = rows.iter().rfind(|row| number(row, "lport") == late).expect("a row of the listener");
        assert_eq!((number(last, "accept_len"), number(last, "accept_max")), (2, i64::from(BACKLOG)));
        assert_eq!((number(last, "syn_len"), last["laddr"].as_str()), (0, "127.0.0.1"));
        for row in &rows {
            assert_eq!(number(row, "pid"), i64::from(burst.child.id()));
            assert_eq!(number(row, "cgroup_id"), cgroup.id().cast_signed());
        }
        assert_eq!(
            counters.emitted,
            rows.iter().map(|row| number(row, "weight").cast_unsigned()).sum::<u64>()
        );
    });
}

/// The sum of a listener's histograms.
fn lengths(rows: &[Row], port: i64) -> Vec<i64> {
    let mut sums: Vec<i64> = Vec::new();
    for row in rows.iter().filter(|row| number(row, "lport") == port) {
        let slots = row["accept_hist"].split_whitespace().map(|slot| slot.parse::<i64>().expect("a number"));
        for (index, slot) in slots.enumerate() {
            sums.resize(sums.len().max(index + 1), 0);
            sums[index] += slot;
        }
    }
    sums
}

/// Begins to connect and does not wait for it.
fn connect(to: SocketAddr) -> OwnedFd {
    let SocketAddr::V4(to) = to else { panic!("IPv4 only") };
    // SAFETY: the address is as long as said; the descriptor is new.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0);
        assert!(socket >= 0);
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: to.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
            sin_zero: [0; 8],
        };
        libc::connect(socket, (&raw const address).cast(), size_of_val(&address) as libc::socklen_t);
        OwnedFd::from_raw_fd(socket)
    }
}

/// The program of this test.
pub(crate) fn workload() -> ! {
    let mut open: Vec<(TcpListener, Vec<TcpStream>)> = Vec::new();
    answer(|_| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        // SAFETY: takes no pointers.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) }, 0);
        let address = listener.local_addr().expect("is bound");
        let waiting = (0..=BACKLOG).map(|_| TcpStream::connect(address).expect("there is room")).collect();
        // Each sends one SYN, and none again: it is given up at once.
        (0..TOO_MANY).for_each(|_| drop(connect(address)));
        open.push((listener, waiting));
        address.port().to_string()
    })
}
