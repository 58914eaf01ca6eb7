// SPDX-License-Identifier: Apache-2.0

//! Every collector as the chart installs it: in the default pod, on both nodes' kernels, against what the pods' own kernels
//! count, and with no row that carries another pod's identity.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use dataset::catalogue;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use tracelake_e2e::in_namespace;
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::rows::{Dataset, Row, number, sum, text};
use tracelake_e2e::session::Session;

const WINDOW: &str = "15m";
const CONNECTIONS: i64 = 37;
const REFUSED: i64 = 11;
/// What every connection carries, to the server and back.
const SENT: i64 = 1_000;
const ANSWERED: i64 = 20_000;
const PAGES: i64 = 2_000;
const PAGE: i64 = 4_096;
/// Pages that a thread keeps to itself before kernel 6.2 counts them.
const HELD_BACK: i64 = 64;
/// Where nobody listens.
const CLOSED: u16 = 7_001;

fn all() -> impl Iterator<Item = &'static str> {
    catalogue::COLLECTORS.iter().map(|collector| collector.name)
}

fn of_pod<'a>(rows: &'a [Row], pod: &str) -> Vec<&'a Row> {
    rows.iter().filter(|row| text(row, "pod") == pod).collect()
}

/// The sum of a column over the rows where another one has this value.
fn sum_where(rows: &[&Row], column: &str, key: &str, value: &str) -> Result<i64> {
    sum(rows.iter().copied().filter(|row| text(row, key) == value), column)
}

/// TCP's counters in a pod's network namespace.
async fn snmp(api: &Api<Pod>, pod: &str) -> Result<BTreeMap<String, i64>> {
    let text = pods::exec(api, pod, &["cat", "/proc/net/snmp"]).await?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = lines.next().zip(lines.next()).context("two lines about TCP")?;
    let values = values.split_whitespace().map(str::parse).collect::<Result<Vec<i64>, _>>()?;
    Ok(names.split_whitespace().map(str::to_owned).zip(values).collect())
}

