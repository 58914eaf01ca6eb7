// SPDX-License-Identifier: Apache-2.0
//! The cgroup (v2) tree on disk: where it is mounted, and what lies in it already.
//!
//! In: the mount or a configured root. Out: directories with their ids (inode numbers, which are what hooks see).
//! A directory that vanishes during the walk is left out: it is not there any more.

use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// The root of the v2 hierarchy: the one given, its `unified` folder (hybrid hosts), or the mount this process sees.
///
/// # Errors
/// When none of these is a cgroup2 file system.
pub fn root(configured: Option<&Path>) -> io::Result<PathBuf> {
    let mounted = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let cgroup2 = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        cgroup2.split(' ').nth(4).map(PathBuf::from)
    };
    let candidates = match configured {
        Some(root) => vec![root.to_owned(), root.join("unified")],
        None => mounted().into_iter().collect(),
    };
    candidates.into_iter().find(|path| is_cgroup2(path)).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            match configured {
                Some(root) => {
                    format!("{} is not a cgroup v2 file system, nor is its folder unified", root.display())
                }
                None => "no cgroup v2 file system is mounted; this node needs cgroup v2".to_owned(),
            },
        )
    })
}

fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|statfs| statfs.f_type == CGROUP2_SUPER_MAGIC)
}

/// Id of the cgroup at `path`.
///
/// # Errors
/// When it is not there.
pub fn id(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|metadata| metadata.ino())
}

/// Visits every cgroup below `path` (itself left out), parents first: (parent's id, id, path). `visit` says whether to
/// go on below.
pub fn walk(path: &Path, visit: &mut dyn FnMut(u64, u64, &Path) -> bool) {
    let Ok(parent) = id(path) else { return };
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let below = entry.path();
        if visit(parent, entry.ino(), &below) {
            walk(&below, visit);
        }
    }
}
