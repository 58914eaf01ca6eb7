// SPDX-License-Identifier: Apache-2.0

//! Which sessions lie in a store: found by their folders, without a cluster.
//!
//! In: a store and a folder of it. Out: every session at or below that folder, with its first file and its latest manifest.
//! A session is a folder with `_tracelake` in it; what is below it is its own and not looked at.

use futures::{StreamExt, stream};
use object_store::ObjectStore;
use object_store::path::Path;

use crate::key::{INTERNAL, Key, SessionPrefix};
use crate::manifest::{Manifest, SessionFile};
use crate::reader::{MAX_JSON_BYTES, READERS, ReadError, check_version, read_json};

/// Folders between the one that is given and a session: a store's prefix, namespace, name and UID take fewer.
const DEEPEST: usize = 16;

/// One session that was found.
#[derive(Debug)]
pub struct Listed {
    /// Its folder.
    pub prefix: SessionPrefix,
    /// What its files say, or why they cannot be read.
    pub files: Result<Files, ReadError>,
}

/// What says the most about a session in the fewest reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Files {
    /// `session.json`
    pub session: SessionFile,
    /// The manifest with the highest number; none while the session runs.
    pub manifest: Option<Manifest>,
}

/// Every session at or below `folder`, by folder.
///
/// # Errors
/// When the store cannot list. A session that cannot be read is an entry that says why.
pub async fn sessions(store: &dyn ObjectStore, folder: &SessionPrefix) -> Result<Vec<Listed>, ReadError> {
    let mut found = Vec::new();
    let mut level = vec![folder.path().clone()];
    for _ in 0..=DEEPEST {
        let mut next = Vec::new();
        let mut read = stream::iter(level).map(|path| look(store, path)).buffer_unordered(READERS);
        while let Some(seen) = read.next().await {
            let (session, folders) = seen?;
            found.extend(session);
            next.extend(folders);
        }
        drop(read);
        if next.is_empty() {
            break;
        }
        level = next;
    }
    found.sort_by(|a, b| a.prefix.path().cmp(b.prefix.path()));
    Ok(found)
}

/// The session that a folder is, or the folders in it.
async fn look(store: &dyn ObjectStore, path: Path) -> Result<(Option<Listed>, Vec<Path>), ReadError> {
    let failed = |source| ReadError::Store { what: format!("the list of {path}"), source };
    let folders = store.list_with_delimiter(Some(&path)).await.map_err(failed)?.common_prefixes;
    if !folders.iter().any(|folder| folder.filename() == Some(INTERNAL)) {
        return Ok((None, folders));
    }
    let prefix = SessionPrefix::root(path.as_ref())
        .map_err(|error| ReadError::Invalid { key: path.to_string(), reason: error.to_string() })?;
    let files = files(store, &prefix).await;
    Ok((Some(Listed { prefix, files }), Vec::new()))
}

/// The files of the session in this folder.
///
/// # Errors
/// When the store fails, there is no session, or a file cannot be read.
pub async fn files(store: &dyn ObjectStore, prefix: &SessionPrefix) -> Result<Files, ReadError> {
    let internal = prefix.path().clone().join(INTERNAL);
    let mut listing = store.list(Some(&internal));
    let (mut has_session, mut latest) = (false, None);
    while let Some(object) = listing.next().await {
        let object =
            object.map_err(|source| ReadError::Store { what: format!("the list of {internal}"), source })?;
        match prefix.strip(&object.location).map(Key::parse) {
            Some(Ok(Key::Session)) => has_session = true,
            Some(Ok(Key::Manifest { number })) => latest = latest.max(Some(number)),
            _ => {}
        }
    }
    drop(listing);
    if !has_session {
        return Err(ReadError::NotADataset { prefix: prefix.to_string(), missing: Key::Session.relative() });
    }
    let session: SessionFile = read_json(store, prefix, &Key::Session, MAX_JSON_BYTES).await?;
    check_version(&Key::Session, session.format_version)?;
    let Some(number) = latest else { return Ok(Files { session, manifest: None }) };
    let key = Key::manifest(number);
    let manifest: Manifest = read_json(store, prefix, &key, MAX_JSON_BYTES).await?;
    check_version(&key, manifest.format_version)?;
    Ok(Files { session, manifest: Some(manifest) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;
    use crate::manifest::FORMAT_VERSION;
    use crate::reader::create_json;

    async fn session(store: &Arc<dyn ObjectStore>, folder: &str, manifests: u64) {
        let prefix = SessionPrefix::root(folder).unwrap();
        let file = SessionFile {
            format_version: FORMAT_VERSION,
            namespace: "shop".to_owned(),
            session: folder.to_owned(),
            uid: "uid".to_owned(),
            cluster_id: String::new(),
            version: String::new(),
            start_time: "2026-11-23T00:00:00Z".to_owned(),
            spec: serde_json::Value::Null,
            schemas: Default::default(),
        };
        create_json(store.as_ref(), &prefix, &Key::Session, &file).await.unwrap();
        for number in 1..=manifests {
            let manifest = Manifest::new(number, String::new(), Vec::new());
            create_json(store.as_ref(), &prefix, &Key::manifest(number), &manifest).await.unwrap();
        }
    }

    #[tokio::test]
    async fn sessions_are_found_at_any_depth_with_their_latest_manifest() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        session(&store, "team/shop/checkout/uid-1", 10).await;
        session(&store, "team/shop/running/uid-2", 0).await;
        // Within a session is another's file no session; and what is no session is not one.
        store
            .put(&"team/shop/checkout/uid-1/processes/_tracelake/session.json".into(), "{}".into())
            .await
            .unwrap();
        store.put(&"other/data.parquet".into(), "x".into()).await.unwrap();
        store.put(&"broken/_tracelake/session.json".into(), "no JSON".into()).await.unwrap();

        let found = sessions(store.as_ref(), &SessionPrefix::root("").unwrap()).await.unwrap();
        let names: Vec<String> = found.iter().map(|listed| listed.prefix.to_string()).collect();
        assert_eq!(names, ["broken", "team/shop/checkout/uid-1", "team/shop/running/uid-2"]);
        let error = found[0].files.as_ref().unwrap_err().to_string();
        assert!(error.contains("_tracelake/session.json"), "{error}");
        let number = |at: usize| found[at].files.as_ref().unwrap().manifest.as_ref().map(|m| m.number);
        assert_eq!((number(1), number(2)), (Some(10), None));

        let one = SessionPrefix::root("team/shop/checkout/uid-1").unwrap();
        assert_eq!(sessions(store.as_ref(), &one).await.unwrap().len(), 1, "the folder itself");
        assert!(
            sessions(store.as_ref(), &SessionPrefix::root("team/bank").unwrap()).await.unwrap().is_empty()
        );
    }
}
