// SPDX-License-Identifier: Apache-2.0

//! What sessions stand on comes and goes while they record: stores, namespaces, nodes. Each ends in a phase that says so, and
//! what was recorded is in the store.
//!
//! These change what others share, so they run one at a time.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use crds::{ClusterTraceStore, TraceStore};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret};
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, ResourceExt};
use serde_json::json;
use tracelake_e2e::nodes::{StoppedNode, home_and_lost};
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::release::{Release, ready};
use tracelake_e2e::rows::{Dataset, number, programs, text};
use tracelake_e2e::session::{Session, WINDOW};
use tracelake_e2e::store::{SECRET, store_node};
use tracelake_e2e::{Env, PATIENCE, in_namespace, store};

const SPAWN: [&str; 4] = ["/usr/local/bin/workload", "spawn", "23", "/usr/bin/true"];
/// `drainTimeout` of the session whose namespace is deleted, and what else may take time there on emulated nodes.
const DRAIN: Duration = Duration::from_secs(60);
const SETTLING: Duration = Duration::from_secs(180);
/// Longer than an agent waits before it tells what it has recorded.
const SETTLED: Duration = Duration::from_secs(10);

#[test]
fn a_store_that_is_away_for_longer_than_the_session_gets_all_of_it_when_it_is_back() -> Result<()> {
    in_namespace("outage", |env, ns| async move {
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "outage", &["sleep"]).start(&api).await?;
        let mut spec = Session::spec("outage", WINDOW);
        spec["drainTimeout"] = json!("15s");
        let session = Session::create(&env.client, &ns, "outage", spec).await?;
        session.recording().await?;
        let store = store_node(&env).await?;
        pods::signal(&env, &ns, &store, "weed", None, "STOP").await?;
        let over = async {
            pods::exec(&api, "sleeper", &SPAWN).await?;
            session.stop().await?;
            session.phase("Incomplete").await
        };
        let over = over.await;
        pods::signal(&env, &ns, &store, "weed", None, "CONT").await?;
        let status = over?.status.context("a session that is over has a status")?;
        ensure!(status.completion_time.is_some(), "no completionTime");
        ensure!(
            crds::conditions::get(&status.conditions, "Uploaded").is_some_and(|one| one.status == "False"),
            "it does not say that something is not uploaded: {:?}",
            status.conditions
        );
        let whole = |session: &crds::TraceSession| {
            session.status.as_ref().and_then(|status| status.phase) == Some(crds::Phase::Completed)
        };
        let ended = session.wait("phase Completed with the store back", whole).await?;
        let dataset = Dataset::open(&env.store, &ended).await?;
        dataset.verify().await?;
        let found = programs(&dataset.table("processes").await?, "sleeper").len();
        ensure!(found == 23, "{found} executions");
        Ok(())
    })
}

#[test]
fn a_store_that_is_edited_or_deleted_stays_where_it_was_for_sessions_that_have_begun() -> Result<()> {
    in_namespace("moved", |env, ns| async move {
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "moved", &["sleep"]).start(&api).await?;
        let stores: Api<ClusterTraceStore> = Api::all(env.client.clone());
        store::like_default(&env.client, &ns, |_| {}).await?;
        let mut spec = Session::spec("moved", WINDOW);
        spec["storeRef"] = json!({ "kind": "ClusterTraceStore", "name": ns });
        let session = Session::create(&env.client, &ns, "moved", spec).await?;
        session.recording().await?;
        pods::exec(&api, "sleeper", &SPAWN).await?;
        let edit = json!({ "spec": { "s3": { "prefix": "elsewhere" } } });
        stores.patch(&ns, &PatchParams::default(), &Patch::Merge(edit)).await?;
        stores.delete(&ns, &DeleteParams::default()).await?;
        pods::exec(&api, "sleeper", &SPAWN).await?;
        let dataset = Dataset::complete(&env, &session).await?;
        let found = programs(&dataset.table("processes").await?, "sleeper").len();
        ensure!(found == 46, "{found} executions, half of them before the store was edited and deleted");
        let uri = session.get().await?.status.and_then(|status| status.dataset).map(|dataset| dataset.uri);
        ensure!(uri.as_ref().is_some_and(|uri| !uri.contains("elsewhere")), "the dataset is at {uri:?}");
        // The deletion waits for nobody any more.
        let gone = await_condition(stores, &ns, |store: Option<&ClusterTraceStore>| store.is_none());
        tokio::time::timeout(PATIENCE, gone).await.context("the store is not gone")??;
        Ok(())
    })
}

#[test]
fn a_namespace_is_deleted_with_its_session_its_store_and_the_stores_secret() -> Result<()> {
    in_namespace("tenant", |env, ns| async move {
        // The operator reads Secrets where the chart says so, and this namespace is new.
        let release = Release::find(&env)?;
        let default = Api::<ClusterTraceStore>::all(env.client.clone()).get("default").await?;
        let endpoint = default.spec.s3.endpoint.context("the dev store has an endpoint")?;
        release.with(&[
            &format!("operator.secretNamespaces={{{ns}}}"),
            &format!("operator.tenantEndpoints={{{endpoint}}}"),
        ])?;
        ready(&env, 2).await?;
        let done = deleted_whole(&env, &ns).await;
        let back = release.back();
        done.and(back)
    })
}

