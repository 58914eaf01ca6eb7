// SPDX-License-Identifier: Apache-2.0

//! Two sessions side by side: what changed, figure by figure, and the charts of both.
//!
//! In: two [`Report`]s. Out: [`Comparison`], whose JSON is `tracelake-comparison/2` with both reports inside, and its
//! [`View`]s. Figures stand for a whole session: pods and processes of two sessions are rarely the same ones. What adds up over a
//! session is compared per second where one lasted longer than the other.

use serde::Serialize;

use crate::format::{Unit, percent};
use crate::report::Report;
use crate::text::clean;
use crate::view::{Advice, Cell, Change, Chart, Figure, Table, View};

/// The version of the JSON.
pub const FORMAT: &str = "tracelake-comparison/2";
/// By how much lengths may differ and be the same.
const SAME_LENGTH: f64 = 0.05;

/// Two sessions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// [`FORMAT`].
    pub format: &'static str,
    /// Every figure that either has.
    pub figures: Vec<Compared>,
    /// The one.
    pub a: Report,
    /// The other.
    pub b: Report,
}

/// One figure in both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// The section's id.
    pub section: String,
    /// What it is.
    pub name: String,
    /// In the one; none where its section has nothing.
    pub a: Option<Cell>,
    /// In the other.
    pub b: Option<Cell>,
    /// From the one to the other, as it is read; empty where that says nothing.
    pub change: String,
}

impl Comparison {
    /// Compares.
    pub fn new(a: Report, b: Report) -> Self {
        let mut figures = Vec::new();
        let longer = longer(&a, &b);
        for (one, other) in a.views().iter().zip(b.views()) {
            let with = |name: &str, of: &View| of.figures.iter().find(|figure| figure.name == name).cloned();
            let mut names: Vec<&str> = Vec::new();
            for figure in one.figures.iter().chain(&other.figures) {
                if !names.contains(&figure.name.as_str()) {
                    names.push(&figure.name);
                }
            }
            figures.extend(names.into_iter().map(|name| {
                let (a, b) = (with(name, one), with(name, other));
                Compared {
                    section: one.id.clone(),
                    name: name.to_owned(),
                    change: a.as_ref().zip(b.as_ref()).map(|(a, b)| change(a, b, longer)).unwrap_or_default(),
                    a: a.map(|figure| figure.cell),
                    b: b.map(|figure| figure.cell),
                }
            }));
        }
        Self { format: FORMAT, figures, a, b }
    }

    /// Both names.
    pub fn title(&self) -> String {
        format!("A: {}, B: {}", self.a.title(), self.b.title())
    }

    /// When each was.
    pub fn subtitle(&self) -> String {
        format!("A: {}. B: {}", self.a.subtitle(), self.b.subtitle())
    }

    /// As it is shown, section by section.
    pub fn views(&self) -> Vec<View> {
        self.a.views().iter().zip(self.b.views()).map(|(a, b)| self.view(a, b)).collect()
    }

    fn view(&self, a: &View, b: &View) -> View {
        let mut view = View::new(&a.id, &a.title);
        if let (Some(why), Some(other)) = (&a.absent, &b.absent) {
            view.absent = Some(if why == other { why.clone() } else { format!("A: {why}; B: {other}") });
            return view;
        }
        for (side, of) in [("A", a), ("B", b)] {
            view.notes.extend(of.absent.iter().map(|why| format!("{side}: {why}.")));
            view.charts.extend(of.charts.iter().map(|chart| of_side(side, chart)));
        }
        if let Some(longer) = longer(&self.a, &self.b).filter(|_| a.figures.iter().any(is_total)) {
            let length = |report: &Report| Unit::Nanoseconds.format(length_us(report) * 1e3);
            view.notes.push(format!(
                "A lasted {}, B {}: {}. Changes of what adds up over a session are per second.",
                length(&self.a),
                length(&self.b),
                if longer > 1.0 { "B was longer" } else { "A was longer" }
            ));
        }
        view.advice = advice(&a.advice, &b.advice);
        let mut table = Table::new("Side by side", &["figure", "A", "B", "from A to B"]);
        table.whole = true;
        table.rows.extend(self.figures.iter().filter(|figure| figure.section == a.id).map(|figure| {
            let cell = |cell: &Option<Cell>| cell.clone().unwrap_or_else(|| Cell::text("–"));
            vec![Cell::text(&figure.name), cell(&figure.a), cell(&figure.b), Cell::text(&figure.change)]
        }));
        view.tables.push(table);
        view
    }
}

