// SPDX-License-Identifier: Apache-2.0

//! What was lost and what was not covered: the first section, which says how far the others can be believed.
//!
//! In: verdict, ledger and coverage from the session's manifests, and the listing's findings. Out: [`Account`]. Nothing is
//! read of the tables: an account that had to be queried could be missing with them.

use std::collections::{BTreeMap, BTreeSet};

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
/// Nodes that are named of each row.
const MOST_NAMES: usize = 5;

/// Node, pod's UID and name.
type Container<'a> = (&'a str, &'a str, &'a str);

/// The account of a session.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// `complete`, `incomplete`, or `running` where no manifest is there yet.
    pub verdict: &'static str,
    /// Nodes that have written a manifest: of no other is anything read.
    pub done: u64,
    /// Nodes that are not complete, by reason, at most some reasons.
    pub incomplete_nodes: Vec<IncompleteNodes>,
    /// How many nodes there are of them.
    pub incomplete_nodes_total: u64,
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
    /// Collectors that some nodes did not run, by reason, at most some.
    pub unsupported: Vec<Unsupported>,
    /// How many such there are.
    pub unsupported_total: u64,
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
    /// What; empty where there was no target.
    pub collector: String,
    /// Why.
    pub reason: String,
}

/// Nodes that are not complete for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IncompleteNodes {
    /// Why not.
    pub reason: String,
    /// Whether they have written a manifest, so that something of them can be read.
    pub listed: bool,
    /// Which.
    #[serde(flatten)]
    pub nodes: Nodes,
}

/// A collector that some nodes did not run for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unsupported {
    /// Which.
    pub collector: String,
    /// Why.
    pub reason: String,
    /// Where.
    #[serde(flatten)]
    pub nodes: Nodes,
}

/// Some nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Nodes {
    /// How many.
    pub nodes: u64,
    /// The first of them by name.
    pub names: Vec<String>,
}

impl Nodes {
    fn new(nodes: &BTreeSet<&str>) -> Self {
        let names = nodes.iter().take(MOST_NAMES).map(|name| (*name).to_owned()).collect();
        Self { nodes: nodes.len() as u64, names }
    }

