// SPDX-License-Identifier: Apache-2.0

//! Merges a finished session's small segments into files of good size.
//!
//! In: a store and what lies in a session's folder. Out: the same rows in fewer objects, node manifests of a new generation that list
//! them, and the manifest that names those. Ledger, coverage and verdict stay as they are; a segment keeps its node, boot and table,
//! so nothing of two nodes is merged.
//!
//! | step | a crash after it leaves |
//! | --- | --- |
//! | 1. merged segments are created, each read back and compared: length, SHA-256, rows, weight | objects that nobody lists |
//! | 2. node manifests `<node>_<boot>_<n>.json` are created | the same: no manifest names them |
//! | 3. `manifest-<n>.json` is created: from now on readers see the new files | old objects that nobody names any more |
//! | 4. the folder is listed anew and compared; then old segments go, then the manifests that list them | some of those |
//!
//! Whatever step it ends at, the dataset is what its manifests say, and the same call goes on: what is there already is not written
//! again, for one session, version and size make the same bytes under the same keys, and what is left over is removed.
//!
//! Invariants: nothing is overwritten; nothing is removed before a listing after step 3 agrees with the manifests; a source whose
//! content is not what its manifest says ends the work before that. Number `n` is taken by whoever creates the manifest first: the
//! other one, an operator to whom a lost node returned or a second compaction, has removed nothing and begins anew.
//!
//! Memory: sources and one merged file, some four times [`Options::size`], besides the session's lists.

mod merge;
mod plan;

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStore, ObjectStoreExt};

pub use plan::{Plan, TablePlan, plan};

use crate::key::{Key, SessionPrefix};
use crate::manifest::{Manifest, ManifestNode, NodeManifest, ObjectEntry};
use crate::reader::{self, Contents, MAX_JSON_BYTES, ReadError};

/// Objects removed at the same time.
const REMOVERS: usize = 8;

/// What somebody wants of it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How large a merged file is to be, in bytes. Files of half of it and more stay as they are.
    pub size: u64,
    /// Leave the old objects where they are, for readers that still use them: the next call removes them.
    pub keep_old: bool,
}

/// Why a session is not compacted, or not to its end. Nothing of the dataset is lost in any case.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// It has no manifest.
    #[error("the session has not ended: it has no manifest yet, and its nodes may still write")]
    NotOver,
    /// It is not what its manifests say.
    #[error("{0}; nothing was changed")]
    Damaged(String),
    /// A segment is not what its manifest says.
    #[error("{key} is damaged: {reason}; the dataset is as it was")]
    Source {
        /// Relative to the session's folder.
        key: String,
        /// What differs.
        reason: String,
    },
    /// The store does not give back what it was given.
    #[error("{key} was written and does not read back as it was: {reason}; the dataset is as it was")]
    ReadBack {
        /// Relative to the session's folder.
        key: String,
        /// What differs.
        reason: String,
    },
    /// Something else lies where a new file was to be.
    #[error(
        "an earlier compaction of another size or version did not end, and left {key} with other content"
    )]
    Unfinished {
        /// Relative to the session's folder.
        key: String,
    },
    /// Somebody else wrote the next manifest.
    #[error(
        "manifest-{number}.json was written by somebody else meanwhile: a node returned, or another compaction ended; \
         the dataset is what that one says"
    )]
    Overtaken {
        /// Its number.
        number: u64,
    },
    /// The new manifest is there, and the folder is not as it says.
    #[error("the new manifest is written, but {0}; the old objects were left where they are")]
    NotThere(String),
    /// Rows could not be merged.
    #[error("rows of {table} cannot be merged: {reason}; the dataset is as it was")]
    Merge {
        /// Which rows.
        table: String,
        /// What the encoder said.
        reason: String,
    },
    /// Old objects could not be removed.
    #[error(
        "the dataset is compacted and whole, but {left} old objects are still there, that nothing names: {key} cannot be removed: {source}"
    )]
    Remains {
        /// How many.
        left: usize,
        /// The first of them.
        key: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Segments that were looked at, of [`Plan::segments`].
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were merged of them, read back and right.
    pub files: u64,
    /// Old objects that were removed.
    pub removed: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Segments that were merged, and their bytes.
    pub merged: (u64, u64),
    /// The files that they were merged into, and their bytes.
    pub into: (u64, u64),
    /// The manifest that names them; none where there was nothing to merge.
    pub manifest: Option<u64>,
    /// Old objects that were removed.
    pub removed: u64,
}

