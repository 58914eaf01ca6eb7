// SPDX-License-Identifier: Apache-2.0

//! What pods did is what the tables say, exactly: counts, bytes, identities, loss.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::json;
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::rows::{Dataset, Row, number, sum, text};
use tracelake_e2e::session::{Session, WINDOW};
use tracelake_e2e::{Env, PATIENCE, in_namespace};

fn of<'a>(rows: &'a [Row], pod: &str, column: &str, value: &str) -> Vec<&'a Row> {
    rows.iter().filter(|row| text(row, "pod") == pod && text(row, column) == value).collect()
}

#[test]
fn programs_and_both_ends_of_connections_between_two_nodes_are_counted_exactly() -> Result<()> {
    in_namespace("counts", |env, ns| async move {
        let (a, b) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        let server = PodSpec::workload("server", "counts", &["serve", "7000"]).on(&a).start(&api).await?;
        PodSpec::workload("other-node", "counts", &["sleep"]).on(&b).start(&api).await?;
        let session = Session::create(&env.client, &ns, "counts", Session::spec("counts", WINDOW)).await?;
        session.recording().await?;

        let target = format!("{}:7000", pods::address(&server)?);
        let client =
            PodSpec::workload("client", "counts", &["connect", &target, "37", "1000", "20000"]).on(&b);
        let did = client.run(&api).await?;
        ensure!(did["connections"] == 37, "the client says {did}");
        PodSpec::workload("spawner", "counts", &["spawn", "23", "/usr/bin/true"]).on(&a).run(&api).await?;

        let dataset = Dataset::complete(&env, &session).await?;
        let connections = dataset.table("tcp_connections").await?;
        let active = of(&connections, "client", "direction", "active");
        let passive = of(&connections, "server", "direction", "passive");
        ensure!(active.len() == 37, "{} active rows of the client", active.len());
        ensure!(passive.len() == 37, "{} passive rows of the server", passive.len());
        ensure!(connections.len() == 74, "{} rows, of which 74 are known", connections.len());
        for (rows, sent, received) in [(&active, 37_000, 740_000), (&passive, 740_000, 37_000)] {
            let found =
                (sum(rows.iter().copied(), "bytes_acked")?, sum(rows.iter().copied(), "bytes_received")?);
            ensure!(
                found == (sent, received),
                "bytes acked and received are {found:?}, not {:?}",
                (sent, received)
            );
        }
        let ports =
            |rows: &[&Row], column: &str| rows.iter().map(|row| number(row, column)).collect::<BTreeSet<_>>();
        ensure!(
            ports(&active, "lport") == ports(&passive, "rport"),
            "the two ends disagree about the client's ports"
        );
        let coverage = dataset.table("coverage").await?;
        let sees_accept = coverage.iter().any(|row| {
            text(row, "pod") == "server" && text(row, "hooks").split(',').any(|word| word == "fentry")
        });
        // Only the harness's own cluster comes with this; its nodes run Debian's kernels.
        let ours = std::env::var_os("TRACELAKE_NODE_COMMAND").is_some();
        ensure!(sees_accept || !ours, "Debian's kernels have fentry, and the agent may use it");
        ensure!(
            passive.iter().all(|row| (number(row, "accept_delay_ns") >= 0) == sees_accept
                && (text(row, "comm") == "workload") == sees_accept),
            "fentry: {sees_accept}; {passive:?}"
        );

        let processes = dataset.table("processes").await?;
        let executed: Vec<&Row> = of(&processes, "spawner", "kind", "exec")
            .into_iter()
            .filter(|row| text(row, "exe") == "/usr/bin/true")
            .collect();
        ensure!(executed.len() == 23, "{} executions of /usr/bin/true", executed.len());
        let identity = |row: &Row| (number(row, "pid"), number(row, "start_ns"));
        let ended: BTreeSet<_> =
            of(&processes, "spawner", "kind", "exit").into_iter().map(identity).collect();
        ensure!(executed.iter().all(|row| ended.contains(&identity(row))), "a program that ran has no exit");
        for row in connections.iter().chain(&processes) {
            ensure!(
                text(row, "container") == "app",
                "a row of container {:?}: {row:?}",
                text(row, "container")
            );
        }
        Ok(())
    })
}

