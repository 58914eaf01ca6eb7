// SPDX-License-Identifier: Apache-2.0

//! The operator's replicas: when the one that leads goes away the next one takes its place, and running sessions do not
//! notice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::DeleteParams;
use kube::runtime::wait::await_condition;
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::rows::{Dataset, text};
use tracelake_e2e::session::Session;
use tracelake_e2e::{Env, in_namespace};

const LEASE: &str = "tracelake-operator";
const SLICE: &str = "tracelake-operator-leader";
/// From the end of a leader that was asked to stop, as its pod's deletion is, until another leads.
const AFTER_STOP: Duration = Duration::from_secs(5);
/// From the death of a leader without a word until another leads.
const AFTER_DEATH: Duration = Duration::from_secs(15);
/// For pods to start on nodes that may be emulated.
const PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn running_sessions_do_not_notice_that_another_replica_leads() -> Result<()> {
    in_namespace("replicas", |env, ns| async move {
        let api = pods::api(&env.client, &ns);
        PodSpec::workload("sleeper", "replicas", &["sleep"]).start(&api).await?;
        let session = Session::create(&env.client, &ns, "replicas", Session::spec("replicas", "15m")).await?;
        let before = session.recording().await?;
        let spawn = ["/usr/local/bin/workload", "spawn", "23", "/usr/bin/true"];
        for (delete, limit) in
            [(DeleteParams::default(), AFTER_STOP), (DeleteParams::default().grace_period(0), AFTER_DEATH)]
        {
            all_ready(&env).await?;
            let took = deposed(&env, &delete).await?;
            println!(
                "another replica led {took:?} after a deletion with {:?} s of grace",
                delete.grace_period_seconds
            );
            ensure!(took <= limit, "another replica led only after {took:?}, limit {limit:?}");
            pods::exec(&api, "sleeper", &spawn).await?;
        }
        // Grants, reports and the end come through the last leader.
        session.recording().await?;
        let dataset = Dataset::complete(&env, &session).await?;
        let ended = session.get().await?;
        let start = |session: &crds::TraceSession| {
            session.status.as_ref().and_then(|status| status.start_time.clone())
        };
        ensure!(start(&ended) == start(&before), "the window moved");
        let rows = dataset.table("processes").await?;
        let execs = rows
            .iter()
            .filter(|row| text(row, "event") == "exec" && text(row, "filename") == "/usr/bin/true");
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

/// Deletes the pod that leads and waits until another does, and says where it is. Returns how long that took.
async fn deposed(env: &Env, delete: &DeleteParams) -> Result<Duration> {
    let system: Api<Pod> = pods::api(&env.client, &env.system);
    let leases: Api<Lease> = Api::namespaced(env.client.clone(), &env.system);
    let slices: Api<EndpointSlice> = Api::namespaced(env.client.clone(), &env.system);
    let old = env.leader().await?.metadata.name.context("a pod has a name")?;
    let began = Instant::now();
    system.delete(&old, delete).await?;
    let another = await_condition(leases, LEASE, |lease: Option<&Lease>| {
        let holder = lease.and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref());
        holder.is_some_and(|holder| !holder.is_empty() && holder != old)
    });
    tokio::time::timeout(PATIENCE, another).await.context("nobody leads")??;
    let took = began.elapsed();
    let told = await_condition(slices, SLICE, |slice: Option<&EndpointSlice>| {
        let target = slice.and_then(|slice| slice.endpoints.first()?.target_ref.as_ref()?.name.clone());
        target.is_some_and(|name| name != old)
    });
    tokio::time::timeout(PATIENCE, told).await.context("the agents are not told who leads")??;
    println!("the agents were told {:?} after it", began.elapsed());
    Ok(took)
}
