// SPDX-License-Identifier: Apache-2.0
//! What fails around an operator, and what it promises all the same.
//!
//! Names begin with the fault's number; CONTRIBUTING.md has the table, `cargo xtask test faults` runs them.

mod api_server;
mod spec;

use std::time::Duration;

use futures::FutureExt;
use http::Method;
use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::api::STORE;
use crate::servers::Fault;

/// For what a store's answers change: a probe is believed for ten seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A session that records on one node, with an operator that came after it began: a probe that succeeded would be believed for
/// some seconds, and this one has made none.
async fn running(spec: &str, server: &Server) -> (Scenario, Stream) {
    let first = Scenario::new(spec, &server.endpoint);
    first.api.add_pod("web-0", "node-1");
    first.pass().await;
    let scenario = Scenario::over(first.api.clone());
    scenario.pass().await;
    let mut stream = scenario.connect("node-1");
    assert_eq!(stream.plan().await.unwrap().sessions[0].activity(), Activity::Collect);
    stream.report(report(Stage::Running, 5));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Running));
    (scenario, stream)
}

/// What an agent says that cannot upload.
fn trouble(stage: Stage, reason: &str) -> Report {
    let mut report = report(stage, 5);
    report.sessions[0].reason = reason.to_owned();
    report
}

/// Passes until the condition is so.
async fn until_store_ready(scenario: &Scenario, status: &str, reason: &str) {
    let deadline = Instant::now() + PATIENCE;
    let wanted = (status.to_owned(), reason.to_owned());
    while scenario.condition(condition::STORE_READY) != wanted {
        assert!(
            Instant::now() < deadline,
            "{:?}, not {wanted:?}",
            scenario.condition(condition::STORE_READY)
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
        scenario.context.clock.advance(Duration::from_secs(5));
        scenario.pass().await;
    }
}

/// Whether the agent of node-1 is given leave to upload, and the store takes what comes of it.
async fn can_upload(scenario: &Scenario, sequence: u64) -> bool {
    let key = Key::segment("processes", "node-1", &BOOT.parse().unwrap(), sequence).unwrap();
    let Ok(store) = scenario.hub.granted("node-1", UID, &key, 4) else { return false };
    let Ok(grant) = store.grant(&key, 4, &<sha2::Sha256 as sha2::Digest>::digest(b"rows").into()).await
    else {
        return false;
    };
    let mut put = servers::client().put(&grant.put_url).body("rows");
    for (name, value) in &grant.put_headers {
        put = put.header(name, value);
    }
    put.send().await.is_ok_and(|answer| answer.status().is_success())
}

#[tokio::test]
async fn f04_a_running_session_says_that_its_store_is_away_and_that_it_is_back() {
    let server = Server::in_process().await;
    let (scenario, mut stream) = running(&spec(), &server).await;
    server.faults.always(Some(Fault::Refuse(503, "SlowDown")));
    stream.report(trouble(Stage::Running, node_api::reason::STORE_ERROR));
    until_store_ready(&scenario, "False", reason::STORE_UNAVAILABLE).await;
    assert_eq!(
        scenario.phase(),
        Some(Phase::Running),
        "what was collected and is collected stays on the node"
    );
    assert!(stream.plan().now_or_never().is_none(), "the agent is told nothing of it");
    let failing = scenario.api.status().failing_nodes;
    assert_eq!((failing[0].name.as_str(), failing[0].reason.as_str()), ("node-1", "StoreError"));
    server.faults.always(None);
    stream.report(report(Stage::Running, 6));
    until_store_ready(&scenario, "True", reason::PROBE_SUCCEEDED).await;
    assert!(can_upload(&scenario, 0).await);
}

#[tokio::test]
async fn f09_a_key_that_is_revoked_in_mid_session_is_told_and_the_next_one_is_used_without_a_restart() {
    let server = Server::in_process().await;
    let (scenario, mut stream) = running(&spec(), &server).await;
    assert!(can_upload(&scenario, 0).await);
    server.faults.always(Some(Fault::Refuse(403, "AccessDenied")));
    stream.report(trouble(Stage::Running, node_api::reason::STORE_ERROR));
    until_store_ready(&scenario, "False", reason::ACCESS_DENIED).await;
    // Deactivated as well, and another one made.
    server.faults.always(None);
    server.faults.rotate_to("AKNEXT", "next-secret");
    assert!(!can_upload(&scenario, 1).await);
    until_store_ready(&scenario, "False", reason::INVALID_ACCESS_KEY_ID).await;
    assert_eq!(scenario.phase(), Some(Phase::Running));
    scenario.api.change("/api/v1/namespaces/tracelake/secrets/key", |secret| {
        // AKNEXT, next-secret
        secret["data"] = json!({"accessKeyId": "QUtORVhU", "secretAccessKey": "bmV4dC1zZWNyZXQ="});
    });
    stream.report(report(Stage::Running, 6));
    until_store_ready(&scenario, "True", reason::PROBE_SUCCEEDED).await;
    assert!(can_upload(&scenario, 1).await);
    assert!(stream.plan().now_or_never().is_none(), "the agent was told nothing of it");
}

#[tokio::test]
async fn f10_a_bucket_that_is_deleted_is_told_and_what_nodes_have_is_theirs_until_the_session_is_deleted() {
    let server = Server::versitygw().await;
    let (scenario, mut stream) = running(&spec(), &server).await;
    server.delete_bucket();
    stream.report(trouble(Stage::Running, node_api::reason::STORE_ERROR));
    until_store_ready(&scenario, "False", reason::NO_SUCH_BUCKET).await;
    scenario.api.change(SESSION, |session| session["spec"]["stop"] = true.into());
    stream.report(trouble(Stage::Draining, node_api::reason::STORE_ERROR));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Draining));
    scenario.context.clock.advance(Duration::from_secs(2));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Incomplete), "the session ends when drainTimeout has passed");
    let (status, why) = scenario.condition(condition::UPLOADED);
    assert_eq!(status, "False", "{why}");
    scenario.pass().await;
    let plan = stream.plan().await.unwrap();
    assert_eq!(plan.sessions[0].activity(), Activity::Drain, "the node keeps what it has, and tries");
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap().to_string();
    scenario.api.change(SESSION, |session| session["metadata"]["deletionTimestamp"] = now.into());
    scenario.pass().await;
    assert!(
        stream.plan().await.unwrap().sessions.is_empty(),
        "the agent is told to discard it, and counts that"
    );
}

