// SPDX-License-Identifier: Apache-2.0
//! Candidates at one Lease of an API server that can be switched off, at a fifth of the operator's times.

use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

const PACE: Pace = Pace {
    duration: Duration::from_secs(2),
    deadline: Duration::from_millis(1_400),
    retry: Duration::from_millis(400),
    call: Duration::from_millis(400),
};
/// What a busy machine may add.
const SLACK: Duration = Duration::from_secs(2);

/// One Lease, with versions.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    lease: Option<Value>,
    version: u64,
    /// Holders whose calls are not answered.
    cut_off: Vec<&'static str>,
    /// So many more answers to writes get lost; the writes do not.
    lost_answers: usize,
}

impl Server {
    fn candidate(&self, name: &'static str) -> Elector {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                if server.0.lock().unwrap().cut_off.contains(&name) {
                    std::future::pending::<()>().await;
                }
                let (status, answer) = server.answer(&parts.method, &body);
                let lost = parts.method != Method::GET && server.loses_answer();
                if lost {
                    std::future::pending::<()>().await;
                }
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, std::convert::Infallible>(Response::builder().status(status).body(answer).unwrap())
            }
        });
        Elector::new(Client::new(service, "default"), "tracelake", name, PACE)
    }

    fn answer(&self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
        let mut state = self.0.lock().unwrap();
        let failure = |code: StatusCode| {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
                "reason": if code == StatusCode::CONFLICT { "Conflict" } else { "NotFound" }, "message": "no"});
            (code, status)
        };
        if *method == Method::GET {
            return match &state.lease {
                Some(lease) => (StatusCode::OK, lease.clone()),
                None => failure(StatusCode::NOT_FOUND),
            };
        }
        let mut lease: Value = serde_json::from_slice(body).unwrap();
        let seen = state.lease.as_ref().map(|lease| &lease["metadata"]["resourceVersion"]);
        match (*method == Method::POST, seen) {
            (true, Some(_)) => return failure(StatusCode::CONFLICT),
            (false, Some(seen)) if *seen != lease["metadata"]["resourceVersion"] => {
                return failure(StatusCode::CONFLICT);
            }
            (false, None) => return failure(StatusCode::NOT_FOUND),
            _ => {}
        }
        state.version += 1;
        lease["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.lease = Some(lease.clone());
        (StatusCode::OK, lease)
    }

    fn loses_answer(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        let lost = state.lost_answers > 0;
        state.lost_answers = state.lost_answers.saturating_sub(1);
        lost
    }

    fn holder(&self) -> String {
        self.0.lock().unwrap().lease.as_ref().unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned()
    }

    fn transitions(&self) -> u64 {
        self.0.lock().unwrap().lease.as_ref().unwrap()["spec"]["leaseTransitions"].as_u64().unwrap()
    }

    /// Somebody writes something that is no renewal.
    fn label(&self) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        let version = state.version.to_string();
        let metadata = &mut state.lease.as_mut().unwrap()["metadata"];
        metadata["labels"] = json!({"somebody": "was here"});
        metadata["resourceVersion"] = version.into();
    }
}

async fn waited(candidate: &mut Elector) -> Duration {
    let began = Instant::now();
    candidate.acquire(|_| ()).await;
    began.elapsed()
}

#[tokio::test]
async fn one_leads_and_the_next_follows_at_once_when_it_is_given_back() {
    let server = Server::default();
    let (mut first, mut second) = (server.candidate("first"), server.candidate("second"));
    assert!(waited(&mut first).await < PACE.retry);
    let next = tokio::spawn(async move { (waited(&mut second).await, second) });
    let held = tokio::time::timeout(3 * PACE.duration, first.hold()).await;
    assert!(held.is_err(), "the first lost it: {held:?}");
    assert!(!next.is_finished() && server.holder() == "first");
    first.release().await;
    let freed = Instant::now();
    let (_, mut second) = next.await.unwrap();
    assert!(freed.elapsed() <= PACE.retry + SLACK / 2, "{:?}", freed.elapsed());
    assert_eq!((server.holder().as_str(), server.transitions()), ("second", 1));
    // Nothing of its own is left to give back.
    first.release().await;
    assert_eq!(server.holder(), "second");
    let held = tokio::time::timeout(2 * PACE.duration, second.hold()).await;
    assert!(held.is_err(), "the second lost it: {held:?}");
}

#[tokio::test]
async fn one_that_vanishes_is_followed_when_its_time_is_over_and_not_before() {
    let server = Server::default();
    let (mut first, mut second) = (server.candidate("first"), server.candidate("second"));
    first.acquire(|_| ()).await;
    let next = tokio::spawn(async move { waited(&mut second).await });
    let _ = tokio::time::timeout(PACE.duration, first.hold()).await;
    let gone = Instant::now();
    next.await.unwrap();
    let after = gone.elapsed();
    assert!(
        after >= PACE.duration - PACE.retry && after <= PACE.duration + PACE.retry + SLACK,
        "followed after {after:?}"
    );
}

