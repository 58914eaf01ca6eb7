// SPDX-License-Identifier: Apache-2.0
//! Grants and the probe against real servers.
//!
//! What a holder of a grant can do with it is decided by the server, so it is tried there:
//! - SeaweedFS and Versity's gateway (over a folder) enforce create-only and the checksum before anything is stored, and of
//!   many writers at once one succeeds. A gateway without accounts answers an unknown key with 404 `XAdminUserNotFound`.
//! - s3s-fs checks signatures as strictly, but stores a body that does not match its checksum before it refuses it, and
//!   lets several writers at once succeed.

mod identity;
mod proxy;
#[allow(dead_code, reason = "shared with the tests of sessions, which use the rest")]
mod servers;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::response::IntoResponse;
use crds::S3;
use crds::conditions::reason;
use dataset::closing::{self, Effort};
use dataset::key::{Boot, Key};
use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use reqwest::StatusCode;
use servers::{BUCKET, Server, client, key, reader, s3, store, store_with, writer};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracelake_operator::store::{EndpointPolicy, ExtraCa, GRANT_SECONDS, Grant, ResolvedStore};

const BODY: &str = "a segment's bytes";

fn digest(body: &str) -> [u8; 32] {
    Sha256::digest(body.as_bytes()).into()
}

fn segment(sequence: u64) -> Key {
    let boot: Boot = "0123456789abcdef0123456789abcdef".parse().unwrap();
    Key::segment("processes", "node-1.example", &boot, sequence).unwrap()
}

async fn grant(store: &ResolvedStore, sequence: u64) -> Grant {
    store.grant(&segment(sequence), BODY.len() as u64, &digest(BODY)).await.unwrap()
}

async fn put(grant: &Grant, body: &str, leave_out: &[&str]) -> StatusCode {
    let mut request = client().put(&grant.put_url).body(body.to_owned());
    for (name, value) in grant.put_headers.iter().filter(|(name, _)| !leave_out.contains(&name.as_str())) {
        request = request.header(name, value);
    }
    request.send().await.unwrap().status()
}

async fn head(grant: &Grant) -> (StatusCode, Option<String>) {
    let response = client().head(&grant.head_url).send().await.unwrap();
    let length = response.headers().get("content-length").map(|value| value.to_str().unwrap().to_owned());
    (response.status(), length)
}

/// What holds on every server.
async fn a_grant_creates_one_object_and_nothing_else(server: &Server) {
    let store = server.store(&writer());

    let good = grant(&store, 1).await;
    assert_eq!(head(&good).await.0, StatusCode::NOT_FOUND);
    assert_eq!(put(&good, BODY, &[]).await, StatusCode::OK);
    assert_eq!(head(&good).await, (StatusCode::OK, Some(BODY.len().to_string())));
    assert_eq!(put(&good, BODY, &[]).await, StatusCode::PRECONDITION_FAILED, "a second time");

    for header in ["if-none-match", "x-amz-checksum-sha256"] {
        let grant = grant(&store, 2).await;
        assert_eq!(put(&grant, BODY, &[header]).await, StatusCode::FORBIDDEN, "without {header}");
        assert_eq!(
            put(&good, "overwritten", &[header]).await,
            StatusCode::FORBIDDEN,
            "over an object, without {header}"
        );
        assert_eq!(head(&grant).await.0, StatusCode::NOT_FOUND, "nothing came of a PUT without {header}");
    }

    let other = grant(&store, 3).await;
    assert_eq!(put(&other, "another body     ", &[]).await, StatusCode::BAD_REQUEST, "another body");

    let mut forged = grant(&store, 4).await;
    forged.put_headers.insert("x-amz-checksum-sha256".to_owned(), other_checksum());
    assert_eq!(put(&forged, "other", &[]).await, StatusCode::FORBIDDEN, "another checksum");

    let mut moved = grant(&store, 5).await;
    moved.put_url = moved.put_url.replace("node-1.example", "node-2.example");
    assert_eq!(put(&moved, BODY, &[]).await, StatusCode::FORBIDDEN, "another node's key");

    let used = client().delete(&good.put_url).send().await.unwrap().status();
    assert_eq!(used, StatusCode::FORBIDDEN, "another method");
    let read = client().get(&good.head_url).send().await.unwrap().status();
    assert_eq!(read, StatusCode::FORBIDDEN, "a HEAD grant does not read");

    let stored =
        store.object_store().get(&store.prefix().object(&segment(1))).await.unwrap().bytes().await.unwrap();
    assert_eq!(stored, BODY.as_bytes(), "after all that");
}

fn other_checksum() -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(digest("other"))
}

