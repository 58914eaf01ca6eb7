// SPDX-License-Identifier: Apache-2.0
//! An API server that is away, slow, refuses, forgets or is silent.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::response::IntoResponse;
use futures::{FutureExt, StreamExt};
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api as Objects, Client};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracelake_operator::api_server;

use super::*;
use crate::api::{SESSIONS, Trouble};

/// The operator's own loop over the scenario's API server, and what ends it.
fn reconciling(
    scenario: Scenario,
    client: Option<Client>,
) -> (Api, Arc<Hub>, JoinHandle<()>, CancellationToken) {
    let Scenario { api, mut context, hub, due } = scenario;
    if let Some(client) = client {
        Arc::get_mut(&mut context).unwrap().client = client;
    }
    let stop = CancellationToken::new();
    let (_, writer) = kube::runtime::reflector::store();
    let running = tokio::spawn(session::run(context, writer, Listed::default(), due, stop.clone()));
    (api, hub, running, stop)
}

/// Waits for so many requests and returns the pauses between them.
async fn pauses(api: &Api, what: &str, count: usize) -> Vec<Duration> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let came = api.came(what);
        if came.len() >= count {
            return came.windows(2).take(count).map(|two| two[1].duration_since(two[0])).collect();
        }
        assert!(Instant::now() < deadline, "{what}: {} of {count}", came.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn f15_with_the_api_server_away_agents_go_on_and_get_grants_and_what_they_did_is_told_when_it_is_back()
{
    let server = Server::in_process().await;
    let (scenario, mut stream) = running(&spec(), &server).await;
    let context = scenario.context.clone();
    let Scenario { api, hub, due, .. } = scenario;
    let stop = CancellationToken::new();
    let (_, writer) = kube::runtime::reflector::store();
    let running = tokio::spawn(session::run(context, writer, Listed::default(), due, stop.clone()));
    soon("the watch of sessions", || !api.came(&format!("WATCH {SESSIONS}")).is_empty()).await;
    api.is_in(Some(Trouble::Down));
    let before = api.came(&format!("GET {SESSIONS}")).len() + api.came(&format!("WATCH {SESSIONS}")).len();
    stream.report(report(Stage::Running, 17));
    let tries = || api.came(&format!("GET {SESSIONS}")).len() + api.came(&format!("WATCH {SESSIONS}")).len();
    let began = Instant::now();
    soon("three tries", || tries() >= before + 3).await;
    assert!(began.elapsed() > Duration::from_secs(1), "no hot loop: three tries in {:?}", began.elapsed());
    assert!(stream.plan().now_or_never().is_none(), "nobody is told to stop");
    let key = Key::segment("processes", "node-1", &BOOT.parse().unwrap(), 0).unwrap();
    assert!(hub.granted("node-1", UID, &key, 4).is_ok(), "uploads go on");
    api.is_in(None);
    let deadline = Instant::now() + PATIENCE;
    while api.status().totals.is_none_or(|totals| totals.emitted != 17) {
        assert!(Instant::now() < deadline, "what was reported meanwhile is not told");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(api.status().phase, Some(Phase::Running));
    assert!(stream.plan().now_or_never().is_none(), "the plan is what it was");
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn f15_a_window_ends_though_the_api_server_is_away_and_nobodys_owner_can_be_looked_up() {
    let server = Server::in_process().await;
    let spec = spec().replace("{podSelector: {}}", "{workloadRef: {kind: Deployment, name: web}}");
    // The API server comes back before that has passed, also on a busy machine.
    let spec = spec.replace("drainTimeout: 1s", "drainTimeout: 60s");
    let mut scenario = Scenario::new(&spec, &server.endpoint);
    let pod = |name: &str, set: &str| {
        format!(
            "{{metadata: {{name: {name}, ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: {set}, uid: {set}, \
             controller: true}}]}}, spec: {{nodeName: node-1}}, status: {{phase: Running}}}}"
        )
    };
    scenario.api.apply(
        "/apis/apps/v1/namespaces/shop/replicasets/web-1",
        "{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: web-1, uid: web-1, ownerReferences: [
            {apiVersion: apps/v1, kind: Deployment, name: web, uid: web, controller: true}]}}",
    );
    scenario.api.happens("ADDED", &pod("web-0", "web-1"));
    let mut stream = scenario.connect("node-1");
    stream.plan().await.unwrap();
    scenario.pass().await;
    assert_eq!(stream.plan().await.unwrap().bodies[0].targets.len(), 1);
    while scenario.due.try_recv().is_ok() {}
    // Its owner is not known yet when the API server goes away.
    scenario.api.happens("ADDED", &pod("web-9", "web-2"));
    scenario.told().await;
    scenario.api.is_in(Some(Trouble::Down));
    scenario.context.clock.advance(Duration::from_secs(3_600));
    // What follows cannot be written down; what nodes are told does not wait for that.
    let session = scenario.api.session();
    assert!(reconcile::reconcile(session, scenario.context.clone()).await.is_err());
    let plan = tokio::time::timeout(Duration::from_secs(10), stream.plan()).await;
    let plan = plan.expect("nodes are not told that the window is over").unwrap();
    assert_eq!(plan.sessions[0].activity(), Activity::Drain);
    assert!(plan.bodies.is_empty(), "targets are what they were");
    let owner = "GET /apis/apps/v1/namespaces/shop/replicasets/web-2";
    assert_eq!(scenario.api.came(owner).len(), 1, "it was asked for");
    scenario.api.is_in(None);
    scenario.pass().await;
    assert_eq!(scenario.phase(), Some(Phase::Draining));
}

