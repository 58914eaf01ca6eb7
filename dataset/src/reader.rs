// SPDX-License-Identifier: Apache-2.0

//! Opens a session from any store, reads its tables, and checks that what manifests say is true.
//!
//! In: a store and the session's folder. Out: [`Contents`] (what lies there, whatever its state),
//! rows of a table, and [`Finding`]s. Nothing is believed: JSON has a size limit, a node manifest
//! counts only under its own key, and lengths come from the store's listing.
//!
//! Two depths: [`Contents::compare`] needs the listing alone (the operator does this before it
//! writes a manifest), [`verify`] also reads every object: its SHA-256, its rows, its weight.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::catalogue;
use crate::key::{Key, SessionPrefix};
use crate::ledger::{self, Imbalance, Term};
use crate::manifest::{
    FORMAT_VERSION, Manifest, ManifestNode, NodeManifest, ObjectEntry, SessionFile, Totals,
};

/// The largest JSON file that is read: a node manifest of 100,000 objects has about 25 MB.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// Objects read at the same time.
const READERS: usize = 4;

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
    /// Another file stands where one was to be created.
    #[error("{key} exists already with other content; nothing was overwritten")]
    Exists {
        /// The full path.
        key: String,
    },
}

/// Something that is not as the manifests say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A manifest lists an object that the store does not.
    Missing {
        /// Relative to the session's folder.
        key: String,
    },
    /// Store and manifest disagree about the length.
    Length {
        /// Relative to the session's folder.
        key: String,
        /// In the manifest, bytes.
        listed: u64,
        /// In the store, bytes.
        stored: u64,
    },
    /// The store holds a segment that no manifest lists: not a part of the dataset.
    Unlisted {
        /// Relative to the session's folder.
        key: String,
    },
    /// An object that is none of this format.
    Unknown {
        /// Relative to the session's folder.
        key: String,
    },
    /// A node manifest lists a key that is not its own node's and boot's, or lists one twice.
    Foreign {
        /// The node manifest.
        manifest: String,
        /// The listed key.
        key: String,
    },
    /// The content is not what the manifest says.
    Content {
        /// Relative to the session's folder.
        key: String,
        /// What differs.
        reason: String,
    },
    /// A row of a ledger does not balance.
    Ledger(Imbalance),
    /// The ledger says another number of events or rows exported than the objects hold.
    Exported {
        /// The node manifest.
        manifest: String,
        /// The table.
        table: String,
        /// Events and rows, in the ledger.
        ledger: (u64, u64),
        /// Events and rows, in the listed objects.
        objects: (u64, u64),
    },
    /// The session's manifest does not agree with the node manifests.
    Manifest {
        /// What differs.
        reason: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { key } => write!(f, "{key} is listed but not in the store"),
            Self::Length { key, listed, stored } => {
                write!(f, "{key} has {stored} bytes in the store, {listed} in the manifest")
            }
            Self::Unlisted { key } => write!(f, "{key} is in the store but in no manifest"),
            Self::Unknown { key } => write!(f, "{key} is not a file of this format"),
            Self::Foreign { manifest, key } => {
                write!(f, "{manifest} lists {key}, which it does not own or lists twice")
            }
            Self::Content { key, reason } => write!(f, "{key}: {reason}"),
            Self::Ledger(imbalance) => imbalance.fmt(f),
            Self::Exported { manifest, table, ledger, objects } => write!(
                f,
                "{manifest}: the ledger of {table} says {} events in {} rows exported, its objects hold {} in {}",
                ledger.0, ledger.1, objects.0, objects.1
            ),
            Self::Manifest { reason } => write!(f, "the session's manifest: {reason}"),
        }
    }
}

impl Finding {
    /// Whether data that a manifest promises are wrong or absent. Objects that nobody lists do no harm: an upload
    /// may have reached the store after its session was given up.
    pub fn is_error(&self) -> bool {
        !matches!(self, Self::Unlisted { .. } | Self::Unknown { .. })
    }
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
    /// Every node manifest, under its key.
    pub nodes: BTreeMap<Key, NodeManifest>,
    /// Node manifests that could not be read, and why.
    pub unreadable: Vec<(Key, String)>,
    /// The manifest with the highest number.
    pub manifest: Option<Manifest>,
}

