// SPDX-License-Identifier: Apache-2.0

//! The programs that are recorded, and their peers: this test binary itself, told by an environment variable what to do.
//!
//! The pod does the same in every network test: it serves [`SERVED`] connections, makes [`MADE`], sends and receives
//! [`BULK`] bytes, and has [`QUEUED`] more wait in a listener's queue. A fault is one word of its order that changes one of
//! these. What pod and peer agree upon goes over a connection of its own, a line each way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

use crate::network::{PEER, POD};

/// Names what to do, and its argument.
pub(crate) const WORKLOAD: &str = "TRACELAKE_TEST_WORKLOAD";

/// Ports of the peer: orders, whatever is sent and answered, nobody.
const ORDERS: u16 = 7000;
const SINK: u16 = 7001;
/// Ports of the pod: a server, a server that is late, nobody.
const SERVER: u16 = 7002;
const LATE: u16 = 7003;
/// Where nobody listens, on either side.
const NOBODY: u16 = 7009;

const SERVED: usize = 20;
const MADE: usize = 20;
const BULK: usize = 6 << 20;
/// Connections that come while the program is not there to accept them.
const QUEUED: usize = 12;
/// Attempts that meet nobody.
pub(crate) const REFUSED: usize = 10;
/// Connections that are ended by a reset.
pub(crate) const RESET: usize = 12;
/// How long a reader does something else.
pub(crate) const STALL: Duration = Duration::from_millis(1_500);
const ABSENT: Duration = Duration::from_millis(700);
/// The argument of listen where the queue is short: one more may wait.
const SHORT_QUEUE: i32 = 3;
/// Between those who come to a queue one after the other.
const APART: Duration = Duration::from_millis(20);
/// Who comes to it together, after three others.
const AT_ONCE: std::ops::Range<usize> = 3..6;
/// A test that hangs has failed. The peer waits while the recorder loads its programs, a minute on a machine with too much to do.
const PATIENCE_SECONDS: u32 = 300;
/// What a network counts is looked at once a second: at least once before anything happens, and once after.
const LOOK: Duration = Duration::from_millis(1_200);

/// Does what [`WORKLOAD`] says, if it is set, and does not return then.
pub(crate) fn workload() {
    let Ok(order) = std::env::var(WORKLOAD) else { return };
    // SAFETY: sets a timer that ends this process.
    unsafe { libc::alarm(PATIENCE_SECONDS) };
    let mut words = order.split(' ');
    match (words.next(), words.next()) {
        (Some("pod"), fault) => pod(fault.unwrap_or_default()),
        (Some("peer"), _) => peer(),
        (Some("read"), Some(file)) => crate::pressure::read(file),
        (Some("spin"), Some(threads)) => crate::pressure::spin(threads.parse().expect("a number")),
        _ => panic!("no workload {order}"),
    }
    std::process::exit(0);
}

