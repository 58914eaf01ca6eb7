// SPDX-License-Identifier: Apache-2.0

//! One PUT by a grant, and what its answer proves.
//!
//! In: a [`Grant`] and the content. Out: that the store holds exactly this content, or why that is not certain. Memory: one
//! chunk of a file at a time, and the beginning of an answer.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, StatusCode, header};
use md5::{Digest, Md5};
use node_api::egress::{AddressRefused, Guard};
use reqwest::{Body, Certificate, Client, Url};
use tokio::io::AsyncReadExt;
use tracing::info;

use super::Uploader;
use super::grant::{Grant, GrantRequest, UploadError};

const CHUNK: usize = 256 << 10;
/// HTTP clients that are kept, each with its connections.
const CLIENTS_MAX: usize = 64;
/// The slowest store that is waited for.
const MIN_BYTES_PER_SECOND: u64 = 64 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// S3's name for the checksum, in requests and answers.
const CHECKSUM: &str = "x-amz-checksum-sha256";
const ENCRYPTION: &str = "x-amz-server-side-encryption";

/// Certificates to trust besides the public ones, and what may not be connected to.
pub(super) type ClientKey = (String, Option<Guard>);

/// What is uploaded.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file of the spool.
    File(PathBuf),
    /// Something small in memory.
    Bytes(Bytes),
}

impl Uploader {
    /// Creates the object, in one attempt.
    pub(super) async fn put(
        &self,
        grant: &Grant,
        request: &GrantRequest,
        content: &Content,
    ) -> Result<(), UploadError> {
        let client = self.client(grant)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &grant.put_headers {
            let bad = || UploadError::Invalid(format!("the grant's header {name:?} is not one"));
            let name = header::HeaderName::try_from(name).map_err(|_| bad())?;
            headers.insert(name, header::HeaderValue::try_from(value).map_err(|_| bad())?);
        }
        headers.insert(header::CONTENT_LENGTH, request.length.into());
        let timeout = self.patience + Duration::from_secs(request.length / MIN_BYTES_PER_SECOND);
        let put = client
            .put(&grant.put_url)
            .headers(headers)
            .timeout(timeout)
            .body(content.body(request.length).await?);
        let answer = put.send().await.map_err(unreachable)?;
        let (status, sent) = (answer.status(), answer.headers().get(CHECKSUM).cloned());
        match status {
            status if status.is_success() => match sent {
                Some(sum) if sum.as_bytes() != BASE64.encode(request.sha256).as_bytes() => {
                    Err(UploadError::ChecksumMismatch { key: grant.key.clone() })
                }
                _ => Ok(()),
            },
            StatusCode::PRECONDITION_FAILED => self.compare(&client, grant, request, content).await,
            status => {
                let body = tokio::time::timeout(CONNECT_TIMEOUT, limited(answer)).await.unwrap_or_default();
                Err(UploadError::StoreError { status, code: store_code(&body) })
            }
        }
    }

    /// Finds out whether the object that is there already is ours.
    async fn compare(
        &self,
        client: &Client,
        grant: &Grant,
        request: &GrantRequest,
        content: &Content,
    ) -> Result<(), UploadError> {
        let head = || client.head(&grant.head_url).timeout(self.patience).send();
        let answer = match head().await {
            // A store that refuses before it has read the body closes the connection, which may be the one that was
            // just taken for this request.
            Err(error) if !error.is_timeout() => head().await,
            answer => answer,
        }
        .map_err(unreachable)?;
        if !answer.status().is_success() {
            // Absent after all, or not to be seen now: the next attempt tells.
            return Err(UploadError::StoreError { status: answer.status(), code: String::new() });
        }
        let conflict = || UploadError::ObjectConflict { key: grant.key.clone() };
        let text = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        if text("content-length").and_then(|length| length.parse().ok()) != Some(request.length) {
            return Err(conflict());
        }
        if let Some(sum) = text(CHECKSUM) {
            return if sum == BASE64.encode(request.sha256) { Ok(()) } else { Err(conflict()) };
        }
        if text(ENCRYPTION).is_some_and(|kind| kind.starts_with("aws:")) {
            // Encrypted with a managed key, where the ETag is not of the content. The key is ours alone (it names node,
            // boot and sequence) and every put for it was bound to a checksum, so equal length is what can be asked.
            return Ok(());
        }
        let md5 = content.md5().await?;
        match text("etag") {
            Some(etag) if etag.trim_matches('"').eq_ignore_ascii_case(&md5) => {
                info!(key = grant.key, "an earlier upload had got through");
                Ok(())
            }
            _ => Err(conflict()),
        }
    }

