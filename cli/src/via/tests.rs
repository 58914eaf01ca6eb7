// SPDX-License-Identifier: Apache-2.0
//! Against an operator and a store of this process: what is asked, what is asked again, and what a refusal looks like.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use node_api::data::Object;
use node_api::data::data_server::{Data, DataServer};
use object_store::ObjectStoreExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Response;
use tonic::transport::Endpoint;

use super::*;
use crate::pull::tests::session;

/// What the operator says and the store holds.
struct Fake {
    store: Arc<dyn ObjectStore>,
    /// What URLs begin with.
    root: String,
    /// By which its certificate is known.
    ca_bundle: String,
    seconds: u32,
    /// Answers before the first page.
    refusals: Mutex<Vec<Status>>,
    /// Of every request: token, UID, key to begin after.
    asked: Mutex<Vec<(String, String, String)>>,
    /// The number of the latest page: URLs of earlier ones have expired.
    page: AtomicUsize,
    /// What the store answers before it gives objects; none: it ends the connection.
    troubles: Mutex<Vec<Option<StatusCode>>>,
    /// Hosts that the store was asked by.
    hosts: Mutex<Vec<String>>,
    /// Where it listens.
    operator: std::net::SocketAddr,
}

const PAGE: usize = 2;

#[derive(Clone)]
struct Shared(Arc<Fake>);

#[tonic::async_trait]
impl Data for Shared {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let fake = &self.0;
        let token = node_api::token::bearer(request.metadata()).unwrap_or_default().to_owned();
        let request = request.into_inner();
        assert_eq!((request.namespace.as_str(), request.session.as_str()), ("shop", "checkout"));
        fake.asked.lock().unwrap().push((token, request.uid, request.after.clone()));
        if let Some(refusal) = fake.refusals.lock().unwrap().pop() {
            return Err(refusal);
        }
        let mut all: Vec<ObjectMeta> = fake.store.list(None).try_collect().await.unwrap();
        all.retain(|meta| meta.location.as_ref() > request.after.as_str());
        all.sort_by(|a, b| a.location.cmp(&b.location));
        let page = fake.page.fetch_add(1, Ordering::Relaxed) + 1;
        let object = |meta: &ObjectMeta| Object {
            key: meta.location.to_string(),
            bytes: meta.size,
            get_url: format!("{}/{}?page={page}", fake.root, meta.location),
        };
        Ok(Response::new(ListResponse {
            uid: "uid".to_owned(),
            uri: "s3://bucket/shop/checkout/uid".to_owned(),
            objects: all.iter().take(PAGE).map(object).collect(),
            more: all.len() > PAGE,
            seconds: fake.seconds,
            ca_bundle: fake.ca_bundle.clone(),
        }))
    }
}

async fn object(fake: Arc<Fake>, request: axum::extract::Request) -> (StatusCode, Vec<u8>) {
    fake.hosts.lock().unwrap().push(request.headers()[HOST].to_str().unwrap().to_owned());
    let trouble = fake.troubles.lock().unwrap().pop();
    match trouble {
        Some(Some(status)) => return (status, Vec::new()),
        // What serves this connection ends with it.
        Some(None) => panic!("the store dies"),
        None => {}
    }
    // Only the URLs of the page that was asked for last are good where they hold so shortly.
    let page: usize = request.uri().query().unwrap().strip_prefix("page=").unwrap().parse().unwrap();
    if fake.seconds == 1 && page != fake.page.load(Ordering::Relaxed) {
        return (StatusCode::FORBIDDEN, Vec::new());
    }
    let key = Path::parse(request.uri().path()).unwrap();
    let body = fake.store.get(&key).await.unwrap().bytes().await.unwrap();
    let Some(range) = request.headers().get(RANGE) else { return (StatusCode::OK, body.to_vec()) };
    let (from, to) = range.to_str().unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (from, to) = (from.parse::<usize>().unwrap(), to.parse::<usize>().unwrap());
    (StatusCode::PARTIAL_CONTENT, body[from..=to.min(body.len() - 1)].to_vec())
}

