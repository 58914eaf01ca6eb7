// SPDX-License-Identifier: Apache-2.0

//! The commands that ask a cluster, as users run them: the program itself, against an API server of the tests.

mod data;
#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "../../../query/tests/session/mod.rs"]
mod dataset_of;
mod refusals;
mod run;
mod server;
mod store;
mod watch;

use serde_json::{Value, json};
use server::{Server, program, said};

/// A session as the API server has it.
fn session(name: &str, status: Value) -> Value {
    json!({
        "apiVersion": "tracelake.dev/v1alpha1", "kind": "TraceSession",
        "metadata": { "name": name, "namespace": "shop", "uid": "7d1c", "creationTimestamp": "2026-11-22T10:00:00Z",
            "generation": 1, "resourceVersion": "5", "managedFields": [{ "manager": "kubectl" }] },
        "spec": { "target": { "podSelector": { "matchLabels": { "app": "shop" } } },
            "collectors": [{ "name": "processes" }], "duration": "5m", "drainTimeout": "600s" },
        "status": status,
    })
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({ "type": type_, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-11-22T10:00:00Z" })
}

/// A status with this much of two nodes and twelve events.
fn status(phase: &str, conditions: Value) -> Value {
    let over = ["Completed", "Incomplete"].contains(&phase);
    let mut dataset = json!({ "uri": "s3://bucket/shop/checkout/7d1c", "schemaVersion": 1, "region": "r",
        "bucket": "bucket", "storeRef": { "kind": "ClusterTraceStore", "name": "default" } });
    if over {
        dataset["manifest"] = json!("_tracelake/manifest-1.json");
    }
    json!({
        "phase": phase, "observedGeneration": 1, "conditions": conditions,
        "startTime": "2026-11-22T10:00:01Z", "endTime": "2026-11-22T10:05:01Z",
        "nodes": { "expected": 2, "ready": 2, "running": if over { 0 } else { 2 }, "draining": 0,
            "done": if over { 2 } else { 0 }, "failed": 0, "unsupported": 0, "lost": 0, "summary": "2/2", "names": ["a", "b"] },
        "collectors": [{ "name": "processes", "nodesRunning": 2, "nodesUnsupported": 0 }],
        "totals": { "emitted": 12, "exported": if over { 12 } else { 7 }, "sampledOut": 0, "rateLimited": 0, "filtered": 0,
            "lost": 0, "rows": 12, "bytesUploaded": 2048, "objectsUploaded": 4, "bytesPending": 0 },
        "dataset": dataset,
    })
}

#[tokio::test]
async fn sessions_are_listed_for_people_and_for_programs() {
    let server = Server::start().await;
    let none = server.run("list").await;
    assert_eq!((none.code, none.out.as_str()), (Some(0), ""));
    assert_eq!(none.err, "there is no session in shop\n");

    server.world().sessions =
        vec![session("checkout", status("Running", json!([]))), session("new", Value::Null)];
    let table = server.run("list").await;
    let columns = |line: usize| table.out.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(columns(0), ["NAMESPACE", "NAME", "PHASE", "NODES", "EVENTS", "LOST", "UPLOADED", "AGE"]);
    assert_eq!(columns(1)[..8], ["shop", "checkout", "Running", "2/2", "12", "0", "2.0", "KiB"]);
    assert_eq!(columns(2)[..3], ["shop", "new", "Unseen"]);
    assert!(!table.out.contains('\u{1b}'), "colours where there is no terminal: {:?}", table.out);

    for (format, yaml) in [("json", false), ("yaml", true)] {
        let printed = server.run(&format!("list -A -l app=shop -o {format}")).await.out;
        let list: Value = if yaml {
            serde_yaml::from_str(&printed).unwrap()
        } else {
            serde_json::from_str(&printed).unwrap()
        };
        assert_eq!(list["kind"], "TraceSessionList");
        assert_eq!(list["items"][0]["status"]["totals"]["emitted"], 12);
        assert_eq!(list["items"][0]["kind"], "TraceSession");
        assert_eq!(list["items"][0]["metadata"].get("managedFields"), None);
    }
    let (asked, _) = server.world().asked.last().unwrap().clone();
    assert!(asked.starts_with("GET /apis/tracelake.dev/v1alpha1/tracesessions?"), "{asked}");
    assert!(asked.contains("labelSelector=app%3Dshop"), "{asked}");
}

#[tokio::test]
async fn a_status_is_shown_whole() {
    let server = Server::start().await;
    let store = condition("StoreReady", "False", "NoSuchBucket", "there is no bucket \u{1b}[31mx");
    let mut now = status("Running", json!([store]));
    now["failingNodes"] = json!([{ "name": "b", "reason": "NodeLost", "message": "it does not answer" }]);
    server.world().sessions = vec![session("checkout", now)];
    let shown = server.run("status shop/checkout").await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    for words in [
        "Session:     shop/checkout\n",
        "Phase:       Running, 0s left\n",
        "Started:     2026-11-22T10:00:01Z (",
        "StoreReady   False    NoSuchBucket",
        "there is no bucket \\u{1b}[31mx",
        "b              NodeLost   it does not answer",
        "processes   2/2     0",
        "12 events: 7 exported, 0 lost, 5 on their way",
        "12 rows, 2.0 KiB uploaded in 4 objects",
        "s3://bucket/shop/checkout/7d1c\nno manifest yet",
    ] {
        assert!(shown.out.contains(words), "{words:?} is not in\n{}", shown.out);
    }
    let printed = server.run("status checkout -n shop -o json").await.out;
    let object: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(object["status"]["nodes"]["summary"], "2/2");
    assert_eq!(object["metadata"]["name"], "checkout");

    let mut empty = status("Running", json!([]));
    empty["dataset"] = Value::Null;
    server.world().sessions =
        vec![session("empty", empty), session("checkout", status("Running", json!([])))];
    let refused = server.run("status empty -n shop --coverage").await;
    assert!(refused.out.contains("Session:     shop/empty") && refused.code == Some(1), "{refused:?}");
    assert!(refused.err.contains("has no data yet"), "{refused:?}");
    server.world().sessions.remove(0);

    // Watched until it is over; where there is no screen, each change is printed once.
    server.world().statuses =
        [status("Running", json!([])), status("Running", json!([])), status("Completed", json!([]))].into();
    server.world().sessions[0]["metadata"]["resourceVersion"] = json!("6");
    let watched = server.run("status checkout --watch").await;
    assert_eq!(watched.code, Some(0), "{watched:?}");
    assert!(watched.out.contains("Phase:       Running"), "{}", watched.out);
    let refused = server.run("status checkout --watch -o json").await;
    assert!(refused.err.contains("--watch prints for people"), "{refused:?}");
    let refused = server.run("status checkout -n shop --via-operator").await;
    assert!(refused.err.contains("add --coverage"), "{refused:?}");
}

#[tokio::test]
async fn colours_are_for_terminals_and_who_wants_them() {
    let server = Server::start().await;
    server.world().sessions = vec![session("checkout", status("Completed", json!([])))];
    let mut forced = server.command("list");
    forced.env("CLICOLOR_FORCE", "1");
    let forced = said(forced).await.out;
    assert!(forced.contains("\u{1b}[32mCompleted\u{1b}[0m"), "{forced:?}");
    let mut without = server.command("list");
    without.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1");
    assert!(!said(without).await.out.contains('\u{1b}'));
}

#[tokio::test]
async fn as_a_plugin_of_kubectl_it_has_the_name_that_users_type() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("kubectl-tracelake");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tracelake"), &plugin).unwrap();
    let help = said(program(&plugin, "status --help")).await.out;
    assert!(help.contains("Usage: kubectl tracelake status [OPTIONS] <NAME>"), "{help}");
    let mistaken = said(program(&plugin, "list --nonsense")).await;
    assert_eq!(mistaken.code, Some(2));
    assert!(mistaken.err.contains("Usage: kubectl tracelake list"), "{}", mistaken.err);
    let failed = said(program(&plugin, "run")).await.err;
    assert!(failed.starts_with("kubectl tracelake: nothing to record: "), "{failed}");
    let nothing = folder.path().join("nothing");
    std::fs::create_dir(&nothing).unwrap();
    let failed = said(program(&plugin, &format!("verify {}", nothing.display()))).await.err;
    assert!(failed.contains("`kubectl tracelake ls` finds"), "{failed}");
    let own = said(program(env!("CARGO_BIN_EXE_tracelake").as_ref(), "status --help")).await.out;
    assert!(own.contains("Usage: tracelake status"), "{own}");
}

#[tokio::test]
async fn every_shell_gets_its_completions_without_a_cluster() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let path = env!("CARGO_BIN_EXE_tracelake").as_ref();
        let script = said(program(path, &format!("completion {shell}"))).await;
        assert_eq!(script.code, Some(0), "{script:?}");
        assert!(script.out.contains("all-namespaces") && script.out.contains("collectors"), "{shell}");
    }
}

#[tokio::test]
async fn collectors_are_listed_without_a_cluster_and_a_reader_that_leaves_is_no_panic() {
    let path = env!("CARGO_BIN_EXE_tracelake").as_ref();
    let listed = said(program(path, "collectors -o yaml")).await.out;
    let listed: Value = serde_yaml::from_str(&listed).unwrap();
    let first = &listed[0];
    assert_eq!((first["name"].as_str(), first["costClass"].as_str()), (Some("cpuSched"), Some("C")));
    assert_eq!(listed.as_array().unwrap().len(), 12);

    let mut child = program(path, "collectors").spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
