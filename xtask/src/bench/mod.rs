// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask bench`: what recording costs and how much it keeps, beside its peers, on this machine.
//!
//! The load ([`load`]) makes page faults, the hottest event that there is; the shipped `tracelake record` and three peers
//! ([`contender`]) record the same ones in turns ([`measure`]). The full run writes `docs/benchmarks.md`, which says on
//! which machine, kernel and commit; `--quick` prints only. All single results go to `target/bench/results.json`.

mod answers;
mod contender;
pub(crate) mod load;
mod measure;
mod process;
pub(crate) mod report;
mod scale;
mod sessions;
mod soak;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

use contender::{Bench, Contender, Trial};
use measure::{Build, Effort, Hook, Latency, Sustained, Without};
use report::{Goal, median, short};

use crate::{cache, exec, tools};

/// Every collector, for what is measured of all, or recorded.
pub(crate) const COLLECTORS: &str = "processes,tcpConnections,tcpStates,tcpReceive,tcpRetransmits,tcpThroughput,tcpListenQueue,\
                          packetDrops,pageFaults,memoryRss,cpuSched,nodeInfo";

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Some three minutes instead of some forty, once each; writes no page.
    #[arg(long)]
    quick: bool,
    /// Instead of all else records for so many minutes and writes `docs/soak.md`: does memory grow?
    #[arg(long, value_name = "MINUTES", conflicts_with = "quick")]
    soak: Option<u64>,
    /// Instead of all else the operator with 5,000 nodes that are none; writes `docs/scale.md`. A tenth of it with `--quick`.
    #[arg(long, conflicts_with = "soak")]
    scale: bool,
    /// Instead of all else sixty sessions on the cluster, one after the other; writes `docs/latency.md`. Five of them with `--quick`.
    #[arg(long, conflicts_with_all = ["soak", "scale"])]
    sessions: bool,
    /// Instead of all else five questions and the report over 100 million rows, beside DuckDB and Polars; writes `docs/answers.md`. Two
    /// million with `--quick`.
    #[arg(long, conflicts_with_all = ["soak", "scale", "sessions"])]
    answers: bool,
}

