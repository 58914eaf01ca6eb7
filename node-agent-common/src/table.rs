// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What tables and columns are called and mean: the one description from which Arrow and Parquet schemas, the docs
//! page and the operator's check of parameters are made.
//!
//! In: the declarations beside each event ([`event!`](crate::event)). Out: constants, readable from any crate with the
//! feature `user`. Plain data without dependencies, so that it can be made in a constant.

/// How a column is stored. Integers are signed because some engines read unsigned 64-bit numbers as decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// Signed 64-bit integer.
    Int64,
    /// Signed 32-bit integer.
    Int32,
    /// True or false.
    Bool,
    /// UTF-8 text, rarely repeated.
    Text,
    /// UTF-8 text from a small set: dictionary-encoded with 32-bit keys.
    Dict,
    /// Address as text (IPv4 as IPv4): dictionary-encoded with 32-bit keys.
    Ip,
    /// Microseconds since the Unix epoch, UTC.
    TimeUtc,
    /// 64-bit floating point.
    Float64,
    /// Counts by powers of two: slot i counts values from 2^i to below 2^(i+1), slot 0 also 0; a list of Int64 without the
    /// zeros at its end.
    Histogram,
}

/// One column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name in snake_case; carries the unit as its suffix where there is one.
    pub name: &'static str,
    /// How it is stored.
    pub ty: ColumnType,
    /// Unit (`ns`, `B`, `segments`, ...), `id` for identifiers, empty for names and flags.
    pub unit: &'static str,
    /// Whether a row may have no value here.
    pub nullable: bool,
    /// What it means, for users.
    pub doc: &'static str,
}

impl Column {
    /// A column without a value yet; only to fill arrays in constants.
    const EMPTY: Column = Column { name: "", ty: ColumnType::Int64, unit: "", nullable: false, doc: "" };
}

/// One table: the rows of one schema, one folder of the dataset.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Name in snake_case, also the folder in the dataset.
    pub name: &'static str,
    /// The collector that fills it, as the custom resource calls it (camelCase).
    pub collector: &'static str,
    /// What one row is, for users.
    pub doc: &'static str,
    /// Common columns first, then the table's own, in the order of the schema.
    pub columns: &'static [Column],
    /// Position in [`TABLES`](crate::catalogue::TABLES); the kernel counts by it.
    pub index: u32,
}

/// What values a parameter of a collector may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamType {
    /// `true` or `false`.
    Bool,
    /// A whole number within the bounds, both included.
    Integer {
        /// Smallest value allowed.
        min: i64,
        /// Largest value allowed.
        max: i64,
    },
    /// A duration such as `250ms`, `5s`, `1m`, within the bounds, both included.
    Duration {
        /// Shortest duration allowed, in milliseconds.
        min_ms: u64,
        /// Longest duration allowed, in milliseconds.
        max_ms: u64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Some of these words, separated by commas. Empty means all.
    Words(&'static [&'static str]),
    /// Port numbers and ranges, separated by commas: `443,8000-8080`; at most this many entries. Empty means all.
    Ports {
        /// Largest number of entries.
        max: usize,
    },
}

/// One parameter of a collector.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Name as in the custom resource (camelCase).
    pub name: &'static str,
    /// Values it may take.
    pub ty: ParamType,
    /// Value when it is left out, in the same notation.
    pub default: &'static str,
    /// What it does, for users.
    pub doc: &'static str,
}

/// How often a collector's hooks run on a busy node, and so what it may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Below a thousand times a second.
    Rare,
    /// Up to fifty thousand times a second.
    Moderate,
    /// Beyond that; added up in the kernel.
    Hot,
}

impl Cost {
    /// The sentence on the collector's page.
    pub const fn doc(self) -> &'static str {
        match self {
            Cost::Rare => "A: its hooks run less than a thousand times a second, also on a busy node.",
            Cost::Moderate => "B: its hooks run up to fifty thousand times a second on a busy node.",
            Cost::Hot => {
                "C: its hooks run more than fifty thousand times a second on a busy node; what they see is added up in the kernel."
            }
        }
    }
}

/// One collector: a question about the kernel.
#[derive(Clone, Copy, Debug)]
pub struct CollectorInfo {
    /// Name as in the custom resource (camelCase).
    pub name: &'static str,
    /// What it answers, in one sentence.
    pub question: &'static str,
    /// How it finds out, and to whom it gives what it finds.
    pub doc: &'static str,
    /// What is exact in the chart's default pod.
    pub exact: &'static str,
    /// What is bounded there: a limit, or a kernel that tells less.
    pub bounded: &'static str,
    /// What it cannot see.
    pub unseen: &'static str,
    /// What it costs.
    pub cost: Cost,
    /// Tables it fills.
    pub tables: &'static [&'static Table],
    /// Parameters beyond those common to all collectors.
    pub params: &'static [Param],
    /// Whether `sampleEvery` and `maxEventsPerSecond` apply: true for tables of events.
    pub events: bool,
}

