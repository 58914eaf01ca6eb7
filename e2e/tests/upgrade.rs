// SPDX-License-Identifier: Apache-2.0

//! An upgrade in the middle of sessions, from the version before: every pair of operator and agent of both versions works
//! together, no program is missed by any of them, and the kinds become this version's.
//!
//! The version before is what the harness names: `TRACELAKE_PREVIOUS_CHART`, a folder, and `TRACELAKE_PREVIOUS_TAG`, under
//! which the nodes have its images. The sessions' store is a server of the test's own: the chart's dev store restarts with
//! the chart, and what it holds is gone then.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::{ClusterTraceStore, TraceSession};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::release::{Release, ready};
use tracelake_e2e::rows::{Dataset, programs};
use tracelake_e2e::session::{Session, WINDOW};
use tracelake_e2e::{Env, in_namespace, store};

const LABEL: &str = "upgrade";
/// Of the chart's default.
const REPLICAS: i64 = 2;
/// What this version's definitions refuse and those of the version before admit.
const REFUSED: &str = "../crds/tests/bad/session-pod-name-path.yaml";

#[test]
fn sessions_go_on_while_operator_and_agents_are_replaced_one_after_the_other() -> Result<()> {
    in_namespace("upgrade", |env, ns| async move {
        let release = Release::find(&env)?;
        let env = with_own_store(env, &ns).await?;
        let done = upgraded(&env, &ns, &release).await;
        // What comes next is to find what was there before, also when this failed.
        let back = release.back();
        let stores: Api<ClusterTraceStore> = Api::all(env.client.clone());
        stores.delete(&ns, &DeleteParams::default()).await?;
        done.and(back)
    })
}

async fn upgraded(env: &Env, ns: &str, release: &Release) -> Result<()> {
    let var = |name: &str| {
        std::env::var(name).with_context(|| format!("{name} is not set: it names the version before"))
    };
    let (chart, previous) = (PathBuf::from(var("TRACELAKE_PREVIOUS_CHART")?), var("TRACELAKE_PREVIOUS_TAG")?);
    let image = &release.former["image"];
    let (repository, tag) = (image["repository"].as_str(), image["tag"].as_str());
    let image = |name: &str, tag: &str| format!("{}/{name}:{tag}", repository.unwrap_or("tracelake"));
    let tag = tag.context("the release names no image.tag")?;

    release.other(&chart, &previous)?;
    ready(env, REPLICAS).await?;
    admits(env, ns, true).await.context("kinds of the version before")?;
    // As a user upgrades who has set nothing by hand; then what lies between.
    release.plainly_back()?;
    ready(env, REPLICAS).await?;
    admits(env, ns, false).await.context("kinds after a plain upgrade")?;
    release.other(&chart, &previous)?;
    ready(env, REPLICAS).await?;
    admits(env, ns, true).await.context("kinds after going back")?;
    let pods = Sleepers::start(env, ns).await?;
    let mut sessions = vec![begin(env, ns, "both-before").await?];
    let mut run = vec![pods.run(11).await?];

    println!("this operator, agents before");
    set_operator(env, &image("operator", tag)).await?;
    sessions.push(begin(env, ns, "operator-first").await?);
    run.push(pods.run(13).await?);

    println!("operator before, these agents");
    set_operator(env, &image("operator", &previous)).await?;
    set_agents(env, &image("node-agent", tag)).await?;
    sessions.push(begin(env, ns, "agents-first").await?);
    run.push(pods.run(17).await?);

    println!("this chart");
    release.back()?;
    ready(env, REPLICAS).await?;
    admits(env, ns, false).await.context("kinds of this version")?;
    sessions.push(begin(env, ns, "both-now").await?);
    run.push(pods.run(19).await?);

    // Each recorded all that was run since it began.
    for (at, (name, session)) in sessions.iter().enumerate() {
        session.recording().await.with_context(|| format!("{name} goes on"))?;
        let dataset = Dataset::complete(env, session).await.with_context(|| (*name).to_owned())?;
        let rows = dataset.table("processes").await?;
        let known: usize = run[at..].iter().sum();
        for pod in &pods.names {
            let found = programs(&rows, pod).len();
            ensure!(found == known, "{name}: {found} of {known} programs of {pod}");
        }
        println!("{name}: each of {known} programs of both pods");
    }
    Ok(())
}

/// A session that records on every node.
async fn begin(env: &Env, ns: &str, name: &'static str) -> Result<(&'static str, Session)> {
    let mut spec = Session::spec(LABEL, WINDOW);
    spec["storeRef"] = json!({ "kind": "ClusterTraceStore", "name": ns });
    let session = Session::create(&env.client, ns, name, spec).await?;
    session.recording().await.with_context(|| format!("{name} begins"))?;
    Ok((name, session))
}

