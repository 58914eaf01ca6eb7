// SPDX-License-Identifier: Apache-2.0

//! `tracelake sql` as a command: what it prints where, and how it ends.

#![cfg(feature = "sql")]

#[path = "../../query/tests/session/mod.rs"]
mod session;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use session::{Session, cells, rows};

/// What a command did.
#[derive(Debug)]
struct Ended {
    out: String,
    err: String,
    ok: bool,
}

/// Runs `tracelake sql FOLDER ARGS` with something to read.
fn sql(folder: &Path, args: &[&str], input: &str) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tracelake"))
        .arg("sql")
        .arg(folder)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end before it has read everything.
    _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let ended = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { out: text(ended.stdout), err: text(ended.stderr), ok: ended.status.success() }
}

fn ask(folder: &Path, query: &str, output: &str) -> String {
    let ended = sql(folder, &["-e", query, "-o", output], "");
    assert!(ended.ok && ended.err.is_empty(), "{ended:?}");
    ended.out
}

const CONNECTIONS: &str = "
    ts_ns            | namespace | pod | comm | direction | laddr    | lport | raddr       | rport | bytes_acked | handshake_ns
    1000000000       | shop      | web | curl | active    | 10.1.2.3 | 40112 | 10.1.2.4    | 6379  | 100         | 250000
    1790000000123456 | shop      | web |      | passive   | ::1      | 8080  | 2001:db8::1 | 50000 | 7           |
";
/// Programs choose their names.
const SCHED: &str = "
    ts_ns | pod | comm       | run_sum | wait_sum | run_hist | wait_hist
    1     | web | e\u{1b}[31m, \"x\" | 24      | 0        | 0 3 1    |
";

async fn written() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut session = Session::new(folder.path());
    session.segment("a", "tcp_connections", &cells(CONNECTIONS));
    session.segment("b", "cpu_sched", &cells(SCHED));
    session.finish(&[]).await;
    folder
}

#[tokio::test]
async fn addresses_times_histograms_and_words_come_out_as_people_and_programs_expect() {
    let folder = written().await;
    let query =
        "SELECT time_utc, comm, laddr, raddr, rport, handshake_ns FROM tcp_connections ORDER BY ts_ns";
    assert_eq!(
        ask(folder.path(), query, "table"),
        "\
time_utc                     comm  laddr     raddr        rport  handshake_ns
---------------------------  ----  --------  -----------  -----  ------------
1970-01-01T00:00:01Z         curl  10.1.2.3  10.1.2.4      6379        250000
1970-01-21T17:13:20.000123Z        ::1       2001:db8::1  50000
"
    );
    assert_eq!(
        ask(folder.path(), query, "csv"),
        "\
time_utc,comm,laddr,raddr,rport,handshake_ns
1970-01-01T00:00:01Z,curl,10.1.2.3,10.1.2.4,6379,250000
1970-01-21T17:13:20.000123Z,,::1,2001:db8::1,50000,
"
    );
    let json = ask(folder.path(), query, "json");
    let lines: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        lines[1],
        serde_json::json!({"time_utc": "1970-01-21T17:13:20.000123Z", "comm": null, "laddr": "::1",
            "raddr": "2001:db8::1", "rport": 50000, "handshake_ns": null})
    );
    let query = "SELECT node, comm, run_hist, wait_hist FROM cpu_sched";
    let table = ask(folder.path(), query, "table");
    assert!(
        table.contains(r#"b     e\u{1b}[31m, "x"  [0, 3, 1]  []"#),
        "no control character reaches a terminal: {table}"
    );
    assert_eq!(
        ask(folder.path(), query, "csv").lines().last(),
        Some("b,\"e\u{1b}[31m, \"\"x\"\"\",\"[0, 3, 1]\",[]")
    );
    let json: serde_json::Value = serde_json::from_str(&ask(folder.path(), query, "json")).unwrap();
    assert_eq!(json["run_hist"], serde_json::json!([0, 3, 1]));
}

#[tokio::test]
async fn a_parquet_file_is_whole_or_not_there_and_others_read_it() {
    let folder = written().await;
    let file = folder.path().join("answer.parquet");
    let path = file.to_str().unwrap();
    let query = "SELECT c.*, run_hist FROM tcp_connections c CROSS JOIN cpu_sched ORDER BY c.ts_ns";
    let ended = sql(folder.path(), &["-e", query, "-o", "parquet", "--output-file", path], "");
    assert!(ended.ok && ended.out.is_empty(), "{ended:?}");
    assert_eq!(ended.err, format!("tracelake: 2 rows in {path}\n"));
    let answer = Command::new(rows::duckdb())
        .args(["-init", "/dev/null", "-batch", "-noheader", "-nullvalue", "", "-list", "-c"])
        .arg(format!(
            "SET TimeZone = 'UTC'; SELECT time_utc, raddr, rport, handshake_ns, run_hist FROM '{path}'"
        ))
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout),
        "1970-01-01 00:00:01+00|10.1.2.4|6379|250000|[0, 3, 1]\n1970-01-21 17:13:20.000123+00|2001:db8::1|50000||[0, 3, 1]\n"
    );

    std::fs::remove_file(&file).unwrap();
    for object in std::fs::read_dir(folder.path().join("cpu_sched")).unwrap() {
        std::fs::remove_file(object.unwrap().path()).unwrap();
    }
    let ended = sql(folder.path(), &["-e", query, "-o", "parquet", "--output-file", path], "");
    assert!(!ended.ok && ended.err.contains("`tracelake verify`"), "{ended:?}");
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("answer")), "{left:?}");
    let ended = sql(folder.path(), &["-e", query, "-o", "parquet"], "");
    assert!(!ended.ok && ended.err.contains("--output-file"), "{ended:?}");
}

