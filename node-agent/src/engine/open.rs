// SPDX-License-Identifier: Apache-2.0
//! How a session begins: the object and its rings if there are none yet, a slot, and each collector with its own limits.

use std::collections::BTreeMap;
use std::time::Duration;

use aya::maps::{ArrayOfMaps, MapData, PerCpuArray, PerCpuValues, RingBuf};
use node_agent_common::counters::{BEGAN_NUMBERS, Counters, LIMIT_SETS, Limits, RateWindow, slot_table};
use node_agent_common::table::CollectorInfo;
use node_agent_common::target::SLOTS;

use super::{
    CollectorOutcome, CollectorSpec, CollectorState, Engine, EngineError, SessionSpec, TargetErrors, lock,
};
use crate::budget::Meter;
use crate::collectors::{self, ALL, Running, Values};
use crate::coverage::Windows;
use crate::govern::Governor;
use crate::kernel::clock;
use crate::kernel::load::{Kernel, KernelError};
use crate::limits;
use crate::pipeline::batch::Columns;
use crate::pipeline::cost::Cost;
use crate::pipeline::decode::{Rings, Session, TableState};
use crate::pipeline::ring;
use crate::pipeline::unsealed::Unsealed;
use crate::pipeline::window::{self, Window};
use crate::targets::control::Control;

impl Engine {
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
