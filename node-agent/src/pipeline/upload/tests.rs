// SPDX-License-Identifier: Apache-2.0

//! How grants are used: what is trusted, what is refused, what goes through a proxy.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;

use axum::extract::Request;
use futures::future::BoxFuture;
use http::StatusCode;
use node_api::egress::Guard;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::put::store_code;
use super::*;
use crate::agent::OperatorLink;
use crate::operator;

#[test]
fn only_a_plain_code_of_the_stores_answer_is_shown() {
    assert_eq!(
        store_code(b"<Error><Code>AccessDenied</Code><Message>secret</Message></Error>"),
        " AccessDenied"
    );
    assert_eq!(store_code(b"<Error><Code><script>x</script></Code></Error>"), "");
    assert_eq!(store_code(b"internal page"), "");
}

#[test]
fn f04_ten_minutes_of_failures_are_few_tries_at_random_times() {
    let times = || {
        let (mut backoff, mut at) = (Backoff::default(), Duration::ZERO);
        let next = || {
            let pause = backoff.next();
            assert!(pause >= FIRST_PAUSE / 2 && pause <= LONGEST_PAUSE, "{pause:?}");
            at += pause;
            Some(at)
        };
        std::iter::from_fn(next).take_while(|at| *at < Duration::from_secs(600)).collect::<Vec<_>>()
    };
    let (one, other) = (times(), times());
    assert!((20..50).contains(&one.len()), "{one:?}");
    assert!(one[0] <= FIRST_PAUSE && one[one.len() - 1] > Duration::from_secs(570), "{one:?}");
    assert!(one.iter().zip(&other).all(|(one, other)| one != other), "two nodes come back together");
}

#[test]
fn the_operator_knows_the_words_for_a_store_in_trouble() {
    let word = |error: UploadError| -> &'static str { (&error).into() };
    let (status, code) = (StatusCode::FORBIDDEN, String::new());
    assert_eq!(word(UploadError::StoreError { status, code }), node_api::reason::STORE_ERROR);
    assert_eq!(word(UploadError::StoreUnreachable(String::new())), node_api::reason::STORE_UNREACHABLE);
}

/// An operator that grants the same to everybody.
struct Always(Grant);

impl GrantSource for Always {
    fn grant<'a>(&'a self, _: &'a GrantRequest) -> BoxFuture<'a, Result<Grant, GrantError>> {
        Box::pin(async { Ok(self.0.clone()) })
    }
}

/// One attempt with such a grant.
async fn upload(url: &str, ca_bundle: &str, guard: Option<Guard>) -> Result<String, UploadError> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let grant = Grant {
        put_url: url.to_owned(),
        put_headers: BTreeMap::new(),
        head_url: url.to_owned(),
        ca_bundle: ca_bundle.to_owned(),
        key: "key".to_owned(),
        guard,
    };
    let request = GrantRequest {
        session: "uid".into(),
        boot: "0".repeat(32).into(),
        object: ObjectName::NodeManifest,
        length: 2,
        sha256: [0; 32],
    };
    let content = Content::Bytes(b"{}".as_slice().into());
    let uploader = Uploader::new(Destination::Granted(Arc::new(Always(grant))), Arc::default());
    uploader.create(&request, &content, &UploadHealth::default()).await
}

#[tokio::test]
async fn nothing_is_sent_to_an_address_where_a_tenants_store_may_not_be() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    // By a name, which the guard sees when it is looked up, and by an address, which nobody looks up.
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        let url = format!("http://{host}:{port}/bucket/key");
        let error = upload(&url, "", Some(Guard::default())).await.unwrap_err();
        assert!(matches!(error, UploadError::AddressRefused(_)), "{host}: {error}");
    }
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody connected");
}

/// A store with a certificate of its own, which is returned.
async fn tls_store() -> (SocketAddr, String) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
        }
    });
    (address, made.cert.pem())
}

