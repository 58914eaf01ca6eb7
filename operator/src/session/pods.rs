// SPDX-License-Identifier: Apache-2.0
//! Watches pods where sessions are, and nowhere else.
//!
//! In: which sessions are active in which namespace, and which pods they mean. Out: a cache of that namespace's pods, and a
//! reconcile of those sessions that mean a pod which has changed. The first session of a namespace starts the watch, the last
//! one ends it.
//! Every change of a pod is one of the session's version of its pods: what was made of a version holds until there is another.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Client};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::listed::Listed;
use super::pod::Pod;
use super::validate::Selection;
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
    users: SharedUsers,
    _stop: DropGuard,
}

type SharedUsers = Arc<Mutex<HashMap<SessionId, User>>>;

/// What a session sees of the pods.
struct User {
    version: u64,
    /// Not known before a pass has looked at it.
    selection: Option<Selection>,
}

impl User {
    fn new() -> Self {
        Self { version: version(), selection: None }
    }

    /// Whether the pod is one of the session's, or may be.
    fn minds(&self, pod: &Pod) -> bool {
        self.selection.as_ref().and_then(|selection| selection.means(pod)).unwrap_or(true)
    }

    /// Whether an event changes something for it, where the event's pod was as in `before`.
    fn is_told(&self, event: &Event<Pod>, before: Option<&Pod>) -> bool {
        let was_one = || before.is_some_and(|before| self.minds(before));
        match event {
            // Objects of a list come one by one; the list's end tells of them all.
            Event::Init | Event::InitApply(_) => false,
            Event::InitDone => true,
            // Much of a pod changes that nobody reads here.
            Event::Apply(pod) => before != Some(pod) && (self.minds(pod) || was_one()),
            Event::Delete(pod) => self.minds(pod) || was_one(),
        }
    }
}

/// One that no session had before.
fn version() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

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

    /// The pods of the session's namespace, kept up to date until [`release`](Self::release), and the version of those that
    /// it means, which does not change.
    ///
    /// # Errors
    /// [`NotListed`] when the first list does not come.
    pub async fn acquire(
        &self,
        session: &SessionId,
        selection: &Selection,
    ) -> Result<(Store<Pod>, u64), NotListed> {
        let (pods, listed, users) = self.used(session);
        if tokio::time::timeout(READY_TIMEOUT, listed.complete()).await.is_err() {
            return Err(NotListed(session.namespace.clone()));
        }
        // Before the pods are looked at: what changes from now on has a later one.
        let mut users = users.lock().expect("no panic while held");
        let user = users.entry(session.clone()).or_insert_with(User::new);
        user.selection.get_or_insert_with(|| selection.clone());
        Ok((pods, user.version))
    }

    /// Has them kept without waiting for them.
    pub(super) fn want(&self, session: &SessionId) {
        self.used(session);
    }

    fn used(&self, session: &SessionId) -> (Store<Pod>, Listed, SharedUsers) {
        let mut watches = self.watches.lock().expect("no panic while held");
        let watch =
            watches.entry(session.namespace.clone()).or_insert_with(|| self.start(&session.namespace));
        watch.users.lock().expect("no panic while held").entry(session.clone()).or_insert_with(User::new);
        (watch.pods.clone(), watch.listed.clone(), watch.users.clone())
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
            users.retain(|user, _| exists(user));
            if users.is_empty() {
                tracing::debug!(namespace, "watch of pods ended");
            }
            !users.is_empty()
        });
    }

    fn start(&self, namespace: &str) -> Watch {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let (pods, mut writer) = reflector::store();
        let users = SharedUsers::default();
        let stop = CancellationToken::new();
        let watch = watcher::watcher(api, watcher::Config::default().any_semantic())
            .default_backoff()
            .modify(Pod::shrink);
        let listed = Listed::default();
        let (hub, told, stopped, name, seen, known) = (
            self.hub.clone(),
            users.clone(),
            stop.clone(),
            namespace.to_owned(),
            listed.clone(),
            pods.clone(),
        );
        tokio::spawn(async move {
            let mut watch = std::pin::pin!(watch);
            while let Some(Some(event)) = stopped.run_until_cancelled(watch.next()).await {
                match &event {
                    Ok(event) => {
                        let before = match event {
                            Event::Apply(pod) | Event::Delete(pod) => known.get(&ObjectRef::from_obj(pod)),
                            _ => None,
                        };
                        writer.apply_watcher_event(event);
                        let mut users = told.lock().expect("no panic while held");
                        for (session, user) in users.iter_mut() {
                            if user.is_told(event, before.as_deref()) {
                                user.version = version();
                                hub.trigger(session.object_ref());
                            }
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, namespace = name, "watch of pods failed, will retry")
                    }
                }
                seen.saw(&event);
            }
        });
        tracing::debug!(namespace, "watch of pods started");
        Watch { pods, listed, users, _stop: stop.drop_guard() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::validate::validate;

    fn user(target: &str) -> User {
        let spec = format!("{{target: {target}, duration: 1m, collectors: [{{name: processes}}]}}");
        let valid = validate(&serde_yaml::from_str(&spec).unwrap()).unwrap();
        User { selection: Some(valid.selection), ..User::new() }
    }

    fn pod(app: &str, rest: &str) -> Pod {
        let text = format!("{{metadata: {{name: web-0, uid: u, labels: {{app: {app}}}}}, spec: {{{rest}}}}}");
        serde_yaml::from_str(&text).unwrap()
    }

    #[test]
    fn a_session_is_told_of_pods_that_it_means_or_meant_and_of_nothing_that_nobody_reads() {
        let (web, db, placed) = (pod("web", ""), pod("db", ""), pod("web", "nodeName: n"));
        let told =
            |user: &User, now: &Pod, before: Option<&Pod>| user.is_told(&Event::Apply(now.clone()), before);
        let labels = user("{podSelector: {matchLabels: {app: web}}}");
        assert!(told(&labels, &web, None) && told(&labels, &placed, Some(&web)));
        assert!(told(&labels, &web, Some(&db)) && told(&labels, &db, Some(&web)), "relabelled, in and out");
        assert!(!told(&labels, &db, None) && !told(&labels, &web, Some(&web)));
        assert!(labels.is_told(&Event::Delete(web.clone()), Some(&web)));
        assert!(!labels.is_told(&Event::Delete(db.clone()), Some(&db)));
        assert!(
            labels.is_told(&Event::InitDone, None) && !labels.is_told(&Event::InitApply(web.clone()), None)
        );
        let names = user("{podNames: [web-0]}");
        assert!(told(&names, &db, None) && !told(&user("{podNames: [web-1]}"), &db, None));
        // Whose the pod is has to be asked.
        assert!(told(&user("{workloadRef: {kind: Deployment, name: web}}"), &db, None));
        assert!(told(&User::new(), &db, None), "no pass has looked yet");
    }
}
