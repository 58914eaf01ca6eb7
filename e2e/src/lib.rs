// SPDX-License-Identifier: Apache-2.0

//! Tests of the whole product on a real cluster, any cluster: what they need is `KUBECONFIG`, the
//! chart installed with `devStore.enabled`, and the image of [`pods`] on the nodes.
//!
//! `cargo xtask test e2e` makes all of that. A test gets an [`Env`] and a namespace of its own,
//! starts pods whose work is known ([`pods`], `workload/src/main.rs`), applies a session
//! ([`session`]), waits for what its status says, never for time, and compares the tables that lie
//! in the store ([`rows`]) with what the pods say they did.
//!
//! On failure a test prints the namespace's pods, sessions and events, and the logs of operator and
//! agents. `TRACELAKE_KEEP=1` keeps the namespaces of failed tests.

pub mod nodes;
pub mod pods;
pub mod release;
pub mod rows;
pub mod session;
pub mod store;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::conditions::is_true;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod};
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use object_store::ObjectStore;
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

/// How long a test waits for what Kubernetes or the product does in its own time. A limit shows what is stuck, and says nothing of
/// speed: on emulated nodes with four tests side by side a container has taken three minutes to start. A test that promises a
/// time has a limit of its own.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// What every test has.
#[derive(Clone)]
pub struct Env {
    /// The administrator's client.
    pub client: Client,
    /// Where the chart is installed: `TRACELAKE_NAMESPACE`, else `tracelake-system`.
    pub system: String,
    /// The dev store's bucket.
    pub store: Arc<dyn ObjectStore>,
}

impl Env {
    /// Connects to the cluster that `KUBECONFIG` names.
    pub async fn connect() -> Result<Self> {
        // Two crates may both want to choose a provider for the process; the first wins.
        let _ = rustls::crypto::ring::default_provider().install_default();
        ensure!(
            std::env::var_os("KUBECONFIG").is_some(),
            "KUBECONFIG is not set: run `cargo xtask test e2e`, or name a cluster that has the chart"
        );
        let client =
            Client::try_default().await.context("connecting to the cluster that KUBECONFIG names")?;
        let system = std::env::var("TRACELAKE_NAMESPACE").unwrap_or_else(|_| "tracelake-system".to_owned());
        // Its bucket is made by the operator's first probe, some seconds after the chart is installed.
        let stores = Api::<crds::ClusterTraceStore>::all(client.clone());
        let ready = await_condition(stores, "default", |store: Option<&crds::ClusterTraceStore>| {
            let status = store.and_then(|store| store.status.as_ref());
            status.is_some_and(|status| is_true(&status.conditions, crds::conditions::store::READY))
        });
        tokio::time::timeout(PATIENCE, ready)
            .await
            .with_context(|| format!("ClusterTraceStore default is not Ready after {PATIENCE:?}"))??;
        let store = store::dev_store(&client, &system).await?;
        Ok(Self { client, system, store })
    }

    /// Names of the nodes that take pods, sorted.
    pub async fn nodes(&self) -> Result<Vec<String>> {
        let nodes = Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await?;
        let mut names: Vec<String> = nodes
            .items
            .into_iter()
            .filter(|node| {
                let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
                taints.iter().all(|taint| taint.effect != "NoSchedule")
            })
            .filter_map(|node| node.metadata.name)
            .collect();
        names.sort();
        ensure!(!names.is_empty(), "the cluster has no node that takes pods");
        Ok(names)
    }

    /// The first two nodes; the tests that need both ends of a connection on different kernels say so here.
    pub async fn two_nodes(&self) -> Result<(String, String)> {
        let nodes = self.nodes().await?;
        ensure!(nodes.len() >= 2, "this test needs two nodes, the cluster has {}", nodes.len());
        Ok((nodes[0].clone(), nodes[1].clone()))
    }

    /// The operator's pod that leads.
    pub async fn leader(&self) -> Result<Pod> {
        let lease =
            Api::<Lease>::namespaced(self.client.clone(), &self.system).get("tracelake-operator").await?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        let pods = pods::api(&self.client, &self.system);
        pods.get(&holder).await.with_context(|| format!("the Lease is held by {holder:?}"))
    }

