// SPDX-License-Identifier: Apache-2.0

//! The folder for everything that commands make: `$XDG_CACHE_HOME/tracelake` or `~/.cache/tracelake`.
//!
//! An entry is named after the hash of its inputs, is made under a temporary name and renamed when it
//! is complete: a changed input makes a new entry, an unchanged one costs nothing, and what an interrupted
//! command leaves is never taken for an entry, and goes when the next one is made. The whole folder may be
//! deleted at any time while no cluster runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::exec;

/// Entries that another input replaced are kept this long: a running cluster may still use them.
const KEEP_REPLACED: Duration = Duration::from_secs(24 * 60 * 60);

/// The cache folder.
pub(crate) fn dir() -> PathBuf {
    let base =
        std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from).unwrap_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache"),
        );
    base.join("tracelake")
}

/// The repository's root: of the checkout that cargo runs this in, as two of them may share one compiled binary.
pub(crate) fn repository() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let own = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let own = own.filter(|path| path.ends_with("xtask"));
        let own = own.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        own.parent().expect("xtask is a folder of the repository").to_owned()
    });
    &ROOT
}

/// Where product builds go; xtask itself is compiled in `./target`, so the two never wait for each other.
pub(crate) fn target_dir() -> PathBuf {
    dir().join("target")
}

/// `cargo`, in the repository's root, with [`target_dir`] and the tools of the cache.
///
/// Its PATH is the same whoever calls: build scripts that compile C are run again when PATH changes, and with
/// them most of the dependencies.
pub(crate) fn cargo() -> Result<Command> {
    claim_target()?;
    Ok(cargo_in(repository(), &target_dir()))
}

/// The same for another source, with a target folder that nobody shares with it.
pub(crate) fn cargo_in(source: &Path, target: &Path) -> Command {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let mut path = dir().join("tools/bin").into_os_string();
    path.push(":");
    path.push(home.unwrap_or_default().join("bin"));
    path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut cargo = exec::command("cargo", [] as [&str; 0]);
    cargo.current_dir(source).env("CARGO_TARGET_DIR", target).env("PATH", path);
    cargo
}

/// Forgets what another checkout has built of the workspace in [`target_dir`]. Checkouts share its names there, and cargo
/// compares times of files only: what the other built last would be taken for this one's. Dependencies are kept.
fn claim_target() -> Result<()> {
    let (mark, own) = (target_dir().join("checkout"), repository().to_string_lossy());
    let _lock = lock("target")?;
    if fs::read_to_string(&mark).is_ok_and(|last| last == own) {
        return Ok(());
    }
    // <profile>, <triple>/<profile>, and the kernel programs' bpf/<triple>/<profile>.
    let mut level = vec![target_dir()];
    for _ in 0..3 {
        let folders = level.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        level = folders.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        for built in
            level.iter().filter_map(|folder| fs::read_dir(folder.join(".fingerprint")).ok()).flatten()
        {
            let built = built?;
            let name = built.file_name().to_string_lossy().into_owned();
            if name.starts_with("tracelake-") || name.starts_with("xtask-") {
                fs::remove_dir_all(built.path())?;
            }
        }
    }
    fs::create_dir_all(target_dir())?;
    fs::write(&mark, &*own).with_context(|| format!("cannot write {}", mark.display()))
}

/// Makes sure that only one process at a time does what `name` stands for, until the result is dropped.
pub(crate) fn lock(name: &str) -> Result<File> {
    let folder = dir().join("locks");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join(name);
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        println!("{name}: waiting for another xtask");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// The hash of an entry's inputs.
#[derive(Default)]
pub(crate) struct Key(Sha256);

impl Key {
    /// Adds a text, such as a version or a recipe.
    pub(crate) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// Adds what would be a file's content.
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(bytes.len().to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds a file's content.
    pub(crate) fn file(mut self, path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        self.0.update(file.metadata()?.len().to_le_bytes());
        std::io::copy(&mut file, &mut self.0).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(self)
    }

    /// Adds names and contents of all files of a folder.
    pub(crate) fn folder(mut self, path: &Path) -> Result<Self> {
        let mut entries: Vec<_> = fs::read_dir(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            self = self.text(&entry.file_name().to_string_lossy());
            self = if entry.file_type()?.is_dir() {
                self.folder(&entry.path())?
            } else {
                self.file(&entry.path())?
            };
        }
        Ok(self)
    }

    fn finish(self) -> String {
        self.0.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The entry `kind/name-KEY`, made by `make` (which gets the path to create, a file or a folder) when it is absent. What
/// `make` needs beside that has the same path with an extension.
pub(crate) fn entry(
    kind: &str,
    name: &str,
    key: Key,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let folder = dir().join(kind);
    let path = folder.join(format!("{name}-{}", key.finish()));
    if path.exists() {
        return Ok(path);
    }
    let _lock = lock(&format!("{kind}-{name}"))?;
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    forget_interrupted(&folder, name)?;
    // Its own, since a child of a maker that was killed may still write to that of the maker.
    let temporary = path.with_added_extension(format!("{}.tmp", std::process::id()));
    step(&format!("{kind}: {name}"), || make(&temporary))
        .with_context(|| format!("cannot make {}", path.display()))?;
    fs::rename(&temporary, &path).with_context(|| format!("{} was not made", temporary.display()))?;
    forget_replaced(&folder, name, &path)?;
    Ok(path)
}

/// Does one piece of work and says how long it took.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = work()?;
    println!("{what} ({:.1} s)", start.elapsed().as_secs_f32());
    Ok(done)
}

/// Removes a file or a folder that may be absent.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// Removes what makers of this name left that did not come to their end; whoever calls it is the only one.
fn forget_interrupted(folder: &Path, name: &str) -> Result<()> {
    for path in of_name(folder, name)?.iter().filter(|path| path.extension().is_some()) {
        // Where a child of the maker still writes, some of it may stay until the next time.
        let _ = remove(path);
    }
    Ok(())
}

fn forget_replaced(folder: &Path, name: &str, current: &Path) -> Result<()> {
    for path in of_name(folder, name)? {
        let age = path.metadata().and_then(|metadata| metadata.modified()).ok();
        let old = age
            .and_then(|time| SystemTime::now().duration_since(time).ok())
            .is_some_and(|age| age > KEEP_REPLACED);
        if old && path != current {
            remove(&path)?;
        }
    }
    Ok(())
}

/// The entries of a name, and with an extension what belongs to their making. Names have no dot, keys and extensions no hyphen.
fn of_name(folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let is_of = |path: &PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str()?.rsplit_once('-'));
        file.is_some_and(|(stem, _)| stem == name)
    };
    Ok(paths.into_iter().filter(is_of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_interrupted_makers_of_a_name_left_goes() {
        let folder = std::env::temp_dir().join(format!("tracelake-cache-{}", std::process::id()));
        fs::create_dir_all(folder.join("node-12.345.tmp.root")).unwrap();
        for name in ["node-12", "node-34.567.tmp", "node-34.567.tmp.root.log", "kind-node-56.78.tmp"] {
            File::create(folder.join(name)).unwrap();
        }
        forget_interrupted(&folder, "node").unwrap();
        let left = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(left, ["kind-node-56.78.tmp", "node-12"], "entries, and what others make right now");
    }
}
