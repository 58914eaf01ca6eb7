// SPDX-License-Identifier: Apache-2.0
//! Two S3 servers on loopback: SeaweedFS as a process, s3s-fs in this one.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crds::S3;
use dataset::key::SessionPrefix;
use http::Method;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::signer::Signer;
use tracelake_operator::store::{Credential, EndpointPolicy, ResolvedStore, StoreProblem};

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

pub(crate) fn s3(endpoint: &str, bucket: &str) -> S3 {
    S3 {
        bucket: bucket.to_owned(),
        prefix: "team/shop".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        region: "us-east-1".to_owned(),
        force_path_style: None,
        ca_bundle: None,
    }
}

pub(crate) fn store(
    s3: S3,
    credential: &Credential,
    policy: Option<EndpointPolicy>,
) -> Result<ResolvedStore, StoreProblem> {
    // Another test may have done it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let prefix = SessionPrefix::new(&s3.prefix, "shop", "checkout", "uid").unwrap();
    ResolvedStore::direct(s3, credential, prefix, policy)
}

/// An S3 server; it ends with the value.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    process: Option<Child>,
    _folder: tempfile::TempDir,
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

    /// s3s-fs with one key and one bucket.
    pub(crate) async fn in_process() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut builder =
            s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(s3s::auth::SimpleAuth::from_single("AKWRITER", "writer-secret"));
        let service = builder.build();
        let app = axum::Router::new().fallback(move |request: axum::extract::Request| {
            let service = service.clone();
            async move {
                let request = request.map(s3s::Body::http_body_unsync);
                match service.call(request).await {
                    Ok(response) => response.map(axum::body::Body::new),
                    Err(error) => panic!("s3s: {error:?}"),
                }
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { endpoint, process: None, _folder: folder }
    }

    /// SeaweedFS with a writer and a reader, and the bucket, ready for writes.
    pub(crate) async fn seaweedfs() -> Self {
        let weed: PathBuf = std::env::var_os("TRACELAKE_WEED")
            .expect("TRACELAKE_WEED must name SeaweedFS's `weed` binary; `cargo xtask test unit` installs it and sets this")
            .into();
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
        // All at once, so that no two are the same.
        let ports: Vec<TcpListener> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let port = |at: usize| ports[at].local_addr().unwrap().port();
        let mut command = Command::new(&weed);
        command
            .args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.iam=false"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"])
            .args(["-volume.max=20", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"])
            .arg(format!("-dir={}", folder.path().display()))
            .arg(format!("-s3.config={}", config.display()))
            .arg(format!("-s3.localSocket={}", folder.path().join("s3.sock").display()))
            .arg(format!("-filer.localSocket={}", folder.path().join("filer.sock").display()))
            .args([format!("-master.port={}", port(0)), format!("-master.port.grpc={}", port(1))])
            .args([format!("-volume.port={}", port(2)), format!("-volume.port.grpc={}", port(3))])
            .args([format!("-filer.port={}", port(4)), format!("-filer.port.grpc={}", port(5))])
            .args([format!("-s3.port={}", port(6)), format!("-s3.port.grpc={}", port(7))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("weed.log")).unwrap());
        let endpoint = format!("http://127.0.0.1:{}", port(6));
        drop(ports);
        let process = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", weed.display()));
        let server = Self { endpoint, process: Some(process), _folder: folder };
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
            assert!(Instant::now() < deadline, "SeaweedFS takes no writes: {last:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// A plain client, as an agent's: it has no credentials.
pub(crate) fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().tls_certs_only([]).redirect(reqwest::redirect::Policy::none()).build().unwrap()
}
