// SPDX-License-Identifier: Apache-2.0
//! Of a Pod what plans are made of.
//!
//! In: what the API server says of a Pod, as [`Said`]. Out: a [`Pod`]. Each replica holds tens of thousands at once, and the
//! API's type takes kilobytes where nothing is in it; [`Shared`] holds once what many have alike. Two that are equal make
//! the same plan.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use node_api::plan::CONTAINERS_MAX;
use serde::Deserialize;

/// On static and mirror pods: what the kubelet names the cgroup after.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// On mirror pods: the API server's UID is not the kubelet's.
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Said")]
pub struct Pod {
    /// Its name.
    pub name: Box<str>,
    /// Where it is.
    pub namespace: Arc<str>,
    /// The API server's.
    pub uid: Box<str>,
    /// All of them.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The one of its owners that manages it.
    pub controller: Option<Arc<Owner>>,
    /// Of a static pod: what the kubelet names its cgroup after.
    pub cgroup_name: Option<Box<str>>,
    /// Where it is scheduled.
    pub node: Option<Arc<str>>,
    /// Whether it is in its node's network namespace.
    pub host_network: bool,
    /// It has succeeded or failed.
    pub ended: Option<Ended>,
    /// Of now, and as far as a plan has room those that they replaced: name, and the 64 hex digits that are its id.
    pub containers: Box<[(Arc<str>, Box<str>)]>,
}

/// An [`OwnerReference`] in short.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Group and version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The API server's.
    pub uid: String,
}

/// How a pod ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// When the last of its containers did; none if the kubelet does not say.
    pub at: Option<Timestamp>,
}

/// What is decoded of a [`core::Pod`].
#[derive(Resource, Clone, Debug, Default, Deserialize)]
#[resource(inherit = core::Pod)]
#[serde(default)]
pub struct Said {
    metadata: ObjectMeta,
    spec: Spec,
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    host_network: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    phase: Option<String>,
    init_container_statuses: Vec<ContainerStatus>,
    container_statuses: Vec<ContainerStatus>,
    ephemeral_container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    state: State,
    last_state: State,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Terminated {
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    finished_at: Option<Time>,
}

impl From<Said> for Pod {
    fn from(Said { mut metadata, spec, status }: Said) -> Self {
        let mut annotation = |key: &str| metadata.annotations.as_mut()?.remove(key);
        let cgroup_name = annotation(CONFIG_MIRROR).and_then(|_| annotation(CONFIG_HASH));
        Self {
            ended: status.ended(),
            containers: status.containers(),
            name: metadata.name.unwrap_or_default().into(),
            namespace: metadata.namespace.unwrap_or_default().into(),
            uid: metadata.uid.unwrap_or_default().into(),
            labels: Arc::new(metadata.labels.unwrap_or_default()),
            controller: Owner::managing(metadata.owner_references).map(Arc::new),
            cgroup_name: cgroup_name.map(Box::from),
            node: spec.node_name.filter(|node| !node.is_empty()).map(Arc::from),
            host_network: spec.host_network,
        }
    }
}

impl Status {
    fn all(&self) -> impl Iterator<Item = &ContainerStatus> {
        let Self { init_container_statuses, container_statuses, ephemeral_container_statuses, .. } = self;
        init_container_statuses.iter().chain(container_statuses).chain(ephemeral_container_statuses)
    }

    fn ended(&self) -> Option<Ended> {
        if !matches!(self.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let times = self.all().filter_map(|one| Some(one.state.terminated.as_ref()?.finished_at.as_ref()?.0));
        Some(Ended { at: times.max() })
    }

    fn containers(&self) -> Box<[(Arc<str>, Box<str>)]> {
        // A container that was restarted has two ids, and rows of both carry its name.
        let now = self.all().map(|one| (&one.name, &one.container_id));
        let before =
            self.all().filter_map(|one| Some((&one.name, &one.last_state.terminated.as_ref()?.container_id)));
        let known =
            now.chain(before).filter_map(|(name, id)| Some((name.as_str(), bare_id(id.as_deref()?)?)));
        let containers: BTreeSet<_> = known.take(CONTAINERS_MAX).collect();
        containers.into_iter().map(|(name, id)| (name.into(), id.into())).collect()
    }
}

/// `containerd://<64 hex digits>` without its scheme.
fn bare_id(id: &str) -> Option<&str> {
    let id = id.rsplit_once("://").map_or(id, |(_, id)| id);
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

impl Owner {
    /// The one of an object's owners that manages it.
    pub fn managing(all: Option<Vec<OwnerReference>>) -> Option<Self> {
        let controller = all?.into_iter().find(|owner| owner.controller == Some(true))?;
        let OwnerReference { api_version, kind, name, uid, .. } = controller;
        Some(Self { api_version, kind, name, uid })
    }
}

/// By namespace and name alone: the cache holds one of each.
impl kube::runtime::reflector::Lookup for Pod {
    type DynamicType = ();

    fn kind(&(): &()) -> Cow<'_, str> {
        <core::Pod as Resource>::kind(&())
    }

    fn group(&(): &()) -> Cow<'_, str> {
        <core::Pod as Resource>::group(&())
    }

    fn version(&(): &()) -> Cow<'_, str> {
        <core::Pod as Resource>::version(&())
    }

    fn plural(&(): &()) -> Cow<'_, str> {
        <core::Pod as Resource>::plural(&())
    }

    fn name(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.name))
    }

    fn namespace(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.namespace))
    }

    fn resource_version(&self) -> Option<Cow<'_, str>> {
        None
    }

    fn uid(&self) -> Option<Cow<'_, str>> {
        None
    }
}

/// What the pods of a namespace have alike.
#[derive(Default)]
pub struct Shared {
    texts: Pool<str>,
    labels: Pool<BTreeMap<String, String>>,
    owners: Pool<Owner>,
}

