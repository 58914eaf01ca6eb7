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

/// Parts of an interval in which ends of windows are told apart: what is moved to a neighbour is less than one of them.
const PARTS: i64 = 100;

/// A query of `name`, `bin` and `value`, ordered by name: what rows of a table (`of` is its name and a condition) add up to in each
/// interval. A row that stands for a window is spread over the intervals by how much of it lies in each, and a window's part before
/// or after the session, in which nobody looked, holds nothing. A row that stands for a moment is in the moment's interval.
pub(crate) fn over_time(scope: &Scope<'_>, step_us: i64, name: &str, sum: &str, of: &str) -> String {
    // A window is hardly longer than an interval, so it touches three of them at most.
    format!(
        "WITH {}, \
         parts AS (SELECT name, since_us, until_us, value, since_us - since_us % {step_us} + nth * {step_us} AS bin, nth \
             FROM windows CROSS JOIN (VALUES (0), (1), (2)) AS n(nth)) \
         SELECT name, bin, sum(CASE WHEN since_us = until_us THEN value ELSE \
             value * (least(until_us, bin + {step_us}) - greatest(since_us, bin)) / (until_us - since_us) END) AS value \
         FROM parts WHERE nth = 0 OR bin < until_us GROUP BY name, bin ORDER BY name NULLS FIRST, bin",
        windows(scope, step_us, name, sum, of)
    )
}

/// `windows`: the sums of a name from one time to another.
///
/// Every row might have its own times and be a group of its own, and memory grow with the session. So ends of windows are rounded down
/// to a part of an interval (but for the session's own end, after which its last interval has nothing), and moments to their interval.
fn windows(scope: &Scope<'_>, step_us: i64, name: &str, sum: &str, of: &str) -> String {
    let (from, length) = (scope.from_us, scope.to_us - scope.from_us);
    let window = "CAST((coalesce(window_ns, 0) - coalesce(window_ns, 0) % 1000) / 1000 AS BIGINT)";
    let inside = |us: &str| format!("greatest(least({us} - {from}, {length}), 0)");
    let closed = inside("CAST(time_utc AS BIGINT)");
    let opened = inside(&format!("CAST(time_utc AS BIGINT) - {window}"));
    let part = (step_us / PARTS).max(1);
    let rounded = |us: &str| {
        format!(
            "CASE WHEN opened_us = closed_us THEN {us} - {us} % {step_us} \
             WHEN {us} < {length} THEN {us} - {us} % {part} ELSE {us} END"
        )
    };
    let (since, until) = (rounded("opened_us"), rounded("closed_us"));
    format!(
        "looked AS (SELECT *, {opened} AS opened_us, {closed} AS closed_us FROM {of}), \
         windows AS (SELECT {name} AS name, {since} AS since_us, {until} AS until_us, CAST({sum} AS DOUBLE) AS value \
             FROM looked GROUP BY {name}, {since}, {until})"
    )
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

/// The same per second, of the time that the session has of each interval.
pub(crate) async fn rates(
    engine: &impl Engine,
    scope: &Scope<'_>,
    step_us: i64,
    sql: &str,
    others: &str,
) -> Result<Vec<Series>, ReportError> {
    let mut series = sums(engine, scope, step_us, sql, others).await?;
    let bins = scope.bins(step_us) as i64;
    for series in &mut series {
        for (bin, value) in (0..).zip(&mut series.values) {
            // The last interval ends with the session.
            let end = if bin + 1 == bins { scope.to_us - scope.from_us } else { (bin + 1) * step_us };
            let length = (end - bin * step_us).max(1);
            value.iter_mut().for_each(|value| *value *= 1e6 / length as f64);
        }
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
    use dataset::key::SessionPrefix;
    use dataset::reader::Contents;
    use query::datafusion::prelude::SessionContext;

    use super::*;

    /// How many groups rows of these times and this window become in a session of one second, and their sums per tenth of it.
    async fn groups(times_us: impl Iterator<Item = i64>, window_ns: &str) -> (u64, Vec<(i64, f64)>) {
        #[derive(Deserialize)]
        struct Groups {
            n: u64,
        }
        let contents = Contents::empty(SessionPrefix::root("").expect("a prefix"));
        let (mut scope, step_us) = (Scope::new(&contents), 100_000);
        scope.to_us = 1_000_000;
        let rows: Vec<String> = times_us.map(|us| format!("({us}, {window_ns})")).collect();
        let of = format!("(VALUES {}) AS v(time_utc, window_ns)", rows.join(", "));
        let context = SessionContext::new();
        let windows = windows(&scope, step_us, "'web'", "count(*)", &of);
        let count = format!("WITH {windows} SELECT count(*) AS n FROM windows");
        let groups: Vec<Groups> = ask(&context, &count).await.expect("a number");
        let over_time = over_time(&scope, step_us, "'web'", "count(*)", &of);
        let bins: Vec<Bin> = ask(&context, &over_time).await.expect("sums");
        (groups[0].n, bins.into_iter().map(|bin| (bin.bin, bin.value)).collect())
    }

    #[tokio::test]
    async fn rows_are_no_more_groups_than_a_chart_can_tell_apart() {
        let (n, bins) = groups((0..1_000).map(|at| at * 1_000 + 7), "CAST(NULL AS BIGINT)").await;
        assert_eq!((n, bins), (10, (0..10).map(|bin| (bin * 100_000, 100.0)).collect()));
        // Windows of a tenth of a second that end in the sixth one, 0.1 ms after each other.
        let (n, bins) = groups((0..1_000).map(|at| 500_000 + at * 100), "100000000").await;
        assert_eq!((n, bins.len(), bins[0].0, bins[1].0), (100, 2, 400_000, 500_000));
        let (exact, most) = ([500.5, 499.5], 0.01 * 1_000.0);
        assert!(bins.iter().zip(exact).all(|((_, value), exact)| (value - exact).abs() < most), "{bins:?}");
        // The session's own end stays, wherever in a part it is.
        let (_, bins) = groups([1_000_000].into_iter(), "50000").await;
        assert_eq!(bins, [(900_000, 1.0)]);
    }

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
