// SPDX-License-Identifier: Apache-2.0
//! The page of the operator's metrics equals what it exports; `UPDATE=1` rewrites it. What the dashboard and the alerts of the
//! chart ask for is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use prometheus_client::registry::Registry;
use tracelake_operator::metrics::Metrics;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn exported() -> String {
    let (metrics, mut registry, mut text) = (Metrics::default(), Registry::default(), String::new());
    metrics.register(&mut registry);
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

/// One row per metric: name as scraped, type, help.
fn page(title: &str, exported: &str) -> String {
    let mut text = format!("# {title}\n\n| metric | type | is |\n| --- | --- | --- |\n");
    for help in exported.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = help.split_once(' ').unwrap();
        let kind = exported.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap();
        let total = if kind == "counter" { "_total" } else { "" };
        text += &format!("| `{name}{total}` | {kind} | {} |\n", help.trim_end_matches('.'));
    }
    text
}

#[test]
fn the_page_says_what_is_exported() {
    let path = repository().join("docs/metrics/operator.md");
    let page = page("Metrics of the operator", &exported());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let held = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(held, page, "UPDATE=1 cargo test -p tracelake-operator --test metrics");
}

/// Names of our metrics in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    text.split(word).filter(|word| word.starts_with("tracelake_")).collect()
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_what_there_is() {
    let pages = ["operator", "node-agent"]
        .map(|side| fs::read_to_string(repository().join(format!("docs/metrics/{side}.md"))).unwrap());
    let there: BTreeSet<&str> = pages.iter().flat_map(|page| named(page)).collect();
    for file in ["dashboard.json", "alerts.yaml"] {
        let text = fs::read_to_string(repository().join("charts/tracelake/monitoring").join(file)).unwrap();
        let asked = named(&text);
        assert!(!asked.is_empty(), "{file} asks for nothing");
        let missing: Vec<_> = asked.difference(&there).collect();
        assert!(missing.is_empty(), "{file} asks for {missing:?}");
    }
}
