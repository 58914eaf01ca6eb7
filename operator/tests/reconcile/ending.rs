// SPDX-License-Identifier: Apache-2.0
//! How sessions end: by a budget, a stop or a deletion, with nodes that are in trouble, away or late.

use std::sync::Arc;
use std::time::Duration;

use crds::Phase;
use crds::conditions::{self, reason, session as condition};
use dataset::key::Key;
use dataset::manifest::Verdict;
use dataset::reader;
use node_api::v1::{Activity, Excess, Report, Stage};
use tracelake_operator::hub::Stream;
use tracelake_operator::store::ResolvedStore;

use crate::api::{SESSION, World};
use crate::servers::Server;
use crate::{BOOT, Scenario, UID, report, spec, write_account, write_node_manifest};

const MIB: u64 = 1 << 20;

/// A session of this spec whose only node records.
async fn recording(spec: &str, server: &Server) -> (Scenario, Stream) {
    let scenario = Scenario::new(spec, &server.endpoint);
    scenario.api.add_pod("web-0", "node-1");
    scenario.pass().await;
    let mut stream = scenario.connect("node-1");
    stream.plan().await.unwrap();
    stream.report(report(Stage::Running, 5));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Running));
    (scenario, stream)
}

/// A user deletes the session.
fn delete(scenario: &Scenario) {
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap().to_string();
    scenario.api.change(SESSION, |session| session["metadata"]["deletionTimestamp"] = now.into());
}

/// Its only node has uploaded everything: it is let go, and its manifest says so.
async fn uploads_and_is_let_go(scenario: &Scenario, stream: &Stream, store: &ResolvedStore) {
    write_node_manifest(store, "node-1").await;
    stream.report(report(Stage::Done, 5));
    scenario.pass().await;
    assert_eq!(scenario.api.session().metadata.finalizers.clone().unwrap_or_default(), Vec::<String>::new());
    let contents = reader::load(store.object_store().as_ref(), store.prefix()).await.unwrap();
    assert_eq!(contents.manifest.unwrap().verdict, Verdict::Complete);
}

fn spec_with_time() -> String {
    spec().replace("drainTimeout: 1s", "drainTimeout: 10m")
}

/// What a node reports that has uploaded an object and cannot record any more.
fn troubled(stage: Stage, reason: &str) -> Report {
    let mut said = report(stage, 5);
    let session = &mut said.sessions[0];
    session.reason = reason.to_owned();
    session.collectors[0].running = false;
    session.totals.as_mut().unwrap().objects_uploaded = 1;
    said
}

#[tokio::test]
async fn a_node_that_cannot_record_any_more_is_waited_for_at_the_end() {
    let server = Server::in_process().await;
    for (stage, why) in [
        (Stage::Failed, node_api::reason::UNSUPPORTED),
        (Stage::Failed, "StartFailed"),
        (Stage::Preparing, node_api::reason::NODE_CAPACITY),
    ] {
        let (scenario, mut stream) = recording(&spec_with_time(), &server).await;
        let store = scenario.store(&server.endpoint);
        stream.report(troubled(stage, why));
        scenario.api.change(SESSION, |session| session["spec"]["stop"] = true.into());
        for _ in 0..3 {
            scenario.pass().await;
            assert_eq!(scenario.phase(), Some(Phase::Draining), "{why}: it has not said that it is done");
        }
        assert_eq!(stream.plan().await.unwrap().sessions[0].activity(), Activity::Drain);
        write_node_manifest(&store, "node-1").await;
        stream.report(report(Stage::Done, 5));
        scenario.pass().await;
        assert_eq!(scenario.phase(), Some(Phase::Completed), "{why}");
        assert_eq!(scenario.condition(condition::UPLOADED).0, "True", "{why}");
        let folder = scenario.store(&server.endpoint);
        let contents = reader::load(folder.object_store().as_ref(), folder.prefix()).await.unwrap();
        assert_eq!(contents.manifest.unwrap().nodes.len(), 1, "{why}");
        server.empty();
    }
}

