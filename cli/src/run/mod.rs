// SPDX-License-Identifier: Apache-2.0

//! `tracelake run`: makes a session, follows it, and ends with what came of it.
//!
//! In: flags, or a file. Out: a session of the cluster; progress on standard error; on standard output where the dataset is, whether it
//! is whole, and its report, from the objects themselves where the caller can read them, otherwise from the session's status. Of a
//! session that is deleted meanwhile, as one whose time to live is over at once, the objects tell how it ended. For programs standard
//! output has the session alone, as it ended or was last seen, and what the dataset is found to be goes to standard error.
//! Ctrl-C asks the session to stop and waits for it; again, it is left alone.

mod selector;
mod spec;

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::conditions::{self, session as condition};
use crds::{Phase, TraceSession, TraceSessionStatus};
use dataset::coverage::CoverageKind;
use dataset::manifest::{Manifest, Verdict};
use dataset::reader::{Contents, ReadError};

use crate::cluster::Dataset;
use crate::follow::{self, Followed, OnInterrupt};
use crate::interrupts::Interrupts;
use crate::location::{self, Access, Location};
use crate::output::{self, Format, paint, phase_style, plain};
use crate::sessions::{Scope, Sessions};
use crate::{list, program, runtime, say, verify, view};

/// Left alone before it was over.
pub(crate) const LEFT: u8 = 130;
/// Over, and something that was asked for is missing.
const NOT_WHOLE: u8 = 3;
/// Nothing could be collected.
const NOTHING: u8 = 4;
/// A store that is not reached in this time is none that can be read from here.
const OPENING: Duration = Duration::from_secs(30);

const STATUSES: &str = "Exit status:
  0    completed: everything that was asked for was collected and lies in the store
  1    an error, or the dataset is not what its manifests say, or the session was deleted and its dataset cannot be read from here
  3    over, but something is missing: a node, a collector, or events that were lost
  4    nothing could be collected
  130  left alone by Ctrl-C before it was over";

/// Arguments of `tracelake run`.
#[derive(Debug, clap::Args)]
#[command(after_help = STATUSES)]
pub(crate) struct Args {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    spec: spec::Flags,
    /// A file with the TraceSession, as YAML or JSON, instead of flags; `-` is standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with = "flags")]
    file: Option<PathBuf>,
    /// Print the TraceSession instead of making it.
    #[arg(long)]
    dry_run: bool,
    /// Make it, and do not wait for its end.
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
    /// At the end, do not read the dataset: it is neither checked nor reported on.
    #[arg(long)]
    no_verify: bool,
    /// At the end, check the dataset and print no report.
    #[cfg(feature = "sql")]
    #[arg(long)]
    no_report: bool,
    /// How to print the session, as it is when it is over or was last seen; for programs no report comes after it. With --no-wait as
    /// it was made, with --dry-run as it would be (YAML if not said).
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    access: Access,
}

/// Runs a session.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut object = match &args.file {
        Some(file) => spec::read(file)?,
        None => args.spec.object()?,
    };
    let metadata = &mut object["metadata"];
    if let Some(namespace) = &args.scope.namespace {
        let other = metadata["namespace"].as_str().filter(|other| other != namespace);
        ensure!(
            other.is_none(),
            "the file says namespace {:?}, and -n says {namespace:?}",
            other.unwrap_or_default()
        );
        metadata["namespace"] = namespace.as_str().into();
    }
    let namespace = metadata["namespace"].as_str().map(str::to_owned);
    if args.dry_run {
        let format = if args.output == Format::Table { Format::Yaml } else { args.output };
        format.print(|| &object, String::new)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (status, whole) = runtime()?.block_on(follow_one(args, object, namespace))?;
    #[cfg(feature = "sql")]
    if let Some((namespace, name)) = whole.filter(|_| !args.no_report && args.output == Format::Table) {
        let place =
            location::Place::session(&namespace, &name, args.scope.context.clone(), args.access.clone());
        if let Err(error) = crate::report::print(place) {
            let again = format!("{} report {namespace}/{name}", program());
            say(&format!("there is no report ({}): `{again}` tries again\n", plain(&format!("{error:#}"))));
        }
    }
    #[cfg(not(feature = "sql"))]
    drop(whole);
    Ok(status)
}

