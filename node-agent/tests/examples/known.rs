// SPDX-License-Identifier: Apache-2.0

//! Sessions of which every row is known, and what the examples' questions have for answers, counted from the same rows.
//!
//! The rows hold what goes wrong between engines: times with odd microseconds, addresses of both families, numbers above
//! 32 and 33 bits, nulls, empty histograms, words that differ from file to file, rows that stand for several events, one
//! pid used again and again and on two nodes. Nothing here knows Parquet or a store.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Column to value; a column that is not named is null, or zero where it may not be null.
pub(crate) type Row = Map<String, Value>;

/// The nodes of every session.
pub(crate) const NODES: [&str; 2] = ["node-a", "node-b"];
/// Sessions: an hour apart, and each with numbers of its own.
pub(crate) const SESSIONS: i64 = 4;
/// Batches of a session's node: each is a file of every table.
const ROUNDS: i64 = 52;
/// Of a batch: with these a pod has more than a hundred, and its slowest handshake is none of the first 99 of a hundred.
const CONNECTIONS: i64 = 5;
/// 2026-11-29 10:00:00 UTC in microseconds: when the nodes booted before the first session.
const BOOT_US: i64 = 1_795_946_400_000_000;
/// Rows of the answers that show the first ones only.
const SHOWN: usize = 5;

/// One batch of every table, by table.
pub(crate) type Batches = Vec<(&'static str, Vec<Row>)>;

/// What a node of a session writes, in order.
pub(crate) fn batches(session: i64, node: usize) -> impl Iterator<Item = Batches> {
    (0..ROUNDS).map(move |round| {
        let batch = round * NODES.len() as i64 + node as i64;
        let at = At { session, node: NODES[node], batch };
        vec![
            ("tcp_connections", at.connections()),
            ("processes", at.processes()),
            ("memory_rss", at.memory(round)),
            ("page_faults", at.faults()),
            ("cpu_sched", at.waits()),
        ]
    })
}

/// The place of some rows.
struct At {
    session: i64,
    node: &'static str,
    batch: i64,
}

impl At {
    /// A row's common columns and its own; `after` is how many milliseconds into the batch.
    fn row(&self, after: i64, own: Value) -> Row {
        let ts_ns = self.batch * 10_000_000 + after * 1_000_000 + 125_999;
        let time_utc = BOOT_US + self.session * 3_600_000_000 + ts_ns / 1_000;
        let common = json!({
            "time_utc": time_utc, "ts_ns": ts_ns, "weight": 1, "node": self.node, "namespace": "shop",
            "container": "app", "pod_uid": "u", "attribution": "task", "cgroup_id": 7,
        });
        let Value::Object(mut row) = common else { unreachable!("an object was written") };
        row.extend(own.as_object().expect("columns of a row").clone());
        row
    }

    fn pod(&self) -> &'static str {
        ["web", "cart"][(self.batch / 2 % 2) as usize]
    }

    fn connections(&self) -> Vec<Row> {
        let connection = |j: i64| {
            let i = self.batch * CONNECTIONS + j;
            let peers = [("10.1.2.3", 2), ("192.0.2.55", 2), ("2001:db8::7", 10), ("fe80::1", 10)];
            let (raddr, family) = peers[(i % 4) as usize];
            let active = i % 7 != 3;
            self.row(
                j,
                json!({
                    "weight": if i % 10 == 0 { 4 } else { 1 },
                    "pod": (i % 3 < 2).then(|| ["web", "cart"][(i % 3) as usize]),
                    "pid": 100 + i % 7, "comm": format!("worker-{}", i % 11),
                    "family": family, "protocol": 6, "laddr": "10.0.0.9", "lport": 40_000 + i,
                    "raddr": raddr, "rport": 6379, "sock_id": i,
                    "bytes_acked": 1_000 + i, "bytes_received": ((self.session + i % 5) << 31) + i,
                    "direction": if active { "active" } else { "passive" },
                    "handshake_ns": active.then(|| i * 7_919 % 100_003 + 1),
                    "duration_ns": (i + 1) * 1_500_000, "end_reason": "fin",
                }),
            )
        };
        (0..CONNECTIONS).map(connection).collect()
    }

    fn processes(&self) -> Vec<Row> {
        let identity = json!({
            "pod": self.pod(), "pid": 500 + self.batch % 10, "tid": 500 + self.batch % 10,
            "start_ns": self.batch * 10_000_000 + 1, "comm": "main",
        });
        let row = |after, own: Value| {
            let mut row = self.row(after, identity.clone());
            row.extend(own.as_object().expect("columns of a row").clone());
            row
        };
        let exe = ["/usr/bin/gzip", "/usr/bin/curl", "/bin/sh"][(self.batch % 3) as usize];
        let exit = |is_thread: bool, cpu_ns: i64| {
            let code = i64::from(self.batch % 4 == 0);
            let signal = if self.batch % 8 == 5 { 9 } else { 0 };
            json!({"kind": "exit", "is_thread": is_thread, "exit_code": code, "signal": signal, "utime_ns": cpu_ns, "stime_ns": 500_000})
        };
        vec![
            row(1, json!({"kind": "exec", "is_thread": false, "exe": exe})),
            row(2, exit(true, 9_000_000_000)),
            row(3, exit(false, (self.batch + 1) * 1_000_000)),
        ]
    }

    /// Of each process one kind of memory changes at a time.
    fn memory(&self, round: i64) -> Vec<Row> {
        let member = ["anon", "file", "shmem", "swap"][(round % 4) as usize];
        let large = self.node == NODES[0];
        let bytes = ((round + 1) << 20) + if large { (self.session + 1) << 33 } else { 0 };
        vec![self.row(
            5,
            json!({
                "pod": "db", "pid": 77, "tid": 77, "start_ns": 5, "mm_id": 5, "comm": "postgres",
                "member": member, "bytes": bytes, "peak_bytes": bytes,
            }),
        )]
    }

    fn faults(&self) -> Vec<Row> {
        let window = json!({
            "pod": self.pod(), "pid": 900, "start_ns": 5, "comm": "postgres", "major": self.batch % 7, "minor": 10 * self.batch,
            "window_ns": 10_000_000,
        });
        let single =
            json!({"pod": self.pod(), "pid": 900, "start_ns": 5, "comm": "postgres", "address": 4_096});
        let mut rows = vec![self.row(5, window)];
        rows.extend((self.batch % 4 == 0).then(|| self.row(6, single)));
        rows
    }

    fn waits(&self) -> Vec<Row> {
        let slots: Vec<i64> = (0..self.batch % 38).map(|slot| slot % 3 * (self.batch + slot)).collect();
        let end = slots.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        vec![self.row(
            5,
            json!({"pod": self.pod(), "pid": 7, "start_ns": 5, "comm": "nginx", "wait_hist": slots[..end], "run_hist": []}),
        )]
    }
}

