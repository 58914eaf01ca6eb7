// SPDX-License-Identifier: Apache-2.0

//! `tracelake verify` as a command, on datasets that somebody damaged: what it says, and how it ends.

#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "../../query/tests/session/mod.rs"]
mod session;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use session::{Session, cells};

const MANIFEST: &str = "_tracelake/manifest-1.json";

/// A session of one node with two segments.
async fn written() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut session = Session::new(folder.path());
    for round in 0..2 {
        let rows = format!("ts_ns | pod | comm | weight\n{round} | web | c{round} | 2");
        session.segment("a", "tcp_connections", &cells(&rows));
    }
    session.finish(&[]).await;
    folder
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("tcp_connections")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn node_manifest(folder: &Path) -> PathBuf {
    let entries = fs::read_dir(folder.join("_tracelake")).unwrap().map(|entry| entry.unwrap().path());
    entries.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with("a_")).unwrap()
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

fn add_one(value: &mut Value) {
    *value = (value.as_u64().unwrap() + 1).into();
}

/// Exit status, and both outputs.
fn verify(folder: &Path) -> (Option<i32>, String) {
    let ended = Command::new(env!("CARGO_BIN_EXE_tracelake")).arg("verify").arg(folder).output().unwrap();
    let text = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
    (ended.status.code(), text)
}

type Damage = (&'static str, i32, &'static str, fn(&Path));

/// What is done, the exit status, what is said.
const DAMAGES: [Damage; 19] = [
    ("nothing", 0, "is what its manifests say", |_| {}),
    ("an object is missing", 1, "is listed but not in the store", |folder| {
        fs::remove_file(&segments(folder)[0]).unwrap();
    }),
    ("there is one more", 0, "note: tcp_connections/b_", |folder| {
        let other = segments(folder)[0].to_string_lossy().replace("/a_", "/b_");
        fs::write(other, "whatever").unwrap();
    }),
    ("there is something else", 0, "is not a file of this format", |folder| {
        fs::write(folder.join("notes.txt"), "mine").unwrap();
    }),
    ("one is truncated", 1, "bytes in the store", |folder| {
        let path = &segments(folder)[0];
        let content = fs::read(path).unwrap();
        fs::write(path, &content[..content.len() / 2]).unwrap();
    }),
    ("one is altered", 1, "its SHA-256 is", |folder| {
        let path = &segments(folder)[0];
        let mut content = fs::read(path).unwrap();
        content[10] ^= 1;
        fs::write(path, content).unwrap();
    }),
    ("one is copied", 0, "is in the store but in no manifest", |folder| {
        let path = &segments(folder)[0];
        fs::copy(path, path.to_string_lossy().replace("_000000.", "_000009.")).unwrap();
    }),
    ("one takes another's place", 1, "its SHA-256 is", |folder| {
        let [one, other] = &segments(folder)[..] else { panic!("two segments") };
        fs::copy(one, other).unwrap();
    }),
    ("one is listed twice", 1, "which it does not own or lists twice", |folder| {
        edit(&node_manifest(folder), |node| {
            let objects = node["objects"].as_array_mut().unwrap();
            objects.push(objects[0].clone());
        });
    }),
    (
        "a counter of the ledger is wrong",
        1,
        "does not balance: 5 events emitted, 4 accounted for",
        |folder| {
            edit(&node_manifest(folder), |node| add_one(&mut node["ledger"][0]["emitted"]));
        },
    ),
    (
        "a number of rows is wrong",
        1,
        "the ledger of tcp_connections says 4 events in 3 rows exported",
        |folder| {
            edit(&node_manifest(folder), |node| add_one(&mut node["ledger"][0]["rows"]));
        },
    ),
    ("the session's totals are wrong", 1, "error: the session's manifest: its totals", |folder| {
        edit(&folder.join(MANIFEST), |manifest| add_one(&mut manifest["totals"]["objects"]));
    }),
    ("a node's totals are wrong", 1, "error: the session's manifest: its totals of node a, ", |folder| {
        edit(&folder.join(MANIFEST), |manifest| {
            add_one(&mut manifest["nodes"][0]["totals"]["rows"]);
            add_one(&mut manifest["totals"]["rows"]);
        });
    }),
    (
        "the verdict is another",
        1,
        "it says incomplete, and from what it says of its nodes follows complete",
        |folder| {
            edit(&folder.join(MANIFEST), |manifest| manifest["verdict"] = "incomplete".into());
        },
    ),
    (
        "a node's reason is in no verdict",
        1,
        "it says complete, and from what it says of its nodes follows incomplete",
        |folder| {
            edit(&folder.join(MANIFEST), |manifest| manifest["nodes"][0]["reason"] = "NodeLost".into());
        },
    ),
    (
        "the manifest has another's number",
        1,
        "it says that its number is 2, and is stored as number 1",
        |folder| {
            edit(&folder.join(MANIFEST), |manifest| add_one(&mut manifest["number"]));
        },
    ),
    ("a manifest is named twice", 1, "json twice", |folder| {
        edit(&folder.join(MANIFEST), |manifest| {
            let named = manifest["nodes"][0]["manifests"].as_array_mut().unwrap();
            named.push(named[0].clone());
        });
    }),
    ("a node that is not named is damaged", 0, "is in the store but in no manifest", |folder| {
        let other = node_manifest(folder).to_string_lossy().replace("/a_", "/b_");
        fs::write(other, "no JSON").unwrap();
    }),
    ("the session never ended", 1, "has no _tracelake/manifest-1.json: it is not over", |folder| {
        fs::remove_file(folder.join(MANIFEST)).unwrap();
    }),
];

#[tokio::test]
async fn each_damage_is_told_and_only_what_data_suffer_from_is_an_error() {
    for (what, code, words, damage) in DAMAGES {
        let folder = written().await;
        damage(folder.path());
        let (ended, text) = verify(folder.path());
        assert_eq!(ended, Some(code), "{what}: {text}");
        assert!(text.contains(words), "{what}: {words:?} is not in\n{text}");
        let verdict = text.contains(" is not what its manifests say\n") || text.contains("it is not over");
        assert_eq!(verdict, code != 0, "{what}: {text}");
        // Where it is not a terminal there is no progress.
        assert!(!text.contains('\u{1b}'), "{what}: {text:?}");
    }
}

#[tokio::test]
async fn a_row_of_another_node_than_its_object_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = Session::new(folder.path());
    let table = dataset::catalogue::table("tcp_connections").unwrap();
    let rows = cells("ts_ns | pod | comm | weight | node\n1 | web | c | 1 | a\n2 | web | c | 1 | b");
    session.write("a", table, 2, 2, |info, file| session::rows::write(table, rows, info, file));
    session.finish(&[]).await;
    let (ended, text) = verify(folder.path());
    assert!(ended == Some(1) && text.contains("it has a row of node \"b\""), "{text}");
}
