// SPDX-License-Identifier: Apache-2.0

//! The same kind cluster on a machine without Docker: unmodified kind and a Docker engine inside one emulated VM.
//!
//! Making it takes minutes, so it is made once for each set of inputs: `kind create cluster` in a VM that runs the disk
//! of [`kind_disk`](super::kind_disk), until every node is Ready; then the VM's memory and disk are kept in the cache, named
//! after what went into them, in a folder that needs nothing else. A start goes on from there with a disk that lies over the
//! kept one, and sets the clock.

use std::fs::{self, File};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use super::kind_disk::{self, IMAGE};
use super::monitor::Monitor;
use super::network::{self, GATEWAY, Place};
use super::provider::{
    Action, CLUSTER, DAMAGED, NODES, Provider, Started, StartedAgain, all_ready, answers, node_lines,
};
use super::{bin, control_plane, disk, link, node, process, proxy, state};
use crate::image::Image;
use crate::initramfs::Initramfs;
use crate::kernel::{self, Kernel};
use crate::{cache, exec, tools, vm};

/// The VM's name, which its process and its tap device bear.
const VM: &str = "kind";
const KERNEL: Kernel = Kernel::V6_12;
/// Raised when [`make`] does something else.
const RECIPE: u32 = 2;
/// MiB: two nodes with a control plane take 1.4 GB, the product, its store and its tests the rest.
const MEMORY: u32 = 6144;
/// `kind create cluster` takes five minutes on two free CPUs, and as long again until all is Ready.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// Servers that have just started list and watch everything once.
const SETTLE: Duration = Duration::from_secs(60);
/// What is restored answers within seconds.
const RESTORED: Duration = Duration::from_secs(120);

pub(super) struct KindVm;

impl Provider for KindVm {
    fn start(&self, _: &[(String, Kernel)], images: &[Image]) -> Result<Started> {
        tools::machines()?;
        link(&tools::kubernetes()?.join("kubectl"))?;
        self.stop()?;
        let snapshot = snapshot(images)?;
        disk::forget_others(&snapshot)?;
        let restored = cache::step("cluster: restored", || restore(&snapshot)).and_then(|()| {
            cache::step("cluster: API server ready", || {
                wait("the API server does not answer", RESTORED, || {
                    answers().then_some(()).context("/readyz is not ok")
                })
            })
        });
        restored.with_context(report).with_context(|| {
            let snapshot = snapshot.display();
            format!(
                "cannot go on from {snapshot}; if that is damaged, delete it: the next start makes another"
            )
        })?;
        Ok(Started { nodes: NODES.map(str::to_owned).to_vec(), have_images: false })
    }

    fn complete(&self) -> Result<()> {
        let mut again = StartedAgain::of_kind(self, &running()?)?;
        // Everything waits for the API server, which is one container among others to the VM's kernel.
        exec::quiet(&mut script(&format!("docker update --cpu-shares 8192 {}", NODES[0])))?;
        cache::step("cluster: nodes Ready, DNS Available", || {
            wait("the cluster does not become ready", RESTORED * 3, || again.all_ready())
        })
        .with_context(report)
    }

    fn stop(&self) -> Result<()> {
        process::stop_all(&[])?;
        network::down()
    }

    fn status(&self) -> (Vec<String>, Result<()>) {
        let mark = |runs: bool| if runs { "runs" } else { "stopped" };
        let mut lines =
            vec![format!("{:<24} {}, {}", "the nodes' VM", mark(process::runs(VM)), place().address)];
        if process::runs(VM) {
            lines.extend(node_lines(running().ok().as_deref(), "its VM does not answer"));
        }
        lines.push(format!("{:<24} {}", proxy::NAME, mark(process::runs(proxy::NAME))));
        lines.push(format!("logs: {}", state().join("logs").display()));
        let missing = [VM, proxy::NAME].into_iter().find(|name| !process::runs(name));
        let usable = match missing {
            Some(name) => Err(anyhow::anyhow!("{name} has ended: see {}", process::log(name).display())),
            None if !network::exists() => Err(anyhow::anyhow!("its network is gone")),
            None => Ok(()),
        };
        (lines, usable.context(DAMAGED))
    }