#[test]
fn two_sessions_on_the_same_pods_see_the_same() -> Result<()> {
    in_namespace("two", |env, ns| async move {
        let (a, _) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        let server = PodSpec::workload("server", "two", &["serve", "7000"]).on(&a).start(&api).await?;
        let one = Session::create(&env.client, &ns, "one", Session::spec("two", WINDOW)).await?;
        let other = Session::create(&env.client, &ns, "other", Session::spec("two", WINDOW)).await?;
        one.recording().await?;
        other.recording().await?;
        let target = format!("{}:7000", pods::address(&server)?);
        PodSpec::workload("client", "two", &["connect", &target, "11", "500", "500"])
            .on(&a)
            .run(&api)
            .await?;
        let mut found = Vec::new();
        for session in [&one, &other] {
            let dataset = Dataset::complete(&env, session).await?;
            let mut identities: Vec<_> = dataset
                .table("tcp_connections")
                .await?
                .iter()
                .map(|row| {
                    (
                        text(row, "pod").to_owned(),
                        number(row, "lport"),
                        number(row, "rport"),
                        number(row, "bytes_acked"),
                    )
                })
                .collect();
            identities.sort();
            ensure!(identities.len() == 22, "{} rows of 11 connections", identities.len());
            found.push(identities);
        }
        ensure!(found[0] == found[1], "the sessions disagree: {found:?}");
        Ok(())
    })
}

#[test]
fn a_connection_opened_before_the_session_is_adopted_and_one_left_open_is_flushed() -> Result<()> {
    in_namespace("before", |env, ns| async move {
        let (a, b) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        let server = PodSpec::workload("server", "server", &["serve", "7000"]).on(&a).start(&api).await?;
        let target = format!("{}:7000", pods::address(&server)?);
        for (name, end) in [("ends", "/tmp/end"), ("stays", "/tmp/never")] {
            PodSpec::workload(name, "before", &["hold", &target, "100016", end]).on(&b).start(&api).await?;
        }
        let session = Session::create(&env.client, &ns, "before", Session::spec("before", WINDOW)).await?;
        session.recording().await?;
        pods::let_go(&api, "ends", "/tmp/end").await?;
        pods::finished(&api, "ends").await?;
        let dataset = Dataset::complete(&env, &session).await?;
        let connections = dataset.table("tcp_connections").await?;
        for (pod, reason, bytes) in [("ends", "fin", 100_016), ("stays", "open_at_stop", 50_016)] {
            let rows: Vec<&Row> = connections.iter().filter(|row| text(row, "pod") == pod).collect();
            ensure!(rows.len() == 1, "{} rows of {pod}", rows.len());
            ensure!(text(rows[0], "direction") == "adopted", "{pod}: {:?}", rows[0]);
            ensure!(text(rows[0], "end_reason") == reason, "{pod}: {:?}", rows[0]);
            ensure!(number(rows[0], "bytes_acked") == bytes, "{pod}: {:?}", rows[0]);
        }
        Ok(())
    })
}