/// Lists a session's folder and reads its JSON files.
///
/// # Errors
/// When the store fails, or `session.json` or the latest manifest is there and unreadable. An
/// unreadable node manifest is not an error but an entry of [`Contents::unreadable`].
pub async fn load(store: &dyn ObjectStore, prefix: &SessionPrefix) -> Result<Contents, ReadError> {
    let mut contents = Contents {
        prefix: prefix.clone(),
        objects: BTreeMap::new(),
        unknown: Vec::new(),
        session: None,
        nodes: BTreeMap::new(),
        unreadable: Vec::new(),
        manifest: None,
    };
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
    let manifests: Vec<_> =
        contents.objects.keys().filter(|key| matches!(key, Key::NodeManifest { .. })).cloned().collect();
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

fn own(key: &Key, manifest: &NodeManifest) -> Result<(), String> {
    check_version(key, manifest.format_version).map_err(|error| error.to_string())?;
    match key {
        Key::NodeManifest { node, boot } if **node == manifest.node && boot.as_str() == manifest.boot => {
            Ok(())
        }
        _ => Err(format!("it says that it is of node {:?}, boot {:?}", manifest.node, manifest.boot)),
    }
}

fn check_version(key: &Key, version: u32) -> Result<(), ReadError> {
    if version <= FORMAT_VERSION {
        return Ok(());
    }
    let reason = format!(
        "its format version is {version}, this program reads up to {FORMAT_VERSION}: use a newer one"
    );
    Err(ReadError::Invalid { key: key.relative(), reason })
}

async fn read_json<T: DeserializeOwned>(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    key: &Key,
    limit: u64,
) -> Result<T, ReadError> {
    let failed = |source| ReadError::Store { what: key.relative(), source };
    let invalid = |reason| ReadError::Invalid { key: key.relative(), reason };
    let got = store.get(&prefix.object(key)).await.map_err(failed)?;
    if got.meta.size > limit {
        return Err(invalid(format!("it has {} bytes, the limit is {limit}", got.meta.size)));
    }
    let bytes = got.bytes().await.map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))
}

