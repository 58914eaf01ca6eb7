// SPDX-License-Identifier: Apache-2.0
//! The two programs of the test: a server and a client that exchange known payloads, do what they are told by lines on their
//! input, and say by lines what each end of each connection knew just before it was closed.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};
use std::{env, thread};

use tracelake_node_agent::kernel::clock;

use crate::network::{close_by_reset, cookie, tcp_info};
use crate::support::{TestCgroup, program, start_in};

/// Says to a run of this binary that it is workload: `server`, or `client <ports>`.
const ROLE: &str = "TRACELAKE_TEST_TCP";
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that are opened and closed while the session runs; one of them ends by a reset.
pub(super) const CONNECTIONS: usize = 137;
/// Open before the session: one IPv4, one IPv6.
pub(super) const EARLY: usize = 2;
pub(super) const REFUSED_V4: usize = 5;
pub(super) const REFUSED_V6: usize = 2;

/// A run of this binary as server or client.
pub(super) struct Workload {
    pub(super) child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Workload {
    pub(super) fn start(role: &str, group: &TestCgroup) -> Workload {
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

    pub(super) fn ask(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("the workload listens");
    }

    /// What follows `word` in the next line, which has to begin with it.
    pub(super) fn answer(&mut self, word: &str) -> String {
        let line = self.answers.recv_timeout(PATIENCE).expect("the workload answers");
        let rest = line.strip_prefix(word).unwrap_or_else(|| panic!("{word} was expected, not: {line}"));
        rest.trim().to_owned()
    }

    pub(super) fn ends(&mut self, count: usize) -> Vec<End> {
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
pub(super) struct End {
    pub(super) lport: i64,
    pub(super) rport: i64,
    pub(super) sent: i64,
    pub(super) received: i64,
    pub(super) info_acked: i64,
    pub(super) info_received: i64,
    pub(super) peer_closed: bool,
    pub(super) reset: bool,
    pub(super) cookie: i64,
    /// Boot time before and after the call of accept; 0 on the side that connects.
    pub(super) accepting: i64,
    pub(super) accepted: i64,
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

pub(super) const CLIENT_THREAD: &str = "tcp-client";
pub(super) const SERVER_THREAD: &str = "tcp-server";
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
