// SPDX-License-Identifier: Apache-2.0

//! What a session's last file has to say, found out in memory that what lies in the store does not decide.
//!
//! In: a store, the session's folder, and the nodes that took part, as whoever wrote the session knows them. Out: a [`Closing`]:
//! the next manifest, or the one that says the same already, and what is not as the nodes say, counted. Loses: nothing; objects
//! of nodes that took no part are counted, never read.
//!
//! A store may be its tenant's to fill. Invariant: beyond one page of the listing no more than [`Effort::memory`] is held,
//! whatever the folder holds and however long the store says that an object is. A node manifest is dropped when it has been
//! compared. What needs more is [`ReadError::TooLarge`], or with the greatest effort the reason why a node is not complete.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::{StreamExt, stream};
use object_store::ObjectStore;

use crate::check::{Listed, compare_node};
use crate::key::{Boot, INTERNAL, Key, SessionPrefix};
use crate::manifest::{Manifest, ManifestNode, NodeManifest, Totals};
use crate::reader::{Finding, Named, READERS, ReadError, check_version, own, plain, read_json};

/// A manifest takes at most so many times its length: its text once; rows of a ledger of empty words, which take 2.6 times
/// the text that they are made of, in a vector that has grown to twice what it needs; and the keys that were compared.
const TIMES: u64 = 8;
/// A listed object: its sequence and length, in a vector that has grown to twice what it needs.
const OBJECT: u64 = 32;
/// The first object of a table, node and boot, or a node manifest: names and entries of maps.
const GROUP: u64 = 512;
/// What is kept of findings, to be said; the others are counted.
const SAID: usize = 20;
/// What is said of one.
const SAID_LENGTH: usize = 400;

/// How much may be held for one session. Few sessions are large, and few may be at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Some 130,000 objects, and node manifests of 6,000.
    Ordinary,
    /// Some 1,500,000 objects, and node manifests of 75,000.
    Large,
}

impl Effort {
    /// In bytes.
    pub const fn memory(self) -> u64 {
        match self {
            Self::Ordinary => 16 << 20,
            Self::Large => 192 << 20,
        }
    }

    /// The part of it for what the store lists.
    const fn listing(self) -> u64 {
        self.memory() / 4
    }

    /// The longest manifest that is read.
    pub const fn manifest(self) -> u64 {
        (self.memory() - self.listing()) / TIMES
    }
}

/// How a session's folder is found at its end.
#[derive(Debug)]
pub struct Closing {
    /// What there is to be said.
    pub manifest: Manifest,
    /// Whether that is not in the store yet.
    pub is_new: bool,
    /// What is not as the nodes say, the first of it in words.
    pub findings: Vec<String>,
    /// All of it.
    pub found: u64,
    /// Objects that no manifest lists, or that are not of this format, or of nodes that took no part.
    pub strangers: u64,
}

