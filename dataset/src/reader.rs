// SPDX-License-Identifier: Apache-2.0

//! Opens a session from any store, reads its tables, and creates its objects.
//!
//! In: a store and the session's folder. Out: [`Contents`] (what lies there, whatever its state) and
//! rows of a table. Nothing is believed: JSON has a size limit, a node manifest
//! counts only under its own key, and lengths come from the store's listing. Whether they are true is for [`check`](crate::check).
//!
//! Of a boot that was compacted there may be several node manifests for a while; [`Named`] says which one counts. The others are not
//! read, and a listing that changes while it is followed is begun again.
//!
//! A session's whole list is held; who must not grow with what lies in a store uses [`closing`](crate::closing).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use arrow_array::RecordBatch;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{GetResultPayload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::de::DeserializeOwned;

use crate::finding::SHOWN;
pub use crate::finding::{Finding, plain};
use crate::key::{Boot, Key, SessionPrefix};
use crate::manifest::{FORMAT_VERSION, Manifest, NodeManifest, ObjectEntry, SessionFile};

/// The largest JSON file that is read: a node manifest of 100,000 objects has about 25 MB.
pub(crate) const MAX_JSON_BYTES: u64 = 64 << 20;
/// Memory that is taken for an object before there is anything of it.
const FIRST_BYTES: usize = 8 << 20;
/// Objects read at the same time.
pub(crate) const READERS: usize = 4;
/// A session is listed at most so often: whoever compacts it removes what was just listed.
const LISTINGS: u32 = 3;

/// Why a session cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store failed.
    #[error("cannot read {what} from the store: {source}")]
    Store {
        /// What was being read.
        what: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// The store could not be written to.
    #[error("cannot write {what} to the store: {source}")]
    Write {
        /// What was being written.
        what: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// The disk that the store is on has no room left.
    #[error("no room is left for {what}")]
    Full {
        /// What was being written.
        what: String,
    },
    /// A file is not what its key says.
    #[error("{key} is not readable: {reason}")]
    Invalid {
        /// Relative to the session's folder.
        key: String,
        /// Why not.
        reason: String,
    },
    /// There is no session in this folder.
    #[error("there is no dataset in {prefix:?}: it has no {missing}")]
    NotADataset {
        /// The folder.
        prefix: String,
        /// The key that should be there.
        missing: String,
    },
    /// There is more of it than may be held in memory.
    #[error("{what}: it is more than the {limit} bytes of memory that there are for it")]
    TooLarge {
        /// What there is too much of.
        what: String,
        /// What it may take.
        limit: u64,
    },
    /// Another file stands where one was to be created.
    #[error("{key} exists already with other content; nothing was overwritten")]
    Exists {
        /// The full path.
        key: String,
    },
}

/// Everything that lies in one session's folder.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The folder.
    pub prefix: SessionPrefix,
    /// Keys and lengths of all objects of this format, as the store lists them.
    pub objects: BTreeMap<Key, u64>,
    /// Keys that are none of this format, relative to the folder.
    pub unknown: Vec<String>,
    /// `session.json`, if there.
    pub session: Option<SessionFile>,
    /// Every node manifest that counts ([`Named`]), under its key.
    pub nodes: BTreeMap<Key, NodeManifest>,
    /// Node manifests that could not be read, and why.
    pub unreadable: Vec<(Key, String)>,
    /// The manifest with the highest number.
    pub manifest: Option<Manifest>,
}

/// Which node manifests count: those that the session's manifest names, and of boots that it does not name the agent's own.
///
/// Whoever compacts a session writes node manifests of a new generation first, then the manifest that names them, and removes the old
/// ones last. Until and after that moment what is not named does not exist.
#[derive(Debug, Default)]
pub struct Named {
    keys: BTreeSet<Key>,
    boots: BTreeSet<(Arc<str>, Boot)>,
}

impl Named {
    /// Of the session's latest manifest, if there is one.
    pub fn by(manifest: Option<&Manifest>) -> Self {
        let mut named = Self::default();
        let texts =
            manifest.into_iter().flat_map(|manifest| &manifest.nodes).flat_map(|node| &node.manifests);
        for key in texts.filter_map(|text| Key::parse(text).ok()) {
            if let Key::NodeManifest { node, boot, .. } = &key {
                named.boots.insert((node.clone(), boot.clone()));
                named.keys.insert(key);
            }
        }
        named
    }

