// SPDX-License-Identifier: Apache-2.0
//! CPU time that goes into one session's rows, in every thread that works on them.
//!
//! In: each thread's own CPU clock, and for whom it worked. Out: a sum by session.
//! Loses: time in which nobody's row was made, such as looks at empty rings: it is no session's.
//! Not in it: loading and attaching hooks, plans, uploads, and the time of hooks in the recorded pods.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What went into one session's rows so far. Batches take it along to the thread that writes them.
#[derive(Clone, Debug, Default)]
pub struct Cost(Arc<AtomicU64>);

impl Cost {
    /// Adds what a thread has spent.
    pub fn add(&self, spent: Duration) {
        self.0.fetch_add(u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// All that was spent.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// The CPU clock of the thread that made it, and only of that one.
pub struct Clock(Duration);

impl Clock {
    /// Counts from now.
    pub fn start() -> Self {
        Self(thread_cpu())
    }

    /// What the thread has spent since the start or the last lap.
    pub fn lap(&mut self) -> Duration {
        let now = thread_cpu();
        now.saturating_sub(std::mem::replace(&mut self.0, now))
    }
}

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Divides what was spent among sessions by the rows of each.
pub fn share<'a>(spent: Duration, rows: impl Iterator<Item = (&'a Cost, u64)> + Clone) {
    let all: u64 = rows.clone().map(|(_, rows)| rows).sum();
    for (cost, rows) in rows.filter(|(_, rows)| *rows > 0) {
        cost.add(spent.mul_f64(rows as f64 / all as f64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_spent_is_divided_by_rows_and_is_nobodys_where_there_are_none() {
        let (one, other, idle) = (Cost::default(), Cost::default(), Cost::default());
        let batch = one.clone();
        share(Duration::from_secs(4), [(&one, 3), (&other, 1), (&idle, 0)].into_iter());
        share(Duration::from_secs(9), [(&idle, 0)].into_iter());
        batch.add(Duration::from_secs(1));
        assert_eq!([&one, &other, &idle].map(|cost| cost.total().as_secs()), [4, 1, 0]);
    }

    #[test]
    fn a_clock_runs_while_its_thread_works_and_no_longer() {
        let mut clock = Clock::start();
        std::thread::sleep(Duration::from_millis(50));
        let asleep = clock.lap();
        let mut worked = Duration::ZERO;
        while worked < Duration::from_millis(20) {
            worked += clock.lap();
        }
        assert!(asleep < Duration::from_millis(20), "{asleep:?}");
    }
}
