// SPDX-License-Identifier: Apache-2.0
//! `TraceSchedule`: sessions that begin by the clock, as a `CronJob` begins jobs.
//!
//! A schedule makes `TraceSession`s of its own namespace from a template, each named after the schedule and the minute it was
//! due, owned by the schedule and deleted with it. Editing a schedule changes the sessions to come, never one that exists.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::TraceSessionSpec;

/// When to record, and what.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tracelake.dev",
    version = "v1alpha1",
    kind = "TraceSchedule",
    namespaced,
    shortname = "tsched",
    category = "tracelake",
    status = "TraceScheduleStatus",
    derive = "PartialEq",
    doc = "Makes TraceSessions from a template at the times of a cron expression.",
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "Time Zone", type_ = "string", json_path = ".spec.timeZone"),
    printcolumn(name = "Suspend", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(
        name = "Active",
        type_ = "integer",
        json_path = ".status.activeCount",
        description = "Sessions of the schedule that are not over"
    ),
    printcolumn(name = "Last Schedule", type_ = "date", json_path = ".status.lastScheduleTime"),
    printcolumn(
        name = "Next Schedule",
        type_ = "string",
        json_path = ".status.nextScheduleTime",
        description = "When the next session is due"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct TraceScheduleSpec {
    /// When sessions begin: minute, hour, day of month, month, day of week, as `0 3 * * 1-5`, or @hourly, @daily,
    /// @weekly, @monthly, @yearly. Where both days are restricted, either one is enough.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("!self.contains('TZ')").message("the time zone belongs into timeZone"))]
    pub schedule: String,

    /// The time zone of `schedule` by its IANA name, as `Europe/Berlin`. Left out: UTC. One time a day is due once also on the
    /// days when the clock changes; several times a day go by the clock, so some are left out or due twice then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: Option<String>,

    /// What happens when a session is due while an earlier one is not over: Allow both, Forbid the new one, or Replace the
    /// earlier one, which then ends and uploads what it has.
    #[serde(default)]
    pub concurrency_policy: ConcurrencyPolicy,

    /// How many seconds late a session may still begin, for example because the operator was away. Left out: any time, but of
    /// several that were missed the newest alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2147483647))]
    pub starting_deadline_seconds: Option<i64>,

    /// Whether no further session begins; those that exist go on.
    #[serde(default)]
    pub suspend: bool,

    /// How many sessions that are Completed are kept, 0 to 100. Data in the store stay.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 100))]
    pub successful_sessions_history_limit: i32,

    /// How many sessions that are Failed, and how many that are Incomplete, are kept, 0 to 100. An Incomplete one is kept for a
    /// day at least: what its nodes still have is uploaded while it exists.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub failed_sessions_history_limit: i32,

    /// The sessions to make.
    pub session_template: SessionTemplate,
}

fn three() -> i32 {
    3
}

fn one() -> i32 {
    1
}

/// What happens when a session is due while an earlier one is not over.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConcurrencyPolicy {
    /// Both record.
    #[default]
    Allow,
    /// The new one does not begin.
    Forbid,
    /// The earlier one is deleted.
    Replace,
}

/// A session to be made.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SessionTemplate {
    /// What each session carries besides its name.
    #[serde(default)]
    pub metadata: TemplateMetadata,

    /// What each session records.
    pub spec: TraceSessionSpec,
}

/// Labels and annotations of sessions to be made.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TemplateMetadata {
    /// Labels, at most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::trace_session::labels_schema")]
    pub labels: BTreeMap<String, String>,

    /// Annotations, at most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotations_schema")]
    pub annotations: BTreeMap<String, String>,
}

/// What came of a schedule.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TraceScheduleStatus {
    /// The `metadata.generation` that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The minute that the newest session was due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,

    /// When a session of the schedule was last Completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_successful_time: Option<Time>,

    /// When the next session is due; absent while suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,

    /// How many sessions are not over.
    #[serde(default)]
    pub active_count: i32,

    /// At most ten of the sessions that are not over, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(length(max = 253)))]
    pub active: Vec<String>,

    /// What holds: Accepted, OnTime.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

fn annotations_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 1024 }
    })
}