/// Lists the folder, compares it with what the nodes of `nodes` say in their manifests, and sums up. A node's value is why it is
/// not complete, empty if it says that it is; none where a node has nothing to say, which is in the manifest only if it has.
///
/// # Errors
/// When the store fails, the latest manifest is there and unreadable, or there is more of something than may be held.
pub async fn close(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    nodes: &BTreeMap<String, Option<String>>,
    time: String,
    effort: Effort,
) -> Result<Closing, ReadError> {
    let mut listing = Listing::of(store, prefix, nodes, effort).await?;
    // Somebody compacts the session, or did so.
    if listing.manifests.keys().any(|key| key.generation() > 0) {
        let named = Named::by(read_last(store, prefix, listing.number, effort).await?.as_ref());
        let before = listing.manifests.len();
        listing.manifests.retain(|key, _| named.counts(key));
        listing.strangers += (before - listing.manifests.len()) as u64;
    }
    let (mut findings, mut found, mut listed) = (Vec::new(), 0, 0);
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    let read = |key: Key, bytes: u64| async move {
        let manifest = match bytes {
            bytes if bytes <= effort.manifest() => {
                read_json::<NodeManifest>(store, prefix, &key, bytes).await
            }
            bytes => Err(large(&key, bytes, effort)),
        };
        (key, manifest)
    };
    // Those that fit side by side are read so, the others one at a time.
    let fits = |bytes: u64| bytes <= effort.manifest() / READERS as u64;
    let (small, big): (Vec<_>, Vec<_>) = listing
        .manifests
        .iter()
        .map(|(key, bytes)| (key.clone(), *bytes))
        .partition(|(_, bytes)| fits(*bytes));
    for (several, at_once) in [(small, READERS), (big, 1)] {
        let mut manifests =
            stream::iter(several).map(|(key, bytes)| read(key, bytes)).buffer_unordered(at_once);
        while let Some((key, manifest)) = manifests.next().await {
            let Key::NodeManifest { node: name, .. } = &key else { continue };
            let Some((name, _)) = nodes.get_key_value(&**name) else { continue };
            let sum = sums.entry(name).or_default();
            let mut first = None;
            let mut report = |finding: Finding| {
                if finding.is_error() && first.is_none() {
                    first = Some(finding.to_string());
                }
                found += 1;
                if findings.len() < SAID {
                    findings.push(plain(&finding.to_string(), SAID_LENGTH));
                }
            };
            let manifest = match manifest {
                Ok(manifest) => own(&key, &manifest).map(|()| manifest),
                Err(ReadError::Invalid { reason, .. }) => Err(reason),
                Err(error @ ReadError::TooLarge { .. }) if effort == Effort::Large => Err(error.to_string()),
                Err(error) => return Err(error),
            };
            match manifest {
                Ok(manifest) => {
                    let find = listing.finder(&mut listed);
                    compare_node(&key, &manifest, find, report);
                    sum.manifests.push(key.relative());
                    sum.totals.merge(&manifest.totals());
                }
                Err(reason) => {
                    report(Finding::Content { key: key.relative(), reason: reason.clone() });
                    sum.unreadable.get_or_insert(format!("{key}: {reason}"));
                }
            }
            sum.wrong = sum.wrong.take().or(first);
        }
    }
    let said = nodes.iter().filter_map(|(name, reason)| {
        let sum = sums.remove(name.as_str());
        if sum.is_none() && reason.is_none() {
            return None;
        }
        Some(sum.unwrap_or_default().node(name, reason.clone().unwrap_or_default()))
    });
    let said = said.collect();
    let number = listing.number.map_or(1, |(number, _)| number.saturating_add(1));
    let manifest = Manifest::new(number, time, said);
    let strangers = listing.strangers + (listing.objects - listed);
    let number = listing.number;
    drop(listing);
    Ok(match read_last(store, prefix, number, effort).await? {
        Some(last) if last.nodes == manifest.nodes && last.verdict == manifest.verdict => {
            Closing { manifest: last, is_new: false, findings, found, strangers }
        }
        _ => Closing { manifest, is_new: true, findings, found, strangers },
    })
}

/// The manifest with the highest number, if there is one.
///
/// # Errors
/// When the store fails, or it cannot be read.
pub async fn last_manifest(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    effort: Effort,
) -> Result<Option<Manifest>, ReadError> {
    let internal = prefix.path().clone().join(INTERNAL);
    let mut listing = store.list(Some(&internal));
    let mut latest = None;
    while let Some(object) = listing.next().await {
        let object =
            object.map_err(|source| ReadError::Store { what: format!("the list of {internal}"), source })?;
        if let Some(Ok(Key::Manifest { number })) = prefix.strip(&object.location).map(Key::parse) {
            latest = latest.max(Some((number, object.size)));
        }
    }
    drop(listing);
    read_last(store, prefix, latest, effort).await
}

async fn read_last(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    latest: Option<(u64, u64)>,
    effort: Effort,
) -> Result<Option<Manifest>, ReadError> {
    let Some((number, bytes)) = latest else { return Ok(None) };
    let key = Key::manifest(number);
    if bytes > effort.manifest() {
        return Err(large(&key, bytes, effort));
    }
    let manifest: Manifest = read_json(store, prefix, &key, bytes).await?;
    check_version(&key, manifest.format_version)?;
    Ok(Some(manifest))
}

fn large(key: &Key, bytes: u64, effort: Effort) -> ReadError {
    ReadError::TooLarge { what: format!("{key} has {bytes} bytes"), limit: effort.manifest() }
}

