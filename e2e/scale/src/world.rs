// SPDX-License-Identifier: Apache-2.0

//! What is in the API server: nodes, pods, the agents' pods and tokens, the store, and sessions.
//!
//! Nothing runs there but the API server itself: no kubelet, scheduler or controller changes any of it, so every request that
//! is counted is the operator's, or one that this program knows of.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crds::{ClusterTraceStore, TraceSession, conditions};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::Args;

pub(crate) const SYSTEM: &str = "tracelake-system";
pub(crate) const SERVICE: &str = "tracelake-operator";
pub(crate) const COLLECTOR: &str = "processes";
const AGENT: &str = "tracelake-node-agent";
const SHOP: &str = "shop";
/// Writes that are under way at once.
const SIDE_BY_SIDE: usize = 64;
/// One session in so many is of every node.
const WIDE: usize = 20;
/// Longer than everything that is measured.
const WINDOW: &str = "2h";
const TOKEN_SECONDS: i64 = 4 * 3_600;
const POLL: Duration = Duration::from_secs(2);

/// A session and where its pods are.
pub(crate) struct Wanted {
    name: String,
    label: (&'static str, String),
    /// By index.
    pub(crate) nodes: Vec<usize>,
    pub(crate) wide: bool,
}

/// The API server and what was put there.
pub(crate) struct World {
    client: Client,
    nodes: usize,
    pods: usize,
    sessions: usize,
}

impl World {
    pub(crate) async fn make(args: &Args, folder: &Path) -> Result<Self> {
        let client = Client::try_default().await.context("KUBECONFIG names no API server")?;
        let world = Self { client, nodes: args.nodes, pods: args.pods, sessions: args.sessions };
        let began = Instant::now();
        for namespace in [SYSTEM, SHOP] {
            world
                .create::<Namespace>(
                    &Api::all(world.client.clone()),
                    json!({ "metadata": { "name": namespace } }),
                )
                .await?;
        }
        // Made by a controller where there is one; pods are admitted only with it.
        for (namespace, name) in [(SYSTEM, AGENT), (SHOP, "default")] {
            let api: Api<ServiceAccount> = Api::namespaced(world.client.clone(), namespace);
            world.create(&api, json!({ "metadata": { "name": name } })).await?;
        }
        world.many::<Node>(&Api::all(world.client.clone()), world.nodes().map(|name| {
            json!({ "metadata": { "labels": { "kubernetes.io/hostname": name }, "name": name } })
        })).await?;
        let system: Api<Pod> = Api::namespaced(world.client.clone(), SYSTEM);
        world
            .many(
                &system,
                world.nodes().enumerate().map(|(index, node)| {
                    let mut pod = pod(&agent(index), &node, AGENT);
                    pod["metadata"]["labels"] = json!({ "app.kubernetes.io/component": "node-agent" });
                    pod
                }),
            )
            .await?;
        let shop: Api<Pod> = Api::namespaced(world.client.clone(), SHOP);
        world
            .many(
                &shop,
                (0..world.pods).map(|index| {
                    let mut pod = pod(&format!("pod-{index}"), &node(world.node_of(index)), "default");
                    pod["metadata"]["labels"] = json!({ "app": world.app_of(index), "part-of": SHOP });
                    pod
                }),
            )
            .await?;
        world.tokens(folder).await?;
        world.store(args).await?;
        eprintln!(
            "{} nodes and {} pods after {:.0} s",
            world.nodes,
            world.pods,
            began.elapsed().as_secs_f64()
        );
        Ok(world)
    }

    /// Names of all nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = String> {
        (0..self.nodes).map(node)
    }

    /// Pods of one app are on as many nodes.
    fn node_of(&self, pod: usize) -> usize {
        pod % self.nodes
    }

    fn app_of(&self, pod: usize) -> String {
        format!("app-{}", pod / (self.pods / self.sessions).max(1))
    }

