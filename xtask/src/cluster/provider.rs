// SPDX-License-Identifier: Apache-2.0

//! What makes a cluster: five things that differ between emulated machines and kind, and the questions that all answer alike.
//!
//! One file per provider: [`vms`](super::vms), [`kind_docker`](super::kind_docker), [`kind_vm`](super::kind_vm).

use std::path::PathBuf;
use std::process::Command;

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
            Self::Kind => Source::KindVm,
        }
    }
}
