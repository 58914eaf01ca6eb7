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

/// What processes had resident at once, those that had most.
///
/// A process has one memory at a time, so its rows follow each other whatever their `mm_id`: an agent that was started again
/// gives the same memory another one, without a row of 0 for the former. At an exec the old one's 0 and the new one's rows may
/// have one time. What has one time is one step.
fn largest() -> String {
    let at = at("rss");
    format!(
        "WITH changes AS (\
             SELECT node, pid, start_ns, ts_ns, CASE WHEN member = 'swap' THEN 0 ELSE \
                 bytes - lag(bytes, 1, 0) OVER (PARTITION BY node, pid, start_ns, member ORDER BY ts_ns, bytes) END AS change FROM memory_rss), \
         resident AS (SELECT node, pid, start_ns, ts_ns, sum(change) OVER (PARTITION BY node, pid, start_ns ORDER BY ts_ns) AS rss FROM changes) \
         SELECT node, pid, start_ns, max(rss) AS peak_bytes, CAST(min({at}) % {MORE} AS BIGINT) AS first_bytes, \
             CAST(max({at}) % {MORE} AS BIGINT) AS last_bytes FROM resident GROUP BY node, pid, start_ns \
         ORDER BY peak_bytes DESC, node, pid, start_ns LIMIT {MOST}"
    )
}

/// The rest of what is said of some processes, of which there is one at least.
fn named(largest: &[Resident]) -> String {
    format!(
        "WITH own AS (SELECT node, pid, start_ns, min(pod) AS pod, max(ts_ns) AS last_ns, \
             max(CASE WHEN member = 'anon' THEN bytes ELSE 0 END) AS anon_peak_bytes, \
             max(CASE WHEN member = 'swap' THEN bytes ELSE 0 END) AS swap_peak_bytes FROM memory_rss{} GROUP BY node, pid, start_ns), \
         last AS (SELECT m.node, m.pid, m.start_ns, max(m.comm) AS comm FROM own o JOIN memory_rss m \
             ON o.node = m.node AND o.pid = m.pid AND o.start_ns = m.start_ns AND o.last_ns = m.ts_ns GROUP BY m.node, m.pid, m.start_ns) \
         SELECT o.node, o.pid, o.start_ns, o.pod, l.comm, o.anon_peak_bytes, o.swap_peak_bytes FROM own o \
         JOIN last l ON o.node = l.node AND o.pid = l.pid AND o.start_ns = l.start_ns",
        only(largest.iter().map(|one| (one.node.as_str(), one.pid, one.start_ns)))
    )
}

/// A value and the time of which it is, in one number: of several the largest has the last one's value, the smallest the first one's.
/// Engines have no other word for it that they share and that is fast.
fn at(value: &str) -> String {
    format!(
        "CAST(ts_ns AS DECIMAL(19, 0)) * {MORE} + CAST(least({value}, 9999999999999999) AS DECIMAL(16, 0))"
    )
}

/// More than any number of bytes, or of microseconds since 1970, that is to be told from others.
const MORE: &str = "CAST(10000000000000000 AS DECIMAL(17, 0))";

/// The rows of some processes, of which there is one at least. A number is compared faster than all that makes a process.
fn only<'a>(processes: impl Iterator<Item = (&'a str, i64, i64)>) -> String {
    let (mut pids, mut each) = (Vec::new(), Vec::new());
    for (node, pid, start_ns) in processes {
        pids.push(pid.to_string());
        each.push(format!("node = {} AND pid = {pid} AND start_ns = {start_ns}", literal(node)));
    }
    format!(" WHERE pid IN ({}) AND ({})", pids.join(", "), each.join(" OR "))
}

#[derive(Deserialize)]
struct Resident {
    node: String,
    pid: i64,
    start_ns: i64,
    peak_bytes: u64,
    first_bytes: u64,
    last_bytes: u64,
}

#[derive(Deserialize)]
struct Named {
    node: String,
    pid: i64,
    start_ns: i64,
    pod: Option<String>,
    comm: Option<String>,
    anon_peak_bytes: u64,
    swap_peak_bytes: u64,
}

