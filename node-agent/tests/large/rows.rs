// SPDX-License-Identifier: Apache-2.0

//! Rows that look like those of a busy cluster, made of their number alone: the same ones in every run.
//!
//! In: table, node, and which rows. Out: batches of the table's schema. Counts, sizes and times are spread as they are in
//! practice (a few pods and peers do most), so that files compress and queries group as they would; what a column of no
//! interest holds is null where it may be.

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow_array::builder::StringDictionaryBuilder;
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, new_null_array,
};
use arrow_schema::{DataType, Field};
use dataset::schema;

pub(crate) const NODES: u64 = 4;
/// In the whole cluster; each runs on the node of its number, counted around.
pub(crate) const PODS: u64 = 48;
/// Rows of each table, of a hundred.
pub(crate) const SHARES: [(&str, u64); 5] = [
    ("tcp_connections", 15),
    ("tcp_retransmits", 5),
    ("tcp_throughput", 35),
    ("memory_rss", 25),
    ("page_faults", 20),
];

/// Between two rows of a node, whatever their table.
const STEP_NS: i64 = 100_000;
/// Peers of a pod.
const PEERS: u64 = 400;
/// Processes of a pod.
const PROCESSES: u64 = 20;
const COMMS: [&str; 8] = ["nginx", "postgres", "java", "redis-server", "python3", "envoy", "node", "sh"];

pub(crate) fn node(number: u64) -> String {
    format!("node-{number}")
}

pub(crate) fn pod<T: From<String>>(number: u64) -> T {
    format!("web-{number}").into()
}

pub(crate) fn pod_uid<T: From<String>>(number: u64) -> T {
    format!("00000000-0000-4000-8000-{number:012}").into()
}

/// Sebastiano Vigna's splitmix64: one number from another, well mixed.
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One row: its number on its node, and what follows from it.
#[derive(Clone, Copy)]
struct Row {
    number: u64,
    node: u64,
    ts_ns: i64,
    random: u64,
}

impl Row {
    /// Below `most`, small ones far more often.
    fn few(self, salt: u64, most: u64) -> u64 {
        let part = (mixed(self.random ^ salt) >> 11) as f64 / (1u64 << 53) as f64;
        ((most as f64 * part * part * part) as u64).min(most - 1)
    }

    fn even(self, salt: u64, most: u64) -> u64 {
        mixed(self.random ^ salt) % most
    }

    fn pod(self) -> u64 {
        self.node + NODES * self.few(1, PODS / NODES)
    }

    fn process(self) -> u64 {
        self.few(2, PROCESSES)
    }

    fn peer(self) -> String {
        let peer = self.few(3, PEERS);
        format!("10.2.{}.{}", peer / 250, peer % 250 + 1)
    }

    /// Of a connection's own row its number; of what happened to one, an earlier one's.
    fn socket(self, table: &str) -> u64 {
        if table == "tcp_connections" { self.number } else { self.even(4, self.number * 3 + 1) }
    }

    fn integer(self, table: &str, column: &str) -> Option<i64> {
        let bytes = || 200 + self.few(5, 4_000_000).cast_signed();
        let window_ns = (table != "tcp_connections" && table != "page_faults").then_some(10_000_000_000);
        Some(match column {
            "ts_ns" => self.ts_ns,
            "weight" | "segments" | "minor" => 1,
            "cgroup_id" => 4_000 + self.pod().cast_signed(),
            "netns" => 4_026_531_840 + self.pod().cast_signed(),
            "cpu" => self.even(6, 8).cast_signed(),
            "window_ns" => return (table != "tcp_retransmits").then_some(window_ns).flatten(),
            "pid" | "tid" => (1_000 + self.pod() * 100 + self.process()).cast_signed(),
            "start_ns" => 1_000_000_000 * (1 + self.process()).cast_signed(),
            "family" => 2,
            "protocol" => 6,
            "lport" => 32_768 + self.even(7, 28_000).cast_signed(),
            "rport" => [443, 5_432, 6_379, 8_080][self.few(8, 4) as usize],
            "sock_id" => self.socket(table).cast_signed() + 1,
            "opened_ns" => self.ts_ns - 2_000_000_000,
            "established_ns" => self.ts_ns - 1_990_000_000,
            "closed_ns" => self.ts_ns,
            "duration_ns" => 1_990_000_000,
            "handshake_ns" => 50_000 + self.few(9, 200_000_000).cast_signed(),
            "bytes_sent" | "bytes_acked" | "rx_bytes" | "tx_bytes" | "acked_bytes" | "bytes_received" => {
                bytes()
            }
            "bytes_retrans" | "retrans_bytes" | "retrans_segs" | "error" | "err" => 0,
            "segs_in" | "segs_out" | "data_segs_out" => 4 + bytes() / 1_448,
            "snd_cwnd" => 10 + self.few(10, 90).cast_signed(),
            "srtt_us" | "min_rtt_us" => 100 + self.few(11, 50_000).cast_signed(),
            "rank" => 1 + self.even(12, 200).cast_signed(),
            "bytes" if table == "tcp_retransmits" => 1_448,
            "bytes" | "peak_bytes" => (1 << 20) + (self.few(13, 1 << 18) << 12).cast_signed(),
            "mm_id" => (self.pod() * 100 + self.process()).cast_signed(),
            "address" => 0x7f00_0000_0000 + (self.even(14, 1 << 20) << 12).cast_signed(),
            "ip" => 0x0040_0000 + self.few(15, 1 << 16).cast_signed(),
            _ => return None,
        })
    }

