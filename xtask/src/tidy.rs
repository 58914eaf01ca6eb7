// SPDX-License-Identifier: Apache-2.0

//! What the tree promises about itself, as tests: which crate may know which, and what every source
//! file begins with. ARCHITECTURE.md gives the reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::{cache, exec};

/// Crate -> the crates of ours that it may name, in any kind of dependency.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "tracelake",
        &[
            "tracelake-crds",
            "tracelake-dataset",
            "tracelake-node-agent",
            "tracelake-node-api",
            "tracelake-query",
            "tracelake-report",
        ],
    ),
    ("tracelake-crds", &[]),
    ("tracelake-dataset", &["tracelake-node-agent-common"]),
    ("tracelake-e2e", &["tracelake-crds", "tracelake-dataset", "tracelake-node-api"]),
    ("tracelake-node-agent", &["tracelake-dataset", "tracelake-node-agent-common", "tracelake-node-api"]),
    ("tracelake-node-agent-common", &[]),
    ("tracelake-node-agent-ebpf", &["tracelake-node-agent-common"]),
    ("tracelake-node-api", &[]),
    ("tracelake-operator", &["tracelake-crds", "tracelake-dataset", "tracelake-node-api"]),
    ("tracelake-query", &["tracelake-dataset"]),
    ("tracelake-report", &["tracelake-dataset", "tracelake-node-agent-common", "tracelake-query"]),
    ("tracelake-scale", &["tracelake-crds", "tracelake-node-agent", "tracelake-node-api"]),
    ("tracelake-workload", &[]),
    ("xtask", &[]),
];

/// Beyond this a file is about more than one thing.
const LONGEST: usize = 740;

#[test]
fn crates_know_only_whom_they_may() {
    let text = exec::output(cache::cargo().expect("the target folder can be written").args([
        "metadata",
        "--format-version=1",
        "--no-deps",
        "--offline",
    ]))
    .unwrap();
    let metadata: serde_json::Value = serde_json::from_str(&text).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    assert_eq!(ours, allowed.keys().copied().collect(), "ARROWS lists every crate");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let dependency = dependency["name"].as_str().unwrap();
            let fine = !ours.contains(dependency) || allowed[name].contains(&dependency);
            assert!(fine, "{name} may not depend on {dependency}");
        }
    }
}

#[test]
fn every_source_file_names_its_licence_and_stays_readable() {
    let mut wrong = Vec::new();
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        let generated = path.components().any(|part| part.as_os_str() == "generated");
        let licence = if path
            .components()
            .any(|part| part.as_os_str() == "node-agent-ebpf" || part.as_os_str() == "node-agent-common")
        {
            "// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0"
        } else {
            "// SPDX-License-Identifier: Apache-2.0"
        };
        if !generated && text.lines().next() != Some(licence) {
            wrong.push(format!("{} does not begin with `{licence}`", path.display()));
        }
        let lines = text.lines().count();
        if !generated && lines > LONGEST {
            wrong.push(format!("{} has {lines} lines; split it by what it is about", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a notebook printed is of somebody's session, and changes with every run.
#[test]
fn notebooks_are_committed_without_their_output() {
    let folder = std::fs::read_dir(cache::repository().join("examples")).unwrap();
    let notebooks = folder.map(|entry| entry.unwrap().path());
    let notebooks: Vec<_> =
        notebooks.filter(|path| path.extension().is_some_and(|end| end == "ipynb")).collect();
    assert!(!notebooks.is_empty());
    for path in notebooks {
        let text = std::fs::read_to_string(&path).unwrap();
        let notebook: serde_json::Value = serde_json::from_str(&text).unwrap();
        let cells = notebook["cells"].as_array().unwrap().iter().filter(|cell| cell["cell_type"] == "code");
        for cell in cells {
            let clean = cell["outputs"] == serde_json::json!([]) && cell["execution_count"].is_null();
            assert!(clean, "{}: clear all outputs before committing; {cell}", path.display());
        }
    }
}

/// Names in these pages that are tests': words in backticks with three underscores or more.
#[test]
fn tests_that_are_named_in_words_exist() {
    let code: Vec<String> = sources().iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    for (page, at_least) in [("CONTRIBUTING.md", 25), ("SECURITY.md", 20)] {
        let text = std::fs::read_to_string(cache::repository().join(page)).unwrap();
        let named: BTreeSet<&str> = text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| word.matches('_').count() >= 3 && !word.contains([' ', '/', '.']))
            .collect();
        assert!(named.len() > at_least, "{page}: {named:?}");
        let exists = |name: &&&str| code.iter().any(|text| text.contains(&format!("fn {name}(")));
        let missing: Vec<_> = named.iter().filter(|name| !exists(name)).collect();
        assert!(missing.is_empty(), "{page}: no test is named {missing:?}");
    }
}

pub(crate) fn sources() -> Vec<PathBuf> {
    const FOLDERS: [&str; 12] = [
        "cli",
        "crds",
        "dataset",
        "e2e",
        "node-agent",
        "node-agent-common",
        "node-agent-ebpf",
        "node-api",
        "operator",
        "query",
        "report",
        "xtask",
    ];
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|folder| cache::repository().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension() == Some(Path::new("rs").as_os_str()) {
                found.push(path);
            }
        }
    }
    found
}
