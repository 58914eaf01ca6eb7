// SPDX-License-Identifier: Apache-2.0
//! Connections with known payloads between two cgroups over loopback, compared row by row with what both ends knew.
//!
//! The binary runs itself twice as workload: a server in one cgroup, a client in another, both in a network namespace of
//! this test. Independent sources: `TCP_INFO` of each socket just before it is closed, the payloads themselves, and the
//! namespace's own counters of opens. Needs root, cgroup v2 (also beside v1) and nothing else on the machine.

mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use tracelake_node_agent::engine::{
    CollectorOutcome, CollectorSpec, CollectorState, Engine, EngineConfig, Output, SessionSpec,
};

use self::workload::{
    CLIENT_THREAD, CONNECTIONS, EARLY, End, PATIENCE, REFUSED_V4, REFUSED_V6, SERVER_THREAD, Workload,
};
use crate::expectations::has_fentry;
use crate::network::{Snmp, own_network};
use crate::support::{self, ALONE, TestCgroup, number, rows_of};

pub(crate) use self::workload::workload;

const ECONNRESET: i64 = 104;
const ECONNREFUSED: i64 = 111;

#[test]
fn every_connection_has_one_row_for_each_end_with_the_kernels_own_numbers() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    own_network();
    let (server_group, client_group) = (TestCgroup::new(), TestCgroup::new());
    let mut server = Workload::start("server", &server_group);
    let ports = server.answer("ports");
    let mut client = Workload::start(&format!("client {ports}"), &client_group);

    let (out, rows) = sync_channel(1024);
    let config = EngineConfig { node: "ground-truth".into(), ..EngineConfig::default() };
    let mut engine = Engine::start(config, out).expect("the engine starts");

    // Open before the session: adopted.
    client.ask("early");
    let early = client.ends(EARLY);
    open(&mut engine, "first");
    engine
        .set_targets("first", &[server_group.target(), client_group.target()])
        .expect("targets are entered");

    let before = Snmp::now();
    client.ask("work");
    let mut client_ends = client.ends(CONNECTIONS - 1);
    let mut server_ends = server.ends(CONNECTIONS - 1);
    client.ask("exchange");
    client_ends.extend(client.ends(1));
    server_ends.extend(server.ends(1));
    client.ask("reset");
    server.answer("reset");
    client.ask("refused");
    client.answer("refused");
    client.ask("late");
    let (early_client, early_server) = (client.ends(EARLY), server.ends(EARLY));
    assert!(early_client.iter().zip(&early).all(|(late, early)| late.cookie == early.cookie));

    // Open when the session ends; a second session finds it traced already.
    client.ask("hold");
    let held = client.ends(1).pop().expect("one");
    server.ends(1);
    let delta = Snmp::now().since(&before);
    open(&mut engine, "second");
    engine.set_targets("second", &[server_group.target()]).expect("targets are entered");
    let first = close(&mut engine, &rows, "first");
    let sees_accept = engine.coverage("first").iter().any(|row| row.hooks.contains("fentry"));
    let second = close(&mut engine, &rows, "second");

    let by = |direction: &str| -> Vec<&Row> {
        first.iter().filter(|row| row.text("direction") == direction).collect()
    };
    let (active, adopted) = (by("active"), by("adopted"));
    assert_eq!(active.len() as u64, delta.active_opens, "rows of connect and the kernel's ActiveOpens");
    // The kernel makes a socket more, and counts it, where two segments end the same handshake on two CPUs at once; only
    // one lives, the other closes without having been established.
    let (passive, twins): (Vec<_>, Vec<_>) =
        by("passive").into_iter().partition(|row| row.0.contains_key("established_ns"));
    assert!(
        (passive.len() + twins.len()) as u64 <= delta.passive_opens,
        "{} passive rows and {twins:?}, {} PassiveOpens",
        passive.len(),
        delta.passive_opens
    );
    assert_eq!(active.len(), CONNECTIONS + REFUSED_V4 + REFUSED_V6 + 1);
    assert_eq!(passive.len(), CONNECTIONS + 1);
    assert_eq!(adopted.len(), 2 * EARLY, "both ends of the connections that were open before");

    // Nobody's row is another's: over loopback most of the server's changes happen in the client's context.
    assert!(
        active.iter().all(|row| row.int("cgroup_id") == client_group.id().cast_signed()),
        "a client's row elsewhere"
    );
    assert!(
        passive.iter().all(|row| row.int("cgroup_id") == server_group.id().cast_signed()),
        "a server's row elsewhere"
    );
    let netns = fs::metadata("/proc/thread-self/ns/net").expect("there are namespaces").ino();
    assert!(first.iter().all(|row| row.text("attribution") == "socket"));
    assert!(first.iter().all(|row| row.int("netns").cast_unsigned() == netns));

    // Each end's own numbers.
    assert_eq!(client_ends.iter().filter(|end| end.reset).count(), 1);
    client_ends.sort();
    server_ends.sort();
    for (rows, ends, side) in [(&active, &client_ends, "client"), (&passive, &server_ends, "server")] {
        // Not by ports: IPv4 and IPv6 choose theirs apart, and may choose the same.
        let found: BTreeMap<_, _> = rows.iter().map(|row| (row.int("sock_id"), *row)).collect();
        assert_eq!(found.len(), rows.len(), "a {side}'s connection has two rows");
        for end in ends {
            let row = found.get(&end.cookie).unwrap_or_else(|| panic!("no row of {side} {end:?}"));
            check_ended(row, end, side);
        }
    }
    let algorithm =
        fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").expect("the kernel names it");
    for row in active.iter().chain(&passive).filter(|row| row.text("end_reason") != "refused") {
        assert_eq!(row.text("ca_name"), algorithm.trim());
        let (opened, established) = (row.int("opened_ns"), row.int("established_ns"));
        assert!(opened <= established);
        match row.text("direction") {
            "active" => assert_eq!(row.int("handshake_ns"), established - opened),
            _ => assert!(row.is_null("handshake_ns")),
        }
    }
    for row in &active {
        assert_eq!(row.text("comm"), CLIENT_THREAD);
        assert!(row.int("pid") == active[0].int("pid") && row.int("start_ns") == active[0].int("start_ns"));
    }
    if sees_accept {
        for row in &passive {
            assert_eq!(row.text("comm"), SERVER_THREAD);
            assert_eq!(row.int("pid"), i64::from(server.child.id()));
        }
        for end in &server_ends {
            let row = passive.iter().find(|row| row.int("sock_id") == end.cookie).expect("checked above");
            let accepted = row.int("established_ns") + row.int("accept_delay_ns");
            assert!((end.accepting..=end.accepted).contains(&accepted), "{accepted} {end:?}");
        }
    } else {
        assert!(passive.iter().all(|row| row.is_null("pid") && row.is_null("accept_delay_ns")));
        assert!(!has_fentry(), "only where nothing sees who accepts");
    }
    assert!(active.iter().chain(&adopted).all(|row| row.is_null("accept_delay_ns")));
    assert!(adopted.iter().all(|row| row.is_null("pid")), "nobody saw who opened or accepted");
    assert_eq!(
        families(&active),
        BTreeSet::from([(2, true), (10, false)]),
        "IPv4 through IPv6 sockets is IPv4"
    );
    assert_eq!(families(&passive), families(&active));

    // Refused.
    let refused: Vec<_> = active.iter().filter(|row| row.text("end_reason") == "refused").collect();
    assert_eq!(refused.len(), REFUSED_V4 + REFUSED_V6);
    assert_eq!(refused.iter().filter(|row| row.int("family") == 10).count(), REFUSED_V6);
    for row in refused {
        assert_eq!(
            (row.int("error"), row.int("bytes_acked"), row.int("bytes_received")),
            (ECONNREFUSED, 0, 0)
        );
        assert!(row.is_null("established_ns") && row.is_null("handshake_ns") && !row.is_null("opened_ns"));
    }

    // Open before.
    let early = early_client.iter().map(|end| (end, &client_group));
    for (end, group) in early.chain(early_server.iter().map(|end| (end, &server_group))) {
        let row =
            adopted.iter().find(|row| row.int("sock_id") == end.cookie).expect("both ends were adopted");
        assert_eq!(row.ports(), (end.lport, end.rport));
        assert_eq!(row.int("cgroup_id"), group.id().cast_signed());
        assert_eq!((row.text("end_reason"), row.int("error")), ("fin", 0));
        assert_eq!((row.int("bytes_acked"), row.int("bytes_received")), (end.sent, end.received), "{end:?}");
        assert!(row.is_null("opened_ns") && row.is_null("established_ns") && row.is_null("duration_ns"));
    }

    // Open at the end, in both sessions.
    let open_rows: Vec<_> = first.iter().filter(|row| row.text("end_reason") == "open_at_stop").collect();
    let held_ports = BTreeSet::from([(held.lport, held.rport), (held.rport, held.lport)]);
    assert_eq!(open_rows.iter().map(|row| row.ports()).collect::<BTreeSet<_>>(), held_ports);
    for row in open_rows.iter().copied().chain(&second) {
        let (acked, received) = if row.int("lport") == held.lport {
            (held.sent, held.received)
        } else {
            (held.received, held.sent)
        };
        assert_eq!((row.int("bytes_acked"), row.int("bytes_received")), (acked, received));
        assert_eq!(row.int("duration_ns"), row.int("ts_ns") - row.int("established_ns"), "up to the stop");
        assert!(row.is_null("closed_ns"));
    }
    assert_eq!(second.iter().map(Row::ports).collect::<Vec<_>>(), [(held.rport, held.lport)]);
    assert_eq!(second[0].int("cgroup_id"), server_group.id().cast_signed());
}

