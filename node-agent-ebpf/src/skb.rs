// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Reads packets: what they are and where. In: a typed `struct sk_buff`. What lies in the packet itself is read by probes.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

use node_agent_common::sock::Flow;

use crate::kernel::follow;
use crate::sock::{self, Direct, Probe, Read};

node_agent_common::declare_skb_fields!();

/// `ETH_P_IP`, `ETH_P_IPV6` and `ETH_P_ARP`: numbers of the protocols themselves.
pub(crate) const IPV4: u32 = 0x0800;
pub(crate) const IPV6: u32 = 0x86dd;
pub(crate) const ARP: u32 = 0x0806;
/// `AF_INET` of Linux's ABI, `IPPROTO_UDP` of the protocol.
const INET: u16 = 2;
const UDP: u8 = 17;
/// Where their headers have the protocol above.
const IPV4_PROTOCOL: u64 = 9;
const IPV6_NEXT_HEADER: u64 = 6;

/// Protocol of the link layer.
///
/// # Safety
/// This and all below: `skb` is a typed pointer to a `struct sk_buff`.
#[inline(always)]
pub(crate) unsafe fn ethertype(skb: *const u8) -> u32 {
    // SAFETY: a member of the type.
    u32::from(u16::from_be(unsafe { Direct::number(skb, &SKB_PROTOCOL) } as u16))
}

/// Protocol above IP; 0 where it is not IP.
///
/// # Safety
/// As [`ethertype`].
#[inline(always)]
pub(crate) unsafe fn ip_proto(skb: *const u8, ethertype: u32) -> u8 {
    let at = match ethertype {
        IPV4 => IPV4_PROTOCOL,
        IPV6 => IPV6_NEXT_HEADER,
        _ => return 0,
    };
    let mut protocol = 0u8;
    // SAFETY: members of the type; one byte into one, what is not there reads as 0.
    unsafe {
        let header = Direct::number(skb, &SKB_NETWORK) + at;
        let from = follow(skb, &SKB_HEAD).wrapping_add(header as usize);
        bpf_probe_read_kernel((&raw mut protocol).cast(), 1, from.cast());
    }
    protocol
}

/// Both ends, from the packet's own headers; of the family 0 where it is not IP, without ports where it has none or is
/// not the first fragment. `inbound` says that the packet's destination is the local end.
///
/// # Safety
/// As [`ethertype`]; `to` may be written.
#[inline(always)]
pub(crate) unsafe fn flow(skb: *const u8, ethertype: u32, ip_proto: u8, inbound: bool, to: *mut Flow) {
    // SAFETY: as promised; what is not in the packet's memory reads as 0.
    unsafe {
        let header = follow(skb, &SKB_HEAD).wrapping_add(Direct::number(skb, &SKB_NETWORK) as usize);
        let half = |at: usize| {
            let mut bytes = 0u16;
            bpf_probe_read_kernel((&raw mut bytes).cast(), 2, header.wrapping_add(at).cast());
            u16::from_be(bytes)
        };
        let (mut source, mut destination) = ([0u8; 16], [0u8; 16]);
        let (family, above) = match ethertype {
            IPV4 => {
                bpf_probe_read_kernel(source.as_mut_ptr().cast(), 4, header.wrapping_add(12).cast());
                bpf_probe_read_kernel(destination.as_mut_ptr().cast(), 4, header.wrapping_add(16).cast());
                let words = usize::from(half(0) >> 8 & 0xf);
                let is_first = half(6) & 0x1fff == 0;
                (INET, if is_first && words >= 5 { words * 4 } else { 0 })
            }
            IPV6 => {
                bpf_probe_read_kernel(source.as_mut_ptr().cast(), 16, header.wrapping_add(8).cast());
                bpf_probe_read_kernel(destination.as_mut_ptr().cast(), 16, header.wrapping_add(24).cast());
                (sock::INET6 as u16, 40)
            }
            _ => (0, 0),
        };
        // What lies behind the packet's own bytes is somebody else's.
        let end = Direct::number(skb, &SKB_NETWORK) + above as u64 + 4;
        let is_inside = end <= Direct::number(skb, &SKB_TAIL);
        let has_ports = above != 0 && is_inside && (ip_proto == sock::TCP as u8 || ip_proto == UDP);
        let (from, into) = if has_ports { (half(above), half(above + 2)) } else { (0, 0) };
        (*to).family = family;
        (*to).protocol = u16::from(ip_proto);
        (*to).laddr = if inbound { destination } else { source };
        (*to).raddr = if inbound { source } else { destination };
        (*to).lport = if inbound { into } else { from };
        (*to).rport = if inbound { from } else { into };
    }
}

/// Segments on the wire.
///
/// # Safety
/// As [`ethertype`].
#[inline(always)]
pub(crate) unsafe fn segments(skb: *const u8) -> u64 {
    // SAFETY: members of the types; what the card may split is described behind the packet's data.
    let segments = unsafe {
        let shared = follow(skb, &SKB_HEAD).wrapping_add(Direct::number(skb, &SKB_END) as usize);
        Probe::number(shared, &SHINFO_GSO_SEGS)
    };
    if segments == 0 { 1 } else { segments }
}

/// The network namespace that the packet is in: a typed `struct net`, null where the packet has no device.
///
/// # Safety
/// As [`ethertype`].
#[inline(always)]
pub(crate) unsafe fn net(skb: *const u8) -> *const u8 {
    // SAFETY: members of the types.
    unsafe {
        let device = follow(skb, &SKB_DEV);
        if device.is_null() { core::ptr::null() } else { follow(device, &DEV_NET) }
    }
}
