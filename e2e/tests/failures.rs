// SPDX-License-Identifier: Apache-2.0

//! What `kubectl describe` says of what went wrong: `docs/failures.md` is made of it, so that what the page promises is what a
//! user sees. `UPDATE=1` writes the page anew.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crds::{ClusterTraceStore, TraceSchedule, TraceStore};
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::ResourceExt;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::runtime::wait::await_condition;
use regex::Regex;
use serde_json::{Value, json};
use tokio::process::Command;
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::session::Session;
use tracelake_e2e::{Env, PATIENCE, in_namespace, store};

const HEAD: &str = "\
# What went wrong, as `kubectl describe` says it

Made by a test from the output on a real cluster (`e2e/tests/failures.rs`): the status and Events of each object, without what
differs from time to time.
";
/// Of the pods that sessions record.
const LABEL: &str = "failures";
/// Without a change for so long, and nothing more is said: an Event follows the status that it is about.
const STILL: Duration = Duration::from_secs(5);

/// One failure: what is applied, and how it is known that all has been said.
struct Case {
    title: &'static str,
    name: &'static str,
    /// The session's spec, as a user writes it.
    spec: &'static str,
    /// When all of these words are there, all has been said.
    says: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        title: "A collector's name is misspelt",
        name: "misspelt",
        spec: "{target: {podSelector: {}}, duration: 1m, collectors: [{name: tcpConections}]}",
        says: &["UnknownCollector", "Failed"],
    },
    Case {
        title: "A parameter has a value that it cannot have",
        name: "parameter",
        spec: "{target: {podSelector: {}}, duration: 1m, collectors: [{name: processes, params: {threads: perhaps}}]}",
        says: &["InvalidParameter", "Failed"],
    },
    Case {
        title: "The store is not there",
        name: "no-store",
        spec: "{target: {podSelector: {}}, duration: 1m, startDeadline: 1h, collectors: [{name: processes}], storeRef: {kind: TraceStore, name: nowhere}}",
        says: &["StoreNotFound"],
    },
    Case {
        title: "The store is not for this namespace",
        name: "barred",
        spec: "{target: {podSelector: {}}, duration: 1m, startDeadline: 1h, collectors: [{name: processes}], storeRef: {kind: ClusterTraceStore, name: STORE-barred}}",
        says: &["NamespaceNotAllowed"],
    },
    Case {
        title: "The store refuses the key",
        name: "wrong-key",
        spec: "{target: {podSelector: {}}, duration: 1m, startDeadline: 1h, collectors: [{name: processes}], storeRef: {kind: ClusterTraceStore, name: STORE-wrong-key}}",
        says: &["InvalidAccessKeyId"],
    },
    Case {
        title: "The store's Secret is not there",
        name: "no-secret",
        spec: "{target: {podSelector: {}}, duration: 1m, startDeadline: 1h, collectors: [{name: processes}], storeRef: {kind: ClusterTraceStore, name: STORE-no-secret}}",
        says: &["SecretNotFound"],
    },
    Case {
        title: "Nobody answers at the store's endpoint",
        name: "unreachable",
        spec: "{target: {podSelector: {}}, duration: 1m, startDeadline: 1h, collectors: [{name: processes}], storeRef: {kind: ClusterTraceStore, name: STORE-unreachable}}",
        says: &["StoreUnavailable"],
    },
    Case {
        title: "The store was not ready in time",
        name: "too-late",
        spec: "{target: {podSelector: {}}, duration: 1m, startDeadline: 5s, collectors: [{name: processes}], storeRef: {kind: TraceStore, name: nowhere}}",
        says: &["StartDeadlineExceeded", "Failed"],
    },
    Case {
        title: "The workload is not there",
        name: "no-workload",
        spec: "{target: {workloadRef: {kind: Deployment, name: nobody}}, duration: 15m, collectors: [{name: processes}]}",
        says: &["WorkloadNotFound"],
    },
    Case {
        title: "The selector matches no pod",
        name: "nobody",
        spec: "{target: {podSelector: {matchLabels: {app: nobody}}}, duration: 15m, collectors: [{name: processes}]}",
        says: &["NoPods"],
    },
    Case {
        title: "A tenant's own store is at an endpoint that the chart does not allow",
        name: "own-store",
        spec: "{target: {podSelector: {}}, duration: 1m, startDeadline: 1h, collectors: [{name: processes}], storeRef: {kind: TraceStore, name: own}}",
        says: &["EndpointNotAllowed"],
    },
];