/// A session that ends while its store does this to the operator's requests ends complete, with one manifest.
async fn ends_complete_despite(faults: &[(Method, Fault)], overwrites: bool) {
    let server = Server::in_process().await;
    if overwrites {
        server.faults.overwrite();
    }
    let patient = spec().replace("drainTimeout: 1s", "drainTimeout: 10m");
    let (scenario, stream) = running(&patient, &server).await;
    let store = scenario.store(&server.endpoint);
    write_node_manifest(&store, "node-1").await;
    scenario.api.change(SESSION, |session| session["spec"]["stop"] = true.into());
    server.faults.push(faults);
    stream.report(report(Stage::Done, 5));
    let deadline = Instant::now() + PATIENCE;
    while scenario.phase() != Some(Phase::Completed) {
        assert!(Instant::now() < deadline, "{faults:?}: {:?}", scenario.phase());
        scenario.context.clock.advance(Duration::from_secs(5));
        scenario.pass().await;
    }
    assert!(server.faults.are_used_up(), "{faults:?}");
    let dataset = scenario.api.status().dataset.unwrap();
    assert_eq!(dataset.manifest.as_deref(), Some("_tracelake/manifest-1.json"), "{faults:?}");
    let contents = reader::load(store.object_store().as_ref(), store.prefix()).await.unwrap();
    assert_eq!(contents.compare(), []);
    assert_eq!(contents.manifest.unwrap().verdict, Verdict::Complete);
}

#[tokio::test]
async fn f05_a_manifest_that_was_stored_and_answered_with_an_error_is_there_once() {
    ends_complete_despite(&[(Method::PUT, Fault::DoThenFail)], false).await;
}

