// SPDX-License-Identifier: Apache-2.0

//! Values over time by name: from grouped rows to lines that a chart has room for.
//!
//! In: rows of a name, an interval and a value, ordered by name. Out: [`Series`] with a value for every interval, the largest
//! by themselves and the others added up, so that the sum of all lines is the sum of all rows.

use serde::Deserialize;

use crate::engine::{Engine, ReportError, ask};
use crate::scope::{Scope, pod};
use crate::view::Series;

/// Lines of a chart, without that of the others.
pub(crate) const MOST_SERIES: usize = 8;

/// Microseconds from the session's beginning to the middle of a row's window; 0 for what is earlier. The middle, because
/// ends that come a little early or late would put two windows into one interval and none into the next.
pub(crate) fn middle(scope: &Scope<'_>) -> String {
    let half = "CAST((coalesce(window_ns, 0) - coalesce(window_ns, 0) % 2000) / 2000 AS BIGINT)";
    format!("greatest(CAST(time_utc AS BIGINT) - {half} - {}, 0)", scope.from_us)
}

/// The interval that a moment (`since_us`, in microseconds) lies in: its beginning.
pub(crate) fn bin(step_us: i64) -> String {
    format!("since_us - since_us % {step_us}")
}

/// The longest window of a table, in microseconds; 0 where rows stand for events.
pub(crate) async fn window_us(engine: &impl Engine, table: &str) -> Result<i64, ReportError> {
    #[derive(Deserialize)]
    struct Longest {
        ns: Option<i64>,
    }
    let sql = format!("SELECT max(window_ns) AS ns FROM {table}");
    let longest: Vec<Longest> = ask(engine, &sql).await?;
    Ok(longest.first().and_then(|row| row.ns).unwrap_or(0) / 1_000)
}

#[derive(Deserialize)]
struct Bin {
    name: Option<String>,
    bin: i64,
    value: f64,
}

/// Sums per interval, of a query of `name`, `bin` and `value` that is ordered by name. Where there is no row nothing happened.
pub(crate) async fn sums(
    engine: &impl Engine,
    scope: &Scope<'_>,
    step_us: i64,
    sql: &str,
    others: &str,
) -> Result<Vec<Series>, ReportError> {
    let mut series: Vec<Series> = Vec::new();
    let bins = scope.bins(step_us);
    for bin in ask::<Bin>(engine, sql).await? {
        let name = pod(bin.name.as_deref());
        if series.last().is_none_or(|last| last.name != name) {
            series.push(Series { name, values: vec![Some(0.0); bins] });
        }
        let at = usize::try_from(bin.bin / step_us).unwrap_or(0).min(bins - 1);
        if let Some(Some(value)) = series.last_mut().and_then(|series| series.values.get_mut(at)) {
            *value += bin.value;
        }
    }
    keep_largest(&mut series, others);
    Ok(series)
}

/// The same per second.
pub(crate) async fn rates(
    engine: &impl Engine,
    scope: &Scope<'_>,
    step_us: i64,
    sql: &str,
    others: &str,
) -> Result<Vec<Series>, ReportError> {
    let mut series = sums(engine, scope, step_us, sql, others).await?;
    for value in series.iter_mut().flat_map(|series| series.values.iter_mut().flatten()) {
        *value *= 1e6 / step_us as f64;
    }
    Ok(series)
}

/// Keeps those whose largest value is largest, and adds up the rest under one name.
pub(crate) fn keep_largest(series: &mut Vec<Series>, others: &str) {
    let largest = |one: &Series| one.values.iter().flatten().copied().fold(0.0, f64::max);
    series.sort_by(|a, b| largest(b).total_cmp(&largest(a)));
    if series.len() <= MOST_SERIES {
        return;
    }
    let rest = series.split_off(MOST_SERIES);
    let mut sum = vec![None; rest.first().map_or(0, |one| one.values.len())];
    for one in &rest {
        for (value, sum) in one.values.iter().zip(&mut sum) {
            *sum = match (*value, *sum) {
                (Some(a), Some(b)) => Some(a + b),
                (a, b) => a.or(b),
            };
        }
    }
    series.push(Series { name: format!("{} {others}", rest.len()), values: sum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_drawn_by_itself_is_in_the_sum_of_the_others() {
        let mut series: Vec<Series> = (1..=11)
            .map(|i| Series { name: i.to_string(), values: vec![Some(f64::from(i)), None] })
            .collect();
        keep_largest(&mut series, "other pods");
        let names: Vec<&str> = series.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["11", "10", "9", "8", "7", "6", "5", "4", "3 other pods"]);
        assert_eq!(series[8].values, [Some(6.0), None]);
    }
}
