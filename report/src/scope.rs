// SPDX-License-Identifier: Apache-2.0

//! What a session was: its name, its window, its collectors with their parameters, and whether a section can be made at all.
//!
//! In: the session's own files ([`Contents`]). Out: [`Scope`], which every section asks first. A section is made only of
//! collectors that traced something: an empty table of one that did not would be a promise that nothing happened.

use std::collections::{BTreeMap, BTreeSet};

use dataset::catalogue;
use dataset::coverage::{CoverageKind, CoverageRow};
use dataset::ledger::{LedgerRow, Term};
use dataset::manifest::NodeManifest;
use dataset::reader::Contents;
use serde::Serialize;
use serde_json::Value;

use crate::format::things;
use crate::view::View;

/// The share of a table's events that may be missing without a word: it moves a ratio by as little.
const TOLERATED: f64 = 0.01;
/// Why there is nothing of a collector on a node that traced by others.
const NOT_NAMED: &str = "the node's coverage does not name it";
/// Bins of a chart over time, at most.
const MOST_BINS: i64 = 120;
/// Lengths of bins, in milliseconds: those that a person counts in.
const BIN_MS: &[i64] = &[
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000,
    600_000, 900_000, 1_800_000, 3_600_000,
];

/// A section, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Section<T> {
    /// One sentence.
    Absent(String),
    /// One sentence: it was recorded, but an object that it is made of is gone or damaged.
    Unread(String),
    /// What was found.
    Data(T),
}

impl<T> Section<T> {
    /// As it is shown.
    pub fn view(&self, id: &str, title: &str, view: impl FnOnce(&T, &mut View)) -> View {
        let mut shown = View::new(id, title);
        match self {
            Self::Absent(why) => shown.absent = Some(why.clone()),
            Self::Unread(why) => (shown.absent, shown.unread) = (Some(why.clone()), true),
            Self::Data(data) => view(data, &mut shown),
        }
        shown
    }
}

/// What one collector did in the session.
#[derive(Clone, Debug, Default)]
struct Collector {
    asked: bool,
    /// Where it traced anything.
    nodes: BTreeSet<String>,
    unsupported: Vec<(String, String)>,
    params: BTreeMap<String, String>,
}

/// The session around its tables.
#[derive(Debug)]
pub struct Scope<'a> {
    pub(crate) contents: &'a Contents,
    collectors: BTreeMap<String, Collector>,
    /// By pod, the nodes on which any collector traced it.
    pods: BTreeMap<String, BTreeSet<String>>,
    /// Nodes on which any collector traced anything.
    nodes: BTreeSet<String>,
    /// By table and node, events that a limit of events per second or a loss cut, and all of them.
    cut: BTreeMap<String, BTreeMap<String, (u64, u64)>>,
    /// Beginning of what was traced, microseconds since 1970.
    pub(crate) from_us: i64,
    /// End of it.
    pub(crate) to_us: i64,
    /// By node, when tracing began there, nanoseconds since its boot.
    pub(crate) began_ns: BTreeMap<String, u64>,
}

impl<'a> Scope<'a> {
    /// Reads the session's own account of itself.
    pub fn new(contents: &'a Contents) -> Self {
        let mut collectors: BTreeMap<String, Collector> = BTreeMap::new();
        let spec = contents.session.as_ref().map_or(&Value::Null, |session| &session.spec);
        for (name, params) in asked(spec) {
            let collector = collectors.entry(name).or_default();
            collector.asked = true;
            collector.params = params;
        }
        let (mut from, mut to) = (i64::MAX, i64::MIN);
        let mut began_ns: BTreeMap<String, u64> = BTreeMap::new();
        let mut pods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for row in nodes(contents).flat_map(|node| &node.coverage) {
            // That nobody looked while there was no target is said of no collector.
            if row.collector.is_empty() {
                continue;
            }
            let collector = collectors.entry(row.collector.clone()).or_default();
            match row.kind {
                CoverageKind::Traced => {
                    collector.nodes.insert(row.node.clone());
                    pods.entry(row.pod.clone()).or_default().insert(row.node.clone());
                    from = from.min(row.from_utc_us);
                    to = to.max(row.to_utc_us);
                    let began = began_ns.entry(row.node.clone()).or_insert(row.from_ns);
                    *began = row.from_ns.min(*began);
                }
                CoverageKind::Unsupported => {
                    collector.unsupported.push((row.node.clone(), row.reason.clone()));
                }
                CoverageKind::Gap => {}
            }
        }
        if from > to {
            (from, to) = (0, 0);
        }
        for collector in collectors.values_mut() {
            collector.unsupported.sort();
            collector.unsupported.dedup();
        }
        let mut cut: BTreeMap<String, BTreeMap<String, (u64, u64)>> = BTreeMap::new();
        for row in nodes(contents).flat_map(|node| &node.ledger) {
            let of = cut.entry(row.table.clone()).or_default().entry(row.node.clone()).or_default();
            of.0 = of.0.saturating_add(row.terms.get(Term::RateLimited)).saturating_add(row.terms.lost());
            of.1 = of.1.saturating_add(row.terms.total().max(row.emitted.unwrap_or(0)));
        }
        let on: BTreeSet<String> = pods.values().flatten().cloned().collect();
        Self { contents, collectors, pods, nodes: on, cut, from_us: from, to_us: to, began_ns }
    }