/// Does what [`plan`] says. `time` is that of the new manifest, RFC 3339.
///
/// # Errors
/// See [`CompactError`].
pub async fn run(
    store: &dyn ObjectStore,
    contents: &Contents,
    options: Options,
    time: String,
    say: &mut dyn FnMut(Progress),
) -> Result<Done, CompactError> {
    let plan = plan(contents, options.size)?;
    let (mut done, mut progress) = (Done::default(), Progress::default());
    let mut nodes: BTreeMap<Key, NodeManifest> = BTreeMap::new();
    for part in &plan.parts {
        for merged in merge::part(store, &contents.prefix, part, &plan, &mut progress, say).await? {
            done.merged.0 += merged.sources.len() as u64;
            done.merged.1 += merged.sources.iter().map(|source| source.bytes).sum::<u64>();
            done.into.0 += 1;
            done.into.1 += merged.entry.bytes;
            let node = nodes.entry(part.node.clone()).or_insert_with(|| contents.nodes[&part.node].clone());
            replace(&mut node.objects, &merged.sources, merged.entry);
        }
    }
    if !nodes.is_empty() {
        done.manifest = Some(plan.number);
        commit(store, contents, &plan, nodes, time).await?;
    }
    if !options.keep_old {
        let now = reader::load(store, &contents.prefix).await?;
        done.removed = sweep(store, &now, &mut progress, say).await?;
    }
    Ok(done)
}

/// Puts a merged file where the first of its sources was listed.
fn replace(objects: &mut Vec<ObjectEntry>, sources: &[ObjectEntry], merged: ObjectEntry) {
    let gone: BTreeSet<&str> = sources.iter().map(|source| source.key.as_str()).collect();
    let place = objects.iter().position(|object| gone.contains(object.key.as_str()));
    objects.retain(|object| !gone.contains(object.key.as_str()));
    objects.insert(place.unwrap_or(objects.len()).min(objects.len()), merged);
}

/// Steps 2 and 3.
async fn commit(
    store: &dyn ObjectStore,
    contents: &Contents,
    plan: &Plan,
    nodes: BTreeMap<Key, NodeManifest>,
    time: String,
) -> Result<(), CompactError> {
    let before = contents.manifest.as_ref().ok_or(CompactError::NotOver)?;
    for (key, node) in &nodes {
        create(store, &contents.prefix, &key.clone().of_generation(plan.number), node).await?;
    }
    let of_node = |node: &ManifestNode| {
        let mut next = ManifestNode { manifests: Vec::new(), totals: Default::default(), ..node.clone() };
        for text in &node.manifests {
            let key = Key::parse(text).map_err(|error| CompactError::Damaged(error.to_string()))?;
            let (key, manifest) = match nodes.get(&key) {
                Some(merged) => (key.of_generation(plan.number), merged),
                None => {
                    let there = contents.nodes.get(&key);
                    (key, there.ok_or_else(|| CompactError::Damaged(format!("{text} is not there")))?)
                }
            };
            next.totals.merge(&manifest.totals());
            next.manifests.push(key.relative());
        }
        Ok::<_, CompactError>(next)
    };
    let next = before.nodes.iter().map(of_node).collect::<Result<_, _>>()?;
    let manifest = Manifest::new(plan.number, time, next);
    match reader::create_json(store, &contents.prefix, &Key::manifest(plan.number), &manifest).await {
        Ok(()) => Ok(()),
        Err(ReadError::Exists { .. }) => Err(CompactError::Overtaken { number: plan.number }),
        Err(error) => Err(error.into()),
    }
}

