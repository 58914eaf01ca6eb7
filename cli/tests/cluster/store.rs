// SPDX-License-Identifier: Apache-2.0

//! A store that serves a session of a folder, as far as S3 is needed to read it, and what it was asked. At the same address a machine
//! finds its role, of key `AKIROLE`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Response, Uri};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::dataset_of::{Session, cells};

/// Where a machine asks for the keys of its role.
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// Bucket and folder of the session, as the tests' statuses have it.
const PLACE: &str = "/bucket/shop/checkout/7d1c/";

pub(crate) struct Store {
    pub(crate) address: String,
    /// Authorization of each request.
    asked: Arc<Mutex<Vec<String>>>,
    folder: TempDir,
    beside: TempDir,
}

impl Store {
    /// With a whole session of one row.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut session = Session::new(folder.path());
        session.segment("a", "processes", &cells("ts_ns | pod | comm\n1 | web | sh"));
        session.finish(&[]).await;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (of_server, root) = (asked.clone(), folder.path().to_owned());
        let app = Router::new().fallback(move |uri: Uri, headers: HeaderMap| {
            let signed = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
            of_server.lock().unwrap().push(signed.unwrap_or_default());
            std::future::ready(answer(&root, &uri))
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, asked, folder, beside: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn asked(&self) -> MutexGuard<'_, Vec<String>> {
        self.asked.lock().unwrap()
    }

    /// Beside the session.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.beside.path().join(name)
    }

    /// A file of the session.
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.folder.path().join(key)
    }
}

fn answer(root: &Path, uri: &Uri) -> Response<Body> {
    let response =
        |code: u16, body: Vec<u8>| Response::builder().status(code).body(Body::from(body)).unwrap();
    if uri.query().is_some_and(|query| query.contains("list-type=2")) {
        let mut listed = String::new();
        list(root, "", &mut listed);
        let xml = format!("<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>");
        return response(200, xml.into_bytes());
    }
    match uri.path().strip_prefix(ROLES) {
        Some("") => return response(200, b"role".to_vec()),
        Some(_) => {
            let keys = r#"{ "AccessKeyId": "AKIROLE", "SecretAccessKey": "s", "Token": "t", "Expiration": "2100-01-01T00:00:00Z" }"#;
            return response(200, keys.into());
        }
        None if uri.path() == "/latest/api/token" => return response(200, b"token".to_vec()),
        None => {}
    }
    let key = uri.path().strip_prefix(PLACE).unwrap_or_default();
    match std::fs::read(root.join(key)) {
        Ok(content) => response(200, content),
        Err(_) => response(404, Vec::new()),
    }
}

fn list(folder: &Path, key: &str, listed: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let key = format!("{key}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            list(&entry.path(), &format!("{key}/"), listed);
        } else {
            let (place, size) = (PLACE.trim_start_matches("/bucket/"), entry.metadata().unwrap().len());
            *listed += &format!(
                "<Contents><Key>{place}{key}</Key><Size>{size}</Size><LastModified>2026-11-22T10:00:00.000Z</LastModified>\
                 <ETag>\"e\"</ETag></Contents>"
            );
        }
    }
}
