// SPDX-License-Identifier: Apache-2.0

//! Many pods that come and go while a session runs.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::json;
use tracelake_e2e::in_namespace;
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::rows::{Dataset, Row, text};
use tracelake_e2e::session::{Session, WINDOW};

#[test]
fn the_first_exec_of_fifty_pods_is_seen_or_coverage_says_why_not() -> Result<()> {
    const PODS: usize = 50;
    in_namespace("fifty", |env, ns| async move {
        let (a, b) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        for (name, node) in [("hold-a", &a), ("hold-b", &b)] {
            PodSpec::workload(name, "fifty", &["sleep"]).on(node).start(&api).await?;
        }
        let session = Session::create(&env.client, &ns, "fifty", Session::spec("fifty", WINDOW)).await?;
        session.recording().await?;
        // Five at a time: what is asked is whether a start is missed, not how many starts the nodes can take at once.
        for group in 0..PODS / 5 {
            let group: Vec<_> = (0..5)
                .map(|i| {
                    PodSpec::workload(
                        &format!("p{}", group * 5 + i),
                        "fifty",
                        &["spawn", "1", "/usr/bin/true"],
                    )
                })
                .collect();
            futures::future::try_join_all(group.iter().map(|pod| pod.run(&api))).await?;
        }
        let dataset = Dataset::complete(&env, &session).await?;
        let first: BTreeSet<String> = dataset
            .table("processes")
            .await?
            .iter()
            .filter(|row| text(row, "kind") == "exec" && text(row, "exe") == "/usr/local/bin/workload")
            .map(|row| text(row, "pod").to_owned())
            .collect();
        let coverage = dataset.table("coverage").await?;
        let mut seen = 0;
        for i in 0..PODS {
            let pod = format!("p{i}");
            let rows: Vec<&Row> = coverage.iter().filter(|row| text(row, "pod") == pod).collect();
            if first.contains(&pod) {
                seen += 1;
            } else {
                let explained = rows.iter().any(|row| row.get("from_start") == Some(&json!(false)));
                ensure!(explained, "the first exec of {pod} is missing and coverage claims it: {rows:?}");
            }
        }
        println!("first exec seen: {seen} of {PODS}");
        ensure!(seen > 0, "no first exec was seen at all");
        Ok(())
    })
}
