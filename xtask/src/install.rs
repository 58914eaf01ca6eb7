// SPDX-License-Identifier: Apache-2.0

//! Puts the product into a cluster as a user does: images, then the chart with Helm.
//!
//! The dev store is on, so that whatever runs next has a real S3 server inside the cluster.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::image::Image;
use crate::{cache, exec, tools};

/// Where the chart goes.
const NAMESPACE: &str = "tracelake-system";
/// Helm waits this long for Deployments and DaemonSets, on emulated nodes.
const TIMEOUT: &str = "6m";

/// What is needed to use a cluster, whoever started it.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// For an administrator.
    pub(crate) kubeconfig: PathBuf,
    helm: PathBuf,
}

impl Access {
    /// A cluster of ours.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self { kubeconfig: cluster.kubeconfig.clone(), helm: cluster.helm.clone() }
    }

    /// A cluster of the user's. Its nodes must be able to get the images: we cannot load them there.
    pub(crate) fn existing(kubeconfig: &Path) -> Result<Self> {
        ensure!(kubeconfig.exists(), "there is no {}", kubeconfig.display());
        Ok(Self { kubeconfig: kubeconfig.to_owned(), helm: tools::helm()? })
    }

    /// Sets what the cluster tests and the demo read from their environment.
    pub(crate) fn apply_to(&self, command: &mut Command) -> Result<()> {
        let xtask = std::env::current_exe().context("finding this program")?;
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("TRACELAKE_NAMESPACE", NAMESPACE)
            .env("TRACELAKE_HELM", &self.helm)
            .env("TRACELAKE_NODE_COMMAND", format!("{} cluster node", xtask.display()));
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
                    .args(["--set", "devStore.enabled=true", "--set", "image.tag=dev"])
                    // Long enough for a kubelet to refresh a mounted ConfigMap, short enough for a test that waits for it.
                    .args(["--set", "operator.caPropagationSeconds=100"])
                    .env("KUBECONFIG", &self.kubeconfig),
            )
        })
    }
}

/// Loads what the cluster's nodes lack of the images and installs the chart.
pub(crate) fn install(cluster: &Cluster, images: &[Image]) -> Result<Access> {
    cache::step("images: loaded into the nodes", || cluster.load_images(images))?;
    let access = Access::of(cluster);
    access.install()?;
    Ok(access)
}