fn pod(fault: &str) {
    let is = |name: &str| fault == name;
    std::thread::sleep(LOOK);
    let server = listen(POD, SERVER, 128);
    let late = listen(POD, LATE, if is("full-queue") { SHORT_QUEUE } else { 128 });
    let mut peer = Line::new(TcpStream::connect((PEER, ORDERS)).expect("the peer listens"));

    peer.say("serve-me");
    for _ in 0..SERVED {
        answer(server.accept().expect("a connection").0);
    }
    peer.heard("served");

    for number in 0..MADE {
        let mut stream = TcpStream::connect((PEER, SINK)).expect("the peer listens");
        send(&mut stream, 10_000);
        if is("resets") && number < RESET {
            // What was still under way would be answered to nobody, which is another fault.
            until_acknowledged(&stream);
            close_by_reset(stream);
        } else if is("reset-by-peer") && number < RESET {
            // The last byte tells the peer to.
            stream.write_all(b"R").expect("is open");
            stream.read(&mut [0]).expect_err("a reset");
        } else {
            finish(stream);
        }
    }
    if is("refused") {
        for _ in 0..REFUSED {
            TcpStream::connect((PEER, NOBODY)).expect_err("nobody listens there");
        }
    }
    if is("nobody-here") {
        peer.say("call-nobody");
        peer.heard("called");
    }

    // To the peer, whose reader may be away for a while.
    let mut stream = TcpStream::connect((PEER, SINK)).expect("the peer listens");
    stream.write_all(if is("stalled-peer") { b"S" } else { b"x" }).expect("is open");
    send(&mut stream, BULK);
    let kept = stream.try_clone().expect("a descriptor");
    finish(stream);
    println!("{}", limited_by_peer(&kept).as_millis());
    drop(kept);
    // From the peer.
    peer.say("send-bulk");
    let (stream, _) = server.accept().expect("a connection");
    if is("stalled-reader") {
        std::thread::sleep(STALL);
    }
    answer(stream);
    peer.heard("sent");

    peer.say("queue");
    std::thread::sleep(ABSENT);
    for _ in 0..QUEUED {
        answer(late.accept().expect("a connection").0);
    }
    peer.heard("queued");
    std::thread::sleep(LOOK);
}

fn peer() {
    let orders = listen(PEER, ORDERS, 16);
    let sink = listen(PEER, SINK, 128);
    std::thread::spawn(move || {
        for stream in sink.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut first = [0];
                let _ = stream.read_exact(&mut first);
                if &first == b"S" {
                    std::thread::sleep(STALL);
                }
                drain(stream);
            });
        }
    });
    println!("ready");
    let mut pod = Line::new(orders.accept().expect("the pod comes").0);
    while let Some(order) = pod.next() {
        match order.as_str() {
            "serve-me" => {
                (0..SERVED).for_each(|_| call(SERVER, 1_000));
                pod.say("served");
            }
            "send-bulk" => {
                call(SERVER, BULK);
                pod.say("sent");
            }
            "queue" => {
                // After three a fourth fits. Of those who come at once each is in its handshake when that place is taken: two are
                // dropped at its end, an ACK. Whoever comes later is dropped at its beginning, a SYN. More at once would be
                // answered by SYN cookies, which do not survive a FIN that overtakes lost data.
                let callers: Vec<_> = (0..QUEUED)
                    .map(|number| {
                        if number == AT_ONCE.start {
                            fill_the_way();
                        }
                        if !AT_ONCE.contains(&number) {
                            std::thread::sleep(APART);
                        }
                        let stream = begin(LATE);
                        std::thread::spawn(move || {
                            until_connected(&stream);
                            exchange(stream, 100);
                        })
                    })
                    .collect();
                callers.into_iter().for_each(|caller| caller.join().expect("it is served at last"));
                pod.say("queued");
            }
            "call-nobody" => {
                for _ in 0..REFUSED {
                    TcpStream::connect((POD, NOBODY)).expect_err("nobody listens there");
                }
                pod.say("called");
            }
            other => panic!("no order {other}"),
        }
    }
}

/// Sends so many bytes to the pod and waits until they were read.
fn call(port: u16, bytes: usize) {
    exchange(TcpStream::connect((POD, port)).expect("the pod listens"), bytes);
}

fn exchange(mut stream: TcpStream, bytes: usize) {
    send(&mut stream, bytes);
    finish(stream);
}

/// Some milliseconds' worth of datagrams, behind which SYNs arrive together: otherwise a handshake is over before its
/// `connect` has returned.
fn fill_the_way() {
    let socket = UdpSocket::bind((PEER, 0)).expect("the namespace has the address");
    for _ in 0..150 {
        socket.send_to(&[0; 1_400], (POD, NOBODY)).expect("there is a route");
    }
}

