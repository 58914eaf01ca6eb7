// SPDX-License-Identifier: Apache-2.0

//! `tracelake record`: the whole node agent without Kubernetes.
//!
//! In: a command, or what [`target`] finds on this machine. Out: the same dataset that a session in a
//! cluster has, a live line on a terminal, and the command's own exit status.
//! The command runs in a cgroup of its own, which it enters before its program is executed, so its
//! first `execve` is recorded. Hooks, batches, segments, spool, books and manifest are the agent's
//! code; only the plan comes from the command line and the store is written to directly.

mod progress;
mod target;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crds::{Interval, ValueError};
use dataset::closing::{self, Effort};
use dataset::key::Key;
use dataset::manifest::{FORMAT_VERSION, SessionFile, Verdict};
use dataset::{reader, render, schema};
use node_agent::engine::{CollectorSpec, CollectorState, Engine, EngineConfig, SessionSpec, TargetSpec};
use node_agent::kernel::clock;
use node_agent::metrics::Metrics;
use node_agent::pipeline::OUTPUTS;
use node_agent::pipeline::segment::{Segments, Sinks};
use node_agent::pipeline::spool::Spool;
use node_agent::pipeline::upload::{Destination, Uploader};
use node_agent::session::{Node, Session};
use node_agent::targets::cgroup;

use self::progress::Progress;
use self::target::Choice;
use crate::location::Location;
use crate::{params, verify};

const TICK: Duration = Duration::from_millis(20);
/// How long the store may take nothing before the recording is given up as incomplete.
const DRAIN: Duration = Duration::from_secs(600);
const DRAIN_FOLDER: Duration = Duration::from_secs(10);
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Arguments of `tracelake record`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Collectors, separated by commas. `tracelake collectors` lists them.
    #[arg(
        short = 'c',
        long = "collectors",
        value_delimiter = ',',
        default_value = "processes,tcpConnections"
    )]
    collectors: Vec<String>,
    /// A parameter of a collector: COLLECTOR.NAME=VALUE.
    #[arg(short = 'p', long = "param", value_name = "COLLECTOR.NAME=VALUE")]
    params: Vec<String>,
    /// A folder or s3://bucket/prefix for the dataset.
    #[arg(short = 'o', long, default_value = "tracelake-data")]
    output: String,
    /// After how long recording ends, whether or not the command has, as 90, 90s or 5m.
    #[arg(short, long, value_name = "TIME", value_parser = seconds)]
    duration: Option<u64>,
    /// How long a row of a table of windows stands for, at most an hour.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = window)]
    interval: u64,
    /// Record one event of this many.
    #[arg(long, default_value_t = 1)]
    sample_every: u32,
    /// Record at most so many events a second; 0 means all.
    #[arg(long, default_value_t = 0)]
    max_events_per_second: u64,
    /// After how long a file is sealed.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = seconds)]
    rollover: u64,
    /// No live line, and no summary at the end.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    target: Choice,
    /// The command and its arguments.
    #[arg(last = true, conflicts_with_all = Choice::FLAGS)]
    argv: Vec<String>,
}

/// A number of seconds, or a length of time as resources have it.
fn seconds(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let length: Interval = text.parse().map_err(|error: ValueError| error.to_string())?;
    let length = length.duration();
    if length.subsec_nanos() > 0 { Err("whole seconds, please".to_owned()) } else { Ok(length.as_secs()) }
}

fn window(text: &str) -> Result<u64, String> {
    seconds(text).and_then(|seconds| match seconds {
        1..=3_600 => Ok(seconds),
        _ => Err("from 1s to 1h".to_owned()),
    })
}

/// Removes itself, and moves what still runs inside to the cgroup above.
struct OwnCgroup(PathBuf);

impl OwnCgroup {
    fn make(root: &Path) -> Result<Self> {
        let path = root.join(format!("tracelake-record-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("the cgroup {} cannot be made", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let above = self.0.parent().map(|above| above.join("cgroup.procs"));
        let until = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            let inside = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            for pid in inside.lines() {
                // A process that ends meanwhile needs no move.
                _ = above.as_ref().map(|above| fs::write(above, pid));
            }
            std::thread::sleep(TICK);
        }
    }
}

/// Removes the spool's folder: after a recording it is empty, after an error its rows are in no manifest.
struct OwnSpool(PathBuf);

impl Drop for OwnSpool {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// Records, and returns the command's exit status.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let collectors = collectors(&args)?;
    ensure!(
        args.target.is_made() || !args.argv.is_empty(),
        "nothing to record: give a command after --, or --pid, --cgroup, --container or --all"
    );
    ensure!(rustix_is_root(), "recording needs root: run `sudo tracelake record ...`");
    ensure!(
        Path::new(BTF).exists(),
        "this kernel has no type information ({BTF}): boot one built with CONFIG_DEBUG_INFO_BTF"
    );
    // Before anything is made: a mistyped name should leave nothing behind.
    if let Some(program) = args.argv.first().filter(|program| !is_there(program)) {
        crate::say(&format!("tracelake: there is no program {program:?}\n"));
        return Ok(ExitCode::from(NO_PROGRAM));
    }
    let root = cgroup::root(None).context(
        "this machine has no cgroup v2 tree: mount one with `mount -t cgroup2 none /sys/fs/cgroup`",
    )?;
    let own = if args.argv.is_empty() { None } else { Some(OwnCgroup::make(&root)?) };
    let path = match &own {
        Some(own) => own.0.clone(),
        None => args.target.find(&root)?,
    };
    let id = cgroup::id(&path).with_context(|| format!("there is no cgroup {}", path.display()))?;
    let target = TargetSpec::Cgroup { id, path };

