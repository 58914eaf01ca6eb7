// SPDX-License-Identifier: Apache-2.0
//! `packetDrops`: packets of the targets that the kernel dropped.
//!
//! In: entries of [`PacketDrops`], and [`PacketDropEvent`] records for sessions with the parameter `events`. Out: rows of
//! `packet_drops`. Reasons have the running kernel's own names, since their numbers change from kernel to kernel; places have
//! the names that the kernel wrote for the programs.

use std::collections::HashMap;

use node_agent_common::event::{Event, Header, until_nul};
use node_agent_common::fields::{Field, NETNS_FIELDS};
use node_agent_common::packet_drops::{
    COLLECTOR, ETHERTYPE_NUMBERS, ETHERTYPES, LOCATION, PacketDropEvent, PacketDrops, at,
};
use node_agent_common::skb::SKB_FIELDS;
use node_agent_common::sock::{SOCK_FIELDS, TCP_FIELDS, state};
use node_agent_common::table::CollectorInfo;

use super::{Collector, DecodeError, Decoder, Hook, Values, Verdict, flow, netns, record};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::load::{Kernel, KernelError};
use crate::kernel::names::Names;
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

/// The collector.
pub struct PacketDropsCollector;

const ETH_IPV4: u32 = ETHERTYPE_NUMBERS[0];
const ETH_IPV6: u32 = ETHERTYPE_NUMBERS[1];

/// Beginnings of reasons and what they mean; the first that fits counts. Of what is not here nobody knows.
const CLASSES: &[(&str, &str)] = &[
    ("SOCKET_RCVBUFF", "loss"),
    ("SOCKET_BACKLOG", "loss"),
    ("PROTO_MEM", "loss"),
    ("TCP_CSUM", "loss"),
    ("UDP_CSUM", "loss"),
    ("IP_CSUM", "loss"),
    ("ICMP_CSUM", "loss"),
    ("QDISC_", "loss"),
    ("NOMEM", "loss"),
    ("CPU_BACKLOG", "loss"),
    ("FULL_RING", "loss"),
    ("TCP_OFO_QUEUE_PRUNE", "loss"),
    ("TCP_LISTEN_OVERFLOW", "loss"),
    ("TCP_OFO_DROP", "loss"),
    ("NEIGH_QUEUEFULL", "loss"),
    ("NO_SOCKET", "refused"),
    ("SOCKET_CLOSE", "refused"),
    ("NETFILTER_DROP", "policy"),
    ("XFRM_POLICY", "policy"),
    ("BPF_CGROUP_EGRESS", "policy"),
    ("SOCKET_FILTER", "policy"),
    ("TC_", "policy"),
    ("XDP", "policy"),
    ("IP_RPFILTER", "policy"),
    ("QUEUE_PURGE", "teardown"),
    ("TCP_OLD_", "teardown"),
    ("TCP_RESET", "teardown"),
    ("TCP_INVALID_", "teardown"),
    ("TCP_CLOSE", "teardown"),
    ("TCP_RFC7323_", "teardown"),
    ("TCP_ACK_UNSENT_DATA", "teardown"),
    ("TCP_TOO_OLD_ACK", "teardown"),
];

/// Functions that throw away what a connection still held when it ends; older kernels give no reason there.
const ENDINGS: &[&str] =
    &["inet_sock_destruct", "sk_stream_kill_queues", "tcp_disconnect", "tcp_write_queue_purge"];

fn class(reason: &str, location: &str) -> &'static str {
    if reason == "NOT_SPECIFIED" && ENDINGS.contains(&location) {
        return "teardown";
    }
    CLASSES.iter().find(|(beginning, _)| reason.starts_with(beginning)).map_or("unknown", |(_, class)| class)
}

/// Numbers of these protocols; of all when none is named.
fn ethertypes(words: &[&str]) -> Vec<u32> {
    let known = ETHERTYPES.iter().zip(ETHERTYPE_NUMBERS);
    known.filter(|(word, _)| words.is_empty() || words.contains(word)).map(|(_, number)| number).collect()
}

