// SPDX-License-Identifier: Apache-2.0
//! What a schedule has to do now. Pure: the clock, the schedule and its sessions in, a [`Decision`] out.
//!
//! As a `CronJob`: of several due times that were missed the newest alone counts; it is made up for within the starting
//! deadline, also when what kept it was an earlier session (`Forbid`); a clock that is set back makes no time due twice.

use std::collections::BTreeMap;

use crds::conditions::{self, reason, schedule as condition};
use crds::{ConcurrencyPolicy, Phase, TraceSchedule, TraceScheduleStatus, TraceSession};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::times::{NoTimes, Times};
use crate::session::status::time;

/// Names in the status.
const MOST_NAMES: usize = 10;

/// A session of the schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Where it is.
    pub phase: Option<Phase>,
    /// When it was due.
    pub due: Timestamp,
    /// When it was over.
    pub completed: Option<Timestamp>,
    /// Whether it is being deleted.
    pub deleting: bool,
}

impl Child {
    /// What the schedule sees of a session; none if its name is not one that the schedule gives. The name says when it was due:
    /// nobody can change it, as they could an annotation.
    pub fn of(schedule: &str, session: &TraceSession) -> Option<Child> {
        let name = session.name_any();
        let minute: i64 = name.strip_prefix(schedule)?.strip_prefix('-')?.parse().ok()?;
        let status = session.status.as_ref();
        Some(Child {
            due: Timestamp::from_second(minute.checked_mul(60)?).ok()?,
            name,
            uid: session.uid().unwrap_or_default(),
            phase: status.and_then(|status| status.phase),
            completed: status.and_then(|status| status.completion_time.as_ref()).map(|at| at.0),
            deleting: session.metadata.deletion_timestamp.is_some(),
        })
    }

    fn is_over(&self) -> bool {
        self.phase.is_some_and(Phase::is_over)
    }
}

/// What there is to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// Sessions to delete that are over.
    pub delete: Vec<Child>,
    /// Sessions to delete before one is made: it takes their place.
    pub replace: Vec<Child>,
    /// The due time of a session to make; `OnTime` then depends on whether it can be made.
    pub start: Option<Timestamp>,
    /// The status that follows, as if all of it were done.
    pub status: TraceScheduleStatus,
}

/// The name of the session of a due time: the minute makes it the same however often it is tried.
pub fn session_name(schedule: &str, due: Timestamp) -> String {
    format!("{schedule}-{}", due.as_second() / 60)
}

