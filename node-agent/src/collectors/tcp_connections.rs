// SPDX-License-Identifier: Apache-2.0
//! `tcpConnections`: TCP connections of the targets, one row each, when they end or the session does.
//!
//! In: [`ConnectionEvent`] records. Out: rows of `tcp_connections`.
//! A session that joins a target adopts the sockets that processes hold; one that ends has what is still open written by a
//! program that this module runs for each entry of the kernel's map, since a socket without a file descriptor is in no
//! list that an unprivileged agent could walk.
//! Invariant: the slot is disabled, and no program still runs for it, before the first open connection is written; so each
//! connection has one row, whether it ends before, during or after the walk.

use std::collections::BTreeMap;
use std::time::Duration;

use node_agent_common::event::{Event, Header, until_nul};
use node_agent_common::fields::{Field, TASK_FIELDS};
use node_agent_common::sock::{SOCK_FIELDS, TCP_FIELDS};
use node_agent_common::table::CollectorInfo;
use node_agent_common::tcp_connections::{
    COLLECTOR, ConnectionEvent, FlushArgs, INDEX, MAX_CONNECTIONS, at, flag, flush, flushed,
};

use super::{Attach, Collector, DecodeError, Decoder, Hook, Ports, Role, Values, Verdict, flow, record};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::clock;
use crate::kernel::load::{Kernel, KernelError, wait_for_programs};
use crate::pipeline::batch::Row;
use crate::pipeline::decode::PERIOD;

/// The collector.
pub struct TcpConnections;

const ADOPT: &str = "tcp_adopt";
const FLUSH: &str = "tcp_flush";
const CONNECTIONS: &str = "CONNECTIONS";

/// Walks over the map at a session's end. An entry that changes while it is read is left to the next one; twice is rare.
const WALKS: usize = 8;
/// How long a walk waits for room in the rings, all together, before rows may be lost to them (and are counted).
const PATIENCE: Duration = Duration::from_secs(2);

impl Collector for TcpConnections {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        const {
            &[
                Hook::tracepoint("tcp_destroy_sock"),
                Hook::tracepoint("inet_sock_set_state"),
                Hook::tracepoint("tcp_send_reset"),
                Hook::tracepoint("tcp_receive_reset"),
                Hook {
                    program: "tcp_accept",
                    attach: Attach::Entry(&["security_sock_graft"]),
                    role: Role::Extra,
                },
                Hook::iterator(ADOPT, "task_file"),
                Hook::run(FLUSH),
            ]
        }
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[SOCK_FIELDS, TCP_FIELDS, TASK_FIELDS]
    }

    fn constants(&self, btf: &Btf) -> Result<Vec<(&'static str, u64)>, BtfError> {
        flow::constants(btf)
    }

    fn records(&self) -> &'static [(u16, u32)] {
        const { &[record::<ConnectionEvent>()] }
    }

    fn decoder(&self, values: &Values) -> Box<dyn Decoder> {
        Box::new(Filter::new(values))
    }

    fn join(&self, kernel: &mut Kernel, _slot: u32, _cgroups: &[u64]) -> Result<(), KernelError> {
        // The program asks the map of targets, and enters what is not there yet: a further pass changes nothing.
        kernel.iterate(ADOPT).map(drop)
    }

    fn flush(&self, kernel: &mut Kernel, slot: u32) -> Result<(), KernelError> {
        // From here on nothing new is followed for the session; what ends during the walk still gets its row.
        kernel.set_bit("ENABLED", INDEX, slot, false)?;
        wait_for_programs();
        let written = write_open(kernel, slot);
        // A bit that stays would be the next session's with this slot, with another tenant's connection.
        give_up(kernel, slot).and(written)
    }

    fn close(&self, kernel: &mut Kernel, slot: u32) -> Result<(), KernelError> {
        give_up(kernel, slot)?;
        // What nobody waits for is of no use, and would be taken for another socket's once the hooks are gone. An entry
        // without a cookie is being made.
        let unused = entries(kernel)?.into_iter().filter(|(_, c)| c.header.slots == 0 && c.flow.sock_id != 0);
        let mut map = kernel.hash::<u64, ConnectionEvent>(CONNECTIONS)?;
        for (key, _) in unused {
            // The socket was destroyed meanwhile: as good.
            let _ = map.remove(&key);
        }
        Ok(())
    }
}

