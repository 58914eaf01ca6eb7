// SPDX-License-Identifier: Apache-2.0
//! The collectors: what each one needs of the kernel, how its state is set up, how its records become rows.
//!
//! In: raw records from the rings. Out: rows in a table's [`Columns`](crate::pipeline::batch::Columns).
//! Loses: a record that does not decode is counted `decode_error` by the caller.
//! Invariant: everything about one collector stands in three files of its name (`node-agent-common`, `node-agent-ebpf`,
//! here); the engine knows them by [`ALL`] only.

use std::collections::BTreeMap;

use node_agent_common::event::Header;
use node_agent_common::fields::Field;
use node_agent_common::table::CollectorInfo;

use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::load::{Kernel, KernelError};
use crate::kernel::probe::Need;
use crate::pipeline::batch::Row;

pub mod processes;
pub mod tcp_connections;

/// Every collector, sorted by name.
pub const ALL: &[&dyn Collector] = &[&processes::Processes, &tcp_connections::TcpConnections];

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

impl Hook {
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
            Attach::Entry(_) => Some("fentry"),
            Attach::Iterator(_) | Attach::Run => None,
        }
    }
}

/// Parameters of one session's collector, checked against the catalogue.
pub type Params = BTreeMap<String, String>;

/// Why a parameter is refused.
#[derive(Debug, thiserror::Error)]
#[error("parameter `{name}` of {collector} cannot be `{value}`: {reason}")]
pub struct ParamError {
    /// The collector.
    pub collector: &'static str,
    /// The parameter.
    pub name: String,
    /// What it was given.
    pub value: String,
    /// What is allowed.
    pub reason: String,
}

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
    /// Tags of the records that belong to it.
    fn tags(&self) -> &'static [u16];
    /// Checks the parameters and makes the session's decoder.
    ///
    /// # Errors
    /// [`ParamError`], naming the parameter and what is allowed.
    fn decoder(&self, params: &Params) -> Result<Box<dyn Decoder>, ParamError>;
    /// Writes the session's options into the collector's maps; runs before the slot is enabled.
    ///
    /// # Errors
    /// When a map cannot be written.
    fn open(&self, _kernel: &mut Kernel, _slot: u32, _params: &Params) -> Result<(), KernelError> {
        Ok(())
    }
    /// Cgroups that existed before became targets of the session: report what is in them already.
    ///
    /// # Errors
    /// When the pass cannot be made; what runs there then has its beginning late.
    fn join(&self, _kernel: &mut Kernel, _slot: u32, _cgroups: &[u64]) -> Result<(), KernelError> {
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

/// A parameter's value, or its default in the catalogue.
pub fn value<'a>(info: &'static CollectorInfo, params: &'a Params, name: &str) -> &'a str {
    let default = info.params.iter().find(|param| param.name == name).map_or("", |param| param.default);
    params.get(name).map_or(default, String::as_str)
}

/// A parameter that is true or false.
///
/// # Errors
/// [`ParamError`] for any other value.
pub fn boolean(info: &'static CollectorInfo, params: &Params, name: &str) -> Result<bool, ParamError> {
    let value = value(info, params, name);
    value.parse().map_err(|_| ParamError {
        collector: info.name,
        name: name.into(),
        value: value.into(),
        reason: "true or false".into(),
    })
}

/// Refuses parameters that the catalogue does not name.
///
/// # Errors
/// [`ParamError`], listing the known ones.
pub fn known(info: &'static CollectorInfo, params: &Params) -> Result<(), ParamError> {
    match params.iter().find(|(name, _)| info.params.iter().all(|param| param.name != **name)) {
        None => Ok(()),
        Some((name, value)) => Err(ParamError {
            collector: info.name,
            name: name.clone(),
            value: value.clone(),
            reason: format!(
                "there is no such parameter; known: {}",
                info.params.iter().map(|param| param.name).collect::<Vec<_>>().join(", ")
            ),
        }),
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
        let mut tags: Vec<_> = ALL.iter().flat_map(|collector| collector.tags()).collect();
        let all = tags.len();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), all);
    }

    #[test]
    fn unknown_parameters_and_wrong_values_are_refused_by_name() {
        let (_, processes) = find("processes").unwrap();
        for (name, value, expected) in
            [("colour", "red", "known: args, renames, threads"), ("threads", "maybe", "true or false")]
        {
            let error =
                processes.decoder(&BTreeMap::from([(name.into(), value.into())])).err().unwrap().to_string();
            assert!(error.contains(expected) && error.contains(name), "{error}");
        }
    }
}
