// SPDX-License-Identifier: Apache-2.0

//! Puts the product into a cluster as a user does: images, then the chart with Helm.
//!
//! The dev store is on, so that whatever runs next has a real S3 server inside the cluster.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster::{self, Cluster, Provider};
use crate::image::Image;
use crate::{cache, exec, tools};

/// What our own images are called.
const REPOSITORY: &str = "tracelake";
const TAG: &str = "dev";
/// Where the chart goes.
const NAMESPACE: &str = "tracelake-system";
/// Helm waits this long for Deployments and DaemonSets, on emulated nodes that may still boot.
const TIMEOUT: &str = "8m";

/// A cluster that is not ours to start, and from where its nodes get the images.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Existing {
    /// Use this cluster instead of starting one.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Registry and folder from which its nodes pull operator, node-agent, dev-store and shop (see `cargo xtask image`).
    #[arg(long, requires = "kubeconfig", default_value = REPOSITORY)]
    image_repository: String,
    /// Their tag.
    #[arg(long, requires = "kubeconfig", default_value = TAG)]
    image_tag: String,
}

impl Existing {
    /// Access to the cluster, if one is named.
    pub(crate) fn access(&self) -> Result<Option<Access>> {
        let Some(kubeconfig) = &self.kubeconfig else { return Ok(None) };
        ensure!(kubeconfig.exists(), "there is no {}", kubeconfig.display());
        Ok(Some(Access {
            kubeconfig: kubeconfig.clone(),
            helm: tools::helm()?,
            repository: self.image_repository.clone(),
            tag: self.image_tag.clone(),
            ours: false,
        }))
    }
}

/// What is needed to use a cluster, whoever started it.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// For an administrator.
    kubeconfig: PathBuf,
    helm: PathBuf,
    repository: String,
    tag: String,
    /// Its nodes can be stopped and started.
    ours: bool,
}

impl Access {
    /// A cluster of ours.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self {
            kubeconfig: cluster.kubeconfig.clone(),
            helm: cluster.helm.clone(),
            repository: REPOSITORY.to_owned(),
            tag: TAG.to_owned(),
            ours: true,
        }
    }

    /// Sets what the cluster tests and the demo read from their environment.
    pub(crate) fn apply_to(&self, command: &mut Command) -> Result<()> {
        let xtask = std::env::current_exe().context("finding this program")?;
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("TRACELAKE_NAMESPACE", NAMESPACE)
            .env("TRACELAKE_HELM", &self.helm)
            .env("TRACELAKE_SHOP_IMAGE", format!("{}/shop:{}", self.repository, self.tag));
        if self.ours {
            command.env("TRACELAKE_NODE_COMMAND", format!("{} cluster node", xtask.display()));
        }
        Ok(())
    }

    /// Installs or upgrades the chart and waits until everything is available.
    pub(crate) fn install(&self) -> Result<()> {
        let chart = cache::repository().join("charts/tracelake");
        cache::step("chart: installed", || {
            exec::quiet(
                exec::command(&self.helm, ["upgrade", "--install", "tracelake"])
                    .arg(chart)
                    .args(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", TIMEOUT])
                    .args(["--set", "devStore.enabled=true"])
                    .args(["--set", &format!("image.repository={}", self.repository)])
                    .args(["--set", &format!("image.tag={}", self.tag)])
                    // Long enough for a kubelet to refresh a mounted ConfigMap, short enough for a test that waits for it.
                    .args(["--set", "operator.caPropagationSeconds=100"])
                    .env("KUBECONFIG", &self.kubeconfig),
            )
        })
    }
}

/// Puts the product into the cluster of ours that runs, or into one that it starts; `meanwhile` is what only needs its nodes
/// and is done as soon as they are there. What fails is left for inspection.
pub(crate) fn into_ours(
    options: &cluster::Options,
    images: &[Image],
    meanwhile: impl FnOnce(&Cluster) -> Result<()> + Send,
) -> Result<Access> {
    let was_up = cluster::current().is_ok();
    let cluster = cluster::start(options, images)?;
    let access = Access::of(&cluster);
    if was_up || cluster.provider != Provider::Vm {
        cluster.complete()?;
        cache::step("images: loaded into the nodes", || cluster.load_images(images))?;
        meanwhile(&cluster)?;
        access.install()?;
    } else {
        // New VMs have the images on their disk, and what the chart makes waits at the API server for them.
        std::thread::scope(|scope| {
            let complete = scope.spawn(|| {
                cluster.complete()?;
                meanwhile(&cluster)
            });
            access.install()?;
            complete.join().expect("a cluster that fails does not panic")
        })?;
    }
    // Helm does not wait for agents of nodes that joined after it looked.
    let daemonset = ["rollout", "status", "daemonset/tracelake-node-agent", "--timeout", TIMEOUT];
    exec::quiet(cluster.kubectl().args(daemonset).args(["--namespace", NAMESPACE]))?;
    Ok(access)
}
