// SPDX-License-Identifier: Apache-2.0

//! Checks of the Helm chart that need no cluster.
//!
//! Every file of `charts/tracelake/ci` is linted, rendered, and what comes of it is compared with the schemas of the oldest and the
//! newest Kubernetes (kubeconform), judged by kube-score, and looked through for what the chart promises of each pod.
//! `e2e/tests/chart.rs` installs the same files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{cache, exec, schemas, tools};

/// What kube-score says that is not to be mended: its check, the component of the object (or `*`), and why. One that nothing
/// needs any more is an error.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "container-image-pull-policy",
        "*",
        "a value; tags of releases do not move, and clusters without a registry have their images on the nodes",
    ),
    ("container-cpu-requests-equal-limits", "*", "no CPU limits"),
    ("container-memory-requests-equal-limits", "*", "both idle at a tenth of what they may take"),
    ("container-resource-requests-equal-limits", "*", "the two above"),
    (
        "container-ephemeral-storage-request-and-limit",
        "*",
        "root file systems are read-only, logs are the kubelet's to rotate; what the dev store holds has no measure",
    ),
    ("container-security-context-user-group-id", "node-agent", "the kernel gives capabilities to uid 0 only"),
    ("pod-probes", "check", "a pod that ends: nobody sends it requests"),
    ("pod-probes", "dev-store", "no liveness: a slow one is not to be killed under uploads; for trying out"),
    ("deployment-replicas", "dev-store", "for trying out: one server with one folder"),
    ("deployment-strategy", "dev-store", "two servers cannot have one folder"),
    ("pod-networkpolicy", "*", "what goes out is not limited: stores are anywhere"),
];

/// Values that no file of `ci` has and somebody may: what is unset, empty, or the least.
const ODD: &[&[&str]] = &[
    &["operator.replicas=1", "agent.maxUnavailable=1", "uninstall.sessionTimeoutSeconds=0"],
    &["operator.resources=null", "agent.resources=null", "devStore.resources=null"],
    &["agent.tolerations=null", "agent.priorityClassName=", "operator.log=", "agent.log="],
    &["image.repository=registry.example.com:5000/team/tracelake", "image.tag=v1.2.3", "defaultStore.name="],
    &["networkPolicy.enabled=true", "limits.sessionsPerNamespace=1", "monitoring.dashboard=true"],
    &["proxy.https=http://user:word@proxy.example.com:3128"],
];

/// Values that are mistakes, and what Helm has to say of each.
const MISTAKES: &[(&[&str], &str)] = &[
    (&["operator.replica=3"], "replica"),
    (&["operator.replicas=0"], "replicas"),
    (&["operator.refusedNetworks[0]=10.96.0/12"], "refusedNetworks"),
    (&["operator.extraDnsNames[0]=bücher.example.com"], "extraDnsNames"),
    (&["agent.maxUnavailable=0"], "maxUnavailable"),
    (&["agent.maxUnavailable=0%"], "maxUnavailable"),
    (&["image.repository=registry.example.com/"], "repository"),
    (&["image.pullSecrets[0].name=registry"], "pullSecrets"),
    (&["operator.resources.limit.memory=1Gi"], "resources"),
    (&["agent.resources.limits.memory=1GiB"], "memory"),
    (&["agent.tolerations[0].effect=Never"], "effect"),
    (&["agent.maxUnavailable=all"], "maxUnavailable"),
    (&["agent.extraCapabilities[0]=ALL"], "extraCapabilities"),
    (&["operator.refusedNetworks[0]=10.0.0.1"], "refusedNetworks"),
    (&["operator.tenantEndpoints[0]=https://store.example.com/bucket"], "tenantEndpoints"),
    (
        &[
            "devStore.enabled=true",
            "defaultStore.spec.s3.bucket=traces",
            "defaultStore.spec.credentials.ambient=true",
        ],
        "set either devStore.enabled or defaultStore.spec",
    ),
    (&["defaultStore.spec.s3.bucket=traces"], "credentials"),
    (&["extraCA.pem=ca.crt"], "pem"),
    (
        &["extraCA.pem=-----BEGIN CERTIFICATE-----", "extraCA.configMap=ca"],
        "set either extraCA.pem or extraCA.configMap",
    ),
    (&["proxy.https=proxy.example.com:3128"], "https"),
    (&["proxy.noProxy[0]=.internal"], "proxy.noProxy needs proxy.http or proxy.https"),
    (&["limits.duration=an hour"], "duration"),
    (&["limits.duration=5m1h"], "duration"),
    (&["operator.refusedNetworks[0]=10.0.0.0/99"], "refusedNetworks"),
    (&["operator.webIdentity.roleArn=tracelake"], "roleArn"),
    (
        &["operator.webIdentity.endpoint=https://sts.example.com"],
        "operator.webIdentity.endpoint needs operator.webIdentity.roleArn",
    ),
];

