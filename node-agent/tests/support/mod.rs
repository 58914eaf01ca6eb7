// SPDX-License-Identifier: Apache-2.0

//! An S3 server in this process with faults on demand, grants for it, and an engine whose events are given by the test.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow_array::builder::StringDictionaryBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use dataset::key::{Key, SessionPrefix};
use futures::future::BoxFuture;
use node_agent::engine::{
    Batch, CollectorOutcome, CollectorState, EngineError, Output, SessionSpec, TableCounters, TargetCoverage,
    TargetSpec,
};
use node_agent::kernel::clock;
use node_agent::metrics::Metrics;
use node_agent::pipeline::cost::Cost;
use node_agent::pipeline::segment::{Segments, Sinks};
use node_agent::pipeline::spool::Spool;
use node_agent::pipeline::unsealed::Unsealed;
use node_agent::pipeline::upload::{
    Destination, Grant, GrantError, GrantRequest, GrantSource, ObjectName, Uploader,
};
use node_agent::session::{Node, Recorder, Session};
use object_store::ObjectStore;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::signer::{SignedUrlOptions, Signer};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, dto};
use tokio::net::TcpListener;

pub(crate) const BOOT: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const NODE: &str = "node-1";
const BUCKET: &str = "traces";
const KEY: &str = "test-access-key";
const SECRET: &str = "test-secret-key";
const PATIENCE: Duration = Duration::from_secs(30);

/// What happens to the next PUT, or to the next HEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not stored, and answered with this status.
    Refuse(u16),
    /// Stored, and answered with 500.
    StoreThenFail,
    /// The connection breaks in the middle of the body.
    CutBody,
    /// Stored, and the connection breaks before the answer.
    CutAnswer,
    /// Stored, and answered with the checksum of something else.
    WrongChecksum,
    /// Stored, and answered with the ETag of something else and no checksum.
    WrongEtag,
    /// Never answered.
    Hang,
    /// The body is read to its end, and the answer comes a byte at a time without an end.
    Trickle,
}

#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Mutex<FaultState>>);

#[derive(Default)]
struct FaultState {
    puts: VecDeque<Fault>,
    heads: VecDeque<Fault>,
    /// Of each PUT for which nothing else is said.
    always: Option<Fault>,
    /// When each PUT came.
    came: Vec<Instant>,
}

impl Faults {
    pub(crate) fn push(&self, faults: &[Fault]) {
        self.0.lock().unwrap().puts.extend(faults);
    }

    /// Of the next HEADs.
    pub(crate) fn push_heads(&self, faults: &[Fault]) {
        self.0.lock().unwrap().heads.extend(faults);
    }

    /// Of every PUT from now on.
    pub(crate) fn always(&self, fault: Fault) {
        self.0.lock().unwrap().always = Some(fault);
    }

    /// The store works again.
    pub(crate) fn clear(&self) {
        let mut state = self.0.lock().unwrap();
        (state.puts, state.heads, state.always) = Default::default();
    }

    /// PUTs seen so far.
    pub(crate) fn puts(&self) -> u64 {
        self.0.lock().unwrap().came.len() as u64
    }

    /// When they came.
    pub(crate) fn came(&self) -> Vec<Instant> {
        self.0.lock().unwrap().came.clone()
    }

    pub(crate) fn are_used_up(&self) -> bool {
        let state = self.0.lock().unwrap();
        state.puts.is_empty() && state.heads.is_empty()
    }

    fn next(&self, method: &Method) -> Option<Fault> {
        let mut state = self.0.lock().unwrap();
        match *method {
            Method::PUT => {
                state.came.push(Instant::now());
                state.puts.pop_front().or(state.always)
            }
            Method::HEAD => state.heads.pop_front(),
            _ => None,
        }
    }
}

