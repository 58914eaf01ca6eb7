// SPDX-License-Identifier: Apache-2.0

//! Writes the known sessions into a store as nodes do: segment thread, spool, uploads, node manifests, manifest.
//!
//! Beside each lies what a reader must not take for data: an older manifest that knows one node only, a segment that nobody
//! lists, and a node manifest that came after the last manifest, with a segment of its own.

use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use arrow_array::builder::{Int64Builder, ListBuilder, StringDictionaryBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow_schema::{DataType, Field};
use dataset::closing::{self, Effort};
use dataset::key::{Key, SessionPrefix};
use dataset::manifest::{FORMAT_VERSION, NodeManifest, SessionFile, Verdict};
use dataset::reader::{self, Contents};
use dataset::schema;
use dataset::schema::{META, SCHEMA_VERSION};
use node_agent::pipeline::upload::Destination;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::file::properties::WriterProperties;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::known::{self, NODES, Row};
use crate::support::{BOOT, World};

/// What connections have since version 2 of the schema.
const ADDED: [&str; 2] = ["busy_ns", "rwnd_limited_ns"];
/// Manifests before the last: a tenth one sorts before them as text.
const EARLIER: u64 = 9;

/// Of this run: a store may have those of others.
pub(crate) static PREFIX: LazyLock<String> = LazyLock::new(|| {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    format!("examples-{}", since.as_secs())
});

/// The folder of a session.
pub(crate) fn folder(session: i64) -> SessionPrefix {
    SessionPrefix::new(&PREFIX, "shop", &format!("nightly-{session}"), &format!("uid-{session}")).unwrap()
}

/// Writes one session and returns what a reader of it finds.
pub(crate) async fn session(store: &Arc<dyn ObjectStore>, session: i64) -> Contents {
    let prefix = folder(session);
    let uid = format!("uid-{session}");
    let file = SessionFile {
        format_version: FORMAT_VERSION,
        namespace: "shop".to_owned(),
        session: format!("nightly-{session}"),
        uid: uid.clone(),
        cluster_id: String::new(),
        version: "0".to_owned(),
        start_time: "2026-11-29T10:00:00Z".to_owned(),
        spec: Value::Null,
        schemas: schema::versions(),
    };
    reader::create_json(store.as_ref(), &prefix, &Key::Session, &file).await.unwrap();
    for (index, node) in NODES.into_iter().enumerate() {
        let spool = tempfile::tempdir().unwrap();
        let destination =
            Destination::Store { store: store.clone(), prefix: prefix.clone(), node: node.into() };
        let mut world = World::start(spool.path(), u64::MAX, destination);
        world.node.name = node.into();
        let mut recorded = world.record(&uid);
        for batches in known::batches(session, index) {
            for (table, rows) in batches {
                // Rows that are older than a file may become are sealed at once: a file of each batch.
                let weight = rows.iter().map(|row| row["weight"].as_u64().unwrap()).sum();
                world.engine.rows(&uid, table, batch(table, &rows), weight, 0);
            }
            world.until(&mut recorded, |session| session.bytes_pending() == 0).await;
        }
        world.finish(&mut recorded).await;
        if index == 0 {
            age(store, &prefix).await;
            close(store, &prefix, Some(EARLIER)).await;
        }
    }
    let contents = close(store, &prefix, None).await;
    assert_eq!(contents.manifest.as_ref().unwrap().number, EARLIER + 1);
    assert_eq!(contents.manifest.as_ref().unwrap().verdict, Verdict::Complete);
    assert_eq!(dataset::check::verify(store.as_ref(), &contents).await.unwrap(), []);
    leave_what_no_manifest_lists(store, &contents).await;
    contents
}

/// Makes the first file of connections one of an agent that did not know [`ADDED`] yet: it was upgraded in mid-session.
async fn age(store: &Arc<dyn ObjectStore>, prefix: &SessionPrefix) {
    let contents = reader::load(store.as_ref(), prefix).await.unwrap();
    let (of_node, mut node) = contents.nodes.into_iter().next().unwrap();
    let older = node.objects.iter_mut().find(|object| object.key.starts_with("tcp_connections/")).unwrap();
    let path = prefix.object(&Key::parse(&older.key).unwrap());
    let content = store.get(&path).await.unwrap().bytes().await.unwrap();
    let file = ParquetRecordBatchReaderBuilder::try_new(content).unwrap();
    let mut said = file.metadata().file_metadata().key_value_metadata().unwrap().clone();
    let version = said.iter_mut().find(|pair| pair.key == format!("{META}schema_version")).unwrap();
    version.value = Some((SCHEMA_VERSION - 1).to_string());
    let names = file.schema().fields().iter().map(|field| field.name().as_str());
    let kept: Vec<&str> = names.filter(|name| !ADDED.contains(name)).collect();
    assert_eq!(kept.len() + ADDED.len(), file.schema().fields().len());
    let mask = ProjectionMask::columns(file.parquet_schema(), kept);
    let rows: Vec<RecordBatch> =
        file.with_projection(mask).build().unwrap().collect::<Result<_, _>>().unwrap();
    let properties = WriterProperties::builder().set_key_value_metadata(Some(said)).build();
    let mut content = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut content, rows[0].schema(), Some(properties)).unwrap();
    rows.iter().for_each(|rows| writer.write(rows).unwrap());
    writer.close().unwrap();
    older.bytes = content.len() as u64;
    older.sha256 = hex::encode(Sha256::digest(&content));
    store.put(&path, content.into()).await.unwrap();
    let node = serde_json::to_vec(&node).unwrap();
    store.put(&prefix.object(&of_node), node.into()).await.unwrap();
}