/// The part `chart` of `cargo xtask test`.
pub(crate) fn check() -> Result<()> {
    let chart = Chart { helm: tools::helm()?, folder: cache::repository().join("charts/tracelake") };
    let oldest = format!("v{}", chart.oldest_kubernetes()?);
    let versions = [oldest.as_str(), tools::KUBERNETES];
    let schemas = schemas::folder(&versions)?;
    let (kubeconform, kube_score) = (tools::kubeconform()?, tools::kube_score()?);
    chart.reference()?;
    chart.mistakes()?;
    let readme = fs::read_to_string(chart.folder.join("README.md"))?;
    let mut needed = BTreeSet::new();
    for file in chart.values()? {
        let mut check = || {
            let values: Value = serde_yaml::from_str(&fs::read_to_string(&file)?)?;
            chart.helm(&["lint", "--strict"], &file, &[])?;
            let rendered = chart.helm(&["template", "tracelake"], &file, &[])?;
            let objects = objects(&rendered)?;
            for version in versions {
                kinds(&kubeconform, &schemas, version, &with_store(&objects)?)?;
            }
            score(&kube_score, &oldest, &rendered, values["networkPolicy"]["enabled"] == true, &mut needed)?;
            // Values may add capabilities, on purpose and by name; what the chart itself gives is what is promised.
            least_privilege(&objects, values["agent"].get("extraCapabilities").is_some())?;
            for object in &objects {
                let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
                let named = readme.contains(kind) && readme.contains(name);
                ensure!(named, "README.md of the chart does not say that it installs {kind} {name}");
            }
            anyhow::Ok(objects.len())
        };
        let count = check().with_context(|| format!("with {}", file.display()))?;
        println!("{}: {count} objects", file.display());
    }
    let idle: Vec<_> = EXCEPTIONS.iter().filter(|one| !needed.contains(&(one.0, one.1))).collect();
    ensure!(idle.is_empty(), "exceptions that nothing needs: {idle:?}");
    for odd in ODD {
        let rendered =
            chart.helm(&["template", "tracelake"], &chart.folder.join("ci/dev-store-values.yaml"), odd)?;
        let objects = with_store(&objects(&rendered)?)?;
        kinds(&kubeconform, &schemas, tools::KUBERNETES, &objects).with_context(|| format!("{odd:?}"))?;
    }
    chart.placement()
}

struct Chart {
    helm: PathBuf,
    folder: PathBuf,
}

impl Chart {
    /// One file for each supported shape.
    fn values(&self) -> Result<Vec<PathBuf>> {
        let folder =
            fs::read_dir(self.folder.join("ci")).context("charts/tracelake/ci holds values files")?;
        let mut files: Vec<PathBuf> =
            folder.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        files.sort();
        ensure!(!files.is_empty(), "charts/tracelake/ci is empty");
        Ok(files)
    }

