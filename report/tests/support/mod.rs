// SPDX-License-Identifier: Apache-2.0

//! Sessions for the report's tests: rows written as text become a dataset with the real writer's schemas and settings, and
//! DataFusion answers over it.

#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "../../../dataset/tests/rows/mod.rs"]
pub(crate) mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch};
use dataset::coverage::{CoverageKind, CoverageRow};
use dataset::key::{Boot, Key, SessionPrefix};
use dataset::ledger::{LedgerRow, Term};
use dataset::manifest::{
    FORMAT_VERSION, Incarnation, Manifest, ManifestNode, NodeManifest, ObjectEntry, SessionFile, Totals,
};
use dataset::reader::{self, Contents};
use dataset::schema::{self, FileInfo};
use dataset::{bookkeeping, catalogue};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use parquet::arrow::ArrowWriter;
use query::Limits;
use query::datafusion::prelude::SessionContext;
use rows::{Cells, batch, cells};
use sha2::{Digest, Sha256};

/// 2026-11-23T04:00:00Z, when the nodes booted.
pub(crate) const BOOTED_US: i64 = 1_795_406_400_000_000;
const BOOT: &str = "0123456789abcdef0123456789abcdef";

/// A session in the making.
pub(crate) struct Session {
    /// Rows by table.
    pub(crate) tables: BTreeMap<String, Cells>,
    /// What was traced and what not.
    pub(crate) coverage: Vec<CoverageRow>,
    /// Events that are missing, by node and table.
    pub(crate) lost: Vec<(&'static str, &'static str, Term, u64)>,
    /// Nodes, each with why it is not complete.
    pub(crate) nodes: BTreeMap<String, String>,
    /// Of `session.json`.
    pub(crate) spec: serde_json::Value,
    /// Nodes that wrote no manifest, each with why it is not complete.
    pub(crate) silent: BTreeMap<String, String>,
    /// Whether there is a manifest.
    pub(crate) over: bool,
    /// The most rows that a file has.
    pub(crate) rows_per_file: usize,
}

/// Tables as they are in the files of `sessions/`.
pub(crate) fn tables(text: &str) -> BTreeMap<String, Cells> {
    let mut tables: BTreeMap<String, Cells> = BTreeMap::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(table) = line.strip_prefix("Rows of `") else { continue };
        tables.insert(table.trim_end_matches("`:").to_owned(), cells(&mut lines.by_ref()));
    }
    assert!(!tables.is_empty(), "no table");
    tables
}

impl Session {
    /// The session of `sessions/shop.md`: every collector traced on both nodes for 100 s.
    pub(crate) fn shop() -> Self {
        let mut session = Self::empty();
        session.tables = tables(include_str!("../sessions/shop.md"));
        for (node, pod) in [("a", "web"), ("a", "client"), ("b", "db")] {
            for collector in catalogue::COLLECTORS.iter().filter(|one| one.name != "nodeInfo") {
                session.coverage.push(coverage(node, pod, collector.name, CoverageKind::Traced));
            }
        }
        session.nodes = BTreeMap::from([("a".to_owned(), String::new()), ("b".to_owned(), String::new())]);
        session
    }

    /// One without nodes, over.
    pub(crate) fn empty() -> Self {
        let names = catalogue::COLLECTORS.iter().map(|one| serde_json::json!({ "name": one.name }));
        Self {
            tables: BTreeMap::new(),
            coverage: Vec::new(),
            lost: Vec::new(),
            nodes: BTreeMap::new(),
            silent: BTreeMap::new(),
            spec: serde_json::json!({ "collectors": names.collect::<Vec<_>>() }),
            over: true,
            rows_per_file: usize::MAX,
        }
    }

    /// Leaves out a collector: its rows, its coverage, its name in the spec.
    pub(crate) fn without(mut self, collector: &str) -> Self {
        let of = catalogue::collector(collector).expect("a collector");
        of.tables.iter().for_each(|table| _ = self.tables.remove(table.name));
        self.coverage.retain(|row| row.collector != collector);
        let collectors = self.spec["collectors"].as_array_mut().expect("a list");
        collectors.retain(|one| one["name"] != collector);
        self
    }

