// SPDX-License-Identifier: Apache-2.0

//! Sessions as a user makes them, and waiting for what their status says.

use anyhow::{Context, Result, bail, ensure};
use crds::TraceSession;
use dataset::catalogue;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::PATIENCE;

/// The window of a session that its test ends: longer than all that the test may wait for meanwhile.
pub const WINDOW: &str = "1h";

/// One session of one namespace.
#[derive(Clone)]
pub struct Session {
    api: Api<TraceSession>,
    name: String,
}

impl Session {
    /// A spec with both collectors on the pods with this label, `duration` long.
    pub fn spec(label: &str, duration: &str) -> Value {
        json!({
            "target": { "podSelector": { "matchLabels": { crate::pods::LABEL: label } } },
            "collectors": [{ "name": "processes" }, { "name": "tcpConnections" }],
            "duration": duration,
            "drainTimeout": "2m",
        })
    }

    /// The same with these collectors; windows are two seconds long.
    pub fn spec_of(label: &str, duration: &str, collectors: &[&str]) -> Value {
        let mut spec = Self::spec(label, duration);
        let of = |name: &&str| match catalogue::collector(name) {
            Some(info) if info.has_windows() => json!({ "name": name, "interval": "2s" }),
            _ => json!({ "name": name }),
        };
        spec["collectors"] = collectors.iter().map(of).collect();
        spec
    }

    /// Creates the session; the API server's refusal is the error.
    pub async fn create(client: &Client, namespace: &str, name: &str, spec: Value) -> Result<Self> {
        let api: Api<TraceSession> = Api::namespaced(client.clone(), namespace);
        let object: TraceSession = serde_json::from_value(json!({
            "apiVersion": "tracelake.dev/v1alpha1", "kind": "TraceSession",
            "metadata": { "name": name }, "spec": spec,
        }))?;
        api.create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("creating session {name}"))?;
        Ok(Self { api, name: name.to_owned() })
    }

    /// A session that exists.
    pub fn existing(client: &Client, namespace: &str, name: &str) -> Self {
        Self { api: Api::namespaced(client.clone(), namespace), name: name.to_owned() }
    }

    /// Waits until a condition has this status and returns its reason.
    pub async fn condition(&self, kind: &str, status: &str) -> Result<String> {
        let wanted = format!("condition {kind}={status}");
        let session = self
            .wait(&wanted, |session| condition(session, kind).is_some_and(|(now, _)| now == status))
            .await?;
        Ok(condition(&session, kind).map(|(_, reason)| reason).unwrap_or_default())
    }

    /// Waits until every target node records.
    pub async fn recording(&self) -> Result<TraceSession> {
        self.wait("Collecting=True on every node", |session| {
            condition(session, crds::conditions::session::COLLECTING).is_some_and(|(now, _)| now == "True")
                && session
                    .status
                    .as_ref()
                    .and_then(|status| status.nodes.as_ref())
                    .is_some_and(|nodes| nodes.expected > 0 && nodes.running == nodes.expected)
        })
        .await
    }

    /// Waits for the phase; another final phase is an error at once.
    pub async fn phase(&self, phase: &str) -> Result<TraceSession> {
        const FINAL: [&str; 3] = ["Completed", "Incomplete", "Failed"];
        let session = self
            .wait(&format!("phase {phase}"), |session| {
                let now = phase_of(session);
                now == phase || FINAL.contains(&now.as_str())
            })
            .await?;
        let now = phase_of(&session);
        if now != phase {
            bail!("session {} is {now}, not {phase}: {}", self.name, describe(&session));
        }
        Ok(session)
    }

    /// Waits until `is` holds of the session.
    pub async fn wait(&self, what: &str, is: impl Fn(&TraceSession) -> bool) -> Result<TraceSession> {
        let waited = tokio::time::timeout(
            PATIENCE,
            await_condition(self.api.clone(), &self.name, |session: Option<&TraceSession>| {
                session.is_none_or(&is)
            }),
        )
        .await;
        match waited {
            Ok(session) => {
                session?.with_context(|| format!("session {} is gone while waiting for {what}", self.name))
            }
            Err(_) => {
                bail!("session {}: no {what} after {PATIENCE:?}: {}", self.name, describe(&self.get().await?))
            }
        }
    }

    /// The session now.
    pub async fn get(&self) -> Result<TraceSession> {
        Ok(self.api.get(&self.name).await?)
    }

    /// Fails if the window does not begin when it did before.
    pub async fn kept_its_window(&self, before: &TraceSession) -> Result<()> {
        let start =
            |session: &TraceSession| session.status.as_ref().and_then(|status| status.start_time.clone());
        ensure!(start(&self.get().await?) == start(before), "the window moved");
        Ok(())
    }

    /// Ends the session before its time, as `kubectl patch` does.
    pub async fn stop(&self) -> Result<()> {
        let patch = Patch::Merge(json!({ "spec": { "stop": true } }));
        self.api.patch(&self.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Deletes the session and waits until its finalizer has let go.
    pub async fn delete(&self) -> Result<()> {
        self.api.delete(&self.name, &DeleteParams::default()).await?;
        let gone =
            await_condition(self.api.clone(), &self.name, |session: Option<&TraceSession>| session.is_none());
        tokio::time::timeout(PATIENCE, gone)
            .await
            .with_context(|| format!("session {} is not gone", self.name))??;
        Ok(())
    }
}

/// Status and reason of a condition.
pub fn condition(session: &TraceSession, kind: &str) -> Option<(String, String)> {
    let conditions = &session.status.as_ref()?.conditions;
    conditions
        .iter()
        .find(|condition| condition.type_ == kind)
        .map(|condition| (condition.status.clone(), condition.reason.clone()))
}

fn phase_of(session: &TraceSession) -> String {
    session
        .status
        .as_ref()
        .and_then(|status| serde_json::to_value(status.phase).ok())
        .and_then(|phase| phase.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn describe(session: &TraceSession) -> String {
    serde_json::to_string_pretty(&session.status).unwrap_or_default()
}
