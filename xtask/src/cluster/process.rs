// SPDX-License-Identifier: Apache-2.0

//! Processes that outlive the command that started them: servers and VMs of the cluster.
//!
//! Each is its own session, with a log and a file that holds its id and start time. A process is ended
//! only when both match, because ids are reused.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::state;
use crate::{cache, exec};

/// A server that does not end by itself after this long is killed.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
struct Record {
    id: i32,
    /// In clock ticks since boot, as in `/proc/ID/stat`.
    started: u64,
}

/// Starts a process under a name; its output goes to [`log`].
pub(super) fn start(name: &str, command: &Command) -> Result<()> {
    fs::create_dir_all(state().join("processes"))?;
    fs::create_dir_all(state().join("logs"))?;
    let log = File::create(log(name))?;
    // setsid replaces itself by the command, so that the child's id is the command's.
    let mut detached = exec::command("setsid", [command.get_program()]);
    detached.args(command.get_args()).stdout(log.try_clone()?).stderr(log);
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => detached.env(key, value),
            None => detached.env_remove(key),
        };
    }
    let mut child = detached.current_dir("/").spawn().with_context(|| format!("cannot start {name}"))?;
    record(name, child.id()).inspect_err(|_| {
        // Without a record nobody would ever end it. An error means that it ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    })
}

fn record(name: &str, id: u32) -> Result<()> {
    let id = i32::try_from(id).context("process ids are below 2^22")?;
    let started =
        started(id).with_context(|| format!("{name} ended at once: see {}", log(name).display()))?;
    let path = record_path(name);
    fs::write(&path, serde_json::to_vec(&Record { id, started })?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Whether the process of this name runs.
pub(super) fn runs(name: &str) -> bool {
    running(name).is_some()
}

/// Ends the process of this name and waits until it is gone; does nothing when it is not there.
pub(super) fn stop(name: &str) -> Result<()> {
    if let Some(id) = running(name) {
        let pid = Pid::from_raw(id).context("not a process id")?;
        for signal in [Signal::TERM, Signal::KILL] {
            // An error means that it ended in between.
            let _ = kill_process(pid, signal);
            let deadline = Instant::now() + GRACE;
            while running(name).is_some() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    cache::remove(&record_path(name))
}

/// Ends all processes: first those that `last` does not name, then those that it does, in its order.
pub(super) fn stop_all(last: &[&str]) -> Result<()> {
    let first = names().into_iter().filter(|name| !last.contains(&name.as_str()));
    first.chain(last.iter().map(|name| (*name).to_owned())).try_for_each(|name| stop(&name))
}

/// The names of all processes that were started and not stopped.
pub(super) fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(state().join("processes")) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// Where a process' output goes.
pub(super) fn log(name: &str) -> PathBuf {
    state().join("logs").join(format!("{name}.log"))
}

fn record_path(name: &str) -> PathBuf {
    state().join("processes").join(format!("{name}.json"))
}

fn running(name: &str) -> Option<i32> {
    let record: Record = serde_json::from_slice(&fs::read(record_path(name)).ok()?).ok()?;
    (started(record.id)? == record.started).then_some(record.id)
}

/// When a process started; nothing for one that is gone or waits to be reaped.
fn started(id: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The command's name, in parentheses, may hold anything; the fields after it are numbered from 3.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(22 - 3)?.parse().ok()
}
