// SPDX-License-Identifier: Apache-2.0

//! Numbers as a person reads them; the one place that decides about digits and units.
//!
//! `page/chart.js` has the same for axes, by the unit's name.

use serde::Serialize;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Things.
    Count,
    /// Things per second.
    PerSecond,
    /// Bytes, by 1024.
    Bytes,
    /// Bits per second, by 1000.
    BitsPerSecond,
    /// A duration in nanoseconds.
    Nanoseconds,
    /// Seconds in a second: how many did this at once, on average.
    Share,
}

impl Unit {
    /// The number with its unit.
    pub fn format(self, value: f64) -> String {
        match self {
            Self::Count => count(value),
            Self::PerSecond if value == 0.0 || value >= 100.0 => format!("{}/s", count(value.round())),
            Self::PerSecond => format!("{}/s", digits(value)),
            Self::Bytes => scaled(value, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"]),
            Self::BitsPerSecond => scaled(value, 1000.0, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"]),
            Self::Nanoseconds => duration(value),
            Self::Share => digits(value),
        }
    }
}

/// A whole number in groups of three digits.
fn count(value: f64) -> String {
    let text = format!("{value:.0}");
    let (sign, text) = text.strip_prefix('-').map_or(("", text.as_str()), |rest| ("-", rest));
    let mut grouped = String::from(sign);
    for (i, digit) in text.chars().enumerate() {
        if i > 0 && (text.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Three significant digits.
fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        x if x < 0.01 => format!("{value:.4}"),
        x if x < 0.9995 => format!("{value:.3}"),
        x if x < 9.995 => format!("{value:.2}"),
        x if x < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let mut left = value;
    let mut unit = 0;
    // What would be rounded up to the next unit is that.
    while left.abs() >= base - 0.5 && unit + 1 < units.len() {
        left /= base;
        unit += 1;
    }
    let number = if unit == 0 { format!("{left:.0}") } else { digits(left) };
    format!("{number} {}", units[unit])
}

fn duration(ns: f64) -> String {
    const MINUTE: f64 = 60e9;
    if ns.abs() >= 2.0 * MINUTE {
        let seconds = (ns / 1e9).round();
        return match seconds {
            s if s >= 7200.0 => {
                format!("{:.0} h {:.0} min", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor())
            }
            s => format!("{:.0} min {:.0} s", (s / 60.0).floor(), s % 60.0),
        };
    }
    let units = [("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)];
    let (unit, size) = units.into_iter().rfind(|(_, size)| ns.abs() >= *size).unwrap_or(units[0]);
    let number = if unit == "ns" { format!("{ns:.0}") } else { digits(ns / size) };
    format!("{number} {unit}")
}

/// A share as per cent; what is not zero never looks like zero.
pub fn percent(ratio: f64) -> String {
    let value = ratio * 100.0;
    match value.abs() {
        0.0 => "0 %".to_owned(),
        x if x < 0.001 => "below 0.001 %".to_owned(),
        x if x < 0.1 => format!("{value:.3} %"),
        x if x < 10.0 => format!("{value:.2} %"),
        _ => format!("{value:.1} %"),
    }
}

/// `1 thing`, `2 things`.
pub fn things(number: u64, one: &str, several: &str) -> String {
    format!("{} {}", count(number as f64), if number == 1 { one } else { several })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        let cases = [
            (Unit::Count, 1_204_233.0, "1,204,233"),
            (Unit::Count, 999.0, "999"),
            (Unit::PerSecond, 0.5, "0.500/s"),
            (Unit::PerSecond, 1234.4, "1,234/s"),
            (Unit::Bytes, 0.0, "0 B"),
            (Unit::Bytes, 1023.0, "1023 B"),
            (Unit::Bytes, 1_048_575.9, "1.00 MiB"),
            (Unit::BitsPerSecond, 12_345_678.0, "12.3 Mbit/s"),
            (Unit::Nanoseconds, 850.0, "850 ns"),
            (Unit::Nanoseconds, 1_234.0, "1.23 µs"),
            (Unit::Nanoseconds, 61e9, "61.0 s"),
            (Unit::Nanoseconds, 200e9, "3 min 20 s"),
            (Unit::Nanoseconds, 7_260e9, "2 h 1 min"),
            (Unit::Share, 0.25, "0.250"),
        ];
        for (unit, value, text) in cases {
            assert_eq!(unit.format(value), text, "{value}");
        }
    }

    #[test]
    fn a_share_that_is_not_zero_does_not_look_like_it() {
        let shown: Vec<String> = [0.0, 0.000_000_1, 0.000_5, 0.0123, 0.5].map(percent).into();
        assert_eq!(shown, ["0 %", "below 0.001 %", "0.050 %", "1.23 %", "50.0 %"]);
    }
}
