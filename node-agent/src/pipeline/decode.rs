// SPDX-License-Identifier: Apache-2.0
//! Drains the rings: each record becomes one row for each session that it carries.
//!
//! In: records. Out: [`Output`], sealed batches by time or size, and the end of each session.
//! Loses: a record that does not decode, counted `decode_error` with the events it stands for. A full output channel
//! blocks this thread, so that what cannot be taken any more is lost in the kernel's rings, where it is counted.
//! Invariants: rows, counters and the directory change under one lock, taken once per pass and not held while sending; a
//! slot is free only after every ring was seen empty once since no program could write for it any more.

use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use node_agent_common::counters::{Counters, LIMIT_SETS, slot_table};
use node_agent_common::event::{Attribution, Event, Header, until_nul};
use node_agent_common::table::{AFTER_COMMON, Table};
use node_agent_common::target::{CgroupGone, CgroupMade, SLOTS};
use rand::Rng;

use super::batch::{Columns, common};
use super::cost::{self, Clock, Cost};
use super::unsealed::Unsealed;
use super::window::Window;
use crate::collectors::{Decoder, Running};
use crate::coverage::{TargetCoverage, Windows};
use crate::engine::{Batch, Output, TableCounters};
use crate::kernel::clock;
use crate::limits;
use crate::targets::Directory;

/// How often the rings are looked at.
pub const PERIOD: Duration = Duration::from_millis(5);
/// Records of one ring per pass, some 3 ms, so that a ring which is filled as fast as it is emptied cannot keep the lock for long.
const RECORDS_PER_PASS: usize = 1 << 13;
/// How long others have between two passes to take the lock, when rings were not emptied.
const BREATH: Duration = Duration::from_micros(50);
/// A batch is sealed at this size whatever the session asks for, to bound memory per table: files are put together from
/// batches further on ...
const BATCH_BYTES: u64 = 4 << 20;
/// ... and at this size also if the name of a container is still to come.
const BATCH_BYTES_MAX: u64 = 32 << 20;
/// Rows of containers without a name wait for it so long beyond their deadline, or their session's end, looked at so often.
pub const NAME_PATIENCE: Duration = Duration::from_secs(30);
const NAME_STEP: Duration = Duration::from_secs(1);
/// Sessions that ended are remembered up to this many.
const ENDED: usize = 256;

/// The kernel's maps that the drain thread reads.
pub struct Rings {
    /// One per group of CPUs.
    pub rings: Vec<RingBuf<MapData>>,
    /// For each: all that programs which had ended by then, nanoseconds since boot, put into it was taken out.
    pub reached_ns: Vec<u64>,
    /// What became of events, by slot and table.
    pub counters: PerCpuArray<MapData, Counters>,
    /// What sampling skipped, by set, slot and table.
    pub sampled_out: PerCpuArray<MapData, u64>,
}

/// One table of one session.
pub struct TableState {
    /// Its collector.
    pub collector: Running,
    /// The table.
    pub table: &'static Table,
    /// Tags of the records that become its rows.
    pub tags: Vec<u16>,
    /// Makes rows of records, with the session's parameters.
    pub decoder: Box<dyn Decoder>,
    /// Rows not sealed yet.
    pub columns: Columns,
    /// When they are sealed; set by the first row.
    pub deadline: Option<Instant>,
    /// For how long they have been kept back since, because a container had no name.
    pub kept_back: Duration,
    /// Which rows a crash would lose.
    pub unsealed: Unsealed,
    /// What is added up, if the kernel side adds up for this table.
    pub window: Option<Window>,
    /// Events that a row stands for, by the set of limits that admitted it.
    pub weights: [u64; LIMIT_SETS as usize],
    /// Skipped by sets of limits that are not in use any more.
    pub sampled_out: u64,
    /// Records so far, also those that were left out: each is work.
    pub made: u64,
    /// Events left out here, by parameters or as rows of containers that are not wanted.
    pub filtered: u64,
    /// Events whose record or batch could not be made.
    pub decode_error: u64,
    /// Skipped runs of the collector's programs when the session began.
    pub recursion_base: u64,
    /// Skipped runs since, final once the session ends.
    pub recursion: u64,
}

/// A session while it has a slot.
pub struct Session {
    /// UID.
    pub uid: Arc<str>,
    /// Containers it records; empty means all.
    pub containers: Vec<String>,
    /// Longest time that rows wait.
    pub rollover_interval: Duration,
    /// Size at which rows are sealed.
    pub rollover_bytes: u64,
    /// Its tables.
    pub tables: Vec<TableState>,
    /// Set when nothing can be written for it any more; `None` while it records.
    pub closing: Option<Closing>,
    /// CPU time that went into its rows.
    pub cost: Cost,
    /// Records whose CPU time is in it.
    pub charged: u64,
}

