// SPDX-License-Identifier: Apache-2.0
//! Three S3 servers on loopback: SeaweedFS and Versity's gateway as processes, s3s-fs in this one.

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::response::IntoResponse;
use dataset::key::SessionPrefix;
use http::{Method, StatusCode};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::signer::Signer;
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3, S3Request, S3Response, S3Result, dto};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracelake_operator::store::{Credential, EndpointPolicy, ExtraCa, ResolvedStore, StoreProblem};

pub(crate) const BUCKET: &str = "traces";

pub(crate) fn key(access_key_id: &str, secret_access_key: &str) -> Credential {
    Credential::Key {
        access_key_id: access_key_id.to_owned(),
        secret_access_key: secret_access_key.to_owned(),
        session_token: None,
    }
}

pub(crate) fn writer() -> Credential {
    key("AKWRITER", "writer-secret")
}

pub(crate) fn reader() -> Credential {
    key("AKREADER", "reader-secret")
}

pub(crate) fn s3(endpoint: &str, bucket: &str) -> crds::S3 {
    crds::S3 {
        bucket: bucket.to_owned(),
        prefix: "team/shop".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        region: "us-east-1".to_owned(),
        force_path_style: None,
        ca_bundle: None,
    }
}

pub(crate) fn store(
    s3: crds::S3,
    credential: &Credential,
    policy: Option<EndpointPolicy>,
) -> Result<ResolvedStore, StoreProblem> {
    store_with(s3, credential, policy, None)
}

pub(crate) fn store_with(
    s3: crds::S3,
    credential: &Credential,
    policy: Option<EndpointPolicy>,
    extra_ca: Option<&ExtraCa>,
) -> Result<ResolvedStore, StoreProblem> {
    // Another test may have done it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let prefix = SessionPrefix::new(&s3.prefix, "shop", "checkout", "uid").unwrap();
    ResolvedStore::direct(s3, credential, prefix, policy, extra_ca)
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not done, and answered with this status and code.
    Refuse(u16, &'static str),
    /// Done, and answered with 500.
    DoThenFail,
    /// Done, and the connection breaks in the middle of the answer.
    CutAnswer,
    /// Never answered.
    Hang,
}

/// What is wrong with the server in this process. It is also who knows the keys.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Mutex<FaultState>>);

#[derive(Default)]
struct FaultState {
    next: VecDeque<(Method, Fault)>,
    always: Option<Fault>,
    /// Requests that are not answered.
    hung: u64,
    overwrites: bool,
    /// Secret by id.
    keys: BTreeMap<String, String>,
}

impl Faults {
    /// Of the next requests of these methods, in this order.
    pub(crate) fn push(&self, faults: &[(Method, Fault)]) {
        self.0.lock().unwrap().next.extend(faults.iter().cloned());
    }

    /// Of every request for which nothing else is said; none: the store works again.
    pub(crate) fn always(&self, fault: Option<Fault>) {
        self.0.lock().unwrap().always = fault;
    }

    /// The store forgets that it was asked to create only.
    pub(crate) fn overwrite(&self) {
        self.0.lock().unwrap().overwrites = true;
    }

    /// The only key that is known from now on.
    pub(crate) fn rotate_to(&self, id: &str, secret: &str) {
        self.0.lock().unwrap().keys = [(id.to_owned(), secret.to_owned())].into();
    }

    /// Requests that were not answered.
    pub(crate) fn hung(&self) -> u64 {
        self.0.lock().unwrap().hung
    }

    pub(crate) fn are_used_up(&self) -> bool {
        self.0.lock().unwrap().next.is_empty()
    }

    fn next(&self, method: &Method) -> Option<Fault> {
        let mut state = self.0.lock().unwrap();
        let at = state.next.iter().position(|(of, _)| of == method);
        let fault = at.and_then(|at| state.next.remove(at)).map(|(_, fault)| fault).or(state.always);
        state.hung += u64::from(fault == Some(Fault::Hang));
        fault
    }
}

#[tonic::async_trait]
impl S3Auth for Faults {
    async fn get_secret_key(&self, id: &str) -> S3Result<SecretKey> {
        let state = self.0.lock().unwrap();
        let secret = state.keys.get(id).map(|secret| SecretKey::from(secret.as_str()));
        secret.ok_or_else(|| s3s::S3ErrorCode::InvalidAccessKeyId.into())
    }
}

/// s3s-fs, which may forget that it was asked to create only.
struct Files {
    files: s3s_fs::FileSystem,
    faults: Faults,
}

#[tonic::async_trait]
impl S3 for Files {
    async fn put_object(
        &self,
        mut request: S3Request<dto::PutObjectInput>,
    ) -> S3Result<S3Response<dto::PutObjectOutput>> {
        if self.faults.0.lock().unwrap().overwrites {
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

    async fn delete_object(
        &self,
        request: S3Request<dto::DeleteObjectInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectOutput>> {
        self.files.delete_object(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<dto::ListObjectsV2Input>,
    ) -> S3Result<S3Response<dto::ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }
}

/// A server's binary.
fn program(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable);
    path.unwrap_or_else(|| {
        panic!("{variable} must name the server's binary; `cargo xtask test unit` installs it and sets this")
    })
    .into()
}

/// An S3 server; it ends with the value.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    /// Where it is reached by TLS as well, if it gives keys for tokens: clients of that service take no other.
    pub(crate) by_tls: Option<String>,
    /// Of the one in this process: what is wrong with it.
    pub(crate) faults: Faults,
    process: Option<Child>,
    /// SeaweedFS' other ports: of master, volume and filer, HTTP and gRPC in turn, and the gRPC of S3.
    pub(crate) parts: Vec<u16>,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Server {
    pub(crate) fn store(&self, credential: &Credential) -> ResolvedStore {
        store(s3(&self.endpoint, BUCKET), credential, None).unwrap()
    }

    /// Of the one in this process: nothing is stored any more.
    pub(crate) fn empty(&self) {
        let bucket = self.folder.path().join(BUCKET);
        std::fs::remove_dir_all(&bucket).unwrap();
        std::fs::create_dir(&bucket).unwrap();
    }

    /// The authority of SeaweedFS' certificates.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// Where it is, whatever it is called.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.endpoint.rsplit_once(':').unwrap().1)
    }

    /// s3s-fs with one key and one bucket.
    pub(crate) async fn in_process() -> Self {
        let faults = Faults::default();
        let (app, folder) = app(&faults);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { endpoint, by_tls: None, faults, process: None, parts: Vec::new(), folder }
    }

    /// Versity's gateway over a folder, with the writer as its root and the bucket.
    pub(crate) async fn versitygw() -> Self {
        let gateway = program("TRACELAKE_VERSITYGW");
        let folder = tempfile::tempdir().unwrap();
        let [data, meta] = ["data", "meta"].map(|name| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        });
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(&gateway);
        command
            .args(["--access", "AKWRITER", "--secret", "writer-secret", "--quiet"])
            .arg(format!("--port=127.0.0.1:{port}"))
            // Not every file system that tests run on has extended attributes.
            .args(["posix", "--sidecar"])
            .args([&meta, &data])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap());
        let process = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", gateway.display()));
        let endpoint = format!("http://127.0.0.1:{port}");
        let (faults, process) = (Faults::default(), Some(process));
        let server = Self { endpoint, by_tls: None, faults, process, parts: Vec::new(), folder };
        server.create_bucket().await;
        server
    }

    /// The gateway's bucket is deleted, with all that is in it. (s3s-fs would make it again.)
    pub(crate) fn delete_bucket(&self) {
        std::fs::remove_dir_all(self.folder.path().join("data").join(BUCKET)).unwrap();
    }

    /// The same with a certificate for this name, and the CA that it is of.
    pub(crate) async fn tls(name: &str) -> (Self, String) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        // No two have one name: who is asked for an issuer looks for that first.
        ca.distinguished_name.push(rcgen::DnType::CommonName, uuid::Uuid::new_v4().to_string());
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key.into())
            .unwrap();
        let faults = Faults::default();
        let (app, folder) = app(&faults);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://{name}:{}", listener.local_addr().unwrap().port());
        let listener = Tls { listener, acceptor: TlsAcceptor::from(Arc::new(config)) };
        tokio::spawn(async move { axum::serve(listener, app).await });
        (Self { endpoint, by_tls: None, faults, process: None, parts: Vec::new(), folder }, ca_pem)
    }
}

