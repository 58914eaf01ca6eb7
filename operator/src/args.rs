// SPDX-License-Identifier: Apache-2.0
//! Flags and environment, each once; the chart sets them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use crds::{ByteSize, Interval};
use kube::api::DynamicObject;
use node_api::egress::{Guard, Network};

use crate::announce::Announcement;
use crate::session::limits::Limits;
use crate::store::{EndpointPolicy, ExtraCa, StoreConfig};

/// Reconciles TraceSessions, hands plans to the node agents and signs their uploads.
#[derive(Parser, Clone, Debug)]
#[command(version, about)]
pub struct Args {
    /// The operator's own namespace: its CA, and the Secrets of ClusterTraceStores.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,

    /// The namespace of the node agents; the operator's own if left out.
    #[arg(long, env = "AGENT_NAMESPACE")]
    pub agent_namespace: Option<String>,

    /// The ServiceAccount whose tokens are accepted.
    #[arg(long, env = "AGENT_SERVICE_ACCOUNT", default_value = "tracelake-node-agent")]
    pub agent_service_account: String,

    /// Labels that the agents' pods carry, as in a label selector.
    #[arg(long, env = "AGENT_LABELS", default_value = "app.kubernetes.io/component=node-agent")]
    pub agent_labels: String,

    /// Where the agents connect.
    #[arg(long, env = "GRPC_ADDRESS", default_value = "0.0.0.0:7443")]
    pub grpc_address: SocketAddr,

    /// Where /metrics, /healthz and /readyz are.
    #[arg(long, env = "HTTP_ADDRESS", default_value = "0.0.0.0:8080")]
    pub http_address: SocketAddr,

    /// Name of the Service of all replicas. The agents connect to the one with `-leader` behind it, whose only endpoint is the
    /// replica that leads; the certificate is for the DNS names of both.
    #[arg(long, env = "SERVICE_NAME", default_value = "tracelake-operator")]
    pub service_name: String,

    /// Name of this replica's pod: by it the replica holds the Lease, so no two may have the same.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,

    /// Address of this replica's pod, which becomes the endpoint for agents while it leads; left out, somebody else sees to that.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: Option<IpAddr>,

    /// Further names that the certificate is for.
    #[arg(long, env = "EXTRA_DNS_NAMES", value_delimiter = ',')]
    pub extra_dns_names: Vec<String>,

    /// Seconds from publishing a new CA to using it: what the kubelets need to refresh a mounted ConfigMap.
    #[arg(long, env = "CA_PROPAGATION_SECONDS", default_value_t = 180)]
    pub ca_propagation_seconds: u64,

    /// The ClusterTraceStore of sessions that name none.
    #[arg(long, env = "DEFAULT_STORE")]
    pub default_store: Option<String>,

    /// A ClusterTraceStore to make and to keep at this spec, as JSON.
    #[arg(long, env = "CHART_STORE", value_parser = |text: &str| serde_json::from_str::<DynamicObject>(text))]
    pub chart_store: Option<DynamicObject>,

    /// Endpoints that tenants' TraceStores may name, or `aws`.
    #[arg(long, env = "ALLOWED_ENDPOINTS", value_delimiter = ',')]
    pub allowed_endpoints: Vec<String>,

    /// Networks that tenants' stores may not resolve to, besides loopback and link-local: pods and Services.
    #[arg(long, env = "REFUSED_NETWORKS", value_delimiter = ',')]
    pub refused_networks: Vec<Network>,

    /// A file with certificates in PEM that are trusted for every store besides the public ones, here and on the nodes.
    #[arg(long, env = "EXTRA_CA_FILE")]
    pub extra_ca_file: Option<ExtraCa>,

    /// Namespaces in which the operator may read Secrets, for TraceStores.
    #[arg(long, env = "SECRET_NAMESPACES", value_delimiter = ',')]
    pub secret_namespaces: Vec<String>,

    /// The longest window of a session, as `1h`; longer ones are refused.
    #[arg(long, env = "MAX_DURATION")]
    pub max_duration: Option<Interval>,

    /// After how many bytes in its store a session ends, as `100Gi`; what nodes hold then follows.
    #[arg(long, env = "MAX_BYTES")]
    pub max_bytes: Option<ByteSize>,

    /// Sessions of one namespace that record at the same time; others wait.
    #[arg(long, env = "MAX_SESSIONS_PER_NAMESPACE")]
    pub max_sessions_per_namespace: Option<usize>,

    /// What is logged, as `info,tracelake_operator=debug`.
    #[arg(long, env = "LOG", default_value = "info")]
    pub log: String,

    /// Left out: run the operator.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the chart's Job and test do.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// End every session, stop the operator and clear finalizers, before the chart is deleted.
    Uninstall {
        /// How long sessions may take to upload and end.
        #[arg(long, default_value_t = 120)]
        timeout_seconds: u64,
    },
    /// Say whether the installation works: a replica leads, the default store is ready, agents are connected.
    Check {
        /// How long it may take to get there.
        #[arg(long, default_value_t = 60)]
        timeout_seconds: u64,
    },
}

impl Args {
    /// The agents' namespace.
    pub fn agents(&self) -> &str {
        self.agent_namespace.as_deref().unwrap_or(&self.namespace)
    }

