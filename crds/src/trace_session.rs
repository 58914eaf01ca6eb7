// SPDX-License-Identifier: Apache-2.0
//! `TraceSession`: which pods, which collectors, for how long, and where the data go; then what came of it.
//!
//! A session selects pods of its own namespace only. Its spec cannot be changed but for `stop` and
//! `ttlSecondsAfterFinished`: what a dataset says it holds must stay true. Its status is written by the operator
//! alone, from counters that the nodes report.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    Condition, LabelSelector, LabelSelectorRequirement, Time,
};
use kube::core::Rule;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::values::{ByteSize, CollectorName, Cpu, Interval};

/// What to record and where to put it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tracelake.dev",
    version = "v1alpha1",
    kind = "TraceSession",
    namespaced,
    shortname = "ts",
    category = "tracelake",
    status = "TraceSessionStatus",
    derive = "PartialEq",
    doc = "Records chosen pods of its namespace for a time and puts the data into an object store as tables.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Nodes",
        type_ = "string",
        json_path = ".status.nodes.summary",
        description = "Nodes that record or are done, of the nodes with targets"
    ),
    printcolumn(
        name = "Events",
        type_ = "integer",
        json_path = ".status.totals.emitted",
        description = "Events that hit a target"
    ),
    printcolumn(
        name = "Lost",
        type_ = "integer",
        json_path = ".status.totals.lost",
        description = "Events that were lost"
    ),
    printcolumn(
        name = "Uploaded",
        type_ = "integer",
        json_path = ".status.totals.bytesUploaded",
        description = "Bytes acknowledged by the store"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = frozen("target"),
    validation = frozen("collectors"),
    validation = frozen("duration"),
    validation = frozen("startDeadline"),
    validation = frozen("drainTimeout"),
    validation = frozen("storeRef"),
    validation = frozen("rollover"),
    validation = frozen("budget")
)]
pub struct TraceSessionSpec {
    /// The pods to record, of this namespace: exactly one of podSelector, workloadRef, podNames.
    pub target: Target,

    /// What to record: 1 to 32 collectors, each at most once.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub collectors: Vec<Collector>,

    /// How long to record, from the moment the store is ready: 1s to 24h. All nodes end at the same time.
    #[x_kube(validation = between("1s", "24h"))]
    pub duration: Interval,

    /// How long the session may wait for its store, or for a place among its namespace's sessions, before it is Failed: 1s to 24h. Left
    /// out: as long as `duration`. It begins later than that where its store is fine and no operator was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = between("1s", "24h"))]
    pub start_deadline: Option<Interval>,

    /// How long the nodes may upload after the window, 1s to 24h; then the session is over, as Incomplete if
    /// something is missing.
    #[serde(default = "default_drain_timeout")]
    #[x_kube(validation = between("1s", "24h"))]
    pub drain_timeout: Interval,

    /// The store that receives the data. Left out: the operator's default store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_ref: Option<StoreRef>,

    /// When a node seals one file and begins the next.
    #[serde(default)]
    pub rollover: Rollover,

    /// Limits: bytes for the session as a whole, the others for each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,

    /// Seconds after which a session that is over is deleted. The data stay in the store. Left out: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub ttl_seconds_after_finished: Option<i32>,

    /// Ends the session early: nodes stop recording and upload what they have. Cannot be taken back.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self || !oldSelf").message("stop cannot be taken back: make a new session"))]
    pub stop: bool,
}

impl TraceSessionSpec {
    /// How long the session may wait for its store.
    pub fn start_deadline(&self) -> std::time::Duration {
        self.start_deadline.as_ref().unwrap_or(&self.duration).duration()
    }
}

