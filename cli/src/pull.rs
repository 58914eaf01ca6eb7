// SPDX-License-Identifier: Apache-2.0

//! `tracelake pull`: a dataset as a folder.
//!
//! In: a place. Out: the same keys below a folder, each object with the length and SHA-256 that its manifest says. A file is written
//! beside its place and renamed when it is right, so that one that is there is right, and what was pulled before is not pulled
//! again. What lists others comes after them, and the session's manifest last: a folder without one is not whole, and the same command
//! goes on with it. What the folder's own node manifests list and the session has no more, because it was compacted since, is removed at
//! the end: other programs read whatever lies there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use dataset::key::{Key, SessionPrefix};
use dataset::manifest::{NodeManifest, ObjectEntry, SessionFile};
use dataset::reader::{self, Contents, Finding};
use dataset::render;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::local::LocalFileSystem;
use sha2::{Digest, Sha256};

use crate::line::Line;
use crate::location::{Location, Place};
use crate::output::{self, bytes};
use crate::{program, runtime};

/// Objects fetched at the same time.
const FETCHING: usize = 4;
/// A connection may break; more often it stays so.
const TRIES: u32 = 3;
/// Beside an object, while it is fetched.
const UNFINISHED: &str = "part";

/// Arguments of `tracelake pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// The folder, which is made if it is not there.
    folder: PathBuf,
}

/// Fetches what the folder lacks.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    runtime()?.block_on(async {
        let location = args.place.open().await?;
        let (contents, pulled) = pull(&location, &args.folder).await?;
        let removed = match pulled.removed {
            0 => String::new(),
            removed => format!("; {removed} files that the session no longer has were removed"),
        };
        output::print(&format!(
            "{}{} is what its manifests say: {} objects, {} of them fetched now{removed}\n",
            render::summary(&contents),
            args.folder.display(),
            pulled.all,
            pulled.fetched
        ))?;
        Ok(ExitCode::SUCCESS)
    })
}

#[derive(Debug, PartialEq)]
struct Pulled {
    all: usize,
    fetched: usize,
    removed: usize,
}

async fn pull(location: &Location, folder: &Path) -> Result<(Contents, Pulled)> {
    let contents = location.contents().await?;
    if let Some(finding) = contents.compare().into_iter().find(Finding::is_error) {
        bail!("{finding}; `{} verify` says all that is wrong, nothing was fetched", program());
    }
    let session = contents.session.as_ref().context("a dataset that opens has a session")?;
    claim(folder, session)?;
    let before = there(location, &contents, folder).await?;
    // Its first file says whose folder it is, before anything of the session's is there.
    fetch(location, folder, &Key::Session, Promised::length(&contents, &Key::Session)).await?;
    let parts: Vec<(&Key, &NodeManifest)> = contents.parts().collect();
    let objects: Vec<&ObjectEntry> = parts.iter().flat_map(|(_, node)| &node.objects).collect();
    let mut done = stream::iter(&objects)
        .map(|object| async move {
            let key = Key::parse(&object.key)?;
            if is_there(&folder.join(key.relative()), object)? {
                return anyhow::Ok((object, false));
            }
            fetch(location, folder, &key, Promised::of(object)).await.map(|()| (object, true))
        })
        .buffer_unordered(FETCHING);
    let line = Line::new(false);
    let (all, of) = (objects.len(), objects.iter().map(|object| object.bytes).sum::<u64>());
    let (mut there, mut had, mut fetched) = (0, 0, 0);
    while let Some((object, is_new)) = done.try_next().await? {
        (there, had, fetched) = (there + 1, had + object.bytes, fetched + usize::from(is_new));
        line.draw(&format!(
            "{there} of {all} objects, {} of {} are there",
            bytes(had as i64),
            bytes(of as i64)
        ));
    }
    drop((done, line));
    let manifests = contents.objects.keys().filter(|key| matches!(key, Key::Manifest { .. }));
    for key in parts.iter().map(|(key, _)| *key).chain(manifests) {
        fetch(location, folder, key, Promised::length(&contents, key)).await?;
    }
    let wanted: BTreeSet<String> = objects
        .iter()
        .map(|object| object.key.clone())
        .chain(parts.iter().map(|(key, _)| key.relative()))
        .collect();
    let gone: Vec<PathBuf> =
        before.into_iter().filter(|key| !wanted.contains(key)).map(|key| folder.join(key)).collect();
    gone.iter()
        .try_for_each(fs::remove_file)
        .with_context(|| format!("{} has files that the session no longer has", folder.display()))?;
    Ok((contents, Pulled { all, fetched, removed: gone.len() }))
}