    /// A port of the operator's pod that leads, as [`store::forward`] gives it.
    pub async fn forward_to_leader(&self, port: u16) -> Result<SocketAddr> {
        let name = self.leader().await?.metadata.name.unwrap_or_default();
        let found = ListParams::default().fields(&format!("metadata.name={name}"));
        store::forward(self.client.clone(), self.system.clone(), found, port).await
    }

    /// A channel to the operator that leads, trusting the CA that it publishes, by a name that its certificate is for.
    pub async fn operator(&self) -> Result<Channel> {
        let published: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.system);
        let ca = published.get(node_api::CA_CONFIG_MAP).await?.data.unwrap_or_default();
        let ca = ca.get(node_api::CA_KEY).context("ConfigMap tracelake-ca has no certificate")?;
        let address = self.forward_to_leader(7443).await?;
        let tls = node_api::tls::client(ca.as_bytes(), &format!("tracelake-operator.{}.svc", self.system))?;
        Ok(Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(tls)?
            .timeout(Duration::from_secs(30))
            .connect_lazy())
    }

    /// The agent's pod on a node.
    pub async fn agent_on(&self, node: &str) -> Result<Pod> {
        let params = ListParams::default()
            .labels("app.kubernetes.io/component=node-agent")
            .fields(&format!("spec.nodeName={node}"));
        let pods = pods::api(&self.client, &self.system).list(&params).await?;
        pods.items.into_iter().next().with_context(|| format!("no agent on node {node}"))
    }
}

/// Runs a test in a namespace of its own, which is deleted afterwards.
pub fn in_namespace<F>(name: &str, test: impl FnOnce(Env, String) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let env = Env::connect().await?;
        let namespace = format!("{name}-{}", &uuid::Uuid::new_v4().simple().to_string()[..6]);
        let api: Api<Namespace> = Api::all(env.client.clone());
        let object = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": namespace, "labels": { "pod-security.kubernetes.io/enforce": "privileged" } },
        }))?;
        api.create(&PostParams::default(), &object).await?;
        let result = test(env.clone(), namespace.clone()).await;
        if let Err(error) = &result {
            println!("---- {name} failed: {error:#}");
            dump(&env, &namespace).await;
            if std::env::var_os("TRACELAKE_KEEP").is_some() {
                println!("---- namespace {namespace} is kept");
                return result;
            }
        }
        match api.delete(&namespace, &DeleteParams::background()).await {
            // The test has deleted it.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            deleted => drop(deleted?),
        }
        result
    })
}

/// Prints what a person would look at first. Errors here must not hide the test's own.
async fn dump(env: &Env, namespace: &str) {
    let params = ListParams::default();
    if let Ok(pods) = pods::api(&env.client, namespace).list(&params).await {
        for pod in pods {
            let status = pod.status.unwrap_or_default();
            println!(
                "pod {} on {:?}: {:?}",
                pod.metadata.name.unwrap_or_default(),
                pod.spec.and_then(|spec| spec.node_name),
                status.phase
            );
        }
    }
    if let Ok(sessions) =
        Api::<crds::TraceSession>::namespaced(env.client.clone(), namespace).list(&params).await
    {
        for session in sessions {
            println!(
                "session {:?}: {}",
                session.metadata.name,
                serde_json::to_string_pretty(&session.status).unwrap_or_default()
            );
        }
    }
    if let Ok(events) = Api::<Event>::namespaced(env.client.clone(), namespace).list(&params).await {
        for event in events {
            println!("event {:?} {:?}: {:?}", event.involved_object.name, event.reason, event.message);
        }
    }
    let system = pods::api(&env.client, &env.system);
    if let Ok(pods) = system.list(&params).await {
        for name in pods.into_iter().filter_map(|pod| pod.metadata.name) {
            let log = system.logs(&name, &LogParams { tail_lines: Some(40), ..LogParams::default() }).await;
            println!("---- log of {name}\n{}", log.unwrap_or_else(|error| error.to_string()));
        }
    }
}
