// SPDX-License-Identifier: Apache-2.0

//! What the command line asks of a cluster: where a session's data are, and the way to the operator.
//!
//! With the caller's own kubeconfig, which stays here: the operator is shown a token of a ServiceAccount that the API server
//! makes for this purpose alone. That works with every kind of credentials, client certificates as well, and what the operator
//! gets is good for nothing else.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use node_api::CA_CONFIG_MAP as CA;
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::{Channel, Endpoint};

use crate::explain::explain;

/// The Service whose only endpoint is the replica that leads, and its EndpointSlice.
const LEADER: &str = "tracelake-operator-leader";
/// Where the chart is installed unless somebody says otherwise.
pub(crate) const SYSTEM: &str = "tracelake-system";
/// A way that is silently gone is given up after two of these, and another made.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// The shortest that the API server makes.
const TOKEN_SECONDS: i64 = 600;

/// A cluster, and where in it the chart is installed.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    system: String,
}

/// Where a session's data are, as its status says.
#[derive(Debug)]
pub(crate) struct Dataset {
    pub(crate) uri: String,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) path_style: bool,
}

impl Dataset {
    /// As a status has it that was read before.
    pub(crate) fn of_status(status: &crds::DatasetStatus) -> Self {
        Self {
            uri: status.uri.clone(),
            endpoint: status.endpoint.clone(),
            region: Some(status.region.clone()).filter(|region| !region.is_empty()),
            path_style: status.force_path_style,
        }
    }
}

impl Cluster {
    /// The cluster of a context of the kubeconfig, or of the current one.
    ///
    /// # Errors
    /// When there is no kubeconfig, or it has no such context.
    pub(crate) async fn connect(context: Option<&str>, system: &str) -> Result<Self> {
        let config = match context {
            Some(name) => {
                let options = KubeConfigOptions { context: Some(name.to_owned()), ..Default::default() };
                match Kubeconfig::read() {
                    Ok(file) => {
                        Config::from_custom_kubeconfig(file, &options).await.map_err(|e| e.to_string())
                    }
                    Err(error) => Err(error.to_string()),
                }
            }
            None => Config::infer().await.map_err(|error| error.to_string()),
        };
        // The errors' texts hold those of their causes.
        let mut config = config.map_err(|error| {
            anyhow!("no cluster is known: set KUBECONFIG, or name a context with --context ({error})")
        })?;
        // kube asks again for minutes when the API server is overloaded, without a word to whoever waits.
        config.default_retry = false;
        let client = Client::try_from(config).context("the kubeconfig cannot be used")?;
        Ok(Self { client, system: system.to_owned() })
    }

    /// One that somebody else has reached.
    #[cfg(test)]
    pub(crate) fn reached(client: Client) -> Self {
        Self { client, system: SYSTEM.to_owned() }
    }

