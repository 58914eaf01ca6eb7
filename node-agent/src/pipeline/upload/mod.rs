// SPDX-License-Identifier: Apache-2.0

//! Puts sealed files into the store, once each.
//!
//! In: sealed segments of a [`spool`](super::spool). Out: acknowledgements to it. Drops: nothing; what
//! the store does not take stays in the spool until it does or the session is given up.
//!
//! Every put is create-only and carries the content's SHA-256. Only two answers acknowledge:
//! 1. success, if the checksum that the store may send along is ours;
//! 2. "exists already" (412), if a HEAD finds our length and checksum: an earlier attempt got through
//!    and its answer was lost.
//!
//! Everything else (500, 503, 409, 403, a cut connection, a timeout) is tried again after a jittered
//! pause with a new grant, for as long as the session lasts; 409 means that two creations met, and is
//! no proof that ours won. A put that may or may not have arrived needs no case of its own: the next
//! one finds out. Grant URLs are secrets: no error text and no log line has one.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use dataset::key::{Key, KeyError, SessionPrefix};
use futures::future::BoxFuture;
use futures::stream;
use http::{HeaderMap, StatusCode, header};
use md5::{Digest, Md5};
use node_api::egress::{AddressRefused, Guard};
use node_api::lanes::Lanes;
use object_store::ObjectStore;
use rand::Rng;
use reqwest::{Body, Certificate, Client, Url};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, warn};

use super::spool::{BootSpool, SealedSegment};
use crate::metrics::Metrics;

/// Uploads at the same time, all sessions together: each holds one buffer and one connection.
const CONCURRENT: usize = 4;
/// The same for sessions whose store did not answer the last time, each with one at most: such an attempt takes its whole
/// timeout, and must not keep the others waiting.
const CONCURRENT_SILENT: usize = 4;
/// Uploads of one session's boot at the same time ...
const CONCURRENT_PER_BOOT: usize = 2;
/// ... and, in each of the two lanes, of all sessions to one store, so that one that hangs or is slow leaves room for others.
const CONCURRENT_PER_STORE: usize = 2;
/// A grant holds for at least five minutes; one that waited so long for its turn is asked for again.
const GRANT_FRESH: Duration = Duration::from_secs(60);
const CHUNK: usize = 256 << 10;
/// HTTP clients that are kept, each with its connections.
const CLIENTS_MAX: usize = 64;
/// The slowest store that is waited for.
const MIN_BYTES_PER_SECOND: u64 = 64 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// S3's name for the checksum, in requests and answers.
const CHECKSUM: &str = "x-amz-checksum-sha256";
const ENCRYPTION: &str = "x-amz-server-side-encryption";

/// One object that is to be created below a session's prefix, as the agent names it; the key is the other side's to compose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRequest {
    /// UID of the session.
    pub session: Arc<str>,
    /// The boot during which the content was made: 32 hex digits.
    pub boot: Arc<str>,
    /// Which object.
    pub object: ObjectName,
    /// Of the content, in bytes.
    pub length: u64,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

/// The two kinds of objects that an agent creates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectName {
    /// `<table>/<node>_<boot>_<sequence>.parquet`
    Segment {
        /// The table's name.
        table: String,
        /// Rising per session, table and boot.
        sequence: u64,
    },
    /// `_tracelake/<node>_<boot>.json`
    NodeManifest,
}

/// Leave to create one object, for a few minutes.
#[derive(Clone)]
pub struct Grant {
    /// Presigned; never logged.
    pub put_url: String,
    /// To send with the PUT, exactly: they are signed.
    pub put_headers: BTreeMap<String, String>,
    /// Presigned HEAD of the same key; never logged.
    pub head_url: String,
    /// PEM certificates to trust for this store besides the public ones; empty: none.
    pub ca_bundle: String,
    /// Relative to the session's prefix.
    pub key: String,
    /// What may not be connected to: a tenant's store may be anywhere that its DNS says.
    pub guard: Option<Guard>,
}

/// Why there is no grant now. Both kinds are asked for again, with backoff: what is over is said by the plan alone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GrantError {
    /// The operator cannot be reached or has no answer now.
    #[error("the operator cannot be reached for an upload grant: {0}")]
    Unavailable(String),
    /// The operator answered no.
    #[error("the operator refused an upload grant: {0}")]
    Refused(String),
}

/// Whoever hands out grants: the operator's client.
pub trait GrantSource: Send + Sync + 'static {
    /// Asks for leave to create one object.
    fn grant<'a>(&'a self, request: &'a GrantRequest) -> BoxFuture<'a, Result<Grant, GrantError>>;
}

