// SPDX-License-Identifier: Apache-2.0
//! A program that loses packets, is refused and resets connections, as often as it says: against the collectors of
//! retransmissions, drops and states. Independent sources: `TCP_INFO`, the namespace's RetransSegs, and what the program did.
//!
//! Packets are lost by a socket filter that drops all: it needs no device, so it works on every kernel and in a bare machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use tracelake_node_agent::engine::CollectorSpec;

use crate::expectations::has_fentry;
use crate::network::{Snmp, close_by_reset, in_own_network, tcp_info};
use crate::support::{Burst, Recording, Row, TABLE, TestCgroup, answer, as_root, number};

/// Connects to a port where nobody listens.
const REFUSED: usize = 10;
/// Retransmissions that the program waits for.
const RETRANSMITS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the program once under a session of one collector; its rows, and what the program says: retransmissions of the
/// client, packets that the server's filter dropped.
fn run(collector: &str) -> (Vec<Row>, TestCgroup, [i64; 2], Snmp) {
    run_as(collector, &[], Processes::Own)
}

fn run_with(collector: &str, param: (&'static str, &'static str)) -> (Vec<Row>, TestCgroup, [i64; 2], Snmp) {
    run_as(collector, &[param], Processes::Own)
}

/// Whether the workload lives in a namespace of process ids of its own, as containers do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Processes {
    Own,
    OfNode,
}

fn run_as(
    collector: &str,
    params: &[(&'static str, &'static str)],
    processes: Processes,
) -> (Vec<Row>, TestCgroup, [i64; 2], Snmp) {
    // On a thread of its own, which takes its namespace with it.
    let collector = collector.to_owned();
    let params = params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    in_own_network(move || {
        let cgroup = TestCgroup::new();
        let spec = CollectorSpec {
            name: collector,
            params,
            interval: Duration::from_millis(500),
            ..CollectorSpec::default()
        };
        let mut recording = Recording::start(spec, &[]);
        recording.targets(&[cgroup.target()]);
        if processes == Processes::Own {
            // Of the children from here on; this thread can start no other thread any more.
            // SAFETY: changes where this thread's children are born.
            let unshared = as_root(|| unsafe { libc::unshare(libc::CLONE_NEWPID) });
            assert_eq!(unshared, 0, "{}", std::io::Error::last_os_error());
        }
        let mut burst = Burst::start("lossy", &cgroup.path);
        let before = Snmp::now();
        let answer = burst.go("lose");
        if processes == Processes::OfNode {
            // Nothing says whose these are: counted, not stored.
            let hits = recording.engine.unattributed();
            let refused =
                hits.iter().find(|(table, _)| *table == "packet_drops").map_or(0, |(_, hits)| *hits);
            assert!(refused >= REFUSED as u64, "{hits:?}");
        }
        let (rows, _) = recording.finish();
        let delta = Snmp::now().since(&before);
        let numbers: Vec<i64> = answer.split(' ').map(|number| number.parse().expect("a number")).collect();
        (rows, cgroup, numbers.try_into().expect("two numbers"), delta)
    })
}

#[test]
fn retransmitted_segments_are_those_that_the_kernel_counts() {
    let (rows, cgroup, [retransmitted, _], delta) = run("tcpRetransmits");
    let segments: i64 = rows.iter().map(|row| number(row, "segments")).sum();
    assert_eq!((segments, segments.cast_unsigned()), (retransmitted, delta.retransmitted));
    assert!(segments >= i64::from(RETRANSMITS));
    for row in &rows {
        assert_eq!(number(row, "cgroup_id"), cgroup.id().cast_signed());
        assert_eq!((row["state"].as_str(), number(row, "bytes"), number(row, "err")), ("ESTABLISHED", 1, 0));
        assert!(["rto", "tlp"].contains(&row["kind"].as_str()), "nothing else was lost: {row:?}");
        assert!(number(row, "rto_ms") >= 200, "the kernel's smallest timeout: {row:?}");
    }
    let totals: Vec<i64> = rows.iter().map(|row| number(row, "total_retrans")).collect();
    assert!(totals.is_sorted() && totals.last() == Some(&retransmitted), "{totals:?}");
}

