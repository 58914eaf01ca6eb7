// SPDX-License-Identifier: Apache-2.0
//! Payloads of known size over loopback, some by write and some by sendfile, against what both ends were given.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use tracelake_node_agent::engine::CollectorSpec;

use crate::network::in_own_network;
use crate::support::{Burst, Recording, Row, TestCgroup, answer, number};
use crate::tcp_loss::drop_all;

/// Bytes of one order that are written, and that sendfile sends.
const WRITTEN: i64 = 1_234_567;
const SENT_FILE: i64 = 765_433;
/// What comes back.
const REPLY: i64 = 4_321;

fn throughput(interval: Duration) -> CollectorSpec {
    CollectorSpec { name: "tcpThroughput".into(), interval, ..CollectorSpec::default() }
}

#[test]
fn payload_of_every_connection_is_what_its_ends_were_given() {
    in_own_network(|| {
        let cgroup = TestCgroup::new();
        let mut burst = Burst::start("stream", &cgroup.path);
        // Open before the session, and what it carried by then is not the session's.
        let early: i64 = burst.go("open").parse().expect("a port");
        burst.go("send");
        let mut recording = Recording::start(throughput(Duration::from_millis(300)), &[]);
        recording.targets(&[cgroup.target()]);
        burst.go("send");
        // Into another window.
        recording.await_rows();
        burst.go("send");
        // Begins and ends in the session.
        let late: i64 = burst.go("open").parse().expect("a port");
        burst.go("send");
        burst.go("close");
        let pid = i64::from(burst.child.id());
        let (rows, _) = recording.finish();

        let payload = WRITTEN + SENT_FILE;
        for (port, times) in [(early, 2), (late, 1)] {
            let sum = |side: &str, column: &str| -> i64 {
                let of_side: Vec<&Row> = rows.iter().filter(|row| number(row, side) == port).collect();
                of_side.iter().map(|row| number(row, column)).sum()
            };
            let once = |side: &str| sum(side, "tx_bytes") - sum(side, "retrans_bytes");
            assert_eq!(
                (once("rport"), sum("lport", "rx_bytes")),
                (times * payload, times * payload),
                "{port}"
            );
            assert_eq!((once("lport"), sum("rport", "rx_bytes")), (times * REPLY, times * REPLY), "{port}");
            assert_eq!(sum("rport", "acked_bytes"), times * payload, "{port}");
            assert_eq!(sum("lport", "acked_bytes"), times * REPLY, "{port}");
        }
        for row in &rows {
            assert_eq!(
                (row["others"].as_str(), number(row, "cgroup_id")),
                ("false", cgroup.id().cast_signed())
            );
            assert!(number(row, "rank") >= 1 && number(row, "window_ns") > 0);
        }
        // Also of the end that was accepted and closed between two passes.
        assert!(rows.iter().all(|row| number(row, "pid") == pid), "{rows:?}");
    });
}

/// The kernel goes on with it, and no pass meets it any more.
#[test]
fn what_a_connection_carried_until_its_process_closed_it_is_told_before_it_ends() {
    in_own_network(|| {
        let cgroup = TestCgroup::new();
        let mut burst = Burst::start("stream", &cgroup.path);
        let mut recording = Recording::start(throughput(Duration::from_secs(3_600)), &[]);
        recording.targets(&[cgroup.target()]);
        burst.go("open");
        burst.go("send");
        burst.go("abandon");
        let (rows, _) = recording.finish();
        let client = rows.iter().find(|row| number(row, "acked_bytes") > REPLY);
        let client = client.unwrap_or_else(|| panic!("the client's row: {rows:?}"));
        let carried = ["tx_bytes", "acked_bytes", "rx_bytes"].map(|column| number(client, column));
        let sent = WRITTEN + SENT_FILE;
        assert_eq!(carried, [sent + number(client, "retrans_bytes"), sent, REPLY]);
    });
}

/// Connections of a churn, on so many threads, and what each carries there and back.
const CHURNS: i64 = 100;
const CONNECTIONS: i64 = 200;
const PAIRS: i64 = 2;
const ASKED: i64 = 1_000;
const ANSWERED: i64 = 20_000;

