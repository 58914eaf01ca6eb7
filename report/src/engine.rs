// SPDX-License-Identifier: Apache-2.0

//! What answers the report's queries, and how rows become values.
//!
//! In: SQL over the session's tables, each a view of its name, empty where nothing was recorded. Out: rows as JSON objects.
//! The SQL is what DataFusion and DuckDB both take, so that the tests can ask one about the other: divisions are of floating
//! numbers only, orders name where nulls go, and a point in time is `CAST(time_utc AS BIGINT)`, microseconds since 1970.
//! Invariant: every query aggregates or has a limit, so that what comes back is small however large the session is.

use std::future::Future;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// One row, by column.
pub type Row = Map<String, Value>;

/// A SQL engine with the tables of one session.
pub trait Engine: Sync {
    /// Runs one query.
    fn rows(&self, sql: &str) -> impl Future<Output = Result<Vec<Row>, ReportError>> + Send;
}

/// Why a section cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// An object that the section is made of is gone, or is not what its manifest says. It stays so however often one asks.
    #[error("an object of the session cannot be read: {0}")]
    Object(String),
    /// The engine failed otherwise, by its store or for lack of memory; its words name what. The next try may succeed.
    #[error("the session's tables cannot be queried: {0}")]
    Query(String),
    /// A column is not what the query makes it: a mistake of this program, or tables of another make.
    #[error("a query's answer has another shape: {0}")]
    Shape(#[from] serde_json::Error),
}

/// The rows of a query as values of a type.
pub(crate) async fn ask<T: DeserializeOwned>(engine: &impl Engine, sql: &str) -> Result<Vec<T>, ReportError> {
    let rows = engine.rows(sql).await?;
    rows.into_iter().map(|row| Ok(serde_json::from_value(Value::Object(row))?)).collect()
}

/// Text as a literal. Names of nodes are the dataset's, which nobody has to believe.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A query of `node`, `from_us` and `until_us` that answers these rows.
pub(crate) fn stretches<'a>(rows: impl Iterator<Item = (&'a str, i64, i64)>) -> String {
    let rows: Vec<String> =
        rows.map(|(node, from, until)| format!("({}, {from}, {until})", literal(node))).collect();
    if rows.is_empty() {
        return "SELECT '' AS node, 0 AS from_us, 0 AS until_us WHERE 1 = 0".to_owned();
    }
    format!("SELECT node, from_us, until_us FROM (VALUES {}) AS v(node, from_us, until_us)", rows.join(", "))
}

/// A value to three significant digits, rounded down: few enough values to count each, so that quantiles of any number of
/// rows need no more memory than some thousand counters.
pub(crate) fn three_digits(column: &str) -> String {
    let mut text = String::from("CASE");
    for zeros in 1..=15_u32 {
        let (limit, step) = (10_u64.pow(zeros + 2), 10_u64.pow(zeros - 1));
        text += &format!(" WHEN {column} < {limit} THEN {column} - {column} % {step}");
    }
    text + &format!(" ELSE {column} END")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_in_a_name_stays_in_the_literal() {
        assert_eq!(literal("a' OR '1'='1"), "'a'' OR ''1''=''1'");
    }

    #[test]
    fn digits_are_cut_after_the_third() {
        let sql = three_digits("x");
        assert!(
            sql.starts_with("CASE WHEN x < 1000 THEN x - x % 1 WHEN x < 10000 THEN x - x % 10 "),
            "{sql}"
        );
        assert!(
            sql.ends_with("WHEN x < 100000000000000000 THEN x - x % 100000000000000 ELSE x END"),
            "{sql}"
        );
    }
}
