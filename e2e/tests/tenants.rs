// SPDX-License-Identifier: Apache-2.0

//! Two tenants, each with a namespace of its own and all that a tenant is given there, and what one tries on the other and on
//! the operator. Each attack is refused with the words that it names; what each may do works beside it, so that nothing is
//! refused for another reason. SECURITY.md lists them.

use std::fmt::Debug;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crds::TraceSession;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use node_api::data::data_client::DataClient;
use node_api::data::{ListRequest, ListResponse};
use node_api::v1::node_client::NodeClient;
use node_api::v1::{AgentMessage, GrantRequest, Hello, agent_message};
use reqwest::{Method, StatusCode, Url, header::HOST};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::session::{Session, condition};
use tracelake_e2e::{Env, PATIENCE, in_namespace, store};

/// The ServiceAccount that is the tenant, in each of the two namespaces.
const TENANT: &str = "tenant";
const LABEL: &str = "tenants";
const PAUSE: Duration = Duration::from_millis(500);
/// How long the API server may still accept the token of a ServiceAccount that is gone.
const BELIEVED: Duration = Duration::from_secs(120);

/// A user with a kubeconfig of its own, which holds a token and nothing of the administrator's.
struct User {
    namespace: String,
    name: String,
    folder: PathBuf,
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl User {
    /// A ServiceAccount bound to these ClusterRoles in its namespace.
    async fn make(env: &Env, namespace: &str, name: &str, roles: &[&str]) -> Result<Self> {
        let account: ServiceAccount = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(env.client.clone(), namespace);
        accounts.create(&PostParams::default(), &account).await?;
        for role in roles {
            bind(env, namespace, ("ClusterRole", role), (namespace, name)).await?;
        }
        let folder = std::env::temp_dir().join(format!("tracelake-{namespace}-{name}"));
        fs::create_dir_all(&folder)?;
        let user = Self { namespace: namespace.to_owned(), name: name.to_owned(), folder };
        let token = admin(&["-n", namespace, "create", "token", name, "--duration=1h"]).await?;
        user.write_kubeconfig(token.trim()).await?;
        Ok(user)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The administrator's cluster with this token; a client certificate beside it would be asked for first.
    async fn write_kubeconfig(&self, token: &str) -> Result<()> {
        let mut config: Value = serde_json::from_str(
            &admin(&["config", "view", "--raw", "--flatten", "--minify", "--output=json"]).await?,
        )?;
        config["users"][0]["user"] = json!({ "token": token });
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.kubeconfig())?;
        file.write_all(&serde_json::to_vec(&config)?)?;
        Ok(())
    }

    /// As the API server names it.
    fn username(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }

    async fn run(&self, program: &str, args: &[&str], input: &str) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(args).env("KUBECONFIG", self.kubeconfig()).kill_on_drop(true);
        output(command, program, input).await
    }

    async fn kubectl(&self, args: &[&str], input: &str) -> Result<String> {
        succeeded(&self.run(&kubectl(), args, input).await?, args)
    }

    /// The attack does not succeed, for the reason that is named.
    async fn refused(&self, args: &[&str], input: &str, words: &str) -> Result<()> {
        failed(&self.run(&kubectl(), args, input).await?, args, words)
    }

    async fn create(&self, object: &Value) -> Result<String> {
        self.kubectl(&["create", "--filename=-"], &object.to_string()).await
    }

    async fn may_not_create(&self, object: &Value, words: &str) -> Result<()> {
        self.refused(&["create", "--filename=-"], &object.to_string(), words).await
    }

