// SPDX-License-Identifier: Apache-2.0

//! Keeps sealed files on disk until the store has acknowledged them.
//!
//! In: files written by [`segment`](super::segment). Out: [`SealedSegment`]s to
//! [`upload`](super::upload), and after its acknowledgements the list of objects for the manifest.
//! Drops: files that were never sealed (a crash), files whose content is not what was sealed (a
//! damaged disk), and whole sessions that are given up. Each is written down under its name.
//!
//! ```text
//! <root>/<session uid>/<boot>/journal                       one JSON record a line; the truth
//! <root>/<session uid>/<boot>/<table>-<sequence>.parquet    sealed, not yet acknowledged
//! <root>/<session uid>/<boot>/<table>-<sequence>.parquet.tmp   being written
//! <root>/<session uid>/<boot>/quarantine/                   damaged, kept for a person to look at
//! <root>/<session uid>/<boot>/incarnations/<id>.json        see `session`
//! ```
//! To seal: fsync the file, append `sealed` with its SHA-256, fsync, rename, fsync the folder. To
//! acknowledge: append `acked`, fsync, remove the file. So at every moment, after a crash at any point:
//! 1. a segment that the journal calls sealed and neither acked nor lost is on disk, whole, under one
//!    of its two names, or it is counted as lost;
//! 2. a sequence number is used once: the next is above every one in the journal and in the folder;
//! 3. nothing is uploaded whose content differs from what was sealed.
//!
//! A torn line at the end of the journal is what a crash leaves, and is cut off. Files and folders are
//! readable by root alone: rows hold command lines.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dataset::key::Boot;
use dataset::ledger::Term;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tracing::{error, warn};

const JOURNAL: &str = "journal";
const QUARANTINE: &str = "quarantine";
const TMP: &str = "tmp";

/// The spool's disk failed. Nothing that was sealed is lost by it.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {source}")]
pub struct SpoolError {
    /// What was tried.
    pub what: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl SpoolError {
    fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
        let path = path.to_owned();
        move |source| SpoolError { what, path, source }
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// A file that is complete, on disk, and not yet acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSegment {
    /// Of its rows.
    pub table: String,
    /// Rising per session, table and boot.
    pub sequence: u64,
    /// Rows.
    pub rows: u64,
    /// Events that the rows stand for.
    pub weight: u64,
    /// Length of the file.
    pub bytes: u64,
    /// SHA-256 of the file, 64 hexadecimal digits.
    pub sha256: String,
    /// The agent process that wrote it.
    pub incarnation: String,
}

/// One line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
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

/// What became of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Waits for the store.
    Pending,
    /// The store has it.
    Acknowledged,
    /// Counted under this name.
    Lost(Term),
}

type SegmentId = (String, u64);

/// The root folder and its limit.
#[derive(Clone, Debug)]
pub struct Spool {
    root: PathBuf,
    max_bytes: u64,
    used: Arc<AtomicU64>,
}

impl Spool {
    /// Makes the folder if it is not there.
    ///
    /// # Errors
    /// When the folder cannot be made or its mode set.
    pub fn open(root: &Path, max_bytes: u64) -> Result<Self, SpoolError> {
        make_dir(root)?;
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(root, private).map_err(SpoolError::at("restrict", root))?;
        Ok(Self { root: root.to_owned(), max_bytes, used: Arc::default() })
    }

    /// Bytes on disk, sealed or being written.
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether the limit is reached: rows are then counted as lost instead of written.
    pub fn is_full(&self) -> bool {
        self.used_bytes() >= self.max_bytes
    }

    /// The folder of a session, made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn session_dir(&self, uid: &str) -> Result<PathBuf, SpoolError> {
        let dir = self.root.join(uid);
        make_dir(&dir)?;
        Ok(dir)
    }

    /// UIDs of all sessions that have a folder.
    ///
    /// # Errors
    /// When the root cannot be read.
    pub fn sessions(&self) -> Result<Vec<String>, SpoolError> {
        folders(&self.root)
    }

    /// Boots during which the session wrote something.
    ///
    /// # Errors
    /// When the session's folder cannot be read.
    pub fn boots(&self, uid: &str) -> Result<Vec<Boot>, SpoolError> {
        let names = folders(&self.root.join(uid))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Opens what a session wrote during one boot, and repairs what a crash left.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn boot(&self, uid: &str, boot: &Boot) -> Result<Arc<BootSpool>, SpoolError> {
        let dir = self.session_dir(uid)?.join(boot.as_str());
        make_dir(&dir)?;
        BootSpool::recover(dir, boot.clone(), self.clone()).map(Arc::new)
    }

    /// Removes everything of a session.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn forget(&self, uid: &str) -> Result<(), SpoolError> {
        let dir = self.root.join(uid);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SpoolError::at("remove", &dir)(error))
            }
            _ => Ok(()),
        }
    }

    fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn free(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn make_dir(path: &Path) -> Result<(), SpoolError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(SpoolError::at("create", path))
}

