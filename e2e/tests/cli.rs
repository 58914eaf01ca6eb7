// SPDX-License-Identifier: Apache-2.0

//! The command line as a user has it: `tracelake run` on a workload, `list`, `status` and `stop` meanwhile, and at the end what
//! `run` says of the dataset is what lies in the store.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::rows::{Dataset, text};
use tracelake_e2e::session::{Session, WINDOW, condition};
use tracelake_e2e::{Env, in_namespace, store};

const NAME: &str = "checkout";
const PROGRAMS: usize = 7;
/// The account whose right to read `--via-operator` uses, unless it is told another.
const READER: &str = "tracelake-reader";

/// The command line with the administrator's kubeconfig, which the test has itself.
fn tracelake(args: &[&str]) -> Result<Command> {
    let program = std::env::var("TRACELAKE_CLI").context(
        "TRACELAKE_CLI does not name the command line: run `cargo xtask test e2e`, or build `tracelake` and set it",
    )?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

/// Runs it to its end: exit status, standard output, standard error.
async fn said(args: &[&str]) -> Result<(Option<i32>, String, String)> {
    let output = tracelake(args)?.output().await?;
    Ok((output.status.code(), String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

/// Lets the reader's account read this namespace's data.
async fn let_read(env: &Env, namespace: &str) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(env.client.clone(), namespace);
    let account = serde_json::from_value(json!({ "metadata": { "name": READER } }))?;
    accounts.create(&PostParams::default(), &account).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(env.client.clone(), namespace);
    let binding = serde_json::from_value(json!({
        "metadata": { "name": READER },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "tracelake-data" },
        "subjects": [{ "kind": "ServiceAccount", "namespace": namespace, "name": READER }],
    }))?;
    bindings.create(&PostParams::default(), &binding).await?;
    Ok(())
}

#[test]
fn a_session_is_run_watched_stopped_and_told_about_from_the_command_line() -> Result<()> {
    in_namespace("cli", |env, ns| async move {
        let api = pods::api(&env.client, &ns);
        let node = env.nodes().await?.remove(0);
        PodSpec::workload("sleeper", "cli", &["sleep"]).on(&node).start(&api).await?;
        let_read(&env, &ns).await?;
        let address = store::dev_store_address(&env.client, &env.system).await?.to_string();
        let selector = format!("{}=cli", pods::LABEL);
        let mut run = tracelake(&[
            "run",
            "--namespace",
            &ns,
            "--name",
            NAME,
            "--selector",
            &selector,
            "--collectors",
            "processes",
            "--duration",
            WINDOW,
            "--via-operator",
            "--operator-namespace",
            &env.system,
            "--store-address",
            &address,
        ])?
        .spawn()?;

        // The first that it says is that there is a session, or why not.
        let mut said_by_run = BufReader::new(run.stderr.take().context("standard error is piped")?);
        let mut err = String::new();
        said_by_run.read_line(&mut err).await?;
        ensure!(err.contains("was made"), "run: {err}");
        let session = Session::existing(&env.client, &ns, NAME);
        session.recording().await?;
        let count = PROGRAMS.to_string();
        PodSpec::workload("spawner", "cli", &["spawn", &count, "/usr/bin/true"]).on(&node).run(&api).await?;

        let title = format!("{ns}/{NAME}");
        let (code, listed, why) = said(&["list", "--namespace", &ns, "--output", "json"]).await?;
        ensure!(code == Some(0), "list: {why}");
        let listed: Value = serde_json::from_str(&listed)?;
        ensure!(listed["items"][0]["metadata"]["name"] == NAME, "{listed}");
        ensure!(listed["items"][0]["status"]["phase"] == "Running", "{listed}");
        let (code, shown, why) = said(&["status", &title]).await?;
        ensure!(code == Some(0), "status: {why}");
        for words in [title.as_str(), "Running", "StoreReady", "ProbeSucceeded", "processes", "s3://"] {
            ensure!(shown.contains(words), "status does not say {words:?}: {shown}");
        }

        let (stopped, told, why) = said(&["stop", &title]).await?;
        ensure!(told.starts_with(&format!("{title}: Completed\n")), "stop: {told}{why}");
        said_by_run.read_to_string(&mut err).await?;
        let output = run.wait_with_output().await?;
        let told = String::from_utf8(output.stdout)?;
        // 3 where events were lost, as a few are where the kernel skips runs of hooks.
        let degraded =
            condition(&session.get().await?, "Degraded").is_some_and(|(status, _)| status == "True");
        let expected = Some(if degraded { 3 } else { 0 });
        ensure!(
            stopped == expected && output.status.code() == expected,
            "stop ended with {stopped:?}, run with {:?}, not {expected:?}: {told}{err}",
            output.status.code()
        );
        ensure!(err.contains(&format!("{title}  Running")), "run did not say that it records: {err}");
        for words in ["Completed", "is what its manifests say", "processes"] {
            ensure!(told.contains(words), "run does not end with {words:?}: {told}{err}");
        }

        let dataset = Dataset::complete(&env, &session).await?;
        let processes = dataset.table("processes").await?;
        let executed = processes.iter().filter(|row| {
            text(row, "pod") == "spawner"
                && text(row, "kind") == "exec"
                && text(row, "exe") == "/usr/bin/true"
        });
        let executed = executed.count();
        ensure!(executed == PROGRAMS, "{executed} executions of /usr/bin/true, not {PROGRAMS}");
        Ok(())
    })
}
