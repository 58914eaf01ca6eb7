// SPDX-License-Identifier: Apache-2.0

//! The books of one boot of a session: what every process that recorded it counted, and what became of it.
//!
//! In: the processes' checkpoints (`incarnations/<id>.json`) and the spool's journal. Out: ledger, coverage, and the
//! entries of the node's manifest.
//! Loses: nothing; the counters of a process that crashed are as old as its last checkpoint, which is said.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use dataset::bookkeeping;
use dataset::coverage::{CoverageKind, CoverageRow};
use dataset::key::Boot;
use dataset::ledger::{LedgerRow, Term, Terms};
use dataset::manifest::{Incarnation, ObjectEntry};
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::engine::{TableCounters, TargetCoverage};
use crate::kernel::clock;
use crate::pipeline::spool::{BootSpool, Fate, SealedSegment};

const INCARNATIONS: &str = "incarnations";

/// By incarnation.
pub(super) type Checkpoints = BTreeMap<String, Checkpoint>;

/// Why an incarnation stopped recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ended {
    /// The window was over.
    Window,
    /// The agent was told to stop, in order; another one may go on.
    Stopped,
}

/// `incarnations/<id>.json`: what one process knows about one session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    pub(super) who: Incarnation,
    pub(super) window_end_ns: Option<u64>,
    pub(super) ended: Option<Ended>,
    /// Every row of an event before this time is in a sealed file: a crash loses only what came later.
    #[serde(default)]
    pub(super) sealed_ns: u64,
    pub(super) tables: BTreeMap<String, Account>,
    pub(super) coverage: Vec<CoverageRow>,
    /// Rows of `coverage` that were still being traced when this was written.
    pub(super) open: Vec<bool>,
}

