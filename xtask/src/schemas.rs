// SPDX-License-Identifier: Apache-2.0

//! JSON schemas of every kind that the chart renders, for kubeconform.
//!
//! In: the OpenAPI documents in the Go module of Kubernetes, of the oldest version that the chart allows and of the one that the
//! cluster tests run; our own definitions; the Prometheus operator's, out of its Go module. Out: a file for each kind,
//! `<version>/<group>_<version>_<kind>.json`, complete in itself, and strict: fields that a kind does not have are
//! errors, as a person means them, where the API server drops them with a warning.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::{cache, tools};

/// Its Go module carries the definitions; of this path the registry has no newer version.
const PROMETHEUS_OPERATOR: &str = "github.com/prometheus-operator/prometheus-operator@v0.85.0";
/// What a custom kind's `metadata` is.
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// kubeconform's `-schema-location` below [`folder`].
pub(crate) const LOCATION: &str =
    "{{.NormalizedKubernetesVersion}}/{{.Group}}_{{.ResourceAPIVersion}}_{{.ResourceKind}}.json";

/// Definitions of the Prometheus operator's kinds that the chart makes objects of; the cluster tests install them too.
pub(crate) fn monitoring_definitions() -> Result<Vec<PathBuf>> {
    let folder = tools::go_module(PROMETHEUS_OPERATOR)?.join("example/prometheus-operator-crd");
    let kinds = ["servicemonitors", "podmonitors", "prometheusrules"];
    Ok(kinds.map(|kind| folder.join(format!("monitoring.coreos.com_{kind}.yaml"))).into())
}

/// The folder with the schemas of these versions of Kubernetes, as `v1.37.2`.
pub(crate) fn folder(versions: &[&str]) -> Result<PathBuf> {
    let ours = cache::repository().join("crds/yaml");
    let key =
        cache::Key::default().text(include_str!("schemas.rs")).text(&versions.join(" ")).folder(&ours)?;
    cache::entry("tools", "schemas", key, |folder| {
        let mut definitions = monitoring_definitions()?;
        for entry in fs::read_dir(&ours)? {
            definitions.push(entry?.path());
        }
        for version in versions {
            let folder = folder.join(version);
            fs::create_dir_all(&folder)?;
            let source = tools::go_module(&format!("k8s.io/kubernetes@{version}"))?;
            let meta = built_in(&source.join("api/openapi-spec/v3"), &folder)?;
            for definition in &definitions {
                custom(definition, &meta, &folder)
                    .with_context(|| format!("cannot use {}", definition.display()))?;
            }
        }
        Ok(())
    })
}

/// Writes a file for each kind of Kubernetes' own. Returns `ObjectMeta` with all that it refers to.
fn built_in(documents: &Path, folder: &Path) -> Result<Map<String, Value>> {
    let mut meta = Map::new();
    for entry in fs::read_dir(documents).with_context(|| format!("cannot read {}", documents.display()))? {
        let mut document: Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
        let Some(schemas) = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut) else {
            continue;
        };
        schemas.values_mut().for_each(strict);
        for (name, schema) in schemas.iter() {
            // What several kinds share, as DeleteOptions, is no object in a manifest.
            let Some([kind]) = schema["x-kubernetes-group-version-kind"].as_array().map(Vec::as_slice) else {
                continue;
            };
            let whole =
                json!({ "$ref": format!("#/definitions/{name}"), "definitions": reached(schemas, name) });
            write(folder, kind, &whole)?;
        }
        if meta.is_empty() && schemas.contains_key(OBJECT_META) {
            meta = reached(schemas, OBJECT_META);
        }
    }
    ensure!(!meta.is_empty(), "{} do not define {OBJECT_META}", documents.display());
    Ok(meta)
}

