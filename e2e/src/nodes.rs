// SPDX-License-Identifier: Apache-2.0

//! Nodes whose power is cut, by a command of the harness: `TRACELAKE_NODE_COMMAND`, called with `stop` or `start` and the
//! node's name.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A node that is down until this is dropped, also when the test fails: the tests after it need the node.
pub struct StoppedNode(String);

impl StoppedNode {
    /// Cuts its power.
    pub fn stop(node: &str) -> Result<Self> {
        let this = Self(node.to_owned());
        node_command("stop", node)?;
        Ok(this)
    }
}

impl Drop for StoppedNode {
    fn drop(&mut self) {
        if let Err(error) = node_command("start", &self.0) {
            eprintln!("{} stays down: {error:#}", self.0);
        }
    }
}

fn node_command(verb: &str, node: &str) -> Result<()> {
    let command = std::env::var("TRACELAKE_NODE_COMMAND").context(
        "TRACELAKE_NODE_COMMAND is not set: this test stops a node; `cargo xtask test e2e` gives the command of its own cluster",
    )?;
    let mut words = command.split_whitespace();
    let program = words.next().context("TRACELAKE_NODE_COMMAND is empty")?;
    let status = Command::new(program).args(words).args([verb, node]).status()?;
    ensure!(status.success(), "`{command} {verb} {node}` ended with {status}");
    Ok(())
}