#[test]
fn retransmissions_of_a_connection_are_added_up_when_asked_for() {
    let (rows, cgroup, [retransmitted, _], delta) = run_with("tcpRetransmits", ("perFlowAggregate", "true"));
    let sum = |column: &str| rows.iter().map(|row| number(row, column)).sum::<i64>();
    assert_eq!((sum("segments"), sum("segments").cast_unsigned()), (retransmitted, delta.retransmitted));
    assert_eq!((sum("weight"), sum("bytes")), (retransmitted, retransmitted), "one byte in each packet");
    for row in &rows {
        assert_eq!(number(row, "cgroup_id"), cgroup.id().cast_signed());
        assert_eq!((row["laddr"].as_str(), number(row, "err")), ("127.0.0.1", 0));
        assert!(number(row, "window_ns") > 0 && number(row, "sock_id") > 0, "{row:?}");
        assert!(!row.contains_key("seq") && !row.contains_key("state"), "of one packet: {row:?}");
    }
    let mut keys: Vec<_> = rows.iter().map(|row| (&row["ts_ns"], &row["kind"])).collect();
    let all = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), all, "one row per window, connection and kind: {rows:?}");
}

#[test]
fn counters_of_a_targets_network_are_the_kernels_own() {
    let (rows, cgroup, [retransmitted, _], delta) = run("nodeInfo");
    // Nothing was sent in that network before the program began.
    let last = |counter: &str| {
        let mut own = rows.iter().filter(|row| row[TABLE] == "net_counters" && row["counter"] == counter);
        let last = own.rfind(|row| number(row, "cgroup_id") == cgroup.id().cast_signed());
        last.map(|row| {
            assert_eq!((row["attribution"].as_str(), number(row, "weight")), ("netns", 1));
            number(row, "value")
        })
    };
    assert_eq!(last("TcpRetransSegs"), Some(retransmitted));
    assert_eq!(last("TcpInSegs"), Some(delta.received.cast_signed()));
    assert_eq!(last("TcpAttemptFails"), Some(REFUSED as i64));
    assert_eq!(last("UdpInDatagrams"), Some(0), "nobody sent any");
    let lo = rows.iter().filter(|row| row[TABLE] == "node_net" && row["ifname"] == "lo");
    let lo: Vec<_> = lo.filter(|row| number(row, "cgroup_id") == cgroup.id().cast_signed()).collect();
    let inodes: BTreeSet<i64> = lo.iter().map(|row| number(row, "netns")).collect();
    assert_eq!(inodes.len(), 1, "one network: {lo:?}");
    assert!(
        lo.iter().any(|row| number(row, "rx_packets") >= last("TcpInSegs").unwrap_or(i64::MAX)),
        "{lo:?}"
    );
    // Who is not a target has none, and the node's own are nobody's.
    for row in rows.iter().filter(|row| number(row, "cgroup_id") != cgroup.id().cast_signed()) {
        assert_eq!((row["attribution"].as_str(), number(row, "cgroup_id")), ("none", 0), "{row:?}");
    }
}

#[test]
fn a_network_whose_namespaces_a_target_enters_is_not_its_own() {
    in_own_network(|| {
        let (other, target) = (TestCgroup::new(), TestCgroup::new());
        let spec = CollectorSpec {
            name: "nodeInfo".into(),
            interval: Duration::from_millis(500),
            ..CollectorSpec::default()
        };
        let mut recording = Recording::start(spec, &[]);
        recording.targets(&[target.target()]);
        // SAFETY: changes where this thread's children are born: the first of them is the first process there.
        let unshared = as_root(|| unsafe { libc::unshare(libc::CLONE_NEWPID) });
        assert_eq!(unshared, 0, "{}", std::io::Error::last_os_error());
        let _whose_they_are = Burst::start("lossy", &other.path);
        let mut guest = Burst::start("lossy", &target.path);
        guest.go("lose");
        let (rows, _) = recording.finish();
        let of_guest: Vec<_> = rows.iter().filter(|row| row["attribution"] != "none").collect();
        assert!(!rows.is_empty() && of_guest.is_empty(), "{of_guest:?}");
    });
}

