// SPDX-License-Identifier: Apache-2.0

//! Whether what manifests say is true.
//!
//! In: a session's [`Contents`]. Out: [`Finding`]s. Two depths: [`Contents::compare`] needs the listing alone, [`verify`] also
//! reads every object: its SHA-256, its columns, its rows, their node and weight.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_schema::Schema;
use bytes::Bytes;
use futures::{StreamExt, stream};
use object_store::ObjectStore;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest, Sha256};

use crate::finding::{Finding, SHOWN, plain};
use crate::key::Key;
use crate::ledger::Term;
use crate::manifest::{Manifest, NodeManifest, ObjectEntry, Totals};
use crate::reader::{Contents, READERS, ReadError, fetch, is_named};
use crate::schema::{META, SCHEMA_VERSION};
use crate::{catalogue, restated};

/// Where an object that a node manifest lists stands in its store.
pub(crate) enum Listed {
    /// This manifest has it twice.
    Twice,
    /// The store does not list it.
    Missing,
    /// The store lists it with this length.
    Stored(u64),
}

/// Compares what one node manifest lists with what its store does, and checks its ledger.
pub(crate) fn compare_node(
    manifest: &Key,
    node: &NodeManifest,
    mut find: impl FnMut(&Key) -> Listed,
    mut report: impl FnMut(Finding),
) {
    let foreign = |key: &str| Finding::Foreign { manifest: manifest.relative(), key: key.to_owned() };
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for object in &node.objects {
        let key = match Key::parse(&object.key) {
            Ok(key @ Key::Segment { .. }) => key,
            _ => {
                report(foreign(&object.key));
                continue;
            }
        };
        let Key::Segment { node: owner, boot, .. } = &key else { continue };
        if **owner != node.node || boot.as_str() != node.boot {
            report(foreign(&object.key));
            continue;
        }
        match find(&key) {
            Listed::Twice => {
                report(foreign(&object.key));
                continue;
            }
            Listed::Missing => report(Finding::Missing { key: object.key.clone() }),
            Listed::Stored(stored) if stored != object.bytes => {
                report(Finding::Length { key: object.key.clone(), listed: object.bytes, stored });
            }
            Listed::Stored(_) => {}
        }
        let sum = sums.entry(table_of(object)).or_default();
        *sum = (sum.0.saturating_add(object.weight), sum.1.saturating_add(object.rows));
    }
    node.ledger.iter().filter_map(|row| row.check().err()).map(Finding::Ledger).for_each(&mut report);
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
        let (ledger, objects) =
            (accounts.get(table).copied().unwrap_or_default(), sums.get(table).copied().unwrap_or_default());
        if ledger != objects {
            let manifest = manifest.relative();
            report(Finding::Exported { manifest, table: table.to_owned(), ledger, objects });
        }
    }
}

impl Contents {
    /// Whether a node manifest does not count, because another one of its boot does.
    pub fn is_left_over(&self, key: &Key) -> bool {
        matches!(key, Key::NodeManifest { .. })
            && !self.nodes.contains_key(key)
            && self.unreadable.iter().all(|(unreadable, _)| unreadable != key)
    }

    /// Compares what manifests say with each other and with what the store lists, and checks ledgers.
    pub fn compare(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut listed = BTreeSet::new();
        for (key, node) in self.parts() {
            let find = |key: &Key| match (listed.insert(key.clone()), self.objects.get(key)) {
                (false, _) => Listed::Twice,
                (true, None) => Listed::Missing,
                (true, Some(stored)) => Listed::Stored(*stored),
            };
            compare_node(key, node, find, |finding| findings.push(finding));
        }
        // Of a node that returned after the session's manifest was written: until the next one names it, it is no part of the dataset,
        // and nor are its objects.
        let named = self.named();
        for (key, node) in self.nodes.iter().filter(|(key, _)| !is_named(&named, key)) {
            findings.push(Finding::Unlisted { key: key.relative() });
            listed.extend(node.objects.iter().filter_map(|object| Key::parse(&object.key).ok()));
        }
        findings.extend(self.unreadable.iter().map(|(key, reason)| match is_named(&named, key) {
            true => Finding::Content { key: key.relative(), reason: reason.clone() },
            false => Finding::Unlisted { key: key.relative() },
        }));
        let left = self.objects.keys().filter(|key| match key {
            Key::Segment { .. } => !listed.contains(*key),
            _ => self.is_left_over(key),
        });
        findings.extend(left.map(|key| Finding::Unlisted { key: key.relative() }));
        findings.extend(self.unknown.iter().map(|key| Finding::Unknown { key: key.clone() }));
        if let Some(manifest) = &self.manifest {
            compare_manifest(self, manifest, &mut findings);
        }
        findings
    }
}

