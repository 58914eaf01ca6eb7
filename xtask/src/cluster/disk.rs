// SPDX-License-Identifier: Apache-2.0

//! The root file system that all nodes share: Debian with containerd, the Kubernetes binary, the modules
//! of every node's kernel, and images.
//!
//! Images are imported and unpacked here, by the nodes' own containerd on this machine's CPUs: the same
//! inside an emulated node takes minutes. Each node writes to an overlay of its own; what differs between nodes comes with their initramfs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};

use super::node;
use crate::image::{self, Image, Name};
use crate::{cache, debian, exec, kernel, tools};

/// Sparse: only what is written takes space.
const SIZE: u64 = 16 << 30;
/// Disks that are kept.
const KEPT: usize = 2;

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

/// Runs containerd inside the folder `$1` for as long as it takes to import the archives that follow.
const IMPORT: &str = r#"
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs run "$root/run"
mount -t tmpfs tmp "$root/tmp"
chroot "$root" containerd --config /etc/tracelake-node/containerd.toml > "$root.log" 2>&1 &
containerd=$!
tries=0
until chroot "$root" ctr version > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { tail -n 5 "$root.log" >&2; exit 1; }
    sleep 0.1
done
for archive; do chroot "$root" ctr -n k8s.io images import - < "$archive"; done
kill $containerd
wait $containerd || true
rm "$root.log"
"#;

/// The disk for nodes with these kernels, and these images beside those that every node needs.
pub(super) fn base(kernels: &[kernel::Files], images: &[Image]) -> Result<PathBuf> {
    let rootfs_key = cache::Key::default().text(debian::SUITE).text(&PACKAGES.join(" "));
    let rootfs = cache::entry("rootfs", "node", rootfs_key, |path| debian::folder(PACKAGES, path))?;
    let assets = cache::repository().join("e2e/cluster/node");
    let kubernetes = tools::kubernetes()?;
    let mut archives = vec![image::build(Name::Pause)?.archive, image::build(Name::Coredns)?.archive];
    archives.extend(images.iter().map(|image| image.archive.clone()));

    let mut key = cache::Key::default().folder(&assets)?.text(&SIZE.to_string()).text(IMPORT);
    // Entries of the cache are named after their content.
    for path in [&rootfs, &kubernetes].into_iter().chain(&archives) {
        key = key.text(&path.to_string_lossy());
    }
    for kernel in kernels {
        key = key.text(&kernel.release);
    }
    cache::entry("node-disks", "base", key, |disk| {
        let root = disk.with_added_extension("root");
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
        copy(&assets, &root.join("etc/tracelake-node"))?;
        fs::rename(root.join("etc/tracelake-node/node-init.sh"), root.join("usr/sbin/node-init"))?;
        exec::quiet(exec::command("chmod", ["0755"]).arg(root.join("usr/sbin/node-init")))?;
        // Owned by root whoever owns the checkout.
        exec::quiet(
            exec::command("chown", ["-R", "0:0"])
                .arg(root.join("etc/tracelake-node"))
                .arg(root.join("usr/sbin/node-init")),
        )?;

        import(&root, &archives)?;
        fill(disk, SIZE, &root)?;
        cache::remove(&root)
    })
}

/// Makes a disk of so many bytes at most with what is in the folder.
pub(super) fn fill(disk: &Path, size: u64, root: &Path) -> Result<()> {
    fs::File::create(disk)?.set_len(size)?;
    exec::quiet(exec::command("/usr/sbin/mkfs.ext4", ["-q", "-F", "-m", "0", "-d"]).arg(root).arg(disk))
}

/// Removes all disks (or snapshots) but this one and the one that was used before it: some gigabytes each, but `cluster up`
/// and tests take turns with two, one of which has the product's images.
pub(super) fn forget_others(base: &Path) -> Result<()> {
    fs::File::open(base)?.set_modified(SystemTime::now())?;
    let mut disks = Vec::new();
    for entry in fs::read_dir(base.parent().context("a disk lies in a folder")?)? {
        let path = entry?.path();
        // What has an extension somebody makes right now, or was interrupted: that goes when the next one is made.
        if path.extension().is_none() {
            disks.push((path.metadata()?.modified()?, path));
        }
    }
    disks.sort();
    disks.reverse();
    disks.iter().skip(KEPT).try_for_each(|(_, path)| cache::remove(path))
}

/// Puts the images into the containerd of the folder, and marks them as [`node::mark`] says.
fn import(root: &Path, archives: &[PathBuf]) -> Result<()> {
    let mut unshare = exec::command(
        "unshare",
        ["--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", IMPORT, "import"],
    );
    exec::quiet(unshare.arg(root).args(archives)).context("cannot import images into the nodes' disk")?;
    archives.iter().try_for_each(|archive| put(root, node::mark(archive)?))
}

/// Leaves a mark in the folder: its path, and what it says.
pub(super) fn put(root: &Path, (mark, content): (String, String)) -> Result<()> {
    let mark = root.join(mark.trim_start_matches('/'));
    fs::create_dir_all(mark.parent().context("a mark lies in a folder")?)?;
    fs::write(mark, content)?;
    Ok(())
}

/// Copies a file or a folder with all that is in it.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    exec::quiet(exec::command("cp", ["-a", "--reflink=auto", "-T", "--"]).arg(from).arg(to))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn two_disks_are_kept() {
        let folder = std::env::temp_dir().join(format!("tracelake-disks-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (age, name) in ["base-b", "base-c", "base-a", "base-d.tmp"].into_iter().enumerate() {
            let old = SystemTime::now() - Duration::from_secs(60 * (1 + age as u64));
            fs::File::create(folder.join(name)).unwrap().set_modified(old).unwrap();
        }
        forget_others(&folder.join("base-a")).unwrap();
        let left = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(
            left,
            ["base-a", "base-b", "base-d.tmp"],
            "the one in use, the one used last, one being made"
        );
    }
}
