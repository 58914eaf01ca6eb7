// SPDX-License-Identifier: Apache-2.0

//! The live line of a recording: events, losses and what recording costs, once a second, on a terminal only.

use std::time::{Duration, Instant};

use node_agent::engine::TableCounters;

use crate::line::Line;

const EVERY: Duration = Duration::from_secs(1);

/// What was known when the line was drawn last.
#[derive(Clone, Copy)]
struct Seen {
    at: Instant,
    events: u64,
    cpu: Duration,
}

/// The line of a recording.
pub(crate) struct Progress {
    began: Instant,
    seen: Option<Seen>,
    line: Line,
}

impl Progress {
    /// Draws nothing where nobody would see it.
    pub(crate) fn new(quiet: bool) -> Self {
        let (began, line) = (Instant::now(), Line::new(quiet));
        let seen = Seen { at: began, events: 0, cpu: cpu() };
        Self { began, seen: line.is_live().then_some(seen), line }
    }

    /// Says something that stays, above the line.
    pub(crate) fn say(&self, text: &str) {
        self.line.say(text);
    }

    /// Draws the line when it is time.
    pub(crate) fn tick(&mut self, counters: impl FnOnce() -> Vec<TableCounters>) {
        let Some(seen) = &mut self.seen else { return };
        let elapsed = seen.at.elapsed();
        if elapsed < EVERY {
            return;
        }
        let counters = counters();
        let now =
            Seen { at: Instant::now(), events: counters.iter().map(|table| table.emitted).sum(), cpu: cpu() };
        self.line.draw(&line(self.began.elapsed(), elapsed, seen, &now, lost(&counters)));
        *seen = now;
    }
}

fn lost(counters: &[TableCounters]) -> u64 {
    counters.iter().map(|table| table.ring_full + table.map_full + table.recursion + table.decode_error).sum()
}

fn line(total: Duration, elapsed: Duration, before: &Seen, now: &Seen, lost: u64) -> String {
    let seconds = elapsed.as_secs_f64();
    let rate = now.events.saturating_sub(before.events) as f64 / seconds;
    let cpu = now.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds * 100.0;
    format!(
        "{} s  {} events  {rate:.0} events/s  {lost} lost  recording takes {cpu:.1} % of a CPU",
        total.as_secs(),
        now.events
    )
}

/// CPU time of this process.
fn cpu() -> Duration {
    // SAFETY: an all-zero rusage is valid, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_happened_since_the_last_one() {
        let at = Instant::now();
        let before = Seen { at, events: 100, cpu: Duration::from_millis(10) };
        let now = Seen { at, events: 2_100, cpu: Duration::from_millis(60) };
        let counters = [
            TableCounters { ring_full: 2, ..TableCounters::default() },
            TableCounters { map_full: 1, rate_limited: 9, ..TableCounters::default() },
        ];
        assert_eq!(
            line(Duration::from_secs(7), Duration::from_secs(2), &before, &now, lost(&counters)),
            "7 s  2100 events  1000 events/s  3 lost  recording takes 2.5 % of a CPU"
        );
    }
}
