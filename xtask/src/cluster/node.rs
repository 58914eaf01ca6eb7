// SPDX-License-Identifier: Apache-2.0

//! Node VMs: starting one, ending it, and running commands on it by ssh.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::network::{self, GATEWAY, Place};
use super::{control_plane, process, state};
use crate::initramfs::Initramfs;
use crate::{cache, exec, kernel, vm};

/// One node, as `up` made it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) index: usize,
    pub(super) name: String,
    /// As `uname -r` prints it.
    pub(super) release: String,
    image: PathBuf,
}

impl Node {
    pub(super) fn new(index: usize, name: &str, kernel: &kernel::Files) -> Self {
        Self { index, name: name.to_owned(), release: kernel.release.clone(), image: kernel.image.clone() }
    }

    pub(super) fn place(&self) -> Place {
        network::place(self.index, &self.name)
    }

    /// Makes the node's disk and initramfs; `all` are the nodes it needs routes to.
    pub(super) fn prepare(&self, base: &Path, kernel: &kernel::Files, all: &[Self]) -> Result<()> {
        let disk = self.disk();
        cache::remove(&disk)?;
        let mut create = exec::command("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
        exec::quiet(create.arg(base).arg(&disk))?;

        let mut archive = Initramfs::with_busybox()?;
        archive.copy(&cache::repository().join("e2e/cluster/node/initramfs-init.sh"), "init", 0o755)?;
        vm::add_modules(&mut archive, kernel, &["virtio_pci", "virtio_blk"])?;
        let place = self.place();
        let mut routes = String::new();
        for other in all.iter().filter(|other| other.index != self.index) {
            writeln!(routes, "{} via {}", other.place().pod_range, other.place().address)?;
        }
        let settings = format!(
            "NAME={}\nADDRESS={}\nPOD_RANGE={}\nGATEWAY={GATEWAY}\nROUTES='{routes}'\n",
            self.name, place.address, place.pod_range
        );
        archive.file("config/node.env", 0o644, settings.as_bytes());
        archive.copy(&state().join("pki/ca.crt"), "config/ca.crt", 0o644)?;
        let kubelet =
            control_plane::user_kubeconfig(&format!("system:node:{}", self.name), Some("system:nodes"))?;
        archive.file("config/kubelet.conf", 0o600, kubelet.as_bytes());
        let proxy = control_plane::user_kubeconfig("system:kube-proxy", None)?;
        archive.file("config/kube-proxy.conf", 0o600, proxy.as_bytes());
        archive.copy(&key().with_added_extension("pub"), "config/authorized_keys", 0o600)?;
        archive.write(&self.initrd())
    }

    /// Turns the power on.
    pub(super) fn start(&self) -> Result<()> {
        if process::runs(&self.name) {
            bail!("{} runs already", self.name);
        }
        let place = self.place();
        let mut qemu = vm::qemu(2, 2048);
        qemu.arg("-kernel").arg(&self.image).arg("-initrd").arg(self.initrd());
        qemu.args([
            "-append",
            "console=ttyS0 panic=-1 mitigations=off tsc=reliable net.ifnames=0 quiet rdinit=/init",
        ]);
        // unsafe: the disk does not outlive the cluster, so it need not survive the host's power loss.
        qemu.arg("-drive")
            .arg(format!("file={},if=virtio,format=qcow2,cache=unsafe,discard=unmap", self.disk().display()));
        qemu.arg("-netdev").arg(format!("tap,id=net,ifname={},script=no,downscript=no", place.tap));
        qemu.arg("-device").arg(format!("virtio-net-pci,netdev=net,mac={}", place.mac));
        qemu.args(["-device", "virtio-rng-pci"])
            .arg("-serial")
            .arg(format!("file:{}", self.console().display()));
        process::start(&self.name, &network::within(qemu.get_program(), qemu.get_args()))
    }

    /// Turns the power off, as a failing machine would.
    pub(super) fn stop(&self) -> Result<()> {
        process::stop(&self.name)
    }

    /// What the kernel and the init script print.
    pub(super) fn console(&self) -> PathBuf {
        process::log(&format!("{}-console", self.name))
    }

    /// An ssh command for this node; without words it is an interactive shell.
    pub(super) fn ssh(&self, words: &[String]) -> Command {
        ssh_to(&self.place().address, words, false)
    }

    /// Imports an image archive, unless the node has it.
    pub(super) fn import(&self, archive: &Path) -> Result<()> {
        let (mark, name) = mark(archive)?;
        let file = File::open(archive).with_context(|| format!("cannot open {}", archive.display()))?;
        let sh = |script: String| self.ssh(&["sh".to_owned(), "-c".to_owned(), script]);
        if exec::output(&mut sh(format!("cat {mark} || true")))?.trim() == name {
            return Ok(());
        }
        let port = network::send_once(file)?;
        // Unpacked here and now: left to the first container, it outlasts the kubelet's patience.
        let script = format!(
            "set -e; socat -u TCP:{GATEWAY}:{port} - | ctr -n k8s.io images import -; \
             mkdir -p $(dirname {mark}); echo {name} > {mark}"
        );
        exec::quiet(&mut sh(script)).with_context(|| format!("cannot import {name} into {}", self.name))
    }

    fn disk(&self) -> PathBuf {
        state().join(format!("{}.qcow2", self.name))
    }

    fn initrd(&self) -> PathBuf {
        state().join(format!("{}.initrd", self.name))
    }
}

/// An ssh command for the VM at this address; without words it is an interactive shell, with words and a `terminal` they have one.
pub(super) fn ssh_to(address: &str, words: &[String], terminal: bool) -> Command {
    let mut ssh = network::within("ssh", ["-i"]);
    ssh.arg(key()).args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
    ssh.args(["-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20", "-o", "BatchMode=yes"]);
    // A machine that has ended says nothing.
    ssh.args(["-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=12"]);
    if terminal {
        ssh.arg("-t");
    }
    ssh.arg(format!("root@{address}"));
    if !words.is_empty() {
        ssh.arg(words.iter().map(|word| exec::quote(word)).collect::<Vec<_>>().join(" "));
    }
    ssh
}

/// Where a node notes that it has the image, and what: its archive's name.
///
/// Archives are named after their content. The last one imported owns the image's name, so the note is per
/// image, not per archive.
pub(super) fn mark(archive: &Path) -> Result<(String, String)> {
    let name = archive.file_name().context("an archive's path has a name")?.to_string_lossy().into_owned();
    let stem = name.rsplit_once('-').map_or(&*name, |(stem, _)| stem);
    Ok((format!("/var/lib/tracelake-images/{stem}"), name))
}

/// Makes the ssh key that all nodes accept.
pub(super) fn make_key() -> Result<()> {
    for path in [key(), key().with_added_extension("pub")] {
        cache::remove(&path)?;
    }
    exec::quiet(
        exec::command("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "tracelake", "-f"]).arg(key()),
    )
}

/// Remembers the nodes for later commands.
pub(super) fn save(nodes: &[Node]) -> Result<()> {
    Ok(fs::write(state().join("nodes.json"), serde_json::to_vec_pretty(nodes)?)?)
}

/// The nodes of the cluster.
pub(super) fn all() -> Result<Vec<Node>> {
    let bytes = fs::read(state().join("nodes.json"))
        .context("no cluster: start one with `cargo xtask cluster up`")?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// One node of the cluster.
pub(super) fn named(name: &str) -> Result<Node> {
    all()?.into_iter().find(|node| node.name == name).with_context(|| format!("no node {name}"))
}

/// The ssh key, beside its public half.
pub(super) fn key() -> PathBuf {
    state().join("ssh-key")
}
