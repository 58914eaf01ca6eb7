// SPDX-License-Identifier: Apache-2.0
//! Stores: from a session's `storeRef` to something that can be written to.
//!
//! In: a [`TraceSession`], the stores and their Secrets in the API server. Out: a [`ResolvedStore`], which probes,
//! lists and writes with the operator's credentials and signs [`Grant`]s for the agents; or a [`StoreProblem`], which
//! goes into the session's condition `StoreReady` as it is.
//!
//! ```text
//! storeRef --> store object --> allowed here? --> credentials --> endpoint policy --> ResolvedStore --> Grant
//!  mod.rs                        mod.rs           credentials.rs   endpoint.rs         mod.rs            sign.rs
//! ```
//!
//! Invariants: a tenant's `TraceStore` reads Secrets of its own namespace only, never uses the operator's identity, and
//! is reached only at endpoints of the allow-list and at addresses that are not refused; no redirect is followed for
//! anybody; nothing that a store answers but its error code and request id is shown; grants are never logged.
//!
//! A session that has started keeps the endpoint, bucket and prefix of its `status.dataset`, whatever becomes of the
//! store's spec; its credentials are read anew, so that keys can be rotated under it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crds::conditions::reason;
use crds::{ClusterTraceStore, DatasetStatus, S3, StoreKind, StoreRef, TraceSession, TraceStore};
use dataset::key::SessionPrefix;
use kube::api::Api;
use kube::{Client, Resource, ResourceExt};
use node_api::egress::Guard;
use node_api::is_name;
use node_api::lanes::{Lanes, Place};
use object_store::ObjectStore;
use object_store::aws::AmazonS3;
use tokio::time::Instant;

pub mod chart;
mod controller;
mod credentials;
mod endpoint;
mod extra_ca;
mod probe;
mod sign;

pub use controller::run;
pub use credentials::Credential;
pub use endpoint::EndpointPolicy;
pub use extra_ca::ExtraCa;
pub use probe::Probed;
pub use sign::{GRANT_SECONDS, Grant};

/// Whether the store refused the key. object_store knows that of single objects only; of listings its text has the status.
fn is_denied(error: &object_store::Error) -> bool {
    use object_store::Error;
    matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
        || ["status code: 403", "status code: 401"].iter().any(|status| error.to_string().contains(status))
}

/// What may be shown of an error: its body may hold anything.
pub fn kind(error: &object_store::Error) -> &'static str {
    match error {
        object_store::Error::NotFound { .. } => "not found",
        error if is_denied(error) => "access denied",
        _ => "the store did not answer as expected",
    }
}

/// Of any places for work on stores, one namespace's sessions hold no more than this.
pub const OF_A_NAMESPACE: usize = 2;
/// Nor the sessions of all namespaces that go to one store; a namespace's own stores are one.
pub const OF_A_STORE: usize = 4;

/// Why a store cannot be used: a reason of [`crds::conditions::reason`] and a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct StoreProblem {
    /// A constant of [`crds::conditions::reason`].
    pub reason: &'static str,
    /// What happened, where, and what to do next.
    pub message: String,
}

impl StoreProblem {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// What the operator's flags say about stores.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The operator's own namespace: Secrets of `ClusterTraceStore`s are here.
    pub operator_namespace: String,
    /// The `ClusterTraceStore` for sessions that name none.
    pub default_store: Option<String>,
    /// Other namespaces in which the operator may read Secrets, for `TraceStore`s.
    pub secret_namespaces: Vec<String>,
    /// What tenants' stores may reach.
    pub endpoints: EndpointPolicy,
    /// Trusted for every store besides the public roots and its own bundle.
    pub extra_ca: Option<ExtraCa>,
}

/// Resolves stores; cheap to share in an `Arc`.
pub struct Stores {
    client: Client,
    config: StoreConfig,
    probes: Arc<probe::Probes>,
    /// Of stores by namespace (none: the cluster's) and name: what was read for sessions that have started.
    read: Mutex<HashMap<(String, String), Reading>>,
    /// Clients by what they were made of: an ambient identity keeps its token, and connections stay open.
    clients: Mutex<Vec<(ConnectionKey, Connection)>>,
}

/// Clients kept; more stores than this only cost the making of a client at each use.
const CLIENTS_MAX: usize = 64;
/// When a store and its Secret are read again for sessions that have started: a key is rotated within this time.
const READ_AGAIN: Duration = Duration::from_secs(60);
/// How long one session has for that before another tries; the old reading is used meanwhile, by all but who reads.
const READ_TRY: Duration = Duration::from_secs(10);
/// Nobody uses a reading of this age.
const READ_TTL: Duration = Duration::from_secs(120);

