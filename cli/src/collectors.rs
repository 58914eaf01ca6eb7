// SPDX-License-Identifier: Apache-2.0

//! `tracelake collectors`: what can be recorded, from the catalogue in this program; no cluster is asked.

use std::process::ExitCode;

use anyhow::Result;
use dataset::catalogue::{self, CollectorInfo};
use serde::Serialize;

use crate::output::{BAD, BOLD, Format, paint};

/// Arguments of `tracelake collectors`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also say what of it this machine cannot record, and why, for `tracelake record`.
    #[cfg(target_os = "linux")]
    #[arg(long)]
    here: bool,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// A collector, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Collector {
    name: &'static str,
    question: &'static str,
    /// A, B or C: how often its hooks run.
    cost_class: &'static str,
    cost: &'static str,
    tables: Vec<&'static str>,
    /// Whether `sampleEvery` and `maxEventsPerSecond` apply.
    events: bool,
    /// Whether `interval` applies.
    windows: bool,
    params: Vec<Param>,
    /// Why this machine cannot; none when it can, or was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_here: Option<String>,
}

/// One of its parameters.
#[derive(Serialize)]
struct Param {
    name: &'static str,
    default: &'static str,
    accepts: String,
    doc: &'static str,
}

/// Prints every collector.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    #[cfg(target_os = "linux")]
    let missing = if args.here { missing_here() } else { Vec::new() };
    #[cfg(not(target_os = "linux"))]
    let missing = Vec::new();
    let all = collectors(&missing);
    args.output.print(|| &all, || text(&all))?;
    Ok(ExitCode::SUCCESS)
}

/// Collectors that this machine cannot run, and why.
#[cfg(target_os = "linux")]
fn missing_here() -> Vec<(&'static str, String)> {
    let all = node_agent::engine::Engine::capabilities();
    let missing = all.into_iter().filter(|capability| !capability.supported);
    missing.map(|capability| (capability.collector, capability.reason)).collect()
}

fn collectors(missing: &[(&str, String)]) -> Vec<Collector> {
    let one = |info: &&'static CollectorInfo| {
        let (cost_class, cost) = info.cost.doc().split_once(": ").unwrap_or_default();
        let params = info.params.iter().map(|param| Param {
            name: param.name,
            default: param.default,
            accepts: catalogue::expected(&param.ty),
            doc: param.doc,
        });
        Collector {
            name: info.name,
            question: info.question,
            cost_class,
            cost,
            tables: info.tables.iter().map(|table| table.name).collect(),
            events: info.events,
            windows: info.has_windows(),
            params: params.collect(),
            not_here: missing.iter().find(|(name, _)| *name == info.name).map(|(_, why)| why.clone()),
        }
    };
    catalogue::COLLECTORS.iter().map(one).collect()
}

fn text(collectors: &[Collector]) -> String {
    let mut text = String::new();
    for collector in collectors {
        let tables = collector.tables.join(", ");
        text += &format!("{}  (tables: {tables})\n", paint(BOLD, collector.name));
        if let Some(why) = &collector.not_here {
            text += &format!("    {}\n", paint(BAD, &format!("NOT HERE: {why}")));
        }
        text += &format!("    {}\n", collector.question);
        text += &format!("    cost {}: {}\n", collector.cost_class, collector.cost);
        for param in &collector.params {
            let Param { name, default, accepts, doc } = param;
            text += &format!("    {name} = {default:?}: {accepts}; {doc}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_collector_and_parameter_is_listed() {
        let all = collectors(&[("processes", "no BTF".to_owned())]);
        let text = text(&all);
        assert_eq!(text.matches("NOT HERE: no BTF").count(), 1, "{text}");
        assert_eq!(all.len(), catalogue::COLLECTORS.len());
        for (info, shown) in catalogue::COLLECTORS.iter().zip(&all) {
            assert!(text.contains(info.name) && text.contains(info.question), "{text}");
            assert!(info.params.iter().all(|param| text.contains(param.name)), "{text}");
            assert!(["A", "B", "C"].contains(&shown.cost_class), "{}", shown.cost_class);
        }
    }
}
