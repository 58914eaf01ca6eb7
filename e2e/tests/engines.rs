// SPDX-License-Identifier: Apache-2.0

//! Other engines, as the notebooks and programs of `examples/` use them, over sessions in the cluster's own store, beside `tracelake sql`.
//!
//! What is written, run and compared is `node-agent/tests/examples`, whose binary `TRACELAKE_EXAMPLES` names; what that needs
//! stands in the environment already. Here is the store, by a forwarded port and with its own keys. Spark is left out: it opens
//! two thousand files many times, which `cargo xtask test examples` has it do with a server that is not emulated.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use tracelake_e2e::{in_namespace, store};

#[test]
fn examples_answer_from_the_clusters_store_as_sql_does() -> Result<()> {
    in_namespace("examples", |env, _| async move {
        let binary = std::env::var_os("TRACELAKE_EXAMPLES").context(
            "TRACELAKE_EXAMPLES names the tests of the examples: `cargo xtask test e2e-slow` sets it",
        )?;
        let address = store::dev_store_address(&env.client, &env.system).await?;
        let (id, secret) = store::credentials(&env.client, &env.system).await?;
        let mut tests = Command::new(binary);
        tests
            .args(["--test-threads=1", "--skip", "spark", "--skip", "every_engine", "--skip", "and_of_all"])
            .env("AWS_ENDPOINT_URL", format!("http://{address}"))
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", id)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env("TRACELAKE_EXAMPLES_BUCKET", store::BUCKET);
        // The port is forwarded by this process meanwhile.
        let status =
            tokio::task::spawn_blocking(move || tests.status()).await?.context("cannot start them")?;
        ensure!(status.success(), "the examples' tests ended with {status}");
        Ok(())
    })
}
