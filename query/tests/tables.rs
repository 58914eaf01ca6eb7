// SPDX-License-Identifier: Apache-2.0

//! Tables of sessions as SQL sees them: which rows, which columns, and how much of the files is read for an answer.

extern crate tracelake_query as query;

mod session;
#[allow(dead_code, reason = "of the servers one is used")]
#[path = "../../dataset/tests/stores/mod.rs"]
mod stores;

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::SessionContext;
use dataset::key::SessionPrefix;
use dataset::reader::{self, Contents};
use dataset::schema::ROW_GROUP_ROWS;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::ObjectStoreExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use query::{Limits, QueryError, datafusion};
use session::{Session, cells};
use stores::S3InProcess;

async fn contents(folder: &Path) -> (Arc<dyn ObjectStore>, Contents) {
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(folder).unwrap());
    let contents = reader::load(store.as_ref(), &SessionPrefix::root("").unwrap()).await.unwrap();
    (store, contents)
}

async fn open(folder: &Path) -> SessionContext {
    let (store, contents) = contents(folder).await;
    query::open(store, &contents, &Limits::default()).await.unwrap()
}

async fn ask(context: &SessionContext, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
    let statement = query::statements(sql)?.remove(0);
    Ok(query::plan(context, statement).await?.collect().await?)
}

async fn answer(context: &SessionContext, sql: &str) -> String {
    let rows = ask(context, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    pretty_format_batches(&rows).unwrap().to_string()
}

const ROWS: &str = "
    ts_ns | weight | namespace | pod | raddr    | rport | direction | bytes_acked | handshake_ns
    1000  | 1      | shop      | web | 10.1.2.3 | 6379  | active    | 100         | 250000
    3000  | 10     | shop      | web | ::1      | 6379  | active    | 7           |
";

#[tokio::test]
async fn the_files_of_all_nodes_are_one_table_and_what_no_manifest_lists_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut written = Session::new(folder.path());
    for node in ["a", "b"] {
        written.segment(node, "tcp_connections", &cells(ROWS));
        written.segment(node, "tcp_connections", &cells(ROWS));
    }
    written.finish(&[]).await;
    // An upload that came too late: in the folder, in no manifest.
    let listed = folder.path().join("tcp_connections/a_0123456789abcdef0123456789abcdef_000000.parquet");
    let late = folder.path().join("tcp_connections/a_0123456789abcdef0123456789abcdef_000099.parquet");
    std::fs::copy(listed, late).unwrap();
    let (store, contents) = contents(folder.path()).await;
    let errors = dataset::check::verify(store.as_ref(), &contents).await.unwrap();
    assert!(errors.iter().all(|finding| !finding.is_error()), "{errors:?}");
    assert!(query::notes(&contents).is_empty());
    let listed: u64 = contents.tables()["tcp_connections"].iter().map(|object| object.rows).sum();
    assert_eq!(listed, 8);

    let context = open(folder.path()).await;
    let rows = answer(
        &context,
        "SELECT pod, raddr, count(*) AS rows, sum(weight) AS events, min(time_utc) AS first FROM tcp_connections GROUP BY ALL ORDER BY raddr",
    );
    let expected = "\
+-----+----------+------+--------+-----------------------------+
| pod | raddr    | rows | events | first                       |
+-----+----------+------+--------+-----------------------------+
| web | 10.1.2.3 | 4    | 4      | 1970-01-01T00:00:00.000001Z |
| web | ::1      | 4    | 40     | 1970-01-01T00:00:00.000003Z |
+-----+----------+------+--------+-----------------------------+";
    assert_eq!(rows.await, expected);
    // Nobody wrote a row of this one.
    assert!(answer(&context, "SELECT count(*) FROM processes").await.contains("| 0 "));
    assert_eq!(
        ask(&context, "SELECT * FROM processes")
            .await
            .unwrap()
            .iter()
            .map(RecordBatch::num_rows)
            .sum::<usize>(),
        0
    );
}

#[tokio::test]
async fn every_table_and_view_is_there_in_a_session_without_rows_and_one_that_is_not_over() {
    let folder = tempfile::tempdir().unwrap();
    Session::new(folder.path()).finish(&[("gone", "NodeLost")]).await;
    let (_, of_it) = contents(folder.path()).await;
    assert_eq!(query::notes(&of_it), ["incomplete: node gone: NodeLost"]);
    let names = query::tables(&open(folder.path()).await);
    assert_eq!(names.len(), dataset::catalogue::tables().count() + query::views::VIEWS.len());
    std::fs::remove_file(folder.path().join("_tracelake/manifest-1.json")).unwrap();
    let (_, of_it) = contents(folder.path()).await;
    assert!(query::notes(&of_it)[0].starts_with("the session is not over"), "{:?}", query::notes(&of_it));
    let context = open(folder.path()).await;
    for name in names {
        let rows = ask(&context, &format!("SELECT * FROM {name}")).await.unwrap();
        assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 0, "{name}");
    }
}

