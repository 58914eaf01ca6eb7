// SPDX-License-Identifier: Apache-2.0
//! A session whose window is not open yet: it waits for a place in its namespace and for its store, until its deadline.
//!
//! In: a session that is accepted. Out: its first file in the store, and its beginning and end in its status; or why it waits.
//! Whether the store works is asked beside the pass, at most once at a time for each session, and the answer has the session looked
//! at again: a store that hangs holds nothing but that.

use std::sync::Arc;
use std::time::Duration;

use crds::TraceSession;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use rand::Rng;

use super::finish;
use super::memory::Memory;
use super::nodes::NodeState;
use super::reconcile::{Findings, Pass, ReconcileError, WATCHFUL, after, in_time, later, until};
use super::status::{Early, StoreState};
use super::validate::ValidatedSession;
use crate::store::{ResolvedStore, StoreProblem};

/// A store that works has answered by then; what asks it triggers the next pass sooner.
pub const ASKED: Duration = Duration::from_secs(1);

/// The longest time between two looks at a session that waits.
const PATIENT: Duration = Duration::from_secs(30);

/// Before a session looks again whether others have begun, up to half of it more or less.
const BUSY: Duration = Duration::from_millis(400);

/// What comes of trying to begin.
enum Opening {
    /// The first file is there since then.
    Open(Arc<ResolvedStore>, Timestamp),
    /// Somebody else took the place in the namespace meanwhile.
    Crowded,
    /// The store cannot be used now.
    Problem(StoreProblem),
    /// It is asked; `first` if since now.
    Asked { first: bool },
    /// It works, and others begin on it now.
    Busy,
}

