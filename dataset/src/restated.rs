// SPDX-License-Identifier: Apache-2.0

//! Whether the small tables and the node manifest say the same: ledger, coverage and clock anchors stand in both.
//!
//! In: a node manifest, and the rows of its objects of these tables. Out: [`Finding`]s. A checksum tells that an object was changed,
//! and a session's totals that a ledger was; that somebody changed a manifest's coverage or clock anchors only its objects tell.
//!
//! Rows are compared as a bag: agents sort them within a row group, and merging puts those of several together. Columns that a
//! file lacks or has besides, because another version wrote it, are left out.

use arrow_array::RecordBatch;
use bytes::Bytes;

use crate::bookkeeping::{self, coverage_batch, ledger_batch, session_nodes_batch};
use crate::finding::Finding;
use crate::key::Key;
use crate::manifest::NodeManifest;
use crate::reader::{ReadError, batches};
use crate::render::cell;

/// The rows of one object, if it is of a table that the node manifest has as well.
pub(crate) fn rows(key: &str, content: Bytes) -> Result<Vec<RecordBatch>, String> {
    let table = key.split_once('/').map_or("", |(table, _)| table);
    if bookkeeping::TABLES.iter().all(|small| small.name != table) {
        return Ok(Vec::new());
    }
    batches(key, content).map_err(|error| match error {
        ReadError::Invalid { reason, .. } => format!("it is not readable: {reason}"),
        error => error.to_string(),
    })
}

/// Compares a node manifest with the rows of its objects of one table, of which all were read.
pub(crate) fn compare(
    manifest: &Key,
    node: &NodeManifest,
    table: &str,
    rows: &[RecordBatch],
) -> Option<Finding> {
    let said = match table {
        "ledger" => ledger_batch(&node.ledger),
        "coverage" => coverage_batch(&node.coverage),
        _ => session_nodes_batch(&node.node, &node.boot, &node.incarnations),
    };
    let stored: usize = rows.iter().map(RecordBatch::num_rows).sum();
    let wrong = |reason| Some(Finding::Content { key: manifest.relative(), reason });
    if stored != said.num_rows() {
        return wrong(format!("table {table} has {stored} rows, the node manifest {}", said.num_rows()));
    }
    let schema = said.schema();
    let common = |name: &&str| rows.iter().all(|batch| batch.column_by_name(name).is_some());
    let columns: Vec<&str> =
        schema.fields().iter().map(|field| field.name().as_str()).filter(common).collect();
    let (stored, said) = (sorted(rows, &columns), sorted(&[said], &columns));
    let (stored_row, said_row) = stored.iter().zip(&said).find(|(stored, said)| stored != said)?;
    let differ = columns.iter().zip(stored_row).zip(said_row).find(|((_, stored), said)| stored != said);
    let ((column, stored), said) = differ?;
    wrong(format!("column {column} of table {table} has {stored:?}, the node manifest {said:?}"))
}

/// Rows as text, in an order of their own.
fn sorted(rows: &[RecordBatch], columns: &[&str]) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for batch in rows {
        let arrays: Vec<_> = columns.iter().filter_map(|name| batch.column_by_name(name)).collect();
        all.extend((0..batch.num_rows()).map(|row| arrays.iter().map(|array| cell(array, row)).collect()));
    }
    all.sort();
    all
}