    /// Waits until the API server knows of a right, as `kubectl auth can-i` names it.
    async fn may(&self, namespace: &str, what: &[&str]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let args = [&["auth", "can-i", "--namespace", namespace], what].concat();
        while !self.run(&kubectl(), &args, "").await?.status.success() {
            ensure!(Instant::now() < deadline, "{} has no right to {what:?}", self.username());
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// A client with this user's kubeconfig: kubectl cannot patch a status that it may not read.
    async fn client(&self) -> Result<Client> {
        let config = Kubeconfig::read_from(self.kubeconfig())?;
        Ok(Client::try_from(Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?)?)
    }

    /// A token of this account for an audience, made with its own rights.
    async fn token(&self, audience: &str) -> Result<String> {
        let args = ["-n", &self.namespace, "create", "token", &self.name, "--audience", audience];
        Ok(self.kubectl(&args, "").await?.trim().to_owned())
    }

    /// The command line, as this user.
    async fn tracelake(&self, args: &[String]) -> Result<Output> {
        let program = std::env::var("TRACELAKE_CLI").context(
            "TRACELAKE_CLI does not name the command line: run `cargo xtask test e2e`, or build `tracelake` and set it",
        )?;
        self.run(&program, &args.iter().map(String::as_str).collect::<Vec<_>>(), "").await
    }
}

fn kubectl() -> String {
    std::env::var("TRACELAKE_KUBECTL").unwrap_or_else(|_| "kubectl".to_owned())
}

/// As the cluster's administrator.
async fn admin(args: &[&str]) -> Result<String> {
    let mut command = Command::new(kubectl());
    command.args(args);
    succeeded(&output(command, "kubectl", "").await?, args)
}

async fn output(mut command: Command, program: &str, input: &str) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    // Whoever reads none of it has ended.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    Ok(child.wait_with_output().await?)
}

fn succeeded(output: &Output, args: &[impl Debug]) -> Result<String> {
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout.clone())?)
}

fn failed(output: &Output, args: &[impl Debug], words: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{args:?} succeeded, and should say {words:?}");
    ensure!(said.contains(words), "{args:?} should say {words:?}, and says: {said}");
    Ok(())
}

async fn bind(env: &Env, namespace: &str, role: (&str, &str), subject: (&str, &str)) -> Result<()> {
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": { "generateName": "tenants-" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1 },
        "subjects": [{ "kind": "ServiceAccount", "namespace": subject.0, "name": subject.1 }],
    }))?;
    let bindings: Api<RoleBinding> = Api::namespaced(env.client.clone(), namespace);
    bindings.create(&PostParams::default(), &binding).await?;
    Ok(())
}

/// Runs a test with two tenants who have what a tenant is given in their own namespaces, and no more.
fn with_tenants<F>(name: &str, test: impl FnOnce(Env, User, User) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    in_namespace(name, |env, a| async move {
        // `in_namespace` deletes the one that it has made; this is the other.
        let b = format!("{a}-b");
        let namespaces: Api<Namespace> = Api::all(env.client.clone());
        let labels = json!({ "pod-security.kubernetes.io/enforce": "privileged" });
        let object = serde_json::from_value(json!({ "metadata": { "name": b, "labels": labels } }))?;
        namespaces.create(&PostParams::default(), &object).await?;
        let result = async {
            let roles = ["edit", "tracelake-trace"];
            let one = User::make(&env, &a, TENANT, &roles).await?;
            let other = User::make(&env, &b, TENANT, &roles).await?;
            for user in [&one, &other] {
                user.may(&user.namespace, &["create", "tracesessions.tracelake.dev"]).await?;
                user.may(&user.namespace, &["trace", "pods"]).await?;
            }
            test(env.clone(), one, other).await
        }
        .await;
        if result.is_ok() || std::env::var_os("TRACELAKE_KEEP").is_none() {
            namespaces.delete(&b, &DeleteParams::background()).await?;
        }
        result
    })
}

fn session(namespace: &str, name: &str, changes: &Value) -> Value {
    let mut spec = Session::spec(LABEL, "10s");
    for (key, value) in changes.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    object("TraceSession", namespace, name, &spec)
}

fn object(kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "tracelake.dev/v1alpha1", "kind": kind, "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    })
}

/// A session that was admitted says in its status what it does not get: condition, reason and words.
async fn denied(
    env: &Env,
    user: &User,
    name: &str,
    changes: &Value,
    wanted: (&str, &str, &str),
) -> Result<()> {
    let (kind, reason, words) = wanted;
    let mut object = session(&user.namespace, name, changes);
    // One that waits for a store does not wait long.
    object["spec"]["startDeadline"] = json!("5s");
    user.create(&object).await?;
    let made = Session::existing(&env.client, &user.namespace, name);
    let is_false = |now: &TraceSession| condition(now, kind).is_some_and(|(status, _)| status == "False");
    let made = made.wait(&format!("{kind}=False"), is_false).await?;
    let status = serde_json::to_string(&made.status)?;
    let found = condition(&made, kind).map(|(_, reason)| reason);
    ensure!(found.as_deref() == Some(reason), "{name}: {kind}=False/{found:?}, not {reason}: {status}");
    ensure!(status.contains(words), "{name} should say {words:?}: {status}");
    Ok(())
}

