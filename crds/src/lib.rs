// SPDX-License-Identifier: Apache-2.0
//! The kinds of `tracelake.dev/v1alpha1`: what users write and what the operator answers.
//!
//! | kind | written by | answered by |
//! | --- | --- | --- |
//! | [`TraceSession`] | tenants: `spec` | the operator alone: `status` |
//! | [`TraceSchedule`] | tenants: `spec` | the operator alone: `status` |
//! | [`TraceStore`] | tenants: `spec` | the operator alone: `status` |
//! | [`ClusterTraceStore`] | administrators: `spec` | the operator alone: `status` |
//!
//! Every rule that one object can show is in the schema, as structure or CEL, so that the API server
//! refuses what is wrong before anybody acts on it; what needs a second object (a store, a catalogue, a
//! node) is answered in conditions, whose types and reasons are constants in [`conditions`].
//!
//! Invariants: whatever the schema accepts, these types deserialize (an object that does not would stop the
//! operator's watch of its whole kind); every field has a description for `kubectl explain`; lists, maps and
//! strings are bounded, which also bounds the cost of the CEL rules; collectors are names, not an enum, so this
//! crate does not change when one is added.
//!
//! `yaml/` is made from here (`UPDATE=1 cargo test -p tracelake-crds`) and linked into the chart, whose
//! schema of `defaultStore.spec` is made from here as well.

#![expect(
    clippy::duplicated_attributes,
    reason = "each print column has a name, a type and a path of its own"
)]
#![expect(unreachable_pub, reason = "KubeSchema repeats each public struct inside a function")]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use kube::CustomResourceExt;

pub mod conditions;
mod trace_schedule;
mod trace_session;
mod trace_store;
mod values;

pub use trace_schedule::{
    ConcurrencyPolicy, SessionTemplate, TemplateMetadata, TraceSchedule, TraceScheduleSpec,
    TraceScheduleStatus,
};
pub use trace_session::{
    Budget, Collector, CollectorStatus, DatasetStatus, FailingNode, NodeCounts, OnExceeded, Phase,
    PodSelector, Rollover, SelectorOperator, SelectorRequirement, StoreKind, StoreRef, Target, Totals,
    TraceSession, TraceSessionSpec, TraceSessionStatus, WorkloadKind, WorkloadRef,
};
pub use trace_store::{
    ClusterTraceStore, ClusterTraceStoreSpec, Credentials, S3, SecretRef, StoreStatus, TraceStore,
    TraceStoreSpec,
};
pub use values::{ByteSize, CollectorName, Cpu, Interval, ValueError};

/// The API group of every kind here.
pub const GROUP: &str = "tracelake.dev";

/// The one version served and stored.
pub const VERSION: &str = "v1alpha1";

/// Keeps a session until its nodes have stopped and uploaded, or until `drainTimeout` has passed.
pub const SESSION_FINALIZER: &str = "tracelake.dev/session";

/// Keeps a store while a session that is not over still writes to it.
pub const STORE_FINALIZER: &str = "tracelake.dev/store";

/// On a schedule's session: the minute that it was due, RFC 3339.
pub const SCHEDULED_AT: &str = "tracelake.dev/scheduled-at";

/// On a schedule's session: the schedule.
pub const SCHEDULE_LABEL: &str = "tracelake.dev/schedule";

/// The longest name of a schedule: its sessions' names have the minute behind it, and are words of paths and labels.
pub const SCHEDULE_NAME_MAX: usize = 52;

/// Makes the definition of one kind.
pub type Definition = fn() -> CustomResourceDefinition;

/// Every kind: its file name in `yaml/` and its definition. Code generation, tests and the chart read this list.
pub const ALL: &[(&str, Definition)] = &[
    ("tracesessions", definition::<TraceSession>),
    ("traceschedules", definition::<TraceSchedule>),
    ("tracestores", definition::<TraceStore>),
    ("clustertracestores", definition::<ClusterTraceStore>),
];

/// The definition of one kind, as it is installed.
///
/// Differs from `K::crd()` in three points. No field is nullable: a null that a client sends for a field left out is
/// then dropped by the API server, and `has()` in a rule means what it says. Descriptions are one line each,
/// because `kubectl explain` wraps them itself. And a schedule's template has no rules about changes: those keep a
/// session as it was recorded, and a template is not recorded yet.
pub fn definition<K: CustomResourceExt>() -> CustomResourceDefinition {
    let mut crd = K::crd();
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
            tidy(schema);
            let template =
                schema.properties.as_mut().and_then(|root| root.get_mut("spec")?.properties.as_mut());
            if let Some(template) = template.and_then(|spec| spec.get_mut("sessionTemplate")) {
                each(template, &mut |schema| {
                    if let Some(rules) = &mut schema.x_kubernetes_validations {
                        rules.retain(|rule| !rule.rule.contains("oldSelf"));
                    }
                    schema.x_kubernetes_validations.take_if(|rules| rules.is_empty());
                });
                let long = format!("self.metadata.name.size() <= {SCHEDULE_NAME_MAX}");
                let message = format!(
                    "the name of a schedule has at most {SCHEDULE_NAME_MAX} characters: its sessions are named after it and a time"
                );
                let rule = ValidationRule { rule: long, message: Some(message), ..ValidationRule::default() };
                schema.x_kubernetes_validations.get_or_insert_default().push(rule);
            }
        }
    }
    crd
}

fn tidy(schema: &mut JSONSchemaProps) {
    each(schema, &mut |schema| {
        schema.nullable = None;
        if let Some(description) = &mut schema.description {
            *description = description.replace('\n', " ");
        }
    });
}

/// Does something to a schema and everything in it.
fn each(schema: &mut JSONSchemaProps, change: &mut impl FnMut(&mut JSONSchemaProps)) {
    change(schema);
    schema.properties.iter_mut().flat_map(|p| p.values_mut()).for_each(|one| each(one, change));
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => each(items, change),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(|one| each(one, change)),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        each(values, change);
    }
}
