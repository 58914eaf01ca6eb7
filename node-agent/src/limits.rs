// SPDX-License-Identifier: Apache-2.0
//! How many events the kernel side has become rows: its two sets of limits, and the change from one to the other.
//!
//! In: what sessions ask for, and what their budgets leave. Out: the maps `LIMITS`, `LIMITED`, `LIMITS_IN_USE`, `SAMPLED_OUT`, and the
//! weights of [`TableState`](crate::pipeline::decode::TableState).
//! Invariant: a set is written only while no program uses it and no record that it admitted is still in a ring; so a record's
//! weight is known by the number of its set, and each event is counted by one weight. What a table has skipped by one weight is
//! never counted by another, and as long as its weight is the same no change of other tables costs it a row.

use aya::maps::PerCpuValues;
use node_agent_common::counters::{LIMIT_SETS, Limits, set_slot_table, set_table};

use crate::kernel::clock;
use crate::kernel::load::{Kernel, KernelError, wait_for_programs};
use crate::pipeline::decode::{Link, Rings, Shared};

/// Which set is in use, and since when.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    in_use: u32,
    /// When no program used the one before any more, nanoseconds since boot.
    changed_ns: Option<u64>,
}

fn failed(map: &'static str) -> impl Fn(aya::maps::MapError) -> KernelError {
    move |source| KernelError::Map { map, source }
}

/// Writes the limits of a session that begins, into both sets.
///
/// # Errors
/// When a map cannot be written.
pub(crate) fn begin(kernel: &mut Kernel, slot: u32, table: u32, limits: Limits) -> Result<(), KernelError> {
    for set in 0..LIMIT_SETS {
        let mut map = kernel.array::<Limits>("LIMITS")?;
        map.set(set_slot_table(set, slot, table), limits, 0).map_err(failed("LIMITS"))?;
        kernel.set_bit("LIMITED", set_table(set, table), slot, limits.limits())?;
    }
    Ok(())
}

/// Sets what was skipped in a table to zero, in both sets, before anything can be.
///
/// # Errors
/// When the map cannot be written.
pub(crate) fn clear(rings: &mut Rings, cpus: usize, slot: u32, table: u32) -> Result<(), KernelError> {
    (0..LIMIT_SETS).try_for_each(|set| zero(rings, cpus, set_slot_table(set, slot, table)))
}

fn zero(rings: &mut Rings, cpus: usize, index: u32) -> Result<(), KernelError> {
    let source = |source| KernelError::Io { what: "cannot count CPUs", source };
    let zeros = PerCpuValues::try_from(vec![0u64; cpus]).map_err(source)?;
    rings.sampled_out.set(index, zeros, 0).map_err(failed("SAMPLED_OUT"))
}

/// What was skipped by a set, in events.
///
/// # Errors
/// When the map cannot be read.
pub(crate) fn skipped(rings: &Rings, set: u32, slot: u32, table: u32) -> Result<u64, KernelError> {
    let cpus = rings.sampled_out.get(&set_slot_table(set, slot, table), 0);
    Ok(cpus.map_err(failed("SAMPLED_OUT"))?.iter().fold(0, |sum, one| sum.wrapping_add(*one)))
}

impl Sets {
    /// Has each table whose weight `wanted` gives sampled by that from now on. Does nothing while the rings may still hold
    /// records of the set before: to be called again then.
    ///
    /// # Errors
    /// When a map cannot be read or written. What is in use stays as it is; calling again tries again.
    pub(crate) fn change(
        &mut self,
        kernel: &mut Kernel,
        link: &Link,
        wanted: impl Fn(u32, &'static str) -> Option<u64>,
    ) -> Result<(), KernelError> {
        let (old, next) = (self.in_use, (self.in_use + 1) % LIMIT_SETS);
        {
            let mut shared = link.lock();
            if self.changed_ns.is_some_and(|ns| !shared.drained_since(ns)) {
                return Ok(());
            }
            let mut changes = false;
            for (slot, session) in shared.sessions.iter().enumerate() {
                let tables = session.iter().flat_map(|session| &session.tables);
                changes |= tables.into_iter().any(|state| {
                    let weight = state.weights[old as usize];
                    wanted(slot as u32, state.table.name).is_some_and(|wanted| wanted != weight)
                });
            }
            if !changes {
                return Ok(());
            }
            let Shared { rings: Some(rings), sessions, .. } = &mut *shared else { return Ok(()) };
            let cpus = aya::util::nr_cpus().map_err(|(what, source)| KernelError::Io { what, source })?;
            for (slot, session) in sessions.iter_mut().enumerate() {
                for state in session.iter_mut().flat_map(|session| &mut session.tables) {
                    let (slot, table) = (slot as u32, state.table.index);
                    let weight = wanted(slot, state.table.name).unwrap_or(state.weights[old as usize]);
                    // What it has skipped since its last row by a weight that stays still counts towards the next one.
                    if state.weights[next as usize] == weight {
                        continue;
                    }
                    // What no row of that set stands for stays skipped, and the set begins anew.
                    let left = skipped(rings, next, slot, table)?;
                    zero(rings, cpus, set_slot_table(next, slot, table))?;
                    state.sampled_out += left;
                    let mut map = kernel.array::<Limits>("LIMITS")?;
                    let asked = map.get(&set_slot_table(old, slot, table), 0).map_err(failed("LIMITS"))?;
                    let limits = Limits { sample_every: weight, ..asked };
                    map.set(set_slot_table(next, slot, table), limits, 0).map_err(failed("LIMITS"))?;
                    kernel.set_bit("LIMITED", set_table(next, table), slot, limits.limits())?;
                    state.weights[next as usize] = weight;
                }
            }
        }
        kernel.array::<u64>("LIMITS_IN_USE")?.set(0, u64::from(next), 0).map_err(failed("LIMITS_IN_USE"))?;
        self.in_use = next;
        wait_for_programs();
        self.changed_ns = Some(clock::boot_ns());
        Ok(())
    }
}