#[tokio::test]
async fn a_node_that_recorded_and_then_cannot_is_missed_when_it_does_not_upload_in_time() {
    let server = Server::in_process().await;
    let (scenario, stream) = recording(&spec(), &server).await;
    stream.report(troubled(Stage::Failed, node_api::reason::UNSUPPORTED));
    scenario.api.change(SESSION, |session| session["spec"]["stop"] = true.into());
    scenario.pass().await;
    scenario.context.clock.advance(Duration::from_secs(2));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Incomplete));
    let uploaded = scenario.condition(condition::UPLOADED);
    assert_eq!(uploaded, ("False".to_owned(), reason::DRAIN_TIMEOUT.to_owned()));
}

#[tokio::test]
async fn a_session_ends_when_its_bytes_are_used_up_and_says_by_whose_limit() {
    let server = Server::in_process().await;
    let own = format!("{}\n  budget: {{bytes: 1Mi}}", spec_with_time());
    for (spec, chart, granted, whose) in [
        (&own, None, false, "budget.bytes"),
        (&own, Some(2 * MIB), true, "budget.bytes"),
        (&own, Some(MIB / 2), true, "limits.bytes"),
        (&spec_with_time(), Some(MIB), false, "limits.bytes"),
    ] {
        let (mut scenario, stream) = recording(spec, &server).await;
        Arc::get_mut(&mut scenario.context).unwrap().limits.bytes = chart;
        let limit = chart.unwrap_or(u64::MAX).min(if spec.contains("budget") { MIB } else { u64::MAX });
        let use_up = |bytes: u64, sequence: u64| {
            if granted {
                let key = Key::segment("processes", "node-1", &BOOT.parse().unwrap(), sequence).unwrap();
                scenario.hub.granted("node-1", UID, &key, bytes).unwrap();
            } else {
                let mut said = report(Stage::Running, 5);
                // Nodes report all that they have uploaded.
                said.sessions[0].totals.as_mut().unwrap().bytes_uploaded =
                    if sequence == 0 { bytes } else { limit };
                stream.report(said);
            }
            scenario.context.clock.advance(Duration::from_secs(6));
        };
        use_up(limit - 1, 0);
        scenario.pass().await;
        scenario.pass().await;
        assert_eq!(scenario.phase(), Some(Phase::Running), "one byte is left");
        use_up(1, 1);
        // A status has to hold what nodes report before the next pass counts it.
        scenario.pass().await;
        scenario.pass().await;
        assert_eq!(scenario.phase(), Some(Phase::Draining), "{spec} {chart:?}");
        let status = scenario.api.status();
        let exceeded = conditions::get(&status.conditions, condition::BUDGET_EXCEEDED).unwrap();
        assert_eq!(exceeded.reason, reason::BUDGET_STOPPED);
        let message = &exceeded.message;
        assert!(message.contains(whose) && message.contains(&format!("{limit} uploaded")), "{message}");
        server.empty();
    }
}

#[tokio::test]
async fn a_session_that_is_deleted_uploads_although_its_secret_or_the_right_to_it_died_first() {
    let server = Server::in_process().await;
    uploads_without(&server, |world, secret| drop(world.objects.remove(secret).unwrap())).await;
    server.empty();
    uploads_without(&server, |world, secret| world.forbidden = Some(secret.to_owned())).await;
}

async fn uploads_without(server: &Server, take: impl Fn(&mut World, &str)) {
    let (scenario, stream) = recording(&spec_with_time(), server).await;
    let store = scenario.store(&server.endpoint);
    take(&mut scenario.api.0.lock().unwrap(), "/api/v1/namespaces/tracelake/secrets/key");
    delete(&scenario);
    for _ in 0..3 {
        // Longer than a store is used without another look at its Secret.
        scenario.context.clock.advance(Duration::from_secs(90));
        scenario.pass().await;
    }
    let key = Key::segment("processes", "node-1", &BOOT.parse().unwrap(), 0).unwrap();
    assert!(scenario.hub.granted("node-1", UID, &key, 1).is_ok(), "the agent can upload");
    uploads_and_is_let_go(&scenario, &stream, &store).await;
}

