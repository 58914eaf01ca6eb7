// SPDX-License-Identifier: Apache-2.0

//! Processes: what ran, for how long, and how it ended, as a table by program and a timeline.
//!
//! In: `processes`. Out: [`Processes`]. One process is (node, pid, start_ns), which no reuse of ids confuses. Its beginning is
//! the kernel's own (start_ns), also of those that ran before; its end is the exit of its last thread. Those that are alive at the
//! end, or began before, are in the table all the same; a duration needs both ends. Of one without an end it is known that it was
//! alive only where every end has a row: not where events are sampled or cut, nor where nobody looked after it was last seen.
//!
//! Where the session samples, each row stands for `weight` of its kind. Every process has a row of how it came (snapshot, start or
//! joined), so these say how many there were, and rows of exits how many ended and what they used; which program a process was is
//! known of those rows that are there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::{Engine, ReportError, ask, stretches};
use crate::format::{Unit, things};
use crate::scope::{Scope, Section, pod};
use crate::series::rates;
use crate::view::{Cell, Chart, Figure, Level, Series, Span, Table, View};

const COLLECTOR: &str = "processes";
/// Programs that are listed, by CPU time.
const MOST_PROGRAMS: usize = 20;
/// Processes of the timeline, by how long they ran in the session.
const MOST_SPANS: usize = 50;

/// The section.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Processes {
    /// Sums over all of them.
    pub totals: Totals,
    /// By program.
    pub programs: Vec<Program>,
    /// Those that ran longest in the session, in the order of their beginnings.
    pub processes: Vec<Process>,
    /// Beginning of the series, microseconds since 1970.
    pub from_us: i64,
    /// Length of their intervals.
    pub step_us: i64,
    /// Processes that began in each interval, by pod.
    pub started: Vec<Series>,
}

/// Sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Processes.
    pub processes: u64,
    /// That began while traced.
    pub started: u64,
    /// That ended while traced.
    pub ended: u64,
    /// Of those, with an exit code other than 0, or by a signal.
    pub failed: u64,
    /// CPU time of those that ended, nanoseconds.
    pub cpu_ns: u64,
    /// Programs that were seen.
    pub programs: u64,
    /// Whose end may have been missed: how long they ran is not known.
    #[serde(default)]
    pub end_unseen: u64,
    /// How many processes one row stands for at most: 1 where nothing was sampled.
    #[serde(default)]
    pub weight: u64,
}

/// One program of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Whose.
    pub pod: Option<String>,
    /// The last that was executed; of those that executed nothing while traced, their name.
    pub program: Option<String>,
    /// Processes.
    pub processes: u64,
    /// That ended.
    pub ended: u64,
    /// Badly.
    pub failed: u64,
    /// CPU time of those that ended, nanoseconds.
    pub cpu_ns: u64,
    /// The largest resident set of one that ended, bytes.
    pub max_rss_bytes: Option<u64>,
    /// The longest duration of one that ended, nanoseconds.
    pub longest_ns: Option<u64>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Where.
    pub node: String,
    /// Whose.
    pub pod: Option<String>,
    /// Its id.
    pub pid: i64,
    /// Its parent's.
    pub ppid: Option<i64>,
    /// With the id its identity, nanoseconds since boot.
    pub start_ns: i64,
    /// Its last name.
    pub comm: Option<String>,
    /// What it executed last.
    pub exe: Option<String>,
    /// What it executed before that, oldest first, with the times in microseconds since 1970; at most some.
    #[serde(default)]
    pub history: Vec<(i64, String)>,
    /// Its beginning, microseconds since 1970.
    pub from_us: i64,
    /// Whether that was seen.
    pub started: bool,
    /// Its end; none for one that was alive when tracing ended, or whose end may have been missed.
    pub to_us: Option<i64>,
    /// Whether its end may have been missed.
    pub end_unseen: bool,
    /// When it was seen last, microseconds since 1970.
    pub last_us: i64,
    /// Exit code.
    pub exit_code: Option<i64>,
    /// Signal that ended it, 0 for none.
    pub signal: Option<i64>,
    /// CPU time, nanoseconds, known at its end.
    pub cpu_ns: Option<u64>,
    /// Largest resident set, bytes, known at its end.
    pub max_rss_bytes: Option<u64>,
}

