// SPDX-License-Identifier: Apache-2.0

//! What there is to merge, and what is left over: both found out from the session's lists alone.
//!
//! In: [`Contents`]. Out: for each boot and table its small segments in the order of their rows, in stretches without a large one
//! between them; and keys that nothing names any more. Nothing is read or written here.

use std::collections::{BTreeMap, BTreeSet};

use super::CompactError;
use crate::catalogue::{self, Table};
use crate::key::Key;
use crate::manifest::ObjectEntry;
use crate::reader::{Contents, Finding};

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// Of the manifest that will name the merged files, which are of this generation.
    pub number: u64,
    /// How large a merged file is to be, in bytes.
    pub size: u64,
    /// Segments that may be merged, and their bytes.
    pub segments: (u64, u64),
    /// The same by table, for people.
    pub tables: BTreeMap<&'static str, TablePlan>,
    /// Objects that nothing names any more, which a run removes; those that a manifest lists that was replaced are not among them.
    pub left_over: u64,
    pub(super) parts: Vec<Part>,
}

/// A table's share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TablePlan {
    /// Objects that it has.
    pub objects: u64,
    /// Of those the small ones that have another one beside them, and their bytes.
    pub small: (u64, u64),
    /// Files that these will be, at least.
    pub into: u64,
}

/// Small segments of one table of one boot, beside each other: at least two.
#[derive(Debug)]
pub(super) struct Part {
    /// The manifest that lists them.
    pub(super) node: Key,
    pub(super) table: &'static Table,
    pub(super) segments: Vec<(Key, ObjectEntry)>,
}

/// Finds what there is to merge. Tables of a newer version are left as they are.
///
/// # Errors
/// When the session is not over, or not what its manifests say.
pub fn plan(contents: &Contents, size: u64) -> Result<Plan, CompactError> {
    let manifest = contents.manifest.as_ref().ok_or(CompactError::NotOver)?;
    if let Some(wrong) = wrong(contents) {
        return Err(CompactError::Damaged(wrong));
    }
    let mut plan = Plan {
        number: manifest.number.saturating_add(1),
        size,
        segments: (0, 0),
        tables: BTreeMap::new(),
        left_over: 0,
        parts: Vec::new(),
    };
    for (key, node) in contents.parts() {
        let mut tables: BTreeMap<&'static str, Vec<(Key, &ObjectEntry)>> = BTreeMap::new();
        for object in &node.objects {
            let Ok(segment) = Key::parse(&object.key) else { continue };
            let Key::Segment { table, .. } = &segment else { continue };
            let Some(table) = catalogue::table(table) else { continue };
            tables.entry(table.name).or_default().push((segment, object));
        }
        for (name, mut segments) in tables {
            segments.sort_by_key(|(segment, _)| match segment {
                Key::Segment { sequence, generation, .. } => (*sequence, *generation),
                _ => (0, 0),
            });
            let table = plan.tables.entry(name).or_default();
            table.objects += segments.len() as u64;
            for stretch in segments.split(|(_, object)| object.bytes >= size / 2) {
                let Some(of) = catalogue::table(name).filter(|_| stretch.len() > 1) else { continue };
                let bytes = stretch.iter().map(|(_, object)| object.bytes).sum::<u64>();
                table.small.0 += stretch.len() as u64;
                table.small.1 += bytes;
                table.into += bytes.div_ceil(size.max(1)).max(1);
                plan.segments.0 += stretch.len() as u64;
                plan.segments.1 += bytes;
                let segments = stretch.iter().map(|(segment, object)| (segment.clone(), (*object).clone()));
                plan.parts.push(Part { node: key.clone(), table: of, segments: segments.collect() });
            }
        }
    }
    let segments = unnamed(contents, &current(contents), |generation| generation <= manifest.number).count();
    plan.left_over = (segments + replaced(contents, manifest.number).count()) as u64;
    Ok(plan)
}

/// What a listing shows to be wrong with a session, in words.
pub(super) fn wrong(contents: &Contents) -> Option<String> {
    contents.compare().iter().find(|finding| finding.is_error()).map(Finding::to_string)
}

/// Every segment that a manifest lists which counts.
pub(super) fn current(contents: &Contents) -> BTreeSet<Key> {
    let objects = contents.nodes.values().flat_map(|node| &node.objects);
    objects.filter_map(|object| Key::parse(&object.key).ok()).collect()
}

/// Node manifests whose place another one took: of this manifest and those before it.
pub(super) fn replaced(contents: &Contents, number: u64) -> impl Iterator<Item = Key> {
    contents
        .objects
        .keys()
        .filter(move |key| contents.is_left_over(key) && key.generation() <= number)
        .cloned()
}

/// Merged segments of some generations that no manifest lists.
pub(super) fn unnamed(
    contents: &Contents,
    current: &BTreeSet<Key>,
    of: impl Fn(u64) -> bool,
) -> impl Iterator<Item = Key> {
    let merged =
        contents.objects.keys().filter(|key| matches!(key, Key::Segment { .. }) && key.generation() > 0);
    merged.filter(move |key| of(key.generation()) && !current.contains(*key)).cloned()
}