impl CollectorInfo {
    /// Whether it adds up over windows, whose length a session may choose.
    pub fn has_windows(&self) -> bool {
        self.tables.iter().any(|table| table.columns.iter().any(|column| column.name == "window_ns"))
    }
}

/// Columns that every table starts with. Engines join tables on them, so they are declared once.
pub const COMMON_COLUMNS: [Column; 12] = [
    Column {
        name: "time_utc",
        ty: ColumnType::TimeUtc,
        unit: "us",
        nullable: false,
        doc: "When it happened, in UTC, rounded down to microseconds; made from ts_ns and the node's clock anchor.",
    },
    Column {
        name: "ts_ns",
        ty: ColumnType::Int64,
        unit: "ns",
        nullable: false,
        doc: "When it happened, exactly: nanoseconds since the node's boot (CLOCK_BOOTTIME).",
    },
    Column {
        name: "weight",
        ty: ColumnType::Int64,
        unit: "events",
        nullable: false,
        doc: "How many events this row stands for: of a row per event more than 1 where the session samples, of a row per window those that were added up.",
    },
    Column { name: "node", ty: ColumnType::Dict, unit: "id", nullable: false, doc: "Name of the node." },
    Column {
        name: "namespace",
        ty: ColumnType::Dict,
        unit: "id",
        nullable: true,
        doc: "Namespace of the pod; null when the row belongs to no pod.",
    },
    Column { name: "pod", ty: ColumnType::Dict, unit: "id", nullable: true, doc: "Name of the pod." },
    Column {
        name: "container",
        ty: ColumnType::Dict,
        unit: "id",
        nullable: true,
        doc: "Name of the container; null when it was not known by the time the rows were sealed.",
    },
    Column { name: "pod_uid", ty: ColumnType::Dict, unit: "id", nullable: true, doc: "UID of the pod." },
    Column {
        name: "cgroup_id",
        ty: ColumnType::Int64,
        unit: "id",
        nullable: false,
        doc: "Id of the cgroup (v2) that the row was attributed by.",
    },
    Column {
        name: "netns",
        ty: ColumnType::Int64,
        unit: "id",
        nullable: true,
        doc: "Inode of the network namespace, where the hook knows it.",
    },
    Column {
        name: "attribution",
        ty: ColumnType::Dict,
        unit: "",
        nullable: false,
        doc: "How the pod was found: task (the process's cgroup), socket (the cgroup that made the socket), netns (the pod \
              that the network namespace is of: container is null, as its containers share it) or none (the row is about the \
              node).",
    },
    Column {
        name: "cpu",
        ty: ColumnType::Int32,
        unit: "id",
        nullable: true,
        doc: "CPU that the hook ran on; null for rows that stand for a window.",
    },
];

/// Columns of tables whose rows stand for a window of time; `weight` is how many events of the window the row stands for.
pub const WINDOW_COLUMNS: [Column; 2] = [
    Column {
        name: "window_start",
        ty: ColumnType::TimeUtc,
        unit: "us",
        nullable: true,
        doc: "Beginning of the window, in UTC; ts_ns and time_utc are its end. Null for a row about a single event.",
    },
    Column {
        name: "window_ns",
        ty: ColumnType::Int64,
        unit: "ns",
        nullable: true,
        doc: "Length of the window: about the interval that was asked for, less at the session's beginning and end. Null for a \
              row about a single event.",
    },
];

/// Columns of the process that a row is about: (pid, start_ns) is its identity, because a pid alone is reused.
pub const PROCESS_COLUMNS: [Column; 4] = [
    Column {
        name: "pid",
        ty: ColumnType::Int64,
        unit: "id",
        nullable: true,
        doc: "Process id (thread group), as the kernel numbers it: on the node as well, unless that is a container itself.",
    },
    Column {
        name: "tid",
        ty: ColumnType::Int64,
        unit: "id",
        nullable: true,
        doc: "Thread id, numbered as pid is; equal to pid for rows about the whole process.",
    },
    Column {
        name: "start_ns",
        ty: ColumnType::Int64,
        unit: "ns",
        nullable: true,
        doc: "When the process began, nanoseconds since boot; with pid its identity.",
    },
    Column {
        name: "comm",
        ty: ColumnType::Dict,
        unit: "",
        nullable: true,
        doc: "Name of the thread as the kernel holds it, at most 15 bytes.",
    },
];

