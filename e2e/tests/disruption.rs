// SPDX-License-Identifier: Apache-2.0

//! What breaks in the middle of a session costs what the ledger says, and nothing else.
//!
//! These tests break things that others share, so they run one at a time. Processes are killed from a
//! privileged pod in the node's pid namespace, which works on any cluster; to stop a whole node the
//! harness gives a command (`TRACELAKE_NODE_COMMAND`, called with `stop` or `start` and the node's name).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::runtime::watcher;
use serde_json::json;
use tracelake_e2e::nodes::{StoppedNode, home_and_lost};
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::rows::{Dataset, number, programs, text};
use tracelake_e2e::session::{Session, WINDOW, condition};
use tracelake_e2e::store::store_node;
use tracelake_e2e::{Env, PATIENCE, in_namespace, store};

/// The operator's CA and serving certificate.
const CA_SECRET: &str = "tracelake-operator-tls";

async fn kill(env: &Env, namespace: &str, node: &str, process: &str) -> Result<()> {
    pods::signal(env, namespace, node, process, None, "KILL").await
}

fn pending(session: &crds::TraceSession) -> i64 {
    let totals = session.status.as_ref().and_then(|status| status.totals.as_ref());
    totals.map_or(0, |totals| totals.bytes_pending)
}

#[test]
fn an_agent_that_is_killed_loses_no_sealed_row_and_declares_the_gap() -> Result<()> {
    in_namespace("agent-kill", |env, ns| async move {
        let (a, _) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "kill", &["sleep"]).on(&a).start(&api).await?;
        let mut spec = Session::spec("kill", WINDOW);
        spec["rollover"] = json!({ "interval": "2s", "size": "1Mi" });
        let session = Session::create(&env.client, &ns, "agent-kill", spec).await?;
        session.recording().await?;
        // The store hangs, so that what is sealed stays on the node.
        let store = store_node(&env).await?;
        pods::signal(&env, &ns, &store, "weed", None, "STOP").await?;
        let crashed = async {
            let spawn = |count: &'static str| ["/usr/local/bin/workload", "spawn", count, "/usr/bin/true"];
            pods::exec(&api, "sleeper", &spawn("23")).await?;
            // Files are sealed one after the other. The status is some seconds old, so the first that is new in it may be
            // from before the programs' end; not the fourth.
            for _ in 0..4 {
                let before = pending(&session.get().await?);
                pods::exec(&api, "sleeper", &spawn("1")).await?;
                session.wait("more to upload", |session| pending(session) > before).await?;
            }
            let agent = env.agent_on(&a).await?;
            kill(&env, &ns, &a, "tracelake-node-agent").await?;
            restarted(&env, &agent).await
        };
        let crashed = crashed.await;
        pods::signal(&env, &ns, &store, "weed", None, "CONT").await?;
        crashed?;
        session.recording().await?;
        PodSpec::workload("second", "kill", &["spawn", "17", "/usr/bin/true"]).on(&a).run(&api).await?;
        let dataset = Dataset::complete(&env, &session).await?;
        let processes = dataset.table("processes").await?;
        let sealed = programs(&processes, "sleeper").len();
        // The last of the four single programs may have been in no file yet.
        ensure!((23..=27).contains(&sealed), "{sealed} executions: sealed rows are gone");
        ensure!(programs(&processes, "second").len() == 17, "rows after the restart are missing");
        let executions = processes.iter().filter(|row| text(row, "kind") == "exec").count();
        let distinct: BTreeSet<_> = processes
            .iter()
            .filter(|row| text(row, "kind") == "exec")
            .map(|row| (number(row, "pid"), number(row, "ts_ns")))
            .collect();
        ensure!(executions == distinct.len(), "{} rows are there twice", executions - distinct.len());
        let nodes = dataset.table("session_nodes").await?;
        let lives = nodes.iter().filter(|row| text(row, "node") == a).count();
        ensure!(lives == 2, "{lives} incarnations on {a}: {nodes:?}");
        let coverage = dataset.table("coverage").await?;
        ensure!(
            coverage.iter().any(|row| text(row, "kind") == "gap"),
            "no row of coverage declares the gap: {coverage:?}"
        );
        Ok(())
    })
}

