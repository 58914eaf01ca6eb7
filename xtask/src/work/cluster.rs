// SPDX-License-Identifier: Apache-2.0

//! The same runs as pods of a cluster: `docs/work/cluster.md`.
//!
//! Each run is a pod of the image that tests use, which waits for a file; a TraceSession of all collectors records it, and is
//! stopped when the pod has ended. What it left is fetched from the cluster's store by a forwarded port and asked the same
//! questions as a recording. kubectl and `tracelake` do all of it, as a user would.

use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Recorded, Work, agree, apart, page, runs};
use crate::bench::COLLECTORS;
use crate::install::{self, Access};
use crate::{cluster, exec, image};

const NAMESPACE: &str = "work";
/// Emulated CPUs take some twenty times as long as real ones.
const PATIENCE: &str = "20m";

pub(super) fn main(works: &[&Work], tracelake: &Path, page: Option<&Path>) -> Result<()> {
    image::prepare(None)?;
    let images = image::build_all()?;
    install::in_ours(
        &cluster::Options::default(),
        &images,
        install::keeps(),
        |_| Ok(()),
        |access| all(access, works, tracelake, page),
    )
}

fn all(access: &Access, works: &[&Work], tracelake: &Path, page: Option<&Path>) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    apply(access, &namespace)?;
    let store = Forwarded::start(access)?;
    let mut text = String::from(
        "# The same programs as pods of a cluster\n\nWritten by `cargo xtask work --cluster`: each is the script of its own page in one pod, \
         recorded by a TraceSession of all collectors; the tables are those of the cluster's store, asked as they are there.\n",
    );
    let mut wrong = Vec::new();
    for work in works {
        println!("== {}, as a pod", work.name);
        let recorded = run(access, work, tracelake, &store)?;
        let checks = (work.checks)(&recorded)?;
        let node = jsonpath(access, "pod", work.name, "{.spec.nodeName}")?;
        let kernel = exec::output(access.kubectl().args([
            "get",
            "node",
            &node,
            "-o",
            "jsonpath={.status.nodeInfo.kernelVersion}",
        ]))?;
        let checked = page::checks(&checks);
        println!("{checked}");
        _ = write!(
            text,
            "\n## {}\n\n[{}.md]({}.md), on a node with kernel {}; the session ended {}.\n\n{checked}",
            work.title,
            work.name,
            work.name,
            kernel.trim(),
            jsonpath(access, "tracesession", work.name, "{.status.phase}")?,
        );
        wrong.extend(apart(work, &checks));
    }
    match page {
        Some(page) => fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))?,
        None => println!("the page of the cluster is of all runs together, and stays as it is"),
    }
    agree(&wrong)
}

/// From the pod to the folder with its session's data.
fn run(access: &Access, work: &Work, tracelake: &Path, store: &Forwarded) -> Result<Recorded> {
    let (name, pod) = (work.name, format!("pod/{}", work.name));
    for kind in ["tracesession", "pod"] {
        exec::quiet(kubectl(access).args([
            "delete",
            "--ignore-not-found",
            "--timeout",
            PATIENCE,
            kind,
            name,
        ]))?;
    }
    let begin = "until [ -e /tmp/begin ]; do sleep 0.2; done";
    let script = format!("{begin}\n{}\n{}", runs::BEGIN, work.script);
    apply(
        access,
        &json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"work": name}},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "work",
                    "image": access.shop_image(),
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-ec", script],
                    "env": [{"name": "LC_ALL", "value": "C"}],
                }],
            },
        }),
    )?;
    wait(access, &pod, "condition=Ready")?;
    apply(
        access,
        &json!({
            "apiVersion": "tracelake.dev/v1alpha1",
            "kind": "TraceSession",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "target": {"podSelector": {"matchLabels": {"work": name}}},
                "collectors": collectors(),
                "duration": "1h",
            },
        }),
    )?;
    let session = format!("tracesession/{name}");
    wait(access, &session, "jsonpath={.status.nodes.running}=1")?;
    exec::quiet(kubectl(access).args(["exec", name, "--", "touch", "/tmp/begin"]))?;
    wait(access, &pod, "jsonpath={.status.phase}=Succeeded")?;
    let printed = exec::output(kubectl(access).args(["logs", name]))?;
    let stop = ["patch", &session, "--type", "merge", "--patch", r#"{"spec": {"stop": true}}"#];
    exec::quiet(kubectl(access).args(stop))?;
    wait(access, &session, "jsonpath={.status.completionTime}")?;
    let uri = jsonpath(access, "tracesession", name, "{.status.dataset.uri}")?;
    let data = std::env::temp_dir().join(format!("tracelake-work-{}-{name}", std::process::id()));
    let recorded = Recorded { tracelake: tracelake.to_owned(), data: data.clone(), printed };
    let mut pull = exec::command(tracelake, ["pull", uri.trim()]);
    exec::quiet(store.apply_to(pull.arg(&data)))?;
    Ok(recorded)
}

