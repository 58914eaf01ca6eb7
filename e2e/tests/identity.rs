// SPDX-License-Identifier: Apache-2.0

//! Who may speak for a node: the operator in the cluster against tokens that the API server really made.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::wait::await_condition;
use node_api::v1::node_client::NodeClient;
use node_api::v1::{AgentMessage, Hello, agent_message};
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::{Env, PATIENCE, in_namespace};

const AGENT: &str = "tracelake-node-agent";

/// What the operator answers to a Hello of `node` with this token.
async fn hello(channel: &Channel, token: Option<&str>, node: &str) -> Result<(), Status> {
    let hello = Hello {
        node: node.to_owned(),
        boot: "0".repeat(32),
        incarnation: "1".repeat(32),
        ..Hello::default()
    };
    let message = AgentMessage { kind: Some(agent_message::Kind::Hello(hello)) };
    let mut request = Request::new(futures::stream::iter([message]));
    if let Some(token) = token {
        node_api::token::attach(request.metadata_mut(), token)
            .map_err(|error| Status::internal(error.to_string()))?;
    }
    let mut plans = NodeClient::new(channel.clone()).connect(request).await?.into_inner();
    plans.message().await.map(|_| ())
}

/// A token as the kubelet would project it: of a ServiceAccount, for an audience, bound to a pod.
async fn token(env: &Env, account: (&str, &str), audience: &str, pod: &Pod) -> Result<String> {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
            expiration_seconds: Some(600),
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(env.client.clone(), account.0);
    let made = accounts.create_token_request(account.1, &PostParams::default(), &request).await?;
    Ok(made.status.context("a token request has an answer")?.token)
}

fn refused(answer: Result<(), Status>, code: Code, reason: &str) -> Result<()> {
    match answer {
        Err(status) if status.code() == code && status.message().starts_with(reason) => Ok(()),
        other => bail!("expected {code:?} {reason}, got {other:?}"),
    }
}

/// The operator's counter of refusals for a reason.
async fn count(env: &Env, reason: &str) -> Result<u64> {
    let address = env.forward_to_leader(8080).await?;
    let text = reqwest::get(format!("http://{address}/metrics")).await?.text().await?;
    let name = format!("tracelake_operator_calls_refused_total{{reason=\"{reason}\"}}");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&name))
        .with_context(|| format!("no metric {name}"))?;
    Ok(line.trim().parse()?)
}

#[test]
fn only_the_agent_of_a_node_speaks_for_it_and_every_refusal_is_counted() -> Result<()> {
    in_namespace("identity", |env, ns| async move {
        let (a, b) = env.two_nodes().await?;
        let channel = env.operator().await?;
        let agent = env.agent_on(&a).await?;
        let audience = node_api::TOKEN_AUDIENCE;
        let system = env.system.clone();
        let ours = (system.as_str(), AGENT);
        let reasons = ["no_token", "wrong_audience", "wrong_service_account", "wrong_node", "pod_gone"];
        let mut before = Vec::new();
        for reason in reasons {
            before.push(count(&env, reason).await?);
        }

        refused(hello(&channel, None, &a).await, Code::Unauthenticated, "no_token")?;
        let other = token(&env, ours, "somebody-else", &agent).await?;
        refused(hello(&channel, Some(&other), &a).await, Code::Unauthenticated, "wrong_audience")?;

        let api = pods::api(&env.client, &ns);
        let stranger = PodSpec::workload("stranger", "identity", &["sleep"]).on(&a).start(&api).await?;
        let strange = token(&env, (&ns, "default"), audience, &stranger).await?;
        refused(hello(&channel, Some(&strange), &a).await, Code::PermissionDenied, "wrong_service_account")?;

        let stolen = token(&env, ours, audience, &agent).await?;
        refused(hello(&channel, Some(&stolen), &b).await, Code::PermissionDenied, "wrong_node")?;

        // An agent's pod that is deleted takes its tokens with it; they are refused though not expired.
        let in_system = pods::api(&env.client, &system);
        let mut short_lived = PodSpec::workload("gone", "identity", &["sleep"]).on(&a).to_pod()?;
        short_lived.metadata.name = Some(ns.clone());
        short_lived.spec.as_mut().context("a pod has a spec")?.service_account_name = Some(AGENT.to_owned());
        in_system.create(&PostParams::default(), &short_lived).await?;
        let short_lived = pods::running(&in_system, &ns).await?;
        let orphan = token(&env, ours, audience, &short_lived).await?;
        in_system.delete(&ns, &DeleteParams::default()).await?;
        let gone = await_condition(in_system, &ns, |pod: Option<&Pod>| pod.is_none());
        // Within the time of its token.
        tokio::time::timeout(PATIENCE / 2, gone).await.context("the pod does not go")??;
        refused(hello(&channel, Some(&orphan), &a).await, Code::PermissionDenied, "pod_gone")?;

        // Its token is good for nothing but the operator.
        let reviews: Api<SubjectAccessReview> = Api::all(env.client.clone());
        for (verb, resource) in
            [("list", "pods"), ("get", "secrets"), ("list", "nodes"), ("get", "configmaps")]
        {
            let review = serde_json::from_value(json!({ "metadata": {}, "spec": {
                "user": format!("system:serviceaccount:{system}:{AGENT}"),
                "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{system}"), "system:authenticated"],
                "resourceAttributes": { "namespace": system, "verb": verb, "resource": resource },
            }}))?;
            let answer = reviews.create(&PostParams::default(), &review).await?;
            ensure!(!answer.status.is_some_and(|status| status.allowed), "an agent may {verb} {resource}");
        }

        for (reason, before) in reasons.iter().zip(before) {
            let after = count(&env, reason).await?;
            ensure!(after > before, "{reason} was refused and not counted: {before}, then {after}");
        }
        Ok(())
    })
}
