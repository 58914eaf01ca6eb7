// SPDX-License-Identifier: Apache-2.0

//! Puts the product into a cluster as a user does: images, then the chart with Helm.
//!
//! The dev store is on, so that whatever runs next has a real S3 server inside the cluster.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{self, Cluster};
use crate::image::{Image, TAG};
use crate::{cache, exec, tools};

/// What our own images are called.
const REPOSITORY: &str = "tracelake";
/// Where the chart goes.
pub(crate) const NAMESPACE: &str = "tracelake-system";
/// Helm waits this long for Deployments and DaemonSets, on emulated nodes that are there.
const TIMEOUT: Duration = Duration::from_secs(8 * 60);

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
            kubectl: None,
            repository: self.image_repository.clone(),
            tag: self.image_tag.clone(),
            ours: false,
            side_by_side: true,
        }))
    }
}

/// What is needed to use a cluster, whoever started it.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// For an administrator.
    kubeconfig: PathBuf,
    helm: PathBuf,
    /// None: whichever there is.
    kubectl: Option<PathBuf>,
    repository: String,
    tag: String,
    /// Its nodes can be stopped and started.
    ours: bool,
    /// Several tests at once are no more than its CPUs can do.
    pub(crate) side_by_side: bool,
}

impl Access {
    /// A cluster of ours.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self {
            kubeconfig: cluster.kubeconfig.clone(),
            helm: cluster.helm.clone(),
            kubectl: Some(cluster.kubectl.clone()),
            repository: REPOSITORY.to_owned(),
            tag: TAG.to_owned(),
            ours: true,
            side_by_side: !cluster.is_emulated_whole(),
        }
    }

    /// Sets what the cluster tests and the demo read from their environment.
    pub(crate) fn apply_to(&self, command: &mut Command) -> Result<()> {
        let xtask = std::env::current_exe().context("finding this program")?;
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("TRACELAKE_NAMESPACE", NAMESPACE)
            .env("TRACELAKE_HELM", &self.helm)
            .env("TRACELAKE_SHOP_IMAGE", self.shop_image());
        if let Some(kubectl) = &self.kubectl {
            command.env("TRACELAKE_KUBECTL", kubectl);
        }
        if self.ours {
            command.env("TRACELAKE_NODE_COMMAND", format!("{} cluster node", xtask.display()));
        }
        Ok(())
    }

    /// kubectl for this cluster.
    pub(crate) fn kubectl(&self) -> Command {
        let mut kubectl =
            exec::command(self.kubectl.clone().unwrap_or_else(|| "kubectl".into()), [] as [&str; 0]);
        kubectl.env("KUBECONFIG", &self.kubeconfig);
        kubectl
    }

    /// The image with the programs that tests and demos run.
    pub(crate) fn shop_image(&self) -> String {
        format!("{}/shop:{}", self.repository, self.tag)
    }

    /// Installs or upgrades the chart and waits until everything is available.
    pub(crate) fn install(&self) -> Result<()> {
        self.upgrade(&[], TIMEOUT, || true)
    }

    /// The same for images of ours, for as long as somebody needs it.
    fn upgrade(&self, images: &[Image], timeout: Duration, needed: impl Fn() -> bool) -> Result<()> {
        let mut helm = self.helm(&["upgrade", "--install", "tracelake"]);
        helm.arg(cache::repository().join("charts/tracelake"))
            .args(["--create-namespace", "--wait", "--timeout", &seconds(timeout)])
            .args(["--set", "devStore.enabled=true"])
            .args(["--set", &format!("image.repository={}", self.repository)])
            .args(["--set", &format!("image.tag={}", self.tag)])
            // Long enough for a kubelet to refresh a mounted ConfigMap, short enough for a test that waits for it.
            .args(["--set", "operator.caPropagationSeconds=100"]);
        // Their tag stays the same: what names their content makes an upgrade start the pods of new ones again.
        for (image, values) in [("operator", "operator"), ("node-agent", "agent")] {
            let built = images.iter().find(|built| built.name == format!("{REPOSITORY}/{image}:{TAG}"));
            if let Some(content) = built.and_then(|built| built.archive.file_name()) {
                helm.args(["--set", &format!("{values}.podAnnotations.image={}", content.display())]);
            }
        }
        cache::step("chart: installed", || exec::quiet_while(&mut helm, needed))
    }

    /// Removes a release whose installation or upgrade was killed: Helm takes it for one that somebody is still at.
    fn forget_pending(&self) -> Result<()> {
        // An error means that there is no release.
        let status = exec::output(&mut self.helm(&["status", "tracelake", "--output", "json"]));
        let release: serde_json::Value =
            status.map_or(Ok(serde_json::Value::Null), |s| serde_json::from_str(&s))?;
        if release["info"]["status"].as_str().is_some_and(|status| status.starts_with("pending-")) {
            println!("chart: removing a release that was left half installed");
            exec::quiet(&mut self.helm(&["uninstall", "tracelake", "--no-hooks"]))?;
        }
        Ok(())
    }

    /// Helm, for the chart's namespace; it ends with this program, so that it can say how far it came.
    fn helm(&self, arguments: &[&str]) -> Command {
        let mut helm = exec::bound(&exec::command(&self.helm, arguments));
        helm.args(["--namespace", NAMESPACE]);
        helm.env("KUBECONFIG", &self.kubeconfig);
        helm
    }
}

