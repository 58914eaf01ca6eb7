// SPDX-License-Identifier: Apache-2.0

//! Scheduling latency: who waits for a CPU, for how long, and how much it ran.
//!
//! In: `cpu_sched`, with histograms by powers of two. Out: [`Scheduling`]. A quantile of such a histogram is known by the two
//! powers that it lies between: what is shown is the upper one.

use serde::{Deserialize, Serialize};

use crate::engine::{Engine, ReportError, ask};
use crate::format::{Unit, percent, things};
use crate::scope::{Scope, Section, pod};
use crate::series::{over_time, rates, window_us};
use crate::view::{Advice, Cell, Change, Chart, Figure, Level, Series, Table, View};

const COLLECTOR: &str = "cpuSched";
/// Programs that are listed, by waiting time.
const MOST: usize = 20;
/// Bounds of the share of time that threads wait. Nothing is said of it where long waits are fewer than so many at once, on
/// average: every sleeper waits some microseconds when it wakes, which is much for who sleeps often and hardly runs.
const WARN: f64 = 0.1;
const CRIT: f64 = 0.4;
const LEAST_WAITING: f64 = 0.05;
/// Nor where all long waits together took less, in a session of a second.
const LEAST_LONG_NS: f64 = 1e8;
/// The first slot of long waits: from about a millisecond on.
const LONG: usize = 20;
/// Slots of a histogram.
const SLOTS: u32 = 40;

/// The section.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Scheduling {
    /// All of them together.
    pub all: Waits,
    /// Of the time in which threads wanted a CPU, how much they waited for one; none where none wanted any.
    pub waited_share: Option<f64>,
    /// What to look at next.
    pub advice: Vec<Advice>,
    /// Names by pod, those that waited most first.
    pub programs: Vec<ProgramWaits>,
    /// Names by pod that are not listed.
    pub other_programs: u64,
    /// Beginning of the series, microseconds since 1970.
    pub from_us: i64,
    /// Length of their intervals.
    pub step_us: i64,
    /// Seconds waited per second, by pod: how many threads waited, on average.
    pub waiting: Vec<Series>,
    /// Seconds run per second, by pod: how many CPUs were in use, on average.
    pub running: Vec<Series>,
}

/// Sums of slices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// Time on a CPU.
    pub run_ns: u64,
    /// Time waiting for one.
    pub wait_ns: u64,
    /// Slices that ended because the thread had to wait for something.
    pub voluntary: u64,
    /// Slices that ended though the thread could have gone on.
    pub involuntary: u64,
    /// Slices that began on another CPU than the one before.
    pub migrations: u64,
    /// Waiting times before slices, by powers of two, in nanoseconds.
    pub wait_hist: Vec<u64>,
}

/// Of one name in one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramWaits {
    /// Whose.
    pub pod: Option<String>,
    /// Its name.
    pub comm: Option<String>,
    /// Processes of that name.
    pub processes: u64,
    /// Their sums.
    #[serde(flatten)]
    pub waits: Waits,
}

/// Reads the section.
pub(crate) async fn read(
    engine: &impl Engine,
    scope: &Scope<'_>,
) -> Result<Section<Scheduling>, ReportError> {
    if let Err(why) = scope.has(COLLECTOR) {
        return Ok(Section::Absent(why));
    }
    let slots: Vec<String> = (1..=SLOTS).map(|slot| format!("coalesce(sum(wait_hist[{slot}]), 0)")).collect();
    let sums = format!(
        "coalesce(sum(run_sum), 0) AS run_ns, coalesce(sum(wait_sum), 0) AS wait_ns, coalesce(sum(voluntary), 0) AS voluntary, \
         coalesce(sum(involuntary), 0) AS involuntary, coalesce(sum(migrations), 0) AS migrations, [{}] AS wait_hist",
        slots.join(", ")
    );
    let all = format!("SELECT {sums} FROM cpu_sched");
    // A process is counted once, whatever its number of windows and threads.
    let programs = format!(
        "WITH top AS (SELECT pod, comm, {sums} FROM cpu_sched GROUP BY pod, comm \
             ORDER BY wait_ns DESC, run_ns DESC, comm, pod LIMIT {MOST}), \
         own AS (SELECT pod, comm, count(*) AS processes FROM (\
             SELECT pod, comm FROM cpu_sched GROUP BY pod, comm, node, pid, start_ns) AS p GROUP BY pod, comm) \
         SELECT t.*, o.processes FROM top t JOIN own o ON (t.pod IS NOT DISTINCT FROM o.pod) AND (t.comm IS NOT DISTINCT FROM o.comm) \
         ORDER BY t.wait_ns DESC, t.run_ns DESC, t.comm, t.pod"
    );
    #[derive(Deserialize)]
    struct Count {
        names: u64,
    }
    let names = "SELECT count(*) AS names FROM (SELECT pod, comm FROM cpu_sched GROUP BY pod, comm) AS p";
    let names: Vec<Count> = ask(engine, names).await?;
    let step_us = scope.bin_us(window_us(engine, "cpu_sched").await?);
    let over_time =
        |value: &str| over_time(scope, step_us, "pod", &format!("sum({value}) / 1e9"), "cpu_sched");
    let all: Vec<Waits> = ask(engine, &all).await?;
    let programs: Vec<ProgramWaits> = ask(engine, &programs).await?;
    let other = names.first().map_or(0, |count| count.names).saturating_sub(programs.len() as u64);
    let all = all.into_iter().next().unwrap_or_default().trimmed();
    Ok(Section::Data(Scheduling {
        waited_share: all.waited_share(),
        advice: advise(&all, &programs, scope.to_us - scope.from_us),
        all,
        programs: programs
            .into_iter()
            .map(|program| ProgramWaits { waits: program.waits.trimmed(), ..program })
            .collect(),
        other_programs: other,
        from_us: scope.from_us,
        step_us,
        waiting: rates(engine, scope, step_us, &over_time("wait_sum"), "other pods").await?,
        running: rates(engine, scope, step_us, &over_time("run_sum"), "other pods").await?,
    }))
}

