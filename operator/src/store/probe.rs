// SPDX-License-Identifier: Apache-2.0
//! Tries a store for real: put, head, create-only put, list, delete.
//!
//! In: a connection. Out: what the store can do, or its answer as a reason. The probe goes the agents' way, presigned
//! URLs with signed headers, so what it finds holds for them. Of what a store answers only the error code and the
//! request id are kept, cut to plain characters: with a tenant's endpoint the answer is the tenant's text.
//!
//! The object is `<prefix>/_tracelake_probe/<random>` and is deleted again; a probe that is cut off leaves at most that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crds::S3;
use crds::conditions::reason;
use futures::TryStreamExt;
use http::{Method, StatusCode};
use object_store::ObjectStore;
use object_store::path::Path;
use object_store::signer::SignedUrlOptions;
use sha2::{Digest, Sha256};

use super::endpoint;
use super::{Connection, StoreProblem, StoreVersion, sign};

/// A success this recent is not tried again for a session that wants to start.
const RECENT: Duration = Duration::from_secs(60);
/// A failure this recent is not tried again for one: many sessions may wait for a store that is down.
const RECENT_FAILURE: Duration = Duration::from_secs(10);
/// A listing may be tried again inside; it has to end before the pass that waits for it gets late.
const LISTING: Duration = Duration::from_secs(10);
const FOLDER: &str = "_tracelake_probe";
const GRANT: Duration = Duration::from_secs(60);
/// Errors in XML are short; what is longer is not read.
const BODY_MAX: usize = 16 << 10;
const TOKEN_MAX: usize = 80;

/// What a store can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Whether it refuses a create-only write over an object that exists.
    pub conditional_put: bool,
}

/// The newest result of each store, and of each place where sessions that began before its last change still are.
#[derive(Default)]
pub(crate) struct Probes {
    done: Mutex<HashMap<Subject, Done>>,
    /// One probe of a store's place at a time; who waits finds its result.
    turns: Mutex<HashMap<Subject, Arc<tokio::sync::Mutex<()>>>>,
}

/// A store's UID, and where, if that is not where its spec says.
type Subject = (String, String);

/// Results of places that nobody asked for in so long are forgotten when there is another; stores are tried more often.
const REMEMBERED: Duration = Duration::from_secs(3600);

fn subject(version: &StoreVersion) -> Subject {
    (version.uid.clone(), version.place.clone())
}

#[derive(Clone)]
pub(crate) struct Done {
    pub(crate) version: StoreVersion,
    pub(crate) at: Instant,
    pub(crate) result: Result<Probed, StoreProblem>,
}

impl Probes {
    /// A success of the last minute, a failure of the last seconds, or a new try.
    pub(crate) async fn recent(
        &self,
        version: &StoreVersion,
        s3: &S3,
        connection: &Connection,
    ) -> Result<Probed, StoreProblem> {
        let turn = self.turn(version);
        let _turn = turn.lock().await;
        match self.fresh(version) {
            Some(result) => result,
            None => self.now(version, s3, connection).await,
        }
    }

    /// A success of the last minute, or a failure of the last seconds.
    pub(crate) fn fresh(&self, version: &StoreVersion) -> Option<Result<Probed, StoreProblem>> {
        let Done { at, result, .. } = self.last(version)?;
        let believed = if result.is_ok() { RECENT } else { RECENT_FAILURE };
        (at.elapsed() < believed).then_some(result)
    }

    /// Tries beside the caller, who does not wait: unless it was tried within the last seconds, or is being tried.
    pub(crate) fn renew(self: &Arc<Self>, version: &StoreVersion, s3: &S3, connection: &Connection) {
        if self.last(version).is_some_and(|done| done.at.elapsed() < RECENT_FAILURE) {
            return;
        }
        let Ok(turn) = self.turn(version).try_lock_owned() else { return };
        let (this, version, s3, connection) = (self.clone(), version.clone(), s3.clone(), connection.clone());
        tokio::spawn(async move {
            let _turn = turn;
            // What comes of it is remembered.
            let _ = this.now(&version, &s3, &connection).await;
        });
    }

