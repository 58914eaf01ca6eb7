// SPDX-License-Identifier: Apache-2.0

//! What is measured: the shipped `tracelake record`, and its peers, each on the same page faults of the same load.
//!
//! | contender | what it does with a fault |
//! | --- | --- |
//! | tracelake | a row of `page_faults`, all columns, in sealed Parquet with ledger and manifest |
//! | kernmlops | bcc-python with KernMLOps' settings: perf buffer of 64 pages, polled every half second, objects in a list, Parquet at the end |
//! | bcc | bcc-python, ring buffer of 16 MiB, polled at once, polars, Parquet |
//! | bpftrace | a line of text by `printf`, in a file |

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::load::Outcome;
use super::process::{self, Usage};
use crate::{cache, exec, image, tools};

/// Faults of the load's process that it does not count itself: of its start and end.
const UNCOUNTED: u64 = 2_000;
const POLARS: &str = "polars==1.35.2";

/// Who records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Contender {
    Tracelake,
    KernMlops,
    Bcc,
    Bpftrace,
}

/// What the load is told.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Load {
    pub(super) rate: u64,
    pub(super) seconds: u64,
    pub(super) threads: u64,
}

/// One run of a contender beside a load.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Trial {
    pub(super) contender: Contender,
    pub(super) load: Load,
    pub(super) did: Outcome,
    /// Events that are in its files.
    pub(super) kept: u64,
    /// Events that it says it has lost.
    pub(super) lost: u64,
    /// CPU time from the first fault until its files were complete.
    pub(super) cpu_ns: u64,
    pub(super) rss_bytes: u64,
    /// Length of its files.
    pub(super) bytes: u64,
}

impl Trial {
    /// Faults per second that the load really made.
    pub(super) fn rate(&self) -> f64 {
        self.did.faults as f64 * 1e9 / self.did.wall_ns as f64
    }

    pub(super) fn ns_per_event(&self) -> f64 {
        self.cpu_ns as f64 / self.kept.max(1) as f64
    }

    pub(super) fn lossless(&self) -> bool {
        self.lost == 0 && self.kept >= self.did.faults
    }
}

/// Where everything lies that runs.
pub(super) struct Bench {
    pub(super) tracelake: PathBuf,
    pub(super) agent: PathBuf,
    this: PathBuf,
    headers: PathBuf,
    polars: PathBuf,
    folder: PathBuf,
    /// The profile of what is measured beside the recorders: higher numbers yield to lower ones.
    pub(super) nice: i32,
}

