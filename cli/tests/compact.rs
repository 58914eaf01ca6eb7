// SPDX-License-Identifier: Apache-2.0

//! `tracelake compact` as a command: what it says, how it ends, and that `sql`, `report` and `verify` answer the same before and
//! after. What a run that dies leaves is tested in the crate `dataset`.

#![cfg(feature = "sql")]

#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "../../report/tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;

use query::views::VIEWS;
use support::Session;

/// What a command printed, and whether it went well.
#[derive(Debug)]
struct Ended {
    out: String,
    err: String,
    ok: bool,
}

fn tracelake(command: &str, folder: &Path, args: &[&str]) -> Ended {
    let mut program = Command::new(env!("CARGO_BIN_EXE_tracelake"));
    let ended = program.arg(command).arg(folder).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { out: text(ended.stdout), err: text(ended.stderr), ok: ended.status.success() }
}

fn good(command: &str, folder: &Path, args: &[&str]) -> String {
    let ended = tracelake(command, folder, args);
    assert!(ended.ok && ended.err.is_empty(), "{command} {args:?}: {ended:?}");
    ended.out
}

/// Every row of every table and view, and the whole report.
fn answers(folder: &Path) -> Vec<(String, Vec<String>)> {
    let tables = dataset::catalogue::tables().map(|table| table.name);
    let names: Vec<&str> = tables.chain(VIEWS.iter().map(|view| view.name)).collect();
    let mut answers: Vec<(String, Vec<String>)> = Vec::new();
    for name in names {
        let query = format!("SELECT * FROM {name}");
        let rows = good("sql", folder, &["-e", &query, "-o", "json"]);
        let mut rows: Vec<String> = rows.lines().map(str::to_owned).collect();
        rows.sort();
        answers.push((name.to_owned(), rows));
    }
    let report = |args: &[&str]| good("report", folder, args).lines().map(str::to_owned).collect();
    answers.push(("report".to_owned(), report(&[])));
    answers.push(("report --json".to_owned(), report(&["--json"])));
    answers
}

fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

#[tokio::test]
async fn answers_before_and_after_are_the_same_and_verify_has_nothing_to_say() {
    let written = Session { rows_per_file: 1, ..Session::shop() }.write().await;
    let folder = written.folder.path();
    let (before, of_before) = (answers(folder), files(folder));
    let tables = before.iter().filter(|(_, rows)| rows.len() > 1).count();
    assert!(tables > 20, "{tables} answers to compare");

    let dry = good("compact", folder, &["--dry-run"]);
    assert!(dry.contains("into at least") && dry.contains("nothing was changed"), "{dry}");
    assert_eq!(files(folder), of_before);

    let said = good("compact", folder, &[]);
    assert!(said.contains("each read back and compared") && said.contains("manifest-2.json"), "{said}");
    assert!(files(folder) < of_before / 2, "{} of {of_before} files", files(folder));
    for ((name, before), (_, after)) in before.iter().zip(answers(folder)) {
        assert_eq!(before, &after, "{name}");
    }
    let verified = good("verify", folder, &[]);
    assert!(verified.ends_with("is what its manifests say\n") && !verified.contains("note"), "{verified}");

    let of_after = files(folder);
    let again = good("compact", folder, &[]);
    assert!(again.starts_with("nothing to do"), "{again}");
    assert_eq!(files(folder), of_after);
    // A copy has what counts and nothing of what was.
    let copy = tempfile::tempdir().unwrap();
    let pulled = tracelake("pull", folder, &[copy.path().join("it").to_str().unwrap()]);
    assert!(pulled.ok, "{pulled:?}");
    assert_eq!(good("verify", &copy.path().join("it"), &[]).lines().count(), verified.lines().count());
}

#[tokio::test]
async fn old_files_are_kept_for_who_asks_and_go_with_the_next_run() {
    let written = Session { rows_per_file: 2, ..Session::shop() }.write().await;
    let folder = written.folder.path();
    let said = good("compact", folder, &["--keep-old"]);
    assert!(said.contains("the old ones are still there"), "{said}");
    let dry = good("compact", folder, &["--dry-run"]);
    assert!(dry.starts_with("nothing to merge") && dry.contains("would be removed"), "{dry}");
    let said = good("compact", folder, &[]);
    assert!(said.contains("files that nothing named were removed"), "{said}");
    assert!(!good("verify", folder, &[]).contains("note"));
}

#[tokio::test]
async fn what_cannot_be_merged_says_why_and_what_to_do_next() {
    let running = Session { over: false, ..Session::shop() }.write().await;
    let ended = tracelake("compact", running.folder.path(), &[]);
    assert!(!ended.ok && ended.out.is_empty(), "{ended:?}");
    assert!(ended.err.contains("has not ended") && ended.err.contains("`tracelake stop`"), "{ended:?}");

    let written = Session { rows_per_file: 1, ..Session::shop() }.write().await;
    let folder = written.folder.path();
    let object = &written.contents.tables()["tcp_connections"][1];
    std::fs::write(folder.join(&object.key), vec![0; object.bytes as usize]).unwrap();
    let before = files(folder);
    let ended = tracelake("compact", folder, &[]);
    assert!(!ended.ok && ended.err.contains(&object.key), "{ended:?}");
    assert!(ended.err.contains("is damaged") && ended.err.contains("`tracelake verify"), "{ended:?}");
    assert!(files(folder) >= before && !folder.join("_tracelake/manifest-2.json").exists());

    let nothing = tempfile::tempdir().unwrap();
    let ended = tracelake("compact", nothing.path(), &[]);
    assert!(!ended.ok && ended.err.contains("no session lies at"), "{ended:?}");
    let ended = tracelake("compact", Path::new("shop/checkout"), &["--via-operator"]);
    assert!(!ended.ok && ended.err.contains("for reading alone"), "{ended:?}");
    let ended = tracelake("compact", folder, &["--size", "0"]);
    assert!(!ended.ok && ended.err.contains("1..=1024"), "{ended:?}");
}

#[tokio::test]
async fn an_incomplete_session_is_merged_as_far_as_it_is_there() {
    let mut session = Session { rows_per_file: 1, ..Session::shop() };
    session.nodes.insert("b".to_owned(), "NodeLost".to_owned());
    let written = session.write().await;
    let ended = tracelake("compact", written.folder.path(), &[]);
    assert!(ended.ok && ended.out.contains("manifest-2.json"), "{ended:?}");
    assert!(ended.err.contains("note: the session is incomplete (node b: NodeLost)"), "{ended:?}");
    assert!(good("verify", written.folder.path(), &[]).contains("incomplete"));
}
