// SPDX-License-Identifier: Apache-2.0

//! The sessions of a cluster, as the commands ask for them, with the caller's own kubeconfig.
//!
//! Invariants: nothing that is not a name becomes part of a URL; what is created is sent as it was written, and a field that the
//! kind does not have is refused by the API server (`fieldValidation=Strict`) instead of being left out.

use anyhow::{Result, anyhow, ensure};
use crds::TraceSession;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, Error, Resource, ResourceExt};
use node_api::is_name;
use serde_json::{Value, json};

use crate::cluster::{Cluster, SYSTEM};
use crate::explain::{explain, is_no_kind};
use crate::program;

/// Which sessions, for commands that take a namespace.
#[derive(Debug, clap::Args)]
pub(crate) struct Scope {
    /// The namespace; left out: that of the kubeconfig's context.
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long)]
    pub(crate) context: Option<String>,
}

/// One session, for commands that take its name.
#[derive(Debug, clap::Args)]
pub(crate) struct Named {
    /// The session: NAME, or NAMESPACE/NAME.
    name: String,
    #[command(flatten)]
    scope: Scope,
}

impl Scope {
    /// The sessions of its namespace.
    ///
    /// # Errors
    /// When no cluster is known.
    pub(crate) async fn sessions(&self) -> Result<Sessions> {
        let cluster = Cluster::connect(self.context.as_deref(), SYSTEM).await?;
        Sessions::of(&cluster, self.namespace.as_deref())
    }
}

impl Named {
    /// Context of the kubeconfig, if another one than the current was named.
    pub(crate) fn context(&self) -> Option<&str> {
        self.scope.context.as_deref()
    }

    /// The sessions of its namespace, and its name.
    ///
    /// # Errors
    /// When it is no name, or no cluster is known.
    pub(crate) async fn find(&self) -> Result<(Sessions, String)> {
        let (namespace, name) = match self.name.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (self.scope.namespace.as_deref(), self.name.as_str()),
        };
        let other = self.scope.namespace.as_deref().filter(|other| namespace != Some(other));
        ensure!(other.is_none(), "{} is not in namespace {}", self.name, other.unwrap_or_default());
        ensure!(is_name(name), "{name:?} cannot be the name of a session");
        let cluster = Cluster::connect(self.scope.context.as_deref(), SYSTEM).await?;
        Ok((Sessions::of(&cluster, namespace)?, name.to_owned()))
    }
}

/// The sessions of one namespace.
#[derive(Clone)]
pub(crate) struct Sessions {
    client: Client,
    api: Api<TraceSession>,
    pub(crate) namespace: String,
}

impl Sessions {
    /// Those of a namespace, or of the context's.
    ///
    /// # Errors
    /// When it is no name.
    pub(crate) fn of(cluster: &Cluster, namespace: Option<&str>) -> Result<Self> {
        let client = cluster.client();
        let namespace = namespace.unwrap_or(client.default_namespace()).to_owned();
        ensure!(is_name(&namespace), "{namespace:?} cannot be the name of a namespace");
        let api = Api::namespaced(client.clone(), &namespace);
        Ok(Self { client, api, namespace })
    }

    /// How people name one.
    pub(crate) fn title(&self, name: &str) -> String {
        format!("{}/{name}", self.namespace)
    }

    /// One, or why not, as the API server says it.
    pub(crate) async fn try_get(&self, name: &str) -> Result<TraceSession, Error> {
        self.api.get(name).await
    }

    /// One.
    ///
    /// # Errors
    /// When it is not there or may not be read.
    pub(crate) async fn get(&self, name: &str) -> Result<TraceSession> {
        self.try_get(name).await.map_err(|error| self.refused(error, name))
    }

    /// Those of the namespace, or of all, with these labels; by namespace, then by age.
    ///
    /// # Errors
    /// When they may not be read.
    pub(crate) async fn list(&self, everywhere: bool, selector: Option<&str>) -> Result<Vec<TraceSession>> {
        let api = if everywhere { Api::all(self.client.clone()) } else { self.api.clone() };
        let params = ListParams { label_selector: selector.map(str::to_owned), ..ListParams::default() };
        let listed = api.list(&params).await.map_err(|error| {
            let of = if everywhere { "of all namespaces".to_owned() } else { format!("in {}", self.namespace) };
            let right = if everywhere {
                "an administrator gives the right with `kubectl create clusterrolebinding NAME --clusterrole=tracelake-view \
                 --user=YOU`; without -A one namespace is listed"
                    .to_owned()
            } else {
                self.right("tracelake-view")
            };
            self.explained(error, &format!("TraceSessions {of}"), "", &right)
        })?;
        let mut found = listed.items;
        found.sort_by_cached_key(|session| {
            let meta = &session.metadata;
            let created = meta.creation_timestamp.as_ref().map(|time| time.0);
            (meta.namespace.clone(), created, meta.name.clone())
        });
        Ok(found)
    }

