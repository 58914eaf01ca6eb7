// SPDX-License-Identifier: Apache-2.0
//! How many connections one address may hold to the agents' port.
//!
//! In: accepted connections. Out: the same, each with a [`Place`] that it gives back when it ends. Any pod reaches the port, and may
//! shake hands and say nothing more: what a connection costs is small, and what one pod can cost is bounded. Agents need one each.
//! A connection of this machine's own, as a forwarded port makes, counts for nobody.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Connections of one address; behind it may be several readers of data, and an agent that comes back before it was missed.
const MOST: usize = 64;

/// The addresses that hold connections.
#[derive(Clone, Debug, Default)]
pub struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Addresses {
    /// Takes a place for a connection; none if its address has all that it may have.
    pub fn take(&self, peer: IpAddr) -> Option<Place> {
        let peer = peer.to_canonical();
        if peer.is_loopback() {
            return Some(Place { addresses: self.clone(), peer: None });
        }
        let mut held = self.held();
        let of_peer = held.entry(peer).or_default();
        if *of_peer >= MOST {
            return None;
        }
        *of_peer += 1;
        Some(Place { addresses: self.clone(), peer: Some(peer) })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's.
#[derive(Debug)]
pub struct Place {
    addresses: Addresses,
    peer: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(peer) = self.peer else { return };
        let mut held = self.addresses.held();
        if let Some(of_peer) = held.get_mut(&peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                held.remove(&peer);
            }
        }
    }
}

/// A connection with its place.
#[derive(Debug)]
pub struct Held<S> {
    stream: S,
    _place: Place,
}

impl<S> Held<S> {
    /// Joins the two.
    pub fn new(stream: S, place: Place) -> Self {
        Self { stream, _place: place }
    }
}

impl<S: Connected> Connected for Held<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_holds_so_many_connections_and_gets_ended_ones_back() {
        let addresses = Addresses::default();
        let take = |peer: &str| addresses.take(peer.parse().unwrap());
        let mut held: Vec<Place> = (0..MOST).map(|_| take("10.1.2.3").unwrap()).collect();
        assert!(take("10.1.2.3").is_none());
        // The same address in its other spelling.
        assert!(take("::ffff:10.1.2.3").is_none());
        assert!(take("10.1.2.4").is_some(), "others are not its concern");
        held.pop();
        let last = take("::ffff:10.1.2.3");
        assert!(last.is_some() && take("10.1.2.3").is_none());
        let own: Vec<_> = (0..2 * MOST).map(|_| take("127.0.0.1")).collect();
        assert!(own.iter().all(Option::is_some));
        drop((held, last, own));
        assert!(addresses.held().is_empty(), "nothing is kept of who is gone");
    }
}