    /// Whether this collector traced anything; if not, why.
    pub(crate) fn has(&self, collector: &str) -> Result<(), String> {
        let Some(found) = self.collectors.get(collector) else {
            return Err(format!("{collector} was not in the session"));
        };
        match found.unsupported.first() {
            _ if !found.nodes.is_empty() => Ok(()),
            Some((node, reason)) => Err(format!("no node could run {collector} (node {node}: {reason})")),
            None if found.asked && self.contents.manifest.is_none() && self.contents.nodes.is_empty() => {
                Err(format!("no node has written yet what {collector} traced"))
            }
            None if found.asked && self.is_missing_all() => {
                Err(format!("no node wrote a manifest that says what {collector} traced"))
            }
            None if found.asked && self.is_missing_some() => Err(format!(
                "{collector} traced no container on the nodes that wrote a manifest; others did not"
            )),
            None if found.asked => Err(format!("{collector} was asked for, but traced no container")),
            None => Err(format!("{collector} traced nothing")),
        }
    }

    /// Whether there were nodes, and none has told what it did.
    fn is_missing_all(&self) -> bool {
        let named = self.contents.manifest.iter().flat_map(|manifest| &manifest.nodes);
        named.count() > 0 && nodes(self.contents).next().is_none()
    }

    /// Whether some node has not told what it did, and others have.
    fn is_missing_some(&self) -> bool {
        let named = self.contents.manifest.iter().flat_map(|manifest| &manifest.nodes);
        nodes(self.contents).next().is_some() && named.into_iter().any(|node| node.manifests.is_empty())
    }

    /// Whether this collector traced this pod on every node that it was on; if not, why.
    pub(crate) fn traced(&self, collector: &str, pod: Option<&str>) -> Result<(), String> {
        self.has(collector)?;
        let ran = self.collectors.get(collector).map(|found| &found.nodes);
        let on = self.pods.get(pod.unwrap_or_default()).into_iter().flatten();
        let without = on.into_iter().find(|node| ran.is_none_or(|ran| !ran.contains(*node)));
        let Some(node) = without else { return Ok(()) };
        let (_, reason) =
            self.not_run(collector).find(|(on, _)| on == node).unwrap_or((node.as_str(), NOT_NAMED));
        Err(format!("{collector} did not run on node {node}: {reason}"))
    }

    /// Nodes that did not run a collector which others ran, each with the reason: those that could not, and those that traced by
    /// others and do not name it.
    pub(crate) fn not_run(&self, collector: &str) -> impl Iterator<Item = (&str, &str)> {
        let found = self.collectors.get(collector).filter(|found| !found.nodes.is_empty());
        let could_not = found.into_iter().flat_map(|found| &found.unsupported);
        let silent = found.filter(|found| found.asked).into_iter().flat_map(|found| {
            let known = |node: &String| found.unsupported.iter().any(|(unsupported, _)| unsupported == node);
            self.nodes.difference(&found.nodes).filter(move |node| !known(node))
        });
        could_not
            .map(|(node, reason)| (node.as_str(), reason.as_str()))
            .chain(silent.map(|node| (node.as_str(), NOT_NAMED)))
    }

    /// The same in a sentence.
    pub(crate) fn partly(&self, collector: &str) -> Option<String> {
        let (node, reason) = self.not_run(collector).next()?;
        let nodes = self.not_run(collector).map(|(node, _)| node).collect::<BTreeSet<_>>().len();
        let others = match nodes {
            1 => String::new(),
            more => format!(" and {}", things(more as u64 - 1, "other node", "other nodes")),
        };
        Some(format!("{collector} did not run on node {node}{others}: {reason}"))
    }

