// SPDX-License-Identifier: Apache-2.0

//! A Kubernetes cluster for tests and demos.
//!
//! Two providers: [`vms`], with a kernel of its own for each node, and [`kind`] where asked for. Both end with a kubeconfig
//! that works in the host's network; what uses the cluster needs nothing but `KUBECONFIG`.

mod control_plane;
mod disk;
mod kind;
mod network;
mod node;
mod process;
mod proxy;
mod vms;

pub(crate) use vms::DEADLINE;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::kernel::Kernel;
use crate::{cache, exec, tools};

/// `cargo xtask cluster`.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Start the cluster, or what is stopped of it, and wait until it can be used.
    Up(Options),
    /// End the cluster and what belongs to it.
    Down,
    /// Say what runs and how to use it.
    Status,
    /// Import image archives into every node.
    Load {
        /// Archives, as `cargo xtask image` makes them.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Run a command on a node.
    Ssh {
        /// The node.
        node: String,
        /// The command; a shell when there is none.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Cut a node's power, or give it back.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Carry connections from the host into the cluster's network; started by `up`.
    #[command(hide = true)]
    Proxy,
}

/// `cargo xtask cluster node`.
#[derive(clap::Subcommand)]
pub(crate) enum NodeCommand {
    /// Cut a node's power.
    Stop {
        /// The node.
        name: String,
    },
    /// Start a stopped node again, with its disk as it was.
    Start {
        /// The node.
        name: String,
    },
}

/// What to start.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// Where nodes come from: emulated machines unless said otherwise; kind needs a Docker engine.
    #[arg(long = "cluster", value_enum)]
    pub(crate) provider: Option<Provider>,
    /// Nodes as NAME=KERNEL; `node-a=6.1,node-b=6.12` when not given. kind takes only their number.
    #[arg(long, value_delimiter = ',', value_parser = parse_node)]
    pub(crate) nodes: Vec<(String, Kernel)>,
}

/// Where nodes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Provider {
    /// QEMU, on any machine.
    Vm,
    /// Docker containers.
    Kind,
}

/// A running cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) provider: Provider,
    /// For an administrator.
    pub(crate) kubeconfig: PathBuf,
    pub(crate) kubectl: PathBuf,
    pub(crate) helm: PathBuf,
    pub(crate) nodes: Vec<String>,
    /// A user asked for it: no test and no demo ends it.
    kept: bool,
}

/// `cargo xtask cluster`.
pub(crate) fn main(command: &Command) -> Result<()> {
    match command {
        Command::Up(options) => {
            let (cluster, _) = start(options, &[], true)?;
            cluster.complete()?;
            cluster.explain();
        }
        Command::Down => down()?,
        Command::Status => status()?,
        Command::Load { archives } => current()?.load(archives)?,
        Command::Ssh { node, command } => std::process::exit(current()?.ssh(node, command)?),
        Command::Node(NodeCommand::Stop { name }) => current()?.stop_node(name)?,
        Command::Node(NodeCommand::Start { name }) => current()?.start_node(name)?,
        Command::Proxy => proxy::run()?,
    }
    Ok(())
}

/// Starts the cluster, if none runs, and waits until its API server answers; its nodes may need another minute, see
/// [`Cluster::complete`]. `images` are what the nodes will need: one that starts with them need not load them. `keep` says
/// that a user asks for the cluster. Also returned is whether it is a new one.
pub(crate) fn start(options: &Options, images: &[Image], keep: bool) -> Result<(Cluster, bool)> {
    let _lock = cache::lock("cluster")?;
    let (mut cluster, new) = match current() {
        Ok(cluster) if options.provider.is_some_and(|provider| provider != cluster.provider) => {
            bail!("a cluster of the other provider runs: end it with `cargo xtask cluster down`")
        }
        Ok(cluster) => (cluster, false),
        Err(_) => (create(options, images)?, true),
    };
    cluster.kept |= keep;
    // Before it can be used: when that fails, its nodes are still there to be looked at.
    fs::write(state_file(), serde_json::to_vec_pretty(&cluster)?)?;
    // Also of one that runs: whoever started it may have been interrupted before it had what nodes ask for.
    if cluster.provider == Provider::Vm {
        vms::wait_for_server()?;
    }
    Ok((cluster, new))
}

