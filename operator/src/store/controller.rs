// SPDX-License-Identifier: Apache-2.0
//! Keeps each store's condition `Ready` true to fact.
//!
//! In: stores and Secrets, watched. Out: `status.conditions` and `status.conditionalPut`, written on change only, and a
//! finalizer that keeps a store while a session that is not over writes to it.
//!
//! A store is tried when it or its Secret changes, every ten minutes while it is ready, and while it is not every fifteen seconds, less
//! often the longer that lasts, all with jitter; so many at a time, since a tenant may make any number. The same version is not tried twice within those times: the status that this
//! controller writes would otherwise trigger the next try.
//!
//! Secrets are watched only in the operator's namespace and in those that the chart lists; elsewhere a mended Secret
//! is found at the next try.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crds::conditions::{self, reason, store::READY};
use crds::{ClusterTraceStore, STORE_FINALIZER, StoreRef, StoreStatus, TraceSession, TraceStore};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::Controller;
use kube::runtime::controller::{Action, Config};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use rand::Rng;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Probed, StoreObject, StoreProblem, Stores};

/// Between two tries of a store that is ready.
const READY_EVERY: Duration = Duration::from_secs(600);
/// Between two tries of a store that is not, at first and at last: see [`patience`].
const NOT_READY_EVERY: Duration = Duration::from_secs(15);
const NOT_READY_MOST: Duration = Duration::from_secs(120);
/// Stores of a kind that are tried at the same time.
const AT_ONCE: u16 = 16;
/// Between two looks at whether a deleted store is still in use.
const IN_USE_EVERY: Duration = Duration::from_secs(5);
/// Of the API server; its errors are retried.
const API_EVERY: Duration = Duration::from_secs(10);

/// Runs both controllers until `stop`.
pub async fn run(client: Client, stores: Arc<Stores>, stop: CancellationToken) {
    tokio::join!(
        run_kind::<ClusterTraceStore>(Api::all(client.clone()), &client, &stores, &stop),
        run_kind::<TraceStore>(Api::all(client.clone()), &client, &stores, &stop),
    );
}

async fn run_kind<K>(api: Api<K>, client: &Client, stores: &Arc<Stores>, stop: &CancellationToken)
where
    K: StoreObject,
{
    let mut controller = Controller::new(api, watcher::Config::default());
    let operator_namespace = stores.config.operator_namespace.clone();
    let mut namespaces = vec![operator_namespace.clone()];
    if !K::TRUSTED {
        namespaces.extend(stores.config.secret_namespaces.iter().cloned());
        namespaces.sort();
        namespaces.dedup();
    }
    for namespace in namespaces {
        let known = controller.store();
        let operator_namespace = operator_namespace.clone();
        // Helm keeps its releases in Secrets, each up to a megabyte.
        let config = watcher::Config::default().fields("type!=helm.sh/release.v1");
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
        controller = controller.watches(secrets, config, move |secret: Secret| {
            let (name, namespace) = (secret.name_any(), secret.namespace().unwrap_or_default());
            let uses = |store: &Arc<K>| {
                store.credentials().secret_ref.as_ref().is_some_and(|reference| reference.name == name)
                    && store.secret_namespace(&operator_namespace) == namespace
            };
            let affected: Vec<_> = known
                .state()
                .iter()
                .filter(|store| uses(store))
                .map(|store| ObjectRef::from_obj(&**store))
                .collect();
            affected
        });
    }
    let stop = stop.clone();
    controller
        .with_config(Config::default().concurrency(AT_ONCE))
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile::<K>, |_, _, _| Action::requeue(jittered(API_EVERY)), stores.clone())
        .for_each(|result| async move {
            if let Err(error) = result {
                warn!(%error, kind = %K::kind(&()), "store not reconciled, will retry");
            }
        })
        .await;
}