    /// Whether this node manifest counts.
    pub fn counts(&self, key: &Key) -> bool {
        let Key::NodeManifest { node, boot, generation } = key else { return false };
        self.keys.contains(key) || (*generation == 0 && !self.boots.contains(&(node.clone(), boot.clone())))
    }
}

/// Lists a session's folder and reads its JSON files.
///
/// # Errors
/// When the store fails, or `session.json` or the latest manifest is there and unreadable. An
/// unreadable node manifest is not an error but an entry of [`Contents::unreadable`].
pub async fn load(store: &dyn ObjectStore, prefix: &SessionPrefix) -> Result<Contents, ReadError> {
    let mut listed = 1;
    loop {
        match load_once(store, prefix).await {
            Err(ReadError::Store { source: object_store::Error::NotFound { .. }, .. })
                if listed < LISTINGS =>
            {
                listed += 1;
            }
            done => return done,
        }
    }
}

async fn load_once(store: &dyn ObjectStore, prefix: &SessionPrefix) -> Result<Contents, ReadError> {
    let mut contents = Contents::empty(prefix.clone());
    let mut listing = store.list(Some(prefix.path()));
    while let Some(object) = listing.next().await {
        let object =
            object.map_err(|source| ReadError::Store { what: format!("the list of {prefix}"), source })?;
        let Some(relative) = prefix.strip(&object.location) else { continue };
        match Key::parse(relative) {
            Ok(key) => _ = contents.objects.insert(key, object.size),
            Err(_) => contents.unknown.push(relative.to_owned()),
        }
    }
    drop(listing);
    if contents.objects.contains_key(&Key::Session) {
        let session: SessionFile = read_json(store, prefix, &Key::Session, MAX_JSON_BYTES).await?;
        check_version(&Key::Session, session.format_version)?;
        contents.session = Some(session);
    }
    let latest = contents.objects.keys().filter(|key| matches!(key, Key::Manifest { .. })).max().cloned();
    if let Some(key) = latest {
        let manifest: Manifest = read_json(store, prefix, &key, MAX_JSON_BYTES).await?;
        check_version(&key, manifest.format_version)?;
        contents.manifest = Some(manifest);
    }
    let named = Named::by(contents.manifest.as_ref());
    let manifests: Vec<_> = contents.objects.keys().filter(|key| named.counts(key)).cloned().collect();
    let mut read = stream::iter(manifests)
        .map(|key| async move { (read_json::<NodeManifest>(store, prefix, &key, MAX_JSON_BYTES).await, key) })
        .buffer_unordered(READERS);
    while let Some((result, key)) = read.next().await {
        match result {
            Ok(manifest) => match own(&key, &manifest) {
                Ok(()) => _ = contents.nodes.insert(key, manifest),
                Err(reason) => contents.unreadable.push((key, reason)),
            },
            Err(ReadError::Invalid { reason, .. }) => contents.unreadable.push((key, reason)),
            Err(error) => return Err(error),
        }
    }
    drop(read);
    contents.unreadable.sort();
    Ok(contents)
}

/// Whether a node manifest is of the node and boot that its key names.
pub(crate) fn own(key: &Key, manifest: &NodeManifest) -> Result<(), String> {
    check_version(key, manifest.format_version).map_err(|error| error.to_string())?;
    match key {
        Key::NodeManifest { node, boot, .. } if **node == manifest.node && boot.as_str() == manifest.boot => {
            Ok(())
        }
        _ => {
            let (node, boot) = (plain(&manifest.node, SHOWN), plain(&manifest.boot, SHOWN));
            Err(format!("it says that it is of node {node:?}, boot {boot:?}"))
        }
    }
}

pub(crate) fn check_version(key: &Key, version: u32) -> Result<(), ReadError> {
    if version <= FORMAT_VERSION {
        return Ok(());
    }
    let reason = format!(
        "its format version is {version}, this program reads up to {FORMAT_VERSION}: use a newer one"
    );
    Err(ReadError::Invalid { key: key.relative(), reason })
}

