// SPDX-License-Identifier: Apache-2.0

//! The report on a terminal.
//!
//! In: [`View`]s. Out: text, with numbers to the right, the first rows of each table that is not short by itself, and colours only if asked for. Names are
//! others' to choose: whatever could move the cursor, change colours or turn the direction of text is shown escaped.

use std::fmt::Write;

use crate::format::things;
use crate::report::Report;
use crate::view::{Cell, Level, Table, View};

/// Rows of a table that are printed; the page and the JSON have more.
const ROWS: usize = 8;
/// Longer cells are cut.
const WIDEST: usize = 96;

/// How it is printed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// With colours.
    pub colours: bool,
}

impl Style {
    fn paint(self, level: Option<Level>, text: &str) -> String {
        let code = match level {
            _ if !self.colours => return text.to_owned(),
            Some(Level::Crit) => "31",
            Some(Level::Warn) => "33",
            Some(Level::Ok) => "32",
            Some(Level::Info) => "36",
            None => return text.to_owned(),
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    fn bold(self, text: &str) -> String {
        if self.colours { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The whole report.
pub fn report(report: &Report, style: Style) -> String {
    let mut text = style.bold(&clean(&report.title())) + "  " + &clean(&report.subtitle()) + "\n";
    text += &sections(report.views(), style);
    text
}

/// Some sections, each with an empty line before it.
pub(crate) fn sections(views: &[View], style: Style) -> String {
    views.iter().map(|view| "\n".to_owned() + &section(view, style)).collect()
}

fn section(view: &View, style: Style) -> String {
    if let Some(why) = &view.absent {
        return format!("{}: {}\n", style.bold(&view.title), clean(why));
    }
    let mut text = style.bold(&view.title) + "\n";
    let widest = view.figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
    for figure in &view.figures {
        let name = clean(&figure.name);
        let pad = " ".repeat(widest.saturating_sub(name.chars().count()));
        _ = writeln!(text, "  {name}{pad}  {}", style.paint(figure.cell.level, &clean(&figure.cell.text)));
    }
    for advice in &view.advice {
        let mark = match advice.level {
            Level::Crit => "!!",
            Level::Warn => "! ",
            Level::Info | Level::Ok => "i ",
        };
        let (cause, evidence) = (clean(&advice.cause), clean(&advice.evidence));
        _ = writeln!(text, "  {} {cause}", style.paint(Some(advice.level), mark));
        _ = writeln!(text, "     {evidence}\n     -> {}", clean(&advice.next));
    }
    for note in &view.notes {
        _ = writeln!(text, "  {}", clean(note));
    }
    for one in view.tables.iter().filter(|table| !table.rows.is_empty()) {
        _ = writeln!(text, "\n  {}", style.bold(&clean(&one.title)));
        text += &table(one, style);
    }
    text
}

fn table(table: &Table, style: Style) -> String {
    let rows = if table.whole { usize::MAX } else { ROWS };
    let shown = &table.rows[..table.rows.len().min(rows)];
    let cells: Vec<Vec<String>> =
        shown.iter().map(|row| row.iter().map(|cell| cut(&clean(&cell.text))).collect()).collect();
    let width = |column: usize| {
        let cells = cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([table.columns[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
    let right: Vec<bool> =
        (0..table.columns.len()).map(|i| shown.iter().any(|row| row.get(i).is_some_and(is_number))).collect();
    let mut text = String::new();
    let mut line = |cells: &[(String, Option<Level>)]| {
        let mut line = String::from(" ");
        for (i, (cell, level)) in cells.iter().enumerate() {
            let pad = " ".repeat(widths[i].saturating_sub(cell.chars().count()));
            let cell = style.paint(*level, cell);
            line += &if right[i] { format!(" {pad}{cell} ") } else { format!(" {cell}{pad} ") };
        }
        text += line.trim_end();
        text.push('\n');
    };
    line(&table.columns.iter().map(|name| (clean(name), None)).collect::<Vec<_>>());
    line(&widths.iter().map(|width| ("-".repeat(*width), None)).collect::<Vec<_>>());
    for (row, cells) in shown.iter().zip(cells) {
        line(&cells.into_iter().zip(row.iter().map(|cell| cell.level)).collect::<Vec<_>>());
    }
    let more = table.rows.len() - shown.len();
    if more > 0 {
        _ = writeln!(text, "  {} more in --html and --json", things(more as u64, "row", "rows"));
    }
    if !table.note.is_empty() {
        _ = writeln!(text, "  {}", clean(&table.note));
    }
    text
}

fn is_number(cell: &Cell) -> bool {
    cell.value.is_some()
}

fn cut(text: &str) -> String {
    if text.chars().count() <= WIDEST {
        return text.to_owned();
    }
    text.chars().take(WIDEST - 1).chain(['…']).collect()
}

/// Without characters that do something.
pub(crate) fn clean(text: &str) -> String {
    let harmless = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if harmless(c) { clean.push(c) } else { clean.extend(c.escape_default()) }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_change_a_terminal_is_shown_escaped() {
        assert_eq!(clean("a\u{1b}[31mb\nc\u{202e}d"), "a\\u{1b}[31mb\\nc\\u{202e}d");
    }
}