    /// A client that trusts the public roots and this bundle. It follows no redirect: a store that sends one elsewhere
    /// would send our data with it. An administrator's store is behind the environment's proxy, if there is one (`HTTPS_PROXY`
    /// and the like); a tenant's never is, since the proxy would be asked for the address that is to be checked.
    fn client(&self, grant: &Grant) -> Result<Client, UploadError> {
        let Grant { ca_bundle, guard, put_url, head_url, .. } = grant;
        if let Some(guard) = guard {
            for url in [put_url, head_url] {
                let url = Url::parse(url)
                    .map_err(|error| UploadError::Invalid(format!("the grant's URL: {error}")))?;
                guard.admit(url.host_str().unwrap_or_default())?;
            }
        }
        let key = (ca_bundle.clone(), guard.clone());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = clients.iter().find(|(known, _)| *known == key) {
            return Ok(client.clone());
        }
        let invalid = |error: reqwest::Error| {
            UploadError::Invalid(format!("the store's CA bundle is not usable: {error}"))
        };
        let mut roots = Certificate::from_pem_bundle(ca_bundle.as_bytes()).map_err(invalid)?;
        for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
            roots.push(Certificate::from_der(root).map_err(invalid)?);
        }
        let mut builder = Client::builder()
            .tls_certs_only(roots)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT);
        if let Some(guard) = guard {
            builder = builder.no_proxy().dns_resolver(guard.resolver());
        }
        let client = builder.build().map_err(invalid)?;
        if clients.len() == CLIENTS_MAX {
            clients.pop_front();
        }
        clients.push_back((key, client.clone()));
        Ok(client)
    }
}

impl Content {
    pub(super) async fn read(&self) -> Result<Bytes, UploadError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::File(path) => {
                tokio::fs::read(path).await.map(Bytes::from).map_err(|error| spool_read(path, &error))
            }
        }
    }

    async fn body(&self, length: u64) -> Result<Body, UploadError> {
        match self {
            Self::Bytes(bytes) => Ok(Body::from(bytes.clone())),
            Self::File(path) => {
                let file = tokio::fs::File::open(path).await.map_err(|error| spool_read(path, &error))?;
                let chunks = stream::try_unfold(file.take(length), |mut file| async move {
                    let mut chunk = Vec::with_capacity(CHUNK);
                    let read = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await?;
                    Ok::<_, std::io::Error>((read > 0).then(|| (Bytes::from(chunk), file)))
                });
                Ok(Body::wrap_stream(chunks))
            }
        }
    }

    async fn md5(&self) -> Result<String, UploadError> {
        let mut md5 = Md5::new();
        match self {
            Self::Bytes(bytes) => md5.update(bytes),
            Self::File(path) => {
                let failed = |error: std::io::Error| spool_read(path, &error);
                let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
                let mut chunk = vec![0; CHUNK];
                loop {
                    match file.read(&mut chunk).await.map_err(failed)? {
                        0 => break,
                        read => md5.update(&chunk[..read]),
                    }
                }
            }
        }
        Ok(hex::encode(md5.finalize()))
    }
}

fn spool_read(path: &Path, error: &std::io::Error) -> UploadError {
    UploadError::SpoolRead(format!("{}: {error}", path.display()))
}

/// The beginning of an answer's body; the rest of a hostile one is not read.
async fn limited(mut answer: reqwest::Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > 4096 {
            break;
        }
    }
    body
}

/// S3's error code (`AccessDenied`) out of its XML, after a space; nothing else of the body is shown.
pub(super) fn store_code(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let code =
        text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
    match code {
        Some(code) if code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            format!(" {code}")
        }
        _ => String::new(),
    }
}

/// Without the URL, which is a secret.
fn unreachable(error: reqwest::Error) -> UploadError {
    let error = error.without_url();
    if let Some(refused) = AddressRefused::find(&error) {
        return refused.clone().into();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    UploadError::StoreUnreachable(text)
}

/// The server that a URL is of: scheme, name and port, where several buckets may be.
pub(super) fn server(url: &str) -> String {
    Url::parse(url).map(|url| url.origin().ascii_serialization()).unwrap_or_default()
}
