// SPDX-License-Identifier: Apache-2.0

//! `run` and `stop`: a session's way from flags to its end, and what Ctrl-C does.

use serde_json::{Value, json};

use crate::server::{SESSIONS, Server, ended, failure, interrupt, said};
use crate::{condition, session, status};

fn running() -> Value {
    status("Running", json!([condition("Collecting", "True", "Recording", "")]))
}

fn completed() -> Value {
    status("Completed", json!([condition("Degraded", "False", "AsExpected", "")]))
}

#[tokio::test]
async fn a_session_is_made_followed_and_told_about() {
    let server = Server::start().await;
    let waiting = json!({ "phase": "Pending", "conditions": [
        condition("StoreReady", "False", "StoreNotFound", "there is no TraceStore mine in namespace shop"),
        condition("Collecting", "False", "Waiting", "waiting for the store"),
    ] });
    server.world().statuses =
        [Value::Null, waiting, running(), status("Draining", json!([])), completed()].into();
    let ran = server.run("run -l app=shop -c processes -d 5m --store tracestore/mine").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let (asked, body) = server.world().asked[0].clone();
    assert_eq!(asked, format!("POST {SESSIONS}?fieldManager=tracelake&fieldValidation=Strict"));
    let spec = json!({ "target": { "podSelector": { "matchLabels": { "app": "shop" } } }, "duration": "5m",
        "collectors": [{ "name": "processes" }], "storeRef": { "kind": "TraceStore", "name": "mine" } });
    assert_eq!(body["spec"], spec);
    assert_eq!(body["metadata"], json!({ "generateName": "trace-", "namespace": "shop" }));

    let said: Vec<&str> = ran.err.lines().collect();
    let beginnings = [
        "tracelake: shop/trace-x7k2p was made; Ctrl-C stops it",
        "tracelake: shop/trace-x7k2p  Unseen  waiting for the operator",
        "tracelake: StoreReady=False/StoreNotFound: there is no TraceStore mine in namespace shop",
        "tracelake: shop/trace-x7k2p  Pending  waiting for the store",
        "tracelake: shop/trace-x7k2p  Running  0s left  nodes 2/2  12 events",
        "tracelake: shop/trace-x7k2p  Draining  nodes 2/2  12 events  0 lost  2.0 KiB uploaded",
        "the dataset was not read from here (no credentials of its store): `tracelake verify shop/trace-x7k2p` checks",
    ];
    assert_eq!(said.len(), beginnings.len(), "{said:#?}");
    for (line, beginning) in said.iter().zip(beginnings) {
        assert!(line.starts_with(beginning), "{line:?} should begin with {beginning:?}");
    }
    let told = "shop/trace-x7k2p: Completed\n2 of 2 nodes are done\n12 events: 12 exported, 0 lost\n\
                12 rows, 2.0 KiB uploaded in 4 objects: s3://bucket/shop/checkout/7d1c\n";
    assert_eq!(ran.out, told);
}

#[tokio::test]
async fn what_is_over_and_not_whole_has_exit_statuses_of_its_own() {
    let server = Server::start().await;
    let lost = condition("Degraded", "True", "EventsLost", "events were lost");
    let mut failed = json!({ "phase": "Failed", "conditions": [
        condition("Accepted", "False", "UnknownCollector", "there is no collector \"x\""),
        condition("Collecting", "False", "Waiting", "the session is not accepted"),
    ] });
    failed["observedGeneration"] = json!(1);
    let cases = [
        (status("Completed", json!([lost])), 3, "EventsLost: events were lost"),
        (status("Incomplete", json!([])), 3, "Incomplete"),
        (failed, 4, "UnknownCollector: there is no collector \"x\""),
    ];
    for (ended, code, words) in cases {
        server.world().statuses = [ended].into();
        let ran = server.run("run --all-pods --no-verify").await;
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert!(ran.out.contains(words), "{words:?} is not in {}", ran.out);
        server.world().sessions.clear();
    }
}

#[tokio::test]
async fn an_api_server_that_is_away_for_a_while_is_no_end() {
    let server = Server::start().await;
    server.world().statuses = [running()].into();
    let child = server.command("run --all-pods --name checkout").spawn().unwrap();
    server.asked(&format!("GET {SESSIONS}/checkout")).await;
    server.world().refusal = Some(failure(503, "etcdserver: request timed out"));
    server.world().asked.clear();
    server.asked(&format!("GET {SESSIONS}/checkout")).await;
    server.world().refusal = None;
    server.world().statuses = [completed()].into();
    let ran = ended(child).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("trying again: 503 etcdserver: request timed out"), "{}", ran.err);
}

#[tokio::test]
async fn a_store_that_refuses_the_caller_is_no_fault_of_the_dataset() {
    let server = Server::start().await;
    server.world().statuses = [completed()].into();
    let mut command = server.command("run --all-pods");
    // The API server of the test is no store: it answers 404 in its own words.
    command.env("AWS_ACCESS_KEY_ID", "a").env("AWS_SECRET_ACCESS_KEY", "b");
    command.env("AWS_ENDPOINT", &server.address);
    let ran = said(command).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("Completed"), "{}", ran.out);
    assert!(ran.err.contains("the dataset was not read from here ("), "{}", ran.err);
}

