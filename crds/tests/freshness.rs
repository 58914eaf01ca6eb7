// SPDX-License-Identifier: Apache-2.0
//! `yaml/` and the chart's schema of a store say what the types say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde_json::json;
use tracelake_crds::ClusterTraceStore;

/// Writes what is wanted when asked to.
fn check(files: impl IntoIterator<Item = (PathBuf, String)>) {
    let update = std::env::var_os("UPDATE").is_some();
    let mut stale = Vec::new();
    for (path, wanted) in files {
        if update {
            std::fs::write(&path, &wanted).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != wanted {
            stale.push(path);
        }
    }
    assert!(
        stale.is_empty(),
        "stale or of no kind: {stale:?}; run: UPDATE=1 cargo test -p tracelake-crds --test freshness"
    );
}

#[test]
fn the_generated_definitions_are_those_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    check(tracelake_crds::ALL.iter().map(|(name, definition)| {
        let yaml = serde_yaml::to_string(&definition()).unwrap();
        let wanted = format!(
            "# Generated from crds/src by `UPDATE=1 cargo test -p tracelake-crds`; do not edit.\n{yaml}"
        );
        (folder.join(format!("{name}.yaml")), wanted)
    }));
}

/// Helm refuses what the API server would: the operator, which makes the store of the chart's values, could only log it.
#[test]
fn the_chart_checks_a_store_as_the_api_server_does() {
    let mut definition = tracelake_crds::definition::<ClusterTraceStore>();
    let object = definition.spec.versions.remove(0).schema.unwrap().open_api_v3_schema.unwrap();
    let mut spec = object.properties.unwrap().remove("spec").unwrap();
    plain(&mut spec);
    spec.title =
        Some("Generated from crds/src by `UPDATE=1 cargo test -p tracelake-crds`; do not edit.".to_owned());
    // The last key of the file; what stands before it is written by hand.
    let definitions = BTreeMap::from([("definitions", BTreeMap::from([("clusterTraceStoreSpec", spec)]))]);
    let generated = serde_json::to_string_pretty(&definitions).unwrap();
    let generated = generated.strip_prefix("{\n").unwrap();

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/tracelake/values.schema.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let (by_hand, _) = text.split_once("  \"definitions\":").expect("the chart's schema has definitions");
    check([(path, format!("{by_hand}{generated}\n"))]);
}

/// From the API server's dialect to JSON schema.
fn plain(schema: &mut JSONSchemaProps) {
    if schema.x_kubernetes_list_type.take().as_deref() == Some("set") {
        schema.unique_items = Some(true);
    }
    for rule in schema.x_kubernetes_validations.take().unwrap_or_default() {
        let same = match rule.message.as_deref().unwrap_or_default() {
            "exactly one of secretRef and ambient must be set" => json!({ "oneOf": [
                { "required": ["secretRef"] },
                { "required": ["ambient"], "properties": { "ambient": { "enum": [true] } } },
            ]}),
            "must hold at least one certificate in PEM" => {
                json!({ "pattern": "-----BEGIN CERTIFICATE-----" })
            }
            "must not have . or .. as a part" => json!({ "not": { "pattern": r"(^|/)\.\.?(/|$)" } }),
            rule => panic!("this rule has no counterpart in JSON schema here: {rule}"),
        };
        schema.all_of.get_or_insert_default().push(serde_json::from_value(same).unwrap());
    }
    if let Some(properties) = &mut schema.properties {
        schema.additional_properties = Some(JSONSchemaPropsOrBool::Bool(false));
        properties.values_mut().for_each(plain);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        plain(items);
    }
}
