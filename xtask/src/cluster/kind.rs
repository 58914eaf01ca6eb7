// SPDX-License-Identifier: Apache-2.0

//! The cluster of Docker containers, made by kind with its released node image.
//!
//! For machines with a Docker engine and access to an image registry. All nodes share the host's kernel,
//! and their containers' cgroups lie below the nodes' own. On a machine without Docker this provider
//! cannot run, and it was not tried there; the VM provider is the one that is used on such machines.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Cluster, Provider, link_tools, state};
use crate::{exec, image, tools};

const NAME: &str = "tracelake";

pub(super) fn up(nodes: usize) -> Result<Cluster> {
    ensure!(
        image::has_docker(),
        "kind needs a Docker engine and `docker info` does not succeed; without --cluster the nodes are emulated"
    );
    let (kubectl, helm) = link_tools()?;
    let kubeconfig = state().join("kubeconfig");
    let mut config =
        "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: control-plane\n".to_owned();
    config.push_str(&"- role: worker\n".repeat(nodes));
    let config_path = state().join("kind.yaml");
    std::fs::write(&config_path, config)?;
    let mut create = kind()?;
    create.args(["create", "cluster", "--name", NAME, "--wait", "5m", "--kubeconfig"]).arg(&kubeconfig);
    exec::loud(create.arg("--config").arg(&config_path))
        .context("`kind export logs` collects the nodes' logs")?;
    Ok(Cluster { provider: Provider::Kind, kubeconfig, kubectl, helm, nodes: worker_names()?, kept: false })
}

pub(super) fn down() -> Result<()> {
    exec::quiet(
        kind()?.args(["delete", "cluster", "--name", NAME, "--kubeconfig"]).arg(state().join("kubeconfig")),
    )
}

pub(super) fn runs() -> bool {
    kind()
        .and_then(|mut kind| exec::output(kind.args(["get", "clusters"])))
        .is_ok_and(|list| list.lines().any(|line| line == NAME))
}

pub(super) fn load(archives: &[PathBuf]) -> Result<()> {
    archives.iter().try_for_each(|archive| {
        exec::quiet(kind()?.args(["load", "image-archive", "--name", NAME]).arg(archive))
    })
}

pub(super) fn ssh(node: &str, words: &[String]) -> Result<i32> {
    let mut docker = exec::command("docker", ["exec", "-i", node]);
    docker.stdin(Stdio::inherit());
    let shell = ["sh".to_owned()];
    let status =
        docker.args(if words.is_empty() { &shell } else { words }).status().context("cannot start docker")?;
    Ok(status.code().unwrap_or(255))
}

pub(super) fn stop_node(name: &str) -> Result<()> {
    exec::quiet(&mut exec::command("docker", ["kill", name]))
}

pub(super) fn start_node(name: &str) -> Result<()> {
    exec::quiet(&mut exec::command("docker", ["start", name]))
}

fn worker_names() -> Result<Vec<String>> {
    let list = exec::output(kind()?.args(["get", "nodes", "--name", NAME]))?;
    let mut names: Vec<String> =
        list.lines().filter(|name| name.contains("worker")).map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn kind() -> Result<Command> {
    Ok(exec::command(tools::kind()?, [] as [&str; 0]))
}
