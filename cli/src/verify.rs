// SPDX-License-Identifier: Apache-2.0

//! `tracelake verify` and `tracelake show`: is a dataset what its manifests say, and what is in it.

use std::process::ExitCode;

use anyhow::Result;
use dataset::{reader, render};

use crate::location::Location;

/// Arguments of `tracelake verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder or s3://bucket/prefix that holds `_tracelake/session.json`.
    url: String,
}

/// Arguments of `tracelake show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// A folder or s3://bucket/prefix that holds `_tracelake/session.json`.
    url: String,
    /// Rows of each table to show.
    #[arg(short = 'n', long, default_value_t = 5)]
    rows: usize,
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Prints what is wrong; fails if a manifest promises what is not there.
pub(crate) fn verify(args: &Args) -> Result<ExitCode> {
    let location = Location::open(&args.url)?;
    runtime()?.block_on(async {
        let contents = reader::open(&location.store, &location.prefix).await?;
        let findings = reader::verify(location.store.as_ref(), &contents).await?;
        for finding in &findings {
            println!("{}: {finding}", if finding.is_error() { "error" } else { "note" });
        }
        print!("{}", render::summary(&contents));
        if findings.iter().any(reader::Finding::is_error) {
            println!("{} is not what its manifests say", location.name);
            return Ok(ExitCode::FAILURE);
        }
        println!("{} is what its manifests say", location.name);
        Ok(ExitCode::SUCCESS)
    })
}

/// Prints every table.
pub(crate) fn show(args: &ShowArgs) -> Result<ExitCode> {
    let location = Location::open(&args.url)?;
    runtime()?.block_on(async {
        let contents = reader::open(&location.store, &location.prefix).await?;
        print!("{}", render::dataset(location.store.as_ref(), &contents, args.rows).await?);
        Ok(ExitCode::SUCCESS)
    })
}