#[test]
fn drops_have_their_reason_and_their_owner() {
    let (rows, cgroup, [_, dropped], _) = run("packetDrops");
    let mut packets: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for row in &rows {
        *packets.entry((row["reason"].as_str(), row["class"].as_str())).or_default() += number(row, "weight");
        assert_eq!(number(row, "cgroup_id"), cgroup.id().cast_signed());
        assert_eq!((number(row, "ethertype"), number(row, "ip_proto")), (0x800, 6));
        assert!(number(row, "window_ns") > 0, "{row:?}");
        let location = row.get("location").unwrap_or_else(|| panic!("a place with a name: {row:?}"));
        assert!(location.contains("tcp") || row["class"] == "teardown", "{row:?}");
    }
    assert_eq!(packets.get(&("SOCKET_FILTER", "policy")), Some(&dropped), "{packets:?}");
    assert_eq!(packets.get(&("NO_SOCKET", "refused")), Some(&(REFUSED as i64)), "{packets:?}");
    for row in rows.iter().filter(|row| row["reason"] == "NO_SOCKET") {
        assert_eq!(row["attribution"], "netns", "no socket says whose they are");
    }
}

#[test]
fn each_drop_has_a_row_with_both_its_ends_when_asked_for() {
    let (rows, cgroup, [_, dropped], _) = run_with("packetDrops", ("events", "true"));
    let of = |reason: &str| rows.iter().filter(|row| row["reason"] == reason).collect::<Vec<_>>();
    let (filtered, refused) = (of("SOCKET_FILTER"), of("NO_SOCKET"));
    assert_eq!((filtered.len() as i64, refused.len()), (dropped, REFUSED), "{rows:?}");
    for row in filtered.iter().chain(&refused) {
        assert_eq!(number(row, "cgroup_id"), cgroup.id().cast_signed());
        assert_eq!((number(row, "weight"), number(row, "family"), number(row, "protocol")), (1, 2, 6));
        assert_eq!((row["laddr"].as_str(), row["raddr"].as_str()), ("127.0.0.1", "127.0.0.1"));
        assert!(!row.contains_key("window_ns") && number(row, "rport") > 1, "{row:?}");
        assert!(
            row.get("location").is_some_and(|place| place.contains("tcp")),
            "a place with a name: {row:?}"
        );
    }
    assert!(
        refused.iter().all(|row| number(row, "lport") == 1 && !row.contains_key("sock_id")),
        "{refused:?}"
    );
    // All of one connection, whose server has one port: packets of the client.
    let mut ports: Vec<_> = filtered.iter().map(|row| (number(row, "lport"), number(row, "rport"))).collect();
    ports.dedup();
    assert_eq!(ports.len(), 1, "{filtered:?}");
}

#[test]
fn a_network_that_a_process_of_the_node_enters_is_not_its_own() {
    let (rows, _, [_, dropped], _) = run_as("packetDrops", &[], Processes::OfNode);
    let of = |reason: &str| -> i64 {
        rows.iter().filter(|row| row["reason"] == reason).map(|row| number(row, "weight")).sum()
    };
    // Its sockets are its own, where the kernel says which one a packet was for (6.11); a packet without one may be anybody's
    // who lives there.
    let release = tracelake_node_agent::session::uname().release;
    let mut version =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().expect("a version"));
    let is_old = (version.next(), version.next()) < (Some(6), Some(11));
    let of_sockets = if is_old { 0 } else { dropped };
    assert_eq!((of("SOCKET_FILTER"), of("NO_SOCKET")), (of_sockets, 0), "{rows:?}");
}

