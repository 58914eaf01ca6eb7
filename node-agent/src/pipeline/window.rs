// SPDX-License-Identifier: Apache-2.0
//! Ends windows: takes what the kernel side has added up out of its maps, and makes rows of it.
//!
//! In: entries of the maps that [`Aggregation`]s name, and what collectors sample at a window's end. Out: rows in the
//! sessions' tables, one per key and window.
//! Loses: nothing. What found a full map was counted there; a session with more keys than [`MOST_KEYS`] has its window ended early.
//! Invariants: the number of the kernel's window is raised, and every program that saw the old one has ended, before
//! entries are taken out: an event is in one window. Sessions have windows of their own length: what is taken out is added
//! up for each until its own window ends.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use node_agent_common::aggregate::{Aggregate, Merge};
use node_agent_common::event::Header;

use super::cost::Clock;
use super::decode::{Link, Place, Shared, charge};
use crate::collectors::ALL;
use crate::kernel::load::{Kernel, KernelError, wait_for_programs};
use crate::kernel::{clock, entries};

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Keys of one session and table; with more its window ends.
const MOST_KEYS: usize = 1 << 16;

/// One map that the kernel side adds up, without its types.
#[derive(Clone, Copy, Debug)]
pub struct Aggregation {
    /// Name of the map in the object.
    pub map: &'static str,
    /// Position of the table.
    pub table: u32,
    /// Tag of the record that an entry makes.
    pub tag: u16,
    /// Whether its events are never sampled: the kernel itself counted them.
    pub exact: bool,
    /// Whether its entries are no events but what was there when somebody looked: how often that was is nobody's business,
    /// and each row counts as one.
    pub looks: bool,
    /// Whether the first window's rows are the only ones.
    pub once: bool,
    key_bytes: usize,
    value_bytes: usize,
    merges: &'static [(usize, Merge)],
}

impl Aggregation {
    /// The entries of that map.
    pub const fn of<A: Aggregate>(map: &'static str) -> Aggregation {
        Aggregation {
            map,
            table: A::TABLE,
            tag: A::TAG,
            exact: false,
            looks: false,
            once: false,
            key_bytes: size_of::<A::Key>(),
            value_bytes: size_of::<A::Value>(),
            merges: A::MERGES,
        }
    }

    /// The same, of events that the kernel itself counted.
    pub const fn exact(self) -> Aggregation {
        Aggregation { exact: true, ..self }
    }

    /// The same, of what was there when somebody looked.
    pub const fn looks(self) -> Aggregation {
        Aggregation { exact: true, looks: true, ..self }
    }

    /// Not a map: what a collector itself reads at each window's end ([`Collector::gather`](crate::collectors::Collector::gather)).
    pub const fn gathered<A: Aggregate>() -> Aggregation {
        Self::of::<A>("").looks()
    }

    /// The same, for the first window only.
    pub const fn once(self) -> Aggregation {
        Aggregation { once: true, ..self }
    }

    const fn is_gathered(&self) -> bool {
        self.map.is_empty()
    }

    /// Joins the words of an entry to those of an earlier one.
    fn join(&self, old: &mut [u64], new: impl Iterator<Item = u64>, weight: u64) {
        let ops = self.merges.iter().flat_map(|&(words, merge)| std::iter::repeat_n(merge, words));
        for ((old, new), merge) in old.iter_mut().zip(new).zip(ops) {
            *old = merge.join(*old, new, weight);
        }
    }
}

/// What a session's table has added up since its window began.
pub struct Window {
    aggregation: &'static Aggregation,
    interval_ns: u64,
    /// The kernel's window with which the session began.
    pub first: u64,
    /// Beginning of the window, nanoseconds since boot.
    pub began_ns: u64,
    /// When it is to end: a multiple of the interval, so that all nodes and sessions have the same.
    pub due_ns: u64,
    sums: HashMap<Box<[u8]>, Box<[u64]>>,
    /// Rows that no program counted as emitted: those of looks.
    pub looked: u64,
    is_first: bool,
}

