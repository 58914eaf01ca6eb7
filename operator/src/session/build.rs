// SPDX-License-Identifier: Apache-2.0
//! Step 3, pure: which pods are targets, and what every node has to do about them.
//!
//! In: the validated session, the pods that match it, the nodes' labels. Out: one [`SessionPlan`] per node that has
//! a pod, and their bodies as they are kept and handed out. A pod counts as soon as it is scheduled, so that the plan is
//! there before its first container, and until it is gone: one that has ended is still named, because its containers'
//! names are needed when the last segment is sealed. One that had ended before the window began is none of the
//! session's business.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use node_api::plan::Body;
use node_api::v1::{Container, SessionPlan, Target};

use super::dereference::Matched;
use super::pod::{CONFIG_HASH, CONFIG_MIRROR, Pod};
use super::status::TargetState;
use super::validate::{Selection, ValidatedSession};
use crate::hub::SessionId;

/// The pods of a session as its status counts them, and the plans they make.
#[derive(Debug)]
pub struct Selected {
    /// How many there are.
    pub targets: TargetState,
    /// By node.
    pub bodies: BTreeMap<String, Arc<Body>>,
}

impl Selected {
    /// Of the pods that match; `labels` as for [`build`].
    pub fn of(
        id: &SessionId,
        session: &ValidatedSession,
        matched: &Matched,
        start: Timestamp,
        labels: impl Fn(&str) -> Option<BTreeMap<String, String>>,
    ) -> Self {
        let (mut bodies, mut planned) = (BTreeMap::new(), 0);
        // One plan at a time is there as a message, which takes more than its body: there may be one for each node of a cluster.
        for (node, plan) in build(id, session, &matched.pods, start, labels) {
            planned += plan.targets.len();
            bodies.insert(node.to_owned(), Arc::new(Body::of(&plan)));
        }
        let targets = match &session.selection {
            Selection::Workload(workload) if matched.workload_missing => {
                TargetState::WorkloadMissing(format!("{:?} {}", workload.kind, workload.name))
            }
            _ => TargetState::Pods { matching: matched.pods.len(), planned },
        };
        Self { targets, bodies }
    }
}

/// What every node has to do. `labels` gives a node's labels, none if the node is not known.
pub fn build<'a>(
    id: &'a SessionId,
    session: &'a ValidatedSession,
    pods: &'a [Arc<Pod>],
    start: Timestamp,
    labels: impl Fn(&str) -> Option<BTreeMap<String, String>>,
) -> impl Iterator<Item = (&'a str, SessionPlan)> {
    let mut nodes: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in pods {
        let Some(node) = pod.spec.node_name.as_deref().filter(|node| !node.is_empty()) else { continue };
        if !ended_before(pod, start) {
            nodes.entry(node).or_default().push(pod);
        }
    }
    nodes.retain(|node, _| {
        session.node_selector.is_empty()
            || labels(node).is_some_and(|labels| carries(&labels, &session.node_selector))
    });
    nodes.into_iter().filter_map(|(node, pods)| {
        let mut targets: Vec<Target> = pods.into_iter().filter_map(target).collect();
        targets.sort_by(|a, b| a.pod_uid.cmp(&b.pod_uid));
        (!targets.is_empty()).then(|| (node, SessionPlan { targets, ..empty(id, session) }))
    })
}

/// The plan of a node without pods: it keeps what it recorded, and its report.
pub fn empty(id: &SessionId, session: &ValidatedSession) -> SessionPlan {
    SessionPlan {
        uid: id.uid.clone(),
        namespace: id.namespace.clone(),
        name: id.name.clone(),
        collectors: session.collectors.iter().cloned().map(node_api::plan::sealed).collect(),
        targets: Vec::new(),
        containers: session.containers.clone(),
        rollover_interval_ms: session.rollover_interval_ms,
        rollover_bytes: session.rollover_bytes,
        budget: session.budget,
    }
}

fn carries(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether all of the pod's containers had ended when the window began.
fn ended_before(pod: &Pod, start: Timestamp) -> bool {
    if !matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return false;
    }
    let last = pod
        .containers()
        .filter_map(|container| container.state.terminated.as_ref()?.finished_at.as_ref())
        .map(|time| time.0)
        .max();
    last.is_none_or(|last| last < start)
}

fn target(pod: &Pod) -> Option<Target> {
    let annotation = |key: &str| pod.metadata.annotations.as_ref()?.get(key).cloned();
    let cgroup_name = annotation(CONFIG_MIRROR).and_then(|_| annotation(CONFIG_HASH)).unwrap_or_default();
    // A container that was restarted has two ids, and rows of both carry its name.
    let mut containers = BTreeSet::new();
    for status in pod.containers() {
        let before = status.last_state.terminated.as_ref().and_then(|ended| ended.container_id.as_deref());
        for id in [status.container_id.as_deref(), before].into_iter().flatten().filter_map(bare_id) {
            containers.insert((status.name.clone(), id.to_owned()));
        }
    }
    Some(Target {
        pod_uid: pod.metadata.uid.clone()?,
        namespace: pod.metadata.namespace.clone()?,
        pod: pod.metadata.name.clone()?,
        cgroup_name,
        host_network: pod.spec.host_network,
        containers: containers.into_iter().map(|(name, id)| Container { name, id }).collect(),
    })
}

