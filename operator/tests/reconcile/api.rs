// SPDX-License-Identifier: Apache-2.0
//! An API server of a few objects, which counts what is written to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crds::{TraceSession, TraceSessionStatus};
use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// Path of the one session of most tests.
pub(crate) const SESSION: &str = "/apis/tracelake.dev/v1alpha1/namespaces/shop/tracesessions/checkout";
const SESSIONS: &str = "/apis/tracelake.dev/v1alpha1/tracesessions";
const PODS: &str = "/api/v1/namespaces/shop/pods";

#[derive(Default)]
pub(crate) struct World {
    /// By path.
    pub(crate) objects: BTreeMap<String, Value>,
    pub(crate) pods: Vec<Value>,
    /// Method and path of every write but Events.
    pub(crate) writes: Vec<String>,
    /// Reasons of Events.
    pub(crate) events: Vec<String>,
    version: u64,
}

#[derive(Clone, Default)]
pub(crate) struct Api(pub(crate) Arc<Mutex<World>>);

impl Api {
    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.serve(request).await) }
        });
        Client::new(service, "default")
    }

    async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        if parts.uri.query().is_some_and(|query| query.contains("watch=true")) {
            // Nothing ever happens.
            std::future::pending::<()>().await;
        }
        let body: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap_or_default();
        let (status, answer) = self.0.lock().unwrap().answer(&parts.method, &path, body);
        let answer = Body::from(serde_json::to_vec(&answer).unwrap());
        Response::builder().status(status).header("content-type", "application/json").body(answer).unwrap()
    }

    /// Puts an object there, as a user would.
    pub(crate) fn apply(&self, path: &str, yaml: &str) {
        let object: Value = serde_yaml::from_str(yaml).unwrap();
        self.put(path, object);
    }

    fn put(&self, path: &str, mut object: Value) {
        let mut world = self.0.lock().unwrap();
        world.version += 1;
        object["metadata"]["resourceVersion"] = world.version.to_string().into();
        world.objects.insert(path.to_owned(), object);
    }

    /// Changes an object, as a user would.
    pub(crate) fn change(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.0.lock().unwrap().objects[path].clone();
        change(&mut object);
        self.put(path, object);
    }

    pub(crate) fn add_pod(&self, name: &str, node: &str) {
        let pod = json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
            "spec": {"nodeName": node, "containers": []}, "status": {"phase": "Running"}});
        self.0.lock().unwrap().pods.push(pod);
    }

    pub(crate) fn session(&self) -> Arc<TraceSession> {
        Arc::new(serde_json::from_value(self.0.lock().unwrap().objects[SESSION].clone()).unwrap())
    }

    pub(crate) fn status(&self) -> TraceSessionStatus {
        self.session().status.clone().unwrap_or_default()
    }

    /// The writes since the last call.
    pub(crate) fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().writes)
    }

    pub(crate) fn events(&self) -> Vec<String> {
        self.0.lock().unwrap().events.clone()
    }
}

impl World {
    fn answer(&mut self, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
            "message": format!("{path} not found")});
        if *method == Method::GET && path == PODS {
            let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": self.pods});
            return (StatusCode::OK, list);
        }
        if *method == Method::GET && path == SESSIONS {
            let list = json!({"kind": "TraceSessionList", "apiVersion": "tracelake.dev/v1alpha1",
                "metadata": {"resourceVersion": "1"}, "items": [self.objects[SESSION]]});
            return (StatusCode::OK, list);
        }
        if *method == Method::GET {
            return match self.objects.get(path) {
                Some(object) => (StatusCode::OK, object.clone()),
                None => (StatusCode::NOT_FOUND, missing),
            };
        }
        if path.starts_with("/apis/events.k8s.io/") {
            self.events.push(body["reason"].as_str().unwrap_or_default().to_owned());
            return (StatusCode::CREATED, body);
        }
        self.writes.push(format!("{method} {path}"));
        if *method == Method::POST || *method == Method::PUT {
            let name = body["metadata"]["name"].as_str().unwrap_or_default();
            let target = if *method == Method::POST { format!("{path}/{name}") } else { path.to_owned() };
            self.version += 1;
            let mut object = body.clone();
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.objects.insert(target, object.clone());
            return (StatusCode::CREATED, object);
        }
        let target = path.strip_suffix("/status").unwrap_or(path);
        let Some(object) = self.objects.get_mut(target) else { return (StatusCode::NOT_FOUND, missing) };
        if *method == Method::DELETE {
            let gone = object.clone();
            self.objects.remove(target);
            return (StatusCode::OK, gone);
        }
        if path.ends_with("/status") {
            assert_eq!(
                body["metadata"]["uid"], object["metadata"]["uid"],
                "a status must name the session's UID"
            );
            object["status"] = body["status"].clone();
        } else {
            object["metadata"]["finalizers"] = body["metadata"]["finalizers"].clone();
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        (StatusCode::OK, object.clone())
    }
}
