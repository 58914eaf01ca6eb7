// SPDX-License-Identifier: Apache-2.0

//! A session whose segments are merged has the same rows, and at no moment less: whatever step it ends at, whoever else writes there,
//! and whatever the store does.

extern crate tracelake_dataset as dataset;

mod faulty;
mod older;
#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "../../../query/tests/session/mod.rs"]
mod session;
#[allow(dead_code, reason = "of the servers two are used")]
#[path = "../stores/mod.rs"]
mod stores;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use dataset::closing::{self, Effort};
use dataset::compact::{self, CompactError, Done, Options};
use dataset::key::{Key, SessionPrefix};
use dataset::manifest::{Manifest, Verdict};
use dataset::reader::{self, Contents, Finding};
use dataset::render;
use dataset::schema::ROW_GROUP_ROWS;
use faulty::{Fault, Faulty};
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use session::{Session, cells};

const SIZE: u64 = 64 << 20;
const ALL: Options = Options { size: SIZE, keep_old: false };

fn store(folder: &Path) -> Arc<dyn ObjectStore> {
    Arc::new(LocalFileSystem::new_with_prefix(folder).unwrap())
}

async fn load(store: &Arc<dyn ObjectStore>) -> Contents {
    reader::load(store.as_ref(), &SessionPrefix::root("").unwrap()).await.unwrap()
}

async fn compact(store: &Arc<dyn ObjectStore>, options: Options) -> Result<Done, CompactError> {
    let contents = load(store).await;
    compact::run(store.as_ref(), &contents, options, "2026-11-29T12:00:00Z".to_owned(), &mut |_| {}).await
}

/// Two nodes, four segments of a table each, with rows out of order, words of their own and rows that stand for several events.
async fn write(folder: &Path) {
    let mut session = Session::new(folder);
    for round in 0..4 {
        for (node, offset) in [("node-a", 0), ("node-b", 50)] {
            let at = |row: i64| round * 100 + offset + (row * 7) % 5;
            let rows = (0..5).map(|row| {
                format!(
                    "{} | {} | shop | web-{round} | c{row} | 10.0.{round}.{row} | {row}",
                    at(row),
                    row + 1
                )
            });
            let head = "ts_ns | weight | namespace | pod | comm | raddr | bytes_acked".to_owned();
            let text = [vec![head], rows.collect()].concat().join("\n");
            session.segment(node, "tcp_connections", &cells(&text));
            let exec = format!("ts_ns | kind | pid | exe\n{} | exec | {round} | /bin/{round}", at(0));
            session.segment(node, "processes", &cells(&exec));
            if round == 0 {
                let hist =
                    format!("ts_ns | pod | comm | run_sum | run_hist\n{} | web | x | 24 | 0 3 1", at(0));
                session.segment(node, "cpu_sched", &cells(&hist));
            }
        }
    }
    session.finish(&[]).await;
}

/// Every row of every table, as text, in an order of their own.
async fn rows(store: &Arc<dyn ObjectStore>) -> BTreeMap<String, Vec<String>> {
    let contents = load(store).await;
    let mut all = BTreeMap::new();
    for table in contents.tables().into_keys() {
        let batches = reader::read_table(store.as_ref(), &contents, &table).await.unwrap();
        let columns = batches[0].num_columns();
        let mut rows: Vec<String> = Vec::new();
        for batch in &batches {
            rows.extend((0..batch.num_rows()).map(|row| {
                let cells = (0..columns).map(|column| render::cell(batch.column(column), row));
                cells.collect::<Vec<_>>().join("|")
            }));
        }
        rows.sort();
        all.insert(table, rows);
    }
    all
}

async fn findings(store: &Arc<dyn ObjectStore>) -> Vec<Finding> {
    dataset::check::verify(store.as_ref(), &load(store).await).await.unwrap()
}

async fn errors(store: &Arc<dyn ObjectStore>) -> Vec<Finding> {
    findings(store).await.into_iter().filter(Finding::is_error).collect()
}

/// What the operator would write, if a node of the session came back now.
async fn closed_again(store: &Arc<dyn ObjectStore>) -> (Manifest, u64) {
    let contents = load(store).await;
    let nodes = contents.nodes.values().map(|node| (node.node.clone(), Some(String::new()))).collect();
    let prefix = SessionPrefix::root("").unwrap();
    let closing = closing::close(store.as_ref(), &prefix, &nodes, String::new(), Effort::Ordinary);
    let closing = closing.await.unwrap();
    (closing.manifest, closing.found)
}

