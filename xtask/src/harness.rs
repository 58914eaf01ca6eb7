// SPDX-License-Identifier: Apache-2.0

//! Part `harness` of `cargo xtask test`: clusters come, are found again, and leave nothing behind.
//!
//! For each provider that this machine has: after Ctrl-C and SIGKILL in the middle of a start, after a start that fails, and
//! after `down`, the processes, network namespaces, network devices and mounts are those before, and so are a Docker engine's
//! containers, volumes and networks; a second `up` finds the first; `status` tells the truth, also of a node that is stopped. Processes
//! are told by a mark in their environment, which children inherit: whatever else runs on this machine comes and goes meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::cluster::{Choice, state_file};
use crate::{cache, exec, image, tools};

const MARK: &str = "TRACELAKE_HARNESS_TEST";
/// kind's node that has the API server.
const CONTROL_PLANE: &str = "tracelake-control-plane";
/// And the other one.
const WORKER: &str = "tracelake-worker";
/// From the command to a process of the cluster that runs; what has to be built is built by the first start.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) fn run(choice: Option<Choice>) -> Result<()> {
    let providers = [(Choice::Kind, "kind"), (Choice::Vm, "vm")];
    let chosen = providers.iter().filter(|(provider, _)| choice.is_none_or(|choice| choice == *provider));
    if !image::has_docker() || choice != Some(Choice::Kind) {
        tools::machines()?;
    }
    tools::debian(&["iproute2"])?;
    // Nobody else's cluster may come or go meanwhile.
    let _lock = cache::lock("cluster-in-use")?;
    let status = output(&["cluster", "status"])?;
    ensure!(
        status.starts_with("no usable cluster"),
        "a cluster runs: end it with `cargo xtask cluster down`"
    );
    for (_, provider) in chosen {
        let passed = cache::step(&format!("harness: {provider}"), || of(provider)).context(*provider);
        if passed.is_err() {
            // What it found wrong says more than what is wrong with this.
            if let Err(error) = exec::quiet(&mut xtask(&["cluster", "down"])) {
                eprintln!("harness: the cluster of the test that failed was not ended: {error:#}");
            }
        }
        passed?;
    }
    Ok(())
}

fn of(provider: &str) -> Result<()> {
    let up = ["cluster", "up", "--cluster", provider];
    let docker = provider == "kind" && image::has_docker();
    // The one with the API server where that is back within seconds, as it is not in a VM.
    let node = match provider {
        "vm" => "node-b",
        _ if docker => CONTROL_PLANE,
        _ => WORKER,
    };
    // Also of the same start.
    let seen = || -> Result<String> {
        let state = fs::read_to_string(state_file()).context("a cluster without a state")?;
        Ok(output(&["cluster", "status"])? + &state)
    };
    // Everything is built by this one.
    let before = Lists::now()?;
    exec::quiet(&mut xtask(&up))?;
    let first = seen()?;
    ensure!(first.contains("export KUBECONFIG=") && !first.contains("stopped"), "status says:\n{first}");
    ensure!(before.same().is_err(), "a cluster runs, and the lists do not show it");
    let started = Instant::now();
    exec::quiet(&mut xtask(&up))?;
    let second = seen()?;
    ensure!(first == second, "a second `up` changed the cluster:\n{first}\n{second}");
    println!("harness: {provider} found again ({:.1} s)", started.elapsed().as_secs_f32());
    exec::quiet(&mut xtask(&["cluster", "node", "stop", node]))?;
    let stopped = output(&["cluster", "status"])?;
    let told = stopped.lines().any(|line| line.starts_with(node) && line.contains("stopped"));
    let unanswered = stopped.contains("does not answer");
    ensure!(told && unanswered == (node == CONTROL_PLANE), "with {node} stopped status says:\n{stopped}");
    exec::quiet(&mut xtask(&up))?;
    let third = seen()?;
    ensure!(first == third, "`up` did not mend the cluster:\n{first}\n{third}");
    // By Docker, what nodes are made of; it stays when they go.
    let image = if docker {
        exec::output(&mut exec::command("docker", ["inspect", "--format", "{{.Image}}", WORKER]))?
    } else {
        String::new()
    };
    exec::quiet(&mut xtask(&["cluster", "down"]))?;
    before.same().context("after `down`")?;
    let gone = output(&["cluster", "status"])?;
    ensure!(gone.starts_with("no usable cluster"), "after `down` status says:\n{gone}");

    for signal in [Signal::INT, Signal::KILL] {
        let start = group(&up)?;
        let half = wait_for_half_start(docker);
        interrupt(start, signal)?;
        half?;
        before.same().with_context(|| format!("after {signal:?} in the middle of `up`"))?;
    }

    // What no start can do without is taken: the API server's port, or by Docker, which chooses another one, a node's name.
    let succeeded = if docker {
        // The other node comes all the same, perhaps when kind has given up. This one is not kind's, and has to stay.
        exec::quiet(&mut exec::command("docker", ["create", "--name", WORKER, image.trim()]))?;
        let succeeded = exec::succeeds(&mut xtask(&up));
        exec::quiet(&mut exec::command("docker", ["rm", "--volumes", WORKER]))?;
        succeeded
    } else {
        let taken = TcpListener::bind("127.0.0.1:6443").context("this test needs the port itself")?;
        let succeeded = exec::succeeds(&mut xtask(&up));
        drop(taken);
        succeeded
    };
    ensure!(!succeeded, "`up` succeeded although what it needs was taken");
    before.same().context("after a start that failed")
}

