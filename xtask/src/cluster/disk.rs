// SPDX-License-Identifier: Apache-2.0

//! The root file system that all nodes share: Debian with containerd, the Kubernetes binary, the modules
//! of every node's kernel, and the images that a node needs before anything can be loaded into it.
//!
//! Each node writes to an overlay of its own; what differs between nodes comes with their initramfs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::image::{self, Name};
use crate::{cache, debian, exec, kernel, tools};

/// Sparse: only what is written takes space.
const SIZE: u64 = 16 << 30;

const PACKAGES: &[&str] = &[
    "busybox-static",
    "ca-certificates",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "dropbear-bin",
    "ethtool",
    "iproute2",
    "iptables",
    "kmod",
    "mount",
    "nftables",
    "procps",
    "runc",
    "socat",
    "util-linux",
];

/// The disk for nodes with these kernels.
pub(super) fn base(kernels: &[kernel::Files]) -> Result<PathBuf> {
    let rootfs_key = cache::Key::default().text(debian::SUITE).text(&PACKAGES.join(" "));
    let rootfs = cache::entry("rootfs", "node", rootfs_key, |path| debian::folder(PACKAGES, path))?;
    let assets = cache::repository().join("e2e/cluster/node");
    let kubernetes = tools::kubernetes()?;
    let images = [("pause.tar", image::build(Name::Pause)?), ("coredns.tar", image::build(Name::Coredns)?)];

    let mut key = cache::Key::default().folder(&assets)?.text(&SIZE.to_string());
    // Entries of the cache are named after their content.
    for path in [&rootfs, &kubernetes].into_iter().chain(images.iter().map(|(_, image)| &image.archive)) {
        key = key.text(&path.to_string_lossy());
    }
    for kernel in kernels {
        key = key.text(&kernel.release);
    }
    cache::entry("node-disks", "base", key, |disk| {
        let root = disk.with_added_extension("root");
        cache::remove(&root)?;
        copy(&rootfs, &root)?;
        for kernel in kernels {
            let modules = root.join("usr/lib/modules");
            fs::create_dir_all(&modules)?;
            copy(&kernel.modules, &modules.join(&kernel.release))?;
        }
        copy(&kubernetes.join("kubernetes"), &root.join("usr/local/bin/kubernetes"))?;
        for name in ["kubelet", "kube-proxy"] {
            symlink("kubernetes", root.join("usr/local/bin").join(name))?;
        }
        fs::create_dir_all(root.join("opt/images"))?;
        for (name, image) in &images {
            copy(&image.archive, &root.join("opt/images").join(name))?;
        }
        copy(&assets, &root.join("etc/tracelake-node"))?;
        fs::rename(root.join("etc/tracelake-node/node-init.sh"), root.join("usr/sbin/node-init"))?;
        exec::quiet(exec::command("chmod", ["0755"]).arg(root.join("usr/sbin/node-init")))?;
        // Owned by root whoever owns the checkout.
        exec::quiet(
            exec::command("chown", ["-R", "0:0"])
                .arg(root.join("etc/tracelake-node"))
                .arg(root.join("usr/sbin/node-init")),
        )?;

        fs::File::create(disk)?.set_len(SIZE)?;
        exec::quiet(
            exec::command("/usr/sbin/mkfs.ext4", ["-q", "-F", "-m", "0", "-d"]).arg(&root).arg(disk),
        )?;
        cache::remove(&root)
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    exec::quiet(exec::command("cp", ["-a", "--reflink=auto", "-T", "--"]).arg(from).arg(to))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