/// Reads every object and compares it with its manifest, on top of [`Contents::compare`].
///
/// # Errors
/// When the store fails. What is wrong with the dataset is not an error but a [`Finding`].
pub async fn verify(store: &dyn ObjectStore, contents: &Contents) -> Result<Vec<Finding>, ReadError> {
    verify_and_tell(store, contents, &mut |_| {}).await
}

/// How far [`verify_and_tell`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Objects that were read, of those that are there with the length that they should have.
    pub objects: (u64, u64),
    /// Their bytes.
    pub bytes: (u64, u64),
}

/// As [`verify`]; says after each object how far it is.
///
/// # Errors
/// As [`verify`].
pub async fn verify_and_tell(
    store: &dyn ObjectStore,
    contents: &Contents,
    tell: &mut (dyn FnMut(Progress) + Send),
) -> Result<Vec<Finding>, ReadError> {
    let mut findings = contents.compare();
    if contents.session.is_none() {
        findings.push(Finding::Missing { key: Key::Session.relative() });
    }
    if contents.manifest.is_none() {
        findings.push(Finding::Missing { key: Key::manifest(1).relative() });
    }
    // Of each node's small tables of whose rows there are as many as in its manifest: how many objects they have.
    let mut alike: BTreeMap<(&Key, &str), usize> = BTreeMap::new();
    for (key, node) in contents.parts() {
        for table in crate::bookkeeping::TABLES {
            let entries: Vec<_> =
                node.objects.iter().filter(|object| table_of(object) == table.name).collect();
            match restated::count(key, node, table.name, &entries) {
                Some(finding) => findings.push(finding),
                None => _ = alike.insert((key, table.name), entries.len()),
            }
        }
    }
    let all =
        contents.parts().flat_map(|(node, manifest)| manifest.objects.iter().map(move |one| (node, one)));
    let stored = all.filter(|(_, object)| {
        Key::parse(&object.key).is_ok_and(|key| contents.objects.get(&key) == Some(&object.bytes))
    });
    let stored: Vec<(&Key, &ObjectEntry)> = stored.collect();
    let mut progress = Progress::default();
    progress.objects.1 = stored.len() as u64;
    progress.bytes.1 = stored.iter().map(|(_, object)| object.bytes).sum();
    let alike = &alike;
    let mut read = stream::iter(stored)
        .map(|(node, object)| async move {
            let content = match fetch(store, &contents.prefix, &object.key, object.bytes).await {
                Ok(content) => content,
                Err(ReadError::Invalid { reason, .. }) => return Ok((node, object, Err(reason))),
                Err(error) => return Err(error),
            };
            // Each on a thread of its own: a digest takes longer than to read from a disk.
            let entry = object.clone();
            let is_compared = alike.contains_key(&(node, table_of(object)));
            let checked = tokio::task::spawn_blocking(move || {
                check_object(&entry, content.clone())?;
                if is_compared { restated::rows(&entry, content) } else { Ok(Vec::new()) }
            });
            let checked = checked.await.unwrap_or_else(|error| Err(format!("it cannot be checked: {error}")));
            Ok((node, object, checked))
        })
        .buffer_unordered(READERS);
    // Of a node's small tables what was read, and of how many objects.
    let mut small: BTreeMap<(&Key, &str), (Vec<RecordBatch>, usize)> = BTreeMap::new();
    while let Some(checked) = read.next().await {
        let (node, object, checked) = checked?;
        progress.objects.0 += 1;
        progress.bytes.0 += object.bytes;
        tell(progress);
        match checked {
            Ok(rows) => {
                let of_table = small.entry((node, table_of(object))).or_default();
                of_table.0.extend(rows);
                of_table.1 += 1;
            }
            Err(reason) => findings.push(Finding::Content { key: object.key.clone(), reason }),
        }
    }
    drop(read);
    for (&(key, table), &entries) in alike {
        let (rows, objects) = small.remove(&(key, table)).unwrap_or_default();
        // What is missing or damaged is told already.
        if objects != entries {
            continue;
        }
        let (said, manifest) = (restated::said(&contents.nodes[key], table), key.clone());
        let table = table.to_owned();
        // As many rows as a manifest has room for take a second to sort.
        let compare = move || restated::compare(&manifest, &table, said, &rows);
        match tokio::task::spawn_blocking(compare).await {
            Ok(finding) => findings.extend(finding),
            Err(error) => findings.push(Finding::Content {
                key: key.relative(),
                reason: format!("it cannot be compared with its tables: {error}"),
            }),
        }
    }
    Ok(findings)
}

