// SPDX-License-Identifier: Apache-2.0
//! The collectors: what each one needs of the kernel, how its state is set up, how its records become rows.
//!
//! In: raw records from the rings. Out: rows in a table's [`Columns`](crate::pipeline::batch::Columns).
//! Loses: a record that does not decode is counted `decode_error` by the caller.
//! Invariant: everything about one collector stands in three files of its name (`node-agent-common`, `node-agent-ebpf`,
//! here); the engine knows them by [`ALL`] only.

use std::collections::BTreeMap;

use dataset::catalogue::{CatalogueError, ParamValue, validate};
use node_agent_common::event::{Event, Header};
use node_agent_common::fields::Field;
use node_agent_common::sock::Flow;
use node_agent_common::table::CollectorInfo;

use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::load::{Kernel, KernelError};
use crate::kernel::probe::Need;
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

pub mod cpu_sched;
pub mod flow;
pub mod memory_rss;
pub mod netns;
pub mod node_info;
pub mod packet_drops;
pub mod page_faults;
pub mod processes;
pub mod tcp_connections;
pub mod tcp_listen_queue;
pub mod tcp_receive;
pub mod tcp_retransmits;
pub mod tcp_states;
pub mod tcp_throughput;

/// Every collector, sorted by name.
pub const ALL: &[&dyn Collector] = &[
    &cpu_sched::CpuSched,
    &memory_rss::MemoryRssCollector,
    &node_info::NodeInfoCollector,
    &packet_drops::PacketDropsCollector,
    &page_faults::PageFaultsCollector,
    &processes::Processes,
    &tcp_connections::TcpConnections,
    &tcp_listen_queue::TcpListenQueue,
    &tcp_receive::TcpReceive,
    &tcp_retransmits::TcpRetransmits,
    &tcp_states::TcpStates,
    &tcp_throughput::TcpThroughput,
];

/// The collector of that name (camelCase).
pub fn find(name: &str) -> Option<(usize, &'static dyn Collector)> {
    ALL.iter()
        .enumerate()
        .find(|(_, collector)| collector.info().name == name)
        .map(|(index, collector)| (index, *collector))
}

/// A program of the object, and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Where it is attached.
    pub attach: Attach,
    /// What becomes of the collector without it.
    pub role: Role,
}

/// What a program is to its collector.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// Without it the collector does not run.
    Needed,
    /// The collector prefers it to one that comes later in its list.
    Better(Better),
    /// Attached where the kernel lets it; what its absence costs stands in the collector's documentation.
    Extra,
    /// Attached where the kernel lets all of the collector's hooks with this role be attached, else none of them.
    Together,
    /// Attached where those are not; comes after them in the list.
    Instead,
    /// Attached only while a session asks for it by a parameter ([`Collector::asks`]), since it costs everybody something.
    Asked,
    /// The same of one that only adds to what another asked one sees, as [`Extra`](Role::Extra): a run that is skipped costs no
    /// event.
    AskedExtra,
}

impl Role {
    /// Whether some session has to ask for it.
    pub const fn is_asked(self) -> bool {
        matches!(self, Role::Asked | Role::AskedExtra)
    }
}

/// A preference between two programs of a collector. What the collector lacks with the other one stands in its
/// documentation.
#[derive(Clone, Copy, Debug)]
pub struct Better {
    /// The program that takes over where this one cannot be attached, and is left out otherwise.
    pub than: &'static str,
    /// On which kernels this program is preferred.
    pub on: fn(&Btf) -> bool,
}

/// A collector as a session uses it.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// Its position in [`ALL`].
    pub index: usize,
    /// The programs that the session asks for: [`Collector::asks`].
    pub asks: &'static [&'static str],
}

impl Running {
    /// Whether what the hook sees is the session's.
    pub fn has(&self, hook: &Hook) -> bool {
        !hook.role.is_asked() || self.asks.contains(&hook.program)
    }
}

/// A record of the rings, for [`Collector::records`].
pub const fn record<E: Event>() -> (u16, u32) {
    (E::TAG, E::TABLE)
}

/// Bytes of a page.
pub fn page_bytes() -> u64 {
    // SAFETY: the call takes no pointers.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096)
}

/// The word for a value that begins with 1, of the words in order.
///
/// # Errors
/// When there is none, naming `field`.
pub fn word(words: &[&'static str], value: u32, field: &'static str) -> Result<&'static str, DecodeError> {
    let index = (value as usize).checked_sub(1);
    index.and_then(|index| words.get(index)).copied().ok_or(DecodeError::Value(field))
}

impl Hook {
    /// A program on the BTF tracepoint of that name.
    pub const fn on(program: &'static str, tracepoint: &'static str) -> Hook {
        Hook { program, attach: Attach::Tracepoint(tracepoint), role: Role::Needed }
    }

    /// A program on the BTF tracepoint of the same name.
    pub const fn tracepoint(name: &'static str) -> Hook {
        Hook { program: name, attach: Attach::Tracepoint(name), role: Role::Needed }
    }

    /// A program that is an iterator of that kind.
    pub const fn iterator(program: &'static str, kind: &'static str) -> Hook {
        Hook { program, attach: Attach::Iterator(kind), role: Role::Needed }
    }

