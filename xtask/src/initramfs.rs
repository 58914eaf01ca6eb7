// SPDX-License-Identifier: Apache-2.0

//! Writes initial RAM file systems (cpio, format "newc"), which QEMU hands to the kernel.
//!
//! Written here rather than by `cpio` because the files come from many places and need no staging folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::exec;

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive in the making. Folders appear as the files in them need them.
#[derive(Default)]
pub(crate) struct Initramfs {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    count: u32,
}

impl Initramfs {
    /// An archive with busybox under all its names, and the folders every `init` mounts on.
    pub(crate) fn with_busybox() -> Result<Self> {
        let mut archive = Self::default();
        for folder in ["proc", "sys", "dev", "tmp", "run", "root", "bin", "sbin", "usr/bin", "usr/sbin"] {
            archive.folder(folder);
        }
        // The kernel opens it for PID 1 before anything is mounted.
        archive.record("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), b"");
        archive.copy(Path::new("/usr/bin/busybox"), "bin/busybox", 0o755)?;
        for applet in exec::output(&mut exec::command("busybox", ["--list-full"]))?.lines() {
            let name = applet.rsplit('/').next().unwrap_or(applet);
            if name != "busybox" {
                archive.record(&format!("bin/{name}"), LINK | 0o777, (0, 0), b"busybox");
            }
        }
        Ok(archive)
    }

    /// Adds a folder and those above it.
    pub(crate) fn folder(&mut self, path: &str) {
        if path.is_empty() || self.folders.contains(path) {
            return;
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        self.folders.insert(path.to_owned());
        self.record(path, FOLDER | 0o755, (0, 0), b"");
    }

    /// Adds a file with this content.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = path.trim_start_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        self.record(path, FILE | mode, (0, 0), content);
    }

    /// Adds a copy of a file of the host.
    pub(crate) fn copy(&mut self, from: &Path, to: &str, mode: u32) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(to, mode, &content);
        Ok(())
    }

    /// Ends the archive and returns it.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.record("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }

    /// Ends the archive and writes it.
    pub(crate) fn write(self, path: &Path) -> Result<()> {
        fs::write(path, self.finish()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn record(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.count += 1;
        // Fields: inode, mode, uid, gid, links, mtime, size, device, special device, length of the name, checksum.
        let size = u32::try_from(content.len()).expect("files of an initramfs are far below 4 GiB");
        let name = u32::try_from(path.len() + 1).expect("paths are short");
        self.bytes.extend_from_slice(b"070701");
        for field in [self.count, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
