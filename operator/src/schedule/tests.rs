// SPDX-License-Identifier: Apache-2.0
//! The ten things that a schedule does as a `CronJob` does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crds::TraceScheduleSpec;
use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector;
use serde_json::{Value, json};

use super::super::times::Times;
use super::super::{Context, act};
use super::*;
use crate::session::limits::Limits;

const DAY: &str = "2026-06-01";

fn at(time: &str) -> Timestamp {
    format!("{DAY}T{time}:00Z").parse().unwrap()
}

/// A schedule made at 06:00, due at the full hour unless changed.
fn schedule(changes: Value) -> TraceSchedule {
    let mut spec = json!({
        "schedule": "0 * * * *",
        "sessionTemplate": {"spec": {"target": {"podSelector": {}}, "collectors": [{"name": "processes"}], "duration": "1m"}},
    });
    for (key, value) in changes.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let spec: TraceScheduleSpec = serde_json::from_value(spec).unwrap();
    let mut schedule = TraceSchedule::new("hourly", spec);
    schedule.metadata.creation_timestamp = Some(Time(at("06:00")));
    schedule.metadata.generation = Some(1);
    schedule
}

fn child(due: &str, phase: Phase) -> Child {
    let completed = phase.is_over().then(|| at(due) + SignedDuration::from_secs(90));
    let name = session_name("hourly", at(due));
    Child { uid: name.clone(), name, phase: Some(phase), due: at(due), completed, deleting: false }
}

fn now(schedule: &TraceSchedule, children: &[Child], time: Timestamp) -> Decision {
    let times = Times::new(&schedule.spec.schedule, schedule.spec.time_zone.as_deref());
    decide(schedule, times.as_ref(), children, time)
}

/// What one pass after the other makes, with the status and the sessions of the one before: (made, deleted).
fn run(
    schedule: &mut TraceSchedule,
    children: &mut Vec<Child>,
    time: Timestamp,
) -> (Vec<String>, Vec<String>) {
    let decision = now(schedule, children, time);
    let clock = |due: Timestamp| due.to_string()[11..16].to_owned();
    let gone: Vec<Child> = decision.delete.into_iter().chain(decision.replace).collect();
    let deleted = gone.iter().map(|child| clock(child.due)).collect();
    children.retain(|child| !gone.contains(child));
    children.extend(decision.start.map(|due| child(&clock(due), Phase::Running)));
    schedule.status = Some(decision.status);
    (decision.start.into_iter().map(clock).collect(), deleted)
}

fn condition_of(decision: &Decision) -> (&str, &str) {
    let found = conditions::get(&decision.status.conditions, condition::ON_TIME).unwrap();
    (&found.status, &found.reason)
}

#[test]
fn a_day_of_summer_time_has_its_session_once() {
    let mut schedule = schedule(json!({"schedule": "30 2 * * *", "timeZone": "Europe/Berlin"}));
    let (mut children, mut made) = (Vec::new(), Vec::new());
    for (day, from) in [("03-28", "00:00"), ("10-24", "12:00")] {
        let mut time: Timestamp = format!("2026-{day}T{from}:00Z").parse().unwrap();
        schedule.metadata.creation_timestamp = Some(Time(time));
        (schedule.status, children) = (None, Vec::new());
        for _ in 0..48 * 6 {
            time += SignedDuration::from_mins(10);
            let decision = now(&schedule, &children, time);
            made.extend(decision.start);
            schedule.status = Some(decision.status);
        }
    }
    let made: Vec<String> = made.iter().map(ToString::to_string).collect();
    assert_eq!(
        made,
        ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
    );
    assert!(children.is_empty());
}

#[test]
fn forbid_waits_for_the_earlier_session_and_makes_up_for_it() {
    let schedule = schedule(json!({"concurrencyPolicy": "Forbid"}));
    let running = [child("07:00", Phase::Draining)];
    let waits = now(&schedule, &running, at("08:00"));
    assert_eq!((waits.start, condition_of(&waits)), (None, ("False", reason::EARLIER_SESSION_ACTIVE)));
    assert_eq!(waits.status.last_schedule_time, Some(Time(at("07:00"))));
    let over = [child("07:00", Phase::Completed)];
    let begins = now(&schedule, &over, at("08:20"));
    assert_eq!(begins.start, Some(at("08:00")));
}

#[test]
fn replace_deletes_the_earlier_session_first() {
    let mut schedule = schedule(json!({"concurrencyPolicy": "Replace"}));
    let mut children = vec![child("07:00", Phase::Running)];
    assert_eq!(run(&mut schedule, &mut children, at("08:00")), (vec!["08:00".into()], vec!["07:00".into()]));
    assert_eq!(schedule.status.unwrap().active, [session_name("hourly", at("08:00"))]);
    // One that goes already is not deleted again, and holds up nobody.
    let leaving = Child { deleting: true, ..child("07:00", Phase::Draining) };
    let schedule = self::schedule(json!({"concurrencyPolicy": "Replace"}));
    let decision = now(&schedule, &[leaving], at("08:00"));
    assert_eq!((decision.replace, decision.start), (vec![], Some(at("08:00"))));
}