/// One row per process. Its beginning in UTC follows from any of its rows: both clocks are in each. `stands` is how many processes it is
/// counted as; of one whose row of how it came was left out by sampling none, since another one stands for it. `named` is the newest
/// name behind its time, which a maximum finds without a sort; a thread's name is not its process's.
fn one(scope: &Scope<'_>) -> String {
    let mut until: BTreeMap<&str, i64> = BTreeMap::new();
    for (node, stretches) in scope.blind(COLLECTOR) {
        until.extend(stretches.into_iter().map(|(_, to)| to).max().map(|to| (node, to)));
    }
    until.extend(scope.nodes_without_all("processes").into_iter().map(|node| (node, i64::MAX)));
    let blind = stretches(until.into_iter().map(|(node, until)| (node, 0, until)));
    format!("blind AS ({blind}), {ONE}")
}

const ONE: &str = "execs AS (\
    SELECT node, pid, start_ns, exe, row_number() OVER (PARTITION BY node, pid, start_ns ORDER BY ts_ns DESC) AS newest \
    FROM processes WHERE kind = 'exec' AND exe IS NOT NULL), \
last AS (SELECT node, pid, start_ns, exe FROM execs WHERE newest = 1), \
lives AS (\
    SELECT node, pid, start_ns, min(pod) AS pod, max(CASE WHEN NOT is_thread THEN ppid END) AS ppid, \
        min(CAST(CAST(time_utc AS BIGINT) - (ts_ns - start_ns - (ts_ns - start_ns) % 1000) / 1000 AS BIGINT)) AS from_us, \
        max(weight) AS weight, max(CAST(time_utc AS BIGINT)) AS last_us, \
        max(CASE WHEN kind IN ('snapshot', 'start', 'joined') AND NOT is_thread THEN weight END) AS came, \
        max(CASE WHEN kind = 'start' AND NOT is_thread THEN weight ELSE 0 END) AS started, \
        max(CASE WHEN kind = 'exit' AND group_dead THEN weight ELSE 0 END) AS ended, \
        max(CASE WHEN kind = 'exit' AND group_dead THEN CAST(time_utc AS BIGINT) END) AS to_us, \
        max(CASE WHEN kind = 'exit' AND group_dead THEN ts_ns - start_ns END) AS life_ns, \
        max(CASE WHEN kind = 'exit' AND group_dead THEN exit_code END) AS exit_code, \
        max(CASE WHEN kind = 'exit' AND group_dead THEN signal END) AS signal, \
        max(CASE WHEN kind = 'exit' AND group_dead THEN utime_ns + stime_ns END) AS cpu_ns, \
        max(CASE WHEN kind = 'exit' AND group_dead THEN max_rss_bytes END) AS max_rss_bytes, \
        max(CASE WHEN kind = 'exit' AND group_dead THEN comm END) AS last_comm, \
        max(CASE WHEN NOT is_thread THEN lpad(CAST(ts_ns AS VARCHAR), 20, '0') || comm END) AS named \
    FROM processes GROUP BY node, pid, start_ns), \
one AS (\
    SELECT v.*, e.exe, coalesce(substr(v.named, 21), v.last_comm) AS comm, \
        coalesce(came, CASE WHEN weight = 1 THEN 1 ELSE 0 END) AS stands, \
        CASE WHEN coalesce(exit_code, 0) <> 0 OR coalesce(signal, 0) <> 0 THEN ended ELSE 0 END AS failed, \
        CASE WHEN to_us IS NULL AND (last_us < b.until_us OR (SELECT max(weight) FROM processes) > 1) THEN 1 ELSE 0 END AS unseen \
    FROM lives v LEFT JOIN last e ON v.node = e.node AND v.pid = e.pid AND v.start_ns = e.start_ns \
        LEFT JOIN blind b ON v.node = b.node)";

