// SPDX-License-Identifier: Apache-2.0
//! What the ground truth tests share: cgroups of their own, known programs in them, and the engine's rows.
//!
//! The programs are this test binary itself, told by an environment variable what to do, so that it runs in a machine
//! with nothing else on it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type};
use arrow_array::{Array, RecordBatch, StringArray};
use arrow_schema::DataType;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tracelake_node_agent::budget::Budget;
use tracelake_node_agent::engine::{
    Batch, CollectorSpec, CollectorState, Engine, EngineConfig, Output, SessionSpec, TableCounters,
    TargetCoverage, TargetSpec,
};
use tracelake_node_agent::targets::cgroup;

/// One engine at a time, so that one test's programs do not slow down another's.
pub(crate) static ALONE: Mutex<()> = Mutex::new(());

/// What a program of the tests is to do; see [`workload`].
pub(crate) const WORKLOAD: &str = "TRACELAKE_TEST_WORKLOAD";

/// Does what [`WORKLOAD`] says, if it is set, and does not return then.
pub(crate) fn workload() {
    let Ok(what) = std::env::var(WORKLOAD) else { return };
    let (what, number) = what.split_once(':').unwrap_or((&what, "0"));
    let number: i32 = number.parse().expect("a number");
    match what {
        "exit" => std::process::exit(number),
        "signal" => {
            // SAFETY: sends a signal to this process.
            unsafe { libc::raise(number) };
            std::process::exit(99);
        }
        // Children that this process forks itself, without another program.
        "fork" => {
            for _ in 0..number {
                // SAFETY: the child leaves at once.
                match unsafe { libc::fork() } {
                    // SAFETY: ends this process.
                    0 => unsafe { libc::_exit(0) },
                    child => {
                        // SAFETY: waits for that child.
                        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
                    }
                }
            }
            std::process::exit(0);
        }
        "threads" => {
            let threads: Vec<_> = (0..number).map(|_| std::thread::spawn(|| {})).collect();
            threads.into_iter().for_each(|thread| thread.join().expect("the thread ends"));
            std::process::exit(0);
        }
        // Threads that live when the process ends.
        "live-threads" => {
            (0..number).for_each(|_| drop(std::thread::spawn(std::thread::park)));
            std::process::exit(0);
        }
        // A thread that is not the first becomes another program.
        "exec-by-thread" => {
            let executes = move || eprintln!("{}", program(&format!("exit:{number}")).exec());
            let _ = std::thread::spawn(executes).join();
            std::process::exit(98);
        }
        // Two threads that each use CPU for so many milliseconds; the first one ends first.
        "first-ends" => {
            let work = move || while thread_cpu() < Duration::from_millis(number.unsigned_abs().into()) {};
            // The system call itself: the library's functions end the process, or wait for the others.
            // SAFETY: ends the calling thread, which holds nothing that another one waits for.
            let leave = || unsafe { libc::syscall(libc::SYS_exit, 0) };
            work();
            drop(std::thread::spawn(move || {
                work();
                leave();
            }));
            leave();
            unreachable!("this thread has ended");
        }
        // Gives its first thread so many names, and another one a name of its own.
        "rename" => {
            let name = |name: String| {
                let name = std::ffi::CString::new(name).expect("no NUL");
                // SAFETY: the kernel reads up to the NUL.
                assert_eq!(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }, 0);
            };
            (0..number).for_each(|number| name(format!("a-long-name-{number}")));
            let thread = std::thread::spawn(move || name("own-name-of-the-thread".to_owned()));
            thread.join().expect("the thread ends");
            std::process::exit(0);
        }
        // Uses CPU for so many milliseconds by its own clock, and touches 32 MiB.
        "work" => {
            // With huge pages the same memory takes a fault for every 512 pages, where the kernel likes.
            // SAFETY: changes a setting of this process alone.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) }, 0, "huge pages stay on");
            let memory = vec![1u8; 32 << 20];
            std::hint::black_box(&memory);
            while usage(libc::RUSAGE_SELF).cpu < Duration::from_millis(number.unsigned_abs().into()) {
                std::hint::black_box(memory.iter().map(|&byte| u64::from(byte)).sum::<u64>());
            }
            std::process::exit(0);
        }
        // Lives until its standard input closes.
        "wait" => {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            std::process::exit(number);
        }
        "faults" => crate::page_faults::workload(),
        "sched" => crate::cpu_sched::workload(),
        "fork-on" => crate::rings::workload(number),
        "many-threads" => crate::losses::workload(),
        "memory" => crate::memory_rss::workload(),
        "listen" => crate::tcp_listen_queue::workload(),
        "lossy" => crate::tcp_loss::workload(),
        "stream" => crate::tcp_throughput::workload(),
        other => panic!("no workload {other}"),
    }
}

