// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Reads packets: what they are and where. In: a typed `struct sk_buff`. What lies in the packet itself is read by probes.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

use crate::kernel::follow;
use crate::sock::{Direct, Probe, Read};

node_agent_common::declare_skb_fields!();

/// `ETH_P_IP`, `ETH_P_IPV6` and `ETH_P_ARP`: numbers of the protocols themselves.
pub(crate) const IPV4: u32 = 0x0800;
pub(crate) const IPV6: u32 = 0x86dd;
pub(crate) const ARP: u32 = 0x0806;
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