#[test]
fn every_received_packet_has_one_outcome() {
    let (rows, cgroup, [_, dropped], delta) = run("tcpReceive");
    let mut packets: BTreeMap<&str, i64> = BTreeMap::new();
    for row in &rows {
        *packets.entry(row["outcome"].as_str()).or_default() += number(row, "weight");
        assert_eq!(number(row, "cgroup_id"), cgroup.id().cast_signed());
        assert!(number(row, "segments") >= number(row, "weight") && number(row, "lport") > 0);
    }
    let of = |outcome: &str| packets.get(outcome).copied().unwrap_or(0);
    assert_eq!(of("no_socket"), REFUSED as i64, "{packets:?}");
    let filtered =
        rows.iter().filter(|row| row.get("drop_reason").is_some_and(|reason| reason == "SOCKET_FILTER"));
    assert_eq!(filtered.map(|row| number(row, "weight")).sum::<i64>(), dropped, "{packets:?} {rows:#?}");
    let hooks = if has_fentry() { "full" } else { "tracepoint" };
    assert!(rows.iter().all(|row| row["hooks"] == hooks), "not all is {hooks}: {rows:?}");
    if hooks == "full" {
        assert_eq!(packets.values().sum::<i64>().cast_unsigned(), delta.received, "{packets:?}");
        assert_eq!(of("unknown"), 0, "{packets:?}");
        // Two handshakes: a SYN each for the listener, a last segment each for the handshake.
        assert_eq!((of("listen"), of("new_syn_recv")), (2, 2), "{packets:?}");
        assert!(of("direct") + of("backlog") > 0, "{packets:?}");
        // The server's FIN meets the mini-socket of the client, which closed first.
        assert_eq!(of("time_wait"), 1, "{packets:?}");
        let reasons = rows.iter().filter(|row| row["outcome"] == "dropped");
        let reasons = reasons.map(|row| row.get("drop_reason").map_or("none", String::as_str));
        let others: Vec<&str> = reasons.filter(|reason| *reason != "SOCKET_FILTER").collect();
        assert!(
            others.is_empty() || others == ["TCP_RESET"],
            "a reset ends its connection and is no data: {others:?}"
        );
    }
}

fn word(row: &Row, column: &str) -> String {
    row.get(column).cloned().unwrap_or_default()
}

/// How often each change happened to the sockets of the cgroup.
fn changes(rows: &[Row], cgroup: &TestCgroup) -> BTreeMap<String, usize> {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows {
        assert_eq!(number(row, "cgroup_id"), cgroup.id().cast_signed());
        let what = match row["kind"].as_str() {
            "transition" => format!("{} {}", word(row, "old_state"), word(row, "new_state")),
            kind => format!("{kind} {}", word(row, "old_state")),
        };
        *found.entry(what).or_default() += number(row, "weight") as usize;
    }
    found
}

/// What the program's sockets go through.
fn expected_changes() -> BTreeMap<String, usize> {
    // Two connections: one that the client ends by a FIN, one that it ends by a reset.
    let mut expected: BTreeMap<String, usize> = [
        ("CLOSE LISTEN", 1),
        ("LISTEN CLOSE", 1),
        ("CLOSE SYN_SENT", 2 + REFUSED),
        ("SYN_SENT ESTABLISHED", 2),
        ("SYN_SENT CLOSE", REFUSED),
        ("LISTEN SYN_RECV", 2),
        ("SYN_RECV ESTABLISHED", 2),
        ("ESTABLISHED FIN_WAIT1", 1),
        ("FIN_WAIT1 FIN_WAIT2", 1),
        ("FIN_WAIT2 CLOSE", 1),
        ("ESTABLISHED CLOSE_WAIT", 1),
        ("CLOSE_WAIT LAST_ACK", 1),
        ("LAST_ACK CLOSE", 1),
        // Both ends of the reset.
        ("ESTABLISHED CLOSE", 2),
        // Who aborts goes to CLOSE first, and sends the reset then.
        ("rst_sent CLOSE", 1),
        ("rst_received ESTABLISHED", 1),
        ("rst_received SYN_SENT", REFUSED),
    ]
    .into_iter()
    .map(|(what, times)| (what.to_owned(), times))
    .collect();
    if has_fentry() {
        expected.insert("time_wait FIN_WAIT2".to_owned(), 1);
    }
    expected
}