async fn an_expired_grant_is_refused(server: &Server) {
    let store = server.store(&writer());
    let grant = store.grant_for(&segment(9), &digest(BODY), Duration::from_secs(1)).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while head(&grant).await.0 != StatusCode::FORBIDDEN {
        assert!(Instant::now() < deadline, "a grant of one second still holds");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(put(&grant, BODY, &[]).await, StatusCode::FORBIDDEN);
}

async fn the_probe_says_what_is_wrong(server: &Server) {
    assert!(server.store(&writer()).probe().await.unwrap().conditional_put);
    let listing = server.store(&writer());
    let left = listing.object_store().list(None).collect::<Vec<_>>().await;
    let left: Vec<String> = left.into_iter().map(|meta| meta.unwrap().location.to_string()).collect();
    assert!(!left.iter().any(|path| path.contains("_tracelake_probe")), "the probe leaves nothing: {left:?}");

    let cases = [
        (server.store(&key("AKWRITER", "wrong")), reason::SIGNATURE_DOES_NOT_MATCH),
        (server.store(&key("AKNOBODY", "wrong")), reason::INVALID_ACCESS_KEY_ID),
    ];
    for (store, wanted) in cases {
        let problem = store.probe().await.unwrap_err();
        assert_eq!(problem.reason, wanted, "{problem}");
        assert!(problem.message.contains("request id"), "{problem}");
        for secret in ["wrong", "writer-secret", "X-Amz-Signature"] {
            assert!(!problem.message.contains(secret), "{problem}");
        }
    }
}

/// What s3s-fs does not: refuse a body before storing it, miss a bucket, and answer one of many writers only.
async fn what_a_whole_server_does(server: &Server) {
    let store = server.store(&writer());
    assert_eq!(head(&grant(&store, 3).await).await.0, StatusCode::NOT_FOUND, "another body is not stored");
    let nowhere = servers::store(s3(&server.endpoint, "no-such-bucket"), &writer(), None).unwrap();
    let problem = nowhere.probe().await.unwrap_err();
    assert_eq!(problem.reason, reason::NO_SUCH_BUCKET, "{problem}");
    let one = grant(&store, 20).await;
    let answers = futures::future::join_all((0..20).map(|_| put(&one, BODY, &[]))).await;
    assert_eq!(answers.iter().filter(|status| status.is_success()).count(), 1, "{answers:?}");
}

#[tokio::test]
async fn on_seaweedfs() {
    let server = Server::seaweedfs().await;
    a_grant_creates_one_object_and_nothing_else(&server).await;
    an_expired_grant_is_refused(&server).await;
    the_probe_says_what_is_wrong(&server).await;

    what_a_whole_server_does(&server).await;
    // It also knows what a key may do.
    let problem = server.store(&reader()).probe().await.unwrap_err();
    assert_eq!(problem.reason, reason::ACCESS_DENIED, "{problem}");
    let problem = server.store(&key("AKBLIND", "blind-secret")).probe().await.unwrap_err();
    assert_eq!(problem.reason, reason::ACCESS_DENIED, "{problem}");
    assert!(problem.message.contains("s3:ListBucket"), "{problem}");
}

#[tokio::test]
async fn on_versitygw() {
    let server = Server::versitygw().await;
    a_grant_creates_one_object_and_nothing_else(&server).await;
    an_expired_grant_is_refused(&server).await;
    the_probe_says_what_is_wrong(&server).await;
    what_a_whole_server_does(&server).await;
}

#[tokio::test]
async fn on_s3s_fs() {
    let server = Server::in_process().await;
    a_grant_creates_one_object_and_nothing_else(&server).await;
    an_expired_grant_is_refused(&server).await;
    the_probe_says_what_is_wrong(&server).await;
}

#[tokio::test]
async fn f04_a_store_that_does_not_answer_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let problem = store(s3(&endpoint, BUCKET), &writer(), None).unwrap().probe().await.unwrap_err();
    assert_eq!(problem.reason, reason::STORE_UNAVAILABLE, "{problem}");
    assert!(!problem.message.contains("Signature"), "{problem}");
}