/// A session of five objects and three files; the operator, what it is asked with, and the store that is opened by it. `root`: how
/// the cluster calls the store, if not by where it is.
async fn start(seconds: u32, refusals: Vec<Status>, root: Option<&str>) -> (Arc<Fake>, Source) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (store, _) = session("uid", &["one", "two", "three", "four", "five"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = listener.local_addr().unwrap().to_string();
    let root = root.map_or_else(|| format!("http://{there}"), str::to_owned);
    let tls = root.starts_with("https://").then(|| certificate(&root));
    let operator_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let operator = operator_listener.local_addr().unwrap();
    let fake = Arc::new(Fake {
        store,
        ca_bundle: tls.as_ref().map(|(pem, _)| pem.clone()).unwrap_or_default(),
        root: root.clone(),
        seconds,
        refusals: Mutex::new(refusals),
        asked: Mutex::default(),
        page: AtomicUsize::new(0),
        troubles: Mutex::default(),
        hosts: Mutex::default(),
        operator,
    });
    let state = fake.clone();
    let app = axum::Router::new().fallback(move |request| object(state.clone(), request));
    tokio::spawn(async move {
        match tls {
            Some((_, acceptor)) => axum::serve(Tls { listener, acceptor }, app).await,
            None => axum::serve(listener, app).await,
        }
    });
    let server = tonic::transport::Server::builder().add_service(DataServer::new(Shared(fake.clone())));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(operator_listener)));
    let made = AtomicUsize::new(0);
    let tokens: Tokens = Box::new(move || {
        let number = made.fetch_add(1, Ordering::Relaxed);
        async move { Ok(format!("token-{number}")) }.boxed()
    });
    let source = Source {
        channel: Endpoint::from_shared(format!("http://{operator}")).unwrap().connect_lazy(),
        tokens,
        namespace: "shop".to_owned(),
        session: "checkout".to_owned(),
        store_address: (!root.contains(&there)).then_some(there),
        patience: Duration::from_secs(60),
    };
    (fake, source)
}

async fn read_all(store: &ViaOperator) -> Vec<(String, String)> {
    let all: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
    let mut found = Vec::new();
    // Backwards, so that the page that was asked for last is not the one that is needed.
    for meta in all.iter().rev() {
        let body = store.get(&meta.location).await.unwrap().bytes().await.unwrap();
        assert_eq!(body.len() as u64, meta.size);
        found.push((meta.location.to_string(), String::from_utf8_lossy(&body).into_owned()));
    }
    found.reverse();
    found
}

#[tokio::test]
async fn every_object_is_read_though_pages_are_short_and_one_token_does() {
    let (fake, source) = start(900, Vec::new(), None).await;
    let (store, uri) = ViaOperator::open(source).await.unwrap();
    assert_eq!(uri, "s3://bucket/shop/checkout/uid");
    let found = read_all(&store).await;
    assert_eq!(found.len(), 8);
    let contents: Vec<&str> = found[3..].iter().map(|(_, content)| content.as_str()).collect();
    assert_eq!(contents, ["one", "two", "three", "four", "five"]);
    let asked = fake.asked.lock().unwrap();
    assert_eq!(asked.len(), 5, "one page to begin with, four of the list: {asked:?}");
    assert!(asked.iter().all(|(token, ..)| token == "token-0"), "{asked:?}");
    // Once it is known which session it is, no other of its name is asked for.
    assert!(asked[1..].iter().all(|(_, uid, _)| uid == "uid"), "{asked:?}");
}

#[tokio::test]
async fn parts_of_an_object_are_asked_for_as_parts() {
    let (_, source) = start(900, Vec::new(), None).await;
    let (store, _) = ViaOperator::open(source).await.unwrap();
    let all: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
    let three = &all[5].location;
    assert_eq!(store.get_ranges(three, &[1..3, 4..5]).await.unwrap(), ["hr", "e"]);
    let past = store.get_range(three, 9..12).await.unwrap_err().to_string();
    assert!(past.contains('9') && past.contains('5'), "{past}");
    let end = GetOptions { range: Some((3..9).into()), ..GetOptions::default() };
    let end = store.get_opts(three, end).await.unwrap();
    assert_eq!((end.range.clone(), end.meta.size), (3..5, 5));
    // By this a report tells an object that is gone from a store that is away.
    assert_eq!(store.head(three).await.unwrap().size, 5);
    let gone = store.head(&"processes/gone.parquet".into()).await.unwrap_err();
    assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
}