/// What has the same cause in both is said once.
fn advice(a: &[Advice], b: &[Advice]) -> Vec<Advice> {
    let of = |cause: &str, all: &[Advice]| all.iter().position(|one| one.cause == cause);
    let only = |side: &str, one: &Advice| Advice { cause: format!("{side}: {}", one.cause), ..one.clone() };
    let mut advice: Vec<Advice> = a
        .iter()
        .map(|one| match of(&one.cause, b).and_then(|place| b.get(place)) {
            None => only("A", one),
            Some(other) => Advice {
                level: one.level.max(other.level),
                cause: format!("Both: {}", one.cause),
                evidence: if one.evidence == other.evidence {
                    one.evidence.clone()
                } else {
                    format!("A: {}; B: {}", one.evidence, other.evidence)
                },
                next: one.next.clone(),
            },
        })
        .collect();
    advice.extend(b.iter().filter(|one| of(&one.cause, a).is_none()).map(|one| only("B", one)));
    advice.sort_by_key(|one| std::cmp::Reverse(one.level));
    advice
}

fn of_side(side: &str, chart: &Chart) -> Chart {
    let mut chart = chart.clone();
    let (Chart::Series { title, .. } | Chart::Timeline { title, .. } | Chart::Bars { title, .. }) =
        &mut chart;
    *title = format!("{side}: {title}");
    chart
}

fn length_us(report: &Report) -> f64 {
    (report.session.to_us - report.session.from_us) as f64
}

/// How many times as long as A B was, where that is not about the same.
fn longer(a: &Report, b: &Report) -> Option<f64> {
    let (a, b) = (length_us(a), length_us(b));
    (a > 0.0 && b > 0.0 && (b / a - 1.0).abs() > SAME_LENGTH).then(|| b / a)
}

fn is_total(figure: &Figure) -> bool {
    figure.change == Change::Total
}

/// From the one to the other, if B was so many times longer.
fn change(a: &Figure, b: &Figure, longer: Option<f64>) -> String {
    let (Some(from), Some(to)) = (a.cell.value, b.cell.value) else { return String::new() };
    let longer = longer.filter(|_| is_total(a));
    let to = to / longer.unwrap_or(1.0);
    let text = change_of(a.change, from, to);
    if longer.is_some() && !text.is_empty() { text + " per second" } else { text }
}

fn change_of(change: Change, from: f64, to: f64) -> String {
    if from == to {
        return "the same".to_owned();
    }
    let sign = if to > from { "+" } else { "−" };
    let by = (to - from).abs();
    match change {
        Change::None => String::new(),
        Change::Points => format!("{sign}{by:.0}"),
        Change::Share => format!("{sign}{} of the whole", percent(by)),
        Change::Relative | Change::Total if from == 0.0 => "from none".to_owned(),
        Change::Relative | Change::Total if to / from >= 10.0 => format!("{:.0} times", to / from),
        Change::Relative | Change::Total => format!("{sign}{}", percent(by / from)),
    }
}

/// On a terminal.
pub fn text(comparison: &Comparison, style: crate::text::Style) -> String {
    let mut text = String::new();
    for (side, report) in [("A", &comparison.a), ("B", &comparison.b)] {
        text += &format!("{side}: {}  {}\n", clean(&report.title()), clean(&report.subtitle()));
    }
    text + &crate::text::sections(&comparison.views(), style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_in_the_way_of_each_figure() {
        let of = |change, from: f64, to: f64| {
            let figure = |value: f64| Figure::cell("x", Cell::number(Unit::Count, value), change);
            super::change(&figure(from), &figure(to), None)
        };
        assert_eq!(of(Change::Relative, 200.0, 150.0), "−25.0 %");
        assert_eq!(of(Change::Relative, 2.0, 50.0), "25 times");
        assert_eq!(of(Change::Relative, 0.0, 5.0), "from none");
        assert_eq!(of(Change::Points, 88.0, 60.0), "−28");
        assert_eq!(of(Change::Share, 0.01, 0.025), "+1.50 % of the whole");
        assert_eq!(of(Change::Share, 0.01, 0.01), "the same");
        assert_eq!(of(Change::Total, 200.0, 150.0), "−25.0 %");
        // B was twice as long.
        let twice = |change, from: f64, to: f64| {
            let figure = |value: f64| Figure::cell("x", Cell::number(Unit::Count, value), change);
            super::change(&figure(from), &figure(to), Some(2.0))
        };
        assert_eq!(twice(Change::Total, 200.0, 300.0), "−25.0 % per second");
        assert_eq!(twice(Change::Total, 200.0, 400.0), "the same per second");
        assert_eq!(twice(Change::Relative, 200.0, 150.0), "−25.0 %", "a largest value is none the larger");
    }
}
