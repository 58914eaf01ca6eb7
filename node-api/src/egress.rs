// SPDX-License-Identifier: Apache-2.0
//! Addresses that neither side connects to for a tenant's store: loopback, link-local and the like, clouds' metadata services,
//! and the networks that the operator was told of (pods, Services).
//!
//! In: a host name or address. Out: addresses to connect to, or [`AddressRefused`] if any of a name's addresses is refused, before
//! anything is sent. Names are looked up for each connection, so one that changes its answer gains nothing. A proxy would
//! hide the address: whoever uses a [`Guard`] uses none.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// A block of addresses, as `10.244.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not a network such as 10.244.0.0/16 or fd00::/8");
        let (address, bits) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let bits: u8 = bits.parse().map_err(|_| error())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if bits > most { Err(error()) } else { Ok(Self { address, bits }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Network {
    /// Whether an address is in the block.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                u32::from(net) & mask == u32::from(address) & mask
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                u128::from(net) & mask == u128::from(address) & mask
            }
            _ => false,
        }
    }
}

/// What is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Guard {
    /// Networks besides those that are refused to every tenant.
    pub refused: Vec<Network>,
}

impl Guard {
    /// Whether connections to this address are refused.
    pub fn refuses(&self, address: IpAddr) -> bool {
        let inside = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => embedded(v6).map(IpAddr::V4),
        };
        [Some(address), inside].into_iter().flatten().any(|address| self.refuses_itself(address))
    }

    fn refuses_itself(&self, address: IpAddr) -> bool {
        let special = match address {
            IpAddr::V4(v4) => {
                v4.is_loopback()
                    || v4.is_link_local()
                    || v4.is_unspecified()
                    || v4.is_multicast()
                    || v4.is_broadcast()
                    || v4.octets()[0] == 0
                    // Clouds' own services outside link-local: Alibaba's metadata, Azure's WireServer.
                    || v4 == Ipv4Addr::new(100, 100, 100, 200)
                    || v4 == Ipv4Addr::new(168, 63, 129, 16)
            }
            IpAddr::V6(v6) => {
                v6.is_loopback()
                    || v6.is_unicast_link_local()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.segments()[..2] == [0xfd00, 0xec2] // EC2's metadata, and identities of pods
                    || v6 == Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254) // Google's metadata
                    // What leads to IPv4 addresses that are not to be seen in it, or anywhere in it: translation within a network
                    // (RFC 8215, 2765), and tunnels (Teredo).
                    || v6.segments()[..3] == [0x64, 0xff9b, 1]
                    || v6.segments()[..6] == [0, 0, 0, 0, 0xffff, 0]
                    || v6.segments()[..2] == [0x2001, 0]
            }
        };
        special || self.refused.iter().any(|network| network.contains(address))
    }

    /// Checks the host of a URL, which may be an address: that is never looked up. IPv6 may be in brackets.
    ///
    /// # Errors
    /// [`AddressRefused`] for an address that is; names pass.
    pub fn admit(&self, host: &str) -> Result<(), AddressRefused> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse() {
            Ok(address) if self.refuses(address) => Err(AddressRefused { host: host.to_owned(), address }),
            _ => Ok(()),
        }
    }

    /// What an HTTP client looks names up with.
    pub fn resolver(&self) -> Arc<impl Resolve + 'static> {
        Arc::new(Guarded { guard: self.clone(), look_up })
    }
}

/// The IPv4 address that an IPv6 address leads to: mapped (`::ffff:0:0/96`), compatible (`::/96`), by NAT64 with its well-known
/// prefix (`64:ff9b::/96`), or by 6to4 (`2002::/16`).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let at = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => at(high, low),
        [0x2002, high, low, ..] => at(high, low),
        _ => None,
    }
}

