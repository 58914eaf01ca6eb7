// SPDX-License-Identifier: Apache-2.0

//! The cluster's network: one namespace with a bridge and a tap device per node, so that nothing of it
//! appears in the host's network.
//!
//! Addresses: the bridge, on which the API server listens, is 192.168.77.1; node number n (from 1) is
//! 192.168.77.(10 + n) and gives its pods addresses of 10.244.n.0/24; Services are in 10.96.0.0/16.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::mpsc;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, getpid, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::exec;

pub(super) const NAMESPACE: &str = "tracelake";
pub(super) const GATEWAY: &str = "192.168.77.1";
const BRIDGE: &str = "tracelake0";

/// A node's place in the network.
pub(super) struct Place {
    pub(super) address: String,
    pub(super) pod_range: String,
    pub(super) tap: String,
    pub(super) mac: String,
}

/// The place of the node with this index (from 0) and name.
pub(super) fn place(index: usize, name: &str) -> Place {
    let number = index + 1;
    Place {
        address: format!("192.168.77.{}", 10 + number),
        pod_range: format!("10.244.{number}.0/24"),
        tap: format!("tap-{name}"),
        mac: format!("52:54:00:77:00:{number:02x}"),
    }
}

/// Makes the namespace with the devices and routes of these nodes.
pub(super) fn up(places: &[Place]) -> Result<()> {
    exec::quiet(&mut exec::command("ip", ["netns", "add", NAMESPACE]))?;
    let ip = |words: &str| exec::quiet(exec::command("ip", ["-n", NAMESPACE]).args(words.split(' ')));
    ip("link set lo up")?;
    ip(&format!("link add {BRIDGE} type bridge"))?;
    ip(&format!("address add {GATEWAY}/24 dev {BRIDGE}"))?;
    ip(&format!("link set {BRIDGE} up"))?;
    for place in places {
        ip(&format!("tuntap add {} mode tap", place.tap))?;
        ip(&format!("link set {} master {BRIDGE} up", place.tap))?;
        ip(&format!("route add {} via {}", place.pod_range, place.address))?;
    }
    exec::quiet(&mut within("sh", ["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]))
}

/// Ends what still runs in the namespace, and removes it with everything in it.
pub(super) fn down() -> Result<()> {
    if !exists() {
        return Ok(());
    }
    // As what a command started that was killed before it could record it: without its name the namespace would live on.
    let left = exec::output(&mut exec::command("ip", ["netns", "pids", NAMESPACE]))?;
    let left = left.lines().filter_map(|line| line.trim().parse().ok()).filter_map(Pid::from_raw);
    // This one is among them when a user calls it from inside.
    for id in left.filter(|id| *id != getpid()) {
        // An error means that it has ended.
        let _ = kill_process(id, Signal::KILL);
    }
    exec::quiet(&mut exec::command("ip", ["netns", "delete", NAMESPACE]))
}

/// Whether the namespace is there.
pub(super) fn exists() -> bool {
    std::path::Path::new("/run/netns").join(NAMESPACE).exists()
}

/// A command that runs in the namespace.
pub(super) fn within<I, S>(program: impl AsRef<OsStr>, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = exec::command("ip", ["netns", "exec", NAMESPACE]);
    command.arg(program).args(arguments);
    command
}

/// Moves this thread, and those that it starts from now on, into the namespace.
pub(super) fn enter() -> Result<()> {
    let namespace =
        File::open(format!("/run/netns/{NAMESPACE}")).context("the cluster's network is not there")?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .context("cannot enter the cluster's network")
}

/// Sends a file to the first node that connects to the returned port of [`GATEWAY`].
///
/// In the clear, because nobody else is in this network and emulated CPUs decrypt 2 MB a second.
pub(super) fn send_once(mut file: File) -> Result<u16> {
    let (sender, port) = mpsc::channel();
    std::thread::spawn(move || -> Result<()> {
        let listen = || -> Result<(TcpListener, u16)> {
            enter()?;
            let listener = TcpListener::bind((GATEWAY, 0))?;
            let port = listener.local_addr()?.port();
            Ok((listener, port))
        };
        let listener = match listen() {
            Ok((listener, port)) => {
                sender.send(Ok(port))?;
                listener
            }
            Err(error) => return Ok(sender.send(Err(error))?),
        };
        let (mut node, _) = listener.accept()?;
        io::copy(&mut file, &mut node)?;
        Ok(())
    });
    port.recv()?
}
