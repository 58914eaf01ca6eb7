// SPDX-License-Identifier: Apache-2.0
//! Good objects pass the generated schema and bad ones fail it, for the reason that their first line states.
//!
//! The structural half of the schema is checked here in the API server's words, its CEL rules by kube-cel. The e2e
//! tests apply the same files to a real API server, so each stated reason is one that it really answers.

use std::path::{Path, PathBuf};

use kube_cel::Validator;
use serde::Deserialize;
use serde_json::Value;

fn files(folder: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<_> = folder
        .read_dir()
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
}

fn objects(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|object| object["apiVersion"] == "tracelake.dev/v1alpha1")
        .collect()
}

/// The schema of an object's kind.
fn schema(object: &Value) -> Value {
    let definition = tracelake_crds::ALL
        .iter()
        .map(|(_, definition)| definition())
        .find(|definition| object["kind"] == definition.spec.names.kind)
        .unwrap_or_else(|| panic!("no kind {}", object["kind"]));
    let schema = definition.spec.versions[0].schema.as_ref().unwrap();
    serde_json::to_value(schema.open_api_v3_schema.as_ref().unwrap()).unwrap()
}

/// Everything that is wrong with an object.
fn errors(object: &Value, old: Option<&Value>) -> Vec<String> {
    let schema = schema(object);
    let mut errors = Vec::new();
    structure(&schema["properties"]["spec"], &object["spec"], "spec", &mut errors);
    if let Err(failed) = Validator::new().validate(&schema, object, old) {
        errors.extend(
            failed.into_vec().into_iter().map(|error| format!("{}: {}", error.field_path, error.message)),
        );
    }
    errors
}

/// The part of structural validation that this schema uses.
fn structure(schema: &Value, value: &Value, path: &str, errors: &mut Vec<String>) {
    let number = |key: &str| schema[key].as_f64();
    let count = |key: &str| schema[key].as_u64();
    match (schema["type"].as_str().unwrap_or_default(), value) {
        ("object", Value::Object(fields)) => {
            for required in schema["required"].as_array().into_iter().flatten() {
                if !fields.contains_key(required.as_str().unwrap()) {
                    errors.push(format!("{path}.{}: Required value", required.as_str().unwrap()));
                }
            }
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                match (&schema["properties"][name], &schema["additionalProperties"]) {
                    (Value::Null, Value::Null) => errors.push(format!("unknown field \"{path}\"")),
                    (Value::Null, values) => structure(values, value, &path, errors),
                    (property, _) => structure(property, value, &path, errors),
                }
            }
            if count("maxProperties").is_some_and(|most| fields.len() as u64 > most) {
                errors.push(format!("{path}: Too many"));
            }
        }
        ("array", Value::Array(items)) => {
            if count("minItems").is_some_and(|least| (items.len() as u64) < least) {
                errors.push(format!("{path} in body should have at least {} items", schema["minItems"]));
            }
            if count("maxItems").is_some_and(|most| items.len() as u64 > most) {
                errors.push(format!("{path}: Too many"));
            }
            let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let identity = |item: &Value| match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => Some(item.to_string()),
                Some("map") => Some(keys.iter().map(|key| item[key].to_string()).collect()),
                _ => None,
            };
            for (at, item) in items.iter().enumerate() {
                if identity(item).is_some()
                    && items[..at].iter().any(|other| identity(other) == identity(item))
                {
                    errors.push(format!("{path}[{at}]: Duplicate value"));
                }
                structure(&schema["items"], item, &format!("{path}[{at}]"), errors);
            }
        }
        ("string", Value::String(text)) => {
            let pattern = schema["pattern"].as_str().unwrap_or_default();
            if !regex::Regex::new(pattern).unwrap().is_match(text) {
                errors.push(format!("{path} in body should match '{pattern}'"));
            }
            let length = text.chars().count() as u64;
            if count("minLength").is_some_and(|least| length < least) {
                errors.push(format!("{path} in body should be at least {} chars long", schema["minLength"]));
            }
            if count("maxLength").is_some_and(|most| length > most) {
                errors.push(format!("{path}: Too long"));
            }
            if schema["enum"].as_array().is_some_and(|known| !known.contains(value)) {
                errors.push(format!("{path}: Unsupported value: {value}"));
            }
        }
        ("integer", Value::Number(found)) => {
            let found = found.as_f64().unwrap();
            if number("minimum").is_some_and(|least| found < least) {
                errors.push(format!(
                    "{path} in body should be greater than or equal to {}",
                    number("minimum").unwrap()
                ));
            }
            if number("maximum").is_some_and(|most| found > most) {
                errors.push(format!(
                    "{path} in body should be less than or equal to {}",
                    number("maximum").unwrap()
                ));
            }
        }
        ("boolean", Value::Bool(_)) => {}
        (kind, value) => errors.push(format!("{path} in body must be of type {kind}: {value}")),
    }
}

