// SPDX-License-Identifier: Apache-2.0

//! The measurements: what runs beside what, how often, and in which order.
//!
//! Whatever is compared runs in turns, so that a machine that slows down slows all of them. Times are short with `--quick`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::contender::{self, Bench, Contender, Load, Trial};
use super::load::Outcome;
use super::process;
use crate::{exec, image};

/// How long and how often.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Effort {
    pub(super) rounds: usize,
    pub(super) seconds: u64,
    /// Of the run that is to go on without loss.
    pub(super) sustained: u64,
}

impl Effort {
    pub(super) const FULL: Self = Self { rounds: 5, seconds: 8, sustained: 60 };
    pub(super) const QUICK: Self = Self { rounds: 1, seconds: 2, sustained: 6 };
}

const LADDERS: [(Contender, &[u64]); 4] = [
    (Contender::Tracelake, &[250_000, 500_000, 750_000, 1_000_000, 1_250_000, 1_500_000, 2_000_000]),
    (Contender::KernMlops, &[2_000, 4_000, 6_000, 8_000, 12_000, 16_000, 24_000, 32_000, 48_000]),
    (Contender::Bcc, &[50_000, 100_000, 200_000, 300_000, 400_000, 500_000, 600_000, 800_000]),
    (Contender::Bpftrace, &[50_000, 100_000, 200_000, 300_000, 400_000, 600_000]),
];
/// A rate that each of those that are compared by their cost keeps up with.
pub(super) const COMMON_RATE: u64 = 50_000;

/// How often each contender kept everything, and up to which rate: one list of runs a round.
pub(super) fn ladders(bench: &Bench, effort: Effort) -> Result<Vec<Trial>> {
    let mut trials = Vec::new();
    // A ladder is many runs; the rate is a step of it, so three rounds tell as much as five.
    for round in 0..effort.rounds.min(3) {
        for (contender, rates) in LADDERS {
            for rate in rates {
                let threads = if *rate >= 1_000_000 { 2 } else { 1 };
                let trial = bench.trial(contender, Load { rate: *rate, seconds: effort.seconds, threads })?;
                let (lossless, reached) = (trial.lossless(), trial.rate());
                println!(
                    "ladder {round}: {contender:?} at {reached:.0}/s: {} kept, {} lost",
                    trial.kept,
                    trial.did.faults.saturating_sub(trial.kept)
                );
                trials.push(trial);
                if !lossless || reached < 0.9 * *rate as f64 {
                    break;
                }
            }
        }
    }
    Ok(trials)
}

/// Of each ladder of a contender the run without loss at the highest rate; none where the first step lost already.
pub(super) fn best(trials: &[Trial], contender: Contender) -> Vec<Option<&Trial>> {
    let mut best: Vec<Option<&Trial>> = Vec::new();
    let mut last = u64::MAX;
    for trial in trials.iter().filter(|trial| trial.contender == contender) {
        if trial.load.rate <= last {
            best.push(None);
        }
        last = trial.load.rate;
        if let (true, Some(best)) = (trial.lossless(), best.last_mut())
            && best.is_none_or(|best: &Trial| best.rate() < trial.rate())
        {
            *best = Some(trial);
        }
    }
    best
}

/// The highest rate without loss of each ladder of a contender.
pub(super) fn zero_loss_rates(trials: &[Trial], contender: Contender) -> Vec<f64> {
    best(trials, contender).into_iter().map(|trial| trial.map_or(0.0, Trial::rate)).collect()
}

/// The cost of an event at one rate.
pub(super) fn costs(bench: &Bench, effort: Effort) -> Result<Vec<Trial>> {
    let load = Load { rate: COMMON_RATE, seconds: effort.seconds, threads: 1 };
    let mut trials = Vec::new();
    for _ in 0..effort.rounds {
        for contender in [Contender::Tracelake, Contender::Bcc, Contender::Bpftrace] {
            trials.push(bench.trial(contender, load)?);
        }
    }
    Ok(trials)
}