    /// Leaves out a collector on one node, which says why or does not name it.
    pub(crate) fn not_on(mut self, node: &str, collector: &str, reason: Option<&str>) -> Self {
        let of = catalogue::collector(collector).expect("a collector");
        for table in of.tables {
            let Some(cells) = self.tables.get_mut(table.name) else { continue };
            let column = cells[0].iter().position(|name| name == "node").expect("a node");
            cells.retain(|row| row[column] != node);
        }
        self.coverage.retain(|row| row.collector != collector || row.node != node);
        if let Some(reason) = reason {
            let row = coverage(node, "", collector, CoverageKind::Unsupported);
            self.coverage.push(CoverageRow { reason: reason.to_owned(), ..row });
        }
        self
    }

    /// Adds rows of a table.
    pub(crate) fn with(mut self, table: &str, text: &str) -> Self {
        let mut added = cells(&mut text.lines());
        match self.tables.get_mut(table) {
            None => _ = self.tables.insert(table.to_owned(), added),
            Some(cells) => {
                assert_eq!(cells[0], added[0], "the same columns");
                cells.extend(added.drain(1..));
            }
        }
        self
    }

    /// Writes it, in the order in which agents and the operator do.
    pub(crate) async fn write(&self) -> Written {
        let folder = tempfile::tempdir().expect("a folder");
        let store: Arc<dyn ObjectStore> =
            Arc::new(LocalFileSystem::new_with_prefix(folder.path()).expect("a store"));
        let prefix = SessionPrefix::root("").expect("a prefix");
        let session = SessionFile {
            format_version: FORMAT_VERSION,
            namespace: "shop".into(),
            session: "checkout".into(),
            uid: "00000000-0000-4000-8000-000000000001".into(),
            cluster_id: String::new(),
            version: "0".into(),
            start_time: "2026-11-23T04:01:40Z".into(),
            spec: self.spec.clone(),
            schemas: schema::versions(),
        };
        reader::create_json(store.as_ref(), &prefix, &Key::Session, &session).await.expect("written");
        let mut nodes = Vec::new();
        for (node, reason) in &self.nodes {
            nodes.push(self.node(&store, &prefix, node, reason).await);
        }
        nodes.extend(self.silent.iter().map(|(node, reason)| ManifestNode {
            node: node.clone(),
            manifests: Vec::new(),
            totals: Totals::default(),
            reason: reason.clone(),
        }));
        if self.over {
            let manifest = Manifest::new(1, "2026-11-23T04:04:00Z".into(), nodes);
            reader::create_json(store.as_ref(), &prefix, &Key::manifest(1), &manifest)
                .await
                .expect("written");
        }
        let contents = reader::load(store.as_ref(), &prefix).await.expect("a dataset");
        Written { folder, contents }
    }

    async fn node(
        &self,
        store: &Arc<dyn ObjectStore>,
        prefix: &SessionPrefix,
        node: &str,
        reason: &str,
    ) -> ManifestNode {
        let incarnations = vec![Incarnation {
            incarnation: "i".into(),
            clean: true,
            anchor_utc_us: BOOTED_US,
            ..Default::default()
        }];
        let coverage: Vec<CoverageRow> =
            self.coverage.iter().filter(|row| row.node == node).cloned().collect();
        let (mut objects, mut ledger) = (Vec::new(), Vec::new());
        for (name, cells) in &self.tables {
            let table = catalogue::table(name).unwrap_or_else(|| panic!("there is no table {name}"));
            let column = cells[0].iter().position(|name| name == "node").expect("a node");
            let mut own: Cells = vec![cells[0].clone()];
            own.extend(cells[1..].iter().filter(|row| row[column] == node).cloned());
            if own.len() == 1 {
                continue;
            }
            let mut row = LedgerRow {
                node: node.into(),
                boot: BOOT.into(),
                incarnation: "i".into(),
                table: name.clone(),
                ..Default::default()
            };
            for (sequence, some) in own[1..].chunks(self.rows_per_file).enumerate() {
                let some = batch(table, [&own[..1], some].concat(), BOOTED_US);
                let object = put(store, prefix, node, table, sequence as u64, some).await;
                row.rows += object.rows;
                row.terms.add(Term::Exported, object.weight);
                objects.push(object);
            }
            for (_, _, term, events) in self.lost.iter().filter(|(at, of, ..)| *at == node && of == name) {
                row.terms.add(*term, *events);
            }
            row.emitted = Some(row.terms.total());
            ledger.push(row);
        }
        for (table, rows) in [
            (&bookkeeping::LEDGER, bookkeeping::ledger_batch(&ledger)),
            (&bookkeeping::COVERAGE, bookkeeping::coverage_batch(&coverage)),
            (&bookkeeping::SESSION_NODES, bookkeeping::session_nodes_batch(node, BOOT, &incarnations)),
        ] {
            objects.push(put(store, prefix, node, table, 0, rows).await);
        }
        let manifest = NodeManifest {
            format_version: FORMAT_VERSION,
            node: node.into(),
            boot: BOOT.into(),
            incarnations,
            objects,
            ledger,
            coverage,
        };
        let key = Key::node_manifest(node, &boot()).expect("a key");
        reader::create_json(store.as_ref(), prefix, &key, &manifest).await.expect("written");
        ManifestNode {
            node: node.into(),
            manifests: vec![key.relative()],
            totals: manifest.totals(),
            reason: reason.into(),
        }
    }
}