/// Reads the section.
pub(crate) async fn read(engine: &impl Engine, scope: &Scope<'_>) -> Result<Section<Processes>, ReportError> {
    if let Err(why) = scope.has(COLLECTOR) {
        return Ok(Section::Absent(why));
    }
    let one = one(scope);
    let totals = format!(
        "WITH {one} SELECT coalesce(sum(stands), 0) AS processes, coalesce(sum(started), 0) AS started, \
         coalesce(sum(ended), 0) AS ended, coalesce(sum(failed), 0) AS failed, coalesce(sum(ended * cpu_ns), 0) AS cpu_ns, \
         coalesce(sum(stands * unseen), 0) AS end_unseen, count(DISTINCT coalesce(exe, comm)) AS programs, coalesce(max(weight), 1) AS weight FROM one"
    );
    let programs = format!(
        "WITH {one} SELECT pod, coalesce(exe, comm) AS program, sum(stands) AS processes, sum(ended) AS ended, sum(failed) AS failed, \
         coalesce(sum(ended * cpu_ns), 0) AS cpu_ns, max(max_rss_bytes) AS max_rss_bytes, max(life_ns) AS longest_ns FROM one \
         WHERE stands > 0 OR ended > 0 GROUP BY pod, coalesce(exe, comm) ORDER BY cpu_ns DESC, processes DESC, program, pod NULLS FIRST LIMIT {MOST_PROGRAMS}"
    );
    let longest = format!(
        "WITH {one}, shown AS (SELECT *, coalesce(to_us, CASE WHEN unseen = 1 THEN last_us ELSE {to} END) - greatest(from_us, {from}) \
             AS inside FROM one) \
         SELECT node, pod, pid, ppid, start_ns, comm, exe, from_us, started > 0 AS started, to_us, unseen = 1 AS end_unseen, last_us, exit_code, signal, \
         cpu_ns, max_rss_bytes FROM shown ORDER BY unseen, inside DESC, from_us, node, pid LIMIT {MOST_SPANS}",
        from = scope.from_us,
        to = scope.to_us,
    );
    let totals: Vec<Totals> = ask(engine, &totals).await?;
    let mut processes: Vec<Process> = ask(engine, &longest).await?;
    processes.sort_by_key(|process| (process.from_us, process.start_ns, process.pid));
    history(engine, &mut processes).await?;
    let step_us = scope.bin_us(0);
    let started = format!(
        "WITH begun AS (SELECT pod, weight, greatest(CAST(time_utc AS BIGINT) - {}, 0) AS since_us FROM processes \
         WHERE kind = 'start' AND NOT is_thread) \
         SELECT pod AS name, {bin} AS bin, sum(weight) AS value FROM begun GROUP BY pod, {bin} ORDER BY pod NULLS FIRST, bin",
        scope.from_us,
        bin = format_args!("since_us - since_us % {step_us}"),
    );
    Ok(Section::Data(Processes {
        totals: totals.first().copied().unwrap_or_default(),
        programs: ask(engine, &programs).await?,
        processes,
        from_us: scope.from_us,
        step_us,
        started: rates(engine, scope, step_us, &started, "other pods").await?,
    }))
}