fn create(options: &Options, images: &[Image]) -> Result<Cluster> {
    fs::create_dir_all(state())?;
    // Of an earlier cluster: beside half a new one it would tell of a whole one.
    cache::remove(&state_file())?;
    let provider = options.provider.unwrap_or(Provider::Vm);
    let nodes = if options.nodes.is_empty() {
        vec![("node-a".to_owned(), Kernel::V6_1), ("node-b".to_owned(), Kernel::V6_12)]
    } else {
        options.nodes.clone()
    };
    match provider {
        Provider::Vm => vms::start(&nodes, images),
        Provider::Kind => kind::up(nodes.len()),
    }
}

/// Ends the cluster; does nothing when there is none.
pub(crate) fn down() -> Result<()> {
    let cluster = read_state();
    if cluster.as_ref().is_ok_and(|cluster| cluster.provider == Provider::Kind) {
        kind::down()?;
    }
    // Also without a state file: an `up` that failed leaves processes for inspection.
    vms::down()?;
    cache::remove(&state_file())
}

/// An API server with the kinds and no cluster around it, for what makes its own; ends when dropped.
pub(crate) struct ApiServer(());

impl ApiServer {
    /// Takes the place of the cluster, which may not run.
    pub(crate) fn start() -> Result<Self> {
        let _lock = cache::lock("cluster")?;
        ensure!(current().is_err(), "a cluster runs: end it with `cargo xtask cluster down`");
        fs::create_dir_all(state())?;
        let server = Self(());
        vms::start_api_server()?;
        let crds = cache::repository().join("crds/yaml");
        let mut apply = server.within(tools::kubernetes()?.join("kubectl"));
        exec::quiet(apply.args(["apply", "--server-side", "-f"]).arg(crds))?;
        Ok(server)
    }

    /// A command in its network, with an administrator's `KUBECONFIG`; it ends with this program.
    pub(crate) fn within(&self, program: impl AsRef<OsStr>) -> std::process::Command {
        let inside = network::within(program, [] as [&str; 0]);
        let mut command = exec::command("setpriv", ["--pdeathsig", "TERM", "--"]);
        command.arg(inside.get_program()).args(inside.get_args());
        command.env("KUBECONFIG", control_plane::kubeconfig());
        command
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Err(error) = vms::down() {
            eprintln!("the API server may still run: {error:#}");
        }
    }
}

/// Ends the cluster after a test or a demo, unless a user asked for it, perhaps meanwhile: then says how to use it.
pub(crate) fn end(keep: bool) -> Result<()> {
    let _lock = cache::lock("cluster")?;
    if !keep && !read_state().is_ok_and(|cluster| cluster.kept) {
        return down();
    }
    // What was shown or tested counts, not what became of the cluster since.
    if let Ok(cluster) = current() {
        cluster.explain();
        println!("  kubectl get tracesessions --all-namespaces");
        println!("  cargo xtask cluster down   # when you are done");
    }
    Ok(())
}

/// The cluster that runs.
pub(crate) fn current() -> Result<Cluster> {
    let cluster = read_state()?;
    let runs = match cluster.provider {
        Provider::Vm => vms::runs(),
        Provider::Kind => kind::runs(),
    };
    if !runs {
        bail!("the cluster is gone or damaged: `cargo xtask cluster down`, then `up`");
    }
    Ok(cluster)
}

impl Cluster {
    /// Starts nodes that are stopped, and waits until all are Ready and names are resolved.
    pub(crate) fn complete(&self) -> Result<()> {
        match self.provider {
            Provider::Vm => vms::complete(),
            Provider::Kind => Ok(()),
        }
    }

    /// Imports these image archives into every node; what a node has already costs little.
    pub(crate) fn load(&self, archives: &[PathBuf]) -> Result<()> {
        match self.provider {
            Provider::Vm => vms::load(&self.nodes, archives),
            Provider::Kind => kind::load(archives),
        }
    }