    fn helm(&self, command: &[&str], values: &Path, set: &[&str]) -> Result<String> {
        let mut helm = exec::command(&self.helm, command);
        helm.arg(&self.folder).arg("--values").arg(values);
        if command[0] == "template" {
            helm.args(["--namespace", "tracelake-system", "--kube-version", tools::KUBERNETES]);
        }
        exec::output(helm.args(set.iter().flat_map(|set| ["--set", set])))
    }

    /// Of `kubeVersion: ">=1.32.0-0"`.
    fn oldest_kubernetes(&self) -> Result<String> {
        let chart: Value = serde_yaml::from_str(&fs::read_to_string(self.folder.join("Chart.yaml"))?)?;
        let oldest = text(&chart["kubeVersion"]).strip_prefix(">=").and_then(|rest| rest.strip_suffix("-0"));
        Ok(oldest.context("kubeVersion of the chart is not >=X.Y.Z-0")?.to_owned())
    }

    /// Every value has its sentence and its place in the schema, and the schema has no others.
    fn reference(&self) -> Result<()> {
        let values = fs::read_to_string(self.folder.join("values.yaml"))?;
        let schema: Value =
            serde_json::from_str(&fs::read_to_string(self.folder.join("values.schema.json"))?)?;
        // Helm's own, which a chart above this one may set.
        let mut wanted = schema["properties"].as_object().context("the schema has properties")?.clone();
        wanted.remove("global").context("the schema allows `global`")?;
        same_keys("", &serde_yaml::from_str(&values)?, &wanted)?;
        let mut before = "";
        let mut section = "";
        for line in values.lines() {
            let key = line.trim_start().split(':').next().unwrap_or_default();
            match line.len() - line.trim_start().len() {
                0 if line.contains(':') && !line.starts_with('#') => section = key,
                2 if !line.trim_start().starts_with('#') => {
                    let documented = before.starts_with("  # ");
                    ensure!(documented, "values.yaml: no sentence stands above {section}.{key}");
                }
                _ => {}
            }
            before = line;
        }
        Ok(())
    }

    /// Helm refuses what cannot be meant, and names it.
    fn mistakes(&self) -> Result<()> {
        let values = self.folder.join("values.yaml");
        for (set, named) in MISTAKES {
            match self.helm(&["template", "tracelake"], &values, set) {
                Ok(_) => bail!("Helm takes {set:?}"),
                Err(error) => {
                    let said = error.to_string();
                    let why = said.split_once("):\n").map_or(said.as_str(), |(_, output)| output);
                    ensure!(why.contains(named), "of {set:?} Helm says nothing about {named}: {why}");
                }
            }
        }
        Ok(())
    }