/// What one node's manifests come to.
#[derive(Default)]
struct Sum {
    manifests: Vec<String>,
    totals: Totals,
    unreadable: Option<String>,
    wrong: Option<String>,
}

impl Sum {
    fn node(mut self, name: &str, reason: String) -> ManifestNode {
        self.manifests.sort();
        let mut node =
            ManifestNode { node: name.to_owned(), manifests: self.manifests, totals: self.totals, reason };
        if node.reason.is_empty() {
            let nothing = node.manifests.is_empty().then(|| "it wrote no node manifest".to_owned());
            node.reason = self.unreadable.or(nothing).or(self.wrong).unwrap_or_default();
        }
        node
    }
}

/// A table of one node's boot, and a generation.
type Group = (Arc<str>, Arc<str>, Boot, u64);

/// What the store lists of the nodes that took part.
struct Listing {
    /// Sequence and length of every object, in the order of sequences.
    groups: HashMap<Group, Vec<(u64, u64)>>,
    objects: u64,
    manifests: BTreeMap<Key, u64>,
    /// The highest of the session's manifests and its length.
    number: Option<(u64, u64)>,
    strangers: u64,
}

impl Listing {
    async fn of(
        store: &dyn ObjectStore,
        prefix: &SessionPrefix,
        nodes: &BTreeMap<String, Option<String>>,
        effort: Effort,
    ) -> Result<Self, ReadError> {
        let mut all = Self {
            groups: HashMap::new(),
            objects: 0,
            manifests: BTreeMap::new(),
            number: None,
            strangers: 0,
        };
        let mut held = 0;
        let mut listing = store.list(Some(prefix.path()));
        while let Some(object) = listing.next().await {
            let object = object
                .map_err(|source| ReadError::Store { what: format!("the list of {prefix}"), source })?;
            let Some(relative) = prefix.strip(&object.location) else { continue };
            match Key::parse(relative) {
                Ok(Key::Session) => {}
                Ok(Key::Manifest { number }) => all.number = all.number.max(Some((number, object.size))),
                Ok(key @ Key::NodeManifest { .. }) if takes_part(&key, nodes) => {
                    held += GROUP;
                    all.manifests.insert(key, object.size);
                }
                Ok(key @ Key::Segment { .. }) if takes_part(&key, nodes) => {
                    let Key::Segment { table, node, boot, generation, sequence } = key else { continue };
                    let group = all.groups.entry((table, node, boot, generation)).or_insert_with(|| {
                        held += GROUP;
                        Vec::new()
                    });
                    group.push((sequence, object.size));
                    held += OBJECT;
                    all.objects += 1;
                }
                Ok(_) | Err(_) => all.strangers += 1,
            }
            if held > effort.listing() {
                let what = format!("the list of {prefix} has more than {} objects", all.objects);
                return Err(ReadError::TooLarge { what, limit: effort.listing() });
            }
        }
        drop(listing);
        // Stores list in the order of names, where 1000000 comes before 999999.
        all.groups.values_mut().for_each(|group| group.sort_unstable());
        Ok(all)
    }

    /// Looks one manifest's objects up, and counts those that are there.
    fn finder<'a>(&'a self, listed: &'a mut u64) -> impl FnMut(&Key) -> Listed + 'a {
        let mut seen = BTreeSet::new();
        move |key| {
            let Key::Segment { table, node, boot, generation, sequence } = key else {
                return Listed::Missing;
            };
            if !seen.insert((table.clone(), *generation, *sequence)) {
                return Listed::Twice;
            }
            let group = self.groups.get(&(table.clone(), node.clone(), boot.clone(), *generation));
            let at = group.and_then(|group| {
                Some(group[group.binary_search_by_key(sequence, |(sequence, _)| *sequence).ok()?].1)
            });
            *listed += u64::from(at.is_some());
            at.map_or(Listed::Missing, Listed::Stored)
        }
    }
}

fn takes_part(key: &Key, nodes: &BTreeMap<String, Option<String>>) -> bool {
    match key {
        Key::NodeManifest { node, .. } | Key::Segment { node, .. } => nodes.contains_key(&**node),
        Key::Session | Key::Manifest { .. } => false,
    }
}
