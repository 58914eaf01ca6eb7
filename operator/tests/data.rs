// SPDX-License-Identifier: Apache-2.0
//! What users read by the operator: two tenants, over real TLS, from a real S3 server, with an API server whose reviews are given.

#[path = "reconcile/api.rs"]
#[allow(dead_code, reason = "shared with the tests of sessions, which use the rest")]
mod api;
#[path = "store_s3/servers.rs"]
#[allow(dead_code, reason = "shared with the tests of grants, which use the rest")]
mod servers;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::{Api, SESSION};
use http::{Request as HttpRequest, Response as HttpResponse, StatusCode};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use kube::Client;
use kube::client::Body;
use node_api::data::data_client::DataClient;
use node_api::data::{ListRequest, ListResponse};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde_json::{Value, json};
use servers::{BUCKET, Server, writer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tracelake_operator::ca::{Keeper, Settings};
use tracelake_operator::data::{Denial, Readers};
use tracelake_operator::grpc::{self, Service};
use tracelake_operator::hub::Hub;
use tracelake_operator::metrics::{Metrics, reason};
use tracelake_operator::token::{Authenticator, Pods, Review};

const CONFIG_MAP: &str = "/api/v1/namespaces/tracelake/configmaps/tracelake-ca";
const NAME: &str = "tracelake-operator-leader.tracelake.svc";
const BANK: &str = "/apis/tracelake.dev/v1alpha1/namespaces/bank/tracesessions/ledger";
const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESS_REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const TINA: &str = "system:serviceaccount:shop:tina";
const MAX: &str = "system:serviceaccount:bank:max";

/// Who may read which session, and how the API server is asked.
#[derive(Default)]
struct Rights {
    /// User, namespace, name.
    allowed: BTreeSet<(String, String, String)>,
    /// Reviews take so long.
    slow: Duration,
    asking: usize,
    most: usize,
}

#[derive(Clone, Default)]
struct Reviews(Arc<Mutex<Rights>>);

impl Reviews {
    fn allow(&self, user: &str, namespace: &str, name: &str) {
        let right = (user.to_owned(), namespace.to_owned(), name.to_owned());
        self.0.lock().unwrap().allowed.insert(right);
    }

    /// An API server with the objects of `api`, which knows three tokens: tina's and max's for reading, and an agent's.
    fn client(&self, api: &Api) -> Client {
        let (reviews, api) = (self.clone(), api.clone());
        let service = tower::service_fn(move |request: HttpRequest<Body>| {
            let (reviews, api) = (reviews.clone(), api.clone());
            async move { Ok::<_, Infallible>(reviews.serve(&api, request).await) }
        });
        Client::new(service, "default")
    }

    async fn serve(&self, api: &Api, request: HttpRequest<Body>) -> HttpResponse<Body> {
        let path = request.uri().path().to_owned();
        if path != TOKEN_REVIEWS && path != ACCESS_REVIEWS {
            return api.serve(request).await.unwrap();
        }
        let slow = {
            let mut rights = self.0.lock().unwrap();
            rights.asking += 1;
            rights.most = rights.most.max(rights.asking);
            rights.slow
        };
        tokio::time::sleep(slow).await;
        let mut review: Value =
            serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
        let mut rights = self.0.lock().unwrap();
        rights.asking -= 1;
        review["status"] = if path == TOKEN_REVIEWS {
            token_review(&review["spec"])
        } else {
            rights.review(&review["spec"])
        };
        drop(rights);
        let body = Body::from(serde_json::to_vec(&review).unwrap());
        HttpResponse::builder().status(StatusCode::CREATED).body(body).unwrap()
    }
}

fn token_review(spec: &Value) -> Value {
    let (username, audience) = match spec["token"].as_str().unwrap() {
        "tina" => (TINA, node_api::DATA_AUDIENCE),
        "max" => (MAX, node_api::DATA_AUDIENCE),
        "agent" => ("system:serviceaccount:tracelake:node-agent", node_api::TOKEN_AUDIENCE),
        // An API server that knows no audiences answers for its own.
        "plain" => {
            return json!({ "authenticated": true, "user": { "username": TINA }, "audiences": ["https://kubernetes"] });
        }
        _ => return json!({ "authenticated": false }),
    };
    if spec["audiences"] != json!([audience]) {
        return json!({ "authenticated": false, "error": "token audiences are invalid" });
    }
    let user = json!({ "username": username, "uid": format!("uid of {username}"), "groups": ["system:authenticated"],
        "extra": { "authentication.kubernetes.io/credential-id": ["JTI=1"] } });
    json!({ "authenticated": true, "audiences": [audience], "user": user })
}

impl Rights {
    fn review(&self, spec: &Value) -> Value {
        let user = spec["user"].as_str().unwrap();
        // All that the token review said goes on.
        assert_eq!(spec["uid"], format!("uid of {user}"));
        assert_eq!(spec["groups"], json!(["system:authenticated"]));
        assert_eq!(spec["extra"]["authentication.kubernetes.io/credential-id"], json!(["JTI=1"]));
        let asked = &spec["resourceAttributes"];
        let what = ["verb", "group", "resource", "subresource"].map(|field| asked[field].as_str().unwrap());
        assert_eq!(what, ["get", "tracelake.dev", "tracesessions", "data"]);
        let of = |field: &str| asked[field].as_str().unwrap().to_owned();
        json!({ "allowed": self.allowed.contains(&(user.to_owned(), of("namespace"), of("name"))) })
    }
}

/// No agent comes here.
struct Nobody;

impl Review for Nobody {
    fn review<'a>(
        &'a self,
        _: &'a str,
    ) -> futures::future::BoxFuture<'a, Result<TokenReviewStatus, kube::Error>> {
        Box::pin(async { Ok(TokenReviewStatus::default()) })
    }
}