#[tokio::test]
async fn one_node_over_its_budget_ends_a_session_that_is_to_stop_and_no_other() {
    let server = Server::in_process().await;
    for (policy, ends) in [("Sample", false), ("Stop", true)] {
        let budget =
            format!("{}\n  budget: {{eventsPerSecond: 100, onExceeded: {policy}}}", spec_with_time());
        let scenario = Scenario::new(&budget, &server.endpoint);
        scenario.api.add_pod("web-0", "node-1");
        let mut stream = scenario.connect("node-1");
        stream.plan().await.unwrap();
        scenario.pass().await;
        let told = stream.plan().await.unwrap().bodies[0].budget.unwrap();
        assert_eq!((told.events_per_second, told.cpu_millis, told.stop), (100, 0, ends));
        let mut said = report(Stage::Draining, 5);
        let message = "eventsPerSecond is 100, 900 a second were found".to_owned();
        said.sessions[0].excess =
            Some(Excess { budget: "eventsPerSecond".to_owned(), stopped: true, message });
        stream.report(said);
        scenario.pass().await;
        scenario.pass().await;
        let activity = if ends { Some(Phase::Draining) } else { Some(Phase::Preparing) };
        assert_eq!(scenario.phase(), activity, "{policy}");
        if ends {
            let exceeded = scenario.condition(condition::BUDGET_EXCEEDED);
            assert_eq!(exceeded, ("True".to_owned(), reason::BUDGET_STOPPED.to_owned()));
            assert_eq!(stream.plan().await.unwrap().sessions[0].activity(), Activity::Drain);
        }
    }
}

#[tokio::test]
async fn a_node_over_its_budget_is_told_of_also_when_the_user_stops_the_session() {
    let server = Server::in_process().await;
    let spec = format!("{}\n  budget: {{cpu: 1m, onExceeded: Stop}}", spec_with_time());
    let scenario = Scenario::new(&spec, &server.endpoint);
    scenario.api.add_pod("web-0", "node-1");
    let mut stream = scenario.connect("node-1");
    stream.plan().await.unwrap();
    scenario.pass().await;
    scenario.api.change(SESSION, |session| session["spec"]["stop"] = true.into());
    scenario.pass().await;
    let mut said = report(Stage::Draining, 5);
    let message = "cpu is 1m, 2m went into the session".to_owned();
    said.sessions[0].excess = Some(Excess { budget: "cpu".to_owned(), stopped: true, message });
    stream.report(said);
    for _ in 0..3 {
        // A status is written every few seconds at most.
        scenario.context.clock.advance(Duration::from_secs(6));
        scenario.pass().await;
        let exceeded = scenario.condition(condition::BUDGET_EXCEEDED);
        assert_eq!(exceeded, ("True".to_owned(), reason::BUDGET_STOPPED.to_owned()));
        let collecting = scenario.condition(condition::COLLECTING);
        assert_eq!(collecting, ("False".to_owned(), reason::STOPPED.to_owned()));
    }
}

