// SPDX-License-Identifier: Apache-2.0
//! Holds sessions to their budgets: finds out what each costs this node, and has the kernel side sample those that cost more.
//!
//! In: the kernel's counters, what threads spent on each session, a [`Meter`] for each session with a budget.
//! Out: new limits, and [`Excess`] by session.
//! CPU time is that of the threads that make rows and files ([`cost`](crate::pipeline::cost)), kept with the session itself: what one
//! costs that has just ended, or that has a slot after another, is its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::budget::{Excess, Meter, Spent};
use crate::kernel::load::Kernel;
use crate::limits;
use crate::pipeline::decode::{Link, Session};
use crate::targets::control::Control;

/// How often costs are looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// What was seen at the last looks.
#[derive(Default)]
pub(crate) struct Governor {
    sets: limits::Sets,
    looked: Option<Instant>,
}

fn spent(session: &Session, meter: &Meter) -> Spent {
    let made = |of: &dyn Fn(&str) -> bool| {
        session.tables.iter().filter(|state| of(state.table.name)).map(|state| state.made).sum()
    };
    let (events, records) = (made(&|table| meter.samples(table)), made(&|_| true));
    Spent { cpu: session.cost.total(), events, records }
}

impl Governor {
    /// Looks at what every session costs, if a second has passed. A change that the maps refuse is tried again by the next
    /// look.
    pub(crate) fn look(
        &mut self,
        kernel: &mut Kernel,
        link: &Link,
        sessions: &mut BTreeMap<String, Control>,
    ) -> Vec<(String, Excess)> {
        if sessions.values().all(|control| control.meter.is_none()) {
            self.looked = None;
            return Vec::new();
        }
        let now = Instant::now();
        let passed = now.saturating_duration_since(*self.looked.get_or_insert(now));
        if passed < PERIOD {
            return Vec::new();
        }
        self.looked = Some(now);
        let mut excesses = Vec::new();
        {
            let shared = link.lock();
            for (uid, control) in sessions.iter_mut() {
                let (Some(meter), Some((slot, session))) = (&mut control.meter, shared.session(uid)) else {
                    continue;
                };
                let hits = |table: &str| {
                    let state = session.tables.iter().find(|state| state.table.name == table);
                    state.map_or(0, |state| shared.hits(slot, state.table.index))
                };
                let excess = meter.look(passed.as_secs_f64(), hits, spent(session, meter));
                excesses.extend(excess.map(|excess| (uid.clone(), excess)));
            }
        }
        let weights: BTreeMap<(u32, &'static str), u64> = sessions
            .values()
            .filter_map(|control| Some((control.slot, control.meter.as_ref()?)))
            .flat_map(|(slot, meter)| meter.weights().map(move |(table, weight)| ((slot, table), weight)))
            .collect();
        let wanted = |slot, table: &'static str| weights.get(&(slot, table)).copied();
        if let Err(error) = self.sets.change(kernel, link, wanted) {
            tracing::warn!(%error, "limits cannot be changed, will retry");
        }
        excesses
    }
}