/// Where objects go.
#[derive(Clone)]
pub enum Destination {
    /// A store that this process has credentials for, or a folder: `tracelake record`.
    Store {
        /// The store.
        store: Arc<dyn ObjectStore>,
        /// The session's folder in it.
        prefix: SessionPrefix,
        /// This node's name in keys.
        node: Arc<str>,
    },
    /// A store that only presigned requests reach: the agent.
    Granted(Arc<dyn GrantSource>),
}

/// What is uploaded.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file of the spool.
    File(PathBuf),
    /// Something small in memory.
    Bytes(Bytes),
}

/// Why an attempt did not end with an acknowledgement.
#[derive(Clone, Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
pub enum UploadError {
    /// No grant.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// The store cannot be reached, or its answer did not come.
    #[error("the store cannot be reached: {0}")]
    StoreUnreachable(String),
    /// The store is where a tenant's may not be.
    #[error("nothing is sent: {0}")]
    AddressRefused(#[from] AddressRefused),
    /// The disk that the data go to is full.
    #[error("no room is left where the data go")]
    StoreFull,
    /// The store answered with an error.
    #[error("the store answered {status}{code}")]
    StoreError {
        /// The HTTP status.
        status: StatusCode,
        /// The store's own code, if it sent one, after a space.
        code: String,
    },
    /// The store says that it stored something else.
    #[error("the store's checksum of {key} is not ours")]
    ChecksumMismatch {
        /// Relative to the session's folder.
        key: String,
    },
    /// Another object has our key. It is never overwritten.
    #[error("{key} exists in the store with other content: two nodes may have one name and boot id")]
    ObjectConflict {
        /// Relative to the session's folder.
        key: String,
    },
    /// The file cannot be read.
    #[error("cannot read the spooled file: {0}")]
    SpoolRead(String),
    /// The grant or the configuration is not usable.
    #[error("{0}")]
    Invalid(String),
}

impl From<KeyError> for UploadError {
    fn from(error: KeyError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// Without the URL, which is a secret.
fn unreachable(error: reqwest::Error) -> UploadError {
    let error = error.without_url();
    if let Some(refused) = AddressRefused::find(&error) {
        return refused.clone().into();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    UploadError::StoreUnreachable(text)
}

/// The server that a URL is of: scheme, name and port, where several buckets may be.
fn server(url: &str) -> String {
    Url::parse(url).map(|url| url.origin().ascii_serialization()).unwrap_or_default()
}

/// Certificates to trust besides the public ones, and what may not be connected to.
type ClientKey = (String, Option<Guard>);

/// Uploads for all sessions.
pub struct Uploader {
    destination: Destination,
    patience: Duration,
    /// Grants that are asked for at the same time.
    granting: Semaphore,
    answering: Lanes,
    silent: Lanes,
    /// One for every bundle of certificates and guard, newest last: a store's owner may change its bundle as often as he likes.
    clients: Mutex<VecDeque<(ClientKey, Client)>>,
    metrics: Arc<Metrics>,
}

impl Uploader {
    /// Uploads to one destination.
    pub fn new(destination: Destination, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::within(REQUEST_TIMEOUT, destination, metrics)
    }

    /// The same, where a store gets another time for a request, besides what the length asks for: tests do not wait.
    pub fn within(patience: Duration, destination: Destination, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            destination,
            patience,
            granting: Semaphore::new(CONCURRENT),
            answering: Lanes::new(CONCURRENT),
            silent: Lanes::new(CONCURRENT_SILENT),
            clients: Mutex::default(),
            metrics,
        })
    }

    /// Creates one object, in one attempt. Returns its key relative to the session's folder.
    ///
    /// # Errors
    /// Whenever it is not certain that the store holds exactly this content. Trying again is always safe.
    async fn create(
        &self,
        request: &GrantRequest,
        content: &Content,
        health: &UploadHealth,
    ) -> Result<String, UploadError> {
        let silent = health.silent.load(Ordering::Relaxed);
        let _turn = if silent { Some(health.turn.lock().await) } else { None };
        let lane = if silent { &self.silent } else { &self.answering };
        match &self.destination {
            Destination::Store { store, prefix, node } => {
                let _place = lane.take(&[]).await;
                let boot = request.boot.parse()?;
                let key = match &request.object {
                    ObjectName::Segment { table, sequence } => Key::segment(table, node, &boot, *sequence)?,
                    ObjectName::NodeManifest => Key::node_manifest(node, &boot)?,
                };
                let bytes = content.read().await?;
                match dataset::reader::create(store.as_ref(), &prefix.object(&key), bytes).await {
                    Ok(()) => Ok(key.relative()),
                    Err(dataset::reader::ReadError::Exists { .. }) => {
                        Err(UploadError::ObjectConflict { key: key.relative() })
                    }
                    Err(dataset::reader::ReadError::Full { .. }) => Err(UploadError::StoreFull),
                    Err(error) => Err(UploadError::StoreUnreachable(error.to_string())),
                }
            }
            Destination::Granted(source) => {
                // First: it says which store it is.
                let mut grant = self.grant(source.as_ref(), request).await?;
                let granted = Instant::now();
                let server = server(&grant.put_url);
                let share = [(server.as_str(), CONCURRENT_PER_STORE)];
                let place = lane.take(&share).await;
                // It may have fallen silent while this waited.
                let _place = if !silent && health.silent.load(Ordering::Relaxed) {
                    drop(place);
                    self.silent.take(&share).await
                } else {
                    place
                };
                if granted.elapsed() > GRANT_FRESH {
                    grant = self.grant(source.as_ref(), request).await?;
                }
                self.put(&grant, request, content).await?;
                Ok(grant.key)
            }
        }
    }

    async fn grant(&self, source: &dyn GrantSource, request: &GrantRequest) -> Result<Grant, UploadError> {
        let turn = self.granting.acquire().await;
        let _turn = turn.map_err(|error| UploadError::Invalid(error.to_string()))?;
        Ok(source.grant(request).await?)
    }

    async fn put(&self, grant: &Grant, request: &GrantRequest, content: &Content) -> Result<(), UploadError> {
        let client = self.client(grant)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &grant.put_headers {
            let bad = || UploadError::Invalid(format!("the grant's header {name:?} is not one"));
            let name = header::HeaderName::try_from(name).map_err(|_| bad())?;
            headers.insert(name, header::HeaderValue::try_from(value).map_err(|_| bad())?);
        }
        headers.insert(header::CONTENT_LENGTH, request.length.into());
        let timeout = self.patience + Duration::from_secs(request.length / MIN_BYTES_PER_SECOND);
        let put = client
            .put(&grant.put_url)
            .headers(headers)
            .timeout(timeout)
            .body(content.body(request.length).await?);
        let answer = put.send().await.map_err(unreachable)?;
        let (status, sent) = (answer.status(), answer.headers().get(CHECKSUM).cloned());
        match status {
            status if status.is_success() => match sent {
                Some(sum) if sum.as_bytes() != BASE64.encode(request.sha256).as_bytes() => {
                    Err(UploadError::ChecksumMismatch { key: grant.key.clone() })
                }
                _ => Ok(()),
            },
            StatusCode::PRECONDITION_FAILED => self.compare(&client, grant, request, content).await,
            status => {
                let body = tokio::time::timeout(CONNECT_TIMEOUT, limited(answer)).await.unwrap_or_default();
                Err(UploadError::StoreError { status, code: store_code(&body) })
            }
        }
    }

    /// Finds out whether the object that is there already is ours.
    async fn compare(
        &self,
        client: &Client,
        grant: &Grant,
        request: &GrantRequest,
        content: &Content,
    ) -> Result<(), UploadError> {
        let head = || client.head(&grant.head_url).timeout(self.patience).send();
        let answer = match head().await {
            // A store that refuses before it has read the body closes the connection, which may be the one that was
            // just taken for this request.
            Err(error) if !error.is_timeout() => head().await,
            answer => answer,
        }
        .map_err(unreachable)?;
        if !answer.status().is_success() {
            // Absent after all, or not to be seen now: the next attempt tells.
            return Err(UploadError::StoreError { status: answer.status(), code: String::new() });
        }
        let conflict = || UploadError::ObjectConflict { key: grant.key.clone() };
        let text = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        if text("content-length").and_then(|length| length.parse().ok()) != Some(request.length) {
            return Err(conflict());
        }
        if let Some(sum) = text(CHECKSUM) {
            return if sum == BASE64.encode(request.sha256) { Ok(()) } else { Err(conflict()) };
        }
        if text(ENCRYPTION).is_some_and(|kind| kind.starts_with("aws:")) {
            // Encrypted with a managed key, where the ETag is not of the content. The key is ours alone (it names node,
            // boot and sequence) and every put for it was bound to a checksum, so equal length is what can be asked.
            return Ok(());
        }
        let md5 = content.md5().await?;
        match text("etag") {
            Some(etag) if etag.trim_matches('"').eq_ignore_ascii_case(&md5) => {
                info!(key = grant.key, "an earlier upload had got through");
                Ok(())
            }
            _ => Err(conflict()),
        }
    }

    /// A client that trusts the public roots and this bundle. It follows no redirect: a store that sends one elsewhere
    /// would send our data with it. An administrator's store is behind the environment's proxy, if there is one (`HTTPS_PROXY`
    /// and the like); a tenant's never is, since the proxy would be asked for the address that is to be checked.
    fn client(&self, grant: &Grant) -> Result<Client, UploadError> {
        let Grant { ca_bundle, guard, put_url, head_url, .. } = grant;
        if let Some(guard) = guard {
            for url in [put_url, head_url] {
                let url = Url::parse(url)
                    .map_err(|error| UploadError::Invalid(format!("the grant's URL: {error}")))?;
                guard.admit(url.host_str().unwrap_or_default())?;
            }
        }
        let key = (ca_bundle.clone(), guard.clone());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = clients.iter().find(|(known, _)| *known == key) {
            return Ok(client.clone());
        }
        let invalid = |error: reqwest::Error| {
            UploadError::Invalid(format!("the store's CA bundle is not usable: {error}"))
        };
        let mut roots = Certificate::from_pem_bundle(ca_bundle.as_bytes()).map_err(invalid)?;
        for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
            roots.push(Certificate::from_der(root).map_err(invalid)?);
        }
        let mut builder = Client::builder()
            .tls_certs_only(roots)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT);
        if let Some(guard) = guard {
            builder = builder.no_proxy().dns_resolver(guard.resolver());
        }
        let client = builder.build().map_err(invalid)?;
        if clients.len() == CLIENTS_MAX {
            clients.pop_front();
        }
        clients.push_back((key, client.clone()));
        Ok(client)
    }