struct Tls {
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.unwrap();
            // A client that does not trust the certificate goes away.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// What the parts of SeaweedFS know each other by, as the chart's dev store has it.
fn security(folder: &std::path::Path) -> String {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let own = own.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).unwrap();
    let (own, key) = (own.pem(), key.serialize_pem());
    for (name, content) in [("ca.crt", &ca_pem), ("tls.crt", &own), ("tls.key", &key)] {
        std::fs::write(folder.join(name), content).unwrap();
    }
    let folder = folder.display();
    let mut text = format!(
        "[jwt.signing]\nkey = \"write\"\n[jwt.signing.read]\nkey = \"read\"\n[grpc]\nca = \"{folder}/ca.crt\"\n"
    );
    for part in ["master", "volume", "filer", "s3", "client"] {
        text += &format!("[grpc.{part}]\ncert = \"{folder}/tls.crt\"\nkey = \"{folder}/tls.key\"\n");
    }
    text
}

/// s3s-fs with one bucket, and what is to be wrong with it.
fn app(faults: &Faults) -> (axum::Router, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
    faults.0.lock().unwrap().keys.insert("AKWRITER".to_owned(), "writer-secret".to_owned());
    let files = s3s_fs::FileSystem::new(folder.path()).unwrap();
    let mut builder = s3s::service::S3ServiceBuilder::new(Files { files, faults: faults.clone() });
    builder.set_auth(faults.clone());
    let service = builder.build();
    let wrong = faults.clone();
    let app = axum::Router::new().fallback(move |request: axum::extract::Request| {
        let (service, fault) = (service.clone(), wrong.next(request.method()));
        async move {
            if let Some(Fault::Refuse(status, code)) = fault {
                let body = format!("<Error><Code>{code}</Code><RequestId>7F</RequestId></Error>");
                return (StatusCode::from_u16(status).unwrap(), body).into_response();
            }
            if fault == Some(Fault::Hang) {
                std::future::pending::<()>().await;
            }
            let request = request.map(s3s::Body::http_body_unsync);
            let response = match service.call(request).await {
                Ok(response) => response.map(axum::body::Body::new),
                Err(error) => panic!("s3s: {error:?}"),
            };
            match fault {
                Some(Fault::DoThenFail) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                Some(Fault::CutAnswer) => {
                    // Its length is told, and not all of it comes.
                    let (head, body) = response.into_parts();
                    let whole = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                    let half = whole.slice(..whole.len() / 2);
                    let cut = Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
                    let body = futures::stream::iter([Ok(half), cut]);
                    axum::response::Response::from_parts(head, axum::body::Body::from_stream(body))
                }
                _ => response,
            }
        }
    });
    (app, folder)
}

