// SPDX-License-Identifier: Apache-2.0
//! `nodeInfo`: what the node is, and its memory and interfaces over time.
//!
//! In: the kernel's own files, read at the end of each window; for the targets' networks those of a process that a pass over
//! tasks found there. Out: rows of `node_info`, `node_memory`, `node_net` and `net_counters`.
//! A file that is not there, or says something else than expected, leaves its columns zero or null: none of them is worth a
//! session.

mod files;

use std::collections::{BTreeMap, BTreeSet};

use node_agent_common::event::{Attribution, Event, Header, until_nul};
use node_agent_common::fields::{Field, NETNS_FIELDS, PID_FIELDS, TASK_FIELDS};
use node_agent_common::node_info::counters::{self, NetCounter};
use node_agent_common::node_info::info::{self, NodeInfo};
use node_agent_common::node_info::memory::{self, ABSENT, MEMINFO, NodeMemory};
use node_agent_common::node_info::net::{self, NodeNet};
use node_agent_common::node_info::{COLLECTOR, INFO_INDEX, MEMORY, MEMORY_INDEX, NET_INDEX, NetNamespace};
use node_agent_common::sock::SOCK_FIELDS;
use node_agent_common::table::CollectorInfo;

use self::files::{interfaces, memory_of, net_counters, node, read, start_ticks, ticks};
use super::{Collector, DecodeError, Decoder, Hook, Values, Verdict, netns};
use crate::kernel::load::{Kernel, KernelError};
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

/// The collector.
pub struct NodeInfoCollector;

/// A process that lives in the node's network: its first one, whose other files are closed to a least-privileged agent.
const OF_NODE: &str = "/proc/1";
const PASS: &str = "node_networks";
/// Networks of one target that have rows: who makes more must not fill the agent's memory.
const MOST_NETWORKS: usize = 16;

impl Collector for NodeInfoCollector {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        const { &[netns::HOOKS[0], Hook::iterator(PASS, "task")] }
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[SOCK_FIELDS, TASK_FIELDS, NETNS_FIELDS, PID_FIELDS]
    }

    fn aggregations(&self) -> &'static [Aggregation] {
        const {
            &[
                Aggregation::gathered::<NodeInfo>().once(),
                Aggregation::gathered::<NodeMemory>(),
                Aggregation::gathered::<NodeNet>(),
                Aggregation::gathered::<NetCounter>(),
            ]
        }
    }

    fn decoder(&self, _values: &Values) -> Box<dyn Decoder> {
        Box::new(NodeDecoder)
    }

    fn open(&self, kernel: &mut Kernel, _slot: u32, _values: &Values) -> Result<(), KernelError> {
        netns::open(kernel)
    }

    fn gather(
        &self,
        kernel: &mut Kernel,
        aggregation: &Aggregation,
        out: &mut dyn FnMut(&[u8]),
    ) -> Result<(), KernelError> {
        match aggregation.table {
            INFO_INDEX => out(node().bytes()),
            MEMORY_INDEX => out(memory_of(&read("/proc/meminfo"), &|file| read(file)).bytes()),
            table => {
                network_of(table, OF_NODE, of_node()).iter().for_each(|record| out(record));
                of_targets(table, &kernel.iterate(PASS)?, out);
            }
        }
        Ok(())
    }
}

/// Header of a row about the node, for every session.
fn of_node() -> Header {
    Header { attribution: Attribution::Node as u8, slots: u64::MAX, ..Header::default() }
}

/// Hands over the records of the targets' networks: for each of them those of one process that lives there.
fn of_targets(table: u32, pass: &[u8], out: &mut dyn FnMut(&[u8])) {
    // By target: cookies of its networks.
    let mut met: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for found in NetNamespace::all(pass) {
        let networks = met.entry(found.cgroup_id).or_default();
        if networks.contains(&found.cookie) || networks.len() >= MOST_NETWORKS {
            continue;
        }
        let header = Header {
            attribution: Attribution::Netns as u8,
            slots: found.slots,
            cgroup_id: found.cgroup_id,
            netns: found.netns,
            ..Header::default()
        };
        let folder = format!("/proc/{}", found.pid);
        let records = network_of(table, &folder, header);
        // Another process may have the number by now: it was the one that the pass met if it is so still.
        if start_ticks(&read(&format!("{folder}/stat"))) == Some(ticks(found.start_ns)) && !records.is_empty()
        {
            networks.insert(found.cookie);
            records.iter().for_each(|record| out(record));
        }
    }
}

