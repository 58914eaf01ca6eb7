// SPDX-License-Identifier: Apache-2.0
//! Which pods a session's target means, for each way to name them.

use std::sync::Arc;
use std::time::Duration;

use crds::{WorkloadKind, WorkloadRef};
use serde_json::json;
use tokio::time::Instant;
use tracelake_operator::session::dereference::Owners;
use tracelake_operator::session::pod::Pod;
use tracelake_operator::session::validate::Selection;

use super::api::Api;

/// Kind, name and UID.
type Owner = (&'static str, &'static str, &'static str);

/// A pod and its controller.
const PODS: [(&str, Option<Owner>); 10] = [
    ("web-a", Some(("ReplicaSet", "web-1", "rs-1"))),
    ("web-b", Some(("ReplicaSet", "web-2", "rs-2"))),
    // Its ReplicaSet was deleted, and another of the same name is there now.
    ("web-old", Some(("ReplicaSet", "web-2", "rs-gone"))),
    ("db-0", Some(("StatefulSet", "db", "sts"))),
    // A kind of the same name of somebody else's.
    ("db-theirs", Some(("StatefulSet.kruise", "db", "sts-2"))),
    ("log-x", Some(("DaemonSet", "log", "ds"))),
    ("once-x", Some(("Job", "once", "job-1"))),
    ("backup-1-x", Some(("Job", "backup-1", "job-2"))),
    ("lone-x", Some(("ReplicaSet", "lone", "rs-3"))),
    ("bare", None),
];

fn group(kind: &str) -> &'static str {
    if kind.ends_with("Job") { "batch" } else { "apps" }
}

fn pods() -> Vec<Arc<Pod>> {
    let pod = |(name, owner): (&str, Option<Owner>)| {
        let owners: Vec<_> = owner
            .into_iter()
            .map(|(kind, name, uid)| {
                let (kind, group) = kind.split_once('.').unwrap_or((kind, group(kind)));
                let version = format!("{group}/v1");
                json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true})
            })
            .collect();
        let pod = json!({"metadata": {"name": name, "labels": {"name": name}, "ownerReferences": owners}});
        Arc::new(serde_json::from_value(pod).unwrap())
    };
    PODS.into_iter().map(pod).collect()
}

fn owners() -> (Owners, Api) {
    let api = Api::default();
    let there = |path: &str, kind: &str, uid: &str, owner: Option<(&str, &str)>| {
        let name = path.rsplit_once('/').unwrap().1;
        let owner = owner.map_or(String::new(), |(kind, name)| {
            format!(", ownerReferences: [{{apiVersion: {}/v1, kind: {kind}, name: {name}, uid: above, controller: true}}]", group(kind))
        });
        let yaml = format!("{{kind: {kind}, apiVersion: v1, metadata: {{name: {name}, uid: {uid}{owner}}}}}");
        api.apply(path, &yaml);
    };
    let apps = "/apis/apps/v1/namespaces/shop";
    let batch = "/apis/batch/v1/namespaces/shop";
    there(&format!("{apps}/replicasets/web-1"), "ReplicaSet", "rs-1", Some(("Deployment", "web")));
    there(&format!("{apps}/replicasets/web-2"), "ReplicaSet", "rs-2", Some(("Deployment", "web")));
    there(&format!("{apps}/replicasets/lone"), "ReplicaSet", "rs-3", None);
    there(&format!("{apps}/deployments/empty"), "Deployment", "d-2", None);
    there(&format!("{batch}/jobs/once"), "Job", "job-1", None);
    there(&format!("{batch}/jobs/backup-1"), "Job", "job-2", Some(("CronJob", "backup")));
    (Owners::new(api.client()), api)
}

#[tokio::test]
async fn pods_are_found_through_their_owners_for_every_kind_of_workload() {
    let (owners, api) = owners();
    type Case = (WorkloadKind, &'static str, &'static [&'static str], bool);
    let cases: [Case; 10] = [
        (WorkloadKind::Deployment, "web", &["web-a", "web-b"], false),
        (WorkloadKind::ReplicaSet, "web-1", &["web-a"], false),
        (WorkloadKind::ReplicaSet, "lone", &["lone-x"], false),
        (WorkloadKind::StatefulSet, "db", &["db-0"], false),
        (WorkloadKind::DaemonSet, "log", &["log-x"], false),
        (WorkloadKind::Job, "once", &["once-x"], false),
        (WorkloadKind::Job, "backup-1", &["backup-1-x"], false),
        (WorkloadKind::CronJob, "backup", &["backup-1-x"], false),
        // There, without a pod; and not there.
        (WorkloadKind::Deployment, "empty", &[], false),
        (WorkloadKind::StatefulSet, "web", &[], true),
    ];
    for (kind, name, expected, missing) in cases {
        let selection = Selection::Workload(WorkloadRef { kind, name: name.to_owned() });
        let matched = owners.matching("shop", &selection, pods(), Instant::now()).await.unwrap();
        let found: Vec<String> = matched.pods.iter().map(|pod| pod.name.to_string()).collect();
        assert_eq!(found, expected, "{kind:?} {name}");
        assert_eq!(matched.workload_missing, missing, "{kind:?} {name}");
    }
    // Each owner is asked for once, also the one that is gone.
    let asked = api.came("GET /apis/apps/v1/namespaces/shop/replicasets/web-2");
    assert_eq!(asked.len(), 2, "one for each of two UIDs: {asked:?}");
}

#[tokio::test]
async fn pods_are_found_by_name_and_by_label() {
    let (owners, _) = owners();
    let names = Selection::Names(["bare", "db-0", "nobody"].map(str::to_owned).into());
    let matched = owners.matching("shop", &names, pods(), Instant::now()).await.unwrap();
    assert_eq!(matched.pods.iter().map(|pod| pod.name.to_string()).collect::<Vec<_>>(), ["db-0", "bare"]);
    let labels = Selection::Labels([("name", "log-x")].into_iter().collect());
    let matched = owners.matching("shop", &labels, pods(), Instant::now()).await.unwrap();
    assert_eq!(matched.pods.iter().map(|pod| pod.name.to_string()).collect::<Vec<_>>(), ["log-x"]);
}

#[tokio::test]
async fn an_owner_that_is_adopted_is_found_and_one_that_has_none_is_not_asked_for_each_time() {
    let (owners, api) = owners();
    let web = WorkloadRef { kind: WorkloadKind::Deployment, name: "web".to_owned() };
    let lone = async |later: u64| {
        let now = Instant::now() + Duration::from_secs(later);
        let matched = owners.matching("shop", &Selection::Workload(web.clone()), pods(), now).await.unwrap();
        (matched.pods.iter().any(|pod| &*pod.name == "lone-x"), matched.has_orphans)
    };
    assert_eq!((lone(0).await, lone(200).await), ((false, true), (false, true)));
    let path = "/apis/apps/v1/namespaces/shop/replicasets/lone";
    assert_eq!(api.came(&format!("GET {path}")).len(), 1);
    api.change(path, |set| {
        set["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web",
            "uid": "above", "controller": true}]);
    });
    assert!(lone(400).await.0);
}
