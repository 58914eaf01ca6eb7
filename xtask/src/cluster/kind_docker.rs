// SPDX-License-Identifier: Apache-2.0

//! The cluster of Docker containers, made by kind of `e2e/kind.yaml` with its released node image.
//!
//! For machines with a Docker engine and access to an image registry; besides these only kind and Helm are compiled. All
//! nodes share the host's kernel, and their containers' cgroups lie below the nodes' own. Elsewhere
//! [`kind_vm`](super::kind_vm) makes the same cluster inside a VM.

use std::io::IsTerminal;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::provider::{Action, CLUSTER, NODES, Provider, Started, all_ready, kubectl};
use super::{bin, kubeconfig};
use crate::image::Image;
use crate::kernel::Kernel;
use crate::{cache, exec, tools};

/// Nodes that have just been made pull nothing more: DNS is there within a minute.
const PATIENCE: Duration = Duration::from_secs(300);
/// What a killed kind has asked of Docker is done within seconds.
const AFTERMATH: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_secs(1);

/// Docker's network of the nodes; nobody else's, since it is removed with them.
const NETWORK: &str = "tracelake-xtask-kind";

pub(super) struct KindDocker;

impl Provider for KindDocker {
    fn start(&self, _: &[(String, Kernel)], _: &[Image]) -> Result<Started> {
        self.stop()?;
        // kind would add to it.
        cache::remove(&kubeconfig())?;
        let config = cache::repository().join("e2e/kind.yaml");
        let mut create = kind()?;
        create.args(["create", "cluster", "--name", CLUSTER, "--kubeconfig"]).arg(kubeconfig());
        exec::loud(&mut exec::bound(create.arg("--config").arg(config)))?;
        // Docker would follow the link of another provider.
        let kubectl = bin().join("kubectl");
        cache::remove(&kubectl)?;
        let theirs = format!("{}:/usr/bin/kubectl", NODES[0]);
        exec::quiet(exec::command("docker", ["cp", "--follow-link", &theirs]).arg(kubectl))?;
        Ok(Started { nodes: NODES.map(str::to_owned).to_vec(), have_images: false })
    }

    fn complete(&self) -> Result<()> {
        for name in NODES.into_iter().filter(|name| !runs(name)) {
            self.node(name, Action::Start)?;
        }
        let deadline = Instant::now() + PATIENCE;
        cache::step("cluster: nodes Ready, DNS Available", || {
            while let Err(error) = all_ready(kubectl) {
                if Instant::now() > deadline {
                    return Err(error)
                        .with_context(|| format!("the cluster does not become ready within {PATIENCE:?}"));
                }
                std::thread::sleep(POLL);
            }
            Ok(())
        })
    }

    /// As `kind delete` does it, but for the network, which that leaves; kind need not be there.
    fn stop(&self) -> Result<()> {
        let deadline = Instant::now() + AFTERMATH;
        let found_any = remove_containers()?;
        // Held by a node that a killed kind had asked for, and that came only now.
        while let Err(error) = remove_network() {
            if Instant::now() >= deadline {
                return Err(error);
            }
            std::thread::sleep(POLL);
            remove_containers()?;
        }
        // Or that comes now, and finds no network: it is made all the same, and does not run.
        while found_any && Instant::now() < deadline {
            std::thread::sleep(POLL);
            if !remove_containers()? {
                break;
            }
        }
        Ok(())
    }

    fn status(&self) -> (Vec<String>, Result<()>) {
        let lines = NODES.map(|name| format!("{name:<24} {}", if runs(name) { "runs" } else { "stopped" }));
        let usable = containers().and_then(|found| {
            ensure!(found.len() == NODES.len(), "of {} nodes there are {}", NODES.len(), found.len());
            Ok(())
        });
        (lines.to_vec(), usable)
    }

    fn node(&self, name: &str, action: Action) -> Result<i32> {
        match action {
            Action::Run(words) => {
                let input = if std::io::stdin().is_terminal() { "-it" } else { "-i" };
                let mut docker = exec::command("docker", ["exec", input, name]);
                let shell = ["sh".to_owned()];
                docker.args(if words.is_empty() { &shell } else { words }).stdin(Stdio::inherit());
                return Ok(docker.status().context("cannot start docker")?.code().unwrap_or(255));
            }
            Action::Load(archives) => archives.iter().try_for_each(|archive| {
                let words = ["load", "image-archive", "--name", CLUSTER, "--nodes", name];
                exec::quiet(kind()?.args(words).arg(archive))
            })?,
            Action::Stop => exec::quiet(&mut exec::command("docker", ["kill", name]))?,
            Action::Start => exec::quiet(&mut exec::command("docker", ["start", name]))?,
        }
        Ok(0)
    }
}

fn runs(node: &str) -> bool {
    let inspect = ["inspect", "--format", "{{.State.Running}}", node];
    exec::output(&mut exec::command("docker", inspect)).is_ok_and(|running| running.trim() == "true")
}

/// The nodes, also those that are stopped.
fn containers() -> Result<Vec<String>> {
    let ours = format!("label=io.x-k8s.kind.cluster={CLUSTER}");
    let found = exec::output(&mut exec::command("docker", ["ps", "--all", "--quiet", "--filter", &ours]))?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// Removes the nodes; whether there were any.
fn remove_containers() -> Result<bool> {
    let nodes = containers()?;
    if nodes.is_empty() {
        return Ok(false);
    }
    exec::quiet(exec::command("docker", ["rm", "--force", "--volumes"]).args(nodes))?;
    Ok(true)
}

/// Removes the nodes' network; does nothing when there is none.
fn remove_network() -> Result<()> {
    let ours = format!("name=^{NETWORK}$");
    let found = exec::output(&mut exec::command("docker", ["network", "ls", "--quiet", "--filter", &ours]))?;
    found.lines().try_for_each(|id| exec::quiet(&mut exec::command("docker", ["network", "rm", id])))
}

fn kind() -> Result<Command> {
    let mut kind = exec::command(tools::kind()?, [] as [&str; 0]);
    // Its usual one is shared with other clusters, and nobody's to remove.
    kind.env("KIND_EXPERIMENTAL_DOCKER_NETWORK", NETWORK);
    Ok(kind)
}