    /// Uploads what a boot of a session has sealed and what it will seal, until cancelled.
    pub async fn run(
        self: Arc<Self>,
        session: Arc<str>,
        spool: Arc<BootSpool>,
        health: Arc<UploadHealth>,
        stop: CancellationToken,
    ) {
        let worker = || {
            let (this, session, spool, health) =
                (self.clone(), session.clone(), spool.clone(), health.clone());
            let stop = stop.clone();
            let work = async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = this.work(&session, &spool, &health) => {}
                }
            };
            tokio::spawn(work.in_current_span())
        };
        let workers: Vec<_> = (0..CONCURRENT_PER_BOOT).map(|_| worker()).collect();
        futures::future::join_all(workers).await;
    }

    async fn work(&self, session: &Arc<str>, spool: &Arc<BootSpool>, health: &UploadHealth) {
        let mut pause = Backoff::default();
        loop {
            // Registered before looking, so that a segment sealed in between is not slept over.
            let mut changed = std::pin::pin!(spool.changed());
            changed.as_mut().enable();
            let Some(segment) = spool.claim() else {
                changed.await;
                continue;
            };
            let _claim = Claim { spool, segment: &segment };
            let error = match self.upload(session, spool, &segment, health).await {
                Ok(()) => {
                    pause = Backoff::default();
                    health.succeeded(!spool.has_failed());
                    continue;
                }
                Err(error) => error,
            };
            let delay = pause.next();
            warn!(%session, table = segment.table, sequence = segment.sequence, %error, retry_ms = delay.as_millis() as u64, "upload failed, will retry");
            self.metrics.upload_failed(&error);
            health.failed(error);
            tokio::time::sleep(delay).await;
        }
    }

    /// One attempt, to the acknowledgement.
    async fn upload(
        &self,
        session: &Arc<str>,
        spool: &Arc<BootSpool>,
        segment: &SealedSegment,
        health: &UploadHealth,
    ) -> Result<(), UploadError> {
        let content = Content::File(spool.file(segment));
        let mut sha256 = [0; 32];
        hex::decode_to_slice(&segment.sha256, &mut sha256)
            .map_err(|_| UploadError::SpoolRead("the journal's checksum is not one".to_owned()))?;
        let object = ObjectName::Segment { table: segment.table.clone(), sequence: segment.sequence };
        let request = GrantRequest {
            session: session.clone(),
            boot: spool.boot().shared(),
            object,
            length: segment.bytes,
            sha256,
        };
        let key = self.create(&request, &content, health).await?;
        spool.acknowledge(segment).map_err(|error| UploadError::SpoolRead(error.to_string()))?;
        debug!(%session, key, rows = segment.rows, bytes = segment.bytes, "segment uploaded");
        self.metrics.uploaded(segment.bytes);
        Ok(())
    }

    /// Creates the node manifest of a boot, until it is acknowledged.
    pub async fn manifest(
        &self,
        session: &Arc<str>,
        spool: &Arc<BootSpool>,
        json: Bytes,
        health: &UploadHealth,
    ) {
        use sha2::Digest as _;
        let request = GrantRequest {
            session: session.clone(),
            boot: spool.boot().shared(),
            object: ObjectName::NodeManifest,
            length: json.len() as u64,
            sha256: sha2::Sha256::digest(&json).into(),
        };
        let content = Content::Bytes(json);
        let mut pause = Backoff::default();
        loop {
            let error =
                match self.create(&request, &content, health).await.map(|key| spool.set_manifest(&key)) {
                    Ok(Ok(())) => {
                        health.succeeded(true);
                        return;
                    }
                    Ok(Err(error)) => UploadError::SpoolRead(error.to_string()),
                    Err(error) => error,
                };
            let delay = pause.next();
            warn!(%session, %error, retry_ms = delay.as_millis() as u64, "upload of the node manifest failed, will retry");
            self.metrics.upload_failed(&error);
            health.failed(error);
            tokio::time::sleep(delay).await;
        }
    }
}

