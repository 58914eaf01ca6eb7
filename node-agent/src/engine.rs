// SPDX-License-Identifier: Apache-2.0
//! The kernel side of a node: one set of hooks, shared by all sessions.
//!
//! In: sessions with their collectors, targets and ends. Out: [`Output`]: batches of rows, and the end of each session.
//! Loses: events that find a ring or map full, or that do not decode; all counted ([`TableCounters`]).
//! Invariants: no program is attached while no session is open. For each table, at any time after a session's end,
//! `emitted` equals the weights of its batches plus the other counters. A slot is given out again only after its last batch.
//! Why one control thread: opening, joining and closing each change kernel maps in several steps; in turn they need no
//! further order.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use aya::maps::{ArrayOfMaps, MapData, PerCpuArray, PerCpuValues, RingBuf};
use node_agent_common::catalogue::TABLES;
use node_agent_common::counters::{
    BEGAN_NUMBERS, Counters, LIMIT_SETS, Limits, MAX_TABLES, RateWindow, slot_table,
};
use node_agent_common::table::CollectorInfo;
use node_agent_common::target::SLOTS;

use crate::budget::{Budget, Excess, Meter};
use crate::collectors::{self, ALL, ParamError, Params, Running, Values};
use crate::coverage::{self, Windows};
use crate::govern::Governor;
use crate::kernel::clock;
use crate::kernel::load::{Kernel, KernelError, wait_for_programs};
use crate::limits;
use crate::pipeline::batch::Columns;
use crate::pipeline::cost::Cost;
use crate::pipeline::decode::{self, Closing, Link, Rings, Session, Shared, TableState};
use crate::pipeline::ring;
use crate::pipeline::unsealed::{Mark, Unsealed};
use crate::pipeline::window::{self, Window};
use crate::targets::cgroup;
use crate::targets::control::Control;
use crate::targets::maps;

pub use crate::coverage::TargetCoverage;
pub use crate::kernel::probe::Capability;
pub use crate::targets::{PodTarget, TargetSpec};

/// How the engine is set up.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Name of the node, as in the `node` column.
    pub node: String,
    /// Where the cgroup v2 tree lies; none for where this process sees it mounted. Hybrid hosts have it in `unified`.
    pub cgroup_root: Option<PathBuf>,
    /// Bytes of each ring, a power of two; none for what fits the number of CPUs.
    pub ring_bytes: Option<usize>,
    /// Entries of each map that adds events up; none for what its table says.
    pub map_rows: Option<u32>,
    /// Sessions that may be open at the same time; none for as many as there are slots.
    pub max_sessions: Option<u32>,
}

/// A session to open.
#[derive(Clone, Debug)]
pub struct SessionSpec {
    /// UID, unique on the node.
    pub uid: Arc<str>,
    /// What it collects.
    pub collectors: Vec<CollectorSpec>,
    /// Names of the containers whose rows it wants; empty for all.
    pub containers: Vec<String>,
    /// How long rows wait at most before a batch is sealed; jittered by a tenth.
    pub rollover_interval: Duration,
    /// At about how many bytes in memory a batch is sealed.
    pub rollover_bytes: u64,
    /// What it may cost this node.
    pub budget: Budget,
}

/// One collector of a session.
#[derive(Clone, Debug, Default)]
pub struct CollectorSpec {
    /// Name (camelCase).
    pub name: String,
    /// Its parameters, as in the catalogue.
    pub params: Params,
    /// Period of aggregates; collectors of events do not use it.
    pub interval: Duration,
    /// One row for this many events; 0 and 1 mean each.
    pub sample_every: u32,
    /// Events per second that may become rows on this node; 0 means all.
    pub max_events_per_second: u64,
    /// Whether the session does without it where it cannot run.
    pub optional: bool,
}

/// Rows of one table of one session, nearly in order of time (CPUs deliver apart).
#[derive(Clone, Debug)]
pub struct Batch {
    /// UID of the session.
    pub session: Arc<str>,
    /// Name of the table.
    pub table: &'static str,
    /// The rows, with the schema of `dataset`.
    pub rows: RecordBatch,
    /// Events that they stand for.
    pub weight: u64,
    /// Lives until they are sealed.
    pub mark: Mark,
    /// Takes what writing them costs.
    pub cost: Cost,
}

