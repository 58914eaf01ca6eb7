// SPDX-License-Identifier: Apache-2.0
//! Step 6 (store required): the first and the last file of a session.
//!
//! In: the resolved store, what the nodes say. Out: `_tracelake/session.json` before anything is collected, and
//! `_tracelake/manifest-<n>.json` when the session is over, or again when a lost node has returned. The operator
//! lists the folder and compares it with the nodes' own manifests before it says that a session is complete.
//!
//! Both files are created once. A `session.json` that is there already was written by this session before the
//! operator restarted: its start is the session's start. A manifest that says what the last one said is not
//! written again.
//!
//! A store may hold anything, put there by anybody: what is read of it is bounded ([`closing`], [`FIRST_MAX`]), a start is between the
//! session's creation and now, and of the rest only what nodes of the session wrote is read at all.

use std::collections::BTreeMap;

use crds::conditions::reason;
use dataset::closing::{self, Closing, Effort};
use dataset::key::Key;
use dataset::manifest::{FORMAT_VERSION, Manifest, SessionFile, Verdict};
use dataset::reader::{self, ReadError};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::memory::Late;
use super::nodes::NodeState;
use super::status::Finished;
use crate::hub::SessionId;
use crate::store::ResolvedStore;

/// The longest `session.json`: it holds the spec, and the API server takes no longer object.
const FIRST_MAX: u64 = 2 << 20;

/// How far the clocks of two operators may be apart.
const SKEW: SignedDuration = SignedDuration::from_mins(1);

/// What is asked of a `session.json` that is there.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct First {
    uid: String,
    start_time: String,
}

/// Writes `session.json`, or reads the one that is there. Returns when the window began, which is not after `now`.
///
/// # Errors
/// When the store fails, or holds another session's file, or one that this session cannot have.
pub async fn open(
    store: &ResolvedStore,
    id: &SessionId,
    cluster_id: &str,
    spec: serde_json::Value,
    created: Timestamp,
    now: Timestamp,
) -> Result<Timestamp, ReadError> {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let file = SessionFile {
        format_version: FORMAT_VERSION,
        namespace: id.namespace.clone(),
        session: id.name.clone(),
        uid: id.uid.clone(),
        cluster_id: cluster_id.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        start_time: now.to_string(),
        spec,
        schemas: dataset::schema::versions(),
    };
    let objects = store.object_store().as_ref();
    match reader::create_json(objects, store.prefix(), &Key::Session, &file).await {
        Ok(()) => Ok(now),
        Err(ReadError::Exists { key }) => {
            let there: First = reader::read_json(objects, store.prefix(), &Key::Session, FIRST_MAX).await?;
            let start = there.start_time.parse::<Timestamp>().ok();
            let start = start.filter(|start| there.uid == id.uid && start.duration_since(now) <= SKEW);
            // Where clocks are apart, a session begins no earlier than it was made.
            start.map(|start| start.max(created).min(now)).ok_or(ReadError::Exists { key })
        }
        Err(error) => Err(error),
    }
}

/// Why each node is not complete, as far as its state says; none for those that need not say anything.
fn reasons(states: &BTreeMap<String, NodeState>) -> BTreeMap<String, Option<String>> {
    let reason = |state: &NodeState| match state {
        // Whether it is true is for the listing to say.
        NodeState::Done => Some(String::new()),
        // It has nothing to acknowledge.
        NodeState::Unsupported(_) => None,
        NodeState::Failed(reason, message) => Some(format!("{reason}: {message}")),
        NodeState::Lost(reason) => Some((*reason).to_owned()),
        NodeState::Waiting | NodeState::Preparing | NodeState::Running | NodeState::Draining => {
            Some(format!("{}: it had not uploaded everything in time", reason::DRAIN_TIMEOUT))
        }
    };
    states.iter().map(|(node, state)| (node.clone(), reason(state))).collect()
}

/// Compares what the store holds with what the nodes say, and writes the manifest that follows.
///
/// # Errors
/// When the store fails, or holds more than `effort` has room for.
pub async fn close(
    store: &ResolvedStore,
    states: &BTreeMap<String, NodeState>,
    now: Timestamp,
    effort: Effort,
) -> Result<(Finished, Manifest), ReadError> {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let (objects, prefix) = (store.object_store().as_ref(), store.prefix());
    let closing = closing::close(objects, prefix, &reasons(states), now.to_string(), effort).await?;
    let Closing { manifest, is_new, findings, found, strangers } = closing;
    for finding in &findings {
        tracing::warn!(finding, "dataset differs from what the nodes say");
    }
    if found > 0 || strangers > 0 {
        tracing::warn!(
            findings = found,
            strangers,
            "dataset looked through; strangers are objects that no manifest of its nodes lists"
        );
    }
    if is_new {
        reader::create_json(objects, prefix, &Key::manifest(manifest.number), &manifest).await?;
    }
    Ok((finished(&manifest), manifest))
}

/// What a manifest says, for the status.
pub fn finished(manifest: &Manifest) -> Finished {
    let mut missing = manifest.nodes.iter().filter(|node| !node.reason.is_empty());
    let reason = match missing.next() {
        None => String::new(),
        Some(first) => {
            let others = missing.count();
            let others = if others == 0 { String::new() } else { format!(" (and {others} more nodes)") };
            format!("node {}: {}{others}", first.node, first.reason)
        }
    };
    let totals = (manifest.verdict == Verdict::Complete).then_some(manifest.totals);
    Finished { manifest: Some((Key::manifest(manifest.number).relative(), manifest.verdict)), reason, totals }
}

/// Whether a node of which a manifest or status says this has nothing more to upload, ever.
pub fn is_last_word(reason: &str) -> bool {
    let constant = reason.split_once(':').map_or(reason, |(constant, _)| constant);
    [node_api::reason::NEVER_STARTED, node_api::reason::UNSUPPORTED].contains(&constant)
}

/// What a manifest says of the nodes it lists.
pub fn late(manifest: &Manifest) -> Late {
    let missing = manifest.nodes.iter().filter(|node| !node.reason.is_empty() && !is_last_word(&node.reason));
    Late {
        missing: missing.map(|node| node.node.clone()).collect(),
        listed: manifest.nodes.iter().map(|node| node.node.clone()).collect(),
        done: 0,
    }
}