#[test]
fn a_deployment_is_followed_over_a_rolling_update() -> Result<()> {
    in_namespace("rolling", |env, ns| async move {
        let deployments: Api<Deployment> = Api::namespaced(env.client.clone(), &ns);
        let command = |generation: &str| {
            json!([
                "/bin/sh",
                "-c",
                format!(
                    ": {generation}; /usr/local/bin/workload spawn 3 /usr/bin/true; exec /usr/local/bin/workload sleep"
                )
            ])
        };
        let object: Deployment = serde_json::from_value(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
            "spec": {
                "replicas": 2, "selector": { "matchLabels": { "app": "web" } },
                "template": {
                    "metadata": { "labels": { "app": "web" } },
                    "spec": { "terminationGracePeriodSeconds": 1, "containers": [
                        { "name": "app", "image": pods::image(), "imagePullPolicy": "IfNotPresent", "command": command("first") }] },
                },
            },
        }))?;
        deployments.create(&PostParams::default(), &object).await?;
        rolled_out(&deployments, "web").await?;
        let mut spec = Session::spec("unused", WINDOW);
        spec["target"] = json!({ "workloadRef": { "kind": "Deployment", "name": "web" } });
        let session = Session::create(&env.client, &ns, "rolling", spec).await?;
        session.recording().await?;
        let before: BTreeSet<String> = pod_names(&env, &ns).await?;
        let patch = json!({ "spec": { "template": { "spec": { "containers": [{ "name": "app", "command": command("second") }] } } } });
        deployments.patch("web", &PatchParams::default(), &Patch::Strategic(patch)).await?;
        rolled_out(&deployments, "web").await?;
        let after: BTreeSet<String> = pod_names(&env, &ns).await?.difference(&before).cloned().collect();
        ensure!(after.len() == 2, "the update made {after:?}");
        // A Deployment does not count pods that are about to end.
        for pod in &before {
            pods::gone(&pods::api(&env.client, &ns), pod).await?;
        }

        let dataset = Dataset::complete(&env, &session).await?;
        let processes = dataset.table("processes").await?;
        let mut programs: BTreeMap<&str, usize> = BTreeMap::new();
        for row in &processes {
            if text(row, "kind") == "exec" && text(row, "exe") == "/usr/bin/true" {
                *programs.entry(text(row, "pod")).or_default() += 1;
            }
        }
        for pod in &after {
            ensure!(
                programs.get(pod.as_str()) == Some(&3),
                "{pod} ran 3 programs, the table has {programs:?}"
            );
        }
        for pod in &before {
            let ended = processes.iter().any(|row| text(row, "pod") == pod && text(row, "kind") == "exit");
            ensure!(ended, "{pod} was replaced, but has no exit");
        }
        Ok(())
    })
}

#[test]
fn a_host_network_pod_has_its_own_rows_and_nobody_elses() -> Result<()> {
    in_namespace("hostnet", |env, ns| async move {
        let (a, b) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        let server = PodSpec::workload("server", "hostnet", &["serve", "7077"])
            .on(&a)
            .host_network()
            .start(&api)
            .await?;
        PodSpec::workload("other-node", "hostnet", &["sleep"]).on(&b).start(&api).await?;
        let session = Session::create(&env.client, &ns, "hostnet", Session::spec("hostnet", WINDOW)).await?;
        session.recording().await?;
        let target = format!("{}:7077", pods::address(&server)?);
        PodSpec::workload("client", "hostnet", &["connect", &target, "13", "200", "300"])
            .on(&b)
            .run(&api)
            .await?;
        let dataset = Dataset::complete(&env, &session).await?;
        let connections = dataset.table("tcp_connections").await?;
        ensure!(of(&connections, "client", "direction", "active").len() == 13, "active: {connections:?}");
        ensure!(of(&connections, "server", "direction", "passive").len() == 13, "passive: {connections:?}");
        // The node's own connections (kubelet, runtime) share the network namespace, not the cgroup.
        ensure!(connections.len() == 26, "{} rows, of which 26 are known", connections.len());
        Ok(())
    })
}

#[test]
fn a_session_deleted_early_lets_go_and_leaves_what_it_had() -> Result<()> {
    in_namespace("deleted", |env, ns| async move {
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "deleted", &["sleep"]).start(&api).await?;
        let session = Session::create(&env.client, &ns, "deleted", Session::spec("deleted", WINDOW)).await?;
        let mut shown = session.recording().await?;
        let uid = shown.metadata.uid.clone().context("a session has a UID")?;
        let deleted = jiff::Timestamp::now();
        session.delete().await?;
        let keys = tracelake_e2e::store::keys(&env.store).await?;
        let left: Vec<&String> = keys.iter().filter(|key| key.contains(&uid)).collect();
        ensure!(
            left.iter().any(|key| key.contains("/processes/")),
            "the snapshot was not uploaded: {left:?}"
        );
        ensure!(left.iter().any(|key| key.contains("/_tracelake/manifest-")), "no manifest: {left:?}");
        let place = shown.status.as_mut().and_then(|status| status.dataset.as_mut());
        place.context("the session has a dataset")?.manifest = Some("the last".to_owned());
        let dataset = Dataset::open(&env.store, &shown).await?;
        dataset.verify().await?;
        for row in dataset.table("coverage").await? {
            let after = number(&row, "to_utc") - deleted.as_microsecond();
            // 2 s are the promise; emulated nodes get more.
            ensure!(after < 5_000_000, "recorded for {after} us after the session was deleted: {row:?}");
        }
        Ok(())
    })
}