impl Checkpoint {
    /// Of a process of which nothing but its name is known.
    fn unknown(incarnation: &str) -> Checkpoint {
        let who = Incarnation {
            incarnation: incarnation.to_owned(),
            agent_version: String::new(),
            kernel: String::new(),
            arch: String::new(),
            started_ns: 0,
            ended_ns: 0,
            clean: false,
            anchor_ns: 0,
            anchor_utc_us: utc_us(0),
        };
        let tables = node_agent_common::catalogue::TABLES.iter();
        Checkpoint {
            who,
            window_end_ns: None,
            ended: None,
            sealed_ns: 0,
            tables: tables.map(|table| (table.name.to_owned(), Account::default())).collect(),
            coverage: Vec::new(),
            open: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) emitted: u64,
    pub(super) terms: Terms,
}

/// One row for every incarnation and table of events.
pub(super) fn ledger(node: &str, spool: &BootSpool, checkpoints: &Checkpoints) -> Vec<LedgerRow> {
    let mut rows: BTreeMap<(String, String), LedgerRow> = BTreeMap::new();
    let boot = spool.boot();
    let row = |incarnation: &str, table: &str| LedgerRow {
        node: node.to_owned(),
        boot: boot.to_string(),
        incarnation: incarnation.to_owned(),
        table: table.to_owned(),
        ..LedgerRow::default()
    };
    for (incarnation, checkpoint) in checkpoints {
        for (table, account) in &checkpoint.tables {
            let mut row = row(incarnation, table);
            row.emitted = checkpoint.ended.map(|_| account.emitted);
            row.terms = account.terms;
            rows.insert((incarnation.clone(), table.clone()), row);
        }
    }
    for (segment, fate) in spool.segments() {
        if bookkeeping::TABLES.iter().any(|table| table.name == segment.table) {
            continue;
        }
        let id = (segment.incarnation.clone(), segment.table.clone());
        let row = rows.entry(id).or_insert_with(|| row(&segment.incarnation, &segment.table));
        match fate {
            Fate::Pending => {}
            Fate::Acknowledged => {
                row.terms.add(Term::Exported, segment.weight);
                row.rows += segment.rows;
            }
            Fate::Lost(term) => row.terms.add(term, segment.weight),
        }
    }
    rows.into_values().collect()
}

/// What each incarnation traced, and the gaps between them.
pub(super) fn coverage(node: &str, spool: &BootSpool, checkpoints: &Checkpoints) -> Vec<CoverageRow> {
    let mut order: Vec<&Checkpoint> = checkpoints.values().collect();
    order.sort_by_key(|checkpoint| checkpoint.who.started_ns);
    let reason =
        |checkpoint: &Checkpoint| if checkpoint.ended.is_none() { "AgentLost" } else { "AgentStopped" };
    let mut rows = Vec::new();
    for (i, checkpoint) in order.iter().enumerate() {
        if checkpoint.ended == Some(Ended::Window) {
            rows.extend(checkpoint.coverage.iter().cloned());
            continue;
        }
        let why = reason(checkpoint);
        let next = order.get(i + 1).map(|next| &next.who);
        let until_ns = next.map(|next| next.started_ns).or(checkpoint.window_end_ns);
        let gap = |mut row: CoverageRow, from_ns: u64, to_ns: u64| {
            row.incarnation = next.map_or(&checkpoint.who, |next| next).incarnation.clone();
            (row.kind, row.from_ns, row.to_ns) = (CoverageKind::Gap, from_ns, to_ns.max(from_ns));
            (row.from_utc_us, row.to_utc_us) =
                (at(&checkpoint.who, row.from_ns), at(&checkpoint.who, row.to_ns));
            (row.from_start, row.hooks, row.reason) = (false, String::new(), why.to_owned());
            row
        };
        let mut gaps = Vec::new();
        for (row, &open) in checkpoint.coverage.iter().zip(&checkpoint.open) {
            let mut row = row.clone();
            // A process that ended in order has sealed all its rows; one that died has lost the last of them.
            let lost_ns = if checkpoint.ended.is_some() { row.to_ns } else { checkpoint.sealed_ns };
            let cut = row.kind == CoverageKind::Traced && lost_ns < row.to_ns;
            let from_ns = lost_ns.clamp(row.from_ns, row.to_ns);
            if open || cut {
                let to_ns = if open { until_ns.unwrap_or(row.to_ns) } else { row.to_ns };
                gaps.push(gap(row.clone(), from_ns, to_ns));
                (row.to_ns, row.to_utc_us, row.reason) =
                    (from_ns, at(&checkpoint.who, from_ns), why.to_owned());
            }
            rows.push(row);
        }
        if !checkpoint.open.contains(&true) {
            // Nobody was a target then; that nobody looked is still to be said.
            let from_ns = checkpoint.who.ended_ns;
            let nobody = coverage_row(node, spool.boot(), &checkpoint.who, &nobody(from_ns), from_ns);
            gaps.push(gap(nobody, from_ns, until_ns.unwrap_or(from_ns)));
        }
        rows.extend(gaps);
    }
    rows
}

pub(super) fn entry(node: &str, boot: &Boot, segment: &SealedSegment, fate: Fate) -> Option<ObjectEntry> {
    if fate != Fate::Acknowledged {
        return None;
    }
    let key = dataset::key::Key::segment(&segment.table, node, boot, segment.sequence).ok()?;
    let SealedSegment { rows, weight, bytes, sha256, .. } = segment;
    Some(ObjectEntry {
        key: key.relative(),
        rows: *rows,
        weight: *weight,
        bytes: *bytes,
        sha256: sha256.clone(),
    })
}

pub(super) fn kernel_terms(table: &TableCounters) -> Terms {
    let mut terms = Terms::default();
    for (term, events) in [
        (Term::SampledOut, table.sampled_out),
        (Term::RateLimited, table.rate_limited),
        (Term::Filtered, table.filtered),
        (Term::LostRingFull, table.ring_full),
        (Term::LostMapFull, table.map_full),
        (Term::LostRecursion, table.recursion),
        (Term::LostDecodeError, table.decode_error),
    ] {
        terms.set(term, events);
    }
    terms
}

/// UTC now at a boot time, microseconds since 1970.
pub(super) fn utc_us(boot_ns: u64) -> i64 {
    (clock::utc_offset_ns().saturating_add_unsigned(boot_ns)).div_euclid(1_000)
}

/// UTC of a boot time by an incarnation's anchor.
fn at(who: &Incarnation, ns: u64) -> i64 {
    who.anchor_utc_us.saturating_add((ns as i64).saturating_sub(who.anchor_ns as i64).div_euclid(1_000))
}

pub(super) fn nobody(now: u64) -> TargetCoverage {
    TargetCoverage {
        pod_uid: String::new(),
        namespace: String::new(),
        pod: String::new(),
        container: String::new(),
        collector: "",
        from_ns: now,
        to_ns: Some(now),
        from_start: false,
        hooks: String::new(),
        reason: String::new(),
    }
}

pub(super) fn coverage_row(
    node: &str,
    boot: &Boot,
    who: &Incarnation,
    target: &TargetCoverage,
    now: u64,
) -> CoverageRow {
    let to_ns = target.to_ns.unwrap_or(now);
    let unsupported = target.hooks.is_empty() && !target.reason.is_empty();
    CoverageRow {
        node: node.to_owned(),
        boot: boot.to_string(),
        incarnation: who.incarnation.clone(),
        namespace: target.namespace.clone(),
        pod: target.pod.clone(),
        container: target.container.clone(),
        pod_uid: target.pod_uid.clone(),
        collector: target.collector.to_owned(),
        kind: if unsupported { CoverageKind::Unsupported } else { CoverageKind::Traced },
        from_ns: target.from_ns,
        to_ns,
        from_utc_us: at(who, target.from_ns),
        to_utc_us: at(who, to_ns),
        from_start: target.from_start,
        hooks: target.hooks.clone(),
        reason: target.reason.clone(),
    }
}

pub(super) fn write_checkpoint(dir: &Path, checkpoint: &Checkpoint) -> std::io::Result<()> {
    let dir = dir.join(INCARNATIONS);
    fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{}.json", checkpoint.who.incarnation));
    let tmp = path.with_added_extension("tmp");
    let mut file = fs::File::create(&tmp)?;
    file.write_all(&serde_json::to_vec(checkpoint)?)?;
    // Every second without fsync: a crash of the process needs none, a crash of the machine may take this second's.
    // The first one, by which it is known that there was such a process, and the last one are for good.
    let first = !path.exists();
    let durable = first || checkpoint.ended.is_some();
    if durable {
        file.sync_all()?;
    }
    fs::rename(tmp, path)?;
    if durable {
        fs::File::open(&dir)?.sync_all()?;
    }
    if first && let Some(parent) = dir.parent() {
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// What is known of each process that recorded. Of one whose checkpoint cannot be read only that there was one.
pub(super) fn read_checkpoints(dir: &Path) -> Checkpoints {
    let mut checkpoints = BTreeMap::new();
    for entry in fs::read_dir(dir.join(INCARNATIONS)).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let read = fs::read(&path).map_err(|error| error.to_string());
        match read
            .and_then(|text| serde_json::from_slice::<Checkpoint>(&text).map_err(|error| error.to_string()))
        {
            Ok(checkpoint) => _ = checkpoints.insert(checkpoint.who.incarnation.clone(), checkpoint),
            Err(error) => {
                error!(path = %path.display(), error, "the counters of an earlier process cannot be read: its account is unknown");
                if let Some(incarnation) = path.file_stem().and_then(|stem| stem.to_str()) {
                    checkpoints.insert(incarnation.to_owned(), Checkpoint::unknown(incarnation));
                }
            }
        }
    }
    checkpoints
}