/// A store that lists nothing or one manifest of ten bytes, and whose other answers have no end, or one that is far away; and the
/// bytes that it has sent.
async fn endless(lists: bool) -> (String, Arc<AtomicU64>) {
    let sent = Arc::<AtomicU64>::default();
    let counting = sent.clone();
    let app = axum::Router::new().fallback(move |request: axum::extract::Request| {
        let sent = counting.clone();
        async move {
            let status = match *request.method() {
                http::Method::PUT => StatusCode::FORBIDDEN,
                _ => StatusCode::OK,
            };
            if lists && request.uri().query().is_some_and(|query| query.contains("list-type")) {
                let key = format!("team/shop/shop/checkout/uid/_tracelake/node-1_{}.json", "0".repeat(32));
                let list = format!(
                    "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>{key}</Key><Size>10</Size>\
                     <LastModified>2026-11-23T00:00:00Z</LastModified></Contents></ListBucketResult>"
                );
                return (status, list).into_response();
            }
            let body = futures::stream::repeat_with(move || {
                sent.fetch_add(64 << 10, Ordering::Relaxed);
                Ok::<_, Infallible>(vec![b'x'; 64 << 10])
            });
            let body = axum::body::Body::from_stream(body);
            // An object of which no length is told is not read at all.
            match request.uri().path() {
                object if object.ends_with("object") => {
                    (status, [("content-length", "1099511627776")], body).into_response()
                }
                file if file.ends_with(".json") => {
                    (status, [("content-length", "1048576")], body).into_response()
                }
                _ => (status, body).into_response(),
            }
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (endpoint, sent)
}

#[tokio::test]
async fn answers_without_an_end_are_cut_where_all_that_is_asked_for_would_have_ended() {
    const KIB: u64 = 1 << 10;
    // Beside what is taken, the connection holds some.
    let slack = 16 * 1024 * KIB;
    let (endpoint, sent) = endless(false).await;
    let store = store(s3(&endpoint, BUCKET), &writer(), None).unwrap();
    let objects = store.object_store();
    let patience = Duration::from_secs(20);
    for (most, what) in [(8 * 1024 * KIB, "list"), (64 * KIB, "error"), (18 * 1024 * KIB, "object")] {
        sent.store(0, Ordering::Relaxed);
        let asked = async {
            match what {
                "list" => objects.list(None).next().await.unwrap().map(drop),
                "error" => objects.put(&"x".into(), "x".into()).await.map(drop),
                _ => objects.get(&"object".into()).await.map(drop),
            }
        };
        let answer = tokio::time::timeout(patience, asked).await;
        answer.unwrap_or_else(|_| panic!("{what} is read on")).expect_err(what);
        assert!(sent.load(Ordering::Relaxed) < most + slack, "{what}: {sent:?}");
    }

    // What is longer than the list says is not read to its end.
    let (endpoint, sent) = endless(true).await;
    let store = self::store(s3(&endpoint, BUCKET), &writer(), None).unwrap();
    let nodes = [("node-1".to_owned(), Some(String::new()))].into();
    let objects = store.object_store().as_ref();
    let closing = closing::close(objects, store.prefix(), &nodes, String::new(), Effort::Ordinary);
    let closing = tokio::time::timeout(patience, closing).await.expect("it is read on").unwrap();
    let reason = &closing.manifest.nodes[0].reason;
    assert!(reason.contains("it has 1048576 bytes, the limit is 10"), "{reason}");
    assert!(sent.load(Ordering::Relaxed) < slack, "{sent:?}");
}

/// The first bytes that come back; none if the connection ends.
async fn said(port: u16, words: &[u8]) -> Vec<u8> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(words).await.unwrap();
    let mut first = vec![0; 12];
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut first)).await;
    first.truncate(read.expect("an answer or an end").unwrap_or_default());
    first
}