/// Reads a JSON file of a session.
///
/// # Errors
/// When the store fails, or the file is longer than `limit` or not what its key says.
pub async fn read_json<T: DeserializeOwned>(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    key: &Key,
    limit: u64,
) -> Result<T, ReadError> {
    let bytes = read_limited(store, &prefix.object(key), &key.relative(), limit).await?;
    let invalid = |error: serde_json::Error| ReadError::Invalid {
        key: key.relative(),
        // It may hold what the file holds.
        reason: plain(&error.to_string(), SHOWN),
    };
    serde_json::from_slice(&bytes).map_err(invalid)
}

/// The content of an object, of which no more than `limit` is ever held, whatever length the store says that it has.
async fn read_limited(
    store: &dyn ObjectStore,
    path: &Path,
    what: &str,
    limit: u64,
) -> Result<Vec<u8>, ReadError> {
    let failed = |source| ReadError::Store { what: what.to_owned(), source };
    let invalid = |reason| ReadError::Invalid { key: what.to_owned(), reason };
    let got = store.get(path).await.map_err(failed)?;
    if got.meta.size > limit {
        return Err(invalid(format!("it has {} bytes, the limit is {limit}", got.meta.size)));
    }
    // The length is the store's word.
    let mut content = Vec::with_capacity(usize::try_from(got.meta.size).unwrap_or_default().min(FIRST_BYTES));
    let too_long = || invalid(format!("it goes on after {limit} bytes, which is the limit"));
    match got.payload {
        // In one go: as a stream it would come in some KiB, each from another thread.
        GetResultPayload::File(file, _) => {
            let read = move || {
                // A file's length is the disk's word: room for it, not for twice as much.
                let bytes = file.metadata()?.len().min(limit);
                content.reserve_exact(usize::try_from(bytes).unwrap_or_default());
                file.take(limit.saturating_add(1)).read_to_end(&mut content).map(|_| content)
            };
            let read = tokio::task::spawn_blocking(read).await.map_err(std::io::Error::from).flatten();
            content = read.map_err(|error| {
                failed(object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(error) })
            })?;
            if content.len() as u64 > limit {
                return Err(too_long());
            }
        }
        GetResultPayload::Stream(mut chunks) => {
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(failed)?;
                if (content.len() + chunk.len()) as u64 > limit {
                    return Err(too_long());
                }
                content.extend_from_slice(&chunk);
            }
        }
    }
    Ok(content)
}

/// Whether a node manifest is of the dataset, by what [`Contents::named`] says.
pub(crate) fn is_named(named: &Option<BTreeSet<&str>>, key: &Key) -> bool {
    named.as_ref().is_none_or(|named| named.contains(key.relative().as_str()))
}

impl Contents {
    /// Of a folder in which nothing lies.
    pub fn empty(prefix: SessionPrefix) -> Self {
        Self {
            prefix,
            objects: BTreeMap::new(),
            unknown: Vec::new(),
            session: None,
            nodes: BTreeMap::new(),
            unreadable: Vec::new(),
            manifest: None,
        }
    }

    /// Node manifests that make up the dataset: those that the session's manifest names, and while there is none all of them.
    pub fn parts(&self) -> impl Iterator<Item = (&Key, &NodeManifest)> {
        let named = self.named();
        self.nodes.iter().filter(move |(key, _)| is_named(&named, key))
    }

    /// Those of the dataset that cannot be read, and why.
    pub fn unreadable_parts(&self) -> impl Iterator<Item = &(Key, String)> {
        let named = self.named();
        self.unreadable.iter().filter(move |(key, _)| is_named(&named, key))
    }

    /// What the session's manifest names, if there is one.
    pub(crate) fn named(&self) -> Option<BTreeSet<&str>> {
        let nodes = self.manifest.as_ref().map(|manifest| &manifest.nodes);
        nodes.map(|nodes| nodes.iter().flat_map(|node| &node.manifests).map(String::as_str).collect())
    }

    /// Every object that may be read, by table: those that a node manifest of the dataset lists as its own, once each.
    pub fn tables(&self) -> BTreeMap<String, Vec<ObjectEntry>> {
        let mut tables: BTreeMap<String, Vec<ObjectEntry>> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for (_, manifest) in self.parts() {
            for object in &manifest.objects {
                let Ok(key) = Key::parse(&object.key) else { continue };
                let Key::Segment { table, node, boot, .. } = &key else { continue };
                if **node == manifest.node && boot.as_str() == manifest.boot && taken.insert(key.clone()) {
                    tables.entry(table.to_string()).or_default().push(object.clone());
                }
            }
        }
        tables
    }
}