impl Shared {
    /// The pod, with what another one has as well held once.
    pub fn keep(&mut self, said: Said) -> Pod {
        let mut pod = Pod::from(said);
        self.texts.once(&mut pod.namespace);
        self.labels.once(&mut pod.labels);
        pod.node.iter_mut().for_each(|node| self.texts.once(node));
        pod.controller.iter_mut().for_each(|owner| self.owners.once(owner));
        pod.containers.iter_mut().for_each(|(name, _)| self.texts.once(name));
        pod
    }
}

/// Values that are in use somewhere, each once.
struct Pool<T: ?Sized> {
    all: HashSet<Arc<T>>,
    /// As soon as there are so many, those that nobody uses are dropped.
    most: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { all: HashSet::new(), most: 64 }
    }
}

impl<T: Eq + Hash + ?Sized> Pool<T> {
    fn once(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.all.get(value) {
            *value = known.clone();
            return;
        }
        if self.all.len() >= self.most {
            self.all.retain(|known| Arc::strong_count(known) > 1);
            self.most = (2 * self.all.len()).max(64);
        }
        self.all.insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn text(name: &str, uid: &str) -> String {
        format!(
            r#"
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  uid: {uid}
  resourceVersion: "7"
  labels: {{app: shop}}
  annotations: {{kubernetes.io/config.hash: h, kubernetes.io/config.mirror: m, big: text}}
  managedFields: [{{manager: kubelet}}]
  ownerReferences:
  - {{apiVersion: v1, kind: Node, name: n, uid: o}}
  - {{apiVersion: apps/v1, kind: StatefulSet, name: shop, uid: s, controller: true}}
spec: {{nodeName: n, hostNetwork: true, containers: [{{name: main, image: i}}]}}
status:
  phase: Running
  conditions: [{{type: Ready, status: "True"}}]
  initContainerStatuses: [{{name: init, ready: true, restartCount: 0, image: i, imageID: "", state: {{terminated: {{exitCode: 0, containerID: "containerd://{A}", finishedAt: "2026-11-30T04:00:00Z"}}}}}}]
  containerStatuses: [{{name: main, ready: true, restartCount: 1, image: i, imageID: "", containerID: "containerd://{A}", state: {{running: {{}}}}, lastState: {{terminated: {{exitCode: 1, containerID: "containerd://{B}"}}}}}}]
"#
        )
    }

    fn pod(text: &str) -> Pod {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn what_plans_are_made_of_is_kept() {
        let pod = pod(&text("shop-0", "u"));
        assert_eq!((&*pod.name, &*pod.namespace, &*pod.uid), ("shop-0", "shop", "u"));
        assert_eq!(*pod.labels, BTreeMap::from([("app".to_owned(), "shop".to_owned())]));
        let owner = pod.controller.as_deref().unwrap();
        let owner = [&owner.api_version, &owner.kind, &owner.name, &owner.uid];
        assert_eq!(owner, ["apps/v1", "StatefulSet", "shop", "s"]);
        assert_eq!((pod.cgroup_name.as_deref(), pod.node.as_deref()), (Some("h"), Some("n")));
        assert_eq!((pod.host_network, pod.ended), (true, None));
        let containers: Vec<_> = pod.containers.iter().map(|(name, id)| (&**name, &**id)).collect();
        assert_eq!(containers, [("main", A), ("main", B)]);
    }

    #[test]
    fn a_pod_that_nothing_is_known_of_has_no_node_and_no_container() {
        let pod = pod("{metadata: {name: p}, spec: {nodeName: ''}}");
        assert_eq!((&pod.node, pod.containers.len(), &pod.ended), (&None, 0, &None));
    }

    #[test]
    fn a_pod_has_ended_when_its_last_container_did() {
        let ended = |at: &str| format!("{{name: c, state: {{terminated: {{finishedAt: '{at}'}}}}}}");
        let (first, last) = (ended("2026-11-30T04:00:00Z"), ended("2026-11-30T05:00:00Z"));
        let with = |phase: &str, statuses: &str| {
            let status = format!("{{phase: {phase}, containerStatuses: [{statuses}]}}");
            pod(&format!("{{metadata: {{name: p}}, status: {status}}}")).ended
        };
        let at = Some("2026-11-30T05:00:00Z".parse().unwrap());
        assert_eq!(with("Failed", &format!("{first}, {last}")), Some(Ended { at }));
        assert_eq!(with("Succeeded", ""), Some(Ended { at: None }));
        assert_eq!(with("Running", &first), None);
    }

    #[test]
    fn what_pods_have_alike_is_there_once_and_no_longer_than_they_are() {
        let said = |name: &str, uid: &str| serde_yaml::from_str(&text(name, uid)).unwrap();
        let mut shared = Shared::default();
        let (one, two) = (shared.keep(said("shop-0", "u")), shared.keep(said("shop-1", "v")));
        assert_eq!(one, pod(&text("shop-0", "u")));
        assert!(Arc::ptr_eq(&one.labels, &two.labels) && Arc::ptr_eq(&one.namespace, &two.namespace));
        assert!(Arc::ptr_eq(one.node.as_ref().unwrap(), two.node.as_ref().unwrap()));
        assert!(Arc::ptr_eq(one.controller.as_ref().unwrap(), two.controller.as_ref().unwrap()));
        assert!(Arc::ptr_eq(&one.containers[0].0, &two.containers[1].0));

        let mut pool = Pool::<str>::default();
        let mut used: Arc<str> = "used".into();
        pool.once(&mut used);
        (0..1_000).for_each(|i| pool.once(&mut i.to_string().into()));
        assert!(pool.all.len() <= 64 && pool.all.contains("used"), "{}", pool.all.len());
    }
}
