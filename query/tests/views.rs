// SPDX-License-Identifier: Apache-2.0

//! Every view answers what DuckDB answers to the same SQL over the same files, and what `docs/views.md` says.
//!
//! The page is made here (`UPDATE=1` writes it): what each view is for, its columns, and its rows for the session below. Two
//! nodes, several files; processes of one number, rows that stand for several events, values that are not known.

extern crate tracelake_query as query;

mod session;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use dataset::key::SessionPrefix;
use dataset::reader;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use query::Limits;
use query::datafusion::prelude::SessionContext;
use query::output::{self, Format};
use query::views::{VIEWS, View};
use session::{Session, cells, rows};

/// Node, table, rows.
const SEGMENTS: &[(&str, &str, &str)] = &[
    (
        "a",
        "tcp_connections",
        "ts_ns      | namespace | pod | container | pid | comm  | direction | family | laddr    | lport | raddr    | rport | established_ns | bytes_acked | bytes_received | handshake_ns | accept_delay_ns | duration_ns | error | end_reason
         1000000000 | shop      | web | app       | 71  | curl  | active    | 2      | 10.1.2.3 | 40112 | 10.1.2.4 | 6379  | 900000000      | 100         | 4096           | 250000       |                 | 1500000     | 0     | fin
         2000000000 | shop      | web | app       | 71  | curl  | active    | 2      | 10.1.2.3 | 40113 | 10.1.2.4 | 6380  |                | 0           | 0              |              |                 |             | 111   | refused
         3000000000 | shop      | web | app       | 80  | nginx | passive   | 10     | ::1      | 8080  | ::1      | 50000 | 2900000000     | 330         | 126            |              | 61000           | 3000000     | 0     | rst_in",
    ),
    (
        "b",
        "tcp_connections",
        "ts_ns      | weight | namespace | pod   | comm | direction | family | laddr    | lport | raddr    | rport | bytes_acked | bytes_received | end_reason
         1500000000 | 10     | shop      | cache |      | passive   | 2      | 10.1.2.4 | 6379  | 10.1.2.3 | 40112 | 4096        | 100            | open_at_stop",
    ),
    (
        "a",
        "tcp_throughput",
        "ts_ns       | namespace | pod   | pid | comm | laddr    | lport | raddr    | rport | rx_bytes | tx_bytes | rx_bps   | tx_bps   | rank | others
         10000000000 | shop      | web   | 71  | curl | 10.1.2.3 | 40112 | 10.1.2.4 | 6379  | 10485760 | 1024     | 8388608  | 819.2    | 1    | false
         10000000000 | shop      | cache |     |      |          |       |          |       | 512      | 0        | 409.6    | 0        |      | true",
    ),
    (
        "a",
        "tcp_retransmits",
        "ts_ns      | weight | namespace | pod | family | laddr    | lport | raddr    | rport | state       | kind | segments | bytes | err
         1000000000 | 10     | shop      | web | 2      | 10.1.2.3 | 40112 | 10.1.2.4 | 6379  | ESTABLISHED | fast | 2        | 2896  | 0
         2000000000 | 1      | shop      | web | 2      | 10.1.2.3 | 40112 | 10.1.2.4 | 6379  | ESTABLISHED | rto  | 1        | 1448  | 0
         3000000000 | 1      | shop      | web | 2      | 10.1.2.3 | 40112 | 10.1.2.4 | 6379  | ESTABLISHED | rto  | 1        | 1448  | -105",
    ),
    (
        "a",
        "tcp_states",
        "ts_ns      | weight | namespace | pod | kind       | laddr    | lport | raddr    | rport | old_state   | new_state   | in_state_ns
         1000000000 | 1      | shop      | web | transition | 10.1.2.3 | 8080  | 10.1.2.9 | 40000 | LISTEN      | SYN_RECV    |
         1000200000 | 1      | shop      | web | transition | 10.1.2.3 | 8080  | 10.1.2.9 | 40000 | SYN_RECV    | ESTABLISHED | 200000
         2000000000 | 4      | shop      | web | transition | 10.1.2.3 | 8080  | 10.1.2.9 | 40001 | SYN_RECV    | ESTABLISHED | 300000
         3000000000 | 1      | shop      | web | rst_sent   | 10.1.2.3 | 8080  | 10.1.2.9 | 40001 |             |             |",
    ),
    (
        "a",
        "packet_drops",
        "ts_ns      | weight | namespace | pod | laddr    | lport | raddr    | rport | window_ns  | segments | bytes | reason         | class   | location       | ip_proto | sk_state
         1000000000 | 12     | shop      | web |          |       |          |       | 1000000000 | 14       | 17376 | SOCKET_RCVBUFF | loss    | tcp_data_queue | 6        | ESTABLISHED
         2000000000 | 4      | shop      | web | 10.1.2.3 | 8080  | 10.1.2.9 | 40000 |            | 1        | 60    | NO_SOCKET      | refused | tcp_v4_rcv     | 6        |
         2000000000 | 3      | shop      | web |          |       |          |       | 1000000000 | 3        | 300   | NO_SOCKET      | refused | udp_rcv        | 17       |",
    ),
    (
        "b",
        "packet_drops",
        "ts_ns      | weight | namespace | pod   | window_ns  | segments | bytes | reason     | class | location | ip_proto
         1000000000 | 1      | shop      | cache | 1000000000 | 1        | 1514  | QDISC_DROP | loss  |          | 6
         2000000000 | 2      | shop      | cache | 1000000000 | 2        | 3028  | QDISC_DROP | loss  |          | 6",
    ),
    (
        "a",
        "tcp_listen_queue",
        "ts_ns       | namespace | pod | comm  | laddr   | lport | accept_len | accept_max | drops | overflows
         10000000000 | shop      | web | nginx | 0.0.0.0 | 8080  | 0          | 128        | 0     | 0
         20000000000 | shop      | web | nginx | 0.0.0.0 | 8080  | 0          | 128        | 0     | 0
         30000000000 | shop      | web | nginx | 0.0.0.0 | 8080  | 129        | 128        | 40    | 38",
    ),
    (
        "a",
        "processes",
        "ts_ns      | namespace | pod | pid | start_ns   | ppid | uid | kind     | is_thread | comm | exe           | exit_code | signal | utime_ns | stime_ns | max_rss_bytes | maj_flt | min_flt
         500000000  | shop      | web | 7   | 1000       | 1    | 33  | snapshot | false     | nginx | /usr/sbin/nginx |        |        |          |          |               |         |
         1000000000 | shop      | web | 71  | 1000000000 | 7    | 33  | start    | false     | sh   |               |           |        |          |          |               |         |
         1001000000 | shop      | web | 71  | 1000000000 | 7    | 33  | exec     | false     | sh   | /bin/sh       |           |        |          |          |               |         |
         1002000000 | shop      | web | 71  | 1000000000 | 7    | 33  | exec     | false     | gzip | /usr/bin/gzip |           |        |          |          |               |         |
         1500000000 | shop      | web | 71  | 1000000000 | 7    | 33  | exit     | true      | gzip |               | 0         | 0      | 1000     | 0        |               |         |
         1600000000 | shop      | web | 71  | 1000000000 | 7    | 33  | exit     | false     | gzip |               | 0         | 0      | 40000000 | 2000000  | 4194304       | 1       | 500
         1700000000 | shop      | web | 7   | 1000       | 1    | 33  | exit     | false     | nginx |              | 0         | 15     | 1000000  | 0        | 8388608       | 0       | 9",
    ),
    (
        "a",
        "processes",
        "ts_ns      | namespace | pod | pid | start_ns   | ppid | uid | kind  | is_thread | comm | exe
         2000000000 | shop      | web | 71  | 2000000000 | 7    | 33  | start | false     | sh   |
         2000000001 | shop      | web | 71  | 2000000000 | 7    | 33  | start | true      | sh   |",
    ),
    (
        "a",
        "memory_rss",
        "ts_ns       | namespace | pod | pid | start_ns | mm_id | comm     | member | bytes   | peak_bytes
         10000000000 | shop      | db  | 7   | 1000     | 1     | postgres | file   | 2097152 | 2097152
         10000000000 | shop      | db  | 7   | 1000     | 1     | postgres | anon   | 4194304 | 4194304
         20000000000 | shop      | db  | 7   | 1000     | 1     | postgres | anon   | 8388608 | 9437184
         30000000000 | shop      | db  | 7   | 1000     | 1     | postgres | swap   | 1048576 | 1048576
         30000000000 | shop      | db  | 7   | 1000     | 1     | postgres | anon   | 7340032 | 7340032",
    ),
    (
        "b",
        "memory_rss",
        "ts_ns       | namespace | pod | pid | start_ns | mm_id | comm  | member | bytes   | peak_bytes
         20000000000 | shop      | web | 7   | 1000     | 1     | nginx | shmem  | 5242880 | 5242880",
    ),
    (
        "a",
        "page_faults",
        "ts_ns       | namespace | pod | pid | start_ns | comm     | window_ns   | major | minor | address
         10000000000 | shop      | db  | 7   | 1000     | postgres | 10000000000 | 3     | 500   |
         20000000000 | shop      | db  | 7   | 1000     | postgres | 10000000000 | 41    | 20    |
         20000000000 | shop      | db  | 7   | 1000     | postgres | 10000000000 | 0     | 40    |
         20000000000 | shop      | db  | 8   | 3000     | postgres | 10000000000 | 0     | 9     |
         20000000001 | shop      | db  | 8   | 3000     | postgres |             |       |       | 4096",
    ),
    (
        "a",
        "cpu_sched",
        "ts_ns       | namespace | pod | pid | comm  | run_sum | wait_sum | run_hist  | wait_hist
         10000000000 | shop      | web | 80  | nginx | 4000    | 90000    | 0 0 0 5 2 | 0 0 1
         20000000000 | shop      | web | 81  | nginx | 4000    | 90000    | 0 0 0 1   | 0 0 3 0 7
         20000000000 | shop      | web | 82  | idle  | 0       | 0        |           |",
    ),
];

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/views.md")
}

