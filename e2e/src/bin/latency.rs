// SPDX-License-Identifier: Apache-2.0

//! How soon sessions record and how soon everything is in the store, on the cluster that `KUBECONFIG` names.
//!
//! In: how many sessions, one after the other, each of a pod on each of two nodes that runs a program every few hundredths of
//! a second. Out: one line of JSON, [`Outcome`]. Times of rows are the nodes' own; by how much their clocks differ from this
//! machine's is measured before each session, by the quickest of several questions, and taken off.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::AttachParams;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::rows::{Dataset, number, text};
use tracelake_e2e::session::Session;
use tracelake_e2e::{Env, in_namespace};

const LABEL: &str = "latency";
/// Between two programs there is this, and what starting one takes.
const TICK: &str = "0.02";
/// How long each session records.
const RECORD: Duration = Duration::from_secs(2);
/// Questions to a node's clock, of which the quickest counts.
const QUESTIONS: usize = 8;

/// What was measured. Times are in seconds.
#[derive(Default, Serialize)]
struct Outcome {
    /// From before the request that makes a session to the first program that is recorded, on each node.
    first_row: Vec<f64>,
    /// From the same moment until the status says that every node records.
    collecting: Vec<f64>,
    /// From before the request that stops a session until the status says that everything is acknowledged.
    uploaded: Vec<f64>,
    /// By how much a node's clock may have been taken wrongly.
    clock_error: Vec<f64>,
    /// Between two programs of one pod, in all rows.
    between_rows: Vec<f64>,
}

fn main() -> Result<()> {
    let sessions: usize = std::env::args().nth(1).context("usage: latency SESSIONS")?.parse()?;
    in_namespace("latency", |env, ns| async move {
        let outcome = measure(&env, &ns, sessions).await?;
        println!("{}", serde_json::to_string(&outcome)?);
        Ok(())
    })
}

async fn measure(env: &Env, ns: &str, sessions: usize) -> Result<Outcome> {
    let (a, b) = env.two_nodes().await?;
    let api = pods::api(&env.client, ns);
    for node in [&a, &b] {
        let mut pod = PodSpec::workload(node, LABEL, &[]).on(node).to_pod()?;
        let container = &mut pod.spec.as_mut().context("a pod has a spec")?.containers[0];
        let ticks = format!("while :; do /usr/bin/sleep {TICK}; done");
        container.command = Some(["/bin/sh", "-c", &ticks].map(str::to_owned).to_vec());
        api.create(&Default::default(), &pod).await?;
        pods::running(&api, node).await?;
    }
    let mut outcome = Outcome::default();
    for number in 0..sessions {
        one(env, ns, &api, [&a, &b], number, &mut outcome)
            .await
            .with_context(|| format!("session {number}"))?;
        eprintln!("{}/{sessions}", number + 1);
    }
    Ok(outcome)
}

async fn one(
    env: &Env,
    ns: &str,
    api: &Api<Pod>,
    nodes: [&String; 2],
    index: usize,
    outcome: &mut Outcome,
) -> Result<()> {
    let mut ahead = Vec::new();
    for node in nodes {
        let (offset, error) = clock(api, node).await?;
        ahead.push(offset);
        outcome.clock_error.push(error);
    }
    let mut spec = Session::spec_of(LABEL, "10m", &["processes"]);
    spec["drainTimeout"] = "2m".into();
    let (begun, at) = (Instant::now(), now()?);
    let session = Session::create(&env.client, ns, &format!("latency-{index}"), spec).await?;
    session.recording().await?;
    outcome.collecting.push(begun.elapsed().as_secs_f64());
    tokio::time::sleep(RECORD).await;
    let stopped = Instant::now();
    session.stop().await?;
    let ended = session.phase("Completed").await?;
    outcome.uploaded.push(stopped.elapsed().as_secs_f64());

    let dataset = Dataset::open(&env.store, &ended).await?;
    let rows = dataset.table("processes").await?;
    for (node, ahead) in nodes.iter().zip(ahead) {
        let starts = rows.iter().filter(|row| text(row, "node") == *node && text(row, "kind") == "exec");
        let mut times: Vec<f64> = starts.map(|row| number(row, "time_utc") as f64 / 1e6).collect();
        times.sort_by(f64::total_cmp);
        let first = times.first().with_context(|| format!("nothing was recorded on {node}"))?;
        outcome.first_row.push(first - ahead - at);
        outcome.between_rows.extend(times.windows(2).map(|pair| pair[1] - pair[0]));
    }
    let error = outcome.clock_error.iter().copied().fold(0.0, f64::max);
    let early = outcome.first_row.iter().find(|time| **time < -error);
    ensure!(early.is_none(), "an event from {early:?} s after its session was asked for");
    session.delete().await
}

/// By how many seconds a node's clock is ahead of this machine's, and how wrong that may be.
async fn clock(api: &Api<Pod>, pod: &str) -> Result<(f64, f64)> {
    let command = ["/bin/bash", "-c", "while read -r _; do echo $EPOCHREALTIME; done"];
    let params = AttachParams::default().stdin(true).stderr(false);
    let mut shell = api.exec(pod, command, &params).await?;
    let mut questions = shell.stdin().context("exec has an input")?;
    let mut answers = BufReader::new(shell.stdout().context("exec has an output")?).lines();
    let mut best = (0.0, f64::INFINITY);
    for _ in 0..QUESTIONS {
        let before = now()?;
        questions.write_all(b"\n").await?;
        let said: f64 = answers.next_line().await?.context("the shell has ended")?.trim().parse()?;
        let error = (now()? - before) / 2.0;
        if error < best.1 {
            best = (said - (before + error), error);
        }
    }
    drop(questions);
    shell.abort();
    Ok(best)
}

fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}
