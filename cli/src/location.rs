// SPDX-License-Identifier: Apache-2.0

//! Where a dataset is: a folder or an `s3://bucket/prefix` URL.
//!
//! S3 is reached with the caller's own credentials, in the way other tools do: `AWS_ACCESS_KEY_ID`,
//! `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT`, `AWS_ALLOW_HTTP`, or the machine's role.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use dataset::key::SessionPrefix;
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;

/// A store, and the folder in it that holds one session.
pub(crate) struct Location {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) prefix: SessionPrefix,
    /// As the user wrote it.
    pub(crate) name: String,
    /// On this machine.
    pub(crate) is_folder: bool,
}

impl Location {
    /// Opens a place that exists.
    ///
    /// # Errors
    /// When it is no folder and no S3 URL, or the environment's S3 settings are not complete.
    pub(crate) fn open(text: &str) -> Result<Self> {
        let Some(rest) = text.strip_prefix("s3://") else {
            if text.contains("://") {
                bail!("{text} is neither a folder nor an s3:// URL");
            }
            let store = LocalFileSystem::new_with_prefix(text)
                .with_context(|| format!("the folder {text} cannot be opened"))?;
            return Ok(Self {
                store: Arc::new(store),
                prefix: SessionPrefix::root("")?,
                name: text.to_owned(),
                is_folder: true,
            });
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .build()
            .with_context(|| format!("the settings for {text} are not complete (AWS_* variables)"))?;
        let prefix = SessionPrefix::root(prefix.trim_end_matches('/'))?;
        Ok(Self { store: Arc::new(store), prefix, name: text.to_owned(), is_folder: false })
    }

    /// Opens a place, making the folder if it is not there.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the folder cannot be made.
    pub(crate) fn create(text: &str) -> Result<Self> {
        if !text.contains("://") {
            std::fs::create_dir_all(Path::new(text)).with_context(|| {
                format!("the output folder {text} cannot be made; choose another one with -o")
            })?;
        }
        Self::open(text)
    }
}
