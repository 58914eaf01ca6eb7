// SPDX-License-Identifier: Apache-2.0

//! A Kubernetes cluster for tests and demos.
//!
//! Where its nodes come from is a [`provider`]: emulated machines with a kernel each ([`vms`]), or kind, by the Docker engine
//! of this machine ([`kind_docker`]) or inside an emulated one ([`kind_vm`]). All end with a kubeconfig that works in the
//! host's network; what uses the cluster needs nothing but `KUBECONFIG`.
//!
//! One cluster at a time. It ends with the command that started it, however that ends ([`guard`]), unless a user asked to
//! keep it: then the next command finds it by the state in the cluster's folder.

mod control_plane;
mod disk;
mod guard;
mod kind_disk;
mod kind_docker;
mod kind_vm;
mod monitor;
mod network;
mod node;
mod process;
mod provider;
mod proxy;
mod vms;

pub(crate) use kind_disk::node_packages as kind_node_packages;
pub(crate) use vms::DEADLINE;

use guard::Guard;
pub(crate) use provider::Choice;
use provider::{Action, Source, Started, answers};

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::image::{self, Image};
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
    Proxy {
        /// The address inside.
        #[arg(long)]
        to: String,
    },
    /// End a cluster when standard input ends, unless it is kept; started by whatever starts a cluster.
    #[command(hide = true)]
    Guard {
        /// Its id.
        #[arg(long)]
        of: String,
    },
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
    /// Where nodes come from; emulated machines unless said otherwise.
    #[arg(long = "cluster", value_enum)]
    pub(crate) choice: Option<Choice>,
    /// Nodes as NAME=KERNEL; `node-a=6.1,node-b=6.12` when not given. kind has two of its own.
    #[arg(long, value_delimiter = ',', value_parser = parse_node)]
    pub(crate) nodes: Vec<(String, Kernel)>,
}

/// A cluster, as commands find it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cluster {
    /// Of one start, whose guard ends no other.
    id: String,
    provider: Source,
    /// For an administrator.
    pub(crate) kubeconfig: PathBuf,
    pub(crate) kubectl: PathBuf,
    pub(crate) helm: PathBuf,
    pub(crate) nodes: Vec<String>,
    /// It was started to its end.
    started: bool,
    /// A user asked for it: no test and no demo ends it.
    kept: bool,
}

/// A cluster in use. One that was started for this ends when this is dropped, unless it is kept.
pub(crate) struct Running {
    pub(crate) cluster: Cluster,
    /// Its nodes have the images that were asked for.
    pub(crate) has_images: bool,
    guard: Option<Guard>,
}

/// `cargo xtask cluster`.
pub(crate) fn main(command: &Command) -> Result<()> {
    match command {
        Command::Up(options) => {
            let running = start(options, &[])?;
            running.cluster.complete()?;
            running.keep()?;
            running.cluster.explain();
        }
        Command::Down => down()?,
        Command::Status => status(),
        Command::Load { archives } => current()?.load(archives)?,
        Command::Ssh { node, command } => std::process::exit(current()?.at(node, Action::Run(command))?),
        Command::Node(NodeCommand::Stop { name }) => current()?.at(name, Action::Stop).map(drop)?,
        Command::Node(NodeCommand::Start { name }) => current()?.at(name, Action::Start).map(drop)?,
        Command::Proxy { to } => proxy::run(to)?,
        Command::Guard { of } => guard::run(of)?,
    }
    Ok(())
}

/// Installs what the cluster is made of that [`start`] would give.
pub(crate) fn prepare(choice: Option<Choice>) -> Result<()> {
    let asked = choice.map_or(Source::Vms, Choice::source);
    current().map_or(asked, |cluster| cluster.provider).prepare()
}

/// Starts the cluster, if none runs, and waits until its API server answers; its nodes may need another minute, see
/// [`Cluster::complete`]. `images` are what the nodes will need: one that starts with them need not load them.
pub(crate) fn start(options: &Options, images: &[Image]) -> Result<Running> {
    let lock = cache::lock("cluster")?;
    let asked = options.choice.map(Choice::source);
    let is_kind = options.choice == Some(Choice::Kind);
    ensure!(
        !is_kind || options.nodes.is_empty(),
        "kind has two nodes of its own: --nodes is for `--cluster vm`"
    );
    let why = match current() {
        Ok(cluster) => {
            ensure!(
                asked.is_none_or(|source| source == cluster.provider),
                "a cluster of another provider runs: end it with `cargo xtask cluster down`"
            );
            let asked: Vec<&String> = options.nodes.iter().map(|(name, _)| name).collect();
            ensure!(
                asked.is_empty() || cluster.nodes.iter().eq(asked),
                "a cluster of the nodes {} runs: end it with `cargo xtask cluster down`",
                cluster.nodes.join(", ")
            );
            return Ok(Running { cluster, has_images: false, guard: None });
        }
        Err(why) => why,
    };
    // One of another version may have been kept as well.
    let kept = state_file().exists() && read_state().map_or(true, |cluster| cluster.kept);
    clear()?;
    if kept {
        println!("cluster: the one that was kept is damaged ({}) and is replaced", why.root_cause());
    }
    let mut cluster = Cluster::begin(asked.unwrap_or(Source::Vms))?;
    let guard = Guard::start(&cluster.id)?;
    // Given back before the guard is dropped, which waits for it.
    let _lock = lock;
    let has_images = create(&mut cluster, options, images)?;
    Ok(Running { cluster, has_images, guard: Some(guard) })
}

