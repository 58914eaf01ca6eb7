// SPDX-License-Identifier: Apache-2.0
//! Step 3, pure: which pods are targets, and what every node has to do about them.
//!
//! In: the validated session, the pods that match it, the nodes' labels. Out: one [`SessionPlan`] per node that has
//! a pod, and their bodies as they are kept and handed out. A pod counts as soon as it is scheduled, so that the plan is
//! there before its first container, and until it is gone: one that has ended is still named, because its containers'
//! names are needed when the last segment is sealed. One that had ended before the window began is none of the
//! session's business.
//! A plan has room for so many pods of a node ([`TARGETS_MAX`], [`BYTES_MAX`]): those that run come before those that have
//! ended, of which each may have thousands that nobody deletes.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use node_api::plan::{BYTES_MAX, Body, TARGETS_MAX};
use node_api::v1::{Container, SessionPlan, Target};

use super::dereference::Matched;
use super::pod::Pod;
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
        let Some(node) = pod.node.as_deref() else { continue };
        // Nothing of it happened in the window.
        let is_over = pod.ended.is_some_and(|ended| ended.at.is_none_or(|at| at < start));
        if !is_over {
            nodes.entry(node).or_default().push(pod);
        }
    }
    nodes.retain(|node, _| {
        session.node_selector.is_empty()
            || labels(node).is_some_and(|labels| carries(&labels, &session.node_selector))
    });
    nodes.into_iter().map(|(node, pods)| (node, SessionPlan { targets: targets(pods), ..empty(id, session) }))
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

/// Of a node's pods those that a plan has room for.
fn targets(mut pods: Vec<&Pod>) -> Vec<Target> {
    // Of those that have ended the last ones: rows of theirs may still be in no file.
    pods.sort_by_key(|pod| (pod.ended.map(|ended| std::cmp::Reverse(ended.at)), &pod.uid));
    let mut bytes = 0;
    let room = |target: &Target| {
        bytes += node_api::plan::bytes(target);
        bytes <= BYTES_MAX
    };
    let mut targets: Vec<Target> = pods.into_iter().take(TARGETS_MAX).map(target).take_while(room).collect();
    targets.sort_by(|a, b| a.pod_uid.cmp(&b.pod_uid));
    targets
}

fn target(pod: &Pod) -> Target {
    let containers = pod.containers.iter();
    Target {
        pod_uid: (*pod.uid).to_owned(),
        namespace: (*pod.namespace).to_owned(),
        pod: (*pod.name).to_owned(),
        cgroup_name: pod.cgroup_name.as_deref().unwrap_or_default().to_owned(),
        host_network: pod.host_network,
        containers: containers
            .map(|(name, id)| Container { name: (**name).to_owned(), id: (**id).to_owned() })
            .collect(),
    }
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
    fn a_plan_has_room_for_so_many_pods_and_those_that_run_come_first() {
        let pod = |name: String, phase: &str| {
            format!("- {{metadata: {{name: {name}, namespace: shop, uid: {name}}}, spec: {{nodeName: n}}, status: {{phase: {phase},
               containerStatuses: [{{name: c, state: {{terminated: {{finishedAt: '2026-01-01T00:{:02}:00Z'}}}}}}]}}}}\n",
               if phase == "Running" { 10 } else { name[1..].parse::<usize>().unwrap() / 60 })
        };
        let all: String = (0..TARGETS_MAX + 99).map(|i| pod(format!("e{i:04}"), "Succeeded")).collect();
        let all = all + &(0..7).map(|i| pod(format!("z{i}"), "Running")).collect::<String>();
        let plans = built("{podSelector: {}}", &pods(&all));
        let targets = &plans["n"].targets;
        assert_eq!(targets.len(), TARGETS_MAX);
        assert_eq!(targets.iter().filter(|target| target.pod.starts_with('z')).count(), 7);
        assert!(
            targets.iter().all(|target| target.pod != "e0000"),
            "of the others the first that ended is left out"
        );
        assert!(targets.is_sorted_by(|a, b| a.pod_uid < b.pod_uid));

        let containers: String = (0..99)
            .map(|c| format!("{{name: {}{c:02}, containerID: 'x://{ID}'}}, ", "c".repeat(61)))
            .collect();
        let wide = format!(
            "- {{metadata: {{name: w, namespace: shop}}, spec: {{nodeName: n}}, status: {{containerStatuses: [{containers}]}}}}"
        );
        let wide = pods(&wide).remove(0);
        let all = (0..600).map(|i| Arc::new(Pod { uid: format!("{i:04}").into(), ..(*wide).clone() }));
        let plans = built("{podSelector: {}}", &all.collect::<Vec<_>>());
        assert!(plans["n"].targets.iter().all(|target| target.containers.len() == 64));
        let bytes = Body::of(&plans["n"]).bytes();
        assert!((BYTES_MAX * 9 / 10..BYTES_MAX + 8 * 1024).contains(&bytes), "{bytes}");
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