/// What the engine hands on.
#[derive(Clone, Debug)]
pub enum Output {
    /// Rows.
    Batch(Batch),
    /// No further batch of this session will come.
    Closed {
        /// UID of the session.
        session: Arc<str>,
    },
}

/// What became of one table's events since its session opened. All but `sampled_out` only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableCounters {
    /// Name of the table.
    pub table: &'static str,
    /// Hits on a target.
    pub emitted: u64,
    /// Hits that no row stands for: fewer than `sampleEvery` per CPU, for each time that this number changed.
    pub sampled_out: u64,
    /// Hits beyond `maxEventsPerSecond`.
    pub rate_limited: u64,
    /// Hits that the session's parameters or containers leave out.
    pub filtered: u64,
    /// Hits that found their ring full.
    pub ring_full: u64,
    /// Hits that found the collector's map full.
    pub map_full: u64,
    /// Runs that the kernel skipped because the same program ran on that CPU; also in `emitted`, as nobody can say which
    /// of them were hits.
    pub recursion: u64,
    /// Hits whose record could not be made a row.
    pub decode_error: u64,
    /// Every row of an event before this time, nanoseconds since boot, is in a sealed file.
    pub sealed_ns: u64,
}

/// What came of one collector when its session was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorOutcome {
    /// Name of the collector (camelCase).
    pub collector: String,
    /// Whether it runs.
    pub state: CollectorState,
}

/// See [`CollectorOutcome`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CollectorState {
    /// It records.
    Running,
    /// This node cannot run it.
    Unsupported {
        /// One word for machines.
        reason: &'static str,
        /// What is missing, for people.
        message: String,
    },
}