/// Failures of sessions that record already.
const LATER: &[Case] = &[
    Case {
        title: "The store's Secret is deleted while nodes record",
        name: "lost-secret",
        spec: "{target: {podSelector: {matchLabels: {tracelake-e2e: failures}}}, duration: 1h, drainTimeout: 10s, collectors: [{name: processes}], storeRef: {kind: ClusterTraceStore, name: STORE-lost-secret}}",
        says: &["SecretNotFound"],
    },
    Case {
        title: "A session's budget is used up",
        name: "over-budget",
        spec: "{target: {podSelector: {matchLabels: {tracelake-e2e: failures}}}, duration: 1h, collectors: [{name: processes}], budget: {eventsPerSecond: 10, onExceeded: Stop}}",
        says: &["BudgetStopped", "Completed"],
    },
];
/// Stores with a Secret of their own, beside the dev store's.
const WITH_SECRET: [&str; 2] = ["wrong-key", "lost-secret"];

#[test]
fn describe_alone_explains_each_failure_as_the_documentation_shows_it() -> Result<()> {
    in_namespace("failures", |env, ns| async move {
        let shown = shown(&env, &ns).await;
        // They are the cluster's, not the namespace's.
        let stores: Api<ClusterTraceStore> = Api::all(env.client.clone());
        for store in stores.list(&ListParams::default()).await?.iter().map(ResourceExt::name_any) {
            if store.starts_with(&ns) {
                stores.delete(&store, &DeleteParams::default()).await?;
            }
        }
        let secrets: Api<Secret> = Api::namespaced(env.client.clone(), &env.system);
        for name in WITH_SECRET {
            // Where the first of them could not be made, and when all was tested, there is none.
            let _ = secrets.delete(&format!("{ns}-{name}"), &DeleteParams::default()).await;
        }
        let page = shown?;
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/failures.md");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, &page).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        ensure!(
            there == page,
            "docs/failures.md is not what kubectl says now; UPDATE=1 writes it anew:\n{page}"
        );
        Ok(())
    })
}

/// Makes each failure and returns the page.
async fn shown(env: &Env, ns: &str) -> Result<String> {
    stores(env, ns).await?;
    for case in CASES {
        create(env, ns, case).await?;
    }
    fail_later(env, ns).await?;
    let mut page = HEAD.to_owned();
    let cases = || CASES.iter().chain(LATER);
    let said = cases().map(|case| settled(env, ns, "tracesession", case.name, case.says));
    for (case, said) in cases().zip(join_all(said).await) {
        page += &section(case.title, &case.spec.replace("STORE-", ""), &said.with_context(|| case.title)?);
    }
    page += &schedule(env, ns).await?;
    Ok(page)
}

async fn create(env: &Env, ns: &str, case: &Case) -> Result<Session> {
    let spec: Value = serde_yaml::from_str(&case.spec.replace("STORE", ns))?;
    Session::create(&env.client, ns, case.name, spec).await
}

/// Lets the sessions of [`LATER`] record, and then what goes wrong with them.
async fn fail_later(env: &Env, ns: &str) -> Result<()> {
    let api = pods::api(&env.client, ns);
    let (node, _) = env.two_nodes().await?;
    PodSpec::workload("idle", LABEL, &["sleep"]).on(&node).start(&api).await?;
    for session in try_join_all(LATER.iter().map(|case| create(env, ns, case))).await? {
        session.recording().await?;
    }
    let secrets: Api<Secret> = Api::namespaced(env.client.clone(), &env.system);
    secrets.delete(&format!("{ns}-lost-secret"), &DeleteParams::default()).await?;
    PodSpec::workload("spawner", LABEL, &["spawn", "300", "/usr/bin/true"]).on(&node).run(&api).await?;
    Ok(())
}

/// Stores with one fault each, made from the chart's.
async fn stores(env: &Env, ns: &str) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(env.client.clone(), &env.system);
    let (id, key) = store::credentials(&env.client, &env.system).await?;
    for (name, (id, key)) in WITH_SECRET.into_iter().zip([("somebody", "else"), (&*id, &*key)]) {
        let secret = json!({ "metadata": { "name": format!("{ns}-{name}") },
            "stringData": { "accessKeyId": id, "secretAccessKey": key } });
        secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
    }
    let with_secret =
        |name: &str| json!({ "credentials": { "secretRef": { "name": format!("{ns}-{name}") } } });
    for (name, change) in [
        ("barred", json!({ "allowedNamespaces": ["elsewhere"] })),
        ("wrong-key", with_secret("wrong-key")),
        ("lost-secret", with_secret("lost-secret")),
        ("no-secret", json!({ "credentials": { "secretRef": { "name": "nowhere" } } })),
        ("unreachable", json!({ "s3": { "bucket": "traces", "endpoint": "http://tracelake-dev-store:9" } })),
    ] {
        let with_it = |spec: &mut Value| {
            for (key, value) in change.as_object().into_iter().flatten() {
                spec[key] = value.clone();
            }
        };
        store::like_default(&env.client, &format!("{ns}-{name}"), with_it).await?;
    }
    let own = json!({ "metadata": { "name": "own" }, "spec": {
        "s3": { "bucket": "traces", "endpoint": "https://minio.example.com" },
        "credentials": { "secretRef": { "name": "keys" } },
    } });
    let tenants: Api<TraceStore> = Api::namespaced(env.client.clone(), ns);
    tenants.create(&PostParams::default(), &serde_json::from_value(own)?).await?;
    Ok(())
}

