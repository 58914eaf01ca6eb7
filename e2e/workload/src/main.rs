// SPDX-License-Identifier: Apache-2.0

//! The known workload: a small static program that test pods run, which does exactly what its
//! arguments say and prints what it did as one line of JSON.
//!
//! Everything is counted by the program itself at the socket and `wait` calls, so that it is an
//! independent source for what a trace must show. Nothing is retried in silence: a connection that
//! cannot be made ends the program with an error. Only the resolution of the server's name is tried
//! again, before the counted work starts; the harness waits for the server's pod to be ready.

mod lookups;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

const USAGE: &str = "usage: workload shop NGINX:PORT REDIS:PORT
       workload serve PORT
       workload connect HOST:PORT CONNECTIONS SEND_BYTES RECEIVE_BYTES
       workload hold HOST:PORT SEND_BYTES UNTIL_FILE
       workload refused HOST:PORT COUNT
       workload spawn COUNT PROGRAM
       workload account PAGES NAPS
       workload busy PAGES NAPS
       workload lookups
       workload sleep";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let did = match args.as_slice() {
        ["shop", nginx, redis] => shop(nginx, redis)?,
        ["serve", port] => serve(port.parse().context("PORT")?)?,
        ["connect", address, connections, send, receive] => {
            let address = resolve(address)?;
            let mut total = Traffic::default();
            for _ in 0..connections.parse::<u32>().context("CONNECTIONS")? {
                total.add(&exchange(address, send.parse()?, receive.parse()?)?);
            }
            total.to_json()
        }
        ["hold", address, send, until] => hold(resolve(address)?, send.parse()?, Path::new(until))?,
        ["spawn", count, program] => json!({ "processes": spawn(count.parse().context("COUNT")?, program)? }),
        ["refused", address, count] => refused(resolve(address)?, count.parse().context("COUNT")?)?,
        ["account", pages, naps] => account(pages, naps)?,
        ["busy", pages, naps] => busy(pages.parse().context("PAGES")?, naps.parse().context("NAPS")?),
        // Says what it did in lines of its own.
        ["lookups"] => return lookups::main(),
        ["sleep"] => loop {
            thread::park();
        },
        _ => bail!("{USAGE}"),
    };
    println!("{did}");
    Ok(())
}

/// What went through sockets, payload only.
#[derive(Default)]
struct Traffic {
    connections: u64,
    requests: u64,
    sent: u64,
    received: u64,
}

impl Traffic {
    fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.requests += other.requests;
        self.sent += other.sent;
        self.received += other.received;
    }

    fn to_json(&self) -> serde_json::Value {
        json!({ "connections": self.connections, "requests": self.requests, "sent": self.sent, "received": self.received })
    }
}

/// The demo's customer: exactly 400 requests over 137 connections (263 over 100 to nginx, 137 over
/// 37 to redis) and 23 processes.
fn shop(nginx: &str, redis: &str) -> Result<serde_json::Value> {
    let (nginx, redis) = (resolve(nginx)?, resolve(redis)?);
    let mut web = Traffic::default();
    for connection in 0..100u64 {
        // 63 connections carry three requests, 37 carry two: 263.
        web.add(&http(nginx, if connection < 63 { 3 } else { 2 })?);
    }
    let mut cache = Traffic::default();
    for connection in 0..37u64 {
        // 26 connections carry four commands, 11 carry three: 137.
        cache.add(&resp(redis, if connection < 26 { 4 } else { 3 })?);
    }
    let processes = spawn(23, "/usr/bin/true")?;
    Ok(
        json!({ "nginx": web.to_json(), "redis": cache.to_json(), "processes": processes, "program": "/usr/bin/true" }),
    )
}

/// One keep-alive HTTP/1.1 connection with `requests` requests, closed by us.
fn http(address: SocketAddr, requests: u64) -> Result<Traffic> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("connecting to nginx at {address}"))?;
    let mut traffic = Traffic { connections: 1, requests, ..Traffic::default() };
    for _ in 0..requests {
        let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        traffic.sent += request.len() as u64;
        let mut head = Vec::new();
        let mut byte = [0u8; 1];
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(stream.read(&mut byte)? == 1, "nginx closed in the middle of a response's head");
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head);
        ensure!(
            head.starts_with("HTTP/1.1 200"),
            "nginx answered {}",
            head.lines().next().unwrap_or_default()
        );
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .context("nginx sent no Content-Length")?
            .parse()?;
        let mut body = vec![0u8; length];
        stream.read_exact(&mut body)?;
        traffic.received += (head.len() + length) as u64;
    }
    close(stream)?;
    Ok(traffic)
}

/// One redis connection with `commands` INCR commands, closed by us.
fn resp(address: SocketAddr, commands: u64) -> Result<Traffic> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("connecting to redis at {address}"))?;
    let mut traffic = Traffic { connections: 1, requests: commands, ..Traffic::default() };
    for _ in 0..commands {
        let request = b"*2\r\n$4\r\nINCR\r\n$6\r\norders\r\n";
        stream.write_all(request)?;
        traffic.sent += request.len() as u64;
        let mut byte = [0u8; 1];
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") {
            ensure!(stream.read(&mut byte)? == 1, "redis closed in the middle of an answer");
            answer.push(byte[0]);
        }
        ensure!(answer[0] == b':', "redis answered {}", String::from_utf8_lossy(&answer));
        traffic.received += answer.len() as u64;
    }
    close(stream)?;
    Ok(traffic)
}

