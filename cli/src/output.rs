// SPDX-License-Identifier: Apache-2.0

//! What commands print: tables for people, JSON and YAML for programs, times, sizes, colours.
//!
//! Invariants: colours only on a terminal, and not with `NO_COLOR`; no control character of what a cluster or a store says
//! reaches a terminal; a reader that has gone away is no error.

use std::io::{ErrorKind, Write};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use crds::Phase;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

/// How something is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; resources as the API server has them.
    Json,
    /// The same as YAML.
    Yaml,
}

impl Format {
    /// Prints something: its text for people, or itself for programs.
    ///
    /// # Errors
    /// As [`print`].
    pub(crate) fn print<T: Serialize>(
        self,
        itself: impl FnOnce() -> T,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        print(&match self {
            Self::Table => text(),
            Self::Json => serde_json::to_string_pretty(&itself())? + "\n",
            Self::Yaml => serde_yaml::to_string(&itself())?,
        })
    }
}

/// What went well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// What somebody should look at.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default();
/// What went wrong.
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
/// Headings.
pub(crate) const BOLD: Style = Style::new().bold();

/// How a phase looks.
pub(crate) fn phase_style(phase: Option<Phase>) -> Style {
    match phase {
        Some(Phase::Completed) => GOOD,
        Some(Phase::Incomplete | Phase::Failed) => BAD,
        _ => Style::new(),
    }
}

/// Prints to standard output. Styles are left out where it is no terminal, or with `NO_COLOR`.
///
/// # Errors
/// When it cannot be written to, as to a full disk.
pub(crate) fn print(text: &str) -> Result<()> {
    put(anstream::stdout(), text)
}

/// Prints to a terminal what moves its cursor, which is no style: `NO_COLOR` leaves it there.
///
/// # Errors
/// As [`print`].
pub(crate) fn steer(text: &str) -> Result<()> {
    put(std::io::stdout(), text)
}

/// A reader that has gone is no error.
fn put(mut out: impl Write, text: &str) -> Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// Text of somebody else, on one line: control characters are shown escaped.
pub(crate) fn plain(text: &str) -> String {
    dataset::reader::plain(text, usize::MAX)
}

/// A text in a style.
pub(crate) fn paint(style: Style, text: &str) -> String {
    format!("{style}{}{style:#}", plain(text))
}

/// A cell of a table.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn new(text: impl ToString) -> Self {
        Self::painted(Style::new(), text)
    }

    pub(crate) fn painted(style: Style, text: impl ToString) -> Self {
        Self { text: plain(&text.to_string()), style }
    }
}

/// Between two columns, as kubectl has them.
const GAP: usize = 3;

/// Headings and rows as kubectl prints them: whole cells, to the left.
pub(crate) fn table(headings: &[&str], rows: &[Vec<Cell>]) -> String {
    let headings: Vec<Cell> = headings.iter().map(|heading| Cell::painted(BOLD, heading)).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&headings]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.text.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut text = String::new();
    for row in [&headings].into_iter().chain(rows) {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text += &paint(cell.style, &cell.text);
            if column + 1 < row.len() {
                text += &" ".repeat(width + GAP - cell.text.chars().count());
            }
        }
        // An empty cell at the end.
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    text
}

/// Bytes in the largest unit of 1024 that leaves a number of 1 or more.
pub(crate) fn bytes(bytes: i64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") }
}

/// A length of time with the precision that somebody wants, as kubectl prints ages.
pub(crate) fn age(seconds: i64) -> String {
    let two = |big: i64, unit: char, small: i64, of: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{of}"),
    };
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    let seconds = seconds.max(0);
    match seconds {
        ..120 => format!("{seconds}s"),
        120..600 => two(seconds / MINUTE, 'm', seconds % MINUTE, 's'),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => two(seconds / HOUR, 'h', seconds % HOUR / MINUTE, 'm'),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        _ => format!("{}d", seconds / DAY),
    }
}

/// Seconds from a time until now; negative when it is to come.
pub(crate) fn since(time: &Time, now: Timestamp) -> i64 {
    now.as_second() - time.0.as_second()
}

/// A time, and how long ago or until then.
pub(crate) fn when(time: &Time, now: Timestamp) -> String {
    let seconds = since(time, now);
    let distance =
        if seconds < 0 { format!("in {}", age(-seconds)) } else { format!("{} ago", age(seconds)) };
    format!("{} ({distance})", time.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_as_kubectl_prints_them() {
        let cases = [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (252, "4m12s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (28_800, "8h"),
            (172_800, "2d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn sizes_have_a_unit_that_fits() {
        let cases =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (3 << 40, "3.0 TiB")];
        for (size, text) in cases {
            assert_eq!(bytes(size), text);
        }
        assert_eq!(bytes(5 << 50), "5120.0 TiB");
    }

    #[test]
    fn times_are_utc_with_the_distance_to_now() {
        let time = |second| Time(Timestamp::from_second(second).unwrap());
        let now = Timestamp::from_second(1_795_406_706).unwrap();
        assert_eq!(when(&time(1_795_406_665), now), "2026-11-23T04:04:25Z (41s ago)");
        assert_eq!(when(&time(1_795_406_958), now), "2026-11-23T04:09:18Z (in 4m12s)");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_whatever_its_colour() {
        let rows = [
            vec![Cell::new("a"), Cell::painted(BAD, "Failed"), Cell::new(1)],
            vec![Cell::new("long-name"), Cell::painted(GOOD, "Completed"), Cell::new("\u{1b}[31m")],
        ];
        let text = table(&["NAME", "PHASE", "LOST"], &rows);
        assert!(text.contains(&format!("{BAD}Failed{BAD:#}")), "{text:?}");
        let stripped = anstream::adapter::strip_str(&text).to_string();
        let expected = "NAME        PHASE       LOST\n\
                        a           Failed      1\n\
                        long-name   Completed   \\u{1b}[31m\n";
        assert_eq!(stripped, expected);
    }
}
