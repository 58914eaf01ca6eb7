// SPDX-License-Identifier: Apache-2.0

//! What was lost and what was not covered: the first section, which says how far the others can be believed.
//!
//! In: verdict, ledger and coverage from the session's manifests, and the listing's findings. Out: [`Account`]. Nothing is
//! read of the tables: an account that had to be queried could be missing with them.

use std::collections::{BTreeMap, BTreeSet};

use dataset::check::compare_manifest;
use dataset::coverage::CoverageKind;
use dataset::ledger::{Term, Terms};
use dataset::manifest::Verdict;
use dataset::reader::Finding;
use serde::Serialize;

use crate::format::{Unit, things};
use crate::scope::{Scope, nodes, pod};
use crate::view::{Advice, Cell, Change, Figure, Level, Table, View};

/// Rows of each list that are kept; the rest is counted.
const MOST: usize = 20;

/// The account of a session.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// `complete`, `incomplete`, or `running` where no manifest is there yet.
    pub verdict: &'static str,
    /// Nodes that are not complete, with the reason.
    pub incomplete_nodes: Vec<(String, String)>,
    /// Hits on targets, counted in the kernel; a lower bound if `unknown`.
    pub emitted: u64,
    /// Whether an agent crashed, and took a count of events with it.
    pub unknown: bool,
    /// What became of them.
    pub terms: Terms,
    /// Of them, what should be in the tables and is not.
    pub lost: u64,
    /// Rows of all tables.
    pub rows: u64,
    /// Every table's own account.
    pub tables: Vec<TableAccount>,
    /// Containers that were traced.
    pub containers: u64,
    /// Of those, how many have hooks that were there before their first process, for every collector.
    pub from_start: u64,
    /// Stretches of time in which nobody looked, at most some.
    pub gaps: Vec<Uncovered>,
    /// How many there are.
    pub gaps_total: u64,
    /// Collectors that some node could not run.
    pub unsupported: Vec<Unsupported>,
    /// Collectors, with the parameters that were set: what they left out is in no table.
    pub collectors: BTreeMap<String, BTreeMap<String, String>>,
    /// Where store and manifests differ, at most some.
    pub findings: Vec<String>,
    /// How many such there are.
    pub findings_total: u64,
}

/// One table's account.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableAccount {
    /// Its name.
    pub table: String,
    /// As the session's.
    pub emitted: u64,
    /// What became of them.
    pub terms: Terms,
    /// Its rows.
    pub rows: u64,
}

/// A gap in the coverage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Uncovered {
    /// Its beginning, microseconds since 1970.
    pub from_us: i64,
    /// Its end.
    pub to_us: i64,
    /// Where.
    pub node: String,
    /// Whose.
    pub pod: String,
    /// What.
    pub collector: String,
    /// Why.
    pub reason: String,
}

/// A collector that a node could not run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unsupported {
    /// Which.
    pub collector: String,
    /// Where.
    pub node: String,
    /// Why.
    pub reason: String,
}