/// An address that is refused, on its way through the HTTP client's errors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host} is at {address}, where tenants' stores may not be (loopback, link-local, pods, Services)")]
pub struct AddressRefused {
    /// As in the URL.
    pub host: String,
    /// Where it is.
    pub address: IpAddr,
}

impl AddressRefused {
    /// Finds it among an error's causes.
    pub fn find<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            cause = error.source();
        }
        None
    }
}

type Addresses = Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send>>;

/// The system's own way.
fn look_up(host: String) -> Addresses {
    Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.collect()) })
}

/// Looks names up, and refuses a name if any of its addresses is refused.
struct Guarded<L> {
    guard: Guard,
    look_up: L,
}

impl<L: Fn(String) -> Addresses + Send + Sync> Resolve for Guarded<L> {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let (guard, found) = (self.guard.clone(), (self.look_up)(host.clone()));
        Box::pin(async move {
            let addresses = found.await?;
            if let Some(bad) = addresses.iter().find(|address| guard.refuses(address.ip())) {
                return Err(AddressRefused { host, address: bad.ip() }.into());
            }
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn guard(refused: &[&str]) -> Guard {
        Guard { refused: refused.iter().map(|text| text.parse().unwrap()).collect() }
    }

    #[test]
    fn special_and_listed_addresses_are_refused_in_both_families() {
        let some = guard(&["10.244.0.0/16", "fd00:10::/32"]);
        for address in [
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "::1",
            "fe80::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "10.244.3.4",
            "fd00:10::7",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "100.100.100.200",
            "168.63.129.16",
            "::ffff:10.244.3.4",
            "::10.244.3.4",
            "64:ff9b::10.244.3.4",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::7f00:1",
            "64:ff9b:1:7f00:0:100::",
            "::ffff:0:127.0.0.1",
            "2001::1",
            "2002:7f00:1::1",
            "2002:af4:304::1",
        ] {
            assert!(some.refuses(address.parse().unwrap()), "{address}");
        }
        for address in [
            "10.245.0.1",
            "192.168.1.1",
            "8.8.8.8",
            "2001:db8::1",
            "fd00:11::7",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
        ] {
            assert!(!some.refuses(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn networks_are_read_or_refused_and_written_as_they_were() {
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("203.0.113.9".parse().unwrap()));
        assert!(!all.contains("::1".parse().unwrap()));
        for text in ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "x/8", "10.0.0.0/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        for text in ["10.244.0.0/16", "fd00:10::/32"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_address_in_the_place_of_a_name_is_checked_too() {
        let some = guard(&["10.96.0.0/16"]);
        for host in ["127.0.0.1", "[::1]", "::1", "10.96.0.1"] {
            assert!(some.admit(host).is_err(), "{host}");
        }
        for host in ["minio.example.com", "192.0.2.7", "localhost"] {
            assert_eq!(some.admit(host), Ok(()));
        }
    }

    #[tokio::test]
    async fn a_name_that_changes_its_answer_is_refused_when_it_does() {
        let looks = AtomicUsize::new(0);
        let answers = [vec!["192.0.2.7:0"], vec!["192.0.2.7:0", "169.254.169.254:0"], vec!["10.96.0.1:0"]];
        let rebinding = Guarded {
            guard: guard(&["10.96.0.0/16"]),
            look_up: move |_| -> Addresses {
                let answer = answers[looks.fetch_add(1, Ordering::Relaxed)].clone();
                Box::pin(async move { Ok(answer.into_iter().map(|text| text.parse().unwrap()).collect()) })
            },
        };
        let ask = async || rebinding.resolve("store.tenant.example".parse().unwrap()).await;
        assert_eq!(ask().await.unwrap().count(), 1);
        for address in ["169.254.169.254", "10.96.0.1"] {
            let error = ask().await.err().unwrap();
            let refused = AddressRefused::find(&*error).unwrap();
            assert_eq!(
                (refused.host.as_str(), refused.address.to_string().as_str()),
                ("store.tenant.example", address)
            );
        }
    }
}
