// SPDX-License-Identifier: Apache-2.0

//! A table's schema in DataFusion's version of arrow.
//!
//! In: the schema that the dataset's files have ([`dataset::schema`]), its only declaration. Out: the same names, types,
//! units and descriptions, but for words, which are views of text here whether files have a dictionary of them or not:
//! DataFusion groups and joins by dictionaries row by row. Every column may be null: files of an older version lack the columns
//! that were added since.

use std::sync::Arc;

use arrow_schema as ours;
use datafusion::arrow::datatypes as theirs;
use datafusion::error::{DataFusionError, Result};
use dataset::catalogue::Table;

/// The schema of a table of the catalogue.
pub(crate) fn schema(table: &Table) -> Result<theirs::SchemaRef> {
    let schema = dataset::schema::of(table);
    let fields = schema.fields().iter().map(|field| {
        let field_type = data_type(field.data_type())?;
        Ok(theirs::Field::new(field.name(), field_type, true).with_metadata(field.metadata().clone().into()))
    });
    Ok(Arc::new(theirs::Schema::new(fields.collect::<Result<Vec<_>>>()?)))
}

fn data_type(ours: &ours::DataType) -> Result<theirs::DataType> {
    Ok(match ours {
        ours::DataType::Int64 => theirs::DataType::Int64,
        ours::DataType::Int32 => theirs::DataType::Int32,
        ours::DataType::Float64 => theirs::DataType::Float64,
        ours::DataType::Boolean => theirs::DataType::Boolean,
        ours::DataType::Utf8 => theirs::DataType::Utf8View,
        ours::DataType::Timestamp(ours::TimeUnit::Microsecond, zone) => {
            theirs::DataType::Timestamp(theirs::TimeUnit::Microsecond, zone.clone())
        }
        ours::DataType::Dictionary(_, words) => data_type(words)?,
        ours::DataType::List(slot) => {
            let slot = theirs::Field::new(slot.name(), data_type(slot.data_type())?, slot.is_nullable());
            theirs::DataType::List(Arc::new(slot))
        }
        other => return Err(DataFusionError::NotImplemented(format!("columns of type {other}"))),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Arrow writes types the same way in both versions.
    #[test]
    fn every_table_has_the_columns_types_and_descriptions_of_its_files() {
        for table in dataset::catalogue::tables() {
            let (ours, theirs) = (dataset::schema::of(table), schema(table).unwrap());
            assert_eq!(ours.fields().len(), theirs.fields().len());
            for (ours, theirs) in ours.fields().iter().zip(theirs.fields()) {
                let name = format!("{}.{}", table.name, ours.name());
                assert_eq!(ours.name(), theirs.name());
                let in_files = match ours.data_type() {
                    ours::DataType::Dictionary(_, words) => words,
                    other => other,
                };
                let here = theirs.data_type().to_string();
                assert_eq!(in_files.to_string(), here.replace("Utf8View", "Utf8"), "{name}");
                assert_eq!(HashMap::from(ours.metadata().clone()), *theirs.metadata(), "{name}");
                assert!(theirs.is_nullable(), "{name}");
            }
        }
    }
}