#[test]
fn a_selector_that_matches_nothing_waits_and_completes_empty() -> Result<()> {
    in_namespace("nothing", |env, ns| async move {
        let session = Session::create(&env.client, &ns, "nothing", Session::spec("nobody", "20s")).await?;
        ensure!(session.condition("TargetsResolved", "False").await? == "NoPods", "another reason");
        let ended = session.phase("Completed").await?;
        let dataset = Dataset::open(&env.store, &ended).await?;
        dataset.verify().await?;
        ensure!(dataset.table("processes").await?.is_empty(), "rows of nothing");
        // `kubectl describe` tells the same story.
        let events: Api<Event> = Api::namespaced(env.client.clone(), &ns);
        let told: BTreeSet<_> =
            events.list(&Default::default()).await?.into_iter().filter_map(|one| one.reason).collect();
        for reason in ["NoPods", "Completed"] {
            ensure!(told.contains(reason), "no Event {reason}: {told:?}");
        }
        Ok(())
    })
}

async fn rolled_out(api: &Api<Deployment>, name: &str) -> Result<()> {
    let done = |deployment: Option<&Deployment>| {
        deployment.is_some_and(|deployment| {
            let status = deployment.status.clone().unwrap_or_default();
            status.observed_generation == deployment.metadata.generation
                && status.updated_replicas == Some(2)
                && status.available_replicas == Some(2)
                && status.replicas == Some(2)
        })
    };
    let wait = await_condition(api.clone(), name, done);
    tokio::time::timeout(PATIENCE, wait).await.context("the rollout does not end")??;
    Ok(())
}

async fn pod_names(env: &Env, namespace: &str) -> Result<BTreeSet<String>> {
    let pods =
        pods::api(&env.client, namespace).list(&kube::api::ListParams::default().labels("app=web")).await?;
    Ok(pods
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter_map(|pod| pod.metadata.name)
        .collect())
}

/// Far more events than the budget of [`a_budget_of_events_samples_one_session_and_ends_another`] allows.
const PROGRAMS: u32 = 300;

#[test]
fn a_budget_of_events_samples_one_session_and_ends_another() -> Result<()> {
    in_namespace("budget", |env, ns| async move {
        let (a, _) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("idle", "budget", &["sleep"]).on(&a).start(&api).await?;
        let session = async |name: &str, policy: &str| {
            let mut spec = Session::spec_of("budget", WINDOW, &["processes"]);
            spec["budget"] = json!({ "eventsPerSecond": 2, "onExceeded": policy });
            let session = Session::create(&env.client, &ns, name, spec).await?;
            session.recording().await?;
            anyhow::Ok(session)
        };
        let sampled = session("sampled", "Sample").await?;
        let stopped = session("stopped", "Stop").await?;
        let programs = PROGRAMS.to_string();
        PodSpec::workload("spawner", "budget", &["spawn", &programs, "/usr/bin/true"])
            .on(&a)
            .run(&api)
            .await?;

        let exceeded = crds::conditions::session::BUDGET_EXCEEDED;
        ensure!(sampled.condition(exceeded, "True").await? == "Sampling", "of `sampled`");
        let dataset = Dataset::complete(&env, &sampled).await?;
        let rows = dataset.table("processes").await?;
        let ledger = dataset.table("ledger").await?;
        let of = |term: &str| sum(&ledger, term);
        let (emitted, exported, left_out) = (of("emitted")?, of("exported")?, of("sampled_out")?);
        // Each program is a fork, an exec and an exit.
        ensure!(emitted >= i64::from(3 * PROGRAMS), "{emitted} events of {PROGRAMS} programs");
        // That they and what was filtered are all there is, is what every dataset is checked for.
        ensure!(sum(&rows, "weight")? == exported, "{exported} exported, by the ledger");
        ensure!(left_out > 0, "{emitted} events, and every one has a row");
        ensure!((rows.len() as i64) * 2 < emitted, "{} rows for {emitted} events", rows.len());

        let ended = stopped.phase("Completed").await?;
        let why = tracelake_e2e::session::condition(&ended, exceeded);
        ensure!(why == Some(("True".to_owned(), "BudgetStopped".to_owned())), "of `stopped`: {why:?}");
        let status = serde_json::to_string(&ended.status)?;
        ensure!(status.contains(&format!("{a}: eventsPerSecond is 2,")), "no node is named in {status}");
        Ok(())
    })
}
