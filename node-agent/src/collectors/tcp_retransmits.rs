// SPDX-License-Identifier: Apache-2.0
//! `tcpRetransmits`: what the targets' TCP sockets sent again, and why.
//!
//! In: [`TcpRetransmitEvent`] records, or entries of [`TcpRetransmitSums`]. Out: rows of `tcp_retransmits`.

use node_agent_common::event::{Event, Header};
use node_agent_common::fields::Field;
use node_agent_common::skb::SKB_FIELDS;
use node_agent_common::sock::{Flow, SOCK_FIELDS, TCP_FIELDS, state};
use node_agent_common::table::CollectorInfo;
use node_agent_common::tcp_retransmits::{COLLECTOR, Kind, TcpRetransmitEvent, TcpRetransmitSums, at};

use super::{Collector, DecodeError, Decoder, Hook, Ports, Values, Verdict, flow, record, word};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::clock;
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

/// The collector.
pub struct TcpRetransmits;

impl Collector for TcpRetransmits {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        const { &[Hook::tracepoint("tcp_retransmit_skb"), Hook::tracepoint("tcp_retransmit_synack")] }
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[SOCK_FIELDS, TCP_FIELDS, SKB_FIELDS]
    }

    fn constants(&self, btf: &Btf) -> Result<Vec<(&'static str, u64)>, BtfError> {
        let mut constants = flow::constants(btf)?;
        let retransmit = btf.tracepoint("tcp_retransmit_skb");
        let has_err = retransmit.is_some_and(|prototype| prototype.args.len() >= 3);
        constants.extend([
            ("RETRANSMIT_HAS_ERR", u64::from(has_err)),
            ("CA_RECOVERY", btf.enumerator(Some("tcp_ca_state"), "TCP_CA_Recovery")?.cast_unsigned()),
            ("CA_LOSS", btf.enumerator(Some("tcp_ca_state"), "TCP_CA_Loss")?.cast_unsigned()),
        ]);
        Ok(constants)
    }

    fn records(&self) -> &'static [(u16, u32)] {
        const { &[record::<TcpRetransmitEvent>()] }
    }

    fn aggregations(&self) -> &'static [Aggregation] {
        const { &[Aggregation::of::<TcpRetransmitSums>("TCP_RETRANSMIT_SUMS")] }
    }

    fn each(&self, values: &Values) -> bool {
        !values.bool("perFlowAggregate")
    }

    fn decoder(&self, values: &Values) -> Box<dyn Decoder> {
        Box::new(RetransmitDecoder {
            kinds: values.words("kinds").to_vec(),
            ports: values.ports("ports"),
            tick_ns: clock::tick_ns(),
        })
    }
}

struct RetransmitDecoder {
    kinds: Vec<&'static str>,
    ports: Ports,
    tick_ns: u64,
}

impl RetransmitDecoder {
    /// Sets the columns that rows of both kinds have, if the session wants it.
    fn set(&self, flow: &Flow, what: u32, row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        let kind = word(Kind::NAMES, what, "what")?;
        if !(self.kinds.is_empty() || self.kinds.contains(&kind)) || !self.ports.want(flow) {
            return Ok(Verdict::Filtered);
        }
        flow::set(row, flow)?;
        row.word(at::kind, kind);
        Ok(Verdict::Row)
    }
}

impl Decoder for RetransmitDecoder {
    fn decode(&mut self, header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        if header.tag == TcpRetransmitSums::TAG {
            let sums = TcpRetransmitSums::read(raw).ok_or(DecodeError::Length)?;
            row.uint(at::segments, sums.segments);
            row.uint(at::bytes, sums.bytes);
            row.int(at::err, sums.err.into());
            return self.set(&sums.flow, sums.what, row);
        }
        let event = TcpRetransmitEvent::read(raw).ok_or(DecodeError::Length)?;
        row.word(at::state, state::name(event.state_raw).ok_or(DecodeError::Value("state"))?);
        row.int(at::segments, event.segments.into());
        row.int(at::bytes, event.bytes.into());
        row.int(at::seq, event.seq.into());
        row.int(at::err, event.err.into());
        if event.srtt_raw != 0 {
            row.int(at::srtt_us, (event.srtt_raw >> 3).into());
        }
        if event.rto_ticks != 0 {
            row.uint(at::rto_ms, u64::from(event.rto_ticks) * self.tick_ns / 1_000_000);
        }
        row.int(at::snd_cwnd, event.snd_cwnd.into());
        row.int(at::packets_out, event.packets_out.into());
        row.int(at::total_retrans, event.total_retrans.into());
        self.set(&event.flow, event.what, row)
    }
}
