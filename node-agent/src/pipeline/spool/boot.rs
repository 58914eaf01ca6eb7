// SPDX-License-Identifier: Apache-2.0

//! One session's files of one boot: recovered, handed out for upload, acknowledged or given up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dataset::key::Boot;
use dataset::ledger::Term;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tracing::{error, warn};

use super::journal::{JOURNAL, Record, State};
use super::open::OpenSegment;
use super::{Fate, SealedSegment, SegmentId, Share, SpoolError, TMP, make_dir, remove, sync_dir};

const QUARANTINE: &str = "quarantine";

/// What one session wrote during one boot of this node.
#[derive(Debug)]
pub struct BootSpool {
    pub(super) dir: PathBuf,
    boot: Boot,
    pub(super) spool: Share,
    state: Mutex<State>,
    pub(super) changed: Notify,
}
impl BootSpool {
    pub(super) fn recover(dir: PathBuf, boot: Boot, spool: Share) -> Result<Self, SpoolError> {
        let path = dir.join(JOURNAL);
        let mut text = Vec::new();
        let mut journal = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(SpoolError::at("open", &path))?;
        journal.read_to_end(&mut text).map_err(SpoolError::at("read", &path))?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        if whole < text.len() {
            journal.set_len(whole as u64).map_err(SpoolError::at("truncate", &path))?;
            text.truncate(whole);
        }
        let mut state = State::new(journal);
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(record) => state.replay(record),
                Err(error) => {
                    error!(%error, path = %path.display(), "a line of the journal is damaged and was skipped")
                }
            }
        }
        let this = Self { dir, boot, spool, state: Mutex::new(state), changed: Notify::new() };
        this.repair()?;
        Ok(this)
    }

    /// Makes folder and journal agree: see the invariants above.
    fn repair(&self) -> Result<(), SpoolError> {
        let mut state = self.lock();
        let pending = state.pending();
        for segment in pending {
            let path = self.path(&segment.table, segment.sequence);
            let tmp = path.with_added_extension(TMP);
            if matches_seal(&path, &segment) {
                self.spool.add(segment.bytes);
            } else if matches_seal(&tmp, &segment) {
                fs::rename(&tmp, &path).map_err(SpoolError::at("rename", &tmp))?;
                sync_dir(&self.dir)?;
                self.spool.add(segment.bytes);
            } else {
                error!(path = %path.display(), events = segment.weight, "a sealed file is damaged or missing");
                self.quarantine(&path)?;
                state.quarantined += 1;
                state.lose(&segment, Term::LostSpoolCorrupt, &self.dir)?;
            }
        }
        for entry in fs::read_dir(&self.dir).map_err(SpoolError::at("read", &self.dir))? {
            let path = entry.map_err(SpoolError::at("read", &self.dir))?.path();
            let Some((id, sealed)) = path.file_name().and_then(|name| name.to_str()).and_then(parse_name)
            else {
                continue;
            };
            let known = state.segments.get(&id).map(|(_, fate)| *fate);
            match known {
                Some(Fate::Pending) if sealed => {}
                // Acknowledged or lost: a crash came between the record and the removal.
                Some(_) => remove(&path)?,
                None if sealed => {
                    // Its record is gone, so nobody knows what it should hold.
                    error!(path = %path.display(), "a sealed file has no record in the journal");
                    self.quarantine(&path)?;
                    state.quarantined += 1;
                    state.append(&Record::Discarded { table: id.0, sequence: id.1 }, &self.dir)?;
                }
                None => {
                    warn!(path = %path.display(), "a file that was never sealed was discarded");
                    state.discarded += 1;
                    state.append(&Record::Discarded { table: id.0, sequence: id.1 }, &self.dir)?;
                    remove(&path)?;
                }
            }
        }
        Ok(())
    }

    fn quarantine(&self, path: &Path) -> Result<(), SpoolError> {
        if !path.exists() {
            return Ok(());
        }
        let dir = self.dir.join(QUARANTINE);
        make_dir(&dir)?;
        let to = dir.join(path.file_name().expect("a file's path ends with its name"));
        fs::rename(path, &to).map_err(SpoolError::at("move", path))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, table: &str, sequence: u64) -> PathBuf {
        self.dir.join(format!("{table}-{sequence:06}.parquet"))
    }

    /// The boot that the rows are of.
    pub fn boot(&self) -> &Boot {
        &self.boot
    }

    /// This session's folder of this boot.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its session's part of the spool.
    pub fn spool(&self) -> &Share {
        &self.spool
    }

    /// Opens a new file of a table, under a number of its own.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn begin(self: &Arc<Self>, table: &str) -> Result<OpenSegment, SpoolError> {
        let sequence = self.lock().take_sequence(table);
        let path = self.path(table, sequence).with_added_extension(TMP);
        OpenSegment::create(self.clone(), table, sequence, path)
    }

    /// The oldest of the segments that nobody uploads now and whose uploads failed least often, so that one that the
    /// store never takes does not keep the others waiting. It is the caller's until [`release`](Self::release) or
    /// [`acknowledge`](Self::acknowledge).
    pub fn claim(&self) -> Option<SealedSegment> {
        let mut state = self.lock();
        let next = state
            .segments
            .iter()
            .filter(|(id, (_, fate))| *fate == Fate::Pending && !state.claimed.contains(id))
            .min_by_key(|(id, _)| state.failed.get(id).copied().unwrap_or_default())
            .map(|(id, (segment, _))| (id.clone(), segment.clone()));
        let (id, segment) = next?;
        state.claimed.push(id);
        Some(segment)
    }

    /// Gives a claimed segment back; one that is not acknowledged has failed.
    pub fn release(&self, segment: &SealedSegment) {
        let mut state = self.lock();
        let id = (segment.table.clone(), segment.sequence);
        state.claimed.retain(|claimed| *claimed != id);
        if matches!(state.segments.get(&id), Some((_, Fate::Pending))) {
            *state.failed.entry(id).or_default() += 1;
        }
    }

    /// Whether some segment is not acknowledged though its upload was tried.
    pub fn has_failed(&self) -> bool {
        !self.lock().failed.is_empty()
    }

    /// The file of a sealed segment.
    pub fn file(&self, segment: &SealedSegment) -> PathBuf {
        self.path(&segment.table, segment.sequence)
    }

    /// Writes down that the store has a segment, then removes its file.
    ///
    /// # Errors
    /// When the record cannot be made durable: the file is kept, and uploading it again does no harm.
    pub fn acknowledge(&self, segment: &SealedSegment) -> Result<(), SpoolError> {
        let mut state = self.lock();
        let id = (segment.table.clone(), segment.sequence);
        let pending = matches!(state.segments.get(&id), Some((_, Fate::Pending)));
        if pending {
            state.append(&Record::Acked { table: id.0.clone(), sequence: id.1 }, &self.dir)?;
        }
        state.claimed.retain(|claimed| *claimed != id);
        state.failed.remove(&id);
        drop(state);
        if pending {
            remove(&self.file(segment))?;
            self.spool.free(segment.bytes);
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// Gives up everything that is not acknowledged. Returns the number of segments.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn abandon(&self) -> Result<usize, SpoolError> {
        let mut state = self.lock();
        let pending = state.pending();
        for segment in &pending {
            state.lose(segment, Term::LostUploadAbandoned, &self.dir)?;
            remove(&self.file(segment))?;
            self.spool.free(segment.bytes);
        }
        Ok(pending.len())
    }

    /// Segments that wait for the store, and their bytes.
    pub fn pending(&self) -> (usize, u64) {
        let state = self.lock();
        let pending = state.segments.values().filter(|(_, fate)| *fate == Fate::Pending);
        pending.fold((0, 0), |(count, bytes), (segment, _)| (count + 1, bytes + segment.bytes))
    }

    /// Every segment that was ever sealed, with what became of it, in the order of table and sequence.
    pub fn segments(&self) -> Vec<(SealedSegment, Fate)> {
        self.lock().segments.values().cloned().collect()
    }

    /// How many files recovery threw away because they were never sealed, and how many it moved to quarantine.
    pub fn recovered(&self) -> (u64, u64) {
        let state = self.lock();
        (state.discarded, state.quarantined)
    }

    /// The key of this boot's node manifest once the store has it.
    pub fn manifest(&self) -> Option<String> {
        self.lock().manifest.clone()
    }

    /// Writes down that the store has this boot's node manifest.
    ///
    /// # Errors
    /// When the record cannot be made durable.
    pub fn set_manifest(&self, key: &str) -> Result<(), SpoolError> {
        self.lock().append(&Record::Manifest { key: key.to_owned() }, &self.dir)?;
        self.changed.notify_waiters();
        Ok(())
    }

    /// Resolves when a segment was sealed or acknowledged, or the manifest was.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

fn matches_seal(path: &Path, segment: &SealedSegment) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let mut sha256 = Sha256::new();
    matches!(io::copy(&mut file, &mut sha256), Ok(bytes) if bytes == segment.bytes)
        && hex::encode(sha256.finalize()) == segment.sha256
}

/// Table and sequence of a file's name, and whether it is a sealed file's.
fn parse_name(name: &str) -> Option<(SegmentId, bool)> {
    let (stem, sealed) = match name.strip_suffix(".tmp") {
        Some(stem) => (stem, false),
        None => (name, true),
    };
    let (table, sequence) = stem.strip_suffix(".parquet")?.rsplit_once('-')?;
    Some(((table.to_owned(), sequence.parse().ok()?), sealed))
}
