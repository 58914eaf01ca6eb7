// SPDX-License-Identifier: Apache-2.0

//! The journal of one boot: what became of each file, durable before it is true.
//!
//! In: records to append, or the lines of an earlier process. Out: the state that they add up to. Drops: nothing; a
//! record that cannot be made durable is cut off again and its change does not happen.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use dataset::ledger::Term;
use serde::{Deserialize, Serialize};
use tracing::error;

use super::{Fate, SealedSegment, SegmentId, SpoolError, sync_dir};

/// Its file's name.
pub(super) const JOURNAL: &str = "journal";

/// One line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    Sealed(SealedSegment),
    Acked {
        table: String,
        sequence: u64,
    },
    Lost {
        table: String,
        sequence: u64,
        term: String,
    },
    /// A number that was given to a file which was never sealed.
    Discarded {
        table: String,
        sequence: u64,
    },
    /// The node manifest of this boot was acknowledged.
    Manifest {
        key: String,
    },
}

/// What the records add up to, and what this process does with it.
#[derive(Debug)]
pub(super) struct State {
    journal: File,
    pub(super) segments: BTreeMap<SegmentId, (SealedSegment, Fate)>,
    /// By table, the number that the next file gets.
    next: BTreeMap<String, u64>,
    /// Being uploaded.
    pub(super) claimed: Vec<SegmentId>,
    /// Uploads that failed, of each segment that is not acknowledged.
    pub(super) failed: BTreeMap<SegmentId, u32>,
    /// Unsealed files that were found and removed.
    pub(super) discarded: u64,
    pub(super) quarantined: u64,
    pub(super) manifest: Option<String>,
}

impl State {
    /// Before any record.
    pub(super) fn new(journal: File) -> Self {
        Self {
            journal,
            segments: BTreeMap::new(),
            next: BTreeMap::new(),
            claimed: Vec::new(),
            failed: BTreeMap::new(),
            discarded: 0,
            quarantined: 0,
            manifest: None,
        }
    }

    pub(super) fn take_sequence(&mut self, table: &str) -> u64 {
        let next = self.next.entry(table.to_owned()).or_default();
        *next += 1;
        *next - 1
    }

    fn saw_sequence(&mut self, table: &str, sequence: u64) {
        let next = self.next.entry(table.to_owned()).or_default();
        *next = (*next).max(sequence.saturating_add(1));
    }

    pub(super) fn replay(&mut self, record: Record) {
        match record {
            Record::Sealed(segment) => {
                self.saw_sequence(&segment.table, segment.sequence);
                self.segments.insert((segment.table.clone(), segment.sequence), (segment, Fate::Pending));
            }
            Record::Acked { table, sequence } => self.set_fate(table, sequence, Fate::Acknowledged),
            Record::Lost { table, sequence, term } => {
                let term = Term::ALL.iter().find(|known| known.name() == term);
                self.set_fate(
                    table,
                    sequence,
                    Fate::Lost(term.copied().unwrap_or(Term::LostUploadAbandoned)),
                );
            }
            Record::Discarded { table, sequence } => self.saw_sequence(&table, sequence),
            Record::Manifest { key } => self.manifest = Some(key),
        }
    }

    /// Segments that wait for the store.
    pub(super) fn pending(&self) -> Vec<SealedSegment> {
        let pending = self.segments.values().filter(|(_, fate)| *fate == Fate::Pending);
        pending.map(|(segment, _)| segment.clone()).collect()
    }

    fn set_fate(&mut self, table: String, sequence: u64, fate: Fate) {
        self.saw_sequence(&table, sequence);
        if let Some(entry) = self.segments.get_mut(&(table, sequence)) {
            entry.1 = fate;
        }
    }

    pub(super) fn lose(&mut self, segment: &SealedSegment, term: Term, dir: &Path) -> Result<(), SpoolError> {
        let (table, sequence) = (segment.table.clone(), segment.sequence);
        self.append(&Record::Lost { table, sequence, term: term.name().to_owned() }, dir)
    }

    /// Makes a record durable, then true.
    pub(super) fn append(&mut self, record: &Record, dir: &Path) -> Result<(), SpoolError> {
        let path = dir.join(JOURNAL);
        let mut line = serde_json::to_vec(record).expect("records are plain data");
        line.push(b'\n');
        let length = self.journal.metadata().map_err(SpoolError::at("read", &path))?.len();
        let written = self.journal.write_all(&line).and_then(|()| self.journal.sync_data());
        if let Err(source) = written {
            // Half a line would swallow the next record; and a record that may or may not be durable must not stay.
            if let Err(error) = self.journal.set_len(length) {
                error!(%error, path = %path.display(), "the journal cannot be cut back to its last whole record");
            }
            return Err(SpoolError { what: "append to", path, source });
        }
        // The name of a new journal has to survive as well; afterwards this is a cheap no-op.
        if length == 0 {
            sync_dir(dir)?;
        }
        self.replay(serde_json::from_slice(&line).expect("it was made one line above"));
        Ok(())
    }
}
