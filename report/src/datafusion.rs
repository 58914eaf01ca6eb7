// SPDX-License-Identifier: Apache-2.0

//! DataFusion as the engine: what `tracelake-query` opens.
//!
//! In: SQL. Out: rows as JSON values, for the few types that the report's queries answer in. Another type is an error, not a
//! guess: it would be a query that somebody changed.

use query::datafusion::arrow::array::cast::AsArray;
use query::datafusion::arrow::array::{Array, RecordBatch};
use query::datafusion::arrow::datatypes::{
    DataType, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt64Type,
};
use query::datafusion::prelude::SessionContext;
use serde_json::Value;

use crate::engine::{Engine, Row};

impl Engine for SessionContext {
    async fn rows(&self, sql: &str) -> Result<Vec<Row>, String> {
        let said = |error: query::datafusion::error::DataFusionError| error.strip_backtrace();
        let batches = self.sql(sql).await.map_err(said)?.collect().await.map_err(said)?;
        let mut rows = Vec::new();
        for batch in &batches {
            append(batch, &mut rows)?;
        }
        Ok(rows)
    }
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
        DataType::Dictionary(_, _) => {
            let dictionary = column.as_any_dictionary();
            let key = dictionary.normalized_keys()[row];
            value(dictionary.values().as_ref(), key)?
        }
        other => return Err(format!("a column is {other}, which no query of the report answers in")),
    })
}
