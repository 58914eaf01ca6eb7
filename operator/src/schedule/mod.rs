// SPDX-License-Identifier: Apache-2.0
//! Schedules: sessions that begin by the clock.
//!
//! | step | file | needs |
//! | --- | --- | --- |
//! | when it is due | [`times`] | nothing |
//! | what there is to do | [`decide`] | nothing |
//! | do it, and write the status | here | client |
//!
//! In: schedules and their sessions, watched. Out: sessions made and deleted, `status` written on change, an Event for each
//! session made and each trouble. A session's name follows from its due time, so that nothing is made twice, whatever
//! was interrupted. Sessions are deleted with their schedule by the API server, as their owner.

use std::sync::Arc;
use std::time::Duration;

use crds::conditions::{self, reason, schedule as condition};
use crds::{SCHEDULE_LABEL, SCHEDULED_AT, TraceSchedule, TraceScheduleStatus, TraceSession};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::controller::{self, Action};
use kube::runtime::events::Recorder;
use kube::runtime::reflector::Store;
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::events;
use crate::session::limits::Limits;
use crate::session::listed::Listed;
use crate::session::status::time;
use crate::session::validate::validate;
use crate::session::write::MANAGER;
use decide::{Child, Decision, decide, session_name};
use times::{NoTimes, Times};

pub mod decide;
pub mod times;

/// A schedule is looked at this often, so that a clock that was set shows within this time.
const LOOK: Duration = Duration::from_secs(60);
/// After an error.
const AGAIN: Duration = Duration::from_secs(15);
/// From a change to the pass that it asks for: the sessions' own watch has seen it by then.
const SETTLE: Duration = Duration::from_millis(500);

/// What a pass needs.
pub struct Context {
    client: Client,
    recorder: Recorder,
    /// Every session, as the sessions' own watch keeps them.
    sessions: Store<TraceSession>,
    limits: Limits,
}

/// Reconciles schedules until `stop`. `sessions` is filled by somebody else, who says when its list is complete.
pub async fn run(
    client: Client,
    recorder: Recorder,
    sessions: Store<TraceSession>,
    listed: Listed,
    limits: Limits,
    stop: CancellationToken,
) {
    if stop.run_until_cancelled(listed.complete()).await.is_none() {
        return;
    }
    let context = Arc::new(Context { client: client.clone(), recorder, sessions, limits });
    let owned: Api<TraceSession> = Api::all(client.clone());
    let with_label = watcher::Config::default().labels(SCHEDULE_LABEL);
    Controller::new(Api::<TraceSchedule>::all(client), watcher::Config::default())
        .owns(owned, with_label)
        .with_config(controller::Config::default().debounce(SETTLE))
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile, |_, _, _| Action::requeue(AGAIN), context)
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::warn!(%error, "schedule not reconciled, will retry");
            }
        })
        .await;
}