impl Bench {
    /// Installs the peers, compiles the product as users get it.
    pub(super) fn prepare(folder: PathBuf) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "recording needs root");
        tools::packages()?;
        tools::debian(&["bpftool", "bpftrace", "iproute2", "linux-headers-amd64", "python3-bpfcc", "zstd"])?;
        let polars = cache::entry("tools", "polars", cache::Key::default().text(POLARS), |folder| {
            // For Debian's own interpreter, whose version the package of bcc is for.
            let pip = ["-m", "pip", "install", "--quiet", "--only-binary=:all:", "--python-version", "3.11"];
            exec::quiet(exec::command("python3", pip).args([POLARS, "--target"]).arg(folder))
        })?;
        let headers = headers()?;
        let tracelake = image::release("tracelake")?;
        let agent = image::release("tracelake-node-agent")?;
        let this = std::env::current_exe().context("finding this program")?;
        Ok(Self { tracelake, agent, this, headers, polars, folder, nice: 0 })
    }

    /// Where the last run's files lie.
    pub(super) fn place(&self) -> &Path {
        &self.folder
    }

    /// Python's packages.
    pub(super) fn polars(&self) -> &Path {
        &self.polars
    }

    /// An empty folder for a run's files.
    pub(super) fn folder(&self) -> Result<PathBuf> {
        cache::remove(&self.folder)?;
        fs::create_dir_all(&self.folder)?;
        Ok(self.folder.clone())
    }

    /// The load as a command of its own.
    pub(super) fn load(&self, load: Load) -> Command {
        let mut command = exec::command(&self.this, ["bench-load"]);
        for (flag, value) in [("--rate", load.rate), ("--seconds", load.seconds), ("--threads", load.threads)]
        {
            command.args([flag, &value.to_string()]);
        }
        command
    }

    /// `tracelake record` with these arguments, quiet, into this folder, at this bench's priority.
    pub(super) fn record(&self, folder: &Path, collectors: &str, arguments: &[&str]) -> Command {
        let mut command = exec::command("nice", ["-n", &self.nice.to_string()]);
        command.arg(&self.tracelake).args(["record", "--quiet", "-c", collectors, "-o"]);
        command.arg(folder.join("data")).args(arguments);
        command
    }

    /// One run.
    pub(super) fn trial(&self, contender: Contender, load: Load) -> Result<Trial> {
        let trial = match contender {
            Contender::Tracelake => self.ours(load),
            _ => self.peer(contender, load),
        };
        let trial = trial.with_context(|| format!("{contender:?} at {load:?}"))?;
        ensure!(
            trial.kept + trial.lost <= trial.did.faults + UNCOUNTED,
            "{contender:?} says more than there was: {trial:?}"
        );
        Ok(trial)
    }

    fn ours(&self, load: Load) -> Result<Trial> {
        let folder = self.folder()?;
        let mut command = self.record(&folder, "pageFaults", &["-p", "pageFaults.events=true", "--"]);
        let loader = self.load(load);
        // The load keeps the priority that everything else has.
        command
            .args(["nice", "-n", &(-self.nice).to_string()])
            .arg(loader.get_program())
            .args(loader.get_args());
        let mut child = command.stdout(Stdio::piped()).spawn().context("starting tracelake")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut line)?;
        let (status, usage) = process::wait(child)?;
        ensure!(status.success(), "tracelake record ended with {status}");
        let did: Outcome =
            serde_json::from_str(&line).with_context(|| format!("the load printed {line:?}"))?;
        let sums = totals(&folder.join("data"))?;
        // It waits for the load, so the load's time is in its own.
        let cpu_ns = usage.cpu_ns.saturating_sub(did.cpu_ns + did.parent_cpu_ns);
        let terms = |name: &str| sums["terms"][name].as_u64().unwrap_or_default();
        let (emitted, kept) = (sums["emitted"].as_u64().unwrap_or_default(), terms("exported"));
        let lost = sums["terms"].as_object().into_iter().flatten();
        let lost =
            lost.filter(|(name, _)| name.starts_with("lost_")).filter_map(|(_, value)| value.as_u64()).sum();
        ensure!(emitted == kept + lost, "the ledger does not balance: {sums}");
        let bytes = size(&folder.join("data"))?;
        Ok(Trial {
            contender: Contender::Tracelake,
            load,
            did,
            kept,
            lost,
            cpu_ns,
            rss_bytes: usage.rss_bytes,
            bytes,
        })
    }

    fn peer(&self, contender: Contender, load: Load) -> Result<Trial> {
        let folder = self.folder()?;
        let mut loader = self.load(load).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let pid = loader.id().to_string();
        let (output, errors) = (folder.join("output"), folder.join("errors"));
        let mut command = match contender {
            Contender::Bpftrace => {
                let program = format!(
                    "BEGIN {{ printf(\"ready\\n\"); }} tracepoint:exceptions:page_fault_user /pid == {pid}/ {{ \
                     printf(\"%lu %d %d %s %lx %lx %lx\\n\", nsecs, pid, tid, comm, args->address, args->ip, \
                     args->error_code); }}"
                );
                // It looks tracepoints up in file systems that not every machine has mounted.
                let mounts = "mount -t tracefs tracefs /sys/kernel/tracing; mount -t debugfs debugfs /sys/kernel/debug; \
                              exec bpftrace -e \"$0\"";
                let mut command = exec::command("unshare", ["--mount", "sh", "-c", mounts, &program]);
                command.env("BPFTRACE_PERF_RB_PAGES", "1024");
                command
            }
            _ => {
                let mode = if contender == Contender::KernMlops { "poll" } else { "ring" };
                let script = cache::repository().join("xtask/bench/peer.py");
                let mut command = exec::command("/usr/bin/python3", [script.as_os_str()]);
                command.args([mode, &pid]).arg(&folder);
                command.env("PYTHONPATH", &self.polars).env("BCC_KERNEL_SOURCE", &self.headers);
                command
            }
        };
        let recorder = command.stdout(File::create(&output)?).stderr(File::create(&errors)?).spawn()?;
        let ran = self.beside(&recorder, &mut loader, &output);
        terminate(&recorder)?;
        let (status, usage) = process::wait(recorder)?;
        if ran.is_err() {
            _ = loader.kill();
        }
        _ = loader.wait();
        let said = fs::read_to_string(&errors)?;
        let (did, before) = ran.with_context(|| format!("it ended with {status} and said: {said}"))?;
        let (kept, lost) = match contender {
            Contender::Bpftrace => (lines(&output)?, lost_by_bpftrace(&said)),
            _ => {
                #[derive(Deserialize)]
                struct Said {
                    kept: u64,
                    lost: u64,
                }
                let text = fs::read_to_string(&output)?;
                let said: Said = serde_json::from_str(text.lines().last().unwrap_or_default())
                    .with_context(|| format!("it printed {text:?} and {said}"))?;
                (said.kept, said.lost)
            }
        };
        let bytes = size(&folder)?;
        let Usage { cpu_ns, rss_bytes } = usage;
        Ok(Trial {
            contender,
            load,
            did,
            kept,
            lost,
            cpu_ns: cpu_ns.saturating_sub(before),
            rss_bytes,
            bytes,
        })
    }

    /// Waits until the recorder records, lets the load run, and returns what it did and the CPU time of the recorder before.
    fn beside(&self, recorder: &Child, loader: &mut Child, output: &Path) -> Result<(Outcome, u64)> {
        let limit = Instant::now() + Duration::from_secs(60);
        while !fs::read_to_string(output)?.contains("ready") {
            ensure!(Path::new(&format!("/proc/{}/exe", recorder.id())).exists(), "it is gone");
            ensure!(Instant::now() < limit, "it does not begin");
            std::thread::sleep(Duration::from_millis(50));
        }
        let before = process::cpu_ns(recorder.id())?;
        loader.stdin.take().context("a pipe")?.write_all(b"\n")?;
        let mut line = String::new();
        BufReader::new(loader.stdout.take().context("a pipe")?).read_line(&mut line)?;
        Ok((serde_json::from_str(&line).with_context(|| format!("the load printed {line:?}"))?, before))
    }
}

