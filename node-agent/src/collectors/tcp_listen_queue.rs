// SPDX-License-Identifier: Apache-2.0
//! `tcpListenQueue`: how full the queues of the targets' TCP listeners are, and what they drop.
//!
//! In: entries of [`ListenQueue`]. Out: rows of `tcp_listen_queue`.

use node_agent_common::event::{Event, Header};
use node_agent_common::fields::{Field, TASK_FIELDS};
use node_agent_common::skb::SKB_FIELDS;
use node_agent_common::sock::{SOCK_FIELDS, TCP_FIELDS};
use node_agent_common::table::CollectorInfo;
use node_agent_common::tcp_listen_queue::{COLLECTOR, LISTEN_FIELDS, ListenQueue, OPTION_HISTOGRAM, at};

use super::{Attach, Collector, DecodeError, Decoder, Hook, Ports, Role, Values, Verdict, flow};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::load::{Kernel, KernelError};
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

/// The collector.
pub struct TcpListenQueue;

const PASS: &str = "listen_pass";
const PASSES: &str = "LISTEN_PASSES";
/// The places that find a queue full: with all of them attached, overflows are counted.
const FULL: [Hook; 3] = [
    Hook { program: "listen_syn", attach: Attach::Entry(&["tcp_conn_request"]), role: Role::Extra },
    Hook { program: "listen_ack_v4", attach: Attach::Entry(&["tcp_v4_syn_recv_sock"]), role: Role::Extra },
    Hook { program: "listen_ack_v6", attach: Attach::Entry(&["tcp_v6_syn_recv_sock"]), role: Role::Extra },
];

impl Collector for TcpListenQueue {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        const {
            &[
                Hook::on("listen_change", "inet_sock_set_state"),
                Hook::iterator(PASS, "task_file"),
                FULL[0],
                FULL[1],
                FULL[2],
            ]
        }
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[SOCK_FIELDS, TCP_FIELDS, TASK_FIELDS, SKB_FIELDS, LISTEN_FIELDS]
    }

    fn constants(&self, btf: &Btf) -> Result<Vec<(&'static str, u64)>, BtfError> {
        flow::constants(btf)
    }

    fn state(&self) -> &'static [&'static str] {
        &["LISTENERS", "LISTEN_LENGTHS"]
    }

    fn aggregations(&self) -> &'static [Aggregation] {
        const { &[Aggregation::of::<ListenQueue>("LISTEN_QUEUE").looks()] }
    }

    fn decoder(&self, values: &Values) -> Box<dyn Decoder> {
        let (ports, histogram) = (values.ports("ports"), values.bool("histogram"));
        Box::new(ListenDecoder { ports, histogram, sees_arrivals: false })
    }

    fn open(&self, kernel: &mut Kernel, slot: u32, values: &Values) -> Result<(), KernelError> {
        kernel.set_bit("LISTEN_OPTIONS", OPTION_HISTOGRAM, slot, values.bool("histogram"))
    }

    fn close(&self, kernel: &mut Kernel, slot: u32) -> Result<(), KernelError> {
        kernel.set_bit("LISTEN_OPTIONS", OPTION_HISTOGRAM, slot, false)
    }

    fn join(&self, kernel: &mut Kernel, _slot: u32, _cgroups: &[u64]) -> Result<(), KernelError> {
        self.sample(kernel)
    }

    fn sample(&self, kernel: &mut Kernel) -> Result<(), KernelError> {
        kernel.pass(PASS, PASSES)
    }

    fn refresh(&self, kernel: &mut Kernel, decoder: &mut dyn Decoder) -> Result<(), KernelError> {
        if FULL.iter().all(|hook| kernel.is_attached(hook)) {
            decoder.learn(0, "arrivals");
        }
        Ok(())
    }
}

struct ListenDecoder {
    ports: Ports,
    histogram: bool,
    sees_arrivals: bool,
}

impl Decoder for ListenDecoder {
    fn decode(&mut self, _header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        let queue = ListenQueue::read(raw).ok_or(DecodeError::Length)?;
        if !self.ports.has(queue.lport) {
            return Ok(Verdict::Filtered);
        }
        if queue.pid != 0 {
            row.process(queue.pid, queue.pid, queue.start_ns, &queue.comm);
        }
        row.ip(at::laddr, flow::address(queue.family, queue.laddr_raw).ok_or(DecodeError::Value("family"))?);
        row.int(at::lport, queue.lport.into());
        row.uint(at::sock_id, queue.sock_id);
        row.uint(at::accept_len, queue.accept_len);
        row.uint(at::accept_max, queue.accept_max);
        row.uint(at::syn_len, queue.syn_len);
        row.uint(at::syn_young, queue.syn_young);
        row.uint(at::drops, queue.drops);
        if self.sees_arrivals {
            row.uint(at::overflows, queue.overflows);
            if self.histogram {
                row.histogram(at::accept_hist, &queue.accept_hist);
            }
        }
        Ok(Verdict::Row)
    }

    fn learn(&mut self, _id: u64, _name: &str) {
        self.sees_arrivals = true;
    }
}