#[tokio::test]
async fn a_grants_certificates_are_trusted_for_its_store_and_no_others() {
    let ((address, ca), (_, other)) = (tls_store().await, tls_store().await);
    let url = format!("https://localhost:{}/bucket/key", address.port());
    for wrong in ["", &other] {
        let error = upload(&url, wrong, None).await.unwrap_err();
        assert!(
            matches!(&error, UploadError::StoreUnreachable(why) if why.contains("certificate")),
            "{error}"
        );
    }
    // As the operator joins those of the store and of the chart.
    for right in [ca.clone(), format!("{other}\n{ca}")] {
        assert_eq!(upload(&url, &right, None).await.unwrap(), "key");
    }
}

/// The environment is a process's, so the test starts itself again with one.
#[tokio::test]
async fn administrators_stores_are_behind_the_proxy_and_neither_tenants_nor_the_operator_are() {
    if std::env::var_os("TEST_DIRECT").is_some() {
        return behind_a_proxy().await;
    }
    // The proxy says that it has put everything, and where to; so does what is reached without it, to its own name alone.
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let seeing = seen.clone();
    let proxy = axum::Router::new().fallback(move |request: Request| {
        let target = request.uri().authority().map(ToString::to_string);
        seeing.lock().unwrap().push(format!("{} {}", request.method(), target.unwrap_or_default()));
        async {}
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, proxy).await });
    let direct = axum::Router::new().fallback(|request: Request| async move {
        assert_eq!(request.uri().authority(), None, "asked as a proxy is");
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, direct).await });

    let name = "administrators_stores_are_behind_the_proxy_and_neither_tenants_nor_the_operator_are";
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("pipeline::upload::tests::{name}"), "--nocapture"])
        .env("HTTP_PROXY", &url)
        .env("HTTPS_PROXY", &url)
        .env("NO_PROXY", "127.0.0.0/8")
        .env("TEST_DIRECT", address.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
    assert_eq!(*seen.lock().unwrap(), ["PUT store.example.com", "CONNECT secure.example.com:443"], "{said}");
}

async fn behind_a_proxy() {
    let direct: SocketAddr = std::env::var("TEST_DIRECT").unwrap().parse().unwrap();
    // Names that do not resolve here. The tunnel leads nowhere.
    upload("http://store.example.com/key", "", None).await.unwrap();
    upload("https://secure.example.com/key", "", None).await.unwrap_err();
    upload(&format!("http://{direct}/key"), "", None).await.unwrap();
    // A tenant's: at an address that only the proxy would not mind, and where the proxy would be asked for the name.
    let near = format!("http://localhost:{}/key", direct.port());
    let error = upload(&near, "", Some(Guard::default())).await.unwrap_err();
    assert!(matches!(error, UploadError::AddressRefused(_)), "{error}");
    for far in ["http://tenant.invalid/key", "https://tenant.invalid/key"] {
        let error = upload(far, "", Some(Guard::default())).await.unwrap_err();
        assert!(matches!(error, UploadError::StoreUnreachable(_)), "{error}");
    }

    // The operator: its first byte is TLS's, not a proxy's.
    let folder = tempfile::tempdir().unwrap();
    let (_, ca) = tls_store().await;
    std::fs::write(folder.path().join(node_api::CA_KEY), ca).unwrap();
    std::fs::write(folder.path().join("token"), "token").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = operator::Config {
        endpoint: format!("https://localhost:{}", listener.local_addr().unwrap().port()),
        server_name: "localhost".to_owned(),
        ca_dir: folder.path().to_owned(),
        token_file: folder.path().join("token"),
    };
    let (plans, _plans) = tokio::sync::mpsc::channel(1);
    let link = OperatorLink {
        plans,
        reports: tokio::sync::watch::channel(node_api::v1::Report::default()).1,
        hello: tokio::sync::watch::channel(node_api::v1::Hello::default()).1,
        connected: tokio::sync::watch::channel(false).0,
    };
    let stop = CancellationToken::new();
    let client = operator::Client::new(config).unwrap().run(link, stop.clone());
    let first = async {
        let (mut stream, _): (TcpStream, _) = listener.accept().await.unwrap();
        let byte = stream.read_u8().await.unwrap();
        stop.cancel();
        byte
    };
    let first = async { tokio::time::timeout(REQUEST_TIMEOUT, first).await.expect("the operator is asked") };
    assert_eq!(tokio::join!(client, first).1, 0x16, "a TLS handshake");
}