impl Account {
    /// Sums up what the session says of itself.
    pub(crate) fn new(scope: &Scope<'_>) -> Self {
        let contents = scope.contents;
        let (mut terms, mut emitted, mut unknown) = (Terms::default(), 0_u64, false);
        let mut tables: BTreeMap<&str, TableAccount> = BTreeMap::new();
        for row in nodes(contents).flat_map(|node| &node.ledger) {
            let events = row.emitted.unwrap_or(0);
            emitted = emitted.saturating_add(events);
            unknown |= row.emitted.is_none();
            terms.merge(&row.terms);
            let table = tables.entry(&row.table).or_insert_with(|| TableAccount {
                table: row.table.clone(),
                emitted: 0,
                terms: Terms::default(),
                rows: 0,
            });
            table.emitted = table.emitted.saturating_add(events);
            table.terms.merge(&row.terms);
            table.rows += row.rows;
        }
        let mut gaps = BTreeSet::new();
        let mut unsupported = BTreeSet::new();
        // By container and collector: an agent that took over from another one came late to everything.
        let mut first: BTreeMap<((&str, &str, &str), &str), (i64, bool)> = BTreeMap::new();
        for row in nodes(contents).flat_map(|node| &node.coverage) {
            match row.kind {
                CoverageKind::Traced => {
                    let container = (row.node.as_str(), row.pod_uid.as_str(), row.container.as_str());
                    let own = (row.from_utc_us, row.from_start);
                    let earliest = first.entry((container, row.collector.as_str())).or_insert(own);
                    if own.0 < earliest.0 {
                        *earliest = own;
                    }
                }
                CoverageKind::Gap => _ = gaps.insert(gap(row)),
                CoverageKind::Unsupported => {
                    let (collector, node) = (row.collector.clone(), row.node.clone());
                    unsupported.insert(Unsupported { collector, node, reason: row.reason.clone() });
                }
            }
        }
        let mut containers: BTreeMap<(&str, &str, &str), bool> = BTreeMap::new();
        for ((container, _), (_, from_start)) in first {
            *containers.entry(container).or_insert(true) &= from_start;
        }
        // Where others traced and it is not named, the node had it not either.
        for (name, _) in scope.collectors() {
            unsupported.extend(scope.not_run(name).map(|(node, reason)| Unsupported {
                collector: name.to_owned(),
                node: node.to_owned(),
                reason: reason.to_owned(),
            }));
        }
        let manifest = contents.manifest.as_ref();
        let named = manifest.map(|manifest| compare_manifest(contents, manifest)).unwrap_or_default();
        let findings: Vec<String> = contents
            .compare()
            .iter()
            .chain(&named)
            .filter(|one| one.is_error())
            .map(Finding::to_string)
            .collect();
        let nodes = manifest.into_iter().flat_map(|manifest| &manifest.nodes);
        let incomplete = nodes.filter(|node| !node.reason.is_empty());
        Self {
            verdict: manifest.map_or("running", |manifest| manifest.verdict.as_str()),
            incomplete_nodes: incomplete.map(|node| (node.node.clone(), node.reason.clone())).collect(),
            emitted,
            unknown,
            lost: terms.lost(),
            terms,
            rows: tables.values().map(|table| table.rows).sum(),
            tables: tables.into_values().collect(),
            containers: containers.len() as u64,
            from_start: containers.values().filter(|all| **all).count() as u64,
            gaps_total: gaps.len() as u64,
            gaps: gaps.into_iter().take(MOST).collect(),
            unsupported: unsupported.into_iter().collect(),
            collectors: scope.collectors().map(|(name, params)| (name.to_owned(), params.clone())).collect(),
            findings_total: findings.len() as u64,
            findings: findings.into_iter().take(MOST).collect(),
        }
    }

    /// As it is shown.
    pub(crate) fn view(&self) -> View {
        let mut view = View::new("account", "What was lost, and what was not covered");
        let whole = self.verdict == Verdict::Complete.as_str() && self.findings_total == 0;
        let verdict = Cell::text(self.verdict).marked(if whole { Level::Ok } else { Level::Crit });
        let lost =
            Cell::number(Unit::Count, self.lost).marked(if self.lost == 0 { Level::Ok } else { Level::Crit });
        view.figures = vec![
            Figure::cell("Session", verdict, Change::None),
            Figure::cell("Events lost", lost, Change::Relative),
            Figure::number("Events", Unit::Count, self.emitted),
            Figure::number("Rows", Unit::Count, self.rows),
            Figure::number("Containers", Unit::Count, self.containers),
        ];
        self.advise(&mut view);
        self.note(&mut view);
        let kept = Term::ALL.iter().filter(|term| **term == Term::Exported || self.terms.get(**term) > 0);
        let kept: Vec<Term> = kept.copied().collect();
        let mut columns = vec!["table", "rows", "events"];
        columns.extend(kept.iter().map(|term| term.name()));
        let mut table = Table::new("What became of every event", &columns);
        for account in &self.tables {
            let count = |value: u64| Cell::number(Unit::Count, value);
            let mut row = vec![Cell::text(&account.table), count(account.rows), count(account.emitted)];
            row.extend(kept.iter().map(|term| {
                let cell = count(account.terms.get(*term));
                let bad = term.is_loss() && account.terms.get(*term) > 0;
                if bad { cell.marked(Level::Crit) } else { cell }
            }));
            table.rows.push(row);
        }
        view.tables.push(table);
        view
    }