#[test]
fn an_operator_that_is_killed_changes_nothing_for_running_sessions() -> Result<()> {
    in_namespace("operator-kill", |env, ns| async move {
        let (a, _) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "opkill", &["sleep"]).on(&a).start(&api).await?;
        let session =
            Session::create(&env.client, &ns, "operator-kill", Session::spec("opkill", WINDOW)).await?;
        let before = session.recording().await?;
        let operator = env.leader().await?;
        kill(&env, &ns, &pods::node_of(&operator)?, "tracelake-operator").await?;
        // In the sleeper's pod, which is traced already: a new pod needs the operator.
        pods::exec(&api, "sleeper", &["/usr/local/bin/workload", "spawn", "23", "/usr/bin/true"]).await?;
        restarted(&env, &operator).await?;
        session.recording().await?;
        let dataset = Dataset::complete(&env, &session).await?;
        session.kept_its_window(&before).await?;
        let found = programs(&dataset.table("processes").await?, "sleeper").len();
        ensure!(found == 23, "{found} executions");
        Ok(())
    })
}

#[test]
fn a_window_ends_on_time_with_the_operator_away() -> Result<()> {
    in_namespace("operator-away", |env, ns| async move {
        let (a, _) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "away", &["sleep"]).on(&a).start(&api).await?;
        let session = Session::create(&env.client, &ns, "away", Session::spec("away", "60s")).await?;
        let end = session.recording().await?.status.and_then(|status| status.end_time);
        let end = end.context("a session that records has an end")?.0;
        pods::exec(&api, "sleeper", &["/usr/local/bin/workload", "spawn", "23", "/usr/bin/true"]).await?;
        let replicas = scale_operator(&env, 0).await?;
        let system = pods::api(&env.client, &env.system);
        let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
        for operator in system.list(&operators).await? {
            pods::gone(&system, &operator.metadata.name.unwrap_or_default()).await?;
        }
        // What ends the window is the time; only that can be waited for here.
        let left = end.duration_since(jiff::Timestamp::now()) + jiff::SignedDuration::from_secs(2);
        tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
        pods::exec(&api, "sleeper", &["/usr/local/bin/workload", "spawn", "7", "/usr/bin/true"]).await?;
        scale_operator(&env, replicas).await?;
        let ended = session.phase("Completed").await?;
        let dataset = Dataset::open(&env.store, &ended).await?;
        dataset.verify().await?;
        let found = programs(&dataset.table("processes").await?, "sleeper").len();
        ensure!(found == 23, "{found} executions; 23 were in the window, 7 after it");
        Ok(())
    })
}

#[test]
fn a_new_ca_during_a_session_leaves_no_gap() -> Result<()> {
    in_namespace("ca", |env, ns| async move {
        let (a, _) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "ca", &["sleep"]).on(&a).start(&api).await?;
        let session = Session::create(&env.client, &ns, "ca", Session::spec("ca", WINDOW)).await?;
        session.recording().await?;
        let secrets: Api<Secret> = Api::namespaced(env.client.clone(), &env.system);
        let serving = |secret: &Secret| secret.data.as_ref().and_then(|data| data.get("tls.crt").cloned());
        let old = serving(&secrets.get(CA_SECRET).await?).context("the CA's Secret holds no tls.crt")?;
        let ask = Patch::Merge(json!({ "metadata": { "annotations": { "tracelake.dev/rotate-ca": ns } } }));
        secrets.patch(CA_SECRET, &PatchParams::default(), &ask).await?;
        // Served only after the new CA has reached the agents' mounts.
        let replaced = await_condition(secrets.clone(), CA_SECRET, |secret: Option<&Secret>| {
            secret.and_then(serving).is_some_and(|now| now != old)
        });
        tokio::time::timeout(2 * PATIENCE, replaced).await.context("the CA was not replaced")??;
        // A stream that is open does not ask for the certificate; each has to be opened again.
        let operator = env.leader().await?;
        kill(&env, &ns, &pods::node_of(&operator)?, "tracelake-operator").await?;
        restarted(&env, &operator).await?;
        // The end of the session needs the streams, and the uploads their grants.
        pods::exec(&api, "sleeper", &["/usr/local/bin/workload", "spawn", "23", "/usr/bin/true"]).await?;
        let dataset = Dataset::complete(&env, &session).await?;
        ensure!(programs(&dataset.table("processes").await?, "sleeper").len() == 23, "rows are missing");
        let coverage = dataset.table("coverage").await?;
        ensure!(coverage.iter().all(|row| text(row, "kind") != "gap"), "a gap: {coverage:?}");
        Ok(())
    })
}

