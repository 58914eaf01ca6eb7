// SPDX-License-Identifier: Apache-2.0

//! Every table's schema equals its golden file; `UPDATE=1` rewrites the files.
//!
//! A column may be added. One that is there keeps its name, type and nullability for good: that is
//! checked against the golden file before it is rewritten, so `UPDATE=1` cannot hide a change.

extern crate tracelake_dataset as dataset;

use std::fs;
use std::path::{Path, PathBuf};

use dataset::{catalogue, schema};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

#[test]
fn every_schema_equals_its_golden_file() {
    let update = std::env::var_os("UPDATE").is_some_and(|value| value == "1");
    let mut differing = Vec::new();
    for table in catalogue::tables() {
        let path = folder().join(format!("{}.txt", table.name));
        let (golden, now) = (fs::read_to_string(&path).unwrap_or_default(), schema::describe(table));
        if golden == now {
            continue;
        }
        for line in golden.lines().skip(1) {
            let column = line.rsplit_once(", unit").map_or(line, |(column, _)| column);
            assert!(
                now.lines().any(|line| line.rsplit_once(", unit").is_some_and(|(now, _)| now == column)),
                "{}: the column `{column}` was there and changed; columns may only be added. If no dataset was ever \
                 published with it, remove the line from {}",
                table.name,
                path.display()
            );
        }
        if update {
            fs::write(&path, &now).unwrap();
        }
        differing.push(table.name);
    }
    assert!(
        differing.is_empty() || update,
        "schemas of {differing:?} differ from dataset/schemas: run UPDATE=1 cargo test -p tracelake-dataset --test schemas"
    );
}

#[test]
fn every_golden_file_has_its_table() {
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        assert!(catalogue::table(stem).is_some(), "{} is of no table", path.display());
    }
}

#[test]
fn every_type_is_one_that_all_engines_read() {
    for table in catalogue::tables() {
        for field in schema::of(table).fields() {
            let ty = field.data_type().to_string();
            let known = [
                "Int64",
                "Int32",
                "Float64",
                "Boolean",
                "Utf8",
                "Dictionary(Int32, Utf8)",
                "Timestamp(µs, \"UTC\")",
                "List(non-null Int64, field: 'element')",
            ];
            assert!(known.contains(&ty.as_str()), "{}.{} is {ty}", table.name, field.name());
            assert!(
                field.metadata().contains_key(schema::DOC) && field.metadata().contains_key(schema::UNIT)
            );
        }
    }
}
