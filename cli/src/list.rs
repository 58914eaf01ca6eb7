// SPDX-License-Identifier: Apache-2.0

//! `tracelake list`: the sessions that a cluster knows. Those that lie in a store `tracelake ls` lists.

use std::process::ExitCode;

use anyhow::Result;
use crds::TraceSession;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::output::{self, Format};
use crate::sessions::Scope;
use crate::{runtime, say, view};

/// Arguments of `tracelake list`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    scope: Scope,
    /// Those of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Only those with these labels, as `app=shop,tier!=test`.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints a line for each session, or all of them.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    runtime()?.block_on(async {
        let sessions = args.scope.sessions().await?;
        let mut found = sessions.list(args.all_namespaces, args.selector.as_deref()).await?;
        found.iter_mut().for_each(tidy);
        let list = || {
            json!({ "apiVersion": format!("{}/{}", crds::GROUP, crds::VERSION), "kind": "TraceSessionList", "items": found })
        };
        let text = || {
            if found.is_empty() {
                let place = if args.all_namespaces { "the cluster" } else { &sessions.namespace };
                say(&format!("there is no session in {place}\n"));
                return String::new();
            }
            let now = Timestamp::now();
            let rows: Vec<_> = found.iter().map(|session| view::row(session, now)).collect();
            output::table(&view::COLUMNS, &rows)
        };
        args.output.print(list, text)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Leaves out who wrote which field, as kubectl does.
pub(crate) fn tidy(session: &mut TraceSession) {
    session.metadata.managed_fields = None;
}
