// SPDX-License-Identifier: Apache-2.0

//! Arrow schemas and Parquet settings, made from the tables' descriptions.
//!
//! In: a [`Table`]. Out: its Arrow schema, with unit and description in each field's metadata, and
//! the properties every file of it is written with.
//!
//! | column type | Arrow | why |
//! | --- | --- | --- |
//! | `Int64`, `Int32` | the same, signed | some engines read unsigned 64-bit numbers as decimals |
//! | `TimeUtc` | Timestamp(us, UTC) | what every engine reads as a point in time |
//! | `Dict`, `Ip` | Dictionary(Int32, Utf8) | written as plain strings with a dictionary page |
//! | `Histogram` | List(Int64) | every engine has lists and their functions |
//!
//! Times and durations are delta-encoded without a dictionary (12.3 instead of 12.9 bytes a row, at no
//! cost), and zstd level 1 is the default: level 9 costs three to four times as much for 1-2 %.
//! Invariant: a column may be added, never change its type; `schemas/*.txt` holds every schema.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use node_agent_common::table::{ColumnType, Table};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::catalogue;

/// The time zone of every timestamp.
pub const UTC: &str = "UTC";
/// Raised when columns are added to any table. 2: how long a connection was held up, and by what (`busy_ns` and those after it).
pub const SCHEMA_VERSION: u32 = 2;
/// Rows of one row group: more would hold 12-23 MB for every million rows in memory while a file is written.
pub const ROW_GROUP_ROWS: usize = 128 * 1024;
/// Rows in memory are written out as a row group at this size, whatever their number.
pub const ROW_GROUP_BYTES: usize = 16 << 20;
/// Rows of a row group are sorted by the first of these columns that its table has.
pub const SORTED_BY: [&str; 3] = ["ts_ns", "from_ns", "started_ns"];
/// Field metadata: the unit.
pub const UNIT: &str = "unit";
/// Field metadata: the description.
pub const DOC: &str = "doc";
/// File metadata, each key with its value's meaning, begin with this.
pub const META: &str = "tracelake.";

/// What a file says about itself, in its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo<'a> {
    /// UID of the session.
    pub session: &'a str,
    /// The node that wrote it.
    pub node: &'a str,
    /// The boot during which the rows were made.
    pub boot: &'a str,
    /// The agent process that wrote it.
    pub incarnation: &'a str,
    /// As in its key.
    pub sequence: u64,
}

/// The field of a histogram's slots.
pub fn histogram_slot() -> FieldRef {
    Arc::new(Field::new("element", DataType::Int64, false))
}

fn data_type(ty: ColumnType) -> DataType {
    match ty {
        ColumnType::Int64 => DataType::Int64,
        ColumnType::Int32 => DataType::Int32,
        ColumnType::Bool => DataType::Boolean,
        ColumnType::Text => DataType::Utf8,
        ColumnType::Dict | ColumnType::Ip => {
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
        }
        ColumnType::TimeUtc => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
        ColumnType::Float64 => DataType::Float64,
        ColumnType::Histogram => DataType::List(histogram_slot()),
    }
}

fn build(table: &Table) -> SchemaRef {
    let fields: Vec<_> = table
        .columns
        .iter()
        .map(|column| {
            let metadata = HashMap::from([
                (DOC.to_owned(), column.doc.to_owned()),
                (UNIT.to_owned(), column.unit.to_owned()),
            ]);
            Field::new(column.name, data_type(column.ty), column.nullable).with_metadata(metadata)
        })
        .collect();
    Arc::new(Schema::new(fields))
}

static SCHEMAS: LazyLock<BTreeMap<&'static str, SchemaRef>> =
    LazyLock::new(|| catalogue::tables().map(|table| (table.name, build(table))).collect());

/// The schema of the table of that name; none if there is no such table.
pub fn schema(table: &str) -> Option<SchemaRef> {
    SCHEMAS.get(table).cloned()
}

/// The schema of a table of the catalogue.
///
/// # Panics
/// When the table is not one of [`catalogue::tables`].
pub fn of(table: &Table) -> SchemaRef {
    schema(table.name).unwrap_or_else(|| panic!("table {} is not in the catalogue", table.name))
}

/// The version of every table's schema, for [`SessionFile`](crate::manifest::SessionFile).
pub fn versions() -> BTreeMap<String, u32> {
    catalogue::tables().map(|table| (table.name.to_owned(), SCHEMA_VERSION)).collect()
}

/// The column that rows of a table are sorted by within a row group: its place in the schema.
pub fn sort_column(table: &Table) -> Option<usize> {
    SORTED_BY.iter().find_map(|name| table.columns.iter().position(|column| column.name == *name))
}

/// How files of a table are written.
pub fn writer_properties(table: &Table, info: &FileInfo<'_>) -> WriterProperties {
    let pair = |key: &str, value: String| KeyValue::new(format!("{META}{key}"), value);
    let metadata = vec![
        pair("table", table.name.to_owned()),
        pair("schema_version", SCHEMA_VERSION.to_string()),
        pair("session", info.session.to_owned()),
        pair("node", info.node.to_owned()),
        pair("boot", info.boot.to_owned()),
        pair("incarnation", info.incarnation.to_owned()),
        pair("sequence", info.sequence.to_string()),
    ];
    let sorting = sort_column(table)
        .map(|index| vec![SortingColumn { column_idx: index as i32, descending: false, nulls_first: false }]);
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("tracelake ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("1 is a level of zstd")))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_sorting_columns(sorting)
        .set_key_value_metadata(Some(metadata));
    for column in table.columns {
        let time = column.ty == ColumnType::TimeUtc
            || (column.ty == ColumnType::Int64 && matches!(column.unit, "ns" | "us"));
        if time {
            let path = ColumnPath::from(column.name);
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
        }
    }
    properties.build()
}

/// A schema as text, one column a line: what the golden files hold.
pub fn describe(table: &Table) -> String {
    let mut text = format!("table {} (schema version {SCHEMA_VERSION})\n", table.name);
    for (field, column) in of(table).fields().iter().zip(table.columns) {
        let null = if field.is_nullable() { "null" } else { "not null" };
        text += &format!("{}: {}, {null}, unit {:?}\n", field.name(), field.data_type(), column.unit);
    }
    text
}
