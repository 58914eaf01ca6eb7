// SPDX-License-Identifier: Apache-2.0
//! The store of the chart's values.

use std::time::Duration;

use kube::api::DynamicObject;
use kube::runtime::events::{Recorder, Reporter};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracelake_operator::store::chart;

use crate::api::{Api, STORE};
use crate::soon;

fn values() -> Value {
    json!({
        "apiVersion": "tracelake.dev/v1alpha1", "kind": "ClusterTraceStore",
        "metadata": { "name": "default", "labels": { "app.kubernetes.io/managed-by": "tracelake-chart" } },
        "spec": { "s3": { "bucket": "traces" }, "credentials": { "ambient": true } },
    })
}

fn wanted() -> DynamicObject {
    serde_json::from_value(values()).unwrap()
}

fn recorder(api: &Api) -> Recorder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Recorder::new(api.client(), Reporter { controller: "test".to_owned(), instance: None })
}

/// One look, and the writes that it costs.
async fn settle(api: &Api) -> Vec<String> {
    chart::settle(&api.client(), &recorder(api), &wanted()).await.unwrap();
    api.writes()
}

fn spec(api: &Api) -> Value {
    api.0.lock().unwrap().objects[STORE]["spec"].clone()
}

#[tokio::test]
async fn the_charts_store_is_made_and_brought_back_whole() {
    let api = Api::default();
    let write = [format!("PATCH {STORE}")];
    assert_eq!(settle(&api).await, write);
    assert_eq!(spec(&api), values()["spec"]);
    assert_eq!(settle(&api).await, Vec::<String>::new(), "it is as the values say");

    api.change(STORE, |store| {
        store["spec"] = json!({ "s3": { "bucket": "traces", "prefix": "elsewhere" },
            "credentials": { "secretRef": { "name": "key" } }, "allowedNamespaces": ["shop"] });
    });
    assert_eq!(settle(&api).await, write);
    assert_eq!(spec(&api), values()["spec"]);
    assert!(api.events().is_empty());
}

#[tokio::test]
async fn the_charts_store_is_kept_until_the_operator_stops() {
    let (api, stop) = (Api::default(), CancellationToken::new());
    let keeping = tokio::spawn(chart::keep(api.client(), recorder(&api), wanted(), stop.clone()));
    let as_wanted = || {
        let store = api.0.lock().unwrap().objects.get(STORE).cloned();
        store.is_some_and(|store| store["spec"] == values()["spec"])
    };
    soon("the store", as_wanted).await;
    api.change(STORE, |store| store["spec"]["s3"]["prefix"] = "elsewhere".into());
    soon("the store as before", as_wanted).await;

    api.change(STORE, |store| store["metadata"]["deletionTimestamp"] = "2026-11-23T00:00:00Z".into());
    tokio::time::sleep(Duration::from_millis(200)).await;
    api.writes();
    api.change(STORE, |store| store["spec"]["s3"]["bucket"] = "elsewhere".into());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(api.writes(), Vec::<String>::new(), "what is written to it now goes with it");
    api.remove(STORE);
    soon("the store again", as_wanted).await;

    stop.cancel();
    keeping.await.unwrap();
    api.remove(STORE);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!as_wanted(), "an operator that stops makes no store");
}

#[tokio::test]
async fn a_store_that_somebody_else_made_is_left_alone_and_says_so() {
    let api = Api::default();
    settle(&api).await;
    api.change(STORE, |store| {
        store["metadata"]["labels"] = json!({});
        store["spec"]["s3"]["bucket"] = "elsewhere".into();
    });
    assert_eq!(settle(&api).await, Vec::<String>::new());
    assert_eq!(spec(&api)["s3"]["bucket"], "elsewhere");
    assert_eq!(api.events(), ["ChartValuesNotUsed"]);
}

#[tokio::test]
async fn values_that_are_refused_are_told_on_the_store_that_stays() {
    let api = Api::default();
    settle(&api).await;
    api.change(STORE, |store| store["spec"]["s3"]["bucket"] = "before".into());
    api.0.lock().unwrap().refusing = true;
    settle(&api).await;
    assert_eq!(spec(&api)["s3"]["bucket"], "before");
    assert_eq!(api.events(), ["ChartValuesRefused"]);
}