/// The largest processes, in that order.
async fn processes(engine: &impl Engine) -> Result<Vec<ProcessMemory>, ReportError> {
    let largest: Vec<Resident> = ask(engine, &largest()).await?;
    if largest.is_empty() {
        return Ok(Vec::new());
    }
    let named: Vec<Named> = ask(engine, &named(&largest)).await?;
    let process = |of: &Resident| {
        let own =
            named.iter().find(|own| (&own.node, own.pid, own.start_ns) == (&of.node, of.pid, of.start_ns))?;
        Some(ProcessMemory {
            node: of.node.clone(),
            pod: own.pod.clone(),
            comm: own.comm.clone(),
            pid: of.pid,
            start_ns: of.start_ns,
            peak_bytes: of.peak_bytes,
            first_bytes: of.first_bytes,
            last_bytes: of.last_bytes,
            anon_peak_bytes: own.anon_peak_bytes,
            swap_peak_bytes: own.swap_peak_bytes,
        })
    };
    Ok(largest.iter().filter_map(process).collect())
}

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
    let processes = processes(engine).await?;
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

/// All `changes_at` their intervals, those included by which a process is given up that has no row after nobody had looked.
///
/// Of each kind of a process's memory only the last value in an interval counts, so it has no more groups than a chart has intervals.
fn changes(scope: &Scope<'_>, step_us: i64, of: &str) -> String {
    let blind = scope.blind(COLLECTOR);
    let blind = blind.iter().flat_map(|(node, all)| all.iter().map(|(from, to)| (*node, *from, *to)));
    let blind = stretches(blind);
    let bin = |us: &str| {
        let since = format!("greatest({us} - {} - 1, 0)", scope.from_us);
        format!("{since} - {since} % {step_us}")
    };
    let (of_row, of_given_up) = (bin("CAST(time_utc AS BIGINT)"), bin("us"));
    let (bytes, us) = (at("bytes"), at("CAST(time_utc AS BIGINT)"));
    format!(
        "lasts AS (SELECT node, pid, start_ns, member, {of_row} AS bin, min(pod) AS pod, max({us}) AS last_us, max({bytes}) AS last \
             FROM memory_rss{of} GROUP BY node, pid, start_ns, member, {of_row}), \
         held AS (SELECT *, CASE WHEN member = 'swap' THEN 0 ELSE CAST(last % {MORE} AS BIGINT) END AS bytes FROM lasts), \
         changes AS (SELECT *, bytes - lag(bytes, 1, 0) OVER (PARTITION BY node, pid, start_ns, member ORDER BY last) AS change FROM held), \
         ends AS (SELECT node, pid, start_ns, min(pod) AS pod, CAST(max(last_us) % {MORE} AS BIGINT) AS us, sum(change) AS rss FROM changes GROUP BY node, pid, start_ns), \
         blind AS ({blind}), \
         given_up AS (SELECT e.node, e.pid, e.start_ns, min(e.pod) AS pod, min(greatest(b.from_us, e.us)) AS us, -min(e.rss) AS change \
             FROM ends e JOIN blind b ON e.node = b.node AND b.until_us > e.us WHERE e.rss > 0 GROUP BY e.node, e.pid, e.start_ns), \
         changes_at AS (SELECT node, pid, start_ns, pod, bin, change, 0 AS given_up FROM changes \
             UNION ALL SELECT node, pid, start_ns, pod, {of_given_up} AS bin, change, 1 AS given_up FROM given_up)"
    )
}

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
        "WITH {} SELECT pod, bin, sum(change) AS change, sum(given_up) AS given_up FROM changes_at GROUP BY pod, bin \
         ORDER BY pod NULLS FIRST, bin",
        changes(scope, step_us, ""),
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
    let of = only(shown.iter().map(|one| (one.node.as_str(), one.pid, one.start_ns)));
    let sql = format!(
        "WITH {} SELECT node, pid, start_ns, bin, sum(change) AS change, sum(given_up) AS given_up FROM changes_at \
         GROUP BY node, pid, start_ns, bin ORDER BY bin",
        changes(scope, step_us, &of),
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