/// What is to be done if threads wait for more than a share of the time.
fn advise(all: &Waits, programs: &[ProgramWaits], session_us: i64) -> Vec<Advice> {
    let level = all.level(session_us);
    if level < Level::Warn {
        return Vec::new();
    }
    let ns = |value: u64| Unit::Nanoseconds.format(value as f64);
    let most = programs.first().map_or_else(String::new, |program| {
        let name = program.comm.as_deref().unwrap_or("?");
        format!("; {name} of {} waited {}", pod(program.pod.as_deref()), ns(program.waits.wait_ns))
    });
    let share = percent(all.waited_share().unwrap_or(0.0));
    vec![Advice {
        level,
        cause: "Threads that could run wait for a CPU".to_owned(),
        evidence: format!("waited {} and ran {}: {share} of the time that they wanted{most}", ns(all.wait_ns), ns(all.run_ns)),
        next: "Throttled by its own limit: nr_throttled in the container's `cpu.stat`. Else others on the same CPUs: requests of the node's pods, and whether the program is pinned to too few."
            .to_owned(),
    }]
}

impl Waits {
    /// Without zeros at the histogram's end, as in the tables.
    fn trimmed(mut self) -> Self {
        while self.wait_hist.last() == Some(&0) {
            self.wait_hist.pop();
        }
        self
    }

    fn waited_share(&self) -> Option<f64> {
        let wanted = self.wait_ns + self.run_ns;
        (wanted > 0).then(|| self.wait_ns as f64 / wanted as f64)
    }

    /// What long waits took at least: each as much as its slot begins with.
    fn long_ns(&self) -> f64 {
        let slots = self.wait_hist.iter().enumerate().skip(LONG);
        slots.map(|(slot, slices)| *slices as f64 * 2_f64.powi(slot as i32)).sum()
    }

    /// How much its waiting is to be worried about in a session of that length.
    fn level(&self, session_us: i64) -> Level {
        let long = self.long_ns();
        let much = long >= LEAST_LONG_NS && long / 1e3 / session_us.max(1) as f64 >= LEAST_WAITING;
        match self.waited_share() {
            Some(share) if much && share >= CRIT => Level::Crit,
            Some(share) if much && share >= WARN => Level::Warn,
            _ => Level::Ok,
        }
    }

    /// Below which time so large a share of waits stays, in nanoseconds; none without waits.
    fn below(&self, share: f64) -> Option<f64> {
        let all: u64 = self.wait_hist.iter().sum();
        let mut upto = 0;
        let slot = self.wait_hist.iter().position(|slices| {
            upto += slices;
            upto as f64 >= share * all as f64
        });
        slot.filter(|_| all > 0).map(|slot| 2_f64.powi(slot as i32 + 1))
    }
}