/// As compared before and after: all that a manifest says but for objects and their bytes.
fn account(manifest: &Manifest) -> (u64, u64, dataset::ledger::Terms, Verdict) {
    let totals = &manifest.totals;
    (totals.rows, totals.emitted, totals.terms, manifest.verdict)
}

#[tokio::test]
async fn rows_account_and_settings_are_those_of_the_segments_and_nothing_is_left_over() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path()).await;
    let store = store(folder.path());
    let (before, there) = (load(&store).await, rows(&store).await);
    assert_eq!(there["tcp_connections"].len(), 40);
    let done = compact(&store, ALL).await.unwrap();
    // Of two nodes one file of each of two tables; the others have one segment each.
    assert_eq!((done.merged.0, done.into.0, done.manifest, done.removed), (16, 4, Some(2), 18));
    assert_eq!(rows(&store).await, there);
    assert_eq!(findings(&store).await, []);

    let after = load(&store).await;
    assert_eq!(account(after.manifest.as_ref().unwrap()), account(before.manifest.as_ref().unwrap()));
    for ((_, old), (key, new)) in before.nodes.iter().zip(&after.nodes) {
        assert_eq!(key.generation(), 2);
        assert_eq!(
            (&old.ledger, &old.coverage, &old.incarnations),
            (&new.ledger, &new.coverage, &new.incarnations)
        );
    }
    for (table, objects) in after.tables().iter().filter(|(_, objects)| objects[0].key.contains("_2_")) {
        for (new, old) in objects.iter().zip(&before.tables()[table]) {
            let read = |key: &str| {
                let content = std::fs::read(folder.path().join(key));
                content.ok().map(|content| {
                    ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(content)).unwrap()
                })
            };
            assert!(read(&old.key).is_none(), "{} is there", old.key);
            let file = read(&new.key).unwrap();
            let metadata = file.metadata();
            let pairs = metadata.file_metadata().key_value_metadata().unwrap();
            let mut names: Vec<&str> = pairs.iter().map(|pair| pair.key.as_str()).collect();
            names.sort_unstable();
            let expected = ["boot", "incarnation", "node", "schema_version", "sequence", "session", "table"];
            let expected: Vec<String> = expected.iter().map(|name| format!("tracelake.{name}")).collect();
            assert_eq!(names, [&["ARROW:schema".to_owned()], &expected[..]].concat());
            assert_eq!(file.schema().fields(), dataset::schema(table).unwrap().fields(), "{table}");
            let group = metadata.row_group(0);
            assert_eq!(metadata.num_row_groups(), 1);
            assert_eq!(group.sorting_columns().map(Vec::len), Some(1));
            let words =
                group.columns().iter().find(|column| column.column_path().string() == "node").unwrap();
            assert!(words.dictionary_page_offset().is_some() && words.statistics().is_some());
            let rows = file.build().unwrap().next().unwrap().unwrap();
            let times = rows.column_by_name("ts_ns").unwrap().as_primitive::<Int64Type>().clone();
            assert!(times.values().is_sorted(), "{times:?}");
        }
    }

    let again = compact(&store, ALL).await.unwrap();
    assert_eq!(again, Done::default(), "there is nothing to do");
    // Larger ones stay as they are.
    let small = Options { size: 1, ..ALL };
    assert_eq!(compact(&store, small).await.unwrap(), Done::default());
}

#[tokio::test]
async fn whatever_step_it_dies_at_the_dataset_is_whole_and_the_next_run_ends_it() {
    for at in 0.. {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).await;
        let store = store(folder.path());
        let (there, manifest) = (rows(&store).await, load(&store).await.manifest.unwrap());
        let faulty = Faulty::new(store.clone(), Fault::Dies, at);
        let dying: Arc<dyn ObjectStore> = Arc::new(faulty.clone());
        let died = compact(&dying, ALL).await;
        if !faulty.happened() {
            // Four files, two node manifests, a manifest; 16 segments and two node manifests that go.
            assert_eq!((died.is_ok(), at), (true, 25));
            break;
        }
        assert!(died.is_err(), "at {at}");
        assert_eq!(errors(&store).await, [], "at {at}");
        assert_eq!(rows(&store).await, there, "at {at}");
        let (again, found) = closed_again(&store).await;
        assert_eq!((account(&again), found), (account(&manifest), 0), "at {at}");

        compact(&store, ALL).await.unwrap_or_else(|error| panic!("at {at}: {error}"));
        assert_eq!(findings(&store).await, [], "at {at}");
        assert_eq!(rows(&store).await, there, "at {at}");
        let after = load(&store).await;
        assert_eq!(after.tables()["tcp_connections"].len(), 2, "at {at}");
        assert_eq!(after.manifest.unwrap().number, 2, "at {at}");
    }
}