    pub(crate) fn token_file(&self, folder: &Path, index: usize) -> PathBuf {
        folder.join("tokens").join(index.to_string())
    }

    pub(crate) fn free_port(&self) -> Result<u16> {
        Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
    }

    /// Each session to apply.
    pub(crate) fn sessions(&self) -> Vec<Wanted> {
        let each = |index: usize| {
            let name = format!("session-{index}");
            if index % WIDE == WIDE - 1 {
                let nodes = (0..self.nodes.min(self.pods)).collect();
                return Wanted { name, label: ("part-of", SHOP.to_owned()), nodes, wide: true };
            }
            let app = format!("app-{index}");
            let pods = (0..self.pods).filter(|pod| self.app_of(*pod) == app);
            let nodes = pods.map(|pod| self.node_of(pod)).collect();
            Wanted { name, label: ("app", app), nodes, wide: false }
        };
        (0..self.sessions).map(each).collect()
    }

    /// Applies a session and returns its UID.
    pub(crate) async fn apply(&self, wanted: &Wanted) -> Result<String> {
        let api: Api<TraceSession> = Api::namespaced(self.client.clone(), SHOP);
        let (key, value) = &wanted.label;
        let made = self
            .create(
                &api,
                json!({
                    "apiVersion": "tracelake.dev/v1alpha1", "kind": "TraceSession",
                    "metadata": { "name": wanted.name },
                    "spec": {
                        "target": { "podSelector": { "matchLabels": { *key: value } } },
                        "collectors": [{ "name": COLLECTOR }],
                        "duration": WINDOW,
                    },
                }),
            )
            .await?;
        made.uid().context("an object has a UID")
    }

    /// Waits until no session has changed for a while. Returns those that run, with the beginning of their windows.
    pub(crate) async fn settle(
        &self,
        quiet: Duration,
        patience: Duration,
    ) -> Result<BTreeMap<String, String>> {
        let api: Api<TraceSession> = Api::namespaced(self.client.clone(), SHOP);
        let (deadline, mut last, mut since) = (Instant::now() + patience, BTreeMap::new(), Instant::now());
        loop {
            let all = api.list(&ListParams::default()).await?.items;
            let versions: BTreeMap<String, Option<String>> =
                all.iter().map(|session| (session.name_any(), session.resource_version())).collect();
            if versions != last {
                (last, since) = (versions, Instant::now());
            } else if since.elapsed() >= quiet {
                let running = all.iter().filter_map(|session| {
                    let status = session.status.as_ref()?;
                    let start = status.start_time.as_ref()?.0.to_string();
                    (status.phase == Some(crds::Phase::Running)).then(|| (session.name_any(), start))
                });
                return Ok(running.collect());
            }
            ensure!(Instant::now() < deadline, "sessions do not settle");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Writes the operator's CA where the agents look for it, as the kubelet does.
    pub(crate) async fn publish_ca(&self, folder: &Path) -> Result<()> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM);
        let data = api.get(node_api::CA_CONFIG_MAP).await?.data.unwrap_or_default();
        let ca = data.get(node_api::CA_KEY).context("ConfigMap tracelake-ca has no certificate")?;
        fs::write(folder.join(node_api::CA_KEY), ca).context("writing the CA")
    }

    pub(crate) async fn await_store(&self, patience: Duration) -> Result<()> {
        let api: Api<ClusterTraceStore> = Api::all(self.client.clone());
        let ready = await_condition(api, "default", |store: Option<&ClusterTraceStore>| {
            let status = store.and_then(|store| store.status.as_ref());
            status.is_some_and(|status| conditions::is_true(&status.conditions, conditions::store::READY))
        });
        tokio::time::timeout(patience, ready).await.context("the store is not Ready")??;
        Ok(())
    }

