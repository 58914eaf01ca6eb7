// SPDX-License-Identifier: Apache-2.0

//! The query of every collector's page answers what the page says.
//!
//! `docs/queries/<collector>.md` holds a question, its SQL, rows and the answer. The rows are written with the tables' own
//! schemas and settings (a column that is not shown is null, or zero where it may not be null; time_utc is ts_ns since
//! 1970), and DuckDB answers. It is `duckdb`: named by `TRACELAKE_DUCKDB`, else where `cargo xtask` puts it.

extern crate tracelake_dataset as dataset;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow_array::builder::{Int64Builder, ListBuilder, StringDictionaryBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use dataset::catalogue;
use dataset::schema::{self, FileInfo};
use node_agent_common::table::{Column, ColumnType, Table};
use parquet::arrow::ArrowWriter;

/// Cells by row; the first row names the columns.
type Cells = Vec<Vec<String>>;

/// One page's example.
struct Example {
    sql: String,
    rows: Vec<(String, Cells)>,
    answer: Cells,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/queries")
}

fn duckdb() -> PathBuf {
    if let Some(path) = std::env::var_os("TRACELAKE_DUCKDB") {
        return path.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache"))).expect("a home folder");
    let tools = cache.join("tracelake/tools");
    let entries = fs::read_dir(&tools).into_iter().flatten().filter_map(Result::ok);
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("duckdb-"));
    named.map(|entry| entry.path().join("duckdb")).next().unwrap_or_else(|| {
        panic!(
            "DuckDB is missing: run `cargo xtask test unit`, or set TRACELAKE_DUCKDB to a `duckdb` binary (looked in {})",
            tools.display()
        )
    })
}

/// The lines of a table in Markdown that begins at the next line with a bar.
fn cells<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Cells {
    let table = lines.skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let split = |line: &str| -> Vec<String> {
        let line = line.trim().trim_start_matches('|').trim_end_matches('|');
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut cells: Cells = table.map(split).collect();
    assert!(cells.len() > 2, "a table has names, a rule and rows: {cells:?}");
    cells.remove(1);
    cells
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

/// A column's values: of the column's name in the first row, else what stands for nothing.
fn values<'a>(cells: &'a Cells, column: &Column) -> Vec<Option<&'a str>> {
    let index = cells[0].iter().position(|name| name == column.name);
    let rest = cells[1..].iter();
    rest.map(|row| {
        let value = index.and_then(|index| row.get(index)).map(String::as_str).unwrap_or_default();
        match (value, column.nullable) {
            ("", true) => None,
            (value, _) => Some(value),
        }
    })
    .collect()
}

fn array(cells: &Cells, column: &Column) -> ArrayRef {
    fn number<T: std::str::FromStr>(value: &str) -> T {
        let value = if value.is_empty() { "0" } else { value };
        value.parse().ok().unwrap_or_else(|| panic!("{value:?} is not a number"))
    }
    let cells = values(cells, column);
    let strings = || cells.iter().copied();
    match column.ty {
        ColumnType::Int64 => Arc::new(strings().map(|value| value.map(number)).collect::<Int64Array>()),
        ColumnType::Int32 => Arc::new(strings().map(|value| value.map(number)).collect::<Int32Array>()),
        ColumnType::Float64 => Arc::new(strings().map(|value| value.map(number)).collect::<Float64Array>()),
        ColumnType::Bool => {
            Arc::new(strings().map(|value| value.map(|value| value == "true")).collect::<BooleanArray>())
        }
        ColumnType::Text => Arc::new(strings().collect::<StringArray>()),
        ColumnType::Dict | ColumnType::Ip => {
            let mut builder = StringDictionaryBuilder::<Int32Type>::new();
            strings().for_each(|value| builder.append_option(value));
            Arc::new(builder.finish())
        }
        ColumnType::TimeUtc => {
            let times = strings().map(|value| value.map(number)).collect::<TimestampMicrosecondArray>();
            Arc::new(times.with_timezone(schema::UTC))
        }
        ColumnType::Histogram => {
            let mut builder = ListBuilder::new(Int64Builder::new()).with_field(schema::histogram_slot());
            for value in strings() {
                let slots = value.into_iter().flat_map(str::split_whitespace);
                builder.append_value(slots.map(|slot| Some(number::<i64>(slot))));
            }
            Arc::new(builder.finish())
        }
    }
}

/// Adds what follows from the rows: when it was in UTC, and that a row stands for one event.
fn with_common(mut cells: Cells) -> Cells {
    let time = cells[0].iter().position(|name| name == "ts_ns");
    let has = |cells: &Cells, name: &str| cells[0].iter().any(|column| column == name);
    if !has(&cells, "weight") {
        cells[0].push("weight".to_owned());
        cells[1..].iter_mut().for_each(|row| row.push("1".to_owned()));
    }
    if let Some(time) = time {
        cells[0].push("time_utc".to_owned());
        for row in &mut cells[1..] {
            let ns: i64 = row[time].parse().expect("a number of nanoseconds");
            row.push((ns / 1_000).to_string());
        }
    }
    cells
}

fn write(table: &Table, cells: Cells, path: &Path) {
    for name in &cells[0] {
        assert!(
            table.columns.iter().any(|column| column.name == name),
            "{} has no column {name}",
            table.name
        );
    }
    let width = cells[0].len();
    assert!(cells.iter().all(|row| row.len() == width), "{}: a row of another width", table.name);
    let cells = with_common(cells);
    let columns = table.columns.iter().map(|column| array(&cells, column)).collect();
    let batch = RecordBatch::try_new(schema::of(table), columns).expect("the table's own columns");
    let info = FileInfo { session: "s", node: "n", boot: "b", incarnation: "i", sequence: 0 };
    let file = File::create(path).expect("a file");
    let properties = schema::writer_properties(table, &info);
    let mut writer = ArrowWriter::try_new(file, schema::of(table), Some(properties)).expect("a writer");
    writer.write(&batch).expect("rows are written");
    writer.close().expect("the file is whole");
}

/// What DuckDB answers, with a view for each table.
fn ask(example: &Example) -> Cells {
    let place = tempfile::tempdir().expect("a folder");
    let mut script = String::from("SET TimeZone = 'UTC';\n");
    for (name, rows) in &example.rows {
        let table = catalogue::table(name).unwrap_or_else(|| panic!("there is no table {name}"));
        let path = place.path().join(format!("{name}.parquet"));
        write(table, rows.clone(), &path);
        script += &format!("CREATE VIEW {name} AS FROM '{}';\n", path.display());
    }
    script += &example.sql;
    // Settings of whoever runs the test do not count.
    let answer = Command::new(duckdb())
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