/// What a folder has of the session by its own account: its node manifests, and what they list, as far as that is there.
///
/// # Errors
/// When the folder is the place itself, or has the session as it was later.
async fn there(location: &Location, contents: &Contents, folder: &Path) -> Result<Vec<String>> {
    let Ok(canonical) = folder.canonicalize() else { return Ok(Vec::new()) };
    let is_same = |path: PathBuf| path.canonicalize().is_ok_and(|path| path == canonical);
    ensure!(
        !location.is_folder || !is_same(Path::new(&location.root).join(location.prefix.to_string())),
        "{} is the place itself",
        folder.display()
    );
    let store = LocalFileSystem::new_with_prefix(folder)?;
    // One that cannot be read has nothing to say.
    let Ok(before) = reader::load(&store, &SessionPrefix::root("")?).await else { return Ok(Vec::new()) };
    let number = |contents: &Contents| contents.manifest.as_ref().map(|manifest| manifest.number);
    ensure!(
        number(&before) <= number(contents),
        "{} has the session as it was later than what is at {}: an older copy of the store? Nothing was fetched",
        folder.display(),
        location.name
    );
    let listed = before.nodes.values().flat_map(|node| &node.objects).map(|object| object.key.clone());
    let listed = listed.filter(|key| Key::parse(key).is_ok_and(|key| before.objects.contains_key(&key)));
    let manifests = before.objects.keys().filter(|key| matches!(key, Key::NodeManifest { .. }));
    // Lists first: what they list is then nobody's, and does no harm if this ends here.
    Ok(manifests.map(Key::relative).chain(listed).collect())
}

/// Makes sure that the folder is this session's, or nobody's.
fn claim(folder: &Path, session: &SessionFile) -> Result<()> {
    let file = folder.join(Key::Session.relative());
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            ensure!(is_nobodys(folder), "{} holds something else; name a new folder", folder.display());
            return Ok(());
        }
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", file.display())),
    };
    let there: Result<SessionFile, _> = serde_json::from_slice(&text);
    ensure!(
        there.is_ok_and(|there| there.uid == session.uid),
        "{} holds another session; name a new folder",
        folder.display()
    );
    Ok(())
}

/// Whether a folder is not there, or empty, or holds no more than what is made before its first file is.
fn is_nobodys(folder: &Path) -> bool {
    let first = folder.join(Key::Session.relative()).with_added_extension(UNFINISHED);
    let only = |folder: &Path, one: &Path| {
        let Ok(mut entries) = fs::read_dir(folder) else { return true };
        entries.all(|entry| entry.is_ok_and(|entry| entry.path() == one))
    };
    let internal = first.parent().unwrap_or(folder);
    only(folder, internal) && (!internal.is_dir() || only(internal, &first))
}

fn is_there(path: &Path, object: &ObjectEntry) -> Result<bool> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    if file.metadata()?.len() != object.bytes {
        return Ok(false);
    }
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(digest.finalize()) == object.sha256),
            read => digest.update(&buffer[..read]),
        }
    }
}

/// What an object is to be.
#[derive(Clone, Copy)]
struct Promised<'a> {
    /// In bytes: more is not written, whatever the store sends.
    bytes: u64,
    /// Of the content; none for the session's own files, which no manifest lists.
    sha256: Option<&'a str>,
}

impl<'a> Promised<'a> {
    /// As a manifest says.
    fn of(object: &'a ObjectEntry) -> Self {
        Self { bytes: object.bytes, sha256: Some(&object.sha256) }
    }

    /// As the store lists it.
    fn length(contents: &Contents, key: &Key) -> Self {
        Self { bytes: contents.objects.get(key).copied().unwrap_or_default(), sha256: None }
    }
}

