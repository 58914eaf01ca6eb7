// SPDX-License-Identifier: Apache-2.0
//! `tcpReceive`: what became of the TCP packets that the targets received.
//!
//! In: entries of [`Receive`]. Out: rows of `tcp_receive`. Whether the kernel lets every packet be seen is found when the
//! collector is attached, and told to its programs.

use node_agent_common::event::{Event, Header};
use node_agent_common::fields::{Field, NETNS_FIELDS};
use node_agent_common::skb::SKB_FIELDS;
use node_agent_common::sock::{SOCK_FIELDS, TCP_FIELDS};
use node_agent_common::table::CollectorInfo;
use node_agent_common::tcp_receive::{COLLECTOR, HOOKS, OPTION_BY_PORT, OPTION_FULL, Outcome, Receive, at};

use super::{Attach, Collector, DecodeError, Decoder, Hook, Role, Values, Verdict, flow, netns, word};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::load::{Kernel, KernelError};
use crate::kernel::names::Names;
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

/// The collector.
pub struct TcpReceive;

const OPTIONS: &str = "RECEIVE_OPTIONS";

const fn entry(program: &'static str, functions: &'static [&'static str]) -> Hook {
    Hook { program, attach: Attach::Entry(functions), role: Role::Together }
}

const fn exit(program: &'static str, functions: &'static [&'static str]) -> Hook {
    Hook { program, attach: Attach::Exit(functions), role: Role::Together }
}

/// With all of these every packet is seen. What says where a packet goes comes first, so that none is in hand before.
const FULL: [Hook; 9] = [
    entry("receive_do_v4", &["tcp_v4_do_rcv"]),
    entry("receive_do_v6", &["tcp_v6_do_rcv"]),
    exit("receive_backlog", &["tcp_add_backlog"]),
    entry("receive_time_wait", &["tcp_timewait_state_process"]),
    entry("receive_request", &["tcp_check_req"]),
    exit("received_v4", &["tcp_v4_rcv"]),
    exit("received_v6", &["tcp_v6_rcv"]),
    entry("receive_v4", &["tcp_v4_rcv"]),
    entry("receive_v6", &["tcp_v6_rcv"]),
];

impl Collector for TcpReceive {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        const {
            &[
                netns::HOOKS[0],
                netns::HOOKS[1],
                netns::HOOKS[2],
                Hook::on("receive_drop", "kfree_skb"),
                FULL[0],
                FULL[1],
                FULL[2],
                FULL[3],
                FULL[4],
                FULL[5],
                FULL[6],
                FULL[7],
                FULL[8],
                Hook {
                    program: "receive_probe",
                    attach: Attach::Tracepoint("tcp_probe"),
                    role: Role::Instead,
                },
            ]
        }
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[SOCK_FIELDS, TCP_FIELDS, NETNS_FIELDS, SKB_FIELDS]
    }

    fn constants(&self, btf: &Btf) -> Result<Vec<(&'static str, u64)>, BtfError> {
        let mut constants = flow::constants(btf)?;
        let drop = btf.tracepoint("kfree_skb").map_or(0, |prototype| prototype.args.len());
        let refused = btf.enumerator(Some("skb_drop_reason"), "SKB_DROP_REASON_NO_SOCKET")?;
        constants.extend([
            ("RECEIVE_HAS_RX_SK", u64::from(drop >= 4)),
            ("REASON_NO_SOCKET", refused.cast_unsigned()),
        ]);
        Ok(constants)
    }

    fn aggregations(&self) -> &'static [Aggregation] {
        const { &[Aggregation::of::<Receive>("RECEIVE")] }
    }

    fn decoder(&self, values: &Values) -> Box<dyn Decoder> {
        let reasons = Names::of("skb_drop_reason", "SKB_DROP_REASON_");
        Box::new(ReceiveDecoder { by_port: values.bool("byPort"), reasons })
    }

    fn open(&self, kernel: &mut Kernel, slot: u32, values: &Values) -> Result<(), KernelError> {
        let full = u64::from(kernel.is_attached(&FULL[0]));
        if full == 0 && values.choice("hooks") == HOOKS[1] {
            return Err(KernelError::Unsupported(
                "the session asks for hooks=full, and this kernel gives no fentry on TCP's functions"
                    .to_owned(),
            ));
        }
        netns::open(kernel)?;
        let failed = |source| KernelError::Map { map: OPTIONS, source };
        kernel.array::<u64>(OPTIONS)?.set(OPTION_FULL, full, 0).map_err(failed)?;
        kernel.set_bit(OPTIONS, OPTION_BY_PORT, slot, values.bool("byPort"))
    }

    fn join(&self, kernel: &mut Kernel, _slot: u32, _cgroups: &[u64]) -> Result<(), KernelError> {
        netns::join(kernel)
    }

    fn close(&self, kernel: &mut Kernel, slot: u32) -> Result<(), KernelError> {
        kernel.set_bit(OPTIONS, OPTION_BY_PORT, slot, false)
    }
}

struct ReceiveDecoder {
    by_port: bool,
    reasons: Names,
}

impl Decoder for ReceiveDecoder {
    fn decode(&mut self, _header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        let received = Receive::read(raw).ok_or(DecodeError::Length)?;
        row.word(at::outcome, word(Outcome::NAMES, received.outcome_raw, "outcome")?);
        if received.outcome_raw == Outcome::Dropped as u32 && received.reason_raw != 0 {
            self.reasons.set(row, at::drop_reason, received.reason_raw.into());
        }
        if self.by_port {
            row.int(at::lport, received.lport_raw.into());
        }
        row.word(at::hooks, if received.full != 0 { "full" } else { "tracepoint" });
        row.uint(at::segments, received.segments);
        row.uint(at::bytes, received.bytes);
        Ok(Verdict::Row)
    }
}
