// SPDX-License-Identifier: Apache-2.0

//! The operator's replicas: when the one that leads goes away the next one takes its place, and running sessions do not
//! notice.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::TryStreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::DeleteParams;
use kube::runtime::wait::await_condition;
use kube::runtime::watcher::watch_object;
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::rows::{Dataset, text};
use tracelake_e2e::session::{Session, WINDOW};
use tracelake_e2e::{Env, PATIENCE, in_namespace};

const LEASE: &str = "tracelake-operator";
const SLICE: &str = "tracelake-operator-leader";
/// From the end of a leader that was asked to stop, as its pod's deletion is, until another leads.
const AFTER_STOP: Duration = Duration::from_secs(5);
/// From the death of a leader without a word until another leads.
const AFTER_DEATH: Duration = Duration::from_secs(15);

#[test]
fn running_sessions_do_not_notice_that_another_replica_leads() -> Result<()> {
    in_namespace("replicas", |env, ns| async move {
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "replicas", &["sleep"]).start(&api).await?;
        let session =
            Session::create(&env.client, &ns, "replicas", Session::spec("replicas", WINDOW)).await?;
        let before = session.recording().await?;
        let spawn = ["/usr/local/bin/workload", "spawn", "23", "/usr/bin/true"];
        for (dies, limit) in [(false, AFTER_STOP), (true, AFTER_DEATH)] {
            all_ready(&env).await?;
            let took = deposed(&env, &ns, dies).await?;
            println!("another replica led {took:?} after {}", if dies { "a death" } else { "a deletion" });
            ensure!(took <= limit, "another replica led only after {took:?}, limit {limit:?}");
            pods::exec(&api, "sleeper", &spawn).await?;
        }
        // Grants, reports and the end come through the last leader.
        session.recording().await?;
        let dataset = Dataset::complete(&env, &session).await?;
        session.kept_its_window(&before).await?;
        let rows = dataset.table("processes").await?;
        let execs = rows.iter().filter(|row| {
            text(row, "pod") == "sleeper"
                && text(row, "kind") == "exec"
                && text(row, "exe") == "/usr/bin/true"
        });
        let found = execs.count();
        ensure!(found == 46, "{found} executions of 46");
        let coverage = dataset.table("coverage").await?;
        ensure!(coverage.iter().all(|row| text(row, "kind") != "gap"), "a gap: {coverage:?}");
        Ok(())
    })
}

/// Waits until every replica runs and waits for its turn.
async fn all_ready(env: &Env) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(env.client.clone(), &env.system);
    let ready = await_condition(deployments, "tracelake-operator", |deployment: Option<&Deployment>| {
        let status = deployment.and_then(|deployment| deployment.status.as_ref());
        status.is_some_and(|status| {
            status.ready_replicas.is_some_and(|ready| ready >= 2) && status.ready_replicas == status.replicas
        })
    });
    tokio::time::timeout(PATIENCE, ready).await.context("there are no two operators that are ready")??;
    Ok(())
}

/// Deletes the pod that leads, which may find time to give the Lease back or not, and waits until another leads and says where
/// it is. Returns how long it took to lead.
async fn deposed(env: &Env, namespace: &str, dies: bool) -> Result<Duration> {
    let system: Api<Pod> = pods::api(&env.client, &env.system);
    let leases: Api<Lease> = Api::namespaced(env.client.clone(), &env.system);
    let slices: Api<EndpointSlice> = Api::namespaced(env.client.clone(), &env.system);
    let leader = env.leader().await?;
    let old = leader.metadata.name.clone().context("a pod has a name")?;
    let (sender, mut changes) = tokio::sync::mpsc::unbounded_channel();
    let watching = tokio::spawn(async move {
        let mut changes = pin!(watch_object(leases, LEASE));
        while let Some(lease) = changes.try_next().await? {
            let holder = lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default();
            if sender.send((Instant::now(), holder)).is_err() {
                break;
            }
        }
        anyhow::Ok(())
    });
    let (mut since, _) = changes.recv().await.context("the Lease cannot be watched")?;
    if dies {
        let uid = leader.metadata.uid.clone().context("a pod has a UID")?;
        // A forced deletion as well gives a second, in which one that runs would say so.
        pods::signal(env, namespace, &pods::node_of(&leader)?, "tracelake-operator", Some(&uid), "STOP")
            .await?;
    } else {
        since = Instant::now();
    }
    let delete = if dies { DeleteParams::default().grace_period(0) } else { DeleteParams::default() };
    system.delete(&old, &delete).await?;
    let mut gave_back = false;
    let another = async {
        while let Some((at, holder)) = changes.recv().await {
            match holder {
                holder if holder.is_empty() => gave_back = true,
                // One that dies was last heard of then.
                holder if holder == old => since = if dies { at } else { since },
                _ => return Ok(at),
            }
        }
        bail!("the watch of the Lease has ended")
    };
    let led = tokio::time::timeout(PATIENCE, another).await.context("nobody leads")??;
    watching.abort();
    let took = led.duration_since(since);
    // One that had time to give the Lease back did not die without a word.
    ensure!(gave_back != dies, "the Lease was {} back", if gave_back { "given" } else { "not given" });
    let told = await_condition(slices, SLICE, |slice: Option<&EndpointSlice>| {
        let target = slice.and_then(|slice| slice.endpoints.first()?.target_ref.as_ref()?.name.clone());
        target.is_some_and(|name| name != old)
    });
    tokio::time::timeout(PATIENCE, told).await.context("the agents are not told who leads")??;
    println!("the agents were told {:?} after it", since.elapsed());
    Ok(took)
}
