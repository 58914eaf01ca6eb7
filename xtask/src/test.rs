// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask test`: every check, smallest first, each of which also runs alone by its name.
//!
//! A part passes or fails; there is no third outcome. What a machine lacks is installed or makes the
//! part fail with the name of what is missing. The last line is `N passed, N failed`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::install::{Access, Existing};
use crate::kernel::Kernel;
use crate::{cache, chart, cluster, examples, exec, harness, image, install, previous, schemas, tools, vm};

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
    /// Tests in a cluster, from where is chosen by the user or here.
    Cluster(Option<cluster::Choice>, &'static [Suite]),
}

/// Tests in a cluster: a target of `e2e`, and how many of its tests run side by side.
type Suite = (&'static str, u32);

const fn part(name: &'static str, checks: &'static str, run: Run) -> Part {
    Part { name, checks, when: When::Always, run }
}

const PARTS: &[Part] = &[
    part("format", "rustfmt on every crate", Run::Alone(format)),
    part("clippy", "clippy with warnings as errors, host", Run::Alone(clippy)),
    part("clippy-bpf", "the same for the kernel programs' target", Run::Alone(clippy_bpf)),
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
    part("e2e", "the whole path on a two-node cluster", Run::Cluster(None, &CLUSTER_TESTS)),
    slow(part(
        "harness",
        "clusters leave nothing behind, however they end, and are found again",
        Run::Alone(harness::run),
    )),
    slow(part(
        "kind",
        "the same on kind, whose nodes share a kernel",
        Run::Cluster(Some(cluster::Choice::Kind), &CLUSTER_TESTS),
    )),
    slow(part(
        "e2e-slow",
        "who may connect, ground truth in pods, what fails in mid-session, fifty pods that come and go, an upgrade, every values file of the chart, the end of it all",
        Run::Cluster(None, &SLOW_CLUSTER_TESTS),
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
        return bless(&args.parts, reason);
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
                e2e(&args.existing, choice.or(args.cluster), &suites)
            }
        }
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
/// The cluster tests of every run, in the order of their runs and with the number that run side by side.
const CLUSTER_TESTS: [Suite; 9] = [
    ("input", 4),
    ("collect", 4),
    ("collectors", 2),
    ("neighbours", 2),
    ("schedule", 2),
    (TENANTS, 2),
    (CLI, 1),
    ("failures", 1),
    ("replicas", 1),
];
/// Those that break what others share, or take long, each alone; the last one uninstalls.
const SLOW_CLUSTER_TESTS: [Suite; 8] = [
    ("identity", 1),
    (KERNELS, 1),
    ("churn", 1),
    ("disruption", 1),
    ("lifecycle", 1),
    (UPGRADE, 1),
    (CHART, 1),
    ("uninstall", 1),
];
/// Runs the ground truth tests on the nodes, and is told where they are.
const KERNELS: &str = "kernels";
/// Tenants use the command line, as its own test does; both are told where it is.
const TENANTS: &str = "tenants";
const CLI: &str = "cli";
/// Installs every values file, and is told where kinds are that some need.
const CHART: &str = "chart";
/// Comes from the version before, and is told where its chart is.
const UPGRADE: &str = "upgrade";

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

/// Writes what the verifiers of these VMs say now to the file that `ground_truth/verifier.rs` compares with.
fn bless(parts: &[String], reason: &str) -> Result<()> {
    ensure!(!reason.trim().is_empty() && !reason.contains('\n'), "the reason is one line of text");
    let path = cache::repository().join("node-agent/tests/ground_truth/verifier.txt");
    let vms = PARTS.iter().filter_map(|part| match part.run {
        Run::Vm(machine, "") if parts.is_empty() || parts.iter().any(|name| name == part.name) => {
            Some((part.name, machine))
        }
        _ => None,
    });
    let vms: Vec<_> = vms.collect();
    let other = parts.iter().find(|part| vms.iter().all(|(name, _)| name != part));
    ensure!(other.is_none(), "{} is no VM with all of ground truth", other.map_or("", String::as_str));
    let day = exec::output(&mut exec::command("date", ["-u", "+%F"]))?;
    for (environment, machine) in vms {
        // Fails where it differs, and names every program with its number then.
        let command = format!(
            "TRACELAKE_BLESS=1 TRACELAKE_ENVIRONMENT={environment} /ground_truth --test-threads=1 every_collector_does_here"
        );
        let mut found: Vec<String> = Vec::new();
        let mine = format!("{environment} ");
        ground_truth_in(machine, &command, &mut |line| {
            print!("{environment}: {line}");
            if line.starts_with(&mine) {
                found.push(line.trim().to_owned());
            }
        })?;
        ensure!(!found.is_empty(), "{environment} named no program");
        let old = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let others = old
            .lines()
            .filter(|line| !line.starts_with(&mine) && !line.starts_with(&format!("# {environment}, ")));
        let mut lines: Vec<String> = others.map(str::to_owned).collect();
        lines.push(format!("# {environment}, {}: {}", day.trim(), reason.trim()));
        lines.append(&mut found);
        fs::write(&path, lines.join("\n") + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("== {environment}: renewed in {}", path.display());
    }
    Ok(())
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

/// Installs the product in a cluster and runs these tests: in the one that is named, else the one of ours that runs, else
/// one that is brought up for it.
fn e2e(existing: &Existing, choice: Option<cluster::Choice>, suites: &[Suite]) -> Result<()> {
    image::prepare()?;
    if let Some(access) = existing.access()? {
        let binaries = cluster_tests(suites)?;
        access.install()?;
        return run_suites(&access, suites, &binaries);
    }
    // Everything is compiled before emulated nodes want the same CPUs.
    let mut images = image::build_all()?;
    if suites.iter().any(|(test, _)| *test == UPGRADE) {
        images.extend(previous::images()?);
    }
    let binaries = cluster_tests(suites)?;
    let options = cluster::Options { choice, ..cluster::Options::default() };
    let keep = std::env::var_os("TRACELAKE_KEEP").is_some();
    install::in_ours(&options, &images, keep, |_| Ok(()), |access| run_suites(access, suites, &binaries))
}

fn cluster_tests(suites: &[Suite]) -> Result<Vec<PathBuf>> {
    if suites.iter().any(|(test, _)| *test == KERNELS) {
        ground_truth()?;
    }
    test_binaries(&mut cargo(["test"])?, &suites.iter().map(|(test, _)| *test).collect::<Vec<_>>())
}

/// Runs all of them, also after one that failed: each failure is worth knowing.
fn run_suites(access: &Access, suites: &[Suite], binaries: &[PathBuf]) -> Result<()> {
    let mut failed = Vec::new();
    for ((test, threads), binary) in suites.iter().zip(binaries) {
        let mut tests =
            exec::command(binary, ["--nocapture".to_owned(), format!("--test-threads={threads}")]);
        access.apply_to(&mut tests)?;
        // A backtrace of an error that a test returns ends in the test harness, and hides the error above it.
        tests.env("RUST_LIB_BACKTRACE", "0");
        if *test == KERNELS {
            tests.env("TRACELAKE_GROUND_TRUTH", ground_truth()?);
        }
        if [TENANTS, CLI].contains(test) {
            tests.env("TRACELAKE_CLI", image::static_binary("tracelake")?);
        }
        if *test == UPGRADE {
            tests.env("TRACELAKE_PREVIOUS_CHART", previous::chart()?);
            tests.env("TRACELAKE_PREVIOUS_TAG", previous::TAG);
        }
        if *test == CHART {
            let definitions = std::env::join_paths(schemas::monitoring_definitions()?)?;
            tests.env("TRACELAKE_MONITORING_DEFINITIONS", definitions);
        }
        if let Err(error) = exec::loud(&mut tests) {
            println!("{test}: {error:#}");
            failed.push(*test);
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}
