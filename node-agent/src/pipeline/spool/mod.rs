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

mod boot;
mod journal;
mod open;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dataset::key::Boot;
use dataset::ledger::Term;
use serde::{Deserialize, Serialize};

pub use self::boot::BootSpool;
pub use self::open::{HashingFile, OpenSegment};

/// What a file has while it is being written.
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

/// How many times what is left of the limit a session may have on disk. Alone it has two thirds of the limit, and one whose store is
/// away for hours leaves room for those that come after it: of a number of such sessions each has less, never one everything.
const SHARE: u64 = 2;

/// The root folder and its limit.
#[derive(Clone, Debug)]
pub struct Spool {
    root: PathBuf,
    max_bytes: u64,
    used: Arc<AtomicU64>,
    /// What each session has of that.
    sessions: Arc<Mutex<HashMap<String, Arc<AtomicU64>>>>,
}

/// A session's part of the spool.
#[derive(Clone, Debug)]
pub struct Share {
    spool: Spool,
    used: Arc<AtomicU64>,
}

impl Share {
    /// Bytes of the session on disk, sealed or being written.
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether the session has all that it may: its rows are then counted as lost instead of written.
    pub fn is_full(&self) -> bool {
        let left = self.spool.max_bytes.saturating_sub(self.spool.used_bytes());
        self.used_bytes() >= left.saturating_mul(SHARE)
    }

    fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.spool.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn free(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.spool.used.fetch_sub(bytes, Ordering::Relaxed);
    }
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
        Ok(Self { root: root.to_owned(), max_bytes, used: Arc::default(), sessions: Arc::default() })
    }

    /// Bytes on disk, sealed or being written.
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
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
        BootSpool::recover(dir, boot.clone(), self.share(uid)).map(Arc::new)
    }

    /// Removes everything of a session.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn forget(&self, uid: &str) -> Result<(), SpoolError> {
        let dir = self.root.join(uid);
        lock(&self.sessions).remove(uid);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SpoolError::at("remove", &dir)(error))
            }
            _ => Ok(()),
        }
    }

    fn share(&self, uid: &str) -> Share {
        let used = lock(&self.sessions).entry(uid.to_owned()).or_default().clone();
        Share { spool: self.clone(), used }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

fn remove(path: &Path) -> Result<(), SpoolError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SpoolError::at("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_whose_store_is_away_leaves_room_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path(), 900).unwrap();
        let [one, other] = ["one", "other"].map(|uid| spool.share(uid));
        one.add(599);
        assert!(!one.is_full());
        one.add(1);
        assert!(one.is_full() && !other.is_full());
        // What is left is shared again, and nobody has all of it.
        other.add(199);
        assert!(!other.is_full());
        other.add(1);
        assert!(other.is_full() && !spool.share("a third").is_full());
        // Another boot of a session is the same session.
        one.free(300);
        assert!(!other.is_full() && spool.share("one").used_bytes() == 300);
        spool.forget("one").unwrap();
        assert_eq!((spool.share("one").used_bytes(), spool.used_bytes()), (0, 500));
    }
}