/// What was read of a store and its Secret, and when.
struct Reading {
    read: Read,
    at: Instant,
    again_at: Instant,
}

impl Reading {
    fn new(read: Read, now: Instant) -> Self {
        Self { read, at: now, again_at: now + READ_AGAIN }
    }
}

/// A store and its Secret, as they were read.
#[derive(Clone)]
pub(crate) struct Read {
    uid: String,
    generation: i64,
    s3: S3,
    restricted: bool,
    credential: Credential,
    /// The Secret's version.
    secret: String,
}

#[derive(Clone, PartialEq)]
struct ConnectionKey {
    s3: S3,
    credential: Credential,
    restricted: bool,
    extra_ca: Option<Arc<str>>,
}

/// What talks to one bucket as one identity.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) s3: Arc<AmazonS3>,
    /// For the probe, which goes the agents' way: presigned URLs.
    pub(crate) http: reqwest::Client,
    pub(crate) ambient: bool,
    /// Certificates in PEM that both sides trust besides the public ones; empty: none.
    pub(crate) ca_bundle: String,
    /// What neither side connects to, for a tenant's store.
    pub(crate) guard: Option<Guard>,
}

/// One version of one store and its Secret: a probe says something about this, and nothing about the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreVersion {
    pub(crate) uid: String,
    pub(crate) generation: i64,
    pub(crate) secret: String,
    /// Of a session that was started on an older spec: that older place.
    pub(crate) place: String,
}

impl Stores {
    /// Reads stores and Secrets with this client.
    pub fn new(client: Client, config: StoreConfig) -> Self {
        Self { client, config, probes: Arc::default(), read: Mutex::default(), clients: Mutex::default() }
    }

    /// The store of a session: of `status.dataset` when that is there, else of the spec, else the default one.
    ///
    /// # Errors
    /// Everything that can be found without talking to the store; [`ResolvedStore::probe`] finds the rest.
    pub async fn resolve(&self, session: &TraceSession) -> Result<ResolvedStore, StoreProblem> {
        let (namespace, pinned) = (session.namespace().unwrap_or_default(), pinned(session));
        let store_ref = self.store_ref(session, pinned)?;
        let read = self.read(&store_ref, &namespace, pinned).await?;
        self.resolved(session, &namespace, store_ref, read)
    }