#[tokio::test]
async fn a_session_that_is_incomplete_answers_and_says_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = Session::new(folder.path());
    session.segment("a", "tcp_connections", &cells(CONNECTIONS));
    session.finish(&[("gone", "NodeLost")]).await;
    let ended = sql(folder.path(), &["-e", "SELECT count(*) AS n FROM tcp_connections", "-o", "csv"], "");
    assert!(ended.ok, "{ended:?}");
    assert_eq!(
        (ended.out.as_str(), ended.err.as_str()),
        ("n\n2\n", "tracelake: note: incomplete: node gone: NodeLost\n")
    );
    std::fs::remove_file(folder.path().join("_tracelake/manifest-1.json")).unwrap();
    let ended = sql(folder.path(), &["-e", "SELECT 1"], "");
    assert!(ended.ok && ended.err.contains("the session is not over"), "{ended:?}");
}

#[tokio::test]
async fn a_session_without_rows_has_every_table_and_none_that_it_has_not() {
    let folder = tempfile::tempdir().unwrap();
    Session::new(folder.path()).finish(&[]).await;
    assert_eq!(ask(folder.path(), "SELECT pod, exe FROM processes", "csv"), "pod,exe\n");
    assert_eq!(ask(folder.path(), "SELECT pod, exe FROM processes", "json"), "");
    assert_eq!(ask(folder.path(), "SELECT pod, exe FROM processes", "table"), "pod  exe\n---  ---\n");
    assert!(ask(folder.path(), "SELECT count(*) AS n FROM tcplife", "csv").ends_with("\n0\n"));
    let last = "SELECT pod FROM processes ORDER BY ts_ns DESC LIMIT 1";
    assert_eq!(ask(folder.path(), last, "csv"), "pod\n");
    let ended = sql(folder.path(), &["-e", "SELECT * FROM process"], "");
    assert!(!ended.ok && ended.out.is_empty(), "{ended:?}");
    assert!(
        ended.err.starts_with("tracelake: there is no table \"process\"; there are coverage, "),
        "{ended:?}"
    );
    let ended = sql(folder.path(), &["-e", "SELECT exee FROM processes"], "");
    assert!(!ended.ok && ended.err.contains("exe"), "{ended:?}");
    let ended = sql(&folder.path().join("_tracelake"), &["-e", "SELECT 1"], "");
    assert!(
        !ended.ok && ended.err.contains("no session lies at") && ended.err.contains("`tracelake ls`"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn statements_and_commands_are_read_from_a_pipe_until_one_is_wrong() {
    let folder = written().await;
    let input = "
        .tables
        .schema tcp_connections
        .schema tcplife
        SELECT ';'
            AS text; -- one
        CREATE VIEW mine AS SELECT pod FROM cpu_sched; SELECT pod FROM mine;
        SELECT count(*) AS last FROM tcp_connections";
    let ended = sql(folder.path(), &[], input);
    assert!(ended.ok && ended.err.is_empty(), "{ended:?}");
    let line = |begin: &str| ended.out.lines().find(|line| line.starts_with(begin)).unwrap_or_default();
    assert_eq!(line("tcp_connections ").split_whitespace().nth(1), Some("2"), "{}", ended.out);
    assert_eq!(line("processes ").split_whitespace().nth(1), Some("0"), "{}", ended.out);
    assert!(
        line("tcplife ").contains("view") && line("tcplife ").contains("as tcplife prints them"),
        "{}",
        ended.out
    );
    assert!(
        line("handshake_ns ").contains("BIGINT") && line("handshake_ns ").contains(" ns "),
        "{}",
        ended.out
    );
    assert!(line("raddr ").contains("VARCHAR") && line("time_utc ").contains("TIMESTAMP"), "{}", ended.out);
    assert!(line("tx_kb ").contains("DOUBLE"), "{}", ended.out);
    assert!(ended.out.ends_with("text\n----\n;\npod\n---\nweb\nlast\n----\n   2\n"), "{}", ended.out);

    let ended = sql(folder.path(), &[], ".tables\n.schema nothing\nSELECT 1;");
    assert!(!ended.ok && ended.err.contains("there is no table \"nothing\""), "{ended:?}");
    assert!(ended.out.contains("tcplife") && !ended.out.contains("Int64(1)"), "{ended:?}");
    for (wrong, said) in
        [(".nothing", ".help"), ("SELEC 1;", "SELEC"), ("COPY tcplife TO '/tmp/x.csv';", "not supported")]
    {
        let ended = sql(folder.path(), &[], wrong);
        assert!(!ended.ok && ended.err.contains(said), "{ended:?}");
    }
    assert!(sql(folder.path(), &[], ".quit\nSELEC").ok);
    let temp = tempfile::tempdir().unwrap();
    let with = |temp_folder: &Path| {
        let query = "SELECT pod FROM cpu_sched ORDER BY pod";
        sql(folder.path(), &["--temp-folder", temp_folder.to_str().unwrap(), "-e", query], "")
    };
    assert!(with(temp.path()).ok);
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "nothing of it is left");
    let ended = with(&temp.path().join("not-there"));
    assert!(!ended.ok && ended.err.contains("name another with --temp-folder"), "{ended:?}");
}

#[tokio::test]
async fn who_stops_reading_is_no_error() {
    let folder = written().await;
    for output in ["csv", "json"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tracelake"))
            .arg("sql")
            .arg(folder.path())
            .args(["-o", output, "-e", "SELECT unnest(range(0, 100000)) AS n"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), &*err), (Some(141), ""), "{output}");
    }
}