#[test]
fn every_collector_agrees_with_the_pods_own_kernel() -> Result<()> {
    in_namespace("all", |env, ns| async move {
        let (a, b) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        let server = PodSpec::workload("server", "all", &["serve", "7000"]).on(&a).start(&api).await?;
        PodSpec::workload("other-node", "all", &["sleep"]).on(&b).start(&api).await?;
        let spec = Session::spec_of("all", WINDOW, &all().collect::<Vec<_>>());
        let session = Session::create(&env.client, &ns, "all", spec).await?;
        session.recording().await?;

        let before = snmp(&api, "server").await?;
        let address = pods::address(&server)?;
        let (open, closed) = (format!("{address}:7000"), format!("{address}:{CLOSED}"));
        let connect = [CONNECTIONS, SENT, ANSWERED].map(|number| number.to_string());
        let args = ["connect", &open, &connect[0], &connect[1], &connect[2]];
        PodSpec::workload("client", "all", &args).on(&b).run(&api).await?;
        PodSpec::workload("refused", "all", &["refused", &closed, &REFUSED.to_string()])
            .on(&b)
            .run(&api)
            .await?;
        let used = PodSpec::workload("accountant", "all", &["account", &PAGES.to_string(), "50"])
            .on(&a)
            .run(&api)
            .await?;
        let after = snmp(&api, "server").await?;
        let delta = |name: &str| after[name] - before[name];

        let dataset = Dataset::complete(&env, &session).await?;
        for row in dataset.table("coverage").await? {
            ensure!(!text(&row, "hooks").is_empty() || text(&row, "collector") == "nodeInfo", "{row:?}");
        }

        // Every packet that reached the server's TCP has one outcome.
        let received = dataset.table("tcp_receive").await?;
        let received = of_pod(&received, "server");
        let outcome = |name: &str| sum_where(&received, "weight", "outcome", name);
        ensure!(received.iter().all(|row| text(row, "hooks") == "full"), "Debian's kernels have fentry");
        ensure!(
            sum(received.iter().copied(), "weight")? == delta("InSegs"),
            "{} segments by the kernel: {received:?}",
            delta("InSegs")
        );
        ensure!(outcome("no_socket")? == REFUSED && outcome("unknown")? == 0, "{received:?}");
        ensure!(outcome("listen")? >= CONNECTIONS, "a SYN of every connection: {received:?}");
        let again = dataset.table("tcp_retransmits").await?;
        let again = of_pod(&again, "server");
        ensure!(sum(again.iter().copied(), "segments")? == delta("RetransSegs"), "{again:?}");

        let drops = dataset.table("packet_drops").await?;
        let refused = sum_where(&of_pod(&drops, "server"), "weight", "reason", "NO_SOCKET")?;
        ensure!(refused == REFUSED, "{refused} packets for nobody: {drops:?}");
        let states = dataset.table("tcp_states").await?;
        let changes = |pod: &str, old: &str, new: &str| {
            let is = |row: &&Row| text(row, "old_state") == old && text(row, "new_state") == new;
            of_pod(&states, pod).into_iter().filter(is).count() as i64
        };
        ensure!(changes("server", "SYN_RECV", "ESTABLISHED") == CONNECTIONS, "the server's connections");
        ensure!(changes("client", "SYN_SENT", "ESTABLISHED") == CONNECTIONS, "the client's connections");
        ensure!(changes("refused", "SYN_SENT", "CLOSE") == REFUSED, "refused connections");

        let flows = dataset.table("tcp_throughput").await?;
        for (pod, sent, received) in [
            ("server", CONNECTIONS * ANSWERED, CONNECTIONS * SENT),
            ("client", CONNECTIONS * SENT, CONNECTIONS * ANSWERED),
        ] {
            let rows = of_pod(&flows, pod);
            let found = (sum(rows.iter().copied(), "acked_bytes")?, sum(rows.iter().copied(), "rx_bytes")?);
            ensure!(found == (sent, received), "{pod}: {found:?}, not {:?}", (sent, received));
        }
        let queues = dataset.table("tcp_listen_queue").await?;
        let queue = of_pod(&queues, "server").into_iter().find(|row| number(row, "lport") == 7000);
        let queue = queue.context("the listener's queue")?;
        ensure!(number(queue, "accept_max") > 0 && text(queue, "comm") == "workload", "{queue:?}");

        // One process, of which the kernel keeps account to its end.
        let used = |name: &str| used[name].as_i64().with_context(|| format!("{name} of {used}"));
        let faults = dataset.table("page_faults").await?;
        let pid = of_pod(&faults, "accountant").into_iter().find(|row| text(row, "comm") == "exe");
        let pid = number(pid.context("the accounted process")?, "pid");
        let of_process = |rows: &[Row]| -> Vec<Row> {
            rows.iter()
                .filter(|row| number(row, "pid") == pid && text(row, "pod") == "accountant")
                .cloned()
                .collect()
        };
        let faults = of_process(&faults);
        let found = (sum(&faults, "minor")?, sum(&faults, "major")?);
        let expected = (used("minor")?, used("major")?);
        ensure!(found == expected, "{found:?} faults, {expected:?} by the kernel");
        let slices = of_process(&dataset.table("cpu_sched").await?);
        let voluntary = sum(&slices, "voluntary")? - used("voluntary")?;
        // The last one is the end itself, which whoever waits may not see any more.
        ensure!((0..=1).contains(&voluntary), "{voluntary} switches more than the kernel says: {slices:?}");
        ensure!(sum(&slices, "involuntary")? == used("involuntary")?, "{slices:?}");
        let (ran, cpu) = (sum(&slices, "run_sum")? / 1_000, used("cpu_us")?);
        ensure!((ran - cpu).abs() <= cpu / 100 + 2_000, "{ran} us on a CPU, {cpu} by the kernel");
        let memory = of_process(&dataset.table("memory_rss").await?);
        let anon =
            memory.iter().filter(|row| text(row, "member") == "anon").map(|row| number(row, "bytes")).max();
        let least = (PAGES - HELD_BACK) * PAGE;
        ensure!(anon.is_some_and(|bytes| bytes >= least), "{anon:?} bytes of its own: {memory:?}");

        let infos = dataset.table("node_info").await?;
        let memories = dataset.table("node_memory").await?;
        for node in Api::<Node>::all(env.client.clone()).list(&Default::default()).await? {
            let name = node.metadata.name.clone().unwrap_or_default();
            if name != a && name != b {
                continue;
            }
            let status = node.status.context("a node has a status")?;
            let kernel = status.node_info.context("and tells of its system")?.kernel_version;
            let info = infos.iter().find(|row| text(row, "node") == name).context("a row of each node")?;
            ensure!(text(info, "kernel") == kernel, "{kernel} by kubelet: {info:?}");
            let capacity = status.capacity.and_then(|all| all.get("memory").cloned()).context("memory")?.0;
            let kib: i64 = capacity.trim_end_matches("Ki").parse()?;
            let memory =
                memories.iter().find(|row| text(row, "node") == name).context("and of its memory")?;
            ensure!(number(memory, "mem_total") == kib * 1024, "{capacity} by kubelet: {memory:?}");
        }
        let nics = dataset.table("node_net").await?;
        ensure!(nics.iter().any(|row| text(row, "ifname") == "eth0"), "{nics:?}");
        Ok(())
    })
}

