// SPDX-License-Identifier: Apache-2.0

//! `tracelake compact`: a finished session in fewer files.
//!
//! In: a place, always with the caller's own credentials, which have to write and delete. Out: what was merged, on standard output; how
//! far it is, on a terminal. What happens in which order, and what is left by a run that dies, is in [`dataset::compact`].

use std::process::ExitCode;

use anyhow::{Context, Error, Result, anyhow};
use dataset::compact::{self, CompactError, Done, Options, Plan, Progress};
use dataset::manifest::Manifest;
use dataset::reader::Contents;
use dataset::render;
use k8s_openapi::jiff::Timestamp;

use crate::line::Line;
use crate::location::{Location, Place};
use crate::output::{bytes, print};
use crate::{program, runtime, say};

/// Arguments of `tracelake compact`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// How large a file is to be, in MiB. Those of half of it stay as they are; memory is some four times as much.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    size: u32,
    /// Say what would be merged, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Leave the old files for readers that still use them; the same command without this removes them.
    #[arg(long, conflicts_with = "dry_run")]
    keep_old: bool,
    /// Remove what a run left that did not end and had another --size, or was of another version. No other one may run now.
    #[arg(long, conflicts_with = "dry_run")]
    restart: bool,
}

/// Merges what is small.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    runtime()?.block_on(async {
        let location = args.place.open_to_write().await?;
        let text = compact(&location, args).await?;
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn compact(location: &Location, args: &Args) -> Result<String> {
    let mut contents = location.contents_so_far().await?;
    let failed = |error| explained(error, &location.name);
    if args.restart {
        let left = compact::forget_unfinished(location.store.as_ref(), &contents).await.map_err(failed)?;
        say(&format!("{}: {left} files of a run that did not end were removed\n", program()));
        contents = location.contents_so_far().await?;
    }
    let options = Options { size: u64::from(args.size) << 20, keep_old: args.keep_old };
    let plan = compact::plan(&contents, options.size).map_err(failed)?;
    for note in notes(&contents) {
        say(&format!("{}: note: {note}\n", program()));
    }
    if args.dry_run {
        return Ok(dry(&plan, &location.name));
    }
    let line = Line::new(false);
    let mut show = |progress: Progress| line.draw(&how_far(&plan, progress));
    let time = Timestamp::from_second(Timestamp::now().as_second()).context("this machine's clock")?;
    let done = compact::run(location.store.as_ref(), &contents, options, time.to_string(), &mut show).await;
    drop(line);
    Ok(said(&done.map_err(failed)?, &options, &location.name))
}

/// What one should know before one takes the session for merged whole.
fn notes(contents: &Contents) -> Vec<String> {
    let incomplete = contents.manifest.iter().flat_map(Manifest::incomplete);
    incomplete
        .map(|why| {
            format!("the session is incomplete ({why}): what comes of it later is not merged by this run")
        })
        .collect()
}

fn how_far(plan: &Plan, progress: Progress) -> String {
    if progress.removed > 0 {
        return format!("{} old files removed", progress.removed);
    }
    let (segments, all) = (progress.segments, plan.segments.0);
    let (read, of) = (bytes(progress.bytes as i64), bytes(plan.segments.1 as i64));
    format!("{segments} of {all} files, {read} of {of} read; {} written and read back", progress.files)
}

fn dry(plan: &Plan, name: &str) -> String {
    if plan.segments.0 == 0 {
        return nothing(plan.left_over, name);
    }
    let rows = plan.tables.iter().filter(|(_, table)| table.small.0 > 0).map(|(name, table)| {
        let (small, of) = table.small;
        [
            name.to_string(),
            table.objects.to_string(),
            small.to_string(),
            of.to_string(),
            table.into.to_string(),
        ]
        .to_vec()
    });
    let headings = ["table", "files", "to merge", "bytes", "into at least"];
    let text = render::table(&headings, &rows.collect::<Vec<_>>());
    let left = match plan.left_over {
        0 => String::new(),
        left => format!(", and {left} files removed that nothing names"),
    };
    format!("{text}{} files of {name} would be merged{left}; nothing was changed\n", plan.segments.0)
}

fn nothing(left_over: u64, name: &str) -> String {
    match left_over {
        0 => format!("nothing to do: {name} has no small files beside each other\n"),
        left => format!("nothing to merge in {name}; {left} files that nothing names would be removed\n"),
    }
}

fn said(done: &Done, options: &Options, name: &str) -> String {
    let Some(manifest) = done.manifest else {
        return match done.removed {
            0 => nothing(0, name),
            removed => {
                format!("nothing to merge in {name}; {removed} files that nothing named were removed\n")
            }
        };
    };
    let (from, into) = (bytes(done.merged.1 as i64), bytes(done.into.1 as i64));
    let old = if options.keep_old {
        "the old ones are still there".to_owned()
    } else {
        format!("{} old ones removed", done.removed)
    };
    format!(
        "{} files of {from} became {} of {into}, each read back and compared; {old}\n{name} is what manifest-{manifest}.json lists\n",
        done.merged.0, done.into.0
    )
}

/// An error with what to do next.
fn explained(error: CompactError, name: &str) -> Error {
    let next = match &error {
        CompactError::NotOver => format!(
            "wait for its end or end it with `{0} stop`; `{0} status` says when it is over",
            program()
        ),
        CompactError::Damaged(_) | CompactError::Source { .. } | CompactError::NotThere(_) => {
            format!("`{} verify {name}` says all that is wrong", program())
        }
        CompactError::Unfinished { .. } => {
            "if no other compaction of this session runs now, --restart removes what that one left and begins anew".to_owned()
        }
        CompactError::ReadBack { .. } => "the store changes what it is given; --restart removes it".to_owned(),
        CompactError::Overtaken { .. } => "the same command merges that".to_owned(),
        CompactError::Remains { .. } => "the same command goes on with them".to_owned(),
        CompactError::Merge { .. } => "please report this".to_owned(),
        CompactError::Read(_) => "the same command goes on from here".to_owned(),
    };
    anyhow!("{name}: {error}; {next}")
}