/// Namespace and name.
type Named = (String, String);

/// Makes the session and follows it to its end; and which one it is, if its dataset was read and is whole.
async fn follow_one(
    args: &Args,
    mut object: serde_json::Value,
    namespace: Option<String>,
) -> Result<(ExitCode, Option<Named>)> {
    let cluster = args.access.connect(args.scope.context.as_deref()).await?;
    let sessions = Sessions::of(&cluster, namespace.as_deref())?;
    object["metadata"]["namespace"] = sessions.namespace.as_str().into();
    let mut interrupts = Interrupts::listen()?;
    let mut made = tokio::select! {
        made = sessions.create(&object) => made?,
        () = interrupts.next() => {
            say(&format!(
                "interrupted before the API server answered: `{} list -n {}` says whether there is a session\n",
                program(), sessions.namespace
            ));
            return Ok((ExitCode::from(LEFT), None));
        }
    };
    let title = view::title(&made);
    if args.no_wait {
        list::tidy(&mut made);
        args.output.print(|| &made, || format!("{title} was made\n"))?;
        return Ok((ExitCode::SUCCESS, None));
    }
    say(&format!("{}: {title} was made; Ctrl-C stops it\n", program()));
    let name = made.metadata.name.clone().context("the API server gave it no name")?;
    let (mut session, gone) =
        match follow::follow(&sessions, made, &mut interrupts, OnInterrupt::Stop).await? {
            Followed::Over(session) => (session, false),
            Followed::Deleted(last) => (last, true),
            Followed::Left => return Ok((ExitCode::from(LEFT), None)),
        };
    let status = view::status(&session);
    if gone {
        say(&format!("{}: {}\n", program(), follow::deleted(&session)));
    }
    // A program is given one in any case.
    if !gone || args.output != Format::Table {
        list::tidy(&mut session);
        args.output.print(|| &session, || ending(&session))?;
    }
    // How it ended, as far as its status says.
    let ended = if gone { ExitCode::FAILURE } else { exit_code(&status) };
    let place = status.dataset.filter(|dataset| gone || dataset.manifest.is_some());
    let Some(place) = place.filter(|_| !args.no_verify) else { return Ok((ended, None)) };
    let open = async {
        if !gone {
            return args.access.open(&cluster, &sessions.namespace, &name).await;
        }
        ensure!(!args.access.via_operator, "the operator signs nothing of a session that is gone");
        Location::of_dataset(&Dataset::of_status(&place))
    };
    // A session that is gone is named by the place of its data.
    let what = if gone { plain(&place.uri) } else { title.clone() };
    tokio::select! {
        found = check(args, open, &what) => Ok(match found? {
            Checked::Right(contents) if gone => (exit_code_of(&contents), None),
            Checked::Right(_) => (ended, Some((sessions.namespace, name))),
            Checked::Wrong => (ExitCode::FAILURE, None),
            Checked::Unread => (ended, None),
        }),
        () = interrupts.next() => {
            say(&format!("the dataset was not checked: `{} verify {what}` does\n", program()));
            Ok((ExitCode::from(LEFT), None))
        }
    }
}

/// What reading a dataset showed.
enum Checked {
    /// It is what its manifests say.
    Right(Box<Contents>),
    /// It is not.
    Wrong,
    /// It cannot be read from here, and is not known to be wrong.
    Unread,
}

