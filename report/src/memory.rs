// SPDX-License-Identifier: Apache-2.0

//! Memory over time: what is resident, by pod and for the largest processes.
//!
//! In: `memory_rss`, whose rows say what a process has of one kind of memory from then on. Out: [`Memory`].
//! Resident is file + anon + shmem, each its last value (a step function, in bytes); swap is not resident and shown apart. A
//! process is (node, pid, start_ns); exec gives it another memory, the old one ends with a row of 0, and so does the process.
//! Nothing is filled in backwards: before a process's first row it has 0 if it began while its node was traced, else nothing is
//! known. Where nobody looked for a while, or the node began anew, what has no row after that is held no longer: whether it was still
//! there is not known. The queries take differences between rows, because those of many processes can be added up.

use serde::{Deserialize, Serialize};

use crate::engine::{Engine, ReportError, ask, literal, stretches};
use crate::format::{Unit, things};
use crate::scope::{Scope, Section, pod};
use crate::series::{MOST_SERIES, keep_largest};
use crate::view::{Cell, Chart, Figure, Series, Table, View};

const COLLECTOR: &str = "memoryRss";
/// Processes that are listed, largest first.
const MOST: usize = 20;

/// The section.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Processes with memory.
    pub processes_total: u64,
    /// The largest of them.
    pub processes: Vec<ProcessMemory>,
    /// The most that the targets had resident at the end of any interval, all together, in bytes.
    pub peak_bytes: u64,
    /// Beginning of the series, microseconds since 1970.
    pub from_us: i64,
    /// Length of their intervals.
    pub step_us: i64,
    /// Resident bytes at each interval's end, of the pods that reached most, and of the others together.
    pub pods: Vec<Series>,
    /// The same of the largest processes; null where it is not known.
    pub process_series: Vec<Series>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMemory {
    /// Where.
    pub node: String,
    /// Whose.
    pub pod: Option<String>,
    /// Its last name.
    pub comm: Option<String>,
    /// Its id.
    pub pid: i64,
    /// With the id its identity, nanoseconds since boot.
    pub start_ns: i64,
    /// The most it had resident, bytes.
    pub peak_bytes: u64,
    /// In its first row.
    pub first_bytes: u64,
    /// In its last, which is 0 for one that ended.
    pub last_bytes: u64,
    /// The most of memory of its own.
    pub anon_peak_bytes: u64,
    /// The most that was moved out.
    pub swap_peak_bytes: u64,
}

/// Resident memory of each process after each of its rows; kinds that change together are one step.
fn steps(of: &str) -> String {
    format!("{TOLD}{of}{STEPS}")
}

/// A process has one memory at a time, so its rows follow each other whatever their `mm_id`: an agent that was started again
/// gives the same memory another one, without a row of 0 for the former. At an exec the old one's 0 and the new one's rows may
/// have one time.
const TOLD: &str = "told AS (\
    SELECT node, min(pod) AS pod, max(comm) AS comm, pid, start_ns, ts_ns, min(CAST(time_utc AS BIGINT)) AS us, member, \
        max(bytes) AS bytes \
    FROM memory_rss";

const STEPS: &str = " GROUP BY node, pid, start_ns, ts_ns, member), \
changes AS (\
    SELECT *, bytes - lag(bytes, 1, 0) OVER (PARTITION BY node, pid, start_ns, member ORDER BY ts_ns) AS change FROM told), \
steps AS (\
    SELECT node, pid, start_ns, ts_ns, min(us) AS us, min(pod) AS pod, max(comm) AS comm, \
        sum(CASE WHEN member = 'swap' THEN 0 ELSE change END) AS change, \
        max(CASE WHEN member = 'anon' THEN bytes ELSE 0 END) AS anon, \
        max(CASE WHEN member = 'swap' THEN bytes ELSE 0 END) AS swapped \
    FROM changes GROUP BY node, pid, start_ns, ts_ns), \
resident AS (\
    SELECT *, sum(change) OVER (PARTITION BY node, pid, start_ns ORDER BY ts_ns) AS rss, \
        row_number() OVER (PARTITION BY node, pid, start_ns ORDER BY ts_ns) AS first, \
        row_number() OVER (PARTITION BY node, pid, start_ns ORDER BY ts_ns DESC) AS last \
    FROM steps)";