    /// The same, of a session that has started: what was read for another session of that store not long ago is good for it as
    /// well, and one of all that ask reads it again each minute. One that has not started is to see at once what was mended.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub async fn resolve_started(
        &self,
        session: &TraceSession,
        now: Instant,
    ) -> Result<ResolvedStore, StoreProblem> {
        let (namespace, pinned) = (session.namespace().unwrap_or_default(), pinned(session));
        let store_ref = self.store_ref(session, pinned)?;
        let key = match store_ref.kind {
            StoreKind::ClusterTraceStore => (String::new(), store_ref.name.clone()),
            StoreKind::TraceStore => (namespace.clone(), store_ref.name.clone()),
        };
        let read = match self.recent(&key, now) {
            Some(read) => read,
            None => {
                let read = self.read(&store_ref, &namespace, pinned).await;
                let mut readings = self.read.lock().expect("no panic while held");
                // Of one that cannot be read all sessions are to say the same: each asks.
                match &read {
                    Ok(read) => _ = readings.insert(key, Reading::new(read.clone(), now)),
                    Err(_) => _ = readings.remove(&key),
                }
                read?
            }
        };
        self.resolved(session, &namespace, store_ref, read)
    }

    /// What was read of a store not long ago; none for whoever is to read it again. Older readings are forgotten.
    fn recent(&self, key: &(String, String), now: Instant) -> Option<Read> {
        let mut read = self.read.lock().expect("no panic while held");
        read.retain(|_, reading| now.saturating_duration_since(reading.at) < READ_TTL);
        let reading = read.get_mut(key)?;
        if now >= reading.again_at {
            reading.again_at = now + READ_TRY;
            return None;
        }
        Some(reading.read.clone())
    }

    async fn read(
        &self,
        store_ref: &StoreRef,
        namespace: &str,
        pinned: Option<&DatasetStatus>,
    ) -> Result<Read, StoreProblem> {
        match store_ref.kind {
            StoreKind::ClusterTraceStore => {
                let store: ClusterTraceStore = self.get(Api::all(self.client.clone()), store_ref, "").await?;
                if pinned.is_none() && !store.spec.allows(namespace) {
                    return Err(StoreProblem::new(
                        reason::NAMESPACE_NOT_ALLOWED,
                        format!(
                            "ClusterTraceStore {} does not list namespace {namespace} in spec.allowedNamespaces",
                            store_ref.name
                        ),
                    ));
                }
                self.read_of(&store, pinned).await
            }
            StoreKind::TraceStore => {
                let api = Api::namespaced(self.client.clone(), namespace);
                let store: TraceStore = self.get(api, store_ref, namespace).await?;
                self.read_of(&store, pinned).await
            }
        }
    }

    fn resolved(
        &self,
        session: &TraceSession,
        namespace: &str,
        store_ref: StoreRef,
        read: Read,
    ) -> Result<ResolvedStore, StoreProblem> {
        let (spec, version, connection) = self.open(read, pinned(session))?;
        let name = session.name_any();
        let uid = session.uid().unwrap_or_default();
        let prefix = SessionPrefix::new(&spec.prefix, namespace, &name, &uid)
            .map_err(|error| StoreProblem::new(reason::STORE_INVALID, error.to_string()))?;
        Ok(ResolvedStore::new(spec, store_ref, namespace, prefix, connection, version, self.probes.clone()))
    }

    fn store_ref(
        &self,
        session: &TraceSession,
        pinned: Option<&DatasetStatus>,
    ) -> Result<StoreRef, StoreProblem> {
        if let Some(dataset) = pinned {
            return Ok(dataset.store_ref.clone());
        }
        if let Some(store_ref) = &session.spec.store_ref {
            return Ok(store_ref.clone());
        }
        match &self.config.default_store {
            Some(name) => Ok(StoreRef { kind: StoreKind::ClusterTraceStore, name: name.clone() }),
            None => Err(StoreProblem::new(
                reason::NO_DEFAULT_STORE,
                "the session names no store and the operator has no default one: set spec.storeRef in a new session",
            )),
        }
    }

    async fn get<K>(&self, api: Api<K>, store_ref: &StoreRef, namespace: &str) -> Result<K, StoreProblem>
    where
        K: StoreObject,
    {
        let place = if namespace.is_empty() { String::new() } else { format!(" in namespace {namespace}") };
        let asked = if is_name(&store_ref.name) { api.get_opt(&store_ref.name).await } else { Ok(None) };
        match asked {
            Ok(Some(store)) => Ok(store),
            Ok(None) => Err(StoreProblem::new(
                reason::STORE_NOT_FOUND,
                format!("there is no {} {}{place}", K::kind(&()), store_ref.name),
            )),
            Err(error) => Err(StoreProblem::new(
                reason::STORE_UNAVAILABLE,
                format!("the API server did not answer for {} {}: {error}", K::kind(&()), store_ref.name),
            )),
        }
    }

    /// Reads what a store object refers to.
    pub(crate) async fn read_of<K: StoreObject>(
        &self,
        store: &K,
        pinned: Option<&DatasetStatus>,
    ) -> Result<Read, StoreProblem> {
        if pinned.is_none() && store.meta().deletion_timestamp.is_some() {
            return Err(StoreProblem::new(
                reason::STORE_DELETED,
                format!("{} {} is being deleted and takes no new session", K::kind(&()), store.name_any()),
            ));
        }
        let restricted = !K::TRUSTED;
        // Nobody's Secret is read for a place that is not allowed.
        self.place(store.s3(), restricted, pinned)?;
        let namespace = store.secret_namespace(&self.config.operator_namespace);
        let (credential, secret) =
            credentials::read(&self.client, &namespace, store.credentials(), K::TRUSTED).await?;
        Ok(Read {
            uid: store.uid().unwrap_or_default(),
            generation: store.meta().generation.unwrap_or_default(),
            s3: store.s3().clone(),
            restricted,
            credential,
            secret,
        })
    }

    /// From what was read of a store to a client, with the place that a started session has pinned.
    pub(crate) fn open(
        &self,
        read: Read,
        pinned: Option<&DatasetStatus>,
    ) -> Result<(S3, StoreVersion, Connection), StoreProblem> {
        let (spec, place) = self.place(&read.s3, read.restricted, pinned)?;
        let connection = self.connect(&spec, read.credential, read.restricted)?;
        let version = StoreVersion { uid: read.uid, generation: read.generation, secret: read.secret, place };
        Ok((spec, version, connection))
    }

    /// Where data go, and if that is not where the store's spec leads now, its name.
    fn place(
        &self,
        s3: &S3,
        restricted: bool,
        pinned: Option<&DatasetStatus>,
    ) -> Result<(S3, String), StoreProblem> {
        let mut spec = s3.clone();
        let mut place = String::new();
        if let Some(dataset) = pinned {
            spec.endpoint = dataset.endpoint.clone();
            spec.bucket = dataset.bucket.clone();
            spec.region = dataset.region.clone();
            spec.prefix = dataset.prefix.clone();
            spec.force_path_style = Some(dataset.force_path_style);
            if (&spec.endpoint, &spec.bucket) != (&s3.endpoint, &s3.bucket) {
                place = format!("{}/{}", spec.endpoint.as_deref().unwrap_or_default(), spec.bucket);
            }
        }
        if restricted {
            self.config.endpoints.admit(spec.endpoint.as_deref(), spec.path_style())?;
        }
        Ok((spec, place))
    }

    fn connect(&self, s3: &S3, credential: Credential, restricted: bool) -> Result<Connection, StoreProblem> {
        let extra_ca = self.config.extra_ca.as_ref().map(ExtraCa::pem);
        let key = ConnectionKey { s3: s3.clone(), credential, restricted, extra_ca };
        let mut clients = self.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, connection)) = clients.iter().find(|(known, _)| *known == key) {
            return Ok(connection.clone());
        }
        let guard = restricted.then(|| self.config.endpoints.guard.clone());
        let connection = endpoint::connect(s3, &key.credential, guard, key.extra_ca.as_deref())?;
        if clients.len() == CLIENTS_MAX {
            clients.remove(0);
        }
        clients.push((key, connection.clone()));
        Ok(connection)
    }
}

