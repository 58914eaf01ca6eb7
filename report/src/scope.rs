// SPDX-License-Identifier: Apache-2.0

//! What a session was: its name, its window, its collectors with their parameters, and whether a section can be made at all.
//!
//! In: the session's own files ([`Contents`]). Out: [`Scope`], which every section asks first. A section is made only of
//! collectors that traced something: an empty table of one that did not would be a promise that nothing happened.

use std::collections::{BTreeMap, BTreeSet};

use dataset::coverage::CoverageKind;
use dataset::key::Key;
use dataset::ledger::{LedgerRow, Term};
use dataset::manifest::NodeManifest;
use dataset::reader::Contents;
use serde::Serialize;
use serde_json::Value;

use crate::view::View;

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
    /// What was found.
    Data(T),
}

impl<T> Section<T> {
    /// As it is shown.
    pub fn view(&self, id: &str, title: &str, view: impl FnOnce(&T, &mut View)) -> View {
        let mut shown = View::new(id, title);
        match self {
            Self::Absent(why) => shown.absent = Some(why.clone()),
            Self::Data(data) => view(data, &mut shown),
        }
        shown
    }
}

/// What one collector did in the session.
#[derive(Clone, Debug, Default)]
struct Collector {
    asked: bool,
    traced: bool,
    unsupported: Vec<(String, String)>,
    params: BTreeMap<String, String>,
}

/// The session around its tables.
#[derive(Debug)]
pub struct Scope<'a> {
    pub(crate) contents: &'a Contents,
    collectors: BTreeMap<String, Collector>,
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
        for row in nodes(contents).flat_map(|node| &node.coverage) {
            let collector = collectors.entry(row.collector.clone()).or_default();
            match row.kind {
                CoverageKind::Traced => {
                    collector.traced = true;
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
        Self { contents, collectors, from_us: from, to_us: to, began_ns }
    }

    /// Whether this collector traced anything; if not, why.
    pub(crate) fn has(&self, collector: &str) -> Result<(), String> {
        let Some(found) = self.collectors.get(collector) else {
            return Err(format!("{collector} was not in the session"));
        };
        match found.unsupported.first() {
            _ if found.traced => Ok(()),
            Some((node, reason)) => Err(format!("no node could run {collector} (node {node}: {reason})")),
            None if found.asked => Err(format!("{collector} was asked for, but traced no container")),
            None => Err(format!("{collector} traced nothing")),
        }
    }

    /// Nodes that could not run a collector which others ran, with the reasons.
    pub(crate) fn partly(&self, collector: &str) -> Option<String> {
        let found = self.collectors.get(collector).filter(|found| found.traced)?;
        let (node, reason) = found.unsupported.first()?;
        let nodes = found.unsupported.iter().map(|(node, _)| node).collect::<BTreeSet<_>>().len();
        let others = if nodes > 1 { format!(" and {} other nodes", nodes - 1) } else { String::new() };
        Some(format!("{collector} could not run on node {node}{others}: {reason}"))
    }

    /// Events of a table that became no row and are in none's weight.
    pub(crate) fn missing(&self, table: &str) -> u64 {
        let rows = nodes(self.contents).flat_map(|node| &node.ledger).filter(|row| row.table == table);
        let terms = |row: &LedgerRow| {
            row.terms.get(Term::SampledOut) + row.terms.get(Term::RateLimited) + row.terms.lost()
        };
        rows.map(terms).sum()
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

    /// How many bins of this length the session has.
    pub(crate) fn bins(&self, bin_us: i64) -> usize {
        let bins = ((self.to_us - self.from_us).max(1) + bin_us - 1) / bin_us;
        usize::try_from(bins).unwrap_or(1).min(4 * MOST_BINS as usize)
    }
}

/// What nodes say of themselves: of those that the session's manifest names, once there is one.
pub(crate) fn nodes(contents: &Contents) -> impl Iterator<Item = &NodeManifest> {
    let manifest = contents.manifest.as_ref();
    let named: Option<BTreeSet<&str>> = manifest
        .map(|manifest| manifest.nodes.iter().flat_map(|node| &node.manifests).map(String::as_str).collect());
    let counts = move |key: &Key| named.as_ref().is_none_or(|named| named.contains(key.relative().as_str()));
    contents.nodes.iter().filter(move |(key, _)| counts(key)).map(|(_, node)| node)
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
        for field in ["sampleEvery", "maxEventsPerSecond", "interval"] {
            if let Some(value) = collector.get(field).filter(|value| !value.is_null()) {
                params.insert(
                    field.to_owned(),
                    value.as_str().map_or_else(|| value.to_string(), str::to_owned),
                );
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
    }
}
