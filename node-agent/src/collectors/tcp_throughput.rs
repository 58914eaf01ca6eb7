// SPDX-License-Identifier: Apache-2.0
//! `tcpThroughput`: payload of the targets' TCP connections in each window.
//!
//! In: entries of [`Throughput`]. Out: rows of `tcp_throughput`: the busiest connections of a window, or ports or containers,
//! ranked, and one row for the others of each cgroup. What is put together keeps its number of events.

use std::collections::BTreeMap;

use node_agent_common::event::{Event, Header};
use node_agent_common::fields::{Field, TASK_FIELDS};
use node_agent_common::sock::{Flow, SOCK_FIELDS, TCP_FIELDS};
use node_agent_common::table::CollectorInfo;
use node_agent_common::tcp_throughput::{COLLECTOR, Throughput, at, grouped};

use super::{Collector, DecodeError, Decoder, Hook, Ports, Values, Verdict, flow};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::load::{Kernel, KernelError};
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

/// The collector.
pub struct TcpThroughput;

const PASS: &str = "throughput_pass";
const PASSES: &str = "THROUGHPUT_PASSES";

impl Collector for TcpThroughput {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        const {
            &[
                Hook::on("throughput_change", "inet_sock_set_state"),
                Hook::on("throughput_destroy", "tcp_destroy_sock"),
                Hook::iterator(PASS, "task_file"),
            ]
        }
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[SOCK_FIELDS, TCP_FIELDS, TASK_FIELDS]
    }

    fn constants(&self, btf: &Btf) -> Result<Vec<(&'static str, u64)>, BtfError> {
        flow::constants(btf)
    }

    fn state(&self) -> &'static [&'static str] {
        &["CARRIED"]
    }

    fn aggregations(&self) -> &'static [Aggregation] {
        const { &[Aggregation::of::<Throughput>("THROUGHPUT").looks()] }
    }

    fn decoder(&self, values: &Values) -> Box<dyn Decoder> {
        Box::new(ThroughputDecoder {
            ports: values.ports("ports"),
            by: values.choice("by"),
            top: usize::try_from(values.integer("topN")).unwrap_or(usize::MAX),
            seconds: 0.0,
            rank: 0,
        })
    }

    fn join(&self, kernel: &mut Kernel, _slot: u32, _cgroups: &[u64]) -> Result<(), KernelError> {
        self.sample(kernel)
    }

    fn sample(&self, kernel: &mut Kernel) -> Result<(), KernelError> {
        kernel.pass(PASS, PASSES)
    }
}

struct ThroughputDecoder {
    ports: Ports,
    by: &'static str,
    top: usize,
    /// Length of the window.
    seconds: f64,
    /// Of the last connection that had its row.
    rank: i64,
}

/// A record without what its connection alone has, but for the flow.
fn together(one: &Throughput, flow: Flow, grouped: u32) -> Throughput {
    Throughput { flow, start_ns: 0, pid: 0, comm: [0; 16], grouped, ..*one }
}

/// The lower of the two ports, where it was.
fn lower_port(flow: &Flow) -> Flow {
    if flow.lport <= flow.rport {
        Flow { lport: flow.lport, ..Flow::default() }
    } else {
        Flow { rport: flow.rport, ..Flow::default() }
    }
}

/// Adds up records of the same cgroup and flow.
fn sum(records: impl Iterator<Item = (Throughput, u64)>) -> Vec<(Throughput, u64)> {
    let mut sums: BTreeMap<(u64, u64, u16, u16), (Throughput, u64)> = BTreeMap::new();
    for (one, events) in records {
        sums.entry((one.header.cgroup_id, one.header.netns, one.flow.lport, one.flow.rport))
            .and_modify(|(sum, all)| {
                sum.count += one.count;
                sum.rx_bytes += one.rx_bytes;
                sum.tx_bytes += one.tx_bytes;
                sum.acked_bytes += one.acked_bytes;
                sum.retrans_bytes += one.retrans_bytes;
                *all += events;
            })
            .or_insert((one, events));
    }
    sums.into_values().collect()
}

impl Decoder for ThroughputDecoder {
    fn window(&mut self, span: (u64, u64), records: &mut Vec<(Vec<u8>, u64)>) {
        self.seconds = span.1.saturating_sub(span.0) as f64 / 1e9;
        self.rank = 0;
        let read = records.iter().filter_map(|(raw, events)| Some((Throughput::read(raw)?, *events)));
        let (mut wanted, filtered): (Vec<_>, Vec<_>) = read.partition(|(one, _)| self.ports.want(&one.flow));
        let asked = |flow: fn(&Flow) -> Flow| {
            move |(one, events): (Throughput, u64)| {
                (together(&one, flow(&one.flow), grouped::ASKED_FOR), events)
            }
        };
        wanted = match self.by {
            "port" => sum(wanted.into_iter().map(asked(lower_port))),
            "pod" => sum(wanted.into_iter().map(asked(|_| Flow::default()))),
            _ => wanted,
        };
        let payload = |one: &Throughput| one.rx_bytes.saturating_add(one.tx_bytes);
        wanted.sort_unstable_by_key(|(one, _)| (std::cmp::Reverse(payload(one)), one.flow.sock_id));
        let others = wanted.split_off(self.top.min(wanted.len()));
        let others = others
            .into_iter()
            .map(|(one, events)| (together(&one, Flow::default(), grouped::OTHERS), events));
        let all = wanted.into_iter().chain(sum(others)).chain(filtered);
        *records = all.map(|(one, events)| (one.bytes().to_vec(), events)).collect();
    }