/// Gives a segment back, also when the upload is cancelled; after a failure, when the pause is over.
struct Claim<'a> {
    spool: &'a BootSpool,
    segment: &'a SealedSegment,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.spool.release(self.segment);
    }
}

/// How the uploads of one boot of a session go.
#[derive(Debug, Default)]
pub struct UploadHealth {
    error: Mutex<Option<UploadError>>,
    /// The store did not answer the last time.
    silent: AtomicBool,
    /// Held by the one upload that tries whether it answers again.
    turn: tokio::sync::Mutex<()>,
}

impl UploadHealth {
    fn failed(&self, error: UploadError) {
        self.silent.store(matches!(error, UploadError::StoreUnreachable(_)), Ordering::Relaxed);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// An upload succeeded; `all` if none is left that failed.
    fn succeeded(&self, all: bool) {
        self.silent.store(false, Ordering::Relaxed);
        if all {
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Why something is not uploaded yet; none if nothing failed or all of it succeeded since.
    pub fn last_error(&self) -> Option<UploadError> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Exponential pauses; each is a random time up to the present bound, so that nodes do not come back together.
#[derive(Debug)]
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let bound = self.0;
        self.0 = (bound * 2).min(LONGEST_PAUSE);
        bound.mul_f64(0.5 + 0.5 * rand::rng().random::<f64>())
    }
}

impl Content {
    async fn read(&self) -> Result<Bytes, UploadError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::File(path) => {
                tokio::fs::read(path).await.map(Bytes::from).map_err(|error| spool_read(path, &error))
            }
        }
    }

