// SPDX-License-Identifier: Apache-2.0

//! Page faults: who waits for pages to be read, and who touches new memory.
//!
//! In: `page_faults`, and `processes` for what each process itself counted until its end. Out: [`PageFaults`].
//! A rate is a count over the length of its interval. Pages are counted apart only where each fault was recorded.
//! A fault with I/O brings in at least a page. A process that had more of them than it ever had pages has read some again that it
//! had to give up: that is a lower bound, since most faults on files bring in many.

use serde::{Deserialize, Serialize};

use crate::engine::{Engine, ReportError, ask};
use crate::format::{Unit, things};
use crate::scope::{Scope, Section, pod};
use crate::series::{over_time, rates, window_us};
use crate::view::{Advice, Cell, Change, Chart, Figure, Level, Series, Table, View};

const COLLECTOR: &str = "pageFaults";
/// Faults with I/O for pages that had been there, per second of the session, from which on something is said of them.
const WARN: f64 = 10.0;
const CRIT: f64 = 100.0;
/// Processes that are listed.
const MOST: usize = 20;

/// The section.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PageFaults {
    /// Sums over all of them.
    pub totals: Totals,
    /// Faults with I/O beyond the most pages that their process ever had; none where neither memoryRss nor processes told how many.
    pub read_again: Option<u64>,
    /// What to look at next.
    pub advice: Vec<Advice>,
    /// The processes with most, those that needed I/O first.
    pub processes: Vec<ProcessFaults>,
    /// By kind of memory, where the session asked for it.
    pub kinds: Vec<Kind>,
    /// Beginning of the series, microseconds since 1970.
    pub from_us: i64,
    /// Length of their intervals.
    pub step_us: i64,
    /// Faults per second with I/O, by pod.
    pub major: Vec<Series>,
    /// Faults per second without, by pod; of single faults, where it is not known which.
    pub minor: Vec<Series>,
}

/// Sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// With I/O; none where the session recorded single faults instead.
    pub major: Option<u64>,
    /// Without, likewise.
    pub minor: Option<u64>,
    /// Of rows for single faults, of which it is not known.
    pub single: u64,
    /// Processes.
    pub processes: u64,
}

/// One process under one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFaults {
    /// Where.
    pub node: String,
    /// Whose.
    pub pod: Option<String>,
    /// Its name.
    pub comm: Option<String>,
    /// Its id.
    pub pid: i64,
    /// With the id its identity, nanoseconds since boot.
    pub start_ns: i64,
    /// With I/O; none where it has rows for single faults alone.
    pub major: Option<u64>,
    /// Without, likewise.
    pub minor: Option<u64>,
    /// Of rows for single faults.
    pub single: u64,
    /// Different pages of those.
    pub pages: Option<u64>,
    /// What the process counted until its end, under whatever name.
    pub major_at_exit: Option<u64>,
    /// The same without I/O.
    pub minor_at_exit: Option<u64>,
}

/// One kind of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// anon, file, shmem or unknown.
    pub kind: String,
    /// With I/O.
    pub major: u64,
    /// Without.
    pub minor: u64,
    /// Not resolved.
    pub failed: u64,
}

