// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask test`: every check, smallest first, each of which also runs alone by its name.
//!
//! A part passes or fails; there is no third outcome. What a machine lacks is installed or makes the
//! part fail with the name of what is missing. The last line is `N passed, N failed`.

mod bless;
mod suites;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use self::suites::{CLUSTER_TESTS, SLOW_CLUSTER_TESTS, SLOW_KIND_TESTS, Suite};
use crate::install::{self, Existing};
use crate::kernel::Kernel;
use crate::{cache, chart, cluster, examples, exec, harness, tools, vm};

/// Run every check, or those named.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Parts to run, by name; all of the default ones when none is named.
    parts: Vec<String>,
    /// Name the parts and what each checks.
    #[arg(long)]
    list: bool,
    /// Also run the parts that are not in the default run: they take long.
    #[arg(long)]
    all: bool,
    /// Renew the committed numbers of instructions that the named VMs' verifiers go through (of all VMs when none is
    /// named); the reason is committed with them. Runs nothing else.
    #[arg(long, value_name = "REASON", conflicts_with_all = ["list", "all"])]
    bless: Option<String>,
    #[command(flatten)]
    existing: Existing,
    /// Where the nodes of cluster tests come from, unless the part says so itself.
    #[arg(long, value_enum, conflicts_with = "kubeconfig")]
    cluster: Option<cluster::Choice>,
    /// Of parts that run in a cluster, only these suites: names of files in e2e/tests.
    #[arg(long, value_name = "NAME", requires = "parts", value_delimiter = ',')]
    suites: Vec<String>,
}

struct Part {
    name: &'static str,
    checks: &'static str,
    when: When,
    run: Run,
}

/// When a part runs that is not named.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    /// With `--all` only.
    All,
    /// Never: another part contains it.
    Never,
}

