// SPDX-License-Identifier: Apache-2.0
//! Whose store and whose keys a session of one of two tenants gets: what the operator decides, whatever the API server let through.

#[path = "reconcile/api.rs"]
#[allow(dead_code, reason = "shared with the tests of sessions, which use the rest")]
mod api;

use api::Api;
use crds::TraceSession;
use crds::conditions::reason;
use dataset::key::SessionPrefix;
use serde_json::{Value, json};
use tracelake_operator::store::{EndpointPolicy, StoreConfig, Stores};

const ENDPOINT: &str = "https://s3.example.com";
const GROUP: &str = "/apis/tracelake.dev/v1alpha1";

/// Two tenants, `shop` and `bank`. Secrets `key` are the operator's and the bank's; the shop has none.
fn cluster() -> Api {
    let api = Api::default();
    for (namespace, name) in [("tracelake", "key"), ("bank", "key")] {
        api.apply(
            &format!("/api/v1/namespaces/{namespace}/secrets/{name}"),
            &format!(
                "{{apiVersion: v1, kind: Secret, metadata: {{name: {name}, namespace: {namespace}}},
 data: {{accessKeyId: QUtXUklURVI=, secretAccessKey: d3JpdGVyLXNlY3JldA==}}}}"
            ),
        );
    }
    api
}

fn store(api: &Api, namespace: Option<&str>, name: &str, more: &Value) {
    let (kind, path) = match namespace {
        Some(namespace) => ("TraceStore", format!("{GROUP}/namespaces/{namespace}/tracestores/{name}")),
        None => ("ClusterTraceStore", format!("{GROUP}/clustertracestores/{name}")),
    };
    let mut object = json!({ "apiVersion": "tracelake.dev/v1alpha1", "kind": kind,
        "metadata": { "name": name, "namespace": namespace, "uid": "store-uid", "generation": 1 },
        "spec": { "s3": { "bucket": "b", "prefix": "team", "endpoint": ENDPOINT }, "credentials": { "secretRef": { "name": "key" } } } });
    for (field, value) in more.as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    api.apply(&path, &object.to_string());
}

/// Where the shop's session would write; else the reason and the sentence.
async fn resolved(api: &Api, kind: &str, name: &str) -> Result<String, (&'static str, String)> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = StoreConfig {
        operator_namespace: "tracelake".to_owned(),
        default_store: None,
        secret_namespaces: vec!["bank".to_owned(), "shop".to_owned()],
        endpoints: EndpointPolicy { allowed: vec![ENDPOINT.to_owned()], guard: Default::default() },
        extra_ca: None,
    };
    let session: TraceSession =
        serde_json::from_value(json!({ "apiVersion": "tracelake.dev/v1alpha1", "kind": "TraceSession",
        "metadata": { "name": "checkout", "namespace": "shop", "uid": "uid" },
        "spec": { "target": { "podSelector": {} }, "collectors": [{ "name": "processes" }], "duration": "1m",
            "storeRef": { "kind": kind, "name": name } } }))
        .unwrap();
    let store = Stores::new(api.client(), config).resolve(&session).await;
    store.map(|store| store.dataset().uri).map_err(|problem| (problem.reason, problem.message))
}

fn refused(reason: &'static str, message: &str) -> Result<String, (&'static str, String)> {
    Err((reason, message.to_owned()))
}

#[tokio::test]
async fn a_tenants_store_is_the_one_beside_the_session_with_the_secret_beside_the_store() {
    let api = cluster();
    store(&api, Some("bank"), "theirs", &json!({}));
    let missing = refused(reason::STORE_NOT_FOUND, "there is no TraceStore theirs in namespace shop");
    assert_eq!(resolved(&api, "TraceStore", "theirs").await, missing);

    // Neither the bank's Secret of that name nor the operator's.
    store(&api, Some("shop"), "own", &json!({}));
    let missing = refused(reason::SECRET_NOT_FOUND, "there is no Secret key in namespace shop");
    assert_eq!(resolved(&api, "TraceStore", "own").await, missing);
    api.apply(
        "/api/v1/namespaces/shop/secrets/key",
        "{apiVersion: v1, kind: Secret, metadata: {name: key, namespace: shop},
 data: {accessKeyId: QUtXUklURVI=, secretAccessKey: d3JpdGVyLXNlY3JldA==}}",
    );
    let own = Ok("s3://b/team/shop/checkout/uid".to_owned());
    assert_eq!(resolved(&api, "TraceStore", "own").await, own);
}

#[tokio::test]
async fn a_tenants_store_never_borrows_the_operators_identity() {
    let api = cluster();
    let message =
        "spec.credentials.secretRef is missing: only a ClusterTraceStore may use ambient credentials";
    store(&api, Some("shop"), "ambient", &json!({ "credentials": { "ambient": true } }));
    assert_eq!(resolved(&api, "TraceStore", "ambient").await, refused(reason::STORE_INVALID, message));
    store(&api, Some("shop"), "neither", &json!({ "credentials": {} }));
    assert_eq!(resolved(&api, "TraceStore", "neither").await, refused(reason::STORE_INVALID, message));
    store(&api, None, "ambient", &json!({ "credentials": { "ambient": true } }));
    assert!(resolved(&api, "ClusterTraceStore", "ambient").await.is_ok(), "an administrator's may");
}

#[tokio::test]
async fn a_store_that_is_for_others_takes_no_session_and_one_for_all_keeps_them_apart() {
    let api = cluster();
    store(&api, None, "theirs", &json!({ "allowedNamespaces": ["bank"] }));
    let message = "ClusterTraceStore theirs does not list namespace shop in spec.allowedNamespaces";
    assert_eq!(
        resolved(&api, "ClusterTraceStore", "theirs").await,
        refused(reason::NAMESPACE_NOT_ALLOWED, message)
    );
    store(&api, None, "all", &json!({}));
    let own = Ok("s3://b/team/shop/checkout/uid".to_owned());
    assert_eq!(resolved(&api, "ClusterTraceStore", "all").await, own);
    // Names that would climb out of it are no names.
    for (namespace, session) in [("..", "x"), ("shop/../bank", "x"), ("shop", "../../bank/x"), ("shop", "")] {
        assert!(SessionPrefix::new("team", namespace, session, "uid").is_err(), "{namespace}/{session}");
    }
}

#[tokio::test]
async fn a_tenants_endpoint_is_on_the_list_and_an_administrators_need_not_be() {
    let api = cluster();
    let elsewhere =
        json!({ "s3": { "bucket": "b", "endpoint": "http://tracelake-dev-store.tracelake.svc:8333" } });
    store(&api, Some("shop"), "inside", &elsewhere);
    let (found, message) = resolved(&api, "TraceStore", "inside").await.unwrap_err();
    assert_eq!(found, reason::ENDPOINT_NOT_ALLOWED, "{message}");
    store(&api, None, "inside", &elsewhere);
    assert!(resolved(&api, "ClusterTraceStore", "inside").await.is_ok());
}