impl Scheduling {
    /// As it is shown.
    pub(crate) fn view(&self, view: &mut View) {
        let below = |share: f64| match self.all.below(share) {
            Some(ns) => {
                Cell { text: format!("below {}", Unit::Nanoseconds.format(ns)), value: Some(ns), level: None }
            }
            None => Cell::text("–"),
        };
        let level = self.advice.first().map_or(Level::Ok, |advice| advice.level);
        let waited =
            self.waited_share.map_or_else(|| Cell::text("–"), |share| Cell::ratio(share).marked(level));
        view.figures = vec![
            Figure::cell("Half of all waits", below(0.5), Change::Relative),
            Figure::cell("99 of 100 waits", below(0.99), Change::Relative),
            Figure::total("Waited", Unit::Nanoseconds, self.all.wait_ns),
            Figure::total("Ran", Unit::Nanoseconds, self.all.run_ns),
            Figure::cell("Waited, of the time wanted", waited, Change::Share),
        ];
        view.advice.clone_from(&self.advice);
        let chart = |title: &str, series: &[Series]| Chart::Series {
            title: title.to_owned(),
            unit: Unit::Share,
            from_us: self.from_us,
            step_us: self.step_us,
            series: series.to_vec(),
        };
        view.charts.push(chart("Threads that wait for a CPU, on average, by pod", &self.waiting));
        view.charts.push(chart("CPUs in use, on average, by pod", &self.running));
        if !self.all.wait_hist.is_empty() {
            let first = self.all.wait_hist.iter().position(|slices| *slices > 0).unwrap_or(0);
            let bars = self.all.wait_hist.iter().enumerate().skip(first);
            view.charts.push(Chart::Bars {
                title: "How long slices waited for a CPU".to_owned(),
                unit: Unit::Count,
                bars: bars
                    .map(|(slot, slices)| {
                        let below = Unit::Nanoseconds.format(2_f64.powi(slot as i32 + 1));
                        (format!("below {below}"), *slices as f64)
                    })
                    .collect(),
            });
        }
        let columns = [
            "name",
            "pod",
            "processes",
            "ran",
            "waited",
            "p50 below",
            "p99 below",
            "switches",
            "preempted",
            "moved to another CPU",
        ];
        let mut table = Table::new("Who waited most", &columns);
        table.rows.extend(self.programs.iter().map(|program| {
            let waits = &program.waits;
            let count = |value: u64| Cell::number(Unit::Count, value);
            vec![
                Cell::text(program.comm.as_deref().unwrap_or("?")),
                Cell::text(pod(program.pod.as_deref())),
                count(program.processes),
                Cell::number(Unit::Nanoseconds, waits.run_ns),
                Cell::number(Unit::Nanoseconds, waits.wait_ns),
                Cell::maybe(Unit::Nanoseconds, waits.below(0.5)),
                Cell::maybe(Unit::Nanoseconds, waits.below(0.99)),
                count(waits.voluntary + waits.involuntary),
                count(waits.involuntary),
                count(waits.migrations),
            ]
        }));
        if self.other_programs > 0 {
            let waited: u64 = self.programs.iter().map(|program| program.waits.wait_ns).sum();
            let rest = self.all.wait_ns.saturating_sub(waited);
            table.note = format!(
                "{} that waited {} together.",
                things(self.other_programs, "other name", "other names"),
                Unit::Nanoseconds.format(rest as f64)
            );
        }
        view.tables.push(table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_worth_a_word_when_it_is_long_and_a_large_share() {
        // In ten seconds, so many waits of 2 to 4 ms.
        let level = |wait_ns, run_ns, long| {
            let mut wait_hist = vec![5; LONG + 1];
            wait_hist.push(long);
            Waits { wait_ns, run_ns, wait_hist, ..Waits::default() }.level(10_000_000)
        };
        assert_eq!(level(5_000_000_000, 5_000_000_000, 2_000), Level::Crit);
        assert_eq!(level(1_000_000_000, 5_000_000_000, 400), Level::Warn);
        assert_eq!(level(1_000_000_000, 15_000_000_000, 400), Level::Ok, "a small share");
        assert_eq!(level(400_000_000, 100_000_000, 150), Level::Ok, "of ten seconds hardly anybody waited");
        assert_eq!(
            level(5_000_000_000, 5_000_000_000, 0),
            Level::Ok,
            "many who wake, and wait for that only"
        );
        let waits =
            Waits { wait_ns: 40_000_000, run_ns: 7_000_000, wait_hist: vec![0; 24], ..Waits::default() };
        let short = Waits { wait_hist: [waits.wait_hist.clone(), vec![2]].concat(), ..waits };
        assert_eq!(short.level(150_000), Level::Ok, "two long waits in a session of 150 ms");
        assert_eq!(Waits::default().level(0), Level::Ok);
    }

    #[test]
    fn a_quantile_is_the_upper_end_of_the_slot_it_lies_in() {
        let waits = Waits { wait_hist: vec![0, 0, 98, 1, 1], ..Waits::default() };
        assert_eq!([0.5, 0.98, 0.99, 1.0].map(|share| waits.below(share)), [8.0, 8.0, 16.0, 32.0].map(Some));
        assert_eq!(Waits::default().below(0.5), None);
    }
}