pub(crate) struct Server {
    pub(crate) faults: Faults,
    pub(crate) client: Arc<AmazonS3>,
    _folder: tempfile::TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::of(false).await
    }

    /// A store that overwrites where it is asked to create only.
    pub(crate) async fn without_conditional_put() -> Self {
        Self::of(true).await
    }

    async fn of(overwrites: bool) -> Self {
        _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let files = s3s_fs::FileSystem::new(folder.path()).unwrap();
        let mut builder = S3ServiceBuilder::new(Files { files, overwrites });
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = builder.build();
        let faults = Faults::default();
        let layer = faults.clone();
        let answer = move |request: Request| {
            let (service, fault) = (service.clone(), layer.next(request.method()));
            async move {
                match fault {
                    Some(Fault::Refuse(status)) => {
                        return StatusCode::from_u16(status).unwrap().into_response();
                    }
                    Some(Fault::CutBody) => {
                        let mut body = request.into_body().into_data_stream();
                        _ = futures::StreamExt::next(&mut body).await;
                        break_connection();
                    }
                    Some(Fault::Hang) => std::future::pending::<()>().await,
                    Some(Fault::Trickle) => {
                        let mut body = request.into_body().into_data_stream();
                        while futures::StreamExt::next(&mut body).await.is_some() {}
                        return (StatusCode::SERVICE_UNAVAILABLE, Body::from_stream(trickle()))
                            .into_response();
                    }
                    _ => {}
                }
                let mut response: Response = match service
                    .call(request.map(s3s::Body::http_body_unsync))
                    .await
                {
                    Ok(response) => response.map(Body::new),
                    Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")).into_response(),
                };
                match fault {
                    Some(Fault::StoreThenFail) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                    Some(Fault::CutAnswer) => break_connection(),
                    Some(Fault::WrongChecksum) => {
                        let wrong = HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
                        response.headers_mut().insert("x-amz-checksum-sha256", wrong);
                        response
                    }
                    Some(Fault::WrongEtag) => {
                        response.headers_mut().remove("x-amz-checksum-sha256");
                        response.headers_mut().insert("etag", HeaderValue::from_static("\"other\""));
                        response
                    }
                    _ => response,
                }
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        let client = AmazonS3Builder::new()
            .with_endpoint(format!("http://127.0.0.1:{port}"))
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_bucket_name(BUCKET)
            .with_access_key_id(KEY)
            .with_secret_access_key(SECRET)
            .build()
            .unwrap();
        Self { faults, client: Arc::new(client), _folder: folder }
    }
}

/// The task that serves a connection ends, and the connection with it; no panic message is printed.
fn break_connection() -> ! {
    std::panic::resume_unwind(Box::new("the connection breaks"))
}

/// A byte at a time, without an end.
fn trickle() -> impl futures::Stream<Item = std::io::Result<&'static [u8]>> {
    futures::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Some((Ok(b"x".as_slice()), ()))
    })
}

/// s3s-fs, which may forget that it was asked to create only.
struct Files {
    files: s3s_fs::FileSystem,
    overwrites: bool,
}