/// What an object's own type makes of it.
fn deserialize(object: &Value) -> Result<(), serde_json::Error> {
    let object = object.clone();
    match object["kind"].as_str().unwrap() {
        "TraceSession" => serde_json::from_value::<tracelake_crds::TraceSession>(object).map(drop),
        "TraceSchedule" => serde_json::from_value::<tracelake_crds::TraceSchedule>(object).map(drop),
        "TraceStore" => serde_json::from_value::<tracelake_crds::TraceStore>(object).map(drop),
        "ClusterTraceStore" => serde_json::from_value::<tracelake_crds::ClusterTraceStore>(object).map(drop),
        kind => panic!("no kind {kind}"),
    }
}

#[test]
fn good_objects_are_accepted_and_deserialize() {
    for folder in ["examples", "../examples"] {
        for (path, text) in files(folder) {
            let objects = objects(&text);
            assert!(!objects.is_empty(), "{} holds no object of ours", path.display());
            for object in objects {
                assert_eq!(errors(&object, None), Vec::<String>::new(), "{}", path.display());
                deserialize(&object).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
        }
    }
}

#[test]
fn f26_bad_objects_are_refused_for_the_reason_they_state() {
    for (path, text) in files("tests/bad") {
        let expected =
            text.lines().next().unwrap().strip_prefix("# expect: ").expect("first line states the reason");
        let [object] = &objects(&text)[..] else { panic!("{} must hold one object", path.display()) };
        let errors = errors(object, None);
        assert!(errors.iter().any(|error| error.contains(expected)), "{}: {errors:#?}", path.display());
    }
}

#[test]
fn bad_updates_are_refused_for_the_reason_they_state() {
    for (path, text) in files("tests/bad-updates") {
        let expected =
            text.lines().next().unwrap().strip_prefix("# expect: ").expect("first line states the reason");
        let [old, new] = &objects(&text)[..] else { panic!("{} must hold two objects", path.display()) };
        assert_eq!(errors(old, None), Vec::<String>::new(), "{}", path.display());
        let errors = errors(new, Some(old));
        assert!(errors.iter().any(|error| error.contains(expected)), "{}: {errors:#?}", path.display());
    }
}

#[test]
fn stop_and_ttl_of_a_session_may_change_and_everything_of_a_schedule() {
    for text in [include_str!("good-update.yaml"), include_str!("good-schedule-update.yaml")] {
        let [old, new] = &objects(text)[..] else { panic!("two objects") };
        assert_eq!(errors(new, Some(old)), Vec::<String>::new());
    }
}

#[test]
fn every_field_of_a_session_is_frozen_but_stop_and_ttl() {
    let definition = serde_json::to_value((tracelake_crds::ALL[0].1)()).unwrap();
    let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let frozen: Vec<&str> = spec["x-kubernetes-validations"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|rule| rule["fieldPath"].as_str())
        .map(|path| path.trim_start_matches('.'))
        .collect();
    for field in spec["properties"].as_object().unwrap().keys() {
        let may_change = ["stop", "ttlSecondsAfterFinished"].contains(&field.as_str());
        assert_eq!(frozen.contains(&field.as_str()), !may_change, "{field}");
    }
}

#[test]
fn every_field_is_described_and_bounded() {
    fn walk(schema: &Value, path: &str, described: bool, problems: &mut Vec<String>) {
        if described && schema["description"].as_str().unwrap_or_default().is_empty() {
            problems.push(format!("{path} has no description"));
        }
        let fixed = schema["enum"].is_array() || schema["format"].is_string();
        let bound = match schema["type"].as_str().unwrap_or_default() {
            "string" if !fixed => "maxLength",
            "array" => "maxItems",
            "object" if !schema["additionalProperties"].is_null() => "maxProperties",
            _ => "type",
        };
        if schema[bound].is_null() {
            problems.push(format!("{path} has no {bound}"));
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            // Conditions are Kubernetes' own type: its fields come as they are.
            if name != "conditions" {
                walk(property, &format!("{path}.{name}"), true, problems);
            }
        }
        for inner in ["items", "additionalProperties"] {
            if !schema[inner].is_null() {
                walk(&schema[inner], &format!("{path}[]"), false, problems);
            }
        }
    }
    let mut problems = Vec::new();
    for (name, definition) in tracelake_crds::ALL {
        let definition = serde_json::to_value(definition()).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        for part in ["spec", "status"] {
            walk(&schema[part], &format!("{name}.{part}"), true, &mut problems);
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}
