// SPDX-License-Identifier: Apache-2.0
//! The labels of the cluster's nodes, for sessions with a `nodeSelector`.
//!
//! In: a watch of the nodes' metadata. Out: labels by name, once all nodes are listed, and whether something changed.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::listed::Listed;

/// The cluster's nodes and their labels.
#[derive(Clone)]
pub struct Nodes {
    store: Store<PartialObjectMeta<Node>>,
    /// Whether all of them are known.
    pub listed: Listed,
    changed: Arc<AtomicBool>,
}

impl Nodes {
    /// Watches them until stopped.
    pub fn watch(client: Client, stop: CancellationToken) -> Self {
        let (store, writer) = reflector::store();
        let this = Self { store, listed: Listed::default(), changed: Arc::default() };
        let (listed, changed) = (this.listed.clone(), this.changed.clone());
        let mut known: HashMap<String, u64> = HashMap::new();
        let watch =
            watcher(Api::<PartialObjectMeta<Node>>::all(client), watcher::Config::default().any_semantic())
                .default_backoff()
                .modify(|node| {
                    node.metadata.managed_fields = None;
                    node.metadata.annotations = None;
                })
                .reflect(writer)
                .for_each(move |event| {
                    listed.saw(&event);
                    match event {
                        // The kubelet writes to its node every few minutes; only labels are asked for here.
                        Ok(Event::Apply(node) | Event::InitApply(node)) => {
                            let (name, labels) = (node.name_any(), hash(node.labels()));
                            if known.insert(name, labels) != Some(labels) {
                                changed.store(true, Ordering::Relaxed);
                            }
                        }
                        Ok(Event::Delete(node)) => {
                            known.remove(&node.name_any());
                            changed.store(true, Ordering::Relaxed);
                        }
                        Ok(Event::Init | Event::InitDone) => {}
                        Err(error) => tracing::warn!(%error, "watch of nodes failed, will retry"),
                    }
                    std::future::ready(())
                });
        tokio::spawn(async move { stop.run_until_cancelled(watch).await });
        this
    }

    /// None of them, for good: for tests of sessions that do not ask.
    pub fn none() -> Self {
        Self { store: reflector::store().0, listed: Listed::default(), changed: Arc::default() }
    }

    /// A node's labels; none if there is no such node.
    pub fn labels(&self, node: &str) -> Option<BTreeMap<String, String>> {
        self.store.get(&ObjectRef::new(node)).map(|node| node.labels().clone())
    }

    /// Whether something about them changed since the last call.
    pub fn have_changed(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }
}

fn hash(labels: &BTreeMap<String, String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    labels.hash(&mut hasher);
    hasher.finish()
}