#[tokio::test]
async fn f06_a_manifest_that_met_a_conflict_is_written_again() {
    ends_complete_despite(&[(Method::PUT, Fault::Refuse(409, "ConditionalRequestConflict"))], false).await;
}

#[tokio::test]
async fn f07_a_store_that_hangs_holds_up_no_pass_of_a_running_session() {
    let server = Server::in_process().await;
    let (scenario, mut stream) = running(&spec(), &server).await;
    server.faults.always(Some(Fault::Hang));
    stream.report(trouble(Stage::Running, node_api::reason::STORE_UNREACHABLE));
    let pass = async || {
        let pass = tokio::time::timeout(Duration::from_secs(5), scenario.pass()).await;
        pass.expect("a pass waits for the store");
    };
    pass().await;
    soon("a try of the store", || server.faults.hung() > 0).await;
    for _ in 0..5 {
        pass().await;
    }
    assert_eq!(server.faults.hung(), 1, "one try at a time");
    assert!(stream.plan().now_or_never().is_none() && scenario.phase() == Some(Phase::Running));
}

#[tokio::test]
async fn f07_a_store_that_hangs_holds_up_no_pass_of_a_session_that_waits_for_it() {
    let server = Server::in_process().await;
    server.faults.always(Some(Fault::Hang));
    let mut scenario = Scenario::new(&spec(), &server.endpoint);
    for _ in 0..3 {
        let pass = reconcile::reconcile(scenario.api.session(), scenario.context.clone());
        let pass = tokio::time::timeout(Duration::from_secs(5), pass).await;
        pass.expect("a pass waits for the store").unwrap();
    }
    soon("a try of the store", || server.faults.hung() > 0).await;
    assert_eq!(server.faults.hung(), 1, "one try at a time");
    assert_eq!(scenario.phase(), Some(Phase::Pending));
    // The first try ends in its own time; what it says has the session looked at again, which says it.
    server.faults.always(Some(Fault::Refuse(403, "AccessDenied")));
    let again = tokio::time::timeout(PATIENCE, scenario.due.recv()).await;
    again.expect("the answer of the store").unwrap();
    scenario.pass().await;
    assert_eq!(scenario.condition(condition::STORE_READY).0, "False");
}

/// Several sessions of two namespaces on a store that hangs once it was tried: two of one namespace wait for it, the others of that
/// namespace let their passes go on, and the other namespace has places of its own. The last of the namespace is looked at again
/// after `patience`; the pass for it that this returns can be made at any time, and gives its phase.
async fn two_of_a_namespace_wait(
    patience: Duration,
    prepare: impl Fn(&str, &mut serde_json::Value),
) -> (Server, impl AsyncFn() -> serde_json::Value) {
    let server = Server::in_process().await;
    let mut scenario = Scenario::new(&spec(), &server.endpoint);
    Arc::get_mut(&mut scenario.context).unwrap().limits.sessions_per_namespace = None;
    let mut sessions = Vec::new();
    for (namespace, name) in [("shop", "one"), ("shop", "two"), ("shop", "three"), ("bank", "four")] {
        let mut session = scenario.api.0.lock().unwrap().objects[SESSION].clone();
        session["metadata"]["namespace"] = namespace.into();
        session["metadata"]["name"] = name.into();
        session["metadata"]["uid"] = format!("0b7d4fd2-0000-4000-8000-{name:0>12}").into();
        prepare(&server.endpoint, &mut session);
        let path = format!("/apis/tracelake.dev/v1alpha1/namespaces/{namespace}/tracesessions/{name}");
        scenario.api.apply(&path, &session.to_string());
        sessions.push(path);
    }
    let pass = |scenario: &Scenario, path: &str| {
        let session = scenario.api.0.lock().unwrap().objects[path].clone();
        let session = Arc::new(serde_json::from_value(session).unwrap());
        tokio::spawn(reconcile::reconcile(session, scenario.context.clone()))
    };
    // The store works when it is tried.
    let known = scenario.context.stores.resolve(&scenario.api.session()).await.unwrap();
    known.probe().await.unwrap();
    server.faults.always(Some(Fault::Hang));
    let mut waiting = Vec::new();
    for (path, hung) in sessions[..2].iter().zip(1..) {
        waiting.push(pass(&scenario, path));
        soon("a pass that waits", || server.faults.hung() == hung).await;
    }
    for _ in 0..2 {
        let third = tokio::time::timeout(Duration::from_secs(5), pass(&scenario, &sessions[2])).await;
        third.expect("a pass waits though its namespace has its share").unwrap().unwrap();
        scenario.context.clock.advance(patience);
    }
    assert_eq!(server.faults.hung(), 2);
    waiting.push(pass(&scenario, &sessions[3]));
    soon("a pass of another namespace", || server.faults.hung() == 3).await;
    assert!(waiting.iter().all(|pass| !pass.is_finished()));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    let third = async move || {
        let phase = || scenario.api.0.lock().unwrap().objects[&sessions[2]]["status"]["phase"].clone();
        let before = phase();
        pass(&scenario, &sessions[2]).await.unwrap().unwrap();
        before
    };
    (server, third)
}