#[tokio::test]
async fn a_damaged_segment_ends_it_and_nothing_is_lost() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 4] = [
        ("SHA-256", |path| {
            let mut content = std::fs::read(path).unwrap();
            content[40] ^= 1;
            std::fs::write(path, content).unwrap();
        }),
        ("bytes in the store", |path| {
            let content = std::fs::read(path).unwrap();
            std::fs::write(path, &content[..content.len() - 1]).unwrap();
        }),
        ("not in the store", |path| std::fs::remove_file(path).unwrap()),
        ("bytes in the store", |path| std::fs::write(path, "").unwrap()),
    ];
    for (said, damage) in damages {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).await;
        let store = store(folder.path());
        let object = load(&store).await.tables()["tcp_connections"][6].clone();
        damage(&folder.path().join(&object.key));
        let (before, there) = (errors(&store).await, load(&store).await);
        let error = compact(&store, ALL).await.unwrap_err().to_string();
        assert!(error.contains(&object.key) && error.contains(said), "{error}");
        assert_eq!(errors(&store).await, before, "{error}");
        let after = load(&store).await;
        assert_eq!((after.manifest, after.nodes), (there.manifest, there.nodes), "{error}");
        assert!(there.objects.keys().all(|key| after.objects.contains_key(key)), "{error}");
    }
}

#[tokio::test]
async fn rows_that_are_not_as_many_as_promised_end_it() {
    for (rows_more, weight_more) in [(1, 0), (0, 1)] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).await;
        let store = store(folder.path());
        // A node that lies about a segment, and about its ledger as well.
        let path = load(&store).await.nodes.keys().next().unwrap().relative();
        let path = folder.path().join(path);
        let mut node: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let add = |value: &mut serde_json::Value, more: u64| *value = (value.as_u64().unwrap() + more).into();
        add(&mut node["objects"][0]["rows"], rows_more);
        add(&mut node["objects"][0]["weight"], weight_more);
        let mut ledger = node["ledger"].as_array_mut().unwrap().iter_mut();
        let row = ledger.find(|row| row["table"] == "tcp_connections").unwrap();
        add(&mut row["rows"], rows_more);
        add(&mut row["emitted"], weight_more);
        add(&mut row["terms"]["exported"], weight_more);
        std::fs::write(&path, serde_json::to_vec(&node).unwrap()).unwrap();
        let manifest = closed_again(&store).await.0;
        reader::create_json(store.as_ref(), &SessionPrefix::root("").unwrap(), &Key::manifest(2), &manifest)
            .await
            .unwrap();
        let error = compact(&store, ALL).await.unwrap_err();
        assert!(matches!(error, CompactError::Source { .. }), "{error}");
        assert_eq!(load(&store).await.manifest.unwrap().number, 2);
    }
}

#[tokio::test]
async fn what_a_store_gives_back_as_something_else_is_not_named_and_the_old_stays() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path()).await;
    let store = store(folder.path());
    let there = rows(&store).await;
    for at in 0..4 {
        let faulty: Arc<dyn ObjectStore> = Arc::new(Faulty::new(store.clone(), Fault::Corrupts, at));
        let error = compact(&faulty, ALL).await.unwrap_err();
        assert!(matches!(error, CompactError::ReadBack { .. }), "{error}");
        assert_eq!(load(&store).await.manifest.unwrap().number, 1);
        assert_eq!((errors(&store).await, rows(&store).await), (vec![], there.clone()));
        // It lies there, and is not overwritten.
        let error = compact(&store, ALL).await.unwrap_err();
        assert!(matches!(error, CompactError::Unfinished { .. }), "{error}");
        assert_eq!(compact::forget_unfinished(store.as_ref(), &load(&store).await).await.unwrap(), at + 1);
        assert_eq!(findings(&store).await, []);
    }
    compact(&store, ALL).await.unwrap();
    assert_eq!((findings(&store).await, rows(&store).await), (vec![], there));
}

