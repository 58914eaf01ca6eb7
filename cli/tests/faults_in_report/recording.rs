// SPDX-License-Identifier: Apache-2.0

//! Records a program by the real `tracelake record`, and asks the real `tracelake report` what it says.
//!
//! Programs have the highest priority that is not real time. Who else is on the machine may keep them from a CPU all the same: only the
//! test of that records who waits for one, and compares with what the kernel told the program.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;

use crate::network::{Link, Network};
use crate::pressure::Limit;
use crate::workload::WORKLOAD;

/// All but one: a fault has to leave alone what it has nothing to do with.
const COLLECTORS: &str = "processes,tcpConnections,tcpStates,tcpReceive,tcpRetransmits,tcpThroughput,tcpListenQueue,\
                          packetDrops,pageFaults,memoryRss,nodeInfo";
/// The one that sees the whole machine.
const WAITS: &str = "cpuSched";
/// Sections of the report with advice of their own, beside TCP health.
const SECTIONS: [&str; 2] = ["pageFaults", "scheduling"];

/// One recording at a time, so that one's programs do not slow down another's.
static ALONE: Mutex<()> = Mutex::new(());

/// What `tracelake report --json` says, and what the program said before.
pub(crate) struct Report(Value, String);

impl Report {
    fn health(&self) -> &Value {
        &self.0["tcpHealth"]["data"]
    }

    fn terms(&self) -> &Vec<Value> {
        self.health()["all"]["terms"].as_array().unwrap_or_else(|| panic!("no terms: {:#}", self.0))
    }

    pub(crate) fn term(&self, name: &str) -> &Value {
        let found = self.terms().iter().find(|term| term["name"] == name);
        found.unwrap_or_else(|| panic!("no term {name}: {:#?}", self.terms()))
    }

    /// None of a program without TCP.
    pub(crate) fn score(&self) -> Option<u64> {
        self.health()["all"]["score"].as_u64()
    }

    /// Points that a term took off.
    pub(crate) fn taken(&self, term: &str) -> f64 {
        self.term(term)["taken"].as_f64().expect("a number")
    }

    pub(crate) fn numerator(&self, term: &str) -> u64 {
        self.term(term)["numerator"].as_u64().unwrap_or_else(|| panic!("{}", self.term(term)))
    }

    /// Scored terms without a value.
    pub(crate) fn unknown(&self) -> Vec<&str> {
        let unknown = self.terms().iter().filter(|term| term["weight"] != 0 && term["value"].is_null());
        unknown.filter_map(|term| term["name"].as_str()).collect()
    }

    /// The score is a hundred less what terms took off by their own bounds and weights, over the weights that have data.
    pub(crate) fn assert_score(&self) {
        let Some(score) = self.score() else { return };
        let (mut taken, mut known, mut weights) = (0.0, 0.0, 0.0);
        for term in self.terms() {
            let number = |name: &str| term[name].as_f64();
            let weight = number("weight").expect("a number");
            weights += weight;
            if let (Some(value), Some(warn), Some(crit)) = (number("value"), number("warn"), number("crit")) {
                known += weight;
                taken += weight * ((value - warn) / (crit - warn)).clamp(0.0, 1.0);
            }
        }
        assert_eq!(score as f64, (100.0 - taken * weights / known).round(), "{:#?}", self.terms());
    }

    /// Packets dropped for a reason.
    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        let reasons = self.section("drops")["reasons"].as_array().into_iter().flatten();
        reasons.filter(|one| one["reason"] == reason).filter_map(|one| one["packets"].as_u64()).sum()
    }

    pub(crate) fn printed(&self) -> &str {
        self.1.trim()
    }

    /// The section's data.
    pub(crate) fn section(&self, name: &str) -> &Value {
        &self.0[name]["data"]
    }

    /// Terms past a bound, those without bounds that are not zero, and sections that advise something.
    pub(crate) fn moved(&self) -> Vec<String> {
        let is_past = |term: &&Value| match term["warn"].as_f64() {
            Some(_) => ["warn", "crit"].iter().any(|level| term["level"] == *level),
            None => term["value"].as_f64() > Some(0.0),
        };
        let terms = self.terms().iter().filter(is_past).filter_map(|term| term["name"].as_str());
        let advises =
            |name: &&str| self.section(name)["advice"].as_array().is_some_and(|all| !all.is_empty());
        let mut moved: Vec<String> =
            terms.chain(SECTIONS.into_iter().filter(advises)).map(str::to_owned).collect();
        moved.sort();
        moved
    }

    /// Everything that is advised: level, cause and numbers, a line each.
    pub(crate) fn advice(&self) -> Vec<String> {
        let sections = SECTIONS.iter().map(|name| &self.section(name)["advice"]);
        let all =
            [&self.health()["advice"]].into_iter().chain(sections).filter_map(Value::as_array).flatten();
        let word = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
        all.map(|one| format!("{}: {} ({})", word(one, "level"), word(one, "cause"), word(one, "evidence")))
            .collect()
    }
}

