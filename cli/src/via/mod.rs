// SPDX-License-Identifier: Apache-2.0

//! A session as a store that the operator opens: it lists and signs, the store itself is asked for the data.
//!
//! URLs hold for minutes. One that has grown old is replaced by asking for the page that begins with it, so that a command may
//! take longer than its URLs hold. The session is pinned by its UID: one of the same name that is made meanwhile is not mixed in.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use http::uri::Authority;
use node_api::data::data_client::DataClient;
use node_api::data::{ListRequest, ListResponse};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HOST, RANGE};
use reqwest::{StatusCode, Url};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

const NAME: &str = "operator";
/// An operator that is asked too much, or another that takes over, answers within this many tries a second apart.
const TRIES: u32 = 15;
const PAUSE: Duration = Duration::from_secs(1);
/// A store that is asked too much, or not reached, has so many tries, the second after this pause, and each pause twice the last one.
const STORE_TRIES: u32 = 4;
const STORE_PAUSE: Duration = Duration::from_millis(250);
/// A token of ten minutes is shown for half of its time.
const TOKEN_USED: Duration = Duration::from_secs(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// For one page: the operator itself gives up after 30 s, and may first have to be reached.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);

/// Notices within twice this time that a connection is gone, though nothing says so.
pub(crate) fn watched(endpoint: Endpoint, every: Duration) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(every)
        .keep_alive_timeout(every)
        .keep_alive_while_idle(true)
}

/// Makes a new token.
pub(crate) type Tokens = Box<dyn Fn() -> BoxFuture<'static, Result<String>> + Send + Sync>;

/// Who asks whom for what.
pub(crate) struct Source {
    pub(crate) channel: Channel,
    pub(crate) tokens: Tokens,
    pub(crate) namespace: String,
    pub(crate) session: String,
    /// HOST:PORT where the store is reached, if not under its own name.
    pub(crate) store_address: Option<String>,
    /// For one page.
    pub(crate) patience: Duration,
}

/// One session, read-only. Paths are relative to its folder.
#[derive(Clone)]
pub(crate) struct ViaOperator(Arc<Inner>);

struct Inner {
    source: Source,
    uid: String,
    http: reqwest::Client,
    elsewhere: Option<Elsewhere>,
    token: tokio::sync::Mutex<Option<(String, Instant)>>,
    known: Mutex<HashMap<String, Known>>,
}

/// A URL that was signed.
#[derive(Clone)]
struct Known {
    url: String,
    bytes: u64,
    until: Instant,
}

impl fmt::Debug for ViaOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ViaOperator({}/{})", self.0.source.namespace, self.0.source.session)
    }
}