impl Contents {
    /// Every object that may be read, by table: those that a node's manifest lists as its own, once each, and once there is
    /// a session manifest only those of the node manifests that it names.
    pub fn tables(&self) -> BTreeMap<String, Vec<ObjectEntry>> {
        let mut tables: BTreeMap<String, Vec<ObjectEntry>> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        let named = |key: &Key| match &self.manifest {
            None => true,
            Some(manifest) => {
                manifest.nodes.iter().flat_map(|node| &node.manifests).any(|one| *one == key.relative())
            }
        };
        for (_, manifest) in self.nodes.iter().filter(|(key, _)| named(key)) {
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

    /// Compares what node manifests list with what the store lists, and checks their ledgers.
    pub fn compare(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut listed = BTreeSet::new();
        for (key, node) in &self.nodes {
            findings.extend(self.compare_node(key, node, &mut listed));
        }
        for (key, reason) in &self.unreadable {
            findings.push(Finding::Content { key: key.relative(), reason: reason.clone() });
        }
        for key in self.objects.keys() {
            if matches!(key, Key::Segment { .. }) && !listed.contains(key) {
                findings.push(Finding::Unlisted { key: key.relative() });
            }
        }
        findings.extend(self.unknown.iter().map(|key| Finding::Unknown { key: key.clone() }));
        findings
    }

    fn compare_node(&self, manifest: &Key, node: &NodeManifest, listed: &mut BTreeSet<Key>) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for object in &node.objects {
            let key = match Key::parse(&object.key) {
                Ok(key @ Key::Segment { .. }) => key,
                _ => {
                    findings
                        .push(Finding::Foreign { manifest: manifest.relative(), key: object.key.clone() });
                    continue;
                }
            };
            let Key::Segment { node: owner, boot, .. } = &key else { continue };
            if **owner != node.node || boot.as_str() != node.boot || !listed.insert(key.clone()) {
                findings.push(Finding::Foreign { manifest: manifest.relative(), key: object.key.clone() });
                continue;
            }
            match self.objects.get(&key) {
                None => findings.push(Finding::Missing { key: object.key.clone() }),
                Some(stored) if *stored != object.bytes => findings.push(Finding::Length {
                    key: object.key.clone(),
                    listed: object.bytes,
                    stored: *stored,
                }),
                Some(_) => {}
            }
            let table = object.key.split_once('/').map_or("", |(table, _)| table);
            let sum = sums.entry(table).or_default();
            *sum = (sum.0.saturating_add(object.weight), sum.1.saturating_add(object.rows));
        }
        findings.extend(ledger::check(&node.ledger).into_iter().map(Finding::Ledger));
        let mut accounts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for row in &node.ledger {
            let account = accounts.entry(&row.table).or_default();
            account.0 = account.0.saturating_add(row.terms.get(Term::Exported));
            account.1 = account.1.saturating_add(row.rows);
        }
        // The bookkeeping tables are not events: no ledger row speaks of them.
        for table in crate::bookkeeping::TABLES {
            sums.remove(table.name);
        }
        let names: BTreeSet<&str> = sums.keys().chain(accounts.keys()).copied().collect();
        for table in names {
            let (ledger, objects) = (
                accounts.get(table).copied().unwrap_or_default(),
                sums.get(table).copied().unwrap_or_default(),
            );
            if ledger != objects {
                let manifest = manifest.relative();
                findings.push(Finding::Exported { manifest, table: table.to_owned(), ledger, objects });
            }
        }
        findings
    }

    /// What the session's next manifest has to say. `expected` names every node that took part, with the reason why
    /// it is not done (empty if it says that it is); a node whose objects are not all there gets the reason from here.
    pub fn manifest(&self, expected: &BTreeMap<String, String>, time: String) -> Manifest {
        let number = self.objects.keys().filter_map(|key| match key {
            Key::Manifest { number } => Some(number + 1),
            _ => None,
        });
        let number = number.max().unwrap_or(1);
        let mut names: BTreeSet<&str> = expected.keys().map(String::as_str).collect();
        names.extend(self.nodes.values().map(|node| node.node.as_str()));
        let nodes = names.into_iter().map(|name| self.manifest_node(name, expected.get(name))).collect();
        Manifest::new(number, time, nodes)
    }

    fn manifest_node(&self, name: &str, reason: Option<&String>) -> ManifestNode {
        let mut node = ManifestNode {
            node: name.to_owned(),
            manifests: Vec::new(),
            totals: Totals::default(),
            reason: reason.cloned().unwrap_or_default(),
        };
        let mut findings = Vec::new();
        for (key, manifest) in self.nodes.iter().filter(|(_, manifest)| manifest.node == name) {
            node.manifests.push(key.relative());
            node.totals.merge(&manifest.totals());
            findings.extend(self.compare_node(key, manifest, &mut BTreeSet::new()));
        }
        if node.reason.is_empty() {
            if let Some((key, reason)) = self
                .unreadable
                .iter()
                .find(|(key, _)| matches!(key, Key::NodeManifest { node, .. } if **node == *name))
            {
                node.reason = format!("{key}: {reason}");
            } else if node.manifests.is_empty() {
                node.reason = "it wrote no node manifest".to_owned();
            } else if let Some(first) = findings.iter().find(|finding| finding.is_error()) {
                node.reason = first.to_string();
            }
        }
        node
    }
}

/// The rows of one object.
///
/// # Errors
/// When the store fails or the content is not Parquet.
pub async fn read_object(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    key: &str,
) -> Result<Vec<RecordBatch>, ReadError> {
    batches(key, fetch(store, prefix, key).await?)
}

/// The rows of a table, object by object, in the order of the manifests.
///
/// # Errors
/// When the store fails or an object is not Parquet.
pub async fn read_table(
    store: &dyn ObjectStore,
    contents: &Contents,
    table: &str,
) -> Result<Vec<RecordBatch>, ReadError> {
    let keys: Vec<String> =
        contents.tables().remove(table).unwrap_or_default().into_iter().map(|object| object.key).collect();
    let rows: Vec<Vec<RecordBatch>> = stream::iter(keys)
        .map(|key| async move { read_object(store, &contents.prefix, &key).await })
        .buffered(READERS)
        .try_collect()
        .await?;
    Ok(rows.into_iter().flatten().collect())
}

async fn fetch(store: &dyn ObjectStore, prefix: &SessionPrefix, key: &str) -> Result<Bytes, ReadError> {
    let parsed = Key::parse(key)
        .map_err(|error| ReadError::Invalid { key: key.to_owned(), reason: error.to_string() })?;
    let failed = |source| ReadError::Store { what: key.to_owned(), source };
    store.get(&prefix.object(&parsed)).await.map_err(failed)?.bytes().await.map_err(failed)
}

fn batches(key: &str, content: Bytes) -> Result<Vec<RecordBatch>, ReadError> {
    let invalid = |reason: String| ReadError::Invalid { key: key.to_owned(), reason };
    ParquetRecordBatchReaderBuilder::try_new(content)
        .and_then(|reader| reader.build())
        .map_err(|error| invalid(error.to_string()))?
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(error.to_string()))
}