/// What the listed processes executed, one after the other.
async fn history(engine: &impl Engine, processes: &mut [Process]) -> Result<(), ReportError> {
    #[derive(Deserialize)]
    struct Exec {
        node: String,
        pid: i64,
        start_ns: i64,
        us: i64,
        exe: String,
    }
    if processes.is_empty() {
        return Ok(());
    }
    let keys: Vec<String> = processes.iter().map(|process| process.pid.to_string()).collect();
    // A process that executes itself over and over is shown by its first programs.
    let sql = format!(
        "WITH execs AS (SELECT node, pid, start_ns, CAST(time_utc AS BIGINT) AS us, exe, \
         row_number() OVER (PARTITION BY node, pid, start_ns ORDER BY ts_ns) AS nth FROM processes \
         WHERE kind = 'exec' AND exe IS NOT NULL AND pid IN ({})) \
         SELECT node, pid, start_ns, us, exe FROM execs WHERE nth <= 5 ORDER BY node, pid, start_ns, us LIMIT 2000",
        keys.join(", ")
    );
    for exec in ask::<Exec>(engine, &sql).await? {
        let of = processes.iter_mut().find(|process| {
            (&process.node, process.pid, process.start_ns) == (&exec.node, exec.pid, exec.start_ns)
        });
        _ = of.map(|process| process.history.push((exec.us, exec.exe)));
    }
    Ok(())
}

impl Process {
    fn failed(&self) -> bool {
        self.exit_code.unwrap_or(0) != 0 || self.signal.unwrap_or(0) != 0
    }

    fn ended(&self) -> String {
        match (self.to_us, self.signal.unwrap_or(0), self.exit_code) {
            (None, ..) if self.end_unseen => "end not seen".to_owned(),
            (None, ..) => "alive at the end".to_owned(),
            (Some(_), 0, code) => format!("exit {}", code.unwrap_or(0)),
            (Some(_), signal, _) => format!("signal {signal}"),
        }
    }

    fn began(&self) -> &'static str {
        if self.started { "" } else { "began before, or came from outside; " }
    }
}

impl Processes {
    /// As it is shown.
    pub(crate) fn view(&self, scope: &Scope<'_>, view: &mut View) {
        let totals = &self.totals;
        view.figures = vec![
            Figure::number("Processes", Unit::Count, totals.processes),
            Figure::total("Started while traced", Unit::Count, totals.started),
            Figure::total("Ended while traced", Unit::Count, totals.ended),
            Figure::total("Ended badly", Unit::Count, totals.failed),
            Figure::total("CPU time of those that ended", Unit::Nanoseconds, totals.cpu_ns),
        ];
        let spans = self.processes.iter().map(|process| {
            let length =
                process.to_us.map(|to| Unit::Nanoseconds.format((to - process.from_us) as f64 * 1e3));
            let programs: Vec<&str> = process.history.iter().map(|(_, exe)| exe.as_str()).collect();
            let mut detail = format!(
                "{}pid {} of {} on {}; {}{}",
                process.began(),
                process.pid,
                pod(process.pod.as_deref()),
                process.node,
                process.ended(),
                length.map(|length| format!(" after {length}")).unwrap_or_default(),
            );
            if !programs.is_empty() {
                detail += &format!("; executed {}", programs.join(", then "));
            }
            Span {
                name: process.comm.clone().unwrap_or_else(|| "?".to_owned()),
                detail,
                from_us: process.from_us.max(scope.from_us),
                to_us: match process.to_us {
                    Some(to) => to,
                    None if process.end_unseen => process.last_us.max(scope.from_us),
                    None => scope.to_us,
                },
                earlier: process.from_us < scope.from_us,
                open: process.to_us.is_none() && !process.end_unseen,
                unseen: process.end_unseen,
                failed: process.failed(),
            }
        });
        view.charts.push(Chart::Timeline {
            title: "Processes that ran longest".to_owned(),
            from_us: scope.from_us,
            to_us: scope.to_us,
            spans: spans.collect(),
        });
        view.charts.push(Chart::Series {
            title: "Processes started".to_owned(),
            unit: Unit::PerSecond,
            from_us: self.from_us,
            step_us: self.step_us,
            series: self.started.clone(),
        });
        view.tables.push(self.programs());
        view.tables.push(self.table());
    }