/// Reads the section.
pub(crate) async fn read(
    engine: &impl Engine,
    scope: &Scope<'_>,
) -> Result<Section<PageFaults>, ReportError> {
    if let Err(why) = scope.has(COLLECTOR) {
        return Ok(Section::Absent(why));
    }
    let sums = "sum(major) AS major, sum(minor) AS minor, \
                coalesce(sum(weight) FILTER (WHERE address IS NOT NULL), 0) AS single";
    let totals = format!(
        "SELECT {sums}, (SELECT count(*) FROM (SELECT pid FROM page_faults GROUP BY node, pid, start_ns) AS p) AS processes \
         FROM page_faults"
    );
    let processes = format!(
        "WITH faults AS (SELECT node, pod, comm, pid, start_ns, {sums} FROM page_faults GROUP BY node, pod, comm, pid, start_ns \
             ORDER BY major DESC NULLS LAST, single DESC, minor DESC NULLS LAST, node, pid, start_ns, comm LIMIT {MOST}), \
         pages AS (SELECT node, pid, start_ns, comm, count(*) AS pages FROM (\
             SELECT p.node, p.pid, p.start_ns, p.comm FROM faults f JOIN page_faults p \
                 ON f.node = p.node AND f.pid = p.pid AND f.start_ns = p.start_ns AND f.comm = p.comm WHERE p.address IS NOT NULL \
             GROUP BY p.address - p.address % 4096, p.start_ns, p.pid, p.comm, p.node) AS p GROUP BY node, pid, start_ns, comm), \
         ends AS (SELECT node, pid, start_ns, max(maj_flt) AS major_at_exit, max(min_flt) AS minor_at_exit FROM processes \
             WHERE kind = 'exit' AND group_dead GROUP BY node, pid, start_ns) \
         SELECT f.*, p.pages, e.major_at_exit, e.minor_at_exit FROM faults f \
         LEFT JOIN pages p ON f.node = p.node AND f.pid = p.pid AND f.start_ns = p.start_ns AND f.comm = p.comm \
         LEFT JOIN ends e ON f.node = e.node AND f.pid = e.pid AND f.start_ns = e.start_ns \
         ORDER BY f.major DESC NULLS LAST, f.single DESC, f.minor DESC NULLS LAST, f.node, f.pid, f.start_ns, f.comm"
    );
    let kinds = "SELECT kind, sum(major) AS major, sum(minor) AS minor, coalesce(sum(failed), 0) AS failed FROM page_faults \
                 WHERE kind IS NOT NULL GROUP BY kind ORDER BY kind";
    let step_us = scope.bin_us(window_us(engine, "page_faults").await?);
    let over_time = |value: &str| {
        over_time(scope, step_us, "pod", &format!("sum({value})"), &format!("page_faults WHERE {value} > 0"))
    };
    let totals: Vec<Totals> = ask(engine, &totals).await?;
    let any = "coalesce(minor, CASE WHEN address IS NOT NULL THEN weight ELSE 0 END)";
    let read_again = read_again(engine, scope).await?;
    let mut totals = totals.first().copied().unwrap_or_default();
    // Sums of no row are 0 where rows would be of sums.
    if totals.single == 0 && scope.param(COLLECTOR, "events") != Some("true") {
        totals.major.get_or_insert(0);
        totals.minor.get_or_insert(0);
    }
    Ok(Section::Data(PageFaults {
        totals,
        advice: read_again.map(|again| advise(again, totals.major.unwrap_or(0), scope)).unwrap_or_default(),
        read_again,
        processes: ask(engine, &processes).await?,
        kinds: ask(engine, kinds).await?,
        from_us: scope.from_us,
        step_us,
        major: rates(engine, scope, step_us, &over_time("coalesce(major, 0)"), "other pods").await?,
        minor: rates(engine, scope, step_us, &over_time(any), "other pods").await?,
    }))
}

/// Faults with I/O beyond the pages of each process whose largest memory is known.
async fn read_again(engine: &impl Engine, scope: &Scope<'_>) -> Result<Option<u64>, ReportError> {
    if scope.has("memoryRss").is_err() && scope.has("processes").is_err() {
        return Ok(None);
    }
    #[derive(Deserialize)]
    struct Again {
        again: Option<u64>,
    }
    let sql = "WITH faults AS (SELECT node, pid, start_ns, sum(major) AS major FROM page_faults GROUP BY node, pid, start_ns), \
         kinds AS (SELECT node, pid, start_ns, member, max(greatest(bytes, coalesce(peak_bytes, 0))) AS bytes FROM memory_rss \
             WHERE member <> 'swap' GROUP BY node, pid, start_ns, member), \
         told AS (SELECT node, pid, start_ns, CAST(sum(bytes) AS BIGINT) AS bytes FROM kinds GROUP BY node, pid, start_ns \
             UNION ALL SELECT node, pid, start_ns, max_rss_bytes AS bytes FROM processes WHERE kind = 'exit' AND group_dead), \
         most AS (SELECT node, pid, start_ns, max(bytes) AS bytes FROM told GROUP BY node, pid, start_ns) \
         SELECT CAST(sum(greatest(f.major - CAST(floor(m.bytes / 4096) AS BIGINT), 0)) AS BIGINT) AS again FROM faults f \
         JOIN most m ON f.node = m.node AND f.pid = m.pid AND f.start_ns = m.start_ns WHERE f.major IS NOT NULL";
    let again: Vec<Again> = ask(engine, sql).await?;
    Ok(again.first().and_then(|one| one.again))
}