#[tokio::test]
async fn a_node_that_comes_back_after_the_end_makes_an_incomplete_session_complete() {
    let server = Server::in_process().await;
    let scenario = Scenario::new(&spec(), &server.endpoint);
    let store = scenario.store(&server.endpoint);
    scenario.api.add_pod("web-0", "node-1");
    scenario.api.add_pod("web-1", "node-2");
    scenario.pass().await;
    let here = scenario.connect("node-1");
    here.report(report(Stage::Running, 5));
    scenario.pass().await;
    scenario.api.change(SESSION, |session| session["spec"]["stop"] = true.into());
    scenario.pass().await;
    write_account(&store, "node-1", 5).await;
    here.report(report(Stage::Done, 5));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Draining), "node-2 still has its time");
    scenario.context.clock.advance(Duration::from_secs(2));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Incomplete));
    assert_eq!(
        scenario.condition(condition::UPLOADED),
        ("False".to_owned(), reason::DRAIN_TIMEOUT.to_owned())
    );

    // Another operator, which knows nothing but what is written down.
    let next = Scenario::over(scenario.api.clone());
    let mut done_before = next.connect("node-1");
    let mut back = next.connect("node-2");
    next.pass().await;
    assert!(done_before.plan().await.unwrap().sessions.is_empty(), "a node that was done is left alone");
    assert_eq!(back.plan().await.unwrap().sessions[0].activity(), Activity::Drain);
    write_account(&store, "node-2", 7).await;
    back.report(report(Stage::Done, 7));
    next.pass().await;
    assert_eq!(next.phase(), Some(Phase::Completed));
    let manifest = next.api.status().dataset.unwrap().manifest.unwrap();
    assert_eq!(manifest, "_tracelake/manifest-2.json");
    // Of node-1 this operator has heard nothing.
    let totals = next.api.status().totals.unwrap();
    assert_eq!((totals.emitted, totals.filtered, totals.exported), (12, 12, 0), "what the manifest comes to");
}

#[tokio::test]
async fn a_manifest_that_cannot_be_written_is_told_while_there_is_time() {
    let spec = spec().replace("drainTimeout: 1s", "drainTimeout: 10m");
    let scenario = Scenario::new(&spec, "http://127.0.0.1:9");
    scenario.started();
    scenario.api.add_pod("web-0", "node-1");
    scenario.pass().await;
    let stream = scenario.connect("node-1");
    stream.report(report(Stage::Running, 5));
    scenario.pass().await;
    scenario.api.change(SESSION, |session| session["spec"]["stop"] = true.into());
    scenario.pass().await;
    stream.report(report(Stage::Done, 5));
    scenario.context.clock.advance(Duration::from_secs(6));
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Draining));
    let store = scenario.condition(condition::STORE_READY);
    assert_eq!(store, ("False".to_owned(), reason::STORE_UNAVAILABLE.to_owned()));
}

#[tokio::test]
async fn a_deleted_session_stops_at_once_uploads_and_is_let_go() {
    let server = Server::in_process().await;
    let scenario = Scenario::new(&spec(), &server.endpoint);
    let store = scenario.store(&server.endpoint);
    scenario.api.add_pod("web-0", "node-1");
    scenario.pass().await;
    let mut stream = scenario.connect("node-1");
    stream.report(report(Stage::Running, 5));
    scenario.pass().await;
    assert_eq!(stream.plan().await.unwrap().sessions[0].activity(), Activity::Collect);
    delete(&scenario);
    scenario.pass().await;
    assert_eq!(stream.plan().await.unwrap().sessions[0].activity(), Activity::Drain);
    uploads_and_is_let_go(&scenario, &stream, &store).await;
}

#[tokio::test]
async fn a_deleted_session_is_let_go_when_drain_timeout_has_passed_though_its_store_is_away() {
    let scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    scenario.started();
    scenario.api.change(SESSION, |session| {
        session["metadata"]["finalizers"] = serde_json::json!([crds::SESSION_FINALIZER]);
    });
    scenario.api.add_pod("web-0", "node-1");
    scenario.pass().await;
    let mut stream = scenario.connect("node-1");
    stream.report(report(Stage::Running, 5));
    scenario.pass().await;
    delete(&scenario);
    scenario.pass().await;
    assert_eq!(stream.plan().await.unwrap().sessions[0].activity(), Activity::Drain);
    stream.report(report(Stage::Draining, 5));
    scenario.pass().await;
    let held = scenario.api.session().metadata.finalizers.clone().unwrap_or_default();
    assert_eq!(held, [crds::SESSION_FINALIZER], "there is time left");
    scenario.context.clock.advance(Duration::from_secs(60));
    scenario.pass().await;
    assert_eq!(scenario.api.session().metadata.finalizers.clone().unwrap_or_default(), Vec::<String>::new());
    assert!(stream.plan().await.unwrap().sessions.is_empty(), "the agent is told to discard what it has");
}