/// Compares the session's manifest with the node manifests that it names: whether they are there and their node's, and come to its
/// totals; and whether its sums and its verdict follow from what it says of its nodes.
fn compare_manifest(contents: &Contents, manifest: &Manifest, findings: &mut Vec<Finding>) {
    let last = contents.objects.keys().rev().find(|key| matches!(key, Key::Manifest { .. }));
    let wrong = |reason: String| Finding::Manifest { reason };
    if let Some(Key::Manifest { number }) = last.filter(|key| **key != Key::manifest(manifest.number)) {
        let said = manifest.number;
        findings.push(wrong(format!("it says that its number is {said}, and is stored as number {number}")));
    }
    let present: BTreeMap<String, &NodeManifest> =
        contents.nodes.iter().map(|(key, node)| (key.relative(), node)).collect();
    let unreadable: BTreeSet<String> = contents.unreadable.iter().map(|(key, _)| key.relative()).collect();
    let mut named = BTreeSet::new();
    for node in &manifest.nodes {
        let (mut totals, mut is_whole) = (Totals::default(), true);
        for key in &node.manifests {
            if !named.insert(key) {
                findings.push(wrong(format!("it names {key} twice")));
            }
            match present.get(key) {
                Some(found) if found.node == node.node => totals.merge(&found.totals()),
                Some(found) => {
                    findings.push(wrong(format!("{key} is of node {}, not of {}", found.node, node.node)));
                    is_whole = false;
                }
                // What it came to nobody knows; why it cannot be read is told with it.
                None => {
                    is_whole = false;
                    if !unreadable.contains(key) {
                        findings.push(Finding::Missing { key: key.clone() });
                    }
                }
            }
        }
        if is_whole && totals != node.totals {
            findings.push(wrong(format!(
                "its totals of node {}, {:?}, are not the node's {totals:?}",
                node.node, node.totals
            )));
        }
    }
    let follows = Manifest::new(manifest.number, manifest.time.clone(), manifest.nodes.clone());
    if manifest.totals != follows.totals {
        findings
            .push(wrong(format!("its totals {:?} are not the nodes' {:?}", manifest.totals, follows.totals)));
    }
    if manifest.verdict != follows.verdict {
        let (said, follows) = (manifest.verdict.as_str(), follows.verdict.as_str());
        findings.push(wrong(format!("it says {said}, and from what it says of its nodes follows {follows}")));
    }
}

/// Checks an object's content against its entry. Of the rows only the columns are decoded that say what they stand for and of
/// which node they are: with this SHA-256 the rest is what the writer made.
///
/// A file of an older schema may lack columns that were added since; one of today's, or of a newer one, has them all.
pub(crate) fn check_object(object: &ObjectEntry, content: Bytes) -> Result<(), String> {
    let schema = crate::schema(table_of(object));
    check_file(object, content, |file| match &schema {
        Some(schema) => check_columns(file, schema, is_of_older_schema(file)),
        None => Ok(()),
    })
}

/// As [`check_object`], of a file that was just written with these columns: it has them all, whatever today's schema is.
pub(crate) fn check_written(object: &ObjectEntry, content: Bytes, schema: &Schema) -> Result<(), String> {
    check_file(object, content, |file| check_columns(file, schema, false))
}

type Opened = ParquetRecordBatchReaderBuilder<Bytes>;