#[tokio::test]
async fn f07_of_one_namespace_two_sessions_begin_on_a_store_that_hangs_and_no_more() {
    let long_ago = (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(2)).to_string();
    let (server, third) = two_of_a_namespace_wait(Duration::ZERO, |_, session| {
        session["metadata"]["creationTimestamp"] = long_ago.as_str().into();
    })
    .await;
    server.faults.always(None);
    // Its deadline has passed, but the store works: it begins when the others have.
    assert_eq!(third().await, "Pending");
}

#[tokio::test]
async fn f07_of_one_namespace_two_sessions_end_on_a_store_that_hangs_and_no_more() {
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap();
    let before = |seconds| (now - jiff::SignedDuration::from_secs(seconds)).to_string();
    // Who has had its time, and waited for a minute for those before it, is over without a manifest.
    for (patience, phase) in [(30, "Draining"), (61, "Incomplete")] {
        let (server, third) = two_of_a_namespace_wait(Duration::from_secs(patience), |endpoint, session| {
            session["status"] = json!({"phase": "Draining", "startTime": before(3_600), "endTime": before(1_800),
                "dataset": {"uri": "s3://traces/team", "schemaVersion": 1, "region": "us-east-1", "bucket": BUCKET,
                    "prefix": "team", "forcePathStyle": true, "endpoint": endpoint,
                    "storeRef": {"kind": "ClusterTraceStore", "name": "main"}}});
        })
        .await;
        server.faults.always(None);
        assert_eq!(third().await, phase);
        // And is listed when the store answers again.
        assert_eq!(third().await, "Completed");
    }
}

#[tokio::test]
async fn f08_a_listing_or_a_file_that_breaks_off_makes_no_manifest_of_its_half() {
    let cut = || (Method::GET, Fault::CutAnswer);
    ends_complete_despite(&[cut()], false).await;
    ends_complete_despite(&[cut(), cut(), (Method::PUT, Fault::CutAnswer)], false).await;
}

#[tokio::test]
async fn f11_a_store_that_overwrites_is_told_in_its_status_and_its_sessions_end_complete() {
    let server = Server::in_process().await;
    server.faults.overwrite();
    let scenario = Scenario::new(&spec(), &server.endpoint);
    let mut store =
        scenario.api.0.lock().unwrap().objects["/apis/tracelake.dev/v1alpha1/clustertracestores/main"]
            .clone();
    store["metadata"] = json!({"name": "default", "generation": 1});
    scenario.api.apply(STORE, &store.to_string());
    let stop = CancellationToken::new();
    let stores = scenario.context.stores.clone();
    let keeping = tracelake_operator::store::run(scenario.api.client(), stores, stop.clone());
    let keeping = tokio::spawn(keeping);
    let status = || scenario.api.0.lock().unwrap().objects[STORE]["status"].clone();
    soon("the store's status", || status()["conditionalPut"].is_boolean()).await;
    assert_eq!(status()["conditionalPut"], false);
    let ready = status()["conditions"][0].clone();
    assert_eq!(
        (ready["status"].as_str(), ready["reason"].as_str()),
        (Some("True"), Some("ConditionalPutUnsupported"))
    );
    stop.cancel();
    keeping.abort();
    ends_complete_despite(&[(Method::PUT, Fault::DoThenFail)], true).await;
}

