// SPDX-License-Identifier: Apache-2.0

//! Reads what a session left in the cluster's store, from outside the cluster.
//!
//! The store is reached through the API server (port-forward to the dev store's pod), so that the
//! tests need nothing but `KUBECONFIG`. Requests are signed with the dev store's own credentials,
//! read from its Secret: the tests are the cluster's administrator.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crds::ClusterTraceStore;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::{Env, PATIENCE, pods};

/// Where the chart's dev store listens.
pub const PORT: u16 = 8333;
/// The bucket of the dev store.
pub const BUCKET: &str = "tracelake";
/// Its keys, and what it reads itself.
pub const SECRET: &str = "tracelake-dev-store";
const LABEL: &str = "app.kubernetes.io/component=dev-store";

/// The dev store's whole bucket, as long as the process lives.
pub async fn dev_store(client: &Client, namespace: &str) -> Result<Arc<dyn ObjectStore>> {
    let address = dev_store_address(client, namespace).await?;
    at(client, namespace, address).await
}

/// The dev store's keys: the access key's id and its secret.
pub async fn credentials(client: &Client, namespace: &str) -> Result<(String, String)> {
    let secret =
        Api::<Secret>::namespaced(client.clone(), namespace).get(SECRET).await.with_context(|| {
            format!("no Secret {namespace}/{SECRET}: is the chart installed with devStore.enabled?")
        })?;
    let data = secret.data.unwrap_or_default();
    let value = |key: &str| -> Result<String> {
        let bytes = data.get(key).with_context(|| format!("Secret {namespace}/{SECRET} has no {key}"))?;
        Ok(String::from_utf8(bytes.0.clone())?)
    };
    Ok((value("accessKeyId")?, value("secretAccessKey")?))
}

/// The bucket of a server at this address with the dev store's own keys.
pub async fn at(client: &Client, namespace: &str, address: SocketAddr) -> Result<Arc<dyn ObjectStore>> {
    let (id, secret) = credentials(client, namespace).await?;
    let store = AmazonS3Builder::new()
        .with_endpoint(format!("http://{address}"))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(BUCKET)
        .with_access_key_id(id)
        .with_secret_access_key(secret)
        .build()?;
    Ok(Arc::new(store))
}

/// Where the dev store is reached from here, as [`forward`] gives it.
pub async fn dev_store_address(client: &Client, namespace: &str) -> Result<SocketAddr> {
    forward(client.clone(), namespace.to_owned(), ListParams::default().labels(LABEL), PORT).await
}

/// Listens on a port of this machine's loopback and carries each connection to `port` of the pod
/// that is found so at that time.
pub async fn forward(client: Client, namespace: String, found: ListParams, port: u16) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (client, namespace, found) = (client.clone(), namespace.clone(), found.clone());
            tokio::spawn(async move {
                // The caller sees a connection that ends early and retries it: its errors say more than ours.
                let _ = carry(stream, client, &namespace, &found, port).await;
            });
        }
    });
    Ok(address)
}

async fn carry(
    mut stream: TcpStream,
    client: Client,
    namespace: &str,
    found: &ListParams,
    port: u16,
) -> Result<()> {
    let pods = Api::<Pod>::namespaced(client, namespace);
    let pod = pods.list(found).await?.items.pop().context("no pod")?;
    let name = pod.metadata.name.context("a pod has a name")?;
    let mut forwarder = pods.portforward(&name, &[port]).await?;
    let mut upstream = forwarder.take_stream(port).context("the port was asked for")?;
    tokio::io::copy_bidirectional(&mut stream, &mut upstream).await?;
    drop(upstream);
    forwarder.join().await?;
    Ok(())
}

/// Makes a ClusterTraceStore like the chart's own, with what `change` does to its spec.
pub async fn like_default(client: &Client, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
    let stores: Api<ClusterTraceStore> = Api::all(client.clone());
    let mut object = serde_json::to_value(stores.get("default").await?)?;
    object["metadata"] = json!({ "name": name });
    change(&mut object["spec"]);
    stores.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    Ok(())
}

/// Every key in the bucket.
pub async fn keys(store: &Arc<dyn ObjectStore>) -> Result<Vec<String>> {
    let mut listed = store.list(None);
    let mut keys = Vec::new();
    while let Some(object) = listed.try_next().await.context("listing the dev store's bucket")? {
        keys.push(object.location.to_string());
    }
    Ok(keys)
}

/// Where the dev store runs.
pub async fn store_node(env: &Env) -> Result<String> {
    pods::node_of(&store_pod(env).await?)
}

/// Deletes the dev store's pod, waits until the next one is ready, and returns where that runs.
pub(crate) async fn made_anew(env: &Env) -> Result<String> {
    let api = pods::api(&env.client, &env.system);
    let last = store_pod(env).await?.name_any();
    api.delete(&last, &DeleteParams::default()).await?;
    pods::gone(&api, &last).await?;
    let deadline = Instant::now() + PATIENCE;
    let next = loop {
        match store_pod(env).await {
            Ok(pod) => break pod.name_any(),
            Err(error) => ensure!(Instant::now() < deadline, "after {PATIENCE:?}: {error:#}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    pods::node_of(&pods::running(&api, &next).await?)
}

async fn store_pod(env: &Env) -> Result<Pod> {
    let stores = ListParams::default().labels(LABEL);
    let store = pods::api(&env.client, &env.system).list(&stores).await?.items.pop();
    store.context("no dev store")
}
