// SPDX-License-Identifier: Apache-2.0
//! The kinds of `tracelake.dev/v1alpha1`: what users write and what the operator answers.
//!
//! | kind | written by | answered by |
//! | --- | --- | --- |
//! | [`TraceSession`] | tenants: `spec` | the operator alone: `status` |
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
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

pub mod conditions;
mod trace_session;
mod trace_store;
mod values;

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

/// Makes the definition of one kind.
pub type Definition = fn() -> CustomResourceDefinition;

/// Every kind: its file name in `yaml/` and its definition. Code generation, tests and the chart read this list.
pub const ALL: &[(&str, Definition)] = &[
    ("tracesessions", definition::<TraceSession>),
    ("tracestores", definition::<TraceStore>),
    ("clustertracestores", definition::<ClusterTraceStore>),
];

/// The definition of one kind, as it is installed.
///
/// Differs from `K::crd()` in two points. No field is nullable: a null that a client sends for a field left out is
/// then dropped by the API server, and `has()` in a rule means what it says. And descriptions are one line each,
/// because `kubectl explain` wraps them itself.
pub fn definition<K: CustomResourceExt>() -> CustomResourceDefinition {
    let mut crd = K::crd();
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
            tidy(schema);
        }
    }
    crd
}

fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if let Some(description) = &mut schema.description {
        *description = description.replace('\n', " ");
    }
    schema.properties.iter_mut().flat_map(|p| p.values_mut()).for_each(tidy);
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => tidy(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(tidy),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values);
    }
}
