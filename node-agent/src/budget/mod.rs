// SPDX-License-Identifier: Apache-2.0
//! What a session may cost its node, and how far its events are sampled so that it does not cost more. Pure.
//!
//! In: hits and CPU time as they are counted, once a second. Out: for each table with a row per event, how many of its events
//! one row is to stand for; and [`Excess`], whenever a budget has a new consequence.
//! Loses: nothing; what is sampled stands in the weight of the rows that are left.
//!
//! A budget is shared out fairly: tables that need less than an equal part get all they need, the others share the rest
//! equally. So a flood of page faults does not cost the session its few `execve`. Sampling begins within a second of the rate
//! that makes it necessary, or two where that is little above, and ends when the rate of ten seconds allows it.

mod average;
mod told;

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use average::{Average, Rates};

pub use average::Spent;
pub use told::Told;

/// What one session may cost one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Events per second that become rows of their own; 0 means all.
    pub events_per_second: u64,
    /// Thousandths of a CPU that the agent may spend on the session; 0 means as many as it takes.
    pub cpu_millis: u32,
    /// Whether the session ends on this node when it costs more, instead of being sampled.
    pub stop: bool,
}

impl Budget {
    /// Whether there is anything to watch.
    pub fn is_none(&self) -> bool {
        self.events_per_second == 0 && self.cpu_millis == 0
    }
}

/// What came of a budget that was not enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excess {
    /// Which, as the field of the resource is called: `eventsPerSecond` or `cpu`.
    pub budget: String,
    /// Whether the session was ended on this node, instead of being sampled.
    pub stopped: bool,
    /// What was found, and how far it is sampled.
    pub message: String,
}

/// The names of the resource's fields.
const EVENTS: &str = "eventsPerSecond";
const CPU: &str = "cpu";

/// For so many looks a rate is remembered before sampling follows it down.
const REMEMBERED: usize = 10;
/// Sampling aims at this part of what is allowed, so that a rate which only wavers changes nothing.
const AIM: f64 = 0.9;
/// A budget acts at once above this times itself, and below when it was not enough for two looks in a row.
const AT_ONCE: f64 = 1.25;
/// CPU time ends a session when so many averages in a row are above its budget: what comes at intervals may be in one twice.
const AVERAGES: u32 = 3;
/// No row stands for more events than this times what the session asked for.
const MOST: u64 = 1 << 20;

/// A table with a row for each event.
struct Sampled {
    name: &'static str,
    /// Events that one row stands for by the session's own `sampleEvery`.
    own: u64,
    /// By how much more it is sampled.
    times: u64,
    /// All events so far.
    hits: u64,
    /// Rows a second that there would be without the budget, newest last.
    rates: VecDeque<f64>,
}

/// Watches one session's budget.
pub struct Meter {
    budget: Budget,
    tables: Vec<Sampled>,
    average: Average,
    /// Rows a second that the CPU budget leaves; none while it leaves all.
    affordable: Option<f64>,
    /// Averages in a row above the CPU budget.
    dear: u32,
    /// Whether the last look found too many rows.
    over: bool,
    /// The budget for which events are sampled, or were last.
    cause: &'static str,
    stopped: bool,
}

