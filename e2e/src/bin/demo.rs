// SPDX-License-Identifier: Apache-2.0

//! The demo, on the cluster that `KUBECONFIG` names and that has the chart: a shop, one session, its tables.
//!
//! Ends with a table of what the client says it did and what the tables say it did, and with exit
//! code 1 where they differ. The client counts at its own socket calls (`e2e/workload`), so the two
//! have nothing in common but the events.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use crds::TraceSession;
use dataset::ledger::{Term, Terms};
use futures::TryStreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::core::GroupVersionKind as Gvk;
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};
use tracelake_e2e::rows::{Dataset, Row, number, sum, text};
use tracelake_e2e::session::Session;
use tracelake_e2e::{Env, PATIENCE, pods};

const NAMESPACE: &str = "shop";
/// Rows of each table that are printed.
const ROWS: usize = 5;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let equal = runtime.block_on(run())?;
    std::process::exit(i32::from(!equal));
}

async fn run() -> Result<bool> {
    let env = Env::connect().await?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    say("the shop: nginx and redis");
    apply(&env.client, &root.join("e2e/shop/servers.yaml")).await?;
    for name in ["nginx", "redis"] {
        available(&env.client, name).await?;
    }

    say("one session: examples/tracesession.yaml");
    let example: PathBuf = root.join("examples/tracesession.yaml");
    let name = session_name(&example)?;
    // A second run on a kept cluster starts over.
    forget::<TraceSession>(&env.client, &name).await?;
    forget::<Pod>(&env.client, "client").await?;
    println!("{}", std::fs::read_to_string(&example)?.trim_end());
    apply(&env.client, &example).await?;
    let session = Session::existing(&env.client, NAMESPACE, &name);
    let progress = tokio::spawn(show_progress(env.client.clone(), name.clone()));
    session.recording().await?;

    say("the client: 400 requests over 137 connections, 23 processes");
    apply(&env.client, &root.join("e2e/shop/client.yaml")).await?;
    let api = pods::api(&env.client, NAMESPACE);
    let did = pods::finished(&api, "client").await?;
    println!("the client says: {did}");
    let client = pods::address(&api.get("client").await?)?;

    say("the client is through: ending the session early, as `kubectl patch` would (spec.stop=true)");
    session.stop().await?;
    let ended = session.phase("Completed").await?;
    progress.abort();

    let dataset = Dataset::open(&env.store, &ended).await?;
    let place = ended.status.and_then(|status| status.dataset).context("status.dataset is not set")?;
    say(&format!("the dataset: {}", place.uri));
    print!("{}", dataset::render::dataset(env.store.as_ref(), &dataset.contents, ROWS).await?);
    dataset.verify().await?;
    println!(
        "\nverified: every object's SHA-256, rows and events are those of the manifests, every ledger balances"
    );
    compare(&did, &client, &dataset).await
}

/// Prints the comparison; whether every line of it is equal.
async fn compare(did: &Value, client: &str, dataset: &Dataset) -> Result<bool> {
    let connections = dataset.table("tcp_connections").await?;
    let processes = dataset.table("processes").await?;
    let program = did["program"].as_str().context("the client names its program")?;
    let programs: Vec<&Row> = processes
        .iter()
        .filter(|row| {
            text(row, "pod") == "client" && text(row, "kind") == "exec" && text(row, "exe") == program
        })
        .collect();
    let ended = programs.iter().filter(|start| {
        processes.iter().any(|end| {
            text(end, "kind") == "exit"
                && number(end, "exit_code") == 0
                && ["pid", "start_ns"].iter().all(|column| number(end, column) == number(start, column))
        })
    });
    let mut lines = vec![
        (format!("processes of {program} started"), did["processes"].as_i64(), programs.len() as i64),
        (format!("processes of {program} ended with 0"), did["processes"].as_i64(), ended.count() as i64),
    ];
    for (server, port) in [("nginx", 80), ("redis", 6379)] {
        let told = &did[server];
        let active: Vec<&Row> = connections
            .iter()
            .filter(|row| {
                text(row, "pod") == "client"
                    && text(row, "direction") == "active"
                    && number(row, "rport") == port
            })
            .collect();
        let passive: Vec<&Row> = connections
            .iter()
            .filter(|row| {
                text(row, "pod").starts_with(server)
                    && text(row, "direction") == "passive"
                    && number(row, "lport") == port
                    && text(row, "raddr") == client
            })
            .collect();
        lines.extend([
            (
                format!("connections to {server}, client's side"),
                told["connections"].as_i64(),
                active.len() as i64,
            ),
            (
                format!("connections to {server}, {server}'s side"),
                told["connections"].as_i64(),
                passive.len() as i64,
            ),
            (
                format!("bytes sent to {server}"),
                told["sent"].as_i64(),
                sum(active.iter().copied(), "bytes_acked")?,
            ),
            (
                format!("bytes received by {server}"),
                told["sent"].as_i64(),
                sum(passive.iter().copied(), "bytes_received")?,
            ),
            (
                format!("bytes received from {server}"),
                told["received"].as_i64(),
                sum(active, "bytes_received")?,
            ),
            (format!("bytes sent by {server}"), told["received"].as_i64(), sum(passive, "bytes_acked")?),
        ]);
    }
    let terms = dataset.contents.manifest.as_ref().map(|manifest| &manifest.totals.terms);
    let skipped = terms.map_or(0, |terms| terms.get(Term::LostRecursion));
    let lost = terms.map_or(0, Terms::lost) - skipped;
    lines.push((
        format!("events lost, but for {skipped} hook runs that the kernel skipped"),
        Some(0),
        lost as i64,
    ));

    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|(what, told, saw)| {
            let told = told.with_context(|| format!("the client does not say: {what}"))?;
            let equal = if told == *saw { "equal" } else { "DIFFERS" };
            Ok(vec![what.clone(), told.to_string(), saw.to_string(), equal.to_owned()])
        })
        .collect::<Result<_>>()?;
    say("what the client did, what Tracelake saw");
    print!("{}", dataset::render::table(&["what", "client did", "Tracelake saw", ""], &rows));
    let equal = rows.iter().all(|row| row[3] == "equal");
    if skipped > 0 {
        println!(
            "\nthe kernel skipped {skipped} runs of hooks, because the same hook ran on that CPU; the ledger counts them as \
             lost, since nobody can say whose they were"
        );
    }
    println!("\n{}", if equal { "every line is equal" } else { "some lines differ" });
    Ok(equal)
}