#[tokio::test]
async fn ctrl_c_stops_the_session_and_waits_for_what_it_has() {
    let server = Server::start().await;
    server.world().statuses = [running()].into();
    server.world().after_stop = [status("Draining", json!([])), completed()].into();
    let child = server.command("run --all-pods --name checkout --no-verify").spawn().unwrap();
    server.asked(&format!("GET {SESSIONS}/checkout")).await;
    interrupt(&child);
    let ran = ended(child).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("shop/checkout is asked to stop"), "{}", ran.err);
    assert!(ran.out.starts_with("shop/checkout: Completed\n"), "{}", ran.out);
    let patches: Vec<Value> = server
        .world()
        .asked
        .iter()
        .filter(|(what, _)| what.starts_with("PATCH"))
        .map(|(_, body)| body.clone())
        .collect();
    // Another of that name, made meanwhile, would be a conflict.
    assert_eq!(patches, [json!({ "metadata": { "uid": "7d1c" }, "spec": { "stop": true } })]);
}

#[tokio::test]
async fn ctrl_c_twice_leaves_the_session_alone_and_says_so() {
    let server = Server::start().await;
    server.world().statuses = [running()].into();
    let child = server.command("run --all-pods --name checkout").spawn().unwrap();
    server.asked(&format!("GET {SESSIONS}/checkout")).await;
    interrupt(&child);
    server.asked("PATCH").await;
    interrupt(&child);
    let ran = ended(child).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(130), ""), "{ran:?}");
    assert!(
        ran.err.contains("shop/checkout goes on without being watched: `tracelake status shop/checkout`"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn a_file_is_sent_as_it_is_and_a_dry_run_sends_nothing() {
    let server = Server::start().await;
    let file = server.folder().join("session.yaml");
    let text = "apiVersion: tracelake.dev/v1alpha1\nkind: TraceSession\nmetadata: {name: mine, namespace: shop}\n\
                spec: {target: {podSelector: {}}, duration: 1m, collectors: [{name: newerOne}], unknownField: 1}\n";
    std::fs::write(&file, text).unwrap();
    let file = file.display();
    let dry = server.run(&format!("run -f {file} --dry-run")).await;
    let printed: Value = serde_yaml::from_str(&dry.out).unwrap();
    assert_eq!(printed, serde_yaml::from_str::<Value>(text).unwrap());
    let dry = server.run("run -n elsewhere --pods a,b --name x --dry-run").await.out;
    let printed: Value = serde_yaml::from_str(&dry).unwrap();
    assert_eq!(printed["metadata"], json!({ "name": "x", "namespace": "elsewhere" }));
    assert_eq!(printed["spec"]["target"], json!({ "podNames": ["a", "b"] }));
    assert!(server.world().asked.is_empty(), "a dry run asks nobody");

    let made = server.run(&format!("run -f {file} --no-wait")).await;
    assert_eq!(made.out, "shop/mine was made\n", "{made:?}");
    assert_eq!(server.world().asked[0].1["spec"]["unknownField"], 1);
    let other = server.run(&format!("run -f {file} -n elsewhere")).await.err;
    assert!(other.contains("the file says namespace \"shop\", and -n says \"elsewhere\""), "{other}");
    let both = server.run(&format!("run -f {file} -d 5m")).await;
    assert_eq!(both.code, Some(2), "{both:?}");
}

#[tokio::test]
async fn a_session_is_stopped_and_waited_for() {
    let server = Server::start().await;
    server.world().sessions = vec![session("checkout", running())];
    server.world().after_stop = [status("Draining", json!([])), completed()].into();
    let stopped = server.run("stop checkout").await;
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    assert!(stopped.out.starts_with("shop/checkout: Completed\n"), "{}", stopped.out);
    let asked = server.run("stop shop/checkout --no-wait").await;
    assert_eq!((asked.code, asked.out.as_str()), (Some(0), "shop/checkout was asked to stop\n"));
}

#[tokio::test]
async fn programs_are_told_the_session_and_nothing_else() {
    let server = Server::start().await;
    server.world().statuses = [running(), completed()].into();
    let ran = server.run("run --all-pods --name checkout -o json").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let printed: Value = serde_json::from_str(&ran.out).unwrap();
    let of = |value: &Value| {
        (value["kind"].clone(), value["status"]["phase"].clone(), value["status"]["dataset"]["uri"].clone())
    };
    let over = (json!("TraceSession"), json!("Completed"), json!("s3://bucket/shop/checkout/7d1c"));
    assert_eq!(of(&printed), over);
    assert!(ran.err.contains("the dataset was not read from here"), "{}", ran.err);

    server.world().sessions = vec![session("checkout", running())];
    server.world().after_stop = [completed()].into();
    let stopped = server.run("stop checkout -o yaml").await;
    assert_eq!(of(&serde_yaml::from_str(&stopped.out).unwrap()), over, "{stopped:?}");
    let asked = server.run("stop checkout --no-wait -o json").await;
    assert_eq!(of(&serde_json::from_str(&asked.out).unwrap()).0, "TraceSession", "{asked:?}");

    server.world().sessions.clear();
    let made = server.run("run --all-pods --name checkout --no-wait -o json").await;
    let made: Value = serde_json::from_str(&made.out).unwrap();
    assert_eq!(made["metadata"]["name"], "checkout");
    server.world().asked.clear();
    let dry = server.run("run --all-pods --name other --dry-run -o json").await;
    assert_eq!(serde_json::from_str::<Value>(&dry.out).unwrap()["metadata"]["name"], "other");
    assert!(server.world().asked.is_empty(), "a dry run asks nobody");
}
