// SPDX-License-Identifier: Apache-2.0
//! Whether the running kernel can do what a collector needs, and if not, why, before anything is loaded.
//!
//! In: a collector's hooks, places and needs, and the kernel's BTF. Out: a [`Capability`].
//! Why from BTF and never from a version: distributions backport.

use crate::collectors::{ALL, Attach, Collector, Role};
use crate::kernel::btf::Btf;

/// Something the kernel must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A BTF tracepoint with at least so many arguments.
    Tracepoint(&'static str, usize),
    /// A function that BTF describes.
    Function(&'static str),
    /// A member of a struct.
    Member(&'static str, &'static str),
}

/// Whether a collector can run on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Name of the collector (camelCase).
    pub collector: &'static str,
    /// Whether it can run.
    pub supported: bool,
    /// Why not, by name; empty when it can.
    pub reason: String,
}

/// The hooks every session needs: they follow the targets' cgroups.
pub const TARGET_HOOKS: [&str; 2] = ["cgroup_mkdir", "cgroup_rmdir"];

/// What is missing for a collector on a kernel with that BTF; `None` when nothing is.
pub fn missing(collector: &dyn Collector, btf: &Btf) -> Option<String> {
    let tracepoint = |name: &str, arguments: usize| match btf.tracepoint(name) {
        None => Some(format!("this kernel has no tracepoint {name} (btf_trace_{name})")),
        Some(prototype) if prototype.args.len() < arguments => {
            Some(format!("tracepoint {name} has {} arguments, {arguments} are needed", prototype.args.len()))
        }
        Some(_) => None,
    };
    let hooks =
        collector.hooks().iter().filter(|hook| matches!(hook.role, Role::Needed)).find_map(|hook| match hook
            .attach
        {
            Attach::Tracepoint(name) => tracepoint(name, 0),
            Attach::Iterator(name) => btf
                .function(&format!("bpf_iter_{name}"))
                .is_none()
                .then(|| format!("this kernel has no iterator {name}")),
            Attach::Entry(functions) | Attach::Exit(functions) => functions
                .iter()
                .all(|name| btf.function(name).is_none())
                .then(|| format!("this kernel has no function {}", functions.join(" or "))),
            Attach::Run => None,
        });
    hooks
        .or_else(|| TARGET_HOOKS.iter().find_map(|name| tracepoint(name, 2)))
        .or_else(|| {
            let lists = collector.fields().iter().copied().chain([node_agent_common::fields::BASE_FIELDS]);
            lists.flatten().filter(|field| !field.optional).find_map(|field| {
                btf.member(field.type_name, field.path).err().map(|error| error.to_string())
            })
        })
        .or_else(|| {
            collector.needs().iter().find_map(|need| match *need {
                Need::Tracepoint(name, arguments) => tracepoint(name, arguments),
                Need::Function(name) => {
                    btf.function(name).is_none().then(|| format!("this kernel has no function {name}"))
                }
                Need::Member(type_name, path) => {
                    btf.member(type_name, path).err().map(|error| error.to_string())
                }
            })
        })
        .or_else(|| collector.constants(btf).err().map(|error| error.to_string()))
}

/// Bits of capabilities(7).
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The capability that this process lacks to load tracing programs, if any.
fn missing_privilege() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let has = |bit: u32| effective & (1 << bit) != 0;
    [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .into_iter()
        .find(|&(bit, _)| !has(bit) && !has(CAP_SYS_ADMIN))
        .map(|(_, name)| format!("this process lacks {name}, without which tracing programs are refused"))
}

/// What each collector can do on this node. Loads nothing.
pub fn capabilities() -> Vec<Capability> {
    let btf = Btf::running();
    let privilege = missing_privilege();
    ALL.iter()
        .map(|collector| {
            let reason = match &btf {
                Err(error) => Some(error.to_string()),
                Ok(btf) => privilege.clone().or_else(|| missing(*collector, btf)),
            };
            Capability {
                collector: collector.info().name,
                supported: reason.is_none(),
                reason: reason.unwrap_or_default(),
            }
        })
        .collect()
}
