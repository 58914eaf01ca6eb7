// SPDX-License-Identifier: Apache-2.0
//! The `ClusterTraceStore` that the chart's values describe: Helm cannot make an object of a kind that the same release
//! brings, so the operator makes it, and keeps it: what somebody else changes in its spec goes back to the values, and one
//! that was deleted is made again as soon as its sessions let it go.
//!
//! Invariant: a store without the chart's label is somebody else's and is not written to.
//!
//! Errors do not stop the operator: sessions that name the store say that it is missing, and the log and an Event on the
//! store that is there say why.

use std::pin::pin;
use std::time::Duration;

use crds::{ClusterTraceStore, ClusterTraceStoreSpec};
use futures::StreamExt;
use kube::api::{Api, DynamicObject, Patch, PatchParams, ValidationDirective};
use kube::runtime::WatchStreamExt;
use kube::runtime::events::Recorder;
use kube::runtime::watcher::watch_object;
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::events;

/// The label of what the chart has made, by which it is also found when the chart is uninstalled.
pub(crate) const LABEL: &str = "app.kubernetes.io/managed-by";
/// Its value, and the owner of the fields in `metadata.managedFields`.
pub(crate) const MANAGER: &str = "tracelake-chart";
/// Pauses between tries that fail: from the first to the last, each twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Between two looks at a store that nobody changes. What was refused is refused again, unless the kind was upgraded; and
/// Events are forgotten after an hour, so what is wrong is said again.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Makes the store and keeps it as `wanted`, until `stop` is cancelled.
pub async fn keep(client: Client, recorder: Recorder, wanted: DynamicObject, stop: CancellationToken) {
    let store = wanted.name_any();
    let stores = Api::<ClusterTraceStore>::all(client.clone());
    let mut changes = pin!(watch_object(stores, &store).default_backoff());
    let mut pause = FIRST_PAUSE;
    while let Some(settled) = stop.run_until_cancelled(settle(&client, &recorder, &wanted)).await {
        let mut wait = LOOK_EVERY;
        match settled {
            Ok(()) => pause = FIRST_PAUSE,
            Err(error) => {
                tracing::warn!(%error, store, "cannot keep the store of the chart's values, will retry");
                wait = pause;
                pause = LAST_PAUSE.min(pause * 2);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            change = changes.next() => if let Some(Err(error)) = change {
                tracing::warn!(%error, store, "watch of the store of the chart's values failed, will retry");
            }
        }
    }
}

/// One look at the store, and what follows from it.
///
/// # Errors
/// What may be mended by another try. That the values are refused is told, and no error.
pub async fn settle(client: &Client, recorder: &Recorder, wanted: &DynamicObject) -> Result<(), kube::Error> {
    let (api, store) = (Api::<ClusterTraceStore>::all(client.clone()), wanted.name_any());
    // Strict: a misspelt field is an error that the log names.
    let params =
        PatchParams { field_validation: Some(ValidationDirective::Strict), ..PatchParams::apply(MANAGER) };
    let existing = api.get_opt(&store).await?;
    let written = match (Step::of(existing.as_ref(), wanted), &existing) {
        // Not forced: one that somebody else makes in this moment is not overwritten.
        (Step::Make, _) => api.patch(&store, &params, &Patch::Apply(wanted)).await,
        (Step::Replace, Some(existing)) => {
            // The whole spec, so that nothing stays that the values do not name; and only of the version that was compared.
            let patch = json!([
                { "op": "replace", "path": "/metadata/resourceVersion", "value": existing.resource_version() },
                { "op": "replace", "path": "/spec", "value": wanted.data["spec"] },
            ]);
            let patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
            api.patch(&store, &params, &Patch::Json::<()>(patch)).await
        }
        (Step::LeaveAlone, Some(existing)) => {
            let note = format!(
                "the chart's values describe a store of this name, but this one was made by somebody else and stays as it \
                 is: give it the label {LABEL}={MANAGER} to let the chart have it, or choose another defaultStore.name"
            );
            tracing::warn!(store, "{note}");
            warn(recorder, existing, "ChartValuesNotUsed", &note).await;
            return Ok(());
        }
        (Step::AwaitEnd, _) => {
            tracing::info!(
                store,
                "the store of the chart's values is being deleted, it is made again afterwards"
            );
            return Ok(());
        }
        _ => return Ok(()),
    };
    match written {
        Ok(_) => tracing::info!(store, "the store of the chart's values is there"),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
            tracing::error!(error = status.message, store, "the store of the chart's values is refused");
            let note = format!(
                "the chart's values for this store are refused, it stays as it is: {}",
                status.message
            );
            if let Some(existing) = &existing {
                warn(recorder, existing, "ChartValuesRefused", &note).await;
            }
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// An Event on the store.
async fn warn(recorder: &Recorder, store: &ClusterTraceStore, reason: &str, note: &str) {
    events::publish(recorder, &store.object_ref(&()), "Keep", true, reason, note).await;
}

/// What is to be done about the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There is none.
    Make,
    /// It is being deleted: what is written to it now goes with it.
    AwaitEnd,
    /// Somebody else made it.
    LeaveAlone,
    /// Its spec is not that of the values.
    Replace,
    Nothing,
}

impl Step {
    fn of(existing: Option<&ClusterTraceStore>, wanted: &DynamicObject) -> Self {
        let Some(existing) = existing else { return Self::Make };
        if existing.labels().get(LABEL).is_none_or(|value| value != MANAGER) {
            return Self::LeaveAlone;
        }
        if existing.metadata.deletion_timestamp.is_some() {
            return Self::AwaitEnd;
        }
        // As types, since the API server adds defaults that the values leave out. What is no spec is its to refuse.
        match serde_json::from_value::<ClusterTraceStoreSpec>(wanted.data["spec"].clone()) {
            Ok(spec) if spec == existing.spec => Self::Nothing,
            _ => Self::Replace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn store(change: impl FnOnce(&mut Value)) -> ClusterTraceStore {
        let mut store = json!({
            "apiVersion": "tracelake.dev/v1alpha1", "kind": "ClusterTraceStore",
            "metadata": { "name": "default", "labels": { LABEL: MANAGER } },
            // As the API server completes it.
            "spec": { "s3": { "bucket": "traces", "region": "us-east-1" }, "credentials": { "secretRef": { "name": "key" } } },
        });
        change(&mut store);
        serde_json::from_value(store).unwrap()
    }

    #[test]
    fn what_is_done_about_the_store() {
        let wanted: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "tracelake.dev/v1alpha1", "kind": "ClusterTraceStore",
            "metadata": { "name": "default", "labels": { LABEL: MANAGER } },
            "spec": { "s3": { "bucket": "traces" }, "credentials": { "secretRef": { "name": "key" } } },
        }))
        .unwrap();
        let check = |what: &str, existing: Option<ClusterTraceStore>, step: Step| {
            assert_eq!(Step::of(existing.as_ref(), &wanted), step, "{what}");
        };
        check("absent", None, Step::Make);
        check("equal but for defaults", Some(store(|_| ())), Step::Nothing);
        let edits: [(&str, &str, Value); 4] = [
            ("a field that the values name", "/spec/s3/bucket", json!("elsewhere")),
            ("one that has a default", "/spec/s3/region", json!("elsewhere")),
            ("one that they do not name", "/spec/s3", json!({ "bucket": "traces", "prefix": "elsewhere" })),
            ("credentials of the other kind", "/spec/credentials", json!({ "ambient": true })),
        ];
        for (what, path, value) in edits {
            let edited = store(|store| *store.pointer_mut(path).unwrap() = value);
            check(what, Some(edited), Step::Replace);
        }
        let namespaces = store(|store| store["spec"]["allowedNamespaces"] = json!(["shop"]));
        check("namespaces that the values do not name", Some(namespaces), Step::Replace);

        let ending =
            |store: &mut Value| store["metadata"]["deletionTimestamp"] = json!("2026-11-23T00:00:00Z");
        check("terminating", Some(store(ending)), Step::AwaitEnd);
        check(
            "edited and terminating",
            Some(store(|store| {
                ending(store);
                store["spec"]["s3"]["bucket"] = json!("elsewhere");
            })),
            Step::AwaitEnd,
        );
        let foreign = |labels: Value| store(|store| store["metadata"]["labels"] = labels);
        check("somebody else's", Some(foreign(json!({}))), Step::LeaveAlone);
        check("another tool's", Some(foreign(json!({ LABEL: "Helm" }))), Step::LeaveAlone);
    }

    #[test]
    fn values_that_are_no_spec_are_left_to_the_api_server_to_refuse() {
        let wanted = DynamicObject::new("default", &kube::api::ApiResource::erase::<ClusterTraceStore>(&()))
            .data(json!({ "spec": { "s3": { "bucket": 7 } } }));
        assert_eq!(Step::of(Some(&store(|_| ())), &wanted), Step::Replace);
    }
}
