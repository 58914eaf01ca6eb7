// SPDX-License-Identifier: Apache-2.0

//! Every collector as the chart installs it: in the default pod, on both nodes' kernels, against what the pods' own kernels
//! count, and with no row that carries another pod's identity.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use anyhow::{Context, Result, ensure};
use dataset::catalogue;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use tracelake_e2e::pods::{self, PodSpec};
use tracelake_e2e::rows::{Dataset, Row, number, sum, text};
use tracelake_e2e::session::{Session, WINDOW};
use tracelake_e2e::{Env, in_namespace};

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

/// What the tables say otherwise than the kernel: all of it is told at the end, not only the first.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn equal<T: PartialEq + Debug>(&mut self, what: &str, found: T, expected: T) {
        self.holds(found == expected, || format!("{what}: {found:?}, not {expected:?}"));
    }

    fn holds(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(what());
        }
    }

    fn none(&self) -> Result<()> {
        ensure!(self.0.is_empty(), "the tables and the kernel differ:\n{}", self.0.join("\n"));
        Ok(())
    }
}

/// The counters of TCP that a pod's kernel kept while the work was done, and what the accounted process used.
struct Kernel {
    before: BTreeMap<String, i64>,
    after: BTreeMap<String, i64>,
    used: serde_json::Value,
}

impl Kernel {
    fn counted(&self, name: &str) -> i64 {
        self.after[name] - self.before[name]
    }

    fn used(&self, name: &str) -> Result<i64> {
        self.used[name].as_i64().with_context(|| format!("{name} of {}", self.used))
    }
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
        let account = ["account", &PAGES.to_string(), "50"];
        let used = PodSpec::workload("accountant", "all", &account).on(&a).run(&api).await?;
        let kernel = Kernel { before, after: snmp(&api, "server").await?, used };

        let dataset = Dataset::complete(&env, &session).await?;
        let mut differences = Differences::default();
        for row in dataset.table("coverage").await? {
            let has = !text(&row, "hooks").is_empty();
            differences.holds(has, || format!("a collector without hooks: {row:?}"));
        }
        packets(&dataset, &kernel, &mut differences).await?;
        connections(&dataset, &mut differences).await?;
        process(&dataset, &kernel, &mut differences).await?;
        nodes(&env, &dataset, [&a, &b], &mut differences).await?;
        networks(&dataset, &kernel, &mut differences).await?;
        differences.none()
    })
}

/// Every packet that reached the server's TCP has one outcome, and what it sent again or refused is told.
async fn packets(dataset: &Dataset, kernel: &Kernel, differences: &mut Differences) -> Result<()> {
    let received = dataset.table("tcp_receive").await?;
    let received = of_pod(&received, "server");
    let outcome = |name: &str| sum_where(&received, "weight", "outcome", name);
    let hooks: BTreeSet<&str> = received.iter().map(|row| text(row, "hooks")).collect();
    differences.equal("hooks of tcp_receive: Debian's kernels have fentry", hooks, BTreeSet::from(["full"]));
    let segments = sum(received.iter().copied(), "weight")?;
    differences.equal("segments received", segments, kernel.counted("InSegs"));
    differences.equal("outcome unknown", outcome("unknown")?, 0);
    let listen = outcome("listen")?;
    differences.holds(listen >= CONNECTIONS, || format!("{listen} SYNs of {CONNECTIONS} connections"));
    // A client that the machine kept waiting for a second asks again, so the kernel's number of answers counts.
    let refused = kernel.counted("OutRsts");
    differences.holds(refused >= REFUSED, || format!("{refused} resets sent of {REFUSED}"));
    differences.equal("outcome no_socket", outcome("no_socket")?, refused);
    let drops = dataset.table("packet_drops").await?;
    let no_socket = sum_where(&of_pod(&drops, "server"), "weight", "reason", "NO_SOCKET")?;
    differences.equal("drops for NO_SOCKET", no_socket, refused);
    let again = dataset.table("tcp_retransmits").await?;
    let again = sum(of_pod(&again, "server"), "segments")?;
    differences.equal("segments sent again", again, kernel.counted("RetransSegs"));
    Ok(())
}

