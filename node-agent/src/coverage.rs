// SPDX-License-Identifier: Apache-2.0
//! Coverage: which containers a session recorded, since when and until when.
//!
//! In: the windows in which the session wanted each pod or cgroup, and the directory of cgroups. Out: one
//! [`TargetCoverage`] for each container and collector.
//! Loses: a cgroup whose record of its making is still in a ring is not known yet; a session's final coverage is therefore
//! made after its rings were seen empty.

use std::collections::BTreeMap;

use crate::targets::Directory;

/// Since when, until when and how one container was traced by one collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetCoverage {
    /// UID of the pod; empty for a cgroup.
    pub pod_uid: String,
    /// Namespace of the pod; empty for a cgroup.
    pub namespace: String,
    /// Name of the pod; empty for a cgroup.
    pub pod: String,
    /// Name of the container, its id while the name is not known, or the path of a cgroup.
    pub container: String,
    /// Name of the collector (camelCase).
    pub collector: &'static str,
    /// Since when, nanoseconds since boot.
    pub from_ns: u64,
    /// Until when; none while it is traced.
    pub to_ns: Option<u64>,
    /// Whether it was made under the hooks' eyes, so that its first exec is in the rows.
    pub from_start: bool,
    /// How it is traced; empty if it is not.
    pub hooks: String,
    /// Why it is not traced; empty if it is.
    pub reason: String,
}

/// When a session recorded what, in nanoseconds since boot.
#[derive(Debug, Default)]
pub struct Windows {
    /// Names of the collectors that run, each with its hooks.
    pub collectors: Vec<(&'static str, String)>,
    /// Names of those that do not, and why.
    pub unsupported: Vec<(&'static str, String)>,
    /// UID of each pod it ever recorded: since when, until when, each time.
    pub pods: BTreeMap<String, Vec<(u64, Option<u64>)>>,
    /// The same for cgroups named by id.
    pub cgroups: BTreeMap<u64, Vec<(u64, Option<u64>)>>,
}

/// Ends the last of an entry's windows, if it is open.
pub(crate) fn end(windows: &mut [(u64, Option<u64>)], now: u64) {
    if let Some((_, left)) = windows.last_mut() {
        left.get_or_insert(now);
    }
}

impl Windows {
    /// One entry for each container and collector, in order of their names.
    pub fn coverage(&self, directory: &Directory) -> Vec<TargetCoverage> {
        let mut coverage = Vec::new();
        for (id, cgroup) in directory.cgroups() {
            let windows = match &cgroup.pod {
                Some(uid) if cgroup.child == id && !directory.is_sandbox(cgroup) => self.pods.get(&**uid),
                _ => self.cgroups.get(&id),
            };
            let container = match (directory.container_name(cgroup), &cgroup.container) {
                (Some(name), _) => name,
                (None, Some(id)) => id,
                (None, None) => &cgroup.path,
            };
            let uid = cgroup.pod.as_deref().unwrap_or_default();
            let (namespace, pod) = directory.pod_name(uid);
            for &(joined_ns, left_ns) in windows.into_iter().flatten() {
                let to_ns = left_ns.into_iter().chain(cgroup.gone_ns).min();
                let from_ns = cgroup.from_ns.max(joined_ns);
                if to_ns.is_some_and(|to_ns| to_ns < from_ns) {
                    // Gone before this window, or made after it.
                    continue;
                }
                let row = |collector, hooks: &str, reason: &str| TargetCoverage {
                    pod_uid: uid.to_owned(),
                    namespace: namespace.to_owned(),
                    pod: pod.to_owned(),
                    container: container.to_owned(),
                    collector,
                    from_ns,
                    to_ns: if reason.is_empty() { to_ns } else { Some(from_ns) },
                    from_start: reason.is_empty() && cgroup.from_start && cgroup.from_ns >= joined_ns,
                    hooks: hooks.to_owned(),
                    reason: reason.to_owned(),
                };
                coverage.extend(self.collectors.iter().map(|(name, hooks)| row(*name, hooks, "")));
                coverage.extend(self.unsupported.iter().map(|(name, reason)| row(*name, "", reason)));
            }
        }
        coverage.sort_by(|a, b| {
            (&a.namespace, &a.pod, &a.container, a.collector, a.from_ns).cmp(&(
                &b.namespace,
                &b.pod,
                &b.container,
                b.collector,
                b.from_ns,
            ))
        });
        coverage
    }
}
