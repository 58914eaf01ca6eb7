// SPDX-License-Identifier: Apache-2.0

//! Schedules as the API server and the operator keep them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::{SCHEDULE_LABEL, TraceSchedule, TraceSession};
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tracelake_e2e::session::Session;
use tracelake_e2e::{Env, PATIENCE, in_namespace};

fn schedule(changes: &Value) -> Result<TraceSchedule> {
    let mut spec = Session::spec("nobody", "5s");
    spec["drainTimeout"] = json!("30s");
    let mut object = json!({
        "apiVersion": "tracelake.dev/v1alpha1", "kind": "TraceSchedule", "metadata": { "name": "minutely" },
        "spec": { "schedule": "* * * * *", "concurrencyPolicy": "Forbid", "sessionTemplate": { "spec": spec } },
    });
    for (key, value) in changes.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    Ok(serde_json::from_value(object)?)
}

async fn wait(
    api: &Api<TraceSchedule>,
    what: &str,
    is: impl Fn(&TraceSchedule) -> bool,
) -> Result<TraceSchedule> {
    let condition =
        await_condition(api.clone(), "minutely", |found: Option<&TraceSchedule>| found.is_some_and(&is));
    let found = tokio::time::timeout(PATIENCE, condition)
        .await
        .with_context(|| format!("no schedule with {what}"))??;
    found.context("the schedule is gone")
}

fn accepted(schedule: &TraceSchedule) -> Option<(&str, &str)> {
    let status = schedule.status.as_ref()?;
    let condition = crds::conditions::get(&status.conditions, crds::conditions::schedule::ACCEPTED)?;
    Some((&condition.status, &condition.reason))
}

#[test]
fn a_schedule_makes_a_session_that_completes_and_goes_with_it() -> Result<()> {
    in_namespace("schedule", |env, ns| async move {
        let schedules: Api<TraceSchedule> = Api::namespaced(env.client.clone(), &ns);
        let sessions: Api<TraceSession> = Api::namespaced(env.client.clone(), &ns);
        let zone = json!({ "timeZone": "Mars/Olympus" });
        let mut made = schedules.create(&PostParams::default(), &schedule(&zone)?).await?;
        wait(&schedules, "an unknown time zone", |now| accepted(now) == Some(("False", "UnknownTimeZone")))
            .await?;
        made.spec.time_zone = Some("Asia/Kathmandu".to_owned());
        let mended = Patch::Merge(json!({ "spec": { "timeZone": "Asia/Kathmandu" } }));
        schedules.patch("minutely", &PatchParams::default(), &mended).await?;
        let done = wait(&schedules, "a Completed session", |now| {
            now.status.as_ref().is_some_and(|status| status.last_successful_time.is_some())
        })
        .await?;
        ensure!(accepted(&done) == Some(("True", "Valid")), "{:?}", done.status);
        let of_it = ListParams::default().labels(&format!("{SCHEDULE_LABEL}=minutely"));
        let all = sessions.list(&of_it).await?.items;
        let owned = |session: &TraceSession| {
            session.owner_references().iter().any(|owner| Some(&owner.uid) == done.metadata.uid.as_ref())
        };
        ensure!(!all.is_empty() && all.iter().all(owned), "{all:?}");
        let suspended = Patch::Merge(json!({ "spec": { "suspend": true } }));
        schedules.patch("minutely", &PatchParams::default(), &suspended).await?;
        wait(&schedules, "nothing due while suspended", |now| {
            now.status.as_ref().is_some_and(|status| status.next_schedule_time.is_none())
        })
        .await?;
        schedules.delete("minutely", &DeleteParams::background()).await?;
        for session in all {
            let name = session.name_any();
            let gone =
                await_condition(sessions.clone(), &name, |session: Option<&TraceSession>| session.is_none());
            tokio::time::timeout(PATIENCE, gone)
                .await
                .with_context(|| format!("session {name} outlives its schedule"))??;
        }
        Ok(())
    })
}

#[test]
fn a_schedule_needs_the_right_to_trace() -> Result<()> {
    in_namespace("tenants", |env, ns| async move {
        let plain = tenant(&env, &ns, "plain", &["edit"]).await?;
        let tracer = tenant(&env, &ns, "tracer", &["edit", "tracelake-trace"]).await?;
        let of = |client: &Client| Api::<TraceSchedule>::namespaced(client.clone(), &ns);
        let suspended = schedule(&json!({ "suspend": true }))?;
        let refused = of(&plain).create(&PostParams::default(), &suspended).await;
        let refused =
            refused.err().context("a schedule of somebody who may not trace was admitted")?.to_string();
        ensure!(refused.contains("may not trace pods"), "{refused}");
        of(&tracer).create(&PostParams::default(), &suspended).await.context("the tracer's schedule")?;
        // Nor may it be made to record something else.
        let wider = Patch::Merge(
            json!({ "spec": { "suspend": false, "sessionTemplate": { "spec": { "target": { "podSelector": {} } } } } }),
        );
        let refused = of(&plain).patch("minutely", &PatchParams::default(), &wider).await;
        let refused = refused.err().context("somebody who may not trace changed a schedule")?.to_string();
        ensure!(refused.contains("may not trace pods"), "{refused}");
        let labelled = Patch::Merge(json!({ "metadata": { "labels": { "team": "a" } } }));
        of(&plain).patch("minutely", &PatchParams::default(), &labelled).await.context("a label alone")?;
        of(&plain)
            .delete("minutely", &DeleteParams::default())
            .await
            .context("whoever may edit may delete")?;
        Ok(())
    })
}

/// A client with the rights of a ServiceAccount that is bound to these ClusterRoles in the namespace.
async fn tenant(env: &Env, ns: &str, name: &str, roles: &[&str]) -> Result<Client> {
    let account: ServiceAccount = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
    Api::<ServiceAccount>::namespaced(env.client.clone(), ns)
        .create(&PostParams::default(), &account)
        .await?;
    for role in roles {
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": { "name": format!("{name}-{role}") },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": ns }],
        }))?;
        Api::<RoleBinding>::namespaced(env.client.clone(), ns)
            .create(&PostParams::default(), &binding)
            .await?;
    }
    let mut config = kube::Config::infer().await?;
    config.auth_info.impersonate = Some(format!("system:serviceaccount:{ns}:{name}"));
    let client = Client::try_from(config)?;
    // The API server learns of a binding a little later.
    may(&client, ns, "tracelake.dev", "traceschedules", "create").await?;
    if roles.contains(&"tracelake-trace") {
        may(&client, ns, "", "pods", "trace").await?;
    }
    Ok(client)
}

/// Waits until the client's user may do that.
async fn may(client: &Client, ns: &str, group: &str, resource: &str, verb: &str) -> Result<()> {
    let review: SelfSubjectAccessReview = serde_json::from_value(json!({ "spec": { "resourceAttributes": {
        "namespace": ns, "group": group, "resource": resource, "verb": verb,
    }}}))?;
    let api = Api::<SelfSubjectAccessReview>::all(client.clone());
    let allowed = async {
        while !api.create(&PostParams::default(), &review).await?.status.is_some_and(|status| status.allowed)
        {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, allowed)
        .await
        .with_context(|| format!("the right to {verb} {resource}"))?
}
