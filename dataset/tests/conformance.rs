// SPDX-License-Identifier: Apache-2.0

//! The same functions over every kind of store: memory, a local folder, S3 in this process (s3s-fs) and two real S3
//! servers (SeaweedFS, Versity's gateway). A store that passes can hold datasets.
//!
//! The real servers' binaries are named by `TRACELAKE_WEED` and `TRACELAKE_VERSITYGW`, else where `cargo xtask` puts them.
//! Without them the tests fail.

extern crate tracelake_dataset as dataset;

mod stores;

use std::sync::Arc;

use bytes::Bytes;
use dataset::closing::{self, Effort};
use dataset::coverage::{CoverageKind, CoverageRow};
use dataset::key::{Boot, Key, SessionPrefix};
use dataset::ledger::{LedgerRow, Term};
use dataset::manifest::{FORMAT_VERSION, Incarnation, NodeManifest, ObjectEntry, SessionFile, Verdict};
use dataset::reader::{self, Finding, ReadError};
use dataset::schema::{self, FileInfo};
use dataset::{bookkeeping, catalogue};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::{FileMetaData, ParquetMetaData, ParquetMetaDataReader, ParquetMetaDataWriter};
use sha2::{Digest, Sha256};

const BOOT: &str = "0123456789abcdef0123456789abcdef";

async fn conformance(store: Arc<dyn ObjectStore>) {
    a_second_create_is_refused_and_changes_nothing(&store).await;
    odd_characters_of_a_prefix_survive(&store).await;
    create_takes_its_own_earlier_success_for_success(&store).await;
    a_dataset_is_read_back_as_it_was_written(&store).await;
    a_damaged_dataset_is_found_out(&store).await;
    a_folder_without_a_session_is_no_dataset(&store).await;
}

fn create_only() -> PutOptions {
    PutOptions { mode: PutMode::Create, ..PutOptions::default() }
}

async fn a_second_create_is_refused_and_changes_nothing(store: &Arc<dyn ObjectStore>) {
    let path = Path::parse("once/object").unwrap();
    store.put_opts(&path, PutPayload::from_static(b"first"), create_only()).await.unwrap();
    let second = store.put_opts(&path, PutPayload::from_static(b"second"), create_only()).await;
    assert!(matches!(second, Err(object_store::Error::AlreadyExists { .. })), "{second:?}");
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), Bytes::from_static(b"first"));
}

async fn odd_characters_of_a_prefix_survive(store: &Arc<dyn ObjectStore>) {
    let prefix = SessionPrefix::new("odd a+b=c,d~e", "shop", "checkout", "uid-1").unwrap();
    let path = prefix.object(&Key::Session);
    reader::create(store.as_ref(), &path, Bytes::from_static(b"{}")).await.unwrap();
    let listed: Vec<_> = store.list(Some(prefix.path())).try_collect().await.unwrap();
    assert_eq!(listed.iter().map(|object| &object.location).collect::<Vec<_>>(), [&path]);
    assert_eq!(store.head(&path).await.unwrap().size, 2);
}

