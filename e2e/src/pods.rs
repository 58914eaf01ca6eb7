// SPDX-License-Identifier: Apache-2.0

//! Pods with known workloads, from the image that the harness loads into every node.

use std::time::Duration;

use crate::{Env, PATIENCE};
use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, AttachedProcess, LogParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What the harness loads into its own nodes: Debian with nginx, redis and `workload` (`workload/src/main.rs`).
pub const OUR_IMAGE: &str = "tracelake/shop:dev";

/// The same under the name that this cluster's nodes know: `TRACELAKE_SHOP_IMAGE`, else [`OUR_IMAGE`].
pub fn image() -> String {
    std::env::var("TRACELAKE_SHOP_IMAGE").unwrap_or_else(|_| OUR_IMAGE.to_owned())
}

/// The label by which the tests' sessions select their pods.
pub const LABEL: &str = "tracelake-e2e";

/// A pod to be made: `workload ARGS...` with the label `tracelake-e2e: LABEL`.
pub struct PodSpec {
    name: String,
    label: String,
    node: Option<String>,
    host_network: bool,
    command: Vec<String>,
}

impl PodSpec {
    /// Runs `workload` with these arguments once.
    pub fn workload(name: &str, label: &str, args: &[&str]) -> Self {
        let mut command = vec!["/usr/local/bin/workload".to_owned()];
        command.extend(args.iter().map(|arg| (*arg).to_owned()));
        Self { name: name.to_owned(), label: label.to_owned(), node: None, host_network: false, command }
    }

    /// Pins the pod to a node.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// Puts the pod into the node's network namespace.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// The object as the API server gets it.
    pub fn to_pod(&self) -> Result<Pod> {
        let mut spec = json!({
            "restartPolicy": "Never",
            "hostNetwork": self.host_network,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [{ "name": "app", "image": image(), "imagePullPolicy": "IfNotPresent", "command": self.command }],
        });
        if let Some(node) = &self.node {
            spec["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
        }
        Ok(serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": self.name, "labels": { LABEL: self.label } },
            "spec": spec,
        }))?)
    }

    /// Creates the pod and returns it.
    pub async fn create(&self, api: &Api<Pod>) -> Result<Pod> {
        api.create(&PostParams::default(), &self.to_pod()?)
            .await
            .with_context(|| format!("creating pod {}", self.name))
    }

    /// Creates the pod and waits until it runs; returns it with its addresses.
    pub async fn start(&self, api: &Api<Pod>) -> Result<Pod> {
        self.create(api).await?;
        running(api, &self.name).await
    }

    /// Creates the pod, waits for its end and returns the JSON that `workload` printed last.
    pub async fn run(&self, api: &Api<Pod>) -> Result<Value> {
        self.create(api).await?;
        finished(api, &self.name).await
    }
}

/// Waits until a pod's containers run.
pub async fn running(api: &Api<Pod>, name: &str) -> Result<Pod> {
    let is_running = |pod: Option<&Pod>| {
        pod.and_then(|pod| pod.status.as_ref()).is_some_and(|status| {
            status.phase.as_deref() == Some("Running")
                && status.container_statuses.iter().flatten().all(|container| container.ready)
        })
    };
    tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, is_running))
        .await
        .with_context(|| format!("pod {name} is not running after {PATIENCE:?}"))??
        .context("the pod is gone")
}

/// Waits until a pod has succeeded.
pub async fn ended(api: &Api<Pod>, name: &str, patience: Duration) -> Result<()> {
    let has_ended =
        |pod: Option<&Pod>| phase(pod).is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
    let pod = tokio::time::timeout(patience, await_condition(api.clone(), name, has_ended))
        .await
        .with_context(|| format!("pod {name} has not ended after {patience:?}"))??;
    ensure!(phase(pod.as_ref()).as_deref() == Some("Succeeded"), "pod {name} failed");
    Ok(())
}

/// Waits until a pod has succeeded and returns the last line of its log as JSON.
pub async fn finished(api: &Api<Pod>, name: &str) -> Result<Value> {
    let result = ended(api, name, PATIENCE).await;
    let log = api.logs(name, &LogParams::default()).await?;
    result.with_context(|| format!("its log:\n{log}"))?;
    let last = log.lines().last().with_context(|| format!("pod {name} printed nothing"))?;
    serde_json::from_str(last).with_context(|| format!("pod {name} printed {last:?}"))
}

