// SPDX-License-Identifier: Apache-2.0

//! What is asked for an upload, and why one fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use dataset::key::KeyError;
use futures::future::BoxFuture;
use http::StatusCode;
use node_api::egress::{AddressRefused, Guard};

/// One object that is to be created below a session's prefix, as the agent names it; the key is the other side's to compose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRequest {
    /// UID of the session.
    pub session: Arc<str>,
    /// The boot during which the content was made: 32 hex digits.
    pub boot: Arc<str>,
    /// Which object.
    pub object: ObjectName,
    /// Of the content, in bytes.
    pub length: u64,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

/// The two kinds of objects that an agent creates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectName {
    /// `<table>/<node>_<boot>_<sequence>.parquet`
    Segment {
        /// The table's name.
        table: String,
        /// Rising per session, table and boot.
        sequence: u64,
    },
    /// `_tracelake/<node>_<boot>.json`
    NodeManifest,
}

/// Leave to create one object, for a few minutes.
#[derive(Clone)]
pub struct Grant {
    /// Presigned; never logged.
    pub put_url: String,
    /// To send with the PUT, exactly: they are signed.
    pub put_headers: BTreeMap<String, String>,
    /// Presigned HEAD of the same key; never logged.
    pub head_url: String,
    /// PEM certificates to trust for this store besides the public ones; empty: none.
    pub ca_bundle: String,
    /// Relative to the session's prefix.
    pub key: String,
    /// What may not be connected to: a tenant's store may be anywhere that its DNS says.
    pub guard: Option<Guard>,
}

/// Why there is no grant now. Both kinds are asked for again, with backoff: what is over is said by the plan alone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GrantError {
    /// The operator cannot be reached or has no answer now.
    #[error("the operator cannot be reached for an upload grant: {0}")]
    Unavailable(String),
    /// The operator answered no.
    #[error("the operator refused an upload grant: {0}")]
    Refused(String),
}

/// Whoever hands out grants: the operator's client.
pub trait GrantSource: Send + Sync + 'static {
    /// Asks for leave to create one object.
    fn grant<'a>(&'a self, request: &'a GrantRequest) -> BoxFuture<'a, Result<Grant, GrantError>>;
}

/// Why an attempt did not end with an acknowledgement.
#[derive(Clone, Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
pub enum UploadError {
    /// No grant.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// The store cannot be reached, or its answer did not come.
    #[error("the store cannot be reached: {0}")]
    StoreUnreachable(String),
    /// The store is where a tenant's may not be.
    #[error("nothing is sent: {0}")]
    AddressRefused(#[from] AddressRefused),
    /// The disk that the data go to is full.
    #[error("no room is left where the data go")]
    StoreFull,
    /// The store answered with an error.
    #[error("the store answered {status}{code}")]
    StoreError {
        /// The HTTP status.
        status: StatusCode,
        /// The store's own code, if it sent one, after a space.
        code: String,
    },
    /// The store says that it stored something else.
    #[error("the store's checksum of {key} is not ours")]
    ChecksumMismatch {
        /// Relative to the session's folder.
        key: String,
    },
    /// Another object has our key. It is never overwritten.
    #[error("{key} exists in the store with other content: two nodes may have one name and boot id")]
    ObjectConflict {
        /// Relative to the session's folder.
        key: String,
    },
    /// The file cannot be read.
    #[error("cannot read the spooled file: {0}")]
    SpoolRead(String),
    /// The grant or the configuration is not usable.
    #[error("{0}")]
    Invalid(String),
}

impl From<KeyError> for UploadError {
    fn from(error: KeyError) -> Self {
        Self::Invalid(error.to_string())
    }
}