/// The connections that the slot's session waits for.
fn awaited(kernel: &mut Kernel, slot: u32, mode: u64) -> Result<Vec<FlushArgs>, KernelError> {
    let slots = 1u64 << slot;
    let waiting = entries(kernel)?.into_iter().filter(|(_, found)| found.header.slots & slots != 0);
    Ok(waiting.map(|(key, found)| FlushArgs { key, sock_id: found.flow.sock_id, slots, mode }).collect())
}

/// Writes a row for each connection that is open. One that changes meanwhile is looked at again.
fn write_open(kernel: &mut Kernel, slot: u32) -> Result<(), KernelError> {
    let mut patience = PATIENCE;
    for _ in 0..WALKS {
        let waiting = awaited(kernel, slot, flush::WAIT_FOR_ROOM)?;
        if waiting.is_empty() {
            return Ok(());
        }
        for mut args in waiting {
            while run(kernel, &args)? == flushed::RING_FULL {
                std::thread::sleep(PERIOD);
                patience = patience.saturating_sub(PERIOD);
                args.mode = if patience.is_zero() { flush::WRITE } else { flush::WAIT_FOR_ROOM };
            }
        }
    }
    Err(KernelError::Unsupported("open connections kept changing while they were written".into()))
}

/// Counts what could not be written as lost, so that nothing waits for this session any more.
fn give_up(kernel: &mut Kernel, slot: u32) -> Result<(), KernelError> {
    awaited(kernel, slot, flush::GIVE_UP)?.iter().try_for_each(|args| run(kernel, args).map(drop))
}

/// What is in the kernel's map. Entries made during the walk may be left out.
fn entries(kernel: &mut Kernel) -> Result<BTreeMap<u64, ConnectionEvent>, KernelError> {
    let map = kernel.hash::<u64, ConnectionEvent>(CONNECTIONS)?;
    // A key that is removed under the walk sends it back to the start: entries come twice then, and it needs a bound.
    let walk = map.iter().take(2 * MAX_CONNECTIONS as usize);
    Ok(walk.filter_map(Result::ok).collect())
}

/// Runs the program that writes one connection; returns its answer.
fn run(kernel: &Kernel, args: &FlushArgs) -> Result<u32, KernelError> {
    kernel.run(FLUSH, &[args.key, args.sock_id, args.slots, args.mode])
}

/// The session's parameters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Filter {
    ports: Ports,
    min_duration_ns: u64,
    include_failed: bool,
    flush_open: bool,
    tick_ns: u64,
}

impl Filter {
    fn new(values: &Values) -> Filter {
        Filter {
            ports: values.ports("ports"),
            min_duration_ns: values.duration_ns("minDuration"),
            include_failed: values.bool("includeFailed"),
            flush_open: values.bool("flushOpen"),
            tick_ns: clock::tick_ns(),
        }
    }

    fn wants(&self, connection: &ConnectionEvent) -> bool {
        let has = |flag| connection.flags & flag != 0;
        (self.flush_open || has(flag::CLOSED))
            && (self.include_failed || has(flag::ESTABLISHED))
            && self.ports.want(&connection.flow)
            && connection.duration_ns().is_none_or(|duration| duration >= self.min_duration_ns)
    }
}

