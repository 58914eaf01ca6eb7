// SPDX-License-Identifier: Apache-2.0
//! Targets: which cgroups belong to which pod and container, and which sessions record them.
//!
//! In: pods and cgroups that sessions name, cgroups found on disk, cgroups that the kernel reports. Out: to whom a
//! cgroup's rows belong ([`Directory::identity`]).
//! Loses: nothing; a container whose name is not known yet has none until a later plan brings it.
//! Invariant: the directory is what user space knows; the kernel's map decides what is recorded.

pub mod cgroup;
pub mod control;
pub mod maps;
pub mod pod;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use crate::pipeline::batch::Identity;

/// What a session records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetSpec {
    /// A pod, by its UID; its containers may not exist yet.
    Pod(PodTarget),
    /// A cgroup (v2) and everything below it.
    Cgroup {
        /// Its id: the inode of its directory.
        id: u64,
        /// Its directory.
        path: PathBuf,
    },
}

/// A pod of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTarget {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub pod: String,
    /// What its cgroup has in place of the UID: the configuration's hash of a static pod.
    pub cgroup_name: Option<String>,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// Containers whose ids are known: (name, id).
    pub containers: Vec<(String, String)>,
}

/// One cgroup that is or was a target.
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// The cgroup above.
    pub parent: u64,
    /// Path below the cgroup root.
    pub path: Arc<str>,
    /// UID of the pod it belongs to.
    pub pod: Option<Arc<str>>,
    /// The pod's direct child that it lies in: what runtimes make per container; 0 for the pod's own cgroup.
    pub child: u64,
    /// Id of the container, where the name of that child holds one.
    pub container: Option<Arc<str>>,
    /// When it became a target, boot time.
    pub from_ns: u64,
    /// Whether it was made under the kernel's eyes, so that nothing ran in it before.
    pub from_start: bool,
    /// When it was removed, boot time.
    pub gone_ns: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Pod {
    namespace: String,
    name: String,
    host_network: bool,
    /// Container id to name.
    containers: BTreeMap<String, String>,
    /// Direct children seen so far, in the order of their ids, which is that of their making.
    children: BTreeSet<u64>,
}

/// All cgroups and pods that sessions record or recorded.
#[derive(Debug, Default)]
pub struct Directory {
    cgroups: HashMap<u64, Cgroup>,
    pods: HashMap<Arc<str>, Pod>,
    /// Cgroup name to UID, for pods whose cgroup has another.
    aliases: HashMap<String, Arc<str>>,
}

impl Directory {
    /// Takes over what a plan says about its pods, the names of their containers among it.
    pub fn learn(&mut self, targets: &[TargetSpec]) {
        for target in targets {
            if let TargetSpec::Pod(pod) = target {
                self.pod(pod);
            }
        }
    }

    fn pod(&mut self, target: &PodTarget) {
        let uid: Arc<str> = target.uid.as_str().into();
        if let Some(name) = &target.cgroup_name {
            self.aliases.insert(name.clone(), uid.clone());
        }
        let pod = self.pods.entry(uid).or_default();
        pod.namespace.clone_from(&target.namespace);
        pod.name.clone_from(&target.pod);
        pod.host_network = target.host_network;
        pod.containers.extend(target.containers.iter().map(|(name, id)| (id.clone(), name.clone())));
    }

    /// The pod whose cgroup has this name, if a plan named it.
    fn pod_of_name(&self, name: &str) -> Option<Arc<str>> {
        let key = pod::name_key(name)?;
        let alias = self.aliases.get(key.as_str()).cloned();
        alias.or_else(|| self.pods.get_key_value(key.as_str()).map(|(uid, _)| uid.clone()))
    }