/// One folder of the kernel's headers, as bcc wants it; Debian has two. Of which kernel does not matter to a raw tracepoint.
fn headers() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/src")?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut folders: Vec<PathBuf> =
        folders.filter(|path| path.to_string_lossy().contains("linux-headers-")).collect();
    folders.sort();
    let ending = |common: bool| {
        let found = folders.iter().rfind(|path| path.to_string_lossy().ends_with("-common") == common);
        found.context("linux-headers-amd64 left no folders in /usr/src")
    };
    let (common, own) = (ending(true)?, ending(false)?);
    let key = cache::Key::default().text(&common.to_string_lossy()).text(&own.to_string_lossy());
    cache::entry("tools", "headers", key, |folder| {
        fs::create_dir_all(folder)?;
        for part in [common, own] {
            exec::quiet(exec::command("cp", ["-rsf"]).arg(part.join(".")).arg(folder))?;
        }
        Ok(())
    })
}

pub(super) fn terminate(child: &Child) -> Result<()> {
    use rustix::process::{Pid, Signal, kill_process};
    // An error means that it has ended.
    _ = kill_process(Pid::from_child(child), Signal::TERM);
    Ok(())
}

/// The sums of the last manifest of a dataset.
pub(super) fn totals(dataset: &Path) -> Result<serde_json::Value> {
    let path = dataset.join("_tracelake/manifest-1.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_str::<serde_json::Value>(&text)?["totals"].take())
}

/// Bytes of all files below a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}

/// Lines that begin with a time: all but what bpftrace says itself.
fn lines(path: &Path) -> Result<u64> {
    let file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut lines = 0;
    for line in file.split(b'\n') {
        lines += u64::from(line?.first().is_some_and(u8::is_ascii_digit));
    }
    Ok(lines)
}

fn lost_by_bpftrace(errors: &str) -> u64 {
    let lost =
        errors.lines().filter_map(|line| line.strip_prefix("Lost ")?.split(' ').next()?.parse::<u64>().ok());
    lost.sum()
}

/// The programs that are attached now, as `bpftool` tells of them.
pub(super) fn programs() -> Result<Vec<serde_json::Value>> {
    let text = exec::output(&mut exec::command("bpftool", ["prog", "show", "-j"]))?;
    match serde_json::from_str(&text)? {
        serde_json::Value::Array(programs) => Ok(programs),
        other => bail!("bpftool printed {other}"),
    }
}

/// The command in a network namespace of its own, with a loopback.
pub(super) fn in_own_network(command: &Command) -> Command {
    let mut own = exec::command("unshare", ["--net", "sh", "-c", "ip link set lo up; exec \"$@\"", "sh"]);
    own.arg(command.get_program()).args(command.get_args());
    own
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_bpftrace_lost_is_summed_up() {
        assert_eq!(super::lost_by_bpftrace("Lost 12 events\nsomething\nLost 30 events\n"), 42);
    }
}
