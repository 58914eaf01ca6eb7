// SPDX-License-Identifier: Apache-2.0

//! Runs a static program as root under one of the supported kernels, in a VM without Kubernetes.
//!
//! In: files of the host and a shell command. Out: the command's output, live, and its exit code.
//! The VM is emulated (no KVM needed), has two CPUs, no network but loopback, and an ext4 file system
//! at /disk; it is up after some 5 s and leaves nothing behind. The kernel's console goes to a file that
//! the error names when the VM ends without an exit code.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::initramfs::Initramfs;
use crate::kernel::{self, Kernel};
use crate::{cache, exec, tools};

/// What `e2e/cluster/vm-init.sh` prints before the exit code.
const MARKER: &str = "tracelake-vm-exit ";

/// How often a VM is started that QEMU takes down before its command begins: multi-threaded emulation has races of its own
/// while firmware changes the memory map (`iotlb_to_section: Assertion failed`, one start of some hundred).
pub(crate) const STARTS: usize = 3;

/// Modules that tests use: network devices between namespaces, a block device, file systems.
const MODULES: &[&str] =
    &["virtio_pci", "virtio_blk", "veth", "bridge", "dummy", "loop", "overlay", "nf_conntrack"];

/// Arguments of `cargo xtask vm`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The kernel line to run under.
    #[arg(long, value_enum)]
    kernel: Kernel,
    /// More files to copy in, as HOST_PATH:PATH_IN_VM.
    #[arg(long = "file", value_name = "FROM:TO")]
    files: Vec<String>,
    /// CPUs of the VM.
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory of the VM in MiB.
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// A static program of this machine, which is copied in, and its arguments; or `sh -c COMMAND`.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// `cargo xtask vm`: ends with the program's exit code.
pub(crate) fn main(args: &Args) -> Result<()> {
    let mut files = Vec::new();
    for file in &args.files {
        let (from, to) = file.split_once(':').with_context(|| format!("{file} is not FROM:TO"))?;
        files.push((PathBuf::from(from), to.to_owned()));
    }
    let mut words = args.command.clone();
    // Programs that busybox provides are in the VM already.
    if words[0].contains('/') {
        let path = PathBuf::from(&words[0]);
        let name = path.file_name().context("the program's path has no name")?.to_string_lossy().into_owned();
        words[0] = format!("/program/{name}");
        files.push((path, words[0].clone()));
    }
    let command = words.iter().map(|word| exec::quote(word)).collect::<Vec<_>>().join(" ");
    let machine = Machine { kernel: args.kernel, cpus: args.cpus, memory: args.memory };
    let code =
        run(machine, &files, &command, Duration::from_secs(args.timeout), &mut |line| print!("{line}"))?;
    std::process::exit(code);
}

/// What a VM has.
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) kernel: Kernel,
    pub(crate) cpus: u32,
    /// MiB.
    pub(crate) memory: u32,
}

impl Machine {
    /// As most VMs are.
    pub(crate) const fn of(kernel: Kernel) -> Machine {
        Machine { kernel, cpus: 2, memory: 2048 }
    }
}

