// SPDX-License-Identifier: Apache-2.0

//! Whole sessions in a folder, as agents and operator leave them: for tests of this crate and of the command line.
//!
//! In: rows as text, by node and table; why a node is not complete. Out: segments with the tables' own schemas and settings,
//! node manifests with a ledger that balances, and the session's manifest. `tracelake verify` finds nothing wrong with it.

#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "../../../dataset/tests/rows/mod.rs"]
pub(crate) mod rows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dataset::bookkeeping;
use dataset::catalogue::{self, Table};
use dataset::closing::{self, Effort};
use dataset::key::{Boot, Key, SessionPrefix};
use dataset::ledger::{LedgerRow, Term};
use dataset::manifest::{FORMAT_VERSION, NodeManifest, ObjectEntry, SessionFile};
use dataset::reader;
use dataset::schema::{self, FileInfo};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use parquet::arrow::ArrowWriter;
use rows::Cells;
use sha2::{Digest, Sha256};

const BOOT: &str = "0123456789abcdef0123456789abcdef";
const INCARNATION: &str = "fedcba9876543210fedcba9876543210";

/// A folder that will hold one session.
pub(crate) struct Session {
    folder: PathBuf,
    nodes: BTreeMap<String, Node>,
}

#[derive(Default)]
struct Node {
    objects: Vec<ObjectEntry>,
    ledger: BTreeMap<&'static str, LedgerRow>,
}

fn boot() -> Boot {
    BOOT.parse().expect("32 digits")
}

/// Rows as text: a line of names, then lines of cells, separated by bars.
pub(crate) fn cells(text: &str) -> Cells {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

impl Session {
    /// Nothing yet.
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), nodes: BTreeMap::new() }
    }

    /// Adds one segment of a node.
    pub(crate) fn segment(&mut self, node: &str, table: &str, cells: &Cells) {
        let table = catalogue::table(table).expect("a table of the catalogue");
        let mut cells = cells.clone();
        cells[0].push("node".to_owned());
        cells[1..].iter_mut().for_each(|row| row.push(node.to_owned()));
        let weight = cells[0].iter().position(|name| name == "weight");
        let weights =
            cells[1..].iter().map(|row| weight.map_or(1, |at| row[at].parse::<u64>().expect("a weight")));
        let (weight, rows) = (weights.sum(), cells.len() as u64 - 1);
        self.write(node, table, rows, weight, |info, file| rows::write(table, cells, info, file));
    }

    /// Adds a segment whose content is there already.
    pub(crate) fn write(
        &mut self,
        node: &str,
        table: &'static Table,
        rows: u64,
        weight: u64,
        content: impl FnOnce(&FileInfo<'_>, &mut Vec<u8>),
    ) {
        let of_node = self.nodes.entry(node.to_owned()).or_default();
        let sequence = of_node.objects.len() as u64;
        let key = Key::segment(table.name, node, &boot(), sequence).expect("names").relative();
        let info = FileInfo { session: "uid", node, boot: BOOT, incarnation: INCARNATION, sequence };
        let mut bytes = Vec::new();
        content(&info, &mut bytes);
        let path = self.folder.join(&key);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, &bytes).expect("written");
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        of_node.objects.push(ObjectEntry { key, rows, weight, bytes: bytes.len() as u64, sha256 });
        if bookkeeping::TABLES.iter().all(|own| own.name != table.name) {
            let row = of_node.ledger.entry(table.name).or_insert_with(|| LedgerRow {
                node: node.to_owned(),
                boot: BOOT.to_owned(),
                incarnation: INCARNATION.to_owned(),
                table: table.name.to_owned(),
                emitted: Some(0),
                ..LedgerRow::default()
            });
            row.emitted = row.emitted.map(|emitted| emitted + weight);
            row.terms.add(Term::Exported, weight);
            row.rows += rows;
        }
    }

    /// Writes what agents write last, and the operator's manifest: `reasons` are those of nodes that are not complete.
    pub(crate) async fn finish(mut self, reasons: &[(&str, &str)]) {
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in &names {
            let ledger: Vec<LedgerRow> = self.nodes[name].ledger.values().cloned().collect();
            let batch = bookkeeping::ledger_batch(&ledger);
            let table = &bookkeeping::LEDGER;
            self.write(name, table, ledger.len() as u64, 0, |info, file| {
                let properties = schema::writer_properties(table, info);
                let mut writer =
                    ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("a writer");
                writer.write(&batch).expect("rows are written");
                writer.close().expect("the file is whole");
            });
        }
        let store: Arc<dyn ObjectStore> =
            Arc::new(LocalFileSystem::new_with_prefix(&self.folder).expect("a folder"));
        let root = SessionPrefix::root("").expect("a prefix");
        let session = SessionFile {
            format_version: FORMAT_VERSION,
            namespace: "shop".to_owned(),
            session: "checkout".to_owned(),
            uid: "uid".to_owned(),
            cluster_id: String::new(),
            version: String::new(),
            start_time: "2026-11-23T00:00:00Z".to_owned(),
            spec: serde_json::Value::Null,
            schemas: schema::versions(),
        };
        reader::create_json(store.as_ref(), &root, &Key::Session, &session).await.expect("session.json");
        for (name, node) in &self.nodes {
            let manifest = NodeManifest {
                format_version: FORMAT_VERSION,
                node: name.clone(),
                boot: BOOT.to_owned(),
                incarnations: Vec::new(),
                objects: node.objects.clone(),
                ledger: node.ledger.values().cloned().collect(),
                coverage: Vec::new(),
            };
            let key = Key::node_manifest(name, &boot()).expect("a node's name");
            reader::create_json(store.as_ref(), &root, &key, &manifest).await.expect("a node manifest");
        }
        let mut expected: BTreeMap<String, Option<String>> =
            names.into_iter().map(|name| (name, Some(String::new()))).collect();
        expected
            .extend(reasons.iter().map(|(node, reason)| ((*node).to_owned(), Some((*reason).to_owned()))));
        let time = "2026-11-23T00:01:00Z".to_owned();
        let closing = closing::close(store.as_ref(), &root, &expected, time, Effort::Ordinary);
        let manifest = closing.await.expect("the session is read back").manifest;
        reader::create_json(store.as_ref(), &root, &Key::manifest(1), &manifest).await.expect("a manifest");
    }
}