    /// Enters a cgroup with the last part of its path; returns whether it was not known.
    pub fn enter(&mut self, id: u64, parent: u64, path: Arc<str>, at_ns: u64, from_start: bool) -> bool {
        if self.cgroups.contains_key(&id) {
            return false;
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        let (mut pod, mut child, mut container) = (self.pod_of_name(name), 0, None);
        if pod.is_none() {
            if let Some(above) = self.cgroups.get(&parent) {
                pod.clone_from(&above.pod);
                (child, container) = (above.child, above.container.clone());
            } else if let Some(uid) = path.rsplit('/').nth(1).and_then(|name| self.pod_of_name(name)) {
                // The pod's own cgroup came before the plan that names it.
                pod = Some(uid);
            }
            if child == 0 && pod.is_some() {
                child = id;
                container = pod::container_id(name).map(Into::into);
            }
        }
        if let (Some(uid), true) = (&pod, child == id) {
            self.pods.entry(uid.clone()).or_default().children.insert(id);
        }
        let cgroup =
            Cgroup { parent, path, pod, child, container, from_ns: at_ns, from_start, gone_ns: None };
        self.cgroups.insert(id, cgroup);
        true
    }

    /// Enters a cgroup by its name under a parent that may be known.
    pub fn made(&mut self, id: u64, parent: u64, name: &str, at_ns: u64) {
        let above = self.cgroups.get(&parent).map_or("", |above| &*above.path);
        let path = if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
        self.enter(id, parent, path.into(), at_ns, true);
    }

    /// A cgroup was removed.
    pub fn gone(&mut self, id: u64, at_ns: u64) {
        if let Some(cgroup) = self.cgroups.get_mut(&id) {
            cgroup.gone_ns.get_or_insert(at_ns);
        }
    }

    /// Forgets cgroups that were removed before that moment, and pods without any that no session names.
    pub fn forget(&mut self, before_ns: u64, named: &BTreeSet<String>) {
        self.cgroups.retain(|_, cgroup| cgroup.gone_ns.is_none_or(|gone| gone >= before_ns));
        let used: BTreeSet<Arc<str>> =
            self.cgroups.values().filter_map(|cgroup| cgroup.pod.clone()).collect();
        self.pods.retain(|uid, _| used.contains(uid) || named.contains(&**uid));
        self.aliases.retain(|_, uid| self.pods.contains_key(uid));
    }

    /// A cgroup, if it is known.
    pub fn cgroup(&self, id: u64) -> Option<&Cgroup> {
        self.cgroups.get(&id)
    }

    /// Known cgroups with their ids.
    pub fn cgroups(&self) -> impl Iterator<Item = (u64, &Cgroup)> {
        self.cgroups.iter().map(|(id, cgroup)| (*id, cgroup))
    }

    /// Namespace and name of a pod.
    pub fn pod_name(&self, uid: &str) -> (&str, &str) {
        self.pods.get(uid).map_or(("", ""), |pod| (&pod.namespace, &pod.name))
    }

    /// Whether the cgroup is a pod's sandbox: the first that was made for the pod, and no container of the plan.
    /// Undecided, thus false, while neither a sibling nor a container's id is known.
    pub fn is_sandbox(&self, cgroup: &Cgroup) -> bool {
        let Some(pod) = cgroup.pod.as_ref().and_then(|uid| self.pods.get(uid)) else { return false };
        let named = cgroup.container.as_ref().is_some_and(|id| pod.containers.contains_key(&**id));
        let first = pod.children.first() == Some(&cgroup.child);
        cgroup.child != 0 && !named && first && (pod.children.len() > 1 || !pod.containers.is_empty())
    }

    /// Whether the cgroup lies in a container whose name a plan may still bring: the API server learns of a container some
    /// seconds after its first process ran.
    pub fn awaits_name(&self, id: u64) -> bool {
        let Some(cgroup) = self.cgroups.get(&id) else { return false };
        cgroup.container.is_some() && self.container_name(cgroup).is_none() && !self.is_sandbox(cgroup)
    }

    /// Name of the container that the cgroup lies in.
    pub fn container_name(&self, cgroup: &Cgroup) -> Option<&str> {
        let pod = self.pods.get(cgroup.pod.as_ref()?)?;
        pod.containers.get(&**cgroup.container.as_ref()?).map(String::as_str)
    }

    /// To whom rows of a cgroup belong, and whether a session that records only `containers` (empty: all) keeps them.
    pub fn identity(&self, id: u64, containers: &[String]) -> Identity<'_> {
        let Some(cgroup) = self.cgroups.get(&id) else {
            // Rows about the node are nobody's, and everybody's.
            return Identity { keep: containers.is_empty() || id == 0, ..Identity::default() };
        };
        let pod = cgroup.pod.as_ref().and_then(|uid| self.pods.get(uid));
        let container = self.container_name(cgroup);
        // What is the whole pod's, as its network, is each container's.
        let is_of_pod = cgroup.pod.is_some() && cgroup.child == 0;
        let wanted = containers.is_empty()
            || is_of_pod
            || container.is_some_and(|name| containers.iter().any(|c| c == name));
        let text = |text: &'_ String| !text.is_empty();
        Identity {
            keep: wanted && !self.is_sandbox(cgroup),
            namespace: pod.map(|pod| &pod.namespace).filter(|name| text(name)).map(String::as_str),
            pod: pod.map(|pod| &pod.name).filter(|name| text(name)).map(String::as_str),
            container,
            pod_uid: cgroup.pod.as_deref(),
            path: Some(&cgroup.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0a1b2c3d-0000-4111-8222-0123456789ab";

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn directory(containers: &[(&str, String)]) -> Directory {
        let mut directory = Directory::default();
        directory.pod(&PodTarget {
            uid: UID.into(),
            namespace: "shop".into(),
            pod: "checkout-1".into(),
            cgroup_name: None,
            host_network: false,
            containers: containers.iter().map(|(name, id)| ((*name).into(), id.clone())).collect(),
        });
        let slice = format!("kubepods-burstable-pod{}.slice", UID.replace('-', "_"));
        directory.enter(10, 1, format!("kubepods.slice/{slice}").into(), 5, true);
        directory.made(11, 10, &format!("cri-containerd-{}.scope", id('a')), 6);
        directory.made(12, 10, &format!("cri-containerd-{}.scope", id('b')), 7);
        directory.made(13, 12, "nested", 8);
        directory
    }

    #[test]
    fn nested_cgroup_belongs_to_its_container_and_the_sandbox_to_nobody() {
        let directory = directory(&[("app", id('b'))]);
        let nested = directory.identity(13, &[]);
        assert_eq!((nested.keep, nested.pod, nested.container), (true, Some("checkout-1"), Some("app")));
        assert!(nested.path.unwrap().ends_with(&format!("{}.scope/nested", id('b'))));
        assert!(!directory.identity(11, &[]).keep);
        assert!(!directory.identity(13, &["sidecar".into()]).keep);
        // The pod's own cgroup: what is all its containers'.
        let pod = directory.identity(10, &["sidecar".into()]);
        assert_eq!((pod.keep, pod.container, pod.pod_uid), (true, None, Some(UID)));
        assert!(directory.identity(13, &["app".into()]).keep);
    }

    #[test]
    fn name_that_comes_with_a_later_plan_is_filled_in() {
        let mut directory = directory(&[]);
        assert_eq!(directory.identity(12, &[]).container, None);
        assert!(directory.awaits_name(12) && directory.awaits_name(13));
        assert!(!directory.awaits_name(10) && !directory.awaits_name(11), "the pod itself and its sandbox");
        assert!(!directory.identity(12, &["app".into()]).keep);
        directory.pod(&PodTarget {
            uid: UID.into(),
            namespace: "shop".into(),
            pod: "checkout-1".into(),
            cgroup_name: None,
            host_network: false,
            containers: vec![("app".into(), id('b'))],
        });
        assert_eq!(directory.identity(12, &["app".into()]).container, Some("app"));
        assert!(!directory.awaits_name(12) && !directory.awaits_name(13));
    }

    #[test]
    fn first_cgroup_that_the_plan_names_is_no_sandbox() {
        let directory = directory(&[("app", id('a')), ("sidecar", id('b'))]);
        assert!(directory.identity(11, &[]).keep);
    }

    #[test]
    fn cgroup_that_is_gone_stays_known_until_it_is_forgotten() {
        let mut directory = directory(&[]);
        directory.gone(12, 100);
        assert!(directory.identity(12, &[]).pod.is_some());
        directory.forget(101, &BTreeSet::new());
        assert!(directory.cgroup(12).is_none());
        assert!(directory.cgroup(11).is_some());
    }
}