#[test]
fn what_a_tenant_may_not_make_or_reach_is_refused_in_the_words_that_say_why() -> Result<()> {
    with_tenants("tenants", |env, a, b| async move {
        let (own, others) = (a.namespace.as_str(), b.namespace.as_str());
        let user = a.username();
        let system = env.system.clone();
        let cannot = |verb: &str, resource: &str, group: &str, namespace: &str| {
            format!(
                "User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" in the namespace \"{namespace}\""
            )
        };
        let ours = "tracelake.dev";

        // The other's pods: by a session there, and by names and selectors here.
        let there = session(others, "mine", &json!({}));
        a.may_not_create(&there, &cannot("create", "tracesessions", ours, others)).await?;
        let their_pods = pods::api(&env.client, others);
        PodSpec::workload("theirs", LABEL, &["sleep"]).start(&their_pods).await?;
        let nobody = ("TargetsResolved", "NoPods", "no pod matches yet");
        let by_name = json!({ "target": { "podNames": ["theirs"] } });
        denied(&env, &a, "by-name", &by_name, nobody).await?;
        denied(&env, &a, "by-selector", &json!({ "target": { "podSelector": {} } }), nobody).await?;

        // Its own pods, and a schedule for them, without the right to trace.
        let plain = User::make(&env, own, "plain", &["edit"]).await?;
        plain.may(own, &["create", "traceschedules.tracelake.dev"]).await?;
        let may_not_trace = format!(
            "user {} may not trace pods in namespace {own}: it needs the verb trace on pods there (ClusterRole tracelake-trace)",
            plain.username()
        );
        plain.may_not_create(&session(own, "untraced", &json!({})), &may_not_trace).await?;
        let schedule = json!({ "schedule": "* * * * *", "suspend": true,
            "sessionTemplate": { "spec": session(own, "untraced", &json!({}))["spec"] } });
        let schedule = object("TraceSchedule", own, "untraced", &schedule);
        plain.may_not_create(&schedule, &may_not_trace).await?;
        a.create(&schedule).await.context("of somebody who may trace")?;

        // The other's store, one that is for the other alone, and the chart's store by a store of its own.
        let endpoint = format!("http://tracelake-dev-store.{system}.svc:8333");
        let s3 = json!({ "bucket": store::BUCKET, "endpoint": endpoint, "prefix": "of-the-other" });
        let secret = json!({ "secretRef": { "name": "key" } });
        let own_store = json!({ "s3": s3, "credentials": secret });
        b.create(&object("TraceStore", others, "theirs", &own_store)).await?;
        let by_ref = |kind: &str, name: &str| json!({ "storeRef": { "kind": kind, "name": name } });
        let words = format!("there is no TraceStore theirs in namespace {own}");
        let missing = ("StoreReady", "StoreNotFound", words.as_str());
        denied(&env, &a, "their-store", &by_ref("TraceStore", "theirs"), missing).await?;

        let of_the_other = json!([others]);
        store::like_default(&env.client, others, |spec| spec["allowedNamespaces"] = of_the_other).await?;
        let words =
            format!("ClusterTraceStore {others} does not list namespace {own} in spec.allowedNamespaces");
        let barred = ("StoreReady", "NamespaceNotAllowed", words.as_str());
        let tried = denied(&env, &a, "barred-store", &by_ref("ClusterTraceStore", others), barred).await;
        let stores: Api<crds::ClusterTraceStore> = Api::all(env.client.clone());
        stores.delete(others, &DeleteParams::background()).await?;
        tried?;

        a.create(&object("TraceStore", own, "inside", &own_store)).await?;
        let words = "is not one that tenants' stores may use: use a ClusterTraceStore";
        let off_the_list = ("StoreReady", "EndpointNotAllowed", words);
        denied(&env, &a, "inside", &by_ref("TraceStore", "inside"), off_the_list).await?;

        // Another prefix: a path that climbs, and a place that only the operator writes down.
        let mut climbing = own_store.clone();
        climbing["s3"]["prefix"] = json!("team/../../of-the-other");
        a.may_not_create(
            &object("TraceStore", own, "climbing", &climbing),
            "must not have . or .. as a part",
        )
        .await?;
        let client = a.client().await?;
        let moved = Patch::Merge(json!({ "status": { "dataset": { "prefix": "of-the-other" } } }));
        let sessions: Api<TraceSession> = Api::namespaced(client.clone(), own);
        let written = sessions.patch_status("by-name", &PatchParams::default(), &moved).await;
        forbidden(written, &cannot("patch", "tracesessions/status", ours, own))?;
        let stores: Api<crds::TraceStore> = Api::namespaced(client, own);
        let written = stores.patch_status("inside", &PatchParams::default(), &moved).await;
        forbidden(written, &cannot("patch", "tracestores/status", ours, own))?;

        // The operator's own identity, and its keys.
        let ambient = json!({ "s3": { "bucket": "b" }, "credentials": { "ambient": true } });
        a.may_not_create(
            &object("TraceStore", own, "ambient", &ambient),
            "only a ClusterTraceStore may use them",
        )
        .await?;
        let mut for_all = object("ClusterTraceStore", own, "ambient", &ambient);
        for_all["metadata"] = json!({ "name": "ambient" });
        let words = format!(
            "User \"{user}\" cannot create resource \"clustertracestores\" in API group \"{ours}\" at the cluster scope"
        );
        a.may_not_create(&for_all, &words).await?;
        for name in ["tracelake-dev-store", "tracelake-operator-tls"] {
            a.refused(&["-n", &system, "get", "secret", name], "", &cannot("get", "secrets", "", &system))
                .await?;
        }

        // An agent's identity, and what only an agent gets: plans, grants, and to be believed.
        let agents = [
            "-n",
            &system,
            "create",
            "token",
            "tracelake-node-agent",
            "--audience",
            node_api::TOKEN_AUDIENCE,
        ];
        a.refused(&agents, "", &cannot("create", "serviceaccounts/token", "", &system)).await?;
        let channel = env.operator().await?;
        let node = env.nodes().await?.remove(0);
        let posing = a.token(node_api::TOKEN_AUDIENCE).await?;
        let not_an_agent = (Code::PermissionDenied, "wrong_service_account: the token is not a node agent's");
        says(hello(&channel, &posing, &node).await, not_an_agent)?;
        says(grant(&channel, &posing).await, not_an_agent)?;
        let for_data = a.token(node_api::DATA_AUDIENCE).await?;
        let elsewhere = (Code::Unauthenticated, "wrong_audience: the token is for somebody else");
        says(hello(&channel, &for_data, &node).await, elsewhere)?;
        says(grant(&channel, &for_data).await, elsewhere)
    })
}