#[tokio::test]
async fn a_run_of_another_size_that_did_not_end_is_told_and_forgotten_only_if_one_asks() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path()).await;
    let store = store(folder.path());
    let there = rows(&store).await;
    // The second write is of another file, and the fifth of a node manifest.
    for at in [2, 5] {
        let faulty: Arc<dyn ObjectStore> = Arc::new(Faulty::new(store.clone(), Fault::Dies, at));
        compact(&faulty, ALL).await.unwrap_err();
        // As if that one had been of another size.
        let left = load(&store).await;
        let left = left.objects.keys().find(|key| key.generation() == 2).unwrap().clone();
        let path = folder.path().join(left.relative());
        std::fs::write(&path, "of another size").unwrap();
        let error = compact(&store, ALL).await.unwrap_err();
        assert!(matches!(error, CompactError::Unfinished { .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"of another size");
        compact::forget_unfinished(store.as_ref(), &load(&store).await).await.unwrap();
        assert_eq!((findings(&store).await, rows(&store).await), (vec![], there.clone()));
    }
    compact(&store, ALL).await.unwrap();
    assert_eq!((findings(&store).await, rows(&store).await), (vec![], there));
}

#[tokio::test]
async fn who_is_overtaken_by_another_manifest_removes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path()).await;
    let store = store(folder.path());
    let before = load(&store).await;
    let faulty: Arc<dyn ObjectStore> = Arc::new(Faulty::new(store.clone(), Fault::Overtaken, 6));
    let error = compact(&faulty, ALL).await.unwrap_err();
    assert!(matches!(error, CompactError::Overtaken { number: 2 }), "{error}");
    assert!(before.objects.keys().all(|key| folder.path().join(key.relative()).exists()));

    // What the operator wrote is what counts; the next run merges that, and sweeps what was of no use.
    let mut manifest = before.manifest.unwrap();
    manifest.number = 2;
    std::fs::write(folder.path().join("_tracelake/manifest-2.json"), serde_json::to_vec(&manifest).unwrap())
        .unwrap();
    assert_eq!(errors(&store).await, []);
    let done = compact(&store, ALL).await.unwrap();
    assert_eq!((done.manifest, done.removed), (Some(3), 18 + 6));
    assert_eq!(findings(&store).await, []);
}

#[tokio::test]
async fn old_objects_that_are_kept_or_cannot_be_removed_go_with_a_later_run() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path()).await;
    let store = store(folder.path());
    let there = rows(&store).await;
    let keeps: Arc<dyn ObjectStore> = Arc::new(Faulty::new(store.clone(), Fault::KeepsAll, 0));
    let error = compact(&keeps, ALL).await.unwrap_err();
    assert!(matches!(error, CompactError::Remains { left: 16, .. }), "{error}");
    assert_eq!((errors(&store).await, rows(&store).await), (vec![], there.clone()));
    let kept = compact(&store, Options { keep_old: true, ..ALL }).await.unwrap();
    assert_eq!(kept, Done::default());
    assert_eq!(findings(&store).await.len(), 18, "each of them is a note");
    assert_eq!(compact(&store, ALL).await.unwrap(), Done { removed: 18, ..Done::default() });
    assert_eq!((findings(&store).await, rows(&store).await), (vec![], there));
}

#[tokio::test]
async fn what_is_not_ours_and_what_came_late_stays() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path()).await;
    let store = store(folder.path());
    let any = load(&store).await.tables()["processes"][0].key.clone();
    let content = std::fs::read(folder.path().join(&any)).unwrap();
    let stray = any.replace("_000001", "_900000");
    let late = stray.replace("node-a", "node-late");
    for key in [&stray, &late] {
        std::fs::write(folder.path().join(key), &content).unwrap();
    }
    compact(&store, ALL).await.unwrap();
    let mut left: Vec<String> = findings(&store).await.iter().map(ToString::to_string).collect();
    left.sort();
    assert_eq!(left, [&stray, &late].map(|key| format!("{key} is in the store but in no manifest")));
}

