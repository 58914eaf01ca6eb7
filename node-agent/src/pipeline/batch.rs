// SPDX-License-Identifier: Apache-2.0
//! Columns of one session's table while rows are appended, and the record batch they become.
//!
//! In: rows, written value by value ([`Row`]). Out: [`RecordBatch`] with the schema of `dataset`, in arrival order.
//! Loses: nothing. A row that its decoder gives up is taken back whole.
//! Invariant: all columns have the same length between two rows. Per row nothing is allocated except growth of buffers
//! and the first sight of a dictionary word.
//! Rows of several CPUs arrive by ring, so they are nearly, not exactly, in order of time: whoever writes files sorts.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, Float64Builder, Int32Builder, Int64Builder, ListBuilder, StringBuilder,
    StringDictionaryBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{ArrayRef, BooleanArray, RecordBatch};
use arrow_schema::SchemaRef;
use node_agent_common::event::until_nul;
use node_agent_common::table::{COMMON_COLUMNS, ColumnType, Table, position};

/// Positions of the common columns.
pub mod common {
    use super::{COMMON_COLUMNS, position};
    macro_rules! positions {
        ($($(#[doc = $doc:literal])+ $name:ident = $column:literal;)*) => {
            $( $(#[doc = $doc])+ pub const $name: usize = position(&COMMON_COLUMNS, $column); )*
        };
    }
    positions! {
        /// `time_utc`
        TIME_UTC = "time_utc";
        /// `ts_ns`
        TS_NS = "ts_ns";
        /// `weight`
        WEIGHT = "weight";
        /// `node`
        NODE = "node";
        /// `namespace`
        NAMESPACE = "namespace";
        /// `pod`
        POD = "pod";
        /// `container`
        CONTAINER = "container";
        /// `pod_uid`
        POD_UID = "pod_uid";
        /// `cgroup_id`
        CGROUP_ID = "cgroup_id";
        /// `netns`
        NETNS = "netns";
        /// `attribution`
        ATTRIBUTION = "attribution";
        /// `cpu`
        CPU = "cpu";
    }
}

enum Builder {
    Int64(Int64Builder),
    Int32(Int32Builder),
    Bool(BooleanBuilder),
    Text(StringBuilder),
    Dict(Words),
    Time(TimestampMicrosecondBuilder),
    Float64(Float64Builder),
    Histogram(ListBuilder<Int64Builder>),
}

/// A column of words that mostly repeat: the dictionary is asked once for each run of the same one.
#[derive(Default)]
struct Words {
    builder: StringDictionaryBuilder<Int32Type>,
    /// The word of the run; none for null.
    word: Option<String>,
    run: usize,
}

impl Words {
    fn append(&mut self, word: Option<&str>, rows: usize) {
        if self.word.as_deref() != word {
            self.end_run();
            match (&mut self.word, word) {
                // Keeps its memory.
                (Some(last), Some(word)) => {
                    last.clear();
                    last.push_str(word);
                }
                (last, word) => *last = word.map(str::to_owned),
            }
        }
        self.run += rows;
    }

    fn end_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        match &self.word {
            None => self.builder.append_nulls(run),
            // Fails beyond two thousand million words, which no batch holds.
            Some(word) => self.builder.append_n(word, run).map(drop).unwrap_or_default(),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        self.end_run();
        Arc::new(self.builder.finish())
    }
}

/// One row's value, kept until the row is accepted.
#[derive(Clone, Copy, Default)]
enum Cell {
    #[default]
    Null,
    Int(i64),
    Float(f64),
    /// A word that is the same for ever.
    Word(&'static str),
    /// Range in the scratch text.
    Text(u32, u32),
    /// Range in the scratch slots.
    Slots(u32, u32),
}

/// The rows of one table that are not sealed yet.
pub struct Columns {
    table: &'static Table,
    node: String,
    schema: SchemaRef,
    builders: Vec<Builder>,
    cells: Vec<Cell>,
    scratch: String,
    slots: Vec<i64>,
    /// Where the columns of the process begin, and those of the flow, where the table has them.
    process: Option<usize>,
    flow: Option<usize>,
    rows: usize,
    /// For how many rows the next batch's first makes room: what it would otherwise grow to by doubling, copying each time.
    room: usize,
    weight: u64,
    bytes: u64,
}

impl Columns {
    /// Empty columns of the table on that node.
    ///
    /// # Panics
    /// When the table is not in the catalogue.
    pub fn new(table: &'static Table, node: &str) -> Columns {
        let builders = table.columns.iter().map(|column| Builder::new(column.ty, 0)).collect();
        let first = |name| table.columns.iter().position(|column| column.name == name);
        Columns {
            table,
            node: node.to_owned(),
            schema: dataset::schema::of(table),
            builders,
            cells: vec![Cell::Null; table.columns.len()],
            scratch: String::new(),
            slots: Vec::new(),
            process: first("pid"),
            flow: first("family"),
            rows: 0,
            room: 0,
            weight: 0,
            bytes: 0,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Events that the rows stand for.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// About what the rows take in memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Cgroups of the rows, each run of rows of the same one once.
    pub fn cgroups(&self) -> impl Iterator<Item = u64> {
        let Builder::Int64(builder) = &self.builders[common::CGROUP_ID] else { unreachable!("an id") };
        builder.values_slice().chunk_by(|a, b| a == b).map(|run| run[0].cast_unsigned())
    }

    /// Begins a row. Unless it is [pushed](Row::push), nothing of it stays.
    pub fn row(&mut self) -> Row<'_> {
        let room = std::mem::take(&mut self.room);
        if room > 0 {
            let columns = self.builders.iter_mut().zip(self.table.columns);
            columns.for_each(|(builder, column)| *builder = Builder::new(column.ty, room));
        }
        self.cells.fill(Cell::Null);
        self.scratch.clear();
        self.slots.clear();
        Row { columns: self }
    }

    /// Takes the rows out, with the columns of the pod filled in; rows that `identify` does not keep are left out and
    /// counted.
    ///
    /// # Errors
    /// When a column that must have values has none somewhere: a decoder's mistake; the rows are gone then, and their
    /// weight is in the error.
    pub fn seal<'a>(&mut self, mut identify: impl FnMut(u64) -> Identity<'a>) -> Result<Sealed, Unsealed> {
        let weight = std::mem::take(&mut self.weight);
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        self.room = rows;
        let mut arrays: Vec<ArrayRef> = self.builders.iter_mut().map(Builder::finish).collect();
        let cgroups = arrays[common::CGROUP_ID].as_primitive::<Int64Type>().clone();
        let mut seen: HashMap<i64, Identity<'a>> = HashMap::new();
        let mut keep = Vec::with_capacity(rows);
        let path = self.schema.index_of("cgroup_path").ok();
        let mut words: [Words; 5] = Default::default();
        for run in cgroups.values().chunk_by(|a, b| a == b) {
            let identity = seen.entry(run[0]).or_insert_with(|| identify(run[0].cast_unsigned()));
            keep.resize(keep.len() + run.len(), identity.keep);
            let values =
                [identity.namespace, identity.pod, identity.container, identity.pod_uid, identity.path];
            for (words, value) in words.iter_mut().zip(values) {
                words.append(value, run.len());
            }
        }
        let mut node = Words::default();
        node.append(Some(&self.node), rows);
        arrays[common::NODE] = node.finish();
        let columns =
            [common::NAMESPACE, common::POD, common::CONTAINER, common::POD_UID].into_iter().map(Some);
        for (mut words, column) in words.into_iter().zip(columns.chain([path])) {
            if let Some(column) = column {
                arrays[column] = words.finish();
            }
        }
        let sealed = RecordBatch::try_new(self.schema.clone(), arrays).and_then(|batch| {
            if keep.iter().all(|&keep| keep) {
                return Ok(Sealed { rows: batch, weight, filtered: 0 });
            }
            let weights = batch.column(common::WEIGHT).as_primitive::<Int64Type>();
            let dropped = weights.values().iter().zip(&keep).filter(|(_, keep)| !**keep);
            let filtered = dropped.map(|(weight, _)| weight.cast_unsigned()).sum();
            let rows = arrow_select::filter::filter_record_batch(&batch, &BooleanArray::from(keep))?;
            Ok(Sealed { rows, weight: weight - filtered, filtered })
        });
        sealed.map_err(|error| Unsealed { weight, error })
    }
}

/// To whom a cgroup's rows belong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity<'a> {
    /// Whether the session wants the rows.
    pub keep: bool,
    /// Namespace of the pod.
    pub namespace: Option<&'a str>,
    /// Name of the pod.
    pub pod: Option<&'a str>,
    /// Name of the container.
    pub container: Option<&'a str>,
    /// UID of the pod.
    pub pod_uid: Option<&'a str>,
    /// The cgroup's path below the cgroup root.
    pub path: Option<&'a str>,
}

/// Rows that are ready to be written.
#[derive(Debug)]
pub struct Sealed {
    /// The rows; possibly none.
    pub rows: RecordBatch,
    /// Events that they stand for.
    pub weight: u64,
    /// Events of the rows that were left out.
    pub filtered: u64,
}

/// Rows that could not be made a batch.
#[derive(Debug, thiserror::Error)]
#[error("rows that stand for {weight} events do not fit their schema: {error}")]
pub struct Unsealed {
    /// Events that the rows stood for.
    pub weight: u64,
    /// What is wrong.
    pub error: arrow_schema::ArrowError,
}

impl Builder {
    fn new(ty: ColumnType, room: usize) -> Builder {
        match ty {
            ColumnType::Int64 => Builder::Int64(Int64Builder::with_capacity(room)),
            ColumnType::Int32 => Builder::Int32(Int32Builder::with_capacity(room)),
            ColumnType::Bool => Builder::Bool(BooleanBuilder::with_capacity(room)),
            ColumnType::Text => Builder::Text(StringBuilder::new()),
            ColumnType::Dict | ColumnType::Ip => Builder::Dict(Words::default()),
            ColumnType::TimeUtc => {
                let builder = TimestampMicrosecondBuilder::with_capacity(room);
                Builder::Time(builder.with_timezone(dataset::schema::UTC))
            }
            ColumnType::Float64 => Builder::Float64(Float64Builder::with_capacity(room)),
            ColumnType::Histogram => {
                let slots = ListBuilder::new(Int64Builder::new());
                Builder::Histogram(slots.with_field(dataset::schema::histogram_slot()))
            }
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Builder::Int64(builder) => Arc::new(builder.finish()),
            Builder::Int32(builder) => Arc::new(builder.finish()),
            Builder::Bool(builder) => Arc::new(builder.finish()),
            Builder::Text(builder) => Arc::new(builder.finish()),
            Builder::Dict(words) => words.finish(),
            Builder::Time(builder) => Arc::new(builder.finish()),
            Builder::Float64(builder) => Arc::new(builder.finish()),
            Builder::Histogram(builder) => Arc::new(builder.finish()),
        }
    }
}

/// One row while it is written. Setting a column of another type than the method's is a mistake that tests catch.
pub struct Row<'a> {
    columns: &'a mut Columns,
}

impl Row<'_> {
    /// Sets an integer (Int64, Int32), a truth value as 0 or 1, or microseconds of a time.
    pub fn int(&mut self, column: usize, value: i64) {
        self.columns.cells[column] = Cell::Int(value);
    }

    /// Sets an unsigned integer; one that does not fit becomes the largest that does.
    pub fn uint(&mut self, column: usize, value: u64) {
        self.int(column, i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// Sets a truth value.
    pub fn bool(&mut self, column: usize, value: bool) {
        self.int(column, i64::from(value));
    }

    /// Sets a floating-point number.
    pub fn float(&mut self, column: usize, value: f64) {
        self.columns.cells[column] = Cell::Float(value);
    }

    /// Sets a histogram, without the zeros at its end.
    pub fn histogram(&mut self, column: usize, slots: &[u64]) {
        let used = slots.iter().rposition(|&count| count != 0).map_or(0, |last| last + 1);
        let start = self.columns.slots.len() as u32;
        let counts = slots.iter().take(used).map(|&count| i64::try_from(count).unwrap_or(i64::MAX));
        self.columns.slots.extend(counts);
        self.columns.cells[column] = Cell::Slots(start, self.columns.slots.len() as u32);
    }

    /// Sets text.
    pub fn text(&mut self, column: usize, value: &str) {
        let start = self.columns.scratch.len() as u32;
        self.columns.scratch.push_str(value);
        self.columns.cells[column] = Cell::Text(start, self.columns.scratch.len() as u32);
    }

    /// Sets text that is one of few words of the program itself: nothing is copied.
    pub fn word(&mut self, column: usize, value: &'static str) {
        self.columns.cells[column] = Cell::Word(value);
    }

    /// Sets text from kernel bytes up to the first NUL; what is not UTF-8 becomes U+FFFD.
    pub fn bytes(&mut self, column: usize, value: &[u8]) {
        let value = until_nul(value);
        match str::from_utf8(value) {
            Ok(text) => self.text(column, text),
            Err(_) => self.text(column, &String::from_utf8_lossy(value)),
        }
    }

    /// Sets an address; an IPv4 address inside IPv6 becomes IPv4.
    pub fn ip(&mut self, column: usize, value: IpAddr) {
        use std::fmt::Write;
        let start = self.columns.scratch.len() as u32;
        // Writing to a String does not fail.
        let _ = write!(self.columns.scratch, "{}", value.to_canonical());
        self.columns.cells[column] = Cell::Text(start, self.columns.scratch.len() as u32);
    }

    /// Sets the process columns.
    ///
    /// # Panics
    /// When the table has none.
    pub fn process(&mut self, pid: u32, tid: u32, start_ns: u64, comm: &[u8]) {
        let first = self.columns.process.expect("the table has columns of a process");
        self.int(first, i64::from(pid));
        self.int(first + 1, i64::from(tid));
        self.uint(first + 2, start_ns);
        self.bytes(first + 3, comm);
    }

    /// Position of the first column of the flow.
    ///
    /// # Panics
    /// When the table has none.
    pub fn flow(&self) -> usize {
        self.columns.flow.expect("the table has columns of a flow")
    }

    /// Appends the row.
    pub fn push(self, weight: u64) {
        let Columns { builders, cells, scratch, slots, rows, weight: total, bytes, .. } = self.columns;
        cells[common::WEIGHT] = Cell::Int(weight as i64);
        for (builder, cell) in builders.iter_mut().zip(cells.iter()) {
            match (builder, *cell) {
                (Builder::Int64(builder), Cell::Int(value)) => builder.append_value(value),
                (Builder::Int32(builder), Cell::Int(value)) => {
                    builder.append_value(value.clamp(i32::MIN.into(), i32::MAX.into()) as i32);
                }
                (Builder::Bool(builder), Cell::Int(value)) => builder.append_value(value != 0),
                (Builder::Time(builder), Cell::Int(value)) => builder.append_value(value),
                (Builder::Float64(builder), Cell::Float(value)) => builder.append_value(value),
                (Builder::Text(builder), Cell::Text(start, end)) => {
                    builder.append_value(&scratch[start as usize..end as usize]);
                }
                (Builder::Dict(words), Cell::Text(start, end)) => {
                    words.append(Some(&scratch[start as usize..end as usize]), 1);
                }
                (Builder::Histogram(builder), Cell::Slots(start, end)) => {
                    builder.values().append_slice(&slots[start as usize..end as usize]);
                    builder.append(true);
                }
                (Builder::Int64(builder), _) => builder.append_null(),
                (Builder::Int32(builder), _) => builder.append_null(),
                (Builder::Bool(builder), _) => builder.append_null(),
                (Builder::Time(builder), _) => builder.append_null(),
                (Builder::Float64(builder), _) => builder.append_null(),
                (Builder::Dict(words), Cell::Word(word)) => words.append(Some(word), 1),
                (Builder::Text(builder), Cell::Word(word)) => builder.append_value(word),
                (Builder::Text(builder), _) => builder.append_null(),
                (Builder::Dict(words), _) => words.append(None, 1),
                (Builder::Histogram(builder), _) => builder.append_null(),
            }
        }
        *rows += 1;
        *total += weight;
        // Dictionary text is counted each time: an estimate from above, and without a lookup.
        *bytes += ((builders.len() + slots.len()) * 8 + scratch.len()) as u64;
    }
}