/// Reads the section.
pub(crate) async fn read(engine: &impl Engine, scope: &Scope<'_>) -> Result<Section<Memory>, ReportError> {
    if let Err(why) = scope.has(COLLECTOR) {
        return Ok(Section::Absent(why));
    }
    #[derive(Deserialize)]
    struct Totals {
        processes: u64,
    }
    let totals =
        "SELECT count(*) AS processes FROM (SELECT pid FROM memory_rss GROUP BY node, pid, start_ns) AS p";
    let totals: Vec<Totals> = ask(engine, totals).await?;
    let total = totals.first().map_or(0, |all| all.processes);
    let steps = steps("");
    let largest = format!(
        "WITH {steps} SELECT node, min(pod) AS pod, max(CASE WHEN last = 1 THEN comm END) AS comm, pid, start_ns, \
         max(rss) AS peak_bytes, max(CASE WHEN first = 1 THEN rss END) AS first_bytes, \
         max(CASE WHEN last = 1 THEN rss END) AS last_bytes, max(anon) AS anon_peak_bytes, max(swapped) AS swap_peak_bytes \
         FROM resident GROUP BY node, pid, start_ns ORDER BY peak_bytes DESC, node, pid, start_ns LIMIT {MOST}"
    );
    let processes: Vec<ProcessMemory> = ask(engine, &largest).await?;
    // A step function, which any interval shows; the shorter the truer.
    let step_us = scope.bin_us(0);
    let mut pods = by_pod(engine, scope, step_us).await?;
    let bins = scope.bins(step_us);
    let mut all = vec![0.0; bins];
    for one in &pods {
        one.values.iter().zip(&mut all).for_each(|(value, sum)| *sum += value.unwrap_or(0.0));
    }
    let peak = all.into_iter().fold(0.0, f64::max);
    keep_largest(&mut pods, "other pods");
    let process_series = by_process(engine, scope, step_us, &processes).await?;
    Ok(Section::Data(Memory {
        processes_total: total,
        processes,
        peak_bytes: peak as u64,
        from_us: scope.from_us,
        step_us,
        pods,
        process_series,
    }))
}

/// `resident` and what follows from it: all `changes_at` their times, those included by which a process is given up that has no row
/// after nobody had looked.
fn changes(scope: &Scope<'_>, of: &str) -> String {
    let blind = scope.blind(COLLECTOR);
    let blind = blind.iter().flat_map(|(node, all)| all.iter().map(|(from, to)| (*node, *from, *to)));
    format!("{}, blind AS ({}), {GIVEN_UP}", steps(of), stretches(blind))
}

const GIVEN_UP: &str = "given_up AS (\
    SELECT r.node, r.pid, r.start_ns, min(r.pod) AS pod, min(greatest(b.from_us, r.us)) AS us, -min(r.rss) AS change \
    FROM resident r JOIN blind b ON r.node = b.node AND b.until_us > r.us WHERE r.last = 1 AND r.rss > 0 \
    GROUP BY r.node, r.pid, r.start_ns), \
changes_at AS (\
    SELECT node, pid, start_ns, pod, us, change, 0 AS given_up FROM steps \
    UNION ALL SELECT node, pid, start_ns, pod, us, change, 1 AS given_up FROM given_up)";

#[derive(Deserialize)]
struct Step {
    pod: Option<String>,
    bin: i64,
    change: f64,
    given_up: u64,
}

/// Each interval's end for each pod: all changes up to then.
async fn by_pod(engine: &impl Engine, scope: &Scope<'_>, step_us: i64) -> Result<Vec<Series>, ReportError> {
    let sql = format!(
        "WITH {}, binned AS (SELECT pod, greatest(us - {} - 1, 0) AS since_us, change, given_up FROM changes_at) \
         SELECT pod, since_us - since_us % {step_us} AS bin, sum(change) AS change, sum(given_up) AS given_up FROM binned GROUP BY pod, since_us - since_us % {step_us} \
         ORDER BY pod NULLS FIRST, bin",
        changes(scope, ""),
        scope.from_us
    );
    let mut series: Vec<Series> = Vec::new();
    let bins = scope.bins(step_us);
    let mut sum = 0.0;
    for step in ask::<Step>(engine, &sql).await? {
        let name = pod(step.pod.as_deref());
        if series.last().is_none_or(|last| last.name != name) {
            series.push(Series { name, values: vec![None; bins] });
            sum = 0.0;
        }
        sum += step.change;
        let first = usize::try_from(step.bin / step_us).unwrap_or(0).min(bins - 1);
        let values = series.last_mut().into_iter().flat_map(|series| series.values.iter_mut().skip(first));
        // Of a pod that is given up whole it is not known that it has nothing.
        let known = (sum > 0.0 || step.given_up == 0).then_some(sum);
        values.for_each(|value| *value = known);
    }
    Ok(series)
}