fn wait_for_half_start(docker: bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_half_started(docker)? {
        ensure!(Instant::now() < deadline, "nothing of the cluster runs after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Whether something of the cluster runs, and not all of it. By Docker a start begins with a look for what is left of another
/// one, which is as many processes as the beginning of this one.
fn is_half_started(docker: bool) -> Result<bool> {
    if docker {
        let name = format!("name={CONTROL_PLANE}");
        let running = exec::output(&mut exec::command("docker", ["ps", "--quiet", "--filter", &name]))?;
        return Ok(!running.is_empty());
    }
    Ok(processes()?.len() >= 4)
}

/// What a cluster could leave behind.
struct Lists {
    namespaces: BTreeSet<String>,
    devices: BTreeSet<String>,
    mounts: BTreeSet<String>,
    docker: BTreeSet<String>,
}

impl Lists {
    fn now() -> Result<Self> {
        let lines = |text: String, column: usize| -> BTreeSet<String> {
            text.lines().filter_map(|line| line.split_whitespace().nth(column)).map(str::to_owned).collect()
        };
        Ok(Self {
            namespaces: lines(exec::output(&mut exec::command("ip", ["netns", "list"]))?, 0),
            devices: lines(exec::output(&mut exec::command("ip", ["-o", "link"]))?, 1),
            mounts: fs::read_to_string("/proc/self/mountinfo")?
                .lines()
                .map(|line| {
                    // One may lie over another: each has a number.
                    let words: Vec<&str> = line.split_whitespace().collect();
                    format!("{} {}", words.first().unwrap_or(&""), words.get(4).unwrap_or(&""))
                })
                // The folder of named namespaces becomes a mount with the first one, whoever makes it, and stays.
                .filter(|mount| !mount.ends_with(" /run/netns"))
                .collect(),
            docker: if image::has_docker() { Self::of_docker()? } else { BTreeSet::new() },
        })
    }

    /// What a Docker engine holds, also of containers that do not run.
    fn of_docker() -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for words in [&["ps", "--all"][..], &["volume", "ls"], &["network", "ls"]] {
            let found = exec::output(exec::command("docker", words).arg("--quiet"))?;
            all.extend(found.lines().map(|id| format!("{} {id}", words[0])));
        }
        Ok(all)
    }

    /// Whether the lists are these, and no process of the cluster runs. The ones that the kernel takes away a moment after their
    /// last user get that moment.
    fn same(&self) -> Result<()> {
        let mut last = String::new();
        for _ in 0..20 {
            let (now, processes) = (Self::now()?, processes()?);
            let more = |before: &BTreeSet<String>, now: &BTreeSet<String>| {
                now.symmetric_difference(before).cloned().collect::<Vec<_>>().join(", ")
            };
            let found = [
                ("processes", processes.join(", ")),
                ("namespaces", more(&self.namespaces, &now.namespaces)),
                ("devices", more(&self.devices, &now.devices)),
                ("mounts", more(&self.mounts, &now.mounts)),
                ("of Docker", more(&self.docker, &now.docker)),
            ];
            let left = found.iter().filter(|(_, left)| !left.is_empty());
            last = left.map(|(what, left)| format!("{what}: {left}")).collect::<Vec<_>>().join("; ");
            if last.is_empty() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("not as before: {last}")
    }
}

/// Processes that this test's commands started, and theirs.
fn processes() -> Result<Vec<String>> {
    let mark = format!("{MARK}={}", std::process::id());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // What ends meanwhile has none.
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            let command = fs::read(path.join("cmdline")).unwrap_or_default();
            let words = command.split(|byte| *byte == 0).take(3).map(String::from_utf8_lossy);
            found.push(words.collect::<Vec<_>>().join(" "));
        }
    }
    Ok(found)
}

fn xtask(arguments: &[&str]) -> Command {
    let mut command = exec::command(std::env::current_exe().unwrap_or_default(), arguments);
    command.env(MARK, std::process::id().to_string());
    command
}

fn output(arguments: &[&str]) -> Result<String> {
    exec::output(&mut xtask(arguments))
}

/// Starts the command as a terminal does: as a group of its own.
fn group(arguments: &[&str]) -> Result<Child> {
    let mut command = xtask(arguments);
    command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("cannot start `cluster up`")
}

/// Ctrl-C, which the whole group gets, or SIGKILL of the command alone.
fn interrupt(mut child: Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_child(&child);
    if signal == Signal::KILL { kill_process(pid, signal) } else { kill_process_group(pid, signal) }?;
    child.wait()?;
    // Its guard is no longer a child of anybody here, and has to do now what the command did not come to.
    let deadline = Instant::now() + PATIENCE;
    while !processes()?.is_empty() {
        ensure!(Instant::now() < deadline, "after {PATIENCE:?} there still run: {}", processes()?.join(", "));
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
