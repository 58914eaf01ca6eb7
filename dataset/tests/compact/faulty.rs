// SPDX-License-Identifier: Apache-2.0

//! A store that goes wrong at one moment, over a folder.
//!
//! Puts and deletes are counted. At the one that is named the fault happens: a process that dies reaches the store no more. One whose
//! last write was done and answered with an error leaves what one leaves that dies at the next.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// From then on nothing is done, and nothing answered.
    Dies,
    /// Just before, somebody else creates the object.
    Overtaken,
    /// Everything but deletes works, always.
    KeepsAll,
    /// What is put there is another thing, of the same length.
    Corrupts,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Faulty {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) fault: Fault,
    /// Which write, from 0.
    pub(crate) at: u64,
    pub(crate) writes: Arc<AtomicU64>,
}

impl Faulty {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, fault: Fault, at: u64) -> Self {
        Self { store, fault, at, writes: Arc::default() }
    }

    /// Whether the fault has happened.
    pub(crate) fn happened(&self) -> bool {
        self.writes.load(Ordering::Relaxed) > self.at
    }

    fn alive(&self) -> Result<()> {
        let dead = self.fault == Fault::Dies && self.happened();
        if dead { Err(gone()) } else { Ok(()) }
    }

    /// Whether this write is the one.
    fn write(&self) -> Result<bool> {
        self.alive()?;
        Ok(self.writes.fetch_add(1, Ordering::Relaxed) == self.at)
    }
}

fn gone() -> Error {
    Error::Generic { store: "faulty", source: "the process died".into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} over {}", self.fault, self.store)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let now = self.write()?;
        match self.fault {
            Fault::Dies if now => Err(gone()),
            Fault::Overtaken if now => {
                self.store.put(path, PutPayload::from_static(b"somebody else's")).await?;
                self.store.put_opts(path, payload, options).await
            }
            Fault::Corrupts if now => {
                let mut other = Bytes::from(payload).to_vec();
                let middle = other.len() / 2;
                other[middle] ^= 1;
                self.store.put_opts(path, other.into(), options).await
            }
            _ => self.store.put_opts(path, payload, options).await,
        }
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        unreachable!("nothing is created in parts: that would not be create-only")
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.alive()?;
        self.store.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.alive()?;
        self.store.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        paths
            .and_then(move |path| {
                let this = this.clone();
                async move {
                    let now = this.write()?;
                    match this.fault {
                        Fault::Dies if now => return Err(gone()),
                        Fault::KeepsAll => {
                            let source = "not allowed".into();
                            return Err(Error::PermissionDenied { path: path.to_string(), source });
                        }
                        _ => {}
                    }
                    this.store.delete(&path).await.map(|()| path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.alive() {
            Ok(()) => self.store.list(prefix),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.alive()?;
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        unreachable!("nothing is copied")
    }
}
