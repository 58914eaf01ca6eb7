// SPDX-License-Identifier: Apache-2.0

//! The cluster of Docker containers, made by kind of `e2e/kind.yaml` with its released node image.
//!
//! For machines with a Docker engine and access to an image registry; nothing else has to be there. All nodes share the
//! host's kernel, and their containers' cgroups lie below the nodes' own. Elsewhere [`kind_vm`](super::kind_vm) makes the
//! same cluster inside a VM.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::kind_disk::{CLUSTER, NODES};
use super::kubeconfig;
use super::provider::{Action, Provider, Started};
use crate::image::Image;
use crate::kernel::Kernel;
use crate::{cache, exec, tools};

pub(super) struct KindDocker;

impl Provider for KindDocker {
    fn start(&self, _: &[(String, Kernel)], _: &[Image]) -> Result<Started> {
        self.stop()?;
        let config = cache::repository().join("e2e/kind.yaml");
        let mut create = kind()?;
        create
            .args(["create", "cluster", "--name", CLUSTER, "--wait", "5m", "--kubeconfig"])
            .arg(kubeconfig());
        exec::loud(create.arg("--config").arg(config))?;
        Ok(Started { nodes: NODES.map(str::to_owned).to_vec(), have_images: false })
    }

    fn complete(&self) -> Result<()> {
        for name in NODES.into_iter().filter(|name| !runs(name)) {
            self.node(name, Action::Start)?;
        }
        let mut wait = exec::command(tools::kubernetes()?.join("kubectl"), ["--kubeconfig"]);
        wait.arg(kubeconfig()).args(["wait", "node", "--all", "--for=condition=Ready", "--timeout=300s"]);
        exec::quiet(&mut wait)
    }

    fn stop(&self) -> Result<()> {
        let mut delete = kind()?;
        exec::quiet(delete.args(["delete", "cluster", "--name", CLUSTER, "--kubeconfig"]).arg(kubeconfig()))
    }

    fn status(&self) -> (Vec<String>, Result<()>) {
        let lines = NODES.map(|name| format!("{name:<24} {}", if runs(name) { "runs" } else { "stopped" }));
        let clusters = kind().and_then(|mut kind| exec::output(kind.args(["get", "clusters"])));
        let usable = clusters.and_then(|list| {
            ensure!(list.lines().any(|line| line == CLUSTER), "kind has no cluster {CLUSTER}");
            Ok(())
        });
        (lines.to_vec(), usable)
    }

    fn node(&self, name: &str, action: Action) -> Result<i32> {
        match action {
            Action::Run(words) => {
                let mut docker = exec::command("docker", ["exec", "-i", name]);
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

fn kind() -> Result<Command> {
    Ok(exec::command(tools::kind()?, [] as [&str; 0]))
}