/// `containerd://<64 hex digits>` without its scheme.
fn bare_id(id: &str) -> Option<&str> {
    let id = id.rsplit_once("://").map_or(id, |(_, id)| id);
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::validate::validate;
    use expect_test::expect;

    const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn pods(yaml: &str) -> Vec<Arc<Pod>> {
        let pods: Vec<Pod> = serde_yaml::from_str(yaml).unwrap();
        pods.into_iter().map(Arc::new).collect()
    }

    fn built(target: &str, pods: &[Arc<Pod>]) -> BTreeMap<String, SessionPlan> {
        let spec = format!("{{target: {target}, duration: 1m, collectors: [{{name: processes}}]}}");
        let valid = validate(&serde_yaml::from_str(&spec).unwrap()).unwrap();
        let id = SessionId { namespace: "shop".to_owned(), name: "s".to_owned(), uid: "u".to_owned() };
        let labels = |node: &str| Some(BTreeMap::from([("disk".to_owned(), format!("disk-of-{node}"))]));
        let plans = build(&id, &valid, pods, "2026-01-01T00:00:00Z".parse().unwrap(), labels);
        plans.map(|(node, plan)| (node.to_owned(), plan)).collect()
    }

    fn names(plans: &BTreeMap<String, SessionPlan>) -> Vec<(String, Vec<String>)> {
        let pods = |plan: &SessionPlan| plan.targets.iter().map(|target| target.pod.clone()).collect();
        plans.iter().map(|(node, plan)| (node.clone(), pods(plan))).collect()
    }

    #[test]
    fn pods_are_targets_of_their_node_from_when_they_are_scheduled() {
        let pods = pods(
            "- {metadata: {name: a, namespace: shop, uid: ua}, spec: {nodeName: n1, containers: []}}
- {metadata: {name: b, namespace: shop, uid: ub}, spec: {nodeName: n2, containers: []}, status: {phase: Pending}}
- {metadata: {name: c, namespace: shop, uid: uc}, spec: {containers: []}}
- {metadata: {name: d, namespace: shop, uid: ud}, spec: {nodeName: n1, containers: []}}",
        );
        let plans = built("{podSelector: {}}", &pods);
        assert_eq!(
            names(&plans),
            [
                ("n1".to_owned(), vec!["a".to_owned(), "d".to_owned()]),
                ("n2".to_owned(), vec!["b".to_owned()])
            ]
        );
        let narrowed = built("{podSelector: {}, nodeSelector: {disk: disk-of-n2}}", &pods);
        assert_eq!(names(&narrowed), [("n2".to_owned(), vec!["b".to_owned()])]);
    }

    #[test]
    fn pods_that_ended_before_the_window_are_left_out_and_later_ones_are_kept() {
        let status = |at: &str| {
            format!(
                "status: {{phase: Succeeded, containerStatuses: [{{name: c, image: i, imageID: i, ready: false, \
                 restartCount: 0, state: {{terminated: {{exitCode: 0, finishedAt: '{at}'}}}}}}]}}"
            )
        };
        let pods = pods(&format!(
            "- {{metadata: {{name: old, namespace: shop, uid: ua}}, spec: {{nodeName: n1, containers: []}}, {}}}
- {{metadata: {{name: new, namespace: shop, uid: ub}}, spec: {{nodeName: n1, containers: []}}, {}}}",
            status("2025-12-31T23:59:59Z"),
            status("2026-01-01T00:00:01Z"),
        ));
        assert_eq!(names(&built("{podSelector: {}}", &pods)), [("n1".to_owned(), vec!["new".to_owned()])]);
    }

    #[test]
    fn a_static_pod_is_found_by_its_config_hash_and_a_restarted_container_by_both_ids() {
        let other = "b".repeat(64);
        let pods = pods(&format!(
            "- metadata:
    name: etcd
    namespace: kube-system
    uid: u1
    annotations: {{kubernetes.io/config.hash: c0ffee, kubernetes.io/config.mirror: c0ffee}}
  spec: {{nodeName: n1, hostNetwork: true, containers: []}}
  status:
    containerStatuses:
    - {{name: etcd, image: i, imageID: i, ready: true, restartCount: 1, containerID: 'containerd://{ID}',
       lastState: {{terminated: {{exitCode: 1, containerID: 'containerd://{other}'}}}}}}
    - {{name: strange, image: i, imageID: i, ready: true, restartCount: 0, containerID: 'x://../..'}}"
        ));
        let plans = built("{podSelector: {}}", &pods);
        expect![[r#"
            Target {
                pod_uid: "u1",
                namespace: "kube-system",
                pod: "etcd",
                cgroup_name: "c0ffee",
                host_network: true,
                containers: [
                    Container {
                        name: "etcd",
                        id: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                    },
                    Container {
                        name: "etcd",
                        id: "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
                    },
                ],
            }
        "#]]
        .assert_debug_eq(&plans["n1"].targets[0]);
    }
}