/// A session whose last records may still be in the rings.
pub struct Closing {
    /// Which rings were seen empty since.
    pub empty: Vec<bool>,
    /// What it recorded when.
    pub windows: Windows,
    /// Until when its last rows wait for the names of their containers.
    pub names_until: Instant,
}

/// What is kept of a session that ended.
pub struct Ended {
    /// UID.
    pub uid: Arc<str>,
    /// Final counters.
    pub counters: Vec<TableCounters>,
    /// Final coverage.
    pub coverage: Vec<TargetCoverage>,
}

/// What the control thread and the drain thread share.
#[derive(Default)]
pub struct Shared {
    /// The kernel's maps; none while no session has a slot.
    pub rings: Option<Rings>,
    /// Sessions by slot.
    pub sessions: Vec<Option<Session>>,
    /// Cgroups and pods.
    pub directory: Directory,
    /// Sessions that ended, oldest first.
    pub ended: VecDeque<Ended>,
    /// Records that belong to no type, with the log's own memory of it.
    pub unknown_records: u64,
    /// Every record of an event before this time, nanoseconds since boot, was taken out of its ring.
    pub drained_ns: u64,
    /// Set to end the thread.
    pub stop: bool,
}

/// The shared state with the signal that something about it is to be looked at.
#[derive(Default)]
pub struct Link {
    shared: Mutex<Shared>,
    wake: Condvar,
}

impl Link {
    /// The shared state. A panic elsewhere leaves counters and rows consistent per record, so it is used further.
    pub fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the drain thread look now.
    pub fn wake(&self) {
        self.wake.notify_all();
    }

