// SPDX-License-Identifier: Apache-2.0

//! Processes of the operator, what they cost, and what is asked of the API server meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::Args;
use crate::world::{SYSTEM, World};

const POLL: Duration = Duration::from_millis(20);
/// The agents' end of it: whoever leads binds it.
pub(crate) const GRPC: &str = "127.0.0.1:7443";

/// One process of the operator.
pub(crate) struct Replica {
    child: Child,
    http: String,
    log: PathBuf,
}

impl Replica {
    pub(crate) fn start(args: &Args, world: &World, name: &str, folder: &Path) -> Result<Self> {
        let port = world.free_port()?;
        let http = format!("127.0.0.1:{port}");
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log)?;
        // It ends with this process, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&args.operator)
            .args(["--namespace", SYSTEM, "--pod-name", name, "--default-store", "default"])
            .args(["--grpc-address", GRPC, "--http-address", &http, "--log", "warn,tracelake_operator=info"])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {}", args.operator.display()))?;
        Ok(Self { child, http, log })
    }

    /// Waits until it leads and serves agents.
    pub(crate) async fn leads(&self, patience: Duration) -> Result<()> {
        self.says("readyz", "ok", patience).await
    }

    /// Waits until it is ready to lead while another does.
    pub(crate) async fn waits(&self, patience: Duration) -> Result<()> {
        self.says("readyz", "another replica leads", patience).await
    }

    async fn says(&self, path: &str, wanted: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let url = format!("http://{}/{path}", self.http);
        loop {
            if let Ok(answer) = reqwest::get(&url).await
                && answer.status().is_success()
                && answer.text().await? == wanted
            {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{url} does not say {wanted:?}: {}", self.tail());
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop).context("waiting for the operator")
    }

    /// Asks it to end, as the kubelet does; does not wait.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let pid = libc::pid_t::try_from(self.child.id())?;
        // SAFETY: a child that was not waited for.
        ensure!(unsafe { libc::kill(pid, libc::SIGTERM) } == 0, "{}", std::io::Error::last_os_error());
        Ok(())
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// What a time has cost.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    /// CPU of the operator that leads, percent of one.
    pub(crate) operator_cpu: f64,
    /// Its memory at the end.
    pub(crate) operator_rss_bytes: u64,
    /// The same of the API server, as a measure of what is asked of it.
    pub(crate) requests: BTreeMap<String, u64>,
}

/// A [`Cost`] that is not over.
pub(crate) struct Begun {
    at: Instant,
    cpu: Duration,
    requests: BTreeMap<String, u64>,
}

impl Cost {
    pub(crate) async fn begin(world: &World, operator: &Replica) -> Result<Begun> {
        let requests = world.requests().await?;
        Ok(Begun { at: Instant::now(), cpu: cpu(operator.child.id())?, requests })
    }
}

impl Begun {
    pub(crate) async fn end(self, world: &World, operator: &Replica) -> Result<Cost> {
        let seconds = self.at.elapsed().as_secs_f64();
        let used = cpu(operator.child.id())?.saturating_sub(self.cpu);
        let mut requests = world.requests().await?;
        for (what, before) in self.requests {
            requests.entry(what).and_modify(|now| *now -= before);
        }
        requests.retain(|_, count| *count > 0);
        Ok(Cost {
            seconds,
            operator_cpu: used.as_secs_f64() / seconds * 100.0,
            operator_rss_bytes: rss(operator.child.id())?,
            requests,
        })
    }
}

fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the operator has ended")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every architecture that we build for.
    Ok(Duration::from_millis(ticks * 10))
}

fn rss(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the operator has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let Some(kib) = line.and_then(|line| line.trim().strip_suffix("kB")) else { bail!("no VmRSS") };
    Ok(kib.trim().parse::<u64>()? << 10)
}