async fn written(folder: &Path) -> SessionContext {
    let mut session = Session::new(folder);
    for (node, table, text) in SEGMENTS {
        session.segment(node, table, &cells(text));
    }
    session.finish(&[]).await;
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(folder).unwrap());
    let contents = reader::load(store.as_ref(), &SessionPrefix::root("").unwrap()).await.unwrap();
    let findings = dataset::check::verify(store.as_ref(), &contents).await.unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    query::open(store, &contents, &Limits::default()).await.unwrap()
}

async fn rows_of(context: &SessionContext, view: &View, format: Format) -> Vec<u8> {
    let columns = context.table(view.name).await.unwrap().schema().fields().len();
    let by: Vec<String> = (1..=columns).map(|column| column.to_string()).collect();
    let sql = format!("SELECT * FROM {} ORDER BY {}", view.name, by.join(", "));
    let frame = query::plan(context, query::statements(&sql).unwrap().remove(0)).await.unwrap();
    let mut out = Vec::new();
    let rows = output::write(frame, format, &mut out).await.unwrap().rows;
    assert!(rows > 0, "{} has no row to compare", view.name);
    out
}

fn duckdb(script: &str) -> String {
    let answer = Command::new(rows::duckdb())
        .args(["-init", "/dev/null", "-batch", "-bail", "-noheader", "-list", "-c", script])
        .output()
        .expect("DuckDB runs");
    assert!(answer.status.success(), "{script}\n{}", String::from_utf8_lossy(&answer.stderr));
    String::from_utf8(answer.stdout).expect("UTF-8")
}

