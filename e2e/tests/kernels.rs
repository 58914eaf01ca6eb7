// SPDX-License-Identifier: Apache-2.0

//! The ground truth of every collector on every node's kernel: the tests of `node-agent/tests/ground_truth`, in a pod.
//!
//! Their workloads make cgroups and networks, so the pod is privileged; their engines lay down all but the capabilities of
//! the chart's pod. `TRACELAKE_GROUND_TRUTH` names the static binary, which the test puts into the pod.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::LogParams;
use serde_json::json;
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::{Env, in_namespace};

/// Twice what they take where every CPU is emulated and another node does the same.
const PATIENCE: Duration = Duration::from_secs(1_500);
const BINARY: &str = "/ground_truth";

#[test]
fn every_collector_is_exact_in_a_pod_on_every_kernel() -> Result<()> {
    in_namespace("kernels", |env, ns| async move {
        let path = std::env::var_os("TRACELAKE_GROUND_TRUTH").context(
            "TRACELAKE_GROUND_TRUTH names the static binary of the ground truth tests: `cargo xtask test e2e-slow` sets it",
        )?;
        let binary = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let api = pods::api(&env.client, &ns);
        let nodes = env.nodes().await?;
        let each = nodes.iter().map(|node| on_node(&env, &api, node, &binary));
        // All of them, also after one that failed: each failure is worth knowing.
        let failed: Vec<String> = futures::future::join_all(each)
            .await
            .into_iter()
            .filter_map(|result| result.err().map(|error| format!("{error:#}")))
            .collect();
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    })
}

async fn on_node(env: &Env, api: &Api<Pod>, node: &str, binary: &[u8]) -> Result<()> {
    let name = format!("ground-truth-{node}");
    let environment = environment(env, node).await?;
    let wait_and_run = format!("until [ -x {BINARY} ]; do sleep 0.2; done; exec {BINARY} --test-threads=1");
    let mut pod = PodSpec::workload(&name, "kernels", &[]).on(node).to_pod()?;
    let spec = pod.spec.as_mut().context("the pod has a spec")?;
    // Processes are known by the ids that the node gives them, as in the agent's pod.
    spec.host_pid = Some(true);
    let container = spec.containers.first_mut().context("it has a container")?;
    container.command = Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), wait_and_run]);
    container.env =
        Some(serde_json::from_value(json!([{ "name": "TRACELAKE_ENVIRONMENT", "value": environment }]))?);
    container.security_context = Some(serde_json::from_value(json!({ "privileged": true }))?);
    api.create(&Default::default(), &pod).await.with_context(|| format!("creating pod {name}"))?;
    pods::running(api, &name).await?;
    pods::put(api, &name, BINARY, binary).await?;
    let result = pods::ended(api, &name, PATIENCE).await;
    let log = api.logs(&name, &LogParams::default()).await?;
    let last = log.lines().rev().find(|line| line.starts_with("test result")).unwrap_or("no result");
    println!("{node} as {environment}: {last}");
    result.with_context(|| format!("ground truth on {node} as {environment}; its log:\n{log}"))
}

/// The kernel's name in the tests' table of expectations.
async fn environment(env: &Env, node: &str) -> Result<String> {
    let node = Api::<Node>::all(env.client.clone()).get(node).await?;
    let info = node.status.and_then(|status| status.node_info).context("the node says what it is")?;
    let mut numbers = info.kernel_version.split('.');
    let (major, minor) = numbers.next().zip(numbers.next()).context("a release has two numbers")?;
    Ok(if major == "7" { "vm-7".to_owned() } else { format!("vm-{major}.{minor}") })
}