/// Records the pod of a network with a fault, or none.
pub(crate) fn network(fault: &str, path: Link, own: Option<Link>) -> Report {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let network = Network::new(path, own);
    let inside = |end: &str| format!("--net=/run/netns/{}", network.namespace(end));
    let mut peer = urgent(Command::new("nsenter"));
    peer.arg(inside("peer")).arg(this()).env(WORKLOAD, "peer").stdout(Stdio::piped());
    let mut peer = Running::start(peer);
    assert_eq!(peer.line(), "ready");
    // With processes of its own, as a pod's: packets without a socket are its own by that.
    let pod = inside("pod");
    let program = ["nsenter", &pod, "unshare", "--pid", "--fork", "--kill-child", &this()];
    let report = record(COLLECTORS, &program, &format!("pod {fault}"), |_| {});
    assert!(peer.0.wait().expect("is ours").success(), "the peer of {fault:?} failed");
    report
}

/// Records a program with a file that is in the page cache, or is not and does not fit into the program's memory.
pub(crate) fn memory(short: bool) -> Report {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on a disk");
    let file = folder.path().join("file");
    crate::pressure::make_file(&file, !short);
    // Started by a small program: the most that a process ever had includes what it was forked from.
    let program = ["sh", "-c", "\"$0\"; true", &this()];
    record(COLLECTORS, &program, &format!("read {}", file.display()), |record| {
        let mut said = BufReader::new(record.stdout.take().expect("is piped"));
        let program = line(&mut said).parse().expect("its number");
        let limit = short.then(|| Limit::set(record, program));
        writeln!(record.stdin.take().expect("is piped"), "go").expect("it listens");
        // The limit stays until the program is gone.
        while !line(&mut said).is_empty() {}
        drop(limit);
    })
}

/// Records threads that spin on one CPU.
pub(crate) fn cpu(threads: usize) -> Report {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    record(&format!("{COLLECTORS},{WAITS}"), &[&this()], &format!("spin {threads}"), |_| {})
}

fn record(collectors: &str, program: &[&str], order: &str, meanwhile: impl FnOnce(&mut Child)) -> Report {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let mut record = urgent(Command::new(env!("CARGO_BIN_EXE_tracelake")));
    record
        .args(["record", "--quiet", "--interval", "1", "-c", collectors, "-o"])
        .arg(&data)
        .arg("--")
        .args(program);
    record.env(WORKLOAD, order).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = Running::start(record);
    meanwhile(&mut running.0);
    let mut printed = String::new();
    if let Some(mut from) = running.0.stdout.take() {
        from.read_to_string(&mut printed).expect("UTF-8");
    }
    let status = running.0.wait().expect("is ours");
    assert!(status.success(), "{order:?} was recorded with {status}");
    report(&data, order, printed)
}

fn report(data: &Path, order: &str, printed: String) -> Report {
    let mut report = Command::new(env!("CARGO_BIN_EXE_tracelake"));
    let done = report.arg("report").arg(data).arg("--json").output().expect("tracelake starts");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let report = Report(serde_json::from_slice(&done.stdout).expect("JSON"), printed);
    assert_eq!(report.0["account"]["verdict"], "complete", "{order:?}");
    println!("{order:?}: moved {:?}, score {:?}", report.moved(), report.score());
    report.terms().iter().for_each(|term| {
        println!("    {} {} = {} / {}", term["name"], term["value"], term["numerator"], term["denominator"]);
    });
    report.advice().iter().for_each(|advice| println!("  {advice}"));
    if let Some(kept) = std::env::var_os("TRACELAKE_KEEP_REPORT") {
        std::fs::write(kept, format!("{:#}", report.0)).expect("a place for the report");
    }
    report
}

/// This binary, as a workload.
fn this() -> String {
    std::env::current_exe().expect("it runs").to_str().expect("UTF-8").to_owned()
}

fn urgent(mut command: Command) -> Command {
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::setpriority(libc::PRIO_PROCESS, 0, -20) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command
}

/// A program that does not outlive its test.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    fn line(&mut self) -> String {
        line(&mut BufReader::new(self.0.stdout.as_mut().expect("is piped")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).expect("UTF-8");
    line.trim().to_owned()
}
