// SPDX-License-Identifier: Apache-2.0
//! Each refusal by its reason, with an API server whose answers are given.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::authentication::v1::UserInfo;

use super::*;

struct Answers {
    status: TokenReviewStatus,
    asked: AtomicUsize,
}

impl Review for Answers {
    fn review<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, kube::Error>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let status = self.status.clone();
        Box::pin(async move { Ok(status) })
    }
}

/// The pods that exist: name to UID.
struct Existing(Mutex<BTreeMap<String, String>>);

impl Pods for Existing {
    fn uid<'a>(&'a self, pod: &'a str) -> BoxFuture<'a, Result<Option<String>, kube::Error>> {
        let uid = self.0.lock().unwrap().get(pod).cloned();
        Box::pin(async move { Ok(uid) })
    }
}

fn token(audience: &str, expires_in: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let claims = serde_json::json!({
        "aud": [audience], "exp": now + expires_in, "sub": "system:serviceaccount:tracelake:node-agent",
        "kubernetes.io": {"pod": {"name": "node-agent-x", "uid": "uid-1"}},
    });
    format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn good_status() -> TokenReviewStatus {
    let extra = [(NODE_NAME, "node-1"), (POD_NAME, "node-agent-x"), (POD_UID, "uid-1")];
    let extra = extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into();
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec![node_api::TOKEN_AUDIENCE.to_owned()]),
        user: Some(UserInfo {
            username: Some("system:serviceaccount:tracelake:node-agent".to_owned()),
            extra: Some(extra),
            ..UserInfo::default()
        }),
        error: None,
    }
}

fn refused_status() -> TokenReviewStatus {
    TokenReviewStatus { authenticated: Some(false), ..TokenReviewStatus::default() }
}

struct Fixture {
    answers: Arc<Answers>,
    pods: Arc<Existing>,
    authenticator: Authenticator,
}

fn fixture(status: TokenReviewStatus) -> Fixture {
    let answers = Arc::new(Answers { status, asked: AtomicUsize::new(0) });
    let pods = Arc::new(Existing(Mutex::new([("node-agent-x".to_owned(), "uid-1".to_owned())].into())));
    let authenticator = Authenticator::new(answers.clone(), pods.clone(), "tracelake", "node-agent");
    Fixture { answers, pods, authenticator }
}

const OURS: &str = node_api::TOKEN_AUDIENCE;

#[tokio::test]
async fn a_good_token_gives_its_node_and_is_reviewed_once() {
    let fixture = fixture(good_status());
    let token = token(OURS, 600);
    for _ in 0..3 {
        let agent = fixture.authenticator.authenticate(Some(&token)).await.unwrap();
        assert_eq!((agent.node.as_str(), agent.pod.as_str()), ("node-1", "node-agent-x"));
    }
    assert_eq!(fixture.answers.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_call_without_token_is_refused_without_asking() {
    let fixture = fixture(good_status());
    assert_eq!(fixture.authenticator.authenticate(None).await, Err(Refusal::NoToken));
    assert_eq!(fixture.authenticator.authenticate(Some("")).await, Err(Refusal::NoToken));
    assert_eq!(fixture.answers.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    let refused = fixture(refused_status());
    let api = token("https://kubernetes.default.svc", 600);
    assert_eq!(refused.authenticator.authenticate(Some(&api)).await, Err(Refusal::WrongAudience));
    // An API server that answers for another audience than asked.
    let mut status = good_status();
    status.audiences = Some(vec!["https://kubernetes.default.svc".to_owned()]);
    let lax = fixture(status);
    assert_eq!(lax.authenticator.authenticate(Some(&api)).await, Err(Refusal::WrongAudience));
}

#[tokio::test]
async fn an_expired_token_is_refused_whether_seen_before_or_not() {
    let refused = fixture(refused_status());
    assert_eq!(refused.authenticator.authenticate(Some(&token(OURS, -5))).await, Err(Refusal::Expired));
    let remembered = fixture(good_status());
    let old = token(OURS, -5);
    for _ in 0..2 {
        assert_eq!(remembered.authenticator.authenticate(Some(&old)).await, Err(Refusal::Expired));
    }
}

#[tokio::test]
async fn a_token_of_another_service_account_is_refused() {
    let mut status = good_status();
    status.user.as_mut().unwrap().username = Some("system:serviceaccount:shop:default".to_owned());
    let fixture = fixture(status);
    assert_eq!(
        fixture.authenticator.authenticate(Some(&token(OURS, 600))).await,
        Err(Refusal::WrongServiceAccount)
    );
}

#[tokio::test]
async fn a_token_that_names_no_node_is_refused() {
    let mut status = good_status();
    status.user.as_mut().unwrap().extra.as_mut().unwrap().remove(NODE_NAME);
    let fixture = fixture(status);
    assert_eq!(fixture.authenticator.authenticate(Some(&token(OURS, 600))).await, Err(Refusal::NotBound));
}

#[tokio::test]
async fn a_token_of_a_pod_that_is_gone_is_refused_also_after_it_was_good() {
    let good = fixture(good_status());
    let token = token(OURS, 600);
    assert!(good.authenticator.authenticate(Some(&token)).await.is_ok());
    good.pods.0.lock().unwrap().insert("node-agent-x".to_owned(), "uid-2".to_owned());
    assert_eq!(good.authenticator.authenticate(Some(&token)).await, Err(Refusal::PodGone));
    good.pods.0.lock().unwrap().clear();
    assert_eq!(good.authenticator.authenticate(Some(&token)).await, Err(Refusal::PodGone));
    // The API server itself refuses such a token; the reason shown is the same.
    let refused = fixture(refused_status());
    refused.pods.0.lock().unwrap().clear();
    assert_eq!(refused.authenticator.authenticate(Some(&token)).await, Err(Refusal::PodGone));
}

#[tokio::test]
async fn nonsense_is_an_invalid_token_and_asked_once_in_a_while() {
    let fixture = fixture(refused_status());
    for _ in 0..3 {
        assert_eq!(fixture.authenticator.authenticate(Some("nonsense")).await, Err(Refusal::InvalidToken));
    }
    assert_eq!(fixture.answers.asked.load(Ordering::Relaxed), 1);
}
