// SPDX-License-Identifier: Apache-2.0

//! The query of every collector's page answers what the page says.
//!
//! `docs/queries/<collector>.md` holds a question, its SQL, rows and the answer. The rows are written with the tables' own
//! schemas and settings (a column that is not shown is null, or zero where it may not be null; time_utc is ts_ns since
//! 1970), and DuckDB answers. It is `duckdb`: named by `TRACELAKE_DUCKDB`, else where `cargo xtask` puts it.

extern crate tracelake_dataset as dataset;

mod rows;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use dataset::catalogue;
use dataset::schema::FileInfo;
use rows::{Cells, cells};

/// One page's example.
struct Example {
    sql: String,
    rows: Vec<(String, Cells)>,
    answer: Cells,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/queries")
}

fn example(text: &str) -> Example {
    let sql = text.split("```sql\n").nth(1).expect("a query").split("```").next().expect("its end");
    let mut lines = text.lines();
    let (mut rows, mut answer) = (Vec::new(), Vec::new());
    while let Some(line) = lines.next() {
        if let Some(table) = line.strip_prefix("Rows of `") {
            rows.push((table.trim_end_matches("`:").to_owned(), cells(&mut lines.by_ref())));
        } else if line == "Answer:" {
            answer = cells(&mut lines.by_ref());
        }
    }
    assert!(!rows.is_empty() && !answer.is_empty(), "rows and an answer");
    Example { sql: sql.to_owned(), rows, answer }
}

/// What DuckDB answers, with a view for each table.
fn ask(example: &Example) -> Cells {
    let place = tempfile::tempdir().expect("a folder");
    let mut script = String::from("SET TimeZone = 'UTC';\n");
    for (name, cells) in &example.rows {
        let table = catalogue::table(name).unwrap_or_else(|| panic!("there is no table {name}"));
        let path = place.path().join(format!("{name}.parquet"));
        let info = FileInfo { session: "s", node: "n", boot: "b", incarnation: "i", sequence: 0 };
        rows::write(table, cells.clone(), &info, File::create(&path).expect("a file"));
        script += &format!("CREATE VIEW {name} AS FROM '{}';\n", path.display());
    }
    script += &example.sql;
    // Settings of whoever runs the test do not count.
    let answer = Command::new(rows::duckdb())
        .args(["-init", "/dev/null", "-batch", "-bail", "-nullvalue", "", "-markdown", "-c", &script])
        .output()
        .expect("DuckDB runs");
    let text = String::from_utf8(answer.stdout).expect("UTF-8");
    assert!(answer.status.success(), "{script}\n{}", String::from_utf8_lossy(&answer.stderr));
    cells(&mut text.lines())
}

#[test]
fn every_collectors_query_answers_what_its_page_says() {
    for collector in catalogue::COLLECTORS {
        let path = folder().join(format!("{}.md", collector.name));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let example = example(&text);
        for table in collector.tables {
            assert!(
                example.rows.iter().any(|(name, _)| name == table.name),
                "{} asks nothing of {}",
                path.display(),
                table.name
            );
        }
        assert_eq!(ask(&example), example.answer, "{}", path.display());
    }
}

#[test]
fn every_query_is_a_collectors() {
    for entry in fs::read_dir(folder()).expect("docs/queries") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(catalogue::collector(&name).is_some(), "{} is of no collector", path.display());
    }
}