/// The highest rate, for longer, and what its files would be as text.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sustained {
    pub(super) trial: Trial,
    /// The same rows as lines of JSON, bytes a row.
    pub(super) json: f64,
    /// And those compressed by zstd 3.
    pub(super) json_zstd: f64,
}

/// A run at this rate; at three quarters of it, and so on, where something was lost.
pub(super) fn sustained(bench: &Bench, effort: Effort, rate: f64) -> Result<Sustained> {
    let mut rate = rate as u64;
    loop {
        let trial =
            bench.trial(Contender::Tracelake, Load { rate, seconds: effort.sustained, threads: 2 })?;
        println!(
            "sustained: {:.0}/s, {} lost, {:.0} ns an event",
            trial.rate(),
            trial.lost,
            trial.ns_per_event()
        );
        if trial.lossless() {
            let (json, json_zstd) = bench.as_text()?;
            return Ok(Sustained { trial, json, json_zstd });
        }
        rate = rate * 3 / 4;
        ensure!(rate > 50_000, "nothing is kept whole: {trial:?}");
    }
}

/// Nanoseconds that a fault takes, one value a round.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Latency {
    pub(super) alone: Vec<f64>,
    pub(super) not_matched: Vec<f64>,
    pub(super) matched: Vec<f64>,
}

pub(super) fn latency(bench: &Bench, effort: Effort, threads: u64) -> Result<Latency> {
    let load = Load { rate: 0, seconds: effort.seconds, threads };
    let mut latency = Latency::default();
    for _ in 0..effort.rounds {
        latency.alone.push(alone(bench, load)?.ns_per_fault);
        let other = Recording::start(bench, "pageFaults", &["-p", "pageFaults.events=true"])?;
        latency.not_matched.push(alone(bench, load)?.ns_per_fault);
        other.end()?;
        latency.matched.push(bench.trial(Contender::Tracelake, load)?.did.ns_per_fault);
    }
    Ok(latency)
}

fn alone(bench: &Bench, load: Load) -> Result<Outcome> {
    let text = exec::output(&mut bench.load(load))?;
    serde_json::from_str(&text).with_context(|| format!("the load printed {text:?}"))
}

/// A recording of a process that does nothing.
struct Recording(Child);

impl Recording {
    fn start(bench: &Bench, collectors: &str, arguments: &[&str]) -> Result<Self> {
        let folder = bench.folder()?;
        let mut command = bench.record(&folder, collectors, arguments);
        command.args(["--", "sh", "-c", "echo ready; exec sleep 3600"]);
        let mut child = command.stdout(Stdio::piped()).spawn().context("starting tracelake")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "tracelake record does not begin: {line:?}");
        Ok(Self(child))
    }

    fn end(self) -> Result<process::Usage> {
        use rustix::process::{Pid, Signal, kill_process};
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        Ok(process::wait(self.0)?.1)
    }
}

/// What the recorder weighs with every collector on and nothing to do, after its start.
pub(super) fn idle(bench: &Bench, collectors: &str) -> Result<u64> {
    const SETTLED: Duration = Duration::from_secs(6);
    let recording = Recording::start(bench, collectors, &["--interval", "1"])?;
    std::thread::sleep(SETTLED);
    let rss = process::rss_bytes(recording.0.id());
    recording.end()?;
    rss
}

/// The node agent's own process without a session.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Without {
    /// Of one CPU, while it also looks for its operator, which is not there.
    pub(super) cpu_percent: f64,
    pub(super) rss_bytes: u64,
    /// That it has attached.
    pub(super) programs: usize,
}