async fn reconcile<K: StoreObject>(store: Arc<K>, stores: Arc<Stores>) -> Result<Action, kube::Error> {
    if store.meta().deletion_timestamp.is_some() {
        return release(&*store, &stores).await;
    }
    if !store.finalizers().iter().any(|name| name == STORE_FINALIZER) {
        let mut finalizers = store.finalizers().to_vec();
        finalizers.push(STORE_FINALIZER.to_owned());
        // The patch triggers the next reconcile, which tries the store.
        set_finalizers(&*store, &stores, &finalizers).await?;
        return Ok(Action::await_change());
    }
    let (result, mut wait) = try_store(&*store, &stores).await;
    if result.is_err() {
        wait = wait.max(patience(store.status(), Timestamp::now()));
    }
    write_status(&*store, &stores, &result).await?;
    Ok(Action::requeue(wait))
}

/// How long to leave a store alone that is not ready: a tenth of how long that has been so, at most [`NOT_READY_MOST`]. Whoever changes
/// the resource or its Secret has it tried at once, and sessions that wait try it themselves.
fn patience(status: Option<&StoreStatus>, now: Timestamp) -> Duration {
    let ready = status.and_then(|status| conditions::get(&status.conditions, READY));
    let since = ready.filter(|ready| ready.status == "False").map(|ready| ready.last_transition_time.0);
    let age = since.and_then(|since| Duration::try_from(now.duration_since(since)).ok());
    jittered((age.unwrap_or_default() / 10).clamp(NOT_READY_EVERY, NOT_READY_MOST))
}

/// The newest result for this version, and when to look again.
async fn try_store<K: StoreObject>(store: &K, stores: &Stores) -> (Result<Probed, StoreProblem>, Duration) {
    let read = stores.read_of(store, None).await;
    let (s3, version, connection) = match read.and_then(|read| stores.open(read, None)) {
        Ok(opened) => opened,
        Err(problem) => return (Err(problem), jittered(NOT_READY_EVERY)),
    };
    if let Some(done) = stores.probes.last(&version) {
        let every = if done.result.is_ok() { READY_EVERY } else { NOT_READY_EVERY };
        // A little early counts as due, so that a timer that fires early does not cost a second one.
        let left = every.saturating_sub(done.at.elapsed());
        if left > every / 8 {
            return (done.result, left);
        }
    }
    let begun = Instant::now();
    let result = stores.probes.now(&version, &s3, &connection).await;
    let every = if result.is_ok() { READY_EVERY } else { NOT_READY_EVERY };
    info!(
        kind = %K::kind(&()),
        namespace = store.namespace(),
        store = store.name_any(),
        ready = result.is_ok(),
        reason = result.as_ref().err().map(|problem| problem.reason),
        took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        "store tried"
    );
    (result, jittered(every))
}