/// Waits until the pod does not exist any more.
pub async fn gone(api: &Api<Pod>, name: &str) -> Result<()> {
    let gone = await_condition(api.clone(), name, |pod: Option<&Pod>| pod.is_none());
    tokio::time::timeout(PATIENCE, gone)
        .await
        .with_context(|| format!("pod {name} is not gone after {PATIENCE:?}"))??;
    Ok(())
}

/// A pod's own address.
pub fn address(pod: &Pod) -> Result<String> {
    pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("the pod has no address")
}

/// A pod's UID.
pub fn uid(pod: &Pod) -> Result<String> {
    pod.metadata.uid.clone().context("the pod has no UID")
}

/// Runs a command in a pod's container and returns what it printed.
pub async fn exec(api: &Api<Pod>, name: &str, command: &[&str]) -> Result<String> {
    let mut attached = api.exec(name, command.to_vec(), &AttachParams::default().stderr(true)).await?;
    let mut text = String::new();
    if let Some(mut stdout) = attached.stdout() {
        stdout.read_to_string(&mut text).await?;
    }
    succeeded(&mut attached, name, &command.join(" ")).await?;
    Ok(text)
}

async fn succeeded(attached: &mut AttachedProcess, name: &str, command: &str) -> Result<()> {
    let status =
        attached.take_status().context("exec has a status")?.await.context("exec ended without a status")?;
    if status.status.as_deref() != Some("Success") {
        bail!("`{command}` in pod {name} failed: {}", status.message.unwrap_or_default());
    }
    Ok(())
}

/// Puts a program into a pod's container; it is there whole, or not at all.
pub async fn put(api: &Api<Pod>, name: &str, path: &str, content: &[u8]) -> Result<()> {
    let length = content.len();
    let whole = format!("[ $(wc -c < {path}.part) -eq {length} ]");
    let take = format!(
        "head -c {length} > {path}.part && {whole} && chmod 755 {path}.part && mv {path}.part {path}"
    );
    let params = AttachParams::default().stdin(true).stderr(true);
    let mut attached = api.exec(name, ["/bin/sh", "-c", &take], &params).await?;
    let mut stdin = attached.stdin().context("the command has an input")?;
    stdin.write_all(content).await.with_context(|| format!("writing {path} in pod {name}"))?;
    stdin.flush().await?;
    succeeded(&mut attached, name, &take).await
}

/// Makes the file that `workload hold` waits for. The program may end at once, and its container with it: then the kernel
/// kills `touch`, which has done its work and not ended yet.
pub async fn let_go(api: &Api<Pod>, name: &str, file: &str) -> Result<()> {
    const KILLED: &str = "exit code 137";
    match exec(api, name, &["touch", file]).await {
        Err(error) if !error.to_string().contains(KILLED) => Err(error),
        _ => Ok(()),
    }
}

/// Pods of one namespace.
pub fn api(client: &Client, namespace: &str) -> Api<Pod> {
    Api::namespaced(client.clone(), namespace)
}

fn phase(pod: Option<&Pod>) -> Option<String> {
    pod?.status.as_ref()?.phase.clone()
}

/// Sends processes of that name on a node a signal, from a pod in the node's pid namespace: those of the pod with this UID, or
/// all of them.
pub async fn signal(
    env: &Env,
    namespace: &str,
    node: &str,
    process: &str,
    of_pod: Option<&str>,
    signal: &str,
) -> Result<()> {
    let api = api(&env.client, namespace);
    let name = format!("signal-{}", &uuid::Uuid::new_v4().simple().to_string()[..6]);
    // Runtimes write a UID with hyphens or underscores in a cgroup's name.
    let cgroup = of_pod.unwrap_or_default().replace('-', "[-_]");
    // -x with the 15 bytes that the kernel keeps of a name.
    let command = format!(
        "sent=false; for p in $(pgrep -x {}); do grep -q '{cgroup}' /proc/$p/cgroup && kill -{signal} $p && sent=true; done; \
         $sent && echo true",
        &process[..process.len().min(15)]
    );
    let pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "restartPolicy": "Never", "hostPID": true, "nodeSelector": { "kubernetes.io/hostname": node },
            "containers": [{
                "name": "app", "image": image(), "imagePullPolicy": "IfNotPresent",
                "securityContext": { "capabilities": { "add": ["KILL"] } },
                "command": ["/bin/sh", "-c", command],
            }],
        },
    }))?;
    api.create(&PostParams::default(), &pod).await?;
    finished(&api, &name).await.with_context(|| format!("{signal} to {process} on {node}"))?;
    Ok(())
}

/// The node that a pod runs on.
pub fn node_of(pod: &Pod) -> Result<String> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).context("the pod runs nowhere")
}