#[tokio::test]
async fn files_of_a_version_that_had_fewer_columns_are_asked_with_todays() {
    let folder = tempfile::tempdir().unwrap();
    let mut written = Session::new(folder.path());
    let table = dataset::catalogue::table("tcp_connections").unwrap();
    let older = session::rows::batch(table, cells("ts_ns | node | pod | busy_ns\n1 | a | web | 5"), 0);
    let schema = older.schema();
    let kept: Vec<usize> =
        (0..older.num_columns()).filter(|index| schema.field(*index).name() != "busy_ns").collect();
    let older = older.project(&kept).unwrap();
    written.write("a", table, 1, 1, |info, file| {
        let properties = dataset::schema::writer_properties(table, info);
        let mut writer =
            parquet::arrow::ArrowWriter::try_new(file, older.schema(), Some(properties)).unwrap();
        writer.write(&older).unwrap();
        writer.close().unwrap();
    });
    written.segment("b", "tcp_connections", &cells("ts_ns | pod | busy_ns\n2 | web | 7"));
    written.finish(&[]).await;
    let context = open(folder.path()).await;
    let all = "SELECT count(*) || ' ' || count(busy_ns) || ' ' || sum(busy_ns) AS found FROM tcp_connections";
    assert!(answer(&context, all).await.contains("| 2 1 7 "));
    for (filter, found) in [("busy_ns IS NULL", "| a "), ("busy_ns > 0", "| b ")] {
        let of = answer(&context, &format!("SELECT node FROM tcp_connections WHERE {filter}")).await;
        assert!(of.contains(found) && of.lines().count() == 5, "{filter}: {of}");
    }
}

#[tokio::test]
async fn errors_say_what_there_is_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    Session::new(folder.path()).finish(&[]).await;
    let context = open(folder.path()).await;
    let said = async |sql: &str| ask(&context, sql).await.map(drop).unwrap_err().to_string();
    let unknown = said("SELECT * FROM tcp_connection").await;
    assert!(
        unknown.starts_with("there is no table \"tcp_connection\"; there are coverage, cpu_sched, "),
        "{unknown}"
    );
    assert!(unknown.contains("tcplife"), "{unknown}");
    let column = said("SELECT bytes_ackd FROM tcp_connections").await;
    assert!(column.contains("bytes_acked"), "{column}");
    for writes in [
        "COPY tcp_connections TO '/tmp/x.parquet'",
        "INSERT INTO tcp_connections SELECT * FROM tcp_connections",
    ] {
        let refused = said(writes).await;
        assert!(refused.contains("DML not supported"), "{refused}");
    }
    // What makes rows itself stands where a table does.
    assert!(answer(&context, "SELECT sum(value) FROM generate_series(0, 9)").await.contains("| 45 "));
    assert!(answer(&context, "SELECT count(*) FROM range(0, 10) AS t(i)").await.contains("| 10 "));
    // A name that a query makes itself is one.
    assert!(answer(&context, "WITH mine AS (SELECT 1 AS a) SELECT a FROM mine").await.contains("| 1 |"));
    assert!(
        answer(&context, "SELECT table_name FROM information_schema.tables WHERE table_name = 'tcplife'")
            .await
            .contains("tcplife")
    );
}

#[tokio::test]
async fn an_object_that_is_gone_or_damaged_fails_the_query_that_needs_it_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let mut written = Session::new(folder.path());
    written.segment("a", "tcp_connections", &cells(ROWS));
    written.segment("a", "processes", &cells("ts_ns | kind\n1 | exec"));
    written.finish(&[]).await;
    let of =
        |table: &str| std::fs::read_dir(folder.path().join(table)).unwrap().next().unwrap().unwrap().path();
    let path = of("tcp_connections");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let context = open(folder.path()).await;
    assert!(ask(&context, "SELECT count(*) FROM tcp_connections").await.is_err());
    std::fs::remove_file(&path).unwrap();
    let gone = ask(&context, "SELECT count(*) FROM tcp_connections").await.unwrap_err().to_string();
    assert!(gone.contains("`tracelake verify`") && gone.contains("tcp_connections/a_"), "{gone}");
    assert!(answer(&context, "SELECT count(*) FROM processes").await.contains("| 1 "));
    // Without the list of a node's objects nothing of it can be asked for; what was said to be there is told.
    let list = folder.path().join("_tracelake/a_0123456789abcdef0123456789abcdef.json");
    std::fs::write(&list, "{").unwrap();
    let said = query::notes(&contents(folder.path()).await.1);
    assert!(said.len() == 1 && said[0].contains("cannot be read"), "{said:?}");
    std::fs::remove_file(&list).unwrap();
    let said = query::notes(&contents(folder.path()).await.1);
    assert!(said.len() == 1 && said[0].contains("is not there"), "{said:?}");
}