#[tokio::test]
async fn what_lies_in_the_dev_store_is_reached_by_its_s3_port_alone() {
    let server = Server::seaweedfs().await;
    let store = server.store(&writer());
    let object = Path::from("team/shop/object");
    store.object_store().put(&object, "content".into()).await.unwrap();
    let [master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc] = server.parts[..] else {
        panic!("{:?}", server.parts);
    };
    let http = [
        (master, "GET /dir/assign"),
        (master, "POST /submit"),
        (master, "GET /col/delete?collection=traces"),
        (master, "GET /dir/lookup?volumeId=1"),
        (volume, "GET /1,01637037d6"),
        (volume, "PUT /1,01637037d6"),
        (volume, "DELETE /1,01637037d6"),
        (filer, "GET /buckets/traces/team/shop/object"),
        (filer, "DELETE /buckets/traces?recursive=true"),
    ];
    for (port, what) in http {
        let said = said(port, format!("{what} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes()).await;
        let refused = said.ends_with(b"401") || said.ends_with(b"404");
        assert!(refused, "{what}: {}", String::from_utf8_lossy(&said));
    }
    // HTTP/2 without TLS, which is how gRPC begins: a server that takes it answers with its settings.
    let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    for port in [master_grpc, volume_grpc, filer_grpc, s3_grpc] {
        let said = said(port, &hello).await;
        let tls_alert = said.first() == Some(&0x15);
        assert!(said.is_empty() || tls_alert, "{port}: {said:?}");
    }
    let there = store.object_store().get(&object).await.unwrap().bytes().await.unwrap();
    assert_eq!(there, "content", "after all that");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let app = axum::Router::new().fallback(|request: axum::extract::Request| async move {
        assert!(!request.uri().path().contains("elsewhere"), "the redirect was followed");
        (StatusCode::TEMPORARY_REDIRECT, [("location", "/elsewhere")])
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let store = store(s3(&endpoint, BUCKET), &writer(), None).unwrap();
    let problem = store.probe().await.unwrap_err();
    assert_eq!(problem.reason, reason::WRONG_REGION, "{problem}");
    assert!(store.object_store().put(&"x".into(), "x".into()).await.is_err());
}

#[tokio::test]
async fn a_tenants_name_that_resolves_to_loopback_is_refused_before_anything_is_sent() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let endpoint = format!("http://localhost:{}", listener.local_addr().unwrap().port());
    let policy = EndpointPolicy { allowed: vec![endpoint.clone()], guard: Default::default() };
    let store = store(s3(&endpoint, BUCKET), &writer(), Some(policy)).unwrap();
    let problem = store.probe().await.unwrap_err();
    assert_eq!(problem.reason, reason::ENDPOINT_ADDRESS_REFUSED, "{problem}");
    assert!(store.object_store().put(&"x".into(), "x".into()).await.is_err());
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody connected");
}

#[tokio::test]
async fn a_tenants_endpoint_off_the_list_is_refused() {
    let problem = store(s3("https://minio.example.com", BUCKET), &writer(), Some(EndpointPolicy::default()))
        .err()
        .unwrap();
    assert_eq!(problem.reason, reason::ENDPOINT_NOT_ALLOWED);
}

#[tokio::test]
async fn grants_hold_fifteen_minutes_and_name_the_bucket_as_the_store_wants_it() {
    let grant_of = async |force_path_style, endpoint: Option<&str>| {
        let mut s3 = s3("", BUCKET);
        s3.endpoint = endpoint.map(str::to_owned);
        s3.force_path_style = force_path_style;
        grant(&store(s3, &writer(), None).unwrap(), 1).await.put_url
    };
    let path = "team/shop/shop/checkout/uid/processes/node-1.example_0123456789abcdef0123456789abcdef_000001.parquet";
    let cases = [
        (None, None, format!("https://{BUCKET}.s3.us-east-1.amazonaws.com/{path}?")),
        (Some(true), None, format!("https://s3.us-east-1.amazonaws.com/{BUCKET}/{path}?")),
        (None, Some("https://s3.example.com:9000"), format!("https://s3.example.com:9000/{BUCKET}/{path}?")),
        (
            Some(false),
            Some("https://s3.example.com:9000"),
            format!("https://{BUCKET}.s3.example.com:9000/{path}?"),
        ),
    ];
    for (force_path_style, endpoint, wanted) in cases {
        let url = grant_of(force_path_style, endpoint).await;
        assert!(url.starts_with(&wanted), "{url} should start with {wanted}");
        assert!(url.contains(&format!("X-Amz-Expires={GRANT_SECONDS}&")), "{url}");
        assert!(url.contains("SignedHeaders=host%3Bif-none-match%3Bx-amz-checksum-sha256"), "{url}");
    }
}

#[tokio::test]
async fn a_store_of_a_houses_own_ca_is_reached_with_that_ca_and_refused_without() {
    let ((server, ca), (_, other)) = (Server::tls("localhost").await, Server::tls("localhost").await);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crt");
    std::fs::write(&file, &other).unwrap();
    let extra: ExtraCa = file.to_str().unwrap().parse().unwrap();
    let place = || s3(&server.endpoint, BUCKET);
    for wrong in [None, Some(&extra)] {
        let problem = store_with(place(), &writer(), None, wrong).unwrap().probe().await.unwrap_err();
        assert_eq!(problem.reason, reason::STORE_UNAVAILABLE, "{problem}");
        assert!(problem.message.contains("UnknownIssuer"), "{problem}");
    }
    std::fs::write(&file, &ca).unwrap();
    let trusting = store_with(place(), &writer(), None, Some(&extra)).unwrap();
    assert!(trusting.probe().await.unwrap().conditional_put);
    // Agents get it with the grant, beside what the store brings itself.
    let grant = grant(&trusting, 1).await;
    assert_eq!(grant.ca_bundle, ca);
    let own = S3 { ca_bundle: Some(other.trim_end().to_owned()), ..place() };
    let both = store_with(own, &writer(), None, Some(&extra)).unwrap();
    both.probe().await.unwrap();
    let bundle = self::grant(&both, 2).await.ca_bundle;
    assert_eq!(reqwest::Certificate::from_pem_bundle(bundle.as_bytes()).unwrap().len(), 2, "{bundle}");
}

#[tokio::test]
async fn a_ca_bundle_that_is_no_certificate_is_named() {
    let mut broken = s3("https://s3.example.com", BUCKET);
    broken.ca_bundle =
        Some("-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n".to_owned());
    let problem = store(broken, &writer(), None).err().unwrap();
    assert_eq!(problem.reason, reason::STORE_INVALID);
    assert!(problem.message.contains("spec.s3.caBundle"), "{problem}");
}
