// SPDX-License-Identifier: Apache-2.0

//! The release, upgraded to each values file of the chart in turn and back: what is installed becomes ready, `helm test` says
//! of it what is so, and the agents alone do not meet the Pod Security level `restricted`.
//!
//! What a file's objects need and a bare cluster lacks is made for it and taken away again: labels of nodes, tenants'
//! namespaces, a volume, the Prometheus operator's kinds (`TRACELAKE_MONITORING_DEFINITIONS`, from its Go module).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use crds::ClusterTraceStore;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::client::Body;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::release::{Release, ready};
use tracelake_e2e::{Env, PATIENCE, in_namespace};

/// The folder on a node that stands for a volume.
const VOLUME: &str = "/var/tmp/tracelake-e2e-volume";
const VOLUME_NAME: &str = "tracelake-e2e-chart";

#[test]
fn every_values_file_of_the_chart_installs_and_works() -> Result<()> {
    in_namespace("chart", |env, ns| async move {
        let release = Release::find(&env)?;
        let mut failed = Vec::new();
        for file in release.files()? {
            let values: Value = serde_yaml::from_str(&fs::read_to_string(&file)?)?;
            let mut made = Made::default();
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let done = installs(&env, &ns, &release, &file, &values, &mut made).await;
            match done {
                Ok(said) => println!("{name}: {said}"),
                Err(error) => {
                    println!("{name}: FAILED: {error:#}");
                    failed.push(name);
                }
            }
            if made != Made::default() {
                // Before what it needed is taken away, nothing may need it any more.
                let back = release.back();
                made.unmake(&env, &ns).await?;
                back?;
            }
        }
        release.back()?;
        let store = release.former["defaultStore"]["name"].as_str().unwrap_or("default");
        forget_stores(&env, store).await?;
        works(&env, &release, Store::There).await.context("with the former values again")?;
        ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
        Ok(())
    })
}

/// One values file, from what it needs to what it promises.
async fn installs(
    env: &Env,
    ns: &str,
    release: &Release,
    file: &Path,
    values: &Value,
    made: &mut Made,
) -> Result<String> {
    made.make(env, ns, values).await?;
    release.upgrade(file)?;
    let ready = ready(env, values["operator"]["replicas"].as_i64().unwrap_or(2)).await?;
    let named = values["defaultStore"]["name"].as_str();
    let store = match (values["devStore"]["enabled"] == true, named) {
        (true, _) => Store::There,
        (false, Some("")) => Store::NoneNamed,
        (false, name) => Store::Elsewhere(name.unwrap_or("default").to_owned()),
    };
    let said = works(env, release, store).await?;
    pod_security(env).await?;
    Ok(format!("{ready}; {said}"))
}

/// What `helm test` may say of the default store.
enum Store {
    /// It is in the cluster: it has to be ready.
    There,
    /// There is none by these values.
    NoneNamed,
    /// It is where no test can reach, or somebody else's to make: the test may say so, and nothing else.
    Elsewhere(String),
}

/// `helm test`, and each of its points.
async fn works(env: &Env, release: &Release, store: Store) -> Result<String> {
    let test = release.helm(&["test", "tracelake", "--logs", "--timeout", "4m"]).output()?;
    let mut said = String::from_utf8_lossy(&test.stdout).into_owned();
    let system = pods::api(&env.client, &env.system);
    if !test.status.success() {
        // A pod that failed stays, whatever Helm shows of it.
        said = system.logs("tracelake-check", &LogParams::default()).await.unwrap_or_default();
        system.delete("tracelake-check", &DeleteParams::default()).await.map(drop).unwrap_or_default();
    }
    let errors = String::from_utf8_lossy(&test.stderr);
    let holds = |point: &str| said.lines().any(|line| line.starts_with("ok ") && line.contains(point));
    for point in ["leads", "node agents are connected"] {
        ensure!(holds(point), "helm test does not say that {point:?}: {said}{errors}");
    }
    let about_store = match &store {
        Store::There => holds("can be written to"),
        Store::NoneNamed => holds("there is no default store"),
        Store::Elsewhere(name) => {
            let refused = said.lines().filter(|line| line.starts_with("NOT OK")).collect::<Vec<_>>();
            let named = refused.iter().all(|line| line.contains(&format!("ClusterTraceStore {name}")));
            named && refused.is_empty() == test.status.success()
        }
    };
    ensure!(about_store, "what helm test says of the store: {said}{errors}");
    ensure!(test.status.success() || matches!(store, Store::Elsewhere(_)), "helm test: {said}{errors}");
    let points = said.lines().filter(|line| line.starts_with("ok ") || line.starts_with("NOT OK"));
    Ok(points.map(str::trim).collect::<Vec<_>>().join("; "))
}