    fn text(self, table: &str, column: &str) -> Option<String> {
        let one = |words: &[&str], salt| words[self.few(salt, words.len() as u64) as usize].to_owned();
        Some(match column {
            "node" => node(self.node),
            "namespace" => "shop".to_owned(),
            "pod" => pod(self.pod()),
            "pod_uid" => pod_uid(self.pod()),
            "container" => "app".to_owned(),
            "attribution" => "task".to_owned(),
            "comm" => COMMS[self.process() as usize % COMMS.len()].to_owned(),
            "laddr" => format!("10.1.0.{}", self.pod() + 1),
            "raddr" => self.peer(),
            "direction" => "active".to_owned(),
            "end_reason" => one(&["fin", "fin", "rst_in", "timeout"], 16),
            "ca_name" => "cubic".to_owned(),
            "member" => one(&["anon", "file", "shmem"], 17),
            "kind" if table == "tcp_retransmits" => one(&["fast", "tlp", "rto"], 18),
            "state" => "ESTABLISHED".to_owned(),
            _ => return None,
        })
    }
}

/// So many rows of a table on a node, from that number on.
pub(crate) fn batch(table: &str, node: u64, base_ns: i64, from: u64, count: u64) -> Result<RecordBatch> {
    let schema = schema(table).with_context(|| format!("there is no table {table}"))?;
    let salt = mixed(table.len() as u64 ^ (node << 32));
    let share = SHARES.iter().find(|(name, _)| *name == table).map_or(100, |(_, share)| *share);
    let rows: Vec<Row> = (from..from + count)
        .map(|number| Row {
            number,
            node,
            ts_ns: base_ns + (number * 100 / share).cast_signed() * STEP_NS,
            random: mixed(salt ^ number),
        })
        .collect();
    let columns = schema.fields().iter().map(|field| column(table, field, &rows)).collect();
    Ok(RecordBatch::try_new(schema, columns)?)
}

fn column(table: &str, field: &Field, rows: &[Row]) -> ArrayRef {
    let name = field.name().as_str();
    let needed = !field.is_nullable();
    let integer = |row: &Row| row.integer(table, name).or(needed.then_some(0));
    let text = |row: &Row| row.text(table, name).or_else(|| needed.then(String::new));
    match field.data_type() {
        DataType::Int64 => Arc::new(rows.iter().map(integer).collect::<Int64Array>()),
        DataType::Int32 => {
            let values = rows.iter().map(|row| integer(row).map(|value| value as i32));
            Arc::new(values.collect::<Int32Array>())
        }
        DataType::Float64 => {
            Arc::new(rows.iter().map(|row| row.few(19, 1 << 30) as f64).collect::<Float64Array>())
        }
        DataType::Boolean => {
            Arc::new(rows.iter().map(|row| Some(row.even(20, 4) == 0)).collect::<BooleanArray>())
        }
        DataType::Utf8 => Arc::new(rows.iter().map(text).collect::<StringArray>()),
        DataType::Timestamp(..) if name == "time_utc" || name == "window_start" => {
            // The clock of 2026 at boot: what matters is that it goes on as ts_ns does.
            const BOOT_US: i64 = 1_780_000_000_000_000;
            let before = if name == "time_utc" { 0 } else { 10_000_000 };
            let values = rows.iter().map(|row| BOOT_US + row.ts_ns.div_euclid(1_000) - before);
            Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone(schema::UTC))
        }
        DataType::Dictionary(..) => {
            let mut words = StringDictionaryBuilder::<Int32Type>::new();
            rows.iter().for_each(|row| words.append_option(text(row)));
            Arc::new(words.finish())
        }
        other => new_null_array(other, rows.len()),
    }
}
