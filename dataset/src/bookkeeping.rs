// SPDX-License-Identifier: Apache-2.0

//! The three tables that every session has: `ledger`, `coverage` and `session_nodes`.
//!
//! In: the rows of [`ledger`](crate::ledger), [`coverage`](crate::coverage) and
//! [`manifest`](crate::manifest), as the agent keeps them. Out: descriptions like those of any other
//! table, and record batches of their schemas. Each agent writes its own rows, after its last
//! segment of data was acknowledged, so that the ledger can say what became of every event.

use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, Int64Builder, StringDictionaryBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, RecordBatch};
use node_agent_common::table::{Column, ColumnType, Table};

use crate::coverage::CoverageRow;
use crate::ledger::{LedgerRow, Term};
use crate::manifest::Incarnation;
use crate::schema;

const fn column(name: &'static str, ty: ColumnType, unit: &'static str, doc: &'static str) -> Column {
    Column { name, ty, unit, nullable: false, doc }
}

const NODE: Column = column("node", ColumnType::Dict, "id", "Name of the node.");
const BOOT: Column = column("boot", ColumnType::Dict, "id", "The node's boot id, 32 hexadecimal digits.");
const INCARNATION: Column =
    column("incarnation", ColumnType::Dict, "id", "One life of the agent's process, 32 hexadecimal digits.");

const LEDGER_HEAD: [Column; 5] = [
    NODE,
    BOOT,
    INCARNATION,
    column("table_name", ColumnType::Dict, "id", "The table whose events are accounted for."),
    Column {
        nullable: true,
        ..column(
            "emitted",
            ColumnType::Int64,
            "events",
            "Hits on targets, counted in the kernel; null if the agent crashed and the count was lost with it.",
        )
    },
];

const LEDGER_COLUMNS: [Column; LEDGER_HEAD.len() + Term::ALL.len() + 1] = {
    let rows = column("rows", ColumnType::Int64, "rows", "Rows in acknowledged objects.");
    let mut all = [rows; LEDGER_HEAD.len() + Term::ALL.len() + 1];
    let mut i = 0;
    while i < LEDGER_HEAD.len() {
        all[i] = LEDGER_HEAD[i];
        i += 1;
    }
    let mut term = 0;
    while term < Term::ALL.len() {
        all[i + term] = column(Term::ALL[term].name(), ColumnType::Int64, "events", Term::ALL[term].doc());
        term += 1;
    }
    all
};

/// The account of every event: see [`ledger`](crate::ledger).
pub static LEDGER: Table = Table {
    name: "ledger",
    collector: "",
    doc: "What became of every hit on a target: emitted equals the sum of the columns exported to lost_upload_abandoned.",
    columns: &LEDGER_COLUMNS,
    index: u32::MAX,
};

/// Who was traced when: see [`coverage`](crate::coverage).
pub static COVERAGE: Table = Table {
    name: "coverage",
    collector: "",
    doc: "For every target and collector: traced from when to when, by which hooks, and why not.",
    columns: &[
        NODE,
        BOOT,
        INCARNATION,
        column(
            "namespace",
            ColumnType::Dict,
            "id",
            "Namespace of the pod; empty where the row is about no pod.",
        ),
        column("pod", ColumnType::Dict, "id", "Name of the pod; empty where the row is about no pod."),
        column("container", ColumnType::Dict, "id", "Name of the container; empty where it is not known."),
        column("pod_uid", ColumnType::Dict, "id", "UID of the pod; empty where the row is about no pod."),
        column("collector", ColumnType::Dict, "id", "The collector, as the resource calls it."),
        column("kind", ColumnType::Dict, "", "traced, gap (the agent was not running) or unsupported."),
        column("from_utc", ColumnType::TimeUtc, "us", "Beginning, UTC."),
        column("to_utc", ColumnType::TimeUtc, "us", "End, UTC."),
        column("from_ns", ColumnType::Int64, "ns", "Beginning, nanoseconds since the node's boot."),
        column("to_ns", ColumnType::Int64, "ns", "End, nanoseconds since the node's boot."),
        column(
            "from_start",
            ColumnType::Bool,
            "",
            "Whether the hooks were there before the target's first process.",
        ),
        column("hooks", ColumnType::Dict, "", "The hooks in use, separated by commas."),
        column(
            "reason",
            ColumnType::Text,
            "",
            "Why the stretch ended, or why there is none; empty for the window's end.",
        ),
    ],
    index: u32::MAX,
};

