// SPDX-License-Identifier: Apache-2.0
//! `tcpStates`: changes of state of the targets' TCP sockets, and their resets.
//!
//! In: [`TcpStateEvent`] records, or entries of [`TcpStateCounts`]. Out: rows of `tcp_states`. Reasons of resets have the running kernel's own names.

use node_agent_common::event::{Event, Header};
use node_agent_common::fields::Field;
use node_agent_common::sock::{Flow, SOCK_FIELDS, TCP_FIELDS, state};
use node_agent_common::table::CollectorInfo;
use node_agent_common::tcp_states::{COLLECTOR, Kind, MODES, NO_REASON, TcpStateCounts, TcpStateEvent, at};

use super::{
    Attach, Collector, DecodeError, Decoder, Hook, Ports, Role, Values, Verdict, flow, record, word,
};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::names::Names;
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

/// The collector.
pub struct TcpStates;

impl Collector for TcpStates {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        const {
            &[
                Hook::on("tcp_state_change", "inet_sock_set_state"),
                Hook::on("tcp_state_reset_sent", "tcp_send_reset"),
                Hook::on("tcp_state_reset_received", "tcp_receive_reset"),
                Hook {
                    program: "tcp_state_time_wait",
                    attach: Attach::Entry(&["tcp_time_wait"]),
                    role: Role::Extra,
                },
            ]
        }
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[SOCK_FIELDS, TCP_FIELDS]
    }

    fn constants(&self, btf: &Btf) -> Result<Vec<(&'static str, u64)>, BtfError> {
        let mut constants = flow::constants(btf)?;
        let reset = btf.tracepoint("tcp_send_reset");
        constants.push((
            "SEND_RESET_HAS_REASON",
            u64::from(reset.is_some_and(|prototype| prototype.args.len() >= 3)),
        ));
        Ok(constants)
    }

    fn records(&self) -> &'static [(u16, u32)] {
        const { &[record::<TcpStateEvent>()] }
    }

    fn state(&self) -> &'static [&'static str] {
        &["SINCE"]
    }

    fn aggregations(&self) -> &'static [Aggregation] {
        const { &[Aggregation::of::<TcpStateCounts>("TCP_STATE_COUNTS")] }
    }

    fn each(&self, values: &Values) -> bool {
        values.choice("mode") == MODES[0]
    }

    fn decoder(&self, values: &Values) -> Box<dyn Decoder> {
        Box::new(StateDecoder {
            kinds: values.words("kinds").to_vec(),
            states: values.words("states").to_vec(),
            ports: values.ports("ports"),
            reasons: Names::of("sk_rst_reason", "SK_RST_REASON_"),
        })
    }
}

struct StateDecoder {
    kinds: Vec<&'static str>,
    states: Vec<&'static str>,
    ports: Ports,
    reasons: Names,
}

/// What rows of both kinds have.
struct Change {
    flow: Flow,
    what: u32,
    old: u32,
    new: u32,
    reason: u32,
}

impl StateDecoder {
    /// Sets the columns of the change, if the session wants it.
    fn set(&self, change: &Change, row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        let kind = word(Kind::NAMES, change.what, "what")?;
        if !(self.kinds.is_empty() || self.kinds.contains(&kind)) || !self.ports.want(&change.flow) {
            return Ok(Verdict::Filtered);
        }
        let old = state::name(change.old).ok_or(DecodeError::Value("old"))?;
        let new = match change.new {
            0 => None,
            new => Some(state::name(new).ok_or(DecodeError::Value("new"))?),
        };
        let is_wanted = |state: &str| self.states.contains(&state);
        if !(self.states.is_empty() || is_wanted(old) || new.is_some_and(is_wanted)) {
            return Ok(Verdict::Filtered);
        }
        row.word(at::kind, kind);
        row.word(at::old_state, old);
        if let Some(new) = new {
            row.word(at::new_state, new);
        }
        if change.reason != NO_REASON {
            self.reasons.set(row, at::reset_reason, change.reason.into());
        }
        Ok(Verdict::Row)
    }
}

impl Decoder for StateDecoder {
    fn decode(&mut self, header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        if header.tag == TcpStateCounts::TAG {
            let counts = TcpStateCounts::read(raw).ok_or(DecodeError::Length)?;
            let flow = Flow { lport: counts.lport, rport: counts.rport, ..Flow::default() };
            let (what, old, new, reason) = (counts.what, counts.old, counts.new, counts.reset_reason_raw);
            flow::set_ports(row, &flow);
            return self.set(&Change { flow, what, old, new, reason }, row);
        }
        let event = TcpStateEvent::read(raw).ok_or(DecodeError::Length)?;
        let TcpStateEvent { flow, what, old, new, reset_reason_raw: reason, .. } = event;
        if self.set(&Change { flow, what, old, new, reason }, row)? == Verdict::Filtered {
            return Ok(Verdict::Filtered);
        }
        flow::set(row, &flow)?;
        if event.since_ns != 0 {
            row.uint(at::in_state_ns, header.ts_ns.saturating_sub(event.since_ns));
        }
        row.int(at::error, event.error.into());
        Ok(Verdict::Row)
    }
}
