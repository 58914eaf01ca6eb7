// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask work`: real programs under `tracelake record`, a page for each in `docs/work`.
//!
//! In: the four kinds of run that the notebooks before this project made ([`runs`]): a key-value store under load, a stream, a
//! port where nobody listens, a program bound by memory (`e2e/workload/src/lookups.rs`). Out: a page each ([`page`]), with what the program says
//! of itself, the whole report, both compared number by number, and what the notebook's report said of the same kind of run.
//! Each runs in a network and in process ids of its own, so that every number is the run's; with `--cluster` as a pod, which has
//! both ([`cluster`]). A number that has to be equal and is not makes the command fail, after the page was written.

mod cluster;
mod page;
mod runs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::bench::COLLECTORS;
use crate::{cache, exec, tools};

/// What gives the program its own network and process ids.
const APART: [&str; 6] = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--"];

/// Record real programs and write a page of each: what they say, what the report says.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs, by the names of their pages; all when none is named.
    names: Vec<String>,
    /// Run them as pods of a cluster, ours or a new one, under a TraceSession each.
    #[arg(long)]
    cluster: bool,
}

/// A kind of run.
struct Work {
    /// Of its page.
    name: &'static str,
    title: &'static str,
    /// What it is.
    about: &'static str,
    /// Of Debian.
    packages: &'static [&'static str],
    /// What is recorded.
    script: &'static str,
    /// What the program and the tables say of the same thing.
    checks: fn(&Recorded) -> Result<Vec<Check>>,
    /// What the notebook's report said, and why.
    notebook: &'static str,
}

/// Two numbers for one thing.
struct Check {
    what: &'static str,
    /// Who says it beside the tables, and what.
    source: String,
    own: i64,
    /// The question to the tables, and its answer.
    sql: String,
    ours: i64,
    /// How far they may be apart, and why.
    within: i64,
    why: &'static str,
}

impl Check {
    fn holds(&self) -> bool {
        (self.own - self.ours).abs() <= self.within
    }
}

/// A run that is over.
struct Recorded {
    tracelake: PathBuf,
    data: PathBuf,
    /// What the program printed.
    printed: String,
}

impl Recorded {
    /// The one number that a question has for an answer.
    fn number(&self, sql: &str) -> Result<i64> {
        let mut ask = exec::command(&self.tracelake, ["sql"]);
        let text = exec::output(ask.arg(&self.data).args(["--output", "csv", "--execute", sql]))?;
        let answer = text.lines().nth(1).with_context(|| format!("no answer to {sql}: {text:?}"))?;
        answer.trim().parse().with_context(|| format!("{sql} is answered by {answer:?}"))
    }

    /// The number behind a word that the program printed.
    fn said(&self, word: &str) -> Result<i64> {
        let behind = self.printed.lines().find_map(|line| line.trim().strip_prefix(word));
        let digits: String = behind
            .with_context(|| format!("the program did not print {word}: {}", self.printed))?
            .trim_start_matches([':', ' ', '\t'])
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse().with_context(|| format!("no number behind {word}"))
    }

    /// A number of the program's that the tables say in their own way.
    fn equal(&self, what: &'static str, source: &str, own: i64, sql: &str) -> Result<Check> {
        self.near(what, source, own, sql, 0, "")
    }

    fn near(
        &self,
        what: &'static str,
        source: &str,
        own: i64,
        sql: &str,
        within: i64,
        why: &'static str,
    ) -> Result<Check> {
        let ours = self.number(sql)?;
        Ok(Check { what, source: source.to_owned(), own, sql: sql.to_owned(), ours, within, why })
    }
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let names: Vec<&str> = runs::ALL.iter().map(|work| work.name).collect();
    for name in &args.names {
        ensure!(names.contains(&name.as_str()), "no run is named {name}; the runs are {}", names.join(", "));
    }
    let chosen = runs::ALL
        .iter()
        .filter(|work| args.names.is_empty() || args.names.iter().any(|name| name == work.name));
    let tracelake = program("tracelake")?;
    let pages = cache::repository().join("docs/work");
    fs::create_dir_all(&pages).with_context(|| format!("cannot make {}", pages.display()))?;
    if args.cluster {
        let page = args.names.is_empty().then(|| pages.join("cluster.md"));
        return cluster::main(&chosen.collect::<Vec<_>>(), &tracelake, page.as_deref());
    }
    ensure!(rustix::process::geteuid().is_root(), "recording needs root");
    let workload = program("workload")?;
    let mut wrong = Vec::new();
    for work in chosen {
        println!("== {}", work.name);
        tools::debian(work.packages)?;
        let recorded = record(work, &tracelake, &workload)?;
        let checks = (work.checks)(&recorded)?;
        let path = pages.join(work.name).with_extension("md");
        let report = exec::output(Command::new(&tracelake).arg("report").arg(&recorded.data))?;
        // Where the program lies on this machine is of no account; columns stay as wide.
        let place = workload.to_string_lossy();
        let report = report.replace(&*place, &format!("{:<1$}", "workload", place.len()));
        fs::write(&path, page::page(work, &recorded, &report, &checks)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", page::checks(&checks));
        wrong.extend(apart(work, &checks));
    }
    agree(&wrong)
}

/// What has to be equal and is not.
fn apart(work: &Work, checks: &[Check]) -> Vec<(&'static str, &'static str)> {
    checks.iter().filter(|check| !check.holds()).map(|check| (work.name, check.what)).collect()
}

fn agree(wrong: &[(&str, &str)]) -> Result<()> {
    ensure!(
        wrong.is_empty(),
        "the program and the tables do not agree: {wrong:?}; the pages in docs/work say both"
    );
    Ok(())
}

/// A program of ours as a developer compiles it: what is compared are counts, not speed, of which `bench` has the page.
fn program(name: &str) -> Result<PathBuf> {
    tools::packages()?;
    tools::rust()?;
    tools::bpf_linker()?;
    let mut cargo = cache::cargo()?;
    cargo.args(["build", "--locked", "--workspace", "--exclude", "tracelake-node-agent-ebpf"]);
    exec::loud(cargo.args(["--bin", name]))?;
    Ok(cache::target_dir().join("debug").join(name))
}

fn record(work: &Work, tracelake: &Path, workload: &Path) -> Result<Recorded> {
    let data = std::env::temp_dir().join(format!("tracelake-work-{}-{}", std::process::id(), work.name));
    let mut record =
        exec::command(tracelake, ["record", "--quiet", "--interval", "1", "-c", COLLECTORS, "-o"]);
    let script = format!("{}\n{}\n{}", runs::LOOPBACK, runs::BEGIN, work.script);
    record.arg(&data).arg("--").args(APART).args(["sh", "-ec", &script]);
    let folders = std::env::join_paths(
        workload
            .parent()
            .into_iter()
            .map(Path::to_owned)
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )?;
    record.env("PATH", folders).env("LC_ALL", "C");
    let recorded = (|| {
        let printed = exec::output(&mut record)?;
        Ok(Recorded { tracelake: tracelake.to_owned(), data: data.clone(), printed })
    })();
    if recorded.is_err() {
        cache::remove(&data)?;
    }
    recorded
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // What is left of a run is worth less than the room.
        let _ = fs::remove_dir_all(&self.data);
    }
}
