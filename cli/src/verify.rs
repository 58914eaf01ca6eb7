// SPDX-License-Identifier: Apache-2.0

//! `tracelake verify` and `tracelake show`: is a dataset what its manifests say, and what is in it.

use std::process::ExitCode;

use anyhow::Result;
use dataset::check::{self, Progress};
use dataset::manifest::Manifest;
use dataset::reader::{Contents, Finding};
use dataset::render;
use serde_json::{Value, json};

use crate::line::Line;
use crate::location::{Location, Place};
use crate::output::{self, Format, bytes};
use crate::runtime;

/// Arguments of `tracelake verify`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 if every object that a manifest promises is there and right, also where the session is incomplete, as the \
                  verdict that is printed tells; else 1."
)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// How to print what is found.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Arguments of `tracelake show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    place: Place,
    /// Rows of each table to show.
    #[arg(short, long, default_value_t = 5)]
    rows: usize,
}

/// Prints what is wrong; fails if a manifest promises what is not there.
pub(crate) fn verify(args: &Args) -> Result<ExitCode> {
    runtime()?.block_on(async {
        let location = args.place.open().await?;
        let contents = location.contents().await?;
        let checked = check(&location, &contents).await?;
        args.output.print(|| checked.document(), || checked.text())?;
        Ok(if checked.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// A dataset of which every object was read, and what was found.
pub(crate) struct Checked<'a> {
    place: &'a str,
    contents: &'a Contents,
    findings: Vec<Finding>,
}

/// Reads every object.
///
/// # Errors
/// When the store fails.
pub(crate) async fn check<'a>(location: &'a Location, contents: &'a Contents) -> Result<Checked<'a>> {
    let line = Line::new(false);
    let mut tell = |progress: Progress| line.draw(&how_far(progress));
    let findings = check::verify_and_tell(location.store.as_ref(), contents, &mut tell).await?;
    Ok(Checked { place: &location.name, contents, findings })
}

impl Checked<'_> {
    /// Whether all is what the manifests say.
    pub(crate) fn is_whole(&self) -> bool {
        !self.findings.iter().any(Finding::is_error)
    }

    /// What was found, for people.
    pub(crate) fn text(&self) -> String {
        let findings = self.findings.iter().map(|finding| format!("{}: {finding}\n", level(finding)));
        let verdict =
            if self.is_whole() { "is what its manifests say" } else { "is not what its manifests say" };
        format!(
            "{}{}{} {verdict}\n",
            findings.collect::<String>(),
            render::summary(self.contents),
            self.place
        )
    }

    /// The same for programs.
    fn document(&self) -> Value {
        let manifest = self.contents.manifest.as_ref();
        let finding = |finding: &Finding| json!({"level": level(finding), "text": finding.to_string()});
        json!({
            "place": self.place,
            "isWhole": self.is_whole(),
            "verdict": manifest.map(|manifest| manifest.verdict),
            "incomplete": manifest.map(Manifest::incomplete).unwrap_or_default(),
            "totals": manifest.map(|manifest| manifest.totals),
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
        })
    }
}

fn level(finding: &Finding) -> &'static str {
    if finding.is_error() { "error" } else { "note" }
}

fn how_far(progress: Progress) -> String {
    let ((read, objects), (had, of)) = (progress.objects, progress.bytes);
    format!("{read} of {objects} objects, {} of {} checked", bytes(had as i64), bytes(of as i64))
}

/// Each table with its rows, objects and bytes.
pub(crate) fn tables(contents: &Contents) -> String {
    let rows = contents.tables().into_iter().map(|(table, objects)| {
        let rows: u64 = objects.iter().map(|object| object.rows).sum();
        let bytes: u64 = objects.iter().map(|object| object.bytes).sum();
        vec![table, rows.to_string(), objects.len().to_string(), bytes.to_string()]
    });
    format!("\n{}\n", render::table(&["table", "rows", "objects", "bytes"], &rows.collect::<Vec<_>>()))
}

/// Prints every table.
pub(crate) fn show(args: &ShowArgs) -> Result<ExitCode> {
    runtime()?.block_on(async {
        let location = args.place.open().await?;
        let contents = location.contents().await?;
        output::print(&render::dataset(location.store.as_ref(), &contents, args.rows).await?)?;
        Ok(ExitCode::SUCCESS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::tests::{at, session};

    #[tokio::test]
    async fn a_dataset_is_whole_if_nothing_that_is_found_is_an_error() {
        let (store, _) = session("uid", &[]).await;
        let contents = at(&store).contents().await.unwrap();
        assert!(check(&at(&store), &contents).await.unwrap().is_whole());

        // Text is no Parquet.
        let (store, _) = session("uid", &["one"]).await;
        let contents = at(&store).contents().await.unwrap();
        assert!(!check(&at(&store), &contents).await.unwrap().is_whole());
        let shown = tables(&contents);
        assert!(shown.contains("processes") && shown.contains("objects"), "{shown}");
    }
}