async fn deleted_whole(env: &Env, ns: &str) -> Result<()> {
    let api = pods::api(&env.client, ns);
    PodSpec::workload("sleeper", "tenant", &["sleep"]).start(&api).await?;
    let default = Api::<ClusterTraceStore>::all(env.client.clone()).get("default").await?;
    let keys = Api::<Secret>::namespaced(env.client.clone(), &env.system).get(SECRET).await?;
    let secret = Secret {
        metadata: serde_json::from_value(json!({ "name": "keys" }))?,
        data: keys.data,
        ..Secret::default()
    };
    Api::<Secret>::namespaced(env.client.clone(), ns).create(&PostParams::default(), &secret).await?;
    let mut s3 = serde_json::to_value(&default.spec.s3)?;
    s3["prefix"] = json!(ns);
    let store: TraceStore = serde_json::from_value(json!({
        "apiVersion": "tracelake.dev/v1alpha1", "kind": "TraceStore", "metadata": { "name": "own" },
        "spec": { "s3": s3, "credentials": { "secretRef": { "name": "keys" } } },
    }))?;
    Api::<TraceStore>::namespaced(env.client.clone(), ns).create(&PostParams::default(), &store).await?;
    let mut spec = Session::spec("tenant", WINDOW);
    spec["drainTimeout"] = json!(format!("{}s", DRAIN.as_secs()));
    spec["storeRef"] = json!({ "kind": "TraceStore", "name": "own" });
    let session = Session::create(&env.client, ns, "tenant", spec).await?;
    let running = session.recording().await?;
    pods::exec(&api, "sleeper", &SPAWN).await?;

    let namespaces: Api<Namespace> = Api::all(env.client.clone());
    namespaces.delete(ns, &DeleteParams::background()).await?;
    let gone = await_condition(namespaces, ns, |namespace: Option<&Namespace>| namespace.is_none());
    tokio::time::timeout(DRAIN + SETTLING, gone)
        .await
        .context("the namespace is not gone: what is left blocks it")??;
    // Nobody is there any more to be told; the dataset tells.
    let place =
        running.status.and_then(|status| status.dataset).context("a session that records has a dataset")?;
    let dataset = Dataset::at(&env.store, &place.uri).await?;
    ensure!(dataset.manifest_number() > 0, "no manifest was written");
    dataset.verify().await?;
    let found = programs(&dataset.table("processes").await?, "sleeper").len();
    ensure!(found == 23, "{found} executions");
    Ok(())
}

#[test]
fn a_node_that_comes_after_the_sessions_beginning_joins_it() -> Result<()> {
    in_namespace("join", |env, ns| async move {
        let (home, late) = home_and_lost(&env).await?;
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("first", "join", &["sleep"]).on(&home).start(&api).await?;
        let away = StoppedNode::stop(&late)?;
        let session = Session::create(&env.client, &ns, "join", Session::spec("join", WINDOW)).await?;
        session.recording().await?;
        pods::exec(&api, "first", &SPAWN).await?;
        drop(away);
        PodSpec::workload("second", "join", &["sleep"]).on(&late).start(&api).await?;
        let both = |session: &crds::TraceSession| {
            let nodes = session.status.as_ref().and_then(|status| status.nodes.as_ref());
            nodes.is_some_and(|nodes| nodes.expected == 2 && nodes.running == 2)
        };
        session.wait("both nodes to record", both).await?;
        pods::exec(&api, "second", &SPAWN).await?;
        let dataset = Dataset::complete(&env, &session).await?;
        let rows = dataset.table("processes").await?;
        let found = [programs(&rows, "first").len(), programs(&rows, "second").len()];
        ensure!(found == [23, 23], "{found:?} executions of 23 on each node");
        Ok(())
    })
}

