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

mod grant;
mod put;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dataset::key::{Key, SessionPrefix};
use node_api::lanes::Lanes;
use object_store::ObjectStore;
use rand::Rng;
use reqwest::Client;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, warn};

pub use self::grant::{Grant, GrantError, GrantRequest, GrantSource, ObjectName, UploadError};
pub use self::put::Content;
use self::put::{ClientKey, server};
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
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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

#[cfg(test)]
mod tests;
