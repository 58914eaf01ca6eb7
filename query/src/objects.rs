// SPDX-License-Identifier: Apache-2.0

//! A session's objects as the store that DataFusion reads: our `object_store` behind the interface of the version that
//! DataFusion is on.
//!
//! In: paths that are keys relative to the session's folder, and ranges. Out: exactly those bytes, by our own store, with its
//! retries and coalescing. Everything but reading is refused. Errors keep their text; one of an object that is not there
//! says so and what to do.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::object_store as theirs;
use dataset::key::{Key, SessionPrefix};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store as ours;
use ours::ObjectStore as _;
use theirs::path::Path;
use theirs::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

const NAME: &str = "session";

/// See the module.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) store: Arc<dyn ours::ObjectStore>,
    pub(crate) prefix: SessionPrefix,
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.prefix, self.store)
    }
}

impl Objects {
    fn path(&self, location: &Path) -> Result<ours::path::Path> {
        let key = Key::parse(location.as_ref())
            .map_err(|error| Error::Generic { store: NAME, source: error.into() })?;
        Ok(self.prefix.object(&key))
    }
}

fn translate(error: ours::Error) -> Error {
    match error {
        ours::Error::NotFound { path, .. } => Error::NotFound {
            path,
            source: "the manifest lists it, the store has it not; if the session was compacted meanwhile, open it again, \
                     else `tracelake verify` says what else is wrong"
                .into(),
        },
        other => Error::Generic { store: NAME, source: other.into() },
    }
}

fn range(range: theirs::GetRange) -> ours::GetRange {
    match range {
        theirs::GetRange::Bounded(range) => ours::GetRange::Bounded(range),
        theirs::GetRange::Offset(from) => ours::GetRange::Offset(from),
        theirs::GetRange::Suffix(bytes) => ours::GetRange::Suffix(bytes),
    }
}

fn refused<T>(what: &str) -> Result<T> {
    Err(Error::NotSupported { source: format!("a session is read, not {what}").into() })
}

#[async_trait]
impl theirs::ObjectStore for Objects {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        refused("written to")
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        refused("written to")
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let GetOptions { range: wanted, head, .. } = options;
        let options = ours::GetOptions { range: wanted.map(range), head, ..Default::default() };
        let got = self.store.get_opts(&self.path(location)?, options).await.map_err(translate)?;
        let meta = ObjectMeta {
            location: location.clone(),
            last_modified: got.meta.last_modified,
            size: got.meta.size,
            e_tag: got.meta.e_tag.clone(),
            version: got.meta.version.clone(),
        };
        let range = got.range.clone();
        let body = got.into_stream().map_err(translate).boxed();
        Ok(GetResult { payload: GetResultPayload::Stream(body), meta, range, attributes: Default::default() })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.store.get_ranges(&self.path(location)?, ranges).await.map_err(translate)
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        stream::once(async { refused("deleted from") }).boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::once(async { refused("listed: its manifest says what is in it") }).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        refused("listed: its manifest says what is in it")
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        refused("written to")
    }
}