/// Answers each connection's 16-byte header (bytes that follow, bytes to answer; little endian)
/// until the peer closes.
fn serve(port: u16) -> Result<serde_json::Value> {
    let listener = TcpListener::bind(("::", port)).with_context(|| format!("listening on port {port}"))?;
    println!("{}", json!({ "listening": port }));
    for stream in listener.incoming() {
        let mut stream = stream?;
        thread::spawn(move || -> Result<()> {
            let mut header = [0u8; 16];
            stream.read_exact(&mut header)?;
            let follow = u64::from_le_bytes(header[..8].try_into()?);
            let answer = u64::from_le_bytes(header[8..].try_into()?);
            drain(&mut stream, follow)?;
            fill(&mut stream, answer)?;
            // The peer closes first, so that the active side always ends with its own FIN.
            drain(&mut stream, u64::MAX)
        });
    }
    bail!("the listener ended")
}

/// One connection to `serve`: sends `send` bytes in all, header included, and receives `receive`.
fn exchange(address: SocketAddr, send: u64, receive: u64) -> Result<Traffic> {
    ensure!(send >= 16, "SEND_BYTES counts the 16 bytes of the header");
    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.write_all(&(send - 16).to_le_bytes())?;
    stream.write_all(&receive.to_le_bytes())?;
    fill(&mut stream, send - 16)?;
    drain(&mut stream, receive)?;
    close(stream)?;
    Ok(Traffic { connections: 1, requests: 1, sent: send, received: receive })
}

/// Connects, sends half, waits for `until` to exist, sends the rest and closes.
fn hold(address: SocketAddr, send: u64, until: &Path) -> Result<serde_json::Value> {
    ensure!(send >= 16, "SEND_BYTES counts the 16 bytes of the header");
    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.write_all(&(send - 16).to_le_bytes())?;
    stream.write_all(&0u64.to_le_bytes())?;
    let half = (send - 16) / 2;
    fill(&mut stream, half)?;
    println!("{}", json!({ "connected": true, "local_port": stream.local_addr()?.port() }));
    wait_until(Duration::from_secs(3600), || fs::exists(until).unwrap_or(false))?;
    fill(&mut stream, send - 16 - half)?;
    close(stream)?;
    Ok(Traffic { connections: 1, requests: 1, sent: send, received: 0 }.to_json())
}

fn spawn(count: u32, program: &str) -> Result<u32> {
    for _ in 0..count {
        let status = Command::new(program).status().with_context(|| format!("starting {program}"))?;
        ensure!(status.success(), "{program} ended with {status}");
    }
    Ok(count)
}

/// Connects so often to a port where nobody listens.
fn refused(address: SocketAddr, count: u32) -> Result<serde_json::Value> {
    for _ in 0..count {
        let error = TcpStream::connect(address).err().with_context(|| format!("{address} listens"))?;
        ensure!(error.kind() == ErrorKind::ConnectionRefused, "connecting to {address}: {error}");
    }
    Ok(json!({ "refused": count }))
}

/// Runs `busy` as a process of its own, which the kernel names `accounted` and no other, and says what it used, by the kernel's
/// own account.
fn account(pages: &str, naps: &str) -> Result<serde_json::Value> {
    const ACCOUNTED: &str = "/tmp/accounted";
    std::os::unix::fs::symlink(std::env::current_exe()?, ACCOUNTED)
        .with_context(|| format!("making {ACCOUNTED}"))?;
    let status = Command::new(ACCOUNTED).args(["busy", pages, naps]).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "busy ended with {status}");
    // SAFETY: an all-zero rusage is valid, and the call fills it; the one child has been waited for.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    Ok(json!({
        "minor": usage.ru_minflt, "major": usage.ru_majflt,
        "voluntary": usage.ru_nvcsw, "involuntary": usage.ru_nivcsw,
        "cpu_us": micros(usage.ru_utime) + micros(usage.ru_stime),
    }))
}

/// Writes to so many new pages, then sleeps so many times for a tenth of a second.
fn busy(pages: usize, naps: u32) -> serde_json::Value {
    const PAGE: usize = 4096;
    let mut memory = vec![0u8; pages * PAGE];
    for page in memory.chunks_mut(PAGE) {
        std::hint::black_box(page)[0] = 1;
    }
    for _ in 0..naps {
        thread::sleep(Duration::from_millis(100));
    }
    json!({ "pages": std::hint::black_box(memory).len() / PAGE })
}

fn fill(stream: &mut TcpStream, mut bytes: u64) -> Result<()> {
    let block = [b'x'; 4096];
    while bytes > 0 {
        let n = bytes.min(block.len() as u64);
        stream.write_all(&block[..n as usize])?;
        bytes -= n;
    }
    Ok(())
}

/// Reads `bytes`, or to the end of the stream when that is `u64::MAX`.
fn drain(stream: &mut TcpStream, mut bytes: u64) -> Result<()> {
    let mut block = [0u8; 4096];
    while bytes > 0 {
        let n = stream.read(&mut block[..bytes.min(4096) as usize])? as u64;
        if n == 0 {
            ensure!(bytes == u64::MAX, "the peer closed {bytes} bytes early");
            return Ok(());
        }
        if bytes != u64::MAX {
            bytes -= n;
        }
    }
    Ok(())
}

/// Closes in order and waits for the peer's FIN: both ends are through before the next step.
fn close(mut stream: TcpStream) -> Result<()> {
    stream.shutdown(Shutdown::Write)?;
    drain(&mut stream, u64::MAX)
}

/// Name service may come up after this pod: asks again for a minute.
fn resolve(address: &str) -> Result<SocketAddr> {
    let mut found = None;
    wait_until(Duration::from_secs(60), || {
        found = address.to_socket_addrs().ok().and_then(|mut all| all.next());
        found.is_some()
    })
    .with_context(|| format!("resolving {address}"))?;
    found.context("no address")
}

fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !condition() {
        ensure!(start.elapsed() < limit, "not within {limit:?}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