/// A field of the spec that keeps its value, or its absence, for the session's life.
fn frozen(field: &str) -> Rule {
    Rule::new(format!(
        "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    ))
    .message(&*format!(
        "{field} cannot be changed (only stop and ttlSecondsAfterFinished can): make a new session"
    ))
    .field_path(format!(".{field}"))
}

/// A length of time within bounds, both included.
fn between(least: &str, most: &str) -> Rule {
    Rule::new(format!("duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"))
        .message(&*format!("must be from {least} to {most}"))
}

/// A size within bounds, both included.
fn size_between(least: &str, most: &str) -> Rule {
    Rule::new(format!(
        "quantity(self).compareTo(quantity('{least}')) >= 0 && quantity(self).compareTo(quantity('{most}')) <= 0"
    ))
    .message(&*format!("must be from {least} to {most}"))
}

fn default_drain_timeout() -> Interval {
    Interval::from_secs(600)
}

/// The pods to record.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "(has(self.podSelector) ? 1 : 0) + (has(self.workloadRef) ? 1 : 0) + (has(self.podNames) ? 1 : 0) == 1"
    ).message("exactly one of podSelector, workloadRef and podNames must be set")
)]
pub struct Target {
    /// Pods by their labels; `{}` selects every pod of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<PodSelector>,

    /// The pods of one workload, also those that a rolling update makes during the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_ref: Option<WorkloadRef>,

    /// Pods by name: 1 to 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pod_names_schema")]
    pub pod_names: Option<Vec<String>>,

    /// Names of the containers to record, at most 32. Left out or empty: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "containers_schema")]
    pub containers: Vec<String>,

    /// Only pods on nodes with these labels. Left out or empty: all nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels_schema")]
    pub node_selector: BTreeMap<String, String>,
}

/// Pods by their labels: all requirements must hold, as in a Deployment's selector.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodSelector {
    /// Labels that a pod must carry with exactly these values, at most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels_schema")]
    pub match_labels: BTreeMap<String, String>,

    /// Requirements on labels, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<SelectorRequirement>,
}

impl From<&PodSelector> for LabelSelector {
    fn from(selector: &PodSelector) -> Self {
        let expressions = selector.match_expressions.iter().map(|e| LabelSelectorRequirement {
            key: e.key.clone(),
            operator: format!("{:?}", e.operator),
            values: (!e.values.is_empty()).then(|| e.values.clone()),
        });
        Self {
            match_labels: Some(selector.match_labels.clone()),
            match_expressions: Some(expressions.collect()),
        }
    }
}

/// One requirement on one label.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "(self.operator == 'In' || self.operator == 'NotIn') == (has(self.values) && self.values.size() > 0)"
    ).message("values are required with In and NotIn, and not allowed with Exists and DoesNotExist")
)]
pub struct SelectorRequirement {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,

    /// How the label's value is compared: In, NotIn, Exists or DoesNotExist.
    pub operator: SelectorOperator,

    /// The values for In and NotIn, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "label_values_schema")]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectorOperator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or is absent.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

/// A workload of the session's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRef {
    /// Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or CronJob.
    pub kind: WorkloadKind,

    /// Its name.
    #[schemars(length(min = 1, max = 253), pattern(NAME))]
    pub name: String,
}

/// Kinds of workloads that own pods.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// apps/v1
    Deployment,
    /// apps/v1
    StatefulSet,
    /// apps/v1
    DaemonSet,
    /// apps/v1
    ReplicaSet,
    /// batch/v1
    Job,
    /// batch/v1
    CronJob,
}

/// One question about the kernel.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Collector {
    /// The collector's name, as `tcpConnections`; the operator refuses unknown ones and lists those it knows.
    pub name: CollectorName,

    /// How often a collector with windows writes its rows, 1s to 1h. Left out: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = between("1s", "1h"))]
    pub interval: Option<Interval>,

    /// Record one of this many events; the column `weight` says how many a row stands for. 1 records every event.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000000))]
    pub sample_every: i32,

    /// Events per second and node above which events are cut and counted as rateLimited. Left out: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000000))]
    pub max_events_per_second: Option<i64>,

    /// Whether the session is as it should be when some node cannot run this collector.
    #[serde(default)]
    pub optional: bool,

    /// Further parameters of the collector by name, at most 16; the operator refuses unknown ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "params_schema")]
    pub params: BTreeMap<String, String>,
}