fn check_file(
    object: &ObjectEntry,
    content: Bytes,
    check_columns: impl FnOnce(&Opened) -> Result<(), String>,
) -> Result<(), String> {
    check_digest(object, &content)?;
    let readable = |error: &dyn fmt::Display| format!("it is not readable: {error}");
    let reader = Opened::try_new(content).map_err(|error| readable(&error))?;
    let rows = reader.metadata().file_metadata().num_rows();
    // Before any is decoded: there may be any number of them in a small file.
    if u64::try_from(rows) != Ok(object.rows) {
        return Err(format!("it has {rows} rows, the manifest says {}", object.rows));
    }
    if rows > 0 {
        check_columns(&reader)?;
    }
    // Rows of the small tables are compared with the node manifest, if there are no more than it has.
    let names = if is_weighted(table_of(object)) { &["weight", "node"][..] } else { &[] };
    let needed = ProjectionMask::columns(reader.parquet_schema(), names.iter().copied());
    let owner = owner(object);
    let (mut rows, mut weights) = (0, 0);
    for batch in reader.with_projection(needed).build().map_err(|error| readable(&error))? {
        let batch = batch.map_err(|error| readable(&error))?;
        rows += batch.num_rows() as u64;
        if let Some(other) = foreign(&batch, owner.as_deref()) {
            return Err(format!("it has a row of node {:?}", plain(&other, SHOWN)));
        }
        weights += weight(&batch);
    }
    check_counts(object, table_of(object), rows, weights)
}

/// The node that an object's key names.
fn owner(object: &ObjectEntry) -> Option<Arc<str>> {
    match Key::parse(&object.key) {
        Ok(Key::Segment { node, .. }) => Some(node),
        _ => None,
    }
}

/// A node of these rows that is not `owner`, of whom alone whoever asks for it opens the objects.
fn foreign(rows: &RecordBatch, owner: Option<&str>) -> Option<String> {
    let nodes = rows.column_by_name("node")?.as_any_dictionary_opt()?;
    // What a page's dictionary has beside them, no row has: the writer puts no word there that it does not need.
    let words = nodes.values().as_string_opt::<i32>()?;
    words.iter().flatten().find(|word| Some(*word) != owner).map(str::to_owned)
}

/// Columns that are not in the schema are a newer writer's: what it added is no fault.
fn check_columns(file: &Opened, schema: &Schema, may_lack: bool) -> Result<(), String> {
    for field in schema.fields() {
        match file.schema().field_with_name(field.name()) {
            Ok(found) if found.data_type() == field.data_type() => {}
            Ok(found) => return Err(format!("its column {} is {}", field.name(), found.data_type())),
            Err(_) if may_lack => {}
            Err(_) => return Err(format!("it has no column {}", field.name())),
        }
    }
    Ok(())
}

/// Whether a file says that it was written before a column was last added to any table. One that says nothing is none of an
/// agent's, and gets no credit for its age.
fn is_of_older_schema(file: &Opened) -> bool {
    let name = format!("{META}schema_version");
    let mut pairs = file.metadata().file_metadata().key_value_metadata().into_iter().flatten();
    let version =
        pairs.find(|pair| pair.key == name).and_then(|pair| pair.value.as_ref()?.parse::<u32>().ok());
    version.is_some_and(|version| version < SCHEMA_VERSION)
}

/// The table that an object's key names.
fn table_of(object: &ObjectEntry) -> &str {
    object.key.split_once('/').map_or("", |(table, _)| table)
}

/// Checks an object's content against the checksum of its entry.
pub(crate) fn check_digest(object: &ObjectEntry, content: &[u8]) -> Result<(), String> {
    let sha256 = hex(&Sha256::digest(content));
    if sha256 == object.sha256 {
        return Ok(());
    }
    Err(format!("its SHA-256 is {sha256}, the manifest says {}", object.sha256))
}

/// Checks what was counted in an object's rows, and what they stand for, against its entry.
pub(crate) fn check_counts(object: &ObjectEntry, table: &str, rows: u64, weights: i64) -> Result<(), String> {
    if rows != object.rows {
        return Err(format!("it has {rows} rows, the manifest says {}", object.rows));
    }
    if is_weighted(table) && weights as u64 != object.weight {
        return Err(format!("its rows stand for {weights} events, the manifest says {}", object.weight));
    }
    Ok(())
}

/// Whether rows of a table say how many events they stand for.
fn is_weighted(table: &str) -> bool {
    catalogue::table(table).is_some_and(|table| table.columns.iter().any(|column| column.name == "weight"))
}

/// How many events some rows stand for, if they say so.
pub(crate) fn weight(rows: &RecordBatch) -> i64 {
    let column = rows.column_by_name("weight").and_then(|column| column.as_primitive_opt::<Int64Type>());
    column.into_iter().flat_map(|column| column.iter().flatten()).sum()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