#[tokio::test]
async fn one_that_cannot_renew_gives_up_before_another_can_begin() {
    let server = Server::default();
    let (mut first, mut second) = (server.candidate("first"), server.candidate("second"));
    first.acquire(|_| ()).await;
    let next = tokio::spawn(async move {
        second.acquire(|_| ()).await;
        Instant::now()
    });
    let _ = tokio::time::timeout(PACE.duration, first.hold()).await;
    server.0.lock().unwrap().cut_off.push("first");
    let lost = first.hold().await;
    let ended = Instant::now();
    assert_eq!(lost, Lost::Late);
    let began = next.await.unwrap();
    assert!(ended < began, "{:?} between them", began.duration_since(ended));
}

#[tokio::test]
async fn what_is_written_by_others_is_no_renewal_and_no_loss() {
    let server = Server::default();
    let mut first = server.candidate("first");
    first.acquire(|_| ()).await;
    server.label();
    let held = tokio::time::timeout(2 * PACE.duration, first.hold()).await;
    assert!(held.is_err(), "a label ended it: {held:?}");
    // The holder is gone; labels do not keep its place.
    let mut second = server.candidate("second");
    let labels = server.clone();
    let labelling = tokio::spawn(async move {
        loop {
            tokio::time::sleep(PACE.retry / 2).await;
            labels.label();
        }
    });
    let after = waited(&mut second).await;
    labelling.abort();
    assert!(
        after >= PACE.duration && after <= PACE.duration + 2 * PACE.retry + SLACK,
        "followed after {after:?}"
    );
    // Its own time is over before it has asked.
    assert_eq!(first.hold().await, Lost::Late);
}

#[tokio::test]
async fn a_process_that_was_started_again_goes_on_at_once() {
    let server = Server::default();
    server.candidate("first").acquire(|_| ()).await;
    assert!(waited(&mut server.candidate("first")).await < PACE.retry);
    assert_eq!(server.transitions(), 0);
}

#[tokio::test]
async fn f18_of_several_that_find_it_free_one_leads() {
    let server = Server::default();
    let mut all: Vec<_> = ["a", "b", "c"].map(|name| server.candidate(name)).into();
    let mut tries = tokio::task::JoinSet::new();
    for mut one in all.drain(..) {
        tries.spawn(async move {
            one.acquire(|_| ()).await;
            one.hold().await
        });
    }
    // One holds it, the others wait for it: nobody comes back.
    let ended = tokio::time::timeout(4 * PACE.duration, tries.join_next()).await;
    assert!(ended.is_err(), "{ended:?}");
    assert!(["a", "b", "c"].contains(&server.holder().as_str()) && server.transitions() == 0);
}

#[tokio::test]
async fn an_answer_that_is_lost_and_writes_of_others_cost_the_holder_nothing() {
    let server = Server::default();
    let (mut first, mut second) = (server.candidate("first"), server.candidate("second"));
    first.acquire(|_| ()).await;
    let next = tokio::spawn(async move { second.acquire(|_| ()).await });
    let others = server.clone();
    let labelling = tokio::spawn(async move {
        loop {
            tokio::time::sleep(PACE.retry / 3).await;
            others.label();
        }
    });
    server.0.lock().unwrap().lost_answers = 1;
    let held = tokio::time::timeout(3 * PACE.duration, first.hold()).await;
    labelling.abort();
    assert!(held.is_err(), "{held:?}");
    assert!(!next.is_finished() && server.holder() == "first");
    next.abort();
}

#[tokio::test]
async fn what_was_written_when_its_caller_gave_up_is_given_back() {
    let server = Server::default();
    let mut first = server.candidate("first");
    server.0.lock().unwrap().lost_answers = 1;
    let given_up = tokio::time::timeout(PACE.call / 2, first.acquire(|_| ())).await;
    assert!(given_up.is_err() && server.holder() == "first", "the write arrived, its answer did not");
    first.release().await;
    assert_eq!(server.holder(), "");
    // It is nobody's, and stays so.
    first.release().await;
    assert_eq!(server.holder(), "");
}

#[tokio::test]
async fn a_candidate_says_whether_it_was_answered() {
    let server = Server::default();
    server.candidate("first").acquire(|_| ()).await;
    let mut second = server.candidate("second");
    let answers = Mutex::new(Vec::new());
    let say = |answered| answers.lock().unwrap().push(answered);
    let _ = tokio::time::timeout(PACE.retry, second.acquire(say)).await;
    server.0.lock().unwrap().cut_off.push("second");
    let _ = tokio::time::timeout(2 * PACE.call, second.acquire(say)).await;
    let answers = answers.into_inner().unwrap();
    assert!(answers.first() == Some(&true) && answers.last() == Some(&false), "{answers:?}");
}
