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
use crate::{cache, cluster, exec, image, install, tools, vm};

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
}

struct Part {
    name: &'static str,
    checks: &'static str,
    /// Whether it runs without being named and without `--all`.
    default: bool,
    run: Run,
}

#[derive(Clone, Copy)]
enum Run {
    /// On the whole machine.
    Alone(fn() -> Result<()>),
    /// Ground truth tests whose names hold a word, in such a VM, beside other such parts: each keeps about one CPU busy.
    Vm(vm::Machine, &'static str),
    /// Tests in a cluster.
    Cluster(&'static [Suite]),
}

/// Tests in a cluster: a target of `e2e`, and how many of its tests run side by side.
type Suite = (&'static str, u32);

const fn part(name: &'static str, checks: &'static str, run: Run) -> Part {
    Part { name, checks, default: true, run }
}

const PARTS: &[Part] = &[
    part("format", "rustfmt on every crate", Run::Alone(format)),
    part("clippy", "clippy with warnings as errors, host", Run::Alone(clippy)),
    part("clippy-bpf", "the same for the kernel programs' target", Run::Alone(clippy_bpf)),
    part("unit", "unit, golden, freshness and conformance tests", Run::Alone(unit)),
    part("deny", "licences and sources of dependencies", Run::Alone(deny)),
    part("chart", "helm lint and render of every ci values file", Run::Alone(chart)),
    part("host", "ground truth on this machine's kernel (root)", Run::Alone(host)),
    part("vm-6.1", "ground truth in a VM with kernel 6.1", ground_truth_on(Kernel::V6_1)),
    slow(part("vm-6.12", "ground truth in a VM with kernel 6.12", ground_truth_on(Kernel::V6_12))),
    slow(part("vm-6.18", "ground truth in a VM with kernel 6.18", ground_truth_on(Kernel::V6_18))),
    part("vm-7", "ground truth in a VM with the newest kernel 7", ground_truth_on(Kernel::V7)),
    slow(part(
        "vm-8-cpus",
        "the rings in a VM with kernel 6.12 and eight CPUs",
        Run::Vm(vm::Machine { cpus: 8, ..vm::Machine::of(Kernel::V6_12) }, "rings::"),
    )),
    part("e2e", "the whole path on a two-node cluster", Run::Cluster(&CLUSTER_TESTS)),
    slow(part(
        "e2e-slow",
        "who may connect, ground truth in pods, what fails in mid-session, fifty pods that come and go, the end of it all",
        Run::Cluster(&SLOW_CLUSTER_TESTS),
    )),
];

/// All ground truth tests under a kernel.
const fn ground_truth_on(kernel: Kernel) -> Run {
    Run::Vm(vm::Machine::of(kernel), "")
}

/// With `--all` only: what does not fit twenty minutes.
const fn slow(part: Part) -> Part {
    Part { default: false, ..part }
}

/// A VM has this long for all ground truth tests, emulated: twice what they took beside another one.
const VM_TIMEOUT: Duration = Duration::from_secs(1_500);

pub(crate) fn main(args: &Args) -> Result<()> {
    if args.list {
        for part in PARTS {
            println!("{:15} {}{}", part.name, part.checks, if part.default { "" } else { " (--all)" });
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
            part.default || args.all
        } else {
            args.parts.iter().any(|name| name == part.name)
        }
    });
    let chosen: Vec<&Part> = chosen.collect();
    let mut failed = Vec::new();
    // Neighbours that run beside each other are one group.
    for group in chosen.chunk_by(|a, b| matches!((a.run, b.run), (Run::Vm(..), Run::Vm(..)))) {
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(group.len());
        let next = AtomicUsize::new(0);
        let work = || {
            let take = || group.get(next.fetch_add(1, Ordering::Relaxed));
            std::iter::from_fn(take)
                .filter(|part| !passes(part, &args.existing))
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

fn passes(part: &Part, existing: &Existing) -> bool {
    println!("== {}: {}", part.name, part.checks);
    let start = Instant::now();
    let result = match part.run {
        Run::Alone(run) => run(),
        Run::Vm(machine, tests) => in_vm(part.name, machine, tests),
        Run::Cluster(suites) => e2e(existing, suites),
    };
    let seconds = start.elapsed().as_secs_f32();
    match &result {
        Ok(()) => println!("== {} passed ({seconds:.0} s)", part.name),
        Err(error) => println!("== {} FAILED ({seconds:.0} s): {error:#}", part.name),
    }
    result.is_ok()
}

/// `cargo` with what the tests and build scripts look for.
fn cargo<const N: usize>(arguments: [&str; N]) -> Result<Command> {
    tools::packages()?;
    tools::rust()?;
    tools::bpf_linker()?;
    let mut cargo = cache::cargo()?;
    cargo.args(arguments).env("TRACELAKE_WEED", tools::weed()?).env("TRACELAKE_DUCKDB", tools::duckdb()?);
    Ok(cargo)
}

fn format() -> Result<()> {
    exec::loud(&mut cargo(["fmt", "--all", "--check"])?)
}

/// Everything but the kernel programs, which only the BPF target compiles. Always the whole workspace: see
/// [`crate::image::static_binary`].
const WORKSPACE: [&str; 4] = ["--locked", "--workspace", "--exclude", "tracelake-node-agent-ebpf"];
/// The cluster tests of every run, in the order of their runs and with the number that run side by side.
const CLUSTER_TESTS: [Suite; 6] =
    [("input", 4), ("collect", 4), ("collectors", 2), ("schedule", 2), ("failures", 1), ("replicas", 1)];
/// Those that break what others share, or take long, each alone; the last one uninstalls.
const SLOW_CLUSTER_TESTS: [Suite; 5] =
    [("identity", 1), (KERNELS, 1), ("churn", 1), ("disruption", 1), ("uninstall", 1)];
/// Runs the ground truth tests on the nodes, and is told where they are.
const KERNELS: &str = "kernels";

fn clippy() -> Result<()> {
    let strict = ["--", "-D", "warnings"];
    exec::loud(cargo(["clippy"])?.args(WORKSPACE).arg("--all-targets").args(strict))?;
    // Tests that a plain `cargo test` leaves out are no part of "all targets", and have to be named without it.
    let mut named = cargo(["clippy"])?;
    named.args(WORKSPACE).args(["--test", "ground_truth"]);
    named.args(CLUSTER_TESTS.iter().chain(&SLOW_CLUSTER_TESTS).flat_map(|(test, _)| ["--test", test]));
    exec::loud(named.args(strict))
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

fn unit() -> Result<()> {
    exec::loud(cargo(["test"])?.args(WORKSPACE))
}

fn deny() -> Result<()> {
    // Not `advisories`: their database is a git repository, which a machine with package registries alone cannot reach.
    let checks = ["--locked", "check", "bans", "licenses", "sources"];
    exec::loud(exec::command(tools::cargo_deny()?, checks).current_dir(cache::repository()))
}

fn chart() -> Result<()> {
    let helm = tools::helm()?;
    let chart = cache::repository().join("charts/tracelake");
    let mut values: Vec<PathBuf> = fs::read_dir(chart.join("ci"))
        .context("charts/tracelake/ci holds one values file per supported shape")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    values.sort();
    ensure!(!values.is_empty(), "charts/tracelake/ci is empty");
    for file in &values {
        exec::quiet(exec::command(&helm, ["lint", "--strict"]).arg(&chart).arg("--values").arg(file))?;
        let rendered = exec::output(
            exec::command(&helm, ["template", "tracelake"]).arg(&chart).arg("--values").arg(file),
        )?;
        // Values may add capabilities, on purpose and by name; what the chart itself gives is what is promised.
        let extra = fs::read_to_string(file)?.contains("extraCapabilities");
        least_privilege(&rendered, extra).with_context(|| format!("rendered with {}", file.display()))?;
        println!("{}: {} lines", file.display(), rendered.lines().count());
    }
    Ok(())
}

/// What the chart gives the agent: two capabilities, no rights. What it gives the operator: the `restricted` profile's
/// limits. The API server of the cluster tests says the same of the objects as installed (`e2e/tests/identity.rs`).
fn least_privilege(rendered: &str, extra: bool) -> Result<()> {
    let objects: Vec<serde_json::Value> = serde_yaml::Deserializer::from_str(rendered)
        .map(serde::Deserialize::deserialize)
        .collect::<Result<_, _>>()?;
    let of = |kind: &str, name: &str| {
        let found =
            objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        found.with_context(|| format!("no {kind} {name}"))
    };
    let container = |object: &serde_json::Value| object["spec"]["template"]["spec"]["containers"][0].clone();
    let agent = container(of("DaemonSet", "tracelake-node-agent")?)["securityContext"].clone();
    ensure!(agent["privileged"] != true && agent["allowPrivilegeEscalation"] == false, "the agent: {agent}");
    ensure!(
        extra || agent["capabilities"] == serde_json::json!({"drop": ["ALL"], "add": ["BPF", "PERFMON"]}),
        "{agent}"
    );
    let operator = container(of("Deployment", "tracelake-operator")?)["securityContext"].clone();
    ensure!(
        operator["capabilities"] == serde_json::json!({"drop": ["ALL"]})
            && operator["allowPrivilegeEscalation"] == false
            && operator["readOnlyRootFilesystem"] == true,
        "the operator: {operator}"
    );
    for role in objects.iter().filter(|object| object["kind"] == "ClusterRole") {
        let resources =
            role["rules"].as_array().into_iter().flatten().flat_map(|rule| rule["resources"].as_array());
        let everywhere = resources.flatten().any(|resource| resource == "secrets" || resource == "*");
        ensure!(!everywhere, "Secrets of every namespace: {role}");
    }
    for binding in
        objects.iter().filter(|object| object["kind"].as_str().is_some_and(|k| k.ends_with("Binding")))
    {
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        for subject in subjects {
            ensure!(subject["name"] != "tracelake-node-agent", "the agent is given rights: {binding}");
        }
    }
    Ok(())
}

fn host() -> Result<()> {
    exec::loud(exec::command(ground_truth()?, ["--test-threads=1"]).env("TRACELAKE_ENVIRONMENT", "host"))
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
fn test_binaries(cargo: &mut Command, names: &[&str]) -> Result<Vec<PathBuf>> {
    cargo.args(WORKSPACE).args(names.iter().flat_map(|name| ["--test", name]));
    let messages = exec::output(cargo.args(["--no-run", "--message-format=json-render-diagnostics"]))?;
    let messages: Vec<serde_json::Value> =
        messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let find = |name: &&str| {
        let of_target = messages.iter().filter(|message| message["target"]["name"] == **name);
        let binary = of_target.filter_map(|message| message["executable"].as_str()).next();
        binary.map(PathBuf::from).with_context(|| format!("cargo named no binary of test {name}"))
    };
    names.iter().map(find).collect()
}

/// Installs the product in a cluster and runs these tests: in the one that is named, else the one of ours that runs, else
/// one that is brought up for it.
fn e2e(existing: &Existing, suites: &[Suite]) -> Result<()> {
    image::prepare()?;
    if let Some(access) = existing.access()? {
        let binaries = cluster_tests(suites)?;
        access.install()?;
        return run_suites(&access, suites, &binaries);
    }
    // Everything is compiled before emulated nodes want the same CPUs.
    let images = image::build_all()?;
    let binaries = cluster_tests(suites)?;
    let options = cluster::Options::default();
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
        if let Err(error) = exec::loud(&mut tests) {
            println!("{test}: {error:#}");
            failed.push(*test);
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}
