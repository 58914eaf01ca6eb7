// SPDX-License-Identifier: Apache-2.0

//! Starting other programs: quiet when they succeed, the end of their output in the error when they fail.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Lines of a failed program's output that go into the error.
const TAIL: usize = 30;

/// A command with its arguments, without standard input.
pub(crate) fn command<I, S>(program: impl AsRef<OsStr>, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// The same command, with its environment, as one that ends with this program, however that ends.
pub(crate) fn bound(inner: &Command) -> Command {
    let mut bound = command("setpriv", ["--pdeathsig", "TERM", "--"]);
    bound.arg(inner.get_program()).args(inner.get_args());
    bound.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    bound
}

/// Runs a command to its end and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("cannot start {}", describe(command)))?;
    successful(command, &done)
}

fn successful(command: &Command, done: &Output) -> Result<String> {
    if !done.status.success() {
        let mut text = String::from_utf8_lossy(&done.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&done.stderr));
        bail!("{} failed ({}):\n{}", describe(command), done.status, tail(&text, TAIL));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Runs a command to its end; its output is shown only when it fails.
pub(crate) fn quiet(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// The same for a command that is asked to end when nobody needs it any more.
pub(crate) fn quiet_while(command: &mut Command, needed: impl Fn() -> bool) -> Result<()> {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.with_context(|| format!("cannot start {}", describe(command)))?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let done = std::thread::scope(|scope| {
        let done = scope.spawn(|| child.wait_with_output());
        while !done.is_finished() {
            if !needed() {
                // An error means that it ended in between.
                let _ = pidfd_send_signal(&process, Signal::TERM);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        done.join().expect("waiting does not panic")
    });
    successful(command, &done?).map(drop)
}

/// Runs a command with its output on the terminal.
pub(crate) fn loud(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", describe(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", describe(command));
    }
    Ok(())
}

/// Whether a command can be started and succeeds; its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// One word of a shell command, quoted.
pub(crate) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    format!("`{}`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::{command, quiet_while};

    #[test]
    fn a_command_that_nobody_needs_is_ended() {
        quiet_while(&mut command("true", [""]), || true).unwrap();
        let error = quiet_while(&mut command("sleep", ["600"]), || false).unwrap_err();
        assert!(error.to_string().contains("SIGTERM"), "{error:#}");
    }
}
