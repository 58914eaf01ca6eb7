// SPDX-License-Identifier: Apache-2.0
//! Says which node a call speaks for, or why it is refused.
//!
//! In: the bearer token of a call. Out: [`Agent`] (node, pod, until when) or [`Refusal`], which is counted
//! and logged by the caller.
//!
//! The API server alone says whether a token is good (TokenReview with our audience), once per token: the
//! answer is kept under the token's SHA-256 until the token expires. The token's own text is read without
//! trust for two things only: the expiry of a token that was found good, and the *reason* to show for one
//! that was refused. A pod must exist with the UID that the token is bound to; that is asked on every use,
//! because a good answer outlives the pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use strum::{EnumIter, IntoStaticStr};
use tokio::sync::{Semaphore, SemaphorePermit};

const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Longer than any token the API server issues; more is not worth a request.
pub(crate) const TOKEN_MAX: usize = 8 << 10;
/// How long a refusal is remembered, so that a broken agent costs one review per this time.
const REFUSAL_TTL: Duration = Duration::from_secs(10);
/// Entries kept; far more than agents, so only a flood of bad tokens ever reaches it.
const CACHE_MAX: usize = 20_000;
/// Tokens that are reviewed at once: thousands of agents come to a new leader together, and each review would open a connection
/// of its own to the API server.
const REVIEWS: usize = 16;
/// For one review: others wait for its place.
const REVIEW_TIME: Duration = Duration::from_secs(5);

/// Why a call is refused; the name in snake_case is the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, EnumIter)]
#[strum(serialize_all = "snake_case")]
pub enum Refusal {
    /// No bearer token in the call.
    NoToken,
    /// Made for somebody else.
    WrongAudience,
    /// Its time is over.
    Expired,
    /// The API server does not accept it, for another reason.
    InvalidToken,
    /// A good token of a ServiceAccount that is not the agent's.
    WrongServiceAccount,
    /// A good token that does not name node and pod (Kubernetes older than 1.32, or not bound to a pod).
    NotBound,
    /// A message for a node that is not the token's.
    WrongNode,
    /// The pod that the token is bound to is gone, or another has its name.
    PodGone,
    /// The API server could not be asked; the agent tries again.
    ReviewFailed,
    /// One connection more than an address may hold: it was ended before it could call.
    TooManyConnections,
}

impl Refusal {
    /// As in the metric.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// Whom a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The node that the token's pod runs on.
    pub node: String,
    /// The agent's pod, in the agents' namespace.
    pub pod: String,
    /// Its UID.
    pub pod_uid: String,
    /// When the token ends.
    pub expires: SystemTime,
}

/// Asks for a TokenReview; a trait so that tests can say what the API server answers.
pub trait Review: Send + Sync {
    /// The review's status, for a token and the audience that it has to be for.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, kube::Error>>;
}

/// Knows the agents' pods.
pub trait Pods: Send + Sync {
    /// The UID of the pod of that name in the agents' namespace; none if there is no such pod.
    fn uid<'a>(&'a self, pod: &'a str) -> BoxFuture<'a, Result<Option<String>, kube::Error>>;
}

/// The API server's own TokenReview.
pub struct ApiReview {
    api: Api<TokenReview>,
    audience: &'static str,
}

impl ApiReview {
    /// Reviews tokens for this audience with this client; needs `create` on `tokenreviews`.
    pub fn new(client: Client, audience: &'static str) -> Self {
        Self { api: Api::all(client), audience }
    }
}

impl Review for ApiReview {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, kube::Error>> {
        Box::pin(async move {
            let spec = TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![self.audience.to_owned()]),
            };
            let review = TokenReview { spec, ..TokenReview::default() };
            Ok(self.api.create(&PostParams::default(), &review).await?.status.unwrap_or_default())
        })
    }
}

/// Asks the API server for a few at once, and for none without end.
pub(crate) struct Places(Semaphore);

impl Default for Places {
    fn default() -> Self {
        Self(Semaphore::new(REVIEWS))
    }
}

impl Places {
    /// A place, once one is free.
    pub(crate) async fn take(&self) -> Option<SemaphorePermit<'_>> {
        self.0.acquire().await.ok()
    }

    /// The answer, if it comes in time and is one.
    pub(crate) async fn answer<T>(
        what: &'static str,
        ask: impl Future<Output = Result<T, kube::Error>>,
    ) -> Option<T> {
        match tokio::time::timeout(REVIEW_TIME, ask).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::warn!(%error, what, "review failed");
                None
            }
            Err(_) => {
                tracing::warn!(what, "review not answered");
                None
            }
        }
    }
}

struct Remembered {
    answer: Result<Agent, Refusal>,
    until: SystemTime,
}

/// Turns tokens into agents.
pub struct Authenticator {
    review: Arc<dyn Review>,
    pods: Arc<dyn Pods>,
    /// `system:serviceaccount:<namespace>:<name>`.
    username: String,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
    reviewing: Places,
}

impl Authenticator {
    /// Accepts tokens of the ServiceAccount `account` in `namespace`.
    pub fn new(review: Arc<dyn Review>, pods: Arc<dyn Pods>, namespace: &str, account: &str) -> Self {
        let username = format!("system:serviceaccount:{namespace}:{account}");
        Self { review, pods, username, remembered: Mutex::default(), reviewing: Places::default() }
    }

