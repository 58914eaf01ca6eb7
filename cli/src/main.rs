// SPDX-License-Identifier: Apache-2.0

//! `tracelake`: record a command or a cgroup without Kubernetes, and look at and verify datasets.
//!
//! One file per command. Errors are one sentence on standard error that says what to do next.

mod location;
mod progress;
mod record;
mod target;
mod verify;

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dataset::catalogue;
use node_agent::engine::{Capability, Engine};

/// Point at pods, get tables.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Record what a command or a cgroup of this machine does.
    Record(record::Args),
    /// List what can be recorded, with tables and parameters, and what of it this machine cannot.
    Collectors,
    /// Read every object of a dataset and compare it with its manifests and ledger.
    Verify(verify::Args),
    /// Show every table of a dataset: rows, ledger, coverage.
    Show(verify::ShowArgs),
}

/// musl's own gives large pieces back at once, so that every batch of rows costs the kernel as much as the rows cost us.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    if !matches!(args.command, Command::Record(_)) {
        // What prints to a pipe ends with its reader, as `head`; a recording does not.
        // SAFETY: no handler of ours, and no other thread yet.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    // A store's client looks the provider up when it is made.
    _ = rustls::crypto::ring::default_provider().install_default();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match args.command {
        Command::Record(args) => record::run(args),
        Command::Collectors => {
            print!("{}", collectors(&Engine::capabilities()));
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify(args) => verify::verify(&args),
        Command::Show(args) => verify::show(&args),
    };
    result.unwrap_or_else(|error| {
        say(&format!("tracelake: {error:#}\n"));
        ExitCode::FAILURE
    })
}

/// Writes to standard error. That nobody reads it is no reason to stop.
fn say(text: &str) {
    use std::io::Write;
    _ = std::io::stderr().write_all(text.as_bytes());
}

fn collectors(capabilities: &[Capability]) -> String {
    let mut text = String::new();
    for collector in catalogue::COLLECTORS {
        let tables: Vec<_> = collector.tables.iter().map(|table| table.name).collect();
        text += &format!("{}  (tables: {})\n", collector.name, tables.join(", "));
        let here = capabilities.iter().find(|capability| capability.collector == collector.name);
        if let Some(Capability { supported: false, reason, .. }) = here {
            text += &format!("    NOT HERE: {reason}\n");
        }
        text += &format!("    {}\n", collector.question);
        for param in collector.params {
            let expected = catalogue::expected(&param.ty);
            text += &format!("    {} = {:?}: {expected}; {}\n", param.name, param.default, param.doc);
        }
    }
    text
}

/// No parameters: defaults.
fn no_params() -> BTreeMap<String, String> {
    BTreeMap::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn every_collector_and_parameter_is_listed() {
        let not_here = Capability { collector: "processes", supported: false, reason: "no BTF".to_owned() };
        let text = collectors(&[not_here]);
        assert_eq!(text.matches("NOT HERE: no BTF").count(), 1, "{text}");
        for collector in catalogue::COLLECTORS {
            assert!(text.contains(collector.name));
            assert!(collector.params.iter().all(|param| text.contains(param.name)), "{text}");
        }
    }
}