/// Where a session that has started writes.
fn pinned(session: &TraceSession) -> Option<&DatasetStatus> {
    session.status.as_ref()?.dataset.as_ref()
}

/// A store that a session may write to.
pub struct ResolvedStore {
    s3: S3,
    store_ref: StoreRef,
    /// Whose work on it is: the session's namespace, and the store. A namespace may make as many TraceStores as it likes.
    owners: [String; 2],
    prefix: SessionPrefix,
    connection: Connection,
    object_store: Arc<dyn ObjectStore>,
    version: StoreVersion,
    probes: Arc<probe::Probes>,
}

impl ResolvedStore {
    pub(crate) fn new(
        s3: S3,
        store_ref: StoreRef,
        namespace: &str,
        prefix: SessionPrefix,
        connection: Connection,
        version: StoreVersion,
        probes: Arc<probe::Probes>,
    ) -> Self {
        let object_store = connection.s3.clone();
        let store = match store_ref.kind {
            StoreKind::ClusterTraceStore => format!("store {}", store_ref.name),
            StoreKind::TraceStore => format!("stores of {namespace}"),
        };
        let owners = [format!("namespace {namespace}"), store];
        Self { s3, store_ref, owners, prefix, connection, object_store, version, probes }
    }

    /// A place for work on this store, of which its namespace and the store itself have a share each; none: a little later.
    pub fn place(&self, places: &Lanes) -> Option<Place> {
        let [namespace, store] = &self.owners;
        places.try_take(&[(namespace, OF_A_NAMESPACE), (store, OF_A_STORE)])
    }

    /// A place for work of which its namespace alone has a share.
    pub fn place_of_namespace(&self, places: &Lanes) -> Option<Place> {
        places.try_take(&[(&self.owners[0], OF_A_NAMESPACE)])
    }

    /// A store without an API server: for tests, and for tools that hold credentials themselves.
    ///
    /// # Errors
    /// When the specification cannot be used, for example when its CA bundle is not PEM.
    pub fn direct(
        s3: S3,
        credential: &Credential,
        prefix: SessionPrefix,
        policy: Option<EndpointPolicy>,
        extra_ca: Option<&ExtraCa>,
    ) -> Result<Self, StoreProblem> {
        if let Some(policy) = &policy {
            policy.admit(s3.endpoint.as_deref(), s3.path_style())?;
        }
        let (guard, extra_ca) = (policy.map(|policy| policy.guard), extra_ca.map(ExtraCa::pem));
        let connection = endpoint::connect(&s3, credential, guard, extra_ca.as_deref())?;
        let store_ref = StoreRef { kind: StoreKind::ClusterTraceStore, name: "direct".to_owned() };
        let version =
            StoreVersion { uid: String::new(), generation: 0, secret: String::new(), place: String::new() };
        Ok(Self::new(s3, store_ref, "", prefix, connection, version, Arc::default()))
    }

