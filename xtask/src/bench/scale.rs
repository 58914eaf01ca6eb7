// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask bench --scale`: the operator at the size of a large cluster. What is measured is in `e2e/scale`; here it gets an
//! API server, an S3 server and a page.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::report::{self, Goal, percentile, short};
use super::{machine, mib};
use crate::cluster::ApiServer;
use crate::{cache, exec, image, tools};

const S3_PORT: u16 = 8333;
const KEYS: &str = "scale:scale-secret";

/// What `scale` prints; see its own documentation.
#[derive(Deserialize)]
struct Outcome {
    nodes: usize,
    pods: usize,
    sessions: usize,
    wide_sessions: usize,
    connected: f64,
    narrow: Vec<f64>,
    wide: Vec<f64>,
    applying: Cost,
    idle: Cost,
    busy: Cost,
    status_writes_per_session_minute: f64,
    killed: Takeover,
    stopped: Takeover,
}

#[derive(Deserialize)]
struct Cost {
    seconds: f64,
    operator_cpu: f64,
    operator_rss_bytes: u64,
    requests: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Takeover {
    leads: f64,
    streams: f64,
    plans: f64,
    disturbed: usize,
}

/// A tenth of the large cluster.
const QUICK: [&str; 5] = ["--nodes=500", "--pods=2000", "--sessions=20", "--idle=20", "--busy=20"];
/// The cluster of G15: each of 200 sessions has pods on most of 100 nodes.
const SMALL: [&str; 5] = ["--nodes=100", "--pods=20000", "--sessions=200", "--idle=300", "--busy=5"];

pub(super) fn main(quick: bool) -> Result<()> {
    let (operator, scale) = (image::release("tracelake-operator")?, image::release("scale")?);
    let measure = |size: &[&str], file: &str| measure(&operator, &scale, size, file);
    let machine = machine()?;
    let large = measure(if quick { &QUICK } else { &[] }, "scale.json")?;
    let small = if quick { None } else { Some(measure(&SMALL, "scale-small.json")?) };
    let page = page(&large, small.as_ref(), &machine);
    println!("{page}");
    if !quick {
        let path = cache::repository().join("docs/scale.md");
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Makes a cluster of this size, measures it, and leaves the numbers in a file of this name.
fn measure(operator: &Path, scale: &Path, size: &[&str], file: &str) -> Result<Outcome> {
    let weed = tools::weed()?;
    let folder = std::env::temp_dir().join("tracelake-scale");
    cache::remove(&folder)?;
    fs::create_dir_all(&folder)?;
    let server = ApiServer::start()?;
    let _s3 = S3::start(&server, &weed, &folder)?;
    let mut command = server.within(scale);
    command.arg("--operator").arg(operator).args(["--store-keys", KEYS]);
    command.args(["--store", &format!("http://127.0.0.1:{S3_PORT}")]);
    let text = exec::output(command.args(size).stderr(Stdio::inherit()))?;
    let results = cache::repository().join("target/bench");
    fs::create_dir_all(&results)?;
    fs::write(results.join(file), &text)?;
    cache::remove(&folder)?;
    serde_json::from_str(&text).with_context(|| format!("scale printed {text:?}"))
}

/// SeaweedFS, until dropped.
struct S3(Child);

impl S3 {
    fn start(server: &ApiServer, weed: &Path, folder: &Path) -> Result<Self> {
        let (id, key) = KEYS.split_once(':').context("keys")?;
        let config = folder.join("s3.json");
        let identity = serde_json::json!({ "name": id, "actions": ["Admin"], "credentials": [{ "accessKey": id, "secretKey": key }] });
        fs::write(&config, serde_json::json!({ "identities": [identity] }).to_string())?;
        let log = fs::File::create(folder.join("weed.log"))?;
        let mut command = server.within(weed);
        command.args([
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3",
            "-s3.iam=false",
            "-volume.max=20",
        ]);
        command.args([
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.volumeSizeLimitMB=64",
            "-master.telemetry=false",
        ]);
        command.arg(format!("-s3.port={S3_PORT}")).arg(format!("-s3.config={}", config.display()));
        command.arg(format!("-dir={}", folder.display()));
        for socket in ["s3", "filer"] {
            command.arg(format!(
                "-{socket}.localSocket={}",
                folder.join(socket).with_extension("sock").display()
            ));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting weed")?;
        Ok(Self(child))
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Requests that change something.
fn writes(cost: &Cost) -> impl Iterator<Item = (&String, &u64)> {
    let writing = |what: &str| {
        ["POST ", "PUT ", "PATCH ", "APPLY ", "DELETE "].iter().any(|verb| what.starts_with(verb))
    };
    cost.requests.iter().filter(move |(what, _)| writing(what) && !what.ends_with(" tokenreviews"))
}

/// Those but the Lease's, while nothing is new.
fn idle_writes(outcome: &Outcome) -> f64 {
    let others = writes(&outcome.idle).filter(|(what, _)| !what.ends_with(" leases"));
    others.map(|(_, count)| count).sum::<u64>() as f64
}

fn page(outcome: &Outcome, small: Option<&Outcome>, machine: &BTreeMap<&'static str, String>) -> String {
    let mut text = String::from("# The operator at scale\n\nWritten by `cargo xtask bench --scale`.\n\n");
    text += &report::machine(machine);
    let all: Vec<f64> = outcome.narrow.iter().chain(&outcome.wide).copied().collect();
    let goal = |name, what, unit, target, floor, measured| Goal {
        name,
        what,
        unit,
        target,
        floor,
        measured,
        less: true,
    };
    let mut goals = vec![
        goal("apply", "from apply to the plan on the last node, p99", "s", 2.0, 2.0, percentile(&all, 0.99)),
        goal(
            "G14",
            "writes of a session's status in a minute, mean",
            "",
            12.0,
            30.0,
            outcome.status_writes_per_session_minute,
        ),
        goal("idle", "writes with nothing new, but the Lease", "", 0.0, 10.0, idle_writes(outcome)),
        goal("takeover", "after a clean stop", "s", 5.0, 5.0, outcome.stopped.leads),
        goal("takeover", "after kill -9", "s", 15.0, 15.0, outcome.killed.leads),
    ];
    if let Some(small) = small {
        let rss_mib = mib(small.idle.operator_rss_bytes);
        goals.extend([
            goal("G15", "idle with 100 nodes: writes, but the Lease", "", 0.0, 10.0, idle_writes(small)),
            goal("G15", "idle with 100 nodes: CPU, of one", "%", 1.0, 1.0, small.idle.operator_cpu),
            goal("G15", "idle with 100 nodes: memory", "MiB", 128.0, 128.0, rss_mib),
        ]);
    }
    _ = writeln!(
        text,
        "\nA real API server with etcd, two processes of the operator, and {} agents: the agent's own client with its TLS, tokens and pauses, in one process, \
         carrying plans out at once and recording nothing.\n{} pods; {} sessions, of which {} are of every node and each other of {} pods. All of it shares this machine's CPUs. \
         etcd does not wait for its disk.\n",
        short(outcome.nodes as f64),
        short(outcome.pods as f64),
        outcome.sessions,
        outcome.wide_sessions,
        outcome.pods / outcome.sessions.max(1),
    );
    if let Some(small) = small {
        _ = writeln!(
            text,
            "Then the same with {} nodes, {} pods and {} sessions (G15), of which the idle time alone is looked at: {} s.\n",
            short(small.nodes as f64),
            short(small.pods as f64),
            small.sessions,
            short(small.idle.seconds),
        );
    }
    text += &report::goals(&goals);
    text += "\n## From apply to the plan on the last node\n\n";
    let row = |name: &str, values: &[f64]| {
        let cells = [percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)].map(short);
        [name.to_owned(), values.len().to_string()].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let rows = [row("of some nodes", &outcome.narrow), row("of every node", &outcome.wide)];
    text += &report::table(&["sessions", "count", "p50 s", "p99 s", "most s"], &rows);
    text += "\n## What it costs\n\n";
    let rows = [("applying", &outcome.applying), ("idle", &outcome.idle), ("busy", &outcome.busy)].map(
        |(name, cost)| {
            let number = |count: f64| short(count);
            vec![
                name.to_owned(),
                number(cost.seconds),
                number(cost.operator_cpu),
                number(mib(cost.operator_rss_bytes)),
                number(writes(cost).map(|(_, count)| count).sum::<u64>() as f64),
            ]
        },
    );
    text +=
        &report::table(&["time", "seconds", "operator's CPU, % of one", "its memory, MiB", "writes"], &rows);
    text += "\nBusy: every agent reports every 2 seconds that each of its sessions has recorded more.\n\n## Requests to the API server a second\n\n";
    let mut kinds: Vec<&String> = [&outcome.applying, &outcome.idle, &outcome.busy]
        .iter()
        .flat_map(|cost| cost.requests.keys())
        .collect();
    kinds.sort();
    kinds.dedup();
    let rows: Vec<Vec<String>> = kinds
        .into_iter()
        .map(|what| {
            let rate = |cost: &Cost| {
                cost.requests
                    .get(what)
                    .map_or_else(|| "-".to_owned(), |count| short(*count as f64 / cost.seconds))
            };
            vec![what.clone(), rate(&outcome.applying), rate(&outcome.idle), rate(&outcome.busy)]
        })
        .collect();
    text += &report::table(&["", "applying", "idle", "busy"], &rows);
    text += "\n`POST tracesessions` is the bench's own; so is `LIST tracesessions` between the times. An API server asks itself for configmaps, endpoints and \
             endpointslices, and renews a Lease of its own each 10 seconds.\n\n## Another replica leads\n\n";
    let rows = [("kill -9", &outcome.killed), ("asked to stop", &outcome.stopped)].map(|(name, takeover)| {
        let times = [takeover.leads, takeover.streams, takeover.plans].map(short);
        [name.to_owned()].into_iter().chain(times).chain([takeover.disturbed.to_string()]).collect::<Vec<_>>()
    });
    text += &report::table(
        &["", "it leads, s", "every stream is up, s", "every agent has its plan, s", "sessions disturbed"],
        &rows,
    );
    _ = writeln!(
        text,
        "\nAt the start every stream was up {} s after the first agent began to connect. No Service is between: the next leader takes the \
         port of the one before, so what a cluster's network needs to tell agents of it is not in these times (some 3 s on the emulated nodes of `e2e/tests/replicas.rs`).",
        short(outcome.connected)
    );
    text
}
