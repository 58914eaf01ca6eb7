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
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use dataset::catalogue::{CatalogueError, ParamValue, validate};
use node_agent_common::event::{Event, Header, until_nul};
use node_agent_common::fields::{Field, TASK_FIELDS};
use node_agent_common::table::{AFTER_PROCESS, CollectorInfo, FLOW_COLUMNS, position};
use node_agent_common::tcp_connections::{
    COLLECTOR, ConnectionEvent, FlushArgs, INDEX, MAX_CONNECTIONS, SOCK_FIELDS, TCP_FIELDS, at, flag, flush,
    flushed, state,
};

use super::{Attach, Collector, DecodeError, Decoder, Hook, ParamError, Params, Role, Verdict, known};
use crate::kernel::btf::{Btf, BtfError};
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

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: i64 = 6;

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
        for &(name, ours) in state::NAMES {
            if btf.enumerator(None, name)? != i64::from(ours) {
                return Err(BtfError::MissingType { kind: "state", name: format!("{name} = {ours}") });
            }
        }
        let done = btf.enumerator(Some("sock_flags"), "SOCK_DONE")?;
        Ok(vec![("SOCK_DONE_BIT", done.cast_unsigned())])
    }

    fn tags(&self) -> &'static [u16] {
        &[ConnectionEvent::TAG]
    }

    fn decoder(&self, params: &Params) -> Result<Box<dyn Decoder>, ParamError> {
        Ok(Box::new(Filter::parse(params)?))
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
        let unused = entries(kernel)?.into_iter().filter(|(_, c)| c.header.slots == 0 && c.sock_id != 0);
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
    Ok(waiting.map(|(key, found)| FlushArgs { key, sock_id: found.sock_id, slots, mode }).collect())
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
    /// The part of `union bpf_attr` for BPF_PROG_TEST_RUN, of include/uapi/linux/bpf.h.
    #[repr(C)]
    #[derive(Default)]
    struct TestRun {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
        flags: u32,
        cpu: u32,
    }
    const BPF_PROG_TEST_RUN: libc::c_long = 10;
    let fd = kernel.program_fd(FLUSH)?.as_fd().as_raw_fd();
    let mut attr = TestRun {
        prog_fd: fd.cast_unsigned(),
        ctx_size_in: size_of::<FlushArgs>() as u32,
        ctx_in: std::ptr::from_ref(args) as u64,
        ..TestRun::default()
    };
    // SAFETY: the kernel reads `attr` of the size given and `ctx_size_in` bytes at `ctx_in`, and writes to `attr`.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>()) };
    if result != 0 {
        let source = std::io::Error::last_os_error();
        return Err(KernelError::Io { what: "cannot run the program that writes open connections", source });
    }
    Ok(attr.retval)
}

/// The session's parameters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Filter {
    /// Inclusive ranges; empty for all.
    ports: Vec<(u16, u16)>,
    min_duration_ns: u64,
    include_failed: bool,
    flush_open: bool,
}

impl Filter {
    fn parse(params: &Params) -> Result<Filter, ParamError> {
        known(&COLLECTOR, params)?;
        let valid = validate(COLLECTOR.name, params).map_err(|error| {
            let reason = error.to_string();
            match error {
                CatalogueError::InvalidParam { param, value, expected, .. } => ParamError {
                    collector: COLLECTOR.name,
                    name: param.into(),
                    value,
                    reason: format!("expected {expected}"),
                },
                _ => ParamError {
                    collector: COLLECTOR.name,
                    name: String::new(),
                    value: String::new(),
                    reason,
                },
            }
        })?;
        let mut filter = Filter::default();
        for (name, value) in valid.params {
            match (name, value) {
                ("ports", ParamValue::Ports(ports)) => filter.ports = ports,
                ("minDuration", ParamValue::Duration(duration)) => {
                    filter.min_duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
                }
                ("includeFailed", ParamValue::Bool(on)) => filter.include_failed = on,
                ("flushOpen", ParamValue::Bool(on)) => filter.flush_open = on,
                (name, value) => {
                    unreachable!("the catalogue declares {name} and this module does not: {value:?}")
                }
            }
        }
        Ok(filter)
    }

    fn wants(&self, connection: &ConnectionEvent) -> bool {
        let has = |flag| connection.flags & flag != 0;
        let on = |port: u16| self.ports.iter().any(|&(low, high)| (low..=high).contains(&port));
        (self.flush_open || has(flag::CLOSED))
            && (self.include_failed || has(flag::ESTABLISHED))
            && (self.ports.is_empty() || on(connection.lport) || on(connection.rport))
            && connection.duration_ns().is_none_or(|duration| duration >= self.min_duration_ns)
    }
}