/// One end of every connection is one session's, the other end another's: over the same node, two nodes, and the loopback
/// of a node whose network two pods share.
#[test]
fn no_row_carries_the_other_ends_identity() -> Result<()> {
    in_namespace("ends", |env, ns| async move {
        let (a, b) = env.two_nodes().await?;
        let api = pods::api(&env.client, &ns);
        let server = PodSpec::workload("server", "servers", &["serve", "7000"]).on(&a).start(&api).await?;
        PodSpec::workload("host-server", "servers", &["serve", "7078"])
            .on(&a)
            .host_network()
            .start(&api)
            .await?;
        for node in [&a, &b] {
            PodSpec::workload(&format!("idle-{node}"), "clients", &["sleep"]).on(node).start(&api).await?;
        }
        let tables = [
            "tcp_connections",
            "tcp_listen_queue",
            "tcp_receive",
            "tcp_retransmits",
            "tcp_states",
            "tcp_throughput",
            "packet_drops",
        ];
        let collectors: Vec<&str> =
            all().filter(|name| name.starts_with("tcp") || *name == "packetDrops").collect();
        let mut sessions = Vec::new();
        for label in ["servers", "clients"] {
            let spec = Session::spec_of(label, WINDOW, &collectors);
            let session = Session::create(&env.client, &ns, label, spec).await?;
            session.recording().await?;
            sessions.push(session);
        }

        let address = pods::address(&server)?;
        let (open, closed) = (format!("{address}:7000"), format!("{address}:{CLOSED}"));
        let clients = [
            ("near", &a, false, open.as_str()),
            ("far", &b, false, &open),
            ("host", &a, true, "127.0.0.1:7078"),
        ];
        for (name, node, host, target) in clients {
            let client = |name: &str, args: &[&str]| {
                let pod = PodSpec::workload(name, "clients", args).on(node);
                if host { pod.host_network() } else { pod }
            };
            client(name, &["connect", target, "7", "500", "5000"]).run(&api).await?;
            let refusing = if host { "127.0.0.1:7079" } else { closed.as_str() };
            client(&format!("{name}-refused"), &["refused", refusing, "3"]).run(&api).await?;
        }

        let servers = BTreeSet::from(["server", "host-server"]);
        for (session, is_server) in sessions.iter().zip([true, false]) {
            let dataset = Dataset::complete(&env, session).await?;
            for table in tables {
                for row in dataset.table(table).await? {
                    let pod = text(&row, "pod");
                    ensure!(
                        !pod.is_empty()
                            && servers.contains(pod) == is_server
                            && text(&row, "container") == "app"
                            || text(&row, "attribution") == "netns",
                        "{table}, servers: {is_server}: {row:?}"
                    );
                    ensure!(servers.contains(pod) == is_server, "{table}, servers: {is_server}: {row:?}");
                    // Ports tell the ends apart, in whatever state.
                    let local = number(&row, "lport");
                    if local > 0 {
                        let served = [7000, 7078, i64::from(CLOSED)].contains(&local);
                        ensure!(served == is_server, "{table}, servers: {is_server}: {row:?}");
                    }
                }
            }
            let states = dataset.table("tcp_states").await?;
            let from = if is_server { "SYN_RECV" } else { "SYN_SENT" };
            let established = states
                .iter()
                .filter(|row| text(row, "old_state") == from && text(row, "new_state") == "ESTABLISHED");
            ensure!(established.count() == 21, "7 connections of 3 clients: {states:?}");
        }
        Ok(())
    })
}