fn one() -> i32 {
    1
}

/// A store by kind and name.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct StoreRef {
    /// ClusterTraceStore, or TraceStore for one of this namespace.
    #[serde(default)]
    pub kind: StoreKind,

    /// Its name.
    #[schemars(length(min = 1, max = 253), pattern(NAME))]
    pub name: String,
}

/// Kinds of stores.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StoreKind {
    /// Of the cluster, made by an administrator.
    #[default]
    ClusterTraceStore,
    /// Of the session's namespace, made by the tenant.
    TraceStore,
}

/// When a node seals one file and begins the next; a table without rows makes no file.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Rollover {
    /// After this time, 1s to 1h, moved a little per node so that nodes do not upload all at once.
    #[serde(default = "default_rollover_interval")]
    #[x_kube(validation = between("1s", "1h"))]
    pub interval: Interval,

    /// At this size in memory, 1Mi to 1Gi.
    #[serde(default = "default_rollover_size")]
    #[x_kube(validation = size_between("1Mi", "1Gi"))]
    pub size: ByteSize,
}

impl Default for Rollover {
    fn default() -> Self {
        Self { interval: default_rollover_interval(), size: default_rollover_size() }
    }
}

fn default_rollover_interval() -> Interval {
    Interval::from_secs(60)
}

fn default_rollover_size() -> ByteSize {
    ByteSize::from_mebibytes(64)
}

/// Limits of a session.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Bytes that the session may put into the store, all nodes together, from 1Mi to 100Ti; then it ends, whatever
    /// onExceeded says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = size_between("1Mi", "100Ti"))]
    pub bytes: Option<ByteSize>,

    /// Events per second that may become rows of their own on one node, all collectors together. Not a hard limit: nodes
    /// look once a second, and a rate that rises is recorded until sampling follows it. Collectors that add up per window
    /// are not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000000))]
    pub events_per_second: Option<i64>,

    /// CPU that one node's agent may spend on the session's rows and files, as `200m`: its average over a rollover
    /// interval, or over a window of a collector where that is longer, made every five seconds. Of events fewer become
    /// rows; what is added up per window cannot be sampled: a session of nothing else says that it costs more and goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,

    /// What happens above eventsPerSecond and cpu: Sample (fewer events become rows, each says in `weight` how many it
    /// stands for, and tables with few events keep all) or Stop (the session ends, on all nodes; for cpu when three
    /// averages in a row are above it).
    #[serde(default)]
    pub on_exceeded: OnExceeded,
}

/// What happens above a budget.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExceeded {
    /// Fewer events become rows; each says how many it stands for.
    #[default]
    Sample,
    /// The session ends.
    Stop,
}

/// What came of a session.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TraceSessionStatus {
    /// The `metadata.generation` that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Where the session is, for people; programs read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// When the session was accepted and its store ready: the beginning of the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,

    /// When the window ends, on all nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_time: Option<Time>,

    /// When the session was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,

    /// The nodes with targets, by what they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,

    /// At most five of the nodes that could not do what was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub failing_nodes: Vec<FailingNode>,

    /// Each collector, and on how many nodes it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub collectors: Vec<CollectorStatus>,

    /// The account of all events, summed over nodes: emitted = exported + sampledOut + rateLimited + filtered + lost,
    /// once everything is uploaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals: Option<Totals>,

    /// Where the data are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetStatus>,

    /// What holds: Accepted, StoreReady, TargetsResolved, Collecting, Uploaded, Degraded, BudgetExceeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Where a session is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Waits to be accepted, for its store or for a place among its namespace's sessions.
    Pending,
    /// Nodes load their hooks.
    Preparing,
    /// At least one node records.
    Running,
    /// The window is over; nodes upload.
    Draining,
    /// Every segment of every node is acknowledged and the manifest is written.
    Completed,
    /// Over, but some node did not acknowledge everything.
    Incomplete,
    /// Nothing could be collected.
    Failed,
}

impl Phase {
    /// Whether the session is over.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Incomplete | Self::Failed)
    }
}