fn check_ended(row: &Row, end: &End, side: &str) {
    assert_eq!(row.int("bytes_acked"), end.sent, "payload acknowledged, {side} {end:?}");
    assert_eq!(row.int("bytes_received"), end.received, "payload received, {side} {end:?}");
    assert_eq!(
        row.int("bytes_sent") - row.int("bytes_retrans"),
        end.sent,
        "payload sent once, {side} {end:?}"
    );
    // What the kernel itself said just before: the SYN counts as acknowledged, and the FIN as received.
    assert_eq!(end.info_acked, end.sent + i64::from(side == "client"), "TCP_INFO, {side} {end:?}");
    assert_eq!(end.info_received, end.received + i64::from(end.peer_closed), "TCP_INFO, {side} {end:?}");
    assert_eq!(row.ports(), (end.lport, end.rport), "{side} {end:?}");
    let (reason, error) = match (end.reset, side) {
        (true, "client") => ("rst_out", 0),
        (true, _) => ("rst_in", ECONNRESET),
        _ => ("fin", 0),
    };
    assert_eq!((row.text("end_reason"), row.int("error")), (reason, error), "{side} {end:?}");
    assert_eq!(row.int("duration_ns"), row.int("closed_ns") - row.int("established_ns"));
    assert_eq!(row.int("ts_ns"), row.int("closed_ns"));
    assert!(row.int("srtt_us") > 0 && row.int("snd_cwnd") > 0 && row.int("segs_in") > 0, "{side} {end:?}");
}

