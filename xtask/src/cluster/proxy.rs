// SPDX-License-Identifier: Apache-2.0

//! Makes the API server reachable from the host, at 127.0.0.1:6443, wherever it listens inside the cluster's network.
//!
//! The listener belongs to the host's network and the connections that it is joined with to the cluster's,
//! so that no device, route or address has to be added to the host.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::network;

/// On the host; servers of the emulated cluster have the same inside.
pub(super) const ADDRESS: &str = "127.0.0.1:6443";
/// What its process is called.
pub(super) const NAME: &str = "proxy";
/// After a connection that could not be served: where descriptors or threads have run out, others end meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is killed; `to` is the address inside.
pub(super) fn run(to: &str) -> Result<()> {
    let listener =
        TcpListener::bind(ADDRESS).with_context(|| format!("{ADDRESS} is in use on this machine"))?;
    // Threads started from now on inherit the namespace; the listener keeps the one it was made in.
    network::enter()?;
    for client in listener.incoming() {
        let to = to.to_owned();
        let serve = |client| {
            thread::Builder::new().spawn(move || {
                if let Err(error) = join(client, &to) {
                    eprintln!("connection failed: {error}");
                }
            })
        };
        if let Err(error) = client.and_then(serve) {
            eprintln!("connection not served: {error}");
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}

fn join(client: TcpStream, to: &str) -> io::Result<()> {
    let server = TcpStream::connect(to)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let upstream = thread::spawn(move || {
        // A broken connection ends both directions alike.
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server, client);
    let copied = io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Both);
    let _ = from_server.shutdown(Shutdown::Both);
    let _ = upstream.join();
    copied.map(drop)
}
