// SPDX-License-Identifier: Apache-2.0

//! `tracelake status`: everything that the cluster says of one session, once or until it is over; and what its dataset says of each
//! container.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use crds::{Phase, TraceSession};
use k8s_openapi::jiff::Timestamp;

use crate::follow::{Look, POLL, Watched, deleted};
use crate::location::Access;
use crate::output::{self, Format};
use crate::sessions::{Named, Sessions};
use crate::{coverage, list, runtime, say, view};

/// Arguments of `tracelake status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    session: Named,
    /// Print it again when it changes, until the session is over.
    #[arg(short, long)]
    watch: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Also what was traced of each container: from when to when, by which hooks, and why not. Read from the dataset of a session
    /// that is over, with credentials of its store or --via-operator.
    #[arg(long, conflicts_with = "watch")]
    coverage: bool,
    #[command(flatten)]
    access: Access,
}

/// The whole screen, from its first line.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Prints the status.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(!args.watch || args.output == Format::Table, "--watch prints for people, without -o");
    ensure!(!args.coverage || args.output == Format::Table, "--coverage prints for people, without -o");
    ensure!(args.coverage || !args.access.via_operator, "--via-operator reads a dataset: add --coverage");
    runtime()?.block_on(async {
        let (sessions, name) = args.session.find().await?;
        let mut session = sessions.get(&name).await?;
        if !args.watch {
            list::tidy(&mut session);
            args.output.print(|| &session, || view::describe(&session, Timestamp::now()))?;
            if args.coverage {
                let cluster = args.access.connect(args.session.context()).await?;
                let location = args.access.open(&cluster, &sessions.namespace, &name).await?;
                output::print(&coverage::table(&location.contents().await?))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        watch(&sessions, &name, session).await.map(|()| ExitCode::SUCCESS)
    })
}

async fn watch(sessions: &Sessions, name: &str, mut session: TraceSession) -> Result<()> {
    let live = std::io::stdout().is_terminal();
    let mut watched = Watched::new(sessions, name, &session);
    let mut printed: Option<String> = None;
    loop {
        let version = session.metadata.resource_version.clone();
        // Ages change each second, which only a screen should show.
        if live || printed.is_none() || printed != version {
            let text = view::describe(&session, Timestamp::now());
            if live {
                output::steer(CLEAR)?;
            }
            let before = if live || printed.is_none() { "" } else { "\n---\n\n" };
            output::print(&format!("{before}{text}"))?;
            printed = version;
        }
        if view::status(&session).phase.is_some_and(Phase::is_over) {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
        match watched.look().await? {
            Look::Seen(seen) => session = *seen,
            Look::Deleted => bail!(deleted(&session)),
            Look::Silent(why) => say(&format!("{why}\n")),
        }
    }
}