impl Pods for Nobody {
    fn uid<'a>(&'a self, _: &'a str) -> futures::future::BoxFuture<'a, Result<Option<String>, kube::Error>> {
        Box::pin(async { Ok(None) })
    }
}

struct Fixture {
    api: Api,
    reviews: Reviews,
    metrics: Metrics,
    readers: Arc<Readers>,
    channel: Channel,
    _server: Server,
    stop: CancellationToken,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A session that has begun, of UID `uid`, whose store is `main`.
fn session(path: &str, namespace: &str, name: &str, endpoint: &str) -> (String, String) {
    let yaml = format!(
        "apiVersion: tracelake.dev/v1alpha1
kind: TraceSession
metadata: {{name: {name}, namespace: {namespace}, uid: uid, generation: 1}}
spec: {{target: {{podSelector: {{}}}}, collectors: [{{name: processes}}], duration: 1h}}
status:
  dataset: {{uri: 's3://{BUCKET}/team/{namespace}/{name}/uid', schemaVersion: 1, endpoint: '{endpoint}', region: us-east-1,
    bucket: {BUCKET}, prefix: team, forcePathStyle: true, storeRef: {{kind: ClusterTraceStore, name: main}}}}"
    );
    (path.to_owned(), yaml)
}

impl Fixture {
    /// Both tenants have a session in the same store; tina may read hers, max his. Pages hold two objects.
    async fn start(server: Server) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let api = Api::default();
        for (path, yaml) in [
            session(SESSION, "shop", "checkout", &server.endpoint),
            session(BANK, "bank", "ledger", &server.endpoint),
        ] {
            api.apply(&path, &yaml);
        }
        let endpoint = &server.endpoint;
        api.apply(
            "/apis/tracelake.dev/v1alpha1/clustertracestores/main",
            &format!(
                "{{apiVersion: tracelake.dev/v1alpha1, kind: ClusterTraceStore, metadata: {{name: main, uid: store-uid, generation: 1}},
 spec: {{s3: {{bucket: {BUCKET}, prefix: team, endpoint: '{endpoint}'}}, credentials: {{secretRef: {{name: key}}}}}}}}"
            ),
        );
        // AKWRITER, writer-secret
        api.apply(
            "/api/v1/namespaces/tracelake/secrets/key",
            "{apiVersion: v1, kind: Secret, metadata: {name: key, namespace: tracelake},
 data: {accessKeyId: QUtXUklURVI=, secretAccessKey: d3JpdGVyLXNlY3JldA==}}",
        );
        let store = server.store(&writer());
        for key in [
            "team/shop/checkout/uid/_tracelake/session.json",
            "team/shop/checkout/uid/processes/1.parquet",
            "team/shop/checkout/uid/processes/2.parquet",
            "team/shop/checkout/uid/tcp_connections/1.parquet",
            "team/shop/checkout/uid/tcp_states/1.parquet",
            // Beside it: of another UID, of names that begin alike, and the other tenant's.
            "team/shop/checkout/uid2/processes/1.parquet",
            "team/shop/checkout2/uid/processes/1.parquet",
            "team/bank/ledger/uid/processes/1.parquet",
        ] {
            store.object_store().put(&Path::from(key), key.into()).await.unwrap();
        }

        let reviews = Reviews::default();
        reviews.allow(TINA, "shop", "checkout");
        reviews.allow(MAX, "bank", "ledger");
        let settings = Settings { names: vec![NAME.to_owned()], propagation: Duration::from_secs(60) };
        let mut keeper = Keeper::new(api.client(), "tracelake", "tracelake", settings);
        keeper.step(Timestamp::now()).await.unwrap();
        let metrics = Metrics::default();
        let authenticator = Authenticator::new(Arc::new(Nobody), Arc::new(Nobody), "tracelake", "node-agent");
        let service = Service::new(Hub::new().0, Arc::new(authenticator), metrics.clone());
        let client = reviews.client(&api);
        let readers =
            Readers::new(client.clone(), api::stores(client), metrics.clone()).with_page(2, usize::MAX);
        let readers = Arc::new(readers);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let tls = node_api::tls::server(keeper.serving()).unwrap();
        tokio::spawn(grpc::serve(listener, tls, service, readers.clone(), stop.clone()));
        let ca =
            api.0.lock().unwrap().objects[CONFIG_MAP]["data"][node_api::CA_KEY].as_str().unwrap().to_owned();
        let tls = node_api::tls::client(ca.as_bytes(), NAME).unwrap();
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
        let channel = endpoint.connect_lazy();
        Self { api, reviews, metrics, readers, channel, _server: server, stop }
    }

    async fn list(&self, token: Option<&str>, request: ListRequest) -> Result<ListResponse, Status> {
        let mut request = Request::new(request);
        if let Some(token) = token {
            node_api::token::attach(request.metadata_mut(), token).unwrap();
        }
        DataClient::new(self.channel.clone()).list(request).await.map(tonic::Response::into_inner)
    }

    async fn denied(&self, token: Option<&str>, request: ListRequest, code: Code, message: &str) {
        let status = self.list(token, request.clone()).await.expect_err(message);
        assert_eq!((status.code(), status.message()), (code, message), "{request:?}");
        let label = message.split(':').next().unwrap();
        assert!(
            self.metrics.reads_denied.get_or_create(&reason(leak(label))).get() > 0,
            "{label} is counted"
        );
    }
}