fn boot() -> Boot {
    BOOT.parse().expect("a boot id")
}

/// A row of coverage for the whole session.
pub(crate) fn coverage(node: &str, pod: &str, collector: &str, kind: CoverageKind) -> CoverageRow {
    CoverageRow {
        node: node.into(),
        boot: BOOT.into(),
        incarnation: "i".into(),
        namespace: "shop".into(),
        pod: pod.into(),
        container: "app".into(),
        pod_uid: format!("uid-{pod}"),
        collector: collector.into(),
        kind,
        from_ns: 100_000_000_000,
        to_ns: 200_000_000_000,
        from_utc_us: BOOTED_US + 100_000_000,
        to_utc_us: BOOTED_US + 200_000_000,
        from_start: true,
        hooks: "tp_btf".into(),
        reason: String::new(),
    }
}

async fn put(
    store: &Arc<dyn ObjectStore>,
    prefix: &SessionPrefix,
    node: &str,
    table: &'static catalogue::Table,
    sequence: u64,
    rows: RecordBatch,
) -> ObjectEntry {
    let info = FileInfo { session: "s", node, boot: BOOT, incarnation: "i", sequence };
    let properties = schema::writer_properties(table, &info);
    let mut writer = ArrowWriter::try_new(Vec::new(), schema::of(table), Some(properties)).expect("a writer");
    writer.write(&rows).expect("rows are written");
    let content = writer.into_inner().expect("a whole file");
    let key = Key::segment(table.name, node, &boot(), sequence).expect("a key");
    let sha256 = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = content.len() as u64;
    reader::create(store.as_ref(), &prefix.object(&key), content.into()).await.expect("written");
    let weights = rows.column_by_name("weight").map(|column| {
        let column = column.as_any().downcast_ref::<Int64Array>().expect("a column of numbers");
        column.iter().flatten().sum::<i64>()
    });
    ObjectEntry {
        key: key.relative(),
        rows: rows.num_rows() as u64,
        weight: weights.unwrap_or(0).cast_unsigned(),
        bytes,
        sha256,
    }
}

/// A session on disk.
pub(crate) struct Written {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) contents: Contents,
}

impl Written {
    /// The same without the manifest of a node, which is gone from the store.
    pub(crate) async fn without_manifest_of(mut self, node: &str) -> Self {
        let key = Key::node_manifest(node, &boot()).expect("a key");
        std::fs::remove_file(self.folder.path().join(key.relative())).expect("it was there");
        let store = LocalFileSystem::new_with_prefix(self.folder.path()).expect("a store");
        let prefix = SessionPrefix::root("").expect("a prefix");
        self.contents = reader::load(&store, &prefix).await.expect("a dataset");
        self
    }

    /// The tables as `tracelake report` opens them.
    pub(crate) async fn tables(&self) -> SessionContext {
        let store: Arc<dyn ObjectStore> =
            Arc::new(LocalFileSystem::new_with_prefix(self.folder.path()).expect("a store"));
        query::open(store, &self.contents, &Limits::default()).await.expect("tables")
    }
}