    /// Requests that the API server has answered, by verb and resource, but for this program's.
    pub(crate) async fn requests(&self) -> Result<BTreeMap<String, u64>> {
        let request = http_get("/metrics")?;
        let text = self.client.request_text(request).await.context("reading the API server's metrics")?;
        let mut requests = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let Some((labels, count)) = line.rsplit_once("} ") else { continue };
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                rest.split('"').next()
            };
            let (Some(verb), Some(resource)) = (label("verb"), label("resource")) else { continue };
            // What belongs to nothing, as the line that reads this, or to the server's own objects.
            if resource.is_empty() || label("scope") == Some("") {
                continue;
            }
            let part = label("subresource").filter(|part| !part.is_empty());
            let what =
                part.map_or_else(|| format!("{verb} {resource}"), |part| format!("{verb} {resource}/{part}"));
            *requests.entry(what).or_default() += count.parse::<f64>()? as u64;
        }
        Ok(requests)
    }

    /// A token for each agent, as the kubelet asks for it.
    async fn tokens(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder.join("tokens"))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), SYSTEM);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM);
        let uids: BTreeMap<String, String> = pods
            .list_metadata(&ListParams::default())
            .await?
            .items
            .into_iter()
            .filter_map(|pod| Some((pod.name_any(), pod.uid()?)))
            .collect();
        stream::iter(0..self.nodes)
            .map(|index| {
                let (accounts, name) = (accounts.clone(), agent(index));
                let uid = uids.get(&name).cloned();
                async move {
                    let request = TokenRequest {
                        spec: TokenRequestSpec {
                            audiences: vec![node_api::TOKEN_AUDIENCE.to_owned()],
                            bound_object_ref: Some(BoundObjectReference {
                                api_version: Some("v1".to_owned()),
                                kind: Some("Pod".to_owned()),
                                name: Some(name),
                                uid,
                            }),
                            expiration_seconds: Some(TOKEN_SECONDS),
                        },
                        ..TokenRequest::default()
                    };
                    let made = accounts.create_token_request(AGENT, &PostParams::default(), &request).await?;
                    let token = made.status.context("a token")?.token;
                    fs::write(self.token_file(folder, index), token).context("writing a token")
                }
            })
            .buffer_unordered(SIDE_BY_SIDE)
            .try_collect()
            .await
    }

    async fn store(&self, args: &Args) -> Result<()> {
        let (id, key) = args.store_keys.split_once(':').context("--store-keys is ID:SECRET")?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM);
        let keys = json!({ "accessKeyId": id, "secretAccessKey": key });
        self.create(&secrets, json!({ "metadata": { "name": "store" }, "stringData": keys })).await?;
        let stores: Api<ClusterTraceStore> = Api::all(self.client.clone());
        self.create(
            &stores,
            json!({
                "apiVersion": "tracelake.dev/v1alpha1", "kind": "ClusterTraceStore",
                "metadata": { "name": "default" },
                "spec": {
                    "s3": { "endpoint": args.store, "bucket": "tracelake" },
                    "credentials": { "secretRef": { "name": "store" } },
                },
            }),
        )
        .await?;
        Ok(())
    }

    async fn create<K>(&self, api: &Api<K>, object: Value) -> Result<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        let object = serde_json::from_value(object)?;
        api.create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("creating a {}", K::kind(&())))
    }

    async fn many<K>(&self, api: &Api<K>, objects: impl Iterator<Item = Value>) -> Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        let made =
            stream::iter(objects).map(|object| self.create(api, object)).buffer_unordered(SIDE_BY_SIDE);
        made.try_for_each(|_| async { Ok(()) }).await
    }
}

fn node(index: usize) -> String {
    format!("node-{index}")
}

fn agent(index: usize) -> String {
    format!("{AGENT}-{index}")
}

/// A pod that its node would run.
fn pod(name: &str, node: &str, account: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "nodeName": node,
            "serviceAccountName": account,
            "automountServiceAccountToken": false,
            "containers": [{ "name": "app", "image": "registry.k8s.io/pause:3.10" }],
        },
    })
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    http::Request::get(path).body(Vec::new()).context("a request")
}
