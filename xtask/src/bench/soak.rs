// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask bench --soak MINUTES`: whether the recorder's memory grows while it records for long (G11).
//!
//! Every collector is on, each second, beside a process that faults at a constant rate, connects, listens and starts programs. Memory is read
//! at regular times; what it grows by is the slope of a line of least squares through all of them after a time to settle. Writes
//! `docs/soak.md` and, with every sample, `target/bench/soak.json`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::contender::{self, Bench, Load};
use super::report::{self, Goal, short};
use super::{COLLECTORS, mib, process};
use crate::{cache, exec, image};

/// Faults in user mode, each second.
const RATE: u64 = 20_000;
const EVERY: Duration = Duration::from_secs(1);
/// The first part of a soak, in which pools and caches become as large as they get.
const SETTLES: f64 = 1.0 / 6.0;
/// Rows of the page's table.
const ROWS: usize = 12;

/// What the recorder had at one time.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    seconds: f64,
    rss_bytes: u64,
    cpu_ns: u64,
}

/// A line of least squares.
#[derive(Clone, Copy, Debug, Serialize)]
struct Slope {
    per_hour: f64,
    /// Of the slope, if the distances from the line are independent of each other.
    standard_error: f64,
}

/// Everything that was measured.
#[derive(Serialize)]
struct Soak {
    samples: Vec<Sample>,
    slope_bytes: Slope,
    /// Sums of the dataset's manifest.
    totals: serde_json::Value,
    files: usize,
    programs_left: usize,
}

pub(super) fn main(minutes: u64) -> Result<()> {
    ensure!(minutes > 0, "a soak takes some minutes");
    let bench = Bench::prepare(std::env::temp_dir().join("tracelake-soak"))?;
    // Of what is measured, which may change on the disk meanwhile.
    let machine = super::machine()?;
    let soak = run(&bench, Duration::from_secs(minutes * 60))?;
    let folder = cache::repository().join("target/bench");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("soak.json"), serde_json::to_string_pretty(&soak)?)?;
    let page = page(&soak, minutes, &machine)?;
    println!("{page}");
    let path = cache::repository().join("docs/soak.md");
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}

fn run(bench: &Bench, length: Duration) -> Result<Soak> {
    let before = contender::programs()?.len();
    let folder = bench.folder()?;
    let loader = bench.load(Load { rate: RATE, seconds: length.as_secs(), threads: 1 });
    let arguments: Vec<_> = loader.get_args().map(|argument| argument.to_string_lossy()).collect();
    let script = format!(
        "{load} {arguments} < /dev/null > {folder}/load & l=$!; {w} serve 7000 > /dev/null & s=$!; \
         while kill -0 $l 2> /dev/null; do \
         {w} connect 127.0.0.1:7000 20 20 10000 > /dev/null; {w} spawn 20 /bin/true > /dev/null; sleep 1; done; kill $s",
        load = Path::new(loader.get_program()).display(),
        arguments = arguments.join(" "),
        folder = folder.display(),
        w = image::release("workload")?.display()
    );
    let arguments = ["-p", "pageFaults.events=true", "--interval", "1", "--", "sh", "-c", &script];
    let mut command = contender::in_own_network(&bench.record(&folder, COLLECTORS, &arguments));
    let mut child = command.stdout(Stdio::null()).spawn().context("starting tracelake")?;
    let (began, mut samples) = (Instant::now(), Vec::new());
    // What is there at the very first is not tracelake yet.
    std::thread::sleep(EVERY);
    while child.try_wait().context("waiting for tracelake")?.is_none() {
        // It may end between the two.
        if let (Ok(rss_bytes), Ok(cpu_ns)) = (process::rss_bytes(child.id()), process::cpu_ns(child.id())) {
            samples.push(Sample { seconds: began.elapsed().as_secs_f64(), rss_bytes, cpu_ns });
        }
        std::thread::sleep(EVERY);
    }
    let ran = began.elapsed();
    ensure!(ran >= length, "tracelake record ended after {ran:?}, not after {length:?}");
    // Within the load's time: at the end everything is sealed at once.
    samples.retain(|sample| sample.seconds < length.as_secs_f64());
    let settled: Vec<(f64, f64)> = samples
        .iter()
        .filter(|sample| sample.seconds >= length.as_secs_f64() * SETTLES)
        .map(|sample| (sample.seconds / 3_600.0, sample.rss_bytes as f64))
        .collect();
    let soak = Soak {
        slope_bytes: slope(&settled).context("too short for a slope")?,
        samples,
        totals: contender::totals(&folder.join("data"))?,
        files: exec::output(exec::command("find", ["-name", "*.parquet"]).current_dir(&folder))?
            .lines()
            .count(),
        programs_left: contender::programs()?.len().saturating_sub(before),
    };
    cache::remove(&folder)?;
    Ok(soak)
}