    async fn body(&self, length: u64) -> Result<Body, UploadError> {
        match self {
            Self::Bytes(bytes) => Ok(Body::from(bytes.clone())),
            Self::File(path) => {
                let file = tokio::fs::File::open(path).await.map_err(|error| spool_read(path, &error))?;
                let chunks = stream::try_unfold(file.take(length), |mut file| async move {
                    let mut chunk = Vec::with_capacity(CHUNK);
                    let read = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await?;
                    Ok::<_, std::io::Error>((read > 0).then(|| (Bytes::from(chunk), file)))
                });
                Ok(Body::wrap_stream(chunks))
            }
        }
    }

    async fn md5(&self) -> Result<String, UploadError> {
        let mut md5 = Md5::new();
        match self {
            Self::Bytes(bytes) => md5.update(bytes),
            Self::File(path) => {
                let failed = |error: std::io::Error| spool_read(path, &error);
                let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
                let mut chunk = vec![0; CHUNK];
                loop {
                    match file.read(&mut chunk).await.map_err(failed)? {
                        0 => break,
                        read => md5.update(&chunk[..read]),
                    }
                }
            }
        }
        Ok(hex::encode(md5.finalize()))
    }
}

fn spool_read(path: &Path, error: &std::io::Error) -> UploadError {
    UploadError::SpoolRead(format!("{}: {error}", path.display()))
}

/// The beginning of an answer's body; the rest of a hostile one is not read.
async fn limited(mut answer: reqwest::Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > 4096 {
            break;
        }
    }
    body
}

/// S3's error code (`AccessDenied`) out of its XML, after a space; nothing else of the body is shown.
fn store_code(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let code =
        text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
    match code {
        Some(code) if code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            format!(" {code}")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
