// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask bench --answers`: how fast questions to a large session are answered, and with how much memory, beside others.
//!
//! The session is written by the agent's own pipeline (`node-agent/tests/large`) and kept until that or the schemas change. The same
//! five questions go to `tracelake sql`, DuckDB and Polars ([`QUESTIONS`], `answers.py`) in turns, and their answers have to be
//! the same; `tracelake report` is measured beside DuckDB with the report's own queries (`report/tests/beside.rs`), `tracelake verify`
//! beside sha256sum. The files are in the page cache: what is compared is programs, not disks.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::report::{self, Goal, median, short};
use super::{machine, process};
use crate::{cache, examples, exec, image, test, tools};

/// Rows of the full run's session.
const ROWS: u64 = 100_000_000;
/// How often each answer is asked for.
const TIMES: usize = 3;
/// Questions as their issue has them, in the SQL that both engines take; Polars has the same ones under these names.
const QUESTIONS: [(&str, &str, &str); 5] = [
    (
        "count",
        "rows of each table",
        "SELECT 'tcp_connections' AS name, count(*) AS n FROM tcp_connections \
         UNION ALL SELECT 'tcp_retransmits', count(*) FROM tcp_retransmits \
         UNION ALL SELECT 'tcp_throughput', count(*) FROM tcp_throughput \
         UNION ALL SELECT 'memory_rss', count(*) FROM memory_rss \
         UNION ALL SELECT 'page_faults', count(*) FROM page_faults ORDER BY name",
    ),
    (
        "talkers",
        "top talkers by bytes",
        "SELECT pod, raddr, sum(tx_bytes + rx_bytes) AS bytes FROM tcp_throughput \
         GROUP BY pod, raddr ORDER BY bytes DESC, pod, raddr LIMIT 20",
    ),
    (
        "handshake",
        // Between two values engines differ in the last digits of a double.
        "p99 of handshakes by pod, exactly",
        "SELECT pod, CAST(round(quantile_cont(handshake_ns, 0.99) / 1000) AS BIGINT) AS p99_us FROM tcp_connections \
         GROUP BY pod ORDER BY pod",
    ),
    (
        "rss",
        "memory of one process over time",
        "SELECT ts_ns - ts_ns % 10000000000 AS at_ns, member, max(bytes) AS bytes FROM memory_rss \
         WHERE node = 'node-1' AND pid = 1100 GROUP BY 1, 2 ORDER BY 1, 2",
    ),
    (
        "retransmits",
        "retransmits joined to connections",
        "SELECT c.pod AS pod, c.raddr AS raddr, sum(r.segments) AS segments FROM tcp_retransmits r \
         JOIN tcp_connections c ON r.node = c.node AND r.sock_id = c.sock_id \
         GROUP BY c.pod, c.raddr ORDER BY segments DESC, c.pod, c.raddr LIMIT 20",
    ),
];

/// Its tables, each a folder of files.
const TABLES: [&str; 5] =
    ["tcp_connections", "tcp_retransmits", "tcp_throughput", "memory_rss", "page_faults"];

/// What one program took for one thing.
#[derive(Clone, Copy)]
struct Taken {
    seconds: f64,
    rss_bytes: u64,
}

/// A program and each of its runs.
struct Runs {
    name: &'static str,
    taken: Vec<Taken>,
}

impl Runs {
    fn of(name: &'static str) -> Self {
        Self { name, taken: Vec::new() }
    }

    fn seconds(&self) -> f64 {
        median(&mut self.taken.iter().map(|taken| taken.seconds).collect::<Vec<_>>())
    }

    fn rss_bytes(&self) -> u64 {
        self.taken.iter().map(|taken| taken.rss_bytes).max().unwrap_or_default()
    }
}

/// One thing that is done, by our program first.
struct Measured {
    what: &'static str,
    runs: Vec<Runs>,
}

