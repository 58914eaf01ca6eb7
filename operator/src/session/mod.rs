// SPDX-License-Identifier: Apache-2.0
//! Sessions: from what a user asked for to plans, and from reports to what the user is told.
//!
//! | step | file | needs |
//! | --- | --- | --- |
//! | follow references to pods | [`dereference`], [`pods`], [`pod`] | client |
//! | check the spec | [`validate`] | nothing |
//! | make each node's plan | [`build`] | nothing |
//! | hand plans out | [`crate::hub`] | nothing |
//! | wait for a place and for the store | [`begin`] | client, store |
//! | write first and last file | [`finish`] | store |
//! | what nodes do, and the status that follows | [`nodes`], [`status`] | nothing |
//! | write it | [`write`] | client |
//! | what is left when it is over | `over` | client, store |
//! | what a replica that waits knows | [`standby`] | client |
//!
//! [`reconcile`] is the driver, [`run`] the loop: watches of sessions and nodes, triggers from the hub.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crds::TraceSession;
use futures::StreamExt;
use kube::runtime::controller::{self, Action, applier};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub mod begin;
pub mod build;
pub mod dereference;
pub mod finish;
pub mod labels;
pub mod limits;
pub mod listed;
pub mod memory;
pub mod nodes;
mod over;
pub mod pod;
pub mod pods;
pub mod reconcile;
pub mod standby;
pub mod status;
pub mod validate;
pub mod write;

pub use labels::Nodes;
use listed::Listed;
pub use reconcile::{Context, ReconcileError};

use crate::hub::SessionId;
use crate::metrics::{Kind, Word, outcome};

/// Reports are looked at this often: a change of a node's stage is in the status within a second.
const FLUSH: Duration = Duration::from_millis(250);
/// Sessions reconciled at the same time; each holds at most one request to the API server, and few of them one to a store.
const CONCURRENCY: u16 = 32;
/// Sessions that wait for their stores at the same time: to write their first file, and the same number to write their last. One
/// namespace or store has a share of them ([`crate::store::OF_A_NAMESPACE`]).
pub const WAITING: usize = 8;
/// Of those that end, such whose folders take much memory ([`dataset::closing::Effort::Large`]).
pub const LARGE: usize = 1;
/// Longer than any listing of a session; a pass that hangs must not hold its session for ever.
const PASS_TIMEOUT: Duration = Duration::from_secs(300);

/// Holds plans back until every session that exists and has started was looked at once, and keeps their places.
///
/// # Errors
/// When sessions cannot be listed.
pub async fn hold_started(context: &Context) -> Result<(), kube::Error> {
    let all = Api::<TraceSession>::all(context.client.clone()).list(&Default::default()).await?;
    for session in &all {
        let status = session.status.as_ref();
        let end = status.and_then(|status| status.end_time.as_ref()).map(|at| at.0);
        if end.is_some_and(|end| end > context.clock.utc()) {
            context.places.take(&SessionId::of(session), None);
        }
    }
    let started = all.into_iter().filter(|session| {
        let status = session.status.as_ref();
        // An incomplete session still has nodes that must not forget it.
        let over = matches!(
            status.and_then(|status| status.phase),
            Some(crds::Phase::Completed | crds::Phase::Failed)
        );
        !over && status.is_some_and(|status| status.start_time.is_some())
    });
    context.hub.hold(started.filter_map(|session| session.uid()));
    Ok(())
}