/// Creates a file; one that is there with the same content is that of a run that did not end.
async fn create<T: serde::Serialize>(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    key: &Key,
    value: &T,
) -> Result<(), CompactError> {
    match reader::create_json(store, prefix, key, value).await {
        Ok(()) => Ok(()),
        Err(ReadError::Exists { .. }) => Err(CompactError::Unfinished { key: key.relative() }),
        Err(error) => Err(error.into()),
    }
}

/// Step 4: removes what the latest manifest has replaced, and what runs that did not end have left. What is in no manifest and was never
/// merged is not ours to remove.
async fn sweep(
    store: &dyn ObjectStore,
    now: &Contents,
    progress: &mut Progress,
    say: &mut dyn FnMut(Progress),
) -> Result<u64, CompactError> {
    let manifest = now.manifest.as_ref().ok_or(CompactError::NotOver)?;
    if let Some(wrong) = plan::wrong(now) {
        return Err(CompactError::NotThere(wrong));
    }
    let current = plan::current(now);
    let (mut segments, mut manifests) = (BTreeSet::new(), Vec::new());
    for key in plan::replaced(now, manifest.number) {
        // What it lists goes first: while it is there, so may be what it lists, and the next run finds it by it.
        let listed = match reader::read_json::<NodeManifest>(store, &now.prefix, &key, MAX_JSON_BYTES).await {
            Ok(node) if reader::own(&key, &node).is_ok() => node.objects,
            Ok(_) | Err(ReadError::Invalid { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let own = listed.iter().filter_map(|object| Key::parse(&object.key).ok());
        let own = own.filter(|segment| segment.is_of_boot_of(&key) && !current.contains(segment));
        segments.extend(own.filter(|segment| now.objects.contains_key(segment)));
        manifests.push(key);
    }
    segments.extend(plan::unnamed(now, &current, |generation| generation <= manifest.number));
    remove(store, &now.prefix, segments.into_iter().collect(), progress, say).await?;
    remove(store, &now.prefix, manifests, progress, say).await?;
    Ok(progress.removed)
}

/// Removes what a run of another size or version has left that did not end, so that a new one can begin. Nobody else may be
/// compacting the session.
///
/// # Errors
/// When the store fails.
pub async fn forget_unfinished(store: &dyn ObjectStore, contents: &Contents) -> Result<u64, CompactError> {
    let number = contents.manifest.as_ref().ok_or(CompactError::NotOver)?.number;
    let current = plan::current(contents);
    let manifests = contents.objects.keys().filter(|key| contents.is_left_over(key));
    let manifests = manifests.filter(|key| key.generation() > number).cloned();
    let segments = plan::unnamed(contents, &current, |generation| generation > number);
    let mut progress = Progress::default();
    remove(store, &contents.prefix, manifests.chain(segments).collect(), &mut progress, &mut |_| {}).await?;
    Ok(progress.removed)
}

async fn remove(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    keys: Vec<Key>,
    progress: &mut Progress,
    say: &mut dyn FnMut(Progress),
) -> Result<(), CompactError> {
    let all = keys.len();
    let mut removed = stream::iter(keys)
        .map(|key| async move {
            match store.delete(&prefix.object(&key)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(source) => Err((key.relative(), source)),
            }
        })
        .buffer_unordered(REMOVERS);
    let mut gone = 0;
    loop {
        match removed.try_next().await {
            Ok(None) => return Ok(()),
            Ok(Some(())) => {
                gone += 1;
                progress.removed += 1;
                say(*progress);
            }
            Err((key, source)) => return Err(CompactError::Remains { left: all - gone, key, source }),
        }
    }
}