/// Positions of the flow columns.
mod flow {
    use super::{AFTER_PROCESS, FLOW_COLUMNS, position};
    pub(super) const FAMILY: usize = AFTER_PROCESS + position(&FLOW_COLUMNS, "family");
    pub(super) const PROTOCOL: usize = AFTER_PROCESS + position(&FLOW_COLUMNS, "protocol");
    pub(super) const LADDR: usize = AFTER_PROCESS + position(&FLOW_COLUMNS, "laddr");
    pub(super) const LPORT: usize = AFTER_PROCESS + position(&FLOW_COLUMNS, "lport");
    pub(super) const RADDR: usize = AFTER_PROCESS + position(&FLOW_COLUMNS, "raddr");
    pub(super) const RPORT: usize = AFTER_PROCESS + position(&FLOW_COLUMNS, "rport");
    pub(super) const SOCK_ID: usize = AFTER_PROCESS + position(&FLOW_COLUMNS, "sock_id");
}

impl Decoder for Filter {
    fn decode(&mut self, _header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        let connection = ConnectionEvent::read(raw).ok_or(DecodeError::Length)?;
        if !self.wants(&connection) {
            return Ok(Verdict::Filtered);
        }
        let local = address(connection.family, connection.laddr).ok_or(DecodeError::Value("family"))?;
        let remote = address(connection.family, connection.raddr).ok_or(DecodeError::Value("family"))?;
        // An IPv6 socket that is not bound yet has no local address, while its peer's is IPv4 already.
        row.int(flow::FAMILY, i64::from(if remote.is_ipv4() { AF_INET } else { AF_INET6 }));
        row.int(flow::PROTOCOL, IPPROTO_TCP);
        row.ip(flow::LADDR, local);
        row.int(flow::LPORT, connection.lport.into());
        row.ip(flow::RADDR, remote);
        row.int(flow::RPORT, connection.rport.into());
        row.uint(flow::SOCK_ID, connection.sock_id);
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
        row.text(at::direction, connection.direction());
        row.text(at::end_reason, connection.end_reason());
        if !until_nul(&connection.ca_name).is_empty() {
            row.bytes(at::ca_name, &connection.ca_name);
        }
        Ok(Verdict::Row)
    }
}

/// An address as the kernel holds it; IPv4 inside IPv6 becomes IPv4. `None` for a family that TCP does not run on.
fn address(family: u16, bytes: [u8; 16]) -> Option<IpAddr> {
    let [a, b, c, d, ..] = bytes;
    match family {
        AF_INET => Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
        AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(params: &[(&str, &str)]) -> Result<Filter, ParamError> {
        Filter::parse(&params.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    fn connection(flags: u32, lport: u16, rport: u16) -> ConnectionEvent {
        let zeros = [0; size_of::<ConnectionEvent>()];
        ConnectionEvent {
            flags,
            lport,
            rport,
            ..ConnectionEvent::read(&zeros).expect("has the record's length")
        }
    }

    #[test]
    fn without_parameters_every_connection_is_wanted() {
        let filter = filter(&[]).expect("defaults are valid");
        assert!(filter.wants(&connection(0, 1, 2)));
        assert!(filter.wants(&connection(flag::CLOSED, 1, 2)));
    }

    #[test]
    fn each_parameter_leaves_out_what_it_says() {
        let closed = flag::CLOSED | flag::ESTABLISHED;
        let ports = filter(&[("ports", "443,8000-8080")]).expect("is valid");
        assert!(
            ports.wants(&connection(closed, 8080, 50_000)) && ports.wants(&connection(closed, 50_000, 443))
        );
        assert!(!ports.wants(&connection(closed, 50_000, 8081)));
        let established = filter(&[("includeFailed", "false")]).expect("is valid");
        assert!(
            established.wants(&connection(closed, 1, 2))
                && !established.wants(&connection(flag::CLOSED, 1, 2))
        );
        let ended = filter(&[("flushOpen", "false")]).expect("is valid");
        assert!(ended.wants(&connection(closed, 1, 2)) && !ended.wants(&connection(flag::ESTABLISHED, 1, 2)));
        let long = filter(&[("minDuration", "1s")]).expect("is valid");
        let lasted =
            |ns: u64| ConnectionEvent { established_ns: 5, closed_ns: 5 + ns, ..connection(closed, 1, 2) };
        assert!(long.wants(&lasted(1_000_000_000)) && !long.wants(&lasted(999_999_999)));
        assert!(long.wants(&connection(closed, 1, 2)), "how long an adopted one lasted is not known");
    }

    #[test]
    fn wrong_parameters_are_refused_by_name() {
        for (name, value, part) in
            [("ports", "70000", "443,8000-8080"), ("port", "443", "known: ports"), ("minDuration", "1", "5s")]
        {
            let error = filter(&[(name, value)]).expect_err("is refused").to_string();
            assert!(error.contains(part) && error.contains(name) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn ports_and_addresses_keep_their_order() {
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3];
        assert_eq!(address(AF_INET6, mapped), Some(IpAddr::from([10, 1, 2, 3])));
        let mut v4 = [0; 16];
        v4[..4].copy_from_slice(&[10, 1, 2, 3]);
        assert_eq!(address(AF_INET, v4), Some(IpAddr::from([10, 1, 2, 3])));
        assert_eq!(address(AF_INET6, [0; 16]), Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
        assert_eq!(address(1, v4), None);
    }
}