    /// A program that the agent runs itself.
    pub const fn run(program: &'static str) -> Hook {
        Hook { program, attach: Attach::Run, role: Role::Needed }
    }
}

/// How a program meets the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// BTF tracepoint of that name.
    Tracepoint(&'static str),
    /// Entry of the first of these functions that the kernel has: one function under its names over time.
    Entry(&'static [&'static str]),
    /// Exit of the first of these functions that the kernel has.
    Exit(&'static [&'static str]),
    /// Iterator of that name (`task`, `task_file`); loaded only, each pass attaches it ([`Kernel::iterate`]).
    Iterator(&'static str),
    /// Raw tracepoint program that is never attached: the agent runs it itself.
    Run,
}

impl Attach {
    /// The word for it in the coverage; none for what is not in the path of an event.
    pub const fn word(self) -> Option<&'static str> {
        match self {
            Attach::Tracepoint(_) => Some("tp_btf"),
            Attach::Entry(_) | Attach::Exit(_) => Some("fentry"),
            Attach::Iterator(_) | Attach::Run => None,
        }
    }
}

/// Parameters of one session's collector, checked against the catalogue.
pub type Params = BTreeMap<String, String>;

/// Why a parameter is refused: by the catalogue, with what it knows.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ParamError(#[from] pub CatalogueError);

/// Why a record did not become a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The record has another length than its type.
    #[error("the record has another length than its type")]
    Length,
    /// A field holds a value that no hook writes.
    #[error("field `{0}` holds a value that no hook writes")]
    Value(&'static str),
}

/// What the decoder made of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The row is complete: columns that were not set are null.
    Row,
    /// The session's parameters leave it out; counted `filtered`.
    Filtered,
}

/// Turns records into rows, for one session; holds the session's parameters.
pub trait Decoder: Send {
    /// Takes over a name that rows may need; see [`Collector::refresh`].
    fn learn(&mut self, _id: u64, _name: &str) {}

    /// A window from and to these times since boot is over: the records that rows will be made of, each with its number of
    /// events, may be put into another order and together. Where they are looks, records may be added: one event each.
    fn window(&mut self, _span: (u64, u64), _records: &mut Vec<(Vec<u8>, u64)>) {}

    /// Writes the table's own columns of one record into `row`. The common ones are filled by the caller.
    ///
    /// # Errors
    /// [`DecodeError`], when the record is not what its tag says; the row is dropped then.
    fn decode(&mut self, header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError>;
}

/// One collector. All methods but `decode` run on the control thread.
pub trait Collector: Sync {
    /// Its description. The first table is the one its records go to.
    fn info(&self) -> &'static CollectorInfo;
    /// Its programs. All are loaded and attached when the first session needs them, and unloaded with the last.
    fn hooks(&self) -> &'static [Hook];
    /// Places that its programs read; those that are not optional are needs.
    fn fields(&self) -> &'static [&'static [Field]];
    /// What it needs beyond hooks and places.
    fn needs(&self) -> &'static [Need] {
        &[]
    }
    /// Further constants of the object: name and value.
    ///
    /// # Errors
    /// When the kernel's types lack something; the collector then is unsupported with that reason.
    fn constants(&self, _btf: &Btf) -> Result<Vec<(&'static str, u64)>, BtfError> {
        Ok(Vec::new())
    }
    /// The records that come through the rings for it: tag and table.
    fn records(&self) -> &'static [(u16, u32)] {
        &[]
    }
    /// The maps in which its programs keep what they know of sockets or tasks; emptied when its last session has left.
    fn state(&self) -> &'static [&'static str] {
        &[]
    }
    /// The maps in which its programs add up.
    fn aggregations(&self) -> &'static [Aggregation] {
        &[]
    }
    /// Whether a session with these parameters wants each event of its table by itself, where the programs can also add up.
    fn each(&self, _values: &Values) -> bool {
        false
    }
    /// The programs of role [`Asked`](Role::Asked) that a session with these parameters needs.
    fn asks(&self, _values: &Values) -> &'static [&'static str] {
        &[]
    }
    /// Makes the decoder of a session with these parameters.
    fn decoder(&self, values: &Values) -> Box<dyn Decoder>;
    /// Writes the session's options into the collector's maps; runs before the slot is enabled.
    ///
    /// # Errors
    /// When a map cannot be written.
    fn open(&self, _kernel: &mut Kernel, _slot: u32, _values: &Values) -> Result<(), KernelError> {
        Ok(())
    }
    /// Cgroups that existed before became targets of the session: report what is in them already.
    ///
    /// # Errors
    /// When the pass cannot be made; what runs there then has its beginning late.
    fn join(&self, _kernel: &mut Kernel, _slot: u32, _cgroups: &[u64]) -> Result<(), KernelError> {
        Ok(())
    }
    /// A window ends: have programs add up what they look at rather than wait for. For all sessions at once.
    ///
    /// # Errors
    /// When the pass cannot be made; the next one makes up for it.
    fn sample(&self, _kernel: &mut Kernel) -> Result<(), KernelError> {
        Ok(())
    }
    /// A window ends: hand over the records of what the collector itself reads for a table, key and value, for the sessions in
    /// their headers.
    ///
    /// # Errors
    /// When the kernel refuses a pass; the window then goes on.
    fn gather(
        &self,
        _kernel: &mut Kernel,
        _aggregation: &Aggregation,
        _out: &mut dyn FnMut(&[u8]),
    ) -> Result<(), KernelError> {
        Ok(())
    }
    /// A window ended: tell a session's decoder what its rows need beside the records.
    ///
    /// # Errors
    /// When a map cannot be read; what rows need of it is null then.
    fn refresh(&self, _kernel: &mut Kernel, _decoder: &mut dyn Decoder) -> Result<(), KernelError> {
        Ok(())
    }
    /// The session ends: report what is still open. The slot is still enabled, and the rings are being drained.
    ///
    /// # Errors
    /// When the pass cannot be made; what is open is missing then.
    fn flush(&self, _kernel: &mut Kernel, _slot: u32) -> Result<(), KernelError> {
        Ok(())
    }
    /// The slot is no longer enabled and no program still runs for it: take it out of the collector's maps.
    ///
    /// # Errors
    /// When a map cannot be written.
    fn close(&self, _kernel: &mut Kernel, _slot: u32) -> Result<(), KernelError> {
        Ok(())
    }
}

