// SPDX-License-Identifier: Apache-2.0
//! Every collector's page equals its declaration; `UPDATE=1` rewrites the pages.

extern crate tracelake_node_agent as node_agent;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use dataset::catalogue::expected;
use node_agent::collectors::{ALL, Attach, Collector, Role};
use node_agent_common::aggregate::SLOTS;
use node_agent_common::table::{COMMON_COLUMNS, Param, Table};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/collectors")
}

/// A cell of a table in Markdown.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn hooks(collector: &dyn Collector) -> String {
    if collector.hooks().is_empty() {
        return "None: the agent reads the kernel's own files.\n".to_owned();
    }
    let mut text = "| hook | how | without it |\n| --- | --- | --- |\n".to_owned();
    for hook in collector.hooks() {
        let (at, how) = match hook.attach {
            Attach::Tracepoint(name) => (name.to_owned(), "BTF tracepoint (`tp_btf`)"),
            Attach::Entry(names) => (names.join("` or `"), "entry of the function (`fentry`)"),
            Attach::Exit(names) => (names.join("` or `"), "exit of the function (`fexit`)"),
            Attach::Iterator(name) => (name.to_owned(), "iterator, at a session's begin or a window's end"),
            Attach::Run => (hook.program.to_owned(), "run by the agent"),
        };
        let without = match hook.role {
            Role::Needed => "the collector is unsupported".to_owned(),
            Role::Better(better) => format!("`{}` takes its place", better.than),
            Role::Together => "none of this kind is attached: see the columns".to_owned(),
            Role::Instead => "takes the place of those that come together".to_owned(),
            Role::Asked | Role::AskedExtra => {
                "attached only while a session asks for it by a parameter".to_owned()
            }
            Role::Extra => "less is told: see the columns".to_owned(),
        };
        writeln!(text, "| `{at}` | {how} | {without} |").expect("text grows");
    }
    text
}

fn params(params: &[Param]) -> String {
    if params.is_empty() {
        return "None of its own.\n".to_owned();
    }
    let mut text = "| parameter | default | takes | |\n| --- | --- | --- | --- |\n".to_owned();
    for param in params {
        let default = if param.default.is_empty() { "all" } else { param.default };
        let (takes, doc) = (cell(&expected(&param.ty)), cell(param.doc));
        writeln!(text, "| `{}` | {default} | {takes} | {doc} |", param.name).expect("text grows");
    }
    text
}

fn table(table: &Table) -> String {
    let mut text = format!("### `{}`\n\n{}\n\n", table.name, cell(table.doc));
    text += "| column | type | unit | |\n| --- | --- | --- | --- |\n";
    for column in &table.columns[COMMON_COLUMNS.len()..] {
        let null = if column.nullable { ", may be null" } else { "" };
        let (ty, unit, doc) = (column.ty, column.unit, cell(column.doc));
        writeln!(text, "| `{}` | {ty:?}{null} | {unit} | {doc} |", column.name).expect("text grows");
    }
    text
}