/// Fetches one object.
async fn fetch(location: &Location, folder: &Path, key: &Key, promised: Promised<'_>) -> Result<()> {
    let path = folder.join(key.relative());
    let parent = path.parent().context("a key has a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
    let unfinished = path.with_added_extension(UNFINISHED);
    let mut tries = 0;
    loop {
        tries += 1;
        match write(location, key, &unfinished, promised).await {
            Ok(()) => break,
            Err(Failed::Store(error)) if tries < TRIES => {
                tracing::warn!(%key, %error, "not fetched, will retry");
            }
            Err(Failed::Store(error)) => {
                return Err(error)
                    .with_context(|| format!("{key} cannot be fetched; the same command goes on from here"));
            }
            Err(Failed::Other(error)) => return Err(error),
        }
    }
    fs::rename(&unfinished, &path).with_context(|| format!("{} cannot be made", path.display()))
}

enum Failed {
    /// Another try may do.
    Store(object_store::Error),
    Other(anyhow::Error),
}

impl From<object_store::Error> for Failed {
    fn from(error: object_store::Error) -> Self {
        Self::Store(error)
    }
}

async fn write(location: &Location, key: &Key, path: &Path, promised: Promised<'_>) -> Result<(), Failed> {
    let unwritten = |error: std::io::Error| {
        Failed::Other(anyhow::Error::from(error).context(format!("{} cannot be written", path.display())))
    };
    let mut body = location.store.get(&location.prefix.object(key)).await?.into_stream();
    let mut file = File::create(path).map_err(unwritten)?;
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    while let Some(chunk) = body.try_next().await? {
        digest.update(&chunk);
        bytes += chunk.len() as u64;
        if bytes > promised.bytes {
            let _ = fs::remove_file(path);
            return Err(Failed::Other(anyhow::anyhow!(
                "{key} goes on after the {} bytes that it should have: the store's copy was changed, `{} verify` says what else",
                promised.bytes,
                program()
            )));
        }
        file.write_all(&chunk).map_err(unwritten)?;
    }
    file.sync_all().map_err(unwritten)?;
    let found = hex::encode(digest.finalize());
    if bytes == promised.bytes && promised.sha256.is_none_or(|sha256| sha256 == found) {
        return Ok(());
    }
    // It was read whole: the store has something else.
    let _ = fs::remove_file(path);
    let promise = promised.sha256.map(|sha256| format!(" with {sha256}")).unwrap_or_default();
    Err(Failed::Other(anyhow::anyhow!(
        "{key} has {bytes} bytes with SHA-256 {found}, {} should be there{promise}: the store's copy was changed, \
         `{} verify` says what else",
        promised.bytes,
        program()
    )))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use dataset::manifest::{FORMAT_VERSION, Manifest, ManifestNode};
    use object_store::ObjectStore;
    use object_store::memory::InMemory;

    use super::*;

    const BOOT: &str = "0123456789abcdef0123456789abcdef";

    /// A whole session of UID `uid` at the root of a store, with these contents as objects of one table; and their keys.
    pub(crate) async fn session(uid: &str, contents: &[&str]) -> (Arc<dyn ObjectStore>, Vec<String>) {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let prefix = SessionPrefix::root("").unwrap();
        let session = SessionFile {
            format_version: FORMAT_VERSION,
            namespace: "shop".to_owned(),
            session: "checkout".to_owned(),
            uid: uid.to_owned(),
            cluster_id: String::new(),
            version: String::new(),
            start_time: "2026-11-23T00:00:00Z".to_owned(),
            spec: serde_json::Value::Null,
            schemas: Default::default(),
        };
        reader::create_json(store.as_ref(), &prefix, &Key::Session, &session).await.unwrap();
        let mut objects = Vec::new();
        for (sequence, content) in contents.iter().enumerate() {
            let key = Key::segment("processes", "n", &BOOT.parse().unwrap(), sequence as u64).unwrap();
            store.put(&prefix.object(&key), (*content).to_owned().into()).await.unwrap();
            let sha256 = hex::encode(Sha256::digest(content));
            let bytes = content.len() as u64;
            objects.push(ObjectEntry { key: key.relative(), rows: 0, weight: 0, bytes, sha256 });
        }
        let keys = objects.iter().map(|object| object.key.clone()).collect();
        let node = NodeManifest {
            format_version: FORMAT_VERSION,
            node: "n".to_owned(),
            boot: BOOT.to_owned(),
            incarnations: Vec::new(),
            objects,
            ledger: Vec::new(),
            coverage: Vec::new(),
        };
        let of_node = Key::node_manifest("n", &BOOT.parse().unwrap()).unwrap();
        reader::create_json(store.as_ref(), &prefix, &of_node, &node).await.unwrap();
        let node = ManifestNode {
            node: "n".to_owned(),
            manifests: vec![of_node.relative()],
            totals: node.totals(),
            reason: String::new(),
        };
        let manifest = Manifest::new(1, String::new(), vec![node]);
        reader::create_json(store.as_ref(), &prefix, &Key::manifest(1), &manifest).await.unwrap();
        (store, keys)
    }

    pub(crate) fn at(store: &Arc<dyn ObjectStore>) -> Location {
        Location {
            store: store.clone(),
            prefix: SessionPrefix::root("").unwrap(),
            name: "memory".to_owned(),
            root: "memory".to_owned(),
            is_folder: false,
            is_session: true,
        }
    }

    async fn is_whole(folder: &Path) -> bool {
        Location::open(folder.to_str().unwrap()).unwrap().contents().await.is_ok()
    }

    #[tokio::test]
    async fn what_is_there_and_right_is_not_fetched_again() {
        let (store, keys) = session("uid", &["one", "two", "three"]).await;
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made/for/it");
        let pulled = pull(&at(&store), &folder).await.unwrap().1;
        assert_eq!(pulled, Pulled { all: 3, fetched: 3, removed: 0 });
        for (key, content) in keys.iter().zip(["one", "two", "three"]) {
            assert_eq!(fs::read_to_string(folder.join(key)).unwrap(), content);
        }
        assert!(is_whole(&folder).await);
        assert_eq!(pull(&at(&store), &folder).await.unwrap().1, Pulled { all: 3, fetched: 0, removed: 0 });

        // One of the same length, one cut short, one that was never finished.
        fs::write(folder.join(&keys[0]), "eno").unwrap();
        fs::write(folder.join(&keys[1]), "t").unwrap();
        fs::rename(folder.join(&keys[2]), folder.join(&keys[2]).with_added_extension(UNFINISHED)).unwrap();
        assert_eq!(pull(&at(&store), &folder).await.unwrap().1, Pulled { all: 3, fetched: 3, removed: 0 });
        assert_eq!(fs::read_to_string(folder.join(&keys[0])).unwrap(), "one");
        assert!(!folder.join(&keys[2]).with_added_extension(UNFINISHED).exists());
    }

    #[tokio::test]
    async fn what_the_session_no_longer_has_goes_from_the_folder_and_nothing_else() {
        let (store, keys) = session("uid", &["one", "two", "three"]).await;
        let folder = tempfile::tempdir().unwrap();
        pull(&at(&store), folder.path()).await.unwrap();
        // Somebody's own, one of them under a name that an object might have.
        let kept = folder.path().join("processes_before").join(keys[1].rsplit('/').next().unwrap());
        fs::create_dir(kept.parent().unwrap()).unwrap();
        let mine = [folder.path().join("processes/mine.parquet"), folder.path().join("notes.txt"), kept];
        mine.iter().for_each(|path| fs::write(path, "mine").unwrap());

        // As a compacted session is: a node manifest of the next generation takes the other's place.
        let prefix = SessionPrefix::root("").unwrap();
        let first = Key::node_manifest("n", &BOOT.parse().unwrap()).unwrap();
        let mut node: NodeManifest = reader::read_json(store.as_ref(), &prefix, &first, 9_999).await.unwrap();
        node.objects.truncate(1);
        let next = first.clone().of_generation(2);
        reader::create_json(store.as_ref(), &prefix, &next, &node).await.unwrap();
        let of_node = ManifestNode {
            node: "n".to_owned(),
            manifests: vec![next.relative()],
            totals: node.totals(),
            reason: String::new(),
        };
        let manifest = Manifest::new(2, String::new(), vec![of_node]);
        reader::create_json(store.as_ref(), &prefix, &Key::manifest(2), &manifest).await.unwrap();

        let pulled = pull(&at(&store), folder.path()).await.unwrap().1;
        assert_eq!(pulled, Pulled { all: 1, fetched: 0, removed: 3 });
        let there = |key: &str| folder.path().join(key).exists();
        assert!(there(&keys[0]) && there(&next.relative()) && is_whole(folder.path()).await);
        assert!(!there(&keys[1]) && !there(&keys[2]) && !there(&first.relative()));
        assert!(mine.iter().all(|path| path.exists()));

        // A copy of the store from before does not undo it.
        let (older, _) = session("uid", &["one", "two", "three"]).await;
        let error = pull(&at(&older), folder.path()).await.unwrap_err().to_string();
        assert!(error.contains("as it was later"), "{error}");
        assert!(is_whole(folder.path()).await);
        let itself = Location::open(folder.path().to_str().unwrap()).unwrap();
        let error = pull(&itself, folder.path()).await.unwrap_err().to_string();
        assert!(error.contains("is the place itself"), "{error}");
    }

    #[tokio::test]
    async fn what_was_changed_in_the_store_never_stands_in_the_folder_which_is_not_whole() {
        let (store, keys) = session("uid", &["one", "two"]).await;
        store.put(&keys[1].as_str().into(), "owt".into()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let error = pull(&at(&store), folder.path()).await.unwrap_err().to_string();
        assert!(error.contains("the store's copy was changed"), "{error}");
        assert!(!folder.path().join(&keys[1]).exists() && !is_whole(folder.path()).await);
        // It goes on where it was.
        store.put(&keys[1].as_str().into(), "two".into()).await.unwrap();
        assert_eq!(
            pull(&at(&store), folder.path()).await.unwrap().1,
            Pulled { all: 2, fetched: 1, removed: 0 }
        );
        assert!(is_whole(folder.path()).await);

        store.put(&keys[0].as_str().into(), "longer".into()).await.unwrap();
        let error = pull(&at(&store), folder.path()).await.unwrap_err().to_string();
        assert!(error.contains("nothing was fetched"), "{error}");
    }

    #[tokio::test]
    async fn what_a_store_sends_beyond_what_it_promised_is_not_written() {
        let (store, keys) = session("uid", &["one"]).await;
        store.put(&keys[0].as_str().into(), "one, and more without an end".into()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let key = Key::parse(&keys[0]).unwrap();
        for promised in [Promised { bytes: 3, sha256: None }, Promised { bytes: 3, sha256: Some("x") }] {
            let Err(Failed::Other(error)) = write(&at(&store), &key, &path, promised).await else {
                panic!("it is taken");
            };
            assert!(error.to_string().contains("goes on after the 3 bytes"), "{error}");
            assert!(!path.exists());
        }
    }

    #[tokio::test]
    async fn what_is_not_over_or_not_there_is_named_and_nothing_is_made() {
        let (store, _) = session("uid", &["one"]).await;
        store.delete(&"_tracelake/manifest-1.json".into()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let error = pull(&at(&store), &folder).await.unwrap_err().to_string();
        assert!(error.contains("has no _tracelake/manifest-1.json: it is not over"), "{error}");
        store.delete(&"_tracelake/session.json".into()).await.unwrap();
        let error = pull(&at(&store), &folder).await.unwrap_err().to_string();
        assert!(error.contains("no session lies at memory") && error.contains("`tracelake ls`"), "{error}");
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn what_the_sessions_manifest_says_otherwise_than_its_nodes_is_not_called_whole() {
        let (store, _) = session("uid", &["one"]).await;
        let folder = tempfile::tempdir().unwrap();
        let mut missing: Manifest =
            reader::read_json(store.as_ref(), &SessionPrefix::root("").unwrap(), &Key::manifest(1), 9_999)
                .await
                .unwrap();
        missing.nodes[0].manifests.push(format!("_tracelake/other_{BOOT}.json"));
        let mut totals = missing.clone();
        totals.nodes[0].manifests.pop();
        totals.totals.rows = 7;
        for (manifest, words) in [(missing, "is listed but not in the store"), (totals, "its totals")] {
            let json = serde_json::to_vec(&manifest).unwrap();
            store.put(&"_tracelake/manifest-1.json".into(), json.into()).await.unwrap();
            let error = pull(&at(&store), folder.path()).await.unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("nothing was fetched"), "{error}");
        }
    }

    #[tokio::test]
    async fn what_ended_before_its_first_file_was_there_goes_on() {
        let (store, _) = session("uid", &["one"]).await;
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("_tracelake")).unwrap();
        pull(&at(&store), folder.path()).await.unwrap();
        let session = folder.path().join("_tracelake/session.json");
        for unfinished in ["_tracelake/session.json.part", "_tracelake/another.part"] {
            let begun = tempfile::tempdir().unwrap();
            fs::create_dir(begun.path().join("_tracelake")).unwrap();
            fs::copy(&session, begun.path().join(unfinished)).unwrap();
            let pulled = pull(&at(&store), begun.path()).await;
            assert_eq!(pulled.is_ok(), unfinished.contains("session"), "{unfinished}");
        }
    }

    #[tokio::test]
    async fn a_folder_of_something_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = session("uid", &["one"]).await;
        fs::write(folder.path().join("mine.txt"), "mine").unwrap();
        let error = pull(&at(&store), folder.path()).await.unwrap_err().to_string();
        assert!(error.contains("holds something else"), "{error}");
        fs::remove_file(folder.path().join("mine.txt")).unwrap();
        pull(&at(&store), folder.path()).await.unwrap();
        let (other, _) = session("uid-of-another", &["one"]).await;
        let error = pull(&at(&other), folder.path()).await.unwrap_err().to_string();
        assert!(error.contains("holds another session"), "{error}");
    }
}
