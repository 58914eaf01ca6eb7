// SPDX-License-Identifier: Apache-2.0

//! The chart uninstalled with a session running: nothing is left that blocks anybody. Runs last.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::json;
use tracelake_e2e::in_namespace;
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::session::Session;

#[test]
fn uninstalling_with_a_session_running_leaves_nothing_that_blocks() -> Result<()> {
    in_namespace("uninstall", |env, ns| async move {
        let helm =
            std::env::var("TRACELAKE_HELM").context("TRACELAKE_HELM is not set: it names Helm's binary")?;
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "uninstall", &["sleep"]).start(&api).await?;
        let session =
            Session::create(&env.client, &ns, "uninstall", Session::spec("uninstall", "15m")).await?;
        session.recording().await?;
        pods::exec(&api, "sleeper", &["/usr/local/bin/workload", "spawn", "23", "/usr/bin/true"]).await?;
        let uid = session.get().await?.metadata.uid.context("a session has a UID")?;
        let status = Command::new(helm)
            .args(["uninstall", "tracelake", "--namespace", &env.system, "--wait", "--timeout", "5m"])
            .status()?;
        ensure!(status.success(), "helm uninstall ended with {status}");
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
        for node in env.nodes().await? {
            let left = spooled(&api, &node, &uid).await?;
            ensure!(left == 0, "{left} files or folders of the session are left in the spool of {node}");
        }
        Ok(())
    })
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