#[tokio::test]
async fn urls_that_have_grown_old_are_replaced() {
    let (fake, source) = start(0, Vec::new(), None).await;
    let (store, _) = ViaOperator::open(source).await.unwrap();
    // Of no time at all: every object needs a page of its own, which begins where it has to.
    let all: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
    let error = store.get(&all[7].location).await.unwrap_err().to_string();
    assert!(error.contains("does not list it"), "a URL is not used when its time is over: {error}");
    let after = fake.asked.lock().unwrap().last().unwrap().2.clone();
    assert!(
        after.as_str() > all[6].location.as_ref() && after.as_str() < all[7].location.as_ref(),
        "{after}"
    );

    let (fake, source) = start(1, Vec::new(), None).await;
    let (store, _) = ViaOperator::open(source).await.unwrap();
    let all: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
    let until = store.0.known().values().map(|known| known.until).max().unwrap();
    tokio::time::sleep_until(until.into()).await;
    let before = fake.asked.lock().unwrap().len();
    assert_eq!(store.get(&all[7].location).await.unwrap().bytes().await.unwrap(), "five");
    assert_eq!(fake.asked.lock().unwrap().len(), before + 1);
}

#[tokio::test]
async fn a_store_behind_a_forwarded_port_is_asked_by_the_name_that_was_signed() {
    for (root, name) in [
        ("http://store.system.svc:8333", "store.system.svc:8333"),
        ("http://192.0.2.7", "192.0.2.7"),
        ("https://store.system.svc:8333", "store.system.svc:8333"),
        ("https://store.system.svc", "store.system.svc"),
    ] {
        let (fake, source) = start(900, Vec::new(), Some(root)).await;
        let (store, _) = ViaOperator::open(source).await.unwrap();
        assert_eq!(read_all(&store).await.len(), 8, "{root}");
        let hosts = fake.hosts.lock().unwrap();
        assert!(hosts.iter().all(|host| host == name), "{root}: {hosts:?}");
    }
    let failed = async |source| {
        let (store, _) = ViaOperator::open(source).await.unwrap();
        store.get(&"_tracelake/session.json".into()).await.unwrap_err().to_string()
    };
    let (_, source) = start(900, Vec::new(), Some("https://192.0.2.7:8333")).await;
    let error = failed(source).await;
    assert!(error.contains("the certificate of 192.0.2.7 is for that address"), "{error}");

    let (_, mut source) = start(900, Vec::new(), Some("http://store.invalid:8333")).await;
    source.store_address = None;
    let error = failed(source).await;
    assert!(error.contains("store.invalid") && error.contains("--store-address"), "{error}");
    assert!(!error.contains("page="), "a URL is a secret: {error}");

    let (_, mut source) = start(900, Vec::new(), Some("http://store.system.svc:8333")).await;
    source.store_address = Some("localhost:1".to_owned());
    let error = failed(source).await;
    assert!(error.contains("store.system.svc cannot be reached at localhost:1"), "{error}");

    for wrong in
        ["local host:8333", "localhost", "localhost:", ":8333", "me@localhost:8333", "localhost:8333/x"]
    {
        let (fake, mut source) = start(900, Vec::new(), None).await;
        source.store_address = Some(wrong.to_owned());
        let error = ViaOperator::open(source).await.unwrap_err().to_string();
        assert_eq!(error, format!("--store-address {wrong:?} is not HOST:PORT"));
        assert!(fake.asked.lock().unwrap().is_empty(), "before anybody is asked");
    }
    assert_eq!(Elsewhere::parse("[::1]:8333").unwrap().to_string(), "[::1]:8333");
}

/// A certificate for the host of a URL, which is its own authority.
fn certificate(root: &str) -> (String, TlsAcceptor) {
    let host = Url::parse(root).unwrap().host_str().unwrap().to_owned();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec![host]).unwrap().self_signed(&key).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    (certificate.pem(), TlsAcceptor::from(Arc::new(config)))
}

struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = self.listener.accept().await.unwrap();
        (self.acceptor.accept(stream).await.unwrap(), address)
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

