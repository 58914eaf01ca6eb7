// SPDX-License-Identifier: Apache-2.0

//! The cluster of Docker containers, made by kind of `e2e/kind.yaml` with its released node image.
//!
//! For machines with a Docker engine and access to an image registry; besides these only kind and Helm are compiled. All
//! nodes share the host's kernel, and their containers' cgroups lie below the nodes' own. Elsewhere
//! [`kind_vm`](super::kind_vm) makes the same cluster inside a VM.

use std::io::IsTerminal;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::provider::{Action, CLUSTER, DAMAGED, NODES, Provider, Started, StartedAgain, node_lines};
use super::{bin, kubeconfig, state_file};
use crate::image::Image;
use crate::kernel::Kernel;
use crate::{cache, exec, tools};

/// Nodes that have just been made pull nothing more: DNS is there within a minute.
const PATIENCE: Duration = Duration::from_secs(300);
/// Docker does what a killed kind has asked of it, with no longer pauses than this.
const QUIET: Duration = Duration::from_secs(5);
/// And all of it within this.
const AFTERMATH: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_secs(1);

/// Docker's network of the nodes; nobody else's, since it is removed with them.
const NETWORK: &str = "tracelake-xtask-kind";

pub(super) struct KindDocker;

impl Provider for KindDocker {
    fn start(&self, _: &[(String, Kernel)], _: &[Image]) -> Result<Started> {
        // Of one whose state is lost.
        remove_all()?;
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
        let mut again = StartedAgain::of_kind(self, &nodes(&[])?)?;
        let deadline = Instant::now() + PATIENCE;
        cache::step("cluster: nodes Ready, DNS Available", || {
            while let Err(error) = again.all_ready() {
                if Instant::now() > deadline {
                    return Err(error)
                        .with_context(|| format!("the cluster does not become ready within {PATIENCE:?}"));
                }
                std::thread::sleep(POLL);
            }
            Ok(())
        })
    }

    /// As `kind delete` does it, but for the network, which that leaves; kind need not be there. Also of a kind that was
    /// killed: what it had asked for comes later, with or without anything that is there now.
    fn stop(&self) -> Result<()> {
        // An engine that does not answer will not within the time below.
        nodes(&["--all"])?;
        let deadline = Instant::now() + AFTERMATH;
        let mut quiet = Instant::now();
        loop {
            match remove_all() {
                Ok(false) if quiet.elapsed() >= QUIET => return Ok(()),
                Ok(false) => {}
                // It fails where a node that has just come holds the network.
                removed if Instant::now() >= deadline => return removed.map(drop),
                _ => quiet = Instant::now(),
            }
            std::thread::sleep(POLL);
        }
    }

    fn status(&self) -> (Vec<String>, Result<()>) {
        let lines = node_lines(nodes(&[]).ok().as_deref(), "Docker does not answer");
        let usable = nodes(&["--all"]).and_then(|found| {
            let missing = NODES.into_iter().find(|name| !found.iter().any(|one| one == name));
            missing.map_or(Ok(()), |name| Err(anyhow!("{name} is gone")).context(DAMAGED))
        });
        (lines, usable)
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
            Action::Load(archives) => {
                let words = ["load", "image-archive", "--name", CLUSTER, "--nodes", name];
                exec::quiet(kind()?.args(words).args(archives))?;
            }
            Action::Stop => exec::quiet(&mut exec::command("docker", ["kill", name]))?,
            Action::Start => exec::quiet(&mut exec::command("docker", ["start", name]))?,
        }
        Ok(0)
    }
}

/// The nodes that run; with `--all` also those that are stopped.
fn nodes(which: &[&str]) -> Result<Vec<String>> {
    let ours = format!("label=io.x-k8s.kind.cluster={CLUSTER}");
    let mut list = exec::command("docker", ["ps", "--format", "{{.Names}}", "--filter", &ours]);
    let found = exec::output(list.args(which)).with_context(|| {
        format!(
            "the cluster was made by Docker, whose engine does not answer: start that and ask again, \
             or delete {} if it is gone for good",
            state_file().display()
        )
    })?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// Removes the nodes and their network; whether there was anything to remove.
fn remove_all() -> Result<bool> {
    let nodes = nodes(&["--all"])?;
    if !nodes.is_empty() {
        exec::quiet(exec::command("docker", ["rm", "--force", "--volumes"]).args(&nodes))?;
    }
    let ours = format!("name=^{NETWORK}$");
    let found = exec::output(&mut exec::command("docker", ["network", "ls", "--quiet", "--filter", &ours]))?;
    let networks: Vec<&str> = found.lines().collect();
    if !networks.is_empty() {
        exec::quiet(exec::command("docker", ["network", "rm"]).args(&networks))?;
    }
    Ok(!nodes.is_empty() || !networks.is_empty())
}

fn kind() -> Result<Command> {
    let mut kind = exec::command(tools::kind()?, [] as [&str; 0]);
    // Its usual one is shared with other clusters, and nobody's to remove.
    kind.env("KIND_EXPERIMENTAL_DOCKER_NETWORK", NETWORK);
    Ok(kind)
}