    fn turn(&self, version: &StoreVersion) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        turns.entry(subject(version)).or_default().clone()
    }

    /// The last result for exactly this version.
    pub(crate) fn last(&self, version: &StoreVersion) -> Option<Done> {
        let done = self.done.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        done.get(&subject(version)).filter(|done| done.version == *version).cloned()
    }

    /// Tries, and remembers.
    pub(crate) async fn now(
        &self,
        version: &StoreVersion,
        s3: &S3,
        connection: &Connection,
    ) -> Result<Probed, StoreProblem> {
        let mut result = probe(s3, connection).await;
        // The same problem under another request id is no news: it would cost a write of every waiting session's status.
        if let (Err(problem), Some(Done { result: Err(before), .. })) = (&result, self.last(version))
            && problem.reason == before.reason
            && without_id(&problem.message) == without_id(&before.message)
        {
            result = Err(before);
        }
        let done = Done { version: version.clone(), at: Instant::now(), result: result.clone() };
        let mut all = self.done.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        all.retain(|_, done| done.at.elapsed() < REMEMBERED);
        all.insert(subject(version), done);
        drop(all);
        // Who waits for a turn holds it; the others need none.
        let mut turns = self.turns.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        result
    }

    /// Forgets a store that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        let mut all = self.done.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        all.retain(|(of, _), _| of != uid);
    }
}

/// What a store answered.
struct Answer {
    status: StatusCode,
    length: Option<u64>,
    code: String,
    request_id: String,
}

async fn probe(s3: &S3, connection: &Connection) -> Result<Probed, StoreProblem> {
    let name = uuid::Uuid::new_v4();
    let path = if s3.prefix.is_empty() {
        format!("{FOLDER}/{name}")
    } else {
        format!("{}/{FOLDER}/{name}", s3.prefix)
    };
    let path =
        Path::parse(path).map_err(|error| StoreProblem::new(reason::STORE_INVALID, error.to_string()))?;
    let body = format!("tracelake tries this store: {name}\n");
    let digest: [u8; 32] = Sha256::digest(body.as_bytes()).into();

    let (put_url, put_headers) = sign::put(connection, &path, &digest, GRANT).await?;
    let put = || {
        let mut request = connection.http.put(&put_url).body(body.clone());
        for (name, value) in &put_headers {
            request = request.header(name, value);
        }
        request
    };
    let first = send(s3, "put", put()).await?;
    if !first.status.is_success() {
        return Err(problem(s3, "put", &first));
    }
    let rest = after_put(s3, connection, &path, body.len() as u64, put()).await;
    // Deleted whatever came between, so that a failing probe does not fill the bucket.
    let delete_url =
        sign::url(connection, Method::DELETE, &path, GRANT, &SignedUrlOptions::default()).await?;
    let deleted = send(s3, "delete", connection.http.delete(delete_url)).await;
    let probed = rest?;
    let deleted = deleted?;
    if !deleted.status.is_success() {
        return Err(problem(s3, "delete", &deleted));
    }
    Ok(probed)
}

async fn after_put(
    s3: &S3,
    connection: &Connection,
    path: &Path,
    length: u64,
    again: reqwest::RequestBuilder,
) -> Result<Probed, StoreProblem> {
    let head_url = sign::url(connection, Method::HEAD, path, GRANT, &SignedUrlOptions::default()).await?;
    let head = send(s3, "head", connection.http.head(head_url)).await?;
    if !head.status.is_success() {
        return Err(problem(s3, "head", &head));
    }
    if head.length.is_some_and(|found| found != length) {
        return Err(StoreProblem::new(
            reason::STORE_ERROR,
            format!("{}: an object of {length} bytes was put and has another length afterwards", place(s3)),
        ));
    }
    list(s3, connection, path).await?;
    let second = send(s3, "put again", again).await?;
    match second.status {
        StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => Ok(Probed { conditional_put: true }),
        status if status.is_success() => Ok(Probed { conditional_put: false }),
        _ => Err(problem(s3, "put again", &second)),
    }
}

/// Lists the probe's folder, as the manifest is made from a listing at the session's end.
async fn list(s3: &S3, connection: &Connection, path: &Path) -> Result<(), StoreProblem> {
    let folder: Path = path.parts().take(path.parts().count() - 1).collect();
    let mut objects = connection.s3.list(Some(&folder));
    let failed = |reason, what: &str| Err(StoreProblem::new(reason, format!("{}: list: {what}", place(s3))));
    match tokio::time::timeout(LISTING, objects.try_next()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if super::is_denied(&error) => {
            failed(reason::ACCESS_DENIED, "allow s3:ListBucket to this key")
        }
        Ok(Err(_)) => failed(reason::STORE_ERROR, "the store did not answer as expected"),
        Err(_) => failed(reason::STORE_UNAVAILABLE, "no answer in time"),
    }
}