#[derive(Clone, Copy)]
enum Run {
    /// On the whole machine.
    Alone(fn() -> Result<()>),
    /// Ground truth tests whose names hold a word, in such a VM, beside other such parts: each keeps about one CPU busy.
    Vm(vm::Machine, &'static str),
    /// Tests in a cluster of kind, or of emulated machines unless the user chose or one runs.
    Cluster(cluster::Choice, &'static [Suite]),
    /// Tests of clusters, of one kind if the user chose.
    Clusters(fn(Option<cluster::Choice>) -> Result<()>),
}

const fn part(name: &'static str, checks: &'static str, run: Run) -> Part {
    Part { name, checks, when: When::Always, run }
}

const PARTS: &[Part] = &[
    part("format", "rustfmt on every crate", Run::Alone(format)),
    part("clippy", "clippy with warnings as errors, host", Run::Alone(clippy)),
    part("clippy-bpf", "the same for the kernel programs' target", Run::Alone(clippy_bpf)),
    slow(part(
        "platforms",
        "the command line for macOS and arm64, as far as Rust's compiler tells without making anything",
        Run::Alone(platforms),
    )),
    part("unit", "unit, golden, freshness and conformance tests", Run::Alone(unit)),
    Part {
        when: When::Never,
        ..part("faults", "the tests of unit that inject a fault, by number", Run::Alone(faults))
    },
    part("deny", "licences and sources of dependencies", Run::Alone(deny)),
    part(
        "chart",
        "the chart with every ci values file: schemas, kinds, what linters say",
        Run::Alone(chart::check),
    ),
    slow(part(
        "examples",
        "the notebooks and programs of examples/ in their own engines, over known sessions in a store",
        Run::Alone(examples::run),
    )),
    part("host", "ground truth on this machine's kernel (root)", Run::Alone(host)),
    slow(part(
        "sick",
        "real faults, recorded: each moves its own term of the report (root)",
        Run::Alone(sick),
    )),
    part("vm-6.1", "ground truth in a VM with kernel 6.1", ground_truth_on(Kernel::V6_1)),
    slow(part("vm-6.12", "ground truth in a VM with kernel 6.12", ground_truth_on(Kernel::V6_12))),
    slow(part("vm-6.18", "ground truth in a VM with kernel 6.18", ground_truth_on(Kernel::V6_18))),
    part("vm-7", "ground truth in a VM with the newest kernel 7", ground_truth_on(Kernel::V7)),
    slow(part(
        "vm-8-cpus",
        "the rings in a VM with kernel 6.12 and eight CPUs",
        Run::Vm(vm::Machine { cpus: 8, ..vm::Machine::of(Kernel::V6_12) }, "rings::"),
    )),
    part("e2e", "the whole path on a two-node cluster", Run::Cluster(cluster::Choice::Vm, &CLUSTER_TESTS)),
    slow(part(
        "harness",
        "clusters leave nothing behind, however they end, and are found again",
        Run::Clusters(harness::run),
    )),
    slow(part(
        "kind",
        "the same on kind, whose nodes share a kernel",
        Run::Cluster(cluster::Choice::Kind, &CLUSTER_TESTS),
    )),
    slow(part(
        "kind-slow",
        "what breaks things, on kind: who may connect, what fails in mid-session, pods that come and go, an upgrade, the end of it all",
        Run::Cluster(cluster::Choice::Kind, &SLOW_KIND_TESTS),
    )),
    slow(part(
        "e2e-slow",
        "who may connect, ground truth in pods, what fails in mid-session, fifty pods that come and go, an upgrade, every values file of the chart, the end of it all",
        Run::Cluster(cluster::Choice::Vm, &SLOW_CLUSTER_TESTS),
    )),
];

/// All ground truth tests under a kernel.
const fn ground_truth_on(kernel: Kernel) -> Run {
    Run::Vm(vm::Machine::of(kernel), "")
}

/// With `--all` only: what does not fit twenty minutes.
const fn slow(part: Part) -> Part {
    Part { when: When::All, ..part }
}

/// A VM has this long for all ground truth tests, emulated: twice what they took beside another one.
const VM_TIMEOUT: Duration = Duration::from_secs(1_500);

pub(crate) fn main(args: &Args) -> Result<()> {
    if args.list {
        for part in PARTS {
            let when = match part.when {
                When::Always => "",
                When::All => " (--all)",
                When::Never => " (by name)",
            };
            println!("{:15} {}{when}", part.name, part.checks);
        }
        return Ok(());
    }
    for name in &args.parts {
        ensure!(
            PARTS.iter().any(|part| part.name == name),
            "no part is named {name}; the parts are {}",
            PARTS.iter().map(|part| part.name).collect::<Vec<_>>().join(", ")
        );
    }
    if let Some(reason) = &args.bless {
        return bless::bless(&args.parts, reason);
    }
    let chosen = PARTS.iter().filter(|part| {
        if args.parts.is_empty() {
            part.when == When::Always || args.all && part.when == When::All
        } else {
            args.parts.iter().any(|name| name == part.name)
        }
    });
    let chosen: Vec<&Part> = chosen.collect();
    for suite in &args.suites {
        let suites = chosen.iter().filter_map(|part| match part.run {
            Run::Cluster(_, suites) => Some(suites),
            _ => None,
        });
        ensure!(
            suites.flatten().any(|(name, _)| name == suite),
            "no part that was named has a suite {suite}; suites are files of e2e/tests"
        );
    }
    let clusters =
        chosen.iter().filter(|part| matches!(part.run, Run::Cluster(..) | Run::Clusters(_))).count();
    ensure!(
        clusters < 2 || !install::keeps(),
        "TRACELAKE_KEEP keeps a cluster, which the other parts would meet: name one part"
    );
    let mut failed = Vec::new();
    // Neighbours that run beside each other are one group.
    for group in chosen.chunk_by(|a, b| matches!((a.run, b.run), (Run::Vm(..), Run::Vm(..)))) {
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(group.len());
        let next = AtomicUsize::new(0);
        let work = || {
            let take = || group.get(next.fetch_add(1, Ordering::Relaxed));
            std::iter::from_fn(take)
                .filter(|part| !passes(part, args))
                .map(|part| part.name)
                .collect::<Vec<_>>()
        };
        failed.extend(std::thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .flat_map(|one| one.join().expect("a part fails without a panic"))
                .collect::<Vec<_>>()
        }));
    }
    let passed = chosen.len() - failed.len();
    if !failed.is_empty() {
        println!("failed: {}; each runs alone: cargo xtask test {}", failed.join(", "), failed.join(" "));
    }
    println!("{passed} passed, {} failed", failed.len());
    std::process::exit(i32::from(!failed.is_empty()));
}

