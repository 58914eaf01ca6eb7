// SPDX-License-Identifier: Apache-2.0
//! Stores with the operator's own identity, which its environment names.
//!
//! An identity is the whole process's: each test starts itself again in a process with the environment that is tried.
//! - Web identity: an issuer of tokens, and SeaweedFS as the service that gives keys for them and as the store that knows the keys.
//! - EKS Pod Identity: an agent of the test's own, since that one exists on EKS only, and s3s-fs.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use crds::conditions::reason;
use reqwest::StatusCode;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use tracelake_operator::store::{Credential, ExtraCa, ResolvedStore, StoreProblem};

use crate::servers::{BUCKET, Server, s3, store_with};
use crate::{BODY, digest, grant, put, segment};

/// Set in the process that has the identity: where the store is that its parent has started, or the service of identities is to be.
const SERVER: &str = "TRACELAKE_TEST_IDENTITY_SERVER";
/// The file of the authority that the parent's server is of.
const CA: &str = "TRACELAKE_TEST_IDENTITY_CA";

/// Runs this test in a process that is told where the server is and has this environment.
async fn again(test: &str, server: &str, environment: &[(&str, OsString)]) {
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    // Whatever identity the caller has is not what is tried.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        again.env_remove(name);
    }
    again
        .args(["--exact", test])
        .env(SERVER, server)
        .envs(environment.iter().map(|(name, value)| (name, value)));
    let output = tokio::task::spawn_blocking(move || again.output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// What a store says once the identity is not good any more. A client does not ask for a key twice within a moment.
async fn refused(store: &ResolvedStore, sequence: u64) -> StoreProblem {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match store.grant(&segment(sequence), BODY.len() as u64, &digest(BODY)).await {
            Err(problem) => return problem,
            Ok(_) => assert!(Instant::now() < deadline, "an identity that is over still signs"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Who vouches for workloads, as the API server does for service accounts.
struct Issuer {
    url: String,
    key: EcdsaKeyPair,
}

impl Issuer {
    const AUDIENCE: &str = "sts.amazonaws.com";

    /// Publishes its key on loopback.
    async fn start() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
        // Uncompressed: a byte that says so, then both coordinates.
        let (x, y) = key.public_key().as_ref()[1..].split_at(32);
        let [x, y] = [x, y].map(|coordinate| BASE64_URL_SAFE_NO_PAD.encode(coordinate));
        let keys = json!({ "keys": [
            { "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "first", "x": x, "y": y },
        ] });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = axum::Router::new()
            .fallback(move || async move { ([("content-type", "application/json")], keys.to_string()) });
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, key }
    }

    /// A token of the operator's service account, good for this long from now.
    fn token(&self, audience: &str, seconds: i64) -> String {
        let now = jiff::Timestamp::now().as_second();
        let claims = json!({
            "iss": self.url, "aud": [audience], "iat": now - 600, "exp": now + seconds,
            "sub": "system:serviceaccount:tracelake:tracelake-operator",
        });
        let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed =
            format!("{}.{}", part(json!({ "alg": "ES256", "kid": "first", "typ": "JWT" })), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    /// What makes SeaweedFS give keys to whom this issuer vouches for: as `writer`, who may do all with the bucket, or as
    /// `reader`.
    fn iam(&self) -> Value {
        let statement = |rest: Value| json!({ "Version": "2012-10-17", "Statement": [rest] });
        let resources = [format!("arn:aws:s3:::{BUCKET}"), format!("arn:aws:s3:::{BUCKET}/*")];
        let policy = |name: &str, actions: &[&str]| {
            let document = statement(json!({ "Effect": "Allow", "Action": actions, "Resource": resources }));
            json!({ "name": name, "document": document })
        };
        let trust = statement(json!({
            "Effect": "Allow", "Principal": { "Federated": "cluster" }, "Action": ["sts:AssumeRoleWithWebIdentity"],
        }));
        let role = |name: &str| {
            json!({ "roleName": name, "roleArn": format!("arn:aws:iam::role/{name}"), "trustPolicy": trust,
                    "attachedPolicies": [name] })
        };
        let keys = format!("{}/keys", self.url);
        json!({
            // Keys for less time than a client keeps one without asking for another.
            "sts": { "tokenDuration": "4m", "maxSessionLength": "4m", "issuer": "seaweedfs",
                     "signingKey": base64::prelude::BASE64_STANDARD.encode([7; 32]) },
            "providers": [{ "name": "cluster", "type": "oidc", "enabled": true,
                            "config": { "issuer": self.url, "clientId": Self::AUDIENCE, "jwksUri": keys } }],
            "policy": { "defaultEffect": "Deny", "storeType": "memory" },
            "roles": [role("writer"), role("reader")],
            "policies": [policy("writer", &["s3:*"]), policy("reader", &["s3:GetObject", "s3:ListBucket"])],
        })
    }
}

#[tokio::test]
async fn f09_a_web_identity_is_its_role_until_its_token_is_over_and_with_the_next_file_again() {
    const TEST: &str =
        "identity::f09_a_web_identity_is_its_role_until_its_token_is_over_and_with_the_next_file_again";
    let Some(server) = std::env::var_os(SERVER) else {
        let issuer = Issuer::start().await;
        let server = Server::seaweedfs_with(Some(&issuer.iam())).await;
        let folder = tempfile::tempdir().unwrap();
        // As the kubelet would write them one after the other.
        for (name, audience, seconds) in [
            ("good", Issuer::AUDIENCE, 600),
            ("expired", Issuer::AUDIENCE, -60),
            ("for-others", "https://kubernetes.default.svc", 600),
        ] {
            std::fs::write(folder.path().join(name), issuer.token(audience, seconds)).unwrap();
        }
        for role in ["writer", "reader", "nobody"] {
            let role = format!("arn:aws:iam::role/{role}");
            let environment = [
                ("AWS_ENDPOINT_URL_STS", server.by_tls.clone().unwrap().into()),
                ("AWS_ROLE_ARN", role.into()),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", folder.path().join("token").into_os_string()),
                (CA, server.ca().into_os_string()),
            ];
            again(TEST, &server.endpoint, &environment).await;
        }
        return;
    };
    let file = std::path::PathBuf::from(std::env::var_os("AWS_WEB_IDENTITY_TOKEN_FILE").unwrap());
    let token = |name: &str| std::fs::copy(file.with_file_name(name), &file).unwrap();
    // The service that gives the keys is of the CA that the chart's values name.
    let ca: ExtraCa = std::env::var(CA).unwrap().parse().unwrap();
    let store =
        store_with(s3(server.to_str().unwrap(), BUCKET), &Credential::Ambient, None, Some(&ca)).unwrap();

    token("good");
    match std::env::var("AWS_ROLE_ARN").unwrap().rsplit('/').next().unwrap() {
        "writer" => {}
        "reader" => {
            let problem = store.probe().await.unwrap_err();
            return assert_eq!(problem.reason, reason::ACCESS_DENIED, "{problem}");
        }
        _ => {
            let problem = store.probe().await.unwrap_err();
            return assert_eq!(problem.reason, reason::NO_AMBIENT_CREDENTIALS, "{problem}");
        }
    }
    store.probe().await.unwrap();
    assert_eq!(put(&grant(&store, 1).await, BODY, &[]).await, StatusCode::OK);

    for bad in ["expired", "for-others"] {
        token(bad);
        let problem = refused(&store, 2).await;
        assert_eq!(problem.reason, reason::NO_AMBIENT_CREDENTIALS, "{bad}: {problem}");
        assert!(!problem.message.contains("token"), "what others answer is not shown: {problem}");
    }

    token("good");
    assert_eq!(put(&grant(&store, 2).await, BODY, &[]).await, StatusCode::OK);
}

#[tokio::test]
async fn f09_a_pod_identity_whose_token_file_expired_is_back_with_the_next_file() {
    const TEST: &str = "identity::f09_a_pod_identity_whose_token_file_expired_is_back_with_the_next_file";
    let Some(address) = std::env::var_os(SERVER) else {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let environment = [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://127.0.0.1:{port}/v1/credentials").into()),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", folder.path().join("token").into_os_string()),
        ];
        return again(TEST, &format!("127.0.0.1:{port}"), &environment).await;
    };
    // Gives the writer's key for a token that is not over, for less time than a client keeps one.
    let pod_identity = axum::Router::new().fallback(|headers: http::HeaderMap| async move {
        let token = headers.get("authorization").and_then(|token| token.to_str().ok()).unwrap_or_default();
        if !token.starts_with("good") {
            return (StatusCode::BAD_REQUEST, "ExpiredTokenException".to_owned());
        }
        let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(200);
        let credentials = format!(
            r#"{{"AccessKeyId": "AKWRITER", "SecretAccessKey": "writer-secret", "Token": "token", "Expiration": "{until}"}}"#
        );
        (StatusCode::OK, credentials)
    });
    let listener = tokio::net::TcpListener::bind(address.to_str().unwrap()).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, pod_identity).await });
    let file = std::env::var_os("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").unwrap();
    let server = Server::in_process().await;

    std::fs::write(&file, "good-1").unwrap();
    let store = server.store(&Credential::Ambient);
    store.probe().await.unwrap();
    assert_eq!(put(&grant(&store, 1).await, BODY, &[]).await, StatusCode::OK);

    std::fs::write(&file, "expired").unwrap();
    let problem = refused(&store, 2).await;
    assert_eq!(problem.reason, reason::NO_AMBIENT_CREDENTIALS, "{problem}");
    assert!(!problem.message.contains("ExpiredTokenException"), "what others answer is not shown: {problem}");

    // The kubelet has replaced the file.
    std::fs::write(&file, "good-2").unwrap();
    assert_eq!(put(&grant(&store, 2).await, BODY, &[]).await, StatusCode::OK);
}
