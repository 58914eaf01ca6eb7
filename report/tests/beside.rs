// SPDX-License-Identifier: Apache-2.0

//! `beside FOLDER`: the report of a session whose queries DuckDB answers, as JSON.
//!
//! `cargo xtask bench --answers` measures it beside `tracelake report`. DuckDB's memory is that of each query's own process.

extern crate tracelake_report as report;

#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "support/duckdb.rs"]
mod duckdb;
#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::path::Path;

use dataset::key::SessionPrefix;
use dataset::reader;
use duckdb::DuckDb;
use object_store::local::LocalFileSystem;
use report::Report;

#[tokio::main]
async fn main() {
    let folder = std::env::args().nth(1).expect("usage: beside FOLDER");
    let store = LocalFileSystem::new_with_prefix(&folder).expect("a folder");
    let prefix = SessionPrefix::root("").expect("a prefix");
    let contents = reader::load(&store, &prefix).await.expect("a session");
    let empty = tempfile::tempdir().expect("a folder");
    let engine = DuckDb::over(&contents, Path::new(&folder), empty.path());
    let report = Report::new(&contents, &engine).await.unwrap_or_else(|error| panic!("{error}"));
    println!("{}", serde_json::to_string_pretty(&report).expect("JSON"));
}