pub(super) fn without_session(bench: &Bench, effort: Effort) -> Result<Without> {
    const SETTLED: Duration = Duration::from_secs(3);
    let before = contender::programs()?.len();
    let folder = bench.folder()?;
    let mut agent = exec::command(&bench.agent, ["--node-name", "bench", "--http-address", "127.0.0.1:0"]);
    agent.args(["--operator-address", "https://127.0.0.1:1", "--log-format", "text", "--spool-dir"]);
    agent.arg(folder.join("spool")).arg("--operator-ca-dir").arg(&folder).stdout(Stdio::null());
    let child = agent.stderr(Stdio::null()).spawn().context("starting the agent")?;
    let measured = (|| {
        std::thread::sleep(SETTLED);
        let (began, cpu) = (Instant::now(), process::cpu_ns(child.id())?);
        std::thread::sleep(Duration::from_secs(effort.sustained));
        let used = process::cpu_ns(child.id())? - cpu;
        Ok(Without {
            cpu_percent: used as f64 / began.elapsed().as_nanos() as f64 * 100.0,
            rss_bytes: process::rss_bytes(child.id())?,
            programs: contender::programs()?.len().saturating_sub(before),
        })
    })();
    contender::terminate(&child)?;
    process::wait(child)?;
    measured
}

/// A build with and without a recording, seconds.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Build {
    pub(super) alone: Vec<f64>,
    pub(super) recorded: Vec<f64>,
    pub(super) events_per_second: Vec<f64>,
}

pub(super) fn build(bench: &Bench, effort: Effort) -> Result<Build> {
    let sources = std::env::temp_dir().join(format!("tracelake-bench-{}", std::process::id()));
    fs::create_dir_all(&sources)?;
    let mut text =
        String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <math.h>\n");
    for number in 0..60 {
        text += &format!(
            "double f{number}(const char *text, int n) {{ double sum = 0; for (int i = 0; i < n; i++) \
             sum += sqrt(strlen(text) + i) * {number}; printf(\"%f\", sum); return sum; }}\n"
        );
    }
    let source = sources.join("build.c");
    fs::write(&source, text)?;
    // Two compilers at a time, as many as there are CPUs where this was written.
    let script = format!(
        "for i in $(seq {}); do cc -O1 -c {source} -o {folder}/1.o & cc -O1 -c {source} -o {folder}/2.o; wait; done",
        effort.seconds * 4,
        source = source.display(),
        folder = sources.display()
    );
    let mut build = Build::default();
    for _ in 0..effort.rounds {
        build.alone.push(seconds(&mut exec::command("sh", ["-c", &script]))?);
        let folder = bench.folder()?;
        let timing = sources.join("seconds");
        // The time of the build, not of the recorder's start and end.
        let timed =
            format!("b=$(date +%s%N); {script}; e=$(date +%s%N); echo $((e - b)) > {}", timing.display());
        let arguments = ["-p", "pageFaults.events=true", "--", "sh", "-c", &timed];
        exec::quiet(&mut bench.record(&folder, "processes,pageFaults", &arguments))?;
        let ns: f64 = fs::read_to_string(&timing)?.trim().parse()?;
        build.recorded.push(ns / 1e9);
        let sums = contender::totals(&folder.join("data"))?;
        let events = sums["emitted"].as_f64().context("emitted")?;
        build.events_per_second.push(events * 1e9 / ns);
    }
    fs::remove_dir_all(sources)?;
    Ok(build)
}

fn seconds(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    exec::quiet(command)?;
    Ok(began.elapsed().as_secs_f64())
}

/// More than the recorder can take: it yields to the load, which has both CPUs.
pub(super) fn overload(bench: &mut Bench, effort: Effort) -> Result<Trial> {
    bench.nice = 19;
    let trial = bench.trial(Contender::Tracelake, Load { rate: 0, seconds: effort.seconds * 2, threads: 2 });
    bench.nice = 0;
    let trial = trial?;
    ensure!(
        trial.kept + trial.lost >= trial.did.faults,
        "of {} events {} are kept and {} counted as lost",
        trial.did.faults,
        trial.kept,
        trial.lost
    );
    Ok(trial)
}

/// The kernel's own account of one program: nanoseconds a run. It takes some 20 ns of each for itself.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Hook {
    pub(super) runs: u64,
    pub(super) hit_ns: Option<f64>,
    pub(super) miss_ns: Option<f64>,
}