/// Labels are constants; a test has few.
fn leak(label: &str) -> &'static str {
    label.to_owned().leak()
}

fn of(namespace: &str, session: &str) -> ListRequest {
    ListRequest { namespace: namespace.to_owned(), session: session.to_owned(), ..ListRequest::default() }
}

async fn get(url: &str) -> (StatusCode, String) {
    let answer = servers::client().get(url).send().await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

async fn a_reader_gets_the_sessions_own_objects_page_by_page_and_nothing_else(server: Server) {
    let fixture = Fixture::start(server).await;
    let mut request = of("shop", "checkout");
    let mut found = Vec::new();
    for page in 0..3 {
        let answer = fixture.list(Some("tina"), request.clone()).await.unwrap();
        assert_eq!((answer.uid.as_str(), answer.more, answer.seconds), ("uid", page < 2, 900));
        assert_eq!(answer.uri, format!("s3://{BUCKET}/team/shop/checkout/uid"));
        assert!(answer.objects.len() <= 2);
        request.after = answer.objects.last().unwrap().key.clone();
        found.extend(answer.objects);
    }
    let keys: Vec<&str> = found.iter().map(|object| object.key.as_str()).collect();
    let wanted = [
        "_tracelake/session.json",
        "processes/1.parquet",
        "processes/2.parquet",
        "tcp_connections/1.parquet",
        "tcp_states/1.parquet",
    ];
    assert_eq!(keys, wanted);
    for object in &found {
        let body = format!("team/shop/checkout/uid/{}", object.key);
        assert_eq!(object.bytes, body.len() as u64);
        assert_eq!(get(&object.get_url).await, (StatusCode::OK, body));
    }

    // A page that begins just before a key begins with it: so does whose URL has grown old ask for another.
    for object in &found {
        let mut request = of("shop", "checkout");
        request.after = object.key[..object.key.len() - 1].to_owned();
        let again = fixture.list(Some("tina"), request).await.unwrap();
        assert_eq!(again.objects[0].key, object.key);
        assert_eq!(get(&again.objects[0].get_url).await.0, StatusCode::OK);
    }

    // A URL reads its one object, and does nothing else.
    let url = &found[1].get_url;
    for moved in [
        url.replace("processes/1", "processes/2"),
        url.replace("shop/checkout/uid", "shop/checkout/uid2"),
        url.replace("shop/checkout", "bank/ledger"),
    ] {
        assert_eq!(get(&moved).await.0, StatusCode::FORBIDDEN, "another object");
    }
    for method in [http::Method::PUT, http::Method::DELETE] {
        let answer = servers::client().request(method.clone(), url).body("forged").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{method} by a URL for GET");
    }
    assert_eq!(get(url).await.1, "team/shop/checkout/uid/processes/1.parquet", "after all that");
    assert_eq!(fixture.metrics.reads.get(), 3 + found.len() as u64);
}

#[tokio::test]
async fn a_reader_gets_the_sessions_own_objects_and_nothing_else_on_seaweedfs() {
    a_reader_gets_the_sessions_own_objects_page_by_page_and_nothing_else(Server::seaweedfs().await).await;
}

#[tokio::test]
async fn a_reader_gets_the_sessions_own_objects_and_nothing_else_on_s3s_fs() {
    a_reader_gets_the_sessions_own_objects_page_by_page_and_nothing_else(Server::in_process().await).await;
}

#[tokio::test]
async fn a_tenant_reads_neither_the_others_data_nor_whether_there_are_any() {
    let fixture = Fixture::start(Server::in_process().await).await;
    let refused = |who: &str, what: &str| {
        format!(
            "not_allowed: {who} may not read the data of {what}: it needs the verb get on tracesessions/data there (ClusterRole tracelake-data)"
        )
    };
    let denied = Code::PermissionDenied;
    fixture.denied(Some("max"), of("shop", "checkout"), denied, &refused(MAX, "shop/checkout")).await;
    fixture.denied(Some("max"), of("shop", "nothing"), denied, &refused(MAX, "shop/nothing")).await;
    fixture.denied(Some("tina"), of("bank", "ledger"), denied, &refused(TINA, "bank/ledger")).await;
    assert!(fixture.list(Some("max"), of("bank", "ledger")).await.is_ok(), "his own");

    // A right that is taken away is gone at once: nothing is remembered.
    assert!(fixture.list(Some("tina"), of("shop", "checkout")).await.is_ok());
    fixture.reviews.0.lock().unwrap().allowed.clear();
    fixture.denied(Some("tina"), of("shop", "checkout"), denied, &refused(TINA, "shop/checkout")).await;
}

#[tokio::test]
async fn a_token_that_is_for_somebody_else_reads_nothing() {
    let fixture = Fixture::start(Server::in_process().await).await;
    let unknown = Code::Unauthenticated;
    let session = of("shop", "checkout");
    fixture.denied(None, session.clone(), unknown, "no_token: the call carries no bearer token").await;
    for token in ["agent", "plain", "nonsense"] {
        let wanted = "invalid_token: the API server does not accept the token for audience tracelake-data";
        fixture.denied(Some(token), session.clone(), unknown, wanted).await;
    }
    // What is longer than any token is asked about nowhere; what is longer than a header may be is not taken.
    fixture.reviews.0.lock().unwrap().most = 0;
    let wanted = "invalid_token: the API server does not accept the token for audience tracelake-data";
    fixture.denied(Some(&"a".repeat(9 << 10)), session.clone(), unknown, wanted).await;
    assert!(fixture.list(Some(&"a".repeat(17 << 10)), session).await.is_err());
    assert_eq!(fixture.reviews.0.lock().unwrap().most, 0);
}

#[tokio::test]
async fn a_request_cannot_leave_its_session() {
    let fixture = Fixture::start(Server::in_process().await).await;
    let invalid = Code::InvalidArgument;
    for (namespace, name) in
        [("shop", "../../bank/tracesessions/ledger"), ("", "checkout"), ("shop", "a?b"), ("SHOP", "checkout")]
    {
        let wanted = "invalid_request: namespace or name cannot be a session's";
        fixture.denied(Some("tina"), of(namespace, name), invalid, wanted).await;
    }
    for after in ["../uid2/processes/0", "/team/bank", "a//b", "processes/.."] {
        let request = ListRequest { after: after.to_owned(), ..of("shop", "checkout") };
        let wanted = "invalid_request: after is not a key in the session's folder";
        fixture.denied(Some("tina"), request, invalid, wanted).await;
    }
    // Nor is what is larger than any request read.
    let large = ListRequest { after: "a".repeat(9 << 10), ..of("shop", "checkout") };
    let status = fixture.list(Some("tina"), large).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    // A key that sorts before or after all of the session's stays in its folder.
    for (after, some) in [("0", true), ("zzz", false)] {
        let request = ListRequest { after: after.to_owned(), ..of("shop", "checkout") };
        let answer = fixture.list(Some("tina"), request).await.unwrap();
        assert_eq!(!answer.objects.is_empty(), some);
        let own = format!("/{BUCKET}/team/shop/checkout/uid/");
        assert!(answer.objects.iter().all(|object| object.get_url.contains(&own)), "{after}");
    }

    fixture.reviews.allow(TINA, "shop", "nothing");
    let missing = "no_session: there is no TraceSession shop/nothing";
    fixture.denied(Some("tina"), of("shop", "nothing"), Code::NotFound, missing).await;
    let other = ListRequest { uid: "uid-of-the-one-before".to_owned(), ..of("shop", "checkout") };
    let wanted = "no_session: TraceSession shop/checkout is another one by now, with another UID";
    fixture.denied(Some("tina"), other, Code::NotFound, wanted).await;
    fixture.api.change(SESSION, |session| session["status"] = json!({ "phase": "Pending" }));
    let wanted = "no_data: TraceSession shop/checkout has no data yet: its status says why";
    fixture.denied(Some("tina"), of("shop", "checkout"), Code::FailedPrecondition, wanted).await;
}

#[tokio::test]
async fn data_stay_where_the_session_put_them_and_a_store_that_is_away_is_named() {
    let fixture = Fixture::start(Server::in_process().await).await;
    let store = "/apis/tracelake.dev/v1alpha1/clustertracestores/main";
    // The store's spec has moved on; the session's data have not.
    fixture.api.change(store, |store| store["spec"]["s3"]["prefix"] = "elsewhere".into());
    let answer = fixture.list(Some("tina"), of("shop", "checkout")).await.unwrap();
    assert_eq!(answer.uri, format!("s3://{BUCKET}/team/shop/checkout/uid"));
    assert_eq!(get(&answer.objects[0].get_url).await.0, StatusCode::OK);

    fixture.api.remove(store);
    let wanted = "store_not_ready: StoreNotFound: there is no ClusterTraceStore main";
    fixture.denied(Some("tina"), of("shop", "checkout"), Code::Unavailable, wanted).await;
}

#[tokio::test]
async fn few_reviews_are_under_way_and_one_that_is_not_answered_ends() {
    let fixture = Fixture::start(Server::in_process().await).await;
    fixture.reviews.0.lock().unwrap().slow = Duration::from_millis(50);
    let many = (0..60).map(|_| fixture.list(Some("nonsense"), of("shop", "checkout")));
    assert!(futures::future::join_all(many).await.iter().all(Result::is_err));
    assert_eq!(fixture.reviews.0.lock().unwrap().most, 16);

    fixture.reviews.0.lock().unwrap().slow = Duration::from_secs(3_600);
    let wanted = "review_failed: the API server cannot be asked now";
    fixture.denied(Some("tina"), of("shop", "checkout"), Code::Unavailable, wanted).await;
    assert_eq!(Denial::ReviewFailed.label(), "review_failed");
}

#[tokio::test]
async fn who_lists_a_store_that_does_not_answer_takes_two_of_the_places_until_he_gives_up() {
    let fixture = Fixture::start(Server::in_process().await).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let there = fixture.api.session().status.as_ref().unwrap().dataset.clone().unwrap().endpoint.unwrap();
    fixture.api.change(SESSION, |session| session["status"]["dataset"]["endpoint"] = endpoint.into());
    let waiting =
        futures::future::join_all((0..2).map(|_| fixture.list(Some("tina"), of("shop", "checkout"))));
    let mut waiting = Box::pin(waiting);
    let mut held = Vec::new();
    while held.len() < 2 {
        tokio::select! {
            connection = silent.accept() => held.push(connection.unwrap()),
            _ = &mut waiting => panic!("a store that says nothing answered"),
        }
    }
    let busy = "busy: others are being answered, ask again";
    fixture.denied(Some("tina"), of("shop", "checkout"), Code::Unavailable, busy).await;
    assert!(fixture.list(Some("max"), of("bank", "ledger")).await.is_ok(), "another namespace has its own");
    drop(waiting);
    fixture.api.change(SESSION, |session| session["status"]["dataset"]["endpoint"] = there.into());
    let answered = async {
        while fixture.list(Some("tina"), of("shop", "checkout")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), answered)
        .await
        .expect("places that were given up are free");
}

#[tokio::test]
async fn who_does_not_read_his_answers_has_two_places_and_no_more() {
    let fixture = Fixture::start(Server::in_process().await).await;
    let unread = Arc::<Mutex<Vec<_>>>::default();
    let (server, keeping) = (tracelake_operator::data::server(fixture.readers.clone()), unread.clone());
    let slow = tower::service_fn(move |request| {
        let (answer, keeping) = (tower::Service::call(&mut server.clone(), request), keeping.clone());
        async move {
            let answer = answer.await;
            keeping.lock().unwrap().push(answer);
            std::future::pending::<Result<http::Response<tonic::body::Body>, Infallible>>().await
        }
    });
    let ask = async || {
        let mut request = Request::new(of("shop", "checkout"));
        node_api::token::attach(request.metadata_mut(), "tina").unwrap();
        let _ = DataClient::new(slow.clone()).list(request).await;
    };
    let many = futures::future::join_all((0..2).map(|_| ask()));
    tokio::select! {
        _ = many => panic!("an answer that nobody reads was read"),
        () = async { while unread.lock().unwrap().len() < 2 { tokio::time::sleep(Duration::from_millis(5)).await } } => {}
    }
    assert_eq!(fixture.metrics.reads.get(), 2, "both are answered");
    let busy = "busy: others are being answered, ask again";
    fixture.denied(Some("tina"), of("shop", "checkout"), Code::Unavailable, busy).await;
    assert!(fixture.list(Some("max"), of("bank", "ledger")).await.is_ok(), "another namespace has its own");
    unread.lock().unwrap().pop();
    assert!(fixture.list(Some("tina"), of("shop", "checkout")).await.is_ok());
}

#[tokio::test]
async fn a_page_ends_where_it_grows_too_long() {
    let fixture = Fixture::start(Server::in_process().await).await;
    let readers = Readers::new(
        fixture.reviews.client(&fixture.api),
        api::stores(fixture.reviews.client(&fixture.api)),
        Metrics::default(),
    );
    let server = tracelake_operator::data::server(Arc::new(readers.with_page(1_000, 1)));
    let mut request = of("shop", "checkout");
    let mut keys = 0;
    loop {
        let mut asked = Request::new(request.clone());
        node_api::token::attach(asked.metadata_mut(), "tina").unwrap();
        let page = DataClient::new(server.clone()).list(asked).await.unwrap().into_inner();
        assert_eq!(page.objects.len(), 1, "one is always there");
        keys += 1;
        request.after = page.objects[0].key.clone();
        if !page.more {
            break;
        }
    }
    assert_eq!(keys, 5);
}
