// SPDX-License-Identifier: Apache-2.0
//! What the operator remembers of a session between two reconciles; losing it costs requests, never truth.
//!
//! Everything that must survive a restart is in the session's status, its dataset and the agents' reports.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crds::TraceSession;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::build::Selected;
use super::validate::ValidatedSession;
use crate::store::{ResolvedStore, StoreProblem};

/// What the last manifest of an incomplete session says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Late {
    /// The nodes that it lists.
    pub listed: BTreeSet<String>,
    /// Those of them that it waits for.
    pub missing: BTreeSet<String>,
    /// How many of those said that they were done when it was written.
    pub done: usize,
}

/// What each node has to do, as long as it is known to be the latest.
pub struct Kept {
    /// Of this version of the pods.
    pub version: u64,
    /// Where something may change of which no pod tells: looked at again then.
    pub until: Option<Instant>,
    /// By node.
    pub selected: Arc<Selected>,
}

/// One session.
#[derive(Default)]
pub struct Memory {
    /// When its status was last written.
    pub last_write: Option<Instant>,
    /// The status as last written, and the versions that it replaced: the watch may still show one of those.
    written: Option<Arc<TraceSession>>,
    replaced: HashSet<String>,
    /// The store, as it was last resolved: while the API server is away that is what there is.
    pub store: Option<Arc<ResolvedStore>>,
    /// When each node became expected, in this process.
    pub expected: BTreeMap<String, Instant>,
    /// Of an incomplete session: what its last manifest says.
    pub late: Option<Late>,
    /// When its store could not say that, the last time.
    pub recall_failed: Option<Instant>,
    /// When looking through its large folder failed, the last time.
    pub large_failed: Option<Instant>,
    /// What each node has to do; none where more than pods decides.
    pub selected: Option<Kept>,
    /// The spec does not change but for `stop` and the ttl.
    pub valid: Option<Arc<ValidatedSession>>,
    /// What asks the store whether the session may begin, beside the passes.
    pub asking: Option<JoinHandle<()>>,
    /// Why its manifest could not be written, the last time.
    pub close_problem: Option<StoreProblem>,
    /// When it had to end and first found no place to look through its folder.
    pub no_place: Option<Instant>,
    /// Its folder has more in it than most: another try is for one of the few places for such.
    pub large: bool,
}

impl Memory {
    /// The newer of what the watch shows and what was last written.
    pub fn freshest(&mut self, shown: &Arc<TraceSession>) -> Arc<TraceSession> {
        if let Some(written) = &self.written
            && self.replaced.contains(&shown.resource_version().unwrap_or_default())
        {
            return written.clone();
        }
        self.written = None;
        self.replaced.clear();
        shown.clone()
    }

    /// A write replaced the version `base` with `written`.
    /// At `status_at` if it was its status.
    pub fn wrote(&mut self, base: Option<String>, written: TraceSession, status_at: Option<Instant>) {
        self.replaced.extend(base);
        // A write that changed nothing keeps its version; it replaces nothing.
        self.replaced.remove(&written.resource_version().unwrap_or_default());
        self.written = Some(Arc::new(written));
        self.last_write = status_at.or(self.last_write);
    }
}

/// The present, as passes see it.
#[derive(Debug, Default)]
pub struct Clock {
    ahead: Mutex<Duration>,
}

impl Clock {
    fn ahead(&self) -> Duration {
        *self.ahead.lock().expect("no panic while held")
    }

    /// For lengths of time.
    pub fn now(&self) -> Instant {
        Instant::now() + self.ahead()
    }

    /// For what is written down.
    pub fn utc(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::try_from(self.ahead()).unwrap_or_default()
    }

    /// Goes on as if this much time had passed: tests do not wait.
    pub fn advance(&self, time: Duration) {
        *self.ahead.lock().expect("no panic while held") += time;
    }
}

/// All sessions, by UID.
#[derive(Default)]
pub struct Memories {
    all: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Memory>>>>,
}

impl Memories {
    /// What is remembered of a session; empty at first.
    pub fn of(&self, uid: &str) -> Arc<tokio::sync::Mutex<Memory>> {
        self.all.lock().expect("no panic while held").entry(uid.to_owned()).or_default().clone()
    }

    /// Sessions that `exists` does not know are gone.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.all.lock().expect("no panic while held").retain(|uid, _| exists(uid));
    }

    /// The session is gone.
    pub fn forget(&self, uid: &str) {
        self.all.lock().expect("no panic while held").remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(version: &str) -> TraceSession {
        let yaml = format!(
            "{{metadata: {{name: s, resourceVersion: '{version}'}}, \
             spec: {{target: {{podSelector: {{}}}}, duration: 1m, collectors: []}}}}"
        );
        serde_yaml::from_str(&yaml).unwrap()
    }

    #[test]
    fn a_watch_that_is_behind_our_own_writes_is_not_believed() {
        let mut memory = Memory::default();
        let first = Arc::new(session("1"));
        assert_eq!(memory.freshest(&first).resource_version().unwrap(), "1");
        memory.wrote(Some("1".to_owned()), session("2"), None);
        memory.wrote(Some("2".to_owned()), session("3"), None);
        for behind in ["1", "2"] {
            assert_eq!(memory.freshest(&Arc::new(session(behind))).resource_version().unwrap(), "3");
        }
        // Somebody else's later write is.
        assert_eq!(memory.freshest(&Arc::new(session("4"))).resource_version().unwrap(), "4");
        assert_eq!(memory.freshest(&first).resource_version().unwrap(), "1");
    }
}
