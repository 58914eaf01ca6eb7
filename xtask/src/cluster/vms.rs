// SPDX-License-Identifier: Apache-2.0

//! The cluster of QEMU machines: needs neither Docker nor KVM, and has nodes with different kernels.
//!
//! Order of `up`: what has to be built, then keys, network, control plane and nodes at once (kubelets wait
//! for the API server), then DNS; ready means that every node is Ready and DNS is Available.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::node::{self, Node};
use super::provider::{Action, DAMAGED, Provider, Started, StartedAgain, answers, kubectl};
use super::{control_plane, disk, kubeconfig, link, network, process, state};
use crate::image::Image;
use crate::kernel::Kernel;
use crate::{cache, exec, tools, vm};

/// Emulated nodes are Ready after about a minute on two free CPUs; machines that also compile take longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(420);
const POLL: Duration = Duration::from_secs(2);

pub(super) struct Vms;

impl Provider for Vms {
    fn start(&self, kernels: &[(String, Kernel)], images: &[Image]) -> Result<Started> {
        tools::machines()?;
        link(&tools::kubernetes()?.join("kubectl"))?;
        let files = kernels.iter().map(|(_, kernel)| kernel.files()).collect::<Result<Vec<_>>>()?;
        let base = disk::base(&files, images)?;

        // A cluster of which only parts run cannot be mended.
        self.stop()?;
        disk::forget_others(&base)?;
        let nodes: Vec<Node> = kernels
            .iter()
            .zip(&files)
            .enumerate()
            .map(|(index, ((name, _), files))| Node::new(index, name, files))
            .collect();
        node::save(&nodes)?;
        let started = cache::step("cluster: keys, network, processes", || {
            control_plane::make_keys()?;
            node::make_key()?;
            network::up(&nodes.iter().map(Node::place).collect::<Vec<_>>())?;
            control_plane::start()?;
            for (node, files) in nodes.iter().zip(&files) {
                node.prepare(&base, files, &nodes)?;
                node.start()?;
            }
            Ok(())
        });
        started.and_then(|()| wait_for_server()).with_context(|| failure_report(&nodes))?;
        // New nodes have them on their disk.
        Ok(Started { nodes: nodes.into_iter().map(|node| node.name).collect(), have_images: true })
    }

    fn complete(&self) -> Result<()> {
        let _lock = lock()?;
        let nodes = node::all()?;
        // One that ended, but was not stopped, is not just started again: see [`restart`].
        let (started, mut again) = (process::names(), StartedAgain::default());
        for node in nodes.iter().filter(|node| !started.contains(&node.name)) {
            again.note(&node.name);
            node.start()?;
        }
        wait_for_nodes(&nodes, &mut again).with_context(|| failure_report(&nodes))
    }

    fn stop(&self) -> Result<()> {
        // Nodes first, then servers in the opposite order of their start.
        let mut servers = control_plane::SERVERS;
        servers.reverse();
        process::stop_all(&servers)?;
        network::down()
    }

    fn status(&self) -> (Vec<String>, Result<()>) {
        let mark = |name: &str| if process::runs(name) { "runs" } else { "stopped" };
        let mut lines = Vec::new();
        for Node { name, release, .. } in node::all().unwrap_or_default() {
            lines.push(format!("{name:<24} {:<8} kernel {release}", mark(&name)));
        }
        lines.extend(control_plane::SERVERS.map(|name| format!("{name:<24} {}", mark(name))));
        lines.push(format!("logs: {}", state().join("logs").display()));
        lines.push(format!("inside its network: ip netns exec {} COMMAND", network::NAMESPACE));
        // A stopped node does not make a cluster unusable.
        let ended = control_plane::SERVERS.into_iter().find(|name| !process::runs(name));
        let usable = match ended {
            Some(name) => Err(anyhow::anyhow!("{name} has ended: see {}", process::log(name).display())),
            None if !network::exists() => Err(anyhow::anyhow!("its network is gone")),
            None => Ok(()),
        };
        (lines, usable.context(DAMAGED))
    }

    fn node(&self, name: &str, action: Action) -> Result<i32> {
        let node = node::named(name)?;
        match action {
            Action::Run(words) => {
                let status = node.ssh(words).stdin(Stdio::inherit()).status().context("cannot start ssh")?;
                return Ok(status.code().unwrap_or(255));
            }
            // One that is stopped gets them when it runs and somebody asks again.
            Action::Load(_) if !process::runs(name) => {}
            Action::Load(archives) => cache::step(&format!("cluster: load into {name}"), || {
                archives.iter().try_for_each(|archive| node.import(archive))
            })?,
            Action::Stop => node.stop()?,
            Action::Start => {
                let _lock = lock()?;
                node.start()?;
            }
        }
        Ok(0)
    }
}

/// Waits until the API server answers and has what the nodes will ask for.
fn wait_for_server() -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    cache::step("cluster: API server ready", || {
        wait("the API server does not answer", deadline, || Ok(answers()))?;
        let manifests = cache::repository().join("e2e/cluster/control-plane/manifests");
        // kube-system is made by the server itself a moment after it is ready.
        wait("the manifests of DNS cannot be applied", deadline, || {
            Ok(exec::succeeds(kubectl().args(["apply", "-f"]).arg(&manifests)))
        })
    })
}

