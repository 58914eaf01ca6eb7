// SPDX-License-Identifier: Apache-2.0

//! `tracelake stop`: a session ends now instead of with its window; its nodes upload what they have.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::follow::{self, Followed, OnInterrupt};
use crate::interrupts::Interrupts;
use crate::output::Format;
use crate::sessions::Named;
use crate::{list, run, runtime, view};

/// Arguments of `tracelake stop`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    session: Named,
    /// Do not wait until everything is uploaded.
    #[arg(long)]
    no_wait: bool,
    /// How to print the session, as it is when this command ends.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Asks the session to end, and waits until it is over.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    runtime()?.block_on(async {
        let (sessions, name) = args.session.find().await?;
        let mut session = sessions.stop(&name).await?;
        if args.no_wait {
            list::tidy(&mut session);
            args.output.print(|| &session, || format!("{} was asked to stop\n", view::title(&session)))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut interrupts = Interrupts::listen()?;
        match follow::follow(&sessions, session, &mut interrupts, OnInterrupt::Leave).await? {
            Followed::Over(mut session) => {
                list::tidy(&mut session);
                args.output.print(|| &session, || run::ending(&session))?;
                Ok(run::exit_code(&view::status(&session)))
            }
            Followed::Deleted(last) => bail!(follow::deleted(&last)),
            Followed::Left => Ok(ExitCode::from(run::LEFT)),
        }
    })
}
