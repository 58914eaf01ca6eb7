// SPDX-License-Identifier: Apache-2.0

//! Checks a plan as if it came from an enemy, and keeps it over a restart.
//!
//! In: `SessionPlan` bodies of the operator. Out: [`ValidPlan`] for the engine, or why not; and
//! `plan.json` in the session's spool folder. An agent runs as root: no text of a plan reaches a path,
//! a shell or a format string unless it passed the checks of keys (names, UIDs) or of the catalogue
//! (collectors, parameters). One bad collector does not take the others with it: versions N and N-1
//! of operator and agent work together.
//!
//! A stored window counts on the clock of one boot, so a restarted agent stops on time with the
//! operator away; after a reboot nothing is recorded until a plan says how much of the window is left.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dataset::catalogue;
use dataset::key::SessionPrefix;
use node_api::plan::{CONTAINERS_MAX, TARGETS_MAX};
use node_api::v1;
use serde::{Deserialize, Serialize};

use crate::budget::{Budget, Excess};
use crate::engine::{CollectorSpec, PodTarget, SessionSpec, TargetSpec};

const FILE: &str = "plan.json";
const MAX_COLLECTORS: usize = 32;
const MAX_NAME: usize = 253;
const MAX_PARAMS: usize = 32;
/// The shortest and longest that a plan may ask for; the resource's own bounds are narrower.
const ROLLOVER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3_600));
const ROLLOVER_BYTES: (u64, u64) = (64 << 10, 1 << 30);
const INTERVAL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3_600));
/// Windows of tables that are added up, for sessions that do not say.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// A window is at most a day; a little more is allowed for clocks and starts.
pub(crate) const MAX_WINDOW: Duration = Duration::from_secs(25 * 3_600);

/// Why a plan is refused whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A name is not one.
    #[error("{what} {value:?} is not a name")]
    Name {
        /// Which.
        what: &'static str,
        /// As given, cut to a length that fits a message.
        value: String,
    },
    /// A list is too long, or empty where it may not be.
    #[error("{count} {what}, expected 1 to {max}")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// A name occurs twice.
    #[error("{what} {value:?} is there twice")]
    Duplicate {
        /// Which.
        what: &'static str,
        /// The name.
        value: String,
    },
}

/// A collector that this agent does not run, though the others of its session do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// As in the plan.
    pub collector: String,
    /// Why, with what is known instead.
    pub message: String,
}

/// A plan that passed every check.
#[derive(Clone, Debug)]
pub struct ValidPlan {
    /// Names the body.
    pub hash: String,
    /// What to record.
    pub spec: SessionSpec,
    /// Whom.
    pub targets: Vec<TargetSpec>,
    /// Collectors left out of `spec`.
    pub refused: Vec<Refused>,
}

fn name(what: &'static str, value: &str) -> Result<(), PlanError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if value.is_empty() || value.len() > MAX_NAME || value.starts_with('.') || !value.bytes().all(good) {
        return Err(PlanError::Name { what, value: value.chars().take(64).collect() });
    }
    Ok(())
}

fn count(what: &'static str, count: usize, max: usize) -> Result<(), PlanError> {
    if count > max { Err(PlanError::Count { what, count, max }) } else { Ok(()) }
}

