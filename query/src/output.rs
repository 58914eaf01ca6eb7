// SPDX-License-Identifier: Apache-2.0

//! Rows as text or Parquet, as they come.
//!
//! In: a frame. Out: a table for people, CSV, JSON (an object a line) or Parquet. Memory: a batch, for Parquet a row group, for a
//! table [`TABLE_ROWS`] rows; what a table leaves out is counted in [`Written`]. In a table no control character of traced
//! programs' names reaches the terminal.

use std::io::Write;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::cast;
use datafusion::arrow::csv;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::writer::{LineDelimited, WriterBuilder as JsonBuilder};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::dataframe::DataFrame;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{Compression, ZstdLevel};
use datafusion::parquet::file::properties::WriterProperties;
use dataset::render;
use dataset::schema::ROW_GROUP_ROWS;
use futures::TryStreamExt;

use crate::QueryError;

/// A table for people has at most so many rows: its widths are known only when they all are there.
pub const TABLE_ROWS: usize = 10_000;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns.
    Table,
    /// With a line of names; lists are text.
    Csv,
    /// One object a line, nulls included.
    Json,
    /// One file, zstd.
    Parquet,
}

/// What became of a query's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Rows written.
    pub rows: usize,
    /// Whether there are more, which a table has no room for.
    pub more: bool,
}

/// Runs a frame and writes its rows.
///
/// # Errors
/// When the query fails on its way, or its rows cannot be written.
pub async fn write(
    frame: DataFrame,
    format: Format,
    out: &mut (dyn Write + Send),
) -> Result<Written, QueryError> {
    let mut rows = frame.execute_stream().await?;
    let schema = rows.schema();
    let mut written = Written::default();
    if schema.fields().is_empty() {
        // A statement without an answer, such as CREATE VIEW.
        rows.try_for_each(|_| async { Ok(()) }).await?;
        return Ok(written);
    }
    let mut writer = Writer::new(format, schema, out)?;
    while let Some(batch) = rows.try_next().await? {
        let taken = writer.write(&batch)?;
        written.rows += taken;
        if taken < batch.num_rows() {
            written.more = true;
            break;
        }
    }
    writer.finish()?;
    Ok(written)
}

/// One of the formats, being written.
enum Writer<'a> {
    Table { out: &'a mut (dyn Write + Send), schema: SchemaRef, cells: Vec<Vec<String>>, rows: usize },
    Csv(Box<csv::Writer<&'a mut (dyn Write + Send)>>, SchemaRef),
    Json(datafusion::arrow::json::Writer<&'a mut (dyn Write + Send), LineDelimited>),
    Parquet(Box<ArrowWriter<&'a mut (dyn Write + Send)>>),
}

impl<'a> Writer<'a> {
    fn new(format: Format, schema: SchemaRef, out: &'a mut (dyn Write + Send)) -> Result<Self, QueryError> {
        Ok(match format {
            Format::Table => Self::Table { out, schema, cells: Vec::new(), rows: 0 },
            Format::Csv => {
                let mut writer = csv::Writer::new(out);
                let flat = flat(&schema);
                // The names, also where no row follows.
                writer.write(&RecordBatch::new_empty(flat.clone()))?;
                Self::Csv(Box::new(writer), flat)
            }
            Format::Json => Self::Json(JsonBuilder::new().with_explicit_nulls(true).build(out)),
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
                    .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
                    .build();
                Self::Parquet(Box::new(ArrowWriter::try_new(out, schema, Some(properties))?))
            }
        })
    }

    /// How many rows were taken.
    fn write(&mut self, batch: &RecordBatch) -> Result<usize, QueryError> {
        match self {
            Self::Table { cells, rows, .. } => {
                let taken = batch.num_rows().min(TABLE_ROWS - *rows);
                for row in lines(&batch.slice(0, taken))? {
                    cells.extend(row);
                }
                *rows += taken;
                return Ok(taken);
            }
            Self::Csv(writer, flat) => {
                let columns = batch.columns().iter().zip(flat.fields());
                let columns: Result<Vec<_>, ArrowError> =
                    columns.map(|(column, field)| cast(column, field.data_type())).collect();
                writer.write(&RecordBatch::try_new(flat.clone(), columns?)?)?;
            }
            Self::Json(writer) => writer.write(batch)?,
            Self::Parquet(writer) => writer.write(batch)?,
        }
        Ok(batch.num_rows())
    }

    fn finish(self) -> Result<(), QueryError> {
        match self {
            Self::Table { out, schema, cells, .. } => {
                let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                out.write_all(render::table_within(&names, &cells, usize::MAX).as_bytes())?;
            }
            Self::Csv(..) => {}
            Self::Json(mut writer) => writer.finish()?,
            Self::Parquet(writer) => _ = writer.close()?,
        }
        Ok(())
    }
}

/// The same with lists as text: CSV has none.
fn flat(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        nested if nested.is_nested() => Arc::new(Field::new(field.name(), DataType::Utf8, true)),
        _ => field.clone(),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The cells of each row. One that has several lines, such as a plan, makes a row of several.
fn lines(batch: &RecordBatch) -> Result<Vec<Vec<Vec<String>>>, ArrowError> {
    let options = FormatOptions::default();
    let columns: Result<Vec<_>, _> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options)).collect();
    let columns = columns?;
    let mut rows = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let cells: Result<Vec<String>, _> =
            columns.iter().map(|column| column.value(row).try_to_string()).collect();
        let cells = cells?;
        let split: Vec<Vec<&str>> = cells.iter().map(|cell| cell.trim_end().split('\n').collect()).collect();
        let height = split.iter().map(Vec::len).max().unwrap_or(1);
        let line = |at: usize| -> Vec<String> {
            split.iter().map(|cell| cell.get(at).copied().unwrap_or_default().to_owned()).collect()
        };
        rows.push((0..height).map(line).collect());
    }
    Ok(rows)
}
