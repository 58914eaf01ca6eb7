// SPDX-License-Identifier: Apache-2.0

//! An API server of one namespace, over HTTP, and the program with a kubeconfig that leads there.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Method, Response, Uri};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

pub(crate) const SESSIONS: &str = "/apis/tracelake.dev/v1alpha1/namespaces/shop/tracesessions";
const PATIENCE: Duration = Duration::from_secs(60);

/// What the API server has, and what it was asked.
#[derive(Default)]
pub(crate) struct World {
    /// Sessions of namespace shop.
    pub(crate) sessions: Vec<Value>,
    /// What a session's status becomes, each time that it is read; the last one stays.
    pub(crate) statuses: VecDeque<Value>,
    /// When there is no next one it is gone, or another of its name is there, as this says.
    pub(crate) then: Then,
    /// The same once it was asked to stop.
    pub(crate) after_stop: VecDeque<Value>,
    /// Everything is answered with this instead.
    pub(crate) refusal: Option<(u16, Value)>,
    /// Method, path with query, and body.
    pub(crate) asked: Vec<(String, Value)>,
}

/// What becomes of a session after the last of its statuses.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Then {
    #[default]
    Stays,
    Gone,
    Another,
}

impl World {
    fn answer(&mut self, method: &Method, uri: &Uri, body: &[u8]) -> (u16, Value) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        self.asked.push((format!("{method} {uri}"), body.clone()));
        if let Some(refusal) = &self.refusal {
            return refusal.clone();
        }
        let path = uri.path();
        if path == SESSIONS || path == "/apis/tracelake.dev/v1alpha1/tracesessions" {
            if *method == Method::POST {
                self.sessions.push(body);
                let made = self.sessions.last_mut().unwrap();
                let meta = made["metadata"].as_object_mut().unwrap();
                if let Some(prefix) = meta.remove("generateName") {
                    meta.insert("name".to_owned(), format!("{}x7k2p", prefix.as_str().unwrap()).into());
                }
                meta.insert("uid".to_owned(), "7d1c".into());
                meta.insert("creationTimestamp".to_owned(), "2026-11-22T10:00:00Z".into());
                return (201, made.clone());
            }
            let list = json!({ "apiVersion": "tracelake.dev/v1alpha1", "kind": "TraceSessionList", "metadata": {},
                "items": self.sessions });
            return (200, list);
        }
        let Some(name) = path.strip_prefix(SESSIONS).and_then(|rest| rest.strip_prefix('/')) else {
            return page_not_found();
        };
        if *method == Method::GET && self.statuses.is_empty() && self.then != Then::Stays {
            match self.then {
                Then::Another => self.sessions[0]["metadata"]["uid"] = "another".into(),
                _ => self.sessions.clear(),
            }
        }
        let Some(session) = self.sessions.iter_mut().find(|one| one["metadata"]["name"] == name) else {
            let message = format!("tracesessions.tracelake.dev \"{name}\" not found");
            let mut answer = failure(404, &message);
            answer.1["details"] = json!({ "name": name, "group": "tracelake.dev", "kind": "tracesessions" });
            return answer;
        };
        if *method == Method::PATCH {
            session["spec"]["stop"] = body["spec"]["stop"].clone();
            if !self.after_stop.is_empty() {
                self.statuses = std::mem::take(&mut self.after_stop);
            }
        } else if let Some(status) = self.statuses.front().cloned() {
            session["status"] = status;
            if self.statuses.len() > 1 || self.then != Then::Stays {
                self.statuses.pop_front();
            }
        }
        (200, session.clone())
    }
}

/// As the API server answers a path of which it knows nothing: in plain text.
pub(crate) fn page_not_found() -> (u16, Value) {
    (404, Value::String("404 page not found\n".to_owned()))
}

/// As it refuses something.
pub(crate) fn failure(code: u16, message: &str) -> (u16, Value) {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": "R", "details": { "kind": "tracesessions" }, "code": code });
    (code, status)
}

/// The server, as long as the test runs, and a folder with the kubeconfig.
pub(crate) struct Server {
    pub(crate) world: Arc<Mutex<World>>,
    pub(crate) address: String,
    folder: TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let world = Arc::<Mutex<World>>::default();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let of_server = world.clone();
        let app = Router::new().fallback(move |method: Method, uri: Uri, body: Bytes| {
            let (code, answer) = of_server.lock().unwrap().answer(&method, &uri, &body);
            let (kind, body) = match answer {
                Value::String(text) => ("text/plain", text),
                json => ("application/json", json.to_string()),
            };
            let response = Response::builder().status(code).header("content-type", kind);
            std::future::ready(response.body(Body::from(body)).unwrap())
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": address } }],
            "users": [{ "name": "test", "user": {} }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test", "namespace": "shop" } }],
        });
        std::fs::write(folder.path().join("kubeconfig"), config.to_string()).unwrap();
        Self { world, address, folder }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// The program with this kubeconfig, and nothing of the caller's environment that it looks at.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = program(env!("CARGO_BIN_EXE_tracelake").as_ref(), line);
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    pub(crate) async fn run(&self, line: &str) -> Said {
        said(self.command(line)).await
    }

    /// Waits until it was asked something that begins so.
    pub(crate) async fn asked(&self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.world().asked.iter().any(|(asked, _)| asked.starts_with(what)) {
            assert!(Instant::now() < deadline, "nobody asked {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A program with an environment of its own.
pub(crate) fn program(path: &Path, line: &str) -> Command {
    let mut command = Command::new(path);
    command.args(line.split_whitespace()).env_clear().env("HOME", "/nonexistent");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// What a program said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) async fn said(mut command: Command) -> Said {
    ended(command.spawn().unwrap()).await
}

pub(crate) async fn ended(child: Child) -> Said {
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Ctrl-C, for this process.
pub(crate) fn interrupt(child: &Child) {
    let pid = child.id().expect("it runs").cast_signed();
    // SAFETY: the child has not been waited for, so the number is its own.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
}