#[test]
fn pods_of_a_drained_node_are_recorded_where_they_go() -> Result<()> {
    in_namespace("drain", |env, ns| async move {
        let api = pods::api(&env.client, &ns);
        let template = PodSpec::workload("web", "drain", &["sleep"]).to_pod()?;
        let mut spec = template.spec.context("a pod has a spec")?;
        spec.restart_policy = None;
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": { "name": "web" },
            "spec": {
                "selector": { "matchLabels": { pods::LABEL: "drain" } },
                "template": { "metadata": { "labels": { pods::LABEL: "drain" } }, "spec": spec },
            },
        }))?;
        let deployments: Api<Deployment> = Api::namespaced(env.client.clone(), &ns);
        deployments.create(&PostParams::default(), &deployment).await?;
        let first = one_running(&env, &ns, None).await?;
        let session = Session::create(&env.client, &ns, "drain", Session::spec("drain", WINDOW)).await?;
        session.recording().await?;
        pods::exec(&api, &first.name_any(), &SPAWN).await?;

        // As `kubectl drain` does it: nothing new comes to the node, and the pod is evicted.
        let (node, nodes) = (pods::node_of(&first)?, Api::<Node>::all(env.client.clone()));
        let drained = async {
            nodes.cordon(&node).await?;
            api.evict(&first.name_any(), &EvictParams::default()).await?;
            let second = one_running(&env, &ns, Some(&first)).await?;
            ensure!(pods::node_of(&second)? != node, "it came back to the node that is drained");
            session.recording().await?;
            let running = |session: &crds::TraceSession| {
                let nodes = session.status.as_ref().and_then(|status| status.nodes.as_ref());
                nodes.is_some_and(|nodes| nodes.expected == 2 && nodes.running == 2)
            };
            session.wait("the other node to record", running).await?;
            pods::exec(&api, &second.name_any(), &SPAWN).await?;
            Ok(second)
        };
        let drained = drained.await;
        nodes.uncordon(&node).await?;
        let second = drained?;
        let dataset = Dataset::complete(&env, &session).await?;
        let rows = dataset.table("processes").await?;
        for pod in [&first, &second] {
            let found = programs(&rows, &pod.name_any()).len();
            ensure!(found == 23, "{found} executions of {}", pod.name_any());
        }
        let coverage = dataset.table("coverage").await?;
        ensure!(coverage.iter().all(|row| text(row, "kind") != "gap"), "a gap: {coverage:?}");
        Ok(())
    })
}

#[test]
fn pods_join_and_leave_with_their_labels() -> Result<()> {
    in_namespace("relabel", |env, ns| async move {
        let api = pods::api(&env.client, &ns);
        let (chosen, other) = (
            PodSpec::workload("chosen", "relabel", &["sleep"]),
            PodSpec::workload("other", "not-yet", &["sleep"]),
        );
        let chosen = chosen.start(&api).await?;
        other.on(&pods::node_of(&chosen)?).start(&api).await?;
        let spec = Session::spec_of("relabel", WINDOW, &["processes"]);
        let session = Session::create(&env.client, &ns, "relabel", spec).await?;
        session.recording().await?;
        pods::exec(&api, "other", &SPAWN).await?;
        pods::exec(&api, "chosen", &SPAWN).await?;
        let emitted = |session: &crds::TraceSession| {
            let totals = session.status.as_ref().and_then(|status| status.totals.as_ref());
            totals.map_or(0, |totals| totals.emitted)
        };
        // All that the pod did is in the status, so that what comes from now on is another's.
        session.wait("the chosen pod's events", |session| emitted(session) >= 23 * 2).await?;
        let mut before = emitted(&session.get().await?);
        loop {
            tokio::time::sleep(SETTLED).await;
            let now = emitted(&session.get().await?);
            if now == before {
                break;
            }
            before = now;
        }

        for (pod, label) in [("chosen", "no-more"), ("other", "relabel")] {
            let labels = json!({ "metadata": { "labels": { pods::LABEL: label } } });
            api.patch(pod, &PatchParams::default(), &Patch::Merge(labels)).await?;
        }
        // One plan tells the node of both, or the first of two that the one has left.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut single = 0;
        while emitted(&session.get().await?) == before {
            ensure!(tokio::time::Instant::now() < deadline, "the other pod is not recorded");
            pods::exec(&api, "other", &["/usr/bin/true"]).await?;
            single += 1;
        }
        pods::exec(&api, "chosen", &SPAWN).await?;
        pods::exec(&api, "other", &SPAWN).await?;
        let dataset = Dataset::complete(&env, &session).await?;
        let rows = dataset.table("processes").await?;
        let found = [programs(&rows, "chosen").len(), programs(&rows, "other").len()];
        ensure!(found[0] == 23, "{} executions of the chosen pod, which ran 23 before it left", found[0]);
        ensure!(
            (23..=23 + single).contains(&found[1]),
            "{} executions of the other, of 23 and some of {single}",
            found[1]
        );
        let coverage = dataset.table("coverage").await?;
        let windows =
            |pod| coverage.iter().filter(move |row| text(row, "pod") == pod && text(row, "kind") == "traced");
        let (left, joined) = (windows("chosen").collect::<Vec<_>>(), windows("other").collect::<Vec<_>>());
        let ([left], [joined]) = (&left[..], &joined[..]) else {
            bail!("not one window of each: {coverage:?}")
        };
        ensure!(
            number(left, "to_ns") < number(joined, "to_ns")
                && number(left, "from_ns") < number(joined, "from_ns"),
            "one left and the other joined: {left:?} {joined:?}"
        );
        Ok(())
    })
}

/// The Deployment's one pod, once it runs and is not that one.
async fn one_running(env: &Env, ns: &str, but: Option<&Pod>) -> Result<Pod> {
    let api = pods::api(&env.client, ns);
    let labels = ListParams::default().labels(&format!("{}=drain", pods::LABEL));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let found = api.list(&labels).await?.items.into_iter().find(|pod| {
            pod.metadata.deletion_timestamp.is_none() && but.is_none_or(|but| but.uid() != pod.uid())
        });
        if let Some(pod) = found {
            return pods::running(&api, &pod.name_any()).await;
        }
        ensure!(tokio::time::Instant::now() < deadline, "the Deployment has no pod");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