fn advise(again: u64, major: u64, scope: &Scope<'_>) -> Vec<Advice> {
    let per_second = again as f64 / ((scope.to_us - scope.from_us).max(1) as f64 / 1e6);
    if per_second < WARN {
        return Vec::new();
    }
    let count = |value: u64| Unit::Count.format(value as f64);
    vec![Advice {
        level: if per_second >= CRIT { Level::Crit } else { Level::Warn },
        cause: "Memory is short: pages are read again that had been there".to_owned(),
        evidence: format!(
            "{} of {} faults with I/O are more than their processes ever had pages, {} per second",
            count(again),
            count(major),
            Unit::Count.format(per_second.round())
        ),
        next: "The container's limit: `memory.events` (high, max) and workingset_refault_file in `memory.stat` of its cgroup; else the node's own memory (node_memory: pressure)."
            .to_owned(),
    }]
}

impl PageFaults {
    /// As it is shown.
    pub(crate) fn view(&self, view: &mut View) {
        let totals = &self.totals;
        view.figures = vec![
            Figure::cell("With I/O (major)", Cell::maybe(Unit::Count, totals.major), Change::Total),
            Figure::cell("Without (minor)", Cell::maybe(Unit::Count, totals.minor), Change::Total),
            Figure::cell("Read again, at least", Cell::maybe(Unit::Count, self.read_again), Change::Total),
            Figure::number("Processes", Unit::Count, totals.processes),
        ];
        view.advice.clone_from(&self.advice);
        if totals.single > 0 {
            view.figures.push(Figure::total("Single faults in user mode", Unit::Count, totals.single));
            view.notes.push("Rows for single faults do not say whether I/O was needed.".to_owned());
        }
        view.notes.push(
            "At exit is what the kernel counted for the process over all of its life, also before the session and under other names."
                .to_owned(),
        );
        let chart = |title: &str, series: &[Series]| Chart::Series {
            title: title.to_owned(),
            unit: Unit::PerSecond,
            from_us: self.from_us,
            step_us: self.step_us,
            series: series.to_vec(),
        };
        if !self.major.is_empty() {
            view.charts.push(chart("Page faults with I/O, by pod", &self.major));
        }
        if !self.minor.is_empty() {
            let known = totals.minor.is_some();
            let title =
                if known { "Page faults without I/O, by pod" } else { "Single faults in user mode, by pod" };
            view.charts.push(chart(title, &self.minor));
        }
        view.tables.push(self.table());
        if !self.kinds.is_empty() {
            let mut table =
                Table::new("By kind of memory", &["memory", "with I/O", "without", "not resolved"]);
            table.rows.extend(self.kinds.iter().map(|kind| {
                let count = |value: u64| Cell::number(Unit::Count, value);
                vec![Cell::text(&kind.kind), count(kind.major), count(kind.minor), count(kind.failed)]
            }));
            view.tables.push(table);
        }
    }

    fn table(&self) -> Table {
        let single = self.totals.single > 0;
        let mut columns = vec!["process", "pid", "pod", "node", "with I/O", "without", "at exit"];
        if single {
            columns.extend(["single faults", "different pages"]);
        }
        let mut table = Table::new("Processes with most page faults", &columns);
        table.rows.extend(self.processes.iter().map(|process| {
            let count = |value: u64| Cell::number(Unit::Count, value);
            let at_exit = match (process.major_at_exit, process.minor_at_exit) {
                (Some(major), Some(minor)) => Cell::text(format!(
                    "{} + {}",
                    Unit::Count.format(major as f64),
                    Unit::Count.format(minor as f64)
                )),
                _ => Cell::text("–"),
            };
            let mut row = vec![
                Cell::text(process.comm.as_deref().unwrap_or("?")),
                Cell::id(process.pid),
                Cell::text(pod(process.pod.as_deref())),
                Cell::text(&process.node),
                Cell::maybe(Unit::Count, process.major),
                Cell::maybe(Unit::Count, process.minor),
                at_exit,
            ];
            if single {
                row.extend([count(process.single), Cell::maybe(Unit::Count, process.pages)]);
            }
            row
        }));
        let listed = |of: fn(&ProcessFaults) -> u64| self.processes.iter().map(of).sum::<u64>();
        let rest = |all: Option<u64>, listed: u64| all.unwrap_or(0).saturating_sub(listed);
        let major = rest(self.totals.major, listed(|process| process.major.unwrap_or(0)));
        let minor = rest(self.totals.minor, listed(|process| process.minor.unwrap_or(0)));
        if major + minor > 0 {
            table.note = format!(
                "Of other processes: {} with I/O, {} without.",
                things(major, "fault", "faults"),
                Unit::Count.format(minor as f64)
            );
        }
        table
    }
}