/// A program in a cgroup that does something known each time it is told to, and sleeps in between: what the kernel says of it
/// then does not change until the next time.
pub(crate) struct Burst {
    pub(crate) child: Child,
    orders: std::process::ChildStdin,
    answers: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Burst {
    /// Starts this binary with a workload that answers each line of its input with one of its output; see [`answer`].
    pub(crate) fn start(what: &str, cgroup: &Path) -> Burst {
        use std::io::BufRead;
        use std::process::Stdio;
        let mut command = program(what);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = start_in(cgroup, command);
        let orders = child.stdin.take().expect("is piped");
        let answers = std::io::BufReader::new(child.stdout.take().expect("is piped")).lines();
        let mut burst = Burst { child, orders, answers };
        // Its own start is behind it after the first answer.
        burst.go("start");
        burst
    }

    /// Has it do its work once; what it answers.
    pub(crate) fn go(&mut self, order: &str) -> String {
        use std::io::Write;
        writeln!(self.orders, "{order}").expect("the workload listens");
        let answer = self.answers.next().expect("it answers").expect("in UTF-8");
        let deadline = Instant::now() + Duration::from_secs(30);
        // The call of read(2) on its input: said of a task only that has left its CPU, unlike the state.
        while !self.proc("syscall").starts_with("0 0x0 ") {
            assert!(Instant::now() < deadline, "it waits for the next order");
            std::thread::yield_now();
        }
        answer
    }

    fn stat(&self) -> String {
        self.proc("stat")
    }

    /// A file of /proc about it.
    pub(crate) fn proc(&self, file: &str) -> String {
        as_root(|| fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))).expect("it lives")
    }

    /// Major and minor faults of all its threads, by /proc.
    pub(crate) fn faults(&self) -> (i64, i64) {
        let stat = self.stat();
        let after_name = stat.rsplit_once(')').expect("a name in parentheses").1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let field = |number: usize| fields[number - 3].parse().expect("a number");
        (field(12), field(10))
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The workload's side of [`Burst`]: answers each order with what `work` returns, until there are none any more.
pub(crate) fn answer(mut work: impl FnMut(&str) -> String) -> ! {
    use std::io::Write;
    let mut order = String::new();
    while std::io::stdin().read_line(&mut order).expect("the test speaks") > 0 {
        let answer = if order.trim() == "start" { String::new() } else { work(order.trim()) };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}").and_then(|()| out.flush()).expect("the test listens");
        order.clear();
    }
    std::process::exit(0);
}

/// Has nothing preempt this process and its programs, where that costs events: the kernel may preempt a program on fentry,
/// which sees the ends of processes since 6.16, and since 7.0 one on a tracepoint, and skips the same program for whoever runs
/// on that CPU meanwhile. With one real-time priority for all of them a hook runs to its end, and the numbers can be exact.
/// What skipping costs otherwise has a test of its own.
pub(crate) fn undisturbed() {
    let release = tracelake_node_agent::session::uname().release;
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) >= (Some(6), Some(16)) {
        schedule(libc::SCHED_FIFO, 1).expect("root may ask for a real-time priority");
    }
}

/// What the chart's pod gives an agent beyond uid 0, and nothing else: the engines of these tests have to do with it.
const DEFAULT_POD: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::PERFMON);

/// Leaves this thread, and the threads that it starts from now on, the capabilities of the default pod. Programs that they
/// execute have all of root's again.
pub(crate) fn least_privilege() {
    effective(DEFAULT_POD);
}

/// Does as root what workloads need, and the test's own looks at them.
pub(crate) fn as_root<T>(work: impl FnOnce() -> T) -> T {
    let all = capabilities(None).expect("a thread knows its own").permitted;
    effective(all);
    let result = work();
    least_privilege();
    result
}

fn effective(set: CapabilitySet) {
    let mut sets = capabilities(None).expect("a thread knows its own");
    assert!(sets.permitted.contains(set), "{:?} is missing: root is needed", set - sets.permitted);
    sets.effective = set;
    set_capabilities(None, sets).expect("what is permitted can be effective");
}