fn forbidden<T>(answer: Result<T, kube::Error>, words: &str) -> Result<()> {
    let error = answer.err().with_context(|| format!("it was done, and should say {words:?}"))?.to_string();
    ensure!(error.contains(words), "it should say {words:?}, and says {error}");
    Ok(())
}

fn says<T>(answer: Result<T, Status>, wanted: (Code, &str)) -> Result<()> {
    let status = answer.err().with_context(|| format!("it was answered, and should say {wanted:?}"))?;
    ensure!((status.code(), status.message()) == wanted, "it should say {wanted:?}, and says {status:?}");
    Ok(())
}

fn with_token<T>(message: T, token: &str) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    node_api::token::attach(request.metadata_mut(), token)
        .map_err(|error| Status::internal(error.to_string()))?;
    Ok(request)
}

/// Asks for a node's plan, as its agent does before it reports.
async fn hello(channel: &Channel, token: &str, node: &str) -> Result<(), Status> {
    let hello = Hello { node: node.to_owned(), boot: "0".repeat(32), ..Hello::default() };
    let message = AgentMessage { kind: Some(agent_message::Kind::Hello(hello)) };
    let request = with_token(futures::stream::iter([message]), token)?;
    let mut plans = NodeClient::new(channel.clone()).connect(request).await?.into_inner();
    plans.message().await.map(drop)
}

async fn grant(channel: &Channel, token: &str) -> Result<(), Status> {
    let request = GrantRequest { session_uid: "another".to_owned(), ..GrantRequest::default() };
    NodeClient::new(channel.clone()).grant(with_token(request, token)?).await.map(drop)
}

async fn list(channel: &Channel, token: &str, namespace: &str, name: &str) -> Result<ListResponse, Status> {
    let request =
        ListRequest { namespace: namespace.to_owned(), session: name.to_owned(), ..ListRequest::default() };
    let answer = DataClient::new(channel.clone()).list(with_token(request, token)?).await?;
    Ok(answer.into_inner())
}

