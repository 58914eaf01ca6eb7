// SPDX-License-Identifier: Apache-2.0

//! The programs in `examples/` answer what is known, and what `tracelake sql` answers, each in its own engine and by its own reading
//! of a store.
//!
//! Known sessions are written into an S3 store by the agent's own pipeline, `run.py` runs each example in a time zone that
//! is not UTC, and its answers are compared with those of [`known`], and with those of `tracelake sql` about the same sessions in
//! that store ([`sql`]); so are those of DuckDB's command line. `cargo xtask test examples` starts it with a store that the AWS
//! variables name, in `TRACELAKE_PYTHON` a Python that has what `examples/requirements.txt` names, in `TRACELAKE_CLI` the command line.

extern crate tracelake_node_agent as node_agent;

mod known;
mod sql;
#[allow(dead_code, reason = "each test of the agent uses a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataset::reader::Contents;
use http::Method;
use known::Row;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::signer::Signer;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde_json::Value;
use tokio::runtime::Runtime;

const SPARK: &str = "spark_job.py";
/// Of the store, if no other one is named.
const BUCKET: &str = "traces";
/// The store takes writes after 15-20 s here, later on a busy machine.
const START: Duration = Duration::from_secs(120);

/// A store with all sessions, for every test.
struct World {
    store: Arc<dyn ObjectStore>,
    sessions: Vec<Contents>,
    runtime: Runtime,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let runtime = Runtime::new().unwrap();
    let (store, sessions) = runtime.block_on(async {
        let store: Arc<dyn ObjectStore> = Arc::new(open().await);
        let mut sessions = Vec::new();
        for session in 0..known::SESSIONS {
            sessions.push(write::session(&store, session).await);
        }
        (store, sessions)
    });
    World { store, sessions, runtime }
});