/// Checks a body.
///
/// # Errors
/// What is wrong with it as a whole. Collectors that this agent does not know are in [`ValidPlan::refused`].
pub fn validate(body: &v1::SessionPlan, hash: &str) -> Result<ValidPlan, PlanError> {
    // The names are parts of keys in the store and of paths in the spool.
    SessionPrefix::new("", &body.namespace, &body.name, &body.uid).map_err(|_| PlanError::Name {
        what: "session",
        value: format!("{}/{} {}", body.namespace, body.name, body.uid).chars().take(64).collect(),
    })?;
    count("targets", body.targets.len(), TARGETS_MAX)?;
    count("containers", body.containers.len(), CONTAINERS_MAX)?;
    if body.collectors.is_empty() || body.collectors.len() > MAX_COLLECTORS {
        return Err(PlanError::Count {
            what: "collectors",
            count: body.collectors.len(),
            max: MAX_COLLECTORS,
        });
    }
    for container in &body.containers {
        name("container", container)?;
    }
    let mut uids = BTreeSet::new();
    let mut targets = Vec::new();
    for target in &body.targets {
        if !uids.insert(&target.pod_uid) {
            return Err(PlanError::Duplicate { what: "pod", value: target.pod_uid.clone() });
        }
        targets.push(TargetSpec::Pod(pod(target)?));
    }
    let mut names = BTreeSet::new();
    let (mut collectors, mut refused) = (Vec::new(), Vec::new());
    for collector in &body.collectors {
        name("collector", &collector.name)?;
        if !names.insert(&collector.name) {
            return Err(PlanError::Duplicate { what: "collector", value: collector.name.clone() });
        }
        count("parameters", collector.params.len(), MAX_PARAMS)?;
        let params = collector.params.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        match catalogue::validate(&collector.name, &params) {
            // What it lacks may be what the user asked for above all: a filter, a limit.
            Ok(_) if !node_api::plan::is_whole(collector) => refused.push(Refused {
                collector: collector.name.clone(),
                message: format!(
                    "its plan has fields that this agent (version {}) does not know: the operator is newer",
                    env!("CARGO_PKG_VERSION")
                ),
            }),
            Ok(_) => collectors.push(CollectorSpec {
                name: collector.name.clone(),
                params,
                interval: match collector.interval_ms {
                    0 => DEFAULT_INTERVAL,
                    given => Duration::from_millis(given).clamp(INTERVAL.0, INTERVAL.1),
                },
                sample_every: collector.sample_every,
                max_events_per_second: collector.max_events_per_second,
                optional: collector.optional,
            }),
            Err(error) => {
                refused.push(Refused { collector: collector.name.clone(), message: error.to_string() });
            }
        }
    }
    let spec = SessionSpec {
        uid: body.uid.as_str().into(),
        collectors,
        containers: body.containers.clone(),
        rollover_interval: Duration::from_millis(body.rollover_interval_ms).clamp(ROLLOVER.0, ROLLOVER.1),
        rollover_bytes: body.rollover_bytes.clamp(ROLLOVER_BYTES.0, ROLLOVER_BYTES.1),
        budget: body.budget.map(budget).unwrap_or_default(),
    };
    Ok(ValidPlan { hash: hash.to_owned(), spec, targets, refused })
}

fn budget(given: v1::Budget) -> Budget {
    Budget { events_per_second: given.events_per_second, cpu_millis: given.cpu_millis, stop: given.stop }
}

fn pod(target: &v1::Target) -> Result<PodTarget, PlanError> {
    name("pod UID", &target.pod_uid)?;
    name("namespace", &target.namespace)?;
    name("pod", &target.pod)?;
    if !target.cgroup_name.is_empty() {
        name("cgroup name", &target.cgroup_name)?;
    }
    count("containers of a pod", target.containers.len(), CONTAINERS_MAX)?;
    let mut containers = Vec::new();
    for container in &target.containers {
        name("container", &container.name)?;
        name("container id", &container.id)?;
        containers.push((container.name.clone(), container.id.clone()));
    }
    Ok(PodTarget {
        uid: target.pod_uid.clone(),
        namespace: target.namespace.clone(),
        pod: target.pod.clone(),
        cgroup_name: (!target.cgroup_name.is_empty()).then(|| target.cgroup_name.clone()),
        host_network: target.host_network,
        containers,
    })
}

/// What the agent is to do with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// Record until the window ends.
    Collect,
    /// Upload what is there.
    Drain,
}

/// `plan.json`: the plan in force, for a process that starts again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPlan {
    /// Names the body.
    pub hash: String,
    /// The body's protobuf encoding, base64.
    body: String,
    /// What to do.
    pub activity: Activity,
    /// The boot on whose clock the window counts.
    pub boot: String,
    /// Boot time when the window ends, nanoseconds.
    pub window_end_ns: u64,
    /// What came of its budget.
    #[serde(default)]
    pub excess: Option<Excess>,
}

impl StoredPlan {
    /// A plan to store.
    pub fn new(
        hash: &str,
        body: &v1::SessionPlan,
        activity: Activity,
        boot: &str,
        window_end_ns: u64,
    ) -> Self {
        use prost::Message;
        let body = BASE64.encode(body.encode_to_vec());
        Self { hash: hash.to_owned(), body, activity, boot: boot.to_owned(), window_end_ns, excess: None }
    }

    /// The body; none if it is damaged.
    pub fn body(&self) -> Option<v1::SessionPlan> {
        use prost::Message;
        v1::SessionPlan::decode(BASE64.decode(&self.body).ok()?.as_slice()).ok()
    }

