// SPDX-License-Identifier: Apache-2.0

//! `tracelake status`: everything that the cluster says of one session, once or until it is over; and what its dataset says of each
//! container.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use crds::{Phase, TraceSession};
use k8s_openapi::jiff::Timestamp;

use crate::location::Access;
use crate::output::{self, Format};
use crate::sessions::{Named, Sessions};
use crate::{coverage, explain, list, runtime, say, view};

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

const POLL: Duration = Duration::from_secs(1);
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
            let document = args.output.document(&session)?;
            output::print(&document.unwrap_or_else(|| view::describe(&session, Timestamp::now())))?;
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
    let mut printed: Option<String> = None;
    loop {
        let version = session.metadata.resource_version.clone();
        // Ages change each second, which only a screen should show.
        if live || printed.is_none() || printed != version {
            let text = view::describe(&session, Timestamp::now());
            let before = if live { CLEAR } else { printed.as_ref().map_or("", |_| "\n---\n\n") };
            output::print(&format!("{before}{text}"))?;
            printed = version;
        }
        if view::status(&session).phase.is_some_and(Phase::is_over) {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
        session = match sessions.try_get(name).await {
            Ok(session) => session,
            Err(error) if explain::may_pass(&error) => {
                say(&format!(
                    "the API server does not answer, trying again: {}\n",
                    output::plain(&explain::cause(&error))
                ));
                session
            }
            Err(error) => return Err(sessions.refused(error, name)),
        };
    }
}