    fn node(&self, name: &str, action: Action) -> Result<i32> {
        match action {
            Action::Run(words) => {
                let shell = ["sh".to_owned()];
                let words = if words.is_empty() { &shell } else { words };
                let terminal = std::io::stdin().is_terminal();
                let docker = ["docker", "exec", if terminal { "-it" } else { "-i" }, name].map(str::to_owned);
                let all: Vec<String> = docker.into_iter().chain(words.iter().cloned()).collect();
                let mut ssh = node::ssh_to(&place().address, &all, terminal);
                let status = ssh.stdin(Stdio::inherit()).status().context("cannot start ssh")?;
                return Ok(status.code().unwrap_or(255));
            }
            Action::Load(archives) => {
                cache::step(&format!("cluster: load into {name}"), || load(name, archives))?;
            }
            Action::Stop => exec::quiet(&mut script(&format!("docker kill {name}")))?,
            Action::Start => exec::quiet(&mut script(&format!("docker start {name}")))?,
        }
        Ok(0)
    }
}

/// A cluster that is ready, as a folder with the VM's memory and disk; made when there is none of these inputs.
fn snapshot(images: &[Image]) -> Result<PathBuf> {
    let kernel = KERNEL.files()?;
    let base = kind_disk::base(&kernel, images)?;
    disk::forget_others(&base)?;
    // Where the cache lies is of no account.
    let machine = format!("{:?}", machine(Path::new("."), Path::new("disk"), &kernel));
    let key = cache::Key::default()
        .text(&base.file_name().unwrap_or_default().to_string_lossy())
        // The thing itself, addresses included, whichever code makes it; but for the ssh key, which each snapshot has anew.
        .bytes(&initramfs(&kernel, b"")?.finish())
        .text(&kernel.release)
        .text(&machine.replace(&*cache::dir().to_string_lossy(), ""))
        .text(&format!("{RECIPE} {} {}", create(), proxy::ADDRESS))
        // Its memory is read by the version that wrote it.
        .text(&exec::output(&mut exec::command("qemu-system-x86_64", ["--version"]))?);
    cache::entry("kind-clusters", "two-nodes", key, |folder| {
        println!("cluster: kind makes one, which takes some ten minutes; later starts go on from there");
        fs::create_dir_all(folder)?;
        let made = make(folder, &base, &kernel).with_context(report);
        // It is restored like any other.
        made.and(KindVm.stop())?;
        sync(folder)
    })
}

fn make(folder: &Path, base: &Path, kernel: &kernel::Files) -> Result<()> {
    // Under a name of its own, beside the disk that lies over it: the cache forgets the other one, and the folder is renamed.
    fs::hard_link(base, folder.join("base")).with_context(|| {
        format!(
            "cannot link {} into {}: the cache has to be one file system",
            base.display(),
            folder.display()
        )
    })?;
    let disk = folder.join("disk.qcow2");
    overlay(Path::new("base"), "raw", &disk)?;
    node::make_key()?;
    let public = node::key().with_added_extension("pub");
    let public = fs::read(&public).with_context(|| format!("cannot read {}", public.display()))?;
    initramfs(kernel, &public)?.write(&folder.join("initrd"))?;
    for name in ["ssh-key", "ssh-key.pub"] {
        fs::copy(state().join(name), folder.join(name))?;
    }

    network::up(&[place()])?;
    process::start(VM, &within(&machine(folder, &disk, kernel)))?;
    cache::step("kind: Docker engine ready", || {
        wait("the VM's Docker engine does not answer", PATIENCE, || {
            exec::quiet(&mut script("docker version"))
        })
    })?;
    set_clock()?;
    cache::step("kind: create cluster", || {
        let log = process::log("kind-create");
        let done = script(&create()).stdout(File::create(&log)?).status().context("cannot start ssh")?;
        ensure!(done.success(), "kind create cluster ended with {done}: see {}", log.display());
        Ok(())
    })?;
    let config = exec::output(&mut script(&format!("kind get kubeconfig --name {CLUSTER}")))?;
    let address = format!("{}:6443", place().address);
    ensure!(config.contains(&address), "kind's kubeconfig does not name {address}");
    control_plane::write_private(&folder.join("kubeconfig"), &config)?;
    let kubectl = || {
        let mut kubectl = network::within(bin().join("kubectl"), ["--request-timeout=20s"]);
        kubectl.env("KUBECONFIG", folder.join("kubeconfig"));
        kubectl
    };
    // One is enough here, and leaves the CPUs more.
    let scale = ["-n", "kube-system", "scale", "deployment", "coredns", "--replicas=1"];
    exec::quiet(kubectl().args(scale))?;
    cache::step("kind: all Ready", || {
        wait("the cluster does not become ready", PATIENCE, || all_ready(kubectl))
    })?;
    // What has just started settles: a snapshot of a busy cluster begins busy each time.
    std::thread::sleep(SETTLE);
    exec::quiet(&mut script("sync; echo 3 > /proc/sys/vm/drop_caches"))?;
    let config = config.replace(&address, proxy::ADDRESS);
    control_plane::write_private(&folder.join("kubeconfig"), &config)?;
    cache::step("kind: snapshot", || Monitor::connect(&socket())?.save(&folder.join("memory")))
}

