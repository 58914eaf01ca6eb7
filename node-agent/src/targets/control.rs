// SPDX-License-Identifier: Apache-2.0
//! What one open session records: pods and cgroups join and leave it while it runs.
//!
//! In: the whole list of targets, each time. Out: entries in the kernel's maps, and the windows from which coverage is made.
//! Loses: nothing by itself; what starts in a cgroup before the kernel knows of it is outside of its window.
//! Invariant: a window opens only when everything of the target is recorded, and is closed before it is no longer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::maps::{self, Roots};
use super::{PodTarget, TargetSpec};
use crate::budget::Meter;
use crate::collectors::{ALL, Running};
use crate::coverage::{self, Windows};
use crate::kernel::clock;
use crate::kernel::load::{Kernel, KernelError};
use crate::pipeline::decode::Link;

/// What the control thread knows of an open session.
pub struct Control {
    /// Its slot.
    pub slot: u32,
    /// The collectors that run.
    pub collectors: Vec<Running>,
    /// What it recorded when.
    pub windows: Windows,
    /// UIDs of the pods it records now, with the names that the cgroup of each may have.
    pub pods: BTreeMap<String, Vec<String>>,
    /// Cgroups it records now.
    pub cgroups: BTreeMap<u64, PathBuf>,
    /// When it began, nanoseconds since boot.
    pub opened_ns: u64,
    /// Watches its budget, if it has one.
    pub meter: Option<Meter>,
}

/// Pods by UID, and cgroups by id.
fn by_kind(targets: &[TargetSpec]) -> (BTreeMap<&str, &PodTarget>, BTreeMap<u64, &Path>) {
    let (mut pods, mut cgroups) = (BTreeMap::new(), BTreeMap::new());
    for target in targets {
        match target {
            TargetSpec::Pod(pod) => _ = pods.insert(pod.uid.as_str(), pod),
            TargetSpec::Cgroup { id, path } => _ = cgroups.insert(*id, path.as_path()),
        }
    }
    (pods, cgroups)
}

impl Control {
    /// Takes in what is among `targets` and not recorded yet.
    ///
    /// # Errors
    /// When a map is full or cannot be written; calling again continues.
    pub fn join(
        &mut self,
        kernel: &mut Kernel,
        cgroup_root: &Path,
        link: &Link,
        session: &str,
        targets: &[TargetSpec],
    ) -> Result<(), KernelError> {
        link.lock().directory.learn(targets);
        let (mut pods, mut cgroups) = by_kind(targets);
        let is_open = |windows: Option<&Vec<(u64, Option<u64>)>>| {
            windows.and_then(|windows| windows.last()).is_some_and(|(_, left)| left.is_none())
        };
        pods.retain(|uid, _| !is_open(self.windows.pods.get(*uid)));
        cgroups.retain(|id, _| !is_open(self.windows.cgroups.get(id)));
        for pod in pods.values() {
            let names = [Some(&pod.uid), pod.cgroup_name.as_ref()].into_iter().flatten().cloned();
            let names = self.pods.entry(pod.uid.clone()).insert_entry(names.collect());
            for key in maps::keys(names.get()) {
                maps::change(kernel, "PODS", key, self.slot, true)?;
            }
        }
        for (&id, path) in &cgroups {
            self.cgroups.insert(id, (*path).to_owned());
            maps::enter(kernel, id, self.slot)?;
            let path = maps::relative(cgroup_root, path);
            link.lock().directory.enter(id, 0, path, clock::boot_ns(), false);
        }
        if !(pods.is_empty() && cgroups.is_empty()) {
            let names = pods.keys().flat_map(|uid| &self.pods[*uid]).map(String::as_str);
            let roots = Roots {
                pods: names.collect(),
                cgroups: cgroups.iter().map(|(id, path)| (*id, *path)).collect(),
            };
            let mut joined = maps::scan(cgroup_root, link, kernel, self.slot, &roots)?;
            joined.extend(cgroups.keys());
            self.ask(kernel, session, joined);
            // Only now is all of them recorded; an error before leaves them for the next call.
            let now = clock::boot_ns();
            for uid in pods.keys() {
                self.windows.pods.entry((*uid).to_owned()).or_default().push((now, None));
            }
            for id in cgroups.keys() {
                self.windows.cgroups.entry(*id).or_default().push((now, None));
            }
        }
        Ok(())
    }

    /// Has collectors report what runs in cgroups that the session has just begun to record.
    pub fn ask(&self, kernel: &mut Kernel, session: &str, joined: BTreeSet<u64>) {
        if joined.is_empty() {
            return;
        }
        let joined: Vec<u64> = joined.into_iter().collect();
        for &Running { index, .. } in &self.collectors {
            if let Err(error) = ALL[index].join(kernel, self.slot, &joined) {
                let collector = ALL[index].info().name;
                tracing::warn!(%error, collector, session, "what runs already is reported with its first event only");
            }
        }
    }

    /// Takes out what is not among `targets` any more.
    ///
    /// # Errors
    /// When a map cannot be written; calling again continues.
    pub fn leave(
        &mut self,
        kernel: &mut Kernel,
        link: &Link,
        targets: &[TargetSpec],
    ) -> Result<(), KernelError> {
        let (pods, cgroups) = by_kind(targets);
        let pods: BTreeSet<String> =
            self.pods.keys().filter(|uid| !pods.contains_key(uid.as_str())).cloned().collect();
        let cgroups: BTreeSet<u64> =
            self.cgroups.keys().filter(|id| !cgroups.contains_key(id)).copied().collect();
        if pods.is_empty() && cgroups.is_empty() {
            return Ok(());
        }
        let now = clock::boot_ns();
        for uid in &pods {
            for key in maps::keys(&self.pods[uid]) {
                maps::change(kernel, "PODS", key, self.slot, false)?;
            }
        }
        maps::leave(kernel, link, self.slot, |shared, cgroup| {
            cgroup.pod.as_deref().is_some_and(|uid| pods.contains(uid))
                || cgroups.iter().any(|root| maps::below(shared, cgroup, *root))
        })?;
        for uid in pods {
            self.windows.pods.entry(uid.clone()).and_modify(|windows| coverage::end(windows, now));
            self.pods.remove(&uid);
        }
        for root in cgroups {
            self.windows.cgroups.entry(root).and_modify(|windows| coverage::end(windows, now));
            self.cgroups.remove(&root);
        }
        Ok(())
    }

    /// Where to look for what it should record.
    pub fn roots(&self) -> Roots<'_> {
        Roots {
            pods: self.pods.values().flatten().map(String::as_str).collect(),
            cgroups: self.cgroups.iter().map(|(id, path)| (*id, path.as_path())).collect(),
        }
    }
}