/// Starts an API server and nothing that changes what is put there.
pub(super) fn start_api_server() -> Result<()> {
    tools::machines()?;
    Vms.stop()?;
    node::save(&[])?;
    control_plane::make_keys()?;
    network::up(&[])?;
    control_plane::start_api_server()?;
    let deadline = Instant::now() + DEADLINE;
    let mut ready = network::within(tools::kubernetes()?.join("kubectl"), ["get", "--raw", "/readyz"]);
    ready.env("KUBECONFIG", kubeconfig());
    while !exec::succeeds(&mut ready) {
        ensure!(Instant::now() < deadline, "the API server does not answer: {}", failure_report(&[]));
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// For whoever starts nodes of a cluster that runs: two would start one VM twice.
fn lock() -> Result<fs::File> {
    cache::lock("nodes")
}

fn wait_for_nodes(nodes: &[Node], again: &mut StartedAgain) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    for node in nodes {
        let ready = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        let mut starts = 1;
        cache::step(&format!("cluster: {} Ready", node.name), || {
            wait(&format!("{} does not become Ready", node.name), deadline, || {
                if !process::runs(&node.name) {
                    again.note(&node.name);
                    restart(node, starts)?;
                    starts += 1;
                }
                if !again.is_back(&node.name) {
                    return Ok(false);
                }
                let status = exec::output(kubectl().args(["get", "node", &node.name, "-o", ready]));
                Ok(status.is_ok_and(|status| status == "True"))
            })
        })?;
    }
    cache::step("cluster: DNS Available", || {
        wait("CoreDNS does not become Available", deadline, || {
            let available = "jsonpath={.status.availableReplicas}";
            let arguments = ["-n", "kube-system", "get", "deployment", "coredns", "-o", available];
            Ok(exec::output(kubectl().args(arguments)).is_ok_and(|count| count == "1"))
        })
    })
}

/// Starts a node again whose VM ended, for the time after `starts`, if QEMU crashed: it does now and then while firmware
/// runs. What else ends a VM has to be looked at.
fn restart(node: &Node, starts: usize) -> Result<()> {
    let name = &node.name;
    ensure!(process::names().contains(name), "{name} was stopped while this waited for it");
    let (log, console) = (process::log(name), node.console());
    if starts == vm::STARTS || !qemu_crashed(&text(&log), &text(&console)) {
        bail!(
            "the VM of {name} ended (start {starts}); `cargo xtask cluster node start {name}` starts it again:\n{}\n{}",
            exec::tail(&text(&log), 8),
            exec::tail(&text(&console), 30)
        );
    }
    let mut kept = Vec::new();
    for path in [log, console].into_iter().filter(|path| path.exists()) {
        let to = path.with_added_extension(starts.to_string());
        fs::rename(&path, &to).with_context(|| format!("cannot rename {}", path.display()))?;
        kept.push(to.display().to_string());
    }
    println!("cluster: QEMU crashed while {name} booted: starting it again; see {}", kept.join(", "));
    node.start()
}

/// Whether QEMU itself failed: it says so, or its guest had not printed a word. A kernel that panics prints why, and QEMU
/// then ends without complaint, as `-no-reboot` asks.
fn qemu_crashed(log: &str, console: &str) -> bool {
    let of_kernel = console.split_once("Booting from ROM").map_or("", |(_, rest)| rest);
    log.to_lowercase().contains("assertion") || !of_kernel.contains(' ')
}

fn wait(what_is_late: &str, deadline: Instant, mut is_there: impl FnMut() -> Result<bool>) -> Result<()> {
    while !is_there()? {
        for server in control_plane::SERVERS {
            if !process::runs(server) {
                bail!("{server} ended: see {}", process::log(server).display());
            }
        }
        if Instant::now() > deadline {
            bail!("{what_is_late} within {DEADLINE:?}");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Where the logs are, and how they end.
fn failure_report(nodes: &[Node]) -> String {
    let mut report = format!("the cluster did not come up; logs are in {}", state().join("logs").display());
    let consoles = nodes.iter().map(Node::console);
    for path in control_plane::SERVERS.into_iter().map(process::log).chain(consoles) {
        report.push_str(&format!("\n--- {}\n{}", path.display(), exec::tail(&text(&path), 8)));
    }
    report
}

/// A log, as far as it can be read.
fn text(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::qemu_crashed;

    const FIRMWARE: &str =
        "\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.3)\r\nBooting from ROM...\r\n\x1bc\x1b[?7l\x1b[2J";

    #[test]
    fn only_a_crash_of_qemu_is_tried_again() {
        let assertion = "qemu-system-x86_64: physmem.c:1: iotlb_to_section: Assertion `index < n' failed.";
        assert!(qemu_crashed("", ""), "it printed nothing");
        assert!(qemu_crashed("", FIRMWARE), "the kernel printed nothing");
        assert!(qemu_crashed(assertion, &format!("{FIRMWARE}node-init: node-a runs")));
        let panic = "[    1.5] Kernel panic - not syncing: Attempted to kill init!";
        assert!(!qemu_crashed("", &format!("{FIRMWARE}{panic}")));
        let stopped = "qemu-system-x86_64: terminating on signal 15";
        assert!(!qemu_crashed(stopped, &format!("{FIRMWARE}node-init: node-a runs")));
    }
}