/// What the API server would say if the namespace were given another Pod Security level: the agents alone are refused.
async fn pod_security(env: &Env) -> Result<()> {
    for level in ["restricted", "baseline"] {
        // Pods that are ending count as well.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let warnings = refused_at(env, level).await?;
            let others = |warning: &&String| !warning.contains("tracelake-node-agent");
            if !warnings.is_empty() && warnings.iter().filter(others).count() == 0 {
                break;
            }
            let over = tokio::time::Instant::now() > deadline;
            ensure!(!over, "not the agents alone need more than the level {level}: {warnings:?}");
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
    Ok(())
}

/// Pods of the chart's namespace that do not meet a level, and why not.
async fn refused_at(env: &Env, level: &str) -> Result<Vec<String>> {
    let patch = json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": level } } });
    let request = http::Request::patch(format!("/api/v1/namespaces/{}?dryRun=All", env.system))
        .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
        .body(Body::from(patch.to_string().into_bytes()))?;
    let answer = env.client.send(request).await?;
    ensure!(answer.status().is_success(), "the API server answered {}", answer.status());
    let warnings = answer.headers().get_all(http::header::WARNING).iter();
    let warnings = warnings.map(|warning| String::from_utf8_lossy(warning.as_bytes()).into_owned());
    // One says that there are others.
    Ok(warnings.filter(|warning| !warning.contains("existing pods in namespace")).collect())
}

/// What was made for a values file.
#[derive(Default, PartialEq)]
struct Made {
    /// Labels by node.
    labels: BTreeMap<String, Vec<String>>,
    namespaces: Vec<String>,
    definitions: Vec<String>,
    /// The node that has the volume.
    volume: Option<String>,
}

impl Made {
    async fn make(&mut self, env: &Env, ns: &str, values: &Value) -> Result<()> {
        for component in ["operator", "agent"] {
            for (key, value) in values[component]["nodeSelector"].as_object().into_iter().flatten() {
                self.label(env, key, value).await?;
            }
        }
        for name in values["operator"]["secretNamespaces"].as_array().into_iter().flatten() {
            let name = name.as_str().context("a namespace's name is text")?;
            let namespaces: Api<Namespace> = Api::all(env.client.clone());
            if namespaces.get_opt(name).await?.is_none() {
                let object = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
                namespaces.create(&PostParams::default(), &object).await?;
                self.namespaces.push(name.to_owned());
            }
        }
        if values["monitoring"]["prometheusOperator"] == true {
            self.define(env).await?;
        }
        match values["devStore"]["size"].as_str() {
            Some(size) if !size.is_empty() && !has_default_class(env).await? => {
                self.volume(env, ns, size).await
            }
            _ => Ok(()),
        }
    }

    /// Every node that takes pods gets the label that it does not have.
    async fn label(&mut self, env: &Env, key: &str, value: &Value) -> Result<()> {
        let nodes: Api<Node> = Api::all(env.client.clone());
        for name in env.nodes().await? {
            let node = nodes.get(&name).await?;
            match node.labels().get(key) {
                Some(has) if *has == *value => {}
                Some(has) => bail!("node {name} has the label {key}={has}, these values want {value}"),
                None => {
                    let patch = json!({ "metadata": { "labels": { key: value } } });
                    nodes.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
                    self.labels.entry(name).or_default().push(key.to_owned());
                }
            }
        }
        Ok(())
    }

    /// The kinds that the Prometheus operator would have brought; one that is there is its own.
    async fn define(&mut self, env: &Env) -> Result<()> {
        let files = std::env::var_os("TRACELAKE_MONITORING_DEFINITIONS").context(
            "TRACELAKE_MONITORING_DEFINITIONS is not set: it lists files with the Prometheus operator's definitions",
        )?;
        let api: Api<CustomResourceDefinition> = Api::all(env.client.clone());
        for file in std::env::split_paths(&files) {
            let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let definition: CustomResourceDefinition = serde_yaml::from_str(&text)?;
            let name = definition.name_any();
            if api.get_opt(&name).await?.is_none() {
                api.create(&PostParams::default(), &definition).await?;
                self.definitions.push(name.clone());
            }
            let established = await_condition(api.clone(), &name, conditions::is_crd_established());
            tokio::time::timeout(PATIENCE, established)
                .await
                .with_context(|| format!("{name} is not served"))??;
        }
        Ok(())
    }

    /// A volume on a node for the dev store's claim: a cluster without a default class makes none.
    async fn volume(&mut self, env: &Env, ns: &str, size: &str) -> Result<()> {
        let node = env.nodes().await?.swap_remove(0);
        self.volume = Some(node.clone());
        // The store is no root, and a path of the node is not given to a pod's group.
        on_volume(env, ns, &node, "make", "chmod 0777 /volume").await?;
        let volume: PersistentVolume = serde_json::from_value(json!({
            "metadata": { "name": VOLUME_NAME },
            "spec": {
                "capacity": { "storage": size },
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": { "namespace": env.system, "name": "tracelake-dev-store" },
                "hostPath": { "path": VOLUME, "type": "Directory" },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                    { "key": "kubernetes.io/hostname", "operator": "In", "values": [node] },
                ] }] } },
            },
        }))?;
        let volumes: Api<PersistentVolume> = Api::all(env.client.clone());
        volumes.create(&PostParams::default(), &volume).await?;
        Ok(())
    }

    async fn unmake(self, env: &Env, ns: &str) -> Result<()> {
        let nodes: Api<Node> = Api::all(env.client.clone());
        for (name, keys) in self.labels {
            let labels: BTreeMap<String, Value> = keys.into_iter().map(|key| (key, Value::Null)).collect();
            let patch = json!({ "metadata": { "labels": labels } });
            nodes.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        let namespaces: Api<Namespace> = Api::all(env.client.clone());
        for name in self.namespaces {
            namespaces.delete(&name, &DeleteParams::background()).await?;
        }
        let definitions: Api<CustomResourceDefinition> = Api::all(env.client.clone());
        for name in self.definitions {
            definitions.delete(&name, &DeleteParams::default()).await?;
        }
        if let Some(node) = self.volume {
            let volumes: Api<PersistentVolume> = Api::all(env.client.clone());
            // There is none where its making failed.
            if volumes.get_opt(VOLUME_NAME).await?.is_some() {
                volumes.delete(VOLUME_NAME, &DeleteParams::default()).await?;
            }
            on_volume(env, ns, &node, "empty", "find /volume -mindepth 1 -delete").await?;
        }
        Ok(())
    }
}