/// A message but for the id of the request, which differs from try to try.
fn without_id(message: &str) -> (&str, &str) {
    let (before, rest) = message.split_once("(request id ").unwrap_or((message, ""));
    (before, rest.split_once(')').map_or("", |(_, after)| after))
}

async fn send(s3: &S3, step: &str, request: reqwest::RequestBuilder) -> Result<Answer, StoreProblem> {
    let mut response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Err(unavailable(s3, step, error)),
    };
    let status = response.status();
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let length = header("content-length").and_then(|text| text.parse().ok());
    let mut request_id = plain(header("x-amz-request-id").unwrap_or_default());
    let mut code = String::new();
    if !status.is_success() {
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk[..chunk.len().min(BODY_MAX - body.len())]);
            if body.len() == BODY_MAX {
                break;
            }
        }
        let body = String::from_utf8_lossy(&body);
        code = plain(element(&body, "Code"));
        if request_id.is_empty() {
            request_id = plain(element(&body, "RequestId"));
        }
    }
    Ok(Answer { status, length, code, request_id })
}

fn unavailable(s3: &S3, step: &str, error: reqwest::Error) -> StoreProblem {
    // The URL carries the signature.
    let error = error.without_url();
    if let Some(refused) = endpoint::find_refused(&error) {
        return refused;
    }
    let what = if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the connection broke"
    };
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    StoreProblem::new(reason::STORE_UNAVAILABLE, format!("{}: {step}: {what}: {cause}", place(s3)))
}

/// The text of the first element of this name; no XML parser is needed for a known, flat answer.
fn element<'a>(body: &'a str, name: &str) -> &'a str {
    let open = format!("<{name}>");
    body.split_once(&open).and_then(|(_, rest)| rest.split_once("</")).map_or("", |(text, _)| text)
}

/// What may stand in a message of what a store said.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .take(TOKEN_MAX)
        .collect()
}

fn place(s3: &S3) -> String {
    match &s3.endpoint {
        Some(endpoint) => format!("bucket {} at {endpoint}", s3.bucket),
        None => format!("bucket {} in {}", s3.bucket, s3.region),
    }
}