/// The collector's question, query, rows and answer; `dataset/tests/queries.rs` runs it.
fn query(collector: &str) -> String {
    let path = folder().join(format!("../queries/{collector}.md"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn page(collector: &dyn Collector) -> String {
    let info = collector.info();
    let mut text = format!("# {}\n\n{}\n\n{}\n\n", info.name, cell(info.question), cell(info.doc));
    text += "| in the chart's default pod | |\n| --- | --- |\n";
    for (what, answer) in [
        ("exact", info.exact),
        ("bounded", info.bounded),
        ("not seen", info.unseen),
        ("cost", info.cost.doc()),
    ] {
        writeln!(text, "| {what} | {} |", cell(answer)).expect("text grows");
    }
    write!(text, "\n## Hooks\n\n{}\n## Parameters\n\n{}", hooks(collector), params(info.params))
        .expect("text grows");
    if info.events {
        text += "\n`sampleEvery` and `maxEventsPerSecond` act in the kernel.\n";
    }
    write!(text, "\n## Example\n\n{}", query(info.name)).expect("text grows");
    text += "\n## Tables\n\nEvery table begins with the columns of [common.md](common.md).\n";
    for one in info.tables {
        write!(text, "\n{}", table(one)).expect("text grows");
    }
    text
}

fn common() -> String {
    let mut text =
        "# Columns of every table\n\n| column | type | unit | |\n| --- | --- | --- | --- |\n".to_owned();
    for column in &COMMON_COLUMNS {
        let null = if column.nullable { ", may be null" } else { "" };
        let (ty, unit, doc) = (column.ty, column.unit, cell(column.doc));
        writeln!(text, "| `{}` | {ty:?}{null} | {unit} | {doc} |", column.name).expect("text grows");
    }
    write!(
        text,
        "\nIn the files `Dict`, `Ip` and `Text` are strings (the first two with a dictionary); `TimeUtc` is a timestamp in UTC, in microseconds.\n\n\
         ## Queries\n\nThose of the pages are for DuckDB, with a view for each table:\n\n\
         ```sql\nCREATE VIEW processes AS FROM 'DATASET/processes/*.parquet';\n```\n\n\
         A table that no rows were written to has no folder.\n\n\
         ## Histograms\n\nA column of type Histogram is a list of at most {SLOTS} counts, without the zeros at its end. Count i, from 0 on, is of values from 2^i to below \
         2^(i+1); the first also has 0, the last what is above. In DuckDB, of a column h:\n\n\
         ```sql\nSELECT i - 1 AS slot, 2^(i - 1) AS at_least, sum(h[i]) AS values FROM t, range(1, {}) r(i) GROUP BY ALL ORDER BY slot;\n```\n",
        SLOTS + 1
    )
    .expect("text grows");
    text
}

#[test]
fn every_page_equals_its_declaration() {
    let update = std::env::var_os("UPDATE").is_some_and(|value| value == "1");
    let mut pages: Vec<(String, String)> =
        ALL.iter().map(|collector| (format!("{}.md", collector.info().name), page(*collector))).collect();
    pages.push(("common.md".to_owned(), common()));
    let mut differing = Vec::new();
    for (name, text) in &pages {
        let path = folder().join(name);
        if fs::read_to_string(&path).unwrap_or_default() == *text {
            continue;
        }
        if update {
            fs::create_dir_all(folder()).expect("a folder for pages");
            fs::write(&path, text).expect("the page is written");
        }
        differing.push(name);
    }
    let known: Vec<&String> = pages.iter().map(|(name, _)| name).collect();
    for entry in fs::read_dir(folder()).expect("the pages") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        assert!(known.contains(&&name), "{name} is a page of no collector");
    }
    assert!(
        differing.is_empty() || update,
        "pages {differing:?} differ: run UPDATE=1 cargo test -p tracelake-node-agent --test docs"
    );
}

#[test]
fn the_page_of_metrics_says_what_is_exported() {
    let exported = node_agent::metrics::Metrics::default().encode().expect("text grows");
    let mut page =
        "# Metrics of the node agent\n\nEach is the node's: none has a label of a session or a pod.\n\n"
            .to_owned();
    page.push_str("| metric | type | is |\n| --- | --- | --- |\n");
    for help in exported.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = help.split_once(' ').expect("a name and a text");
        let kind = exported.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} ")));
        let kind = kind.expect("each has a type");
        let total = if kind == "counter" { "_total" } else { "" };
        writeln!(page, "| `{name}{total}` | {kind} | {} |", cell(help.trim_end_matches('.')))
            .expect("text grows");
    }
    let path = folder().join("../metrics/node-agent.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).expect("write the page");
    }
    let held = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(held, page, "UPDATE=1 cargo test -p tracelake-node-agent --test docs");
}