/// Whether whoever started this wants clusters and what failed in them kept.
pub(crate) fn keeps() -> bool {
    std::env::var_os("TRACELAKE_KEEP").is_some()
}

/// Puts the product into the cluster of ours that runs, or into one that it starts, and does `then` with it; `meanwhile` is
/// what only needs the cluster's nodes and is done as soon as they are there. At last, whatever failed, the cluster is taken
/// down, unless a user asked for it: by `keep`, or by `cluster up`.
pub(crate) fn in_ours(
    options: &cluster::Options,
    images: &[Image],
    keep: bool,
    meanwhile: impl FnOnce(&Access) -> Result<()> + Send,
    then: impl FnOnce(&Access) -> Result<()>,
) -> Result<()> {
    // One at a time: another one would restart the agents that are tested here, or take the cluster away.
    let _lock = cache::lock("cluster-in-use")?;
    let running = cluster::start(options, images)?;
    let access = Access::of(&running.cluster);
    let done =
        put(&running.cluster, running.has_images, &access, images, meanwhile).and_then(|()| then(&access));
    done.and(running.end(keep))
}

fn put(
    cluster: &Cluster,
    has_images: bool,
    access: &Access,
    images: &[Image],
    meanwhile: impl FnOnce(&Access) -> Result<()> + Send,
) -> Result<()> {
    // The cluster is gone when the error is read.
    let events = || {
        let get = ["get", "events", "--sort-by", ".lastTimestamp", "--request-timeout=10s"];
        let events =
            exec::output(access.kubectl().args(get).args(["--namespace", NAMESPACE])).unwrap_or_default();
        format!("the chart was not installed; its last events:\n{}\n", exec::tail(&events, 20))
    };
    if !has_images {
        cluster.complete()?;
        cache::step("images: loaded into the nodes", || cluster.load_images(images))?;
        meanwhile(access)?;
        access.forget_pending()?;
        access.upgrade(images, TIMEOUT, || true).with_context(events)?;
    } else {
        // New nodes have the images on their disk, and what the chart makes waits at the API server for them.
        let failed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let complete = scope.spawn(|| {
                let completed = cluster.complete().and_then(|()| meanwhile(access));
                failed.store(completed.is_err(), Ordering::Relaxed);
                completed
            });
            let needed = || !failed.load(Ordering::Relaxed);
            let installed = access.upgrade(images, cluster::DEADLINE + TIMEOUT, needed).with_context(events);
            // Without nodes there is no chart: what keeps them away says more.
            complete.join().expect("a cluster that fails does not panic").and(installed)
        })?;
    }
    // Helm does not wait for agents of nodes that joined after it looked.
    let daemonset = ["rollout", "status", "daemonset/tracelake-node-agent", "--timeout", &seconds(TIMEOUT)];
    exec::quiet(access.kubectl().args(daemonset).args(["--namespace", NAMESPACE]))
}

/// As Helm and kubectl read it.
fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}