    let location = Location::create(&args.output)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let there = runtime.block_on(reader::load(location.store.as_ref(), &location.prefix))?;
    ensure!(
        there.objects.is_empty(),
        "{} already holds a dataset; choose another place with -o",
        location.name
    );

    let spool_dir = OwnSpool(std::env::temp_dir().join(format!("tracelake-record-{}", std::process::id())));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&spool_dir.0)
        .with_context(|| format!("{} cannot be made", spool_dir.0.display()))?;
    let uname = node_agent::session::uname();
    let name: Arc<str> = uname.node.as_str().into();
    let (outputs, batches) = sync_channel(OUTPUTS);
    let mut engine =
        Engine::start(EngineConfig { node: name.to_string(), ..EngineConfig::default() }, outputs)?;
    let sinks = Sinks::default();
    let segments = Segments::new(sinks.clone()).spawn(batches)?;
    let metrics = Arc::new(Metrics::default());
    let destination = Destination::Store {
        store: location.store.clone(),
        prefix: location.prefix.clone(),
        node: name.clone(),
    };
    let node = Node {
        name: name.clone(),
        boot: Node::current_boot()?,
        incarnation: Node::new_incarnation(),
        kernel: uname.release,
        arch: uname.machine,
        spool: Spool::open(&spool_dir.0, u64::MAX)?,
        sinks,
        uploader: Uploader::new(destination, metrics.clone()),
        runtime: runtime.handle().clone(),
        metrics,
    };
    let uid: Arc<str> = node.incarnation.clone();
    let session_file = session_file(&args, &uid);
    runtime
        .block_on(reader::create_json(
            location.store.as_ref(),
            &location.prefix,
            &Key::Session,
            &session_file,
        ))
        .with_context(|| format!("{} is not writable", location.name))?;

    let spec = SessionSpec {
        uid: uid.clone(),
        collectors,
        containers: Vec::new(),
        rollover_interval: Duration::from_secs(args.rollover.max(1)),
        rollover_bytes: 64 << 20,
        budget: Default::default(),
    };
    let mut session = Session::resume(node, uid.clone())?;
    session.start(&mut engine, spec, None)?;
    let mut running = 0;
    for outcome in session.outcomes() {
        match &outcome.state {
            CollectorState::Running => running += 1,
            CollectorState::Unsupported { message, .. } => {
                let collector = &outcome.collector;
                crate::say(&format!("tracelake: this kernel cannot run {collector}: {message}\n"));
            }
        }
    }
    ensure!(running > 0, "this kernel can run none of the collectors");
    session.set_targets(&mut engine, &[target])?;

    let status = follow(&args, own.as_ref(), &uid, &mut session, &mut engine);
    session.drain(&mut engine)?;
    drain(&mut session, &engine, &location)?;
    drop(engine);
    segments.join().map_err(|_| anyhow::anyhow!("the segment thread panicked"))?;

    runtime.block_on(async {
        let nodes = BTreeMap::from([(name.to_string(), Some(String::new()))]);
        let (store, time) = (location.store.as_ref(), render::utc(now_us()));
        let manifest = closing::close(store, &location.prefix, &nodes, time, Effort::Large).await?.manifest;
        let key = Key::manifest(manifest.number);
        reader::create_json(location.store.as_ref(), &location.prefix, &key, &manifest).await?;
        let contents = reader::open(&location.store, &location.prefix).await?;
        if !args.quiet && status.is_ok() {
            crate::say(&summary(&contents, &location.name));
        }
        ensure!(manifest.verdict == Verdict::Complete, "the dataset is not complete");
        anyhow::Ok(())
    })?;
    Ok(match status? {
        None => ExitCode::SUCCESS,
        Some(status) => ExitCode::from(exit_code(status)),
    })
}

/// What shells answer to a name that no program has.
const NO_PROGRAM: u8 = 127;