/// Writes a file for each served version of a CustomResourceDefinition.
fn custom(definition: &Path, meta: &Map<String, Value>, folder: &Path) -> Result<()> {
    let definition: Value = serde_yaml::from_str(&fs::read_to_string(definition)?)?;
    let versions = definition["spec"]["versions"].as_array().context("it has no versions")?;
    for version in versions {
        let mut schema = version["schema"]["openAPIV3Schema"].clone();
        strict(&mut schema);
        for named in ["apiVersion", "kind"] {
            schema["properties"][named] = json!({ "type": "string" });
        }
        schema["properties"]["metadata"] = json!({ "$ref": format!("#/definitions/{OBJECT_META}") });
        schema["definitions"] = Value::Object(meta.clone());
        let spec = &definition["spec"];
        let kind =
            json!({ "group": spec["group"], "version": version["name"], "kind": spec["names"]["kind"] });
        write(folder, &kind, &schema)?;
    }
    Ok(())
}

fn write(folder: &Path, kind: &Value, schema: &Value) -> Result<()> {
    let text = |key: &str| kind[key].as_str().with_context(|| format!("a kind without {key}: {kind}"));
    // kubeconform takes the version of kinds without a group for their group.
    let (group, version) = (text("group")?, text("version")?);
    let group = if group.is_empty() { version } else { group };
    let file = format!("{group}_{version}_{}.json", text("kind")?.to_lowercase());
    Ok(fs::write(folder.join(file), serde_json::to_vec(schema)?)?)
}

/// A schema and those that it refers to, directly or not; references lead into the file that they are written to.
fn reached(schemas: &Map<String, Value>, name: &str) -> Map<String, Value> {
    let (mut found, mut todo) = (Map::new(), vec![name.to_owned()]);
    while let Some(name) = todo.pop() {
        if found.contains_key(&name) {
            continue;
        }
        let mut schema = schemas.get(&name).cloned().unwrap_or(Value::Bool(false));
        let mut names = BTreeSet::new();
        redirect(&mut schema, &mut names);
        todo.extend(names);
        found.insert(name, schema);
    }
    found
}

fn redirect(schema: &mut Value, names: &mut BTreeSet<String>) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get_mut("$ref")
                && let Some(name) = reference.strip_prefix("#/components/schemas/").map(str::to_owned)
            {
                *reference = format!("#/definitions/{name}");
                names.insert(name);
            }
            fields.values_mut().for_each(|field| redirect(field, names));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| redirect(item, names)),
        _ => {}
    }
}

/// An object has the fields that it is said to have. Not inside `oneOf` and the like, which name some fields of the object that
/// they stand in.
fn strict(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    let open = fields.contains_key("additionalProperties")
        || fields.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(strict);
        if !open {
            fields.insert("additionalProperties".to_owned(), Value::Bool(false));
        }
    }
    for part in ["items", "additionalProperties"] {
        if let Some(part) = fields.get_mut(part) {
            strict(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_closed_out_where_a_schema_lists_them_all() {
        let mut schema = json!({ "properties": {
            "spec": { "properties": { "a": {} }, "oneOf": [{ "properties": { "a": { "enum": [1] } } }] },
            "list": { "items": { "properties": { "b": {} } } },
            "map": { "additionalProperties": { "properties": { "c": {} } } },
            "any": { "properties": { "d": {} }, "x-kubernetes-preserve-unknown-fields": true },
        }});
        strict(&mut schema);
        for closed in
            ["", "/properties/spec", "/properties/list/items", "/properties/map/additionalProperties"]
        {
            assert_eq!(schema.pointer(closed).unwrap()["additionalProperties"], false, "{closed}");
        }
        for open in ["/properties/spec/oneOf/0", "/properties/any"] {
            assert!(schema.pointer(open).unwrap().get("additionalProperties").is_none(), "{open}");
        }
    }

    #[test]
    fn a_schema_brings_what_it_refers_to_and_no_more() {
        let schemas = json!({
            "a": { "properties": { "b": { "allOf": [{ "$ref": "#/components/schemas/b" }] } } },
            "b": { "items": { "$ref": "#/components/schemas/b" } },
            "c": {},
        });
        let found = reached(schemas.as_object().unwrap(), "a");
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(found["b"]["items"]["$ref"], "#/definitions/b");
    }
}