/// Why the engine cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// As many have a place as may.
    #[error(
        "all {0} places for sessions on this node are taken, by sessions that record or whose last rows are on their way; this \
         one begins when a place is free"
    )]
    NodeCapacity(u32),
    /// The session is open already.
    #[error("session {0} is open already")]
    Duplicate(Arc<str>),
    /// There is no such session.
    #[error("there is no open session {0}")]
    UnknownSession(String),
    /// No such collector.
    #[error("there is no collector `{name}`; known: {known}")]
    UnknownCollector {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// Some cgroups are not recorded: a map is full.
    #[error("{0}")]
    TargetsMissing(String),
    /// A parameter is wrong.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The system refuses.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

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

    /// Gives the session a slot and starts its collectors. It records nothing until it has targets.
    ///
    /// # Errors
    /// When the node is full, the session is open, a collector or parameter is unknown, or the object cannot be loaded.
    /// A collector that this kernel cannot run is no error: its outcome says so.
    pub fn open(&mut self, spec: SessionSpec) -> Result<Vec<CollectorOutcome>, EngineError> {
        if self.sessions.contains_key(&*spec.uid) || self.link.lock().session(&spec.uid).is_some() {
            return Err(EngineError::Duplicate(spec.uid));
        }
        let mut wanted = Vec::new();
        for collector in &spec.collectors {
            let (index, found) =
                collectors::find(&collector.name).ok_or_else(|| EngineError::UnknownCollector {
                    name: collector.name.clone(),
                    known: ALL.iter().map(|collector| collector.info().name).collect::<Vec<_>>().join(", "),
                })?;
            wanted.push((index, collector, Values::parse(found.info(), &collector.params)?));
        }
        let most = self.config.max_sessions.unwrap_or(SLOTS).min(SLOTS);
        let slot = self.link.lock().free_slot().filter(|_| self.sessions.len() < most as usize);
        let slot = slot.ok_or(EngineError::NodeCapacity(most))?;
        let mut guard = lock(&self.kernel);
        let kernel = match &mut *guard {
            Some(kernel) => kernel,
            None => {
                self.target_errors = TargetErrors::default();
                self.governor = Governor::default();
                guard.insert(self.load()?)
            }
        };
        begin(kernel, slot)?;
        let (mut outcomes, mut running, mut unsupported, mut tables) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (index, collector, values) in wanted {
            let used = Running { index, asks: ALL[index].asks(&values) };
            let started = kernel.attach(used).and_then(|()| {
                prepare(kernel, slot, index, collector, ALL[index].each(&values))
                    .and_then(|()| ALL[index].open(kernel, slot, &values))
                    .inspect_err(|_| kernel.detach(used))
            });
            let state = match started {
                Ok(()) => {
                    running.push(used);
                    let recursion_base = kernel.recursion_misses(used);
                    tables.extend(tables_of(&self.config.node, used, collector, &values, recursion_base));
                    CollectorState::Running
                }
                Err(error) => {
                    let message = error.to_string();
                    unsupported.push((ALL[index].info().name, message.clone()));
                    let reason = if matches!(error, KernelError::Unsupported(_)) {
                        "MissingInKernel"
                    } else {
                        "LoadFailed"
                    };
                    CollectorState::Unsupported { reason, message }
                }
            };
            outcomes.push(CollectorOutcome { collector: collector.name.clone(), state });
        }
        for state in &mut tables {
            if let Some(window) = &mut state.window {
                window.first = window::raise(kernel, state.table.index)?;
            }
        }
        self.clear_counters(slot, &tables)?;
        // Sums cost no row per event.
        let single: Vec<_> = tables
            .iter()
            .filter(|state| ALL[state.collector.index].info().events && state.window.is_none())
            .map(|state| (state.table.name, state.weights[0]))
            .collect();
        let windows = tables.iter().filter_map(|state| state.window.as_ref()).map(Window::interval);
        let span = windows.fold(spec.rollover_interval, Duration::max);
        let session = Session {
            uid: spec.uid.clone(),
            containers: spec.containers,
            rollover_interval: spec.rollover_interval,
            rollover_bytes: spec.rollover_bytes,
            tables,
            closing: None,
            cost: Cost::default(),
            charged: 0,
        };
        {
            let mut shared = self.link.lock();
            let slots = &mut shared.sessions;
            slots.resize_with(slots.len().max(slot as usize + 1), || None);
            slots[slot as usize] = Some(session);
        }
        for table in running.iter().flat_map(|used| ALL[used.index].info().tables) {
            kernel.set_bit("ENABLED", table.index, slot, true)?;
        }
        let collectors =
            running.iter().map(|&used| (ALL[used.index].info().name, kernel.hook_words(used))).collect();
        let windows = Windows { collectors, unsupported, ..Windows::default() };
        let (pods, cgroups) = (BTreeMap::new(), BTreeMap::new());
        let opened_ns = clock::boot_ns();
        let meter = (!spec.budget.is_none()).then(|| Meter::new(spec.budget, span, single));
        let control = Control { slot, collectors: running, windows, pods, cgroups, opened_ns, meter };
        self.sessions.insert(spec.uid.to_string(), control);
        self.forget();
        drop(guard);
        self.link.wake();
        Ok(outcomes)
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

    /// Sets the counters of a slot's tables to zero, before anything can count in them.
    fn clear_counters(&self, slot: u32, tables: &[TableState]) -> Result<(), EngineError> {
        let cpus = aya::util::nr_cpus().map_err(|(what, source)| EngineError::Io { what, source })?;
        let mut shared = self.link.lock();
        let Some(rings) = &mut shared.rings else { return Ok(()) };
        for state in tables {
            let zeros = PerCpuValues::try_from(vec![Counters::default(); cpus])
                .map_err(|source| EngineError::Io { what: "cannot count CPUs", source })?;
            let set = rings.counters.set(slot_table(slot, state.table.index), zeros, 0);
            set.map_err(|source| KernelError::Map { map: "COUNTERS", source })?;
            limits::clear(rings, cpus, slot, state.table.index)?;
        }
        Ok(())
    }

    /// Makes the object and the rings.
    fn load(&self) -> Result<Kernel, EngineError> {
        let cpus = aya::util::nr_cpus().map_err(|(what, source)| EngineError::Io { what, source })?;
        let (count, bytes) = ring::layout(cpus);
        let bytes = self.config.ring_bytes.unwrap_or(bytes);
        let mut kernel = Kernel::load(count as u64 - 1, self.config.map_rows)?;
        let failed = |map| move |source| EngineError::Kernel(KernelError::Map { map, source });
        let mut outer: ArrayOfMaps<MapData, RingBuf<MapData>> =
            ArrayOfMaps::try_from(kernel.take_map("RINGS")?).map_err(failed("RINGS"))?;
        let mut rings = Vec::with_capacity(count);
        for index in 0..count {
            let ring = ring::create(bytes)
                .map_err(|source| EngineError::Io { what: "cannot make a ring", source })?;
            outer.set(index as u32, &ring, 0).map_err(failed("RINGS"))?;
            rings.push(ring);
        }
        kernel.keep(outer);
        let counters = PerCpuArray::try_from(kernel.take_map("COUNTERS")?).map_err(failed("COUNTERS"))?;
        let sampled_out =
            PerCpuArray::try_from(kernel.take_map("SAMPLED_OUT")?).map_err(failed("SAMPLED_OUT"))?;
        self.link.lock().rings = Some(Rings { rings, reached_ns: vec![0; count], counters, sampled_out });
        Ok(kernel)
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

/// The tables of a session's collector, empty.
fn tables_of(
    node: &str,
    used: Running,
    spec: &CollectorSpec,
    values: &Values,
    recursion_base: u64,
) -> impl Iterator<Item = TableState> {
    let collector = ALL[used.index];
    collector.info().tables.iter().map(move |&table| {
        let aggregation = collector.aggregations().iter().find(|one| one.table == table.index);
        let records = collector.records().iter().filter(|(_, of)| *of == table.index).map(|(tag, _)| *tag);
        TableState {
            collector: used,
            table,
            tags: records.chain(aggregation.map(|one| one.tag)).collect(),
            decoder: collector.decoder(values),
            columns: Columns::new(table, node),
            deadline: None,
            kept_back: Duration::ZERO,
            unsealed: Unsealed::default(),
            window: aggregation
                .filter(|_| !collector.each(values))
                .map(|one| Window::new(one, spec.interval)),
            weights: [asked(collector.info(), spec).sample_every.max(1); LIMIT_SETS as usize],
            sampled_out: 0,
            made: 0,
            filtered: 0,
            decode_error: 0,
            recursion_base,
            recursion: 0,
        }
    })
}

/// How many events the collector is to record; all, where they are not events but looks at something.
fn asked(info: &CollectorInfo, spec: &CollectorSpec) -> Limits {
    if !info.events {
        return Limits::default();
    }
    Limits { sample_every: spec.sample_every.into(), max_per_second: spec.max_events_per_second }
}

/// Numbers the slot's session: nothing that was seen before is its own.
fn begin(kernel: &mut Kernel, slot: u32) -> Result<(), KernelError> {
    let failed = |source| KernelError::Map { map: "BEGAN", source };
    let mut began = kernel.array::<u64>("BEGAN")?;
    let number = began.get(&(BEGAN_NUMBERS - 1), 0).map_err(failed)? + 1;
    began.set(slot, number, 0).map_err(failed)?;
    began.set(BEGAN_NUMBERS - 1, number, 0).map_err(failed)
}

/// Writes the slot's limits.
fn prepare(
    kernel: &mut Kernel,
    slot: u32,
    index: usize,
    spec: &CollectorSpec,
    each: bool,
) -> Result<(), KernelError> {
    let limits = asked(ALL[index].info(), spec);
    let failed = |map| move |source| KernelError::Map { map, source };
    for table in ALL[index].info().tables {
        let at = slot_table(slot, table.index);
        limits::begin(kernel, slot, table.index, limits)?;
        kernel.array::<RateWindow>("RATES")?.set(at, RateWindow::default(), 0).map_err(failed("RATES"))?;
        kernel.set_bit("EACH", table.index, slot, each)?;
        kernel.set_bit("SAMPLED", table.index, slot, limits.sample_every > 1)?;
    }
    Ok(())
}