    fn decode(&mut self, _header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        let carried = Throughput::read(raw).ok_or(DecodeError::Length)?;
        match carried.grouped {
            grouped::NOT if !self.ports.want(&carried.flow) => return Ok(Verdict::Filtered),
            grouped::NOT => flow::set(row, &carried.flow)?,
            grouped::ASKED_FOR => flow::set_ports(row, &carried.flow),
            _ => {}
        }
        let others = carried.grouped == grouped::OTHERS;
        if !others {
            self.rank += 1;
            row.int(at::rank, self.rank);
        }
        if carried.pid != 0 {
            row.process(carried.pid, carried.pid, carried.start_ns, &carried.comm);
        }
        row.uint(at::rx_bytes, carried.rx_bytes);
        row.uint(at::tx_bytes, carried.tx_bytes);
        row.uint(at::acked_bytes, carried.acked_bytes);
        row.uint(at::retrans_bytes, carried.retrans_bytes);
        let per_second =
            |bytes: u64| if self.seconds > 0.0 { bytes as f64 * 8.0 / self.seconds } else { 0.0 };
        row.float(at::rx_bps, per_second(carried.rx_bytes));
        row.float(at::tx_bps, per_second(carried.tx_bytes));
        row.bool(at::others, others);
        Ok(Verdict::Row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(port: u16, cgroup_id: u64, bytes: u64) -> (Vec<u8>, u64) {
        let zeros = [0; size_of::<Throughput>()];
        let mut one = Throughput::read(&zeros).expect("has the record's length");
        one.header.cgroup_id = cgroup_id;
        (one.flow.lport, one.flow.rport, one.flow.family, one.rx_bytes) = (port, 50, 2, bytes);
        (one.bytes().to_vec(), 1)
    }

    /// Ports, cgroup, bytes, events and what they are, of one window by these parameters.
    fn window(
        params: &[(&str, &str)],
        mut records: Vec<(Vec<u8>, u64)>,
    ) -> Vec<(u16, u16, u64, u64, u64, u32)> {
        let params = params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut decoder = TcpThroughput.decoder(&Values::parse(&COLLECTOR, &params).expect("is valid"));
        decoder.window((0, 1_000_000_000), &mut records);
        records
            .iter()
            .map(|(raw, events)| {
                let one = Throughput::read(raw).expect("has the record's length");
                let Flow { lport, rport, .. } = one.flow;
                (lport, rport, one.header.cgroup_id, one.rx_bytes, *events, one.grouped)
            })
            .collect()
    }

    #[test]
    fn the_busiest_have_rows_and_the_others_are_put_together_by_cgroup() {
        let records =
            vec![one(1, 7, 10), one(2, 7, 40), one(3, 8, 30), one(4, 7, 20), one(5, 8, 5), one(10, 7, 99)];
        assert_eq!(
            window(&[("topN", "2"), ("ports", "1-9")], records),
            [
                (2, 50, 7, 40, 1, 0),
                (3, 50, 8, 30, 1, 0),
                (0, 0, 7, 30, 2, 2),
                (0, 0, 8, 5, 1, 2),
                (10, 50, 7, 99, 1, 0)
            ]
        );
    }

    #[test]
    fn connections_are_put_together_by_the_lower_port_or_by_cgroup() {
        let records = || vec![one(80, 7, 10), one(80, 7, 5), one(41, 7, 2), one(80, 8, 1), one(42, 7, 40)];
        assert_eq!(
            window(&[("by", "port")], records()),
            [(42, 0, 7, 40, 1, 1), (0, 50, 7, 15, 2, 1), (41, 0, 7, 2, 1, 1), (0, 50, 8, 1, 1, 1)]
        );
        assert_eq!(window(&[("by", "pod")], records()), [(0, 0, 7, 57, 4, 1), (0, 0, 8, 1, 1, 1)]);
        assert_eq!(window(&[("by", "pod"), ("topN", "1")], records())[1], (0, 0, 8, 1, 1, 2));
        // What another port is filtered out by stays one by one, to be counted.
        let filtered = window(&[("by", "pod"), ("ports", "80")], records());
        assert_eq!(filtered[..2], [(0, 0, 7, 15, 2, 1), (0, 0, 8, 1, 1, 1)]);
        assert_eq!(filtered.iter().filter(|row| row.5 == 0).count(), 2);
    }
}