fn families(rows: &[&Row]) -> BTreeSet<(i64, bool)> {
    let is_v4 = |address: &str| address.parse::<IpAddr>().expect("is an address").is_ipv4();
    let both = |row: &&Row| (is_v4(row.text("laddr")), is_v4(row.text("raddr")));
    assert!(rows.iter().all(|row| both(row).0 == both(row).1));
    rows.iter().map(|row| (row.int("family"), both(row).0)).collect()
}

fn open(engine: &mut Engine, uid: &str) {
    let spec = SessionSpec {
        uid: uid.into(),
        collectors: vec![CollectorSpec { name: "tcpConnections".into(), ..CollectorSpec::default() }],
        containers: Vec::new(),
        rollover_interval: Duration::from_millis(200),
        rollover_bytes: 1 << 20,
        budget: Default::default(),
    };
    let outcomes = engine.open(spec).expect("the session opens");
    let running = CollectorOutcome { collector: "tcpConnections".into(), state: CollectorState::Running };
    assert_eq!(outcomes, [running]);
}

/// Ends the session and returns its rows, after asserting that none was lost and that the ledger adds up.
fn close(engine: &mut Engine, rows: &Receiver<Output>, uid: &str) -> Vec<Row> {
    engine.close(uid, true);
    let (mut found, mut weight) = (Vec::new(), 0);
    loop {
        match rows.recv_timeout(PATIENCE).expect("the session's end comes") {
            Output::Batch(batch) if &*batch.session == uid => {
                weight += batch.weight;
                found.extend(rows_of(&batch.rows).into_iter().map(Row));
            }
            Output::Closed { session } if &*session == uid => break,
            Output::Batch(batch) => {
                assert_eq!(batch.rows.num_rows(), 0, "rows of session {} before its end", batch.session)
            }
            Output::Closed { session } => panic!("session {session} ended instead of {uid}"),
        }
    }
    let counters = engine.counters(uid).pop().expect("one table");
    assert_eq!((counters.emitted, weight), (found.len() as u64, found.len() as u64), "{counters:?}");
    let lost = counters.ring_full + counters.map_full + counters.recursion + counters.decode_error;
    let cut = counters.sampled_out + counters.rate_limited + counters.filtered;
    assert_eq!((lost, cut), (0, 0), "{counters:?}");
    found
}

/// A row, with the questions of this test.
#[derive(Debug)]
struct Row(support::Row);

impl Row {
    fn is_null(&self, name: &str) -> bool {
        !self.0.contains_key(name)
    }

    fn int(&self, name: &str) -> i64 {
        number(&self.0, name)
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).unwrap_or_else(|| panic!("{name} has a value in {:?}", self.0))
    }

    fn ports(&self) -> (i64, i64) {
        (self.int("lport"), self.int("rport"))
    }
}