fn create() -> String {
    format!("kind create cluster --name {CLUSTER} --image {IMAGE} --config /etc/kind.yaml --retain -v 3 2>&1")
}

/// Starts a VM that goes on where the snapshot ends.
fn restore(snapshot: &Path) -> Result<()> {
    for name in ["ssh-key", "ssh-key.pub", "kubeconfig"] {
        cache::remove(&state().join(name))?;
        fs::copy(snapshot.join(name), state().join(name))?;
    }
    let disk = state().join("kind.qcow2");
    overlay(&snapshot.join("disk.qcow2"), "qcow2", &disk)?;
    network::up(&[place()])?;
    let mut qemu = machine(snapshot, &disk, &KERNEL.files()?);
    qemu.arg("-incoming").arg(format!("file:{}", snapshot.join("memory").display()));
    process::start(VM, &within(&qemu))?;
    process::start(
        proxy::NAME,
        &exec::command(
            std::env::current_exe()?,
            ["cluster", "proxy", "--to", &format!("{}:6443", place().address)],
        ),
    )?;
    Monitor::connect(&socket())?.resume()?;
    wait("ssh does not answer", RESTORED, set_clock)
}

/// Has all files of a snapshot on the disk, so that a loss of power leaves a whole one or none.
fn sync(folder: &Path) -> Result<()> {
    let files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.iter().map(PathBuf::as_path).chain([folder]).try_for_each(|path| {
        let synced = File::open(path).and_then(|file| file.sync_all());
        synced.with_context(|| format!("cannot write {} to the disk", path.display()))
    })
}

/// What the VM boots with; `public` is the ssh key that it accepts.
fn initramfs(kernel: &kernel::Files, public: &[u8]) -> Result<Initramfs> {
    let mut archive = Initramfs::with_busybox()?;
    archive.copy(&cache::repository().join("e2e/cluster/node/initramfs-init.sh"), "init", 0o755)?;
    vm::add_modules(&mut archive, kernel, &["virtio_pci", "virtio_blk"])?;
    let settings = format!("NAME={VM}\nADDRESS={}\nGATEWAY={GATEWAY}\n", place().address);
    archive.file("config/node.env", 0o644, settings.as_bytes());
    archive.file("config/authorized_keys", 0o600, public);
    Ok(archive)
}

/// The VM, the same whenever it runs: memory that was written by another one would not fit.
fn machine(folder: &Path, disk: &Path, kernel: &kernel::Files) -> Command {
    let mut qemu = vm::qemu(2, MEMORY);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(folder.join("initrd"));
    qemu.args([
        "-append",
        "console=ttyS0 panic=-1 mitigations=off tsc=reliable net.ifnames=0 quiet rdinit=/init",
    ]);
    // unsafe: the disk does not outlive the cluster, so it need not survive the host's power loss.
    qemu.arg("-drive")
        .arg(format!("file={},if=virtio,format=qcow2,cache=unsafe,discard=unmap", disk.display()));
    qemu.arg("-netdev").arg(format!("tap,id=net,ifname={},script=no,downscript=no", place().tap));
    qemu.arg("-device").arg(format!("virtio-net-pci,netdev=net,mac={}", place().mac));
    qemu.args(["-device", "virtio-rng-pci", "-serial"]).arg(format!("file:{}", console().display()));
    qemu.arg("-qmp").arg(format!("unix:{},server,nowait", socket().display()));
    qemu
}

