// SPDX-License-Identifier: Apache-2.0
//! Of a Pod what plans are made of.
//!
//! In: what the API server says of a Pod. Out: a [`Pod`] with the fields that are read here. Each replica holds tens of
//! thousands at once, and the whole type takes kilobytes where nothing is in it.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::Deserialize;

/// On static and mirror pods: what the kubelet names the cgroup after.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// On mirror pods: the API server's UID is not the kubelet's.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// A [`core::Pod`] in short.
#[derive(Resource, Clone, Debug, Default, PartialEq, Deserialize)]
#[resource(inherit = core::Pod)]
#[serde(default)]
pub struct Pod {
    /// As it is, until [`shrink`](Self::shrink).
    pub metadata: ObjectMeta,
    /// In short.
    pub spec: Spec,
    /// In short.
    pub status: Status,
}

/// A [`core::PodSpec`] in short.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    /// Where it is scheduled.
    pub node_name: Option<String>,
    /// Whether it is in its node's network namespace.
    pub host_network: bool,
}

/// A [`core::PodStatus`] in short.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    /// Pending, Running, Succeeded, Failed.
    pub phase: Option<String>,
    init_container_statuses: Box<[ContainerStatus]>,
    container_statuses: Box<[ContainerStatus]>,
    ephemeral_container_statuses: Box<[ContainerStatus]>,
}

/// A [`core::ContainerStatus`] in short.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerStatus {
    /// In its pod.
    pub name: String,
    /// With its scheme.
    #[serde(rename = "containerID")]
    pub container_id: Option<String>,
    /// What it does.
    pub state: State,
    /// What the one before it, of this name, did.
    pub last_state: State,
}

/// A [`core::ContainerState`] in short.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct State {
    /// It has ended.
    pub terminated: Option<Box<Terminated>>,
}

/// A [`core::ContainerStateTerminated`] in short.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Terminated {
    /// With its scheme.
    #[serde(rename = "containerID")]
    pub container_id: Option<String>,
    /// When it ended.
    pub finished_at: Option<Time>,
}

impl Pod {
    /// Drops what nobody reads of its metadata.
    pub fn shrink(&mut self) {
        let all = std::mem::take(&mut self.metadata);
        let annotations = all.annotations.map(|mut all| {
            all.retain(|key, _| [CONFIG_HASH, CONFIG_MIRROR].contains(&key.as_str()));
            all
        });
        self.metadata = ObjectMeta {
            name: all.name,
            namespace: all.namespace,
            uid: all.uid,
            labels: all.labels,
            owner_references: all.owner_references,
            annotations: annotations.filter(|kept| !kept.is_empty()),
            ..ObjectMeta::default()
        };
    }

    /// Of all its containers.
    pub fn containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        let Status { init_container_statuses, container_statuses, ephemeral_container_statuses, .. } =
            &self.status;
        init_container_statuses.iter().chain(container_statuses).chain(ephemeral_container_statuses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_plans_are_made_of_is_kept_and_nothing_else() {
        let text = r#"
apiVersion: v1
kind: Pod
metadata:
  name: shop-0
  namespace: shop
  uid: u
  resourceVersion: "7"
  labels: {app: shop}
  annotations: {kubernetes.io/config.hash: h, kubernetes.io/config.mirror: m, big: text}
  managedFields: [{manager: kubelet}]
  ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: shop, uid: s, controller: true}]
spec: {nodeName: n, hostNetwork: true, containers: [{name: main, image: i}]}
status:
  phase: Running
  conditions: [{type: Ready, status: "True"}]
  initContainerStatuses: [{name: init, ready: true, restartCount: 0, image: i, imageID: "", state: {terminated: {exitCode: 0, containerID: "containerd://a", finishedAt: "2026-11-30T04:00:00Z"}}}]
  containerStatuses: [{name: main, ready: true, restartCount: 1, image: i, imageID: "", containerID: "containerd://b", state: {running: {}}, lastState: {terminated: {exitCode: 1, containerID: "containerd://c"}}}]
"#;
        let mut pod: Pod = serde_yaml::from_str(text).unwrap();
        pod.shrink();
        let whole: core::Pod = serde_yaml::from_str(text).unwrap();
        assert_eq!(pod.metadata.labels, whole.metadata.labels);
        assert_eq!(pod.metadata.owner_references, whole.metadata.owner_references);
        assert_eq!(pod.metadata.annotations.as_ref().map(|kept| kept.len()), Some(2));
        assert!(pod.metadata.managed_fields.is_none());
        assert_eq!(pod.spec.node_name.as_deref(), Some("n"));
        assert!(pod.spec.host_network);
        assert_eq!(pod.status.phase.as_deref(), Some("Running"));
        let ids: Vec<_> =
            pod.containers().map(|one| (one.name.as_str(), one.container_id.as_deref())).collect();
        assert_eq!(ids, [("init", None), ("main", Some("containerd://b"))]);
        let ended = |state: &State| state.terminated.as_ref().and_then(|ended| ended.container_id.clone());
        let before: Vec<_> =
            pod.containers().map(|one| (ended(&one.state), ended(&one.last_state))).collect();
        let id = |id: &str| Some(id.to_owned());
        assert_eq!(before, [(id("containerd://a"), None), (None, id("containerd://c"))]);
    }

    #[test]
    fn a_pod_that_nothing_is_known_of_has_no_node_and_no_container() {
        let pod: Pod = serde_yaml::from_str("{metadata: {name: p}}").unwrap();
        assert_eq!((&pod.spec.node_name, pod.containers().count()), (&None, 0));
    }
}