/// Each interval's last value for the largest processes.
async fn by_process(
    engine: &impl Engine,
    scope: &Scope<'_>,
    step_us: i64,
    processes: &[ProcessMemory],
) -> Result<Vec<Series>, ReportError> {
    #[derive(Deserialize)]
    struct Own {
        node: String,
        pid: i64,
        start_ns: i64,
        bin: i64,
        change: f64,
        given_up: u64,
    }
    let shown = &processes[..processes.len().min(MOST_SERIES)];
    if shown.is_empty() {
        return Ok(Vec::new());
    }
    let keys = shown.iter().map(|process| {
        let ProcessMemory { node, pid, start_ns, .. } = process;
        format!("node = {} AND pid = {pid} AND start_ns = {start_ns}", literal(node))
    });
    let of = format!(" WHERE {}", keys.collect::<Vec<_>>().join(" OR "));
    let sql = format!(
        "WITH {}, own AS (SELECT node, pid, start_ns, greatest(us - {} - 1, 0) AS since_us, change, given_up FROM changes_at) \
         SELECT node, pid, start_ns, since_us - since_us % {step_us} AS bin, sum(change) AS change, sum(given_up) AS given_up FROM own \
         GROUP BY node, pid, start_ns, since_us - since_us % {step_us} ORDER BY bin",
        changes(scope, &of),
        scope.from_us,
    );
    let bins = scope.bins(step_us);
    let mut series: Vec<(f64, Series)> = Vec::new();
    for process in shown {
        let began = scope.began_ns.get(&process.node).copied().unwrap_or(0);
        let seen = u64::try_from(process.start_ns).unwrap_or(0) >= began;
        series.push((0.0, Series { name: name(process), values: vec![seen.then_some(0.0); bins] }));
    }
    for step in ask::<Own>(engine, &sql).await? {
        let key = (&step.node, step.pid, step.start_ns);
        let of = shown.iter().position(|process| (&process.node, process.pid, process.start_ns) == key);
        let Some((sum, series)) = of.and_then(|of| series.get_mut(of)) else { continue };
        *sum += step.change;
        let first = usize::try_from(step.bin / step_us).unwrap_or(0).min(bins - 1);
        let known = (step.given_up == 0).then_some(*sum);
        series.values.iter_mut().skip(first).for_each(|value| *value = known);
    }
    Ok(series.into_iter().map(|(_, series)| series).collect())
}

fn name(process: &ProcessMemory) -> String {
    format!("{} {} ({})", process.comm.as_deref().unwrap_or("?"), process.pid, pod(process.pod.as_deref()))
}

impl Memory {
    /// As it is shown.
    pub(crate) fn view(&self, view: &mut View) {
        view.figures = vec![
            Figure::number("Most resident at once", Unit::Bytes, self.peak_bytes),
            Figure::maybe(
                "Largest process",
                Unit::Bytes,
                self.processes.iter().map(|process| process.peak_bytes).max(),
            ),
            Figure::number("Processes", Unit::Count, self.processes_total),
        ];
        view.notes.push(
            "Resident is file + anon + shmem at the end of each interval; pages that processes share are counted for each. \
             Swap is not resident."
                .to_owned(),
        );
        let chart = |title: &str, series: &[Series]| Chart::Series {
            title: title.to_owned(),
            unit: Unit::Bytes,
            from_us: self.from_us,
            step_us: self.step_us,
            series: series.to_vec(),
        };
        view.charts.push(chart("Resident memory by pod", &self.pods));
        view.charts.push(chart("Resident memory of the largest processes", &self.process_series));
        let mut table = Table::new(
            "Largest processes",
            &["process", "pid", "pod", "node", "largest", "anon", "swap", "first seen", "last seen"],
        );
        table.rows.extend(self.processes.iter().map(|process| {
            let bytes = |value: u64| Cell::number(Unit::Bytes, value);
            vec![
                Cell::text(process.comm.as_deref().unwrap_or("?")),
                Cell::id(process.pid),
                Cell::text(pod(process.pod.as_deref())),
                Cell::text(&process.node),
                bytes(process.peak_bytes),
                bytes(process.anon_peak_bytes),
                bytes(process.swap_peak_bytes),
                bytes(process.first_bytes),
                bytes(process.last_bytes),
            ]
        }));
        let more = self.processes_total.saturating_sub(self.processes.len() as u64);
        if more > 0 {
            table.note = format!("{}, none larger.", things(more, "other process", "other processes"));
        }
        view.tables.push(table);
    }
}