/// The rows of one object, or the first of them, of which no more is read than its manifest promises.
///
/// # Errors
/// When the store fails, or the content is longer or not Parquet.
pub async fn read_object(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    object: &ObjectEntry,
    first: Option<usize>,
) -> Result<Vec<RecordBatch>, ReadError> {
    batches(&object.key, fetch(store, prefix, &object.key, object.bytes).await?, first)
}

/// The rows of a table, object by object, in the order of the manifests.
///
/// # Errors
/// When the store fails, or an object is longer than its manifest says or not Parquet.
pub async fn read_table(
    store: &dyn ObjectStore,
    contents: &Contents,
    table: &str,
) -> Result<Vec<RecordBatch>, ReadError> {
    let objects = contents.tables().remove(table).unwrap_or_default();
    let rows: Vec<Vec<RecordBatch>> = stream::iter(objects)
        .map(|object| async move { read_object(store, &contents.prefix, &object, None).await })
        .buffered(READERS)
        .try_collect()
        .await?;
    Ok(rows.into_iter().flatten().collect())
}

pub(crate) async fn fetch(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    key: &str,
    limit: u64,
) -> Result<Bytes, ReadError> {
    let parsed = Key::parse(key)
        .map_err(|error| ReadError::Invalid { key: key.to_owned(), reason: error.to_string() })?;
    read_limited(store, &prefix.object(&parsed), key, limit).await.map(Bytes::from)
}

fn batches(key: &str, content: Bytes, first: Option<usize>) -> Result<Vec<RecordBatch>, ReadError> {
    let invalid = |reason: String| ReadError::Invalid { key: key.to_owned(), reason };
    ParquetRecordBatchReaderBuilder::try_new(content)
        .and_then(|reader| match first {
            Some(first) => reader.with_limit(first).build(),
            None => reader.build(),
        })
        .map_err(|error| invalid(error.to_string()))?
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(error.to_string()))
}

/// Creates a JSON file of a session, never overwriting another one. A file that is already there with the same content
/// is our own earlier success.
///
/// # Errors
/// [`ReadError::Exists`] when the key holds something else, [`ReadError::Full`] when a disk is, the others when the store fails.
pub async fn create_json<T: serde::Serialize>(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    key: &Key,
    value: &T,
) -> Result<(), ReadError> {
    let json = serde_json::to_vec_pretty(value)
        .map_err(|error| ReadError::Invalid { key: key.relative(), reason: error.to_string() })?;
    create(store, &prefix.object(key), json.into()).await
}

/// Creates an object, never overwriting another one; see [`create_json`].
///
/// # Errors
/// As [`create_json`].
pub async fn create(store: &dyn ObjectStore, path: &Path, content: Bytes) -> Result<(), ReadError> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match store.put_opts(path, PutPayload::from_bytes(content.clone()), options).await {
        Ok(_) => Ok(()),
        Err(object_store::Error::AlreadyExists { .. }) => {
            match read_limited(store, path, path.as_ref(), content.len() as u64).await {
                Ok(there) if there == content => Ok(()),
                // Longer, or of another content.
                Ok(_) | Err(ReadError::Invalid { .. }) => Err(ReadError::Exists { key: path.to_string() }),
                Err(error) => Err(error),
            }
        }
        Err(source) if is_full(&source) => Err(ReadError::Full { what: path.to_string() }),
        Err(source) => Err(ReadError::Write { what: path.to_string(), source }),
    }
}

/// Whether what is behind an error is that a disk, or what somebody may use of it, is full.
pub fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(kind, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        source = error.source();
    }
    false
}

/// Opens a dataset for reading: like [`load`], and both `session.json` and a manifest have to be there.
///
/// # Errors
/// As [`load`], and [`ReadError::NotADataset`].
pub async fn open(store: &Arc<dyn ObjectStore>, prefix: &SessionPrefix) -> Result<Contents, ReadError> {
    let contents = load(store.as_ref(), prefix).await?;
    let missing = |key: Key| ReadError::NotADataset { prefix: prefix.to_string(), missing: key.relative() };
    if contents.session.is_none() {
        return Err(missing(Key::Session));
    }
    if contents.manifest.is_none() {
        return Err(missing(Key::manifest(1)));
    }
    Ok(contents)
}