impl Window {
    /// A window that begins now.
    pub fn new(aggregation: &'static Aggregation, interval: Duration) -> Window {
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1);
        let mut window = Window {
            aggregation,
            interval_ns,
            first: 0,
            began_ns: 0,
            due_ns: 0,
            sums: HashMap::new(),
            looked: 0,
            is_first: true,
        };
        window.begin(clock::boot_ns());
        window
    }

    /// The map that it takes from.
    pub fn aggregation(&self) -> &'static Aggregation {
        self.aggregation
    }

    /// How long it is.
    pub fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval_ns)
    }

    fn begin(&mut self, now_ns: u64) {
        self.began_ns = now_ns;
        self.due_ns = (now_ns / self.interval_ns + 1).saturating_mul(self.interval_ns);
    }

    /// Adds an entry. `key` has no sessions and no window.
    fn add(&mut self, key: &[u8], value: &[u8], weight: u64) {
        let words = value.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")));
        let weight = if self.aggregation.exact { 1 } else { weight };
        if !self.is_open() {
            return;
        }
        let sums = match self.sums.get_mut(key) {
            Some(sums) => sums,
            None => self.sums.entry(key.into()).or_insert_with(|| vec![0; value.len() / 8].into()),
        };
        self.aggregation.join(sums, words, weight);
    }

    /// Ends the window and returns its records, with their number of events; the next one begins.
    pub fn end(&mut self, now_ns: u64) -> Ended {
        let began_ns = self.began_ns;
        self.begin(now_ns);
        self.is_first &= self.sums.is_empty();
        let mut sums = std::mem::take(&mut self.sums);
        if self.aggregation.looks {
            self.looked += sums.len() as u64;
            sums.values_mut().for_each(|words| words[0] = 1);
        }
        Ended { began_ns, ended_ns: now_ns, sums }
    }

    /// Whether it will have rows still.
    pub fn is_open(&self) -> bool {
        self.is_first || !self.aggregation.once
    }

    /// Since when it has added up what is in no row yet, nanoseconds since boot.
    pub fn open_since(&self) -> Option<u64> {
        self.is_open().then_some(self.began_ns)
    }

    fn is_due(&self, now_ns: u64) -> bool {
        self.is_open() && (now_ns >= self.due_ns || self.sums.len() >= MOST_KEYS)
    }
}

/// A window that is over.
pub struct Ended {
    /// Its beginning, nanoseconds since boot.
    pub began_ns: u64,
    /// Its end.
    pub ended_ns: u64,
    sums: HashMap<Box<[u8]>, Box<[u64]>>,
}

impl Ended {
    /// Each record with the events that it stands for.
    pub fn records(self) -> impl Iterator<Item = (Vec<u8>, u64)> {
        self.sums.into_iter().map(|(key, words)| {
            let mut record = key.into_vec();
            record.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
            (record, words[0])
        })
    }
}

/// Runs until told to stop: ends each window when it is due.
pub fn run(link: &Link, kernel: &Mutex<Option<Kernel>>) {
    loop {
        let Some(due_ns) = link.wait_for_windows() else { return };
        let now_ns = clock::boot_ns();
        if now_ns < due_ns {
            link.rest_until(due_ns);
            continue;
        }
        let mut guard = kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kernel) = &mut *guard else { continue };
        let mut spent = Clock::start();
        // Looked at again under both locks: a session may have ended meanwhile.
        let tables = link.lock().due_tables(clock::boot_ns());
        if let Err(error) = turn(kernel, link, &tables) {
            // A window without all of its events must not end: it does when they can be had, and says how long it was.
            tracing::error!(%error, "what the kernel added up cannot be taken out, will retry");
            drop(guard);
            link.rest(RETRY);
            continue;
        }
        let mut shared = link.lock();
        shared.end_windows(clock::boot_ns());
        charge(&mut shared.sessions, spent.lap());
    }
}

/// Takes out what was added up for these tables since the last time, and adds it up for the sessions.
///
/// # Errors
/// When a map cannot be read or written. Nothing is lost: the next turn takes out what this one left.
pub fn turn(kernel: &mut Kernel, link: &Link, tables: &[u32]) -> Result<(), KernelError> {
    if tables.is_empty() {
        return Ok(());
    }
    let mut first = look(kernel, link, tables);
    let mut raised = BTreeMap::new();
    for &table in tables {
        raised.insert(table, raise(kernel, table)?);
    }
    wait_for_programs();
    let all = ALL.iter().flat_map(|collector| collector.aggregations()).filter(|one| !one.is_gathered());
    for aggregation in all.filter(|aggregation| tables.contains(&aggregation.table)) {
        first = first.and(take(kernel, link, aggregation, raised[&aggregation.table]));
    }
    let mut shared = link.lock();
    let states = shared.sessions.iter_mut().flatten().flat_map(|session| &mut session.tables);
    for state in states.filter(|state| tables.contains(&state.table.index)) {
        first = first.and(ALL[state.collector.index].refresh(kernel, &mut *state.decoder));
    }
    first
}