/// The line of least squares through points of (hours, value); none for fewer than three.
fn slope(points: &[(f64, f64)]) -> Option<Slope> {
    if points.len() < 3 {
        return None;
    }
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let per_hour = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
    let left: f64 = points.iter().map(|point| (point.1 - y - per_hour * (point.0 - x)).powi(2)).sum();
    Some(Slope { per_hour, standard_error: (left / (count - 2.0) / spread).sqrt() })
}

fn page(soak: &Soak, minutes: u64, machine: &BTreeMap<&'static str, String>) -> Result<String> {
    let mut text = String::from("# Soak\n\nWritten by `cargo xtask bench --soak`.\n\n");
    text += &report::machine(machine);
    let last = soak.samples.last().context("no sample")?;
    let per_hour = soak.slope_bytes.per_hour / f64::from(1 << 20);
    let goal = Goal {
        name: "G11",
        what: "memory of the recorder grows by",
        unit: "MiB an hour",
        target: 1.0,
        // There is none besides.
        floor: 1.0,
        measured: per_hour,
        less: true,
    };
    _ = writeln!(
        text,
        "\n`tracelake record` for {minutes} minutes: every collector, each second, `pageFaults.events`; a load of {} page faults a second \
         and, about each second, 20 connections and 20 programs.\nThe first {} minutes, in which it settles, are not part of the slope.\n",
        short(RATE as f64),
        short(minutes as f64 * SETTLES)
    );
    text += &report::goals(&[goal]);
    let emitted = soak.totals["emitted"].as_u64().context("the manifest has no sum of events")?;
    let terms: Vec<(&String, u64)> = soak.totals["terms"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, events)| Some((name, events.as_u64()?)))
        .collect();
    ensure!(
        emitted == terms.iter().map(|(_, events)| events).sum::<u64>(),
        "the ledger does not balance: {}",
        soak.totals
    );
    let named = terms.iter().filter(|(_, events)| *events > 0);
    let named: Vec<String> =
        named.map(|(name, events)| format!("{} {name}", short(*events as f64))).collect();
    _ = writeln!(
        text,
        "\nThe slope's standard error is {} MiB an hour. Of {} events {} were lost ({}), in {} files; {} % of one CPU, without the programs in the kernel, which \
         run on the load's account. After the end {} programs were attached.\n",
        short(soak.slope_bytes.standard_error / f64::from(1 << 20)),
        short(emitted as f64),
        terms.iter().filter(|(name, _)| name.starts_with("lost_")).map(|(_, events)| events).sum::<u64>(),
        named.join(", "),
        soak.files,
        short(last.cpu_ns as f64 / (last.seconds * 1e9) * 100.0),
        soak.programs_left
    );
    let rows: Vec<Vec<String>> = soak
        .samples
        .chunks(soak.samples.len().div_ceil(ROWS))
        .map(|part| {
            let sizes = part.iter().map(|sample| mib(sample.rss_bytes));
            let [least, middle, most] = [
                sizes.clone().fold(f64::INFINITY, f64::min),
                super::middle(sizes.clone()),
                sizes.fold(0.0, f64::max),
            ]
            .map(short);
            vec![short(part[0].seconds / 60.0), least, middle, most]
        })
        .collect();
    text += &report::table(&["from minute", "least MiB", "median", "most"], &rows);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::slope;

    #[test]
    fn a_slope_is_that_of_the_line_and_its_error_that_of_the_noise() {
        let line: Vec<(f64, f64)> = (0..100).map(|at| (f64::from(at) / 100.0, f64::from(at))).collect();
        let found = slope(&line).unwrap();
        assert!((found.per_hour - 100.0).abs() < 1e-6 && found.standard_error < 1e-6, "{found:?}");
        let noise: Vec<(f64, f64)> = (0..100).map(|at| (f64::from(at) / 100.0, f64::from(at % 2))).collect();
        let found = slope(&noise).unwrap();
        assert!(found.per_hour.abs() < 0.1 && (0.15..0.2).contains(&found.standard_error), "{found:?}");
        assert!(slope(&line[..2]).is_none());
    }
}