/// Reconciles sessions until stopped. `due` are the sessions that the hub wants looked at; all of them are kept in the store
/// of `writer`, and `listed` says when they first are.
pub async fn run(
    context: Arc<Context>,
    writer: Writer<TraceSession>,
    listed: Listed,
    due: mpsc::UnboundedReceiver<ObjectRef<TraceSession>>,
    stop: CancellationToken,
) {
    let sessions = writer.as_reader();
    let seen = context.metrics.watch_seen.get_or_create(&Kind { kind: Word("TraceSession") }).clone();
    let (watching, listing) = (context.clone(), listed.clone());
    // No older than what a leader has listed: what is not among them is let go of, and agents end it.
    let watch = watcher(Api::all(context.client.clone()), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .filter_map(move |event| {
            if event.is_ok() {
                seen.set(jiff::Timestamp::now().as_second());
            }
            listing.saw(&event);
            std::future::ready(touched(&watching, event))
        });
    let queue = futures::stream::select(watch, UnboundedReceiverStream::new(due))
        .map(Ok::<_, std::convert::Infallible>)
        .take_until(stop.clone().cancelled_owned());
    let reconciles = applier(
        |session, context| Box::pin(timed(session, context)),
        retry,
        context.clone(),
        sessions.clone(),
        queue,
        controller::Config::default().concurrency(CONCURRENCY),
    )
    .for_each(|_| std::future::ready(()));
    tokio::spawn(flush(context, sessions, listed.clone(), stop.clone()));
    let mut reconciles = std::pin::pin!(reconciles);
    // Before all sessions are listed no pass begins, and this would wait for them.
    tokio::select! {
        () = &mut reconciles => return,
        () = stop.cancelled() => return,
        () = listed.complete() => {}
    }
    // Passes that are under way come to their end: a write that is cut off may still land when another replica leads.
    reconciles.await;
}

/// The session that an event is about. One that is gone is forgotten here: no pass will see it.
fn touched(
    context: &Context,
    event: watcher::Result<watcher::Event<TraceSession>>,
) -> Option<ObjectRef<TraceSession>> {
    match event {
        Ok(watcher::Event::Apply(session) | watcher::Event::InitApply(session)) => {
            Some(ObjectRef::from_obj(&session))
        }
        Ok(watcher::Event::Delete(session)) => {
            let id = SessionId::of(&session);
            context.hub.withdraw(&id.uid);
            context.pods.release(&id);
            context.vacate(&id);
            context.memories.forget(&id.uid);
            None
        }
        Ok(watcher::Event::Init | watcher::Event::InitDone) => None,
        Err(error) => {
            tracing::warn!(%error, "watch of sessions failed, will retry");
            None
        }
    }
}

/// Triggers sessions whose reports changed, and drops what a watch that was away has missed.
async fn flush(
    context: Arc<Context>,
    sessions: Store<TraceSession>,
    listed: Listed,
    stop: CancellationToken,
) {
    if stop.run_until_cancelled(listed.complete()).await.is_none() {
        return;
    }
    let mut ticks = tokio::time::interval(FLUSH);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        context.hub.flush();
        if context.nodes.have_changed() {
            let selects = |session: &TraceSession| !session.spec.target.node_selector.is_empty();
            let selecting = sessions.state().into_iter().filter(|session| selects(session));
            selecting.for_each(|session| context.hub.trigger(ObjectRef::from_obj(&*session)));
        }
        sweep(&context, &sessions);
    }
}

/// Lets go of what is held of sessions that are gone: a watch that was away, or a pass that meets a deletion, leaves some.
fn sweep(context: &Context, sessions: &Store<TraceSession>) {
    let there: HashSet<String> = sessions.state().iter().filter_map(|session| session.uid()).collect();
    let is = |session: &TraceSession, uid: &str| session.metadata.uid.as_deref() == Some(uid);
    // One that has come since is looked for.
    let exists = |uid: &str| there.contains(uid) || sessions.find(|session| is(session, uid)).is_some();
    context.places.retain(|id| exists(&id.uid));
    context.pods.retain(|id| exists(&id.uid));
    context.memories.retain(exists);
    context.hub.retain(exists);
}

async fn timed(session: Arc<TraceSession>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let namespace = session.namespace().unwrap_or_default();
    let span = tracing::info_span!("reconcile", namespace, session = session.name_any(), uid = session.uid());
    let metrics = context.metrics.clone();
    let pass = tokio::time::timeout(PASS_TIMEOUT, reconcile::reconcile(session, context));
    let result = async {
        let result = pass.await.unwrap_or(Err(ReconcileError::Timeout));
        if let Err(error) = &result {
            tracing::warn!(%error, "reconcile failed, will retry");
        }
        result
    }
    .instrument(span)
    .await;
    metrics.reconciles.get_or_create(&outcome(result.is_ok())).inc();
    result
}

fn retry(_: Arc<TraceSession>, _: &ReconcileError, _: Arc<Context>) -> Action {
    // Jittered, so that sessions do not come back together when the API server does.
    Action::requeue(Duration::from_millis(2_000 + u64::from(rand::random::<u16>() % 3_000)))
}