    /// The names that agents may call the operator by.
    pub fn dns_names(&self) -> Vec<String> {
        let namespace = &self.namespace;
        let mut names = Vec::new();
        for service in [self.service_name.clone(), self.leader_service()] {
            let ends = ["".to_owned(), format!(".{namespace}"), format!(".{namespace}.svc")];
            names.extend(
                ends.into_iter()
                    .chain([format!(".{namespace}.svc.cluster.local")])
                    .map(|end| service.clone() + &end),
            );
        }
        names.extend(self.extra_dns_names.iter().filter(|name| !name.is_empty()).cloned());
        names
    }

    /// The Service whose endpoint is the replica that leads.
    pub fn leader_service(&self) -> String {
        format!("{}-leader", self.service_name)
    }

    /// What this replica is called.
    ///
    /// # Errors
    /// When neither flag nor `HOSTNAME` says it.
    pub fn replica(&self) -> anyhow::Result<String> {
        let named = self.pod_name.clone().or_else(|| std::env::var("HOSTNAME").ok());
        named.filter(|name| !name.is_empty()).context("--pod-name or POD_NAME has to name this replica")
    }

    /// What the leader tells the agents; nothing without an address.
    pub fn announcement(&self, replica: &str) -> Option<Announcement> {
        Some(Announcement {
            namespace: self.namespace.clone(),
            service: self.leader_service(),
            address: self.pod_ip?,
            port: self.grpc_address.port(),
            pod: replica.to_owned(),
        })
    }

    /// How long a new CA is published before it is used.
    pub fn ca_propagation(&self) -> Duration {
        Duration::from_secs(self.ca_propagation_seconds)
    }

    /// What sessions may have at most.
    pub fn limits(&self) -> Limits {
        Limits {
            duration: self.max_duration.as_ref().map(Interval::duration),
            bytes: self.max_bytes.as_ref().map(ByteSize::bytes),
            sessions_per_namespace: self.max_sessions_per_namespace,
        }
    }

    /// What the flags say about stores.
    pub fn stores(&self) -> StoreConfig {
        let set = |list: &[String]| list.iter().filter(|one| !one.is_empty()).cloned().collect();
        StoreConfig {
            operator_namespace: self.namespace.clone(),
            default_store: self.default_store.clone().filter(|name| !name.is_empty()),
            secret_namespaces: set(&self.secret_namespaces),
            endpoints: EndpointPolicy {
                allowed: set(&self.allowed_endpoints),
                guard: Guard { refused: self.refused_networks.clone() },
            },
            extra_ca: self.extra_ca_file.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use kube::ResourceExt;

    use crate::store::chart;

    #[test]
    fn flags_are_consistent_and_the_certificate_is_for_every_name_of_the_service() {
        Args::command().debug_assert();
        let job =
            Args::parse_from(["operator", "--namespace", "tracelake", "uninstall", "--timeout-seconds=5"])
                .command;
        assert!(matches!(job, Some(Command::Uninstall { timeout_seconds: 5 })));
        let args =
            Args::parse_from(["operator", "--namespace", "tracelake", "--extra-dns-names", "localhost"]);
        assert!(args.dns_names().contains(&"tracelake-operator.tracelake.svc".to_owned()));
        assert!(args.dns_names().contains(&"tracelake-operator-leader.tracelake.svc".to_owned()));
        assert!(args.dns_names().contains(&"localhost".to_owned()));
        assert_eq!(args.agents(), "tracelake");
    }

    #[test]
    fn limits_are_read_as_the_kinds_write_them() {
        let base = ["operator", "--namespace", "tracelake"];
        let limits =
            |flags: &[&str]| Args::try_parse_from(base.iter().chain(flags)).map(|args| args.limits());
        assert_eq!(limits(&[]).unwrap(), Limits::default());
        let set = ["--max-duration=1h", "--max-bytes=100Gi", "--max-sessions-per-namespace=5"];
        let set = limits(&set).unwrap();
        assert_eq!(
            (set.duration, set.bytes, set.sessions_per_namespace),
            (Some(Duration::from_secs(3_600)), Some(100 << 30), Some(5))
        );
        assert!(limits(&["--max-duration=an hour"]).unwrap_err().to_string().contains("max-duration"));
    }

    #[test]
    fn the_store_of_the_charts_values_is_read_as_the_chart_renders_it() {
        let rendered = r#"{"apiVersion":"tracelake.dev/v1alpha1","kind":"ClusterTraceStore","metadata":{"labels":{"app.kubernetes.io/managed-by":"tracelake-chart","app.kubernetes.io/name":"tracelake"},"name":"default"},"spec":{"credentials":{"secretRef":{"name":"tracelake-dev-store"}},"s3":{"bucket":"tracelake","endpoint":"http://tracelake-dev-store.tracelake-system.svc:8333"}}}"#;
        let store = Args::parse_from(["operator", "--namespace", "tracelake", "--chart-store", rendered])
            .chart_store
            .unwrap();
        assert_eq!(store.name_any(), "default");
        assert_eq!(store.labels()[chart::LABEL], chart::MANAGER);
        let spec: crds::ClusterTraceStoreSpec = serde_json::from_value(store.data["spec"].clone()).unwrap();
        assert_eq!(spec.s3.bucket, "tracelake");
    }
}