#[tokio::test]
async fn replace_makes_no_session_beside_one_that_cannot_be_deleted_and_tries_again() {
    let (asked, is_refused) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(true)));
    let mut schedule = schedule(json!({"concurrencyPolicy": "Replace"}));
    let service = tower::service_fn({
        let (asked, is_refused, schedule) = (asked.clone(), is_refused.clone(), json!(schedule));
        move |request: Request<Body>| {
            let what = format!("{} {}", request.method(), request.uri().path().rsplit('/').next().unwrap());
            asked.lock().unwrap().push(what);
            let is_refused = is_refused.load(Ordering::Relaxed);
            let schedule = schedule.clone();
            async move {
                let method = request.method().clone();
                let body = request.into_body().collect_bytes().await.unwrap();
                let (code, answer) = match method {
                    Method::DELETE if is_refused => {
                        (403, json!({"kind": "Status", "code": 403, "message": "no"}))
                    }
                    Method::DELETE => (200, json!({"kind": "Status", "status": "Success"})),
                    Method::PATCH => (200, schedule),
                    _ => (201, serde_json::from_slice(&body).unwrap()),
                };
                let answer =
                    Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, std::convert::Infallible>(answer.unwrap())
            }
        }
    });
    let client = Client::new(service, "shop");
    let context = Context {
        client: client.clone(),
        recorder: Recorder::new(client, Reporter { controller: "test".to_owned(), instance: None }),
        sessions: reflector::store().0,
        limits: Limits::default(),
    };
    let running = child("07:00", Phase::Running);
    schedule.metadata.namespace = Some("shop".to_owned());
    schedule.status = Some(now(&schedule, std::slice::from_ref(&running), at("07:30")).status);
    let new = session_name("hourly", at("08:00"));
    let done = |what: &str| {
        let asked = std::mem::take(&mut *asked.lock().unwrap());
        asked.into_iter().filter(|one| one.starts_with(what)).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        let decision = now(&schedule, std::slice::from_ref(&running), at("08:00"));
        act(&schedule, &context, decision).await.unwrap_err();
        let all = std::mem::take(&mut *asked.lock().unwrap());
        assert!(all.contains(&format!("DELETE {}", running.name)), "{all:?}");
        assert!(!all.contains(&"POST tracesessions".to_owned()), "{all:?}");
        assert!(all.contains(&"PATCH status".to_owned()), "{all:?}");
    }
    is_refused.store(false, Ordering::Relaxed);
    let decision = now(&schedule, std::slice::from_ref(&running), at("08:00"));
    assert_eq!(decision.status.active, [new]);
    act(&schedule, &context, decision).await.unwrap();
    assert_eq!(done("POST tracesessions"), ["POST tracesessions"]);
}

#[test]
fn allow_lets_sessions_run_side_by_side() {
    let mut schedule = schedule(json!({}));
    let mut children = vec![child("07:00", Phase::Running)];
    assert_eq!(run(&mut schedule, &mut children, at("08:00")), (vec!["08:00".into()], vec![]));
    assert_eq!(schedule.status.unwrap().active_count, 2);
}

#[test]
fn of_several_missed_times_the_newest_is_made_up_for_and_none_twice() {
    let mut schedule = schedule(json!({}));
    let mut children = Vec::new();
    assert_eq!(run(&mut schedule, &mut children, at("06:59")), (vec![], vec![]), "not due yet");
    assert_eq!(run(&mut schedule, &mut children, at("11:17")), (vec!["11:00".into()], vec![]));
    assert_eq!(run(&mut schedule, &mut children, at("11:18")), (vec![], vec![]));
    // Nor where the status was not written: the session itself says what it was made for.
    schedule.status = None;
    assert_eq!(run(&mut schedule, &mut children, at("11:19")), (vec![], vec![]));
}

#[test]
fn what_is_later_than_the_deadline_does_not_begin_and_is_told() {
    let schedule = schedule(json!({"startingDeadlineSeconds": 300}));
    assert_eq!(now(&schedule, &[], at("07:05")).start, Some(at("07:00")));
    let late = now(&schedule, &[], at("07:06"));
    assert_eq!((late.start, condition_of(&late)), (None, ("False", reason::MISSED_SCHEDULE)));
    assert_eq!(now(&schedule, &[], at("08:00")).start, Some(at("08:00")));
}

