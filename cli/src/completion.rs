// SPDX-License-Identifier: Apache-2.0

//! `tracelake completion`: what a shell needs to complete commands and flags.

use std::process::ExitCode;

use anyhow::Result;
use clap_complete::{Shell, generate};

use crate::output;

/// Arguments of `tracelake completion`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell. For bash: `source <(tracelake completion bash)`.
    shell: Shell,
}

/// Prints the shell's script for a program of this name.
pub(crate) fn run(args: &Args, mut command: clap::Command, program: &str) -> Result<ExitCode> {
    let mut script = Vec::new();
    generate(args.shell, &mut command, program, &mut script);
    output::print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}