    /// Waits until some session has a window, and returns when the next one is due; none when it is told to stop.
    pub fn wait_for_windows(&self) -> Option<u64> {
        let mut shared = self.lock();
        loop {
            if shared.stop {
                return None;
            }
            if let Some(due_ns) = shared.next_window() {
                return Some(due_ns);
            }
            shared = self.wake.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until then, nanoseconds since boot, or until something is to be looked at.
    pub fn rest_until(&self, due_ns: u64) {
        let shared = self.lock();
        // A session may have begun, and called, since it was asked what is due.
        if !shared.stop && shared.next_window().is_none_or(|next_ns| next_ns >= due_ns) {
            let left = Duration::from_nanos(due_ns.saturating_sub(clock::boot_ns()));
            drop(self.wake.wait_timeout(shared, left));
        }
    }

    /// Waits so long, or until something is to be looked at.
    pub fn rest(&self, duration: Duration) {
        let shared = self.lock();
        if !shared.stop {
            drop(self.wake.wait_timeout(shared, duration));
        }
    }

    /// Waits for the next pass.
    fn wait(&self, emptied: bool) {
        let shared = self.lock();
        // Without any ring there is nothing to look at until somebody says so.
        let period = match (&shared.rings, emptied) {
            (None, _) => Duration::from_secs(3600),
            (Some(_), true) => PERIOD,
            (Some(_), false) => BREATH,
        };
        if !shared.stop {
            drop(self.wake.wait_timeout(shared, period));
        }
    }
}

/// Drains until told to stop. `idle` is called without any lock held when the last session has left, again and again
/// until it says that it is done. It must not wait: a session that begins or ends relies on the rings being drained.
pub fn run(link: &Link, out: &SyncSender<Output>, idle: impl Fn() -> bool) {
    let (mut outputs, mut leaving) = (Vec::new(), false);
    loop {
        let (emptied, nobody) = {
            let mut shared = link.lock();
            if shared.stop {
                return;
            }
            let passed = shared.pass(&mut outputs);
            leaving |= passed.ended;
            (passed.emptied, shared.sessions.iter().all(Option::is_none))
        };
        for output in outputs.drain(..) {
            if out.send(output).is_err() {
                // Nobody takes the rows any more: the agent is going down.
                return;
            }
        }
        leaving = leaving && nobody && !idle();
        link.wait(emptied);
    }
}

/// What came of a look at all rings.
struct Passed {
    /// Whether each of them was seen empty.
    emptied: bool,
    /// Whether a session ended.
    ended: bool,
}

impl Shared {
    /// One look at all rings.
    fn pass(&mut self, outputs: &mut Vec<Output>) -> Passed {
        let Shared { rings, sessions, directory, unknown_records, drained_ns, .. } = self;
        let Some(kernel) = rings else { return Passed { emptied: true, ended: false } };
        let (begin_ns, mut all_empty, mut spent) = (clock::boot_ns(), true, Clock::start());
        let offset_ns = clock::utc_offset_ns();
        for (index, ring) in kernel.rings.iter_mut().enumerate() {
            // A program takes its record's time before its place in the ring: what lies before that place was put there by programs
            // that began earlier.
            let (mut empty, mut reached_ns) = (false, 0);
            for left in (0..RECORDS_PER_PASS).rev() {
                let Some(record) = ring.next() else {
                    (empty, reached_ns) = (true, begin_ns);
                    break;
                };
                if !dispatch(&record, offset_ns, sessions, directory) {
                    *unknown_records += 1;
                }
                if left == 0 {
                    reached_ns = Header::of(&record).map_or(0, |header| header.ts_ns);
                }
            }
            kernel.reached_ns[index] = kernel.reached_ns[index].max(reached_ns);
            all_empty &= empty;
            if empty {
                for closing in sessions.iter_mut().flatten().filter_map(|session| session.closing.as_mut()) {
                    closing.empty[index] = true;
                }
            }
        }
        if all_empty {
            *drained_ns = begin_ns;
        }
        charge(sessions, spent.lap());
        let now = Instant::now();
        for session in sessions.iter_mut().flatten() {
            let before = outputs.len();
            session.seal_due(now, directory, outputs);
            if outputs.len() > before {
                session.cost.add(spent.lap());
            }
        }
        Passed { emptied: all_empty, ended: self.end_closed(outputs) }
    }

    fn end_closed(&mut self, outputs: &mut Vec<Output>) -> bool {
        let mut ended = false;
        for slot in 0..self.sessions.len() {
            let directory = &self.directory;
            let done = |session: &Session| {
                session.closing.as_ref().is_some_and(|closing| {
                    closing.empty.iter().all(|&empty| empty)
                        && (Instant::now() >= closing.names_until || !session.awaits_name(directory))
                })
            };
            if !self.sessions[slot].as_ref().is_some_and(done) {
                continue;
            }
            let Some(mut session) = self.sessions[slot].take() else { continue };
            session.seal_all(&self.directory, outputs);
            let counters = self.counters_of(slot as u32, &session);
            let coverage = session
                .closing
                .iter()
                .flat_map(|closing| closing.windows.coverage(&self.directory))
                .collect();
            self.ended.push_back(Ended { uid: session.uid.clone(), counters, coverage });
            while self.ended.len() > ENDED {
                self.ended.pop_front();
            }
            outputs.push(Output::Closed { session: session.uid });
            ended = true;
        }
        ended
    }

    /// Whether every record was taken out that programs which had ended by then, nanoseconds since boot, put into a ring.
    pub fn drained_since(&self, ns: u64) -> bool {
        self.rings.as_ref().is_none_or(|rings| rings.reached_ns.iter().all(|reached| *reached > ns))
    }

    /// Hits of a table that asked to become rows: all but those beyond its rate.
    pub fn hits(&self, slot: u32, table: u32) -> u64 {
        let cpus = self.rings.as_ref().and_then(|rings| rings.counters.get(&slot_table(slot, table), 0).ok());
        let one = |counters: &Counters| counters.emitted.wrapping_sub(counters.rate_limited);
        cpus.map_or(0, |cpus| cpus.iter().map(one).fold(0, u64::wrapping_add))
    }

    /// The lowest slot that no session holds.
    pub fn free_slot(&self) -> Option<u32> {
        (0..SLOTS).find(|&slot| self.sessions.get(slot as usize).is_none_or(Option::is_none))
    }

    /// The session of that UID and its slot.
    pub fn session(&self, uid: &str) -> Option<(u32, &Session)> {
        let sessions = self.sessions.iter().enumerate();
        sessions
            .filter_map(|(slot, session)| Some((slot as u32, session.as_ref()?)))
            .find(|(_, s)| &*s.uid == uid)
    }

    /// The last session of that UID that ended.
    pub fn ended(&self, uid: &str) -> Option<&Ended> {
        self.ended.iter().rev().find(|ended| &*ended.uid == uid)
    }

    /// What became of the session's events so far.
    pub fn counters_of(&self, slot: u32, session: &Session) -> Vec<TableCounters> {
        let table_counters = |state: &TableState| {
            let index = slot_table(slot, state.table.index);
            let cpus = self.rings.as_ref().and_then(|rings| rings.counters.get(&index, 0).ok());
            let sum = |field: fn(&Counters) -> u64| -> u64 {
                cpus.as_ref().map_or(0, |cpus| cpus.iter().map(field).fold(0, u64::wrapping_add))
            };
            TableCounters {
                table: state.table.name,
                // A skipped run may have been a hit on a target or not; it is counted as one that was lost.
                emitted: sum(|c| c.emitted)
                    + state.recursion
                    + state.window.as_ref().map_or(0, |window| window.looked),
                sampled_out: state.sampled_out
                    + self.rings.as_ref().map_or(0, |rings| {
                        let skipped = |set| limits::skipped(rings, set, slot, state.table.index);
                        (0..LIMIT_SETS).filter_map(|set| skipped(set).ok()).sum()
                    }),
                rate_limited: sum(|c| c.rate_limited),
                filtered: state.filtered,
                ring_full: sum(|c| c.ring_full),
                map_full: sum(|c| c.map_full),
                recursion: state.recursion,
                decode_error: state.decode_error,
                // What is added up is in no file before its window ends.
                sealed_ns: [state.unsealed.oldest(), state.window.as_ref().and_then(Window::open_since)]
                    .into_iter()
                    .flatten()
                    .fold(self.drained_ns, u64::min),
            }
        };
        session.tables.iter().map(table_counters).collect()
    }
}

/// Divides CPU time among sessions by the records that it went into: all since the last time.
pub fn charge(sessions: &mut [Option<Session>], spent: Duration) {
    let made = |session: &Session| session.tables.iter().map(|state| state.made).sum::<u64>();
    let open = || sessions.iter().flatten();
    cost::share(spent, open().map(|session| (&session.cost, made(session) - session.charged)));
    sessions.iter_mut().flatten().for_each(|session| session.charged = made(session));
}

/// Hands a record to whom it concerns; false when it is of no known type.
fn dispatch(
    record: &[u8],
    offset_ns: i64,
    sessions: &mut [Option<Session>],
    directory: &mut Directory,
) -> bool {
    let Some(header) = Header::of(record) else { return false };
    if header.tag == CgroupMade::TAG {
        let Some(made) = CgroupMade::read(record) else { return false };
        let name = String::from_utf8_lossy(until_nul(&made.name));
        directory.made(header.cgroup_id, made.parent_id, &name, header.ts_ns);
        return true;
    }
    if header.tag == CgroupGone::TAG {
        directory.gone(header.cgroup_id, header.ts_ns);
        return true;
    }
    let mut known = false;
    let mut slots = header.slots;
    while slots != 0 {
        let slot = slots.trailing_zeros() as usize;
        slots &= slots - 1;
        let Some(session) = sessions.get_mut(slot).and_then(Option::as_mut) else { continue };
        let Some(state) = session.tables.iter_mut().find(|state| state.tags.contains(&header.tag)) else {
            continue;
        };
        known = true;
        let place = Place { offset_ns, interval: session.rollover_interval };
        let weight = state.weights[usize::from(header.limits) % state.weights.len()];
        state.append(&header, record, weight, None, place);
    }
    known
}

/// Where and when rows are made.
#[derive(Clone, Copy)]
pub struct Place {
    /// From boot time to UTC.
    pub offset_ns: i64,
    /// How long rows wait before they are sealed.
    pub interval: Duration,
}

impl Place {
    fn utc_us(&self, boot_ns: u64) -> i64 {
        (boot_ns.cast_signed() + self.offset_ns).div_euclid(1000)
    }
}

impl TableState {
    /// Ends the window, if the table has one, and makes its rows.
    pub fn end_window(&mut self, now_ns: u64, place: Place) {
        let Some(window) = &mut self.window else { return };
        let ended = window.end(now_ns);
        let span = (ended.began_ns, ended.ended_ns);
        let mut records: Vec<_> = ended.records().collect();
        let looked = records.len() as u64;
        self.decoder.window(span, &mut records);
        if window.aggregation().looks {
            // What is there no more has a row as well.
            window.looked += (records.len() as u64).saturating_sub(looked);
        }
        for (record, events) in records {
            if let Some(header) = Header::of(&record) {
                self.append(&Header { ts_ns: now_ns, ..header }, &record, events, Some(span), place);
            }
        }
    }

    /// Makes a row of a record that stands for so many events, of a window or alone.
    fn append(
        &mut self,
        header: &Header,
        record: &[u8],
        weight: u64,
        window: Option<(u64, u64)>,
        place: Place,
    ) {
        self.made += 1;
        let mut row = self.columns.row();
        match self.decoder.decode(header, record, &mut row) {
            Ok(crate::collectors::Verdict::Row) => {}
            Ok(crate::collectors::Verdict::Filtered) => {
                self.filtered += weight;
                return;
            }
            Err(error) => {
                if self.decode_error == 0 {
                    tracing::error!(%error, table = self.table.name, "record does not decode; further ones are counted only");
                }
                self.decode_error += weight;
                return;
            }
        }
        row.int(common::TIME_UTC, place.utc_us(header.ts_ns));
        row.uint(common::TS_NS, header.ts_ns);
        row.uint(common::CGROUP_ID, header.cgroup_id);
        if header.netns != 0 {
            row.uint(common::NETNS, header.netns);
        }
        row.word(common::ATTRIBUTION, Attribution::name(header.attribution).unwrap_or("none"));
        match window {
            None => row.int(common::CPU, header.cpu.into()),
            Some((began_ns, ended_ns)) => {
                row.int(AFTER_COMMON, place.utc_us(began_ns));
                row.uint(AFTER_COMMON + 1, ended_ns.saturating_sub(began_ns));
            }
        }
        row.push(weight);
        self.unsealed.saw(window.map_or(header.ts_ns, |(began_ns, _)| began_ns));
        if self.deadline.is_none() {
            // Jittered, so that the nodes of a cluster do not upload in step.
            self.deadline =
                Some(Instant::now() + place.interval.mul_f64(rand::rng().random_range(0.9..=1.0)));
        }
    }

    /// Puts off the rows that are due if a container of theirs may still get its name.
    fn keep_back(&mut self, now: Instant, directory: &Directory) -> bool {
        let wait = self.kept_back < NAME_PATIENCE
            && self.columns.cgroups().any(|cgroup| directory.awaits_name(cgroup));
        if wait {
            self.deadline = Some(now + NAME_STEP);
            self.kept_back += NAME_STEP;
        }
        wait
    }

    fn seal(
        &mut self,
        session: &Arc<str>,
        containers: &[String],
        directory: &Directory,
        cost: &Cost,
        outputs: &mut Vec<Output>,
    ) {
        (self.deadline, self.kept_back) = (None, Duration::ZERO);
        if self.columns.rows() == 0 {
            return;
        }
        let mark = self.unsealed.hand_on();
        match self.columns.seal(|cgroup| directory.identity(cgroup, containers)) {
            Ok(sealed) => {
                self.filtered += sealed.filtered;
                if sealed.rows.num_rows() > 0 {
                    outputs.push(Output::Batch(Batch {
                        session: session.clone(),
                        table: self.table.name,
                        rows: sealed.rows,
                        weight: sealed.weight,
                        mark,
                        cost: cost.clone(),
                    }));
                }
            }
            Err(error) => {
                self.decode_error += error.weight;
                tracing::error!(%error, table = self.table.name, "batch lost");
            }
        }
    }
}

impl Session {
    /// Ends the windows of all its tables.
    pub fn end_windows(&mut self, now_ns: u64) {
        let place = Place { offset_ns: clock::utc_offset_ns(), interval: self.rollover_interval };
        self.tables.iter_mut().for_each(|state| state.end_window(now_ns, place));
    }

    fn seal_due(&mut self, now: Instant, directory: &Directory, outputs: &mut Vec<Output>) {
        let limit = self.rollover_bytes.min(BATCH_BYTES);
        for state in &mut self.tables {
            let due = state.deadline.is_some_and(|deadline| deadline <= now);
            let bytes = state.columns.bytes();
            let full = bytes >= limit && state.kept_back.is_zero();
            if bytes >= BATCH_BYTES_MAX || ((due || full) && !state.keep_back(now, directory)) {
                state.seal(&self.uid, &self.containers, directory, &self.cost, outputs);
            }
        }
    }

    fn awaits_name(&self, directory: &Directory) -> bool {
        let mut cgroups = self.tables.iter().flat_map(|state| state.columns.cgroups());
        cgroups.any(|cgroup| directory.awaits_name(cgroup))
    }

    fn seal_all(&mut self, directory: &Directory, outputs: &mut Vec<Output>) {
        for state in &mut self.tables {
            state.seal(&self.uid, &self.containers, directory, &self.cost, outputs);
        }
    }
}