fn folders(path: &Path) -> Result<Vec<String>, SpoolError> {
    let failed = |error| SpoolError::at("read", path)(error);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn sync_dir(path: &Path) -> Result<(), SpoolError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(SpoolError::at("sync", path))
}

/// What one session wrote during one boot of this node.
#[derive(Debug)]
pub struct BootSpool {
    dir: PathBuf,
    boot: Boot,
    spool: Spool,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    journal: File,
    segments: BTreeMap<SegmentId, (SealedSegment, Fate)>,
    /// By table, the number that the next file gets.
    next: BTreeMap<String, u64>,
    /// Being uploaded.
    claimed: Vec<SegmentId>,
    /// Unsealed files that were found and removed.
    discarded: u64,
    quarantined: u64,
    manifest: Option<String>,
}

impl BootSpool {
    fn recover(dir: PathBuf, boot: Boot, spool: Spool) -> Result<Self, SpoolError> {
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
        let mut state = State {
            journal,
            segments: BTreeMap::new(),
            next: BTreeMap::new(),
            claimed: Vec::new(),
            discarded: 0,
            quarantined: 0,
            manifest: None,
        };
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

    fn lock(&self) -> MutexGuard<'_, State> {
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

    /// The spool that this is a part of.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Opens a new file of a table, under a number of its own.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn begin(self: &Arc<Self>, table: &str) -> Result<OpenSegment, SpoolError> {
        let sequence = self.lock().take_sequence(table);
        let path = self.path(table, sequence).with_added_extension(TMP);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(SpoolError::at("create", &path))?;
        let writer =
            HashingFile { file, sha256: Sha256::new(), bytes: 0, spool: self.spool.clone(), sealed: false };
        Ok(OpenSegment {
            owner: self.clone(),
            table: table.to_owned(),
            sequence,
            path,
            writer: Some(writer),
            sealed: false,
        })
    }

    /// The oldest segment that nobody uploads yet; it is the caller's until [`release`](Self::release) or
    /// [`acknowledge`](Self::acknowledge).
    pub fn claim(&self) -> Option<SealedSegment> {
        let mut state = self.lock();
        let next = state
            .segments
            .iter()
            .find(|(id, (_, fate))| *fate == Fate::Pending && !state.claimed.contains(id))
            .map(|(id, (segment, _))| (id.clone(), segment.clone()));
        let (id, segment) = next?;
        state.claimed.push(id);
        Some(segment)
    }

