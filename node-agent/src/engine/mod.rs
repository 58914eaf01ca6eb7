// SPDX-License-Identifier: Apache-2.0
//! The kernel side of a node: one set of hooks, shared by all sessions.
//!
//! In: sessions with their collectors, targets and ends. Out: [`Output`]: batches of rows, and the end of each session.
//! Loses: events that find a ring or map full, or that do not decode; all counted ([`TableCounters`]).
//! Invariants: no program is attached while no session is open. For each table, at any time after a session's end,
//! `emitted` equals the weights of its batches plus the other counters. A slot is given out again only after its last batch.
//! Why one control thread: opening, joining and closing each change kernel maps in several steps; in turn they need no
//! further order.

mod open;
mod types;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use node_agent_common::catalogue::TABLES;
use node_agent_common::counters::MAX_TABLES;

use crate::budget::Excess;
use crate::collectors::{ALL, Running};
use crate::coverage;
use crate::govern::Governor;
use crate::kernel::clock;
use crate::kernel::load::{Kernel, KernelError, wait_for_programs};
use crate::pipeline::decode::{self, Closing, Link, Session, Shared};
use crate::pipeline::window::{self, Window};
use crate::targets::cgroup;
use crate::targets::control::Control;
use crate::targets::maps;

pub use self::types::{
    Batch, CollectorOutcome, CollectorSpec, CollectorState, EngineConfig, EngineError, Output, SessionSpec,
    TableCounters,
};
pub use crate::coverage::TargetCoverage;
pub use crate::kernel::probe::Capability;
pub use crate::targets::{PodTarget, TargetSpec};

/// What the kernel counted in `TARGET_ERRORS`.
#[derive(Debug, Default)]
struct TargetErrors {
    /// As many as the last look made good.
    seen: u64,
    /// When a look failed last, and why.
    failed: Option<(Instant, String)>,
}

/// The kernel side of this node. Ends its threads and detaches everything when dropped.
pub struct Engine {
    config: EngineConfig,
    cgroup_root: PathBuf,
    link: Arc<Link>,
    kernel: Arc<Mutex<Option<Kernel>>>,
    sessions: BTreeMap<String, Control>,
    target_errors: TargetErrors,
    governor: Governor,
    threads: Vec<JoinHandle<()>>,
}

/// How long [`Engine::mend`] rests after it failed.
const MEND_AGAIN: Duration = Duration::from_secs(5);