/// All of them; those that add up by window do so by the second, as the recording of the pages does.
fn collectors() -> Vec<Value> {
    let one = |name| match name {
        "processes" | "tcpConnections" => json!({"name": name}),
        _ => json!({"name": name, "interval": "1s"}),
    };
    COLLECTORS.split(',').map(one).collect()
}

fn kubectl(access: &Access) -> Command {
    let mut kubectl = access.kubectl();
    kubectl.args(["--namespace", NAMESPACE]);
    kubectl
}

fn apply(access: &Access, object: &Value) -> Result<()> {
    let mut kubectl = access.kubectl();
    let mut child = kubectl.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    child.stdin.take().context("is piped")?.write_all(object.to_string().as_bytes())?;
    let done = child.wait()?;
    ensure!(done.success(), "kubectl apply ended with {done}");
    Ok(())
}

fn wait(access: &Access, object: &str, what: &str) -> Result<()> {
    exec::quiet(kubectl(access).args(["wait", object, "--timeout", PATIENCE, "--for", what]))
        .with_context(|| format!("{object} in namespace {NAMESPACE}"))
}

fn jsonpath(access: &Access, kind: &str, name: &str, path: &str) -> Result<String> {
    exec::output(kubectl(access).args(["get", kind, name, "-o", &format!("jsonpath={path}")]))
}

/// The dev store on a port of this machine, as long as this lives, and its keys.
struct Forwarded {
    child: Child,
    environment: Vec<(&'static str, String)>,
}

impl Forwarded {
    fn start(access: &Access) -> Result<Self> {
        let key = |field: &str| -> Result<String> {
            let path = format!("go-template={{{{index .data \"{field}\" | base64decode}}}}");
            let mut get = access.kubectl();
            get.args([
                "--namespace",
                install::NAMESPACE,
                "get",
                "secret",
                "tracelake-dev-store",
                "-o",
                &path,
            ]);
            exec::output(&mut get)
        };
        let mut forward = exec::bound(&access.kubectl());
        forward.args([
            "--namespace",
            install::NAMESPACE,
            "port-forward",
            "service/tracelake-dev-store",
            ":8333",
        ]);
        let mut child =
            forward.stdout(Stdio::piped()).spawn().context("cannot start kubectl port-forward")?;
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().context("is piped")?);
        output.read_line(&mut line)?;
        // It says each connection, and ends where nobody listens.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        let port = line.split(" -> ").next().and_then(|address| address.rsplit(':').next());
        let port = port.filter(|port| port.parse::<u16>().is_ok());
        let endpoint = format!("http://127.0.0.1:{}", port.with_context(|| format!("it said {line:?}"))?);
        let environment = vec![
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", key("accessKeyId")?),
            ("AWS_SECRET_ACCESS_KEY", key("secretAccessKey")?),
        ];
        Ok(Self { child, environment })
    }

    fn apply_to<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.envs(self.environment.iter().map(|(name, value)| (name, value)))
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
