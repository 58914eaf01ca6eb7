// SPDX-License-Identifier: Apache-2.0

//! QEMU's control socket: a VM's memory is written to a file, and one that was started from such a file goes on.
//!
//! The memory goes to a file of its own, not into the disk as `savevm` has it: so a snapshot is read by any number of VMs,
//! each with a disk that lies over the snapshot's, and nothing is copied.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Gigabytes that are written or read, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection to a running QEMU.
pub(super) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Connects to the socket, which QEMU makes a moment after it was started.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(error)
                        .with_context(|| format!("QEMU does not answer at {}", socket.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut this = Self(BufReader::new(stream));
        this.message()?;
        this.ask("qmp_capabilities", json!({}))?;
        Ok(this)
    }

    /// Stops the VM and writes its memory to the file; the VM does not go on afterwards.
    pub(super) fn save(&mut self, file: &Path) -> Result<()> {
        self.ask("stop", json!({}))?;
        // Without it QEMU writes at the speed of a network.
        self.ask("migrate-set-parameters", json!({ "max-bandwidth": 8_u64 << 30 }))?;
        self.ask("migrate", json!({ "uri": format!("file:{}", file.display()) }))?;
        self.wait("query-migrate", &["completed"], &["failed", "cancelled"])?;
        self.ask("quit", json!({})).map(drop)
    }

    /// Waits until the memory is read, and lets the VM go on.
    pub(super) fn resume(&mut self) -> Result<()> {
        self.wait("query-status", &["paused", "postmigrate"], &["internal-error", "shutdown"])?;
        self.ask("cont", json!({})).map(drop)
    }

    fn wait(&mut self, query: &str, good: &[&str], bad: &[&str]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(query, json!({}))?;
            let status = answer["status"].as_str().unwrap_or_default();
            if good.contains(&status) {
                return Ok(());
            }
            ensure!(!bad.contains(&status), "QEMU answers to {query}: {answer}");
            ensure!(Instant::now() < deadline, "after {PATIENCE:?} QEMU still answers to {query}: {answer}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        writeln!(self.0.get_mut(), "{text}").with_context(|| format!("QEMU takes no {command}"))?;
        loop {
            let message = self.message().with_context(|| format!("QEMU does not answer to {command}"))?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            // Everything else is news.
            if let Some(answer) = message.get("return") {
                return Ok(answer.clone());
            }
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.0.read_line(&mut line)? > 0, "QEMU has ended");
        Ok(serde_json::from_str(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Answers as QEMU does, with news in between, and returns what it was asked.
    fn answer(socket: &Path, answers: &'static [&'static str]) -> std::thread::JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            writeln!(stream.get_mut(), r#"{{"QMP": {{}}}}"#).unwrap();
            let mut asked = Vec::new();
            for answer in answers {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                let question: Value = serde_json::from_str(&line).unwrap();
                asked.push(question["execute"].as_str().unwrap().to_owned());
                writeln!(stream.get_mut(), r#"{{"event": "STOP"}}"#).unwrap();
                writeln!(stream.get_mut(), "{answer}").unwrap();
            }
            asked
        })
    }

    #[test]
    fn a_vm_goes_on_when_its_memory_is_read_and_a_refusal_is_told() {
        let socket = std::env::temp_dir().join(format!("tracelake-monitor-{}", std::process::id()));
        let qemu = answer(
            &socket,
            &[
                r#"{"return": {}}"#,
                r#"{"return": {"status": "inmigrate"}}"#,
                r#"{"return": {"status": "paused"}}"#,
                r#"{"return": {}}"#,
                r#"{"error": {"desc": "no such file"}}"#,
            ],
        );
        let mut monitor = Monitor::connect(&socket).unwrap();
        monitor.resume().unwrap();
        let error = monitor.save(Path::new("/nowhere")).unwrap_err();
        std::fs::remove_file(&socket).unwrap();
        assert!(error.to_string().contains("no such file"), "{error:#}");
        assert_eq!(
            qemu.join().unwrap(),
            ["qmp_capabilities", "query-status", "query-status", "cont", "stop"]
        );
    }
}
