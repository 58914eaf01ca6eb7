// SPDX-License-Identifier: Apache-2.0
//! What a session costs on average. Pure.
//!
//! In: what it has cost so far, at each look. Out: CPUs and rows a second, every [`PERIOD`], over a time in which each kind of
//! work comes at least once: files are written once in a rollover interval, sums become rows once in a window.
//! Loses: nothing; until that time has passed the average is of what has.

use std::collections::VecDeque;
use std::time::Duration;

/// How often averages are made, and the shortest time they are of.
const PERIOD: Duration = Duration::from_secs(5);

/// What a session has cost since it began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// CPU time of the threads that made its rows and files.
    pub cpu: Duration,
    /// Records of tables that have a row for each event.
    pub events: u64,
    /// Records of all its tables.
    pub records: u64,
}

/// A part of the time, or a sum of such.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    seconds: f64,
    cpu: f64,
    events: f64,
    records: f64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Average {
    span: f64,
    parts: VecDeque<Part>,
    /// At the end of the last part.
    before: Spent,
    /// Since then.
    seconds: f64,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    /// CPUs.
    pub(super) cpus: f64,
    /// Those of them that went into rows of single events.
    pub(super) event_cpus: f64,
    /// Rows of single events, a second.
    pub(super) events: f64,
}

impl Average {
    /// For a session that begins, and writes or adds up for so long at a time.
    pub(super) fn new(span: Duration) -> Self {
        let span = span.max(PERIOD).as_secs_f64();
        Self { span, parts: VecDeque::new(), before: Spent::default(), seconds: 0.0 }
    }

    /// Takes note of what it has cost in all, so many seconds after the last call. Returns the averages when a period is over.
    pub(super) fn look(&mut self, seconds: f64, now: Spent) -> Option<Rates> {
        self.seconds += seconds;
        if self.seconds < PERIOD.as_secs_f64() {
            return None;
        }
        self.parts.push_back(Part {
            seconds: std::mem::take(&mut self.seconds),
            cpu: now.cpu.saturating_sub(self.before.cpu).as_secs_f64(),
            events: now.events.saturating_sub(self.before.events) as f64,
            records: now.records.saturating_sub(self.before.records) as f64,
        });
        self.before = now;
        let mut sum = self.sum();
        while let Some(oldest) = self.parts.front()
            && sum.seconds - oldest.seconds >= self.span
        {
            self.parts.pop_front();
            sum = self.sum();
        }
        let cpus = sum.cpu / sum.seconds;
        let part = if sum.records > 0.0 { sum.events / sum.records } else { 0.0 };
        Some(Rates { cpus, event_cpus: cpus * part, events: sum.events / sum.seconds })
    }

    fn sum(&self) -> Part {
        self.parts.iter().fold(Part::default(), |sum, one| Part {
            seconds: sum.seconds + one.seconds,
            cpu: sum.cpu + one.cpu,
            events: sum.events + one.events,
            records: sum.records + one.records,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks once a second at a session whose every minute costs so many CPU seconds, all of them in one second.
    fn of_minutes(average: &mut Average, minutes: u64, each: Duration) -> Vec<f64> {
        let at = |second: u64| Spent { cpu: each * (second / 60) as u32, events: 0, records: second / 60 };
        (1..=60 * minutes).filter_map(|second| average.look(1.0, at(second))).map(|one| one.cpus).collect()
    }

    #[test]
    fn work_of_once_a_minute_is_no_more_in_its_second_than_in_any_other() {
        let found = of_minutes(&mut Average::new(Duration::from_secs(60)), 3, Duration::from_secs(6));
        assert_eq!(found.len(), 36);
        assert!(found[..11].iter().all(|&cpus| cpus == 0.0), "{found:?}");
        assert!(found[11..].iter().all(|&cpus| (cpus - 0.1).abs() < 1e-9), "{found:?}");
        let short = of_minutes(&mut Average::new(Duration::from_secs(1)), 1, Duration::from_secs(6));
        assert!((short[11] - 1.2).abs() < 1e-9, "the test's own work comes at once: {short:?}");
    }

    #[test]
    fn cpu_time_is_divided_between_rows_of_events_and_of_sums() {
        let mut average = Average::new(PERIOD);
        let spent = Spent { cpu: Duration::from_secs(1), events: 300, records: 400 };
        assert_eq!(average.look(4.0, spent), None);
        let rates = average.look(6.0, spent).unwrap();
        assert_eq!(rates, Rates { cpus: 0.1, event_cpus: 0.1 * 0.75, events: 30.0 });
        assert_eq!(average.look(5.0, spent).unwrap().cpus, 0.0, "nothing came since");
    }
}