    /// Whom the token speaks for.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn authenticate(&self, token: Option<&str>) -> Result<Agent, Refusal> {
        let token = token.filter(|token| !token.is_empty()).ok_or(Refusal::NoToken)?;
        if token.len() > TOKEN_MAX {
            return Err(Refusal::InvalidToken);
        }
        let key: [u8; 32] = Sha256::digest(token).into();
        let now = SystemTime::now();
        let agent = match self.recall(&key, now) {
            Some(answer) => answer?,
            None => {
                let answer = self.ask(token, &key).await;
                // An API server that cannot be asked says nothing about the token.
                if answer != Err(Refusal::ReviewFailed) {
                    self.remember(key, &answer, now);
                }
                answer?
            }
        };
        // The API server allows a minute of leeway; a grant needs none.
        if agent.expires <= now {
            return Err(Refusal::Expired);
        }
        self.check_pod(&agent).await?;
        Ok(agent)
    }

    /// Whether the agent's pod is still the one that the token was bound to.
    ///
    /// # Errors
    /// [`Refusal::PodGone`], or [`Refusal::ReviewFailed`] when it cannot be asked.
    pub async fn check_pod(&self, agent: &Agent) -> Result<(), Refusal> {
        match self.pods.uid(&agent.pod).await {
            Ok(Some(uid)) if uid == agent.pod_uid => Ok(()),
            Ok(_) => Err(Refusal::PodGone),
            Err(error) => {
                tracing::warn!(%error, pod = agent.pod, "agent's pod cannot be looked up");
                Err(Refusal::ReviewFailed)
            }
        }
    }

    fn recall(&self, key: &[u8; 32], now: SystemTime) -> Option<Result<Agent, Refusal>> {
        let remembered = self.remembered.lock().expect("no panic while held");
        let entry = remembered.get(key)?;
        // A good answer is kept past its end, so that the reason stays `expired`.
        (entry.answer.is_ok() || entry.until > now).then(|| entry.answer.clone())
    }

    fn remember(&self, key: [u8; 32], answer: &Result<Agent, Refusal>, now: SystemTime) {
        let until = match answer {
            Ok(agent) => agent.expires,
            Err(_) => now + REFUSAL_TTL,
        };
        let mut remembered = self.remembered.lock().expect("no panic while held");
        if remembered.len() >= CACHE_MAX {
            remembered.retain(|_, entry| entry.until > now);
        }
        if remembered.len() < CACHE_MAX {
            remembered.insert(key, Remembered { answer: answer.clone(), until });
        }
    }

    async fn ask(&self, token: &str, key: &[u8; 32]) -> Result<Agent, Refusal> {
        let turn = self.reviewing.take().await;
        // The same token may have been reviewed meanwhile.
        if let Some(answer) = self.recall(key, SystemTime::now()) {
            return answer;
        }
        let reviewed = Places::answer("token", self.review.review(token)).await;
        let status = reviewed.ok_or(Refusal::ReviewFailed)?;
        let claims = Claims::read(token);
        if status.authenticated != Some(true) {
            // Within the same turn: anybody may come with any claims.
            return Err(self.why_not(&claims).await);
        }
        drop(turn);
        let ours = status.audiences.iter().flatten().any(|audience| audience == node_api::TOKEN_AUDIENCE);
        if !ours {
            return Err(Refusal::WrongAudience);
        }
        let user = status.user.unwrap_or_default();
        if user.username.as_deref() != Some(&self.username) {
            return Err(Refusal::WrongServiceAccount);
        }
        let extra = user.extra.unwrap_or_default();
        let one = |key: &str| extra.get(key).and_then(|values| values.first()).cloned();
        let (Some(node), Some(pod), Some(pod_uid), Some(expires)) =
            (one(NODE_NAME), one(POD_NAME), one(POD_UID), claims.expires)
        else {
            return Err(Refusal::NotBound);
        };
        Ok(Agent { node, pod, pod_uid, expires })
    }

    /// The reason to show for a token that was refused. What is read here is not trusted and decides nothing else.
    async fn why_not(&self, claims: &Claims) -> Refusal {
        if claims.expires.is_some_and(|at| at <= SystemTime::now()) {
            return Refusal::Expired;
        }
        if !claims.audiences.is_empty() && !claims.audiences.iter().any(|a| a == node_api::TOKEN_AUDIENCE) {
            return Refusal::WrongAudience;
        }
        let (Some(pod), Some(uid)) = (&claims.pod, &claims.pod_uid) else { return Refusal::InvalidToken };
        if claims.subject.as_deref() != Some(&self.username) {
            return Refusal::InvalidToken;
        }
        match Places::answer("pod", self.pods.uid(pod)).await {
            Some(Some(found)) if found == *uid => Refusal::InvalidToken,
            Some(_) => Refusal::PodGone,
            None => Refusal::InvalidToken,
        }
    }
}

/// What a token says of itself, unverified.
#[derive(Default)]
struct Claims {
    audiences: Vec<String>,
    expires: Option<SystemTime>,
    subject: Option<String>,
    pod: Option<String>,
    pod_uid: Option<String>,
}

impl Claims {
    fn read(token: &str) -> Self {
        let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let Some(json) = payload.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
        else {
            return Self::default();
        };
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let audiences = match &json["aud"] {
            serde_json::Value::Array(list) => list.iter().filter_map(text).collect(),
            one => text(one).into_iter().collect(),
        };
        let pod = &json["kubernetes.io"]["pod"];
        let expires = json["exp"].as_u64().and_then(|at| UNIX_EPOCH.checked_add(Duration::from_secs(at)));
        Self {
            audiences,
            expires,
            subject: text(&json["sub"]),
            pod: text(&pod["name"]),
            pod_uid: text(&pod["uid"]),
        }
    }
}

#[cfg(test)]
mod tests;