/// Has passes made over what is there now, for the window that is about to end.
///
/// # Errors
/// When the kernel refuses one. The others are made.
pub fn look(kernel: &mut Kernel, link: &Link, tables: &[u32]) -> Result<(), KernelError> {
    let mut first = Ok(());
    for collector in ALL.iter().filter(|c| c.info().tables.iter().any(|table| tables.contains(&table.index)))
    {
        first = first.and(collector.sample(kernel));
        let wanted = collector.aggregations().iter().filter(|one| one.is_gathered());
        for aggregation in wanted.filter(|one| tables.contains(&one.table)) {
            // Files are read without the lock, for which the rings wait.
            let mut records = Vec::new();
            let gathered = collector.gather(kernel, aggregation, &mut |record| records.push(record.to_vec()));
            first = first.and(gathered);
            let mut shared = link.lock();
            for record in &mut records {
                let (key, value) = record.split_at_mut(aggregation.key_bytes);
                let Some(mut header) = Header::of(key) else { continue };
                let slots = std::mem::take(&mut header.slots);
                header.write(key);
                shared.add_up(aggregation, u64::MAX, slots, key, value);
            }
        }
    }
    first
}

/// Has the kernel begin another window of a table, and returns its number. Programs that run just then may still add to the
/// one before.
///
/// # Errors
/// When the map cannot be read or written.
pub fn raise(kernel: &mut Kernel, table: u32) -> Result<u64, KernelError> {
    let failed = |source| KernelError::Map { map: "WINDOWS", source };
    let mut windows = kernel.array::<u64>("WINDOWS")?;
    let next = windows.get(&table, 0).map_err(failed)? + 1;
    windows.set(table, next, 0).map_err(failed)?;
    Ok(next)
}

/// Takes the entries of windows before `window` out of a map.
fn take(
    kernel: &Kernel,
    link: &Link,
    aggregation: &'static Aggregation,
    window: u64,
) -> Result<(), KernelError> {
    let failed = |source| KernelError::Io { what: "cannot take out what was added up", source };
    let map = kernel.map_fd(aggregation.map)?;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    entries::read(map.as_fd(), aggregation.key_bytes, aggregation.value_bytes, |key, value| {
        if Header::of(key).is_some_and(|header| header.ts_ns < window) {
            keys.extend_from_slice(key);
            values.extend_from_slice(value);
        }
    })
    .map_err(failed)?;
    // Out of the map first: an entry that could not be deleted is added up when it can be, with a later window.
    let (deleted, result) = entries::delete(map.as_fd(), aggregation.key_bytes, &keys);
    let mut shared = link.lock();
    let records = keys.chunks_exact_mut(aggregation.key_bytes).take(deleted);
    for (key, value) in records.zip(values.chunks_exact(aggregation.value_bytes)) {
        let Some(mut header) = Header::of(key) else { continue };
        let (slots, number) = (std::mem::take(&mut header.slots), std::mem::take(&mut header.ts_ns));
        header.write(key);
        shared.add_up(aggregation, number, slots, key, value);
    }
    result.map_err(failed)
}

impl Shared {
    /// When the next window of any session is due, nanoseconds since boot.
    pub fn next_window(&self) -> Option<u64> {
        let sessions = self.sessions.iter().flatten().filter(|session| session.closing.is_none());
        let windows = sessions.flat_map(|session| session.tables.iter().flat_map(|t| &t.window));
        windows.filter(|window| window.is_open()).map(|window| window.due_ns).min()
    }

    /// Tables of which some session's window is due.
    fn due_tables(&self, now_ns: u64) -> Vec<u32> {
        let sessions = self.sessions.iter().flatten().filter(|session| session.closing.is_none());
        let due = sessions
            .flat_map(|session| &session.tables)
            .filter(|table| table.window.as_ref().is_some_and(|window| window.is_due(now_ns)));
        let mut tables: Vec<u32> = due.map(|table| table.table.index).collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }

    /// Adds an entry of the kernel's window `number` up for each of the slots.
    fn add_up(&mut self, aggregation: &Aggregation, number: u64, slots: u64, key: &[u8], value: &[u8]) {
        let mut rest = slots;
        while rest != 0 {
            let slot = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            // What comes after its end is not a session's, though it has its slot still.
            let session = self.sessions.get_mut(slot).and_then(Option::as_mut);
            let session = session.filter(|session| session.closing.is_none());
            let tables = session.map(|session| &mut session.tables).into_iter().flatten();
            for state in tables.filter(|state| state.table.index == aggregation.table) {
                // The same in both sets: sums are sampled as the session asked only.
                let weight = state.weights[0];
                // An entry from before its beginning is of the session that had the slot then.
                if let Some(window) = state.window.as_mut().filter(|window| number >= window.first) {
                    window.add(key, value, weight);
                }
            }
        }
    }