/// Nodes with targets, by what they do.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Nodes that have, or had, pods of the session.
    pub expected: i32,
    /// Nodes whose agent is connected and holds the plan.
    pub ready: i32,
    /// Nodes that record.
    pub running: i32,
    /// Nodes that upload after the window.
    pub draining: i32,
    /// Nodes whose data are all acknowledged.
    pub done: i32,
    /// Nodes that failed; `failingNodes` names some.
    pub failed: i32,
    /// Nodes that can run none of the collectors.
    pub unsupported: i32,
    /// Nodes that do not answer.
    pub lost: i32,
    /// Nodes that record or are done, of those expected: `7/9`.
    #[schemars(length(max = 32))]
    pub summary: String,
    /// The nodes that have, or had, pods of the session: kept here so that an operator that restarts still knows
    /// whom to wait for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5000), inner(length(max = 253)))]
    pub names: Vec<String>,
}

/// A node that could not do what was asked.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FailingNode {
    /// The node.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Why, as a constant in CamelCase.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// Why, as a sentence.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// A collector, and on how many nodes it runs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CollectorStatus {
    /// The collector.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Nodes on which it runs or ran.
    pub nodes_running: i32,
    /// Nodes that cannot run it.
    pub nodes_unsupported: i32,
    /// Why not, on one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}

/// The account of all events, and of what lies in the store.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Hits on a target, counted in the kernel.
    pub emitted: i64,
    /// Events that the rows in acknowledged objects stand for.
    pub exported: i64,
    /// Events left out by sampling.
    pub sampled_out: i64,
    /// Events cut by maxEventsPerSecond.
    pub rate_limited: i64,
    /// Events of containers that were not asked for.
    pub filtered: i64,
    /// Events that were lost; the ledger table says at which stage.
    pub lost: i64,
    /// Rows in acknowledged objects.
    pub rows: i64,
    /// Bytes acknowledged by the store.
    pub bytes_uploaded: i64,
    /// Objects acknowledged by the store.
    pub objects_uploaded: i64,
    /// Bytes that wait on the nodes.
    pub bytes_pending: i64,
}

/// Where a session's data are, as resolved at its start: a store that is edited later does not move them.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DatasetStatus {
    /// The folder of the session: `s3://bucket/prefix/namespace/session/uid`.
    #[schemars(length(max = 2048))]
    pub uri: String,
    /// The newest manifest that the operator wrote, relative to `uri`; absent until the session is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub manifest: Option<String>,
    /// The version of the dataset's layout and schemas.
    pub schema_version: i32,
    /// The store's endpoint; absent for AWS itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub endpoint: Option<String>,
    /// The store's region.
    #[schemars(length(max = 63))]
    pub region: String,
    /// The bucket.
    #[schemars(length(max = 63))]
    pub bucket: String,
    /// The store's prefix in the bucket; empty: none.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub prefix: String,
    /// Whether the bucket stands in the path of a URL instead of its host.
    #[serde(default)]
    pub force_path_style: bool,
    /// The store that the session uses.
    pub store_ref: StoreRef,
}

fn params_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 256 }
    })
}

/// What Kubernetes accepts as the name of most objects. References are held to it, as they become parts of URLs and paths.
pub(crate) const NAME: &str = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";

/// What Kubernetes accepts as a label's value.
const LABEL_VALUE: &str = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";

pub(crate) fn labels_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 63, "pattern": LABEL_VALUE }
    })
}

fn label_values_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": 64, "x-kubernetes-list-type": "set",
        "items": { "type": "string", "maxLength": 63, "pattern": LABEL_VALUE }
    })
}

fn pod_names_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": 256, "x-kubernetes-list-type": "set",
        "items": { "type": "string", "minLength": 1, "maxLength": 253, "pattern": NAME }
    })
}

fn containers_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": 32, "x-kubernetes-list-type": "set",
        "items": { "type": "string", "minLength": 1, "maxLength": 63, "pattern": NAME }
    })
}