/// Columns of the connection that a row is about.
pub const FLOW_COLUMNS: [Column; 7] = [
    Column {
        name: "family",
        ty: ColumnType::Int32,
        unit: "id",
        nullable: false,
        doc: "Address family of the flow: 2 for IPv4 (also through an IPv6 socket), 10 for IPv6.",
    },
    Column {
        name: "protocol",
        ty: ColumnType::Int32,
        unit: "id",
        nullable: false,
        doc: "IP protocol number: 6 for TCP, 17 for UDP.",
    },
    Column { name: "laddr", ty: ColumnType::Ip, unit: "id", nullable: false, doc: "Address on this side." },
    Column { name: "lport", ty: ColumnType::Int32, unit: "id", nullable: false, doc: "Port on this side." },
    Column { name: "raddr", ty: ColumnType::Ip, unit: "id", nullable: false, doc: "Address of the peer." },
    Column { name: "rport", ty: ColumnType::Int32, unit: "id", nullable: false, doc: "Port of the peer." },
    Column {
        name: "sock_id",
        ty: ColumnType::Int64,
        unit: "id",
        nullable: false,
        doc: "Cookie of the socket: unique on the node until it boots, the same in every table and in `ss -e`.",
    },
];

/// The same where a row may be about no single connection.
pub const OPTIONAL_FLOW_COLUMNS: [Column; FLOW_COLUMNS.len()] = {
    let mut columns = FLOW_COLUMNS;
    let mut i = 0;
    while i < columns.len() {
        columns[i].nullable = true;
        i += 1;
    }
    columns
};

/// Position of the first own column of a table that starts with the common columns only.
pub const AFTER_COMMON: usize = COMMON_COLUMNS.len();
/// Position of the first own column of a table that starts with the common and the process columns.
pub const AFTER_PROCESS: usize = AFTER_COMMON + PROCESS_COLUMNS.len();
/// Position of the first own column of a table that starts with the common, the process and the flow columns.
pub const AFTER_PROCESS_FLOW: usize = AFTER_PROCESS + FLOW_COLUMNS.len();
/// Position of the first own column of a table that starts with the common and the window columns.
pub const AFTER_WINDOW: usize = AFTER_COMMON + WINDOW_COLUMNS.len();
/// Position of the first own column of a table that starts with the common, the window and the process columns.
pub const AFTER_WINDOW_PROCESS: usize = AFTER_WINDOW + PROCESS_COLUMNS.len();

/// Position of the first own column of a table that starts with the common, the window and the flow columns.
pub const AFTER_WINDOW_FLOW: usize = AFTER_WINDOW + FLOW_COLUMNS.len();
/// Position of the first own column of a table that starts with the common, the window, the process and the flow columns.
pub const AFTER_WINDOW_PROCESS_FLOW: usize = AFTER_WINDOW_PROCESS + FLOW_COLUMNS.len();

/// Joins column lists in a constant; `N` has to be the sum of the lengths.
///
/// # Panics
/// At compile time, when `N` is not the sum of the lengths.
pub const fn concat<const N: usize>(parts: &[&[Column]]) -> [Column; N] {
    let mut out = [Column::EMPTY; N];
    let (mut part, mut at) = (0, 0);
    while part < parts.len() {
        let mut i = 0;
        while i < parts[part].len() {
            out[at] = parts[part][i];
            at += 1;
            i += 1;
        }
        part += 1;
    }
    assert!(at == N, "N has to be the sum of the lengths");
    out
}

/// How many of the fields of a record are columns.
pub const fn count(fields: &[Option<Column>]) -> usize {
    let (mut i, mut columns) = (0, 0);
    while i < fields.len() {
        if fields[i].is_some() {
            columns += 1;
        }
        i += 1;
    }
    columns
}

/// The columns among the fields of a record; `N` has to be their [`count`].
///
/// # Panics
/// At compile time, when there are more than `N`.
pub const fn declared<const N: usize>(fields: &[Option<Column>]) -> [Column; N] {
    let mut out = [Column::EMPTY; N];
    let (mut i, mut at) = (0, 0);
    while i < fields.len() {
        if let Some(column) = fields[i] {
            out[at] = column;
            at += 1;
        }
        i += 1;
    }
    out
}

/// Index of the column of that name.
///
/// # Panics
/// At compile time, when there is none.
pub const fn position(columns: &[Column], name: &str) -> usize {
    let mut i = 0;
    while i < columns.len() {
        if same(columns[i].name.as_bytes(), name.as_bytes()) {
            return i;
        }
        i += 1;
    }
    panic!("no column of that name")
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}