    /// By node, when nobody looked for a collector: gaps, and from what is last known of one boot to the beginning of the next.
    pub(crate) fn blind(&self, collector: &str) -> BTreeMap<&str, BTreeSet<(i64, i64)>> {
        let mut blind: BTreeMap<&str, BTreeSet<(i64, i64)>> = BTreeMap::new();
        let mut boots: BTreeMap<&str, BTreeMap<&str, (i64, i64)>> = BTreeMap::new();
        for row in nodes(self.contents).flat_map(|node| &node.coverage) {
            let (from, to) = (row.from_utc_us, row.to_utc_us);
            match row.kind {
                CoverageKind::Gap if row.collector == collector || row.collector.is_empty() => {
                    blind.entry(&row.node).or_default().insert((from, to));
                }
                CoverageKind::Traced => {
                    let boot = boots.entry(&row.node).or_default().entry(&row.boot).or_insert((from, to));
                    *boot = (from.min(boot.0), to.max(boot.1));
                }
                CoverageKind::Gap | CoverageKind::Unsupported => {}
            }
        }
        for (node, boots) in boots {
            let mut boots: Vec<(i64, i64)> = boots.into_values().collect();
            boots.sort_unstable();
            let between = boots.iter().zip(boots.iter().skip(1)).map(|(one, next)| (one.1, next.0));
            between.for_each(|between| _ = blind.entry(node).or_default().insert(between));
        }
        blind
    }

    /// By node, the end of what a collector traced there.
    pub(crate) fn ended(&self, collector: &str) -> BTreeMap<&str, i64> {
        let mut ended: BTreeMap<&str, i64> = BTreeMap::new();
        let traced = |row: &&CoverageRow| row.kind == CoverageKind::Traced && row.collector == collector;
        for row in nodes(self.contents).flat_map(|node| &node.coverage).filter(traced) {
            let end = ended.entry(&row.node).or_insert(i64::MIN);
            *end = row.to_utc_us.max(*end);
        }
        ended
    }

    /// Events of a table that became no row and are in none's weight.
    pub(crate) fn missing(&self, table: &str) -> u64 {
        let rows = nodes(self.contents).flat_map(|node| &node.ledger).filter(|row| row.table == table);
        let terms = |row: &LedgerRow| {
            row.terms.get(Term::SampledOut) + row.terms.get(Term::RateLimited) + row.terms.lost()
        };
        rows.map(terms).sum()
    }

    /// The share of a table's events that was rate limited or lost, where it is too much to be passed over: on the nodes of a pod, or
    /// on all.
    pub(crate) fn cut(&self, table: &str, pod: Option<Option<&str>>) -> Option<f64> {
        fn share<'a>(nodes: impl Iterator<Item = &'a (u64, u64)>) -> f64 {
            let (cut, all) = nodes.fold((0, 0), |sum: (u64, u64), (cut, all)| {
                (sum.0.saturating_add(*cut), sum.1.saturating_add(*all))
            });
            cut as f64 / all.max(1) as f64
        }
        let by_node = self.cut.get(table)?;
        // A pod is on few nodes, of which a session may have thousands.
        let share = match pod.and_then(|pod| self.pods.get(pod.unwrap_or_default())) {
            Some(on) => share(on.iter().filter_map(|node| by_node.get(node))),
            None => share(by_node.values()),
        };
        (share > TOLERATED).then_some(share)
    }

    /// Nodes on which so much of a table's events was sampled out, limited or lost that what has no row may have happened all the same.
    pub(crate) fn nodes_without_all(&self, table: &str) -> BTreeSet<&str> {
        let rows = nodes(self.contents).flat_map(|node| &node.ledger).filter(|row| row.table == table);
        let mut without: BTreeSet<&str> =
            rows.filter(|row| row.terms.get(Term::SampledOut) > 0).map(|row| row.node.as_str()).collect();
        for (node, (cut, all)) in self.cut.get(table).into_iter().flatten() {
            if *cut as f64 > TOLERATED * *all as f64 {
                without.insert(node);
            }
        }
        without
    }

    /// A parameter as the session set it; none if it has its default.
    pub(crate) fn param(&self, collector: &str, name: &str) -> Option<&str> {
        self.collectors.get(collector)?.params.get(name).map(String::as_str)
    }

    /// Names of collectors, each with the parameters that were set.
    pub(crate) fn collectors(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, String>)> {
        self.collectors.iter().map(|(name, collector)| (name.as_str(), &collector.params))
    }

    /// Length of a chart's bins for rows that stand for windows of this length, in microseconds.
    pub(crate) fn bin_us(&self, window_us: i64) -> i64 {
        let wanted = (self.to_us - self.from_us).max(1) / MOST_BINS;
        let lengths = BIN_MS.iter().map(|ms| ms * 1_000);
        let fits = |length: &i64| *length > wanted && *length * 10 >= window_us * 9;
        lengths.clone().find(fits).unwrap_or_else(|| wanted.max(window_us) + 1)
    }

    /// How many bins of this length the session has. What is left over at its end is a bin of its own if it is long enough for a rate,
    /// else a part of the last one.
    pub(crate) fn bins(&self, bin_us: i64) -> usize {
        let length = (self.to_us - self.from_us).max(1);
        let rest = i64::from((length % bin_us) * 10 > bin_us);
        usize::try_from((length / bin_us + rest).max(1)).unwrap_or(1).min(4 * MOST_BINS as usize)
    }
}