/// A pod on each of two nodes that does nothing until it is told to.
struct Sleepers {
    api: Api<Pod>,
    names: Vec<String>,
}

impl Sleepers {
    async fn start(env: &Env, ns: &str) -> Result<Self> {
        let (a, b) = env.two_nodes().await?;
        let this =
            Self { api: pods::api(&env.client, ns), names: vec![format!("on-{a}"), format!("on-{b}")] };
        for (name, node) in this.names.iter().zip([a, b]) {
            PodSpec::workload(name, LABEL, &["sleep"]).on(&node).start(&this.api).await?;
        }
        Ok(this)
    }

    /// Runs so many programs in each, and returns this number.
    async fn run(&self, programs: usize) -> Result<usize> {
        for name in &self.names {
            let count = programs.to_string();
            pods::exec(&self.api, name, &["/usr/local/bin/workload", "spawn", &count, "/usr/bin/true"])
                .await?;
        }
        Ok(programs)
    }
}

/// Whether the API server admits what only the definitions of the version before do.
async fn admits(env: &Env, ns: &str, wanted: bool) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(REFUSED);
    let object: Value = serde_yaml::from_str(&std::fs::read_to_string(&file)?)?;
    let session = TraceSession::new("refused", serde_json::from_value(object["spec"].clone())?);
    let sessions: Api<TraceSession> = Api::namespaced(env.client.clone(), ns);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    // The API server takes a definition over some time after it was written.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let answer = sessions.create(&dry, &session).await;
        if answer.is_ok() == wanted {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < deadline, "{}: {answer:?}", file.display());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn set_operator(env: &Env, image: &str) -> Result<()> {
    let api: Api<Deployment> = Api::namespaced(env.client.clone(), &env.system);
    api.patch("tracelake-operator", &PatchParams::default(), &with_image("operator", image)).await?;
    ready(env, REPLICAS).await.map(drop)
}

async fn set_agents(env: &Env, image: &str) -> Result<()> {
    let api: Api<DaemonSet> = Api::namespaced(env.client.clone(), &env.system);
    api.patch("tracelake-node-agent", &PatchParams::default(), &with_image("node-agent", image)).await?;
    ready(env, REPLICAS).await.map(drop)
}

/// As `kubectl set image` does it.
fn with_image(container: &str, image: &str) -> Patch<Value> {
    let containers = json!([{ "name": container, "image": image }]);
    Patch::Strategic(json!({ "spec": { "template": { "spec": { "containers": containers } } } }))
}

/// A copy of the chart's dev store in the test's namespace, as the cluster-wide store of that name.
async fn with_own_store(env: Env, ns: &str) -> Result<Env> {
    let deployments: Api<Deployment> = Api::namespaced(env.client.clone(), &env.system);
    let deployment = deployments.get("tracelake-dev-store").await?;
    let template = deployment.spec.context("a Deployment has a spec")?.template;
    let keys = Api::<Secret>::namespaced(env.client.clone(), &env.system).get(store::SECRET).await?;
    let copy = Secret {
        metadata: serde_json::from_value(json!({ "name": store::SECRET }))?,
        data: keys.data,
        ..Secret::default()
    };
    Api::<Secret>::namespaced(env.client.clone(), ns).create(&PostParams::default(), &copy).await?;
    let service: Service = serde_json::from_value(json!({
        "metadata": { "name": "store" },
        "spec": { "selector": { "own": "store" }, "ports": [{ "port": store::PORT }] },
    }))?;
    Api::<Service>::namespaced(env.client.clone(), ns).create(&PostParams::default(), &service).await?;
    let pod = Pod {
        metadata: serde_json::from_value(json!({ "name": "store", "labels": { "own": "store" } }))?,
        spec: template.spec,
        ..Pod::default()
    };
    let api = pods::api(&env.client, ns);
    api.create(&PostParams::default(), &pod).await?;
    pods::running(&api, "store").await?;

    let endpoint = json!(format!("http://store.{ns}.svc:{}", store::PORT));
    store::like_default(&env.client, ns, |spec| spec["s3"]["endpoint"] = endpoint).await?;
    let found = ListParams::default().labels("own=store");
    let address = store::forward(env.client.clone(), ns.to_owned(), found, store::PORT).await?;
    Ok(Env { store: store::at(&env.client, &env.system, address).await?, ..env })
}