#[tokio::test]
async fn a_question_about_some_nodes_reads_their_objects_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut written = Session::new(folder.path());
    for node in ["a", "b", "c"] {
        written.segment(node, "tcp_connections", &cells(ROWS));
    }
    written.finish(&[]).await;
    for object in std::fs::read_dir(folder.path().join("tcp_connections")).unwrap() {
        let path = object.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("c_") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let context = open(folder.path()).await;
    let count = async |filter: &str| {
        let sql = format!("SELECT 'rows=' || count(*) FROM tcp_connections WHERE {filter}");
        ask(&context, &sql).await.map(|rows| pretty_format_batches(&rows).unwrap().to_string())
    };
    for (filter, rows) in [
        ("node = 'a'", 2),
        ("node IN ('a', 'b') AND rport = 6379", 4),
        ("node = 'a' OR (node = 'b' AND weight = 10)", 3),
        ("node < 'c' AND weight = 1", 2),
        ("node <> 'c'", 4),
        ("node = 'nobody'", 0),
    ] {
        let answer = count(filter).await.unwrap_or_else(|error| panic!("{filter}: {error}"));
        assert!(answer.contains(&format!("rows={rows} ")), "{filter}: {answer}");
    }
    for filter in ["true", "node >= 'a'", "weight = 1", "node = 'c'", "node LIKE '%a%'"] {
        assert!(count(filter).await.is_err(), "{filter}");
    }
}

/// Counts the bytes that are taken from a store.
#[derive(Debug)]
struct Counting(LocalFileSystem, AtomicU64);

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Counting {
    async fn put_opts(
        &self,
        _: &ObjectPath,
        _: PutPayload,
        _: PutOptions,
    ) -> object_store::Result<PutResult> {
        unreachable!("a query writes nothing")
    }

    async fn put_multipart_opts(
        &self,
        _: &ObjectPath,
        _: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        unreachable!("a query writes nothing")
    }

    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> object_store::Result<GetResult> {
        let got = self.0.get_opts(path, options).await?;
        self.1.fetch_add(got.range.end - got.range.start, Ordering::Relaxed);
        Ok(got)
    }

    async fn get_ranges(&self, path: &ObjectPath, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        let got = self.0.get_ranges(path, ranges).await?;
        self.1.fetch_add(got.iter().map(|bytes| bytes.len() as u64).sum(), Ordering::Relaxed);
        Ok(got)
    }

    fn delete_stream(
        &self,
        _: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        unreachable!("a query deletes nothing")
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> object_store::Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &ObjectPath, _: &ObjectPath, _: CopyOptions) -> object_store::Result<()> {
        unreachable!("a query copies nothing")
    }
}

/// A session of one segment with so many rows, and three columns of values that do not compress.
async fn large(folder: &Path, rows: usize) {
    let names = ["ts_ns", "sock_id", "bytes_sent", "bytes_acked"];
    let mut text = vec![names.map(str::to_owned).to_vec()];
    let mut random = 1_u64;
    for row in 0..rows {
        let mut number = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 2).to_string()
        };
        text.push(vec![row.to_string(), number(), number(), number()]);
    }
    let mut written = Session::new(folder);
    written.segment("a", "tcp_connections", &text);
    written.finish(&[]).await;
}

