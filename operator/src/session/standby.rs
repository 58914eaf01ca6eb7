// SPDX-License-Identifier: Apache-2.0
//! What a replica that waits keeps at hand for its turn: the pods of namespaces where sessions record.
//!
//! In: a watch of sessions. Out: the same watches of pods that a leader has ([`PodWatches`]), so that whoever leads next need not
//! list thousands of pods before it may hand out plans. Only that: what is known here may be late. Of pods it may be, the next
//! event corrects it; of sessions it may not, since an agent ends what its plan does not list. A leader lists them itself.

use std::time::Duration;

use crds::TraceSession;
use futures::StreamExt;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc::UnboundedReceiver;

use super::pods::PodWatches;
use crate::hub::SessionId;

/// A replica that leads at once needs none of this.
const SETTLE: Duration = Duration::from_secs(3);

/// Follows sessions for as long as this runs. `due` is what the hub wants looked at: only a leader looks. `follows` is called
/// once, when all that there was at the beginning is at hand.
pub async fn follow(
    client: Client,
    pods: &PodWatches,
    due: &mut UnboundedReceiver<ObjectRef<TraceSession>>,
    follows: impl FnOnce(),
) {
    tokio::time::sleep(SETTLE).await;
    let sessions = watcher(Api::<TraceSession>::all(client), watcher::Config::default().any_semantic());
    let mut sessions = std::pin::pin!(sessions.default_backoff());
    let mut listed: Vec<SessionId> = Vec::new();
    let (mut complete, mut follows) = (false, Some(follows));
    loop {
        let event = tokio::select! {
            event = sessions.next() => event,
            _ = due.recv() => continue,
            () = pods.listed(), if complete && follows.is_some() => {
                follows.take().into_iter().for_each(|follows| follows());
                continue;
            }
        };
        match event {
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(session))) => {
                listed.push(SessionId::of(&session));
                seen(pods, &session);
            }
            // Sessions that went while the watch was away have no event.
            Some(Ok(Event::InitDone)) => {
                pods.retain(|id| listed.contains(id));
                complete = true;
            }
            Some(Ok(Event::Apply(session))) => seen(pods, &session),
            Some(Ok(Event::Delete(session))) => pods.release(&SessionId::of(&session)),
            Some(Err(error)) => tracing::warn!(%error, "watch of sessions failed, will retry"),
            // A watch has no end; without it this replica begins with nothing, as any that was just started.
            None => std::future::pending().await,
        }
    }
}

fn seen(pods: &PodWatches, session: &TraceSession) {
    let status = session.status.as_ref();
    let over = status.and_then(|status| status.phase).is_some_and(crds::Phase::is_over);
    let started = status.is_some_and(|status| status.start_time.is_some());
    if started && !over {
        pods.want(&SessionId::of(session));
    } else {
        pods.release(&SessionId::of(session));
    }
}
