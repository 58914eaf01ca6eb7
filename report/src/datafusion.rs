// SPDX-License-Identifier: Apache-2.0

//! DataFusion as the engine: what `tracelake-query` opens.
//!
//! In: SQL. Out: rows as JSON values, for the few types that the report's queries answer in. Another type is an error, not a
//! guess: it would be a query that somebody changed.
//!
//! An error is told apart by its causes: an object that is gone or damaged, or anything else.

use std::error::Error;
use std::iter::successors;

use query::datafusion::arrow::array::cast::AsArray;
use query::datafusion::arrow::array::{Array, RecordBatch};
use query::datafusion::arrow::datatypes::{
    DataType, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt64Type,
};
use query::datafusion::arrow::error::ArrowError;
use query::datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use query::datafusion::error::DataFusionError;
use query::datafusion::execution::object_store::ObjectStoreUrl;
use query::datafusion::object_store::{self, ObjectStoreExt, path::Path};
use query::datafusion::parquet::errors::ParquetError;
use query::datafusion::prelude::SessionContext;
use serde_json::Value;

use crate::engine::{Engine, ReportError, Row};

/// Where `query` has the session's store in its contexts.
const STORE: &str = "session://objects";
/// How DataFusion begins to tell that a footer cannot be read; the object's path follows.
const NO_FOOTER: &str = "Failed to fetch metadata for file ";

impl Engine for SessionContext {
    async fn rows(&self, sql: &str) -> Result<Vec<Row>, ReportError> {
        let answer = async { self.sql(sql).await?.collect().await };
        let batches = match answer.await {
            Ok(batches) => batches,
            Err(error) => {
                let mut said = error.strip_backtrace();
                if matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)) {
                    said += "; give the report more memory (--memory)";
                }
                let of_object = is_of_object(self, &error).await;
                return Err(if of_object { ReportError::Object(said) } else { ReportError::Query(said) });
            }
        };
        let mut rows = Vec::new();
        for batch in &batches {
            append(batch, &mut rows).map_err(ReportError::Query)?;
        }
        Ok(rows)
    }
}

/// Whether a query failed because an object is gone or damaged, and not because the store did not give it.
async fn is_of_object(context: &SessionContext, error: &DataFusionError) -> bool {
    match without_footer(error) {
        Some(path) => has_no_footer(context, &path).await,
        None => is_gone(error) || is_damaged(error),
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |error| (*error).source())
}

/// The path of an object whose footer could not be read, whatever the reason.
fn without_footer(error: &(dyn Error + 'static)) -> Option<Path> {
    causes(error).find_map(|cause| match cause.downcast_ref()? {
        ParquetError::General(said) => said.strip_prefix(NO_FOOTER)?.split(": ").next().map(Path::from),
        _ => None,
    })
}

/// Asks for a footer again: DataFusion hands on no more than the text of what the store said. Whatever length the manifest gives it,
/// an object that is cut has no footer at its end.
async fn has_no_footer(context: &SessionContext, path: &Path) -> bool {
    let url = ObjectStoreUrl::parse(STORE);
    let Ok(store) = url.and_then(|url| context.runtime_env().object_store(&url)) else { return false };
    let meta = match store.head(path).await {
        Ok(meta) => meta,
        Err(error) => return is_gone(&error),
    };
    let again = DFParquetMetadata::new(&store, &meta).fetch_metadata().await;
    again.is_err_and(|error| is_gone(&error) || is_damaged(&error))
}

fn is_gone(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| matches!(cause.downcast_ref(), Some(object_store::Error::NotFound { .. })))
}

/// What the store could not give comes as an error of the Parquet reader as well, with the store's own among its causes.
fn is_damaged(error: &(dyn Error + 'static)) -> bool {
    let of_store = causes(error).any(|cause| cause.is::<object_store::Error>());
    let of_content = |cause: &(dyn Error + 'static)| {
        cause.is::<ParquetError>() || matches!(cause.downcast_ref(), Some(ArrowError::ParquetError(_)))
    };
    !of_store && causes(error).any(of_content)
}

fn append(batch: &RecordBatch, rows: &mut Vec<Row>) -> Result<(), String> {
    let schema = batch.schema();
    for row in 0..batch.num_rows() {
        let mut values = Row::new();
        for (field, column) in schema.fields().iter().zip(batch.columns()) {
            values.insert(field.name().clone(), value(column.as_ref(), row)?);
        }
        rows.push(values);
    }
    Ok(())
}

fn value(column: &dyn Array, row: usize) -> Result<Value, String> {
    if column.is_null(row) {
        return Ok(Value::Null);
    }
    Ok(match column.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Int8 => column.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => column.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        DataType::Utf8 => column.as_string::<i32>().value(row).into(),
        DataType::Utf8View => column.as_string_view().value(row).into(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).into(),
        DataType::List(_) => {
            let slots = column.as_list::<i32>().value(row);
            let slots: Result<Vec<Value>, String> = (0..slots.len()).map(|i| value(&slots, i)).collect();
            slots?.into()
        }
        other => return Err(format!("a column is {other}, which no query of the report answers in")),
    })
}
