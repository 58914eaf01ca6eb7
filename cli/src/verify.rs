// SPDX-License-Identifier: Apache-2.0

//! `tracelake verify` and `tracelake show`: is a dataset what its manifests say, and what is in it.

use std::process::ExitCode;

use anyhow::Result;
use dataset::check::{self, Progress};
use dataset::reader::Contents;
use dataset::{reader, render};

use crate::line::Line;
use crate::location::{Location, Place};
use crate::output::{self, bytes};
use crate::runtime;

/// Arguments of `tracelake verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
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
        Ok(if check(&location, &contents).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// Reads every object, prints what is found, and returns whether all is what the manifests say.
///
/// # Errors
/// When the store fails.
pub(crate) async fn check(location: &Location, contents: &Contents) -> Result<bool> {
    let line = Line::new(false);
    let mut tell = |progress: Progress| line.draw(&how_far(progress));
    let findings = check::verify_and_tell(location.store.as_ref(), contents, &mut tell).await?;
    drop(line);
    let mut text = String::new();
    for finding in &findings {
        text += &format!("{}: {finding}\n", if finding.is_error() { "error" } else { "note" });
    }
    let whole = !findings.iter().any(reader::Finding::is_error);
    let verdict = if whole { "is what its manifests say" } else { "is not what its manifests say" };
    output::print(&format!("{text}{}{} {verdict}\n", render::summary(contents), location.name))?;
    Ok(whole)
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
        assert!(check(&at(&store), &contents).await.unwrap());

        // Text is no Parquet.
        let (store, _) = session("uid", &["one"]).await;
        let contents = at(&store).contents().await.unwrap();
        assert!(!check(&at(&store), &contents).await.unwrap());
        let shown = tables(&contents);
        assert!(shown.contains("processes") && shown.contains("objects"), "{shown}");
    }
}
