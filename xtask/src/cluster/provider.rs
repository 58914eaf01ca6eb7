// SPDX-License-Identifier: Apache-2.0

//! What makes a cluster: five things that differ between emulated machines and kind, and the questions that all answer alike.
//!
//! One file per provider: [`vms`](super::vms), [`kind_docker`](super::kind_docker), [`kind_vm`](super::kind_vm).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{bin, kind_docker, kind_vm, kubeconfig, vms};
use crate::image::{self, Image};
use crate::kernel::Kernel;
use crate::{exec, tools};

/// What kind calls the cluster, and its nodes are called after it: `NAME-control-plane`, `NAME-worker`.
pub(super) const CLUSTER: &str = "tracelake";
/// In the order of kind's own list.
pub(super) const NODES: [&str; 2] = ["tracelake-control-plane", "tracelake-worker"];

/// What can be done about a cluster that lacks something.
pub(super) const DAMAGED: &str = "the cluster is damaged: `cargo xtask cluster down`, then `up`";

/// A way to get a cluster. All end with an API server at the address in [`kubeconfig`](super::kubeconfig), which an
/// administrator may use from the host's network. Errors of a start leave what they began: the caller stops it.
pub(super) trait Provider {
    /// Starts a cluster, where none may run, and waits until its API server answers. `nodes` and `images` are wishes.
    fn start(&self, nodes: &[(String, Kernel)], images: &[Image]) -> Result<Started>;
    /// Starts nodes that are stopped, and waits until all are Ready and names are resolved.
    fn complete(&self) -> Result<()>;
    /// Ends everything that belongs to the cluster, also of one that was half started; does nothing when there is none.
    fn stop(&self) -> Result<()>;
    /// What runs and how to look at it, and whether the cluster can be used, if not why.
    fn status(&self) -> (Vec<String>, Result<()>);
    /// Does something to one node. Returns the exit code of a command that runs there.
    fn node(&self, name: &str, action: Action) -> Result<i32>;
}

/// What can be done to a node.
#[derive(Clone, Copy)]
pub(super) enum Action<'a> {
    /// Run a command, a shell if it is empty, with the input and output of this process.
    Run(&'a [String]),
    /// Import image archives; what it has already costs little.
    Load(&'a [PathBuf]),
    /// Cut its power.
    Stop,
    /// Start it again, with its disk as it was; does not wait until it is Ready.
    Start,
}

/// What a start gave.
pub(super) struct Started {
    pub(super) nodes: Vec<String>,
    /// Whether the nodes have the images already.
    pub(super) have_images: bool,
}

/// The providers, as the cluster's state names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Source {
    Vms,
    KindDocker,
    KindVm,
}

impl Source {
    pub(super) fn provider(self) -> &'static dyn Provider {
        match self {
            Self::Vms => &vms::Vms,
            Self::KindDocker => &kind_docker::KindDocker,
            Self::KindVm => &kind_vm::KindVm,
        }
    }

    /// Installs what its clusters are made of.
    pub(super) fn prepare(self) -> Result<()> {
        match self {
            Self::Vms | Self::KindVm => tools::install_all(),
            Self::KindDocker => tools::kind().and_then(|_| tools::helm()).map(drop),
        }
    }
}

/// kubectl with the administrator's rights, from the host's network, as users have it.
pub(super) fn kubectl() -> Command {
    let mut kubectl = exec::command(bin().join("kubectl"), ["--request-timeout=10s"]);
    kubectl.env("KUBECONFIG", kubeconfig());
    kubectl
}

/// Whether the API server answers.
pub(super) fn answers() -> bool {
    exec::succeeds(kubectl().args(["get", "--raw", "/readyz"]))
}

/// Whether all nodes of kind are Ready and names are resolved, if not why.
pub(super) fn all_ready(kubectl: impl Fn() -> Command) -> Result<()> {
    let ready = r#"jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#;
    let nodes = exec::output(kubectl().args(["get", "nodes", "-o", ready]))?;
    ensure!(nodes.split_whitespace().eq(NODES.map(|_| "True")), "Ready says of the nodes: {nodes}");
    let replicas = "jsonpath={.spec.replicas},{.status.availableReplicas}";
    let dns =
        exec::output(kubectl().args(["-n", "kube-system", "get", "deployment", "coredns", "-o", replicas]))?;
    let all = dns.split_once(',').is_some_and(|(wanted, available)| wanted == available);
    ensure!(all, "of CoreDNS there should be and are available: {dns}");
    Ok(())
}

/// A line of status for each of kind's nodes, of which these run, if that is known.
pub(super) fn node_lines(running: Option<&[String]>, unknown: &str) -> Vec<String> {
    let state = |name: &str| match running {
        Some(running) if running.iter().any(|one| one == name) => "runs".to_owned(),
        Some(_) => "stopped".to_owned(),
        None => format!("not known: {unknown}"),
    };
    NODES.map(|name| format!("{name:<24} {}", state(name))).to_vec()
}

/// Nodes that are started again, each with the time of its lease before: until its kubelet renews that, what the API server
/// says of the node is of before its end, and may well be Ready.
#[derive(Default)]
pub(super) struct StartedAgain(BTreeMap<String, Option<String>>);

impl StartedAgain {
    /// Starts those of kind's nodes that do not run.
    pub(super) fn of_kind(provider: &dyn Provider, running: &[String]) -> Result<Self> {
        let mut again = Self::default();
        for name in NODES.into_iter().filter(|name| !running.iter().any(|one| one == name)) {
            again.note(name);
            provider.node(name, Action::Start)?;
        }
        Ok(again)
    }

    /// Notes a node that does not run and is about to be started.
    pub(super) fn note(&mut self, node: &str) {
        self.0.insert(node.to_owned(), renewed(node).ok());
    }

    /// Whether the node has been heard of since its start; one that was not started again has.
    pub(super) fn is_back(&mut self, node: &str) -> bool {
        let Some(before) = self.0.get_mut(node) else { return true };
        let Ok(now) = renewed(node) else { return false };
        match before {
            Some(before) => *before != now,
            // The API server was away with the node: what it says first may be of before.
            None => {
                *before = Some(now);
                false
            }
        }
    }

    /// Whether all nodes of kind are back and Ready and names are resolved, if not why.
    pub(super) fn all_ready(&mut self) -> Result<()> {
        for name in NODES {
            ensure!(self.is_back(name), "{name} has not renewed its lease since it was started again");
        }
        all_ready(kubectl)
    }
}

/// When the node renewed its lease; nothing of one that has none yet.
fn renewed(node: &str) -> Result<String> {
    let get = ["-n", "kube-node-lease", "get", "lease", node, "--ignore-not-found", "-o"];
    exec::output(kubectl().args(get).arg("jsonpath={.spec.renewTime}"))
}

/// What users may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    /// Emulated machines with a kernel each, on any machine.
    Vm,
    /// A kind cluster: by the Docker engine of this machine, or where there is none, inside an emulated machine.
    Kind,
}

impl Choice {
    pub(super) fn source(self) -> Source {
        match self {
            Self::Vm => Source::Vms,
            Self::Kind if image::has_docker() => Source::KindDocker,
            Self::Kind => {
                static TOLD: Once = Once::new();
                TOLD.call_once(|| {
                    if let Some(why) = image::docker_fails() {
                        println!("cluster: kind runs inside a VM, since `docker` is here but fails: {why}");
                    }
                });
                Source::KindVm
            }
        }
    }
}
