// SPDX-License-Identifier: Apache-2.0
//! What the collectors of sockets share: the flow columns of a row, and what they assume of the kernel's types.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use node_agent_common::sock::{Flow, chrono, state};
use node_agent_common::table::{FLOW_COLUMNS, position};

use super::DecodeError;
use crate::kernel::btf::{Btf, BtfError};
use crate::pipeline::batch::Row;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AT_LPORT: usize = position(&FLOW_COLUMNS, "lport");
const AT_RPORT: usize = position(&FLOW_COLUMNS, "rport");
const AT_SOCK_ID: usize = position(&FLOW_COLUMNS, "sock_id");

/// Sets the flow columns.
///
/// # Errors
/// When the family is none that IP sockets have.
pub fn set(row: &mut Row<'_>, flow: &Flow) -> Result<(), DecodeError> {
    set_ends(row, flow)?;
    row.int(row.flow() + AT_LPORT, flow.lport.into());
    row.int(row.flow() + AT_RPORT, flow.rport.into());
    row.uint(row.flow() + AT_SOCK_ID, flow.sock_id);
    Ok(())
}

/// Sets the columns that tell the two ends apart, without their ports.
fn set_ends(row: &mut Row<'_>, flow: &Flow) -> Result<(), DecodeError> {
    let local = address(flow.family, flow.laddr).ok_or(DecodeError::Value("family"))?;
    let remote = address(flow.family, flow.raddr).ok_or(DecodeError::Value("family"))?;
    let first = row.flow();
    macro_rules! at {
        ($name:literal) => {
            first + const { position(&FLOW_COLUMNS, $name) }
        };
    }
    // An IPv6 socket that is not bound yet has no local address, while its peer's is IPv4 already.
    row.int(at!("family"), i64::from(if remote.is_ipv4() { AF_INET } else { AF_INET6 }));
    row.int(at!("protocol"), flow.protocol.into());
    row.ip(at!("laddr"), local);
    row.ip(at!("raddr"), remote);
    Ok(())
}

/// Sets the flow columns of a packet: those that it has.
///
/// # Errors
/// When the family is none that IP has.
pub fn set_packet(row: &mut Row<'_>, packet: &Flow) -> Result<(), DecodeError> {
    if packet.family == 0 {
        return Ok(());
    }
    set_ends(row, packet)?;
    set_ports(row, packet);
    if packet.sock_id != 0 {
        row.uint(row.flow() + AT_SOCK_ID, packet.sock_id);
    }
    Ok(())
}

/// Sets those of the two ports that are not 0: where a row stands for several connections, or a packet has none.
pub fn set_ports(row: &mut Row<'_>, flow: &Flow) {
    for (at, port) in [(AT_LPORT, flow.lport), (AT_RPORT, flow.rport)] {
        if port != 0 {
            row.int(row.flow() + at, port.into());
        }
    }
}

/// The constants of the object that hooks on sockets read.
///
/// # Errors
/// When the kernel numbers TCP's states, or what holds a sender back, in another way, or lacks the flag of a received FIN.
pub fn constants(btf: &Btf) -> Result<Vec<(&'static str, u64)>, BtfError> {
    for &(name, ours) in state::NAMES.iter().chain(chrono::NAMES) {
        if btf.enumerator(None, name)? != i64::from(ours) {
            return Err(BtfError::MissingType { kind: "state", name: format!("{name} = {ours}") });
        }
    }
    let done = btf.enumerator(Some("sock_flags"), "SOCK_DONE")?;
    Ok(vec![("SOCK_DONE_BIT", done.cast_unsigned())])
}

/// An address as the kernel holds it; IPv4 inside IPv6 becomes IPv4. `None` for a family that is not IP.
pub fn address(family: u16, bytes: [u8; 16]) -> Option<IpAddr> {
    let [a, b, c, d, ..] = bytes;
    match family {
        AF_INET => Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
        AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_order() {
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3];
        assert_eq!(address(AF_INET6, mapped), Some(IpAddr::from([10, 1, 2, 3])));
        let mut v4 = [0; 16];
        v4[..4].copy_from_slice(&[10, 1, 2, 3]);
        assert_eq!(address(AF_INET, v4), Some(IpAddr::from([10, 1, 2, 3])));
        assert_eq!(address(AF_INET6, [0; 16]), Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
        assert_eq!(address(1, v4), None);
    }
}