    /// What is said of where pods run and how they get their images and reach stores holds for each of them.
    fn placement(&self) -> Result<()> {
        let odd = [
            "operator.nodeSelector.pool=system",
            "agent.nodeSelector.pool=all",
            "agent.priorityClassName=tracing",
            "extraCA.pem=null",
            "extraCA.configMap=house",
            "extraCA.key=bundle.pem",
        ];
        let rendered =
            self.helm(&["template", "tracelake"], &self.folder.join("ci/closed-values.yaml"), &odd)?;
        let objects = objects(&rendered)?;
        let mut components = BTreeSet::new();
        for object in &objects {
            let Some(pod) = pod(object) else { continue };
            let component = text(&object["metadata"]["labels"]["app.kubernetes.io/component"]);
            components.insert(component);
            let agent = component == "node-agent";
            let (pool, class) =
                if agent { ("all", "tracing") } else { ("system", "system-cluster-critical") };
            let check = |what: &str, is: bool| {
                ensure!(is, "{component}: {what}: {pod}");
                Ok(())
            };
            check(
                "pull secrets",
                pod["imagePullSecrets"] == json!([{"name": "registry"}, {"name": "mirror"}]),
            )?;
            check("priority class", pod["priorityClassName"] == class)?;
            let runs_on = json!({ "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "pool": pool });
            check("node selector", pod["nodeSelector"] == runs_on)?;
            let tolerations = if agent {
                json!([{ "operator": "Exists" }])
            } else {
                json!([{ "key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule" }])
            };
            check("tolerations", pod["tolerations"] == tolerations)?;
            let container = &pod["containers"][0];
            let variable = |name: &str| {
                let all = container["env"].as_array().into_iter().flatten();
                all.clone().find(|one| one["name"] == name).map(|one| text(&one["value"]).to_owned())
            };
            if !["operator", "node-agent"].contains(&component) {
                check("no proxy", variable("HTTPS_PROXY").is_none())?;
                continue;
            }
            for name in ["HTTP_PROXY", "HTTPS_PROXY"] {
                check(name, variable(name).is_some_and(|url| url == "http://proxy.example.com:3128"))?;
            }
            let direct = variable("NO_PROXY").unwrap_or_default();
            for host in [
                ".svc",
                ".cluster.local",
                "127.0.0.0/8",
                "169.254.0.0/16",
                "$(KUBERNETES_SERVICE_HOST)",
                ".example.internal",
                "10.0.0.0/8",
            ] {
                check(&format!("without proxy: {host}"), direct.split(',').any(|one| one == host))?;
            }
            let mounted = container["volumeMounts"].as_array().into_iter().flatten();
            let mounted =
                mounted.clone().any(|mount| mount["name"] == "extra-ca" && mount["readOnly"] == true);
            check("the extra CA is the operator's alone", mounted != agent)?;
            let role = variable("AWS_ROLE_ARN").is_some_and(|role| role == "arn:aws:iam::role/tracelake");
            check("the role is the operator's alone", role != agent)?;
            if !agent {
                let service = variable("AWS_ENDPOINT_URL_STS");
                check("who gives keys", service.is_some_and(|url| url == "https://sts.example.internal"))?;
                let token = json!({ "audience": "store.example.internal", "path": "token" });
                let mut volumes = pod["volumes"].as_array().into_iter().flatten();
                let volume = volumes
                    .find(|volume| volume["projected"]["sources"][0]["serviceAccountToken"] == token)
                    .context("the operator has no token for who gives keys")?;
                let mut mounts = container["volumeMounts"].as_array().into_iter().flatten();
                let mount = mounts.find(|mount| mount["name"] == volume["name"] && mount["readOnly"] == true);
                let folder = mount.map_or("", |mount| text(&mount["mountPath"]));
                let file = variable("AWS_WEB_IDENTITY_TOKEN_FILE");
                check("its token's file", file.is_some_and(|file| file == format!("{folder}/token")))?;
                let source = json!({ "name": "house", "items": [{ "key": "bundle.pem", "path": "ca.crt" }] });
                let volumes = pod["volumes"].as_array().into_iter().flatten();
                check("the extra CA", volumes.clone().any(|volume| volume["configMap"] == source))?;
            }
        }
        let all = ["check", "dev-store", "node-agent", "operator", "uninstall-job"];
        ensure!(components.iter().eq(all.iter()), "pods of {components:?}");
        Ok(())
    }
}

/// Values and the schema's properties, down to where the schema leaves the rest open or refers to another.
fn same_keys(path: &str, values: &Value, properties: &serde_json::Map<String, Value>) -> Result<()> {
    let values = values.as_object().with_context(|| format!("values.yaml: {path} has keys"))?;
    let (here, there): (BTreeSet<_>, BTreeSet<_>) = (values.keys().collect(), properties.keys().collect());
    ensure!(here == there, "values.yaml and values.schema.json differ below `{path}`: {here:?}, {there:?}");
    for (key, value) in values {
        let schema = &properties[key];
        if let Some(properties) = schema["properties"].as_object() {
            let closed = &schema["additionalProperties"];
            ensure!(*closed == false, "values.schema.json: {path}{key} takes any key");
            same_keys(&format!("{path}{key}."), value, properties)?;
        }
    }
    Ok(())
}

fn objects(rendered: &str) -> Result<Vec<Value>> {
    let all = serde_yaml::Deserializer::from_str(rendered).map(serde::Deserialize::deserialize);
    let all: Vec<Value> = all.collect::<Result<_, _>>()?;
    Ok(all.into_iter().filter(|object| !object.is_null()).collect())
}

/// An object's pod, of whatever makes it.
fn pod(object: &Value) -> Option<&Value> {
    match text(&object["kind"]) {
        "Pod" => Some(&object["spec"]),
        "Deployment" | "DaemonSet" | "Job" => Some(&object["spec"]["template"]["spec"]),
        _ => None,
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// With the store that the operator makes of the values: it is in an environment variable.
fn with_store(objects: &[Value]) -> Result<String> {
    let mut all: Vec<String> = objects.iter().map(ToString::to_string).collect();
    for variable in
        objects.iter().filter_map(pod).flat_map(|pod| pod["containers"][0]["env"].as_array()).flatten()
    {
        if variable["name"] == "CHART_STORE" {
            all.push(text(&variable["value"]).to_owned());
        }
    }
    Ok(all.join("\n---\n"))
}

/// Every object is what its kind's schema says, and nothing more.
fn kinds(kubeconform: &Path, schemas: &Path, version: &str, objects: &str) -> Result<()> {
    let location = schemas.join(schemas::LOCATION);
    let mut command =
        exec::command(kubeconform, ["-strict", "-kubernetes-version", version.trim_start_matches('v')]);
    command.arg("-schema-location").arg(location).arg("-");
    fed(&mut command, objects).map(drop).with_context(|| format!("kubeconform, Kubernetes {version}"))
}

/// What kube-score finds, but for the exceptions, which it notes as needed.
fn score(
    kube_score: &Path,
    version: &str,
    rendered: &str,
    policies: bool,
    needed: &mut BTreeSet<(&'static str, &'static str)>,
) -> Result<()> {
    // Annotations could make exceptions that stand nowhere here.
    let all =
        ["score", "--all-default-optional", "--disable-ignore-checks-annotations", "--output-format", "json"];
    let mut command = exec::command(kube_score, all);
    let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    // No CPU limits: throttled, an agent would lose events and a leader its Lease.
    command.args(["--kubernetes-version", minor, "--ignore-container-cpu-limit"]);
    let found: Value = serde_json::from_str(&fed(command.arg("-"), rendered)?)?;
    let mut wrong = Vec::new();
    for object in found.as_array().context("kube-score lists objects")? {
        let component = text(&object["object_meta"]["labels"]["app.kubernetes.io/component"]);
        for check in object["checks"].as_array().into_iter().flatten() {
            // 10 is the best.
            if check["skipped"] == true || check["grade"] == 10 {
                continue;
            }
            let id = text(&check["check"]["id"]);
            let exception = EXCEPTIONS.iter().find(|one| one.0 == id && ["*", component].contains(&one.1));
            // An option, as not every cluster has somebody to enforce them; with it, nothing but what goes out may be said (5).
            let holds = id != "pod-networkpolicy" || !policies || check["grade"] == 5;
            match exception.filter(|_| holds) {
                Some((id, component, _)) => _ = needed.insert((id, component)),
                None => wrong.push(format!("{}: {id}: {}", object["object_name"], check["comments"])),
            }
        }
    }
    ensure!(wrong.is_empty(), "kube-score:\n{}", wrong.join("\n"));
    Ok(())
}

/// Runs a command with this text as its standard input; what it says on failure is the error. kube-score fails where it has found
/// something, which its output says.
fn fed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    let done = std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut stdin, input.as_bytes()));
        child.wait_with_output()
    })?;
    let (said, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success() || said.starts_with('['), "{}: {said}{errors}", done.status);
    Ok(said.into_owned())
}