async fn write_status<K: StoreObject>(
    store: &K,
    stores: &Stores,
    result: &Result<Probed, StoreProblem>,
) -> Result<(), kube::Error> {
    let old = store.status().cloned().unwrap_or_default();
    let new = next_status(&old, store.meta().generation, result, &Time(Timestamp::now()));
    if new == old {
        return Ok(());
    }
    let patch = json!({ "status": new });
    store
        .api(stores.client.clone())
        .patch_status(&store.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}

fn next_status(
    old: &StoreStatus,
    generation: Option<i64>,
    result: &Result<Probed, StoreProblem>,
    now: &Time,
) -> StoreStatus {
    let mut new = old.clone();
    new.observed_generation = generation;
    let (status, reason, message) = match result {
        Ok(Probed { conditional_put: true }) => {
            (true, reason::PROBE_SUCCEEDED, "an object was put, read, not overwritten, and deleted")
        }
        Ok(Probed { conditional_put: false }) => (
            true,
            reason::CONDITIONAL_PUT_UNSUPPORTED,
            "an object was put, read and deleted; but the store overwrites where it is asked to create only",
        ),
        Err(problem) => (false, problem.reason, problem.message.as_str()),
    };
    if let Ok(probed) = result {
        new.conditional_put = Some(probed.conditional_put);
    }
    conditions::set(&mut new.conditions, READY, Some(status), reason, message, generation, now);
    new
}

/// Lets a deleted store go when no session that is not over writes to it.
async fn release<K: StoreObject>(store: &K, stores: &Stores) -> Result<Action, kube::Error> {
    if !store.finalizers().iter().any(|name| name == STORE_FINALIZER) {
        return Ok(Action::await_change());
    }
    let sessions: Api<TraceSession> = match store.namespace() {
        Some(namespace) => Api::namespaced(stores.client.clone(), &namespace),
        None => Api::all(stores.client.clone()),
    };
    let store_ref = StoreRef { kind: K::KIND, name: store.name_any() };
    let users = sessions.list(&Default::default()).await?;
    if let Some(user) = users.iter().find(|session| writes_to(session, &store_ref)) {
        info!(
            kind = %K::kind(&()),
            store = store.name_any(),
            session = format!("{}/{}", user.namespace().unwrap_or_default(), user.name_any()),
            "deleted store is still in use"
        );
        return Ok(Action::requeue(jittered(IN_USE_EVERY)));
    }
    let rest: Vec<String> =
        store.finalizers().iter().filter(|name| *name != STORE_FINALIZER).cloned().collect();
    set_finalizers(store, stores, &rest).await?;
    stores.probes.forget(&store.uid().unwrap_or_default());
    Ok(Action::await_change())
}

/// Whether a session has started on this store and is not over.
fn writes_to(session: &TraceSession, store_ref: &StoreRef) -> bool {
    let Some(status) = &session.status else { return false };
    let over = status.phase.is_some_and(crds::Phase::is_over);
    !over && status.dataset.as_ref().is_some_and(|dataset| dataset.store_ref == *store_ref)
}

async fn set_finalizers<K: StoreObject>(
    store: &K,
    stores: &Stores,
    finalizers: &[String],
) -> Result<(), kube::Error> {
    // With the version read, so that a finalizer that another controller added meanwhile is not lost.
    let patch =
        json!({ "metadata": { "finalizers": finalizers, "resourceVersion": store.resource_version() } });
    match store
        .api(stores.client.clone())
        .patch_metadata(&store.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Up to a tenth more, so that stores are not all tried at once.
fn jittered(time: Duration) -> Duration {
    time + time.mul_f64(rand::rng().random_range(0.0..0.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_same_result_again_changes_nothing() {
        let ready = Ok(Probed { conditional_put: true });
        let first = next_status(&StoreStatus::default(), Some(1), &ready, &at(1));
        assert!(conditions::is_true(&first.conditions, READY));
        assert_eq!(next_status(&first, Some(1), &ready, &at(2)), first);
    }

    #[test]
    fn a_problem_is_shown_and_keeps_what_is_known_of_the_store() {
        let ready = Ok(Probed { conditional_put: true });
        let first = next_status(&StoreStatus::default(), Some(1), &ready, &at(1));
        let broken = Err(StoreProblem::new(reason::ACCESS_DENIED, "the store answered 403"));
        let second = next_status(&first, Some(2), &broken, &at(2));
        let condition = conditions::get(&second.conditions, READY).unwrap();
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", reason::ACCESS_DENIED));
        assert_eq!(second.conditional_put, Some(true));
        assert_eq!(second.observed_generation, Some(2));
    }

    #[test]
    fn only_a_started_session_that_is_not_over_holds_its_store() {
        let store_ref = StoreRef { kind: crds::StoreKind::ClusterTraceStore, name: "default".to_owned() };
        let session = |phase: Option<&str>, store: Option<&str>| -> TraceSession {
            let dataset = store.map(|name| {
                json!({
                    "uri": "s3://b/ns/s/u", "schemaVersion": 1, "region": "r", "bucket": "b",
                    "storeRef": { "kind": "ClusterTraceStore", "name": name }
                })
            });
            serde_json::from_value(json!({
                "apiVersion": "tracelake.dev/v1alpha1", "kind": "TraceSession",
                "metadata": { "name": "s", "namespace": "ns" },
                "spec": { "target": { "podNames": ["p"] }, "collectors": [{ "name": "processes" }], "duration": "1m" },
                "status": { "phase": phase, "dataset": dataset }
            }))
            .unwrap()
        };
        assert!(writes_to(&session(Some("Running"), Some("default")), &store_ref));
        assert!(writes_to(&session(Some("Draining"), Some("default")), &store_ref));
        assert!(!writes_to(&session(Some("Running"), Some("other")), &store_ref));
        assert!(!writes_to(&session(Some("Completed"), Some("default")), &store_ref));
        assert!(!writes_to(&session(Some("Pending"), None), &store_ref));
    }
}
