// SPDX-License-Identifier: Apache-2.0

//! The chart uninstalled with a session running: nothing is left that blocks anybody. Runs last.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
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
        let gone = async {
            loop {
                let left =
                    system.list(&ListParams::default().labels("app.kubernetes.io/name=tracelake")).await?;
                if left.items.is_empty() {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), gone)
            .await
            .context("pods of the chart are left")??;
        Ok(())
    })
}
