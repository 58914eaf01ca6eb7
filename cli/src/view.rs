// SPDX-License-Identifier: Apache-2.0

//! A session for people: a row of a list, the whole of its status, what it waits for.
//!
//! In: the resource as the API server has it. Out: text. Nothing is computed that the status does not say, but what is missing in its
//! account: events that are on their way, or nowhere.

use crds::conditions::{self, session as condition};
use crds::{Phase, Totals, TraceSession, TraceSessionStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::output::{
    BAD, BOLD, Cell, GOOD, WARNING, age, bytes, paint, phase_style, plain, since, table, when,
};
use crate::program;

/// The columns of a list.
pub(crate) const COLUMNS: [&str; 8] =
    ["NAMESPACE", "NAME", "PHASE", "NODES", "EVENTS", "LOST", "UPLOADED", "AGE"];

/// Its status, or that of one nobody has looked at.
pub(crate) fn status(session: &TraceSession) -> TraceSessionStatus {
    session.status.clone().unwrap_or_default()
}

/// `NAMESPACE/NAME`.
pub(crate) fn title(session: &TraceSession) -> String {
    format!("{}/{}", session.namespace().unwrap_or_default(), session.name_any())
}

fn phase_name(phase: Option<Phase>) -> String {
    // Nobody has said anything yet: the operator is away, or about to.
    phase.map_or_else(|| "Unseen".to_owned(), |phase| format!("{phase:?}"))
}

/// A row of a list, as [`COLUMNS`] are.
pub(crate) fn row(session: &TraceSession, now: Timestamp) -> Vec<Cell> {
    let status = status(session);
    let totals = status.totals.unwrap_or_default();
    let created = session.metadata.creation_timestamp.as_ref();
    vec![
        Cell::new(session.namespace().unwrap_or_default()),
        Cell::new(session.name_any()),
        Cell::painted(phase_style(status.phase), phase_name(status.phase)),
        Cell::new(status.nodes.unwrap_or_default().summary),
        Cell::new(totals.emitted),
        lost(&totals),
        Cell::new(bytes(totals.bytes_uploaded)),
        Cell::new(created.map(|time| age(since(time, now))).unwrap_or_default()),
    ]
}

fn lost(totals: &Totals) -> Cell {
    if totals.lost > 0 { Cell::painted(WARNING, totals.lost) } else { Cell::new(totals.lost) }
}

/// Conditions that tell of trouble.
pub(crate) fn troubles(status: &TraceSessionStatus) -> impl Iterator<Item = &Condition> {
    condition::TROUBLES.iter().filter_map(|(type_, bad)| {
        conditions::get(&status.conditions, type_).filter(|condition| condition.status == *bad)
    })
}

/// Whether everything that was asked for was collected and lies in the store.
pub(crate) fn is_whole(status: &TraceSessionStatus) -> bool {
    status.phase == Some(Phase::Completed) && !conditions::is_true(&status.conditions, condition::DEGRADED)
}

/// Events that hit a target and are under no name of the account: on their way, while the session is not over.
fn unaccounted(totals: &Totals) -> i64 {
    totals.emitted
        - totals.exported
        - totals.sampled_out
        - totals.rate_limited
        - totals.filtered
        - totals.lost
}

/// The account of its events in a line.
pub(crate) fn account(status: &TraceSessionStatus) -> String {
    let totals = status.totals.clone().unwrap_or_default();
    let mut text = format!("{} events: {} exported", totals.emitted, totals.exported);
    let terms = [
        (totals.sampled_out, "sampled out"),
        (totals.rate_limited, "rate limited"),
        (totals.filtered, "filtered"),
    ];
    for (events, name) in terms.into_iter().filter(|(events, _)| *events != 0) {
        text += &format!(", {events} {name}");
    }
    let style = if totals.lost > 0 { WARNING } else { GOOD };
    text += &format!(", {}", paint(style, &format!("{} lost", totals.lost)));
    match unaccounted(&totals) {
        0 => {}
        events if status.phase.is_some_and(Phase::is_over) => {
            text += &format!(", {}", paint(BAD, &format!("{events} that nobody accounts for")));
        }
        events => text += &format!(", {events} on their way"),
    }
    text
}

/// What nodes brought to the store, in a line. `tracelake compact` may have made fewer objects of it since.
pub(crate) fn stored(status: &TraceSessionStatus) -> String {
    let totals = status.totals.clone().unwrap_or_default();
    format!(
        "{} rows, {} uploaded in {} objects",
        totals.rows,
        bytes(totals.bytes_uploaded),
        totals.objects_uploaded
    )
}

/// How long until its window ends; none when it has not begun, or is over.
pub(crate) fn left(status: &TraceSessionStatus, now: Timestamp) -> Option<String> {
    let end = status.end_time.as_ref()?;
    let running = matches!(status.phase, Some(Phase::Preparing | Phase::Running));
    running.then(|| age(-since(end, now)))
}

/// Everything its status says.
pub(crate) fn describe(session: &TraceSession, now: Timestamp) -> String {
    let status = status(session);
    let mut text = head(session, &status, now);
    text += &conditions_table(&status, now);
    text += &nodes(&status);
    text += &collectors(&status);
    text += &format!("\n{}\n", paint(BOLD, "LEDGER"));
    text += &format!("{}\n", account(&status));
    let pending = status.totals.as_ref().map_or(0, |totals| totals.bytes_pending);
    let waiting = if pending > 0 { format!(", {} wait on the nodes", bytes(pending)) } else { String::new() };
    text += &format!("{}{waiting}\n", stored(&status));
    text + &dataset(session, &status)
}

fn head(session: &TraceSession, status: &TraceSessionStatus, now: Timestamp) -> String {
    let field = |name: &str, value: &str| format!("{:<13}{}\n", format!("{name}:"), value);
    let left = left(status, now).map(|left| format!(", {left} left")).unwrap_or_default();
    let phase = paint(phase_style(status.phase), &phase_name(status.phase)) + &left;
    let time = |time: &Option<Time>| time.as_ref().map(|time| when(time, now));
    let mut text = field("Session", &paint(BOLD, &title(session)));
    text += &field("UID", &session.uid().unwrap_or_default());
    text += &field("Phase", &phase);
    let target = serde_json::to_string(&session.spec.target).unwrap_or_default();
    text += &field("Target", &plain(&target));
    text += &field("Duration", &session.spec.duration.to_string());
    // The planned end stays in the status of a session that was ended before it.
    let early = session.spec.stop
        || status.completion_time.as_ref().is_some_and(|over| Some(over) < status.end_time.as_ref());
    let times = [
        ("Created", time(&session.metadata.creation_timestamp)),
        ("Started", time(&status.start_time)),
        ("Window ends", time(&status.end_time).filter(|_| !early)),
        ("Over", time(&status.completion_time)),
    ];
    for (name, value) in times {
        text += &value.map(|value| field(name, &value)).unwrap_or_default();
    }
    if session.spec.stop {
        text += &field("Stop", "asked for");
    }
    if status.observed_generation.is_some() && status.observed_generation != session.metadata.generation {
        text += &field("Note", "the operator has not looked at it since it was last changed");
    }
    text
}

fn conditions_table(status: &TraceSessionStatus, now: Timestamp) -> String {
    let rows: Vec<Vec<Cell>> = status
        .conditions
        .iter()
        .map(|condition| {
            let bad = condition::TROUBLES
                .iter()
                .any(|(type_, bad)| condition.type_ == *type_ && condition.status == *bad);
            let style = if bad { BAD } else { anstyle::Style::new() };
            vec![
                Cell::new(&condition.type_),
                Cell::painted(style, &condition.status),
                Cell::painted(style, &condition.reason),
                Cell::new(age(since(&condition.last_transition_time, now))),
                Cell::new(&condition.message),
            ]
        })
        .collect();
    section(&["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"], &rows)
}

fn nodes(status: &TraceSessionStatus) -> String {
    let Some(nodes) = &status.nodes else { return String::new() };
    let counts = [
        nodes.expected,
        nodes.ready,
        nodes.running,
        nodes.draining,
        nodes.done,
        nodes.failed,
        nodes.unsupported,
        nodes.lost,
    ];
    let headings = ["NODES", "READY", "RUNNING", "DRAINING", "DONE", "FAILED", "UNSUPPORTED", "LOST"];
    let mut text = section(&headings, &[counts.iter().map(Cell::new).collect()]);
    let failing: Vec<Vec<Cell>> = status
        .failing_nodes
        .iter()
        .map(|node| vec![Cell::new(&node.name), Cell::painted(BAD, &node.reason), Cell::new(&node.message)])
        .collect();
    text += &section(&["FAILING NODE", "REASON", "MESSAGE"], &failing);
    text
}

fn collectors(status: &TraceSessionStatus) -> String {
    let expected = status.nodes.as_ref().map_or(0, |nodes| nodes.expected);
    let rows: Vec<Vec<Cell>> = status
        .collectors
        .iter()
        .map(|collector| {
            let style = if collector.nodes_unsupported > 0 { WARNING } else { anstyle::Style::new() };
            vec![
                Cell::new(&collector.name),
                Cell::new(format!("{}/{expected}", collector.nodes_running)),
                Cell::painted(style, collector.nodes_unsupported),
                Cell::new(collector.reason.as_deref().unwrap_or_default()),
            ]
        })
        .collect();
    section(&["COLLECTOR", "NODES", "UNSUPPORTED", "REASON"], &rows)
}

fn dataset(session: &TraceSession, status: &TraceSessionStatus) -> String {
    let Some(dataset) = &status.dataset else { return String::new() };
    let mut text = format!("\n{}\n{}\n", paint(BOLD, "DATASET"), plain(&dataset.uri));
    if let Some(endpoint) = &dataset.endpoint {
        text += &format!("at {}\n", plain(endpoint));
    }
    match &dataset.manifest {
        Some(manifest) => {
            text += &format!("{}\n", plain(manifest));
            text += &format!(
                "`{0} show {1}` shows rows and ledger, `{0} status {1} --coverage` what was traced of each container\n",
                program(),
                title(session)
            );
        }
        None => text += "no manifest yet\n",
    }
    text
}

fn section(headings: &[&str], rows: &[Vec<Cell>]) -> String {
    if rows.is_empty() { String::new() } else { format!("\n{}", table(headings, rows)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(phase: &str, degraded: &str, exported: i64) -> TraceSessionStatus {
        let degraded = json!({ "type": "Degraded", "status": degraded, "reason": "R", "message": "",
            "lastTransitionTime": "2026-11-22T10:00:00Z" });
        let totals = json!({ "emitted": 12, "exported": exported, "sampledOut": 1, "rateLimited": 0, "filtered": 0,
            "lost": 2, "rows": 9, "bytesUploaded": 10, "objectsUploaded": 1, "bytesPending": 0 });
        serde_json::from_value(json!({ "phase": phase, "conditions": [degraded], "totals": totals })).unwrap()
    }

    #[test]
    fn events_under_no_name_are_on_their_way_or_missing() {
        let said = |status| anstream::adapter::strip_str(&account(&status)).to_string();
        assert_eq!(
            said(status("Running", "False", 4)),
            "12 events: 4 exported, 1 sampled out, 2 lost, 5 on their way"
        );
        assert_eq!(said(status("Completed", "False", 9)), "12 events: 9 exported, 1 sampled out, 2 lost");
        assert_eq!(
            said(status("Incomplete", "True", 4)),
            "12 events: 4 exported, 1 sampled out, 2 lost, 5 that nobody accounts for"
        );
    }

    #[test]
    fn whole_is_what_completed_and_lacks_nothing() {
        assert!(is_whole(&status("Completed", "False", 9)));
        assert!(!is_whole(&status("Completed", "True", 9)));
        assert!(!is_whole(&status("Incomplete", "False", 9)));
    }
}