/// A pass runs beside all this: it meets connections as they end, while others begin in the memory that they leave.
#[test]
fn connections_that_end_under_a_pass_count_once() {
    in_own_network(|| {
        let cgroup = TestCgroup::new();
        let mut burst = Burst::start("stream", &cgroup.path);
        let spec = CollectorSpec {
            params: [("topN".to_owned(), "10000".to_owned())].into(),
            ..throughput(Duration::from_millis(1))
        };
        let mut recording = Recording::start(spec, &[]);
        recording.targets(&[cgroup.target()]);
        for _ in 0..CHURNS {
            burst.go("churn");
        }
        let (rows, _) = recording.finish();
        let mut sums: BTreeMap<i64, [i64; 3]> = BTreeMap::new();
        for row in &rows {
            let sum = sums.entry(number(row, "sock_id")).or_default();
            sum[0] += number(row, "tx_bytes") - number(row, "retrans_bytes");
            sum[1] += number(row, "acked_bytes");
            sum[2] += number(row, "rx_bytes");
        }
        let (clients, servers): (Vec<_>, Vec<_>) = sums.into_values().partition(|sum| sum[0] == ASKED);
        for (ends, sent, received) in [(clients, ASKED, ANSWERED), (servers, ANSWERED, ASKED)] {
            assert_eq!(ends.len() as i64, CHURNS * CONNECTIONS);
            for end in ends {
                assert_eq!(end, [sent, sent, received]);
            }
        }
    });
}

/// One half of the connections of a churn.
fn churn() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("is bound");
    let server = std::thread::spawn(move || {
        for _ in 0..CONNECTIONS / PAIRS {
            let (mut end, _) = listener.accept().expect("a connection");
            end.read_exact(&mut [0; ASKED as usize]).expect("it comes whole");
            end.write_all(&[1; ANSWERED as usize]).expect("the client reads");
            // The client closes first.
            assert_eq!(end.read(&mut [0; 1]).expect("its end"), 0);
        }
    });
    for _ in 0..CONNECTIONS / PAIRS {
        let mut end = TcpStream::connect(address).expect("it listens");
        end.write_all(&[7; ASKED as usize]).expect("the server reads");
        end.read_exact(&mut [0; ANSWERED as usize]).expect("it comes whole");
        // The file stays open until the connection has ended.
        end.shutdown(Shutdown::Write).expect("is open");
        assert_eq!(end.read(&mut [0; 1]).expect("its end"), 0);
    }
    server.join().expect("the server ends well");
}

/// The program of these tests.
pub(crate) fn workload() -> ! {
    let mut ends: Option<(TcpStream, TcpStream)> = None;
    let mut abandoned = Vec::new();
    answer(|order| match order {
        "open" => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            let address = listener.local_addr().expect("is bound");
            let client = TcpStream::connect(address).expect("it listens");
            let server = listener.accept().expect("a connection").0;
            ends = Some((client, server));
            address.port().to_string()
        }
        "send" => {
            let (client, server) = ends.as_mut().expect("is open");
            let mut server = server.try_clone().expect("another handle");
            let reader = std::thread::spawn(move || {
                let mut all = vec![0; (WRITTEN + SENT_FILE) as usize];
                server.read_exact(&mut all).expect("it comes whole");
                server.write_all(&vec![1; REPLY as usize]).expect("the client reads");
            });
            client.write_all(&vec![7; WRITTEN as usize]).expect("the server reads");
            // This very program: large enough, and there on every machine.
            let file = File::open("/proc/self/exe").expect("it runs");
            let mut left = SENT_FILE as usize;
            while left > 0 {
                // SAFETY: two descriptors, no pointers.
                let sent = unsafe {
                    libc::sendfile(client.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), left)
                };
                left -= usize::try_from(sent).expect("it sends");
            }
            client.read_exact(&mut vec![0; REPLY as usize]).expect("the reply comes whole");
            reader.join().expect("the reader ends well");
            String::new()
        }
        "churn" => {
            let halves: Vec<_> = (0..PAIRS).map(|_| std::thread::spawn(churn)).collect();
            halves.into_iter().for_each(|half| half.join().expect("it ends well"));
            String::new()
        }
        // Its FIN does not arrive.
        "abandon" => {
            let (client, server) = ends.take().expect("is open");
            drop_all(&server, true);
            drop(client);
            abandoned.push(server);
            String::new()
        }
        "close" => {
            ends = None;
            String::new()
        }
        other => panic!("no order {other}"),
    })
}
