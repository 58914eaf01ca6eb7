// SPDX-License-Identifier: Apache-2.0
//! The `ClusterTraceStore` that the chart's values describe: Helm cannot make an object of a kind that the same release
//! brings, so the operator makes it, at each of its starts. What somebody else changed in it goes back to the values.
//!
//! Errors do not stop the operator: sessions that name the store say that it is missing, and the log says why.

use std::time::Duration;

use crds::ClusterTraceStore;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, ValidationDirective};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

/// Owner of the fields, as in `metadata.managedFields`.
const MANAGER: &str = "tracelake-chart";
/// Pauses between tries: from the first to the last, each twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Makes the store, or brings it to `store`; tries until it succeeds or `stop` is cancelled.
pub async fn apply(client: Client, store: DynamicObject, stop: CancellationToken) {
    let api: Api<DynamicObject> = Api::all_with(client, &ApiResource::erase::<ClusterTraceStore>(&()));
    // Strict: a misspelt field is an error that the log names.
    let params = PatchParams {
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply(MANAGER).force()
    };
    let name = store.name_any();
    let mut pause = FIRST_PAUSE;
    loop {
        match api.patch(&name, &params, &Patch::Apply(&store)).await {
            Ok(_) => return tracing::info!(store = name, "the store of the chart's values is there"),
            Err(error) => {
                tracing::warn!(%error, store = name, "cannot make the store of the chart's values, will retry")
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = LAST_PAUSE.min(pause * 2),
        }
    }
}