/// Rows of one table of several sessions, each row with its session in `session`.
struct Rows(Vec<Row>);

impl Rows {
    fn of(sessions: &[i64], table: &str) -> Self {
        let mut rows = Vec::new();
        for &session in sessions {
            for node in 0..NODES.len() {
                let batches = batches(session, node).flatten().filter(|(name, _)| *name == table);
                rows.extend(batches.flat_map(|(_, rows)| rows).map(|mut row| {
                    row.insert("session".to_owned(), session.into());
                    row
                }));
            }
        }
        Self(rows)
    }

    /// Rows by the values of these columns, in their order.
    fn by(self, columns: &[&str]) -> BTreeMap<Vec<String>, Vec<Row>> {
        let mut groups: BTreeMap<Vec<String>, Vec<Row>> = BTreeMap::new();
        for row in self.0 {
            let key = columns.iter().map(|column| row.get(*column).unwrap_or(&Value::Null).to_string());
            groups.entry(key.collect()).or_default().push(row);
        }
        groups
    }
}

fn int(row: &Row, column: &str) -> i64 {
    row.get(column).and_then(Value::as_i64).unwrap_or(0)
}

fn sum(rows: &[Row], value: impl Fn(&Row) -> i64) -> i64 {
    rows.iter().map(value).sum()
}

/// Some columns of a row.
fn pick(row: &Row, columns: &[&str]) -> Row {
    let value = |column: &&str| row.get(*column).cloned().unwrap_or(Value::Null);
    columns.iter().map(|column| ((*column).to_owned(), value(column))).collect()
}

fn with(mut row: Row, own: Value) -> Row {
    row.extend(own.as_object().expect("columns of an answer").clone());
    row
}

/// The answers, by the name that every example gives them.
pub(crate) fn answers(sessions: &[i64]) -> BTreeMap<String, Vec<Row>> {
    let answers = [
        ("top_programs", top_programs(sessions)),
        ("tcplife", tcplife(sessions)),
        ("top_talkers", top_talkers(sessions)),
        ("handshakes", handshakes(sessions)),
        ("rss", rss(sessions)),
        ("faults", faults(sessions)),
        ("waits", waits(sessions)),
    ];
    answers.map(|(name, rows)| (name.to_owned(), rows)).into()
}

fn top_programs(sessions: &[i64]) -> Vec<Row> {
    let mut programs: BTreeMap<(String, String), Vec<Row>> = BTreeMap::new();
    for life in Rows::of(sessions, "processes").by(&["session", "node", "pid", "start_ns"]).into_values() {
        let [exec, _thread, exit] = &life[..] else { unreachable!("three rows of each process") };
        let text = |column: &str| exec[column].as_str().expect("text").to_owned();
        programs.entry((text("pod"), text("exe"))).or_default().push(exit.clone());
    }
    let program = |((pod, exe), ends): ((String, String), Vec<Row>)| {
        let failed = ends.iter().filter(|end| int(end, "exit_code") != 0 || int(end, "signal") != 0).count();
        let cpu_ns = sum(&ends, |end| int(end, "utime_ns") + int(end, "stime_ns"));
        with(
            Row::new(),
            json!({"pod": pod, "exe": exe, "runs": ends.len(), "failed": failed, "cpu_ms": cpu_ns as f64 / 1e6}),
        )
    };
    let mut rows: Vec<Row> = programs.into_iter().map(program).collect();
    rows.sort_by(|a, b| {
        b["cpu_ms"].as_f64().expect("a number").total_cmp(&a["cpu_ms"].as_f64().expect("a number"))
    });
    rows
}