    /// Puts, reads, tries to overwrite, and deletes a small object, unless that succeeded less than a minute ago.
    ///
    /// # Errors
    /// The store's answer as a reason, with its code and request id.
    pub async fn probe(&self) -> Result<Probed, StoreProblem> {
        self.probes.recent(&self.version, &self.s3, &self.connection).await
    }

    /// What a probe said of it just now; else, without waiting for it, what was last wrong with it, if anything was.
    ///
    /// # Errors
    /// Nothing new is known: have it [`probe`](Self::probe)d.
    pub fn known(&self) -> Result<Result<Probed, StoreProblem>, Option<StoreProblem>> {
        match self.probes.fresh(&self.version) {
            Some(result) => Ok(result),
            None => Err(self.probes.last(&self.version).and_then(|done| done.result.err())),
        }
    }

    /// What is wrong with it as far as is known, without waiting for it. Where an agent is `troubled` by it, or where it had a
    /// problem, it is tried again meanwhile: the next one who asks knows more.
    pub fn problem(&self, troubled: bool) -> Option<StoreProblem> {
        let known = self.probes.last(&self.version).and_then(|done| done.result.err());
        if troubled || known.is_some() {
            self.renew();
        }
        known
    }

    /// Has it tried beside the caller, unless it was just now: the next one who asks for its [`problem`](Self::problem) knows.
    pub fn renew(&self) {
        self.probes.renew(&self.version, &self.s3, &self.connection);
    }

    /// Reads and writes as the operator. Paths begin at the bucket: use [`prefix`](Self::prefix).
    pub fn object_store(&self) -> &Arc<dyn ObjectStore> {
        &self.object_store
    }

    /// The session's folder.
    pub fn prefix(&self) -> &SessionPrefix {
        &self.prefix
    }

    /// What the session's status says about its data before there is a manifest.
    pub fn dataset(&self) -> DatasetStatus {
        DatasetStatus {
            uri: format!("s3://{}/{}", self.s3.bucket, self.prefix),
            manifest: None,
            schema_version: i32::try_from(dataset::manifest::FORMAT_VERSION).unwrap_or(i32::MAX),
            endpoint: self.s3.endpoint.clone(),
            region: self.s3.region.clone(),
            bucket: self.s3.bucket.clone(),
            prefix: self.s3.prefix.clone(),
            force_path_style: self.s3.path_style(),
            store_ref: self.store_ref.clone(),
        }
    }
}

/// What the two kinds of stores have in common.
pub(crate) trait StoreObject:
    Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static
{
    /// Whether an administrator made it: then its endpoint is not restricted and it may use the operator's identity.
    const TRUSTED: bool;
    /// As a session names it.
    const KIND: StoreKind;
    fn s3(&self) -> &S3;
    fn credentials(&self) -> &crds::Credentials;
    fn status(&self) -> Option<&crds::StoreStatus>;
    fn secret_namespace(&self, operator_namespace: &str) -> String;
    fn api(&self, client: Client) -> Api<Self>;
}

impl StoreObject for ClusterTraceStore {
    const TRUSTED: bool = true;
    const KIND: StoreKind = StoreKind::ClusterTraceStore;

    fn s3(&self) -> &S3 {
        &self.spec.s3
    }
    fn credentials(&self) -> &crds::Credentials {
        &self.spec.credentials
    }
    fn status(&self) -> Option<&crds::StoreStatus> {
        self.status.as_ref()
    }
    fn secret_namespace(&self, operator_namespace: &str) -> String {
        operator_namespace.to_owned()
    }
    fn api(&self, client: Client) -> Api<Self> {
        Api::all(client)
    }
}

impl StoreObject for TraceStore {
    const TRUSTED: bool = false;
    const KIND: StoreKind = StoreKind::TraceStore;

    fn s3(&self) -> &S3 {
        &self.spec.s3
    }
    fn credentials(&self) -> &crds::Credentials {
        &self.spec.credentials
    }
    fn status(&self) -> Option<&crds::StoreStatus> {
        self.status.as_ref()
    }
    fn secret_namespace(&self, _: &str) -> String {
        self.namespace().unwrap_or_default()
    }
    fn api(&self, client: Client) -> Api<Self> {
        Api::namespaced(client, &self.namespace().unwrap_or_default())
    }
}
