// SPDX-License-Identifier: Apache-2.0

//! Nodes whose power is cut, by a command of the harness: `TRACELAKE_NODE_COMMAND`, called with `stop` or `start` and the
//! node's name.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::Env;
use crate::store::{self, store_node};

/// On a node with this label the API server runs.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// The store's node, which stays, and another one that may be stopped. Where the store is on the only one that may be, it
/// moves, and what it held is gone.
pub async fn home_and_lost(env: &Env) -> Result<(String, String)> {
    env.two_nodes().await?;
    let nodes: Api<Node> = Api::all(env.client.clone());
    let control_planes = nodes.list(&ListParams::default().labels(CONTROL_PLANE)).await?;
    let mut others = env.nodes().await?;
    others.retain(|name| control_planes.iter().all(|node| node.name_any() != *name));
    let home = store_node(env).await?;
    if let Some(lost) = others.iter().find(|name| **name != home) {
        return Ok((home, lost.clone()));
    }
    let lost = others.pop().context("this test stops a node, and every node is a control plane")?;
    nodes.cordon(&lost).await?;
    let moved = store::made_anew(env).await;
    nodes.uncordon(&lost).await?;
    Ok((moved?, lost))
}

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