#[tokio::test]
async fn duckdb_answers_the_same_to_the_same_sql_over_the_same_files() {
    let folder = tempfile::tempdir().unwrap();
    let context = written(folder.path()).await;
    let mut tables: Vec<&str> = SEGMENTS.iter().map(|(_, table, _)| *table).collect();
    tables.dedup();
    let mut script = "SET TimeZone = 'UTC';\n".to_owned();
    for table in tables {
        let files = folder.path().join(table).join("*.parquet");
        script += &format!("CREATE OR REPLACE VIEW {table} AS FROM '{}';\n", files.display());
    }
    for view in VIEWS {
        let (name, file) = (view.name, folder.path().join(format!("{}.parquet", view.name)));
        std::fs::write(&file, rows_of(&context, view, Format::Parquet).await).unwrap();
        let ours = file.display();
        script += &format!(
            "CREATE VIEW {name} AS {sql};
             SELECT '{name}', (SELECT list(column_name) FROM (DESCRIBE {name})) = (SELECT list(column_name) FROM (DESCRIBE FROM '{ours}')),
                 (SELECT count(*) FROM (FROM {name} EXCEPT ALL FROM '{ours}')), (SELECT count(*) FROM (FROM '{ours}' EXCEPT ALL FROM {name}));\n",
            sql = view.sql
        );
    }
    let expected: Vec<String> = VIEWS.iter().map(|view| format!("{}|true|0|0", view.name)).collect();
    assert_eq!(duckdb(&script).lines().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn the_page_says_what_every_view_answers() {
    let folder = tempfile::tempdir().unwrap();
    let context = written(folder.path()).await;
    let mut text = "\
# Views

What `tracelake sql` knows besides the tables of the collectors: the same questions that well-known tools answer. Each is one file of SQL in
[query/src/views](../query/src/views), which DuckDB takes as it is over a dataset's files. Views of collectors that are not there yet (sockstat,
socketio, gethostlatency and their like) come with these. The rows are those of the session that `query/tests/views.rs` writes, made by it.
"
    .to_owned();
    for view in VIEWS {
        text += &format!("\n## {}\n\n{}\n\n", view.name, view.doc().collect::<Vec<_>>().join("\n"));
        let rows = rows_of(&context, view, Format::Table).await;
        text += &format!("```\n{}```\n", String::from_utf8(rows).unwrap());
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(page(), &text).unwrap();
    }
    let there = std::fs::read_to_string(page()).unwrap_or_default();
    assert!(there == text, "docs/views.md is old: UPDATE=1 cargo test -p tracelake-query --test views");
}