/// Whether the program is found as `execvp` looks for it.
fn is_there(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn rustix_is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn collectors(args: &Args) -> Result<Vec<CollectorSpec>> {
    let chosen = params::collectors(&args.collectors, &args.params)?;
    let spec = |(name, params)| CollectorSpec {
        name,
        params,
        interval: Duration::from_secs(args.interval),
        sample_every: args.sample_every,
        max_events_per_second: args.max_events_per_second,
        optional: false,
    };
    Ok(chosen.into_iter().map(spec).collect())
}

fn now_us() -> i64 {
    clock::utc_offset_ns().saturating_add_unsigned(clock::boot_ns()).div_euclid(1_000)
}

fn session_file(args: &Args, uid: &str) -> SessionFile {
    SessionFile {
        format_version: FORMAT_VERSION,
        namespace: "local".to_owned(),
        session: args.argv.first().map_or_else(
            || args.target.name().to_owned(),
            |program| Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned(),
        ),
        uid: uid.to_owned(),
        cluster_id: String::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        start_time: render::utc(now_us()),
        spec: serde_json::json!({
            "command": args.argv,
            "collectors": args.collectors,
            "params": args.params,
            "interval": args.interval,
            "sampleEvery": args.sample_every,
            "maxEventsPerSecond": args.max_events_per_second,
        }),
        schemas: schema::versions(),
    }
}

/// Waits until everything is in the store. A folder answers at once or not at all; S3 may be away for a while.
fn drain(session: &mut Session, engine: &Engine, location: &Location) -> Result<()> {
    let patience = if location.is_folder { DRAIN_FOLDER } else { DRAIN };
    let signals_before = signals();
    let mut progress = (Instant::now(), u64::MAX);
    while !session.is_done() {
        session.tick(engine);
        let pending = session.bytes_pending();
        if pending != progress.1 {
            progress = (Instant::now(), pending);
        }
        let why = session.upload_error().map_or_else(|| "no answer".to_owned(), |error| error.to_string());
        ensure!(
            progress.0.elapsed() <= patience,
            "{pending} bytes could not be written to {}, which has no manifest: {why}",
            location.name
        );
        ensure!(
            signals() == signals_before || pending == 0,
            "interrupted: {pending} bytes are not in {}, which has no manifest ({why})",
            location.name
        );
        std::thread::sleep(TICK);
    }
    Ok(())
}

/// Starts the command and waits for it, or for the time, or for Ctrl-C.
fn follow(
    args: &Args,
    own: Option<&OwnCgroup>,
    uid: &str,
    session: &mut Session,
    engine: &mut Engine,
) -> Result<Option<ExitStatus>> {
    listen()?;
    let until = args.duration.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut child = own.map(|own| spawn(&args.argv, &own.0)).transpose()?;
    let mut line = Progress::new(args.quiet);
    let (mut missed, mut unwritten, mut passed_on) = (false, false, 0);
    loop {
        if let (Err(error), false) = (engine.mend(), missed) {
            line.say(&format!("some cgroups are not recorded: {error}"));
            missed = true;
        }
        session.tick(engine);
        if let (Some(error), false) = (session.upload_error(), unwritten) {
            line.say(&format!("cannot write, trying again: {error}"));
            unwritten = true;
        }
        line.tick(|| engine.counters(uid));
        if let Some(child) = &mut child
            && let Some(status) = child.try_wait()?
        {
            return Ok(Some(status));
        }
        let (signals, over) = (signals(), until.is_some_and(|until| Instant::now() >= until));
        if signals > passed_on
            && TERMINATE.load(Ordering::Relaxed)
            && let Some(child) = &child
        {
            // Whoever ends this program means the command. Ctrl-C the terminal has sent it as well.
            // SAFETY: the child has not been waited for, so the number is its own.
            unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
        }
        passed_on = signals;
        // A command that goes on after the first signal is left behind at the second.
        if over || signals > u32::from(child.is_some()) {
            if let Some(child) = &mut child {
                line.say(&format!("recording is over, the command (pid {}) goes on", child.id()));
            }
            return Ok(None);
        }
        std::thread::sleep(TICK);
    }
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);
static TERMINATE: AtomicBool = AtomicBool::new(false);

/// How many signals that ask for the end there were.
fn signals() -> u32 {
    SIGNALS.load(Ordering::Relaxed)
}

fn listen() -> Result<()> {
    extern "C" fn note(signal: libc::c_int) {
        TERMINATE.store(signal == libc::SIGTERM, Ordering::Relaxed);
        SIGNALS.fetch_add(1, Ordering::Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only changes atomics, which is safe in a signal handler.
        let previous =
            unsafe { libc::signal(signal, note as extern "C" fn(libc::c_int) as libc::sighandler_t) };
        ensure!(previous != libc::SIG_ERR, "cannot handle signal {signal}");
    }
    Ok(())
}

fn spawn(argv: &[String], cgroup: &Path) -> Result<Child> {
    use std::io::Write;
    let (program, rest) = argv.split_first().context("there is no command")?;
    let procs = cgroup.join("cgroup.procs");
    let mut procs = fs::OpenOptions::new()
        .write(true)
        .open(&procs)
        .with_context(|| format!("cannot open {}", procs.display()))?;
    let mut command = Command::new(program);
    command.args(rest);
    // SAFETY: between fork and exec the closure makes one write to a file that is open already, nothing that allocates
    // or locks. "0" is whoever writes it.
    unsafe { command.pre_exec(move || procs.write_all(b"0")) };
    command.spawn().with_context(|| format!("the command {program:?} cannot be started"))
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn summary(contents: &reader::Contents, place: &str) -> String {
    format!("{}{}in {place}\n", verify::tables(contents), render::summary(contents))
}