impl Decoder for Filter {
    fn decode(&mut self, _header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        let connection = ConnectionEvent::read(raw).ok_or(DecodeError::Length)?;
        if !self.wants(&connection) {
            return Ok(Verdict::Filtered);
        }
        flow::set(row, &connection.flow)?;
        if connection.pid != 0 {
            row.process(connection.pid, connection.tid, connection.start_ns, &connection.comm);
        }
        for (column, ns) in [
            (at::opened_ns, connection.opened_ns),
            (at::established_ns, connection.established_ns),
            (at::closed_ns, connection.closed_ns),
        ] {
            if ns != 0 {
                row.uint(column, ns);
            }
        }
        for (column, value) in [
            (at::handshake_ns, connection.handshake_ns()),
            (at::accept_delay_ns, connection.accept_delay_ns()),
            (at::duration_ns, connection.duration_ns()),
            (at::srtt_us, connection.srtt_us().map(u64::from)),
            (at::min_rtt_us, connection.min_rtt_us().map(u64::from)),
        ] {
            if let Some(value) = value {
                row.uint(column, value);
            }
        }
        let [busy, rwnd, sndbuf] = connection.busy_rwnd_sndbuf_ticks().map(|ticks| ticks * self.tick_ns);
        row.uint(at::busy_ns, busy);
        row.uint(at::rwnd_limited_ns, rwnd);
        row.uint(at::sndbuf_limited_ns, sndbuf);
        row.uint(at::bytes_acked, connection.bytes_acked());
        row.uint(at::bytes_received, connection.bytes_received());
        row.uint(at::bytes_sent, connection.bytes_sent);
        row.uint(at::bytes_retrans, connection.bytes_retrans);
        row.int(at::segs_in, connection.segs_in.into());
        row.int(at::segs_out, connection.segs_out.into());
        row.int(at::data_segs_out, connection.data_segs_out.into());
        row.int(at::retrans_segs, connection.retrans_segs.into());
        row.int(at::snd_cwnd, connection.snd_cwnd.into());
        row.int(at::error, connection.error.into());
        row.word(at::direction, connection.direction());
        row.word(at::end_reason, connection.end_reason());
        if !until_nul(&connection.ca_name).is_empty() {
            row.bytes(at::ca_name, &connection.ca_name);
        }
        Ok(Verdict::Row)
    }
}

#[cfg(test)]
mod tests {
    use node_agent_common::sock::Flow;

    use super::*;

    fn filter(params: &[(&str, &str)]) -> Filter {
        let params = params.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Filter::new(&Values::parse(&COLLECTOR, &params).expect("is valid"))
    }

    fn connection(flags: u32, lport: u16, rport: u16) -> ConnectionEvent {
        let zeros = [0; size_of::<ConnectionEvent>()];
        let flow = Flow { lport, rport, ..Flow::default() };
        ConnectionEvent { flags, flow, ..ConnectionEvent::read(&zeros).expect("has the record's length") }
    }

    #[test]
    fn without_parameters_every_connection_is_wanted() {
        let filter = filter(&[]);
        assert!(filter.wants(&connection(0, 1, 2)));
        assert!(filter.wants(&connection(flag::CLOSED, 1, 2)));
    }

    #[test]
    fn each_parameter_leaves_out_what_it_says() {
        let closed = flag::CLOSED | flag::ESTABLISHED;
        let ports = filter(&[("ports", "443,8000-8080")]);
        assert!(
            ports.wants(&connection(closed, 8080, 50_000)) && ports.wants(&connection(closed, 50_000, 443))
        );
        assert!(!ports.wants(&connection(closed, 50_000, 8081)));
        let established = filter(&[("includeFailed", "false")]);
        assert!(
            established.wants(&connection(closed, 1, 2))
                && !established.wants(&connection(flag::CLOSED, 1, 2))
        );
        let ended = filter(&[("flushOpen", "false")]);
        assert!(ended.wants(&connection(closed, 1, 2)) && !ended.wants(&connection(flag::ESTABLISHED, 1, 2)));
        let long = filter(&[("minDuration", "1s")]);
        let lasted =
            |ns: u64| ConnectionEvent { established_ns: 5, closed_ns: 5 + ns, ..connection(closed, 1, 2) };
        assert!(long.wants(&lasted(1_000_000_000)) && !long.wants(&lasted(999_999_999)));
        assert!(long.wants(&connection(closed, 1, 2)), "how long an adopted one lasted is not known");
    }

    #[test]
    fn wrong_parameters_are_refused_by_name() {
        for (name, value, part) in [
            ("ports", "70000", "443,8000-8080"),
            ("port", "443", "its parameters: ports"),
            ("minDuration", "1", "5s"),
        ] {
            let params = [(name.to_owned(), value.to_owned())].into();
            let error = Values::parse(&COLLECTOR, &params).expect_err("is refused").to_string();
            assert!(error.contains(part) && error.contains(name), "{error}");
        }
    }
}
