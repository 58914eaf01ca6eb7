// SPDX-License-Identifier: Apache-2.0
//! Watches pods where sessions are, and nowhere else.
//!
//! In: which sessions are active in which namespace, and which pods they mean. Out: a cache of that namespace's pods, and a
//! reconcile of those sessions that mean a pod which has changed. The first session of a namespace starts the watch, the last
//! one ends it.
//! Each such change gives the session's pods another version, by which what was made of them is known to be the latest.

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
use super::pod::{Pod, Said, Shared};
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
}

/// What an event changes of what is read here.
enum Change<'a> {
    Nothing,
    /// All pods were listed.
    All,
    /// As it was, if it was there, and as it is, or was last.
    Pod(Option<Arc<Pod>>, &'a Pod),
}

impl<'a> Change<'a> {
    /// By an event that `pods` does not show yet.
    fn of(event: &'a Event<Pod>, pods: &Store<Pod>) -> Self {
        match event {
            // Objects of a list come one by one; the list's end tells of them all.
            Event::Init | Event::InitApply(_) => Self::Nothing,
            Event::InitDone => Self::All,
            Event::Apply(pod) | Event::Delete(pod) => {
                let before = pods.get(&ObjectRef::from_obj(pod));
                let is_same = matches!(event, Event::Apply(_)) && before.as_deref() == Some(pod);
                if is_same { Self::Nothing } else { Self::Pod(before, pod) }
            }
        }
    }

    /// Whether it is one for this session.
    fn concerns(&self, user: &User) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Pod(before, now) => {
                user.minds(now) || before.as_ref().is_some_and(|before| user.minds(before))
            }
        }
    }
}

/// The event, of what is kept of the pod.
fn kept(event: Event<Said>, shared: &mut Shared) -> Event<Pod> {
    match event {
        Event::Init => Event::Init,
        Event::InitApply(pod) => Event::InitApply(shared.keep(pod)),
        Event::InitDone => Event::InitDone,
        Event::Apply(pod) => Event::Apply(shared.keep(pod)),
        Event::Delete(pod) => Event::Delete(shared.keep(pod)),
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

    /// The pods of the session's namespace, kept up to date until [`release`](Self::release), and the version of those that it
    /// means: as long as that is the same, so are they.
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

    /// Has the pods of the session's namespace kept, as [`acquire`](Self::acquire) does, and does not wait for them.
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
        let api: Api<Said> = Api::namespaced(self.client.clone(), namespace);
        let (pods, mut writer) = reflector::store();
        let users = SharedUsers::default();
        let stop = CancellationToken::new();
        let watch = watcher::watcher(api, watcher::Config::default().any_semantic()).default_backoff();
        let listed = Listed::default();
        let (hub, watching, stopped, name, seen, known) = (
            self.hub.clone(),
            users.clone(),
            stop.clone(),
            namespace.to_owned(),
            listed.clone(),
            pods.clone(),
        );
        tokio::spawn(async move {
            let mut shared = Shared::default();
            let mut watch = std::pin::pin!(watch.map(|event| event.map(|event| kept(event, &mut shared))));
            while let Some(Some(event)) = stopped.run_until_cancelled(watch.next()).await {
                match &event {
                    Ok(event) => {
                        let change = Change::of(event, &known);
                        writer.apply_watcher_event(event);
                        if !matches!(change, Change::Nothing) {
                            let mut users = watching.lock().expect("no panic while held");
                            for (session, user) in users.iter_mut().filter(|(_, user)| change.concerns(user))
                            {
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

    /// What comes of an event where the pods were these.
    fn concerns(event: &Event<Pod>, pods: &[&Pod], user: &User) -> bool {
        let (store, mut writer) = reflector::store();
        pods.iter().for_each(|pod| writer.apply_watcher_event(&Event::Apply((*pod).clone())));
        Change::of(event, &store).concerns(user)
    }

    #[test]
    fn a_session_is_told_of_pods_that_it_means_or_meant() {
        let (web, db, placed) = (pod("web", ""), pod("db", ""), pod("web", "nodeName: n"));
        let applied =
            |user: &User, pod: &Pod, before: &[&Pod]| concerns(&Event::Apply(pod.clone()), before, user);
        let labels = user("{podSelector: {matchLabels: {app: web}}}");
        assert!(applied(&labels, &web, &[]) && applied(&labels, &placed, &[&web]));
        assert!(applied(&labels, &web, &[&db]) && applied(&labels, &db, &[&web]), "relabelled, in and out");
        assert!(!applied(&labels, &db, &[]));
        assert!(concerns(&Event::Delete(web.clone()), &[&web], &labels));
        assert!(!concerns(&Event::Delete(db.clone()), &[&db], &labels));
        assert!(concerns(&Event::InitDone, &[], &labels));
        assert!(!concerns(&Event::InitApply(web.clone()), &[], &labels));
        let names = user("{podNames: [web-0]}");
        assert!(applied(&names, &db, &[]) && !applied(&user("{podNames: [web-1]}"), &db, &[]));
        assert!(applied(&User::new(), &db, &[]), "no pass has looked yet");
    }

    #[test]
    fn a_session_of_a_workload_is_told_of_its_pods_and_of_those_whose_owners_owner_has_to_be_asked() {
        let owned = |kind: &str, name: &str| {
            let owner =
                format!("{{apiVersion: apps/v1, kind: {kind}, name: {name}, uid: o, controller: true}}");
            let text = format!("{{metadata: {{name: web-0, uid: u, ownerReferences: [{owner}]}}}}");
            serde_yaml::from_str::<Pod>(&text).unwrap()
        };
        let applied = |target: &str, pod: &Pod| concerns(&Event::Apply(pod.clone()), &[], &user(target));
        let set = "{workloadRef: {kind: StatefulSet, name: web}}";
        assert!(applied(set, &owned("StatefulSet", "web")) && !applied(set, &owned("StatefulSet", "db")));
        assert!(!applied(set, &owned("ReplicaSet", "web")) && !applied(set, &pod("web", "")));
        let deployment = "{workloadRef: {kind: Deployment, name: web}}";
        assert!(
            applied(deployment, &owned("ReplicaSet", "db-7f9"))
                && !applied(deployment, &owned("StatefulSet", "web"))
        );
    }

    #[test]
    fn nobody_is_told_of_what_nobody_reads() {
        let pod = |version: &str, ready: &str, node: &str| {
            let text = format!(
                "{{metadata: {{name: web-0, uid: u, resourceVersion: '{version}', annotations: {{seen: '{version}'}},
                    managedFields: [{{manager: kubelet, time: '2026-11-30T00:00:0{version}Z'}}]}}, spec: {{nodeName: {node}}},
                  status: {{phase: Running, conditions: [{{type: Ready, status: '{ready}'}}]}}}}"
            );
            serde_yaml::from_str::<Pod>(&text).unwrap()
        };
        let all = user("{podSelector: {}}");
        let (first, second) = (pod("1", "False", "n"), pod("2", "True", "n"));
        assert!(!concerns(&Event::Apply(second.clone()), &[&first], &all));
        assert!(concerns(&Event::Apply(pod("2", "True", "other")), &[&first], &all));
        assert!(concerns(&Event::Delete(second), &[&first], &all));
    }
}