#[test]
fn wrong_credentials_collect_nothing_until_the_secret_is_mended() -> Result<()> {
    in_namespace("credentials", |env, ns| async move {
        let (a, _) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "credentials", &["sleep"]).on(&a).start(&api).await?;
        let secrets: Api<Secret> = Api::namespaced(env.client.clone(), &env.system);
        let right =
            secrets.get("tracelake-dev-store").await?.data.context("the dev store's Secret is empty")?;
        let mut wrong = right.clone();
        wrong.insert("secretAccessKey".to_owned(), k8s_openapi::ByteString(b"wrong".to_vec()));
        let secret = Secret {
            metadata: serde_json::from_value(json!({ "name": ns }))?,
            data: Some(wrong),
            ..Secret::default()
        };
        secrets.create(&PostParams::default(), &secret).await?;
        let with_it = json!({ "secretRef": { "name": ns } });
        store::like_default(&env.client, &ns, |spec| spec["credentials"] = with_it).await?;

        let mut spec = Session::spec("credentials", WINDOW);
        spec["storeRef"] = json!({ "kind": "ClusterTraceStore", "name": ns });
        let session = Session::create(&env.client, &ns, "credentials", spec).await?;
        let reason = session.condition("StoreReady", "False").await?;
        ensure!(reason == "SignatureDoesNotMatch", "StoreReady=False/{reason}");
        let now = session.get().await?;
        ensure!(condition(&now, "Collecting").is_none_or(|(status, _)| status != "True"), "it collects");
        let uid = now.metadata.uid.context("a session has a UID")?;
        ensure!(
            store::keys(&env.store).await?.iter().all(|key| !key.contains(&uid)),
            "something was collected"
        );

        let mended = Instant::now();
        let mend = json!({ "data": { "secretAccessKey": right["secretAccessKey"] } });
        secrets.patch(&ns, &PatchParams::default(), &Patch::Merge(mend)).await?;
        session.recording().await?;
        ensure!(
            mended.elapsed() < Duration::from_secs(60),
            "it took {:?} from mending the Secret to collecting",
            mended.elapsed()
        );
        session.stop().await?;
        session.phase("Completed").await?;
        session.delete().await?;
        let stores: Api<crds::ClusterTraceStore> = Api::all(env.client.clone());
        stores.delete(&ns, &DeleteParams::default()).await?;
        secrets.delete(&ns, &DeleteParams::default()).await?;
        Ok(())
    })
}

#[test]
fn a_node_that_is_lost_is_incomplete_and_completes_when_it_returns() -> Result<()> {
    in_namespace("node-lost", |env, ns| async move {
        // The manifest goes to the store, which stays; so does the leader, whose end is another test's.
        let (home, lost) = home_and_lost(&env).await?;
        lead_on(&env, &home).await?;
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "lost", &["sleep"]).on(&lost).start(&api).await?;
        let mut spec = Session::spec("lost", WINDOW);
        // Longer than it takes to notice that a node does not answer.
        spec["drainTimeout"] = json!("60s");
        spec["rollover"] = json!({ "interval": "2s", "size": "1Mi" });
        let session = Session::create(&env.client, &ns, "node-lost", spec).await?;
        session.recording().await?;
        pods::exec(&api, "sleeper", &["/usr/local/bin/workload", "spawn", "23", "/usr/bin/true"]).await?;
        session.wait("every row of 23 programs uploaded", uploaded).await?;
        let stopped = StoppedNode::stop(&lost)?;
        session.stop().await?;
        let incomplete = session.phase("Incomplete").await?;
        ensure!(
            condition(&incomplete, "Degraded") == Some(("True".to_owned(), "NodeLost".to_owned())),
            "Degraded is {:?}",
            condition(&incomplete, "Degraded")
        );
        let first = Dataset::open(&env.store, &incomplete).await?.manifest_number();
        drop(stopped);
        let back = session
            .wait("phase Completed", |session| {
                session.status.as_ref().is_some_and(|status| status.phase == Some(crds::Phase::Completed))
            })
            .await?;
        let dataset = Dataset::open(&env.store, &back).await?;
        dataset.verify().await?;
        ensure!(dataset.manifest_number() > first, "no second manifest");
        let found = programs(&dataset.table("processes").await?, "sleeper").len();
        ensure!(found == 23, "{found} executions");
        let coverage = dataset.table("coverage").await?;
        ensure!(
            coverage.iter().any(|row| text(row, "node") == lost && text(row, "kind") == "gap"),
            "no row of coverage declares the gap: {coverage:?}"
        );
        Ok(())
    })
}