    /// Makes it durable in a session's folder.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn save(&self, session_dir: &Path) -> std::io::Result<()> {
        let (path, tmp) = (session_dir.join(FILE), session_dir.join(format!("{FILE}.tmp")));
        let mut file = fs::File::create(&tmp)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(tmp, path)
    }

    /// What a session's folder holds; none if there is nothing or it is damaged.
    pub fn load(session_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(session_dir.join(FILE)).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> v1::SessionPlan {
        v1::SessionPlan {
            uid: "5e0e4a58-0000-4000-8000-000000000001".into(),
            namespace: "shop".into(),
            name: "checkout".into(),
            collectors: vec![v1::CollectorPlan {
                name: catalogue::COLLECTORS[0].name.into(),
                ..Default::default()
            }],
            targets: vec![v1::Target {
                pod_uid: "pod-uid".into(),
                namespace: "shop".into(),
                pod: "web-0".into(),
                ..Default::default()
            }],
            rollover_interval_ms: 60_000,
            rollover_bytes: 1 << 26,
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut v1::SessionPlan)) -> PlanError {
        let mut plan = good();
        change(&mut plan);
        validate(&plan, "h").map(|_| ()).unwrap_err()
    }

    #[test]
    fn a_good_plan_becomes_what_the_engine_takes() {
        let plan = validate(&good(), "h").unwrap();
        assert_eq!((plan.spec.collectors.len(), plan.targets.len(), plan.refused.len()), (1, 1, 0));
        assert_eq!(plan.spec.rollover_interval, Duration::from_secs(60));
    }

    #[test]
    fn f26_names_that_could_be_paths_are_refused_everywhere() {
        for bad in ["", "..", "../x", "a/b", "a\0b", "a b", ".hidden", "ü", &"x".repeat(254)] {
            let bad = bad.to_owned();
            refused(|plan| plan.uid = bad.clone());
            refused(|plan| plan.namespace = bad.clone());
            refused(|plan| plan.name = bad.clone());
            refused(|plan| plan.targets[0].pod_uid = bad.clone());
            refused(|plan| plan.targets[0].pod = bad.clone());
            refused(|plan| plan.containers = vec![bad.clone()]);
            if !bad.is_empty() {
                refused(|plan| plan.targets[0].cgroup_name = bad.clone());
            }
        }
    }

    #[test]
    fn f26_lists_without_end_are_refused() {
        refused(|plan| plan.targets = vec![plan.targets[0].clone(); TARGETS_MAX + 1]);
        refused(|plan| plan.collectors = vec![plan.collectors[0].clone(); MAX_COLLECTORS + 1]);
        refused(|plan| plan.collectors.clear());
        refused(|plan| plan.containers = vec!["c".into(); CONTAINERS_MAX + 1]);
        refused(|plan| plan.collectors.push(plan.collectors[0].clone()));
        refused(|plan| plan.targets.push(plan.targets[0].clone()));
    }

    #[test]
    fn a_collector_of_a_newer_operator_is_left_out_and_the_others_run() {
        let mut plan = good();
        plan.collectors.push(v1::CollectorPlan { name: "ofTheFuture".into(), ..Default::default() });
        let valid = validate(&plan, "h").unwrap();
        assert_eq!(valid.spec.collectors.len(), 1);
        assert_eq!(valid.refused[0].collector, "ofTheFuture");
        assert!(valid.refused[0].message.contains(catalogue::COLLECTORS[0].name));
    }

    #[test]
    fn a_collector_whose_plan_has_unknown_fields_is_left_out_and_the_others_run() {
        let mut plan = good();
        let name = catalogue::COLLECTORS[1].name.to_owned();
        plan.collectors.push(v1::CollectorPlan { name, sha256: vec![1; 32], ..Default::default() });
        let valid = validate(&plan, "h").unwrap();
        assert_eq!(valid.spec.collectors.len(), 1);
        assert!(valid.refused[0].message.contains("the operator is newer"), "{:?}", valid.refused);
        let whole =
            node_api::plan::sealed(v1::CollectorPlan { sha256: Vec::new(), ..plan.collectors.remove(1) });
        plan.collectors.push(whole);
        assert_eq!(validate(&plan, "h").unwrap().spec.collectors.len(), 2);
    }

    #[test]
    fn a_plan_is_read_back_as_it_was_stored_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let stored = StoredPlan::new("hash", &good(), Activity::Collect, "boot", 7);
        assert_eq!(StoredPlan::load(dir.path()), None);
        stored.save(dir.path()).unwrap();
        let loaded = StoredPlan::load(dir.path()).unwrap();
        assert_eq!((&loaded, loaded.body()), (&stored, Some(good())));
        fs::write(dir.path().join(FILE), b"{\"hash\": \"ha").unwrap();
        assert_eq!(StoredPlan::load(dir.path()), None);
    }
}