/// Begins to connect to the pod, and does not wait.
fn begin(port: u16) -> TcpStream {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: POD.parse::<Ipv4Addr>().expect("an address").to_bits().to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: the address is as long as said; the descriptor is new.
    unsafe {
        let socket =
            libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0, "{}", std::io::Error::last_os_error());
        libc::connect(socket, (&raw const address).cast(), size_of_val(&address) as libc::socklen_t);
        TcpStream::from_raw_fd(socket)
    }
}

fn until_connected(stream: &TcpStream) {
    let mut wait = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one element.
    assert_eq!(unsafe { libc::poll(&raw mut wait, 1, -1) }, 1);
    assert!(stream.take_error().expect("asked").is_none());
    stream.set_nonblocking(false).expect("is open");
}

/// So much at a time, as programs write that have something to do in between.
fn send(stream: &mut TcpStream, bytes: usize) {
    let part = [b'x'; 16 << 10];
    for at in (0..bytes).step_by(part.len()) {
        stream.write_all(&part[..part.len().min(bytes - at)]).expect("is open");
    }
}

/// Waits for the other side's answer, and closes first.
fn finish(mut stream: TcpStream) {
    stream.shutdown(std::net::Shutdown::Write).expect("is open");
    stream.read_exact(&mut [0]).expect("an answer");
}

/// Reads all and answers with a byte.
fn answer(mut stream: TcpStream) {
    let mut buffer = vec![0; 256 << 10];
    while stream.read(&mut buffer).expect("is open") > 0 {}
    stream.write_all(b"!").expect("is open");
    // Until the other side has closed as well.
    let _ = stream.read(&mut buffer);
}

/// The peer's side of a connection that the pod made: the last byte before its pause may ask for a reset.
fn drain(mut stream: TcpStream) {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) if buffer[read - 1] == b'R' => return close_by_reset(stream),
            Ok(_) => {}
            // The pod's own reset.
            Err(_) => return,
        }
    }
    let _ = stream.write_all(b"!");
    let _ = stream.read(&mut buffer);
}

/// Closes so that the other side is told by a reset.
fn close_by_reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the kernel reads the struct.
    let set = unsafe {
        let (at, length) = ((&raw const linger).cast(), size_of::<libc::linger>() as libc::socklen_t);
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, at, length)
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// How long the peer's window held the connection up, as `ss -i` shows it.
fn limited_by_peer(stream: &TcpStream) -> Duration {
    /// Of tcpi_rwnd_limited in `struct tcp_info` of include/uapi/linux/tcp.h, which only grows at its end.
    const AT: usize = 176;
    let mut info = [0u8; AT + 8];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes.
    let asked = unsafe {
        let (at, length) = (info.as_mut_ptr().cast(), &raw mut length);
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, at, length)
    };
    assert_eq!((asked, length as usize), (0, info.len()), "{}", std::io::Error::last_os_error());
    let (_, limited) = info.split_at(AT);
    Duration::from_micros(u64::from_ne_bytes(limited.try_into().expect("eight bytes")))
}

fn until_acknowledged(stream: &TcpStream) {
    loop {
        let mut unacknowledged: libc::c_int = 0;
        // SAFETY: the kernel writes one number.
        let asked = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut unacknowledged) };
        assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
        if unacknowledged == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn listen(address: &str, port: u16, backlog: i32) -> TcpListener {
    let listener = TcpListener::bind((address, port)).expect("the namespace has the address");
    // SAFETY: takes no pointers.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), backlog) }, 0);
    listener
}

/// A connection over which lines go.
struct Line {
    from: BufReader<TcpStream>,
    to: TcpStream,
}

impl Line {
    fn new(to: TcpStream) -> Self {
        Self { from: BufReader::new(to.try_clone().expect("a descriptor")), to }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").expect("is open");
    }

    fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        (self.from.read_line(&mut line).ok()? > 0).then(|| line.trim().to_owned())
    }

    fn heard(&mut self, line: &str) {
        assert_eq!(self.next().as_deref(), Some(line));
    }
}