/// Sets the policy of this thread, and of what it starts from now on.
pub(crate) fn schedule(policy: libc::c_int, priority: libc::c_int) -> std::io::Result<()> {
    // The system call itself: musl's function refuses, as POSIX means processes and Linux threads.
    // SAFETY: the kernel reads one number.
    match unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// What getrusage says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// Minor faults.
    pub(crate) min_flt: i64,
    /// Largest resident set in bytes.
    pub(crate) max_rss: i64,
}

pub(crate) fn usage(who: libc::c_int) -> Usage {
    // SAFETY: an all-zero rusage is valid, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &raw mut usage);
        usage
    };
    from_rusage(&usage)
}

fn from_rusage(usage: &libc::rusage) -> Usage {
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Usage {
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        min_flt: usage.ru_minflt,
        max_rss: usage.ru_maxrss * 1024,
    }
}

/// CPU time of this thread.
fn thread_cpu() -> Duration {
    usage(libc::RUSAGE_THREAD).cpu
}

/// Waits for a child and returns its wait status and usage.
pub(crate) fn wait(child: &Child) -> (i32, Usage) {
    wait_for(child.id() as i32)
}

/// The same, of one that was forked here.
pub(crate) fn wait_for(child: libc::pid_t) -> (i32, Usage) {
    let mut status = 0;
    // SAFETY: both places are written by the call; the child is ours.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let pid = libc::wait4(child, &raw mut status, 0, &raw mut usage);
        assert_eq!(pid, child, "the child is waited for");
        usage
    };
    (status, from_rusage(&usage))
}

