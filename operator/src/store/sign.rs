// SPDX-License-Identifier: Apache-2.0
//! Grants: leave to create one object with one content, for a short time; and leave to read one.
//!
//! In: a key of the session and the SHA-256 of what will lie there. Out: a presigned PUT and a presigned HEAD; for readers a
//! presigned GET. Signing is local arithmetic and needs no store.
//!
//! `If-None-Match: *` and the checksum are among the *signed* headers. Left unsigned, the holder of a grant could leave
//! them out and overwrite; signed, the store refuses a request without them or with other values (tests/store_s3.rs).
//! The length cannot be signed; the digest fixes the content and with it the length.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crds::conditions::reason;
use dataset::key::Key;
use http::{HeaderName, HeaderValue, Method};
use node_api::egress::Guard;
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};

use super::{Connection, ResolvedStore, StoreProblem};

/// How long a grant holds, in seconds.
pub const GRANT_SECONDS: u64 = 15 * 60;

/// With the operator's own identity, whose tokens expire: they are renewed five minutes before that, so a grant
/// of five minutes does not outlive its token.
const AMBIENT_GRANT_SECONDS: u64 = 5 * 60;

/// The most that one PUT can carry on S3: 5 GiB.
const OBJECT_MAX: u64 = 5 << 30;

/// Leave to create one object. Its URLs are secrets: they are never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Grant {
    /// Takes the content, once.
    pub put_url: String,
    /// To send with the PUT exactly as they are: they are signed.
    pub put_headers: BTreeMap<String, String>,
    /// Answers whether the object is there, and its length.
    pub head_url: String,
    /// Certificates in PEM to trust besides the public ones; empty: none.
    pub ca_bundle: String,
    /// What the holder may not connect to, for a tenant's store.
    pub guard: Option<Guard>,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grant(..)")
    }
}

impl ResolvedStore {
    /// Signs the leave to create the object `key` of this session with `length` bytes of this digest.
    ///
    /// # Errors
    /// When the object is too large for one PUT, or the operator's identity cannot be had.
    pub async fn grant(&self, key: &Key, length: u64, sha256: &[u8; 32]) -> Result<Grant, StoreProblem> {
        if length > OBJECT_MAX {
            return Err(StoreProblem::new(
                reason::STORE_ERROR,
                format!(
                    "{key} has {length} bytes and one PUT carries {OBJECT_MAX}: lower spec.rollover.size"
                ),
            ));
        }
        self.grant_for(key, sha256, Duration::from_secs(self.grant_seconds())).await
    }

    /// How long what is signed now holds.
    pub fn grant_seconds(&self) -> u64 {
        if self.connection.ambient { AMBIENT_GRANT_SECONDS } else { GRANT_SECONDS }
    }

    /// Signs the leave to read an object of this session; none for an object elsewhere.
    ///
    /// # Errors
    /// When the operator's identity cannot be had.
    pub async fn read_url(&self, path: &Path) -> Result<Option<String>, StoreProblem> {
        if self.prefix.strip(path).is_none_or(str::is_empty) {
            return Ok(None);
        }
        let time = Duration::from_secs(self.grant_seconds());
        url(&self.connection, Method::GET, path, time, &SignedUrlOptions::default()).await.map(Some)
    }

    /// Certificates in PEM to trust besides the public ones; empty: none.
    pub fn ca_bundle(&self) -> String {
        self.connection.ca_bundle.clone()
    }

    /// As [`grant`](Self::grant), for another time: for tests of what happens after it.
    ///
    /// # Errors
    /// When the operator's identity cannot be had.
    pub async fn grant_for(
        &self,
        key: &Key,
        sha256: &[u8; 32],
        time: Duration,
    ) -> Result<Grant, StoreProblem> {
        let path = self.prefix.object(key);
        let (put_url, put_headers) = put(&self.connection, &path, sha256, time).await?;
        let head_url = url(&self.connection, Method::HEAD, &path, time, &SignedUrlOptions::default()).await?;
        let ca_bundle = self.ca_bundle();
        Ok(Grant { put_url, put_headers, head_url, ca_bundle, guard: self.connection.guard.clone() })
    }
}

/// A create-only PUT of one content.
pub(super) async fn put(
    connection: &Connection,
    path: &Path,
    sha256: &[u8; 32],
    time: Duration,
) -> Result<(String, BTreeMap<String, String>), StoreProblem> {
    let headers = [("if-none-match", "*".to_owned()), ("x-amz-checksum-sha256", STANDARD.encode(sha256))];
    let mut options = SignedUrlOptions::default();
    for (name, value) in &headers {
        let value = HeaderValue::from_str(value).expect("base64 is a header's value");
        options = options.with_signed_header(HeaderName::from_static(name), value);
    }
    let url = url(connection, Method::PUT, path, time, &options).await?;
    Ok((url, headers.map(|(name, value)| (name.to_owned(), value)).into()))
}

/// One presigned request.
pub(super) async fn url(
    connection: &Connection,
    method: Method,
    path: &Path,
    time: Duration,
    options: &SignedUrlOptions,
) -> Result<String, StoreProblem> {
    match connection.s3.signed_url_opts(method, path, time, options).await {
        Ok(url) => Ok(url.into()),
        Err(error) => {
            // Only an identity from the environment is asked for over the network; its answer is not shown.
            tracing::warn!(kind = error_kind(&error), "signing failed");
            Err(StoreProblem::new(
                reason::NO_AMBIENT_CREDENTIALS,
                "the operator's environment gives it no credentials, or who gives them refuses it: look at the role of its \
                 ServiceAccount or of the chart's operator.webIdentity, or name a Secret in spec.credentials.secretRef",
            ))
        }
    }
}

fn error_kind(error: &object_store::Error) -> &'static str {
    match error {
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            "refused"
        }
        object_store::Error::NotFound { .. } => "not found",
        _ => "other",
    }
}
