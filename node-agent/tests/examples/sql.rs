// SPDX-License-Identifier: Apache-2.0

//! What `tracelake sql` answers, and DuckDB's command line: to the same text, which `answers.sql` has once for each question.
//!
//! `tracelake sql` reads one session. Of several it is asked for what is found in each; what follows of that it is asked as well, with
//! those rows in the place of the table.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::known::Row;

/// A question, and what its answer is made of.
pub(crate) struct Question {
    pub(crate) name: &'static str,
    /// As DuckDB and `tracelake sql` take it, of one session.
    pub(crate) whole: &'static str,
    found: &'static str,
    then: &'static str,
}

/// All of them.
pub(crate) fn questions() -> Vec<Question> {
    let texts =
        include_str!("answers.sql").split("\n-- ").skip(1).filter(|text| text.contains("WITH found AS ("));
    texts
        .map(|text| {
            let (name, whole) = text.split_once('\n').expect("a name, then a query");
            let inner = whole.trim_start().strip_prefix("WITH found AS (\n").expect("what is found");
            let (found, then) = inner.split_once("\n)\n").expect("what follows of it");
            Question { name, whole, found, then }
        })
        .collect()
}

/// The answers about some sessions, of which each is its number and its URL.
pub(crate) fn answers(sessions: &[(i64, String)]) -> BTreeMap<String, Vec<Row>> {
    let answer = |question: Question| {
        let rows = match sessions {
            [(_, url)] => ask(url, question.whole),
            several => of_several(several, &question),
        };
        (question.name.to_owned(), rows.into_iter().map(with_times).collect())
    };
    questions().into_iter().map(answer).collect()
}

fn of_several(sessions: &[(i64, String)], question: &Question) -> Vec<Row> {
    let mut rows = Vec::new();
    for (session, url) in sessions {
        rows.extend(ask(url, &question.found.replace("'SESSION'", &format!("'{session}'"))));
    }
    let names: Vec<&str> = rows[0].keys().map(String::as_str).collect();
    let row = |row: &Row| {
        let values = names.iter().map(|name| literal(&row[*name])).collect::<Vec<_>>();
        format!("({})", values.join(","))
    };
    let values = rows.iter().map(row).collect::<Vec<_>>().join(",");
    let names = names.join(", ");
    let found = format!("WITH found AS (SELECT * FROM (VALUES {values}) AS given({names}))");
    ask(&sessions[0].1, &format!("{found} {}", question.then))
}

fn literal(value: &Value) -> String {
    match value {
        Value::String(text) => format!("'{}'", text.replace('\'', "''")),
        other => other.to_string(),
    }
}

/// Runs `tracelake sql`, which reads the store with the variables that the examples read it with.
fn ask(url: &str, sql: &str) -> Vec<Row> {
    let program = std::env::var_os("TRACELAKE_CLI").expect("TRACELAKE_CLI names the command line");
    let mut child = Command::new(program)
        .args(["sql", url, "-o", "json"])
        .env("TZ", "Asia/Kathmandu")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // On one line: more than a command line holds.
    let text = sql.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success() && errors.is_empty(),
        "{url}: {}\n{errors}",
        &text[..text.len().min(2_000)]
    );
    let lines = String::from_utf8(done.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Points in time are compared as microseconds since 1970.
pub(crate) fn with_times(mut row: Row) -> Row {
    if let Some(time) = row.get_mut("time_utc") {
        *time = micros(time.as_str().expect("a time is text")).into();
    }
    row
}

/// Of `2026-11-29T10:00:00.5Z` and `2026-11-29 10:00:00.5+00`, which say that they are UTC.
fn micros(text: &str) -> i64 {
    let utc = text
        .strip_suffix('Z')
        .or_else(|| text.strip_suffix("+00"))
        .unwrap_or_else(|| panic!("{text} is not UTC"));
    let (date, time) = utc.split_once(['T', ' ']).expect("a date and a time");
    let (seconds, fraction) = time.split_once('.').unwrap_or((time, ""));
    let numbers =
        |text: &str, by| text.split(by).map(|n| n.parse::<i64>().expect("a number")).collect::<Vec<_>>();
    let ([year, month, day], [hour, minute, second]) = (&numbers(date, '-')[..], &numbers(seconds, ':')[..])
    else {
        panic!("{text} is no time")
    };
    // Days from 1970 by H. Hinnant's `days_from_civil`, of years that begin in March.
    let (y, m) = if *month > 2 { (*year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    let micros: i64 = format!("{fraction:0<6}").parse().expect("at most six digits");
    (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + micros
}

#[test]
fn a_time_that_is_shown_is_the_microsecond_that_it_was() {
    assert_eq!(micros("1970-01-01T00:00:00Z"), 0);
    assert_eq!(micros("2000-02-29 00:00:00+00"), 951_782_400_000_000);
    assert_eq!(micros("2026-11-23T04:05:06.789012Z"), 1_795_406_706_789_012);
    assert_eq!(micros("2026-11-23 04:05:06.7+00"), 1_795_406_706_700_000);
}