impl fmt::Display for ViaOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl ViaOperator {
    /// Asks for the first page. Also returns where the data are, as an `s3://` URL.
    ///
    /// # Errors
    /// What the operator says, or that it cannot be asked.
    pub(crate) async fn open(source: Source) -> Result<(Self, String)> {
        let elsewhere = source.store_address.as_deref().map(Elsewhere::parse).transpose()?;
        let inner = Inner {
            source,
            uid: String::new(),
            http: reqwest::Client::new(),
            elsewhere,
            token: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        };
        let first = inner.ask("").await?;
        let roots = reqwest::Certificate::from_pem_bundle(first.ca_bundle.as_bytes())
            .context("the store's CA bundle cannot be read")?;
        let mut http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_merge(roots)
            .user_agent(concat!("tracelake/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        if let Some(elsewhere) = &inner.elsewhere {
            // HTTP/2 would ask by the port that was forwarded, not by the one that was signed; a proxy would look the name up itself.
            http = http.dns_resolver(Arc::new(elsewhere.clone())).http1_only().no_proxy();
        }
        Ok((Self(Arc::new(Inner { uid: first.uid, http: http.build()?, ..inner })), first.uri))
    }

    /// The objects after a key, and whether others follow.
    async fn page(&self, after: &str) -> object_store::Result<(Vec<ObjectMeta>, bool)> {
        let asked = Instant::now();
        let page = self.0.ask(after).await.map_err(generic)?;
        // A quarter is left for the request itself.
        let until = asked + Duration::from_secs(page.seconds.into()).mul_f32(0.75);
        let mut metas = Vec::with_capacity(page.objects.len());
        let mut known = self.0.known();
        for object in page.objects {
            metas.push(meta(Path::parse(&object.key)?, object.bytes));
            known.insert(object.key, Known { url: object.get_url, bytes: object.bytes, until });
        }
        Ok((metas, page.more))
    }

    /// A URL for an object that still holds.
    async fn url(&self, location: &Path) -> object_store::Result<Known> {
        let key = location.as_ref();
        let fresh = || self.0.known().get(key).filter(|known| known.until > Instant::now()).cloned();
        if let Some(known) = fresh() {
            return Ok(known);
        }
        // What sorts before the key, and after the keys before it.
        let mut after = key.to_owned();
        after.pop();
        let after = after.trim_end_matches('/');
        self.page(after).await?;
        fresh().ok_or_else(|| Error::NotFound {
            path: key.to_owned(),
            source: "the operator does not list it".into(),
        })
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().expect("no panic while held")
    }

    async fn token(&self) -> Result<String> {
        let mut held = self.token.lock().await;
        if let Some((token, made)) = &*held
            && made.elapsed() < TOKEN_USED
        {
            return Ok(token.clone());
        }
        let token = (self.source.tokens)().await?;
        *held = Some((token.clone(), Instant::now()));
        Ok(token)
    }

    async fn ask(&self, after: &str) -> Result<ListResponse> {
        let message = ListRequest {
            namespace: self.source.namespace.clone(),
            session: self.source.session.clone(),
            uid: self.uid.clone(),
            after: after.to_owned(),
        };
        let mut tries = 0;
        loop {
            let mut request = Request::new(message.clone());
            node_api::token::attach(request.metadata_mut(), &self.token().await?)?;
            let mut client = DataClient::new(self.source.channel.clone());
            let answer = tokio::time::timeout(self.source.patience, client.list(request)).await;
            let patience = self.source.patience.as_secs();
            let silent = || {
                anyhow!("the operator does not answer within {patience} s; the same command may be run again")
            };
            match answer.map_err(|_| silent())? {
                Ok(page) => return Ok(page.into_inner()),
                Err(status) if may_pass(&status) && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(status) => return Err(refused(&status)),
            }
        }
    }

    fn request(&self, url: &str) -> Result<reqwest::RequestBuilder> {
        let mut url = Url::parse(url)?;
        let Some(elsewhere) = &self.elsewhere else { return Ok(self.http.get(url)) };
        // What was signed is the name that the store is asked by, not where it is; a certificate is for the name as well.
        let name = url.host_str().unwrap_or_default().to_owned();
        let host = url.port().map_or(name.clone(), |port| format!("{name}:{port}"));
        if url.domain().is_none() {
            // An address is looked up nowhere.
            if url.scheme() != "http" {
                bail!(
                    "--store-address needs a store with a name: the certificate of {name} is for that address"
                );
            }
            url.set_host(Some(&elsewhere.host))?;
        }
        url.set_port(Some(elsewhere.port)).map_err(|()| anyhow!("{name} has no port"))?;
        Ok(self.http.get(url).header(HOST, host))
    }
}

/// Where the store is reached, whatever its name.
#[derive(Clone)]
struct Elsewhere {
    host: String,
    port: u16,
}

impl Elsewhere {
    fn parse(address: &str) -> Result<Self> {
        // A user's name before the host would be part of it.
        let parsed = address.parse::<Authority>().ok().filter(|_| !address.contains('@'));
        let parts = parsed.as_ref().and_then(|parsed| Some((parsed.host(), parsed.port_u16()?)));
        let (host, port) = parts
            .filter(|(host, _)| !host.is_empty())
            .with_context(|| format!("--store-address {address:?} is not HOST:PORT"))?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Resolve for Elsewhere {
    fn resolve(&self, _: Name) -> Resolving {
        let there = self.to_string();
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host(there).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether another try may be answered. What ended with its connection, as when the leader dies meanwhile, was not answered at
/// all, whatever its code: only then is there a cause, which no answer carries.
fn may_pass(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
        || (status.code() == Code::Unavailable && !status.message().starts_with("store_not_ready: "))
}

/// Whether a store that answers so may do better soon.
fn is_for_a_while(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

fn unreached(error: reqwest::Error, known: &Known, elsewhere: Option<&Elsewhere>) -> anyhow::Error {
    // Its URL is a secret, and long.
    let error = anyhow::Error::from(error.without_url());
    let host = Url::parse(&known.url).ok().and_then(|url| url.host_str().map(str::to_owned));
    let host = host.unwrap_or_default();
    error.context(match elsewhere {
        Some(there) => format!("the store {host} cannot be reached at {there}, which --store-address names"),
        None => format!(
            "the store at {host} cannot be reached from here; if you forwarded a port to it, name that with --store-address"
        ),
    })
}

fn refused(status: &Status) -> anyhow::Error {
    // The operator's own words begin with the denial's label; the others are of the connection.
    let label = status.message().split(": ").next().unwrap_or_default();
    let is_label = !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    match status.code() {
        Code::Unimplemented => anyhow!("the operator is older than --via-operator: upgrade the chart"),
        _ if is_label => anyhow!("the operator says {}", status.message()),
        _ => anyhow::Error::from(status.clone()).context("the operator cannot be reached"),
    }
}

fn meta(location: Path, size: u64) -> ObjectMeta {
    ObjectMeta { location, last_modified: Default::default(), size, e_tag: None, version: None }
}

fn generic(error: anyhow::Error) -> Error {
    Error::Generic { store: NAME, source: error.into() }
}

fn read_only<T>() -> object_store::Result<T> {
    Err(Error::NotSupported { source: "what the operator signs is for reading alone".into() })
}

#[tonic::async_trait]
impl ObjectStore for ViaOperator {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> object_store::Result<PutResult> {
        read_only()
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        read_only()
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        if options.head {
            // What is signed is for reading; how long an object is the operator has said.
            let known = self.url(location).await?;
            return Ok(GetResult {
                payload: GetResultPayload::Stream(stream::empty().boxed()),
                meta: meta(location.clone(), known.bytes),
                range: 0..known.bytes,
                attributes: Default::default(),
                extensions: Default::default(),
            });
        }
        let mut pause = STORE_PAUSE;
        let mut tries = 1;
        let (answer, known, part) = loop {
            // Anew for each try: the URL may have grown old meanwhile.
            let known = self.url(location).await?;
            let mut request = self.0.request(&known.url).map_err(generic)?;
            let mut part = None;
            if let Some(range) = &options.range {
                request = request.header(RANGE, range.to_string());
                part = Some(range.as_range(known.bytes).map_err(|error| generic(error.into()))?);
            }
            let answer = request.send().await;
            let passes = answer.as_ref().map_or(true, |answer| is_for_a_while(answer.status()));
            if !passes || tries == STORE_TRIES {
                break (
                    answer.map_err(|error| generic(unreached(error, &known, self.0.elsewhere.as_ref())))?,
                    known,
                    part,
                );
            }
            tokio::time::sleep(pause).await;
            (tries, pause) = (tries + 1, pause * 2);
        };
        match answer.status() {
            StatusCode::OK if part.is_none() => {}
            StatusCode::PARTIAL_CONTENT if part.is_some() => {}
            StatusCode::OK => {
                return Err(generic(anyhow!("the store gives whole objects, not the part asked for")));
            }
            StatusCode::NOT_FOUND => {
                return Err(Error::NotFound {
                    path: location.to_string(),
                    source: "the store has it no more".into(),
                });
            }
            other => return Err(generic(anyhow!("the store answers {other}"))),
        }
        let (range, size) = match part {
            Some(part) => (part, known.bytes),
            None => {
                let size = answer.content_length().unwrap_or(known.bytes);
                (0..size, size)
            }
        };
        let body = answer.bytes_stream().map_err(|error| generic(error.without_url().into()));
        Ok(GetResult {
            payload: GetResultPayload::Stream(body.boxed()),
            meta: meta(location.clone(), size),
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(
        &self,
        _: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        stream::once(async { read_only() }).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let store = self.clone();
        let prefix = prefix.filter(|prefix| !prefix.as_ref().is_empty()).cloned();
        let pages = stream::try_unfold(Some(String::new()), move |after| {
            let store = store.clone();
            async move {
                let Some(after) = after else { return Ok(None) };
                let (metas, more) = store.page(&after).await?;
                // A page that ends where it began would begin again.
                let last = metas.last().map(|meta| meta.location.to_string()).filter(|last| *last > after);
                Ok::<_, Error>(Some((stream::iter(metas.into_iter().map(Ok)), last.filter(|_| more))))
            }
        });
        pages
            .try_flatten()
            .try_filter(move |meta: &ObjectMeta| {
                let inside = prefix.as_ref().is_none_or(|prefix| meta.location.prefix_matches(prefix));
                std::future::ready(inside)
            })
            .boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> object_store::Result<ListResult> {
        Err(Error::NotSupported { source: "one session is listed whole".into() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> object_store::Result<()> {
        read_only()
    }
}

#[cfg(test)]
mod tests;