/// Checks the dataset of a session that is over.
async fn check(args: &Args, open: impl Future<Output = Result<Location>>, what: &str) -> Result<Checked> {
    let later = |why: &str| {
        say(&format!(
            "the dataset was not read from here ({why}): `{} verify {what}` checks every object, with credentials of its \
             store (AWS_...) or --via-operator\n",
            program()
        ));
        Ok(Checked::Unread)
    };
    if !args.access.via_operator && !location::has_credentials() {
        return later("no credentials of its store");
    }
    let opened = async {
        let location = open.await?;
        let contents = location.try_contents().await;
        anyhow::Ok((location, contents))
    };
    let (location, contents) = match tokio::time::timeout(OPENING, opened).await {
        Err(_) => return later(&format!("its store did not answer within {OPENING:?}")),
        Ok(Err(error)) => return later(&plain(&format!("{error:#}"))),
        Ok(Ok(opened)) => opened,
    };
    let contents = match contents {
        Ok(contents) => contents,
        Err(error @ ReadError::Store { .. }) => return later(&plain(&error.to_string())),
        // The store answers, and what it has is no dataset.
        Err(error) => {
            say(&format!("{}: {}\n", program(), plain(&format!("{:#}", location.explained(error)))));
            return Ok(Checked::Wrong);
        }
    };
    let show = |text: &str| match args.output {
        Format::Table => output::print(text),
        // Standard output has the session.
        Format::Json | Format::Yaml => {
            say(text);
            Ok(())
        }
    };
    show(&verify::tables(&contents))?;
    let checked = match verify::check(&location, &contents).await {
        Ok(checked) => checked,
        Err(error) => return later(&plain(&format!("{error:#}"))),
    };
    show(&checked.text())?;
    if !checked.is_whole() {
        return Ok(Checked::Wrong);
    }
    Ok(Checked::Right(Box::new(contents)))
}

/// What came of a session, for people.
pub(crate) fn ending(session: &TraceSession) -> String {
    let status = view::status(session);
    let phase = status.phase.map_or_else(String::new, |phase| format!("{phase:?}"));
    let short = status.phase == Some(Phase::Completed) && !view::is_whole(&status);
    let style = if short { output::WARNING } else { phase_style(status.phase) };
    let mut text = format!("{}: {}\n", view::title(session), paint(style, &phase));
    // Writing to a string does not fail.
    let mut line = |line: &str| _ = writeln!(text, "{line}");
    if status.phase == Some(Phase::Failed)
        && let Some(why) = conditions::get(&status.conditions, condition::COLLECTING)
    {
        line(&plain(&why.message));
    }
    for trouble in view::troubles(&status) {
        line(&format!("{}: {}", paint(output::WARNING, &trouble.reason), plain(&trouble.message)));
    }
    for node in &status.failing_nodes {
        line(&format!("node {}: {}: {}", plain(&node.name), plain(&node.reason), plain(&node.message)));
    }
    if status.phase == Some(Phase::Failed) && status.dataset.is_none() {
        return text;
    }
    let nodes = status.nodes.clone().unwrap_or_default();
    line(&format!("{} of {} nodes are done", nodes.done, nodes.expected));
    line(&view::account(&status));
    let place = status.dataset.as_ref().map(|dataset| plain(&dataset.uri)).unwrap_or_default();
    line(&format!("{}: {place}", view::stored(&status)));
    text
}

/// Whether it has all that was asked for, as [`STATUSES`] says.
pub(crate) fn exit_code(status: &TraceSessionStatus) -> ExitCode {
    match status.phase {
        _ if view::is_whole(status) => ExitCode::SUCCESS,
        Some(Phase::Failed) => ExitCode::from(NOTHING),
        _ => ExitCode::from(NOT_WHOLE),
    }
}

/// The same of a session whose end nobody saw, as its dataset tells.
fn exit_code_of(contents: &Contents) -> ExitCode {
    let is_whole = |manifest: &Manifest| {
        manifest.verdict == Verdict::Complete && !manifest.totals.unknown && manifest.totals.terms.lost() == 0
    };
    let mut coverage = contents.parts().flat_map(|(_, node)| &node.coverage);
    let traced = coverage.all(|row| row.kind == CoverageKind::Traced);
    if traced && contents.manifest.as_ref().is_some_and(is_whole) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_WHOLE)
    }
}
