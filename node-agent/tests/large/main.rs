// SPDX-License-Identifier: Apache-2.0

//! Writes a session of any number of rows, as the agents of four nodes would have: `large ROWS FOLDER`.
//!
//! Segment thread, spool, uploads, node manifests and manifest are the agent's and the operator's own; only the rows are made
//! up ([`rows`]), the same ones each time. `cargo xtask bench --answers` measures on it how fast questions are answered.

extern crate tracelake_node_agent as node_agent;

mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dataset::catalogue;
use dataset::closing::{self, Effort};
use dataset::key::{Key, SessionPrefix};
use dataset::manifest::{FORMAT_VERSION, SessionFile, Verdict};
use dataset::{reader, schema};
use node_agent::engine::{
    Batch, CollectorOutcome, CollectorSpec, CollectorState, EngineError, Output, SessionSpec, TableCounters,
    TargetCoverage, TargetSpec,
};
use node_agent::kernel::clock;
use node_agent::metrics::Metrics;
use node_agent::pipeline::OUTPUTS;
use node_agent::pipeline::segment::{Segments, Sinks};
use node_agent::pipeline::spool::Spool;
use node_agent::pipeline::unsealed::Unsealed;
use node_agent::pipeline::upload::{Destination, Uploader};
use node_agent::session::{Node, Recorder, Session};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use crate::rows::{NODES, PODS, SHARES};

const UID: &str = "large";
/// Rows of a batch, about what the agent hands on at 4 MiB.
const BATCH: u64 = 16_384;
/// What the spool may hold before the uploads have to come after.
const SPOOL: u64 = 512 << 20;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [all, folder] = arguments.as_slice() else { anyhow::bail!("usage: large ROWS FOLDER") };
    let all: u64 = all.parse().context("ROWS is a number")?;
    std::fs::create_dir_all(folder)?;
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(folder)?);
    let prefix = SessionPrefix::root("")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let file = SessionFile {
            format_version: FORMAT_VERSION,
            namespace: "shop".to_owned(),
            session: "large".to_owned(),
            uid: UID.to_owned(),
            cluster_id: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start_time: dataset::render::utc(now_us()),
            spec: serde_json::Value::Null,
            schemas: schema::versions(),
        };
        reader::create_json(store.as_ref(), &prefix, &Key::Session, &file).await?;
        for node in 0..NODES {
            record(&store, &prefix, node, all / NODES).await?;
        }
        let nodes = (0..NODES).map(|node| (rows::node(node), Some(String::new()))).collect();
        let time = dataset::render::utc(now_us());
        let manifest = closing::close(store.as_ref(), &prefix, &nodes, time, Effort::Large).await?.manifest;
        reader::create_json(store.as_ref(), &prefix, &Key::manifest(manifest.number), &manifest).await?;
        ensure!(manifest.verdict == Verdict::Complete, "the dataset is not complete");
        println!("{} rows, {} bytes", manifest.totals.rows, manifest.totals.bytes);
        anyhow::Ok(())
    })
}

fn now_us() -> i64 {
    clock::utc_offset_ns().saturating_add_unsigned(clock::boot_ns()).div_euclid(1_000)
}

