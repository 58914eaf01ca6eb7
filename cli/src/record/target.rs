// SPDX-License-Identifier: Apache-2.0

//! What `tracelake record` records besides a command of its own: one cgroup of this machine and those below it, found by
//! a process, a path or a container's id, or the root of them all.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use node_agent::targets::cgroup;
use node_agent::targets::pod::container_id;

/// One of these, or none.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub(crate) struct Choice {
    /// Record the cgroup of this process instead of a command.
    #[arg(long)]
    pid: Option<u32>,
    /// Record this cgroup (a path below the cgroup v2 mount, or a full one) and those below it.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Record the container whose id is this or begins so; `docker ps`, `podman ps` and `crictl ps` show ids.
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// Record everything on this machine.
    #[arg(long)]
    all: bool,
}

/// As short as `docker ps` shows them, or shorter.
const LEAST_DIGITS: usize = 6;

impl Choice {
    /// Names of its flags, none of which goes with a command.
    pub(crate) const FLAGS: [&str; 4] = ["pid", "cgroup", "container", "all"];

    /// Whether there is one.
    pub(crate) fn is_made(&self) -> bool {
        self.pid.is_some() || self.cgroup.is_some() || self.container.is_some() || self.all
    }

    /// What a dataset of it is called.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self { pid: Some(_), .. } => "process",
            Self { container: Some(_), .. } => "container",
            Self { all: true, .. } => "machine",
            _ => "cgroup",
        }
    }

    /// The cgroup, below the root of the v2 tree.
    ///
    /// # Errors
    /// When there is none such.
    pub(crate) fn find(&self, root: &Path) -> Result<PathBuf> {
        if let Some(pid) = self.pid {
            return Ok(root.join(of_process(pid)?.trim_start_matches('/')));
        }
        if let Some(id) = &self.container {
            return of_container(root, id);
        }
        Ok(match &self.cgroup {
            Some(path) if path.starts_with(root) => path.clone(),
            Some(path) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => root.to_owned(),
        })
    }
}

/// The cgroup v2 path of a process, below the mount.
fn of_process(pid: u32) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .with_context(|| format!("there is no process {pid}"))?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .context("this machine has no cgroup v2 tree")?;
    ensure!(
        path != "/",
        "process {pid} is in the root cgroup with everything else: move it to a cgroup of its own and use --cgroup, or --all"
    );
    Ok(path.to_owned())
}

fn of_container(root: &Path, id: &str) -> Result<PathBuf> {
    ensure!(
        id.len() >= LEAST_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{id:?} is no container's id: give its first {LEAST_DIGITS} hexadecimal digits or more (`docker ps`, `crictl ps`)"
    );
    let mut found: Vec<PathBuf> = Vec::new();
    cgroup::walk(root, &mut |_, _, path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_it = container_id(name).is_some_and(|container| container.starts_with(id));
        if is_it {
            found.push(path.to_owned());
        }
        // What lies in it belongs to it.
        !is_it
    });
    match found.as_slice() {
        [] => bail!("no container's cgroup has an id that begins with {id}"),
        [one] => Ok(one.clone()),
        several => bail!(
            "{} containers' ids begin with {id}: {}",
            several.len(),
            several.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_found_by_how_their_ids_begin() {
        let root = std::env::temp_dir().join(format!("tracelake-containers-{}", std::process::id()));
        let (one, other) = ("0a".repeat(32), format!("0a0a0b{}", "0a".repeat(29)));
        let paths = [format!("system.slice/docker-{one}.scope"), format!("kubepods/pod1/{other}")];
        for path in &paths {
            fs::create_dir_all(root.join(path).join("inside")).unwrap();
        }
        let find = |id: &str| of_container(&root, id).map_err(|error| error.to_string());
        let (first, both, none, wrong) = (find("0a0a0a"), find("0a0a0"), find("ffffff"), find("web"));
        let (second, ambiguous) = (find("0a0a0b"), find("0a0a0a0a0a0a"));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(first.unwrap(), root.join(&paths[0]));
        assert_eq!(second.unwrap(), root.join(&paths[1]));
        assert_eq!(ambiguous.unwrap(), root.join(&paths[0]));
        assert!(both.unwrap_err().contains("first 6"));
        assert!(none.unwrap_err().contains("begins with ffffff"));
        assert!(wrong.unwrap_err().contains("is no container's id"));
    }
}
