// SPDX-License-Identifier: Apache-2.0

//! `tracelake`: run sessions in a cluster, record a command or a cgroup without Kubernetes, and find, look at, verify and fetch
//! datasets. Installed as `kubectl-tracelake` it is `kubectl tracelake`.
//!
//! One file per command. Errors are one sentence on standard error that says what to do next.

mod cluster;
mod collectors;
mod compact;
mod completion;
mod coverage;
mod explain;
mod follow;
mod interrupts;
mod line;
mod list;
mod location;
mod ls;
mod output;
mod params;
mod profile;
mod pull;
#[cfg(target_os = "linux")]
mod record;
#[cfg(feature = "sql")]
mod report;
mod run;
mod sessions;
#[cfg(feature = "sql")]
mod sql;
mod status;
mod stop;
mod verify;
mod via;
mod view;

use std::path::Path;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Point at pods, get tables.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Record pods of a cluster: make a session, follow it, and say what came of it.
    Run(Box<run::Args>),
    /// List the sessions of a cluster.
    List(list::Args),
    /// Say all that a cluster knows of a session.
    Status(status::Args),
    /// End a session before its time.
    Stop(stop::Args),
    /// Record what a command or a cgroup of this machine does, without a cluster.
    #[cfg(target_os = "linux")]
    Record(record::Args),
    /// List what can be recorded, with tables, cost and parameters.
    Collectors(collectors::Args),
    /// Read every object of a dataset and compare it with its manifests and ledger.
    Verify(verify::Args),
    /// Show every table of a dataset: rows, ledger, coverage.
    Show(verify::ShowArgs),
    /// List the sessions in a store or a folder, whatever the cluster still knows of them.
    Ls(ls::Args),
    /// Fetch a dataset into a folder, what is not there yet, and check every object.
    Pull(pull::Args),
    /// Merge the small files of a session that is over, so that it takes fewer requests to read.
    Compact(compact::Args),
    /// Ask a dataset in SQL: its tables, and views as tcplife, tcptop and their like print them.
    #[cfg(feature = "sql")]
    Sql(sql::Args),
    /// Say what a dataset means: what was lost, TCP health, memory, processes, page faults, scheduling, drops, throughput.
    #[cfg(feature = "sql")]
    Report(report::Args),
    /// Print what a shell needs to complete commands and flags.
    Completion(completion::Args),
}

impl Command {
    /// Whether it goes on when nobody reads what it prints: it has more to do than to print.
    fn outlives_its_reader(&self) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Self::Record(_) => true,
            Self::Run(_) | Self::Stop(_) | Self::Compact(_) => true,
            // What was spilled has to go.
            #[cfg(feature = "sql")]
            Self::Sql(_) | Self::Report(_) => true,
            _ => false,
        }
    }
}

/// As a shell tells of a program that ended because nobody read what it printed.
const NO_READER: u8 = 141;

/// The name of the plugin's file, by which kubectl finds it.
const PLUGIN: &str = "kubectl-tracelake";

/// What users type to run this.
static PROGRAM: LazyLock<&str> = LazyLock::new(|| {
    let path = std::env::args_os().next().unwrap_or_default();
    if Path::new(&path).file_stem().is_some_and(|stem| stem == PLUGIN) {
        "kubectl tracelake"
    } else {
        "tracelake"
    }
});

/// What users type to run this: for usage texts and advice.
fn program() -> &'static str {
    &PROGRAM
}

/// The command line under the name that users type.
fn command() -> clap::Command {
    Args::command().bin_name(program())
}

/// musl's own gives large pieces back at once, so that every batch of rows costs the kernel as much as the rows cost us.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit());
    if !args.command.outlives_its_reader() {
        // What prints to a pipe ends with its reader, as `head`.
        // SAFETY: no handler of ours, and no other thread yet.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    // A store's client looks the provider up when it is made.
    _ = rustls::crypto::ring::default_provider().install_default();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    // Its own choice is by NO_COLOR alone: what goes to a file would have colours too.
    let colours = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(colours).init();
    let result = match args.command {
        Command::Run(args) => run::run(&args),
        Command::List(args) => list::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Stop(args) => stop::run(&args),
        #[cfg(target_os = "linux")]
        Command::Record(args) => record::run(args),
        Command::Collectors(args) => collectors::run(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Show(args) => verify::show(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Compact(args) => compact::run(&args),
        #[cfg(feature = "sql")]
        Command::Sql(args) => sql::run(&args),
        #[cfg(feature = "sql")]
        Command::Report(args) => report::run(&args),
        Command::Completion(args) => completion::run(&args, command(), &program().replace(' ', "-")),
    };
    result.unwrap_or_else(|error| {
        let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            return ExitCode::from(NO_READER);
        }
        say(&format!("{}: {}\n", program(), shown(&format!("{error:#}"))));
        ExitCode::FAILURE
    })
}

/// For commands that wait for one place.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// An error as a terminal may show it: its words may be those of a store, a manifest or a server.
fn shown(error: &str) -> String {
    error.lines().map(output::plain).collect::<Vec<_>>().join("\n")
}

/// Writes to standard error. That nobody reads it is no reason to stop.
fn say(text: &str) {
    use std::io::Write;
    _ = std::io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn an_error_has_no_control_characters_of_others() {
        assert_eq!(shown("one\u{1b}[2J\r\ntwo\u{7}"), "one\\u{1b}[2J\ntwo\\u{7}");
    }
}