fn passes(part: &Part, args: &Args) -> bool {
    println!("== {}: {}", part.name, part.checks);
    let start = Instant::now();
    let result = match part.run {
        Run::Alone(run) => run(),
        Run::Vm(machine, tests) => in_vm(part.name, machine, tests),
        Run::Cluster(choice, suites) => {
            let chosen =
                |(name, _): &&Suite| args.suites.is_empty() || args.suites.iter().any(|one| one == name);
            let suites: Vec<Suite> = suites.iter().filter(chosen).copied().collect();
            if suites.is_empty() {
                // A cluster would take minutes to come up for nothing.
                Err(anyhow::anyhow!("it has none of the suites {}", args.suites.join(", ")))
            } else {
                // For what is named, a cluster that runs is as good as another; a whole run has two kernels, and kind.
                let choice = match choice {
                    cluster::Choice::Kind => Some(choice),
                    cluster::Choice::Vm => args.cluster.or(args.parts.is_empty().then_some(choice)),
                };
                suites::run(&args.existing, choice, &suites)
            }
        }
        Run::Clusters(run) => run(args.cluster),
    };
    let seconds = start.elapsed().as_secs_f32();
    match &result {
        Ok(()) => println!("== {} passed ({seconds:.0} s)", part.name),
        Err(error) => println!("== {} FAILED ({seconds:.0} s): {error:#}", part.name),
    }
    result.is_ok()
}

/// `cargo` with what the tests and build scripts look for.
pub(crate) fn cargo<const N: usize>(arguments: [&str; N]) -> Result<Command> {
    tools::packages()?;
    tools::rust()?;
    tools::bpf_linker()?;
    let mut cargo = cache::cargo()?;
    cargo.args(arguments).env("TRACELAKE_WEED", tools::weed()?).env("TRACELAKE_DUCKDB", tools::duckdb()?);
    cargo.env("TRACELAKE_VERSITYGW", tools::versitygw()?);
    Ok(cargo)
}

fn format() -> Result<()> {
    exec::loud(&mut cargo(["fmt", "--all", "--check"])?)
}

/// Everything but the kernel programs, which only the BPF target compiles. Always the whole workspace: see
/// [`crate::image::static_binary`].
const WORKSPACE: [&str; 4] = ["--locked", "--workspace", "--exclude", "tracelake-node-agent-ebpf"];
fn clippy() -> Result<()> {
    let strict = ["--", "-D", "warnings"];
    exec::loud(cargo(["clippy"])?.args(WORKSPACE).arg("--all-targets").args(strict))?;
    // Tests that a plain `cargo test` leaves out are no part of "all targets", and have to be named without it.
    let mut named = cargo(["clippy"])?;
    named.args(WORKSPACE).args(named_tests()?.iter().flat_map(|test| ["--test", test]));
    exec::loud(named.args(strict))
}

/// The tests that run by name only (`test = false`), as cargo knows them.
fn named_tests() -> Result<Vec<String>> {
    let arguments = ["metadata", "--locked", "--no-deps", "--format-version", "1"];
    let metadata: serde_json::Value = serde_json::from_str(&exec::output(&mut cargo(arguments)?)?)?;
    let targets = metadata["packages"].as_array().into_iter().flatten();
    let targets = targets.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let by_name = targets.filter(|target| target["kind"][0] == "test" && target["test"] == false);
    let names: Vec<_> = by_name.filter_map(|target| target["name"].as_str()).map(str::to_owned).collect();
    ensure!(names.iter().any(|name| name == "ground_truth"), "cargo's metadata names no test of ours");
    Ok(names)
}

fn clippy_bpf() -> Result<()> {
    // build-std is unstable, but `core` for this target is not shipped; see node-agent/build.rs.
    exec::loud(
        cargo([
            "clippy",
            "--locked",
            "--package",
            "tracelake-node-agent-ebpf",
            "--release",
            "--target",
            "bpfel-unknown-none",
            "-Z",
            "build-std=core",
            "--",
            "-D",
            "warnings",
        ])?
        .env("RUSTC_BOOTSTRAP", "1"),
    )
}

