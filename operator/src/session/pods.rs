// SPDX-License-Identifier: Apache-2.0
//! Watches pods where sessions are, and nowhere else.
//!
//! In: which sessions are active in which namespace. Out: a cache of that namespace's pods, and a reconcile of its
//! sessions at every change of a pod. The first session of a namespace starts the watch, the last one ends it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::reflector::Store;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::listed::Listed;
use super::pod::Pod;
use crate::hub::{Hub, SessionId};

/// How long a reconcile waits for a new watch's first list.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// The pods of a namespace cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("pods of namespace {0} were not listed within 20 s; the operator needs list and watch on pods there")]
pub struct NotListed(String);

struct Watch {
    pods: Store<Pod>,
    listed: Listed,
    users: Arc<Mutex<HashSet<SessionId>>>,
    _stop: DropGuard,
}

type SharedUsers = Arc<Mutex<HashSet<SessionId>>>;

/// See the module.
pub struct PodWatches {
    client: Client,
    hub: Arc<Hub>,
    watches: Mutex<HashMap<String, Watch>>,
}

impl PodWatches {
    /// No watch yet; changes trigger reconciles through `hub`.
    pub fn new(client: Client, hub: Arc<Hub>) -> Self {
        Self { client, hub, watches: Mutex::default() }
    }

    /// The pods of the session's namespace, kept up to date until [`release`](Self::release).
    ///
    /// # Errors
    /// [`NotListed`] when the first list does not come.
    pub async fn acquire(&self, session: &SessionId) -> Result<Store<Pod>, NotListed> {
        let (pods, listed) = self.want(session);
        match tokio::time::timeout(READY_TIMEOUT, listed.complete()).await {
            Ok(()) => Ok(pods),
            Err(_) => Err(NotListed(session.namespace.clone())),
        }
    }

    /// The same without waiting for them.
    pub(super) fn want(&self, session: &SessionId) -> (Store<Pod>, Listed) {
        let mut watches = self.watches.lock().expect("no panic while held");
        let watch =
            watches.entry(session.namespace.clone()).or_insert_with(|| self.start(&session.namespace));
        watch.users.lock().expect("no panic while held").insert(session.clone());
        (watch.pods.clone(), watch.listed.clone())
    }

    /// Waits until the pods of all sessions of now are listed.
    pub(super) async fn listed(&self) {
        let all: Vec<Listed> = {
            let watches = self.watches.lock().expect("no panic while held");
            watches.values().map(|watch| watch.listed.clone()).collect()
        };
        for listed in all {
            listed.complete().await;
        }
    }

    /// The session needs no pods any more.
    pub fn release(&self, session: &SessionId) {
        self.retain(|user| user != session);
    }

    /// Sessions that `exists` does not know need no pods any more.
    pub fn retain(&self, exists: impl Fn(&SessionId) -> bool) {
        self.watches.lock().expect("no panic while held").retain(|namespace, watch| {
            let mut users = watch.users.lock().expect("no panic while held");
            users.retain(&exists);
            if users.is_empty() {
                tracing::debug!(namespace, "watch of pods ended");
            }
            !users.is_empty()
        });
    }

    fn start(&self, namespace: &str) -> Watch {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let (pods, writer) = reflector::store();
        let users = SharedUsers::default();
        let stop = CancellationToken::new();
        let watch = watcher(api, watcher::Config::default().any_semantic())
            .default_backoff()
            .modify(Pod::shrink)
            .reflect(writer);
        let listed = Listed::default();
        let (hub, told, stopped, name, seen) =
            (self.hub.clone(), users.clone(), stop.clone(), namespace.to_owned(), listed.clone());
        tokio::spawn(async move {
            let mut watch = std::pin::pin!(watch);
            while let Some(Some(event)) = stopped.run_until_cancelled(watch.next()).await {
                seen.saw(&event);
                match event {
                    // Objects of a list come one by one; the list's end tells of them all.
                    Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                    Ok(_) => {
                        let told: Vec<_> =
                            told.lock().expect("no panic while held").iter().cloned().collect();
                        told.iter().for_each(|session| hub.trigger(session.object_ref()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, namespace = name, "watch of pods failed, will retry")
                    }
                }
            }
        });
        tracing::debug!(namespace, "watch of pods started");
        Watch { pods, listed, users, _stop: stop.drop_guard() }
    }
}