impl Pass<'_> {
    /// The window is not open: the store decides.
    pub(super) async fn waiting(
        &self,
        memory: &mut Memory,
        session: Arc<TraceSession>,
        valid: &ValidatedSession,
    ) -> Result<Action, ReconcileError> {
        if session.metadata.deletion_timestamp.is_some() {
            return self.let_go(memory, &session).await;
        }
        let deadline = after(session.creation_timestamp().map_or(self.now, |at| at.0), valid.start_deadline);
        if session.spec.stop {
            let findings =
                Findings { early: Some(Early::Stopped), deadline_passed: true, ..Findings::default() };
            return self.conclude(memory, session, findings).await;
        }
        if let Err(rejection) = self.context.limits.check(valid) {
            let findings = Findings { rejection: Some(rejection), ..Findings::default() };
            return self.conclude(memory, session, findings).await;
        }
        let deadline_passed = self.now >= deadline;
        if !self.context.places.ask(&self.id, self.context.limits.sessions_per_namespace) {
            let findings = Findings { crowded: true, deadline_passed, ..Findings::default() };
            return self.not_yet(memory, session, findings, deadline).await;
        }
        match self.open(memory, &session).await? {
            Opening::Open(store, start) => {
                let end = after(start, valid.duration);
                // If they cannot be learnt now, they are written down before they act.
                let selected = tokio::time::timeout(ASKED, self.select(memory, valid, start)).await;
                let selected = selected.ok().and_then(Result::ok);
                let nodes = selected.iter().flat_map(|selected| selected.bodies.keys());
                let findings = Findings {
                    store: Some(StoreState::Ready),
                    dataset: Some(store.dataset()),
                    window: Some((start, end)),
                    states: nodes.map(|node| (node.clone(), NodeState::Waiting)).collect(),
                    ..Findings::default()
                };
                // What is intended stands in the API server before any node acts on it.
                let session = memory.freshest(&session);
                let next = self.status(&session, &findings);
                self.writer().status(memory, &session, next).await?;
                let session = memory.freshest(&session);
                Box::pin(self.started(memory, session, valid, start, end)).await
            }
            // Also past the deadline: nobody says of a store that it was not ready before it was asked.
            Opening::Asked { first: true } => Ok(Action::requeue(ASKED)),
            Opening::Busy => {
                // It keeps its turn, and is told no more than that it waits: the others have begun in a moment.
                if session.status.is_none() {
                    let next = self.status(&session, &Findings::default());
                    self.writer().status(memory, &session, next).await?;
                }
                Ok(Action::requeue(BUSY.mul_f64(rand::rng().random_range(0.5..1.5))))
            }
            Opening::Crowded => {
                let findings = Findings { crowded: true, deadline_passed, ..Findings::default() };
                self.not_yet(memory, session, findings, deadline).await
            }
            opening => {
                // Who waits for a store does not keep others from theirs.
                self.context.vacate(&self.id);
                let store = match opening {
                    Opening::Problem(problem) => {
                        Some(StoreState::Problem(problem.reason.to_owned(), problem.message))
                    }
                    _ => None,
                };
                let findings = Findings { store, deadline_passed, ..Findings::default() };
                self.not_yet(memory, session, findings, deadline).await
            }
        }
    }

    /// The session cannot begin, and waits until its deadline.
    async fn not_yet(
        &self,
        memory: &mut Memory,
        session: Arc<TraceSession>,
        findings: Findings,
        deadline: Timestamp,
    ) -> Result<Action, ReconcileError> {
        if findings.deadline_passed {
            return self.conclude(memory, session, findings).await;
        }
        self.context.hub.withdraw(&self.id.uid);
        let next = self.status(&session, &findings);
        let written = self.writer().status(memory, &session, next).await?;
        // Who has waited for long is looked at less often: there may be thousands of them, and each asks for its store.
        let age = session.creation_timestamp().map_or(Duration::ZERO, |at| until(self.now, at.0));
        let wait = (age / 20).clamp(WATCHFUL, PATIENT).min(until(deadline, self.now));
        Ok(Action::requeue(later(written, wait)))
    }

    /// Takes a place and writes the dataset's first file, if the store has just said that it works. The error is the API server's.
    async fn open(
        &self,
        memory: &mut Memory,
        session: &Arc<TraceSession>,
    ) -> Result<Opening, ReconcileError> {
        let store = match self.context.stores.resolve(session).await {
            Ok(store) => Arc::new(store),
            Err(problem) => return Ok(Opening::Problem(problem)),
        };
        match store.known() {
            Ok(Ok(_)) => {}
            Ok(Err(problem)) => return Ok(Opening::Problem(problem)),
            Err(before) => {
                let first = self.ask(memory, &store);
                return Ok(before.map_or(Opening::Asked { first }, Opening::Problem));
            }
        }
        let Some(_place) = store.place(&self.context.store_places.opening) else {
            tracing::debug!("many sessions begin, this one a little later");
            return Ok(Opening::Busy);
        };
        self.writer().add_finalizer(memory, session).await?;
        // Last: a store that does not answer must not hold a place.
        if !self.context.places.take(&self.id, self.context.limits.sessions_per_namespace) {
            return Ok(Opening::Crowded);
        }
        let spec = serde_json::to_value(&session.spec).unwrap_or_default();
        let created = session.creation_timestamp().map_or(self.now, |at| at.0);
        let opened = finish::open(&store, &self.id, &self.context.cluster_id, spec, created, self.now);
        Ok(match in_time(opened).await {
            Ok(start) => {
                memory.store = Some(store.clone());
                Opening::Open(store, start)
            }
            Err(problem) => Opening::Problem(problem),
        })
    }

    /// Has the store tried beside this pass, and the session looked at again when it has answered. Whether that begins now.
    fn ask(&self, memory: &mut Memory, store: &Arc<ResolvedStore>) -> bool {
        if memory.asking.as_ref().is_some_and(|asking| !asking.is_finished()) {
            return false;
        }
        let (store, hub, session) = (store.clone(), self.context.hub.clone(), self.id.object_ref());
        memory.asking = Some(tokio::spawn(async move {
            // What comes of it is remembered.
            let _ = store.probe().await;
            hub.trigger(session);
        }));
        true
    }
}