/// A session's parameters of one collector, parsed, with defaults filled in.
#[derive(Clone, Debug)]
pub struct Values(BTreeMap<&'static str, ParamValue>);

impl Values {
    /// Parses what a session gives.
    ///
    /// # Errors
    /// [`ParamError`] for a name or a value that the catalogue does not know.
    pub fn parse(info: &'static CollectorInfo, params: &Params) -> Result<Values, ParamError> {
        match validate(info.name, params) {
            Ok(valid) => Ok(Values(valid.params)),
            Err(error) => Err(ParamError(error)),
        }
    }

    fn get(&self, name: &str) -> &ParamValue {
        self.0.get(name).unwrap_or_else(|| panic!("the catalogue declares {name}"))
    }

    /// A parameter that is true or false.
    ///
    /// # Panics
    /// This and the others: when the catalogue declares no such parameter of that type.
    pub fn bool(&self, name: &str) -> bool {
        match self.get(name) {
            ParamValue::Bool(value) => *value,
            other => panic!("{name} is {other:?}"),
        }
    }

    /// A duration, in nanoseconds.
    pub fn duration_ns(&self, name: &str) -> u64 {
        match self.get(name) {
            ParamValue::Duration(value) => u64::try_from(value.as_nanos()).unwrap_or(u64::MAX),
            other => panic!("{name} is {other:?}"),
        }
    }

    /// A whole number.
    pub fn integer(&self, name: &str) -> i64 {
        match self.get(name) {
            ParamValue::Integer(value) => *value,
            other => panic!("{name} is {other:?}"),
        }
    }

    /// One of several words.
    pub fn choice(&self, name: &str) -> &'static str {
        match self.get(name) {
            ParamValue::Choice(value) => value,
            other => panic!("{name} is {other:?}"),
        }
    }

    /// Some of several words; none for all.
    pub fn words(&self, name: &str) -> &[&'static str] {
        match self.get(name) {
            ParamValue::Words(value) => value,
            other => panic!("{name} is {other:?}"),
        }
    }

    /// Ports.
    pub fn ports(&self, name: &str) -> Ports {
        match self.get(name) {
            ParamValue::Ports(value) => Ports(value.clone()),
            other => panic!("{name} is {other:?}"),
        }
    }
}

/// Inclusive ranges of ports; none for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    /// Whether a flow with these ports is wanted.
    pub fn want(&self, flow: &Flow) -> bool {
        self.has(flow.lport) || self.has(flow.rport)
    }

    /// Whether the port is wanted.
    pub fn has(&self, port: u16) -> bool {
        self.0.is_empty() || self.0.iter().any(|&(low, high)| (low..=high).contains(&port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_collector_of_the_catalogue_is_here_and_tags_are_unique() {
        let names: Vec<_> = ALL.iter().map(|collector| collector.info().name).collect();
        let catalogue: Vec<_> =
            node_agent_common::catalogue::COLLECTORS.iter().map(|info| info.name).collect();
        assert_eq!(names, catalogue);
        let records = ALL.iter().flat_map(|collector| collector.records().iter().map(|(tag, _)| *tag));
        let entries = ALL.iter().flat_map(|collector| collector.aggregations().iter().map(|a| a.tag));
        let mut tags: Vec<_> = records.chain(entries).collect();
        let all = tags.len();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), all);
    }

    #[test]
    fn unknown_parameters_and_wrong_values_are_refused_by_name() {
        let info = find("processes").unwrap().1.info();
        for (name, value, expected) in [
            ("colour", "red", "its parameters: args, renames, threads"),
            ("threads", "maybe", "true or false"),
        ] {
            let error =
                Values::parse(info, &BTreeMap::from([(name.into(), value.into())])).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(name), "{error}");
        }
    }
}
