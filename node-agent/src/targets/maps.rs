// SPDX-License-Identifier: Apache-2.0
//! The kernel's own maps of targets: which cgroups and pods are recorded for which slots.
//!
//! In: roots that a session names, cgroups found on disk. Out: entries of `TARGETS` and `PODS`, and what the directory
//! knows of them. Loses: nothing; a full map is an error, and calling again continues.
//! Why everything is done twice: a program that runs while a map changes may have read it before.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use aya::maps::HashMap;
use node_agent_common::target::{PodKey, hint, pod_key};

use super::{Cgroup, cgroup, pod};
use crate::kernel::clock;
use crate::kernel::load::{Kernel, KernelError, wait_for_programs};
use crate::pipeline::decode::{Link, Shared};

/// What a session names: everything below is recorded.
#[derive(Debug, Default)]
pub struct Roots<'a> {
    /// Pods by the names that their cgroups may have.
    pub pods: BTreeSet<&'a str>,
    /// Cgroups: id and directory.
    pub cgroups: Vec<(u64, &'a Path)>,
}

/// A pod's key in the kernel's map, for each name that its cgroup may have.
pub fn keys(names: &[String]) -> impl Iterator<Item = PodKey> {
    names.iter().filter_map(|name| pod_key(name))
}

/// Enters what exists already at and below the roots. Returns the cgroups that were not recorded for the slot before.
///
/// # Errors
/// When a map is full or cannot be read.
pub fn scan(
    cgroup_root: &Path,
    link: &Link,
    kernel: &mut Kernel,
    slot: u32,
    roots: &Roots,
) -> Result<BTreeSet<u64>, KernelError> {
    let mut joined = BTreeSet::new();
    // A cgroup that is being made while the maps change is seen either by the hook, with the maps as they are now, or
    // by the first walk; one whose hook had read them before, by the second.
    for _ in 0..2 {
        wait_for_programs();
        walk(cgroup_root, link, kernel, slot, roots, &mut joined)?;
    }
    Ok(joined)
}

fn walk(
    cgroup_root: &Path,
    link: &Link,
    kernel: &mut Kernel,
    slot: u32,
    roots: &Roots,
    joined: &mut BTreeSet<u64>,
) -> Result<(), KernelError> {
    let mut result = Ok(());
    let mut found = |parent: u64, id: u64, path: &Path| {
        let path = relative(cgroup_root, path);
        link.lock().directory.enter(id, parent, path, clock::boot_ns(), false);
        match has(kernel, id, slot).and_then(|has| {
            if !has {
                enter(kernel, id, slot)?;
                joined.insert(id);
            }
            Ok(())
        }) {
            Ok(()) => true,
            Err(error) => {
                result = Err(error);
                false
            }
        }
    };
    if !roots.pods.is_empty() {
        let mut inside: BTreeSet<u64> = BTreeSet::new();
        cgroup::walk(cgroup_root, &mut |parent, id, path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let own = pod::name_key(name).is_some_and(|key| roots.pods.contains(&*key));
            if own || inside.contains(&parent) {
                inside.insert(id);
                return found(parent, id, path);
            }
            true
        });
    }
    for (_, path) in &roots.cgroups {
        cgroup::walk(path, &mut found);
    }
    result
}

/// Closes, in the directory, what is not on disk any more.
pub fn bury(cgroup_root: &Path, link: &Link) {
    // What is made during the walk may not be met by it.
    let begin = clock::boot_ns();
    let mut alive = BTreeSet::new();
    cgroup::walk(cgroup_root, &mut |_, id, _| {
        alive.insert(id);
        true
    });
    let now = clock::boot_ns();
    let mut shared = link.lock();
    let open =
        shared.directory.cgroups().filter(|(_, cgroup)| cgroup.gone_ns.is_none() && cgroup.from_ns < begin);
    let gone: Vec<u64> = open.map(|(id, _)| id).filter(|id| !alive.contains(id)).collect();
    gone.into_iter().for_each(|id| shared.directory.gone(id, now));
}

fn has(kernel: &mut Kernel, cgroup: u64, slot: u32) -> Result<bool, KernelError> {
    let targets: HashMap<_, u64, u64> = kernel.hash("TARGETS")?;
    Ok(targets.get(&cgroup, 0).is_ok_and(|slots| slots & 1 << slot != 0))
}

/// Makes a cgroup a target of the slot.
///
/// # Errors
/// When the map is full or cannot be read.
pub fn enter(kernel: &mut Kernel, cgroup: u64, slot: u32) -> Result<(), KernelError> {
    const HINTS: &str = "TARGET_HINTS";
    let failed = |source| KernelError::Map { map: HINTS, source };
    // First, since hooks look at it first.
    kernel.array::<u8>(HINTS)?.set(hint(cgroup), 1, 0).map_err(failed)?;
    change(kernel, "TARGETS", cgroup, slot, true)
}

/// Sets or clears the slot's bit of an entry, which is made or removed as needed.
///
/// # Errors
/// When the map is full or cannot be read.
pub fn change<K: aya::Pod>(
    kernel: &mut Kernel,
    map: &'static str,
    key: K,
    slot: u32,
    on: bool,
) -> Result<(), KernelError> {
    let mut entries = kernel.hash::<K, u64>(map)?;
    let slots = entries.get(&key, 0).unwrap_or(0);
    let changed = if on { slots | 1 << slot } else { slots & !(1 << slot) };
    match (slots == changed, changed) {
        (true, _) => Ok(()),
        // Removed by the hook meanwhile is as good.
        (false, 0) => {
            let _ = entries.remove(&key);
            Ok(())
        }
        _ => entries.insert(key, changed, 0).map_err(|source| KernelError::Map { map, source }),
    }
}

/// Takes the slot from every target.
///
/// # Errors
/// When the map cannot be read or written.
pub fn clear(kernel: &mut Kernel, slot: u32) -> Result<(), KernelError> {
    let ids: Vec<u64> = kernel.hash::<u64, u64>("TARGETS")?.keys().filter_map(Result::ok).collect();
    ids.into_iter().try_for_each(|id| change(kernel, "TARGETS", id, slot, false))
}

/// Takes the slot from known cgroups that are chosen.
///
/// # Errors
/// When the map cannot be read or written.
pub fn leave(
    kernel: &mut Kernel,
    link: &Link,
    slot: u32,
    chosen: impl Fn(&Shared, &Cgroup) -> bool,
) -> Result<(), KernelError> {
    // Twice: see above.
    for _ in 0..2 {
        let ids: Vec<u64> = {
            let shared = link.lock();
            shared
                .directory
                .cgroups()
                .filter(|(_, cgroup)| chosen(&shared, cgroup))
                .map(|(id, _)| id)
                .collect()
        };
        for id in ids {
            change(kernel, "TARGETS", id, slot, false)?;
        }
        wait_for_programs();
    }
    Ok(())
}

/// Whether the cgroup is `root` or lies below it.
pub fn below(shared: &Shared, cgroup: &Cgroup, root: u64) -> bool {
    let mut path = Some(cgroup);
    let top = shared.directory.cgroup(root).map(|top| top.path.clone());
    if top.is_some_and(|top| cgroup.path == top) {
        return true;
    }
    while let Some(at) = path {
        if at.parent == root {
            return true;
        }
        path = shared.directory.cgroup(at.parent);
    }
    false
}

/// The path below the tree's root.
pub fn relative(root: &Path, path: &Path) -> Arc<str> {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().into()
}