/// A schedule in a time zone that is none.
async fn schedule(env: &Env, ns: &str) -> Result<String> {
    let spec = "{schedule: \"0 3 * * *\", timeZone: Europe/Zuerich, sessionTemplate: {spec: \
                {target: {podSelector: {}}, duration: 1m, collectors: [{name: processes}]}}}";
    let api: Api<TraceSchedule> = Api::namespaced(env.client.clone(), ns);
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "tracelake.dev/v1alpha1", "kind": "TraceSchedule", "metadata": { "name": "nightly" },
        "spec": serde_yaml::from_str::<Value>(spec)?,
    }))?;
    api.create(&PostParams::default(), &serde_json::from_value(serde_json::to_value(object)?)?).await?;
    let refused = await_condition(api, "nightly", |schedule: Option<&TraceSchedule>| {
        let status = schedule.and_then(|schedule| schedule.status.as_ref());
        status.is_some_and(|status| status.conditions.iter().any(|one| one.status == "False"))
    });
    tokio::time::timeout(PATIENCE, refused).await.context("the schedule is not refused")??;
    let said = settled(env, ns, "traceschedule", "nightly", &["UnknownTimeZone"]).await?;
    Ok(section("A schedule's time zone is none", spec, &said))
}

fn section(title: &str, spec: &str, said: &str) -> String {
    format!("\n## {title}\n\n`spec: {spec}`\n\n```\n{said}\n```\n")
}

/// What kubectl says once it holds these words and no longer changes.
async fn settled(env: &Env, ns: &str, kind: &str, name: &str, words: &[&str]) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = String::new();
    loop {
        let said = describe(env, ns, kind, name).await?;
        if said == last && words.iter().all(|word| said.contains(word)) {
            return Ok(said);
        }
        ensure!(Instant::now() < deadline, "{words:?} are not said, or it never ends: {said}");
        last = said;
        tokio::time::sleep(STILL).await;
    }
}

/// `kubectl describe`, from the status on, without what is never the same twice.
async fn describe(env: &Env, ns: &str, kind: &str, name: &str) -> Result<String> {
    static VARIES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        [
            (r"(?m)^ +[A-Z][A-Za-z ]*: +(\d+|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z)\n", ""),
            (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<uid>"),
            (r"request id [0-9A-Za-z]+", "request id <id>"),
            // The age, and how often; then the columns as narrow as they can be.
            (r"(?m)^(  (?:Normal|Warning) +\S+) +\S+( \(x\d+ over \S+\))? +(\S+) +", "${1}  ${3}  "),
            (r"(?m)^  (Type +Reason|-+ +-+) +\S+ +(\S+) +", "  ${1}  ${2}  "),
            (r"(?m)^  (Normal |Warning|Type|----) +(\S+) +(\S+) +", "  ${1}  ${2}  ${3}  "),
            (r"\b\d+ (bytes|a second)", "<n> ${1}"),
            (r" +\n", "\n"),
            // Conditions with nothing to say.
            (r"(?m)^    Message:\n    Reason: +AsExpected\n    Status: +False\n    Type: +\w+\n", ""),
        ]
        .map(|(pattern, with)| (Regex::new(pattern).expect("a valid pattern"), with))
        .into()
    });
    let kubectl = std::env::var("TRACELAKE_KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
    let output = Command::new(&kubectl).args(["describe", kind, name, "--namespace", ns]).output();
    let output = output.await.with_context(|| format!("starting {kubectl}"))?;
    ensure!(output.status.success(), "kubectl describe: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    // At first there is none.
    let from = text.find("Status:").unwrap_or(text.len());
    let mut said = text[from..].trim_end().to_owned();
    said.push('\n');
    for (pattern, with) in VARIES.iter() {
        said = pattern.replace_all(&said, *with).into_owned();
    }
    // Whether a session is seen while it drains is a matter of chance; what ends it may be told in the same second as its end.
    let lines = said.lines().filter(|line| !line.starts_with("  Normal   Draining"));
    let (ends, others): (Vec<&str>, Vec<&str>) =
        lines.partition(|line| line.starts_with("  Normal   Completed"));
    Ok([others, ends]
        .concat()
        .join("\n")
        .replace(&format!("{ns}-"), "")
        .replace(ns, "shop")
        .replace(&env.system, "tracelake-system")
        .replace(&env.nodes().await?[0], "node-a")
        .trim_end()
        .to_owned())
}