#[tokio::test]
async fn of_a_large_file_only_footer_columns_and_row_groups_that_are_needed_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let rows = 2 * ROW_GROUP_ROWS;
    large(folder.path(), rows).await;
    let (_, contents) = contents(folder.path()).await;
    let size = contents.tables()["tcp_connections"][0].bytes;
    assert!(size > 6 << 20, "{size}");
    let store =
        Arc::new(Counting(LocalFileSystem::new_with_prefix(folder.path()).unwrap(), AtomicU64::new(0)));
    let read = async |sql: &str| {
        // A context of its own: footers are kept.
        let context = query::open(store.clone(), &contents, &Limits::default()).await.unwrap();
        store.1.store(0, Ordering::Relaxed);
        let answer = answer(&context, sql).await;
        (store.1.load(Ordering::Relaxed), answer)
    };
    let (footer, counted) = read("SELECT count(*) FROM tcp_connections").await;
    assert!(counted.contains(&format!("| {rows} ")), "{counted}");
    assert!(footer <= 128 << 10, "the footer is enough: {footer}");
    let (column, _) = read("SELECT sum(bytes_acked % 10) FROM tcp_connections").await;
    assert!(column > size / 4 && column < size * 2 / 5, "one column of three large ones: {column} of {size}");
    let last = format!("SELECT sum(bytes_acked % 10) FROM tcp_connections WHERE ts_ns >= {ROW_GROUP_ROWS}");
    let (group, _) = read(&last).await;
    assert!(group > size / 8 && group < size / 4, "of that one row group of two: {group} of {size}");
    let (all, _) =
        read("SELECT sum(sock_id % 10), sum(bytes_sent % 10), sum(bytes_acked % 10) FROM tcp_connections")
            .await;
    assert!(all > size * 9 / 10 && all <= size + (128 << 10), "{all} of {size}");
}

#[tokio::test]
async fn what_has_no_room_in_memory_is_spilled_and_what_cannot_be_says_so() {
    let (folder, spilled) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    large(folder.path(), ROW_GROUP_ROWS).await;
    let (store, contents) = contents(folder.path()).await;
    let within = async |memory_bytes: usize| {
        let spill_to = Some(spilled.path().to_owned());
        let limits = Limits { memory_bytes, spill_to, threads: NonZeroUsize::new(2), ..Limits::default() };
        query::open(store.clone(), &contents, &limits).await.unwrap()
    };
    let (small, large) = (within(10 << 20).await, within(512 << 20).await);
    // 16 MiB to be sorted. The order has to be made, and every row passes through it.
    let times: Vec<String> = (0..8).map(|time| format!("({time})")).collect();
    let keys = format!(
        "SELECT (sock_id % 1000000000000) * 8 + time AS key, bytes_acked FROM tcp_connections CROSS JOIN (VALUES {}) t(time)",
        times.join(", ")
    );
    let sql = &format!(
        "SELECT sum(bytes_acked % 1000 * (nth % 7)) AS sum, count(*) AS rows
         FROM (SELECT bytes_acked, row_number() OVER (ORDER BY key) AS nth FROM ({keys}))"
    );
    let enough = answer(&large, sql).await;
    assert_eq!(answer(&small, sql).await, enough);
    assert!(enough.contains(&format!("| {} |", 8 * ROW_GROUP_ROWS)), "{enough}");
    let groups = &format!(
        "SELECT count(*) AS groups, max(rows) AS most FROM (SELECT key, count(*) AS rows FROM ({keys}) GROUP BY key)"
    );
    assert_eq!(answer(&small, groups).await, answer(&large, groups).await);
    let text = answer(&small, &format!("EXPLAIN ANALYZE {sql}")).await;
    let spills = text.split("spill_count=").skip(1).map(|rest| rest.split([',', ']']).next().unwrap());
    assert!(spills.collect::<Vec<_>>().iter().any(|count| *count != "0"), "{text}");
    let join = format!("SELECT count(*) FROM ({keys}) a JOIN ({keys}) b ON a.key = b.key");
    let error = ask(&small, &join).await.unwrap_err().to_string();
    assert!(error.contains("--memory"), "{error}");
    drop((small, large));
    // Tasks of the query that failed end when their turn comes.
    let gone = async {
        while std::fs::read_dir(spilled.path()).unwrap().count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .expect("what was spilled goes with its context");
}

#[tokio::test]
async fn a_session_in_s3_below_a_prefix_answers_as_its_folder_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut written = Session::new(folder.path());
    written.segment("a", "tcp_connections", &cells(ROWS));
    written.finish(&[]).await;
    let (here, _) = contents(folder.path()).await;
    let server = S3InProcess::start().await;
    let (there, prefix) = (server.store(), SessionPrefix::root("traces/shop/checkout/uid").unwrap());
    let objects: Vec<ObjectMeta> = here.list(None).try_collect().await.unwrap();
    for object in objects {
        let content = here.get(&object.location).await.unwrap().bytes().await.unwrap();
        let path = ObjectPath::parse(format!("{}/{}", prefix.path(), object.location)).unwrap();
        there.put(&path, content.into()).await.unwrap();
    }
    let contents = reader::load(there.as_ref(), &prefix).await.unwrap();
    let context = query::open(there, &contents, &Limits::default()).await.unwrap();
    let sql = "SELECT * FROM tcp_connections ORDER BY ts_ns";
    assert_eq!(answer(&context, sql).await, answer(&open(folder.path()).await, sql).await);
}