#[tonic::async_trait]
impl S3 for Files {
    async fn put_object(
        &self,
        mut request: S3Request<dto::PutObjectInput>,
    ) -> S3Result<S3Response<dto::PutObjectOutput>> {
        if self.overwrites {
            request.input.if_none_match = None;
        }
        self.files.put_object(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<dto::HeadObjectInput>,
    ) -> S3Result<S3Response<dto::HeadObjectOutput>> {
        self.files.head_object(request).await
    }

    async fn get_object(
        &self,
        request: S3Request<dto::GetObjectInput>,
    ) -> S3Result<S3Response<dto::GetObjectOutput>> {
        self.files.get_object(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<dto::ListObjectsV2Input>,
    ) -> S3Result<S3Response<dto::ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }
}

/// Where the session's objects lie.
pub(crate) fn prefix() -> SessionPrefix {
    prefix_of("uid-1")
}

pub(crate) fn prefix_of(uid: &str) -> SessionPrefix {
    SessionPrefix::new("prefix", "shop", "checkout", uid).unwrap()
}

/// Uploads to the server, with its grants.
pub(crate) fn granted(server: &Server) -> Destination {
    Destination::Granted(Arc::new(Grants { client: server.client.clone(), prefix: prefix() }))
}

/// The same for several sessions, each with a store of its own.
pub(crate) fn granted_each(stores: &[(&'static str, &Server)]) -> Destination {
    let grants = stores
        .iter()
        .map(|&(uid, server)| (uid, Grants { client: server.client.clone(), prefix: prefix_of(uid) }));
    Destination::Granted(Arc::new(Each(grants.collect())))
}

struct Each(BTreeMap<&'static str, Grants>);

impl GrantSource for Each {
    fn grant<'a>(&'a self, request: &'a GrantRequest) -> BoxFuture<'a, Result<Grant, GrantError>> {
        self.0[&*request.session].grant(request)
    }
}

/// Signs as the operator does.
struct Grants {
    client: Arc<AmazonS3>,
    prefix: SessionPrefix,
}

impl GrantSource for Grants {
    fn grant<'a>(&'a self, request: &'a GrantRequest) -> BoxFuture<'a, Result<Grant, GrantError>> {
        Box::pin(async move {
            let boot = request.boot.parse().unwrap();
            let key = match &request.object {
                ObjectName::Segment { table, sequence } => Key::segment(table, NODE, &boot, *sequence),
                ObjectName::NodeManifest => Key::node_manifest(NODE, &boot),
            }
            .unwrap();
            let path = self.prefix.object(&key);
            let checksum = base64::engine::general_purpose::STANDARD.encode(request.sha256);
            let put_headers = BTreeMap::from([
                ("if-none-match".to_owned(), "*".to_owned()),
                ("x-amz-checksum-sha256".to_owned(), checksum),
            ]);
            let mut options = SignedUrlOptions::default();
            for (name, value) in &put_headers {
                options = options.with_signed_header(name.parse().unwrap(), value.parse().unwrap());
            }
            let minutes = Duration::from_secs(600);
            let put = self.client.signed_url_opts(Method::PUT, &path, minutes, &options).await;
            let head = self.client.signed_url(Method::HEAD, &path, minutes).await;
            Ok(Grant {
                put_url: put.unwrap().to_string(),
                put_headers,
                head_url: head.unwrap().to_string(),
                ca_bundle: String::new(),
                key: key.relative(),
                guard: None,
            })
        })
    }
}

/// Hands on what the test gives it, and counts that as emitted.
pub(crate) struct Synthetic {
    out: SyncSender<Output>,
    counters: HashMap<&'static str, TableCounters>,
    unsealed: HashMap<&'static str, Unsealed>,
    from_ns: u64,
    to_ns: Option<u64>,
}

impl Synthetic {
    /// One batch of `table` with these times; `lost` further events find the ring full.
    pub(crate) fn events(&mut self, session: &str, table: &'static str, times: &[i64], lost: u64) {
        self.rows(session, table, rows(table, times), times.len() as u64, lost);
    }

    /// The same of whole rows, which stand for `weight` events.
    pub(crate) fn rows(
        &mut self,
        session: &str,
        table: &'static str,
        rows: RecordBatch,
        weight: u64,
        lost: u64,
    ) {
        let counters =
            self.counters.entry(table).or_insert(TableCounters { table, ..TableCounters::default() });
        counters.emitted += weight + lost;
        counters.ring_full += lost;
        let unsealed = self.unsealed.entry(table).or_default();
        let times = rows.column_by_name("ts_ns").unwrap().as_primitive::<Int64Type>();
        times.values().iter().for_each(|ns| unsealed.saw(ns.cast_unsigned()));
        let mark = unsealed.hand_on();
        let batch = Batch { session: session.into(), table, rows, weight, mark, cost: Cost::default() };
        self.out.send(Output::Batch(batch)).unwrap();
    }
}

impl Recorder for Synthetic {
    fn open(&mut self, spec: SessionSpec) -> Result<Vec<CollectorOutcome>, EngineError> {
        self.from_ns = clock::boot_ns();
        let outcome = |collector: node_agent::engine::CollectorSpec| CollectorOutcome {
            collector: collector.name,
            state: CollectorState::Running,
        };
        Ok(spec.collectors.into_iter().map(outcome).collect())
    }

    fn set_targets(&mut self, _: &str, _: &[TargetSpec]) -> Result<(), EngineError> {
        Ok(())
    }

    fn mend(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn learn(&mut self, _: &[TargetSpec]) {}

    fn close(&mut self, session: &str, _: bool) {
        self.to_ns = Some(clock::boot_ns());
        self.out.send(Output::Closed { session: session.into() }).unwrap();
    }

    fn counters(&self, _: &str) -> Vec<TableCounters> {
        let now = clock::boot_ns();
        let sealed = |table| self.unsealed[table].oldest().unwrap_or(now);
        self.counters
            .values()
            .map(|one| TableCounters { sealed_ns: sealed(one.table), ..one.clone() })
            .collect()
    }

    fn coverage(&self, _: &str) -> Vec<TargetCoverage> {
        vec![TargetCoverage {
            pod_uid: "pod-uid".into(),
            namespace: "shop".into(),
            pod: "web-0".into(),
            container: "app".into(),
            collector: "processes",
            from_ns: self.from_ns,
            to_ns: self.to_ns,
            from_start: true,
            hooks: "tp_btf".into(),
            reason: String::new(),
        }]
    }
}

/// Rows of a table: given times, weight 1, and something valid in every other column.
pub(crate) fn rows(table: &str, times: &[i64]) -> RecordBatch {
    use arrow_schema::DataType;
    let schema = dataset::schema(table).unwrap();
    let n = times.len();
    let column = |field: &arrow_schema::FieldRef| -> ArrayRef {
        match (field.name().as_str(), field.data_type()) {
            ("ts_ns", _) => Arc::new(Int64Array::from(times.to_vec())),
            ("weight", _) => Arc::new(Int64Array::from(vec![1; n])),
            (_, DataType::Int64) => Arc::new(Int64Array::from(vec![7; n])),
            (_, DataType::Int32) => Arc::new(Int32Array::from(vec![7; n])),
            (_, DataType::Float64) => Arc::new(Float64Array::from(vec![0.5; n])),
            (_, DataType::Boolean) => Arc::new(BooleanArray::from(vec![true; n])),
            (_, DataType::Utf8) => Arc::new(StringArray::from(vec!["text"; n])),
            (_, DataType::Timestamp(..)) => {
                let micros: Vec<i64> = times.iter().map(|ns| ns / 1_000).collect();
                Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC"))
            }
            (name, DataType::Dictionary(..)) => {
                let mut words = StringDictionaryBuilder::<Int32Type>::new();
                (0..n).for_each(|i| match name {
                    "node" => words.append_value(NODE),
                    _ => words.append_value(format!("{name}-{}", i % 3)),
                });
                Arc::new(words.finish())
            }
            (name, other) => panic!("column {name} is {other}"),
        }
    };
    RecordBatch::try_new(schema.clone(), schema.fields().iter().map(column).collect()).unwrap()
}

/// One node: spool, segment thread, uploads, and a synthetic engine.
pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) engine: Synthetic,
}

impl World {
    /// A new process on the node whose spool is `root`.
    pub(crate) fn start(root: &std::path::Path, max_bytes: u64, destination: Destination) -> Self {
        Self::patient(Duration::from_secs(30), root, max_bytes, destination)
    }

    /// The same with a store that gets another time for each request.
    pub(crate) fn patient(
        patience: Duration,
        root: &std::path::Path,
        max_bytes: u64,
        destination: Destination,
    ) -> Self {
        let (out, batches) = sync_channel(16);
        let sinks = Sinks::default();
        Segments::new(sinks.clone()).spawn(batches).unwrap();
        let metrics = Arc::new(Metrics::default());
        let node = Node {
            name: NODE.into(),
            boot: BOOT.parse().unwrap(),
            incarnation: Node::new_incarnation(),
            kernel: "6.12".into(),
            arch: "x86_64".into(),
            spool: Spool::open(root, max_bytes).unwrap(),
            sinks,
            uploader: Uploader::within(patience, destination, metrics.clone()),
            runtime: tokio::runtime::Handle::current(),
            metrics,
        };
        Self {
            node,
            engine: Synthetic {
                out,
                counters: HashMap::new(),
                unsealed: HashMap::new(),
                from_ns: 0,
                to_ns: None,
            },
        }
    }

    pub(crate) fn record(&mut self, uid: &str) -> Session {
        let spec = SessionSpec {
            uid: uid.into(),
            collectors: vec![node_agent::engine::CollectorSpec {
                name: "processes".into(),
                ..Default::default()
            }],
            containers: Vec::new(),
            rollover_interval: Duration::from_secs(60),
            rollover_bytes: 1 << 30,
            budget: Default::default(),
        };
        let mut session = Session::resume(self.node.clone(), uid.into()).unwrap();
        session.start(&mut self.engine, spec, Some(clock::boot_ns() + 60_000_000_000)).unwrap();
        session
    }

    pub(crate) async fn finish(&mut self, session: &mut Session) {
        session.drain(&mut self.engine).unwrap();
        self.until(session, Session::is_done).await;
    }

    pub(crate) async fn until(&mut self, session: &mut Session, condition: impl Fn(&Session) -> bool) {
        let began = Instant::now();
        while !condition(session) {
            assert!(
                began.elapsed() < PATIENCE,
                "not within {PATIENCE:?}; upload error: {:?}",
                session.upload_error()
            );
            session.tick(&self.engine);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Writes the session's own files and checks the whole dataset.
pub(crate) async fn close_and_verify(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
) -> dataset::reader::Contents {
    use dataset::closing::{self, Effort};
    use dataset::manifest::{FORMAT_VERSION, SessionFile};
    let session = SessionFile {
        format_version: FORMAT_VERSION,
        namespace: "shop".into(),
        session: "checkout".into(),
        uid: "uid-1".into(),
        cluster_id: String::new(),
        version: String::new(),
        start_time: String::new(),
        spec: Default::default(),
        schemas: dataset::schema::versions(),
    };
    dataset::reader::create_json(store, prefix, &Key::Session, &session).await.unwrap();
    let nodes = BTreeMap::from([(NODE.to_owned(), Some(String::new()))]);
    let closing = closing::close(store, prefix, &nodes, String::new(), Effort::Ordinary).await.unwrap();
    let manifest = closing.manifest;
    dataset::reader::create_json(store, prefix, &Key::manifest(manifest.number), &manifest).await.unwrap();
    let contents = dataset::reader::load(store, prefix).await.unwrap();
    assert_eq!(dataset::check::verify(store, &contents).await.unwrap(), []);
    contents
}