/// The records of one network.
fn network_of(table: u32, folder: &str, header: Header) -> Vec<Vec<u8>> {
    let file = |name: &str| read(&format!("{folder}/net/{name}"));
    if table == NET_INDEX {
        interfaces(&file("dev"), header).iter().map(|one| one.bytes().to_vec()).collect()
    } else {
        let files = [file("snmp"), file("netstat"), file("snmp6")];
        net_counters(&files, header).iter().map(|one| one.bytes().to_vec()).collect()
    }
}

struct NodeDecoder;

fn set_text(row: &mut Row<'_>, column: usize, value: &[u8]) {
    if !until_nul(value).is_empty() {
        row.bytes(column, value);
    }
}

impl Decoder for NodeDecoder {
    fn decode(&mut self, header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        match header.tag {
            NodeInfo::TAG => info_row(&NodeInfo::read(raw).ok_or(DecodeError::Length)?, row),
            NodeMemory::TAG => memory_row(&NodeMemory::read(raw).ok_or(DecodeError::Length)?, row),
            NodeNet::TAG => net_row(&NodeNet::read(raw).ok_or(DecodeError::Length)?, row),
            _ => {
                let one = NetCounter::read(raw).ok_or(DecodeError::Length)?;
                row.bytes(counters::at::counter, &one.counter_raw);
                row.uint(counters::at::value, one.value);
            }
        }
        Ok(Verdict::Row)
    }
}

fn info_row(node: &NodeInfo, row: &mut Row<'_>) {
    use info::at;
    row.bytes(at::kernel, &node.kernel_raw);
    row.bytes(at::arch, &node.arch_raw);
    set_text(row, at::cpu_model, &node.cpu_model_raw);
    set_text(row, at::thp, &node.thp_raw);
    row.bytes(at::boot_id, &node.boot_id_raw);
    row.uint(at::sockets, node.sockets);
    row.uint(at::cores, node.cores);
    row.uint(at::threads, node.threads);
    row.uint(at::l1d_bytes, node.l1d_bytes);
    row.uint(at::l2_bytes, node.l2_bytes);
    row.uint(at::l3_bytes, node.l3_bytes);
    row.uint(at::ram_bytes, node.ram_bytes);
    row.uint(at::swap_bytes, node.swap_bytes);
    row.uint(at::page_size, node.page_size);
    row.int(at::clock_offset_ns, node.clock_offset_ns.cast_signed());
    row.int(at::boot_time, node.clock_offset_ns.cast_signed() / 1_000);
    for (column, flag) in [
        (at::btf, node.btf),
        (at::has_fentry, node.has_fentry),
        (at::has_kprobe, node.has_kprobe),
        (at::has_kprobe_multi, node.has_kprobe_multi),
        (at::has_pmu, node.has_pmu),
    ] {
        row.uint(column, flag);
    }
}

fn memory_row(memory: &NodeMemory, row: &mut Row<'_>) {
    use memory::at;
    for ((_, column), bytes) in MEMINFO.iter().zip(memory.meminfo_raw) {
        let nullable = MEMORY.columns[*column].nullable;
        if bytes != ABSENT {
            row.uint(*column, bytes);
        } else if !nullable {
            row.uint(*column, 0);
        }
    }
    for (column, share) in [
        (at::cpu_some, memory.cpu_some_raw),
        (at::memory_some, memory.memory_some_raw),
        (at::memory_full, memory.memory_full_raw),
        (at::io_some, memory.io_some_raw),
        (at::io_full, memory.io_full_raw),
    ] {
        if share != 0 {
            row.float(column, (share - 1) as f64 / 100.0);
        }
    }
}

fn net_row(one: &NodeNet, row: &mut Row<'_>) {
    use net::at;
    row.bytes(at::ifname, &one.ifname_raw);
    row.uint(at::rx_bytes, one.rx_bytes);
    row.uint(at::rx_packets, one.rx_packets);
    row.uint(at::rx_errors, one.rx_errors);
    row.uint(at::rx_drops, one.rx_drops);
    row.uint(at::tx_bytes, one.tx_bytes);
    row.uint(at::tx_packets, one.tx_packets);
    row.uint(at::tx_errors, one.tx_errors);
    row.uint(at::tx_drops, one.tx_drops);
}