/// What each program costs, where the target does something and where somebody else does the same.
pub(super) fn hooks(bench: &Bench, collectors: &str) -> Result<BTreeMap<String, Hook>> {
    const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";
    let workload = image::release("workload")?;
    let script = format!(
        "{w} serve 7000 > /dev/null & s=$!; until {w} connect 127.0.0.1:7000 1 16 1 > /dev/null 2>&1; do sleep 0.1; done; \
         {w} connect 127.0.0.1:7000 1000 1000 100000; {w} refused 127.0.0.1:7001 500; {w} spawn 300 /bin/true; \
         {w} busy 50000 20; kill $s; bpftool prog show -j",
        w = workload.display()
    );
    let before: BTreeSet<u64> =
        contender::programs()?.iter().filter_map(|program| program["id"].as_u64()).collect();
    let mut hooks: BTreeMap<String, Hook> = BTreeMap::new();
    fs::write(STATS, "1").with_context(|| format!("cannot write {STATS}"))?;
    let mut run = |text: &str, hit: bool| -> Result<()> {
        let line = text.lines().find(|line| line.starts_with('[')).context("bpftool printed nothing")?;
        let programs: Vec<serde_json::Value> = serde_json::from_str(line)?;
        for program in
            programs.iter().filter(|program| program["id"].as_u64().is_some_and(|id| !before.contains(&id)))
        {
            let number = |name: &str| program[name].as_u64().unwrap_or_default();
            let (runs, ns) = (number("run_cnt"), number("run_time_ns"));
            let name = program["name"].as_str().unwrap_or("?").to_owned();
            let hook = hooks.entry(name).or_default();
            let each = (runs > 0).then(|| ns as f64 / runs as f64);
            if hit {
                hook.runs = runs;
                hook.hit_ns = each;
            } else {
                hook.miss_ns = each;
            }
        }
        Ok(())
    };
    let measured = (|| {
        let folder = bench.folder()?;
        let arguments = ["-p", "pageFaults.events=true", "--interval", "1", "--", "sh", "-c", &script];
        run(
            &exec::output(&mut contender::in_own_network(&bench.record(&folder, collectors, &arguments)))?,
            true,
        )?;
        let other =
            Recording::start(bench, collectors, &["-p", "pageFaults.events=true", "--interval", "1"])?;
        let text = exec::output(&mut contender::in_own_network(&exec::command("sh", ["-c", &script])));
        other.end()?;
        run(&text?, false)
    })();
    fs::write(STATS, "0")?;
    measured.map(|()| hooks)
}

/// Bytes of all rows of a dataset's `page_faults` by another writer.
impl Bench {
    fn as_text(&self) -> Result<(f64, f64)> {
        const SCRIPT: &str = "
import pathlib, subprocess, sys, polars
folder = pathlib.Path(sys.argv[1])
files = sorted(folder.glob('data/**/*.parquet'))
files = [file for file in files if 'page_faults' in str(file)]
frame = polars.scan_parquet(files).head(500_000).collect()
text = folder / 'rows.json'
frame.write_ndjson(text)
packed = subprocess.run(['zstd', '-3', '-q', '-c', text], capture_output=True, check=True).stdout
print(text.stat().st_size / len(frame), len(packed) / len(frame))
";
        let mut python = exec::command("/usr/bin/python3", ["-c", SCRIPT]);
        python.arg(self.place()).env("PYTHONPATH", self.polars());
        let text = exec::output(&mut python)?;
        let mut numbers = text.split_whitespace().map(str::parse::<f64>);
        let (json, packed) = numbers.next().zip(numbers.next()).context("two numbers")?;
        Ok((json?, packed?))
    }
}

/// Whether a path is on this machine, for the page's list of what ran.
pub(super) fn version(program: &str, argument: &str) -> String {
    let text = exec::output(&mut exec::command(Path::new(program), [argument])).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}
