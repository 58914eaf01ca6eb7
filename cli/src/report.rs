// SPDX-License-Identifier: Apache-2.0

//! `tracelake report`: what a session says, printed, as JSON or as a page; with `--compare` two sessions side by side.
//!
//! What it is made of is in the crate `report`; here sessions are opened and the result is written.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use query::Limits;
use report::compare::{self, Comparison};
use report::text::{self, Style};
use report::{Report, page};

use crate::interrupts::Interrupts;
use crate::line::Line;
use crate::location::Place;
use crate::sql::Engine;
use crate::{program, say, sql};

/// Arguments of `tracelake report`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// With --compare: the other session, reached in the same way.
    other: Option<String>,
    /// Two sessions side by side.
    #[arg(long, requires = "other")]
    compare: bool,
    /// Write one page that needs nothing else, instead of printing.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print JSON (tracelake-report/2, or tracelake-comparison/2) instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: Engine,
}

/// What is shown, of one session or of two.
enum Shown {
    One(Box<Report>),
    Two(Box<Comparison>),
}

impl Shown {
    fn text(&self, style: Style) -> String {
        match self {
            Self::One(report) => text::report(report, style),
            Self::Two(comparison) => compare::text(comparison, style),
        }
    }

    fn json(&self) -> serde_json::Result<String> {
        match self {
            Self::One(report) => serde_json::to_string_pretty(report),
            Self::Two(comparison) => serde_json::to_string_pretty(comparison),
        }
    }

    /// What it lacks for want of objects; none if nothing.
    fn unread(&self) -> Option<String> {
        let titles: BTreeSet<&str> = match self {
            Self::One(report) => report.unread().collect(),
            Self::Two(both) => both.a.unread().chain(both.b.unread()).collect(),
        };
        let titles: Vec<&str> = titles.into_iter().collect();
        (!titles.is_empty()).then(|| {
            let verify = format!("`{} verify` names the objects", program());
            format!("these sections could not be read: {}; {verify}", titles.join(", "))
        })
    }

    fn page(&self) -> serde_json::Result<String> {
        match self {
            Self::One(report) => page::page(&report.title(), &report.subtitle(), report.views()),
            Self::Two(both) => page::page(&both.title(), &both.subtitle(), &both.views()),
        }
    }
}

/// Prints, or writes the page. What lacks a section whose objects are gone or damaged is written as well, and is no success.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let (Some(other), false) = (&args.other, args.compare) {
        bail!(
            "a report is of one session; for two side by side: {} report --compare PLACE {other}",
            program()
        );
    }
    let shown = made(args.place.clone(), args.other.clone(), &args.engine)?;
    if let Some(path) = &args.html {
        write(path, &shown.page()?)?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", shown.json()?)?;
    } else if args.html.is_none() {
        out.write_all(shown.text(style()).as_bytes())?;
    }
    let Some(unread) = shown.unread() else { return Ok(ExitCode::SUCCESS) };
    say(&format!("{}: {unread}\n", program()));
    Ok(ExitCode::FAILURE)
}

/// Prints the report of a session.
pub(crate) fn print(place: Place) -> Result<()> {
    let shown = made(place, None, &Engine::default())?;
    std::io::stdout().lock().write_all(shown.text(style()).as_bytes())?;
    Ok(())
}

fn made(place: Place, other: Option<String>, engine: &Engine) -> Result<Shown> {
    sql::with_engine(engine, true, |runtime, limits| {
        // On a thread of the runtime, for its stack.
        let work = runtime.spawn(async move { shown(place, other, &limits).await });
        runtime.block_on(async {
            let mut interrupts = Interrupts::listen_to_all()?;
            let line = Line::new(false);
            tokio::select! {
                shown = interrupts.end(async { work.await? }) => shown,
                never = waiting(&line) => never,
            }
        })
    })
}

/// How long it takes, on a terminal.
async fn waiting<T>(line: &Line) -> T {
    let began = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    // What is done at once needs no line.
    tick.tick().await;
    loop {
        tick.tick().await;
        line.draw(&format!("reading the dataset, {} s, Ctrl-C ends it", began.elapsed().as_secs()));
    }
}

async fn shown(place: Place, other: Option<String>, limits: &Limits) -> Result<Shown> {
    let one = read(&place, limits).await?;
    let Some(other) = other else { return Ok(Shown::One(Box::new(one))) };
    let other = read(&place.elsewhere(other), limits).await?;
    Ok(Shown::Two(Box::new(Comparison::new(one, other))))
}

async fn read(place: &Place, limits: &Limits) -> Result<Report> {
    let tables = sql::open(place, limits).await?;
    Ok(Report::new(&tables.contents, &tables.context).await?)
}

/// Whole or not at all: half a page is none.
fn write(path: &Path, page: &str) -> Result<()> {
    let unfinished = path.with_added_extension("part");
    std::fs::write(&unfinished, page)
        .with_context(|| format!("{} cannot be written", unfinished.display()))?;
    std::fs::rename(&unfinished, path).with_context(|| format!("{} cannot be made", path.display()))?;
    say(&format!("{}: {} bytes in {}\n", program(), page.len(), path.display()));
    Ok(())
}

/// Colours on a terminal alone, and not where somebody says no (no-color.org).
fn style() -> Style {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Style { colours: std::io::stdout().is_terminal() && !refused }
}
