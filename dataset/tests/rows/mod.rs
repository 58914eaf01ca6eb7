// SPDX-License-Identifier: Apache-2.0

//! Rows written in tests as text, and the DuckDB that answers: for tests of this crate, of `query` and of `report`.
//!
//! In: cells, as in a table in Markdown. Out: a Parquet file with the table's own schema and settings. A column that is not
//! named is null, or zero where it may not be null; `time_utc` is `ts_ns` since 1970, and a row stands for one event unless
//! it says otherwise.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::builder::{Int64Builder, ListBuilder, StringDictionaryBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use dataset::catalogue::{Column, ColumnType, Table};
use dataset::schema::{self, FileInfo};
use parquet::arrow::ArrowWriter;

/// Cells by row; the first row names the columns.
pub(crate) type Cells = Vec<Vec<String>>;

/// The `duckdb` that tests ask.
pub(crate) fn duckdb() -> PathBuf {
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
pub(crate) fn cells<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Cells {
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
                let slots = value.map(|value| value.split_whitespace().map(|slot| Some(number::<i64>(slot))));
                builder.append_option(slots);
            }
            Arc::new(builder.finish())
        }
    }
}

/// Adds what follows from the rows: when it was in UTC, and that a row stands for one event.
fn with_common(mut cells: Cells, booted_us: i64) -> Cells {
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
            row.push((booted_us + ns / 1_000).to_string());
        }
    }
    cells
}

/// Rows of a table, of a node that booted at that time, microseconds since 1970.
pub(crate) fn batch(table: &Table, cells: Cells, booted_us: i64) -> RecordBatch {
    for name in &cells[0] {
        assert!(
            table.columns.iter().any(|column| column.name == name),
            "{} has no column {name}",
            table.name
        );
    }
    let width = cells[0].len();
    assert!(cells.iter().all(|row| row.len() == width), "{}: a row of another width", table.name);
    let cells = with_common(cells, booted_us);
    let columns = table.columns.iter().map(|column| array(&cells, column)).collect();
    RecordBatch::try_new(schema::of(table), columns).expect("the table's own columns")
}

/// Writes rows as a file of a table.
pub(crate) fn write(table: &Table, cells: Cells, info: &FileInfo<'_>, file: impl Write + Send) {
    let batch = batch(table, cells, 0);
    let properties = schema::writer_properties(table, info);
    let mut writer = ArrowWriter::try_new(file, schema::of(table), Some(properties)).expect("a writer");
    writer.write(&batch).expect("rows are written");
    writer.close().expect("the file is whole");
}