#[tokio::test]
async fn f17_a_session_that_is_deleted_while_its_node_is_away_is_let_go_when_its_time_is_over() {
    let server = Server::in_process().await;
    let (scenario, stream) = running(&spec(), &server).await;
    drop(stream);
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap().to_string();
    scenario.api.change(SESSION, |session| session["metadata"]["deletionTimestamp"] = now.into());
    scenario.pass().await;
    let held = scenario.api.session().metadata.finalizers.clone().unwrap_or_default();
    assert_eq!(held, [crds::SESSION_FINALIZER], "the node may come back in time");
    // drainTimeout is a second.
    scenario.context.clock.advance(Duration::from_secs(2));
    scenario.pass().await;
    assert_eq!(scenario.api.session().metadata.finalizers.clone().unwrap_or_default(), Vec::<String>::new());
    let mut late = scenario.connect("node-1");
    assert!(late.plan().await.unwrap().sessions.is_empty(), "it hears that the session is over");
}

#[tokio::test]
async fn f18_two_operators_at_once_write_one_session() {
    let server = Server::in_process().await;
    let patient = spec().replace("drainTimeout: 1s", "drainTimeout: 10m");
    let one = Scenario::new(&patient, &server.endpoint);
    let two = Scenario::over(one.api.clone());
    one.api.add_pod("web-0", "node-1");
    let both = [&one, &two];
    let mut starts = Vec::new();
    for operator in both {
        operator.pass().await;
        starts.push(operator.api.status().start_time);
    }
    let streams = both.map(|operator| operator.connect("node-1"));
    for stream in &streams {
        stream.report(report(Stage::Running, 5));
    }
    for operator in both {
        operator.pass().await;
        starts.push(operator.api.status().start_time);
    }
    assert!(starts.iter().all(|start| start.is_some() && *start == starts[0]), "one window: {starts:?}");
    let store = one.store(&server.endpoint);
    write_account(&store, "node-1", 5).await;
    one.api.change(SESSION, |session| session["spec"]["stop"] = true.into());
    for stream in &streams {
        stream.report(report(Stage::Done, 5));
    }
    for operator in [&one, &two, &one, &two] {
        operator.context.clock.advance(Duration::from_secs(6));
        operator.pass().await;
    }
    let status = one.api.status();
    assert_eq!(status.phase, Some(Phase::Completed));
    assert_eq!(status.totals.unwrap().emitted, 5, "counted once");
    assert_eq!(status.dataset.unwrap().manifest.as_deref(), Some("_tracelake/manifest-1.json"));
    let contents = reader::load(store.object_store().as_ref(), store.prefix()).await.unwrap();
    let keys: Vec<String> = contents.objects.keys().map(Key::relative).collect();
    assert_eq!(keys.len(), 3, "session.json, the node's manifest, the session's: {keys:?}");
}

#[tokio::test]
async fn f18_an_operator_that_is_killed_between_the_first_file_and_the_status_leaves_a_window_that_the_next_one_takes_up()
 {
    let server = Server::in_process().await;
    let killed = Scenario::new(&spec(), &server.endpoint);
    killed.api.change(SESSION, |session| {
        session["metadata"]["finalizers"] = json!([crds::SESSION_FINALIZER]);
    });
    killed.api.0.lock().unwrap().refusing = true;
    assert!(killed.try_pass().await.is_err());
    assert!(killed.api.status().start_time.is_none());
    let store = killed.store(&server.endpoint);
    let file = reader::load(store.object_store().as_ref(), store.prefix()).await.unwrap().session.unwrap();
    killed.api.0.lock().unwrap().refusing = false;
    let next = Scenario::over(killed.api.clone());
    // So much later that another beginning would show.
    next.context.clock.advance(Duration::from_secs(30));
    next.pass().await;
    let start = next.api.status().start_time.unwrap().0;
    assert_eq!(start, file.start_time.parse().unwrap());
}
