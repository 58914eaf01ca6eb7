// SPDX-License-Identifier: Apache-2.0
//! Connections with known payloads between two cgroups over loopback, compared row by row with what both ends knew.
//!
//! The binary runs itself twice as workload: a server in one cgroup, a client in another, both in a network namespace of
//! this test. Independent sources: `TCP_INFO` of each socket just before it is closed, the payloads themselves, and the
//! namespace's own counters of opens. Needs root, cgroup v2 (also beside v1) and nothing else on the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use tracelake_node_agent::engine::{
    CollectorOutcome, CollectorSpec, CollectorState, Engine, EngineConfig, Output, SessionSpec,
};
use tracelake_node_agent::kernel::clock;

use crate::expectations::has_fentry;
use crate::support::{self, ALONE, TestCgroup, as_root, number, program, rows_of, start_in};

/// Says to a run of this binary that it is workload: `server`, or `client <ports>`.
const ROLE: &str = "TRACELAKE_TEST_TCP";
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that are opened and closed while the session runs; one of them ends by a reset.
const CONNECTIONS: usize = 137;
/// Open before the session: one IPv4, one IPv6.
const EARLY: usize = 2;
const REFUSED_V4: usize = 5;
const REFUSED_V6: usize = 2;
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

/// A run of this binary as server or client.
struct Workload {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Workload {
    fn start(role: &str, group: &TestCgroup) -> Workload {
        let mut command = program("tcp");
        command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A socket belongs to the cgroup it is made in: the program begins there.
        let mut child = start_in(&group.path, command);
        let orders = child.stdin.take().expect("is piped");
        let lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
        let (send, answers) = sync_channel(4096);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Workload { child, orders, answers }
    }

    fn ask(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("the workload listens");
    }

    /// What follows `word` in the next line, which has to begin with it.
    fn answer(&mut self, word: &str) -> String {
        let line = self.answers.recv_timeout(PATIENCE).expect("the workload answers");
        let rest = line.strip_prefix(word).unwrap_or_else(|| panic!("{word} was expected, not: {line}"));
        rest.trim().to_owned()
    }

    fn ends(&mut self, count: usize) -> Vec<End> {
        (0..count).map(|_| End::parse(&self.answer("end"))).collect()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What one end of a connection knew just before it closed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    lport: i64,
    rport: i64,
    sent: i64,
    received: i64,
    info_acked: i64,
    info_received: i64,
    peer_closed: bool,
    reset: bool,
    cookie: i64,
    /// Boot time before and after the call of accept; 0 on the side that connects.
    accepting: i64,
    accepted: i64,
}

impl End {
    fn parse(line: &str) -> End {
        let mut numbers = line.split(' ').map(|word| word.parse::<i64>().expect("is a number"));
        let mut next = || numbers.next().expect("eleven numbers");
        End {
            lport: next(),
            rport: next(),
            sent: next(),
            received: next(),
            info_acked: next(),
            info_received: next(),
            peer_closed: next() != 0,
            reset: next() != 0,
            cookie: next(),
            accepting: next(),
            accepted: next(),
        }
    }

