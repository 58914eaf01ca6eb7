// SPDX-License-Identifier: Apache-2.0

//! `tracelake report` as one types it: text, JSON and a page of a session in a folder, two of them, and what is said where
//! there is none. What the numbers mean is tested in the crate `report`.

#![cfg(feature = "sql")]

#[allow(dead_code, reason = "the report's own tests use the rest")]
#[path = "../../report/tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use dataset::key::{Key, SessionPrefix};
use dataset::manifest::{FORMAT_VERSION, Manifest, ManifestNode, SessionFile, Totals};
use dataset::{reader, schema};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

/// A session of two collectors, on a node that was lost before it wrote anything.
async fn write(folder: &Path, name: &str) {
    std::fs::create_dir_all(folder).unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(folder).unwrap());
    let prefix = SessionPrefix::root("").unwrap();
    let session = SessionFile {
        format_version: FORMAT_VERSION,
        namespace: "shop".into(),
        session: name.into(),
        uid: "uid-1".into(),
        cluster_id: String::new(),
        version: "0".into(),
        start_time: "2026-11-23T04:01:40Z".into(),
        spec: serde_json::json!({"collectors": [{"name": "processes"}, {"name": "tcpConnections"}]}),
        schemas: schema::versions(),
    };
    reader::create_json(store.as_ref(), &prefix, &Key::Session, &session).await.unwrap();
    let lost = ManifestNode {
        node: "a".into(),
        manifests: Vec::new(),
        totals: Totals::default(),
        reason: "NodeLost".into(),
    };
    let manifest = Manifest::new(1, "2026-11-23T04:10:00Z".into(), vec![lost]);
    reader::create_json(store.as_ref(), &prefix, &Key::manifest(1), &manifest).await.unwrap();
}

fn tracelake(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tracelake")).arg("report").args(arguments).output().unwrap()
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn a_session_is_printed_as_text_json_and_a_page_and_beside_another() {
    let place = tempfile::tempdir().unwrap();
    let (a, b) = (place.path().join("a"), place.path().join("b"));
    write(&a, "checkout").await;
    write(&b, "checkout-2").await;
    let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());

    let output = tracelake(&[a]);
    let (text, errors) = said(&output);
    assert!(output.status.success(), "{errors}");
    assert!(text.starts_with("shop/checkout  1 node, nothing was traced\n\nWhat was lost"), "{text}");
    assert!(text.contains("Node a is not complete\n     NodeLost\n"), "{text}");
    assert!(text.contains("Processes: no node wrote a manifest that says what processes traced\n"), "{text}");
    assert!(text.contains("Memory over time: memoryRss was not in the session\n"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours but on a terminal: {text}");

    let (json, _) = said(&tracelake(&[a, "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["format"], &json["account"]["verdict"]),
        (&"tracelake-report/2".into(), &"incomplete".into())
    );

    let page = place.path().join("report.html");
    let (text, errors) = said(&tracelake(&[a, "--html", page.to_str().unwrap()]));
    assert_eq!(text, "", "{errors}");
    assert!(std::fs::read_to_string(&page).unwrap().starts_with("<!doctype html>"));
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 3, "nothing half is left");

    let (text, errors) = said(&tracelake(&["--compare", a, b]));
    assert!(text.starts_with("A: shop/checkout  1 node"), "{text}{errors}");
    assert!(text.contains("\nB: shop/checkout-2  1 node"), "{text}");
}

#[tokio::test]
async fn a_page_without_a_section_whose_object_is_gone_is_written_and_is_no_success() {
    let written = support::Session::shop().write().await;
    let object = written.folder.path().join(&written.contents.tables()["page_faults"][0].key);
    let page = written.folder.path().join("report.html");
    let (folder, html) = (written.folder.path().to_str().unwrap(), page.to_str().unwrap());
    std::fs::remove_file(&object).unwrap();
    let output = tracelake(&[folder, "--html", html]);
    let (_, errors) = said(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("these sections could not be read: Page faults; "), "{errors}");
    let written = std::fs::read_to_string(&page).unwrap();
    assert!(written.contains("an object of the session cannot be read"), "the page says it as well");
}

#[test]
fn what_is_no_session_and_two_without_compare_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().to_str().unwrap();
    let output = tracelake(&[folder]);
    let (_, errors) = said(&output);
    assert!(
        !output.status.success() && errors.contains("`tracelake ls` finds those below a place"),
        "{errors}"
    );
    let output = tracelake(&[folder, "other"]);
    let (_, errors) = said(&output);
    assert!(
        !output.status.success() && errors.contains("tracelake report --compare PLACE other"),
        "{errors}"
    );
}