fn problem(s3: &S3, step: &str, answer: &Answer) -> StoreProblem {
    let status = answer.status.as_u16();
    let (reason, hint) = match (answer.code.as_str(), status) {
        ("AccessDenied" | "AllAccessDisabled", _) => (
            reason::ACCESS_DENIED,
            "allow s3:PutObject, s3:GetObject, s3:ListBucket and s3:DeleteObject to this key",
        ),
        // The last one is of Versity's gateway where it has no other accounts.
        ("InvalidAccessKeyId" | "NotSignedUp" | "XAdminUserNotFound", _) => {
            (reason::INVALID_ACCESS_KEY_ID, "correct accessKeyId in the store's Secret")
        }
        ("SignatureDoesNotMatch", _) => {
            (reason::SIGNATURE_DOES_NOT_MATCH, "correct secretAccessKey in the store's Secret")
        }
        ("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired", _) => {
            (reason::EXPIRED_TOKEN, "renew sessionToken in the store's Secret")
        }
        ("RequestTimeTooSkewed", _) => (reason::REQUEST_TIME_TOO_SKEWED, "set the clocks of the nodes"),
        ("NoSuchBucket", _) => (reason::NO_SUCH_BUCKET, "create the bucket, or correct spec.s3.bucket"),
        (
            "AuthorizationHeaderMalformed"
            | "PermanentRedirect"
            | "TemporaryRedirect"
            | "IllegalLocationConstraintException",
            _,
        )
        | (_, 300..=399) => {
            (reason::WRONG_REGION, "correct spec.s3.region or spec.s3.endpoint; redirects are not followed")
        }
        (_, 401 | 403) => (reason::ACCESS_DENIED, "check the key and what it may do"),
        (_, 408 | 429 | 500..=599) => (reason::STORE_UNAVAILABLE, "it is tried again"),
        _ => (reason::STORE_ERROR, "see the store's own log"),
    };
    let code = if answer.code.is_empty() { String::new() } else { format!(" {}", answer.code) };
    let id = if answer.request_id.is_empty() { "none".to_owned() } else { answer.request_id.clone() };
    StoreProblem::new(
        reason,
        format!("{}: {step}: the store answered {status}{code} (request id {id}): {hint}", place(s3)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3() -> S3 {
        S3 {
            bucket: "traces".to_owned(),
            prefix: String::new(),
            endpoint: Some("http://store".to_owned()),
            region: "us-east-1".to_owned(),
            force_path_style: None,
            ca_bundle: None,
        }
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            length: None,
            code: plain(element(body, "Code")),
            request_id: plain(element(body, "RequestId")),
        }
    }

    #[test]
    fn an_answer_becomes_a_reason_with_code_and_request_id() {
        let body = "<?xml?><Error><Code>NoSuchBucket</Code><Message>secret text</Message><RequestId>4F-2</RequestId></Error>";
        let problem = problem(&s3(), "put", &answer(404, body));
        assert_eq!(problem.reason, reason::NO_SUCH_BUCKET);
        assert!(problem.message.contains("404 NoSuchBucket (request id 4F-2)"), "{problem}");
        assert!(!problem.message.contains("secret text"), "{problem}");
    }

    #[tokio::test]
    async fn a_session_that_stays_at_an_older_place_and_one_at_the_new_place_each_have_their_own_result() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let probes = Arc::<Probes>::default();
        let version = |place: &str| StoreVersion {
            uid: "uid".to_owned(),
            generation: 2,
            secret: String::new(),
            place: place.to_owned(),
        };
        let key = super::super::Credential::Key {
            access_key_id: "a".to_owned(),
            secret_access_key: "b".to_owned(),
            session_token: None,
        };
        // Nobody is there, which is soon known.
        let nowhere = |bucket: &str| S3 {
            endpoint: Some("http://127.0.0.1:9".to_owned()),
            bucket: bucket.to_owned(),
            ..s3()
        };
        for (place, bucket) in [("", "new"), ("http://127.0.0.1:9/old", "old")] {
            let s3 = nowhere(bucket);
            let connection = endpoint::connect(&s3, &key, None, None).unwrap();
            probes.now(&version(place), &s3, &connection).await.unwrap_err();
        }
        let said = |place: &str| probes.last(&version(place)).unwrap().result.unwrap_err().message;
        assert!(said("").contains("bucket new"), "{}", said(""));
        assert!(said("http://127.0.0.1:9/old").contains("bucket old"));
        assert!(probes.fresh(&version("")).is_some());
        assert!(probes.turns.lock().unwrap().is_empty(), "nobody waits");
        probes.forget("uid");
        assert!(
            probes.last(&version("")).is_none() && probes.last(&version("http://127.0.0.1:9/old")).is_none()
        );
    }

    #[test]
    fn only_the_request_id_may_differ() {
        let text = |id: &str, status: u16| {
            problem(&s3(), "put", &answer(status, &format!("<RequestId>{id}</RequestId>"))).message
        };
        assert_eq!(without_id(&text("a", 503)), without_id(&text("b", 503)));
        assert_ne!(without_id(&text("a", 503)), without_id(&text("a", 500)));
        assert_ne!(without_id(&text("a", 403)), without_id(&text("a", 503)));
    }

    #[test]
    fn answers_without_a_known_code_go_by_their_status() {
        let cases = [
            (403, reason::ACCESS_DENIED),
            (307, reason::WRONG_REGION),
            (503, reason::STORE_UNAVAILABLE),
            (429, reason::STORE_UNAVAILABLE),
            (418, reason::STORE_ERROR),
        ];
        for (status, wanted) in cases {
            assert_eq!(problem(&s3(), "put", &answer(status, "<html>")).reason, wanted, "{status}");
        }
    }

    #[test]
    fn what_a_store_says_cannot_write_into_a_message() {
        let body = format!("<Code>Access\n{{}} Denied<script>{}</Code>", "x".repeat(500));
        let problem = problem(&s3(), "put", &answer(400, &body));
        assert!(!problem.message.contains(['\n', '<', '{']), "{problem}");
        assert!(problem.message.len() < 300, "{problem}");
    }
}
