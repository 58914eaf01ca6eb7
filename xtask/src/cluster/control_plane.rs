// SPDX-License-Identifier: Apache-2.0

//! The control plane: etcd and the three Kubernetes servers, as processes of the host in the cluster's network.
//!
//! As processes they have real CPUs, which emulated machines have not, and answer within seconds.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::network::{self, GATEWAY};
use super::{kubeconfig, process, proxy, state};
use crate::{cache, exec, tools};

/// Names of the processes, in the order in which they start.
pub(super) const SERVERS: [&str; 5] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", proxy::NAME];

/// Makes a certificate authority, the servers' keys and kubeconfigs; what an earlier cluster had is replaced.
pub(super) fn make_keys() -> Result<()> {
    let template = cache::repository().join("e2e/cluster/control-plane/kubeadm.yaml");
    let config = fs::read_to_string(&template)
        .with_context(|| format!("cannot read {}", template.display()))?
        .replace("@VERSION@", tools::KUBERNETES)
        .replace("@STATE@", &state().to_string_lossy());
    cache::remove(&state().join("pki"))?;
    fs::write(config_path(), config)?;
    exec::quiet(kubeadm()?.args(["init", "phase", "certs", "all", "--config"]).arg(config_path()))?;
    let admin = user_kubeconfig("kubernetes-admin", Some("system:masters"))?;
    write_private(&kubeconfig(), &admin.replace(&format!("{GATEWAY}:6443"), proxy::ADDRESS))?;
    for name in ["kube-controller-manager", "kube-scheduler"] {
        write_private(&server_kubeconfig(name), &user_kubeconfig(&format!("system:{name}"), None)?)?;
    }
    Ok(())
}

/// A kubeconfig with a certificate for this user.
pub(super) fn user_kubeconfig(user: &str, group: Option<&str>) -> Result<String> {
    let mut kubeadm = kubeadm()?;
    kubeadm.args(["kubeconfig", "user", "--client-name", user, "--config"]).arg(config_path());
    if let Some(group) = group {
        kubeadm.args(["--org", group]);
    }
    exec::output(&mut kubeadm)
}

/// A server's flag that names a file of keys.
fn file(flag: &str, name: &str) -> String {
    format!("--{flag}={}", state().join("pki").join(name).display())
}

/// Starts etcd and the API server; nothing else writes then but what uses it.
pub(super) fn start_api_server() -> Result<()> {
    cache::remove(&state().join("etcd"))?;
    server(
        "etcd",
        &[
            format!("--data-dir={}", state().join("etcd").display()),
            "--listen-client-urls=http://127.0.0.1:2379".into(),
            "--advertise-client-urls=http://127.0.0.1:2379".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            "--unsafe-no-fsync".into(),
            "--log-level=warn".into(),
        ],
    )?;
    server(
        "kube-apiserver",
        &[
            format!("--advertise-address={GATEWAY}"),
            "--bind-address=0.0.0.0".into(),
            "--secure-port=6443".into(),
            "--etcd-servers=http://127.0.0.1:2379".into(),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--allow-privileged=true".into(),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--kubelet-preferred-address-types=InternalIP".into(),
            // Webhooks and aggregated APIs are called at pod addresses: there is no kube-proxy in this network.
            "--enable-aggregator-routing=true".into(),
            "--enable-priority-and-fairness=false".into(),
            "--profiling=false".into(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
            file("service-account-key-file", "sa.pub"),
            file("service-account-signing-key-file", "sa.key"),
            file("client-ca-file", "ca.crt"),
            file("tls-cert-file", "apiserver.crt"),
            file("tls-private-key-file", "apiserver.key"),
            file("kubelet-client-certificate", "apiserver-kubelet-client.crt"),
            file("kubelet-client-key", "apiserver-kubelet-client.key"),
            file("proxy-client-cert-file", "front-proxy-client.crt"),
            file("proxy-client-key-file", "front-proxy-client.key"),
            file("requestheader-client-ca-file", "front-proxy-ca.crt"),
            "--requestheader-allowed-names=front-proxy-client".into(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
            "--requestheader-group-headers=X-Remote-Group".into(),
            "--requestheader-username-headers=X-Remote-User".into(),
        ],
    )
}

/// Starts everything; the servers wait for each other.
pub(super) fn start() -> Result<()> {
    start_api_server()?;
    server(
        "kube-controller-manager",
        &[
            format!("--kubeconfig={}", server_kubeconfig("kube-controller-manager").display()),
            "--leader-elect=false".into(),
            "--bind-address=127.0.0.1".into(),
            // Every node's range is fixed, as its routes are.
            "--allocate-node-cidrs=false".into(),
            "--use-service-account-credentials=true".into(),
            "--profiling=false".into(),
            file("root-ca-file", "ca.crt"),
            file("service-account-private-key-file", "sa.key"),
            file("cluster-signing-cert-file", "ca.crt"),
            file("cluster-signing-key-file", "ca.key"),
        ],
    )?;
    server(
        "kube-scheduler",
        &[
            format!("--kubeconfig={}", server_kubeconfig("kube-scheduler").display()),
            "--leader-elect=false".into(),
            "--bind-address=127.0.0.1".into(),
            "--profiling=false".into(),
        ],
    )?;
    // Not within the network: it joins the host's with it.
    let proxy = exec::command(std::env::current_exe()?, ["cluster", "proxy", "--to", proxy::ADDRESS]);
    process::start(proxy::NAME, &proxy)
}

/// Writes a file that only its owner may read.
pub(super) fn write_private(path: &Path, content: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    cache::remove(path)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn server(name: &str, flags: &[String]) -> Result<()> {
    let mut command = network::within(tools::kubernetes()?.join(name), flags);
    // Memory is cheaper than CPU time here.
    command.env("GOGC", "400");
    process::start(name, &command)
}

fn kubeadm() -> Result<Command> {
    Ok(exec::command(tools::kubernetes()?.join("kubeadm"), [] as [&str; 0]))
}

fn config_path() -> std::path::PathBuf {
    state().join("kubeadm.yaml")
}

fn server_kubeconfig(name: &str) -> std::path::PathBuf {
    state().join(format!("{name}.conf"))
}