/// Which machines and agents took part.
pub static SESSION_NODES: Table = Table {
    name: "session_nodes",
    collector: "",
    doc: "One row for every agent process that took part: its machine, versions, lifetime and clock anchor.",
    columns: &[
        NODE,
        BOOT,
        INCARNATION,
        column("agent_version", ColumnType::Dict, "", "Version of the agent."),
        column("kernel", ColumnType::Dict, "", "The kernel's release (uname -r)."),
        column("arch", ColumnType::Dict, "", "The machine's architecture (uname -m)."),
        column("started_utc", ColumnType::TimeUtc, "us", "When the session began in this process, UTC."),
        column("ended_utc", ColumnType::TimeUtc, "us", "When it ended or was last known to run, UTC."),
        column(
            "started_ns",
            ColumnType::Int64,
            "ns",
            "When the session began in this process, nanoseconds since boot.",
        ),
        column(
            "ended_ns",
            ColumnType::Int64,
            "ns",
            "When it ended or was last known to run, nanoseconds since boot.",
        ),
        column("clean", ColumnType::Bool, "", "Whether it ended in order; if not, the coverage has a gap."),
        column(
            "anchor_ns",
            ColumnType::Int64,
            "ns",
            "Clock anchor: this moment, in nanoseconds since boot ...",
        ),
        column("anchor_utc", ColumnType::TimeUtc, "us", "... was this moment in UTC."),
    ],
    index: u32::MAX,
};

/// The tables that are always there, sorted by name.
pub const TABLES: &[&Table] = &[&COVERAGE, &LEDGER, &SESSION_NODES];

fn text<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    let mut builder = StringDictionaryBuilder::<Int32Type>::new();
    values.for_each(|value| builder.append_value(value));
    Arc::new(builder.finish())
}

fn plain<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(arrow_array::StringArray::from_iter_values(values))
}

/// Unsigned counts and times become the dataset's signed integers; more than `i64::MAX` events or nanoseconds do not occur.
fn number(values: impl Iterator<Item = Option<u64>>) -> ArrayRef {
    let mut builder = Int64Builder::new();
    values
        .for_each(|value| builder.append_option(value.map(|value| i64::try_from(value).unwrap_or(i64::MAX))));
    Arc::new(builder.finish())
}

fn time(values: impl Iterator<Item = i64>) -> ArrayRef {
    let mut builder = TimestampMicrosecondBuilder::new().with_timezone(schema::UTC);
    values.for_each(|value| builder.append_value(value));
    Arc::new(builder.finish())
}

fn flag(values: impl Iterator<Item = bool>) -> ArrayRef {
    let mut builder = BooleanBuilder::new();
    values.for_each(|value| builder.append_value(value));
    Arc::new(builder.finish())
}

fn batch(table: &'static Table, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(schema::of(table), columns).expect("the columns are those of the table above")
}

/// Rows of table `ledger`.
pub fn ledger_batch(rows: &[LedgerRow]) -> RecordBatch {
    let mut columns = vec![
        text(rows.iter().map(|row| row.node.as_str())),
        text(rows.iter().map(|row| row.boot.as_str())),
        text(rows.iter().map(|row| row.incarnation.as_str())),
        text(rows.iter().map(|row| row.table.as_str())),
        number(rows.iter().map(|row| row.emitted)),
    ];
    columns.extend(Term::ALL.iter().map(|term| number(rows.iter().map(|row| Some(row.terms.get(*term))))));
    columns.push(number(rows.iter().map(|row| Some(row.rows))));
    batch(&LEDGER, columns)
}

