// SPDX-License-Identifier: Apache-2.0

//! The store that the chart made, changed and deleted; then the chart uninstalled with a session running: nothing is left
//! that blocks anybody. Runs last.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use crds::ClusterTraceStore;
use crds::conditions::{self, store::READY};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, ResourceExt};
use serde_json::json;
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::session::{Session, WINDOW};
use tracelake_e2e::{PATIENCE, in_namespace};

#[test]
fn uninstalling_with_a_session_running_leaves_nothing_that_blocks() -> Result<()> {
    in_namespace("uninstall", |env, ns| async move {
        let helm =
            std::env::var("TRACELAKE_HELM").context("TRACELAKE_HELM is not set: it names Helm's binary")?;
        let stores: Api<ClusterTraceStore> = Api::all(env.client.clone());
        let store = comes_back(&stores).await?;
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "uninstall", &["sleep"]).start(&api).await?;
        let session =
            Session::create(&env.client, &ns, "uninstall", Session::spec("uninstall", WINDOW)).await?;
        session.recording().await?;
        pods::exec(&api, "sleeper", &["/usr/local/bin/workload", "spawn", "23", "/usr/bin/true"]).await?;
        let uid = session.get().await?.metadata.uid.context("a session has a UID")?;
        let check = Command::new(&helm)
            .args(["test", "tracelake", "--namespace", &env.system, "--logs", "--timeout", "3m"])
            .output()?;
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        ensure!(check.status.success(), "helm test: {said}{}", String::from_utf8_lossy(&check.stderr));
        for point in ["leads", "can be written to", "node agents are connected"] {
            let holds = said.lines().any(|line| line.starts_with("ok ") && line.contains(point));
            ensure!(holds, "helm test does not say that {point:?}: {said}");
        }
        let status = Command::new(helm)
            .args(["uninstall", "tracelake", "--namespace", &env.system, "--wait", "--timeout", "5m"])
            .status()?;
        ensure!(status.success(), "helm uninstall ended with {status}");
        // None either where its kind is gone.
        ensure!(stores.get_opt(&store).await?.is_none(), "ClusterTraceStore {store} of the chart is left");
        let sessions: Api<crds::TraceSession> = Api::all(env.client.clone());
        // The definitions may be kept or gone; sessions with a finalizer that nobody serves may not be left.
        if let Ok(left) = sessions.list(&ListParams::default()).await {
            let stuck: Vec<_> = left
                .iter()
                .filter(|session| session.metadata.finalizers.as_ref().is_some_and(|all| !all.is_empty()))
                .map(|session| session.metadata.name.clone())
                .collect();
            ensure!(stuck.is_empty(), "sessions with finalizers are left: {stuck:?}");
        }
        let system: Api<Pod> = pods::api(&env.client, &env.system);
        for pod in system.list(&ListParams::default().labels("app.kubernetes.io/name=tracelake")).await? {
            pods::gone(&system, &pod.metadata.name.unwrap_or_default()).await?;
        }
        let leases: Api<Lease> = Api::namespaced(env.client.clone(), &env.system);
        let slices: Api<EndpointSlice> = Api::namespaced(env.client.clone(), &env.system);
        ensure!(leases.get_opt("tracelake-operator").await?.is_none(), "the operator's Lease is left");
        let slice = slices.get_opt("tracelake-operator-leader").await?;
        ensure!(slice.is_none(), "an EndpointSlice is left: {slice:?}");
        for node in env.nodes().await? {
            let left = spooled(&api, &node, &uid).await?;
            ensure!(left == 0, "{left} files or folders of the session are left in the spool of {node}");
        }
        Ok(())
    })
}

/// The store that the chart made is brought back to the values and made again. Returns its name.
async fn comes_back(stores: &Api<ClusterTraceStore>) -> Result<String> {
    let labels = ListParams::default().labels("app.kubernetes.io/managed-by=tracelake-chart");
    let made = stores.list(&labels).await?.items.pop().context("the chart made no store")?;
    let (name, spec) = (made.name_any(), made.spec.clone());
    let ready = |store: Option<&ClusterTraceStore>| {
        store.filter(|store| store.spec == spec).is_some_and(|store| {
            let status = store.status.clone().unwrap_or_default();
            status.observed_generation == store.metadata.generation
                && conditions::is_true(&status.conditions, READY)
        })
    };
    // One that the values name, two that they do not, and a kind of credentials that cannot stand beside theirs.
    let edit = json!({ "spec": {
        "s3": { "bucket": "elsewhere", "prefix": "elsewhere" },
        "allowedNamespaces": ["nobody"],
        "credentials": { "secretRef": null, "ambient": true },
    }});
    let edited = stores.patch(&name, &PatchParams::default(), &Patch::Merge(&edit)).await?;
    ensure!(edited.spec.s3.bucket == "elsewhere", "an administrator's edit did not arrive");
    tokio::time::timeout(PATIENCE, await_condition(stores.clone(), &name, ready))
        .await
        .with_context(|| format!("ClusterTraceStore {name} is not back at the chart's values and Ready"))??;

    stores.delete(&name, &DeleteParams::default()).await?;
    let again =
        |store: Option<&ClusterTraceStore>| store.is_some_and(|new| new.uid() != made.uid()) && ready(store);
    tokio::time::timeout(PATIENCE, await_condition(stores.clone(), &name, again))
        .await
        .with_context(|| format!("ClusterTraceStore {name} was deleted and is not made again and Ready"))??;
    Ok(name)
}

/// How much a node's spool holds of a session.
async fn spooled(api: &Api<Pod>, node: &str, uid: &str) -> Result<i64> {
    let name = format!("spool-{node}");
    let mut pod = PodSpec::workload(&name, "spool", &[]).on(node).to_pod()?;
    let spec = pod.spec.as_mut().context("a pod has a spec")?;
    spec.volumes = Some(serde_json::from_value(json!([
        { "name": "spool", "hostPath": { "path": "/var/lib/tracelake", "type": "Directory" } },
    ]))?);
    let find = format!("find /spool > /tmp/all && grep -c {uid} /tmp/all || test $? = 1");
    let container = &mut spec.containers[0];
    container.command = Some(["/bin/sh", "-c", &find].map(str::to_owned).to_vec());
    container.volume_mounts =
        Some(serde_json::from_value(json!([{ "name": "spool", "mountPath": "/spool", "readOnly": true }]))?);
    api.create(&PostParams::default(), &pod).await?;
    let count = pods::finished(api, &name).await?;
    count.as_i64().with_context(|| format!("{count} is no count"))
}