    fn advise(&self, view: &mut View) {
        for (node, reason) in &self.incomplete_nodes {
            view.advice.push(Advice {
                level: Level::Crit,
                cause: format!("Node {node} is not complete"),
                evidence: reason.clone(),
                next: "What it recorded since its last acknowledged object is not in this report.".to_owned(),
            });
        }
        let limited = self.terms.get(Term::RateLimited);
        if limited > 0 {
            let of = self.tables.iter().filter(|table| table.terms.get(Term::RateLimited) > 0);
            let tables: Vec<&str> = of.map(|table| table.table.as_str()).collect();
            view.advice.push(Advice {
                level: Level::Warn,
                cause: "Events were cut by the session's limit of events per second".to_owned(),
                evidence: format!(
                    "{} of {}, of {}",
                    Unit::Count.format(limited as f64),
                    things(self.emitted, "event", "events"),
                    tables.join(", ")
                ),
                next: "They are in no table and in no number. A higher maxEventsPerSecond; or sampleEvery, whose rows say what they stand for."
                    .to_owned(),
            });
        }
        for gap in &self.gaps {
            let seconds = (gap.to_us - gap.from_us) as f64 * 1e3;
            view.advice.push(Advice {
                level: Level::Warn,
                cause: format!("Nobody looked for {}", Unit::Nanoseconds.format(seconds)),
                evidence: format!("{} of {} on node {}: {}", gap.collector, gap.pod, gap.node, gap.reason),
                next: "What happened meanwhile is in no table.".to_owned(),
            });
        }
        for one in &self.unsupported {
            view.advice.push(Advice {
                level: Level::Warn,
                cause: format!("{} did not run on node {}", one.collector, one.node),
                evidence: one.reason.clone(),
                next: "That node's share is missing in every number made of it.".to_owned(),
            });
        }
        for finding in &self.findings {
            view.advice.push(Advice {
                level: Level::Crit,
                cause: "Store and manifest differ".to_owned(),
                evidence: finding.clone(),
                next: "`tracelake verify` reads every object and lists what is wrong.".to_owned(),
            });
        }
    }

    fn note(&self, view: &mut View) {
        if self.verdict == "running" {
            view.notes.push(
                "The session is not over: this is what lies in the store now, and numbers will change."
                    .to_owned(),
            );
        }
        if self.unknown {
            view.notes.push(
                "An agent crashed, and how many events it had counted is not known: numbers of events are lower bounds."
                    .to_owned(),
            );
        }
        let late = self.containers - self.from_start;
        if late > 0 {
            view.notes.push(format!(
                "Of {}, {late} ran before the hooks were there: what they did earlier was not seen.",
                things(self.containers, "container", "containers")
            ));
        }
        let beyond = |shown: usize, total: u64, what: &str| {
            let more = total.saturating_sub(shown as u64);
            (more > 0)
                .then(|| format!("{more} more {what} are not listed; the report's table `coverage` has all."))
        };
        view.notes.extend(beyond(self.gaps.len(), self.gaps_total, "gaps"));
        view.notes.extend(beyond(self.findings.len(), self.findings_total, "differences"));
        let set = self.collectors.iter().filter(|(_, params)| !params.is_empty());
        let set: Vec<String> = set
            .flat_map(|(name, params)| {
                params.iter().map(move |(key, value)| format!("{name}.{key} = {value}"))
            })
            .collect();
        if !set.is_empty() {
            view.notes.push(format!("Parameters that were set: {}.", set.join(", ")));
        }
    }
}

fn gap(row: &dataset::coverage::CoverageRow) -> Uncovered {
    Uncovered {
        from_us: row.from_utc_us,
        to_us: row.to_utc_us,
        node: row.node.clone(),
        pod: pod(Some(row.pod.as_str()).filter(|name| !name.is_empty())),
        collector: row.collector.clone(),
        reason: row.reason.clone(),
    }
}