/// Starts what was begun; whether its nodes have the images.
fn create(cluster: &mut Cluster, options: &Options, images: &[Image]) -> Result<bool> {
    link(&tools::helm()?)?;
    let nodes = if options.nodes.is_empty() {
        vec![("node-a".to_owned(), Kernel::V6_1), ("node-b".to_owned(), Kernel::V6_12)]
    } else {
        options.nodes.clone()
    };
    let Started { nodes, have_images } = cluster.provider.provider().start(&nodes, images)?;
    cluster.nodes = nodes;
    cluster.started = true;
    cluster.save()?;
    Ok(have_images)
}

impl Running {
    /// Lets the cluster go on when nobody uses it any more.
    pub(crate) fn keep(&self) -> Result<()> {
        let _lock = cache::lock("cluster")?;
        let now = read_state()?;
        ensure!(now.id == self.cluster.id, "the cluster was ended meanwhile, and another one was started");
        Cluster { kept: true, ..now }.save()
    }

    /// Ends the cluster after a test or a demo, unless a user asked for it, perhaps meanwhile: then says how to use it.
    pub(crate) fn end(self, keep: bool) -> Result<()> {
        if keep {
            self.keep()?;
        }
        match self.guard {
            Some(guard) => drop(guard),
            None => end_unless_kept(&self.cluster.id)?,
        }
        // What was shown or tested counts, not what became of the cluster since.
        if let Ok(cluster) = current() {
            cluster.explain();
            println!("  kubectl get tracesessions --all-namespaces");
            println!("  cargo xtask cluster down   # when you are done");
        }
        Ok(())
    }
}

/// Ends the cluster; does nothing when there is none.
pub(crate) fn down() -> Result<()> {
    let _lock = cache::lock("cluster")?;
    down_locked()
}

/// Ends the cluster of this id, unless it was ended already, or is kept.
fn end_unless_kept(id: &str) -> Result<()> {
    let _lock = cache::lock("cluster")?;
    if read_state().is_ok_and(|cluster| cluster.id == id && !cluster.kept) { down_locked() } else { Ok(()) }
}

/// Ends what is left of a cluster, for one that takes its place. Without a state there is none, and Docker need not be asked.
fn clear() -> Result<()> {
    if state_file().exists() { down_locked() } else { Ok(()) }
}

fn down_locked() -> Result<()> {
    match read_state() {
        Ok(cluster) => cluster.provider.provider().stop()?,
        // Of another version, or lost: processes, networks and containers are told as ever.
        Err(_) => {
            Source::Vms.provider().stop()?;
            if image::has_docker() {
                Source::KindDocker.provider().stop()?;
            }
        }
    }
    cache::remove(&state_file())
}

