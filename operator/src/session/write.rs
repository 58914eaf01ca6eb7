// SPDX-License-Identifier: Apache-2.0
//! The only writes to sessions: status, finalizer, deletion; and the Events that go with them (client required).
//!
//! In: a status that follows from what was observed. Out: a write if it differs from the one that is there, at most
//! one in [`COALESCE`] unless the phase changed or nodes are new; then an Event for each thing worth one. Events are best
//! effort: they never hold up a session.

use std::time::Duration;

use crds::{SESSION_FINALIZER, TraceSession, TraceSessionStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::Recorder;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::time::Instant;

use super::memory::Memory;
use super::status::notes;
use crate::events;
use crate::metrics::{Metrics, outcome};

/// At most one write of an unchanged phase in this time, whatever the number of nodes, as long as none is new.
pub const COALESCE: Duration = Duration::from_secs(5);
/// Name of our fields in `managedFields`.
pub(crate) const MANAGER: &str = "tracelake-operator";

/// Whether a status was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is as it was, or is now as given.
    Current,
    /// It differs, and is to be written after this time.
    Later(Duration),
}

/// Writes to one namespace's sessions.
pub struct Writer<'a> {
    client: &'a Client,
    recorder: &'a Recorder,
    metrics: &'a Metrics,
    now: Instant,
}

impl<'a> Writer<'a> {
    /// Writes with this client, now.
    pub fn new(client: &'a Client, recorder: &'a Recorder, metrics: &'a Metrics, now: Instant) -> Self {
        Self { client, recorder, metrics, now }
    }

    fn api(&self, session: &TraceSession) -> Api<TraceSession> {
        Api::namespaced(self.client.clone(), &session.namespace().unwrap_or_default())
    }

    /// Brings the session's status to `next`.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn status(
        &self,
        memory: &mut Memory,
        session: &TraceSession,
        next: TraceSessionStatus,
    ) -> Result<Written, kube::Error> {
        let before = session.status.clone().unwrap_or_default();
        if before == next {
            return Ok(Written::Current);
        }
        if let Some(wait) = wait(
            before.phase == next.phase,
            memory.last_write.map(|at| self.now.saturating_duration_since(at)),
        ) {
            return Ok(Written::Later(wait));
        }
        let patch = json!({
            "apiVersion": TraceSession::api_version(&()),
            "kind": TraceSession::kind(&()),
            // The UID makes sure that a session of the same name made meanwhile is not written to.
            "metadata": {"name": session.name_any(), "uid": session.uid()},
            "status": next,
        });
        let params = PatchParams::apply(MANAGER).force();
        let written =
            self.api(session).patch_status(&session.name_any(), &params, &Patch::Apply(patch)).await;
        self.metrics.status_writes.get_or_create(&outcome(written.is_ok())).inc();
        memory.wrote(session.resource_version(), written?, Some(self.now));
        for note in notes(&before, &next) {
            tracing::info!(
                reason = note.reason,
                message = note.message,
                warning = note.warning,
                "session event"
            );
            let about = session.object_ref(&());
            events::publish(self.recorder, &about, "Reconcile", note.warning, &note.reason, &note.message)
                .await;
        }
        Ok(Written::Current)
    }

    /// The same of what is not held back, however lately there was a write.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn news(
        &self,
        memory: &mut Memory,
        session: &TraceSession,
        next: TraceSessionStatus,
    ) -> Result<Written, kube::Error> {
        memory.last_write = None;
        self.status(memory, session, next).await
    }

    /// Keeps the session in the API server until it is over.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn add_finalizer(
        &self,
        memory: &mut Memory,
        session: &TraceSession,
    ) -> Result<(), kube::Error> {
        if session.finalizers().iter().any(|name| name == SESSION_FINALIZER) {
            return Ok(());
        }
        let mut all = session.finalizers().to_vec();
        all.push(SESSION_FINALIZER.to_owned());
        self.finalizers(memory, session, &all).await
    }

    /// Lets go of the session.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn remove_finalizer(
        &self,
        memory: &mut Memory,
        session: &TraceSession,
    ) -> Result<(), kube::Error> {
        let mut all = session.finalizers().to_vec();
        all.retain(|name| name != SESSION_FINALIZER);
        if all.len() == session.finalizers().len() {
            return Ok(());
        }
        self.finalizers(memory, session, &all).await
    }

    async fn finalizers(
        &self,
        memory: &mut Memory,
        session: &TraceSession,
        all: &[String],
    ) -> Result<(), kube::Error> {
        // A list is replaced whole: the version makes sure that nobody else's finalizer is lost.
        let patch = json!({"metadata": {"finalizers": all, "resourceVersion": session.resource_version()}});
        let name = session.name_any();
        match self.api(session).patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(written) => {
                memory.wrote(session.resource_version(), written, None);
                Ok(())
            }
            // Gone already.
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes a session whose time to live is over.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn delete(&self, session: &TraceSession) -> Result<(), kube::Error> {
        let preconditions = Preconditions { uid: session.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match self.api(session).delete(&session.name_any(), &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// How long a write has to wait.
fn wait(same_phase: bool, since: Option<Duration>) -> Option<Duration> {
    let since = since.filter(|since| same_phase && *since < COALESCE)?;
    Some(COALESCE - since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_of_one_phase_are_five_seconds_apart_and_a_change_of_phase_is_not_held_up() {
        assert_eq!(wait(true, None), None);
        assert_eq!(wait(true, Some(Duration::from_secs(1))), Some(Duration::from_secs(4)));
        assert_eq!(wait(true, Some(Duration::from_secs(5))), None);
        assert_eq!(wait(false, Some(Duration::from_secs(1))), None);
    }
}
