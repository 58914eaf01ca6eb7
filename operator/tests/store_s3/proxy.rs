// SPDX-License-Identifier: Apache-2.0
//! What goes through the proxy of the environment, and what does not. The environment is a process's, so a test starts itself
//! again with one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use crds::conditions::reason;
use object_store::ObjectStoreExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracelake_operator::api_server;
use tracelake_operator::store::{EndpointPolicy, ExtraCa};

use super::servers::{BUCKET, Server, s3, store, store_with, writer};

/// A proxy that names its clients' destinations and takes them to `plain`, or after CONNECT to `tls`, whatever their names: those
/// need not resolve here.
struct Proxy {
    address: SocketAddr,
    seen: Arc<Mutex<BTreeSet<String>>>,
}

impl Proxy {
    async fn start(plain: String, tls: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<BTreeSet<String>>>::default();
        let seeing = seen.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(relay(client, plain.clone(), tls.clone(), seeing.clone()));
            }
        });
        Self { address, seen }
    }
}

async fn relay(mut client: TcpStream, plain: String, tls: String, seen: Arc<Mutex<BTreeSet<String>>>) {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let Ok(1..) = client.read_buf(&mut head).await else { return };
    }
    let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
    let target = line.split(' ').nth(1).unwrap_or_default();
    let authority = target.split_once("://").map_or(target, |(_, rest)| rest).split('/').next();
    seen.lock().unwrap().insert(authority.unwrap_or_default().to_owned());
    let mut server = if line.starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
        TcpStream::connect(tls).await.unwrap()
    } else {
        let mut server = TcpStream::connect(plain).await.unwrap();
        server.write_all(&head).await.unwrap();
        server
    };
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

#[tokio::test]
async fn administrators_stores_are_behind_the_proxy_and_nothing_else_is() {
    if std::env::var_os("TEST_STORE").is_some() {
        return behind_a_proxy().await;
    }
    let (plain, (tls, ca)) = (Server::in_process().await, Server::tls("secure.example.com").await);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.crt"), ca).unwrap();
    let proxy = Proxy::start(plain.address(), tls.address()).await;
    let api = axum::Router::new().fallback(|request: axum::extract::Request| async move {
        assert_eq!(request.uri().authority(), None, "asked as a proxy is");
        serde_json::json!({
            "major": "1", "minor": "37", "gitVersion": "v1.37.2", "gitCommit": "", "gitTreeState": "", "buildDate": "",
            "goVersion": "", "compiler": "", "platform": "",
        }).to_string()
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api_server = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, api).await });
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{ "name": "here", "cluster": { "server": api_server } }],
        "contexts": [{ "name": "here", "context": { "cluster": "here", "user": "nobody" } }],
        "users": [{ "name": "nobody", "user": {} }],
    });
    std::fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();

    let url = format!("http://{}", proxy.address);
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "proxy::administrators_stores_are_behind_the_proxy_and_nothing_else_is",
            "--nocapture",
        ])
        .env("HTTP_PROXY", &url)
        .env("HTTPS_PROXY", &url)
        .env("NO_PROXY", charts_exceptions())
        .env("KUBECONFIG", folder.path().join("kubeconfig"))
        .env("TEST_CA", folder.path().join("ca.crt"))
        .env("TEST_STORE", &plain.endpoint)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
    let seen = proxy.seen.lock().unwrap().clone();
    assert_eq!(seen, ["secure.example.com:443", "store.example.com"].map(str::to_owned).into(), "{said}");
}

/// What the chart puts into `NO_PROXY` before what its values add.
fn charts_exceptions() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/tracelake/templates/_helpers.tpl");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, list) = text.split_once("concat (list ").expect("the chart lists what needs no proxy");
    let (list, _) = list.split_once(')').unwrap();
    list.split('"').skip(1).step_by(2).collect::<Vec<_>>().join(",")
}

/// The test again, in its own environment.
async fn behind_a_proxy() {
    let direct = std::env::var("TEST_STORE").unwrap();
    // Plain, and as a tunnel; neither name resolves here.
    let plain = store(s3("http://store.example.com", BUCKET), &writer(), None).unwrap();
    plain.probe().await.unwrap();
    plain.object_store().put(&"object".into(), "through the proxy".into()).await.unwrap();
    let extra: ExtraCa = std::env::var("TEST_CA").unwrap().parse().unwrap();
    store_with(s3("https://secure.example.com", BUCKET), &writer(), None, Some(&extra))
        .unwrap()
        .probe()
        .await
        .unwrap();
    // The same server, which NO_PROXY names.
    let near = store(s3(&direct, BUCKET), &writer(), None).unwrap();
    let stored = near.object_store().get(&"object".into()).await.unwrap().bytes().await.unwrap();
    assert_eq!(stored, b"through the proxy".as_slice());

    // In the cluster, which this is none.
    for service in ["store.shop.svc", "store.shop.svc.cluster.local"] {
        let problem = store(s3(&format!("http://{service}"), BUCKET), &writer(), None).unwrap().probe().await;
        assert_eq!(problem.unwrap_err().reason, reason::STORE_UNAVAILABLE, "{service}");
    }

    // A tenant's, where only the proxy would look the name up, and where it would hide what the name leads to.
    let policy = |endpoint: &str| EndpointPolicy { allowed: vec![endpoint.to_owned()], ..Default::default() };
    let hidden = direct.replace("127.0.0.1", "localhost");
    for (endpoint, wanted) in [
        (hidden.as_str(), reason::ENDPOINT_ADDRESS_REFUSED),
        ("http://tenant.invalid", reason::STORE_UNAVAILABLE),
        ("https://tenant.invalid", reason::STORE_UNAVAILABLE),
    ] {
        let theirs = store(s3(endpoint, BUCKET), &writer(), Some(policy(endpoint))).unwrap();
        let problem = theirs.probe().await.unwrap_err();
        assert_eq!(problem.reason, wanted, "{endpoint}: {problem}");
    }
    // What writes manifests is another client than the probe's.
    let theirs = store(s3(&hidden, BUCKET), &writer(), Some(policy(&hidden))).unwrap();
    assert!(theirs.object_store().put(&"object".into(), "theirs".into()).await.is_err());

    let api = kube::Client::try_from(api_server::config().await.unwrap()).unwrap();
    assert_eq!(api.apiserver_version().await.unwrap().git_version, "v1.37.2");
}
