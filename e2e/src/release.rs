// SPDX-License-Identifier: Apache-2.0

//! The chart's release, upgraded to other values or another chart and back, and waiting until all of it is ready.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::Api;
use kube::runtime::wait::await_condition;
use serde_json::Value;

use crate::{Env, PATIENCE};

/// For Helm to see everything ready, on nodes that may be emulated.
const UPGRADE: &str = "8m";

/// The release under test, and the values that it goes back to.
pub struct Release {
    helm: String,
    namespace: String,
    /// This checkout's chart.
    pub chart: PathBuf,
    /// Values that were set when the test began.
    pub former: Value,
}

impl Release {
    /// The release in the chart's namespace.
    pub fn find(env: &Env) -> Result<Self> {
        let helm =
            std::env::var("TRACELAKE_HELM").context("TRACELAKE_HELM is not set: it names Helm's binary")?;
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/tracelake");
        let mut release = Self { helm, namespace: env.system.clone(), chart, former: Value::Null };
        let values = run(&mut release.helm(&["get", "values", "tracelake", "--output", "json"]), "")?;
        release.former = serde_json::from_str(&values).context("values of the release")?;
        Ok(release)
    }

    /// Helm, for the release's namespace.
    pub fn helm(&self, arguments: &[&str]) -> Command {
        let mut helm = Command::new(&self.helm);
        helm.args(arguments).args(["--namespace", &self.namespace]);
        helm
    }

    /// The chart's `ci` values. Those that leave the kinds alone first: the definitions have to be there, and kept.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.chart.join("ci"))? {
            let path = entry?.path();
            let values: Value = serde_yaml::from_str(&fs::read_to_string(&path)?)?;
            files.push((values["crds"]["enabled"] != false, path));
        }
        files.sort();
        ensure!(!files.is_empty(), "charts/tracelake/ci is empty");
        Ok(files.into_iter().map(|(_, path)| path).collect())
    }

    /// To the values of a file, with the images of this cluster.
    pub fn upgrade(&self, file: &Path) -> Result<()> {
        let mut helm = self.upgrade_to(&self.chart);
        helm.arg(file);
        for key in ["repository", "tag", "pullPolicy"] {
            if let Some(value) = self.former["image"][key].as_str() {
                helm.args(["--set-string", &format!("image.{key}={value}")]);
            }
        }
        run(&mut helm, "").map(drop)
    }

    /// To the former values, as a user does it.
    pub fn plainly_back(&self) -> Result<()> {
        run(self.upgrade_to(&self.chart).arg("-"), &self.former.to_string()).map(drop)
    }

    /// To the former values, also where a test has set something by kubectl, which is the chart's again then.
    pub fn back(&self) -> Result<()> {
        let mut helm = self.upgrade_to(&self.chart);
        run(helm.args(["-", "--force-conflicts"]), &self.former.to_string()).map(drop)
    }

    /// To the former values and these, each as KEY=VALUE.
    pub fn with(&self, values: &[&str]) -> Result<()> {
        let mut helm = self.upgrade_to(&self.chart);
        helm.arg("-");
        values.iter().for_each(|value| {
            helm.args(["--set", value]);
        });
        run(&mut helm, &self.former.to_string()).map(drop)
    }

    /// To the former values by another version of chart and images.
    pub fn other(&self, chart: &Path, tag: &str) -> Result<()> {
        let mut helm = self.upgrade_to(chart);
        helm.args(["-", "--set-string", &format!("image.tag={tag}")]);
        run(&mut helm, &self.former.to_string()).map(drop)
    }

    fn upgrade_to(&self, chart: &Path) -> Command {
        let mut helm = self.helm(&["upgrade", "tracelake"]);
        helm.arg(chart).args(["--reset-values", "--wait", "--timeout", UPGRADE, "--values"]);
        helm
    }
}

fn run(command: &mut Command, input: &str) -> Result<String> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("{command:?}"))?;
    // Dropped at once, which is the end of the input; values are shorter than a pipe is.
    std::io::Write::write_all(&mut child.stdin.take().context("a pipe")?, input.as_bytes())?;
    let done = child.wait_with_output()?;
    let (said, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "{command:?} ended with {}: {said}{errors}", done.status);
    Ok(said.into_owned())
}

/// The operator's replicas and the agent of every node are of the newest template and ready.
pub async fn ready(env: &Env, replicas: i64) -> Result<String> {
    let operator: Api<Deployment> = Api::namespaced(env.client.clone(), &env.system);
    let agents: Api<DaemonSet> = Api::namespaced(env.client.clone(), &env.system);
    let nodes = i64::try_from(env.nodes().await?.len())?;
    let operators = await_condition(operator, "tracelake-operator", |deployment: Option<&Deployment>| {
        let generation = deployment.and_then(|deployment| deployment.metadata.generation);
        deployment.and_then(|deployment| deployment.status.as_ref()).is_some_and(|status| {
            let counts = [status.replicas, status.updated_replicas, status.ready_replicas];
            status.observed_generation == generation
                && counts.iter().all(|count| count.map(i64::from) == Some(replicas))
        })
    });
    tokio::time::timeout(PATIENCE, operators).await.context("not every operator is ready")??;
    // At least, since a cluster may have nodes that take no pods but this one's.
    let every = await_condition(agents, "tracelake-node-agent", |set: Option<&DaemonSet>| {
        let generation = set.and_then(|set| set.metadata.generation);
        set.and_then(|set| set.status.as_ref()).is_some_and(|status| {
            status.observed_generation == generation
                && i64::from(status.number_ready) >= nodes
                && status.updated_number_scheduled == Some(status.desired_number_scheduled)
                && status.number_ready == status.desired_number_scheduled
        })
    });
    tokio::time::timeout(PATIENCE, every).await.context("not every agent is ready")??;
    Ok(format!("{replicas} operators and {nodes} agents or more are ready"))
}