impl Collector for PacketDropsCollector {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        const { &[netns::HOOKS[0], netns::HOOKS[1], netns::HOOKS[2], Hook::on("packet_drop", "kfree_skb")] }
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[SOCK_FIELDS, TCP_FIELDS, NETNS_FIELDS, SKB_FIELDS]
    }

    fn constants(&self, btf: &Btf) -> Result<Vec<(&'static str, u64)>, BtfError> {
        let mut constants = flow::constants(btf)?;
        let drop = btf.tracepoint("kfree_skb");
        constants
            .push(("DROP_HAS_RX_SK", u64::from(drop.is_some_and(|prototype| prototype.args.len() >= 4))));
        Ok(constants)
    }

    fn records(&self) -> &'static [(u16, u32)] {
        const { &[record::<PacketDropEvent>()] }
    }

    fn aggregations(&self) -> &'static [Aggregation] {
        const { &[Aggregation::of::<PacketDrops>("PACKET_DROPS")] }
    }

    fn decoder(&self, values: &Values) -> Box<dyn Decoder> {
        Box::new(DropDecoder {
            classes: values.words("classes").to_vec(),
            ethertypes: ethertypes(values.words("ethertypes")),
            reasons: Names::of("skb_drop_reason", "SKB_DROP_REASON_"),
            locations: HashMap::new(),
        })
    }

    fn open(&self, kernel: &mut Kernel, _slot: u32, _values: &Values) -> Result<(), KernelError> {
        netns::open(kernel)
    }

    fn each(&self, values: &Values) -> bool {
        values.bool("events")
    }

    fn join(&self, kernel: &mut Kernel, _slot: u32, _cgroups: &[u64]) -> Result<(), KernelError> {
        netns::join(kernel)
    }

    fn refresh(&self, kernel: &mut Kernel, decoder: &mut dyn Decoder) -> Result<(), KernelError> {
        let failed = |source| KernelError::Map { map: "DROP_LOCATIONS", source };
        let names = kernel.hash::<u64, [u8; LOCATION]>("DROP_LOCATIONS")?;
        for entry in names.iter() {
            let (address, name) = entry.map_err(failed)?;
            decoder.learn(address, &String::from_utf8_lossy(until_nul(&name)));
        }
        Ok(())
    }
}

struct DropDecoder {
    classes: Vec<&'static str>,
    ethertypes: Vec<u32>,
    reasons: Names,
    locations: HashMap<u64, String>,
}

/// What rows of both kinds have.
struct Dropped {
    location_raw: u64,
    reason_raw: u32,
    state_raw: u32,
    ethertype_raw: u32,
    ip_proto_raw: u32,
    segments: u64,
    bytes: u64,
}

macro_rules! dropped {
    ($from:ident) => {
        Dropped {
            location_raw: $from.location_raw,
            reason_raw: $from.reason_raw,
            state_raw: $from.state_raw,
            ethertype_raw: $from.ethertype_raw,
            ip_proto_raw: $from.ip_proto_raw,
            segments: $from.segments.into(),
            bytes: $from.bytes.into(),
        }
    };
}

impl Decoder for DropDecoder {
    fn decode(&mut self, header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        let drops = if header.tag == PacketDropEvent::TAG {
            let event = PacketDropEvent::read(raw).ok_or(DecodeError::Length)?;
            flow::set_packet(row, &event.flow)?;
            if event.location_name[0] != 0 && !self.locations.contains_key(&event.location_raw) {
                self.learn(event.location_raw, &String::from_utf8_lossy(until_nul(&event.location_name)));
            }
            dropped!(event)
        } else {
            let sums = PacketDrops::read(raw).ok_or(DecodeError::Length)?;
            dropped!(sums)
        };
        let location = self.locations.get(&drops.location_raw).map(String::as_str);
        let reason = self.reasons.get(drops.reason_raw.into()).unwrap_or_default();
        let class = class(reason, location.unwrap_or_default());
        let other_class = !self.classes.is_empty() && !self.classes.contains(&class);
        if other_class || !self.ethertypes.contains(&drops.ethertype_raw) {
            return Ok(Verdict::Filtered);
        }
        self.reasons.set(row, at::reason, drops.reason_raw.into());
        row.word(at::class, class);
        if let Some(name) = location {
            row.text(at::location, name);
        }
        row.int(at::ethertype, drops.ethertype_raw.into());
        if matches!(drops.ethertype_raw, ETH_IPV4 | ETH_IPV6) {
            row.int(at::ip_proto, drops.ip_proto_raw.into());
        }
        if drops.state_raw != 0 {
            row.word(at::sk_state, state::name(drops.state_raw).ok_or(DecodeError::Value("state"))?);
        }
        row.uint(at::segments, drops.segments);
        row.uint(at::bytes, drops.bytes);
        Ok(Verdict::Row)
    }

    fn learn(&mut self, id: u64, name: &str) {
        self.locations.entry(id).or_insert_with(|| name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_of_the_link_layer_are_those_named_or_all() {
        assert_eq!(ethertypes(&[]), [0x0800, 0x86dd, 0x0806]);
        assert_eq!(ethertypes(&["ARP", "IPv6"]), [0x86dd, 0x0806]);
    }

    #[test]
    fn reasons_have_the_class_of_their_name() {
        for (reason, expected) in [
            ("NO_SOCKET", "refused"),
            ("QDISC_DROP", "loss"),
            ("TCP_OLD_ACK", "teardown"),
            ("TC_INGRESS", "policy"),
            ("TCP_CSUM", "loss"),
            ("NOT_SPECIFIED", "unknown"),
            ("", "unknown"),
        ] {
            assert_eq!(class(reason, "tcp_v4_rcv"), expected, "{reason}");
        }
        assert_eq!(class("NOT_SPECIFIED", "sk_stream_kill_queues"), "teardown");
        assert!(CLASSES.iter().all(|(_, class)| node_agent_common::packet_drops::CLASSES.contains(class)));
    }
}