    /// Makes one of an object as somebody wrote it.
    ///
    /// # Errors
    /// What the API server or its admission says, and what to do.
    pub(crate) async fn create(&self, object: &Value) -> Result<TraceSession> {
        let url = TraceSession::url_path(&(), Some(&self.namespace));
        let url = format!("{url}?fieldManager=tracelake&fieldValidation=Strict");
        let request = http::Request::post(url)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(object)?)?;
        self.client.request(request).await.map_err(|error| self.not_created(error))
    }

    /// Asks the session of that name to end now.
    ///
    /// # Errors
    /// When it is not there or may not be changed.
    pub(crate) async fn stop(&self, name: &str) -> Result<TraceSession> {
        self.ask_to_stop(name, json!({ "spec": { "stop": true } })).await
    }

    /// Asks this session to end now, and no other that has its name by then.
    ///
    /// # Errors
    /// As [`stop`](Self::stop), and when there is another.
    pub(crate) async fn stop_this(&self, session: &TraceSession) -> Result<TraceSession> {
        let stop = json!({ "metadata": { "uid": session.uid() }, "spec": { "stop": true } });
        self.ask_to_stop(&session.name_any(), stop).await
    }

    async fn ask_to_stop(&self, name: &str, stop: Value) -> Result<TraceSession> {
        let patched = self.api.patch(name, &PatchParams::default(), &Patch::Merge(stop)).await;
        patched.map_err(|error| match error {
            Error::Api(status) if status.code == 403 => {
                anyhow!(
                    "{} cannot be stopped: {}; {}",
                    self.title(name),
                    status.message,
                    self.right("tracelake-edit")
                )
            }
            error => self.refused(error, name),
        })
    }

    /// Why one cannot be read.
    pub(crate) fn refused(&self, error: Error, name: &str) -> anyhow::Error {
        let missing = format!("`{} list -n {}` lists those that there are", program(), self.namespace);
        let what = format!("TraceSession {}", self.title(name));
        self.explained(error, &what, &missing, &self.right("tracelake-view"))
    }

    fn not_created(&self, error: Error) -> anyhow::Error {
        let namespace = &self.namespace;
        let what = format!("no session was made in {namespace}");
        match error {
            error if is_no_kind(&error) => self.explained(error, &what, "", ""),
            Error::Api(status) => {
                let said = status.message.trim_end_matches('.');
                let next = match status.code {
                    // The policy names the role that lacks; RBAC names the right.
                    403 if said.contains("tracelake-trace") => self.right("tracelake-trace"),
                    403 => self.right("tracelake-edit"),
                    404 => "`kubectl get namespaces` lists those that there are".to_owned(),
                    409 => "choose another --name, or leave it out for a new one".to_owned(),
                    400 | 422 => "change the flags or the file, and try again".to_owned(),
                    _ => return self.explained(Error::Api(status), &what, "", ""),
                };
                anyhow!("{what}: {said}; {next}")
            }
            error => self.explained(error, &what, "", ""),
        }
    }

    /// How somebody gets a right here.
    fn right(&self, role: &str) -> String {
        format!(
            "an administrator gives the right with `kubectl -n {} create rolebinding NAME --clusterrole={role} --user=YOU`",
            self.namespace
        )
    }

    fn explained(&self, error: Error, what: &str, missing: &str, forbidden: &str) -> anyhow::Error {
        if is_no_kind(&error) {
            return anyhow!(
                "this cluster has no TraceSessions (the API server does not know {}/{}): install the chart, charts/tracelake, \
                 or choose another cluster with --context; `kubectl config get-contexts` lists yours",
                crds::GROUP,
                crds::VERSION
            );
        }
        explain(error, what, missing, forbidden)
    }
}