fn say(what: &str) {
    println!("\n==== {what}");
}

/// One line for each change of what `kubectl get tracesessions` shows.
async fn show_progress(client: Client, name: String) -> Result<()> {
    let api: Api<TraceSession> = Api::namespaced(client, NAMESPACE);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = Box::pin(watcher(api, config).default_backoff().applied_objects());
    let start = Instant::now();
    let mut last = String::new();
    println!("{:>7}  {:<10} {:<6} {:>8} {:>6} {:>10}", "", "PHASE", "NODES", "EVENTS", "LOST", "UPLOADED");
    while let Some(session) = changes.try_next().await? {
        let Some(status) = session.status else { continue };
        let totals = status.totals.unwrap_or_default();
        let phase = status.phase.map(|phase| format!("{phase:?}")).unwrap_or_default();
        let line = format!(
            "{phase:<10} {:<6} {:>8} {:>6} {:>10}",
            status.nodes.unwrap_or_default().summary,
            totals.emitted,
            totals.lost,
            totals.bytes_uploaded
        );
        if line != last {
            println!("{:>6.1}s  {line}", start.elapsed().as_secs_f32());
            last = line;
        }
    }
    Ok(())
}

async fn available(client: &Client, name: &str) -> Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let ready = |deployment: Option<&Deployment>| {
        deployment
            .and_then(|d| d.status.as_ref())
            .is_some_and(|status| status.available_replicas.unwrap_or(0) > 0)
    };
    let wait = await_condition(api, name, ready);
    tokio::time::timeout(PATIENCE, wait)
        .await
        .with_context(|| format!("{name} is not available after {PATIENCE:?}"))??;
    Ok(())
}

/// Deletes an object of the shop's namespace, if there is one, and waits until it is gone.
async fn forget<K>(client: &Client, name: &str) -> Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
{
    let api: Api<K> = Api::namespaced(client.clone(), NAMESPACE);
    if api.get_opt(name).await?.is_some() {
        api.delete(name, &DeleteParams::default()).await?;
        let gone = await_condition(api, name, |object: Option<&K>| object.is_none());
        tokio::time::timeout(PATIENCE, gone).await.with_context(|| format!("{name} does not go away"))??;
    }
    Ok(())
}

fn documents(path: &Path) -> Result<Vec<DynamicObject>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    // On a cluster that is not ours the image has another name.
    let text = text.replace(pods::OUR_IMAGE, &pods::image());
    let mut objects = Vec::new();
    for document in text.split("\n---\n") {
        objects
            .push(serde_yaml::from_str(document).with_context(|| format!("{} is not YAML", path.display()))?);
    }
    Ok(objects)
}

fn session_name(path: &Path) -> Result<String> {
    let sessions: Vec<DynamicObject> = documents(path)?;
    let session = sessions
        .into_iter()
        .find(|object| object.types.as_ref().is_some_and(|types| types.kind == "TraceSession"))
        .with_context(|| format!("{} has no TraceSession", path.display()))?;
    ensure!(
        session.metadata.namespace.as_deref() == Some(NAMESPACE),
        "the example is not in namespace {NAMESPACE}"
    );
    session.metadata.name.context("the session has no name")
}

/// `kubectl apply --server-side -f`.
async fn apply(client: &Client, path: &Path) -> Result<()> {
    for object in documents(path)? {
        let types = object.types.clone().context("an object without kind")?;
        let kind: GroupVersionKind = Gvk::try_from(&types)?;
        let (resource, _) = kube::discovery::pinned_kind(client, &kind).await?;
        let name = object.metadata.name.clone().context("an object without name")?;
        let api: Api<DynamicObject> = scoped(client, &resource, object.metadata.namespace.as_deref());
        let params = PatchParams::apply("tracelake-demo").force();
        api.patch(&name, &params, &Patch::Apply(&json!(object)))
            .await
            .with_context(|| format!("applying {} {name}", types.kind))?;
    }
    Ok(())
}

fn scoped(client: &Client, resource: &ApiResource, namespace: Option<&str>) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}
