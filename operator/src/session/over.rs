// SPDX-License-Identifier: Apache-2.0
//! What is left to do for a session that is over: let go of it, delete it when its time to live has passed, and wait for nodes
//! that had not uploaded everything.
//!
//! A node that comes back while an incomplete session exists uploads what it has, and a further manifest lists it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crds::{Phase, TraceSession, TraceSessionStatus};
use dataset::closing::{self, Effort};
use dataset::reader::ReadError;
use jiff::SignedDuration;
use kube::runtime::controller::Action;
use node_api::lanes::Place;
use node_api::v1::Activity;
use rand::Rng;

use super::finish;
use super::memory::{Late, Memory};
use super::nodes::{self, NodeState};
use super::reconcile::{Findings, Pass, ReconcileError, done, in_time, states, until};
use super::validate::begun;
use crate::store::{ResolvedStore, StoreProblem};

/// An incomplete session waits for its nodes without hurry.
const LATE: Duration = Duration::from_secs(300);
/// When others ask their stores now, up to half of it more or less.
const SOON: Duration = Duration::from_secs(4);

impl Pass<'_> {
    /// Forgets the session, and lets the API server do so.
    pub(super) async fn let_go(
        &self,
        memory: &mut Memory,
        session: &TraceSession,
    ) -> Result<Action, ReconcileError> {
        self.context.hub.withdraw(&self.id.uid);
        self.context.pods.release(&self.id);
        self.context.vacate(&self.id);
        self.writer().remove_finalizer(memory, session).await?;
        Ok(Action::await_change())
    }

    /// Nothing more is collected. An incomplete session goes on waiting for its nodes while it exists.
    pub(super) async fn over(
        &self,
        memory: &mut Memory,
        session: Arc<TraceSession>,
    ) -> Result<Action, ReconcileError> {
        memory.selected = None;
        let status = session.status.clone().unwrap_or_default();
        if session.metadata.deletion_timestamp.is_some() || status.phase != Some(Phase::Incomplete) {
            self.let_go(memory, &session).await?;
        } else {
            self.context.pods.release(&self.id);
            self.writer().remove_finalizer(memory, &session).await?;
            let session = memory.freshest(&session);
            self.wait_for_late(memory, &session, &status).await?;
        }
        let Some(ttl) = session.spec.ttl_seconds_after_finished else { return Ok(self.next_look(&status)) };
        let completed = status.completion_time.map_or(self.now, |at| at.0);
        let expiry = completed + SignedDuration::from_secs(ttl.into());
        if self.now >= expiry && session.metadata.deletion_timestamp.is_none() {
            tracing::info!("time to live is over, session deleted");
            self.writer().delete(&session).await?;
            return Ok(Action::await_change());
        }
        let wait = until(expiry, self.now);
        Ok(Action::requeue(if status.phase == Some(Phase::Incomplete) { wait.min(LATE) } else { wait }))
    }

    /// Has the session looked at again within some seconds.
    fn look_soon(&self) {
        let (hub, session) = (self.context.hub.clone(), self.id.object_ref());
        let wait = SOON.mul_f64(rand::rng().random_range(0.5..1.5));
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            hub.trigger(session);
        });
    }

    fn next_look(&self, status: &TraceSessionStatus) -> Action {
        if status.phase == Some(Phase::Incomplete) { Action::requeue(LATE) } else { Action::await_change() }
    }

    /// Asks the missing nodes to upload what they have, and writes another manifest when one has.
    async fn wait_for_late(
        &self,
        memory: &mut Memory,
        session: &Arc<TraceSession>,
        status: &TraceSessionStatus,
    ) -> Result<(), ReconcileError> {
        let store = self.store(memory, session).await;
        let (Some(start), Some(end)) = (&status.start_time, &status.end_time) else {
            self.context.hub.withdraw(&self.id.uid);
            return Ok(());
        };
        let valid = begun(&session.spec);
        let publish = |missing: &BTreeSet<String>| {
            let held = self.context.hub.published(&self.id.uid);
            let body = |node: &String| Some(held.as_ref()?.nodes.get(node)?.body.clone());
            self.publish(&valid, (end.0, Activity::Drain), missing, body, store.as_ref().ok().cloned());
        };
        if memory.late.is_none() {
            // Before the store is asked: after a restart no agent of any session is answered until this is published.
            publish(&named_missing(status));
            if memory.recall_failed.is_some_and(|at| self.instant < at + LATE) {
                return Ok(());
            }
            let place = match &store {
                Ok(store) => match self.context.store_places.closing(store, memory.large) {
                    Some(place) => Some(place),
                    // Others ask now: no failure, so that it is asked with the next look that is due, and one is due soon.
                    None => {
                        self.look_soon();
                        return Ok(());
                    }
                },
                Err(_) => None,
            };
            let was_large = memory.large;
            memory.late = self.recall_late(&store, status, place.as_ref(), &mut memory.large).await;
            drop(place);
            if memory.late.is_none() && memory.large && !was_large {
                self.look_soon();
                return Ok(());
            }
            memory.recall_failed = memory.late.is_none().then_some(self.instant);
        }
        let Some(late) = memory.late.clone() else { return Ok(()) };
        let unlisted = is_unlisted(status);
        if late.missing.is_empty() && !unlisted {
            // The others had their last word.
            self.context.hub.withdraw(&self.id.uid);
            return Ok(());
        }
        publish(&late.missing);

        let mut views = self.context.hub.nodes(&self.id.uid, &late.missing);
        // Those that are not connected stay lost, though this process may not have waited for them yet.
        let late_states = states(&views, &memory.expected, self.instant, true);
        if done(&late_states, &late.missing) <= late.done && !unlisted {
            return Ok(());
        }
        // Those that the last manifest did not wait for are as they were: complete, or with nothing to say.
        let mut all = BTreeMap::new();
        for node in status.nodes.iter().flat_map(|nodes| &nodes.names) {
            let listed = late.listed.contains(node);
            let state = if listed { NodeState::Done } else { NodeState::Unsupported(String::new()) };
            all.insert(node.clone(), state);
            views.entry(node.clone()).or_default();
        }
        all.extend(late_states);
        if let Some(finished) = self.close(memory, &all, store, false).await {
            let findings = Findings {
                window: Some((start.0, end.0)),
                states: all,
                views,
                finished: Some(finished),
                ..Findings::default()
            };
            let next = self.status(session, &findings);
            self.writer().news(memory, session, next).await?;
            self.context.hub.trigger(self.id.object_ref());
        }
        Ok(())
    }

    /// After a restart of the operator the last manifest says who is missing; none while the store cannot say.
    async fn recall_late(
        &self,
        store: &Result<Arc<ResolvedStore>, StoreProblem>,
        status: &TraceSessionStatus,
        place: Option<&(Place, Effort)>,
        large: &mut bool,
    ) -> Option<Late> {
        let names = all_names(status);
        if is_unlisted(status) {
            return Some(Late { listed: names.clone(), missing: names, done: 0 });
        }
        let manifest = match store {
            Ok(store) => {
                let effort = place.map_or(Effort::Ordinary, |(_, effort)| *effort);
                let last = closing::last_manifest(store.object_store().as_ref(), store.prefix(), effort);
                let last = async {
                    let last = last.await;
                    *large |= matches!(last, Err(ReadError::TooLarge { .. }));
                    last
                };
                in_time(last).await
            }
            Err(problem) => Err(problem.clone()),
        };
        match manifest {
            Ok(Some(manifest)) => Some(finish::late(&manifest)),
            Ok(None) => Some(Late { listed: names.clone(), missing: names, done: 0 }),
            Err(problem) => {
                tracing::warn!(
                    reason = problem.reason,
                    message = problem.message,
                    "manifest cannot be read, will retry"
                );
                None
            }
        }
    }
}

/// Whether there may be data and no manifest says what there is.
fn is_unlisted(status: &TraceSessionStatus) -> bool {
    status.dataset.as_ref().is_some_and(|dataset| dataset.manifest.is_none())
}

fn all_names(status: &TraceSessionStatus) -> BTreeSet<String> {
    status.nodes.iter().flat_map(|nodes| &nodes.names).cloned().collect()
}

/// The nodes that a session which ended incomplete waits for, as far as its status says. A node that is left out deletes
/// what it holds: where the status has no room for all of them, or no manifest lists what the others have, nobody is.
fn named_missing(status: &TraceSessionStatus) -> BTreeSet<String> {
    let no_manifest = status.dataset.as_ref().is_none_or(|dataset| dataset.manifest.is_none());
    match &status.failing_nodes {
        all if no_manifest || all.is_empty() || all.len() >= nodes::FAILING_MAX => all_names(status),
        some => {
            let more_to_say = some.iter().filter(|node| !finish::is_last_word(&node.reason));
            more_to_say.map(|node| node.name.clone()).collect()
        }
    }
}