    /// Makes rows of the windows that are due.
    fn end_windows(&mut self, now_ns: u64) {
        let offset_ns = clock::utc_offset_ns();
        for session in self.sessions.iter_mut().flatten().filter(|session| session.closing.is_none()) {
            let place = Place { offset_ns, interval: session.rollover_interval };
            for state in &mut session.tables {
                if state.window.as_ref().is_some_and(|window| window.is_due(now_ns)) {
                    state.end_window(now_ns, place);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use node_agent_common::event::Event;
    use node_agent_common::memory_rss::MemoryRss;
    use node_agent_common::node_info::net::NodeNet;
    use node_agent_common::page_faults::PageFaults;

    use super::*;

    static FAULTS: Aggregation = Aggregation::of::<PageFaults>("FAULTS");
    static EXACT: Aggregation = Aggregation::of::<PageFaults>("FAULTS").exact();
    static MEMORY: Aggregation = Aggregation::of::<MemoryRss>("MEMORY").looks();
    static ONCE: Aggregation = Aggregation::gathered::<NodeNet>().once();

    const HOUR: Duration = Duration::from_secs(3_600);

    /// An entry's key and value: zeros, and these words at the end.
    fn entry(aggregation: &Aggregation, pid: u8, words: &[u64]) -> (Vec<u8>, Vec<u8>) {
        let mut key = vec![0; aggregation.key_bytes];
        key[aggregation.key_bytes - 1] = pid;
        let mut value: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        value.resize(aggregation.value_bytes, 0);
        (key, value)
    }

    fn add(window: &mut Window, pid: u8, words: &[u64], weight: u64) {
        let (key, value) = entry(window.aggregation, pid, words);
        window.add(&key, &value, weight);
    }

    fn end<E: Event>(window: &mut Window) -> Vec<(E, u64)> {
        let records = window.end(clock::boot_ns()).records();
        records.map(|(raw, events)| (E::read(&raw).expect("has the record's length"), events)).collect()
    }

    #[test]
    fn entries_of_one_key_are_added_up_with_what_their_events_stand_for() {
        let mut window = Window::new(&FAULTS, HOUR);
        add(&mut window, 1, &[2, 0, 2], 10);
        add(&mut window, 1, &[1, 1, 0], 10);
        add(&mut window, 2, &[1, 0, 1], 10);
        let mut records = end::<PageFaults>(&mut window);
        records.sort_by_key(|(record, _)| record.count);
        let found: Vec<_> = records.iter().map(|(r, events)| (*events, r.count, r.major, r.minor)).collect();
        assert_eq!(found, [(10, 10, 0, 10), (30, 30, 10, 20)]);
        assert!(end::<PageFaults>(&mut window).is_empty(), "the next window begins empty");
        let mut exact = Window::new(&EXACT, HOUR);
        add(&mut exact, 1, &[3, 1, 2], 10);
        assert_eq!(end::<PageFaults>(&mut exact)[0].1, 3);
    }

    #[test]
    fn what_is_no_sum_is_not_added() {
        let mut window = Window::new(&MEMORY, HOUR);
        add(&mut window, 1, &[1, 500, 700], 1);
        add(&mut window, 1, &[1, 400, 600], 1);
        let records = end::<MemoryRss>(&mut window);
        assert_eq!((records[0].0.pages, records[0].0.peak_pages, records[0].1), (400, 700, 1));
        assert_eq!(window.looked, 1, "a row is one, however often somebody looked");
    }

    #[test]
    fn what_is_shown_once_is_in_the_first_window_only() {
        let mut window = Window::new(&ONCE, HOUR);
        assert!(end::<NodeNet>(&mut window).is_empty());
        add(&mut window, 1, &[1; 9], 1);
        assert_eq!(window.open_since(), Some(window.began_ns));
        assert_eq!((end::<NodeNet>(&mut window).len(), window.looked), (1, 1));
        assert!(!window.is_due(u64::MAX), "nobody has to look again");
        assert_eq!(window.open_since(), None, "and after a crash nothing of it is missing");
        add(&mut window, 1, &[1; 9], 1);
        assert_eq!((end::<NodeNet>(&mut window).len(), window.looked), (0, 1));
    }

    #[test]
    fn windows_end_at_multiples_of_their_length() {
        let mut window = Window::new(&FAULTS, Duration::from_secs(10));
        window.begin(25_000_000_000);
        assert_eq!((window.began_ns, window.due_ns), (25_000_000_000, 30_000_000_000));
        assert!(!window.is_due(29_999_999_999) && window.is_due(30_000_000_000));
    }
}