fn tcplife(sessions: &[i64]) -> Vec<Row> {
    let mut rows = Rows::of(sessions, "tcp_connections").0;
    rows.sort_by_key(|row| std::cmp::Reverse(int(row, "time_utc")));
    let life = |row: &Row| {
        let kept = pick(row, &["time_utc", "pid", "comm", "laddr", "lport", "raddr", "rport"]);
        let (tx, rx) = (int(row, "bytes_acked"), int(row, "bytes_received"));
        with(kept, json!({"tx_bytes": tx, "rx_bytes": rx, "ms": int(row, "duration_ns") as f64 / 1e6}))
    };
    rows.iter().take(SHOWN).map(life).collect()
}

fn top_talkers(sessions: &[i64]) -> Vec<Row> {
    let groups = Rows::of(sessions, "tcp_connections").by(&["pod", "raddr"]);
    let talker = |rows: Vec<Row>| {
        let bytes =
            sum(&rows, |row| int(row, "weight") * (int(row, "bytes_acked") + int(row, "bytes_received")));
        let connections = sum(&rows, |row| int(row, "weight"));
        with(pick(&rows[0], &["pod", "raddr"]), json!({"connections": connections, "bytes": bytes}))
    };
    let mut rows: Vec<Row> = groups.into_values().map(talker).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(int(row, "bytes")));
    rows.truncate(SHOWN);
    rows
}

fn handshakes(sessions: &[i64]) -> Vec<Row> {
    let mut rows = Rows::of(sessions, "tcp_connections");
    rows.0.retain(|row| !row["handshake_ns"].is_null() && !row["pod"].is_null());
    let pod = |rows: Vec<Row>| {
        let mut times: Vec<i64> = rows.iter().map(|row| int(row, "handshake_ns")).collect();
        times.sort_unstable();
        // The smallest time that 99 of 100 do not exceed.
        let p99 = times[(99 * times.len()).div_ceil(100) - 1];
        with(pick(&rows[0], &["pod"]), json!({"handshakes": times.len(), "p99_us": p99 as f64 / 1e3}))
    };
    rows.by(&["pod"]).into_values().map(pod).collect()
}

fn rss(sessions: &[i64]) -> Vec<Row> {
    let processes = Rows::of(sessions, "memory_rss").by(&["session", "node", "pid", "start_ns", "mm_id"]);
    let peak = |rows: &Vec<Row>| rows.iter().map(|row| int(row, "peak_bytes")).max();
    let mut largest = processes.into_values().max_by_key(peak).expect("processes");
    largest.sort_by_key(|row| int(row, "ts_ns"));
    let mut members: BTreeMap<String, i64> = BTreeMap::new();
    let mut points = Vec::new();
    for row in largest.iter().filter(|row| row["member"] != "swap") {
        members.insert(row["member"].to_string(), int(row, "bytes"));
        points.push(with(pick(row, &["time_utc"]), json!({"rss_bytes": members.values().sum::<i64>()})));
    }
    points
}

fn faults(sessions: &[i64]) -> Vec<Row> {
    let mut rows = Rows::of(sessions, "page_faults");
    rows.0.retain(|row| row.contains_key("major"));
    let group = |rows: Vec<Row>| {
        let (major, minor) = (sum(&rows, |row| int(row, "major")), sum(&rows, |row| int(row, "minor")));
        with(pick(&rows[0], &["pod", "comm"]), json!({"major": major, "minor": minor}))
    };
    rows.by(&["pod", "comm"]).into_values().map(group).collect()
}

fn waits(sessions: &[i64]) -> Vec<Row> {
    let mut slots: BTreeMap<(String, usize), i64> = BTreeMap::new();
    for row in Rows::of(sessions, "cpu_sched").0 {
        let pod = row["pod"].as_str().expect("a pod").to_owned();
        for (slot, count) in row["wait_hist"].as_array().expect("a list").iter().enumerate() {
            *slots.entry((pod.clone(), slot)).or_default() += count.as_i64().expect("a count");
        }
    }
    let slot = |((pod, slot), slices): ((String, usize), i64)| {
        with(Row::new(), json!({"pod": pod, "at_least_ns": 1_i64 << slot, "slices": slices}))
    };
    slots.into_iter().filter(|(_, slices)| *slices > 0).map(slot).collect()
}