    /// `node a`, `nodes a, b and 3 more`, with the word for one as it is given.
    fn named(&self, node: &str) -> String {
        let more = self.nodes - self.names.len() as u64;
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{node}{} {}{more}", if self.nodes == 1 { "" } else { "s" }, self.names.join(", "))
    }
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
        let mut unsupported: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
        // By container and collector: an agent that took over from another one came late to everything.
        let mut first: BTreeMap<(Container<'_>, &str), (i64, bool)> = BTreeMap::new();
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
                    unsupported.entry((&row.collector, &row.reason)).or_default().insert(&row.node);
                }
            }
        }
        let mut containers: BTreeMap<Container<'_>, bool> = BTreeMap::new();
        for ((container, _), (_, from_start)) in first {
            *containers.entry(container).or_insert(true) &= from_start;
        }
        // Where others traced and it is not named, the node had it not either.
        for (name, _) in scope.collectors() {
            for (node, reason) in scope.not_run(name) {
                unsupported.entry((name, reason)).or_default().insert(node);
            }
        }
        let manifest = contents.manifest.as_ref();
        let findings = contents.compare();
        let errors = findings.iter().filter(|finding| finding.is_error());
        let findings: Vec<String> = errors.map(Finding::to_string).collect();
        let mut incomplete: BTreeMap<(&str, bool), BTreeSet<&str>> = BTreeMap::new();
        for node in manifest.into_iter().flat_map(|manifest| &manifest.nodes) {
            if !node.reason.is_empty() {
                incomplete.entry((&node.reason, !node.manifests.is_empty())).or_default().insert(&node.node);
            }
        }
        Self {
            verdict: manifest.map_or("running", |manifest| manifest.verdict.as_str()),
            done: nodes(contents).map(|node| node.node.as_str()).collect::<BTreeSet<_>>().len() as u64,
            incomplete_nodes_total: incomplete.values().map(|nodes| nodes.len() as u64).sum(),
            incomplete_nodes: incomplete
                .into_iter()
                .take(MOST)
                .map(|((reason, listed), nodes)| IncompleteNodes {
                    reason: reason.to_owned(),
                    listed,
                    nodes: Nodes::new(&nodes),
                })
                .collect(),
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
            unsupported_total: unsupported.len() as u64,
            unsupported: unsupported
                .into_iter()
                .take(MOST)
                .map(|((collector, reason), nodes)| Unsupported {
                    collector: collector.to_owned(),
                    reason: reason.to_owned(),
                    nodes: Nodes::new(&nodes),
                })
                .collect(),
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
            Figure::cell("Events lost", lost, Change::Total),
            Figure::total("Events", Unit::Count, self.emitted),
            Figure::total("Rows", Unit::Count, self.rows),
            Figure::number("Containers", Unit::Count, self.containers),
        ];
        self.advise(&mut view);
        self.note(&mut view);
        let kept = Term::ALL.iter().filter(|term| **term == Term::Exported || self.terms.get(**term) > 0);
        let kept: Vec<Term> = kept.copied().collect();
        let mut columns = vec!["table", "rows", "events"];
        columns.extend(kept.iter().map(|term| term.name()));
        let mut table = Table::new("What became of every event", &columns);
        // A terminal shows the first rows: those that something is missing of.
        let mut tables: Vec<&TableAccount> = self.tables.iter().collect();
        let missing = |account: &TableAccount| (account.terms.lost(), account.terms.get(Term::RateLimited));
        tables.sort_by_key(|account| std::cmp::Reverse(missing(account)));
        for account in tables {
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
        for one in &self.incomplete_nodes {
            let is = if one.nodes.nodes == 1 { "is" } else { "are" };
            let next = if one.listed {
                "What it recorded and its manifest does not list is not in this report."
            } else {
                "Nothing of it is in this report: what it may have stored is listed by no manifest."
            };
            view.advice.push(Advice {
                level: Level::Crit,
                cause: format!("{} {is} not complete", one.nodes.named("Node")),
                evidence: one.reason.clone(),
                next: next.to_owned(),
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
                evidence: match gap.collector.as_str() {
                    "" => format!("on node {}, without a target then: {}", gap.node, gap.reason),
                    collector => format!("{collector} of {} on node {}: {}", gap.pod, gap.node, gap.reason),
                },
                next: "What happened meanwhile is in no table.".to_owned(),
            });
        }
        for one in &self.unsupported {
            view.advice.push(Advice {
                level: Level::Warn,
                cause: format!("{} did not run on {}", one.collector, one.nodes.named("node")),
                evidence: one.reason.clone(),
                next: "Their share is missing in every number made of it.".to_owned(),
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
            view.notes.push(match self.done {
                0 => "The session is not over, and no node has written its manifest: nothing that was recorded is in this report."
                    .to_owned(),
                done => format!(
                    "The session is not over: this is what {} that had written a manifest recorded, and numbers will change.",
                    things(done, "node", "nodes")
                ),
            });
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
        let beyond = |shown: u64, total: u64, what: &str, all: &str| {
            let more = total.saturating_sub(shown);
            (more > 0).then(|| format!("{more} more {what} are not listed; {all} has all."))
        };
        let coverage = "the table `coverage`";
        view.notes.extend(beyond(self.gaps.len() as u64, self.gaps_total, "gaps", coverage));
        let shown = self.unsupported.len() as u64;
        let what = "collectors that nodes did not run, by reason,";
        view.notes.extend(beyond(shown, self.unsupported_total, what, coverage));
        let shown = self.incomplete_nodes.iter().map(|one| one.nodes.nodes).sum();
        let what = "nodes that are not complete";
        view.notes.extend(beyond(shown, self.incomplete_nodes_total, what, "the session's manifest"));
        let shown = self.findings.len() as u64;
        view.notes.extend(beyond(shown, self.findings_total, "differences", "`tracelake verify`"));
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
