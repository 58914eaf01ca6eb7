// SPDX-License-Identifier: Apache-2.0

//! A file that is being written: hashed on the way, counted against the spool's limit, then sealed or removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use dataset::ledger::Term;
use sha2::{Digest, Sha256};
use tracing::{error, warn};

use super::boot::BootSpool;
use super::journal::Record;
use super::{SealedSegment, Share, SpoolError, remove, sync_dir};

/// Writes a file and hashes it on the way.
#[derive(Debug)]
pub struct HashingFile {
    file: File,
    sha256: Sha256,
    bytes: u64,
    spool: Share,
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
    pub(super) fn create(
        owner: Arc<BootSpool>,
        table: &str,
        sequence: u64,
        path: PathBuf,
    ) -> Result<Self, SpoolError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(SpoolError::at("create", &path))?;
        let spool = owner.spool.clone();
        let writer = HashingFile { file, sha256: Sha256::new(), bytes: 0, spool, sealed: false };
        Ok(Self { owner, table: table.to_owned(), sequence, path, writer: Some(writer), sealed: false })
    }

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
