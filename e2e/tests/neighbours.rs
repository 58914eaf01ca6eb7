// SPDX-License-Identifier: Apache-2.0

//! What belongs to pods of one node is recorded and counted there and nowhere else.
//!
//! Where every node has a kernel of its own that goes without saying. The nodes of kind are containers on one kernel: every
//! agent's hooks see every pod of the cluster, cgroups of pods lie below those of the nodes, and processes have other numbers
//! on their node than in the kernel.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use dataset::catalogue::COLLECTORS;
use tracelake_e2e::in_namespace;
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::rows::{Dataset, Row, number, text};
use tracelake_e2e::session::{Session, WINDOW};

/// Programs that the pod of each node runs: far more than the other node has events to filter of its own.
const RUNS: [usize; 2] = [211, 197];

/// Executions of `/usr/bin/true` in rows of `processes`.
fn runs<'a>(rows: &'a [Row], node: &str) -> Vec<&'a Row> {
    let of = |row: &&Row| {
        text(row, "node") == node && text(row, "kind") == "exec" && text(row, "exe") == "/usr/bin/true"
    };
    rows.iter().filter(of).collect()
}

#[test]
fn each_node_records_and_counts_its_own_pods_only() -> Result<()> {
    in_namespace("neighbours", |env, ns| async move {
        let (a, b) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        for node in [&a, &b] {
            PodSpec::workload(&format!("idle-{node}"), "neighbours", &["sleep"]).on(node).start(&api).await?;
        }
        let all: Vec<&str> = COLLECTORS.iter().map(|collector| collector.name).collect();
        let spec = Session::spec_of("neighbours", WINDOW, &all);
        let session = Session::create(&env.client, &ns, "neighbours", spec).await?;
        session.recording().await?;
        for (node, runs) in [&a, &b].into_iter().zip(RUNS) {
            let spawn = ["spawn", &runs.to_string(), "/usr/bin/true"];
            PodSpec::workload(&format!("spawner-{node}"), "neighbours", &spawn).on(node).run(&api).await?;
        }
        let dataset = Dataset::complete(&env, &session).await?;
        let rows = dataset.table("processes").await?;
        let ledger = dataset.table("ledger").await?;
        let mut tables = vec![("coverage", dataset.table("coverage").await?)];
        for table in COLLECTORS.iter().flat_map(|collector| collector.tables) {
            tables.push((table.name, dataset.table(table.name).await?));
        }
        for ((node, expected), neighbours) in [&a, &b].into_iter().zip(RUNS).zip([RUNS[1], RUNS[0]]) {
            let found = runs(&rows, node);
            ensure!(found.len() == expected, "{node}: {} programs ran, not {expected}", found.len());
            // A pod's name ends with its node's; what is of the node itself has none.
            for (table, rows) in &tables {
                let of_pods =
                    rows.iter().filter(|row| text(row, "node") == node && !text(row, "pod").is_empty());
                let foreign = of_pods.clone().find(|row| !text(row, "pod").ends_with(&format!("-{node}")));
                let is_there = of_pods.count() > 0 || !["coverage", "processes", "cpu_sched"].contains(table);
                ensure!(is_there, "{table} of {node} has no row of its pods");
                ensure!(foreign.is_none(), "{table} of {node} has a row of another's pod: {foreign:?}");
            }
            let of_node: Vec<&Row> = rows.iter().filter(|row| text(row, "node") == node).collect();
            let terms = |column: &str| -> i64 {
                let own = ledger.iter().filter(|row| text(row, "node") == node);
                let own = own.filter(|row| text(row, "table_name") == "processes");
                own.map(|row| number(row, column)).sum()
            };
            let (exported, emitted) = (terms("exported"), terms("emitted"));
            // The pods' own sandboxes are filtered: containers that nobody asked for, of a few programs and threads each.
            let filtered = terms("filtered");
            let left_out = filtered + terms("lost_recursion");
            ensure!(exported == of_node.len() as i64, "{node} has {} rows: {ledger:?}", of_node.len());
            ensure!(emitted == exported + left_out, "{node} lost something: {ledger:?}");
            // No row is another's: what it counted of its neighbour's programs, one event of each at least, it filtered.
            ensure!(filtered < neighbours as i64 / 2, "{node} counted what is not its own: {ledger:?}");
        }
        Ok(())
    })
}

#[test]
fn a_session_of_one_nodes_pods_leaves_the_other_node_alone() -> Result<()> {
    in_namespace("neighbour", |env, ns| async move {
        let (a, b) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        let server = PodSpec::workload("server", "mine", &["serve", "7000"]).on(&a).start(&api).await?;
        PodSpec::workload("bystander", "others", &["sleep"]).on(&b).start(&api).await?;
        let collectors = ["processes", "tcpConnections", "tcpStates", "nodeInfo"];
        let spec = Session::spec_of("mine", WINDOW, &collectors);
        let session = Session::create(&env.client, &ns, "mine", spec).await?;
        let status = session.recording().await?.status.unwrap_or_default();
        let expected = status.nodes.map_or(0, |nodes| nodes.expected);
        ensure!(expected == 1, "{expected} nodes record, though all pods of the session are on {a}");
        // The other node's pod does what the hooks see, to the server of this one.
        let target = format!("{}:7000", pods::address(&server)?);
        let client = PodSpec::workload("client", "others", &["connect", &target, "11", "100", "100"]).on(&b);
        client.run(&api).await?;
        PodSpec::workload("spawner", "others", &["spawn", "11", "/usr/bin/true"]).on(&b).run(&api).await?;

        let dataset = Dataset::complete(&env, &session).await?;
        for table in ["processes", "tcp_connections", "tcp_states", "node_net", "net_counters", "ledger"] {
            let rows = dataset.table(table).await?;
            let foreign = rows.iter().find(|row| text(row, "node") != a);
            ensure!(foreign.is_none(), "{table} has a row of {b}: {foreign:?}");
            let pods: BTreeSet<&str> =
                rows.iter().map(|row| text(row, "pod")).filter(|pod| !pod.is_empty()).collect();
            ensure!(
                table == "ledger" || pods.iter().all(|pod| *pod == "server"),
                "{table} has pods {pods:?}"
            );
        }
        let passive = dataset.table("tcp_connections").await?;
        ensure!(passive.len() == 11, "11 connections have each one end here: {passive:?}");
        // Found by a process' number, which on a node that is a container is not the kernel's.
        let counters = dataset.table("net_counters").await?;
        let opened = counters
            .iter()
            .filter(|row| text(row, "pod") == "server" && text(row, "counter") == "TcpPassiveOpens")
            .map(|row| number(row, "value"));
        ensure!(opened.max() == Some(11), "the server's network was not read: {counters:?}");
        Ok(())
    })
}