/// An API server with the kinds and no cluster around it, for what makes its own; ends when dropped.
pub(crate) struct ApiServer(#[expect(dead_code, reason = "ends the server when dropped")] Guard);

impl ApiServer {
    /// Takes the place of the cluster, which may not run.
    pub(crate) fn start() -> Result<Self> {
        let lock = cache::lock("cluster")?;
        ensure!(current().is_err(), "a cluster runs: end it with `cargo xtask cluster down`");
        clear()?;
        // Never started as far as others know, but its guard finds it.
        let server = Self(Guard::start(&Cluster::begin(Source::Vms)?.id)?);
        // Given back before the guard is dropped, which waits for it.
        let _lock = lock;
        vms::start_api_server()?;
        let crds = cache::repository().join("crds/yaml");
        let mut apply = server.within(tools::kubernetes()?.join("kubectl"));
        exec::quiet(apply.args(["apply", "--server-side", "-f"]).arg(crds))?;
        Ok(server)
    }

    /// A command in its network, with an administrator's `KUBECONFIG`; it ends with this program.
    pub(crate) fn within(&self, program: impl AsRef<OsStr>) -> std::process::Command {
        let mut command = exec::bound(&network::within(program, [] as [&str; 0]));
        command.env("KUBECONFIG", kubeconfig());
        command
    }
}

/// The cluster that runs.
pub(crate) fn current() -> Result<Cluster> {
    let cluster = read_state()?;
    ensure!(cluster.started, "the cluster is being started, or its start was interrupted");
    let (_, usable) = cluster.provider.provider().status();
    usable?;
    Ok(cluster)
}

impl Cluster {
    /// One that is about to be started, known already now to whoever may have to end it.
    fn begin(provider: Source) -> Result<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
        let cluster = Self {
            id: format!("{}-{now}", std::process::id()),
            provider,
            kubeconfig: kubeconfig(),
            kubectl: bin().join("kubectl"),
            helm: bin().join("helm"),
            nodes: Vec::new(),
            started: false,
            kept: false,
        };
        fs::create_dir_all(state()).with_context(|| format!("cannot create {}", state().display()))?;
        cluster.save()?;
        Ok(cluster)
    }

    /// Whether all of it, control plane and nodes, runs on emulated CPUs: what is done side by side there is late.
    pub(crate) fn is_emulated_whole(&self) -> bool {
        self.provider == Source::KindVm
    }

    /// Starts nodes that are stopped, and waits until all are Ready and names are resolved.
    pub(crate) fn complete(&self) -> Result<()> {
        self.provider.provider().complete()
    }

    /// Imports these image archives into every node; what a node has already costs little.
    pub(crate) fn load(&self, archives: &[PathBuf]) -> Result<()> {
        std::thread::scope(|scope| {
            let imports: Vec<_> = self
                .nodes
                .iter()
                .map(|node| scope.spawn(move || self.at(node, Action::Load(archives)).map(drop)))
                .collect();
            imports.into_iter().try_for_each(|import| import.join().expect("imports do not panic"))
        })
    }

    /// The same for built images.
    pub(crate) fn load_images(&self, images: &[Image]) -> Result<()> {
        self.load(&images.iter().map(|image| image.archive.clone()).collect::<Vec<_>>())
    }

    /// Does something to a node; returns the exit code of a command that runs there.
    fn at(&self, node: &str, action: Action) -> Result<i32> {
        ensure!(
            self.nodes.iter().any(|name| name == node),
            "no node {node}; there are {}",
            self.nodes.join(", ")
        );
        self.provider.provider().node(node, action)
    }

    /// Whole at any time, since others read it without a lock.
    fn save(&self) -> Result<()> {
        let (path, temporary) = (state_file(), state_file().with_added_extension("tmp"));
        fs::write(&temporary, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Prints how to use the cluster.
    pub(crate) fn explain(&self) {
        println!("nodes: {}", self.nodes.join(", "));
        println!("to use the cluster:");
        println!("  export KUBECONFIG={}", self.kubeconfig.display());
        println!("  export PATH={}:$PATH   # kubectl of the cluster's version, and helm", bin().display());
    }
}

/// Says what there is: of a cluster whose start was interrupted also what is left of it.
fn status() {
    match current() {
        Ok(cluster) if answers() => cluster.explain(),
        Ok(_) => println!(
            "the API server does not answer: `cargo xtask cluster up` starts what is stopped, and waits for it"
        ),
        Err(reason) => println!("no usable cluster: {reason:#}"),
    }
    if let Ok(cluster) = read_state() {
        let (lines, _) = cluster.provider.provider().status();
        lines.iter().for_each(|line| println!("{line}"));
        println!("on a node: cargo xtask cluster ssh NODE COMMAND");
    }
}

/// The cluster's folder: kubeconfig, keys, disks, logs.
fn state() -> PathBuf {
    cache::dir().join("cluster")
}

/// The administrator's kubeconfig.
fn kubeconfig() -> PathBuf {
    state().join("kubeconfig")
}

/// What is known of the cluster, as commands find it.
pub(crate) fn state_file() -> PathBuf {
    state().join("cluster.json")
}

fn read_state() -> Result<Cluster> {
    let bytes = fs::read(state_file()).context("no cluster: start one with `cargo xtask cluster up`")?;
    serde_json::from_slice(&bytes)
        .context("the cluster's state is of another version: `cargo xtask cluster down`")
}

/// Where kubectl and helm are, under names that do not change with their versions.
fn bin() -> PathBuf {
    cache::dir().join("bin")
}

/// Puts a program there.
fn link(program: &Path) -> Result<()> {
    let path = bin().join(program.file_name().context("a program has a name")?);
    fs::create_dir_all(bin())?;
    cache::remove(&path)?;
    symlink(program, &path).with_context(|| format!("cannot create {}", path.display()))
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
