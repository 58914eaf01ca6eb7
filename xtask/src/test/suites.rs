// SPDX-License-Identifier: Apache-2.0

//! The tests in a cluster: which suites there are, what each needs, and a run of them.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::{cargo, ground_truth, test_binaries};
use crate::install::{Access, Existing};
use crate::{cluster, examples, exec, image, install, previous, schemas};

/// Tests in a cluster: a target of `e2e`, and how many of its tests run side by side.
pub(super) type Suite = (&'static str, u32);

/// The cluster tests of every run, in the order of their runs and with the number that run side by side.
pub(super) const CLUSTER_TESTS: [Suite; 9] = [
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
pub(super) const SLOW_CLUSTER_TESTS: [Suite; 9] = [
    ("identity", 1),
    (ENGINES, 1),
    (KERNELS, 1),
    ("churn", 1),
    ("disruption", 1),
    ("lifecycle", 1),
    (UPGRADE, 1),
    (CHART, 1),
    ("uninstall", 1),
];
/// Those of them for kind. Left out: `kernels`, which takes a node for a machine with a kernel of its own; `engines`, which moves
/// gigabytes by an API server that is emulated where there is no Docker; `chart`, for which each values file takes minutes there.
pub(super) const SLOW_KIND_TESTS: [Suite; 6] =
    [("identity", 1), ("churn", 1), ("disruption", 1), ("lifecycle", 1), (UPGRADE, 1), ("uninstall", 1)];
/// Runs the ground truth tests on the nodes, and is told where they are.
const KERNELS: &str = "kernels";
/// Tenants use the command line, as its own test does; both are told where it is.
const TENANTS: &str = "tenants";
const CLI: &str = "cli";
/// Reads what is in the cluster's store by other programs, and is told where they are.
const ENGINES: &str = "engines";
/// Installs every values file, and is told where kinds are that some need.
const CHART: &str = "chart";
/// Comes from the version before, and is told where its chart is.
const UPGRADE: &str = "upgrade";

/// Installs the product in a cluster and runs these tests: in the one that is named, else the one of ours that runs, else
/// one that is brought up for it.
pub(super) fn run(existing: &Existing, choice: Option<cluster::Choice>, suites: &[Suite]) -> Result<()> {
    if let Some(access) = existing.access()? {
        let binaries = cluster_tests(suites)?;
        access.install()?;
        return run_suites(&access, suites, &binaries);
    }
    image::prepare(choice)?;
    // Everything is compiled before emulated nodes want the same CPUs.
    let mut images = image::build_all()?;
    if suites.iter().any(|(test, _)| *test == UPGRADE) {
        images.extend(previous::images()?);
    }
    let binaries = cluster_tests(suites)?;
    let options = cluster::Options { choice, ..cluster::Options::default() };
    install::in_ours(
        &options,
        &images,
        install::keeps(),
        |_| Ok(()),
        |access| run_suites(access, suites, &binaries),
    )
}

fn cluster_tests(suites: &[Suite]) -> Result<Vec<PathBuf>> {
    if suites.iter().any(|(test, _)| *test == KERNELS) {
        ground_truth()?;
    }
    if suites.iter().any(|(test, _)| *test == ENGINES) {
        drop(examples::prepare()?);
    }
    test_binaries(&mut cargo(["test"])?, &suites.iter().map(|(test, _)| *test).collect::<Vec<_>>())
}

/// Runs all of them, also after one that failed: each failure is worth knowing.
fn run_suites(access: &Access, suites: &[Suite], binaries: &[PathBuf]) -> Result<()> {
    let mut failed = Vec::new();
    for ((test, threads), binary) in suites.iter().zip(binaries) {
        let threads = if access.side_by_side { *threads } else { 1 };
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
        let others = if *test == ENGINES { Some(examples::prepare()?) } else { None };
        if let Some(others) = &others {
            tests.env("TRACELAKE_EXAMPLES", &others.binary);
            tests.envs(others.environment.iter().map(|(name, value)| (name, value)));
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
