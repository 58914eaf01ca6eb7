// SPDX-License-Identifier: Apache-2.0

//! `tracelake ls`: the sessions that lie in a store or a folder, from their own files.

use std::process::ExitCode;

use anyhow::Result;
use dataset::listing::{self, Files, Listed};
use dataset::manifest::Verdict;
use dataset::reader::plain;
use serde_json::{Value, json};

use crate::location::{Location, Place};
use crate::output::Format;
use crate::{runtime, say};

/// Arguments of `tracelake ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints a line for each session: where it is, since when, how it ended, what it holds.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    runtime()?.block_on(async {
        let location = args.place.open().await?;
        let found = if location.is_session {
            let files = listing::files(location.store.as_ref(), &location.prefix).await;
            vec![Listed { prefix: location.prefix.clone(), files }]
        } else {
            listing::sessions(location.store.as_ref(), &location.prefix).await?
        };
        let documents =
            || found.iter().map(|listed| document(&location, listed)).collect::<Vec<_>>();
        let lines = || {
            if found.is_empty() {
                say(&format!(
                    "no session lies at or below {}; a store's status and `status.dataset.uri` of sessions name places\n",
                    location.name
                ));
            }
            found.iter().map(|listed| line(&location, listed) + "\n").collect()
        };
        args.output.print(documents, lines)?;
        let readable = found.iter().all(|listed| listed.files.is_ok());
        Ok(if readable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// As these commands take it.
fn place(location: &Location, listed: &Listed) -> String {
    let prefix = listed.prefix.to_string();
    if prefix.is_empty() { location.root.clone() } else { format!("{}/{prefix}", location.root) }
}

/// For programs: the session's own file and manifest without their lists.
fn document(location: &Location, listed: &Listed) -> Value {
    let place = place(location, listed);
    let files = match &listed.files {
        Ok(files) => files,
        Err(error) => return json!({"place": place, "error": error.to_string()}),
    };
    let (session, manifest) = (&files.session, files.manifest.as_ref());
    json!({
        "place": place,
        "namespace": session.namespace,
        "session": session.session,
        "uid": session.uid,
        "startTime": session.start_time,
        "verdict": manifest.map(|manifest| manifest.verdict),
        "nodes": manifest.map(|manifest| manifest.nodes.len()),
        "totals": manifest.map(|manifest| manifest.totals),
    })
}

fn line(location: &Location, listed: &Listed) -> String {
    let place = place(location, listed);
    let text = match &listed.files {
        Ok(files) => format!("{place}  {}", summary(files)),
        Err(error) => format!("{place}  unreadable: {error}"),
    };
    // What a store holds is no reason to trust its names on a terminal.
    plain(&text, usize::MAX)
}

fn summary(files: &Files) -> String {
    let start = &files.session.start_time;
    let Some(manifest) = &files.manifest else { return format!("{start}  no manifest yet") };
    let verdict = match manifest.verdict {
        Verdict::Complete => "complete",
        Verdict::Incomplete => "incomplete",
    };
    let totals = &manifest.totals;
    format!(
        "{start}  {verdict}  {} nodes  {} rows  {} objects  {} bytes",
        manifest.nodes.len(),
        totals.rows,
        totals.objects,
        totals.bytes
    )
}