    /// Gives a claimed segment back after a failed upload.
    pub fn release(&self, segment: &SealedSegment) {
        let mut state = self.lock();
        state.claimed.retain(|(table, sequence)| *table != segment.table || *sequence != segment.sequence);
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

impl State {
    fn take_sequence(&mut self, table: &str) -> u64 {
        let next = self.next.entry(table.to_owned()).or_default();
        *next += 1;
        *next - 1
    }

    fn saw_sequence(&mut self, table: &str, sequence: u64) {
        let next = self.next.entry(table.to_owned()).or_default();
        *next = (*next).max(sequence.saturating_add(1));
    }

    fn replay(&mut self, record: Record) {
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
    fn pending(&self) -> Vec<SealedSegment> {
        let pending = self.segments.values().filter(|(_, fate)| *fate == Fate::Pending);
        pending.map(|(segment, _)| segment.clone()).collect()
    }

    fn set_fate(&mut self, table: String, sequence: u64, fate: Fate) {
        self.saw_sequence(&table, sequence);
        if let Some(entry) = self.segments.get_mut(&(table, sequence)) {
            entry.1 = fate;
        }
    }

    fn lose(&mut self, segment: &SealedSegment, term: Term, dir: &Path) -> Result<(), SpoolError> {
        let (table, sequence) = (segment.table.clone(), segment.sequence);
        self.append(&Record::Lost { table, sequence, term: term.name().to_owned() }, dir)
    }

    /// Makes a record durable, then true.
    fn append(&mut self, record: &Record, dir: &Path) -> Result<(), SpoolError> {
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

fn matches_seal(path: &Path, segment: &SealedSegment) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let mut sha256 = Sha256::new();
    matches!(io::copy(&mut file, &mut sha256), Ok(bytes) if bytes == segment.bytes)
        && hex::encode(sha256.finalize()) == segment.sha256
}

fn remove(path: &Path) -> Result<(), SpoolError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SpoolError::at("remove", path)(error)),
        _ => Ok(()),
    }
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

/// Writes a file and hashes it on the way.
#[derive(Debug)]
pub struct HashingFile {
    file: File,
    sha256: Sha256,
    bytes: u64,
    spool: Spool,
    sealed: bool,
}

impl Drop for HashingFile {
    fn drop(&mut self) {
        if !self.sealed {
            self.spool.free(self.bytes);
        }
    }
}

impl Write for HashingFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.sha256.update(&buffer[..written]);
        self.bytes += written as u64;
        self.spool.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A file that is being written. Dropped without [`seal`](Self::seal), it is removed and its number stays unused.
#[derive(Debug)]
pub struct OpenSegment {
    owner: Arc<BootSpool>,
    table: String,
    sequence: u64,
    path: PathBuf,
    writer: Option<HashingFile>,
    sealed: bool,
}

impl OpenSegment {
    /// Its number.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Where to write; to be given back to [`seal`](Self::seal).
    ///
    /// # Panics
    /// When taken twice.
    pub fn take_writer(&mut self) -> HashingFile {
        self.writer.take().expect("the writer is taken once")
    }

    /// Makes the file durable and the spool's own.
    ///
    /// # Errors
    /// When the disk fails: the file is then discarded, and its rows have to be counted as lost.
    pub fn seal(
        mut self,
        writer: HashingFile,
        rows: u64,
        weight: u64,
        incarnation: &str,
    ) -> Result<SealedSegment, SpoolError> {
        let mut writer = writer;
        let result = self.seal_file(
            &writer.file,
            SealedSegment {
                table: self.table.clone(),
                sequence: self.sequence,
                rows,
                weight,
                bytes: writer.bytes,
                sha256: hex::encode(std::mem::take(&mut writer.sha256).finalize()),
                incarnation: incarnation.to_owned(),
            },
        );
        if result.is_ok() {
            // From here on its bytes are those of a pending segment.
            (self.sealed, writer.sealed) = (true, true);
            self.owner.changed.notify_waiters();
        }
        result
    }

    fn seal_file(&self, file: &File, segment: SealedSegment) -> Result<SealedSegment, SpoolError> {
        // A failed fsync is not tried again: the kernel may have dropped the pages and would say that all is well.
        file.sync_all().map_err(SpoolError::at("sync", &self.path))?;
        self.owner.lock().append(&Record::Sealed(segment.clone()), &self.owner.dir)?;
        let path = self.owner.file(&segment);
        let renamed = fs::rename(&self.path, &path).map_err(SpoolError::at("rename", &self.path));
        if let Err(error) = renamed.and_then(|()| sync_dir(&self.owner.dir)) {
            // The record is there already, so the loss is the journal's to count, not the caller's.
            error!(%error, events = segment.weight, "a sealed file cannot be given its name and is lost");
            self.owner.lock().lose(&segment, Term::LostSpoolCorrupt, &self.owner.dir)?;
            self.owner.spool.free(segment.bytes);
        }
        Ok(segment)
    }

    /// Removes the file.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn discard(mut self, writer: HashingFile) -> Result<(), SpoolError> {
        drop(writer);
        self.sealed = true;
        self.owner.lock().append(
            &Record::Discarded { table: self.table.clone(), sequence: self.sequence },
            &self.owner.dir,
        )?;
        remove(&self.path)
    }
}

impl Drop for OpenSegment {
    fn drop(&mut self) {
        if !self.sealed
            && let Err(error) = remove(&self.path)
        {
            warn!(%error, "an unsealed file could not be removed");
        }
    }
}
