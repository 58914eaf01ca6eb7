// SPDX-License-Identifier: Apache-2.0
//! An API server of a few objects, which counts what is written to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crds::{TraceSession, TraceSessionStatus};
use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tracelake_operator::api_server::Paced;
use tracelake_operator::store::{StoreConfig, Stores};

/// Stores without a default one, of an operator in namespace `tracelake`.
pub(crate) fn stores(client: Client) -> Arc<Stores> {
    let config = StoreConfig {
        operator_namespace: "tracelake".to_owned(),
        default_store: None,
        secret_namespaces: Vec::new(),
        endpoints: Default::default(),
        extra_ca: None,
    };
    Arc::new(Stores::new(client, config))
}

/// Path of the one session of most tests.
pub(crate) const SESSION: &str = "/apis/tracelake.dev/v1alpha1/namespaces/shop/tracesessions/checkout";
pub(crate) const SESSIONS: &str = "/apis/tracelake.dev/v1alpha1/tracesessions";
/// Path of the store of the chart's values.
pub(crate) const STORE: &str = "/apis/tracelake.dev/v1alpha1/clustertracestores/default";
const STORES: &str = "/apis/tracelake.dev/v1alpha1/clustertracestores";

#[derive(Default)]
pub(crate) struct World {
    /// By path.
    pub(crate) objects: BTreeMap<String, Value>,
    pub(crate) pods: Vec<Value>,
    /// What watches of pods tell, by version.
    happened: Vec<(u64, Value)>,
    /// Method and path of every write but Events.
    pub(crate) writes: Vec<String>,
    /// Reasons of Events.
    pub(crate) events: Vec<String>,
    /// Every write is answered with 422.
    pub(crate) refusing: bool,
    /// What is wrong with all of it.
    pub(crate) trouble: Option<Trouble>,
    /// What there is no right to, by path.
    pub(crate) forbidden: Option<String>,
    /// When each request came, by method and path, writes and watches as well.
    pub(crate) requests: Vec<(tokio::time::Instant, String)>,
    version: u64,
}

/// What is wrong with an API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nobody accepts a connection.
    Down,
    /// Every request but a watch is answered with this status.
    Refuses(u16),
    /// Every watch is answered with 410 Gone, as after a compaction.
    Gone,
    /// Every watch ends at once, with nothing.
    ShortWatches,
    /// Every request but a watch is answered after this time.
    Slow(Duration),
}

#[derive(Clone, Default)]
pub(crate) struct Api(pub(crate) Arc<Mutex<World>>);

impl Api {
    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { api.serve(request).await }
        });
        Client::new(service, "default")
    }

    /// As the operator's own client begins watches.
    pub(crate) fn paced_client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { api.serve(request).await }
        });
        Client::new(tower::Layer::layer(&Paced::default(), service), "default")
    }

    pub(crate) async fn serve(&self, request: Request<Body>) -> std::io::Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default();
        let is_watch = query.contains("watch=true");
        let (trouble, forbidden) = {
            let mut world = self.0.lock().unwrap();
            let what = if is_watch { "WATCH" } else { parts.method.as_str() };
            world.requests.push((tokio::time::Instant::now(), format!("{what} {path}")));
            (world.trouble, world.forbidden.as_ref() == Some(&path))
        };
        if forbidden {
            let (status, answer) = failure(StatusCode::FORBIDDEN, "no right to it");
            return Ok(answered(status, &answer));
        }
        match (trouble, is_watch) {
            (Some(Trouble::Down), _) => return Err(std::io::ErrorKind::ConnectionRefused.into()),
            (Some(Trouble::Refuses(code)), false) => {
                let (status, answer) = failure(StatusCode::from_u16(code).unwrap(), "not now");
                return Ok(answered(status, &answer));
            }
            (Some(Trouble::Gone), true) => {
                let (_, status) = failure(StatusCode::GONE, "too old resource version");
                let event = json!({"type": "ERROR", "object": status});
                return Ok(Response::new(Body::from(format!("{event}\n").into_bytes())));
            }
            (Some(Trouble::Slow(time)), false) => tokio::time::sleep(time).await,
            (Some(Trouble::ShortWatches), true) => return Ok(Response::new(Body::empty())),
            _ => {}
        }
        if is_watch {
            let since = query.split('&').find_map(|one| one.strip_prefix("resourceVersion="));
            let since = since.and_then(|since| since.parse().ok()).unwrap_or_default();
            let event = self.event(&path, since).await?;
            return Ok(Response::new(Body::from(format!("{event}\n").into_bytes())));
        }
        let body: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap_or_default();
        let (status, answer) = self.0.lock().unwrap().answer(&parts.method, &path, body);
        Ok(answered(status, &answer))
    }

    /// What happens after this version to what the path lists, until the API server goes away; the watch ends with it.
    async fn event(&self, path: &str, since: u64) -> std::io::Result<Value> {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let world = self.0.lock().unwrap();
            if world.trouble == Some(Trouble::Down) {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            if let Some(event) = world.event(path, since) {
                return Ok(event);
            }
        }
    }

    /// Takes an object away, as a user would.
    pub(crate) fn remove(&self, path: &str) {
        let mut world = self.0.lock().unwrap();
        world.version += 1;
        world.objects.remove(path).unwrap();
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

    /// Adds, changes or takes away a pod of the namespace `shop` before the eyes of who watches.
    pub(crate) fn happens(&self, what: &str, yaml: &str) {
        let mut pod: Value = serde_yaml::from_str(yaml).unwrap();
        let mut world = self.0.lock().unwrap();
        world.version += 1;
        let (version, name) = (world.version, pod["metadata"]["name"].clone());
        pod["metadata"]["namespace"] = "shop".into();
        pod["metadata"]["uid"] = format!("uid-{}", name.as_str().unwrap()).into();
        pod["metadata"]["resourceVersion"] = version.to_string().into();
        world.pods.retain(|other| other["metadata"]["name"] != name);
        if what != "DELETED" {
            world.pods.push(pod.clone());
        }
        world.happened.push((version, json!({"type": what, "object": pod})));
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

    /// The API server gets into trouble, or out of it.
    pub(crate) fn is_in(&self, trouble: Option<Trouble>) {
        self.0.lock().unwrap().trouble = trouble;
    }

    /// When requests of this kind (`GET /path`, `WATCH /path`) came.
    pub(crate) fn came(&self, what: &str) -> Vec<tokio::time::Instant> {
        let world = self.0.lock().unwrap();
        world.requests.iter().filter(|(_, one)| one == what).map(|(at, _)| *at).collect()
    }

    pub(crate) fn events(&self) -> Vec<String> {
        self.0.lock().unwrap().events.clone()
    }
}

fn answered(status: StatusCode, answer: &Value) -> Response<Body> {
    let answer = Body::from(serde_json::to_vec(answer).unwrap());
    Response::builder().status(status).header("content-type", "application/json").body(answer).unwrap()
}

/// The namespace whose pods a path lists.
fn namespace_of_pods(path: &str) -> Option<&str> {
    path.strip_prefix("/api/v1/namespaces/")?.strip_suffix("/pods")
}

fn failure(code: StatusCode, message: &str) -> (StatusCode, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
        "reason": code.canonical_reason(), "message": message});
    (code, status)
}

