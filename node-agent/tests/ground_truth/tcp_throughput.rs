// SPDX-License-Identifier: Apache-2.0
//! Payloads of known size over loopback, some by write and some by sendfile, against what both ends were given.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use tracelake_node_agent::engine::CollectorSpec;

use crate::support::{Burst, Recording, Row, TestCgroup, answer, number};
use crate::tcp_connections::own_network;

/// Bytes of one order that are written, and that sendfile sends.
const WRITTEN: i64 = 1_234_567;
const SENT_FILE: i64 = 765_433;
/// What comes back.
const REPLY: i64 = 4_321;

#[test]
fn payload_of_every_connection_is_what_its_ends_were_given() {
    let test = std::thread::spawn(|| {
        own_network();
        let cgroup = TestCgroup::new();
        let mut burst = Burst::start("stream", &cgroup.path);
        // Open before the session, and what it carried by then is not the session's.
        let early: i64 = burst.go("open").parse().expect("a port");
        burst.go("send");
        let spec = CollectorSpec {
            name: "tcpThroughput".into(),
            interval: Duration::from_millis(300),
            ..CollectorSpec::default()
        };
        let mut recording = Recording::start(spec, &[]);
        recording.targets(&[cgroup.target()]);
        burst.go("send");
        // Into another window.
        std::thread::sleep(Duration::from_millis(700));
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
        assert!(rows.iter().filter(|row| number(row, "rport") == early).all(|row| number(row, "pid") == pid));
    });
    test.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// The program of this test.
pub(crate) fn workload() -> ! {
    let mut ends: Option<(TcpStream, TcpStream)> = None;
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
        "close" => {
            ends = None;
            String::new()
        }
        other => panic!("no order {other}"),
    })
}