/// Writes the session's next manifest, or that of a number.
async fn close(store: &Arc<dyn ObjectStore>, prefix: &SessionPrefix, number: Option<u64>) -> Contents {
    let contents = reader::load(store.as_ref(), prefix).await.unwrap();
    let nodes = contents.nodes.values().map(|node| (node.node.clone(), Some(String::new()))).collect();
    let time = "2026-11-29T11:00:00Z".to_owned();
    let closing = closing::close(store.as_ref(), prefix, &nodes, time, Effort::Ordinary);
    let mut manifest = closing.await.unwrap().manifest;
    manifest.number = number.unwrap_or(manifest.number);
    let key = Key::manifest(manifest.number);
    reader::create_json(store.as_ref(), prefix, &key, &manifest).await.unwrap();
    reader::load(store.as_ref(), prefix).await.unwrap()
}

async fn leave_what_no_manifest_lists(store: &Arc<dyn ObjectStore>, contents: &Contents) {
    let prefix = &contents.prefix;
    let boot = BOOT.parse().unwrap();
    for (table, objects) in contents.tables() {
        let copied = prefix.object(&Key::parse(&objects[0].key).unwrap());
        let content = store.get(&copied).await.unwrap().bytes().await.unwrap();
        let [unlisted, late] =
            ["node-a", "node-late"].map(|node| Key::segment(&table, node, &boot, 900_000).unwrap());
        for key in [&unlisted, &late] {
            reader::create(store.as_ref(), &prefix.object(key), content.clone()).await.unwrap();
        }
        if table == "processes" {
            let mut object = objects[0].clone();
            object.key = late.relative();
            let late = NodeManifest {
                format_version: FORMAT_VERSION,
                node: "node-late".to_owned(),
                boot: BOOT.to_owned(),
                incarnations: Vec::new(),
                objects: vec![object],
                ledger: Vec::new(),
                coverage: Vec::new(),
            };
            let key = Key::node_manifest("node-late", &boot).unwrap();
            reader::create_json(store.as_ref(), prefix, &key, &late).await.unwrap();
        }
    }
}

/// Rows as a table's columns.
fn batch(table: &str, rows: &[Row]) -> RecordBatch {
    let schema = schema(table).unwrap();
    for name in rows.iter().flat_map(Row::keys) {
        assert!(schema.field_with_name(name).is_ok(), "{table} has no column {name}");
    }
    let columns = schema.fields().iter().map(|field| array(field, rows)).collect();
    RecordBatch::try_new(schema, columns).unwrap()
}

fn array(field: &Field, rows: &[Row]) -> ArrayRef {
    let values = || rows.iter().map(|row| row.get(field.name()).unwrap_or(&Value::Null));
    let ints = || values().map(|value| value.as_i64().or((!field.is_nullable()).then_some(0)));
    let texts = || values().map(|value| value.as_str().or((!field.is_nullable()).then_some("")));
    match field.data_type() {
        DataType::Int64 => Arc::new(ints().collect::<Int64Array>()),
        DataType::Int32 => Arc::new(ints().map(|value| value.map(|n| n as i32)).collect::<Int32Array>()),
        DataType::Float64 => Arc::new(values().map(Value::as_f64).collect::<Float64Array>()),
        DataType::Boolean => Arc::new(values().map(Value::as_bool).collect::<BooleanArray>()),
        DataType::Utf8 => Arc::new(texts().collect::<StringArray>()),
        DataType::Timestamp(..) => {
            Arc::new(ints().collect::<TimestampMicrosecondArray>().with_timezone(schema::UTC))
        }
        DataType::Dictionary(..) => {
            let mut words = StringDictionaryBuilder::<Int32Type>::new();
            texts().for_each(|word| words.append_option(word));
            Arc::new(words.finish())
        }
        DataType::List(_) => {
            let mut lists = ListBuilder::new(Int64Builder::new()).with_field(schema::histogram_slot());
            for value in values() {
                lists.append_option(value.as_array().map(|list| list.iter().map(Value::as_i64)));
            }
            Arc::new(lists.finish())
        }
        other => panic!("column {} is {other}", field.name()),
    }
}