/// The store that the AWS variables name, with its bucket, once it takes writes.
async fn open() -> AmazonS3 {
    assert!(
        std::env::var_os("AWS_ENDPOINT_URL").is_some(),
        "run `cargo xtask test examples`, which starts a store"
    );
    _ = rustls::crypto::ring::default_provider().install_default();
    let store = AmazonS3Builder::from_env().with_bucket_name(bucket()).with_allow_http(true).build().unwrap();
    let (began, ready) = (Instant::now(), "ready".into());
    loop {
        // object_store has no call for making a bucket. Not up yet, or there already: the write that follows tells.
        let bucket = store.signed_url(Method::PUT, &"".into(), Duration::from_secs(60)).await.unwrap();
        _ = reqwest::Client::new().put(bucket).timeout(Duration::from_secs(5)).send().await;
        let put = store.put(&ready, PutPayload::from_static(b"x"));
        match tokio::time::timeout(Duration::from_secs(20), put).await {
            Ok(Ok(_)) => return store,
            other => assert!(began.elapsed() < START, "the store takes no writes after {START:?}: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn all_sessions() -> Vec<i64> {
    (0..known::SESSIONS).collect()
}

/// A bucket of the store, which is made if it can be.
fn bucket() -> String {
    std::env::var("TRACELAKE_EXAMPLES_BUCKET").unwrap_or_else(|_| BUCKET.to_owned())
}

fn url(session: i64) -> String {
    format!("s3://{}/{}", bucket(), write::folder(session))
}

fn python() -> Command {
    let variable = "TRACELAKE_PYTHON";
    let python = std::env::var_os(variable).unwrap_or_else(|| {
        panic!(
            "{variable} has to name a Python with examples/requirements.txt: run `cargo xtask test examples`"
        )
    });
    let mut command = Command::new(python);
    // A quarter of an hour off any whole one: a time that is shown or read as local time is wrong.
    command.current_dir(repository().join("examples")).env("TZ", "Asia/Kathmandu");
    command
}

/// Who answers, about which sessions.
type Asked = (&'static str, Vec<i64>);
/// Rows by question.
type Answers = BTreeMap<String, Vec<Row>>;
/// What came of a run, and everything that it printed.
type Run = (Answers, String);

/// Answers of an example, and everything that it prints. It runs once, however many tests ask.
fn run(example: &'static str, sessions: &[i64]) -> Arc<Run> {
    static RUNS: LazyLock<Mutex<BTreeMap<Asked, Arc<Run>>>> = LazyLock::new(Mutex::default);
    LazyLock::force(&WORLD);
    let mut runs = RUNS.lock().unwrap_or_else(PoisonError::into_inner);
    let run = runs.entry((example, sessions.to_vec()));
    run.or_insert_with(|| Arc::new(run_now(example, sessions))).clone()
}

fn run_now(example: &str, sessions: &[i64]) -> Run {
    let place = tempfile::tempdir().unwrap();
    let answers = place.path().join("answers.json");
    let mut command = python();
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples/run.py"));
    command.arg(&answers).arg(example).args(sessions.iter().map(|session| url(*session)));
    let done = command.output().unwrap();
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{example}:\n{printed}\n{errors}");
    (serde_json::from_slice(&std::fs::read(answers).unwrap()).unwrap(), printed)
}

/// What `tracelake sql` answers, asked once.
fn sql_says(sessions: &[i64]) -> Answers {
    static SAID: LazyLock<Mutex<BTreeMap<Vec<i64>, Answers>>> = LazyLock::new(Mutex::default);
    LazyLock::force(&WORLD);
    let places: Vec<(i64, String)> = sessions.iter().map(|session| (*session, url(*session))).collect();
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    said.entry(sessions.to_vec()).or_insert_with(|| sql::answers(&places)).clone()
}

/// Whole numbers exactly; of others different engines may differ in the last bit.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_i64().zip(b.as_i64()), a.as_f64().zip(b.as_f64())) {
        (Some((a, b)), _) => a == b,
        (None, Some((a, b))) => (a - b).abs() <= 1e-12 * a.abs(),
        _ => a == b,
    }
}

fn compare(who: &str, found: &Answers, known: &Answers) {
    let names = |answers: &Answers| answers.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(known), "{who}");
    for (name, rows) in known {
        let found = &found[name];
        assert_eq!(found.len(), rows.len(), "{who}, {name}: {found:?}");
        for (found, known) in found.iter().zip(rows) {
            let fits = found.len() == known.len()
                && known.iter().all(|(column, value)| found.get(column).is_some_and(|f| same(f, value)));
            assert!(fits, "{who}, {name}:\nfound {found:?}\nknown {known:?}");
        }
    }
}

/// The first row of `tcplife` ended in this tenth of a second; what is behind it, some engines wrap when they print.
fn last_connection(session: i64) -> String {
    format!("2026-11-29 {}:00:01.0", 10 + session)
}

fn of_one_session(example: &'static str) {
    let (answers, printed) = &*run(example, &[1]);
    compare(example, answers, &known::answers(&[1]));
    compare(&format!("{example}, beside `tracelake sql`"), answers, &sql_says(&[1]));
    assert!(printed.contains(&last_connection(1)), "{example} shows another time:\n{printed}");
}

#[test]
fn polars_answers_what_is_known_and_what_tracelake_sql_says() {
    of_one_session("polars.ipynb");
}

#[test]
fn duckdb_answers_what_is_known_and_what_tracelake_sql_says() {
    of_one_session("duckdb.ipynb");
}

#[test]
fn pyarrow_answers_what_is_known_and_what_tracelake_sql_says() {
    of_one_session("with_pyarrow.py");
}

#[test]
fn spark_answers_what_is_known_and_what_tracelake_sql_says_of_all_sessions_and_two_thousand_files() {
    let all = all_sessions();
    let (answers, printed) = &*run(SPARK, &all);
    compare(SPARK, answers, &known::answers(&all));
    compare("spark_job.py, beside `tracelake sql`", answers, &sql_says(&all));
    assert!(printed.contains(&last_connection(known::SESSIONS - 1)), "another time:\n{printed}");
    let files = printed.lines().find_map(|line| line.strip_suffix(" files")?.parse::<usize>().ok());
    assert!(files.is_some_and(|files| files >= 2_000), "{printed}");
}

#[test]
fn duckdbs_command_line_answers_what_is_known() {
    let place = tempfile::tempdir().unwrap();
    let contents = &WORLD.sessions[1];
    let mut script = String::from("SET TimeZone = 'UTC';\n");
    for (table, objects) in contents.tables() {
        std::fs::create_dir(place.path().join(&table)).unwrap();
        for object in objects {
            let path = contents.prefix.path().clone();
            let path = object.key.split('/').fold(path, |path, part| path.join(part));
            let get = async { WORLD.store.get(&path).await.unwrap().bytes().await.unwrap() };
            std::fs::write(place.path().join(&object.key), WORLD.runtime.block_on(get)).unwrap();
        }
        let files = place.path().join(&table).join("*.parquet");
        script += &format!("CREATE VIEW {table} AS FROM '{}';\n", files.display());
    }
    let mut answers = BTreeMap::new();
    for sql::Question { name, whole, .. } in sql::questions() {
        let duckdb =
            std::env::var_os("TRACELAKE_DUCKDB").expect("TRACELAKE_DUCKDB names DuckDB's command line");
        let done = Command::new(duckdb)
            .args(["-init", "/dev/null", "-batch", "-bail", "-json", "-c", &format!("{script}{whole}")])
            .output()
            .unwrap();
        assert!(done.status.success(), "{whole}\n{}", String::from_utf8_lossy(&done.stderr));
        let rows: Vec<Row> = serde_json::from_slice(&done.stdout).unwrap();
        answers.insert(name.to_owned(), rows.into_iter().map(sql::with_times).collect());
    }
    compare("DuckDB's command line", &answers, &known::answers(&[1]));
    compare("DuckDB's command line, beside `tracelake sql`", &answers, &sql_says(&[1]));
}

#[test]
fn tracelake_sql_answers_what_is_known_of_one_session_and_of_all() {
    for sessions in [vec![1], all_sessions()] {
        compare("tracelake sql", &sql_says(&sessions), &known::answers(&sessions));
    }
}

/// Of each example and of `tracelake sql`: some columns of an answer, which are those of what is known.
fn each(question: &str, columns: &[&str]) -> Vec<Vec<Value>> {
    let pick = |rows: &[Row]| -> Vec<Vec<Value>> {
        rows.iter().map(|row| columns.iter().map(|column| row[*column].clone()).collect()).collect()
    };
    let all = all_sessions();
    let of = |sessions: &[i64]| pick(&known::answers(sessions)[question]);
    for example in ["polars.ipynb", "duckdb.ipynb", "with_pyarrow.py"] {
        assert_eq!(pick(&run(example, &[1]).0[question]), of(&[1]), "{example}");
    }
    assert_eq!(pick(&run(SPARK, &all).0[question]), of(&all), "{SPARK}");
    assert_eq!(pick(&sql_says(&[1])[question]), of(&[1]), "tracelake sql");
    assert_eq!(pick(&sql_says(&all)[question]), of(&all), "tracelake sql, of all");
    of(&all)
}

#[test]
fn times_are_the_same_microsecond_in_every_engine() {
    let times: Vec<i64> = each("rss", &["time_utc"]).iter().filter_map(|row| row[0].as_i64()).collect();
    // A float of 64 bits in seconds, or a number of milliseconds, would be another.
    assert!(times.len() > 10 && times.iter().all(|time| time % 1_000 != 0), "{times:?}");
    each("tcplife", &["time_utc"]);
}

#[test]
fn addresses_of_both_families_are_the_same_text_in_every_engine() {
    let peers: BTreeSet<String> =
        each("top_talkers", &["raddr"]).iter().filter_map(|row| Some(row[0].as_str()?.to_owned())).collect();
    assert!(
        peers.iter().any(|peer| peer.contains(':')) && peers.iter().any(|peer| peer.contains('.')),
        "{peers:?}"
    );
    each("tcplife", &["laddr", "raddr"]);
}

#[test]
fn histograms_have_the_same_slots_in_every_engine() {
    let slots: BTreeSet<i64> =
        each("waits", &["at_least_ns", "slices"]).iter().filter_map(|row| row[0].as_i64()).collect();
    // Of more bits than 32; and of lists some are empty, and none of another length than its last count.
    assert!(slots.contains(&2) && slots.last().is_some_and(|last| *last > 1 << 33), "{slots:?}");
    assert!(slots.iter().all(|slot| slot.count_ones() == 1), "{slots:?}");
}

#[test]
fn words_and_their_absence_are_the_same_in_every_engine() {
    let pods = each("top_talkers", &["pod"]);
    assert!(pods.iter().any(|row| row[0].is_null()) && pods.iter().any(|row| row[0] == "web"), "{pods:?}");
    // Each file has a dictionary of its own, in which other words come first.
    let programs = each("top_programs", &["pod", "exe"]);
    assert_eq!(programs.len(), 6, "{programs:?}");
    each("tcplife", &["comm"]);
}

#[test]
fn a_session_that_still_runs_is_refused_with_the_reason() {
    let folder = dataset::key::SessionPrefix::new(&write::PREFIX, "shop", "running", "uid").unwrap();
    let path = folder.object(&dataset::key::Key::Session);
    let put = dataset::reader::create(WORLD.store.as_ref(), &path, "{}".into());
    WORLD.runtime.block_on(put).unwrap();
    let url = format!("s3://{}/{folder}", bucket());
    let code = format!("import session; session.Session({url:?})");
    let done = python().args(["-c", &code]).output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success() && error.contains("has no manifest"), "{error}");
}
