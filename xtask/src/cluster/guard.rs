// SPDX-License-Identifier: Apache-2.0

//! What ends a cluster that nobody asked to keep, however the command that uses it ends: by an error, Ctrl-C or SIGKILL.
//!
//! A process of its own, in a session of its own, waits until its standard input is closed, which the kernel does for a
//! command that can no longer do so itself. What it ends is the cluster of its own start: another command may have ended that
//! and begun another one meanwhile.

use std::io::Read;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};

use super::end_unless_kept;
use crate::exec;

/// While it lives, the cluster may be started and used.
pub(crate) struct Guard(Child);

impl Guard {
    /// Starts the one of the cluster with this id.
    pub(super) fn start(id: &str) -> Result<Self> {
        // setsid replaces itself by the command, and takes it out of the terminal's reach.
        let mut guard = exec::command("setsid", [std::env::current_exe().context("finding this program")?]);
        guard.args(["cluster", "guard", "--of", id]).stdin(Stdio::piped()).stdout(Stdio::null());
        Ok(Self(guard.spawn().context("cannot start the cluster's guard")?))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        match self.0.wait() {
            Ok(status) if status.success() => {}
            ended => eprintln!("something of the cluster may still run: its guard ended with {ended:?}"),
        }
    }
}

/// `cargo xtask cluster guard --of ID`.
pub(super) fn run(id: &str) -> Result<()> {
    // It sends nothing; an error is an end, too.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    end_unless_kept(id)
}
