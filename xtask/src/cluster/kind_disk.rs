// SPDX-License-Identifier: Apache-2.0

//! The disk of the VM that holds a kind cluster: Debian with a Docker engine that has kind's node image, and kind itself.
//!
//! kind is unmodified; its released node image is in no package registry, so one is put together of the same parts, as
//! `e2e/cluster/kind/node-root.sh` says: kind's own files from its Go module, Debian packages, our compiled Kubernetes.
//! Images are imported and unpacked here, by the engines themselves on this machine's CPUs: in the VM that takes minutes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::disk::{copy, fill, put};
use super::node;
use super::provider::NODES;
use crate::image::{self, Image, Name};
use crate::{cache, debian, exec, kernel, tools};

/// The node image in the VM's Docker.
pub(super) const IMAGE: &str = "kindest/node:tracelake";

/// Sparse: only what is written takes space.
const SIZE: u64 = 32 << 30;

const HOST_PACKAGES: &[&str] = &[
    "busybox-static",
    "ca-certificates",
    "docker-cli",
    "docker.io",
    "dropbear-bin",
    "iproute2",
    "iptables",
    "kmod",
    "mount",
    "nftables",
    "procps",
    "socat",
    "util-linux",
];

/// Those of kind's own Dockerfile, without its storage clients, and what it compiles.
const NODE_PACKAGES: &[&str] = &[
    "bash",
    "ca-certificates",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "curl",
    "e2fsprogs",
    "ethtool",
    "iproute2",
    "iptables",
    "iputils-ping",
    "jq",
    "kmod",
    "libseccomp2",
    "mount",
    "nftables",
    "pigz",
    "procps",
    "runc",
    "socat",
    "systemd",
    "systemd-sysv",
    "util-linux",
];

/// The names under which kubeadm and kind's containerd look for our images; the last three versions are constants of theirs.
const NAMES: [(Name, &[&str]); 3] = [
    (
        Name::Kubernetes,
        &[
            "registry.k8s.io/kube-apiserver:VERSION",
            "registry.k8s.io/kube-controller-manager:VERSION",
            "registry.k8s.io/kube-proxy:VERSION",
            "registry.k8s.io/kube-scheduler:VERSION",
            "registry.k8s.io/etcd:3.7.0-0",
        ],
    ),
    (Name::Coredns, &["registry.k8s.io/coredns/coredns:v1.14.6"]),
    (Name::Pause, &["registry.k8s.io/pause:3.10"]),
];

/// The root file system of a node, as Debian's packages leave it.
pub(crate) fn node_packages() -> Result<PathBuf> {
    let key = cache::Key::default().text(debian::SUITE).text(&NODE_PACKAGES.join(" "));
    cache::entry("rootfs", "kind-node", key, |path| debian::folder(NODE_PACKAGES, path))
}

/// The disk for a VM with this kernel. When it has to be made, its nodes get the product's images of this moment, too: they
/// are not what it is named after, and later nodes load only what has changed since.
pub(super) fn base(kernel: &kernel::Files, images: &[Image]) -> Result<PathBuf> {
    let key = cache::Key::default().text(debian::SUITE).text(&HOST_PACKAGES.join(" "));
    let host_packages = cache::entry("rootfs", "kind-host", key, |path| debian::folder(HOST_PACKAGES, path))?;
    let node_packages = node_packages()?;
    let assets = cache::repository().join("e2e/cluster/kind");
    let kubernetes = tools::kubernetes()?;
    let (kind, module) = (tools::kind()?, tools::kind_module()?);
    let (mut archives, mut names) = (Vec::new(), Vec::new());
    for (name, aliases) in NAMES {
        let built = image::build(name)?;
        let alias = |alias: &&str| {
            format!("docker.io/{}={}", built.name, alias.replace("VERSION", tools::KUBERNETES))
        };
        names.extend(aliases.iter().map(alias));
        archives.push(built.archive);
    }

    // With all that is done below: a change that is forgotten in a key would keep the old disk.
    let mut key =
        cache::Key::default().folder(&assets)?.text(include_str!("kind_disk.rs")).text(&kernel.release);
    // Entries of the cache are named after their content.
    for path in [&host_packages, &node_packages, &kubernetes, &kind].into_iter().chain(&archives) {
        key = key.text(&path.file_name().unwrap_or_default().to_string_lossy());
    }
    cache::entry("kind-disks", "base", key.text(&names.join(" ")), |disk| {
        let (host, node) = (disk.with_added_extension("host"), disk.with_added_extension("node"));
        copy(&host_packages, &host)?;
        copy(&node_packages, &node)?;
        let mut node_root = exec::command("sh", [] as [&str; 0]);
        node_root.arg(assets.join("node-root.sh")).args([&node, &module, &kubernetes, &assets]);
        exec::quiet(node_root.arg(tools::KUBERNETES)).context("cannot make the node image")?;
        let product = if images.is_empty() { image::build_all()? } else { images.to_vec() };
        let product: Vec<PathBuf> = product.into_iter().map(|image| image.archive).collect();
        let mut containerd = isolated(&assets.join("fill-containerd.sh"), &[]);
        containerd.arg(&node).args(archives.iter().chain(&product)).env("NAMES", names.join(" "));
        exec::quiet(&mut containerd).context("cannot import the nodes' images")?;
        // Not part of the node image: see kind.yaml.
        let unpacked = node.join("var/lib/containerd");
        fs::create_dir_all(host.join("var/lib/kind"))?;
        for name in NODES {
            copy(&unpacked, &host.join("var/lib/kind").join(name))?;
            for archive in &product {
                put(&host, mark(name, archive)?)?;
            }
        }
        cache::remove(&unpacked)?;
        let mut docker = isolated(&assets.join("fill-docker.sh"), &["--net"]);
        exec::quiet(docker.arg(&host).arg(&node)).context("cannot load the node image into Docker")?;

        let modules = host.join("usr/lib/modules");
        fs::create_dir_all(&modules)?;
        copy(&kernel.modules, &modules.join(&kernel.release))?;
        copy(&kind, &host.join("usr/local/bin/kind"))?;
        copy(&assets.join("kind.yaml"), &host.join("etc/kind.yaml"))?;
        let programs = [("docker.sh", "usr/local/bin/docker"), ("host-init.sh", "usr/sbin/node-init")];
        for (from, to) in programs {
            let to = host.join(to);
            copy(&assets.join(from), &to)?;
            exec::quiet(exec::command("chmod", ["0755"]).arg(&to))?;
        }
        // Owned by root whoever owns the checkout.
        let own = ["etc/kind.yaml", "usr/local/bin/kind", "usr/local/bin/docker", "usr/sbin/node-init"];
        exec::quiet(exec::command("chown", ["0:0"]).args(own.map(|path| host.join(path))))?;
        fill(disk, SIZE, &host)?;
        cache::remove(&host)?;
        cache::remove(&node)
    })
}

/// Where the VM notes that a node has the image, and what: see [`node::mark`].
pub(super) fn mark(name: &str, archive: &Path) -> Result<(String, String)> {
    let (mark, content) = node::mark(archive)?;
    Ok((mark.replacen("/var/lib/", &format!("/var/lib/kind-images/{name}/"), 1), content))
}

/// A script with mounts and processes of its own, which are gone when it ends.
fn isolated(script: &Path, more: &[&str]) -> std::process::Command {
    let mut unshare = exec::command("unshare", ["--mount", "--pid", "--fork", "--kill-child"]);
    unshare.args(more).arg("sh").arg(script);
    unshare
}
