// SPDX-License-Identifier: Apache-2.0

//! Every developer command, started as `cargo xtask COMMAND`.
//!
//! What a command makes lies in one cache folder ([`cache`]), keyed by its inputs; tools that a fresh
//! machine lacks are installed by [`tools`]. Each command is one module with a `clap` type and a `run`.

mod bench;
mod cache;
mod chart;
mod cluster;
mod debian;
mod demo;
mod examples;
mod exec;
mod faults;
mod harness;
mod image;
mod initramfs;
mod install;
mod kernel;
mod previous;
mod schemas;
mod test;
#[cfg(test)]
mod tidy;
mod tools;
mod vm;
mod work;

use std::process::ExitCode;

use clap::Parser;

/// Tracelake's developer commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Show the whole path on a cluster: a shop, one session, its tables.
    Demo(demo::Args),
    /// Run every check, or those named.
    Test(test::Args),
    /// Measure what recording costs, beside its peers.
    Bench(bench::Args),
    /// The workload of `bench`.
    #[command(hide = true)]
    BenchLoad(bench::load::Args),
    /// Record real programs and write a page of each: what they say, what the report says.
    Work(work::Args),
    /// Install what a cluster of emulated machines with the product needs and this machine lacks; does nothing where everything
    /// is there.
    Tools,
    /// Run a static program under one of the supported kernels, in a VM of its own.
    Vm(vm::Args),
    /// A Kubernetes cluster for tests and demos.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Build the container images, as archives for `cluster load` or `docker load`.
    Image(image::Args),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Demo(args) => demo::main(&args),
        Command::Test(args) => test::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::BenchLoad(args) => bench::load::main(&args),
        Command::Work(args) => work::main(&args),
        Command::Tools => tools::install_all(),
        Command::Vm(args) => vm::main(&args),
        Command::Cluster(command) => cluster::main(&command),
        Command::Image(args) => image::main(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Not returned from main: that would print a backtrace where RUST_BACKTRACE is set.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