/// A request by a URL that leads to the dev store, which is reached by a forwarded port.
async fn by_url(method: Method, url: &str, address: &str) -> Result<StatusCode> {
    let url = Url::parse(url)?;
    let host =
        format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
    let there = url.as_str().replacen(&host, address, 1);
    let client = reqwest::Client::new();
    Ok(client.request(method, there).header(HOST, host).body("forged").send().await?.status())
}

#[test]
fn each_tenant_reads_its_own_data_by_the_operator_and_nothing_of_the_other() -> Result<()> {
    with_tenants("readers", |env, a, b| async move {
        for user in [&a, &b] {
            let pods = pods::api(&env.client, &user.namespace);
            PodSpec::workload("worker", LABEL, &["sleep"]).start(&pods).await?;
            user.create(&session(&user.namespace, "done", &json!({}))).await?;
        }
        for user in [&a, &b] {
            Session::existing(&env.client, &user.namespace, "done").phase("Completed").await?;
        }
        let (own, others) = (a.namespace.as_str(), b.namespace.as_str());
        let channel = env.operator().await?;
        let token = a.token(node_api::DATA_AUDIENCE).await?;
        let page = list(&channel, &token, own, "done").await?;
        let folder = format!("/{own}/done/{}/", page.uid);
        ensure!(page.uri.ends_with(folder.trim_end_matches('/')), "{}", page.uri);
        ensure!(
            page.objects.iter().any(|object| object.key.starts_with("processes/")),
            "no rows were listed"
        );
        ensure!(page.objects.iter().all(|object| object.get_url.contains(&folder)), "a URL leads elsewhere");

        // The other's, whether there are any or not.
        for name in ["done", "nothing"] {
            let words = format!(
                "not_allowed: {} may not read the data of {others}/{name}: it needs the verb get on tracesessions/data there \
                 (ClusterRole tracelake-data)",
                a.username()
            );
            says(list(&channel, &token, others, name).await, (Code::PermissionDenied, &words))?;
        }
        // Who may look at sessions may not read what they recorded.
        let viewer = User::make(&env, own, "viewer", &["view"]).await?;
        let admin_made =
            admin(&["-n", own, "create", "token", "viewer", "--audience", node_api::DATA_AUDIENCE]).await?;
        let words = format!(
            "not_allowed: {} may not read the data of {own}/done: it needs the verb get on tracesessions/data there \
             (ClusterRole tracelake-data)",
            viewer.username()
        );
        says(list(&channel, admin_made.trim(), own, "done").await, (Code::PermissionDenied, &words))?;

        // A URL, to overwrite or delete, and on another's object.
        let address = store::dev_store_address(&env.client, &env.system).await?.to_string();
        let url =
            &page.objects.iter().find(|object| object.key.starts_with("processes/")).context("rows")?.get_url;
        ensure!(by_url(Method::GET, url, &address).await? == StatusCode::OK, "its own object is not read");
        for method in [Method::PUT, Method::DELETE] {
            let status = by_url(method.clone(), url, &address).await?;
            ensure!(status == StatusCode::FORBIDDEN, "{method} by a URL for GET: {status}");
        }
        let their_uid =
            Session::existing(&env.client, others, "done").get().await?.metadata.uid.context("UID")?;
        let moved = url.replace(&folder, &format!("/{others}/done/{their_uid}/"));
        let status = by_url(Method::GET, &moved, &address).await?;
        ensure!(moved != *url && status == StatusCode::FORBIDDEN, "the other's object: {status}");

        // Tokens where they are not for, and after their time.
        let invalid = "invalid_token: the API server does not accept the token for audience tracelake-data";
        let of_the_api = admin(&["-n", own, "create", "token", TENANT]).await?;
        for token in [of_the_api.trim(), &a.token(node_api::TOKEN_AUDIENCE).await?] {
            says(list(&channel, token, own, "done").await, (Code::Unauthenticated, invalid))?;
        }
        a.write_kubeconfig(&token).await?;
        a.refused(&["-n", own, "get", "pods"], "", "You must be logged in to the server").await?;
        a.write_kubeconfig(of_the_api.trim()).await?;
        admin(&["-n", own, "delete", "serviceaccount", "viewer"]).await?;
        let deadline = Instant::now() + BELIEVED;
        loop {
            // The API server believes for some seconds what it has just looked up.
            match list(&channel, admin_made.trim(), own, "done").await {
                Err(status) if status.code() == Code::PermissionDenied && Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                answer => break says(answer, (Code::Unauthenticated, invalid))?,
            }
        }

        command_line(&env, &a, &b, &address).await
    })
}

