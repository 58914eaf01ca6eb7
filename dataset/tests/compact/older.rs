// SPDX-License-Identifier: Apache-2.0

//! Files of an older version lack the columns that were added since: they are right, and are merged as they are.

use std::path::Path;

use arrow_array::RecordBatch;
use dataset::check;
use dataset::reader::{self, Finding};
use dataset::schema::{self, META, SCHEMA_VERSION};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;

use crate::session::{Session, cells, rows};
use crate::{ALL, compact, findings, load, store};

/// As if it had been added since: it may not be null.
const ADDED: &str = "bytes_acked";

/// Two segments without the column, that say to be of this version of the schema.
async fn write_older(folder: &Path, version: u32) {
    let table = dataset::catalogue::table("tcp_connections").unwrap();
    let mut session = Session::new(folder);
    for round in 0..2 {
        let text = format!("ts_ns | node | comm\n{round} | a | c{round}");
        let rows = rows::batch(table, cells(&text), 0);
        let kept: Vec<usize> =
            (0..rows.num_columns()).filter(|index| rows.schema().field(*index).name() != ADDED).collect();
        let rows: RecordBatch = rows.project(&kept).unwrap();
        session.write("a", table, 1, 1, |info, file| {
            let properties = schema::writer_properties(table, info);
            let mut pairs = properties.key_value_metadata().unwrap().clone();
            pairs.retain(|pair| pair.key != format!("{META}schema_version"));
            pairs.push(KeyValue::new(format!("{META}schema_version"), version.to_string()));
            let properties = properties.into_builder().set_key_value_metadata(Some(pairs)).build();
            let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties)).unwrap();
            writer.write(&rows).unwrap();
            writer.close().unwrap();
        });
    }
    session.finish(&[]).await;
}

#[tokio::test]
async fn an_older_file_without_a_newer_column_is_right_and_is_merged_as_it_is() {
    assert!(dataset::schema("tcp_connections").unwrap().field_with_name(ADDED).is_ok());
    let folder = tempfile::tempdir().unwrap();
    write_older(folder.path(), SCHEMA_VERSION - 1).await;
    let store = store(folder.path());
    assert_eq!(findings(&store).await, []);
    let done = compact(&store, ALL).await.unwrap();
    assert_eq!((done.merged.0, done.into.0), (2, 1));
    assert_eq!(findings(&store).await, []);
    let merged = reader::read_table(store.as_ref(), &load(&store).await, "tcp_connections").await.unwrap();
    assert_eq!(merged[0].num_rows(), 2);
    assert!(merged[0].column_by_name(ADDED).is_none(), "what was not recorded is not made up");
}

#[tokio::test]
async fn a_file_of_todays_version_has_every_column() {
    let folder = tempfile::tempdir().unwrap();
    write_older(folder.path(), SCHEMA_VERSION).await;
    let store = store(folder.path());
    let wrong = |findings: Vec<Finding>| {
        findings.into_iter().filter(|finding| finding.to_string().contains("has no column")).count()
    };
    assert_eq!(wrong(findings(&store).await), 2);
    // That is for `verify` to say: merging loses nothing of it.
    compact(&store, ALL).await.unwrap();
    assert_eq!(wrong(check::verify(store.as_ref(), &load(&store).await).await.unwrap()), 1);
}
