// SPDX-License-Identifier: Apache-2.0
//! Whether an installation works, for `helm test`: what has to be so before the first session can record.
//!
//! In: the API server, with the operator's own rights. Out: a line for each point, on standard output; an error when one does not
//! hold in time.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crds::ClusterTraceStore;
use crds::conditions::{self, store::READY};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::args::Args;
use crate::lease;

const POLL: Duration = Duration::from_secs(1);
const STALE: Duration = Duration::from_secs(70);

/// Looks until everything is as it should be, or the time is over; prints each point.
///
/// # Errors
/// When a point does not hold in time, or the API server does not answer.
pub async fn run(client: Client, args: &Args, timeout: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let looks = async {
            [leads(&client, args).await, store(&client, args).await, agents(&client, args).await]
                .map(|point| point.unwrap_or_else(|error| Err(error.to_string())))
        };
        let points = tokio::time::timeout(timeout, looks).await.context("the API server does not answer")?;
        let holds = points.iter().all(Result::is_ok);
        if holds || Instant::now() >= deadline {
            for point in &points {
                match point {
                    Ok(is) => println!("ok       {is}"),
                    Err(is_not) => println!("NOT OK   {is_not}"),
                }
            }
        }
        if holds {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("the installation does not work after {timeout:?}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A sentence about what is so, or about what is not.
type Point = Result<String, String>;

async fn leads(client: &Client, args: &Args) -> kube::Result<Point> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), &args.namespace);
    let spec = leases.get_opt(lease::NAME).await?.and_then(|lease| lease.spec).unwrap_or_default();
    // By the leader's clock; a minute more than it promises is no clock's fault.
    let renewed = spec.renew_time.is_some_and(|at| at.0 + STALE > jiff::Timestamp::now());
    Ok(match spec.holder_identity.filter(|holder| renewed && !holder.is_empty()) {
        Some(holder) => Ok(format!("{holder} leads")),
        None => Err("no replica of the operator leads: see its pods' logs".to_owned()),
    })
}

async fn store(client: &Client, args: &Args) -> kube::Result<Point> {
    let Some(name) = args.default_store.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(Ok("there is no default store: every session has to name one".to_owned()));
    };
    let Some(store) = Api::<ClusterTraceStore>::all(client.clone()).get_opt(name).await? else {
        return Ok(Err(format!(
            "ClusterTraceStore {name} is not there: set defaultStore.spec, or make it; sessions that name no store wait for it"
        )));
    };
    let status = store.status.unwrap_or_default();
    let ready = conditions::get(&status.conditions, READY);
    Ok(match ready {
        Some(ready) if ready.status == "True" => Ok(format!("ClusterTraceStore {name} can be written to")),
        Some(ready) => Err(format!("ClusterTraceStore {name}: {}: {}", ready.reason, ready.message)),
        None => Err(format!("ClusterTraceStore {name} has not been tried yet")),
    })
}

/// Ready means connected.
async fn agents(client: &Client, args: &Args) -> kube::Result<Point> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), args.agents());
    let all = pods.list(&ListParams::default().labels(&args.agent_labels)).await?.items;
    let ready = |pod: &&Pod| {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
    };
    let away: Vec<String> = all.iter().filter(|pod| !ready(pod)).map(ResourceExt::name_any).collect();
    Ok(match (all.len(), away.len()) {
        (0, _) => Err("there is no node agent: see DaemonSet tracelake-node-agent".to_owned()),
        (count, 0) => Ok(format!("{count} of {count} node agents are connected")),
        (count, _) => Err(format!(
            "{} of {count} node agents are connected; not {}: see their logs",
            count - away.len(),
            away.join(", ")
        )),
    })
}