async fn has_default_class(env: &Env) -> Result<bool> {
    let classes = Api::<StorageClass>::all(env.client.clone()).list(&ListParams::default()).await?;
    let default = "storageclass.kubernetes.io/is-default-class";
    Ok(classes.iter().any(|class| class.annotations().get(default).is_some_and(|is| is == "true")))
}

/// Runs a command as root in a pod that has the folder of the volume.
async fn on_volume(env: &Env, ns: &str, node: &str, name: &str, command: &str) -> Result<()> {
    let api = pods::api(&env.client, ns);
    // Several files may want a volume.
    let name = &format!("{name}-{}", &uuid::Uuid::new_v4().simple().to_string()[..6]);
    let mut pod = PodSpec::workload(name, "volume", &[]).on(node).to_pod()?;
    let spec = pod.spec.as_mut().context("a pod has a spec")?;
    spec.volumes = Some(serde_json::from_value(json!([
        { "name": "volume", "hostPath": { "path": VOLUME, "type": "DirectoryOrCreate" } },
    ]))?);
    let container = &mut spec.containers[0];
    container.command = Some(["/bin/sh", "-c", command].map(str::to_owned).to_vec());
    container.volume_mounts =
        Some(serde_json::from_value(json!([{ "name": "volume", "mountPath": "/volume" }]))?);
    api.create(&PostParams::default(), &pod).await?;
    pods::ended(&api, name, PATIENCE).await
}

/// Stores of values files stay until the chart is uninstalled; what comes next is to find the former one alone.
async fn forget_stores(env: &Env, keep: &str) -> Result<()> {
    let stores: Api<ClusterTraceStore> = Api::all(env.client.clone());
    let labels = ListParams::default().labels("app.kubernetes.io/managed-by=tracelake-chart");
    for store in stores.list(&labels).await?.iter().filter(|store| store.name_any() != keep) {
        let name = store.name_any();
        stores.delete(&name, &DeleteParams::default()).await?;
        let gone =
            await_condition(stores.clone(), &name, |store: Option<&ClusterTraceStore>| store.is_none());
        tokio::time::timeout(PATIENCE, gone)
            .await
            .with_context(|| format!("ClusterTraceStore {name} is deleted and stays"))??;
    }
    Ok(())
}