/// One node's part, from its first row to its manifest.
async fn record(store: &Arc<dyn ObjectStore>, prefix: &SessionPrefix, node: u64, all: u64) -> Result<()> {
    let spool = tempfile::tempdir()?;
    let name: Arc<str> = rows::node(node).into();
    let (out, batches) = sync_channel(OUTPUTS);
    let sinks = Sinks::default();
    let segments = Segments::new(sinks.clone()).spawn(batches)?;
    let metrics = Arc::new(Metrics::default());
    let destination = Destination::Store { store: store.clone(), prefix: prefix.clone(), node: name.clone() };
    let own = Node {
        name,
        boot: Node::current_boot()?,
        incarnation: Node::new_incarnation(),
        kernel: "6.12".to_owned(),
        arch: "x86_64".to_owned(),
        spool: Spool::open(spool.path(), u64::MAX)?,
        sinks,
        uploader: Uploader::new(destination, metrics.clone()),
        runtime: tokio::runtime::Handle::current(),
        metrics,
    };
    let spec = SessionSpec {
        uid: UID.into(),
        collectors: SHARES
            .iter()
            .map(|(table, _)| CollectorSpec { name: collector(table).to_owned(), ..CollectorSpec::default() })
            .collect(),
        containers: Vec::new(),
        rollover_interval: Duration::from_secs(60),
        rollover_bytes: 64 << 20,
        budget: Default::default(),
    };
    let mut session = Session::resume(own, UID.into())?;
    let mut made = Made { out, node, from_ns: clock::boot_ns(), tables: BTreeMap::new(), to_ns: None };
    session.start(&mut made, spec, None)?;
    // Rows of the past would each be a file at once: these are of the time to come.
    let base = clock::boot_ns().cast_signed() + 600_000_000_000;
    for first in (0..all).step_by(100 * BATCH as usize) {
        let last = all.min(first + 100 * BATCH);
        for (table, share) in SHARES {
            let mut from = first * share / 100;
            while from < last * share / 100 {
                let count = BATCH.min(last * share / 100 - from);
                made.send(table, rows::batch(table, node, base, from, count)?)?;
                from += count;
            }
        }
        session.tick(&made);
        while session.bytes_pending() > SPOOL {
            tokio::time::sleep(Duration::from_millis(10)).await;
            session.tick(&made);
        }
    }
    session.drain(&mut made)?;
    while !session.is_done() {
        if let Some(error) = session.upload_error() {
            anyhow::bail!("{error}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        session.tick(&made);
    }
    drop(made);
    segments.join().map_err(|_| anyhow::anyhow!("the segment thread panicked"))
}

fn collector(table: &str) -> &'static str {
    let of = |info: &&&catalogue::CollectorInfo| info.tables.iter().any(|one| one.name == table);
    catalogue::COLLECTORS.iter().find(of).map_or("", |info| info.name)
}

/// In place of the engine: what it is given has happened.
struct Made {
    out: SyncSender<Output>,
    node: u64,
    from_ns: u64,
    to_ns: Option<u64>,
    /// Events so far, and what is not sealed of them.
    tables: BTreeMap<&'static str, (u64, Unsealed)>,
}

impl Made {
    fn send(&mut self, table: &'static str, rows: arrow_array::RecordBatch) -> Result<()> {
        let (emitted, unsealed) = self.tables.entry(table).or_default();
        let weight = rows.num_rows() as u64;
        *emitted += weight;
        unsealed.saw(clock::boot_ns());
        let batch = Batch {
            session: UID.into(),
            table,
            rows,
            weight,
            mark: unsealed.hand_on(),
            cost: Default::default(),
        };
        self.out.send(Output::Batch(batch)).context("the segment thread has ended")
    }
}

impl Recorder for Made {
    fn open(&mut self, spec: SessionSpec) -> Result<Vec<CollectorOutcome>, EngineError> {
        let runs = |collector: CollectorSpec| CollectorOutcome {
            collector: collector.name,
            state: CollectorState::Running,
        };
        Ok(spec.collectors.into_iter().map(runs).collect())
    }

    fn set_targets(&mut self, _: &str, _: &[TargetSpec]) -> Result<(), EngineError> {
        Ok(())
    }

    fn mend(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn learn(&mut self, _: &[TargetSpec]) {}

    fn close(&mut self, session: &str, _: bool) {
        self.to_ns = Some(clock::boot_ns());
        // A thread that is gone has said so at the last batch.
        _ = self.out.send(Output::Closed { session: session.into() });
    }

    fn counters(&self, _: &str) -> Vec<TableCounters> {
        let counters = |(table, (emitted, unsealed)): (&&'static str, &(u64, Unsealed))| TableCounters {
            table,
            emitted: *emitted,
            sealed_ns: unsealed.oldest().unwrap_or_else(clock::boot_ns),
            ..TableCounters::default()
        };
        self.tables.iter().map(counters).collect()
    }

    fn coverage(&self, _: &str) -> Vec<TargetCoverage> {
        let each = |pod: u64| {
            SHARES.iter().map(move |(table, _)| TargetCoverage {
                pod_uid: rows::pod_uid(pod),
                namespace: "shop".into(),
                pod: rows::pod(pod),
                container: "app".into(),
                collector: collector(table),
                from_ns: self.from_ns,
                to_ns: self.to_ns,
                from_start: true,
                hooks: "full".into(),
                reason: String::new(),
            })
        };
        (self.node..PODS).step_by(NODES as usize).flat_map(each).collect()
    }
}
