// SPDX-License-Identifier: Apache-2.0

//! DuckDB as a second engine, and files that results are compared with.

use std::path::Path;
use std::process::Command;

use dataset::reader::Contents;
use dataset::{catalogue, schema};
use parquet::arrow::ArrowWriter;
use report::engine::{Engine, ReportError, Row};

use crate::support::rows;

/// DuckDB, with a view for each table, over exactly the objects that the manifests list.
pub(crate) struct DuckDb {
    views: String,
}

impl DuckDb {
    /// `folder` is where the session lies; `empty` gets files for tables that have none.
    pub(crate) fn over(contents: &Contents, folder: &Path, empty: &Path) -> Self {
        let mut views = String::from("SET TimeZone = 'UTC';\n");
        let listed = contents.tables();
        for table in catalogue::tables() {
            let files: Vec<String> = listed
                .get(table.name)
                .into_iter()
                .flatten()
                .map(|object| format!("'{}'", folder.join(&object.key).display()))
                .collect();
            // An empty table of the same columns where nothing was written.
            let files = if files.is_empty() {
                let path = empty.join(format!("empty-{}.parquet", table.name));
                let file = std::fs::File::create(&path).expect("a file");
                ArrowWriter::try_new(file, schema::of(table), None)
                    .expect("a writer")
                    .close()
                    .expect("a file");
                format!("'{}'", path.display())
            } else {
                files.join(", ")
            };
            // The queries say CAST(time_utc AS BIGINT), as DataFusion takes it.
            let micros = if table.columns.iter().any(|column| column.name == "time_utc") {
                "REPLACE (epoch_us(time_utc) AS time_utc)"
            } else {
                ""
            };
            views +=
                &format!("CREATE VIEW {} AS SELECT * {micros} FROM read_parquet([{files}]);\n", table.name);
        }
        Self { views }
    }
}

impl Engine for DuckDb {
    async fn rows(&self, sql: &str) -> Result<Vec<Row>, ReportError> {
        let answer = Command::new(rows::duckdb())
            .args(["-init", "/dev/null", "-batch", "-bail", "-json", "-c", &format!("{}{sql};", self.views)])
            .output()
            .expect("DuckDB runs");
        if !answer.status.success() {
            let said = String::from_utf8_lossy(&answer.stderr);
            return Err(ReportError::Query(format!("{sql}\n{said}")));
        }
        let text = String::from_utf8(answer.stdout).expect("UTF-8");
        let text = text.trim();
        if text.is_empty() || text == "[{]" {
            return Ok(Vec::new());
        }
        let mut rows: Vec<Row> =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{sql}\n{text}\n{error}"));
        // Sums are of 128 bits, which its JSON has as text; no name in these tests is a number.
        for value in rows.iter_mut().flat_map(|row| row.values_mut()) {
            numbers(value);
        }
        Ok(rows)
    }
}

fn numbers(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Array(values) => values.iter_mut().for_each(numbers),
        serde_json::Value::String(text) => {
            if let Ok(number) = text.parse::<i64>() {
                *value = number.into();
            }
        }
        _ => {}
    }
}

/// A golden file: compared, or written with `UPDATE=1`.
pub(crate) fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, text).expect("the golden file is written");
        return;
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == text,
        "{} differs; look at it, and renew it with `UPDATE=1 cargo test -p tracelake-report`:\n{text}",
        path.display()
    );
}