/// What nodes say of themselves.
pub(crate) fn nodes(contents: &Contents) -> impl Iterator<Item = &NodeManifest> {
    contents.parts().map(|(_, node)| node)
}

/// Collectors and their parameters, as a TraceSession's spec or `tracelake record` has them.
fn asked(spec: &Value) -> Vec<(String, BTreeMap<String, String>)> {
    let mut asked: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    for collector in spec["collectors"].as_array().into_iter().flatten() {
        let Some(name) = collector.as_str().or_else(|| collector["name"].as_str()) else { continue };
        let mut params: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in collector["params"].as_object().into_iter().flatten() {
            params.insert(name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
        if let Some(value) = collector.get("interval").filter(|value| !value.is_null()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            params.insert("interval".to_owned(), value);
        }
        // `tracelake record` has one of each for all collectors that record events. Every event is what both have where they are
        // left out, and is not set.
        for (field, least) in [("sampleEvery", 2), ("maxEventsPerSecond", 1)] {
            let takes = catalogue::collector(name).is_none_or(|collector| collector.events);
            let value = collector.get(field).or_else(|| spec.get(field).filter(|_| takes));
            if let Some(value) = value.and_then(Value::as_u64).filter(|value| *value >= least) {
                params.insert(field.to_owned(), value.to_string());
            }
        }
        asked.push((name.to_owned(), params));
    }
    // `tracelake record` has them beside, as COLLECTOR.NAME=VALUE.
    for param in spec["params"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let parts = param.split_once('=').and_then(|(key, value)| Some((key.split_once('.')?, value)));
        let Some(((collector, name), value)) = parts else { continue };
        if let Some((_, params)) = asked.iter_mut().find(|(asked, _)| asked == collector) {
            params.insert(name.to_owned(), value.to_owned());
        }
    }
    asked
}

/// How a pod is called: by its name, since a session is of one namespace.
pub(crate) fn pod(name: Option<&str>) -> String {
    // What `tracelake record` records has no pod.
    name.unwrap_or("(no pod)").to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn collectors_are_read_from_a_resource_and_from_a_recording() {
        let resource = json!({"collectors": [
            {"name": "pageFaults", "sampleEvery": 10, "params": {"detail": "fexit"}}, {"name": "processes"}
        ]});
        let record =
            json!({"collectors": ["pageFaults", "processes"], "params": ["pageFaults.detail=fexit"]});
        let of = |spec| asked(&spec).into_iter().map(|(name, params)| format!("{name} {params:?}"));
        assert_eq!(
            of(resource).collect::<Vec<_>>(),
            [r#"pageFaults {"detail": "fexit", "sampleEvery": "10"}"#, "processes {}"]
        );
        assert_eq!(of(record).collect::<Vec<_>>(), [r#"pageFaults {"detail": "fexit"}"#, "processes {}"]);
        // Of one that records no events there is nothing to cut; 1 and 0 are what they are where nobody sets them.
        let collectors = ["processes", "memoryRss"];
        let cut = json!({"collectors": collectors, "sampleEvery": 10, "maxEventsPerSecond": 500});
        assert_eq!(
            of(cut).collect::<Vec<_>>(),
            [r#"processes {"maxEventsPerSecond": "500", "sampleEvery": "10"}"#, "memoryRss {}"]
        );
        let whole = json!({"collectors": collectors, "sampleEvery": 1, "maxEventsPerSecond": 0});
        assert_eq!(of(whole).collect::<Vec<_>>(), ["processes {}", "memoryRss {}"]);
    }
}