impl Meter {
    /// For a session that begins, with the tables that have a row for each event and the `sampleEvery` of each, and the longest
    /// time after which it writes a file or ends a window.
    pub fn new(
        budget: Budget,
        span: Duration,
        tables: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> Self {
        let tables = tables.into_iter().map(|(name, own)| Sampled {
            name,
            own: own.max(1),
            times: 1,
            hits: 0,
            rates: VecDeque::new(),
        });
        Self {
            budget,
            tables: tables.collect(),
            average: Average::new(span),
            affordable: None,
            dear: 0,
            over: false,
            cause: EVENTS,
            stopped: false,
        }
    }

    /// How many events of each table one row is to stand for.
    pub fn weights(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.tables.iter().map(|table| (table.name, table.own * table.times))
    }

    /// Whether that table has a row for each event.
    pub fn samples(&self, table: &str) -> bool {
        self.tables.iter().any(|one| one.name == table)
    }

    /// Takes note of `hits`, all events of a table so far, and of what the session has cost, so many seconds after the last
    /// look. Returns what follows, if it is new.
    pub fn look(&mut self, seconds: f64, hits: impl Fn(&str) -> u64, spent: Spent) -> Option<Excess> {
        if self.stopped || seconds <= 0.0 {
            return None;
        }
        for table in &mut self.tables {
            let all = hits(table.name);
            let rate = all.saturating_sub(table.hits) as f64 / seconds / table.own as f64;
            table.hits = all;
            table.rates.push_back(rate);
            if table.rates.len() > REMEMBERED {
                table.rates.pop_front();
            }
        }
        if let Some(rates) = self.average.look(seconds, spent)
            && let Some(excess) = self.afford(rates)
        {
            return Some(excess);
        }
        let rates = || self.tables.iter().filter_map(|table| Some((table, table.rates.back()?)));
        let found: f64 = rates().map(|(_, rate)| rate).sum();
        let rows: f64 = rates().map(|(table, rate)| rate / table.times as f64).sum();
        let events = self.budget.events_per_second as f64;
        let limits = (events > 0.0).then_some(events).into_iter().chain(self.affordable);
        let allowed = limits.fold(f64::INFINITY, f64::min);
        let before = std::mem::replace(&mut self.over, rows > allowed);
        let exceeds = self.over && (before || rows >= allowed * AT_ONCE);
        if self.budget.stop {
            let message = || format!("{EVENTS} is {events}, {found:.0} a second were found: recording ended");
            return exceeds.then(|| self.stop(EVENTS, message()));
        }
        let wanted = shares(&self.peaks(), allowed * AIM);
        let falls = self.tables.iter().zip(&wanted).any(|(table, &times)| table.times >= times * 2);
        let same = self.tables.iter().zip(&wanted).all(|(table, &times)| table.times == times);
        if !(exceeds || falls) || same {
            return None;
        }
        self.tables.iter_mut().zip(wanted).for_each(|(table, times)| table.times = times);
        Some(self.sampled(found, allowed))
    }

    /// The most that each table would have had in a second.
    fn peaks(&self) -> Vec<f64> {
        self.tables.iter().map(|table| table.rates.iter().copied().fold(0.0, f64::max)).collect()
    }

    fn stop(&mut self, budget: &str, message: String) -> Excess {
        self.stopped = true;
        Excess { budget: budget.to_owned(), stopped: true, message }
    }

    /// Says how far events are sampled now.
    fn sampled(&mut self, found: f64, allowed: f64) -> Excess {
        let Budget { events_per_second: events, cpu_millis: millis, .. } = self.budget;
        let of: Vec<String> = self
            .tables
            .iter()
            .filter(|table| table.times > 1)
            .map(|table| format!("of {} 1 of {}", table.name, table.own * table.times))
            .collect();
        if !of.is_empty() {
            let by_cpu = self.affordable.is_some_and(|rows| events == 0 || rows < events as f64);
            self.cause = if by_cpu { CPU } else { EVENTS };
        }
        let limit = match self.cause {
            CPU => format!("{CPU} is {millis}m"),
            _ => format!("{EVENTS} is {events}"),
        };
        let message = match (of.as_slice(), self.cause) {
            ([], _) => format!("{limit}: events were sampled for a time, all become rows again"),
            (_, CPU) => format!(
                "{limit} and allows {allowed:.0} rows a second, {found:.0} were found: {} becomes a row",
                of.join(", ")
            ),
            _ => format!("{limit}, {found:.0} a second were found: {} becomes a row", of.join(", ")),
        };
        Excess { budget: self.cause.to_owned(), stopped: false, message }
    }

    /// Finds out how many rows a second the CPU budget leaves, or ends the session. What rows of sums cost is not theirs to save.
    fn afford(&mut self, rates: Rates) -> Option<Excess> {
        let millis = f64::from(self.budget.cpu_millis);
        if millis == 0.0 {
            return None;
        }
        let part = rates.cpus * 1_000.0 / millis;
        self.dear = if part > 1.0 { self.dear.saturating_add(1) } else { 0 };
        let is = format!("{CPU} is {millis}m, {:.0}m went into the session", rates.cpus * 1_000.0);
        if self.budget.stop {
            let ends = self.dear >= AVERAGES;
            return ends.then(|| self.stop(CPU, format!("{is}: recording ended")));
        }
        if rates.events == 0.0 {
            self.affordable = None;
            // Once, when it is certain.
            return (self.dear == AVERAGES).then(|| Excess {
                budget: CPU.to_owned(),
                stopped: false,
                message: format!("{is}: it has no rows of single events, and sums cannot be sampled"),
            });
        }
        if part > 1.0 || (self.affordable.is_some() && part < AIM) {
            let room = millis / 1_000.0 - (rates.cpus - rates.event_cpus);
            // What costs the same with fewer rows, and even without any, is not of this budget's making.
            let rows = (rates.events * room / rates.event_cpus).max(1.0);
            let all: f64 = self.peaks().iter().sum();
            self.affordable = (part > 1.0 || rows * AIM < all).then_some(rows);
        }
        None
    }
}

/// By how much each rate is divided so that together they stay below `allowed`: those below an equal part are left alone, and
/// what they leave is shared by the others.
fn shares(rates: &[f64], allowed: f64) -> Vec<u64> {
    let mut order: Vec<usize> = (0..rates.len()).collect();
    order.sort_by(|&a, &b| rates[a].total_cmp(&rates[b]));
    let (mut left, mut times) = (allowed, vec![1; rates.len()]);
    for (done, &index) in order.iter().enumerate() {
        let part = left / (rates.len() - done) as f64;
        if rates[index] > part {
            times[index] = step(rates[index] / part);
        }
        // One that is sampled as far as can be may take more than there is.
        left = (left - rates[index] / times[index] as f64).max(0.0);
    }
    times
}

/// The next of 1, 2, 3, 4, 6, 8, 12 and so on: a rate that wavers often needs the same again, and a table whose weight stays
/// goes on towards its next row where another's changes.
fn step(times: f64) -> u64 {
    let steps = (0..).map(|exponent| 1 << exponent).flat_map(|power: u64| [power, power + power / 2]);
    steps.take_while(|&step| step < MOST).find(|&step| step as f64 >= times).unwrap_or(MOST)
}

#[cfg(test)]
mod tests;
