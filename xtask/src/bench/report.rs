// SPDX-License-Identifier: Apache-2.0

//! Medians, and the page that the full run writes.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

/// One goal and what was found.
#[derive(Debug, Serialize)]
pub(super) struct Goal {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) unit: &'static str,
    pub(super) target: f64,
    pub(super) floor: f64,
    pub(super) measured: f64,
    /// Whether less is better.
    pub(super) less: bool,
}

impl Goal {
    /// "met", "between" target and floor, or "below" the floor.
    pub(super) fn verdict(&self) -> &'static str {
        let reaches = |bound: f64| if self.less { self.measured <= bound } else { self.measured >= bound };
        match (reaches(self.target), reaches(self.floor)) {
            (true, _) => "met",
            (false, true) => "between",
            (false, false) => "BELOW",
        }
    }
}

/// The median; sorts its input.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}

/// The value that this share of all does not exceed.
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// Three digits that matter.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0
                    && digit.is_ascii_digit()
                    && (digits.len() - index) % 3 == 0
                    && !text.ends_with('-')
                {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A table of goals.
pub(super) fn goals(goals: &[Goal]) -> String {
    let rows: Vec<Vec<String>> = goals
        .iter()
        .map(|goal| {
            let bound = |value: f64| format!("{} {}", if goal.less { "<=" } else { ">=" }, short(value));
            let measured = format!("{} {}", short(goal.measured), goal.unit);
            let cells =
                [goal.name, goal.what, &bound(goal.target), &bound(goal.floor), &measured, goal.verdict()];
            cells.map(str::to_owned).to_vec()
        })
        .collect();
    table(&["goal", "what", "target", "floor", "measured", ""], &rows)
}

/// The table of where it was measured.
pub(super) fn machine(machine: &BTreeMap<&'static str, String>) -> String {
    let rows: Vec<Vec<String>> =
        machine.iter().map(|(name, value)| vec![(*name).to_owned(), value.clone()]).collect();
    table(&["", ""], &rows)
}

/// A table in Markdown that a terminal shows well, too.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len(), 3]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        for (cell, width) in cells.zip(&widths) {
            _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
    };
    line(&mut head.iter().copied());
    let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    line(&mut rules.iter().map(String::as_str));
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_medians_in_the_middle() {
        assert_eq!([1_234_567.0, 123.4, 12.34, 1.234].map(short), ["1,234,567", "123", "12.3", "1.23"]);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0]), 2.5);
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| percentile(&values, share)), [100.0, 198.0, 200.0]);
        assert_eq!(percentile(&[7.0], 0.5), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_goal_is_met_between_or_below() {
        let goal = |measured, less| Goal {
            name: "G",
            what: "",
            unit: "",
            target: if less { 1.0 } else { 3.0 },
            floor: 2.0,
            measured,
            less,
        };
        let verdicts =
            [goal(1.0, true), goal(1.5, true), goal(2.5, true), goal(3.0, false), goal(1.0, false)];
        assert_eq!(verdicts.map(|goal| goal.verdict()), ["met", "between", "BELOW", "met", "BELOW"]);
    }

    #[test]
    fn a_table_has_columns_of_one_width() {
        let text = table(&["a", "b"], &[vec!["1".into(), "long".into()]]);
        assert_eq!(text, "| a   | b    |\n| --- | ---- |\n| 1   | long |\n");
    }
}