#[tokio::test]
async fn large_segments_stay_until_a_larger_size_is_asked_for_and_what_was_merged_is_merged_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = Session::new(folder.path());
    for part in 0..7_i64 {
        // The one in the middle is large.
        let rows = if part == 3 { 2_000 } else { 1 };
        let rows =
            (0..rows).map(|row| vec![(part * 10_000 + row).to_string(), (row * row * 7_919).to_string()]);
        let head = vec!["ts_ns".to_owned(), "value".to_owned()];
        session.segment("a", "net_counters", &[vec![head], rows.collect()].concat());
    }
    session.finish(&[]).await;
    let store = store(folder.path());
    let there = rows(&store).await;
    let files = async || -> Vec<(u64, u64)> {
        let objects = load(&store).await.tables()["net_counters"].clone();
        objects.iter().map(|object| (Key::parse(&object.key).unwrap().generation(), object.rows)).collect()
    };
    let large = load(&store).await.tables()["net_counters"][3].bytes;
    let done = compact(&store, Options { size: 2 * large, ..ALL }).await.unwrap();
    assert_eq!((done.merged.0, done.into.0), (6, 2));
    assert_eq!(files().await, [(2, 3), (0, 2_000), (2, 3)]);
    let done = compact(&store, ALL).await.unwrap();
    assert_eq!((done.merged.0, done.into.0, done.manifest), (3, 1, Some(3)));
    assert_eq!(files().await, [(3, 2_006)]);
    assert_eq!((findings(&store).await, rows(&store).await), (vec![], there));
}

/// The same over stores that are no folder.
async fn is_merged_in(store: Arc<dyn ObjectStore>) {
    let store: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(store, "shop/checkout/uid"));
    let folder = tempfile::tempdir().unwrap();
    write(folder.path()).await;
    let local = self::store(folder.path());
    let objects = load(&local).await.objects;
    for key in objects.keys() {
        let path = SessionPrefix::root("").unwrap().object(key);
        let content = local.get(&path).await.unwrap().bytes().await.unwrap();
        reader::create(store.as_ref(), &path, content).await.unwrap();
    }
    let there = rows(&store).await;
    // One that dies after its manifest, and one that ends what that began.
    let dying: Arc<dyn ObjectStore> = Arc::new(Faulty::new(store.clone(), Fault::Dies, 9));
    compact(&dying, ALL).await.unwrap_err();
    assert_eq!((errors(&store).await, rows(&store).await), (vec![], there.clone()));
    let done = compact(&store, ALL).await.unwrap();
    // Of the first removals, which are made side by side, some may have been done.
    assert!(done.manifest.is_none() && (16..=18).contains(&done.removed), "{done:?}");
    assert_eq!((findings(&store).await, rows(&store).await), (vec![], there));
    assert_eq!(compact(&store, ALL).await.unwrap(), Done::default());
}

#[tokio::test]
async fn is_merged_in_seaweedfs() {
    let server = stores::Process::seaweedfs();
    is_merged_in(server.store().await).await;
}

#[tokio::test]
async fn is_merged_in_a_server_of_another_make() {
    let server = stores::Process::versitygw();
    is_merged_in(server.store().await).await;
}

#[tokio::test]
async fn a_row_group_has_the_rows_that_the_agents_have() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = Session::new(folder.path());
    for part in 0..3 {
        let rows = (0..46_000).map(|row| vec![((row * 7_919) % 46_000 + part * 40_000).to_string()]);
        session.segment("a", "net_counters", &[vec![vec!["ts_ns".to_owned()]], rows.collect()].concat());
    }
    session.finish(&[]).await;
    let store = store(folder.path());
    compact(&store, ALL).await.unwrap();
    let object = load(&store).await.tables()["net_counters"][0].clone();
    assert_eq!(object.rows, 138_000);
    let content = std::fs::read(folder.path().join(&object.key)).unwrap();
    let file = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(content)).unwrap();
    let groups: Vec<usize> =
        file.metadata().row_groups().iter().map(|group| group.num_rows() as usize).collect();
    assert_eq!(groups, [ROW_GROUP_ROWS, 138_000 - ROW_GROUP_ROWS]);
    let batches = file.with_batch_size(ROW_GROUP_ROWS).build().unwrap();
    for batch in batches {
        let batch = batch.unwrap();
        assert!(batch.column_by_name("ts_ns").unwrap().as_primitive::<Int64Type>().values().is_sorted());
    }
    assert_eq!(findings(&store).await, []);
}

#[tokio::test]
async fn a_session_that_is_not_over_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path()).await;
    let store = store(folder.path());
    store.delete(&"_tracelake/manifest-1.json".into()).await.unwrap();
    let error = compact(&store, ALL).await.unwrap_err();
    assert!(matches!(error, CompactError::NotOver), "{error}");
    assert!(compact::plan(&load(&store).await, SIZE).is_err());
}
