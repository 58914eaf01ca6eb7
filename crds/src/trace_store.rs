// SPDX-License-Identifier: Apache-2.0
//! `TraceStore` and `ClusterTraceStore`: where data may go, and with whose credentials.
//!
//! Both name one bucket of an S3-compatible store. They differ in trust. A tenant's `TraceStore` uses a Secret
//! beside it and an endpoint that the operator's allow-list has; it can never use the operator's own identity, else
//! a tenant could borrow it. An administrator's `ClusterTraceStore` may, and says which namespaces may use it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// One bucket for the sessions of the store's own namespace.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tracelake.dev",
    version = "v1alpha1",
    kind = "TraceStore",
    namespaced,
    shortname = "tstore",
    category = "tracelake",
    status = "StoreStatus",
    derive = "PartialEq",
    doc = "An S3-compatible bucket that the trace sessions of its namespace may write to.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Bucket", type_ = "string", json_path = ".spec.s3.bucket"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct TraceStoreSpec {
    /// The bucket and how to reach it.
    pub s3: S3,

    /// The Secret with the access key, in this namespace.
    #[x_kube(validation = Rule::new("!has(self.ambient) || !self.ambient")
        .message("ambient credentials are the operator's own: only a ClusterTraceStore may use them")
        .reason(Reason::FieldValueForbidden))]
    pub credentials: Credentials,
}

/// One bucket for the sessions of every namespace, or of those listed.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tracelake.dev",
    version = "v1alpha1",
    kind = "ClusterTraceStore",
    shortname = "ctstore",
    category = "tracelake",
    status = "StoreStatus",
    derive = "PartialEq",
    doc = "An S3-compatible bucket that the trace sessions of all namespaces, or of those listed, may write to.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Bucket", type_ = "string", json_path = ".spec.s3.bucket"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterTraceStoreSpec {
    /// The bucket and how to reach it.
    pub s3: S3,

    /// A Secret with the access key in the operator's namespace, or the operator's own identity.
    pub credentials: Credentials,

    /// Namespaces whose sessions may use the store, 1 to 256. Left out: every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "namespaces_schema")]
    pub allowed_namespaces: Option<Vec<String>>,
}

impl ClusterTraceStoreSpec {
    /// Whether sessions of this namespace may use the store.
    pub fn allows(&self, namespace: &str) -> bool {
        self.allowed_namespaces.as_ref().is_none_or(|names| names.iter().any(|name| name == namespace))
    }
}

/// A bucket of an S3-compatible store.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct S3 {
    /// The bucket; it must exist.
    #[schemars(length(min = 3, max = 63), pattern(r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$"))]
    pub bucket: String,

    /// A folder in the bucket below which all keys are, as `traces/prod`, without slashes at its ends. Left out: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256), pattern(r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$"))]
    #[x_kube(validation = Rule::new("self.split('/').all(part, part != '.' && part != '..')")
        .message("must not have . or .. as a part"))]
    pub prefix: String,

    /// Scheme, host and port of the store, as `https://minio.example.com:9000`. Left out: AWS in `region`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), pattern(r"^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$"))]
    pub endpoint: Option<String>,

    /// The region that requests are signed for.
    #[serde(default = "default_region")]
    #[schemars(length(min = 1, max = 63), pattern(r"^[A-Za-z0-9-]+$"))]
    pub region: String,

    /// Whether the bucket stands in the path of a URL instead of its host. Left out: true with an `endpoint`, else false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_path_style: Option<bool>,

    /// Certificates in PEM that are trusted for this store besides the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    #[x_kube(validation = Rule::new("self.contains('-----BEGIN CERTIFICATE-----')")
        .message("must hold at least one certificate in PEM"))]
    pub ca_bundle: Option<String>,
}

impl S3 {
    /// Whether the bucket stands in the path.
    pub fn path_style(&self) -> bool {
        self.force_path_style.unwrap_or(self.endpoint.is_some())
    }
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

/// Whose credentials sign requests: exactly one of secretRef and ambient.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.secretRef) != (has(self.ambient) && self.ambient)")
        .message("exactly one of secretRef and ambient must be set")
)]
pub struct Credentials {
    /// A Secret with the keys accessKeyId and secretAccessKey, and sessionToken if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,

    /// Use the operator's own identity (web identity, EKS pod identity, instance role). ClusterTraceStore only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ambient: Option<bool>,
}

/// A Secret by name.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253), pattern(crate::trace_session::NAME))]
    pub name: String,
}

/// What the operator found when it tried the store.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StoreStatus {
    /// The `metadata.generation` that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Whether the store refuses a create-only write over an object that exists. Absent until probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditional_put: Option<bool>,

    /// What holds: Ready, after an object was put, read, not overwritten, and deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

fn namespaces_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": 256, "x-kubernetes-list-type": "set",
        "items": { "type": "string", "minLength": 1, "maxLength": 63 }
    })
}
