// SPDX-License-Identifier: Apache-2.0

//! What goes wrong before a session exists, or because there is none: each is said in a sentence that names what to do next.

use crate::server::{Server, failure, page_not_found, program, said};

const NO_KIND: &str = "this cluster has no TraceSessions (the API server does not know tracelake.dev/v1alpha1): install the chart";

#[tokio::test]
async fn without_a_kubeconfig_the_next_step_is_named() {
    for line in ["list", "status checkout", "stop checkout", "run --all-pods"] {
        let failed = said(program(env!("CARGO_BIN_EXE_tracelake").as_ref(), line)).await;
        assert_eq!(failed.code, Some(1), "{failed:?}");
        assert!(
            failed.err.contains("no cluster is known: set KUBECONFIG, or name a context with --context"),
            "{failed:?}"
        );
    }
}

#[tokio::test]
async fn an_api_server_that_is_not_there_is_said_with_its_reason() {
    let server = Server::start().await;
    let config = std::fs::read_to_string(server.kubeconfig()).unwrap();
    // The port of a server that has ended.
    let gone = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    std::fs::write(server.kubeconfig(), config.replace(&server.address, &format!("http://{gone}"))).unwrap();
    let failed = server.run("list").await;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.err.contains("the API server does not answer: Connection refused"), "{}", failed.err);
    assert!(failed.err.contains("`kubectl cluster-info` tries the same"), "{}", failed.err);
}

#[tokio::test]
async fn a_cluster_without_the_kinds_is_told_from_one_without_the_session() {
    let server = Server::start().await;
    for line in ["status checkout", "stop checkout"] {
        let missing = server.run(line).await.err;
        assert_eq!(
            missing,
            "tracelake: there is no TraceSession shop/checkout: `tracelake list -n shop` lists those that there are\n"
        );
    }
    server.world().refusal = Some(page_not_found());
    for line in ["list", "list -A", "status checkout", "stop checkout", "run --all-pods"] {
        let failed = server.run(line).await;
        assert_eq!(failed.code, Some(1), "{failed:?}");
        assert!(failed.err.contains(NO_KIND), "{line}: {}", failed.err);
    }
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_with_who_gives_it() {
    let server = Server::start().await;
    let rbac = "tracesessions.tracelake.dev is forbidden: User \"tina\" cannot do it";
    let policy = "tracesessions.tracelake.dev \"x\" is forbidden: ValidatingAdmissionPolicy 'tracelake-trace' with binding \
                  'tracelake-trace' denied request: user tina may not trace pods in namespace shop: it needs the verb trace on pods \
                  there (ClusterRole tracelake-trace)";
    let cases = [
        ("list", rbac, "--clusterrole=tracelake-view"),
        ("list -A", rbac, "kubectl create clusterrolebinding NAME --clusterrole=tracelake-view"),
        (
            "status checkout",
            rbac,
            "kubectl -n shop create rolebinding NAME --clusterrole=tracelake-view --user=YOU",
        ),
        ("stop checkout", rbac, "--clusterrole=tracelake-edit"),
        ("run --all-pods", rbac, "--clusterrole=tracelake-edit"),
        ("run --all-pods", policy, "--clusterrole=tracelake-trace"),
    ];
    for (line, message, next) in cases {
        server.world().refusal = Some(failure(403, message));
        let failed = server.run(line).await;
        assert_eq!(failed.code, Some(1), "{failed:?}");
        assert!(failed.err.contains(message) && failed.err.contains(next), "{line}: {}", failed.err);
    }
    server.world().refusal = Some(failure(401, "Unauthorized"));
    let failed = server.run("list").await.err;
    assert!(
        failed.contains("does not know who you are (Unauthorized): log in to the cluster again"),
        "{failed}"
    );
    server.world().refusal = Some(failure(503, "etcdserver: leader changed"));
    let failed = server.run("list").await.err;
    assert!(failed.contains("(503 etcdserver: leader changed): try again in a while"), "{failed}");
}

#[tokio::test]
async fn what_the_api_server_does_not_admit_is_said_in_its_words() {
    let server = Server::start().await;
    let cases = [
        (
            422,
            "TraceSession.tracelake.dev \"x\" is invalid: spec.duration: must be from 1s to 24h",
            "change the flags or the file",
        ),
        (400, "strict decoding error: unknown field \"spec.rollOver\"", "change the flags or the file"),
        (409, "tracesessions.tracelake.dev \"x\" already exists", "choose another --name"),
        (404, "namespaces \"shop\" not found", "`kubectl get namespaces`"),
    ];
    for (code, message, next) in cases {
        server.world().refusal = Some(failure(code, message));
        let failed = server.run("run --all-pods --name x").await;
        assert_eq!(failed.code, Some(1), "{failed:?}");
        assert!(
            failed.err.contains(&format!("no session was made in shop: {message}; {next}")),
            "{}",
            failed.err
        );
    }
}

#[tokio::test]
async fn what_is_no_name_never_becomes_part_of_a_request() {
    let server = Server::start().await;
    for line in [
        "status ../x",
        "status x?watch=true",
        "stop a/b/c",
        "list -n ..",
        "run --all-pods -n a/b",
        "status X",
    ] {
        let failed = server.run(line).await;
        assert_eq!(failed.code, Some(1), "{failed:?}");
        assert!(failed.err.contains("cannot be the name of"), "{line}: {}", failed.err);
    }
    assert!(server.world().asked.is_empty(), "{:?}", server.world().asked);
    let both = server.run("status shop/checkout -n other").await.err;
    assert!(both.contains("shop/checkout is not in namespace other"), "{both}");
}
