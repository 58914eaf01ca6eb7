// SPDX-License-Identifier: Apache-2.0
//! Where the agents find the replica that leads: the only endpoint of the Service that they connect to.
//!
//! That Service has no selector, and its `EndpointSlice` is written here. Readiness would not do: replicas that wait are
//! healthy, and an update or the drain of a node has to be able to count on them.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

/// Between two looks at the slice, which somebody may have deleted; with no change they cost the API server no write.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);
/// For the last write: others wait for the Lease.
const WITHDRAWN: Duration = Duration::from_secs(1);
const MANAGER: &str = "tracelake-operator";

/// This replica's address, and the Service that it is to be the endpoint of.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Namespace of both.
    pub namespace: String,
    /// Name of the Service; the slice has the same.
    pub service: String,
    /// The pod's address.
    pub address: IpAddr,
    /// Where it serves agents.
    pub port: u16,
    /// The pod's name.
    pub pod: String,
}

impl Announcement {
    /// Writes the slice, and keeps it so for as long as this runs. Errors are logged and tried again; `told` is called each time
    /// that it is as it should be.
    pub async fn keep(&self, client: Client, told: impl Fn()) {
        loop {
            let pause = match self.write(client.clone(), true).await {
                Ok(()) => {
                    told();
                    LOOK_EVERY
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot tell the agents where the operator is, will retry");
                    RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes the address away: nobody has to wait for an answer from a pod that is no more.
    pub async fn withdraw(&self, client: Client) {
        match tokio::time::timeout(WITHDRAWN, self.write(client, false)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot tell the agents that this replica stops"),
            Err(_) => {
                tracing::warn!("the API server does not answer; agents are not told that this replica stops")
            }
        }
    }

    async fn write(&self, client: Client, serving: bool) -> Result<(), kube::Error> {
        let slices: Api<EndpointSlice> = Api::namespaced(client, &self.namespace);
        // Forced: the replica before wrote the same fields.
        let params = PatchParams::apply(MANAGER).force();
        slices.patch(&self.service, &params, &Patch::Apply(self.slice(serving))).await.map(drop)
    }

    fn slice(&self, serving: bool) -> Value {
        let endpoint = json!({
            "addresses": [self.address],
            "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "namespace": self.namespace, "name": self.pod },
        });
        let endpoints: Vec<Value> = serving.then_some(endpoint).into_iter().collect();
        let kind = if self.address.is_ipv4() { "IPv4" } else { "IPv6" };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": self.service,
                "labels": {
                    "kubernetes.io/service-name": self.service,
                    "endpointslice.kubernetes.io/managed-by": MANAGER,
                },
            },
            "addressType": kind,
            "endpoints": endpoints,
            "ports": [{ "name": "grpc", "port": self.port, "protocol": "TCP", "appProtocol": "grpc" }],
        })
    }
}