    fn programs(&self) -> Table {
        let columns =
            ["program", "pod", "processes", "ended", "badly", "CPU time", "longest", "largest resident"];
        let mut table = Table::new("By program, most CPU time first", &columns);
        table.rows.extend(self.programs.iter().map(|program| {
            let failed = Cell::number(Unit::Count, program.failed);
            vec![
                Cell::text(program.program.as_deref().unwrap_or("?")),
                Cell::text(pod(program.pod.as_deref())),
                Cell::number(Unit::Count, program.processes),
                Cell::number(Unit::Count, program.ended),
                if program.failed > 0 { failed.marked(Level::Info) } else { failed },
                Cell::number(Unit::Nanoseconds, program.cpu_ns),
                Cell::maybe(Unit::Nanoseconds, program.longest_ns),
                Cell::maybe(Unit::Bytes, program.max_rss_bytes),
            ]
        }));
        let listed: u64 = self.programs.iter().map(|program| program.processes).sum();
        let more = self.totals.processes.saturating_sub(listed);
        if more > 0 {
            let cpu = self.programs.iter().map(|program| program.cpu_ns).sum::<u64>();
            let rest = self.totals.cpu_ns.saturating_sub(cpu);
            table.note = format!(
                "{} of other programs, with {} of CPU time.",
                things(more, "process", "processes"),
                Unit::Nanoseconds.format(rest as f64)
            );
        }
        if self.is_sampled() {
            table.note += " Sampled: counts and CPU time are estimates, and a process of which no start of a program was kept is under \
                           the name that it had.";
            table.note = table.note.trim_start().to_owned();
        }
        table
    }

    /// Whether a row stands for several of its kind.
    fn is_sampled(&self) -> bool {
        self.totals.weight > 1
    }

    fn table(&self) -> Table {
        let columns = [
            "process",
            "program",
            "pid",
            "parent",
            "pod",
            "node",
            "began",
            "ran",
            "ended",
            "CPU time",
            "largest resident",
        ];
        let mut table = Table::new("Processes that ran longest, by their beginning", &columns);
        table.rows.extend(self.processes.iter().map(|process| {
            let ran = process.to_us.map(|to| (to - process.from_us) as f64 * 1e3);
            let since = (process.from_us - self.from_us) as f64 * 1e3;
            let began = if since < 0.0 {
                Cell { text: "before".to_owned(), value: Some(since), level: None }
            } else {
                Cell {
                    text: format!("+{}", Unit::Nanoseconds.format(since)),
                    value: Some(since),
                    level: None,
                }
            };
            let ended = Cell::text(process.ended());
            vec![
                Cell::text(process.comm.as_deref().unwrap_or("?")),
                Cell::text(process.exe.as_deref().unwrap_or("–")),
                Cell::id(process.pid),
                process.ppid.map_or_else(|| Cell::text("–"), Cell::id),
                Cell::text(pod(process.pod.as_deref())),
                Cell::text(&process.node),
                began,
                Cell::maybe(Unit::Nanoseconds, ran),
                if process.failed() { ended.marked(Level::Info) } else { ended },
                Cell::maybe(Unit::Nanoseconds, process.cpu_ns),
                Cell::maybe(Unit::Bytes, process.max_rss_bytes),
            ]
        }));
        let more = self.totals.processes.saturating_sub(self.processes.len() as u64);
        if more > 0 {
            let others = things(more, "other process", "other processes");
            table.note = if self.is_sampled() {
                format!("{others}; sampled, so that some of them may have run longer.")
            } else {
                format!("{others}, none of which is known to have run longer.")
            };
        }
        if self.totals.end_unseen > 0 {
            let unseen = things(self.totals.end_unseen, "process", "processes");
            table.note += &format!(
                " The end of {unseen} may have been missed, by sampling or where nobody looked: how long they ran is not known, and they \
                 are listed last where there is room."
            );
            table.note = table.note.trim_start().to_owned();
        }
        table
    }
}