fn lock(kernel: &Mutex<Option<Kernel>>) -> MutexGuard<'_, Option<Kernel>> {
    kernel.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// What each collector can do on this node. Loads nothing.
    pub fn capabilities() -> Vec<Capability> {
        crate::kernel::probe::capabilities()
    }

    /// Starts the thread that drains the rings. Loads and attaches nothing.
    ///
    /// # Errors
    /// When there is no cgroup v2 tree, or no thread.
    pub fn start(config: EngineConfig, out: SyncSender<Output>) -> Result<Engine, EngineError> {
        let cgroup_root = cgroup::root(config.cgroup_root.as_deref())
            .map_err(|source| EngineError::Io { what: "cannot find the cgroup tree", source })?;
        let link = Arc::new(Link::default());
        let kernel = Arc::new(Mutex::new(None));
        let (thread_link, thread_kernel) = (link.clone(), kernel.clone());
        let idle_link = link.clone();
        let thread = std::thread::Builder::new()
            .name("ring-drain".into())
            .spawn(move || decode::run(&thread_link, &out, || unload_when_idle(&thread_kernel, &idle_link)))
            .map_err(|source| EngineError::Io {
                what: "cannot start the thread that drains the rings",
                source,
            })?;
        let (windows_link, windows_kernel) = (link.clone(), kernel.clone());
        let windows = std::thread::Builder::new()
            .name("windows".into())
            .spawn(move || window::run(&windows_link, &windows_kernel))
            .map_err(|source| EngineError::Io {
                what: "cannot start the thread that ends windows",
                source,
            })?;
        let sessions = BTreeMap::new();
        Ok(Engine {
            config,
            cgroup_root,
            link,
            kernel,
            sessions,
            target_errors: TargetErrors::default(),
            governor: Governor::default(),
            threads: vec![thread, windows],
        })
    }

    /// Forgets cgroups and pods that are no session's any more; without this, a node whose sessions overlap would keep all.
    fn forget(&self) {
        let mut shared = self.link.lock();
        if shared.sessions.iter().flatten().any(|session| session.closing.is_some()) {
            // Its coverage is still to be made.
            return;
        }
        let oldest = self.sessions.values().map(|control| control.opened_ns).min();
        let named = self.sessions.values().flat_map(|control| control.windows.pods.keys()).cloned().collect();
        shared.directory.forget(oldest.unwrap_or_else(clock::boot_ns), &named);
    }

    /// Sets what the session records: the whole list, each time. Pods join as soon as their cgroup is made; what is there
    /// already joins now, with what runs in it. Names of containers are taken over for batches still to be sealed.
    ///
    /// # Errors
    /// When the session is not open, or a map cannot be written; calling again continues.
    pub fn set_targets(&mut self, session: &str, targets: &[TargetSpec]) -> Result<(), EngineError> {
        let control =
            self.sessions.get_mut(session).ok_or_else(|| EngineError::UnknownSession(session.to_owned()))?;
        let mut guard = lock(&self.kernel);
        let Some(kernel) = &mut *guard else { return Err(EngineError::UnknownSession(session.to_owned())) };
        // First those that join: what starts in them is missed until the kernel knows. Those that left go in any case: when a
        // map is full, their places are what the others wait for.
        let joined = control.join(kernel, &self.cgroup_root, &self.link, session, targets);
        control.leave(kernel, &self.link, targets)?;
        joined.map_err(EngineError::from)
    }

    /// Takes over the names of containers, for rows of a session that ends.
    pub fn learn(&mut self, targets: &[TargetSpec]) {
        self.link.lock().directory.learn(targets);
    }

    /// Looks for cgroups itself where the kernel could not enter or announce one because a map or ring was full: they are
    /// recorded from now on, and coverage says so. To be called now and then; costs two lookups when all is well.
    ///
    /// # Errors
    /// When a map is full still, or cannot be read; calling again tries again.
    pub fn mend(&mut self) -> Result<(), EngineError> {
        let mut guard = lock(&self.kernel);
        let Some(kernel) = &mut *guard else { return Ok(()) };
        let failed = |source| KernelError::Map { map: "TARGET_ERRORS", source };
        let counts = kernel.array::<u64>("TARGET_ERRORS")?;
        let errors = counts.iter().sum::<Result<u64, _>>().map_err(failed)?;
        if errors == self.target_errors.seen {
            self.target_errors.failed = None;
            return Ok(());
        }
        // A look costs two walks over all cgroups for each session, and a map that is full stays so for a while.
        if let Some((at, error)) = &self.target_errors.failed
            && at.elapsed() < MEND_AGAIN
        {
            return Err(EngineError::TargetsMissing(error.clone()));
        }
        let mut failed = None;
        for (session, control) in &self.sessions {
            match maps::scan(&self.cgroup_root, &self.link, kernel, control.slot, &control.roots()) {
                Ok(joined) => control.ask(kernel, session, joined),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        maps::bury(&self.cgroup_root, &self.link);
        match failed {
            None => {
                tracing::warn!(
                    errors,
                    "the kernel had no room for new cgroups or their records: found by looking"
                );
                self.target_errors = TargetErrors { seen: errors, failed: None };
                Ok(())
            }
            Some(error) => {
                let error = error.to_string();
                self.target_errors.failed = Some((Instant::now(), error.clone()));
                Err(EngineError::TargetsMissing(error))
            }
        }
    }

    /// Compares what sessions cost with their budgets, once a second, and has those that cost more sampled. To be called now
    /// and then. Returns what has changed, by session; one that is to stop has to be [closed](Engine::close).
    pub fn govern(&mut self) -> Vec<(String, Excess)> {
        match &mut *lock(&self.kernel) {
            Some(kernel) => self.governor.look(kernel, &self.link, &mut self.sessions),
            None => Vec::new(),
        }
    }

    /// Hits that nothing said whose they were, by table, since hooks were attached: packets without a socket, in a network
    /// namespace that is no target's or the node's own. They are counted for the node, never stored.
    pub fn unattributed(&self) -> Vec<(&'static str, u64)> {
        let mut guard = lock(&self.kernel);
        let Some(kernel) = &mut *guard else { return Vec::new() };
        let hits =
            TABLES.iter().filter_map(|table| Some((table.name, kernel.unattributed(table.index).ok()?)));
        hits.filter(|(_, hits)| *hits > 0).collect()
    }

    /// Ends the session: what is open is reported, its last batches are sealed, then comes [`Output::Closed`]. Returns
    /// before that, once no further event is recorded for it. An unknown session is ignored.
    ///
    /// With `names` the last rows wait for the names of their containers for a while, if a plan may still bring them (see
    /// [`learn`](Self::learn)).
    pub fn close(&mut self, session: &str, names: bool) {
        let Some(mut control) = self.sessions.remove(session) else { return };
        let mut guard = lock(&self.kernel);
        let Some(kernel) = &mut *guard else { return };
        let slot = control.slot;
        let log = |what: &str, result: Result<(), KernelError>| {
            if let Err(error) = result {
                tracing::error!(%error, session, "cannot {what}");
            }
        };
        for &Running { index, .. } in &control.collectors {
            log("report what is still open", ALL[index].flush(kernel, slot));
        }
        let added_up: Vec<u32> = {
            let shared = self.link.lock();
            let tables = shared.session(session).into_iter().flat_map(|(_, session)| &session.tables);
            let open = tables.filter(|state| state.window.as_ref().is_some_and(Window::is_open));
            open.map(|state| state.table.index).collect()
        };
        // While the targets are the session's still.
        log("look once more", window::look(kernel, &self.link, &added_up));
        for table in 0..MAX_TABLES {
            log("stop recording", kernel.set_bit("ENABLED", table, slot, false));
        }
        let now = clock::boot_ns();
        let windows = &mut control.windows;
        windows.pods.values_mut().chain(windows.cgroups.values_mut()).for_each(|one| coverage::end(one, now));
        for key in control.pods.values().flat_map(|names| maps::keys(names)) {
            log("forget a pod", maps::change(kernel, "PODS", key, slot, false));
        }
        // Twice: a cgroup that is being made may inherit the slot after the first time.
        for _ in 0..2 {
            log("forget targets", maps::clear(kernel, slot));
            wait_for_programs();
        }
        log("take out what was added up", window::turn(kernel, &self.link, &added_up));
        let mut shared = self.link.lock();
        let rings = shared.rings.as_ref().map_or(0, |rings| rings.rings.len());
        if let Some(ending) = shared.sessions.get_mut(slot as usize).and_then(Option::as_mut) {
            ending.end_windows(clock::boot_ns());
            count_skipped(kernel, ending);
            let patience = if names { decode::NAME_PATIENCE } else { Duration::ZERO };
            let (empty, names_until) = (vec![false; rings], Instant::now() + patience);
            ending.closing = Some(Closing { empty, windows: control.windows, names_until });
        }
        drop(shared);
        for &used in &control.collectors {
            log("leave the collector's maps", ALL[used.index].close(kernel, slot));
            kernel.detach(used);
        }
        if self.sessions.is_empty() {
            kernel.detach_targets();
        }
        drop(guard);
        self.link.wake();
    }

    /// What became of the session's events, also for some time after its end. Empty for an unknown session.
    pub fn counters(&self, session: &str) -> Vec<TableCounters> {
        let kernel = lock(&self.kernel);
        let mut shared = self.link.lock();
        let Some((slot, open)) = shared.session(session) else {
            return shared.ended(session).map(|ended| ended.counters.clone()).unwrap_or_default();
        };
        if let (Some(kernel), None) = (&*kernel, &open.closing) {
            shared.sessions[slot as usize].iter_mut().for_each(|session| count_skipped(kernel, session));
        }
        shared.session(session).map(|(slot, open)| shared.counters_of(slot, open)).unwrap_or_default()
    }

    /// Since when each container was traced, also for some time after the session's end. Empty for an unknown session.
    /// Final once [`Output::Closed`] came: only then every cgroup that was made in time is known.
    pub fn coverage(&self, session: &str) -> Vec<TargetCoverage> {
        let shared = self.link.lock();
        let open = self.sessions.get(session).map(|control| &control.windows);
        let closing = || Some(&shared.session(session)?.1.closing.as_ref()?.windows);
        match open.or_else(closing) {
            Some(windows) => windows.coverage(&shared.directory),
            None => shared.ended(session).map(|ended| ended.coverage.clone()).unwrap_or_default(),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.link.lock().stop = true;
        self.link.wake();
        lock(&self.kernel).take();
        // They end by themselves, unless the receiver of rows holds one up; nobody waits for that.
        self.threads.clear();
    }
}

/// Gives the memory of maps and rings back if no session has a slot; false while somebody else uses the kernel.
fn unload_when_idle(kernel: &Mutex<Option<Kernel>>, link: &Link) -> bool {
    let mut kernel = match kernel.try_lock() {
        Ok(kernel) => kernel,
        Err(TryLockError::Poisoned(kernel)) => kernel.into_inner(),
        Err(TryLockError::WouldBlock) => return false,
    };
    let mut shared: MutexGuard<'_, Shared> = link.lock();
    if shared.sessions.iter().all(Option::is_none) {
        shared.rings = None;
        shared.directory = Default::default();
        *kernel = None;
    }
    true
}

/// Takes over how many runs of its collectors' programs the kernel has skipped.
fn count_skipped(kernel: &Kernel, session: &mut Session) {
    for state in &mut session.tables {
        state.recursion = kernel.recursion_misses(state.collector).saturating_sub(state.recursion_base);
    }
}