impl Measured {
    /// How much longer ours takes than the fastest of the others.
    fn ratio(&self) -> f64 {
        let others = self.runs[1..].iter().map(Runs::seconds).fold(f64::INFINITY, f64::min);
        self.runs[0].seconds() / others
    }
}

pub(super) fn main(quick: bool) -> Result<()> {
    let machine = machine()?;
    let rows = if quick { ROWS / 50 } else { ROWS };
    let tracelake = image::release("tracelake")?;
    let python = examples::python()?;
    let beside = release_test("beside")?;
    let folder = session(rows)?;
    let files = files(&folder)?;
    let bytes: u64 = files.iter().map(|file| fs::metadata(file).map_or(0, |data| data.len())).sum();
    println!("{rows} rows in {} files of {bytes} bytes", files.len());
    // Into the page cache.
    let sha256sum = || -> Result<Taken> {
        let mut sum = exec::command("sha256sum", [] as [&str; 0]);
        run(sum.args(&files)).map(|(taken, _)| taken)
    };
    sha256sum()?;
    let place = folder.to_string_lossy().into_owned();
    let mut measured = Vec::new();
    for (name, what, sql) in QUESTIONS {
        let ours = sql.replace(
            "quantile_cont(handshake_ns, 0.99)",
            "percentile_cont(0.99) WITHIN GROUP (ORDER BY handshake_ns)",
        );
        let theirs = format!("{}COPY ({sql}) TO '/dev/stdout' (FORMAT csv);", views(&folder));
        let commands = || -> Result<[(&'static str, Command); 3]> {
            Ok([
                ("tracelake", exec::command(&tracelake, ["sql", &place, "-o", "csv", "-e", &ours])),
                (
                    "DuckDB",
                    exec::command(tools::duckdb()?, ["-init", "/dev/null", "-batch", "-bail", "-c", &theirs]),
                ),
                ("Polars", exec::command(&python, [script().as_os_str(), folder.as_os_str(), name.as_ref()])),
            ])
        };
        let mut runs = [Runs::of("tracelake"), Runs::of("DuckDB"), Runs::of("Polars")];
        for _ in 0..TIMES {
            let mut answers = BTreeMap::new();
            for (runs, (name, mut command)) in runs.iter_mut().zip(commands()?) {
                let (taken, answer) = run(&mut command).with_context(|| format!("{name}: {what}"))?;
                runs.taken.push(taken);
                answers.entry(answer).or_insert_with(Vec::new).push(name);
            }
            ensure!(answers.len() == 1, "{what}: the answers differ: {answers:#?}");
        }
        measured.push(Measured { what, runs: runs.into() });
        print(measured.last());
    }
    let mut of_report = [Runs::of("tracelake"), Runs::of("DuckDB")];
    let mut of_verify = [Runs::of("tracelake"), Runs::of("sha256sum")];
    for _ in 0..TIMES {
        let (taken, _) = run(&mut exec::command(&tracelake, ["report", &place, "--json"]))?;
        of_report[0].taken.push(taken);
        let mut theirs = exec::command(&beside, [&place]);
        let (taken, _) = run(theirs.env("TRACELAKE_DUCKDB", tools::duckdb()?))?;
        of_report[1].taken.push(taken);
        let (taken, _) = run(&mut exec::command(&tracelake, ["verify", &place]))?;
        of_verify[0].taken.push(taken);
        of_verify[1].taken.push(sha256sum()?);
    }
    measured.push(Measured { what: "the report's queries", runs: of_report.into() });
    print(measured.last());
    let verify = Measured { what: "checksums of all files", runs: of_verify.into() };
    print(Some(&verify));
    let page = page(rows, files.len(), bytes, &measured, &verify, &machine);
    println!("{page}");
    if !quick {
        let path = cache::repository().join("docs/answers.md");
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn print(measured: Option<&Measured>) {
    if let Some(one) = measured {
        let runs = one.runs.iter().map(|runs| format!("{} {} s", runs.name, short(runs.seconds())));
        println!("{}: {}", one.what, runs.collect::<Vec<_>>().join(", "));
    }
}

fn script() -> PathBuf {
    cache::repository().join("xtask/src/bench/answers.py")
}

/// Builds a test target that is a program, as users would get it, and for the same target: DataFusion is compiled once.
fn release_test(name: &str) -> Result<PathBuf> {
    let mut cargo = test::cargo(["test", "--release", "--target", tools::MUSL_TARGET])?;
    let binaries = test::test_binaries(&mut cargo, &[name])?;
    binaries.into_iter().next().context("cargo built one test")
}

/// The folder of a session of so many rows; made if need be.
fn session(rows: u64) -> Result<PathBuf> {
    let repository = cache::repository();
    let key = cache::Key::default()
        .folder(&repository.join("node-agent/tests/large"))?
        .folder(&repository.join("dataset/schemas"))?
        .text(&rows.to_string());
    cache::entry("bench", "large", key, |folder| {
        let large = release_test("large")?;
        println!("writing {rows} rows");
        exec::loud(exec::command(large, [rows.to_string()]).arg(folder))
    })
}

/// All files of a folder, in order.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

/// DuckDB's views of the tables.
fn views(folder: &Path) -> String {
    let view = |table| format!("CREATE VIEW {table} AS FROM '{}/{table}/*.parquet';", folder.display());
    TABLES.iter().map(view).collect()
}

/// Runs a command to its end; what it took, and what it printed.
fn run(command: &mut Command) -> Result<(Taken, String)> {
    use std::io::Read;
    let began = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut errors = child.stderr.take().context("is piped")?;
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        _ = errors.read_to_string(&mut text);
        text
    });
    let mut text = String::new();
    child.stdout.take().context("is piped")?.read_to_string(&mut text)?;
    let (status, usage) = process::wait(child)?;
    let seconds = began.elapsed().as_secs_f64();
    let errors = errors.join().unwrap_or_default();
    ensure!(status.success(), "{command:?} ended with {status}: {}", exec::tail(&errors, 10));
    Ok((Taken { seconds, rss_bytes: usage.rss_bytes }, text.replace('\r', "")))
}

fn page(
    rows: u64,
    files: usize,
    bytes: u64,
    measured: &[Measured],
    verify: &Measured,
    machine: &BTreeMap<&'static str, String>,
) -> String {
    let mut text =
        String::from("# How fast a large session answers\n\nWritten by `cargo xtask bench --answers`.\n\n");
    text += &report::machine(machine);
    _ = writeln!(
        text,
        "\nA session of {} rows, written by the agent's pipeline: {files} files, {} bytes, in the page cache. Every program is started anew for \
         each question, {TIMES} times in turns, and all answers are the same; seconds are medians, memory is the most of all runs. \
         tracelake is the released binary (static, musl).\n",
        short(rows as f64),
        short(bytes as f64),
    );
    let mut table = Vec::new();
    for one in measured.iter().chain([verify]) {
        for runs in &one.runs {
            let mib = (runs.rss_bytes() >> 20) as f64;
            table.push(vec![one.what.to_owned(), runs.name.to_owned(), short(runs.seconds()), short(mib)]);
        }
    }
    text += &report::table(&["what", "by", "s", "MiB"], &table);
    text += "\n";
    let most = measured.iter().map(|one| one.runs[0].rss_bytes()).max().unwrap_or_default();
    let mut goals: Vec<Goal> = measured
        .iter()
        .map(|one| goal(one.what, "x the best of the others", 1.5, one.ratio(), true))
        .collect();
    goals.push(goal("memory of the largest of them", "MiB", 1_024.0, (most >> 20) as f64, true));
    goals.push(goal("verify: share of sha256sum's speed", "x", 0.7, 1.0 / verify.ratio(), false));
    text += &report::goals(&goals);
    text
}

fn goal(what: &'static str, unit: &'static str, bound: f64, measured: f64, less: bool) -> Goal {
    Goal { name: "", what, unit, target: bound, floor: bound, measured, less }
}