/// Runs a shell command in a VM; `files` are copied in, each with the path it gets there.
///
/// `output` takes each line as it appears, with its end; the command's exit code is returned. Besides busybox there is
/// `/usr/bin/setpriv`, for commands that have to run with fewer privileges; call it by its path, because busybox has a lesser
/// one of that name.
pub(crate) fn run(
    Machine { kernel, cpus, memory }: Machine,
    files: &[(PathBuf, String)],
    command: &str,
    timeout: Duration,
    output: &mut dyn FnMut(&str),
) -> Result<i32> {
    tools::machines()?;
    let kernel_files = kernel.files()?;
    // One folder per run, so that the kernels of a matrix can run side by side.
    let folder = cache::dir().join("vm").join(format!("{}-{cpus}-{}", kernel.name(), std::process::id()));
    cache::remove(&folder)?;
    fs::create_dir_all(&folder)?;
    let initrd = folder.join("initrd");
    build_initramfs(&kernel_files, files, command)?.write(&initrd)?;
    let disk = disk()?;
    let console = cache::dir().join("vm").join(format!("console-{}-{cpus}.log", kernel.name()));

    let mut qemu = qemu(cpus, memory);
    qemu.arg("-kernel").arg(&kernel_files.image).arg("-initrd").arg(&initrd);
    qemu.args(["-append", "console=ttyS0 panic=-1 mitigations=off tsc=reliable quiet rdinit=/init"]);
    qemu.arg("-drive").arg(format!("file={},if=virtio,format=raw,snapshot=on", disk.display()));
    qemu.args(["-nic", "none", "-serial"])
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio"]);
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).env("TMPDIR", &folder);
    // SAFETY: one system call between fork and exec. Whoever ends this program means its VM: this thread waits for it.
    unsafe {
        qemu.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let mut starts = 1;
    let ended = loop {
        let mut child = qemu.spawn().context("cannot start QEMU")?;
        let mut lines = 0;
        let ended = follow(&mut child, timeout, output, &mut lines);
        // What has ended, or begun to, keeps the signal that it ended by.
        let _ = child.kill();
        let signal = child.wait()?.signal().filter(|&signal| signal != Signal::KILL.as_raw());
        match signal {
            Some(signal) if ended.is_err() && lines == 0 && starts < STARTS => {
                output(&format!(
                    "QEMU crashed (signal {signal}) before the command began: starting it again\n"
                ));
                starts += 1;
            }
            _ => break ended,
        }
    };
    cache::remove(&folder)?;
    ended.with_context(|| {
        let text =
            fs::read(&console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        format!("kernel {} ({}):\n{}", kernel_files.release, console.display(), exec::tail(&text, 30))
    })
}

/// QEMU as all our VMs need it.
pub(crate) fn qemu(cpus: u32, memory: u32) -> Command {
    let mut qemu = exec::command(
        "qemu-system-x86_64",
        ["-nodefaults", "-nographic", "-no-reboot", "-cpu", "max,la57=off"],
    );
    // tb-size: the translated code of a whole user space should stay in its cache.
    qemu.args(["-accel", "tcg,thread=multi,tb-size=512", "-smp", &cpus.to_string()]);
    qemu.args(["-m", &memory.to_string()]);
    qemu
}

/// Hands on what the command writes, and counts the lines, until the marker with its exit code appears.
fn follow(
    child: &mut Child,
    timeout: Duration,
    output: &mut dyn FnMut(&str),
    lines_seen: &mut usize,
) -> Result<i32> {
    let deadline = Instant::now() + timeout;
    let pipe = child.stdout.take().context("QEMU has no output")?;
    let (sender, lines) = mpsc::channel();
    let alive = Arc::new(AtomicBool::new(true));
    let reading = Arc::clone(&alive);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while reading.load(Ordering::Relaxed)
            && reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0)
        {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    let ended = loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => match line.strip_prefix(MARKER) {
                Some(code) => break Ok(code.trim().parse().context("the VM sent no exit code")?),
                None => {
                    *lines_seen += 1;
                    output(&line);
                    std::io::stdout().flush()?;
                }
            },
            Err(mpsc::RecvTimeoutError::Timeout) => {
                break Err(anyhow::anyhow!("no exit code within {timeout:?}"));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                break Err(anyhow::anyhow!(
                    "the VM ended without an exit code; the end of its console follows"
                ));
            }
        }
    };
    alive.store(false, Ordering::Relaxed);
    ended
}

fn build_initramfs(
    kernel_files: &kernel::Files,
    files: &[(PathBuf, String)],
    command: &str,
) -> Result<Initramfs> {
    let mut archive = Initramfs::with_busybox()?;
    archive.copy(&cache::repository().join("e2e/cluster/vm-init.sh"), "init", 0o755)?;
    add_modules(&mut archive, kernel_files, MODULES)?;
    add_with_libraries(&mut archive, Path::new("/usr/bin/setpriv"))?;
    for (from, to) in files {
        archive.copy(from, to, 0o755)?;
    }
    archive.file("command", 0o755, command.as_bytes());
    Ok(archive)
}

/// Adds modules in load order, and `/modules`, which lists them.
pub(crate) fn add_modules(
    archive: &mut Initramfs,
    kernel_files: &kernel::Files,
    names: &[&str],
) -> Result<()> {
    let mut list = String::new();
    for path in kernel_files.modules_in_order(names)? {
        let to = format!("lib/modules/{}.ko", kernel::module_name(&path.to_string_lossy()));
        archive.file(&to, 0o644, &kernel::read_module(&path)?);
        list.push_str(&format!("/{to}\n"));
    }
    archive.file("modules", 0o644, list.as_bytes());
    Ok(())
}

/// Adds a dynamically linked program of the host with what it needs.
fn add_with_libraries(archive: &mut Initramfs, program: &Path) -> Result<()> {
    archive.copy(program, &program.to_string_lossy(), 0o755)?;
    for word in exec::output(exec::command("ldd", [] as [&str; 0]).arg(program))?.split_whitespace() {
        if word.starts_with('/') {
            archive.copy(Path::new(word), word, 0o755)?;
        }
    }
    Ok(())
}

/// An empty ext4 disk; VMs write to a snapshot of it.
fn disk() -> Result<PathBuf> {
    const SIZE: u64 = 512 << 20;
    cache::entry("vm-disks", "ext4", cache::Key::default().text(&SIZE.to_string()), |path| {
        fs::File::create(path)?.set_len(SIZE)?;
        if !exec::succeeds(exec::command("/usr/sbin/mkfs.ext4", ["-q", "-F", "-m", "0"]).arg(path)) {
            bail!("mkfs.ext4 failed on {}", path.display());
        }
        Ok(())
    })
}
