// SPDX-License-Identifier: Apache-2.0
//! The agents' own pods: which exist, with which UID.
//!
//! In: a watch on the metadata of pods in the agents' namespace. Out: [`Pods`] for the authenticator. A pod that
//! the watch does not show is asked for, because the watch may be behind a pod that has just started; a pod
//! that is shown costs nothing, whatever the number of agents.

use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use node_api::is_name;
use tokio_util::sync::CancellationToken;

use crate::token::Pods;

/// See the module.
pub struct AgentPods {
    api: Api<PartialObjectMeta<Pod>>,
    namespace: String,
    seen: Store<PartialObjectMeta<Pod>>,
}

impl AgentPods {
    /// Watches the pods of `namespace` that carry `labels` until stopped.
    pub fn start(client: Client, namespace: &str, labels: &str, stop: CancellationToken) -> Self {
        let api: Api<PartialObjectMeta<Pod>> = Api::namespaced(client, namespace);
        let (seen, writer) = reflector::store();
        let config = watcher::Config::default().any_semantic().labels(labels);
        let watch = watcher(api.clone(), config)
            .default_backoff()
            .modify(|pod| pod.metadata.managed_fields = None)
            .reflect(writer)
            .for_each(|event| async move {
                if let Err(error) = event {
                    tracing::warn!(%error, "watch of the agents' pods failed, will retry");
                }
            });
        tokio::spawn(async move { stop.run_until_cancelled(watch).await });
        Self { api, namespace: namespace.to_owned(), seen }
    }
}

impl Pods for AgentPods {
    fn uid<'a>(&'a self, pod: &'a str) -> BoxFuture<'a, Result<Option<String>, kube::Error>> {
        Box::pin(async move {
            // It may come from a token that nobody has verified, and becomes part of a URL.
            if !is_name(pod) {
                return Ok(None);
            }
            if let Some(found) = self.seen.get(&ObjectRef::new(pod).within(&self.namespace)) {
                return Ok(found.metadata.uid.clone());
            }
            Ok(self.api.get_opt(pod).await?.and_then(|found| found.metadata.uid))
        })
    }
}
