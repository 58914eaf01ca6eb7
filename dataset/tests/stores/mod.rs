// SPDX-License-Identifier: Apache-2.0

//! S3 servers for tests: one in this process, and SeaweedFS.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::net::TcpListener;

const BUCKET: &str = "traces";
const ACCESS_KEY: &str = "test-access-key";
const SECRET_KEY: &str = "test-secret-key";
/// SeaweedFS elects a leader before it takes writes: 15-20 s here, more on a busy machine.
const START: Duration = Duration::from_secs(120);

fn client(port: u16) -> AmazonS3 {
    _ = rustls::crypto::ring::default_provider().install_default();
    AmazonS3Builder::new()
        .with_endpoint(format!("http://127.0.0.1:{port}"))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(BUCKET)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .build()
        .unwrap()
}

/// s3s-fs behind a real port.
pub(crate) struct S3InProcess {
    port: u16,
    _folder: TempDir,
}

impl S3InProcess {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let answer = move |request: Request| {
            let service = service.clone();
            async move {
                match service.call(request.map(s3s::Body::http_body_unsync)).await {
                    Ok(response) => response.map(Body::new),
                    Err(error) => failed(&error),
                }
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        Self { port, _folder: folder }
    }

    pub(crate) fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::new(client(self.port))
    }
}

fn failed(error: &dyn std::fmt::Debug) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")).into_response()
}

/// A server's process of our own.
pub(crate) struct Process {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Process {
    /// Versity's gateway over a folder.
    pub(crate) fn versitygw() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [data, meta] = ["data", "meta"].map(|name| folder.path().join(name));
        [&data, &meta].into_iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        let [port, ..] = free_ports();
        let child = Command::new(tool("TRACELAKE_VERSITYGW", "versitygw"))
            .args(["--access", ACCESS_KEY, "--secret", SECRET_KEY, "--quiet"])
            .arg(format!("--port=127.0.0.1:{port}"))
            // Not every file system that tests run on has extended attributes.
            .args(["posix", "--sidecar"])
            .args([&meta, &data])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port, _folder: folder }
    }

    pub(crate) fn seaweedfs() -> Self {
        let weed = tool("TRACELAKE_WEED", "weed");
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("s3.json");
        let identities = serde_json::json!({"identities": [{
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]});
        std::fs::write(&config, identities.to_string()).unwrap();
        let [master, volume, filer, s3] = free_ports();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(weed)
            .args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-volume.max=20"])
            .arg("-master.volumeSizeLimitMB=64")
            .arg(format!("-dir={}", folder.path().display()))
            .arg(format!("-master.port={master}"))
            .arg(format!("-volume.port={volume}"))
            .arg(format!("-filer.port={filer}"))
            .arg(format!("-s3.port={s3}"))
            .arg(format!("-s3.config={}", config.display()))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, port: s3, _folder: folder }
    }

    /// Waits until the server takes writes.
    pub(crate) async fn store(&self) -> Arc<dyn ObjectStore> {
        let store = client(self.port);
        let ready = object_store::path::Path::parse("ready").unwrap();
        let began = Instant::now();
        loop {
            self.make_bucket().await;
            let put = tokio::time::timeout(
                Duration::from_secs(5),
                store.put(&ready, PutPayload::from_static(b"x")),
            )
            .await;
            match put {
                Ok(Ok(_)) => return Arc::new(store),
                other => {
                    assert!(began.elapsed() < START, "the server takes no writes after {START:?}: {other:?}")
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// By a presigned PUT of the bucket itself, as object_store has no call for it.
    async fn make_bucket(&self) {
        use object_store::signer::Signer;
        let path = object_store::path::Path::default();
        let url = client(self.port)
            .signed_url(axum::http::Method::PUT, &path, Duration::from_secs(60))
            .await
            .unwrap();
        // Not up yet, or there already: the write that follows tells.
        _ = reqwest::Client::new().put(url).timeout(Duration::from_secs(5)).send().await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SeaweedFS takes up to 26 s to end by SIGTERM, and its data are thrown away.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Four ports that are free, and so are their siblings for gRPC, 10,000 above. All are held until all are found, so that
/// no two are the same.
fn free_ports() -> [u16; 4] {
    let bind = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).ok();
    let mut held = Vec::new();
    let mut ports = Vec::new();
    while ports.len() < 4 {
        let any = bind(0).expect("a port is free");
        let port = any.local_addr().expect("it is bound").port() % 20_000 + 20_000;
        if let (Some(low), Some(high)) = (bind(port), bind(port + 10_000)) {
            held.extend([low, high]);
            ports.push(port);
        }
    }
    ports.try_into().expect("there are four")
}

/// A server's binary: named by the variable, else where `cargo xtask` puts it.
fn tool(variable: &str, program: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "{variable} names {}, which is not there", path.display());
        return path;
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").expect("HOME is set")).join(".cache"));
    let tools = cache.join("tracelake/tools");
    let found = std::fs::read_dir(&tools).into_iter().flatten().flatten().map(|entry| entry.path()).find_map(
        |path| {
            let name = path.file_name()?.to_str()?;
            let binary = path.join(program);
            (name.starts_with(&format!("{program}-")) && !name.ends_with(".tmp") && binary.is_file())
                .then_some(binary)
        },
    );
    found.unwrap_or_else(|| {
        panic!("{program} is missing: run `cargo xtask test unit`, or set {variable} to its binary (looked in {})", tools.display())
    })
}