    /// Waits until everything sent was acknowledged, and says what the kernel has counted.
    fn tell(
        stream: &TcpStream,
        sent: usize,
        received: usize,
        peer_closed: bool,
        reset: bool,
        accept: (u64, u64),
    ) {
        let deadline = Instant::now() + PATIENCE;
        let info = loop {
            let info = tcp_info(stream);
            if info.unacked == 0 && info.notsent_bytes == 0 {
                break info;
            }
            assert!(Instant::now() < deadline, "the peer does not acknowledge");
            thread::yield_now();
        };
        let port = |address: std::io::Result<SocketAddr>| address.expect("is connected").port();
        say(&format!(
            "end {} {} {sent} {received} {} {} {} {} {} {} {}",
            port(stream.local_addr()),
            port(stream.peer_addr()),
            info.bytes_acked,
            info.bytes_received,
            u8::from(peer_closed),
            u8::from(reset),
            cookie(stream),
            accept.0,
            accept.1
        ));
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("the test listens");
}

/// The namespace's counters of TCP.
pub(crate) struct Snmp {
    active_opens: u64,
    passive_opens: u64,
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
fn own_network() {
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
    unacked: u32,
    before_total: [u32; 18],
    pub(crate) total_retrans: u32,
    pacing: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    segments: [u32; 2],
    notsent_bytes: u32,
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
fn cookie(stream: &TcpStream) -> u64 {
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

const CLIENT_THREAD: &str = "tcp-client";
const SERVER_THREAD: &str = "tcp-server";
/// What a connection begins with: bytes of the request, of the reply, and how it goes on.
const HEADER: usize = 12;
/// The client shuts down first.
const CLIENT_FIRST: u32 = 0;
/// The server closes first.
const SERVER_FIRST: u32 = 1;
/// The client resets.
const RESET: u32 = 2;
/// Another request follows.
const AGAIN: u32 = 3;
/// The same, and the server tells what it has so far.
const HOLD: u32 = 4;

/// Does what [`ROLE`] says, if it is set, and does not return then.
pub(crate) fn workload() {
    let Ok(role) = env::var(ROLE) else { return };
    let mut words = role.split(' ');
    match words.next() {
        Some("server") => server(),
        Some("client") => {
            let ports: Vec<u16> = words.map(|port| port.parse().expect("is a port")).collect();
            let run = move || client(ports.as_slice().try_into().expect("three ports"));
            let thread = thread::Builder::new().name(CLIENT_THREAD.into()).spawn(run).expect("a thread");
            thread.join().expect("the client ends well");
        }
        other => panic!("no such role: {other:?}"),
    }
    std::process::exit(0);
}

fn server() {
    let bind = |ip: IpAddr| TcpListener::bind((ip, 0)).expect("a free port");
    // The last one takes IPv4 too: its connections have IPv4 addresses inside IPv6 sockets.
    let listeners = [
        bind(Ipv4Addr::LOCALHOST.into()),
        bind(Ipv6Addr::LOCALHOST.into()),
        bind(Ipv6Addr::UNSPECIFIED.into()),
    ];
    let ports =
        listeners.each_ref().map(|listener| listener.local_addr().expect("is bound").port().to_string());
    say(&format!("ports {}", ports.join(" ")));
    for listener in listeners {
        let accept = move || {
            loop {
                let before = clock::boot_ns();
                let (stream, _) = listener.accept().expect("accepts");
                let times = (before, clock::boot_ns());
                thread::spawn(move || serve(stream, times));
            }
        };
        thread::Builder::new().name(SERVER_THREAD.into()).spawn(accept).expect("a thread");
    }
    // Until the test goes away.
    let _ = std::io::stdin().read(&mut [0]);
}

fn serve(mut stream: TcpStream, accept: (u64, u64)) {
    let (mut sent, mut received) = (0, 0);
    let (peer_closed, reset) = loop {
        let mut header = [0; HEADER];
        match stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break (true, false),
            Err(error) => panic!("server cannot read: {error}"),
        }
        let [request, reply, mode] =
            [0, 4, 8].map(|at| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes")));
        let mut body = vec![0; request as usize];
        stream.read_exact(&mut body).expect("the request comes whole");
        received += HEADER + body.len();
        stream.write_all(&vec![7; reply as usize]).expect("the client takes the reply");
        sent += reply as usize;
        match mode {
            SERVER_FIRST => break (false, false),
            RESET => break (false, true),
            HOLD => End::tell(&stream, sent, received, false, false, accept),
            _ => {}
        }
    };
    End::tell(&stream, sent, received, peer_closed, reset, accept);
    if reset {
        let error = stream.read(&mut [0]).expect_err("the client resets");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        say("reset");
    }
}

/// One end of a connection on the client's side.
struct Conversation {
    stream: TcpStream,
    sent: usize,
    received: usize,
}

impl Conversation {
    fn open(ip: IpAddr, port: u16) -> Conversation {
        let stream = TcpStream::connect((ip, port)).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Conversation { stream, sent: 0, received: 0 }
    }

    fn exchange(&mut self, request: usize, reply: usize, mode: u32) {
        let header = [request as u32, reply as u32, mode].map(u32::to_ne_bytes).concat();
        self.stream.write_all(&header).expect("the server takes the header");
        self.stream.write_all(&vec![5; request]).expect("the server takes the request");
        self.stream.read_exact(&mut vec![0; reply]).expect("the reply comes whole");
        self.sent += HEADER + request;
        self.received += reply;
    }

    fn tell(&self, peer_closed: bool, reset: bool) {
        End::tell(&self.stream, self.sent, self.received, peer_closed, reset, (0, 0));
    }

    /// Shuts down and waits for the peer's end.
    fn finish(mut self) {
        self.tell(false, false);
        self.stream.shutdown(Shutdown::Write).expect("is open");
        assert_eq!(self.stream.read(&mut [0]).expect("the server closes"), 0);
    }
}

fn client(ports: [u16; 3]) {
    let [v4, v6, mapped] = ports;
    let mut early = Vec::new();
    let mut held = Vec::new();
    for order in std::io::stdin().lines() {
        match order.expect("the test speaks").as_str() {
            "early" => {
                for (ip, port) in [(Ipv4Addr::LOCALHOST.into(), v4), (Ipv6Addr::LOCALHOST.into(), v6)] {
                    let mut conversation = Conversation::open(ip, port);
                    conversation.exchange(1_000, 500, AGAIN);
                    conversation.tell(false, false);
                    early.push(conversation);
                }
            }
            "work" => (1..CONNECTIONS).for_each(|i| work(i, [v4, v6, mapped])),
            "exchange" => {
                let mut conversation = Conversation::open(Ipv4Addr::LOCALHOST.into(), v4);
                conversation.exchange(100, 200, RESET);
                conversation.tell(false, true);
                held.push(conversation);
            }
            "reset" => close_by_reset(held.pop().expect("was opened").stream),
            "refused" => {
                for i in 0..REFUSED_V4 + REFUSED_V6 {
                    let ip = if i < REFUSED_V4 {
                        Ipv4Addr::LOCALHOST.into()
                    } else {
                        IpAddr::from(Ipv6Addr::LOCALHOST)
                    };
                    let error = TcpStream::connect((ip, 1)).expect_err("nobody listens there");
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                }
                say("refused");
            }
            "late" => {
                for mut conversation in early.drain(..) {
                    conversation.exchange(2_000, 70_000, CLIENT_FIRST);
                    conversation.finish();
                }
            }
            "hold" => {
                let mut conversation = Conversation::open(Ipv6Addr::LOCALHOST.into(), v6);
                conversation.exchange(777, 333, HOLD);
                conversation.tell(false, false);
                held.push(conversation);
            }
            order => panic!("no such order: {order}"),
        }
    }
}

fn work(i: usize, [v4, v6, mapped]: [u16; 3]) {
    let (ip, port) = match i % 4 {
        0 | 1 => (IpAddr::from(Ipv4Addr::LOCALHOST), v4),
        2 => (Ipv6Addr::LOCALHOST.into(), v6),
        _ => (Ipv4Addr::LOCALHOST.into(), mapped),
    };
    let mode = if i.is_multiple_of(3) { SERVER_FIRST } else { CLIENT_FIRST };
    let mut conversation = Conversation::open(ip, port);
    // From nothing to several windows.
    conversation.exchange(i * 37, i * i * 11, mode);
    if mode == CLIENT_FIRST {
        conversation.finish();
    } else {
        assert_eq!(conversation.stream.read(&mut [0]).expect("the server closes"), 0);
        conversation.tell(true, false);
    }
}