#[tokio::test]
async fn f16_a_watch_that_is_gone_again_and_again_is_listed_anew_after_a_pause_each_time() {
    let scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    scenario.started();
    scenario.api.is_in(Some(Trouble::Gone));
    let (api, _, running, stop) = reconciling(scenario, None);
    let pauses = pauses(&api, &format!("GET {SESSIONS}"), 5).await;
    // Each list was answered, so that the pauses do not grow.
    assert!(pauses.iter().all(|pause| *pause > Duration::from_millis(700)), "{pauses:?}");
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn f16_a_watch_that_ends_at_once_is_not_begun_again_at_once() {
    let scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    scenario.started();
    scenario.api.is_in(Some(Trouble::ShortWatches));
    let client = scenario.api.paced_client();
    let (api, _, running, stop) = reconciling(scenario, Some(client));
    let pauses = pauses(&api, &format!("WATCH {SESSIONS}"), 4).await;
    assert!(pauses.iter().all(|pause| *pause >= api_server::WATCH_SPACING.mul_f64(0.9)), "{pauses:?}");
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn f16_what_is_refused_is_asked_again_after_seconds() {
    for code in [429, 409, 500] {
        let scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
        scenario.started();
        scenario.api.is_in(Some(Trouble::Refuses(code)));
        let (api, _, running, stop) = reconciling(scenario, None);
        let pauses = pauses(&api, &format!("GET {SESSIONS}"), 3).await;
        assert!(pauses.iter().all(|pause| *pause > Duration::from_millis(300)), "{code}: {pauses:?}");
        stop.cancel();
        running.await.unwrap();
    }
}

#[tokio::test]
async fn f16_an_api_server_that_is_slow_is_asked_no_more_than_one_that_is_not() {
    let scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    scenario.started();
    scenario.api.add_pod("web-0", "node-1");
    scenario.api.is_in(Some(Trouble::Slow(Duration::from_millis(700))));
    let stream = scenario.connect("node-1");
    let (api, hub, running, stop) = reconciling(scenario, None);
    soon("the plan", || hub.published(UID).is_some_and(|plan| plan.nodes.contains_key("node-1"))).await;
    stream.report(report(Stage::Running, 5));
    soon("the phase", || api.status().phase == Some(Phase::Running)).await;
    for what in [format!("GET {SESSIONS}"), format!("WATCH {SESSIONS}")] {
        assert_eq!(api.came(&what).len(), 1, "{what}");
    }
    let writes = api.came(&format!("PATCH {SESSION}/status")).len();
    assert!(writes <= 3, "{writes} writes");
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn f16_a_write_that_is_refused_is_tried_again_after_seconds() {
    let scenario = Scenario::new(&spec(), "http://127.0.0.1:9");
    scenario.started();
    scenario.api.0.lock().unwrap().refusing = true;
    let hub = scenario.hub.clone();
    let (api, _, running, stop) = reconciling(scenario, None);
    soon("the watch of sessions", || !api.came(&format!("WATCH {SESSIONS}")).is_empty()).await;
    hub.trigger(SessionId::of(&api.session()).object_ref());
    // The first ones are asked for: by the watch, by its pods', by the trigger.
    let pauses = pauses(&api, &format!("PATCH {SESSION}/status"), 7).await;
    assert!(pauses[3..].iter().all(|pause| *pause > Duration::from_millis(1_500)), "{pauses:?}");
    stop.cancel();
    running.await.unwrap();
}

/// An API server whose first `silent` requests are never answered, the next ones with this status, a list of pods if it is 200.
async fn pods_after(silent: usize, status: StatusCode) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let app = axum::Router::new().fallback(move || {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            if number < silent {
                std::future::pending::<()>().await;
            }
            let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []});
            (status, [("content-type", "application/json")], list.to_string()).into_response()
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, asked)
}

fn config(address: SocketAddr) -> kube::Config {
    let _ = rustls::crypto::ring::default_provider().install_default();
    api_server::bounded(kube::Config::new(format!("http://{address}").parse().unwrap()))
}

#[tokio::test]
async fn f16_a_connection_that_is_silently_gone_is_noticed_also_where_no_watch_is_open() {
    let (address, asked) = pods_after(2, StatusCode::OK).await;
    let mut config = config(address);
    // As long as a watch may be quiet, and kube gives up one that stays so; nothing waits longer.
    assert_eq!(config.read_timeout, Some(api_server::SILENCE));
    assert!((Duration::from_secs(295)..Duration::from_secs(320)).contains(&api_server::SILENCE));
    config.read_timeout = Some(Duration::from_millis(300));
    let pods: Objects<Pod> = Objects::all(api_server::client(config).unwrap());
    let mut watch = std::pin::pin!(watcher(pods, watcher::Config::default()).default_backoff());
    let listed = async {
        loop {
            if let Some(Ok(watcher::Event::InitDone)) = watch.next().await {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, listed)
        .await
        .expect("the list that nobody answers is waited for without end");
    assert!(asked.load(Ordering::SeqCst) >= 3);
}

#[tokio::test]
async fn f16_who_asks_hears_of_a_refusal_at_once() {
    let (address, asked) = pods_after(0, StatusCode::TOO_MANY_REQUESTS).await;
    let pods: Objects<Pod> = Objects::all(api_server::client(config(address)).unwrap());
    let refused = tokio::time::timeout(Duration::from_secs(5), pods.list(&Default::default())).await;
    assert!(refused.expect("it is asked again and again inside the client").is_err());
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