/// Everything that was measured.
#[derive(Serialize)]
struct Results {
    machine: BTreeMap<&'static str, String>,
    effort: Effort,
    latency: Latency,
    /// The same with a thread on each of two CPUs.
    latency_two: Latency,
    ladders: Vec<Trial>,
    sustained: Sustained,
    costs: Vec<Trial>,
    overload: Trial,
    build: Build,
    hooks: BTreeMap<String, Hook>,
    idle_rss_bytes: u64,
    without_session: Without,
    programs_left: usize,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    if let Some(minutes) = args.soak {
        return soak::main(minutes);
    }
    if args.scale {
        return scale::main(args.quick);
    }
    if args.sessions {
        return sessions::main(args.quick);
    }
    if args.answers {
        return answers::main(args.quick);
    }
    let folder = cache::repository().join("target/bench");
    fs::create_dir_all(&folder)?;
    let mut bench = Bench::prepare(std::env::temp_dir().join("tracelake-bench"))?;
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    let before = contender::programs()?.len();
    let latency = measure::latency(&bench, effort, 1)?;
    let latency_two = measure::latency(&bench, effort, 2)?;
    let ladders = measure::ladders(&bench, effort)?;
    let rate = median(&mut measure::zero_loss_rates(&ladders, Contender::Tracelake));
    let sustained = measure::sustained(&bench, effort, rate)?;
    let costs = measure::costs(&bench, effort)?;
    let overload = measure::overload(&mut bench, effort)?;
    let build = measure::build(&bench, effort)?;
    let hooks = measure::hooks(&bench, COLLECTORS)?;
    let idle_rss_bytes = measure::idle(&bench, COLLECTORS)?;
    let without_session = measure::without_session(&bench, effort)?;
    let programs_left = contender::programs()?.len().saturating_sub(before);
    cache::remove(&bench.folder()?)?;
    let mut machine = machine()?;
    machine.insert("bpftrace", measure::version("bpftrace", "--version"));
    machine.insert("bcc", tools::debian_version("python3-bpfcc")?);
    let results = Results {
        machine,
        effort,
        latency,
        latency_two,
        ladders,
        sustained,
        costs,
        overload,
        build,
        hooks,
        idle_rss_bytes,
        without_session,
        programs_left,
    };
    let raw = folder.join("results.json");
    fs::write(&raw, serde_json::to_string_pretty(&results)?)?;
    let page = page(&results);
    println!("{page}\nevery single result: {}", raw.display());
    if !args.quick {
        let path = cache::repository().join("docs/benchmarks.md");
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What this machine is, and what is measured.
fn machine() -> Result<BTreeMap<&'static str, String>> {
    let first = |path: &str, key: &str| -> Result<String> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        Ok(line.split_once(':').map_or(line, |(_, value)| value).trim().to_owned())
    };
    let git = |arguments: &[&str]| {
        exec::output(exec::command("git", arguments).current_dir(cache::repository()))
            .map(|text| text.trim().to_owned())
    };
    let changed = if git(&["status", "--porcelain"])?.is_empty() { "" } else { ", with changes" };
    Ok(BTreeMap::from([
        ("CPU", first("/proc/cpuinfo", "model name")?),
        ("CPUs", std::thread::available_parallelism()?.to_string()),
        ("memory", first("/proc/meminfo", "MemTotal")?),
        ("kernel", first("/proc/sys/kernel/osrelease", "")?),
        ("commit", git(&["rev-parse", "--short=12", "HEAD"])? + changed),
        ("day", exec::output(&mut exec::command("date", ["-u", "+%F"]))?.trim().to_owned()),
    ]))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn middle(values: impl IntoIterator<Item = f64>) -> f64 {
    median(&mut values.into_iter().collect::<Vec<_>>())
}

fn goals(results: &Results) -> Vec<Goal> {
    let rate = |contender| middle(measure::zero_loss_rates(&results.ladders, contender));
    let cost = |contender| middle(costs_at_best(results, contender));
    let (latency, two) = (&results.latency, &results.latency_two);
    let alone = middle(latency.alone.iter().copied());
    let Sustained { trial, json, json_zstd } = &results.sustained;
    let stored = trial.bytes as f64 / trial.kept as f64;
    let (build, built) =
        (middle(results.build.alone.iter().copied()), middle(results.build.recorded.iter().copied()));
    let more = |name, what, unit, target, floor, measured| Goal {
        name,
        what,
        unit,
        target,
        floor,
        measured,
        less: false,
    };
    let less = |name, what, unit, target, floor, measured| Goal {
        name,
        what,
        unit,
        target,
        floor,
        measured,
        less: true,
    };
    vec![
        more("G1", "events kept without loss, kernel to Parquet", "/s", 1e6, 5e5, trial.rate()),
        less("G2", "CPU of the recorder at that rate", "ns an event", 500.0, 1_000.0, trial.ns_per_event()),
        more(
            "G3",
            "rate without loss, times KernMLOps'",
            "x",
            150.0,
            80.0,
            trial.rate() / rate(Contender::KernMlops),
        ),
        more(
            "G4",
            "events per CPU time, times bcc to Parquet",
            "x",
            10.0,
            5.0,
            cost(Contender::Bcc) / cost(Contender::Tracelake),
        ),
        more(
            "G5",
            "events per CPU time, times bpftrace to text",
            "x",
            5.0,
            2.5,
            cost(Contender::Bpftrace) / cost(Contender::Tracelake),
        ),
        less("G6", "stored, all files", "B an event", 14.0, 18.0, stored),
        more("G6", "lines of JSON, times that", "x", 9.0, 9.0, json / stored),
        more("G6", "lines of JSON by zstd 3, times that", "x", 1.8, 1.8, json_zstd / stored),
        less(
            "G7",
            "added to a fault of a target",
            "ns",
            150.0,
            250.0,
            middle(latency.matched.iter().copied()) - alone,
        ),
        less(
            "G8",
            "added to a fault of somebody else",
            "ns",
            30.0,
            60.0,
            middle(latency.not_matched.iter().copied()) - alone,
        ),
        less(
            "G9",
            "CPU of the agent without a session",
            "% of one",
            0.2,
            0.5,
            results.without_session.cpu_percent,
        ),
        less("G10", "a build with a recording takes longer", "%", 3.0, 6.0, (built / build - 1.0) * 100.0),
        less(
            "G11",
            "memory settled, nothing to do, every collector on",
            "MiB",
            64.0,
            96.0,
            mib(results.idle_rss_bytes),
        ),
        less("G11", "most memory at the rate of G1", "MiB", 160.0, 256.0, mib(trial.rss_bytes)),
        less(
            "G16",
            "added to a fault at a rate that is too high",
            "ns",
            225.0,
            375.0,
            results.overload.did.ns_per_fault - middle(two.alone.iter().copied()),
        ),
    ]
}

/// How many times our CPU a contender takes for an event at the rate that all keep up with.
fn at_common(results: &Results, contender: Contender) -> f64 {
    let cost = |contender| {
        let of = results.costs.iter().filter(|trial| trial.contender == contender);
        middle(of.map(Trial::ns_per_event))
    };
    cost(contender) / cost(Contender::Tracelake)
}

/// CPU of each event at a contender's highest rate without loss, one value a ladder.
fn costs_at_best(results: &Results, contender: Contender) -> impl Iterator<Item = f64> {
    measure::best(&results.ladders, contender).into_iter().flatten().map(Trial::ns_per_event)
}

fn page(results: &Results) -> String {
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `cargo xtask bench`; all of it was measured in one run, in turns.\n\n",
    );
    text += &report::machine(&results.machine);
    text += "\n## Goals\n\nAn event is a page fault in user mode: a row of `page_faults` with all its columns, through `tracelake record`, the node \
             agent's own code.\n`BELOW` is below the floor.\n\n";
    text += &report::goals(&goals(results));
    let overload = &results.overload;
    _ = writeln!(
        text,
        "\nG4 and G5 compare each one at its own highest rate without loss; at {}/s, where starting and ending weigh more, the ratios are \
         {} and {}. Without a session the agent (which looks for its operator \
         meanwhile) has {} programs attached and {} MiB of memory.\nAt a rate that is too high (recorder at nice 19, load on both CPUs, {} events/s): {} of {} events kept, {} counted as lost, \
         none missing.\nThe build of G10 made {} events/s. After all of it {} programs were attached.\n",
        short(measure::COMMON_RATE as f64),
        short(at_common(results, Contender::Bcc)),
        short(at_common(results, Contender::Bpftrace)),
        results.without_session.programs,
        short(mib(results.without_session.rss_bytes)),
        short(overload.rate()),
        overload.kept,
        overload.did.faults,
        overload.lost,
        short(middle(results.build.events_per_second.iter().copied())),
        results.programs_left
    );
    text += "The slope of G11 takes hours: [soak](soak.md).\n\n## Peers\n\n";
    let peers = [
        (Contender::Tracelake, "tracelake record, Parquet"),
        (Contender::KernMlops, "KernMLOps' settings in bcc-python"),
        (Contender::Bcc, "bcc-python, ring buffer, polars, Parquet"),
        (Contender::Bpftrace, "bpftrace printf, text"),
    ];
    let rows = peers.map(|(contender, name)| {
        let costs: Vec<&Trial> = results.costs.iter().filter(|trial| trial.contender == contender).collect();
        let mut rates = measure::zero_loss_rates(&results.ladders, contender);
        let of = |value: fn(&Trial) -> f64| match costs.is_empty() {
            true => "-".to_owned(),
            false => short(middle(costs.iter().map(|trial| value(trial)))),
        };
        vec![
            name.to_owned(),
            short(median(&mut rates)),
            short(middle(costs_at_best(results, contender))),
            of(Trial::ns_per_event),
            of(|trial| trial.bytes as f64 / trial.kept as f64),
            of(|trial| mib(trial.rss_bytes)),
        ]
    });
    let head = [
        "",
        "events/s without loss",
        "CPU ns an event",
        "at 50,000/s: CPU ns an event",
        "bytes an event",
        "memory, MiB",
    ];
    text += &report::table(&head, &rows);
    text += "\nThe first two by the highest step of a ladder of rates without loss; where the load could make no more, that. bcc-python with \
             polars keeps rows as tuples,\nwhich costs it less than objects.\n\n## Faults\n\n";
    let rows =
        [("one thread", &results.latency), ("two threads", &results.latency_two)].map(|(name, latency)| {
            let [alone, not_matched, matched] = [&latency.alone, &latency.not_matched, &latency.matched]
                .map(|values| middle(values.iter().copied()));
            let cells = [alone, not_matched, not_matched - alone, matched, matched - alone].map(short);
            [name.to_owned()].into_iter().chain(cells).collect()
        });
    text += &report::table(&["ns a fault", "alone", "not matched", "added", "matched", "added"], &rows);
    text += "\n## Hooks\n\nEvery collector on; the kernel's own account (`bpf_stats`, which takes some 20 ns of each run for itself), while the target \
             works, and while somebody\nelse does the same work.\n\n";
    let rows: Vec<Vec<String>> = results
        .hooks
        .iter()
        .map(|(name, hook)| {
            let ns = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
            vec![name.clone(), hook.runs.to_string(), ns(hook.hit_ns), ns(hook.miss_ns)]
        })
        .collect();
    text += &report::table(&["program", "runs", "ns, target", "ns, somebody else"], &rows);
    text
}