#[test]
fn changes_of_state_are_counted_by_port_when_asked_for() {
    let (rows, cgroup, _, _) = run_with("tcpStates", ("mode", "aggregate"));
    assert_eq!(changes(&rows, &cgroup), expected_changes());
    for row in &rows {
        assert!(number(row, "window_ns") > 0 && !row.contains_key("sock_id"), "{row:?}");
        assert_ne!(row.contains_key("lport"), row.contains_key("rport"), "the lower port: {row:?}");
    }
    let refused = rows.iter().filter(|row| row.get("rport").is_some_and(|port| port == "1"));
    let refused: i64 = refused.map(|row| number(row, "weight")).sum();
    assert_eq!(refused, 3 * REFUSED as i64, "begun, reset, ended");
}

#[test]
fn every_change_of_state_has_a_row() {
    let (rows, cgroup, _, _) = run("tcpStates");
    assert_eq!(changes(&rows, &cgroup), expected_changes());
    assert!(rows.iter().all(|row| number(row, "weight") == 1));
    let stayed = |old: &str, new: &str| {
        let row = rows.iter().find(|row| word(row, "old_state") == old && word(row, "new_state") == new);
        row.expect("checked above").get("in_state_ns").map(|ns| ns.parse::<i64>().expect("a number"))
    };
    assert!(
        stayed("ESTABLISHED", "FIN_WAIT1").expect("its beginning was seen") > 100_000_000,
        "while packets were lost"
    );
    assert_eq!(stayed("CLOSE", "LISTEN"), None);
}

/// Has a socket drop all that arrives for it, or none any more.
pub(crate) fn drop_all(stream: &TcpStream, on: bool) {
    let mut refuse = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut refuse };
    let option = if on { libc::SO_ATTACH_FILTER } else { libc::SO_DETACH_FILTER };
    // SAFETY: the kernel reads the struct and the one instruction that it points to.
    let result = unsafe {
        let (at, length) = ((&raw const program).cast(), size_of::<libc::sock_fprog>() as libc::socklen_t);
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, option, at, length)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// The program of these tests.
pub(crate) fn workload() -> ! {
    answer(|_| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("is bound").port();
        let connect = || {
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens");
            (client, listener.accept().expect("a connection").0)
        };
        let (mut client, mut server) = connect();
        drop_all(&server, true);
        client.write_all(b"x").expect("is open");
        let deadline = Instant::now() + PATIENCE;
        while tcp_info(&client).total_retrans < RETRANSMITS {
            assert!(Instant::now() < deadline, "the client sends again");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop_all(&server, false);
        server.read_exact(&mut [0]).expect("it comes at last");
        let (sent, arrived) = (tcp_info(&client), tcp_info(&server));
        let dropped = sent.data_segs_out - arrived.data_segs_in;
        drop(client);
        assert_eq!(server.read(&mut [0]).expect("the client closed"), 0);
        // Until its FIN is acknowledged, at the latest by the timer.
        std::thread::sleep(Duration::from_millis(100));
        drop(server);

        let (client, mut server) = connect();
        close_by_reset(client);
        server.read(&mut [0]).expect_err("a reset");
        drop((server, listener));
        for _ in 0..REFUSED {
            TcpStream::connect((Ipv4Addr::LOCALHOST, 1)).expect_err("nobody listens there");
        }
        format!("{} {dropped}", sent.total_retrans)
    })
}