/// The same by the command line, from a kubeconfig to a folder.
async fn command_line(env: &Env, a: &User, b: &User, address: &str) -> Result<()> {
    let by_operator = ["--via-operator", "--service-account", TENANT, "--store-address", address];
    let there = ["--operator-namespace", &env.system];
    let with = |words: &[&'static str], place: &str| -> Vec<String> {
        let words = words.iter().copied().chain([place]).chain(by_operator).chain(there);
        words.map(str::to_owned).collect()
    };
    let own = format!("{}/done", a.namespace);
    let others = format!("{}/done", b.namespace);

    // The way to the operator is a right of its own.
    let verify = with(&["verify"], &own);
    let words =
        format!("cannot get resource \"configmaps\" in API group \"\" in the namespace \"{}\"", env.system);
    failed(&a.tracelake(&verify).await?, &verify, &words)?;
    bind(env, &env.system, ("Role", "tracelake-via-operator"), (&a.namespace, TENANT)).await?;
    a.may(&env.system, &["create", "pods", "--subresource=portforward"]).await?;
    dev_store_by_forwarded_ports(env, a).await?;
    let said = succeeded(&a.tracelake(&verify).await?, &verify)?;
    ensure!(said.contains("is what its manifests say"), "{said}");

    let folder = a.folder.join("pulled").display().to_string();
    let pull = [with(&["pull"], &own), vec![folder.clone()]].concat();
    for fetched in ["objects, ", "objects, 0 of them fetched now"] {
        let said = succeeded(&a.tracelake(&pull).await?, &pull)?;
        ensure!(said.contains(fetched), "{said}");
    }
    let verify = ["verify".to_owned(), folder.clone()];
    succeeded(&a.tracelake(&verify).await?, &verify)?;

    let pull = [with(&["pull"], &others), vec![folder]].concat();
    let words = format!(
        "cannot create resource \"serviceaccounts/token\" in API group \"\" in the namespace \"{}\"",
        b.namespace
    );
    failed(&a.tracelake(&pull).await?, &pull, &words)
}

/// Whoever may forward ports in the chart's namespace reaches those that the dev store has for itself: nothing of what lies there
/// is read or changed by them.
async fn dev_store_by_forwarded_ports(env: &Env, user: &User) -> Result<()> {
    let found = ListParams::default().labels("app.kubernetes.io/component=dev-store");
    let pods: Api<Pod> = Api::namespaced(env.client.clone(), &env.system);
    let name = pods.list(&found).await?.items.pop().and_then(|pod| pod.metadata.name).context("dev store")?;
    let as_user: Api<Pod> = Api::namespaced(user.client().await?, &env.system);
    let bucket = store::BUCKET;
    let http = [
        (9333, "POST /submit".to_owned()),
        (9333, format!("GET /col/delete?collection={bucket}")),
        (8080, "GET /1,01637037d6".to_owned()),
        (8080, "DELETE /1,01637037d6".to_owned()),
        (8888, format!("GET /buckets/{bucket}/")),
        (8888, format!("DELETE /buckets/{bucket}?recursive=true")),
    ];
    for (port, what) in http {
        let request = format!("{what} HTTP/1.0\r\nHost: x\r\n\r\n");
        let said = forwarded(&as_user, &name, port, request.as_bytes());
        let said = said.await?;
        let refused = said.ends_with(b"401") || said.ends_with(b"404");
        ensure!(refused, "{what} at port {port}: {}", String::from_utf8_lossy(&said));
    }
    // gRPC without TLS and a certificate: a server that takes it answers with its settings.
    let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    for port in [19333, 18080, 18888, 18333] {
        let said = forwarded(&as_user, &name, port, &hello).await?;
        ensure!(said.is_empty() || said[0] == 0x15, "port {port} takes gRPC of anybody: {said:?}");
    }
    Ok(())
}

/// The first bytes that a port of a pod answers; none if it ends the connection.
async fn forwarded(pods: &Api<Pod>, pod: &str, port: u16, words: &[u8]) -> Result<Vec<u8>> {
    let mut forwarder = pods.portforward(pod, &[port]).await?;
    let mut stream = forwarder.take_stream(port).context("the port was asked for")?;
    stream.write_all(words).await?;
    let mut first = vec![0; 12];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut first)).await?;
    first.truncate(read.unwrap_or_default());
    Ok(first)
}
