// SPDX-License-Identifier: Apache-2.0

//! Whether the small tables and the node manifest say the same: ledger, coverage and clock anchors stand in both.
//!
//! In: a node manifest, and the rows of its objects of these tables. Out: [`Finding`]s. A checksum tells that an object was changed,
//! and a session's totals that a ledger was; that somebody changed a manifest's coverage or clock anchors only its objects tell.
//!
//! An object of some KiB may hold any number of equal rows, and one long text in each of them. So first the numbers of rows are
//! compared that the manifest has of both; rows are decoded where these agree, of an object no more than its entry says, and become
//! text as long as it is no more than the manifest's own.
//!
//! Rows are compared as a bag: agents sort them within a row group, and merging puts those of several together. Columns that a
//! file lacks or has besides, because another version wrote it, are left out.

use std::fmt;

use arrow_array::RecordBatch;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::bookkeeping::{coverage_batch, ledger_batch, session_nodes_batch};
use crate::finding::Finding;
use crate::key::Key;
use crate::manifest::{NodeManifest, ObjectEntry};
use crate::render::cell;

/// Bytes of text that may be there besides the manifest's own: where it is less, the column that differs is told.
const MORE_TEXT: usize = 1 << 20;

/// Compares how many rows the entries of a table's objects come to with how many the node manifest has.
pub(crate) fn count(
    manifest: &Key,
    node: &NodeManifest,
    table: &str,
    entries: &[&ObjectEntry],
) -> Option<Finding> {
    let stored = entries.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.rows));
    let said = match table {
        "ledger" => node.ledger.len(),
        "coverage" => node.coverage.len(),
        _ => node.incarnations.len(),
    };
    (stored != said as u64).then(|| {
        let reason = format!("table {table} has {stored} rows, the node manifest {said}");
        Finding::Content { key: manifest.relative(), reason }
    })
}

/// The rows of one object, which has to have as many as its entry says.
pub(crate) fn rows(object: &ObjectEntry, content: Bytes) -> Result<Vec<RecordBatch>, String> {
    let readable = |error: &dyn fmt::Display| format!("it is not readable: {error}");
    let reader = ParquetRecordBatchReaderBuilder::try_new(content).and_then(|file| file.build());
    let (mut all, mut rows) = (Vec::new(), 0);
    for batch in reader.map_err(|error| readable(&error))? {
        let batch = batch.map_err(|error| readable(&error))?;
        rows += batch.num_rows() as u64;
        // The footer's number was compared, and need not be that of the pages.
        if rows > object.rows {
            break;
        }
        all.push(batch);
    }
    if rows == object.rows {
        Ok(all)
    } else {
        Err(format!("its pages have other than its {} rows", object.rows))
    }
}

/// The rows of a table as the node manifest has them.
pub(crate) fn said(node: &NodeManifest, table: &str) -> RecordBatch {
    match table {
        "ledger" => ledger_batch(&node.ledger),
        "coverage" => coverage_batch(&node.coverage),
        _ => session_nodes_batch(&node.node, &node.boot, &node.incarnations),
    }
}

/// Compares what a node manifest says with as many rows of its objects of this table.
pub(crate) fn compare(
    manifest: &Key,
    table: &str,
    said: RecordBatch,
    rows: &[RecordBatch],
) -> Option<Finding> {
    let schema = said.schema();
    let common = |name: &&str| rows.iter().all(|batch| batch.column_by_name(name).is_some());
    let columns: Vec<&str> =
        schema.fields().iter().map(|field| field.name().as_str()).filter(common).collect();
    let told = |reason| Some(Finding::Content { key: manifest.relative(), reason });
    let said = sorted(&[said], &columns, usize::MAX)?;
    let text: usize = said.iter().flatten().map(String::len).sum();
    let Some(stored) = sorted(rows, &columns, text.saturating_add(MORE_TEXT)) else {
        return told(format!(
            "table {table} has more text than the node manifest, which has {text} bytes of it"
        ));
    };
    let (stored_row, said_row) = stored.iter().zip(&said).find(|(stored, said)| stored != said)?;
    let differ = columns.iter().zip(stored_row).zip(said_row).find(|((_, stored), said)| stored != said);
    let ((column, stored), said) = differ?;
    told(format!("column {column} of table {table} has {stored:?}, the node manifest {said:?}"))
}

/// Rows as text, in an order of their own; none where they come to more bytes than `most`.
fn sorted(rows: &[RecordBatch], columns: &[&str], most: usize) -> Option<Vec<Vec<String>>> {
    let (mut all, mut left) = (Vec::new(), most);
    for batch in rows {
        let arrays: Vec<_> = columns.iter().filter_map(|name| batch.column_by_name(name)).collect();
        for row in 0..batch.num_rows() {
            let mut cells = Vec::with_capacity(arrays.len());
            for array in &arrays {
                let cell = cell(array, row);
                left = left.checked_sub(cell.len())?;
                cells.push(cell);
            }
            all.push(cells);
        }
    }
    all.sort();
    Some(all)
}
