// SPDX-License-Identifier: Apache-2.0
//! What the chart allows at most, whatever a tenant asks for.
//!
//! In: the operator's flags. Out: a [`Rejection`] for a session that asks for more than any may, the bytes after which a
//! session is ended, and [`Places`]: a session that finds its namespace's places taken waits, and is told so.
//!
//! Places are given in the order in which sessions asked. A limit that is lowered holds for sessions that have not begun, but for
//! the bytes, which are looked at while a session runs.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crds::conditions::reason;

use super::validate::{Rejection, ValidatedSession};
use crate::hub::SessionId;

/// See the module; what is `None` is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The longest window.
    pub duration: Option<Duration>,
    /// After how many bytes in its store a session ends.
    pub bytes: Option<u64>,
    /// Sessions of one namespace that record at the same time.
    pub sessions_per_namespace: Option<usize>,
}

impl Limits {
    /// Whether a session asks for no more than it may.
    ///
    /// # Errors
    /// What it asks for, and what there is at most.
    pub fn check(&self, session: &ValidatedSession) -> Result<(), Rejection> {
        let exceeded = |message: String| Err(Rejection { reason: reason::LIMIT_EXCEEDED, message });
        if let Some(most) = self.duration
            && session.duration > most
        {
            let (asked, most) = (session.duration.as_secs(), most.as_secs());
            return exceeded(format!(
                "duration is {asked} s, sessions of this cluster have at most {most} s"
            ));
        }
        if let (Some(most), Some(asked)) = (self.bytes, session.budget_bytes)
            && asked > most
        {
            return exceeded(format!(
                "budget.bytes is {asked}, sessions of this cluster have at most {most}"
            ));
        }
        Ok(())
    }

    /// The bytes after which a session ends.
    pub fn bytes(&self, session: &ValidatedSession) -> Option<u64> {
        session.budget_bytes.into_iter().chain(self.bytes).min()
    }
}

/// Which sessions of each namespace record, and which wait to.
#[derive(Debug, Default)]
pub struct Places(Mutex<HashMap<String, Namespace>>);

#[derive(Debug, Default)]
struct Namespace {
    taken: HashSet<SessionId>,
    /// In the order in which they asked.
    waiting: Vec<SessionId>,
}

impl Namespace {
    /// Whether a session that asks now would get a place, with those before it.
    fn has_room(&self, id: &SessionId, most: Option<usize>) -> bool {
        let before = self.waiting.iter().position(|one| one == id).unwrap_or(self.waiting.len());
        self.taken.contains(id) || most.is_none_or(|most| self.taken.len() + before < most)
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Namespace>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a place for the session, of `most`. Where there is none it waits its turn.
    pub fn ask(&self, id: &SessionId, most: Option<usize>) -> bool {
        let mut all = self.lock();
        let namespace = all.entry(id.namespace.clone()).or_default();
        let room = namespace.has_room(id, most);
        if !room && !namespace.waiting.contains(id) {
            namespace.waiting.push(id.clone());
        }
        room
    }

    /// Takes a place for a session, unless it has one; false where there is none for it.
    pub fn take(&self, id: &SessionId, most: Option<usize>) -> bool {
        let mut all = self.lock();
        let namespace = all.entry(id.namespace.clone()).or_default();
        let room = namespace.has_room(id, most);
        if room {
            namespace.waiting.retain(|one| one != id);
            namespace.taken.insert(id.clone());
        }
        room
    }

    /// Gives a session's place back, or its turn. Returns who waits longest, to be looked at now.
    pub fn free(&self, id: &SessionId) -> Option<SessionId> {
        let mut all = self.lock();
        let namespace = all.get_mut(&id.namespace)?;
        let (taken, waiting) = (namespace.taken.len(), namespace.waiting.len());
        namespace.taken.remove(id);
        namespace.waiting.retain(|one| one != id);
        let moved = (namespace.taken.len(), namespace.waiting.len()) != (taken, waiting);
        let next = namespace.waiting.first().filter(|_| moved).cloned();
        if namespace.taken.is_empty() && namespace.waiting.is_empty() {
            all.remove(&id.namespace);
        }
        next
    }

    /// Forgets sessions that are not there any more.
    pub fn retain(&self, exists: impl Fn(&SessionId) -> bool) {
        self.lock().retain(|_, namespace| {
            namespace.taken.retain(&exists);
            namespace.waiting.retain(&exists);
            !namespace.taken.is_empty() || !namespace.waiting.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::validate::validate;
    use super::*;

    fn session(spec: &str) -> ValidatedSession {
        let spec = format!("{{target: {{podSelector: {{}}}}, collectors: [{{name: processes}}], {spec}}}");
        validate(&serde_yaml::from_str(&spec).unwrap()).unwrap()
    }

    #[test]
    fn more_than_the_cluster_allows_is_refused_with_what_it_allows() {
        let limits =
            Limits { duration: Some(Duration::from_secs(60)), bytes: Some(5 << 20), ..Limits::default() };
        assert_eq!(limits.check(&session("duration: 1m, budget: {bytes: 5Mi}")), Ok(()));
        let says = |spec: &str| limits.check(&session(spec)).unwrap_err().message;
        assert!(says("duration: 61s").contains("at most 60 s"));
        assert!(says("duration: 1s, budget: {bytes: 6Mi}").contains("at most 5242880"));
        assert_eq!(Limits::default().check(&session("duration: 24h, budget: {bytes: 100Ti}")), Ok(()));
    }

    #[test]
    fn the_smaller_of_both_budgets_ends_a_session() {
        let limits = Limits { bytes: Some(5 << 20), ..Limits::default() };
        assert_eq!(limits.bytes(&session("duration: 1m")), Some(5 << 20));
        assert_eq!(limits.bytes(&session("duration: 1m, budget: {bytes: 1Mi}")), Some(1 << 20));
        assert_eq!(Limits::default().bytes(&session("duration: 1m")), None);
    }

    #[test]
    fn a_namespace_has_so_many_places_and_gets_them_back() {
        let id = |namespace: &str, uid: &str| SessionId {
            namespace: namespace.into(),
            name: uid.into(),
            uid: uid.into(),
        };
        let (a1, a2, a3, b) = (id("a", "1"), id("a", "2"), id("a", "3"), id("b", "4"));
        let places = Places::default();
        assert!(places.take(&a1, Some(1)) && places.take(&a1, Some(1)), "it has its place");
        assert!(!places.ask(&a2, Some(1)) && !places.ask(&a3, Some(1)) && places.take(&b, Some(1)));
        assert_eq!(places.free(&a2), Some(a3.clone()), "who goes makes room in the queue");
        assert!(!places.ask(&a2, Some(1)) && !places.take(&a3, Some(1)));
        assert_eq!(places.free(&a1), Some(a3.clone()), "who waits longest is next");
        assert!(!places.take(&a2, Some(1)) && !places.take(&id("a", "new"), Some(1)), "nobody overtakes");
        assert!(places.take(&a3, Some(1)) && places.take(&id("a", "any"), None));
        places.retain(|one| *one == a2);
        assert!(places.take(&a2, Some(1)), "places of sessions that are gone are free");
    }
}