async fn create_takes_its_own_earlier_success_for_success(store: &Arc<dyn ObjectStore>) {
    let path = Path::parse("twice/object").unwrap();
    for _ in 0..2 {
        reader::create(store.as_ref(), &path, Bytes::from_static(b"same")).await.unwrap();
    }
    let other = reader::create(store.as_ref(), &path, Bytes::from_static(b"else")).await;
    assert!(matches!(other, Err(ReadError::Exists { .. })), "{other:?}");
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Rows as an agent of node-1 writes them.
fn file(table: &'static catalogue::Table, rows: &arrow_array::RecordBatch) -> Vec<u8> {
    let info = FileInfo { session: "uid-1", node: "node-1", boot: BOOT, incarnation: "i", sequence: 0 };
    let properties = schema::writer_properties(table, &info);
    let mut writer = ArrowWriter::try_new(Vec::new(), schema::of(table), Some(properties)).unwrap();
    writer.write(rows).unwrap();
    writer.into_inner().unwrap()
}

async fn put_table(
    store: &Arc<dyn ObjectStore>,
    prefix: &SessionPrefix,
    table: &'static catalogue::Table,
    rows: arrow_array::RecordBatch,
) -> ObjectEntry {
    let boot: Boot = BOOT.parse().unwrap();
    let content = file(table, &rows);
    let key = Key::segment(table.name, "node-1", &boot, 0).unwrap();
    let sha256 = hex(&content);
    let bytes = content.len() as u64;
    reader::create(store.as_ref(), &prefix.object(&key), content.into()).await.unwrap();
    ObjectEntry { key: key.relative(), rows: rows.num_rows() as u64, weight: 0, bytes, sha256 }
}

fn coverage_row() -> CoverageRow {
    CoverageRow {
        node: "node-1".into(),
        boot: BOOT.into(),
        incarnation: "i".into(),
        namespace: "shop".into(),
        pod: "web".into(),
        container: "app".into(),
        pod_uid: "u".into(),
        collector: "processes".into(),
        kind: CoverageKind::Traced,
        from_ns: 1,
        to_ns: 2,
        from_utc_us: 1,
        to_utc_us: 2,
        from_start: true,
        hooks: "tp_btf".into(),
        reason: String::new(),
    }
}

/// A session with one node that recorded nothing, as small as a dataset can be, and valid.
async fn write_session(store: &Arc<dyn ObjectStore>, prefix: &SessionPrefix) -> NodeManifest {
    let session = SessionFile {
        format_version: FORMAT_VERSION,
        namespace: "shop".into(),
        session: "checkout".into(),
        uid: "uid-1".into(),
        cluster_id: String::new(),
        version: "0".into(),
        start_time: String::new(),
        spec: serde_json::Value::Null,
        schemas: schema::versions(),
    };
    reader::create_json(store.as_ref(), prefix, &Key::Session, &session).await.unwrap();
    let coverage = vec![coverage_row()];
    let mut row = LedgerRow {
        node: "node-1".into(),
        boot: BOOT.into(),
        table: "processes".into(),
        ..Default::default()
    };
    row.emitted = Some(3);
    row.terms.add(Term::Filtered, 3);
    let ledger = vec![row];
    let incarnations = vec![Incarnation { incarnation: "i".into(), clean: true, ..Default::default() }];
    let mut objects = Vec::new();
    for (table, rows) in [
        (&bookkeeping::LEDGER, bookkeeping::ledger_batch(&ledger)),
        (&bookkeeping::COVERAGE, bookkeeping::coverage_batch(&coverage)),
        (&bookkeeping::SESSION_NODES, bookkeeping::session_nodes_batch("node-1", BOOT, &incarnations)),
    ] {
        objects.push(put_table(store, prefix, table, rows).await);
    }
    let node = NodeManifest {
        format_version: FORMAT_VERSION,
        node: "node-1".into(),
        boot: BOOT.into(),
        incarnations,
        objects,
        ledger,
        coverage,
    };
    let key = Key::node_manifest("node-1", &BOOT.parse().unwrap()).unwrap();
    reader::create_json(store.as_ref(), prefix, &key, &node).await.unwrap();
    node
}

async fn close(store: &Arc<dyn ObjectStore>, prefix: &SessionPrefix, expected: &[&str]) -> Verdict {
    let nodes = expected.iter().map(|node| ((*node).to_owned(), Some(String::new()))).collect();
    let time = "2026-11-23T00:00:00Z".to_owned();
    let closing = closing::close(store.as_ref(), prefix, &nodes, time, Effort::Ordinary).await.unwrap();
    assert!(closing.is_new);
    let key = Key::manifest(closing.manifest.number);
    reader::create_json(store.as_ref(), prefix, &key, &closing.manifest).await.unwrap();
    closing.manifest.verdict
}

async fn a_dataset_is_read_back_as_it_was_written(store: &Arc<dyn ObjectStore>) {
    let prefix = SessionPrefix::new("good", "shop", "checkout", "uid-1").unwrap();
    let node = write_session(store, &prefix).await;
    assert_eq!(close(store, &prefix, &["node-1"]).await, Verdict::Complete);
    let contents = reader::open(store, &prefix).await.unwrap();
    assert_eq!(contents.nodes.values().collect::<Vec<_>>(), [&node]);
    assert_eq!(dataset::check::verify(store.as_ref(), &contents).await.unwrap(), []);
    let ledger = reader::read_table(store.as_ref(), &contents, "ledger").await.unwrap();
    assert_eq!(ledger[0], bookkeeping::ledger_batch(&node.ledger));
    let shown = dataset::render::dataset(store.as_ref(), &contents, 5).await.unwrap();
    assert!(shown.contains("complete (1 nodes)") && shown.contains("processes"), "{shown}");
    // A node that never answered makes the next manifest, of the next number, incomplete.
    assert_eq!(close(store, &prefix, &["node-1", "node-2"]).await, Verdict::Incomplete);
    let contents = reader::open(store, &prefix).await.unwrap();
    assert_eq!(contents.manifest.unwrap().number, 2);
}

async fn a_damaged_dataset_is_found_out(store: &Arc<dyn ObjectStore>) {
    let prefix = SessionPrefix::new("damaged", "shop", "checkout", "uid-1").unwrap();
    let node = write_session(store, &prefix).await;
    assert_eq!(close(store, &prefix, &["node-1"]).await, Verdict::Complete);
    let path = |object: &ObjectEntry| prefix.object(&Key::parse(&object.key).unwrap());
    let [missing, flipped, longer] = [&node.objects[0], &node.objects[1], &node.objects[2]];
    store.delete(&path(missing)).await.unwrap();
    let mut content = store.get(&path(flipped)).await.unwrap().bytes().await.unwrap().to_vec();
    content[10] ^= 1;
    store.put(&path(flipped), content.into()).await.unwrap();
    store.put(&path(longer), PutPayload::from_static(b"another")).await.unwrap();
    let stray = Key::segment("processes", "node-9", &BOOT.parse().unwrap(), 0).unwrap();
    store.put(&prefix.object(&stray), PutPayload::from_static(b"x")).await.unwrap();

    let contents = reader::open(store, &prefix).await.unwrap();
    let findings = dataset::check::verify(store.as_ref(), &contents).await.unwrap();
    let missing = Finding::Missing { key: missing.key.clone() };
    let longer = Finding::Length { key: longer.key.clone(), listed: longer.bytes, stored: 7 };
    assert!(findings.contains(&missing) && findings.contains(&longer), "{findings:?}");
    assert!(findings.iter().any(
        |f| matches!(f, Finding::Content { key, reason } if *key == flipped.key && reason.contains("SHA-256"))
    ));
    assert!(findings.contains(&Finding::Unlisted { key: stray.relative() }));
    // The next manifest does not call complete what is not there.
    assert_eq!(close(store, &prefix, &["node-1"]).await, Verdict::Incomplete);
}

/// What stands twice, in the small tables and in the node manifest, with each field of the latter changed once.
#[tokio::test]
async fn a_node_manifest_that_says_otherwise_than_its_tables_is_found_out() {
    type Change = (&'static str, fn(&mut NodeManifest));
    let changes: [Change; 6] = [
        ("column to_ns of table coverage has \"2\", the node manifest \"9\"", |node| {
            node.coverage[0].to_ns = 9
        }),
        ("column reason of table coverage", |node| node.coverage[0].reason = "AgentLost".into()),
        ("column started_utc of table session_nodes", |node| node.incarnations[0].anchor_utc_us += 1_000),
        ("column clean of table session_nodes", |node| node.incarnations[0].clean = false),
        ("column incarnation of table ledger", |node| node.ledger[0].incarnation = "j".into()),
        ("table coverage has 1 rows, the node manifest 2", |node| {
            node.coverage.push(node.coverage[0].clone())
        }),
    ];
    for (said, change) in changes {
        let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
        let prefix = SessionPrefix::root("").unwrap();
        let mut node = write_session(&store, &prefix).await;
        change(&mut node);
        let key = Key::node_manifest("node-1", &BOOT.parse().unwrap()).unwrap();
        store.put(&prefix.object(&key), serde_json::to_vec(&node).unwrap().into()).await.unwrap();
        assert_eq!(close(&store, &prefix, &["node-1"]).await, Verdict::Complete, "{said}");
        let contents = reader::open(&store, &prefix).await.unwrap();
        let findings = dataset::check::verify(store.as_ref(), &contents).await.unwrap();
        let found: Vec<String> = findings.iter().map(Finding::to_string).collect();
        assert!(found.len() == 1 && found[0].contains(said) && findings[0].is_error(), "{said}: {found:?}");
    }
}

/// Puts another object in the place of one of the node's, with a manifest that says so, and verifies.
async fn verified_with(object: usize, change: impl FnOnce(&mut ObjectEntry, &mut Vec<u8>)) -> Vec<String> {
    let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let prefix = SessionPrefix::root("").unwrap();
    let mut node = write_session(&store, &prefix).await;
    let entry = &mut node.objects[object];
    let path = prefix.object(&Key::parse(&entry.key).unwrap());
    let mut content = store.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
    change(entry, &mut content);
    (entry.bytes, entry.sha256) = (content.len() as u64, hex(&content));
    store.put(&path, content.into()).await.unwrap();
    let key = Key::node_manifest("node-1", &BOOT.parse().unwrap()).unwrap();
    store.put(&prefix.object(&key), serde_json::to_vec(&node).unwrap().into()).await.unwrap();
    close(&store, &prefix, &["node-1"]).await;
    let contents = reader::open(&store, &prefix).await.unwrap();
    let findings = dataset::check::verify(store.as_ref(), &contents).await.unwrap();
    findings.iter().map(Finding::to_string).collect()
}

/// A file's footer, as the reader has it, and where it begins.
fn footer(content: &[u8]) -> (ParquetMetaData, usize) {
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&Bytes::copy_from_slice(content)).unwrap();
    let length = content.len() - 8;
    let of_footer = u32::from_le_bytes(content[length..length + 4].try_into().unwrap());
    (metadata, length - of_footer as usize)
}

/// The same pages under a footer that says so many rows.
fn say_rows(content: &mut Vec<u8>, rows: i64) {
    let (metadata, begin) = footer(content);
    let old = metadata.file_metadata();
    let file = FileMetaData::new(
        old.version(),
        rows,
        None,
        old.key_value_metadata().cloned(),
        old.schema_descr_ptr(),
        None,
    );
    let group = metadata.row_group(0).clone().into_builder().set_num_rows(rows).build().unwrap();
    content.truncate(begin);
    let mut footer = Vec::new();
    ParquetMetaDataWriter::new(&mut footer, &ParquetMetaData::new(file, vec![group])).finish().unwrap();
    content.extend(footer);
}

/// A file of some KiB may hold any number of rows. That a test sees what is decoded, there is nothing to decode, or too much of it.
#[tokio::test]
async fn no_more_rows_are_decoded_than_a_manifest_can_have() {
    let without_pages = |content: &mut Vec<u8>| {
        let (_, begin) = footer(content);
        content[4..begin].fill(0);
    };
    // Entry and footer agree on more rows than the node manifest has.
    let findings = verified_with(1, |entry, content| {
        entry.rows = 1_000_000;
        say_rows(content, 1_000_000);
        without_pages(content);
    })
    .await;
    let said = "table coverage has 1000000 rows, the node manifest 1";
    assert!(findings.len() == 1 && findings[0].contains(said), "{findings:?}");
    // One text is as long as many rows.
    let long = CoverageRow { pod: "w".repeat(2 << 20), ..coverage_row() };
    let long = file(&bookkeeping::COVERAGE, &bookkeeping::coverage_batch(&[long]));
    let findings = verified_with(1, |_, content| *content = long).await;
    let said = "table coverage has more text than the node manifest";
    assert!(findings.len() == 1 && findings[0].contains(said), "{findings:?}");
    // The footer has more than the entry. Of so many the reader would not come to an end.
    let findings = verified_with(1, |_, content| say_rows(content, i64::MAX)).await;
    let said = format!("it has {} rows, the manifest says 1", i64::MAX);
    assert!(findings.len() == 1 && findings[0].contains(&said), "{findings:?}");
    // The pages have more than entry and footer.
    let rows = bookkeeping::coverage_batch(&[coverage_row(), coverage_row(), coverage_row()]);
    let mut three = file(&bookkeeping::COVERAGE, &rows);
    let findings = verified_with(1, |_, content| {
        say_rows(&mut three, 1);
        *content = three;
    })
    .await;
    assert!(
        findings.len() == 1 && findings[0].contains("its pages have other than its 1 rows"),
        "{findings:?}"
    );
}

#[tokio::test]
async fn no_more_of_an_object_is_read_than_its_manifest_promises() {
    let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let prefix = SessionPrefix::root("").unwrap();
    let node = write_session(&store, &prefix).await;
    close(&store, &prefix, &["node-1"]).await;
    let path = prefix.object(&Key::parse(&node.objects[0].key).unwrap());
    let content = store.get(&path).await.unwrap().bytes().await.unwrap();
    store.put(&path, [content.as_ref(), b"and more without an end"].concat().into()).await.unwrap();
    let contents = reader::open(&store, &prefix).await.unwrap();
    let read = reader::read_table(store.as_ref(), &contents, "ledger").await.unwrap_err().to_string();
    assert!(read.contains(&format!("the limit is {}", node.objects[0].bytes)), "{read}");
}

#[tokio::test]
async fn a_node_manifest_that_no_manifest_names_is_no_part_of_the_dataset_and_is_told() {
    let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let prefix = SessionPrefix::root("").unwrap();
    write_session(&store, &prefix).await;
    close(&store, &prefix, &["node-2"]).await;
    let contents = reader::open(&store, &prefix).await.unwrap();
    let findings = dataset::check::verify(store.as_ref(), &contents).await.unwrap();
    let key = Key::node_manifest("node-1", &BOOT.parse().unwrap()).unwrap();
    assert_eq!(findings, [Finding::Unlisted { key: key.relative() }]);
}

async fn a_folder_without_a_session_is_no_dataset(store: &Arc<dyn ObjectStore>) {
    let prefix = SessionPrefix::new("empty", "shop", "checkout", "uid-1").unwrap();
    let opened = reader::open(store, &prefix).await;
    assert!(matches!(opened, Err(ReadError::NotADataset { .. })), "{opened:?}");
}

#[tokio::test]
async fn memory() {
    conformance(Arc::new(object_store::memory::InMemory::new())).await;
}

#[tokio::test]
async fn local_folder() {
    let folder = tempfile::tempdir().unwrap();
    conformance(Arc::new(object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap()))
        .await;
}

#[tokio::test]
async fn s3_in_process() {
    let server = stores::S3InProcess::start().await;
    conformance(server.store()).await;
}

#[tokio::test]
async fn s3_server() {
    let server = stores::Process::seaweedfs();
    conformance(server.store().await).await;
}

#[tokio::test]
async fn s3_server_of_another_make() {
    let server = stores::Process::versitygw();
    conformance(server.store().await).await;
}