/// A cgroup of a test's own, removed at its end.
pub(crate) struct TestCgroup {
    pub(crate) path: PathBuf,
    made: Vec<PathBuf>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl TestCgroup {
    /// Makes one below the root of the v2 tree.
    pub(crate) fn new() -> TestCgroup {
        let root = root();
        let path = root.join(format!(
            "tracelake-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        as_root(|| fs::create_dir(&path)).expect("root may make cgroups");
        TestCgroup { made: vec![path.clone()], path }
    }

    /// Makes one below it.
    pub(crate) fn child(&mut self, name: &str) -> PathBuf {
        let mut path = self.path.clone();
        for part in name.split('/') {
            path.push(part);
            if !path.exists() {
                as_root(|| fs::create_dir(&path)).expect("root may make cgroups");
                self.made.push(path.clone());
            }
        }
        path
    }

    pub(crate) fn id(&self) -> u64 {
        cgroup::id(&self.path).expect("the cgroup is there")
    }

    pub(crate) fn target(&self) -> TargetSpec {
        TargetSpec::Cgroup { id: self.id(), path: self.path.clone() }
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            let _ = as_root(|| fs::remove_dir(path));
        }
    }
}

/// The v2 tree; a bare machine has it mounted by its init.
pub(crate) fn root() -> PathBuf {
    cgroup::root(None).expect("cgroup2 is mounted")
}

/// This binary as a workload, not started yet.
pub(crate) fn program(what: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("workload").env(WORKLOAD, what).stdin(std::process::Stdio::null());
    command
}

/// Starts it inside the cgroup: forked here, moved in, then executed.
pub(crate) fn start_in(cgroup: &Path, mut command: Command) -> Child {
    let procs = std::ffi::CString::new(cgroup.join("cgroup.procs").to_str().expect("UTF-8")).expect("no NUL");
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let fd = libc::open(procs.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd < 0 || libc::write(fd, c"0".as_ptr().cast(), 1) != 1 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn().expect("the test binary runs itself")
}

/// An engine with one session, alone on the machine as far as these tests go.
pub(crate) struct Recording {
    pub(crate) engine: Engine,
    pub(crate) session: &'static str,
    out: Receiver<Output>,
    batches: Vec<Batch>,
    _alone: std::sync::MutexGuard<'static, ()>,
}

impl Recording {
    /// Opens a session of one collector.
    pub(crate) fn start(collector: CollectorSpec, containers: &[&str]) -> Recording {
        Self::with_rings(None, collector, containers)
    }

    /// As [`start`](Self::start), with rings of that many bytes.
    pub(crate) fn with_rings(
        ring_bytes: Option<usize>,
        collector: CollectorSpec,
        containers: &[&str],
    ) -> Recording {
        // Nobody reads before the end: room for every batch, so that the drain thread is never held up.
        Self::with(EngineConfig { ring_bytes, ..EngineConfig::default() }, 4096, collector, containers)
    }

    /// As [`start`](Self::start), with an engine of its own kind and room for so many batches that nobody takes.
    pub(crate) fn with(
        config: EngineConfig,
        room: usize,
        collector: CollectorSpec,
        containers: &[&str],
    ) -> Recording {
        Self::within(Budget::default(), config, room, collector, containers)
    }

    /// As [`start`](Self::start), with a budget.
    pub(crate) fn on(budget: Budget, collector: CollectorSpec) -> Recording {
        Self::within(budget, EngineConfig::default(), 4096, collector, &[])
    }

    fn within(
        budget: Budget,
        config: EngineConfig,
        room: usize,
        collector: CollectorSpec,
        containers: &[&str],
    ) -> Recording {
        let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (sender, out) = sync_channel(room);
        let config = EngineConfig { node: "test-node".into(), ..config };
        let mut engine = Engine::start(config, sender).expect("the engine starts");
        let session = "session-1";
        open(&mut engine, session, collector, containers, budget);
        Recording { engine, session, out, batches: Vec::new(), _alone: alone }
    }

    /// Ends the session; the engine stays.
    pub(crate) fn end(&mut self) {
        self.close(self.session);
    }

    pub(crate) fn targets(&mut self, targets: &[TargetSpec]) {
        self.engine.set_targets(self.session, targets).expect("the targets are set");
    }

    /// Waits until that many events were counted for the session.
    pub(crate) fn await_emitted(&self, events: u64) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.engine.counters(self.session)[0].emitted < events {
            assert!(Instant::now() < deadline, "{events} events within 30 s");
            std::thread::yield_now();
        }
    }

    /// Waits for a batch that nobody took yet: a machine that stands still for a while may miss any number of windows.
    pub(crate) fn await_rows(&mut self) {
        match self.out.recv_timeout(Duration::from_secs(30)).expect("rows within 30 s") {
            Output::Batch(batch) => self.batches.push(batch),
            Output::Closed { session } => panic!("{session} is closed"),
        }
    }

    /// Waits until the rows of the session's first table that were taken stand for so many events.
    pub(crate) fn await_weight(&mut self, events: u64) {
        let table = self.engine.counters(self.session)[0].table;
        while self.weight(self.session, table) < events {
            self.await_rows();
        }
    }

    /// Opens another session beside the first.
    pub(crate) fn open_second(&mut self, collector: CollectorSpec, targets: &[TargetSpec]) {
        open(&mut self.engine, SECOND, collector, &[], Budget::default());
        self.engine.set_targets(SECOND, targets).expect("the targets are set");
    }

    /// Ends the session, and opens another in its slot.
    pub(crate) fn replace(&mut self, collector: CollectorSpec, targets: &[TargetSpec]) -> Vec<Row> {
        let rows = self.finish_one(self.session).0;
        open(&mut self.engine, SECOND, collector, &[], Budget::default());
        self.session = SECOND;
        self.targets(targets);
        rows
    }

    /// Closes the session and returns all rows and the final counters, whose identity holds.
    pub(crate) fn finish(mut self) -> (Vec<Row>, TableCounters) {
        self.finish_one(self.session)
    }

    /// As [`finish`](Self::finish), with what was traced since when.
    pub(crate) fn finish_with_coverage(mut self) -> (Vec<Row>, TableCounters, Vec<TargetCoverage>) {
        let (rows, counters) = self.finish_one(self.session);
        (rows, counters, self.engine.coverage(self.session))
    }

    /// Closes both sessions, of which neither lost anything, and returns the rows of each.
    pub(crate) fn finish_both(mut self) -> (Vec<Row>, Vec<Row>) {
        let both = [self.session, SECOND].map(|session| {
            let (rows, counters) = self.finish_one(session);
            let lost = counters.ring_full + counters.map_full + counters.recursion + counters.decode_error;
            assert_eq!(lost, 0, "{session}: {counters:?}");
            rows
        });
        both.into()
    }

    /// As [`finish`](Self::finish), of counters that need not balance: says whether they do, and with how many in rows.
    pub(crate) fn finish_unbalanced(mut self) -> (TableCounters, u64, bool) {
        self.close(self.session);
        let counters = self.engine.counters(self.session)[0].clone();
        let rows = self.weight(self.session, counters.table);
        let balances = balances(&counters, rows);
        (counters, rows, balances)
    }

    /// Ends a session and takes its last batches.
    fn close(&mut self, session: &'static str) {
        self.engine.close(session, true);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.out.recv_timeout(left).expect("the session ends within 30 s") {
                Output::Batch(batch) => self.batches.push(batch),
                Output::Closed { session: ended } => {
                    assert_eq!(&*ended, session);
                    break;
                }
            }
        }
    }

    /// Events that the rows of a table stand for.
    fn weight(&self, session: &str, table: &str) -> u64 {
        let own = self.batches.iter().filter(|batch| &*batch.session == session && batch.table == table);
        own.map(|batch| batch.weight).sum()
    }

    fn finish_one(&mut self, session: &'static str) -> (Vec<Row>, TableCounters) {
        self.close(session);
        let counters = self.engine.counters(session);
        for c in &counters {
            let rows = self.weight(session, c.table);
            assert!(balances(c, rows), "the ledger balances: {c:?} with {rows} in rows");
        }
        let own = self.batches.iter().filter(|batch| &*batch.session == session);
        let mut rows: Vec<Row> = Vec::new();
        for batch in own {
            let of_table = |mut row: Row| {
                row.insert(TABLE.to_owned(), batch.table.to_owned());
                row
            };
            rows.extend(rows_of(&batch.rows).into_iter().map(of_table));
        }
        rows.sort_by_key(|row| number(row, "ts_ns"));
        (rows, counters[0].clone())
    }
}

/// Whether every event has ended under one name: each term is counted where it happens, none is derived from the others.
pub(crate) fn balances(c: &TableCounters, rows: u64) -> bool {
    let named =
        c.sampled_out + c.rate_limited + c.filtered + c.ring_full + c.map_full + c.recursion + c.decode_error;
    c.emitted == rows + named
}

const SECOND: &str = "session-2";

fn open(engine: &mut Engine, session: &str, collector: CollectorSpec, containers: &[&str], budget: Budget) {
    let outcomes = engine
        .open(SessionSpec {
            uid: session.into(),
            collectors: vec![collector],
            containers: containers.iter().map(|name| (*name).into()).collect(),
            rollover_interval: Duration::from_millis(200),
            rollover_bytes: 1 << 20,
            budget,
        })
        .expect("the session opens");
    for outcome in outcomes {
        assert_eq!(outcome.state, CollectorState::Running, "{}", outcome.collector);
    }
}

/// Key of the table's name in a row of [`Recording`].
pub(crate) const TABLE: &str = "(table)";

/// One row: column to value as text; nulls are left out.
pub(crate) type Row = BTreeMap<String, String>;

/// The rows of a batch.
pub(crate) fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let mut rows = vec![Row::new(); batch.num_rows()];
    for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
        for (index, row) in rows.iter_mut().enumerate() {
            if array.is_null(index) {
                assert!(field.is_nullable(), "{}", field.name());
                continue;
            }
            let value = match field.data_type() {
                DataType::Int64 => array.as_primitive::<Int64Type>().value(index).to_string(),
                DataType::Int32 => array.as_primitive::<Int32Type>().value(index).to_string(),
                DataType::Boolean => array.as_boolean().value(index).to_string(),
                DataType::Utf8 => array.as_string::<i32>().value(index).to_owned(),
                DataType::Dictionary(..) => {
                    let words = array.as_dictionary::<Int32Type>();
                    let word = words.keys().value(index) as usize;
                    words
                        .values()
                        .as_any()
                        .downcast_ref::<StringArray>()
                        .expect("text")
                        .value(word)
                        .to_owned()
                }
                DataType::List(_) => {
                    let slots = array.as_list::<i32>().value(index);
                    let slots = slots.as_primitive::<Int64Type>().values().iter().map(i64::to_string);
                    slots.collect::<Vec<_>>().join(" ")
                }
                DataType::Float64 => array.as_primitive::<Float64Type>().value(index).to_string(),
                DataType::Timestamp(..) => continue,
                other => panic!("no column has type {other}"),
            };
            row.insert(field.name().clone(), value);
        }
    }
    rows
}

/// An integer of a row.
pub(crate) fn number(row: &Row, column: &str) -> i64 {
    row.get(column).unwrap_or_else(|| panic!("{column} has a value in {row:?}")).parse().expect("a number")
}