/// The connections' states, bytes and queue, by both ends.
async fn connections(dataset: &Dataset, differences: &mut Differences) -> Result<()> {
    let states = dataset.table("tcp_states").await?;
    for (pod, old, new, expected) in [
        ("server", "SYN_RECV", "ESTABLISHED", CONNECTIONS),
        ("client", "SYN_SENT", "ESTABLISHED", CONNECTIONS),
        ("refused", "SYN_SENT", "CLOSE", REFUSED),
    ] {
        let is = |row: &&Row| text(row, "old_state") == old && text(row, "new_state") == new;
        let found = of_pod(&states, pod).into_iter().filter(is).count() as i64;
        differences.equal(&format!("{pod}, {old} to {new}"), found, expected);
    }
    let flows = dataset.table("tcp_throughput").await?;
    for (pod, sent, received) in [
        ("server", CONNECTIONS * ANSWERED, CONNECTIONS * SENT),
        ("client", CONNECTIONS * SENT, CONNECTIONS * ANSWERED),
    ] {
        let rows = of_pod(&flows, pod);
        let found = (sum(rows.iter().copied(), "acked_bytes")?, sum(rows.iter().copied(), "rx_bytes")?);
        differences.equal(&format!("{pod}, bytes acknowledged and received"), found, (sent, received));
    }
    let queues = dataset.table("tcp_listen_queue").await?;
    let queue = of_pod(&queues, "server").into_iter().find(|row| number(row, "lport") == 7000);
    let queue = queue.context("the listener's queue")?;
    differences.holds(number(queue, "accept_max") > 0 && text(queue, "comm") == "workload", || {
        format!("the listener's queue: {queue:?}")
    });
    Ok(())
}

/// One process, of which the kernel keeps account to its end.
async fn process(dataset: &Dataset, kernel: &Kernel, differences: &mut Differences) -> Result<()> {
    let faults = dataset.table("page_faults").await?;
    let pid = of_pod(&faults, "accountant").into_iter().find(|row| text(row, "comm") == "accounted");
    let pid = number(pid.context("the accounted process")?, "pid");
    let of_process = |rows: &[Row]| -> Vec<Row> {
        let is = |row: &&Row| number(row, "pid") == pid && text(row, "pod") == "accountant";
        rows.iter().filter(is).cloned().collect()
    };
    let faults = of_process(&faults);
    differences.equal("minor faults", sum(&faults, "minor")?, kernel.used("minor")?);
    differences.equal("major faults", sum(&faults, "major")?, kernel.used("major")?);
    let slices = of_process(&dataset.table("cpu_sched").await?);
    // The last one is the end itself, which whoever waits may not see any more.
    let voluntary = sum(&slices, "voluntary")? - kernel.used("voluntary")?;
    differences
        .holds((0..=1).contains(&voluntary), || format!("{voluntary} switches more than the kernel says"));
    differences.equal("involuntary", sum(&slices, "involuntary")?, kernel.used("involuntary")?);
    let (ran, cpu) = (sum(&slices, "run_sum")? / 1_000, kernel.used("cpu_us")?);
    differences
        .holds((ran - cpu).abs() <= cpu / 100 + 2_000, || format!("{ran} us on a CPU, {cpu} by the kernel"));
    let memory = of_process(&dataset.table("memory_rss").await?);
    let anon = memory.iter().filter(|row| text(row, "member") == "anon");
    let anon = anon.map(|row| number(row, "bytes")).max().unwrap_or_default();
    let least = (PAGES - HELD_BACK) * PAGE;
    differences.holds(anon >= least, || format!("{anon} bytes of its own, not {least} or more"));
    Ok(())
}

/// The nodes as kubelet knows them.
async fn nodes(env: &Env, dataset: &Dataset, names: [&str; 2], differences: &mut Differences) -> Result<()> {
    let infos = dataset.table("node_info").await?;
    let memories = dataset.table("node_memory").await?;
    for name in names {
        let node = Api::<Node>::all(env.client.clone()).get(name).await?;
        let status = node.status.context("a node has a status")?;
        let kernel = status.node_info.context("and tells of its system")?.kernel_version;
        let info = infos.iter().find(|row| text(row, "node") == name).context("a row of each node")?;
        differences.equal("the node's kernel", text(info, "kernel"), &kernel);
        let capacity = status.capacity.and_then(|all| all.get("memory").cloned()).context("memory")?.0;
        let kib: i64 = capacity.trim_end_matches("Ki").parse()?;
        let memory = memories.iter().find(|row| text(row, "node") == name);
        let memory = memory.context("and of its memory")?;
        differences.equal("the node's memory", number(memory, "mem_total"), kib * 1024);
    }
    let nics = dataset.table("node_net").await?;
    for (whose, pod, attribution) in [("the node's", "", "none"), ("the server's", "server", "netns")] {
        let is = |row: &&Row| {
            text(row, "ifname") == "eth0"
                && text(row, "pod") == pod
                && text(row, "attribution") == attribution
        };
        differences.holds(nics.iter().any(|row| is(&row)), || format!("no row of {whose} eth0 in node_net"));
    }
    Ok(())
}

/// What the server's network counted to the end.
async fn networks(dataset: &Dataset, kernel: &Kernel, differences: &mut Differences) -> Result<()> {
    let counters = dataset.table("net_counters").await?;
    let own = of_pod(&counters, "server");
    for name in ["PassiveOpens", "InSegs", "RetransSegs", "OutRsts"] {
        let values = own.iter().filter(|row| text(row, "counter") == format!("Tcp{name}"));
        let last = values.max_by_key(|row| number(row, "ts_ns")).map_or(0, |row| number(row, "value"));
        differences.equal(&format!("{name} of the server's network"), last, kernel.after[name]);
    }
    Ok(())
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
