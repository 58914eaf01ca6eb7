// SPDX-License-Identifier: Apache-2.0

//! Follows a session until it is over: a line of progress, and each trouble once.
//!
//! In: a session of a cluster, asked for once a second. Out: the session as it ended, or as it was seen last when it was deleted
//! meanwhile, or nothing when somebody has left it alone.
//! Invariant: an API server that is away for a while is no end; it records without it, and so this goes on as well.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use crds::conditions::{self, session as condition};
use crds::{Phase, TraceSession, TraceSessionStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::interrupts::Interrupts;
use crate::line::Line;
use crate::output::{bytes, plain};
use crate::sessions::Sessions;
use crate::{explain, program, view};

pub(crate) const POLL: Duration = Duration::from_secs(1);
/// How long the API server may not answer.
const PATIENCE: Duration = Duration::from_secs(300);
/// For one answer: a connection that is silently gone is given up.
const ANSWER: Duration = Duration::from_secs(30);
/// Over this time a rate is taken: a status is written every few seconds.
const RATE: Duration = Duration::from_secs(10);

/// What the first Ctrl-C does; the second leaves the session alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// Asks the session to stop, and waits on.
    Stop,
    /// Leaves it alone at once.
    Leave,
}

/// What came of following.
pub(crate) enum Followed {
    /// It is over.
    Over(Box<TraceSession>),
    /// Somebody deleted it, or its time to live was over before its end was seen. As it was seen last.
    Deleted(Box<TraceSession>),
    /// Somebody has left it alone, and was told so.
    Left,
}

/// What one look at a session brought.
pub(crate) enum Look {
    /// As it is now.
    Seen(Box<TraceSession>),
    /// It is gone; one of the same name is another.
    Deleted,
    /// The API server did not answer, why.
    Silent(String),
}

/// One session, asked for again and again: of the name that it has, and of the UID that it had when it was seen first.
pub(crate) struct Watched<'a> {
    sessions: &'a Sessions,
    name: &'a str,
    uid: Option<String>,
    silent: Option<Instant>,
    /// For one answer.
    answer: Duration,
    /// Without any.
    patience: Duration,
}

impl<'a> Watched<'a> {
    /// The session that this one is.
    pub(crate) fn new(sessions: &'a Sessions, name: &'a str, session: &TraceSession) -> Self {
        let uid = session.metadata.uid.clone();
        Self { sessions, name, uid, silent: None, answer: ANSWER, patience: PATIENCE }
    }

    /// Asks for it.
    ///
    /// # Errors
    /// When it may not be read, or the API server is away for too long.
    pub(crate) async fn look(&mut self) -> Result<Look> {
        let why = match tokio::time::timeout(self.answer, self.sessions.try_get(self.name)).await {
            Ok(Ok(session)) => {
                self.silent = None;
                let is_it = session.metadata.uid == self.uid;
                return Ok(if is_it { Look::Seen(Box::new(session)) } else { Look::Deleted });
            }
            Ok(Err(error)) if explain::may_pass(&error) => plain(&explain::cause(&error)),
            Ok(Err(error)) if explain::is_gone(&error) => return Ok(Look::Deleted),
            Ok(Err(error)) => return Err(self.sessions.refused(error, self.name)),
            Err(_) => format!("nothing for {:?}", self.answer),
        };
        if self.silent.get_or_insert_with(Instant::now).elapsed() > self.patience {
            bail!(
                "the API server has not answered for {:?} ({why}); {} goes on without it: `{} status {1}` says how far it is",
                self.patience,
                self.sessions.title(self.name),
                program()
            );
        }
        Ok(Look::Silent(format!("the API server does not answer, trying again: {why}")))
    }
}

/// That a session is gone, and where its data are.
pub(crate) fn deleted(last: &TraceSession) -> String {
    let (title, program) = (view::title(last), program());
    let Some(dataset) = view::status(last).dataset else {
        return format!("{title} was deleted meanwhile, before it had a place for data");
    };
    let uri = plain(&dataset.uri);
    let store = dataset.endpoint.map(|endpoint| format!(" and AWS_ENDPOINT_URL={}", plain(&endpoint)));
    format!(
        "{title} was deleted meanwhile; what it recorded is at {uri}: with credentials of its store{} `{program} verify {uri}` checks it",
        store.unwrap_or_default()
    )
}