    /// The client, with the caller's own rights.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Where the data of a session are.
    ///
    /// # Errors
    /// When it cannot be read, or has none yet.
    pub(crate) async fn dataset(&self, namespace: &str, name: &str) -> Result<Dataset> {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("tracelake.dev", "v1alpha1", "TraceSession"));
        let sessions: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind);
        let what = format!("TraceSession {namespace}/{name}");
        let hint = format!("`kubectl -n {namespace} get tracesessions` lists those that there are");
        let session = sessions.get(name).await.map_err(|error| explain(error, &what, &hint, &hint))?;
        let dataset = &session.data["status"]["dataset"];
        let text = |field: &str| dataset[field].as_str().map(str::to_owned);
        let uri = text("uri").with_context(|| {
            format!("{what} has no data yet: `kubectl -n {namespace} describe tracesession {name}` says why")
        })?;
        let path_style = dataset["forcePathStyle"].as_bool().unwrap_or_default();
        Ok(Dataset { uri, endpoint: text("endpoint"), region: text("region"), path_style })
    }

    /// A token that shows the operator who reads, of a ServiceAccount in the session's namespace.
    ///
    /// # Errors
    /// When there is no such account, or the caller may make no token of it.
    pub(crate) async fn token(&self, namespace: &str, account: &str) -> Result<String> {
        let spec = TokenRequestSpec {
            audiences: vec![node_api::DATA_AUDIENCE.to_owned()],
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let made = accounts.create_token_request(account, &PostParams::default(), &request).await;
        let what = format!("token of ServiceAccount {namespace}/{account}");
        let hint = format!(
            "name another with --service-account, or make it: `kubectl -n {namespace} create serviceaccount {account}` and \
             `kubectl -n {namespace} create rolebinding {account} --clusterrole=tracelake-data --serviceaccount={namespace}:{account}`"
        );
        let made = made.map_err(|error| explain(error, &what, &hint, &hint))?;
        made.status.map(|status| status.token).with_context(|| format!("the API server made none: {what}"))
    }

    /// A channel to the operator that leads, which is trusted by the CA that the cluster publishes, and reached through the API
    /// server: another leader is found by the next connection.
    ///
    /// # Errors
    /// When the CA or the leader cannot be found.
    pub(crate) async fn operator(&self) -> Result<Channel> {
        let system = &self.system;
        let hint = format!(
            "is the chart installed there (--operator-namespace)? An administrator gives the right with `kubectl -n {system} \
             create rolebinding NAME --role=tracelake-via-operator --user=YOU`"
        );
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), system);
        let ca = maps
            .get(CA)
            .await
            .map_err(|error| explain(error, &format!("ConfigMap {system}/{CA}"), &hint, &hint))?;
        let ca = ca.data.unwrap_or_default().remove(node_api::CA_KEY);
        let ca = ca.with_context(|| format!("ConfigMap {system}/{CA} holds no certificate"))?;
        // Asked for now, for an error that says what is missing.
        self.leader().await.map_err(|error| error.context(hint))?;
        let address = self.forward().await?;
        let tls = node_api::tls::client(ca.as_bytes(), &format!("{LEADER}.{system}.svc"))?;
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?;
        Ok(crate::via::watched(endpoint, KEEPALIVE).connect_lazy())
    }

    /// Pod and port of the replica that leads.
    async fn leader(&self) -> Result<(String, u16)> {
        let system = &self.system;
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), system);
        let slice = slices
            .get(LEADER)
            .await
            .with_context(|| format!("EndpointSlice {system}/{LEADER} cannot be read"))?;
        let pod = slice.endpoints.into_iter().find_map(|endpoint| endpoint.target_ref?.name);
        let port = slice.ports.into_iter().flatten().find_map(|port| u16::try_from(port.port?).ok());
        pod.zip(port).with_context(|| {
            format!("no operator leads in namespace {system} now: `kubectl -n {system} get pods` says why")
        })
    }

    /// Listens on loopback and carries each connection to the leader, as `kubectl port-forward` does.
    async fn forward(&self) -> Result<SocketAddr> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let cluster = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let cluster = cluster.clone();
                tokio::spawn(async move {
                    if let Err(error) = cluster.carry(stream).await {
                        // What the caller sees is a connection that ended.
                        crate::say(&format!("{}: the way to the operator: {error:#}\n", crate::program()));
                    }
                });
            }
        });
        Ok(address)
    }

    async fn carry(&self, mut stream: TcpStream) -> Result<()> {
        let (pod, port) = self.leader().await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.system);
        let mut forwarder = pods
            .portforward(&pod, &[port])
            .await
            .with_context(|| format!("no port can be forwarded to pod {}/{pod}", self.system))?;
        let mut upstream = forwarder.take_stream(port).context("the port was asked for")?;
        // However it ends: the call on it says what that meant.
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    type Asked = Arc<Mutex<Vec<(String, Value)>>>;

    /// A cluster that answers each request with this, and what it was asked: method, path, body.
    fn cluster(code: u16, answer: Value) -> (Cluster, Asked) {
        let asked = Asked::default();
        let seen = asked.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (seen, answer) = (seen.clone(), answer.clone());
            async move {
                let what = format!("{} {}", request.method(), request.uri().path());
                let body = request.into_body().collect_bytes().await.unwrap();
                seen.lock().unwrap().push((what, serde_json::from_slice(&body).unwrap_or_default()));
                let body = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        });
        (Cluster { client: Client::new(service, "default"), system: "system".to_owned() }, asked)
    }

    fn failure(code: u16, message: &str) -> Value {
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": "R" })
    }

    #[tokio::test]
    async fn a_token_is_asked_for_this_purpose_alone() {
        let (there, asked) = cluster(
            201,
            json!({ "spec": { "audiences": [] }, "status": { "token": "t", "expirationTimestamp": "2026-11-23T00:00:00Z" } }),
        );
        assert_eq!(there.token("shop", "tracelake-reader").await.unwrap(), "t");
        let (what, body) = asked.lock().unwrap().pop().unwrap();
        assert_eq!(what, "POST /api/v1/namespaces/shop/serviceaccounts/tracelake-reader/token");
        assert_eq!(body["spec"]["audiences"], json!(["tracelake-data"]));
        assert_eq!(body["spec"]["expirationSeconds"], 600);

        let (missing, _) = cluster(404, failure(404, "not found"));
        let error = missing.token("shop", "tracelake-reader").await.unwrap_err().to_string();
        assert!(error.starts_with("there is no token of ServiceAccount shop/tracelake-reader: "), "{error}");
        assert!(
            error.contains("--clusterrole=tracelake-data --serviceaccount=shop:tracelake-reader"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_sessions_place_is_as_its_status_says() {
        let dataset = json!({ "uri": "s3://b/team/shop/checkout/uid", "endpoint": "http://s3:9000", "region": "r", "forcePathStyle": true });
        let session = |status: Value| {
            json!({ "apiVersion": "tracelake.dev/v1alpha1", "kind": "TraceSession",
            "metadata": { "name": "checkout", "namespace": "shop" }, "spec": {}, "status": status })
        };
        let (there, asked) = cluster(200, session(json!({ "dataset": dataset })));
        let found = there.dataset("shop", "checkout").await.unwrap();
        assert_eq!(found.uri, "s3://b/team/shop/checkout/uid");
        assert_eq!(
            (found.endpoint.as_deref(), found.region.as_deref(), found.path_style),
            (Some("http://s3:9000"), Some("r"), true)
        );
        let (what, _) = asked.lock().unwrap().pop().unwrap();
        assert_eq!(what, "GET /apis/tracelake.dev/v1alpha1/namespaces/shop/tracesessions/checkout");

        let (pending, _) = cluster(200, session(json!({ "phase": "Pending" })));
        let error = pending.dataset("shop", "checkout").await.unwrap_err().to_string();
        assert!(
            error.contains("has no data yet: `kubectl -n shop describe tracesession checkout`"),
            "{error}"
        );
        let (missing, _) = cluster(404, failure(404, "not found"));
        let error = missing.dataset("shop", "checkout").await.unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no TraceSession shop/checkout: `kubectl -n shop get tracesessions` lists those that there are"
        );
    }

    #[tokio::test]
    async fn the_way_to_the_operator_says_what_right_it_needs() {
        let (barred, _) = cluster(403, failure(403, "tina cannot get configmaps"));
        let error = barred.operator().await.unwrap_err().to_string();
        assert!(error.starts_with("ConfigMap system/tracelake-ca: tina cannot get configmaps; "), "{error}");
        assert!(
            error.contains(
                "kubectl -n system create rolebinding NAME --role=tracelake-via-operator --user=YOU"
            ),
            "{error}"
        );
    }

    #[tokio::test]
    async fn the_leader_is_the_endpoint_that_it_has_written() {
        let slice = |endpoints: Value| {
            json!({ "metadata": { "name": LEADER }, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{ "name": "grpc", "port": 7443 }] })
        };
        let pod = json!([{ "addresses": ["10.0.0.1"], "targetRef": { "kind": "Pod", "name": "tracelake-operator-x" } }]);
        let (there, asked) = cluster(200, slice(pod));
        assert_eq!(there.leader().await.unwrap(), ("tracelake-operator-x".to_owned(), 7443));
        let (what, _) = asked.lock().unwrap().pop().unwrap();
        assert_eq!(
            what,
            "GET /apis/discovery.k8s.io/v1/namespaces/system/endpointslices/tracelake-operator-leader"
        );
        let (between, _) = cluster(200, slice(json!([])));
        let error = between.leader().await.unwrap_err().to_string();
        assert!(error.contains("no operator leads in namespace system now"), "{error}");
    }
}