/// What the chart gives the agent: two capabilities, no rights. What it gives the operator: the `restricted` profile's
/// limits. The API server of the cluster tests says the same of the objects as installed (`e2e/tests/identity.rs`).
fn least_privilege(objects: &[Value], extra: bool) -> Result<()> {
    let of = |kind: &str, name: &str| {
        let found =
            objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        found.with_context(|| format!("no {kind} {name}"))
    };
    let container = |object: &Value| object["spec"]["template"]["spec"]["containers"][0].clone();
    let agent = container(of("DaemonSet", "tracelake-node-agent")?)["securityContext"].clone();
    ensure!(agent["privileged"] != true && agent["allowPrivilegeEscalation"] == false, "the agent: {agent}");
    ensure!(extra || agent["capabilities"] == json!({"drop": ["ALL"], "add": ["BPF", "PERFMON"]}), "{agent}");
    let operator = container(of("Deployment", "tracelake-operator")?)["securityContext"].clone();
    ensure!(
        operator["capabilities"] == json!({"drop": ["ALL"]})
            && operator["allowPrivilegeEscalation"] == false
            && operator["readOnlyRootFilesystem"] == true,
        "the operator: {operator}"
    );
    for role in objects.iter().filter(|object| object["kind"] == "ClusterRole") {
        let resources =
            role["rules"].as_array().into_iter().flatten().flat_map(|rule| rule["resources"].as_array());
        let everywhere = resources.flatten().any(|resource| resource == "secrets" || resource == "*");
        ensure!(!everywhere, "Secrets of every namespace: {role}");
        let reads_data = role["rules"].to_string().contains("tracesessions/data");
        let of_viewers = role["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true";
        ensure!(!(reads_data && of_viewers), "whoever may look at sessions reads what they recorded: {role}");
    }
    for binding in
        objects.iter().filter(|object| object["kind"].as_str().is_some_and(|k| k.ends_with("Binding")))
    {
        let given = &binding["roleRef"]["name"];
        ensure!(given != "tracelake-via-operator", "a way into the chart's namespace is given: {binding}");
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        for subject in subjects {
            ensure!(subject["name"] != "tracelake-node-agent", "the agent is given rights: {binding}");
        }
    }
    let (mut named, mut used) = (BTreeSet::new(), BTreeSet::new());
    for object in objects {
        if object["kind"] == "ServiceAccount" {
            named.insert(text(&object["metadata"]["name"]));
        }
        let Some(pod) = pod(object) else { continue };
        let agent = object["kind"] == "DaemonSet";
        used.extend(pod["serviceAccountName"].as_str());
        for shared in ["hostPID", "hostNetwork", "hostIPC", "shareProcessNamespace"] {
            ensure!(pod[shared].is_null() || (agent && shared == "hostPID"), "{shared}: {pod}");
        }
        let of_the_node: Vec<&str> = pod["volumes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|volume| volume["hostPath"]["path"].as_str())
            .collect();
        let expected: &[&str] = if agent { &["/var/lib/tracelake", "/sys/fs/cgroup"] } else { &[] };
        ensure!(of_the_node == expected, "paths of the node: {of_the_node:?}");
        let containers = [&pod["containers"], &pod["initContainers"]];
        for container in containers.into_iter().filter_map(Value::as_array).flatten() {
            let context = &container["securityContext"];
            ensure!(context["readOnlyRootFilesystem"] == true, "its root is writable: {container}");
            ensure!(context["capabilities"]["drop"] == json!(["ALL"]), "it keeps capabilities: {container}");
            let variables = container["env"].as_array().into_iter().flatten();
            let secret = variables.clone().find(|variable| !variable["valueFrom"]["secretKeyRef"].is_null());
            ensure!(secret.is_none(), "a Secret in the environment: {secret:?}");
        }
    }
    ensure!(used.is_subset(&named), "ServiceAccounts that nobody makes: {used:?}, {named:?}");
    Ok(())
}