/// Waits until the session is over, which is `session` now.
///
/// # Errors
/// When it may not be read, or the API server is away for too long.
pub(crate) async fn follow(
    sessions: &Sessions,
    session: TraceSession,
    interrupts: &mut Interrupts,
    mut on: OnInterrupt,
) -> Result<Followed> {
    let name = session.name_any();
    let mut watched = Watched::new(sessions, &name, &session);
    let mut last = Box::new(session);
    let mut line = Line::new(false);
    let mut progress = Progress::default();
    loop {
        let step = async {
            match watched.look().await? {
                Look::Seen(session) => {
                    last = session;
                    let status = view::status(&last);
                    for text in progress.news(&status) {
                        line.say(&text);
                    }
                    if status.phase.is_some_and(Phase::is_over) {
                        return Ok(Some(Followed::Over(last.clone())));
                    }
                    progress.sample(&status, Instant::now());
                    let (key, text) = progress.line(&last, Timestamp::now());
                    line.show(&key, &text);
                }
                Look::Deleted => return Ok(Some(Followed::Deleted(last.clone()))),
                Look::Silent(why) => line.show("silent", &why),
            }
            tokio::time::sleep(POLL).await;
            anyhow::Ok(None)
        };
        tokio::select! {
            ended = step => if let Some(ended) = ended? { return Ok(ended) },
            () = interrupts.next() => {
                if on == OnInterrupt::Leave {
                    line.say(&left_alone(sessions, &name));
                    return Ok(Followed::Left);
                }
                on = OnInterrupt::Leave;
                line.say(&format!(
                    "{} is asked to stop: its nodes upload what they have; Ctrl-C again does not wait for that",
                    sessions.title(&name)
                ));
                let stopped = tokio::select! {
                    stopped = sessions.stop_this(&last) => stopped,
                    () = interrupts.next() => {
                        line.say(&left_alone(sessions, &name));
                        return Ok(Followed::Left);
                    }
                };
                if let Err(error) = stopped {
                    line.say(&format!("{error:#}"));
                    line.say("it goes on; Ctrl-C again leaves it alone");
                }
            }
        }
    }
}

fn left_alone(sessions: &Sessions, name: &str) -> String {
    let (title, program) = (sessions.title(name), program());
    format!(
        "{title} goes on without being watched: `{program} status {title}` says how far it is, `{program} stop {title}` ends it"
    )
}

/// What was said and seen so far.
#[derive(Default)]
struct Progress {
    /// Types and reasons of conditions: messages hold numbers that change.
    said: BTreeSet<(String, String)>,
    /// When how many events there were, the oldest first.
    seen: VecDeque<(Instant, i64)>,
}

impl Progress {
    /// Troubles that are new; one that has passed is new when it comes again.
    fn news(&mut self, status: &TraceSessionStatus) -> Vec<String> {
        let now: Vec<_> = view::troubles(status).collect();
        let key = |condition: &Condition| (condition.type_.clone(), condition.reason.clone());
        self.said.retain(|said| now.iter().any(|condition| key(condition) == *said));
        let mut news = Vec::new();
        for condition in now {
            if self.said.insert(key(condition)) {
                let message = plain(&condition.message);
                news.push(format!(
                    "{}={}/{}: {message}",
                    condition.type_, condition.status, condition.reason
                ));
            }
        }
        news
    }

