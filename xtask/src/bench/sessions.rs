// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask bench --sessions`: how soon a session records and how soon all of it is in the store, on the cluster of two
//! kernels. What is measured is in `e2e/src/bin/latency.rs`; here it gets a cluster and a page.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::process::Stdio;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::machine;
use super::report::{self, Goal, percentile, short};
use crate::{cache, cluster, exec, image, install};

/// How many sessions of the full run.
const SESSIONS: usize = 60;

/// What `latency` prints; see its own documentation.
#[derive(Deserialize)]
struct Outcome {
    first_row: Vec<f64>,
    collecting: Vec<f64>,
    uploaded: Vec<f64>,
    clock_error: Vec<f64>,
    between_rows: Vec<f64>,
}

pub(super) fn main(quick: bool) -> Result<()> {
    let machine = machine()?;
    image::prepare(None)?;
    let latency = image::static_binary("latency")?;
    let images = image::build_all()?;
    let sessions = if quick { 5 } else { SESSIONS };
    install::in_ours(
        &cluster::Options::default(),
        &images,
        install::keeps(),
        |_| Ok(()),
        |access| {
            let mut command = exec::command(&latency, [sessions.to_string()]);
            access.apply_to(&mut command)?;
            let text = exec::output(command.stderr(Stdio::inherit()))?;
            let outcome = serde_json::from_str(&text).with_context(|| format!("latency printed {text:?}"))?;
            let page = page(sessions, &outcome, &machine);
            println!("{page}");
            if !quick {
                let path = cache::repository().join("docs/latency.md");
                fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
            }
            Ok(())
        },
    )
}

fn page(sessions: usize, outcome: &Outcome, machine: &BTreeMap<&'static str, String>) -> String {
    let mut text = String::from(
        "# From apply to the first row, and to the last byte\n\nWritten by `cargo xtask bench --sessions`.\n\n",
    );
    text += &report::machine(machine);
    _ = writeln!(
        text,
        "\n{sessions} sessions one after the other, each with a pod on both nodes of a cluster whose nodes are emulated, without KVM, on this machine's CPUs \
         (kernels 6.1 and 6.12), which the API server, etcd, the operator and the store share. Agents run already. In each pod a program starts every {} s (median): no \
         event can be seen sooner than it happens. The nodes' clocks were known to {} s (worst).\n",
        short(percentile(&outcome.between_rows, 0.5)),
        short(percentile(&outcome.clock_error, 1.0)),
    );
    let goal = |name, what, (target, floor), measured| Goal {
        name,
        what,
        unit: "s",
        target,
        floor,
        measured,
        less: true,
    };
    text += &report::goals(&[
        goal("G12", "from apply to the first event, median", (0.5, 3.0), percentile(&outcome.first_row, 0.5)),
        goal("G12", "the same, p99", (1.5, 3.0), percentile(&outcome.first_row, 0.99)),
        goal(
            "G13",
            "from a session's end to everything acknowledged, p99",
            (5.0, 15.0),
            percentile(&outcome.uploaded, 0.99),
        ),
    ]);
    text += "\n";
    let row = |name: &str, values: &[f64]| {
        let cells = [0.5, 0.9, 0.99, 1.0].map(|share| short(percentile(values, share)));
        [name.to_owned(), values.len().to_string()].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let rows = [
        row("apply to the first event, of each node", &outcome.first_row),
        row("apply to `Collecting=True` on every node", &outcome.collecting),
        row("`stop: true` to `Completed`", &outcome.uploaded),
    ];
    text += &report::table(&["from", "count", "p50 s", "p90 s", "p99 s", "most s"], &rows);
    text += "\nG13 is meant for 100 MB that wait on a node; here a session has recorded for two seconds, so this is what its end takes without them.\n";
    text
}