/// Reads every object and compares it with its manifest, on top of [`Contents::compare`].
///
/// # Errors
/// When the store fails. What is wrong with the dataset is not an error but a [`Finding`].
pub async fn verify(store: &dyn ObjectStore, contents: &Contents) -> Result<Vec<Finding>, ReadError> {
    let mut findings = contents.compare();
    if contents.session.is_none() {
        findings.push(Finding::Missing { key: Key::Session.relative() });
    }
    match &contents.manifest {
        None => findings.push(Finding::Missing { key: Key::manifest(1).relative() }),
        Some(manifest) => findings.extend(compare_manifest(contents, manifest)),
    }
    let stored = contents.nodes.values().flat_map(|node| &node.objects).filter(|object| {
        Key::parse(&object.key).is_ok_and(|key| contents.objects.get(&key) == Some(&object.bytes))
    });
    let mut read = stream::iter(stored)
        .map(|object| async move { (object, fetch(store, &contents.prefix, &object.key).await) })
        .buffer_unordered(READERS);
    while let Some((object, content)) = read.next().await {
        if let Err(reason) = check_object(object, content?) {
            findings.push(Finding::Content { key: object.key.clone(), reason });
        }
    }
    drop(read);
    for (key, node) in &contents.nodes {
        for (table, rows) in [
            ("ledger", node.ledger.len()),
            ("coverage", node.coverage.len()),
            ("session_nodes", node.incarnations.len()),
        ] {
            let stored: u64 = node
                .objects
                .iter()
                .filter(|o| o.key.split_once('/').is_some_and(|(t, _)| t == table))
                .map(|o| o.rows)
                .sum();
            if stored != rows as u64 {
                let reason = format!("table {table} has {stored} rows, the node manifest {rows}");
                findings.push(Finding::Content { key: key.relative(), reason });
            }
        }
    }
    Ok(findings)
}

fn compare_manifest(contents: &Contents, manifest: &Manifest) -> Vec<Finding> {
    let mut findings = Vec::new();
    let listed: BTreeSet<&str> =
        manifest.nodes.iter().flat_map(|node| &node.manifests).map(String::as_str).collect();
    let present: BTreeSet<String> = contents.nodes.keys().map(Key::relative).collect();
    for key in &listed {
        if !present.contains(*key) {
            findings.push(Finding::Missing { key: (*key).to_owned() });
        }
    }
    let mut totals = Totals::default();
    for (_, node) in contents.nodes.iter().filter(|(key, _)| listed.contains(key.relative().as_str())) {
        totals.merge(&node.totals());
    }
    if totals != manifest.totals {
        findings.push(Finding::Manifest {
            reason: format!("its totals {:?} are not the nodes' {totals:?}", manifest.totals),
        });
    }
    findings
}

fn check_object(object: &ObjectEntry, content: Bytes) -> Result<(), String> {
    let sha256 = hex(&Sha256::digest(&content));
    if sha256 != object.sha256 {
        return Err(format!("its SHA-256 is {sha256}, the manifest says {}", object.sha256));
    }
    let batches = batches(&object.key, content).map_err(|error| error.to_string())?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if rows as u64 != object.rows {
        return Err(format!("it has {rows} rows, the manifest says {}", object.rows));
    }
    let table = object.key.split_once('/').map_or("", |(table, _)| table);
    if let (Some(schema), Some(batch)) = (crate::schema(table), batches.first()) {
        // A newer writer may have added columns; those that are known may not have changed.
        for field in schema.fields() {
            match batch.schema().field_with_name(field.name()) {
                Ok(found) if found.data_type() == field.data_type() => {}
                Ok(found) => return Err(format!("its column {} is {}", field.name(), found.data_type())),
                Err(_) => return Err(format!("it has no column {}", field.name())),
            }
        }
    }
    let weights: i64 = batches
        .iter()
        .filter_map(|batch| batch.column_by_name("weight"))
        .filter_map(|column| column.as_primitive_opt::<Int64Type>())
        .flat_map(|column| column.iter().flatten())
        .sum();
    let counted = catalogue::table(table)
        .is_some_and(|table| table.columns.iter().any(|column| column.name == "weight"));
    if counted && weights as u64 != object.weight {
        return Err(format!("its rows stand for {weights} events, the manifest says {}", object.weight));
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
    let failed = |source| ReadError::Store { what: path.to_string(), source };
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match store.put_opts(path, PutPayload::from_bytes(content.clone()), options).await {
        Ok(_) => Ok(()),
        Err(object_store::Error::AlreadyExists { .. }) => {
            let there = store.get(path).await.map_err(failed)?;
            if there.meta.size == content.len() as u64 && there.bytes().await.map_err(failed)? == content {
                return Ok(());
            }
            Err(ReadError::Exists { key: path.to_string() })
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