    /// Notes how many events there are.
    fn sample(&mut self, status: &TraceSessionStatus, now: Instant) {
        let emitted = status.totals.as_ref().map_or(0, |totals| totals.emitted);
        while self.seen.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RATE) {
            self.seen.pop_front();
        }
        self.seen.push_back((now, emitted));
    }

    /// Events per second of the last seconds; none before there were two looks.
    fn rate(&self) -> Option<f64> {
        let ((first, before), (last, after)) = (self.seen.front()?, self.seen.back()?);
        let seconds = last.duration_since(*first).as_secs_f64();
        (seconds > 0.0).then(|| (after - before).max(0) as f64 / seconds)
    }

    /// What makes a new line where none is drawn again, and the line.
    fn line(&self, session: &TraceSession, now: Timestamp) -> (String, String) {
        let status = view::status(session);
        let nodes = status.nodes.clone().unwrap_or_default();
        let totals = status.totals.clone().unwrap_or_default();
        let key = format!("{:?} {}", status.phase, nodes.summary);
        let phase = status.phase.map_or_else(|| "Unseen".to_owned(), |phase| format!("{phase:?}"));
        let mut parts = vec![view::title(session), phase];
        match status.phase {
            None => parts.push("waiting for the operator".to_owned()),
            Some(Phase::Pending) => {
                let why = conditions::get(&status.conditions, condition::COLLECTING);
                parts.extend(why.map(|condition| plain(&condition.message)));
            }
            Some(_) => {
                parts.extend(view::left(&status, now).map(|left| format!("{left} left")));
                parts.push(format!("nodes {}", nodes.summary));
                parts.push(format!("{} events", totals.emitted));
                if status.phase == Some(Phase::Running) {
                    parts.extend(self.rate().map(|rate| format!("{rate:.0} events/s")));
                }
                parts.push(format!("{} lost", totals.lost));
                parts.push(format!("{} uploaded", bytes(totals.bytes_uploaded)));
                if totals.bytes_pending > 0 {
                    parts.push(format!("{} to upload", bytes(totals.bytes_pending)));
                }
            }
        }
        (key, parts.join("  "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn session(status: Value) -> TraceSession {
        let spec = json!({ "target": { "podSelector": {} }, "collectors": [{ "name": "processes" }], "duration": "5m" });
        serde_json::from_value(json!({
            "apiVersion": "tracelake.dev/v1alpha1", "kind": "TraceSession",
            "metadata": { "name": "checkout", "namespace": "shop" }, "spec": spec, "status": status,
        }))
        .unwrap()
    }

    fn status(status: Value) -> TraceSessionStatus {
        view::status(&session(status))
    }

    fn condition(type_: &str, is: &str, reason: &str, message: &str) -> Value {
        json!({ "type": type_, "status": is, "reason": reason, "message": message,
            "lastTransitionTime": "2026-11-23T04:04:25Z" })
    }

    #[test]
    fn the_line_says_what_there_is_to_wait_for() {
        let now: Timestamp = "2026-11-23T04:05:06Z".parse().unwrap();
        let line = |value: Value| Progress::default().line(&session(value), now).1;
        assert_eq!(line(Value::Null), "shop/checkout  Unseen  waiting for the operator");
        let waiting = condition("Collecting", "False", "Waiting", "waiting for the store");
        assert_eq!(
            line(json!({ "phase": "Pending", "conditions": [waiting] })),
            "shop/checkout  Pending  waiting for the store"
        );

        let nodes = json!({ "expected": 2, "ready": 2, "running": 2, "draining": 0, "done": 0, "failed": 0,
            "unsupported": 0, "lost": 0, "summary": "2/2" });
        let mut totals = json!({ "emitted": 1204, "exported": 1000, "sampledOut": 0, "rateLimited": 0, "filtered": 0,
            "lost": 3, "rows": 1000, "bytesUploaded": 18432, "objectsUploaded": 2, "bytesPending": 0 });
        let mut running = json!({ "phase": "Running", "endTime": "2026-11-23T04:09:18Z", "nodes": nodes, "totals": totals });
        assert_eq!(
            line(running.clone()),
            "shop/checkout  Running  4m12s left  nodes 2/2  1204 events  3 lost  18.0 KiB uploaded"
        );
        totals["bytesPending"] = json!(1 << 20);
        running["phase"] = json!("Draining");
        running["totals"] = totals;
        assert_eq!(
            line(running),
            "shop/checkout  Draining  nodes 2/2  1204 events  3 lost  18.0 KiB uploaded  1.0 MiB to upload"
        );
    }

    #[tokio::test]
    async fn an_api_server_that_says_nothing_is_given_up() {
        let silent = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::convert::Infallible>>()
        });
        let cluster = crate::cluster::Cluster::reached(kube::Client::new(silent, "shop"));
        let sessions = Sessions::of(&cluster, None).unwrap();
        let (answer, patience) = (Duration::from_millis(20), Duration::from_millis(50));
        let mut watched =
            Watched { sessions: &sessions, name: "checkout", uid: None, silent: None, answer, patience };
        let Look::Silent(why) = watched.look().await.unwrap() else { panic!("it answers") };
        assert!(why.contains("nothing for 20ms"), "{why}");
        let given_up = loop {
            match watched.look().await {
                Ok(Look::Silent(_)) => {}
                Ok(_) => panic!("it answers"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(given_up.contains("has not answered for 50ms"), "{given_up}");
    }

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let mut progress = Progress::default();
        let began = Instant::now();
        let mut see = |second, emitted| {
            let totals = json!({ "emitted": emitted, "exported": 0, "sampledOut": 0, "rateLimited": 0, "filtered": 0,
                "lost": 0, "rows": 0, "bytesUploaded": 0, "objectsUploaded": 0, "bytesPending": 0 });
            progress.sample(&status(json!({ "totals": totals })), began + Duration::from_secs(second));
            progress.rate()
        };
        assert_eq!(see(0, 0), None);
        assert_eq!(see(5, 500), Some(100.0));
        assert_eq!(see(10, 500), Some(50.0));
        assert_eq!(see(15, 500), Some(0.0));
        assert_eq!(see(16, 1100), Some(600.0 / 11.0));
    }

    #[test]
    fn a_trouble_is_said_once_until_it_has_passed() {
        let mut progress = Progress::default();
        let bad = |message| condition("StoreReady", "False", "NoSuchBucket", message);
        let with = |condition: Value| status(json!({ "conditions": [condition] }));
        let said = progress.news(&with(bad("no bucket \u{1b}[31mx")));
        assert_eq!(said, ["StoreReady=False/NoSuchBucket: no bucket \\u{1b}[31mx"]);
        assert!(progress.news(&with(bad("still none, 7 tries"))).is_empty());
        let good = condition("StoreReady", "True", "ProbeSucceeded", "");
        assert!(progress.news(&with(good)).is_empty());
        assert_eq!(progress.news(&with(bad("again"))).len(), 1);
        assert_eq!(progress.news(&with(condition("Degraded", "True", "NodeLost", "n"))).len(), 1);
    }
}
