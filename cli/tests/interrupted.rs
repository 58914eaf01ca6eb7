// SPDX-License-Identifier: Apache-2.0

//! `tracelake sql` and `report` that somebody ends, at whatever they are: what they may have spilled is gone.

#![cfg(feature = "sql")]

#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "../../query/tests/session/mod.rs"]
mod session;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use session::{Session, cells};

const PATIENCE: Duration = Duration::from_secs(60);

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it is not so: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends it when it has made its folder below `temp`, of which nothing is left then.
fn interrupt(mut child: Child, signal: i32, temp: &Path) -> (Option<i32>, String) {
    until("its folder is there", || !is_empty(temp));
    let pid = child.id().cast_signed();
    until("it ends", || {
        // Again: what comes before somebody listens is lost.
        // SAFETY: the child has not been waited for, so the number is its own.
        unsafe { libc::kill(pid, signal) };
        std::thread::sleep(Duration::from_millis(200));
        child.try_wait().unwrap().is_some()
    });
    let ended = child.wait_with_output().unwrap();
    assert!(
        is_empty(temp),
        "signal {signal} leaves {:?}",
        std::fs::read_dir(temp).unwrap().collect::<Vec<_>>()
    );
    (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
}

#[test]
fn who_ends_it_while_it_opens_a_session_leaves_nothing() {
    // A store that takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    for line in [&["sql", "s3://bucket/session", "-e", "SELECT 1"][..], &["report", "s3://bucket/session"]] {
        for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
            let temp = tempfile::tempdir().unwrap();
            let child = Command::new(env!("CARGO_BIN_EXE_tracelake"))
                .args(line)
                .env("TMPDIR", temp.path())
                .env("AWS_ACCESS_KEY_ID", "a")
                .env("AWS_SECRET_ACCESS_KEY", "b")
                .env("AWS_ENDPOINT", &address)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let ended = interrupt(child, signal, temp.path());
            assert_eq!(ended, (Some(1), "tracelake: interrupted\n".to_owned()), "{line:?}");
        }
    }
}

#[tokio::test]
async fn who_ends_it_while_it_waits_for_a_statement_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = Session::new(folder.path());
    session.segment("a", "processes", &cells("ts_ns | pod\n1 | web"));
    session.finish(&[]).await;
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
        let temp = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tracelake"))
            .arg("sql")
            .arg(folder.path())
            .env("TMPDIR", temp.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It has answered one, and waits for the next.
        let mut input = child.stdin.take().unwrap();
        input.write_all(b"SELECT 7 AS seven;\n").unwrap();
        let mut answer = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(answer.next().unwrap().unwrap(), "seven");
        assert_eq!(answer.nth(1).unwrap().unwrap().trim(), "7");
        let (code, _) = interrupt(child, signal, temp.path());
        assert_eq!(code, Some(130), "signal {signal}");
        drop(input);
    }
}
