// SPDX-License-Identifier: Apache-2.0
//! Grants and the probe against real servers.
//!
//! What a holder of a grant can do with it is decided by the server, so it is tried there: SeaweedFS is a full server;
//! s3s-fs checks signatures as strictly, but stores a body that does not match its checksum before it refuses it.

mod servers;

use std::time::{Duration, Instant};

use crds::conditions::reason;
use dataset::key::{Boot, Key};
use object_store::{ObjectStore, ObjectStoreExt};
use reqwest::StatusCode;
use servers::{BUCKET, Server, client, key, reader, s3, store, writer};
use sha2::{Digest, Sha256};
use tracelake_operator::store::{EndpointPolicy, GRANT_SECONDS, Grant, ResolvedStore};

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
    let left = futures::StreamExt::collect::<Vec<_>>(listing.object_store().list(None)).await;
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

#[tokio::test]
async fn on_seaweedfs() {
    let server = Server::seaweedfs().await;
    a_grant_creates_one_object_and_nothing_else(&server).await;
    an_expired_grant_is_refused(&server).await;
    the_probe_says_what_is_wrong(&server).await;

    // What s3s-fs does not do: refuse a body before storing it, know what a key may do, miss a bucket, and answer
    // one of many writers only.
    let store = server.store(&writer());
    assert_eq!(head(&grant(&store, 3).await).await.0, StatusCode::NOT_FOUND, "another body is not stored");
    let problem = server.store(&reader()).probe().await.unwrap_err();
    assert_eq!(problem.reason, reason::ACCESS_DENIED, "{problem}");
    let problem = server.store(&key("AKBLIND", "blind-secret")).probe().await.unwrap_err();
    assert_eq!(problem.reason, reason::ACCESS_DENIED, "{problem}");
    assert!(problem.message.contains("s3:ListBucket"), "{problem}");
    let nowhere = servers::store(s3(&server.endpoint, "no-such-bucket"), &writer(), None).unwrap();
    let problem = nowhere.probe().await.unwrap_err();
    assert_eq!(problem.reason, reason::NO_SUCH_BUCKET, "{problem}");
    let one = grant(&store, 20).await;
    let answers = futures::future::join_all((0..20).map(|_| put(&one, BODY, &[]))).await;
    assert_eq!(answers.iter().filter(|status| status.is_success()).count(), 1, "{answers:?}");
}

#[tokio::test]
async fn on_s3s_fs() {
    let server = Server::in_process().await;
    a_grant_creates_one_object_and_nothing_else(&server).await;
    an_expired_grant_is_refused(&server).await;
    the_probe_says_what_is_wrong(&server).await;
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let problem = store(s3(&endpoint, BUCKET), &writer(), None).unwrap().probe().await.unwrap_err();
    assert_eq!(problem.reason, reason::STORE_UNAVAILABLE, "{problem}");
    assert!(!problem.message.contains("Signature"), "{problem}");
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
async fn a_ca_bundle_that_is_no_certificate_is_named() {
    let mut broken = s3("https://s3.example.com", BUCKET);
    broken.ca_bundle =
        Some("-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n".to_owned());
    let problem = store(broken, &writer(), None).err().unwrap();
    assert_eq!(problem.reason, reason::STORE_INVALID);
    assert!(problem.message.contains("spec.s3.caBundle"), "{problem}");
}