/// Decides.
pub fn decide(
    schedule: &TraceSchedule,
    times: Result<&Times, &NoTimes>,
    children: &[Child],
    now: Timestamp,
) -> Decision {
    let mut decision =
        Decision { status: schedule.status.clone().unwrap_or_default(), ..Decision::default() };
    let generation = schedule.metadata.generation;
    let mut conditions = std::mem::take(&mut decision.status.conditions);
    let mut says = |type_: &str, status: bool, reason: &str, message: &str| {
        conditions::set(&mut conditions, type_, Some(status), reason, message, generation, &time(now));
    };
    decision.status.observed_generation = generation;
    decision.delete = surplus(schedule, children, now);
    let mut active: BTreeMap<Timestamp, &Child> =
        children.iter().filter(|child| !child.is_over()).map(|child| (child.due, child)).collect();
    let mut next = None;
    match times {
        Err(error) => says(condition::ACCEPTED, false, error.reason, &error.message),
        Ok(times) => {
            says(condition::ACCEPTED, true, reason::VALID, "");
            let deleted = schedule.metadata.deletion_timestamp.is_some();
            if !schedule.spec.suspend && !deleted {
                next = times.after(now);
                let (due, late) = due(schedule, times, children, now);
                match (due, schedule.spec.concurrency_policy, active.values().next()) {
                    (Some(due), ConcurrencyPolicy::Forbid, Some(earlier)) => {
                        let message =
                            format!("the session due at {due} waits until {} is over", earlier.name);
                        says(condition::ON_TIME, false, reason::EARLIER_SESSION_ACTIVE, &message);
                    }
                    (Some(due), policy, _) => {
                        if policy == ConcurrencyPolicy::Replace {
                            let earlier = std::mem::take(&mut active).into_values();
                            decision.replace.extend(earlier.filter(|child| !child.deleting).cloned());
                        }
                        decision.start = Some(due);
                    }
                    (None, ..) => {
                        if let Some(late) = late {
                            let seconds = schedule.spec.starting_deadline_seconds.unwrap_or_default();
                            let message =
                                format!("no session began for {late}: startingDeadlineSeconds is {seconds}");
                            says(condition::ON_TIME, false, reason::MISSED_SCHEDULE, &message);
                        }
                    }
                }
            }
        }
    }
    let status = &mut decision.status;
    status.conditions = conditions;
    status.last_schedule_time = decision.start.or(last(schedule, children)).map(Time);
    let successes = children.iter().filter(|child| child.phase == Some(Phase::Completed));
    let newest = successes.filter_map(|child| child.completed).max();
    status.last_successful_time = status.last_successful_time.take().map(|at| at.0).max(newest).map(Time);
    status.next_schedule_time = next.map(Time);
    let mut names: Vec<String> = active.into_values().map(|child| child.name.clone()).collect();
    if let Some(due) = decision.start {
        let new = session_name(&schedule.name_any(), due);
        if !names.contains(&new) {
            names.push(new);
        }
    }
    status.active_count = i32::try_from(names.len()).unwrap_or(i32::MAX);
    // The newest ones.
    status.active = names.split_off(names.len().saturating_sub(MOST_NAMES));
    decision
}

/// The newest due time for which a session was made.
fn last(schedule: &TraceSchedule, children: &[Child]) -> Option<Timestamp> {
    let told = schedule.status.as_ref().and_then(|status| status.last_schedule_time.as_ref()).map(|at| at.0);
    // A status that was not written must not make a session twice.
    told.max(children.iter().map(|child| child.due).max())
}

/// The due time to make a session for; or the one that is too late.
fn due(
    schedule: &TraceSchedule,
    times: &Times,
    children: &[Child],
    now: Timestamp,
) -> (Option<Timestamp>, Option<Timestamp>) {
    let since = last(schedule, children).or_else(|| schedule.creation_timestamp().map(|at| at.0));
    let Some(newest) = since.and_then(|since| times.between(since, now)) else { return (None, None) };
    let deadline = schedule.spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    match deadline {
        Some(deadline) if newest.duration_until(now) > deadline => (None, Some(newest)),
        _ => (Some(newest), None),
    }
}

/// An incomplete session is kept this long whatever the limits: nodes that come back upload what they have while it exists.
const GRACE: SignedDuration = SignedDuration::from_hours(24);

/// Sessions that are over, beyond the limits of history: the oldest of each kind.
fn surplus(schedule: &TraceSchedule, children: &[Child], now: Timestamp) -> Vec<Child> {
    let spec = &schedule.spec;
    let kinds = [
        (Phase::Completed, spec.successful_sessions_history_limit),
        (Phase::Failed, spec.failed_sessions_history_limit),
        (Phase::Incomplete, spec.failed_sessions_history_limit),
    ];
    let mut all = Vec::new();
    for (phase, limit) in kinds {
        let mut over: Vec<&Child> = children.iter().filter(|child| child.phase == Some(phase)).collect();
        over.sort_by_key(|child| std::cmp::Reverse(child.due));
        let beyond =
            over.into_iter().skip(usize::try_from(limit).unwrap_or(0)).filter(|child| !child.deleting);
        let waits = |child: &Child| {
            phase == Phase::Incomplete && child.completed.is_none_or(|at| at.duration_until(now) < GRACE)
        };
        all.extend(beyond.filter(|child| !waits(child)).cloned());
    }
    all
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