    /// The same for built images.
    pub(crate) fn load_images(&self, images: &[Image]) -> Result<()> {
        self.load(&images.iter().map(|image| image.archive.clone()).collect::<Vec<_>>())
    }

    /// Runs a command on a node and returns its exit code; input and output are this process' own.
    pub(crate) fn ssh(&self, node: &str, command: &[String]) -> Result<i32> {
        self.check_node(node)?;
        match self.provider {
            Provider::Vm => vms::ssh(node, command),
            Provider::Kind => kind::ssh(node, command),
        }
    }

    /// Cuts a node's power.
    pub(crate) fn stop_node(&self, name: &str) -> Result<()> {
        self.check_node(name)?;
        match self.provider {
            Provider::Vm => vms::stop_node(name),
            Provider::Kind => kind::stop_node(name),
        }
    }

    /// Starts a node that was stopped; does not wait until it is Ready.
    pub(crate) fn start_node(&self, name: &str) -> Result<()> {
        self.check_node(name)?;
        match self.provider {
            Provider::Vm => vms::start_node(name),
            Provider::Kind => kind::start_node(name),
        }
    }

    fn check_node(&self, name: &str) -> Result<()> {
        if !self.nodes.iter().any(|node| node == name) {
            bail!("no node {name}; there are {}", self.nodes.join(", "));
        }
        Ok(())
    }

    /// `kubectl`, for an administrator.
    pub(crate) fn kubectl(&self) -> std::process::Command {
        let mut kubectl = exec::command(&self.kubectl, [] as [&str; 0]);
        kubectl.env("KUBECONFIG", &self.kubeconfig);
        kubectl
    }

    /// Prints how to use the cluster.
    pub(crate) fn explain(&self) {
        println!("nodes: {}", self.nodes.join(", "));
        println!("to use the cluster:");
        println!("  export KUBECONFIG={}", self.kubeconfig.display());
        println!(
            "  export PATH={}:$PATH   # kubectl and helm of the cluster's version",
            cache::dir().join("bin").display()
        );
    }
}

fn status() -> Result<()> {
    match current() {
        Ok(cluster) => {
            cluster.explain();
            if cluster.provider == Provider::Vm {
                vms::status()?;
            }
        }
        Err(reason) => {
            println!("no usable cluster: {reason:#}");
            vms::status()?;
        }
    }
    Ok(())
}

/// The cluster's folder: kubeconfig, keys, disks, logs.
fn state() -> PathBuf {
    cache::dir().join("cluster")
}

fn state_file() -> PathBuf {
    state().join("cluster.json")
}

fn read_state() -> Result<Cluster> {
    let bytes = fs::read(state_file()).context("no cluster: start one with `cargo xtask cluster up`")?;
    serde_json::from_slice(&bytes)
        .context("the cluster's state is of another version: `cargo xtask cluster down`")
}

/// Puts kubectl and helm under names that do not change with their versions.
fn link_tools() -> Result<(PathBuf, PathBuf)> {
    let folder = cache::dir().join("bin");
    fs::create_dir_all(&folder)?;
    let link = |name: &str, target: &Path| -> Result<PathBuf> {
        let path = folder.join(name);
        cache::remove(&path)?;
        symlink(target, &path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    };
    Ok((link("kubectl", &tools::kubernetes()?.join("kubectl"))?, link("helm", &tools::helm()?)?))
}

fn parse_node(text: &str) -> Result<(String, Kernel), String> {
    let (name, kernel) = text.split_once('=').ok_or("nodes are NAME=KERNEL")?;
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    // Names become names of tap devices, `tap-NAME`, which the kernel limits to 15 characters.
    if name.is_empty() || name.len() > 11 || !name.chars().all(valid) {
        return Err(format!("{name}: node names have 1 to 11 lower-case letters, digits and hyphens"));
    }
    Ok((name.to_owned(), clap::ValueEnum::from_str(kernel, true)?))
}