impl Server {
    /// SeaweedFS with a writer and a reader, and the bucket, ready for writes.
    pub(crate) async fn seaweedfs() -> Self {
        Self::seaweedfs_with(None).await
    }

    /// The same; by this configuration of its IAM it also gives keys for the tokens of an issuer.
    pub(crate) async fn seaweedfs_with(iam: Option<&serde_json::Value>) -> Self {
        let weed = program("TRACELAKE_WEED");
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("s3.json");
        std::fs::write(
            &config,
            serde_json::to_vec(&serde_json::json!({ "identities": [
                { "name": "writer", "actions": ["Admin"],
                  "credentials": [{ "accessKey": "AKWRITER", "secretKey": "writer-secret" }] },
                { "name": "reader", "actions": [format!("Read:{BUCKET}"), format!("List:{BUCKET}")],
                  "credentials": [{ "accessKey": "AKREADER", "secretKey": "reader-secret" }] },
                { "name": "blind", "actions": [format!("Read:{BUCKET}"), format!("Write:{BUCKET}")],
                  "credentials": [{ "accessKey": "AKBLIND", "secretKey": "blind-secret" }] },
            ] }))
            .unwrap(),
        )
        .unwrap();
        std::fs::write(folder.path().join("security.toml"), security(folder.path())).unwrap();
        // All at once, so that no two are the same.
        let ports: Vec<TcpListener> = (0..9).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let port = |at: usize| ports[at].local_addr().unwrap().port();
        let mut command = Command::new(&weed);
        command
            .arg(format!("-config_dir={}", folder.path().display()))
            .args(["server", "-disableHttp", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.iam=false"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"])
            .args(["-volume.max=20", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"])
            .arg(format!("-dir={}", folder.path().display()))
            .arg(format!("-s3.config={}", config.display()))
            .arg(format!("-s3.localSocket={}", folder.path().join("s3.sock").display()))
            .arg(format!("-filer.localSocket={}", folder.path().join("filer.sock").display()))
            .args([format!("-master.port={}", port(0)), format!("-master.port.grpc={}", port(1))])
            .args([format!("-volume.port={}", port(2)), format!("-volume.port.grpc={}", port(3))])
            .args([format!("-filer.port={}", port(4)), format!("-filer.port.grpc={}", port(5))])
            .args([format!("-s3.port={}", port(6)), format!("-s3.port.grpc={}", port(7))]);
        if let Some(iam) = iam {
            let path = folder.path().join("iam.json");
            std::fs::write(&path, serde_json::to_vec(iam).unwrap()).unwrap();
            command
                .arg(format!("-s3.iam.config={}", path.display()))
                .arg(format!("-s3.port.https={}", port(8)))
                .arg(format!("-s3.cert.file={}", folder.path().join("tls.crt").display()))
                .arg(format!("-s3.key.file={}", folder.path().join("tls.key").display()));
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("weed.log")).unwrap());
        let endpoint = format!("http://127.0.0.1:{}", port(6));
        let parts = (0..6).chain([7]).map(port).collect();
        let by_tls = iam.map(|_| format!("https://127.0.0.1:{}", port(8)));
        drop(ports);
        let process = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", weed.display()));
        let faults = Faults::default();
        let server = Self { endpoint, by_tls, faults, process: Some(process), parts, folder };
        server.create_bucket().await;
        server
    }

    /// Waits until the server creates the bucket and takes an object.
    async fn create_bucket(&self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        let store = self.store(&writer());
        let signer = AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_allow_http(true)
            .with_bucket_name(BUCKET)
            .with_access_key_id("AKWRITER")
            .with_secret_access_key("writer-secret")
            .build()
            .unwrap();
        let bucket =
            signer.signed_url(Method::PUT, &Path::default(), Duration::from_secs(600)).await.unwrap();
        loop {
            let _ = client().put(bucket.clone()).send().await;
            let last = store.probe().await;
            if last.is_ok() {
                return;
            }
            assert!(Instant::now() < deadline, "{} takes no writes: {last:?}", self.endpoint);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// A plain client, as an agent's: it has no credentials.
pub(crate) fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().tls_certs_only([]).redirect(reqwest::redirect::Policy::none()).build().unwrap()
}