#[test]
fn a_running_session_with_nothing_new_costs_no_write_for_five_minutes() -> Result<()> {
    const IDLE: Duration = Duration::from_secs(300);
    in_namespace("idle", |env, ns| async move {
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "idle", &["sleep"]).start(&api).await?;
        let session = Session::create(&env.client, &ns, "idle", Session::spec("idle", WINDOW)).await?;
        session.recording().await?;
        // The start's own rows reach the status within one rollover.
        let settled = |session: &crds::TraceSession| {
            session
                .status
                .as_ref()
                .and_then(|status| status.totals.as_ref())
                .is_some_and(|totals| totals.bytes_uploaded > 0)
        };
        session.wait("the first upload", settled).await?;
        let sessions: Api<crds::TraceSession> = Api::namespaced(env.client.clone(), &ns);
        let mut changes = Box::pin(watcher::watch_object(sessions, "idle"));
        let mut versions = BTreeSet::new();
        let watch = async {
            while let Some(object) = changes.try_next().await? {
                versions.extend(object.and_then(|object| object.metadata.resource_version));
            }
            anyhow::Ok(())
        };
        // Time itself is what is tested here: nothing may happen while it passes.
        if let Ok(ended) = tokio::time::timeout(IDLE, watch).await {
            ended?;
        }
        ensure!(versions.len() == 1, "{} writes in {IDLE:?}", versions.len() - 1);
        session.stop().await?;
        session.phase("Completed").await?;
        Ok(())
    })
}

/// Start, exec and exit of 23 programs, and whatever else there was, are in the store.
fn uploaded(session: &crds::TraceSession) -> bool {
    let totals = session.status.as_ref().and_then(|status| status.totals.as_ref());
    totals.is_some_and(|totals| totals.rows >= 69 && totals.emitted == totals.exported + totals.filtered)
}

/// Deletes leaders until one on this node leads.
async fn lead_on(env: &Env, node: &str) -> Result<()> {
    let system = pods::api(&env.client, &env.system);
    let deadline = Instant::now() + PATIENCE;
    loop {
        // While nobody leads, or the one that does is going, there is none.
        if let Ok(leader) = env.leader().await
            && leader.metadata.deletion_timestamp.is_none()
        {
            if pods::node_of(&leader)? == node {
                return Ok(());
            }
            let name = leader.metadata.name.unwrap_or_default();
            system.delete(&name, &DeleteParams::default()).await?;
            pods::gone(&system, &name).await?;
        }
        ensure!(Instant::now() < deadline, "no operator leads on {node}");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Returns how many there were to be before.
async fn scale_operator(env: &Env, replicas: i32) -> Result<i32> {
    let deployments: Api<Deployment> = Api::namespaced(env.client.clone(), &env.system);
    let before = deployments.get_scale("tracelake-operator").await?.spec.and_then(|spec| spec.replicas);
    let scale = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
    deployments.patch_scale("tracelake-operator", &PatchParams::default(), &scale).await?;
    // None is written as nothing.
    Ok(before.unwrap_or_default())
}

/// Waits until the container of a pod, seen before it was killed, has been started again and is ready.
async fn restarted(env: &Env, before: &Pod) -> Result<()> {
    let name = before.metadata.name.as_deref().context("a pod has a name")?;
    let lives = starts(before);
    let again = await_condition(pods::api(&env.client, &env.system), name, |pod: Option<&Pod>| {
        pod.is_some_and(|pod| {
            let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            starts(pod) > lives && containers.into_iter().all(|container| container.ready)
        })
    });
    tokio::time::timeout(PATIENCE, again).await.with_context(|| format!("{name} does not come back"))??;
    Ok(())
}

fn starts(pod: &Pod) -> i32 {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    containers.map(|container| container.restart_count).sum()
}