/// Rows of table `coverage`.
pub fn coverage_batch(rows: &[CoverageRow]) -> RecordBatch {
    batch(
        &COVERAGE,
        vec![
            text(rows.iter().map(|row| row.node.as_str())),
            text(rows.iter().map(|row| row.boot.as_str())),
            text(rows.iter().map(|row| row.incarnation.as_str())),
            text(rows.iter().map(|row| row.namespace.as_str())),
            text(rows.iter().map(|row| row.pod.as_str())),
            text(rows.iter().map(|row| row.container.as_str())),
            text(rows.iter().map(|row| row.pod_uid.as_str())),
            text(rows.iter().map(|row| row.collector.as_str())),
            text(rows.iter().map(|row| row.kind.as_str())),
            time(rows.iter().map(|row| row.from_utc_us)),
            time(rows.iter().map(|row| row.to_utc_us)),
            number(rows.iter().map(|row| Some(row.from_ns))),
            number(rows.iter().map(|row| Some(row.to_ns))),
            flag(rows.iter().map(|row| row.from_start)),
            text(rows.iter().map(|row| row.hooks.as_str())),
            plain(rows.iter().map(|row| row.reason.as_str())),
        ],
    )
}

/// Rows of table `session_nodes`, all of one node and boot.
pub fn session_nodes_batch(node: &str, boot: &str, rows: &[Incarnation]) -> RecordBatch {
    let utc = |row: &Incarnation, ns: u64| {
        row.anchor_utc_us.saturating_add((ns as i64).saturating_sub(row.anchor_ns as i64).div_euclid(1_000))
    };
    batch(
        &SESSION_NODES,
        vec![
            text(rows.iter().map(|_| node)),
            text(rows.iter().map(|_| boot)),
            text(rows.iter().map(|row| row.incarnation.as_str())),
            text(rows.iter().map(|row| row.agent_version.as_str())),
            text(rows.iter().map(|row| row.kernel.as_str())),
            text(rows.iter().map(|row| row.arch.as_str())),
            time(rows.iter().map(|row| utc(row, row.started_ns))),
            time(rows.iter().map(|row| utc(row, row.ended_ns))),
            number(rows.iter().map(|row| Some(row.started_ns))),
            number(rows.iter().map(|row| Some(row.ended_ns))),
            flag(rows.iter().map(|row| row.clean)),
            number(rows.iter().map(|row| Some(row.anchor_ns))),
            time(rows.iter().map(|row| row.anchor_utc_us)),
        ],
    )
}

#[cfg(test)]
mod tests {
    use arrow_array::Array;

    use super::*;
    use crate::coverage::CoverageKind;

    #[test]
    fn each_table_takes_its_rows() {
        let coverage = CoverageRow {
            node: "node-1".into(),
            boot: "b".into(),
            incarnation: "i".into(),
            namespace: "shop".into(),
            pod: "web".into(),
            container: String::new(),
            pod_uid: "u".into(),
            collector: "processes".into(),
            kind: CoverageKind::Gap,
            from_ns: 1,
            to_ns: 2,
            from_utc_us: 3,
            to_utc_us: 4,
            from_start: false,
            hooks: "tp_btf/x".into(),
            reason: "AgentLost".into(),
        };
        assert_eq!(coverage_batch(&[coverage.clone(), coverage]).num_rows(), 2);
        assert_eq!(session_nodes_batch("node-1", "b", &[Incarnation::default()]).num_rows(), 1);
        let ledger = ledger_batch(&[LedgerRow::default()]);
        assert!(ledger.column_by_name("emitted").unwrap().is_null(0));
        assert_eq!(ledger.num_columns(), LEDGER_COLUMNS.len());
    }

    #[test]
    fn tables_are_sorted_and_every_column_is_documented() {
        assert!(TABLES.is_sorted_by(|a, b| a.name < b.name));
        for table in TABLES {
            for column in table.columns {
                assert!(column.doc.len() > 8, "{}.{}", table.name, column.name);
            }
        }
    }
}
