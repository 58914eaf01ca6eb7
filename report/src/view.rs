// SPDX-License-Identifier: Apache-2.0

//! What a section shows, whoever shows it: figures, advice, tables and charts, with numbers already as text.
//!
//! In: what each section made of its queries. Out: [`View`]s, which [`text`](crate::text) prints and the page draws. Names of
//! processes, pods and peers are in here as they came: who shows them has to make them harmless.

use serde::Serialize;

use crate::format::{Unit, percent};

/// How much something is to be worried about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Within bounds.
    Ok,
    /// Worth knowing; no bound is set.
    Info,
    /// Past the first bound.
    Warn,
    /// Past the second bound.
    Crit,
}

/// A cell of a table, or a figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cell {
    /// What is read.
    pub text: String,
    /// What is sorted by, and why it stands to the right; none for names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// How it is marked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
}

impl Cell {
    /// A name.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A number.
    pub fn number(unit: Unit, value: impl Into<Measure>) -> Self {
        let value = value.into().0;
        Self { text: unit.format(value), value: Some(value), level: None }
    }

    /// A number that names something: a port, a process.
    pub fn id(id: i64) -> Self {
        Self { text: id.to_string(), value: Some(id as f64), level: None }
    }

    /// A number that may be unknown.
    pub fn maybe<T: Into<Measure>>(unit: Unit, value: Option<T>) -> Self {
        value.map_or_else(|| Self::text("–"), |value| Self::number(unit, value))
    }

    /// A share of a whole; unknown where there is no whole.
    pub fn share(part: impl Into<Measure>, whole: impl Into<Measure>) -> Self {
        let (part, whole) = (part.into().0, whole.into().0);
        if whole == 0.0 {
            return Self::text("–");
        }
        Self::ratio(part / whole)
    }

    /// A share that is known as such.
    pub fn ratio(ratio: f64) -> Self {
        Self { text: percent(ratio), value: Some(ratio), level: None }
    }

    /// The same, marked.
    pub fn marked(self, level: Level) -> Self {
        Self { level: Some(level), ..self }
    }
}

/// A number of any kind. Counts beyond 2^53 lose their last digits in text, not in the report's JSON.
#[derive(Clone, Copy, Debug)]
pub struct Measure(f64);

impl From<u64> for Measure {
    fn from(value: u64) -> Self {
        Self(value as f64)
    }
}

impl From<f64> for Measure {
    fn from(value: f64) -> Self {
        Self(value)
    }
}

/// How two values of a figure are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// By what share it grew.
    Relative,
    /// The same of what adds up over the session: per second, where one lasted longer than the other.
    Total,
    /// By how many points.
    Points,
    /// By how many per cent of the whole, where the value is a share.
    Share,
    /// Not at all.
    None,
}

/// One number of a section that stands for the whole session: what two sessions are compared by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// Its value.
    pub cell: Cell,
    /// How it is compared.
    #[serde(skip)]
    pub change: Change,
}

impl Figure {
    /// A number.
    pub fn number(name: &str, unit: Unit, value: impl Into<Measure>) -> Self {
        Self::cell(name, Cell::number(unit, value), Change::Relative)
    }

    /// A number that adds up over the session.
    pub fn total(name: &str, unit: Unit, value: impl Into<Measure>) -> Self {
        Self::cell(name, Cell::number(unit, value), Change::Total)
    }

    /// A number that may be unknown.
    pub fn maybe<T: Into<Measure>>(name: &str, unit: Unit, value: Option<T>) -> Self {
        Self::cell(name, Cell::maybe(unit, value), Change::Relative)
    }

    /// Anything else.
    pub fn cell(name: &str, cell: Cell, change: Change) -> Self {
        Self { name: name.to_owned(), cell, change }
    }
}

/// What to look at next, for a cause that a number names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// How much it matters.
    pub level: Level,
    /// What is behind it.
    pub cause: String,
    /// The numbers that say so.
    pub evidence: String,
    /// What to look at or change.
    pub next: String,
}

/// Rows under names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// What it lists.
    pub title: String,
    /// Names of columns.
    pub columns: Vec<String>,
    /// As many cells each.
    pub rows: Vec<Vec<Cell>>,
    /// What is not in it, and other remarks.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Whether all of it is printed on a terminal, too: a list that is short by itself.
    #[serde(skip)]
    pub whole: bool,
}

impl Table {
    /// Without rows yet.
    pub fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&name| name.to_owned()).collect();
        Self { title: title.to_owned(), columns, rows: Vec::new(), note: String::new(), whole: false }
    }
}

/// Something to draw.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Chart {
    /// Values over time, one per interval.
    Series {
        /// What it shows.
        title: String,
        /// Of the values.
        unit: Unit,
        /// Microseconds since 1970.
        from_us: i64,
        /// Length of an interval.
        step_us: i64,
        /// At most some dozen.
        series: Vec<Series>,
    },
    /// Bars from a beginning to an end.
    Timeline {
        /// What it shows.
        title: String,
        /// Microseconds since 1970.
        from_us: i64,
        /// Where it ends.
        to_us: i64,
        /// From top to bottom.
        spans: Vec<Span>,
    },
    /// Bars by name.
    Bars {
        /// What it shows.
        title: String,
        /// Of the values.
        unit: Unit,
        /// Name and value, in order.
        bars: Vec<(String, f64)>,
    },
}

/// One line of a chart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// One per interval, from the first on; null where it is not known.
    pub values: Vec<Option<f64>>,
}

/// One bar of a timeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Span {
    /// At its left.
    pub name: String,
    /// What is said of it when somebody points at it.
    pub detail: String,
    /// Microseconds since 1970.
    pub from_us: i64,
    /// Its end, or the session's.
    pub to_us: i64,
    /// Whether it began before the chart does.
    pub earlier: bool,
    /// Whether it goes on at the end.
    pub open: bool,
    /// Whether its end may have been missed: it ends where it was seen last.
    pub unseen: bool,
    /// Whether it ended badly.
    pub failed: bool,
}

/// One section.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// For links.
    pub id: String,
    /// Its heading.
    pub title: String,
    /// Why there is nothing, where that is so; then all else is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
    /// Whether that is because an object could not be read.
    #[serde(skip)]
    pub unread: bool,
    /// The numbers that matter most.
    pub figures: Vec<Figure>,
    /// What to look at next.
    pub advice: Vec<Advice>,
    /// Sentences about how exact this is.
    pub notes: Vec<String>,
    /// What to draw.
    pub charts: Vec<Chart>,
    /// What to list.
    pub tables: Vec<Table>,
}

impl View {
    /// Without anything yet.
    pub fn new(id: &str, title: &str) -> Self {
        Self {
            id: id.to_owned(),
            title: title.to_owned(),
            absent: None,
            unread: false,
            figures: Vec::new(),
            advice: Vec::new(),
            notes: Vec::new(),
            charts: Vec::new(),
            tables: Vec::new(),
        }
    }
}
