// SPDX-License-Identifier: Apache-2.0

//! The rows of a session's tables, as a user's query sees them.
//!
//! Only what manifests list exists for a reader, so that is what is read here, through the product's
//! own reader; the checks of counts and bytes are the tests'.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use crds::TraceSession;
use dataset::key::SessionPrefix;
use dataset::reader::{self, Contents};
use object_store::ObjectStore;
use serde_json::Value;

use crate::Env;
use crate::session::Session;

/// One row: column to value, null where the column is null.
pub type Row = BTreeMap<String, Value>;

/// A session's dataset in the store.
pub struct Dataset {
    store: Arc<dyn ObjectStore>,
    /// What lies in its folder.
    pub contents: Contents,
}

impl Dataset {
    /// Stops a session, waits for its end and opens what it left: complete, and with nothing lost. A few runs of hooks that
    /// the kernel skipped are no failure: they are counted whosever they were, and the tests compare the rows themselves. A
    /// hook that makes the kernel skip it again and again is one: more than 5 % of the events, rounded up.
    pub async fn complete(env: &Env, session: &Session) -> Result<Self> {
        session.stop().await?;
        let ended = session.phase("Completed").await?;
        let dataset = Self::open(&env.store, &ended).await?;
        dataset.verify().await?;
        let ledger = dataset.table("ledger").await?;
        // An agent that crashed took its count of events with it.
        let counted: Vec<&Row> = ledger.iter().filter(|row| number(row, "emitted") >= 0).collect();
        let of = |column| sum(counted.iter().copied(), column);
        let (skipped, emitted) = (of("lost_recursion")?, of("emitted")?);
        ensure!(
            skipped <= (emitted + 19) / 20,
            "the kernel skipped {skipped} runs of hooks beside {emitted} events: {ledger:?}"
        );
        for row in &ledger {
            for (column, value) in row {
                if column.starts_with("lost_") && column != "lost_recursion" {
                    ensure!(value.as_i64() == Some(0), "{column} is {value} in {row:?}");
                }
            }
        }
        Ok(dataset)
    }

    /// Opens what the session's status points at.
    pub async fn open(store: &Arc<dyn ObjectStore>, session: &TraceSession) -> Result<Self> {
        let status = session.status.as_ref().context("the session has no status")?;
        let place = status.dataset.as_ref().context("status.dataset is not set")?;
        ensure!(place.manifest.is_some(), "status.dataset.manifest is not set");
        Self::at(store, &place.uri).await
    }

    /// Opens what lies there, of a session that nobody can be asked of any more.
    pub async fn at(store: &Arc<dyn ObjectStore>, uri: &str) -> Result<Self> {
        let bucket = format!("s3://{}/", crate::store::BUCKET);
        let folder = uri.strip_prefix(&bucket).with_context(|| format!("{uri} is not in {bucket}"))?;
        let contents = reader::open(store, &SessionPrefix::root(folder)?).await?;
        Ok(Self { store: Arc::clone(store), contents })
    }

    /// The number of the latest manifest.
    pub fn manifest_number(&self) -> u64 {
        self.contents.manifest.as_ref().map_or(0, |manifest| manifest.number)
    }

    /// Reads every object and fails when one is not what the manifests say, or a ledger does not balance.
    pub async fn verify(&self) -> Result<()> {
        let findings = dataset::check::verify(self.store.as_ref(), &self.contents).await?;
        let wrong: Vec<String> =
            findings.iter().filter(|finding| finding.is_error()).map(ToString::to_string).collect();
        ensure!(wrong.is_empty(), "the dataset does not verify:\n{}", wrong.join("\n"));
        Ok(())
    }

    /// Every row of a table.
    pub async fn table(&self, table: &str) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for batch in reader::read_table(self.store.as_ref(), &self.contents, table).await? {
            push(&batch, &mut rows)?;
        }
        Ok(rows)
    }
}

/// The text of a column, empty where null.
pub fn text<'a>(row: &'a Row, column: &str) -> &'a str {
    row.get(column).and_then(Value::as_str).unwrap_or_default()
}

/// The number in a column, -1 where null: no column of ours holds a negative count.
pub fn number(row: &Row, column: &str) -> i64 {
    row.get(column).and_then(Value::as_i64).unwrap_or(-1)
}

/// The sum of a column over rows; nulls are an error.
pub fn sum<'a>(rows: impl IntoIterator<Item = &'a Row>, column: &str) -> Result<i64> {
    let mut sum = 0;
    for row in rows {
        sum += row
            .get(column)
            .and_then(Value::as_i64)
            .with_context(|| format!("{column} is null in {row:?}"))?;
    }
    Ok(sum)
}

fn push(batch: &RecordBatch, rows: &mut Vec<Row>) -> Result<()> {
    let first = rows.len();
    rows.resize_with(first + batch.num_rows(), Row::new);
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        for index in 0..column.len() {
            let value = value(column, index).with_context(|| format!("column {}", field.name()))?;
            rows[first + index].insert(field.name().clone(), value);
        }
    }
    Ok(())
}

fn value(column: &dyn Array, index: usize) -> Result<Value> {
    if column.is_null(index) {
        return Ok(Value::Null);
    }
    Ok(match column.data_type() {
        DataType::Int64 => column.as_primitive::<Int64Type>().value(index).into(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(index).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(index).into(),
        DataType::Boolean => column.as_boolean().value(index).into(),
        DataType::Timestamp(..) => column.as_primitive::<TimestampMicrosecondType>().value(index).into(),
        DataType::Utf8 => column.as_string::<i32>().value(index).into(),
        DataType::Dictionary(..) => {
            let dictionary = column.as_dictionary::<Int32Type>();
            return value(dictionary.values(), dictionary.keys().value(index) as usize);
        }
        DataType::List(_) => {
            let slots = column.as_list::<i32>().value(index);
            (0..slots.len()).map(|slot| value(&slots, slot)).collect::<Result<Vec<_>>>()?.into()
        }
        other => bail!("no table of ours has type {other}"),
    })
}

/// Executions of `/usr/bin/true` in a pod, of rows of `processes`: node, pid and start of each.
pub fn programs<'a>(rows: &'a [Row], pod: &str) -> BTreeSet<(&'a str, i64, i64)> {
    rows.iter()
        .filter(|row| {
            text(row, "pod") == pod && text(row, "kind") == "exec" && text(row, "exe") == "/usr/bin/true"
        })
        .map(|row| (text(row, "node"), number(row, "pid"), number(row, "start_ns")))
        .collect()
}