fn within(qemu: &Command) -> Command {
    network::within(qemu.get_program(), qemu.get_args())
}

/// Makes a disk that lies over another one, whose path is absolute or of the new disk's folder.
fn overlay(base: &Path, format: &str, disk: &Path) -> Result<()> {
    cache::remove(disk)?;
    let mut create = exec::command("qemu-img", ["create", "-q", "-f", "qcow2", "-F", format, "-b"]);
    exec::quiet(create.arg(base).arg(disk))
}

fn place() -> Place {
    network::place(0, VM)
}

fn socket() -> PathBuf {
    state().join("kind.qmp")
}

fn console() -> PathBuf {
    process::log(&format!("{VM}-console"))
}

fn ssh(words: &[String]) -> Command {
    node::ssh_to(&place().address, words, false)
}

/// A shell script in the VM.
fn script(text: &str) -> Command {
    ssh(&["sh".to_owned(), "-c".to_owned(), text.to_owned()])
}

/// A VM that was restored believes that no time has passed. Its clocks that only count seconds do not notice.
fn set_clock() -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
    exec::quiet(&mut script(&format!("date -s @{now:.2}")))
}

/// Those of the nodes that run.
fn running() -> Result<Vec<String>> {
    let found = exec::output(&mut script("docker ps --format '{{.Names}}'"))?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// Imports those archives into a node by `kind load` that it does not have. Each command there is a second on emulated CPUs:
/// there are two, however many archives.
fn load(name: &str, archives: &[PathBuf]) -> Result<()> {
    let marks = archives.iter().map(|archive| kind_disk::mark(name, archive)).collect::<Result<Vec<_>>>()?;
    let files = marks.iter().map(|(mark, _)| mark.as_str()).collect::<Vec<_>>().join(" ");
    // Those that came with the disk have no end of line.
    let read = format!("for mark in {files}; do cat $mark 2> /dev/null; echo; done");
    let there = exec::output(&mut script(&read))?;
    let (mut fetch, mut paths, mut note) = (String::new(), String::new(), String::new());
    for (archive, (mark, content)) in archives.iter().zip(&marks) {
        if there.lines().any(|line| line == content) {
            continue;
        }
        let file = File::open(archive).with_context(|| format!("no {}", archive.display()))?;
        let port = network::send_once(file)?;
        let path = format!("/var/tmp/{name}/{content}");
        fetch += &format!("socat -u TCP:{GATEWAY}:{port} CREATE:{path}; ");
        note += &format!("mkdir -p $(dirname {mark}); echo {content} > {mark}; ");
        paths += &format!("{path} ");
    }
    if paths.is_empty() {
        return Ok(());
    }
    let load = format!(
        "set -e; mkdir -p /var/tmp/{name}; {fetch} \
         kind load image-archive --name {CLUSTER} --nodes {name} {paths}; rm -r /var/tmp/{name}; {note}"
    );
    exec::quiet(&mut script(&load)).with_context(|| format!("cannot load {paths}into {name}"))
}

/// Tries until there is no error; the last one says what is late.
fn wait(what_is_late: &str, patience: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + patience;
    while let Err(error) = attempt() {
        // Also the proxy, as where its address is taken.
        if let Some(ended) = process::names().into_iter().find(|name| !process::runs(name)) {
            let log = process::log(&ended);
            let text = fs::read_to_string(&log).unwrap_or_default();
            bail!("{ended} has ended; {} ends:\n{}", log.display(), exec::tail(&text, 4));
        }
        if Instant::now() > deadline {
            return Err(error).with_context(|| format!("{what_is_late} within {patience:?}"));
        }
        // An emulated control plane must not be kept busy by questions.
        std::thread::sleep(if patience > RESTORED * 3 {
            Duration::from_secs(10)
        } else {
            Duration::from_millis(500)
        });
    }
    Ok(())
}

/// Where the logs are, and how the VM's console ends.
fn report() -> String {
    let console_text = fs::read(console()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    format!(
        "the kind cluster did not come up; logs are in {}; its VM's console ends:\n{}",
        state().join("logs").display(),
        exec::tail(&console_text.unwrap_or_default(), 8)
    )
}
