// SPDX-License-Identifier: Apache-2.0

//! What bad input gets: a clear message where the user looks, and nothing collected or lost by it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tracelake_e2e::session::{Session, WINDOW, condition};
use tracelake_e2e::{PATIENCE, in_namespace, store};

/// Applies an object of any of our kinds without changing anything and returns the API server's answer.
async fn dry_run(
    client: &Client,
    namespace: &str,
    object: &DynamicObject,
) -> Result<DynamicObject, kube::Error> {
    let types = object.types.clone().unwrap_or_default();
    let kind = GroupVersionKind::gvk("tracelake.dev", "v1alpha1", &types.kind);
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = if types.kind.starts_with("Cluster") {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, &resource)
    };
    let mut object = object.clone();
    object.metadata.namespace = None;
    api.create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await
}

fn objects(folder: &str) -> Result<Vec<(String, String, DynamicObject)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        // What reads sessions lies beside what makes them.
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for document in text.split("\n---\n") {
            let object: Value =
                serde_yaml::from_str(document).with_context(|| format!("{name} is not YAML"))?;
            if object["apiVersion"] == "tracelake.dev/v1alpha1" {
                found.push((name.clone(), text.clone(), serde_json::from_value(object)?));
            }
        }
    }
    ensure!(!found.is_empty(), "{} has no object of ours", folder.display());
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// What the API server's message has to contain.
fn expected<'a>(file: &str, text: &'a str) -> Result<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix("# expect: "));
    line.with_context(|| format!("{file} has no line `# expect: `"))
}

#[test]
fn every_bad_example_is_refused_with_the_message_that_it_names() -> Result<()> {
    in_namespace("bad", |env, ns| async move {
        let mut wrong = Vec::new();
        for (name, text, object) in objects("crds/tests/bad")? {
            let expected = expected(&name, &text)?;
            match dry_run(&env.client, &ns, &object).await {
                Err(kube::Error::Api(status)) if status.message.contains(expected) => {}
                Err(error) => wrong.push(format!("{name}: expected {expected:?}, got {error}")),
                Ok(_) => wrong.push(format!("{name}: admitted, expected {expected:?}")),
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
}

#[test]
fn every_bad_update_is_refused_with_the_message_that_it_names() -> Result<()> {
    in_namespace("updates", |env, ns| async move {
        let api: Api<crds::TraceSession> = Api::namespaced(env.client.clone(), &ns);
        let found = objects("crds/tests/bad-updates")?;
        for pair in found.chunks(2) {
            let [(file, text, old), (_, _, new)] = pair else { bail!("a file lacks its second object") };
            let expected = expected(file, text)?;
            let name = old.metadata.name.as_deref().context("a session has a name")?;
            let before = json!({ "metadata": { "name": name }, "spec": old.data["spec"] });
            api.create(&PostParams::default(), &serde_json::from_value(before)?).await?;
            let update = Patch::Merge(json!({ "spec": new.data["spec"] }));
            match api.patch(name, &PatchParams { dry_run: true, ..PatchParams::default() }, &update).await {
                Err(kube::Error::Api(status)) if status.message.contains(expected) => {}
                other => bail!("{file}: expected {expected:?}, got {other:?}"),
            }
        }
        Ok(())
    })
}

#[test]
fn every_good_example_is_admitted() -> Result<()> {
    in_namespace("good", |env, ns| async move {
        for folder in ["crds/examples", "examples"] {
            for (name, _, object) in objects(folder)? {
                let mut object = object;
                // The chart has made the store that an example is of.
                object.metadata.name = Some(ns.clone());
                dry_run(&env.client, &ns, &object).await.with_context(|| format!("{folder}/{name}"))?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_running_session_is_stopped_and_its_ttl_changed() -> Result<()> {
    in_namespace("stopped", |env, ns| async move {
        let session = Session::create(&env.client, &ns, "fixed", Session::spec("nobody", WINDOW)).await?;
        let api: Api<crds::TraceSession> = Api::namespaced(env.client.clone(), &ns);
        let ttl = Patch::Merge(json!({ "spec": { "ttlSecondsAfterFinished": 5 } }));
        api.patch("fixed", &PatchParams::default(), &ttl).await?;
        session.stop().await?;
        let gone =
            kube::runtime::wait::await_condition(api, "fixed", |object: Option<&crds::TraceSession>| {
                object.is_none()
            });
        tokio::time::timeout(PATIENCE, gone).await.context("the ttl did not act")??;
        Ok(())
    })
}

#[test]
fn an_unknown_collector_or_parameter_fails_and_lists_the_known_ones() -> Result<()> {
    in_namespace("unknown", |env, ns| async move {
        for (name, collector, reason, known) in [
            (
                "collector",
                json!({ "name": "tcpConections", "optional": true }),
                "UnknownCollector",
                "tcpConnections",
            ),
            (
                "parameter",
                json!({ "name": "processes", "params": { "thread": "true" } }),
                "InvalidParameter",
                "threads",
            ),
            (
                "value",
                json!({ "name": "processes", "params": { "threads": "perhaps" } }),
                "InvalidParameter",
                "threads",
            ),
        ] {
            let mut spec = Session::spec("nobody", "1m");
            spec["collectors"] = json!([collector]);
            let session = Session::create(&env.client, &ns, name, spec).await?;
            let failed = session.phase("Failed").await?;
            let (status, found) = condition(&failed, "Accepted").context("no condition Accepted")?;
            ensure!(status == "False" && found == reason, "{name}: Accepted={status}/{found}");
            let text = serde_json::to_string(&failed.status)?;
            ensure!(text.contains(known), "{name}: the message does not name {known}: {text}");
        }
        Ok(())
    })
}

#[test]
fn a_store_that_is_missing_or_broken_keeps_a_session_from_collecting_and_says_why() -> Result<()> {
    in_namespace("stores", |env, ns| async move {
        let mut missing = Session::spec("nobody", "10s");
        missing["storeRef"] = json!({ "kind": "TraceStore", "name": "nowhere" });
        missing["startDeadline"] = json!("5s");
        let session = Session::create(&env.client, &ns, "missing", missing).await?;
        ensure!(session.condition("StoreReady", "False").await? == "StoreNotFound", "another reason");
        session.phase("Failed").await?;
        let uid = session.get().await?.metadata.uid.context("a session has a UID")?;
        ensure!(
            store::keys(&env.store).await?.iter().all(|key| !key.contains(&uid)),
            "something was collected"
        );

        let stores: Api<crds::ClusterTraceStore> = Api::all(env.client.clone());
        let elsewhere = json!(["elsewhere"]);
        store::like_default(&env.client, &ns, |spec| spec["allowedNamespaces"] = elsewhere).await?;
        let mut barred = Session::spec("nobody", "10s");
        barred["startDeadline"] = json!("1h");
        barred["storeRef"] = json!({ "kind": "ClusterTraceStore", "name": ns });
        let session = Session::create(&env.client, &ns, "barred", barred).await?;
        ensure!(session.condition("StoreReady", "False").await? == "NamespaceNotAllowed", "another reason");
        let allow = json!({ "spec": { "allowedNamespaces": [ns] } });
        stores.patch(&ns, &PatchParams::default(), &Patch::Merge(allow)).await?;
        session.phase("Completed").await?;
        session.delete().await?;
        stores.delete(&ns, &DeleteParams::default()).await?;
        Ok(())
    })
}