#[tokio::test]
async fn a_refusal_is_said_as_the_operator_says_it_and_a_busy_one_is_asked_again() {
    let refused = Status::permission_denied("not_allowed: x may not read the data of shop/checkout");
    let (fake, source) = start(900, vec![refused], None).await;
    let error = ViaOperator::open(source).await.unwrap_err().to_string();
    assert_eq!(error, "the operator says not_allowed: x may not read the data of shop/checkout");
    assert_eq!(fake.asked.lock().unwrap().len(), 1);

    let away = Status::unavailable("store_not_ready: StoreNotFound: there is no TraceStore main");
    let (fake, source) = start(900, vec![away], None).await;
    assert!(ViaOperator::open(source).await.unwrap_err().to_string().contains("StoreNotFound"));
    assert_eq!(fake.asked.lock().unwrap().len(), 1, "its reason stays");

    let busy = Status::unavailable("busy: others are being answered, ask again");
    let (fake, source) = start(900, vec![busy], None).await;
    ViaOperator::open(source).await.unwrap();
    assert_eq!(fake.asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_store_that_has_trouble_for_a_while_is_asked_again() {
    let (fake, source) = start(900, Vec::new(), None).await;
    let (store, _) = ViaOperator::open(source).await.unwrap();
    let key: Path = "_tracelake/session.json".into();
    *fake.troubles.lock().unwrap() =
        vec![Some(StatusCode::TOO_MANY_REQUESTS), None, Some(StatusCode::SERVICE_UNAVAILABLE)];
    store.get(&key).await.unwrap();
    assert_eq!(fake.hosts.lock().unwrap().len(), 4);
    // Not for ever, and not what stays.
    *fake.troubles.lock().unwrap() = vec![Some(StatusCode::INTERNAL_SERVER_ERROR); 9];
    let error = store.get(&key).await.unwrap_err().to_string();
    assert!(error.contains("the store answers 500"), "{error}");
    *fake.troubles.lock().unwrap() = vec![Some(StatusCode::FORBIDDEN); 2];
    assert!(store.get(&key).await.unwrap_err().to_string().contains("403"));
    assert_eq!(fake.troubles.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_leader_that_dies_during_a_call_is_followed_by_the_next() {
    let (fake, mut source) = start(900, Vec::new(), None).await;
    // Its first connection ends when the question has come, before there is an answer.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = listener.local_addr().unwrap();
    let operator = fake.operator;
    tokio::spawn(async move {
        for number in 0.. {
            let (mut near, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                if number == 0 {
                    dying(near).await;
                    return;
                }
                let mut far = TcpStream::connect(operator).await.unwrap();
                _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    source.channel = Endpoint::from_shared(format!("http://{there}")).unwrap().connect_lazy();
    ViaOperator::open(source).await.unwrap();
}

/// As far as HTTP/2 goes until a request is there: settings, and what the client says; then nobody.
async fn dying(mut near: TcpStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const HEADERS: u8 = 1;
    near.write_all(&SETTINGS).await.unwrap();
    let mut preface = [0; 24];
    near.read_exact(&mut preface).await.unwrap();
    loop {
        let mut head = [0; 9];
        near.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut body = vec![0; length as usize];
        near.read_exact(&mut body).await.unwrap();
        if head[3] == HEADERS {
            return;
        }
    }
}

#[tokio::test]
async fn an_operator_that_says_nothing_is_given_up() {
    let (_, mut source) = start(900, Vec::new(), None).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", silent.local_addr().unwrap())).unwrap();
    (source.channel, source.patience) = (endpoint.connect_lazy(), Duration::from_millis(200));
    let asked = tokio::time::timeout(Duration::from_secs(20), ViaOperator::open(source)).await;
    let error = asked.expect("it is waited for").unwrap_err().to_string();
    assert!(error.starts_with("the operator does not answer within"), "{error}");
}

#[tokio::test]
async fn a_way_that_is_silently_gone_is_replaced_by_another() {
    let (fake, mut source) = start(900, Vec::new(), None).await;
    // As a port that is forwarded: what comes by the first connection is soon carried nowhere.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = listener.local_addr().unwrap();
    let (gone, is_gone) = tokio::sync::watch::channel(false);
    let operator = fake.operator;
    tokio::spawn(async move {
        for number in 0.. {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut is_gone = is_gone.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(operator).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = async { drop(is_gone.wait_for(|gone| *gone && number == 0).await) } => std::future::pending().await,
                }
            });
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{there}")).unwrap();
    source.channel = watched(endpoint, Duration::from_millis(200)).connect_lazy();
    let (store, _) = ViaOperator::open(source).await.unwrap();
    gone.send(true).unwrap();
    let found = tokio::time::timeout(Duration::from_secs(20), read_all(&store)).await;
    assert_eq!(found.expect("the first way is waited for").len(), 8);
}