impl World {
    /// Of pods and of the store of the chart's values; to other kinds nothing ever happens.
    fn event(&self, path: &str, since: u64) -> Option<Value> {
        if namespace_of_pods(path).is_some() {
            let (_, event) = self.happened.iter().find(|(version, _)| *version > since)?;
            return Some(event.clone());
        }
        (path == STORES && self.version > since).then(|| match self.objects.get(STORE) {
            Some(store) => json!({"type": "MODIFIED", "object": store}),
            None => json!({"type": "DELETED", "object": {
                "metadata": {"name": "default", "resourceVersion": self.version.to_string()},
                "spec": {"s3": {"bucket": "gone", "region": "r"}, "credentials": {}}}}),
        })
    }

    fn answer(&mut self, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
            "message": format!("{path} not found")});
        if let (&Method::GET, Some(namespace)) = (method, namespace_of_pods(path)) {
            let items: Vec<&Value> =
                self.pods.iter().filter(|pod| pod["metadata"]["namespace"] == namespace).collect();
            let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
            return (StatusCode::OK, list);
        }
        if *method == Method::GET && path == SESSIONS {
            let list = json!({"kind": "TraceSessionList", "apiVersion": "tracelake.dev/v1alpha1",
                "metadata": {"resourceVersion": "1"}, "items": [self.objects[SESSION]]});
            return (StatusCode::OK, list);
        }
        if *method == Method::GET && path == STORES {
            let items: Vec<&Value> = self.objects.get(STORE).into_iter().collect();
            let list = json!({"kind": "ClusterTraceStoreList", "apiVersion": "tracelake.dev/v1alpha1",
                "metadata": {"resourceVersion": self.version.to_string()}, "items": items});
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
        if self.refusing {
            return failure(StatusCode::UNPROCESSABLE_ENTITY, "spec.s3.bucket: Required value");
        }
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
        // Server-side apply makes what is missing.
        if *method == Method::PATCH && body["spec"].is_object() && !self.objects.contains_key(target) {
            self.objects.insert(target.to_owned(), body.clone());
        }
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
        } else if let Some(replacements) = body.as_array() {
            for one in replacements {
                let (path, value) = (one["path"].as_str().unwrap(), &one["value"]);
                if path == "/metadata/resourceVersion" && *value != object["metadata"]["resourceVersion"] {
                    return failure(StatusCode::CONFLICT, "the object has been modified");
                }
                *object.pointer_mut(path).unwrap() = value.clone();
            }
        } else if body["metadata"].get("finalizers").is_some() {
            object["metadata"]["finalizers"] = body["metadata"]["finalizers"].clone();
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        (StatusCode::OK, object.clone())
    }
}