async fn reconcile(schedule: Arc<TraceSchedule>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let now = Timestamp::now();
    let times = times(&schedule, &context.limits);
    let sessions = context.sessions.state();
    let mut children: Vec<Child> = sessions.iter().filter_map(|session| child(&schedule, session)).collect();
    let mut decision = decide(&schedule, times.as_ref(), &children, now);
    if decision.start.is_some() {
        // A watch that is behind must not hide a session that runs.
        children.extend(unseen(&schedule, &context, &children).await?);
        decision = decide(&schedule, times.as_ref(), &children, now);
    }
    act(&schedule, &context, decision).await?;
    let next = times.as_ref().ok().and_then(|times| times.after(now));
    let wait = next.map_or(LOOK, |next| {
        Duration::try_from(next.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
    });
    // A little later than due: a timer that fires early would find nothing to do.
    Ok(Action::requeue(wait.min(LOOK) + Duration::from_millis(50)))
}

/// The session as the schedule's, if it is.
fn child(schedule: &TraceSchedule, session: &TraceSession) -> Option<Child> {
    let uid = schedule.uid();
    let is_owner =
        |owner: &OwnerReference| owner.controller == Some(true) && Some(&owner.uid) == uid.as_ref();
    let ours = session.namespace() == schedule.namespace() && session.owner_references().iter().any(is_owner);
    ours.then(|| Child::of(&schedule.name_any(), session))?
}

/// Sessions that the status calls active and nobody else knows of.
async fn unseen(
    schedule: &TraceSchedule,
    context: &Context,
    known: &[Child],
) -> Result<Vec<Child>, kube::Error> {
    let api: Api<TraceSession> =
        Api::namespaced(context.client.clone(), &schedule.namespace().unwrap_or_default());
    let active = schedule.status.iter().flat_map(|status| &status.active);
    let mut found = Vec::new();
    for name in active.filter(|name| known.iter().all(|child| child.name != **name)) {
        found.extend(api.get_opt(name).await?.and_then(|session| child(schedule, &session)));
    }
    Ok(found)
}

/// Its times, if its sessions can be what the template says.
fn times(schedule: &TraceSchedule, limits: &Limits) -> Result<Times, NoTimes> {
    let times = Times::new(&schedule.spec.schedule, schedule.spec.time_zone.as_deref())?;
    let valid = validate(&schedule.spec.session_template.spec);
    match valid.and_then(|valid| limits.check(&valid)) {
        Ok(()) => Ok(times),
        Err(rejection) => Err(NoTimes {
            reason: rejection.reason,
            message: format!("sessionTemplate.spec: {}", rejection.message),
        }),
    }
}

/// Deletes a session of the schedule, if it is still there.
async fn delete(api: &Api<TraceSession>, schedule: &TraceSchedule, child: &Child) -> Result<(), kube::Error> {
    let preconditions = Preconditions { uid: Some(child.uid.clone()), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
    match api.delete(&child.name, &params).await {
        Ok(_) => {
            tracing::info!(schedule = schedule.name_any(), session = child.name, "session deleted");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

async fn act(schedule: &TraceSchedule, context: &Context, decision: Decision) -> Result<(), kube::Error> {
    let api: Api<TraceSession> =
        Api::namespaced(context.client.clone(), &schedule.namespace().unwrap_or_default());
    // What is over and cannot be deleted keeps nobody from beginning.
    let mut failure = None;
    for child in &decision.delete {
        failure = delete(&api, schedule, child).await.err().or(failure);
    }
    let mut replaced = Ok(());
    for child in &decision.replace {
        replaced = replaced.and(delete(&api, schedule, child).await);
    }
    let mut status = decision.status;
    if let Some(due) = decision.start {
        let session = session(schedule, due);
        let name = session.name_any();
        let made = match replaced {
            Ok(()) => make(&api, &session).await,
            // It would run beside the one whose place it takes.
            Err(error) => Err(error),
        };
        let now = time(Timestamp::now());
        let generation = schedule.metadata.generation;
        let conditions = &mut status.conditions;
        let mut on_time = |is: bool, reason: &str, message: &str| {
            conditions::set(conditions, condition::ON_TIME, Some(is), reason, message, generation, &now);
        };
        match made {
            Ok(new) => {
                on_time(true, reason::AS_EXPECTED, "");
                if new {
                    note(context, schedule, false, "SessionCreated", &format!("made session {name}")).await;
                }
            }
            Err(error) => {
                on_time(
                    false,
                    reason::SESSION_NOT_CREATED,
                    &format!("session {name} cannot be made: {error}"),
                );
                let before = schedule.status.as_ref().and_then(|status| status.last_schedule_time.clone());
                status.last_schedule_time = before;
                if decision.replace.is_empty() {
                    status.active.retain(|active| *active != name);
                    status.active_count -= 1;
                } else {
                    // Those that it was to replace may still be there.
                    let before = schedule.status.clone().unwrap_or_default();
                    (status.active, status.active_count) = (before.active, before.active_count);
                }
                failure = Some(error);
            }
        }
    }
    write(schedule, context, status).await?;
    failure.map_or(Ok(()), Err)
}

/// Makes a session; false if it is there already.
async fn make(api: &Api<TraceSession>, session: &TraceSession) -> Result<bool, kube::Error> {
    match api.create(&PostParams::default(), session).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let there = api.get(&session.name_any()).await?;
            let owner = |session: &TraceSession| session.owner_references().first().map(|o| o.uid.clone());
            if owner(&there) == owner(session) { Ok(false) } else { Err(kube::Error::Api(status)) }
        }
        Err(error) => Err(error),
    }
}

/// The session of a due time.
fn session(schedule: &TraceSchedule, due: Timestamp) -> TraceSession {
    let template = &schedule.spec.session_template;
    let mut session = TraceSession::new(&session_name(&schedule.name_any(), due), template.spec.clone());
    session.metadata = ObjectMeta {
        namespace: schedule.namespace(),
        labels: Some(template.metadata.labels.clone()),
        annotations: Some(template.metadata.annotations.clone()),
        owner_references: schedule.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..session.metadata
    };
    session.labels_mut().insert(SCHEDULE_LABEL.to_owned(), schedule.name_any());
    session.annotations_mut().insert(SCHEDULED_AT.to_owned(), due.to_string());
    session
}

async fn write(
    schedule: &TraceSchedule,
    context: &Context,
    next: TraceScheduleStatus,
) -> Result<(), kube::Error> {
    let before = schedule.status.clone().unwrap_or_default();
    if before == next {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": TraceSchedule::api_version(&()),
        "kind": TraceSchedule::kind(&()),
        // The UID makes sure that a schedule of the same name made meanwhile is not written to.
        "metadata": { "name": schedule.name_any(), "uid": schedule.uid() },
        "status": next,
    });
    let api: Api<TraceSchedule> =
        Api::namespaced(context.client.clone(), &schedule.namespace().unwrap_or_default());
    let params = PatchParams::apply(MANAGER).force();
    match api.patch_status(&schedule.name_any(), &params, &Patch::Apply(patch)).await {
        Ok(_) => {}
        // Gone meanwhile, and its sessions go with it.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => return Ok(()),
        Err(error) => return Err(error),
    }
    for type_ in condition::TYPES {
        let now = conditions::get(&next.conditions, type_);
        let known = conditions::get(&before.conditions, type_);
        let trouble = now.filter(|now| now.status == "False");
        if let Some(now) =
            trouble.filter(|now| known.is_none_or(|k| k.reason != now.reason || k.message != now.message))
        {
            note(context, schedule, true, &now.reason, &now.message).await;
        }
    }
    Ok(())
}

/// Says it in the log and in an Event.
async fn note(context: &Context, schedule: &TraceSchedule, warning: bool, reason: &str, message: &str) {
    tracing::info!(
        schedule = schedule.name_any(),
        namespace = schedule.namespace(),
        reason,
        message,
        "schedule event"
    );
    let about = schedule.object_ref(&());
    events::publish(&context.recorder, &about, "Reconcile", warning, reason, message).await;
}