/// Compiles nothing but Rust, and that no further than what is wrong with it: parts in C are made empty, and nothing is linked.
fn platforms() -> Result<()> {
    let compiler = cache::dir().join("empty-cc");
    let script = "#!/bin/sh\n# Makes what it is asked to make, empty.\n\
                  while [ $# -gt 0 ]; do case $1 in -o) : > \"$2\" ;; *.a) : > \"$1\" ;; esac; shift; done\n";
    fs::write(&compiler, script).with_context(|| format!("cannot write {}", compiler.display()))?;
    exec::quiet(exec::command("chmod", ["0755"]).arg(&compiler))?;
    for target in ["aarch64-apple-darwin", "aarch64-unknown-linux-gnu"] {
        tools::rust_target(target)?;
        let mut check = cargo(["clippy", "--locked", "--package", "tracelake", "--target", target])?;
        for tool in ["CC", "AR"] {
            check.env(format!("{tool}_{}", target.replace('-', "_")), &compiler);
        }
        // Else the SDK is asked for, which only a Mac has.
        exec::loud(check.env("SDKROOT", "/").args(["--", "-D", "warnings"]))?;
    }
    Ok(())
}

/// What the report's page is tried in.
const BROWSER: [&str; 3] = ["chromium", "chromium-driver", "fonts-dejavu-core"];

fn unit() -> Result<()> {
    tools::debian(&BROWSER)?;
    exec::loud(cargo(["test"])?.args(WORKSPACE).env("TRACELAKE_AXE", tools::axe()?))
}

fn faults() -> Result<()> {
    crate::faults::run(|| {
        let mut cargo = cargo(["test"])?;
        cargo.args(WORKSPACE);
        Ok(cargo)
    })
}

fn deny() -> Result<()> {
    // Not `advisories`: their database is a git repository, which a machine with package registries alone cannot reach.
    let checks = ["--locked", "check", "bans", "licenses", "sources"];
    exec::loud(exec::command(tools::cargo_deny()?, checks).current_dir(cache::repository()))
}

fn host() -> Result<()> {
    exec::loud(exec::command(ground_truth()?, ["--test-threads=1"]).env("TRACELAKE_ENVIRONMENT", "host"))
}

fn sick() -> Result<()> {
    tools::debian(&["iproute2"])?;
    let tests = test_binaries(&mut cargo(["test"])?, &["faults_in_report"])?;
    exec::loud(&mut exec::command(&tests[0], ["--test-threads=1", "--nocapture"]))
}

fn in_vm(part: &str, machine: vm::Machine, tests: &str) -> Result<()> {
    let environment = format!("vm-{}", machine.kernel.name());
    // A word that no test's name holds is no success.
    let command = format!(
        "/ground_truth --list {tests} | grep ': test$' > /dev/null && \
         TRACELAKE_ENVIRONMENT={environment} /ground_truth --test-threads=1 {tests}"
    );
    let code = ground_truth_in(machine, &command, &mut |line| print!("{part}: {line}"))?;
    ensure!(code == 0, "ground truth ended with {code} under kernel {}", machine.kernel.name());
    Ok(())
}

fn ground_truth_in(machine: vm::Machine, command: &str, output: &mut dyn FnMut(&str)) -> Result<i32> {
    let files = [(ground_truth()?, "/ground_truth".to_owned())];
    vm::run(machine, &files, command, VM_TIMEOUT, output)
}

/// Builds the ground truth tests, static, so that one binary runs on every kernel, and returns it.
fn ground_truth() -> Result<PathBuf> {
    let mut build = cargo(["test", "--target", tools::MUSL_TARGET])?;
    test_binaries(&mut build, &["ground_truth"])?.pop().context("cargo built one test")
}

/// Builds these test targets of the workspace and returns their binaries, in the same order.
pub(crate) fn test_binaries(cargo: &mut Command, names: &[&str]) -> Result<Vec<PathBuf>> {
    binaries(cargo, names, names)
}

/// Builds these test targets and the programs of their packages, and returns the binaries of these names.
pub(crate) fn binaries(cargo: &mut Command, tests: &[&str], names: &[&str]) -> Result<Vec<PathBuf>> {
    cargo.args(WORKSPACE).args(tests.iter().flat_map(|name| ["--test", name]));
    let messages = exec::output(cargo.args(["--no-run", "--message-format=json-render-diagnostics"]))?;
    let messages: Vec<serde_json::Value> =
        messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let find = |name: &&str| {
        let of_target = messages.iter().filter(|message| message["target"]["name"] == **name);
        let binary = of_target.filter_map(|message| message["executable"].as_str()).next();
        binary.map(PathBuf::from).with_context(|| format!("cargo named no binary of {name}"))
    };
    names.iter().map(find).collect()
}