#[test]
fn a_suspended_schedule_begins_nothing_and_makes_up_for_the_newest_when_it_goes_on() {
    let mut schedule = schedule(json!({"suspend": true}));
    let decision = now(&schedule, &[child("06:00", Phase::Running)], at("09:30"));
    assert_eq!((decision.start, decision.status.next_schedule_time), (None, None));
    assert_eq!(decision.status.active_count, 1, "what runs goes on");
    schedule.spec.suspend = false;
    let decision = now(&schedule, &[child("06:00", Phase::Completed)], at("09:30"));
    assert_eq!(
        (decision.start, decision.status.next_schedule_time),
        (Some(at("09:00")), Some(Time(at("10:00"))))
    );
}

#[test]
fn history_keeps_the_newest_of_each_kind() {
    let schedule = schedule(json!({"suspend": true, "successfulSessionsHistoryLimit": 2}));
    let children = [
        child("07:00", Phase::Completed),
        child("08:00", Phase::Failed),
        child("08:30", Phase::Failed),
        child("09:00", Phase::Completed),
        child("10:00", Phase::Incomplete),
        child("11:00", Phase::Completed),
        child("12:00", Phase::Draining),
    ];
    let decision = now(&schedule, &children, at("12:30"));
    let deleted: Vec<&str> = decision.delete.iter().map(|child| child.name.as_str()).collect();
    assert_eq!(deleted, [session_name("hourly", at("07:00")), session_name("hourly", at("08:00"))]);
    // Of those that lack something the nodes may still come back with it.
    let children = [child("05:00", Phase::Incomplete), child("06:00", Phase::Incomplete)];
    assert_eq!(now(&schedule, &children, at("12:30")).delete, []);
    let later = at("05:01") + SignedDuration::from_hours(25);
    assert_eq!(now(&schedule, &children, later).delete, [children[0].clone()]);
    assert_eq!(decision.status.last_successful_time, Some(Time(at("11:01") + SignedDuration::from_secs(30))));
}

#[test]
fn an_edited_schedule_goes_on_from_its_last_session_and_an_impossible_one_stops() {
    let mut schedule = schedule(json!({}));
    let mut children = Vec::new();
    run(&mut schedule, &mut children, at("07:00"));
    schedule.spec.schedule = "*/30 * * * *".into();
    assert_eq!(run(&mut schedule, &mut children, at("07:29")), (vec![], vec![]));
    assert_eq!(run(&mut schedule, &mut children, at("07:30")), (vec!["07:30".into()], vec![]));
    schedule.spec.time_zone = Some("Mars/Olympus".into());
    let decision = now(&schedule, &children, at("08:00"));
    let accepted = conditions::get(&decision.status.conditions, condition::ACCEPTED).unwrap();
    assert_eq!((decision.start, accepted.reason.as_str()), (None, reason::UNKNOWN_TIME_ZONE));
    assert_eq!(decision.status.active_count, 2, "sessions that run are still shown");
}

#[test]
fn a_schedule_that_is_deleted_begins_nothing_and_its_sessions_are_its_own() {
    let mut schedule = schedule(json!({}));
    schedule.metadata.uid = Some("u".into());
    let session = super::super::session(&schedule, at("07:00"));
    let owner = &session.owner_references()[0];
    assert_eq!((owner.uid.as_str(), owner.controller), ("u", Some(true)));
    assert_eq!(session.labels()[crds::SCHEDULE_LABEL], "hourly");
    let due = |name: &str| {
        let mut session = session.clone();
        session.metadata.name = Some(name.to_owned());
        Child::of("hourly", &session).map(|child| child.due)
    };
    assert_eq!(due(&session_name("hourly", at("07:00"))), Some(at("07:00")));
    // What carries the schedule's label and another name is none of its business.
    assert_eq!(
        [due("hourly"), due("hourly-x"), due("hourly-99999999999999999999"), due("daily-1")],
        [None; 4]
    );
    schedule.metadata.deletion_timestamp = Some(Time(at("06:30")));
    assert_eq!(now(&schedule, &[], at("07:00")).start, None);
}

#[test]
fn a_clock_that_is_set_back_or_forward_makes_no_time_due_twice() {
    let mut schedule = schedule(json!({}));
    let mut children = Vec::new();
    assert_eq!(run(&mut schedule, &mut children, at("09:00")).0, ["09:00"]);
    for back in ["08:00", "08:59", "09:00", "09:01"] {
        assert_eq!(run(&mut schedule, &mut children, at(back)).0, [""; 0], "{back}");
    }
    assert_eq!(run(&mut schedule, &mut children, at("15:10")).0, ["15:00"], "the newest of those skipped");
    assert_eq!(run(&mut schedule, &mut children, at("10:00")).0, [""; 0]);
    assert_eq!(run(&mut schedule, &mut children, at("16:00")).0, ["16:00"]);
}
