// SPDX-License-Identifier: Apache-2.0
//! What the chart runs as a Job, beside the operator's own process.
//!
//! `uninstall` runs before anything is deleted: it ends every session while the operator still runs, so that what is
//! spooled is uploaded, then stops the operator and takes the finalizers that nobody would take afterwards (an object that
//! cannot be deleted also keeps its namespace). It may be run again at any point. Data in the stores are never touched.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crds::{ClusterTraceStore, SESSION_FINALIZER, STORE_FINALIZER, TraceSession, TraceStore};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::lease;
use crate::store::chart;

const OPERATOR: &str = "tracelake-operator";
const OPERATOR_PODS: &str = "app.kubernetes.io/name=tracelake,app.kubernetes.io/component=operator";
/// For the operator's pod to end.
const SETTLE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(500);

/// Ends sessions and clears finalizers.
///
/// # Errors
/// When the API server refuses, or the operator's pod does not end.
pub async fn uninstall(
    client: Client,
    namespace: &str,
    leader_service: &str,
    timeout: Duration,
) -> anyhow::Result<()> {
    let sessions = Api::<TraceSession>::all(client.clone());
    let deadline = Instant::now() + timeout;
    loop {
        let left = end_all(&client, &sessions).await?;
        if left == 0 {
            break;
        }
        if Instant::now() >= deadline {
            tracing::warn!(
                sessions = left,
                "sessions have not ended in time, what they did not upload is discarded"
            );
            // The operator sees them go and tells the agents, which clear their spools, before it stops.
            release_sessions(&client, &sessions).await?;
            break;
        }
        tokio::time::sleep(POLL).await;
    }

    stop_operator(&client, namespace).await?;

    // Those that were made in between, and all of them where no operator runs.
    end_all(&client, &sessions).await?;
    release_sessions(&client, &sessions).await?;
    let stores = Api::<ClusterTraceStore>::all(client.clone());
    // Only now: an operator that runs would make it again.
    for store in list(&stores, &format!("{}={}", chart::LABEL, chart::MANAGER)).await? {
        delete(&stores, &store).await?;
    }
    for store in list(&stores, "").await? {
        release(&stores, &store, STORE_FINALIZER).await?;
    }
    for store in list(&Api::<TraceStore>::all(client.clone()), "").await? {
        release(&namespaced(&client, &store), &store, STORE_FINALIZER).await?;
    }
    // What the last leader has written of itself.
    delete_named(&Api::<Lease>::namespaced(client.clone(), namespace), lease::NAME).await?;
    delete_named(&Api::<EndpointSlice>::namespaced(client, namespace), leader_service).await?;
    tracing::info!("sessions ended, finalizers cleared");
    Ok(())
}

/// Deletes every session, also those made since the last call. Returns how many there are still.
async fn end_all(client: &Client, sessions: &Api<TraceSession>) -> anyhow::Result<usize> {
    let left = list(sessions, "").await?;
    for session in left.iter().filter(|session| session.metadata.deletion_timestamp.is_none()) {
        delete(&namespaced(client, session), session).await?;
    }
    Ok(left.len())
}

async fn release_sessions(client: &Client, sessions: &Api<TraceSession>) -> anyhow::Result<()> {
    for session in list(sessions, "").await? {
        release(&namespaced(client, &session), &session, SESSION_FINALIZER).await?;
    }
    Ok(())
}

/// An operator that runs would put its finalizers back, and the store of the chart's values.
async fn stop_operator(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let none = json!({ "spec": { "replicas": 0 } });
    match deployments.patch_scale(OPERATOR, &PatchParams::default(), &Patch::Merge(&none)).await {
        Ok(_) => {}
        // Deleted before; its pod may still be ending.
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error).context("scale the operator to 0"),
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + SETTLE;
    // One that was evicted, or whose node shut down, stays as it ended: nobody removes it with the others, and it does nothing.
    let runs = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        !matches!(phase, Some("Failed" | "Succeeded"))
    };
    while list(&pods, OPERATOR_PODS).await?.iter().any(runs) {
        if Instant::now() >= deadline {
            bail!(
                "the operator's pods in namespace {namespace} do not end: delete them, then uninstall again"
            );
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// A kind that is not there has no objects.
async fn list<K>(api: &Api<K>, labels: &str) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    match api.list(&ListParams::default().labels(labels)).await {
        Ok(found) => Ok(found.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("list {}", K::plural(&()))),
    }
}

fn namespaced<K>(client: &Client, object: &K) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), &object.namespace().unwrap_or_default())
}

async fn delete<K>(api: &Api<K>, object: &K) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    delete_named(api, &object.name_any()).await
}

async fn delete_named<K>(api: &Api<K>, name: &str) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("delete {} {name}", K::kind(&()))),
    }
}

async fn release<K>(api: &Api<K>, object: &K, finalizer: &str) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    if !object.finalizers().iter().any(|name| name == finalizer) {
        return Ok(());
    }
    let rest: Vec<&String> = object.finalizers().iter().filter(|name| *name != finalizer).collect();
    let patch = json!({ "metadata": { "finalizers": rest } });
    match api.patch_metadata(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error)
            .with_context(|| format!("take the finalizer of {} {}", K::kind(&()), object.name_any())),
    }
}
