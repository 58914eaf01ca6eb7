// SPDX-License-Identifier: Apache-2.0

//! Segments of one table of one boot become few: read, checked, written as the agent writes, stored, and read back.
//!
//! In: a [`Part`]. Out: [`Merged`] files that are in the store and right. Rows keep the order of their segments, and within a row group
//! that of time; a row group has the rows or bytes that the agent's have. Schema and metadata are those of the sources; what their
//! metadata say of several agent processes is separated by commas. Segments beside each other whose schemas or other metadata
//! differ, because a newer agent wrote one of them, are not merged.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::{KeyValue, SortingColumn};
use sha2::{Digest, Sha256};

use super::plan::{Part, Plan};
use super::{CompactError, Progress};
use crate::catalogue::Table;
use crate::check::{check_counts, check_digest, check_written, hex, weight};
use crate::key::{Key, SessionPrefix};
use crate::manifest::ObjectEntry;
use crate::reader::{self, ReadError};
use crate::schema::{self, FileInfo, META, ROW_GROUP_BYTES, ROW_GROUP_ROWS, SORTED_BY};
use crate::sort::sorted;

/// Sources fetched at the same time, if they are small.
const FETCHING: u64 = 8;
/// Metadata of a file that are its own: several may be merged.
const INCARNATION: &str = "incarnation";
const SEQUENCE: &str = "sequence";

/// A file that is in the store.
pub(super) struct Merged {
    pub(super) sources: Vec<ObjectEntry>,
    pub(super) entry: ObjectEntry,
}

/// Merges a part. A file is full when it has the plan's size; what is merged of one source only stays as it was.
pub(super) async fn part(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    part: &Part,
    plan: &Plan,
    progress: &mut Progress,
    say: &mut dyn FnMut(Progress),
) -> Result<Vec<Merged>, CompactError> {
    let largest = part.segments.iter().map(|(_, object)| object.bytes).max().unwrap_or_default();
    // Those that wait take no more than a merged file does.
    let fetching = (plan.size / largest.max(1)).clamp(1, FETCHING) as usize;
    let mut sources = stream::iter(&part.segments)
        .map(|(key, object)| async move { Source::fetch(store, prefix, part.table, key, object).await })
        .buffered(fetching);
    let mut all = Vec::new();
    let mut open: Option<Output> = None;
    while let Some(source) = sources.try_next().await? {
        if let Some(full) = open.take_if(|output| output.is_full(plan.size) || !output.takes(&source)) {
            all.extend(store_merged(store, prefix, full, plan, progress).await?);
        }
        let output = match &mut open {
            Some(output) => output,
            None => open.insert(Output::open(part.table, &source)?),
        };
        progress.segments += 1;
        progress.bytes += source.object.bytes;
        output.add(source)?;
        say(*progress);
    }
    drop(sources);
    if let Some(last) = open {
        all.extend(store_merged(store, prefix, last, plan, progress).await?);
        say(*progress);
    }
    Ok(all)
}

/// Creates the file, and reads it back.
async fn store_merged(
    store: &dyn ObjectStore,
    prefix: &SessionPrefix,
    output: Output,
    plan: &Plan,
    progress: &mut Progress,
) -> Result<Option<Merged>, CompactError> {
    // What today's tables have is no matter: an older agent's columns are kept as they are.
    let schema = output.schema.clone();
    let Some(finished) = output.finish(plan.number)? else { return Ok(None) };
    let Finished { key, sources, content, entry } = finished;
    match reader::create(store, &prefix.object(&key), content).await {
        Ok(()) => {}
        Err(ReadError::Exists { .. }) => return Err(CompactError::Unfinished { key: entry.key }),
        Err(error) => return Err(error.into()),
    }
    let wrong = |reason| CompactError::ReadBack { key: entry.key.clone(), reason };
    let back = match reader::fetch(store, prefix, &entry.key, entry.bytes).await {
        Ok(back) => back,
        Err(ReadError::Invalid { reason, .. }) => return Err(wrong(reason)),
        Err(error) => return Err(error.into()),
    };
    check_written(&entry, back, &schema).map_err(wrong)?;
    progress.files += 1;
    Ok(Some(Merged { sources, entry }))
}

/// A file that is whole, and not in the store yet.
struct Finished {
    key: Key,
    sources: Vec<ObjectEntry>,
    content: Bytes,
    entry: ObjectEntry,
}

/// A segment whose content is what its manifest says, as far as that is seen before its rows are.
struct Source {
    key: Key,
    object: ObjectEntry,
    content: Bytes,
    schema: SchemaRef,
    /// `tracelake.*` of its metadata.
    says: BTreeMap<String, String>,
}

impl Source {
    async fn fetch(
        store: &dyn ObjectStore,
        prefix: &SessionPrefix,
        table: &Table,
        key: &Key,
        object: &ObjectEntry,
    ) -> Result<Self, CompactError> {
        let damaged = |reason| CompactError::Source { key: object.key.clone(), reason };
        let content = match reader::fetch(store, prefix, &object.key, object.bytes).await {
            Ok(content) => content,
            Err(ReadError::Invalid { reason, .. }) => return Err(damaged(reason)),
            Err(error) => return Err(error.into()),
        };
        check_digest(object, &content).map_err(damaged)?;
        let file = ParquetRecordBatchReaderBuilder::try_new(content.clone())
            .map_err(|error| damaged(format!("it is not readable: {error}")))?;
        // The file's own metadata are not the schema's.
        let schema = Arc::new(Schema::new(file.schema().fields().clone()));
        let pairs = file.metadata().file_metadata().key_value_metadata().into_iter().flatten();
        let says: BTreeMap<String, String> = pairs
            .filter_map(|pair| Some((pair.key.strip_prefix(META)?.to_owned(), pair.value.clone()?)))
            .collect();
        let Key::Segment { node, boot, .. } = key else { return Err(damaged("it is no segment".to_owned())) };
        for (name, value) in [("table", table.name), ("node", node), ("boot", boot.as_str())] {
            if let Some(other) = says.get(name).filter(|other| *other != value) {
                return Err(damaged(format!("its metadata name {name} {other}")));
            }
        }
        Ok(Self { key: key.clone(), object: object.clone(), content, schema, says })
    }

    fn says(&self, name: &str) -> &str {
        self.says.get(name).map(String::as_str).unwrap_or_default()
    }

    /// What files that are merged have in common.
    fn common(&self) -> impl Iterator<Item = (&String, &String)> {
        self.says.iter().filter(|(name, _)| !matches!(name.as_str(), INCARNATION | SEQUENCE))
    }
}

/// A merged file in the making.
struct Output {
    table: &'static Table,
    writer: ArrowWriter<Vec<u8>>,
    schema: SchemaRef,
    sort: Option<usize>,
    first: Key,
    says: BTreeMap<String, String>,
    incarnations: Vec<String>,
    sources: Vec<ObjectEntry>,
    gathered: Vec<RecordBatch>,
    gathered_rows: usize,
    gathered_bytes: usize,
}

impl Output {
    fn open(table: &'static Table, source: &Source) -> Result<Self, CompactError> {
        let sort =
            SORTED_BY.iter().find_map(|name| source.schema.column_with_name(name)).map(|(index, _)| index);
        let info = FileInfo {
            session: source.says("session"),
            node: source.says("node"),
            boot: source.says("boot"),
            incarnation: "",
            sequence: 0,
        };
        let sorting =
            |index| SortingColumn { column_idx: index as i32, descending: false, nulls_first: false };
        let pairs = source.common().map(|(name, value)| pair(name, value.clone())).collect();
        let properties = schema::writer_properties(table, &info)
            .into_builder()
            .set_sorting_columns(sort.map(|index| vec![sorting(index)]))
            .set_key_value_metadata(Some(pairs))
            .build();
        let writer = ArrowWriter::try_new(Vec::new(), source.schema.clone(), Some(properties))
            .map_err(|error| unmerged(table, &error))?;
        Ok(Self {
            table,
            writer,
            schema: source.schema.clone(),
            sort,
            first: source.key.clone(),
            says: source.common().map(|(name, value)| (name.clone(), value.clone())).collect(),
            incarnations: Vec::new(),
            sources: Vec::new(),
            gathered: Vec::new(),
            gathered_rows: 0,
            gathered_bytes: 0,
        })
    }

    fn is_full(&self, size: u64) -> bool {
        self.writer.bytes_written() as u64 >= size
    }

    fn takes(&self, source: &Source) -> bool {
        self.schema == source.schema && self.says.iter().eq(source.common())
    }

    /// Takes all rows of a segment, which have to be as many as its manifest says.
    fn add(&mut self, source: Source) -> Result<(), CompactError> {
        let incarnation = source.says(INCARNATION);
        if !self.incarnations.iter().any(|known| known == incarnation) {
            self.incarnations.push(incarnation.to_owned());
        }
        let Source { object, content, .. } = source;
        let damaged = |reason| CompactError::Source { key: object.key.clone(), reason };
        let unreadable = |error: &dyn std::fmt::Display| damaged(format!("it is not readable: {error}"));
        // A row group at a time.
        let batches = ParquetRecordBatchReaderBuilder::try_new(content)
            .and_then(|file| file.with_batch_size(ROW_GROUP_ROWS).build())
            .map_err(|error| unreadable(&error))?;
        let (mut rows, mut weights) = (0, 0);
        for batch in batches {
            let batch = batch.map_err(|error| unreadable(&error))?;
            rows += batch.num_rows() as u64;
            weights += weight(&batch);
            self.gather(&batch)?;
        }
        check_counts(&object, self.table.name, rows, weights).map_err(damaged)?;
        self.sources.push(object);
        Ok(())
    }

    fn gather(&mut self, batch: &RecordBatch) -> Result<(), CompactError> {
        let (rows, bytes) = (batch.num_rows(), batch.get_array_memory_size());
        let mut taken = 0;
        while taken < rows {
            let some = (rows - taken).min(ROW_GROUP_ROWS - self.gathered_rows);
            // Named by the schema of the file, not by that of the batch, which has the file's metadata.
            let columns = batch.slice(taken, some).columns().to_vec();
            let slice = RecordBatch::try_new(self.schema.clone(), columns);
            self.gathered.push(slice.map_err(|error| unmerged(self.table, &error))?);
            self.gathered_rows += some;
            self.gathered_bytes += bytes * some / rows;
            taken += some;
            if self.gathered_rows >= ROW_GROUP_ROWS {
                self.write_out()?;
            } else if self.gathered_bytes >= ROW_GROUP_BYTES {
                // Of many small batches most is what surrounds the rows.
                let whole = sorted(self.sort, &std::mem::take(&mut self.gathered));
                let whole = whole.map_err(|error| unmerged(self.table, &error))?;
                self.gathered_bytes = whole.get_array_memory_size();
                self.gathered.push(whole);
                if self.gathered_bytes >= ROW_GROUP_BYTES / 2 {
                    self.write_out()?;
                }
            }
        }
        Ok(())
    }

    /// Writes what is gathered as one row group, sorted.
    fn write_out(&mut self) -> Result<(), CompactError> {
        let batches = std::mem::take(&mut self.gathered);
        (self.gathered_rows, self.gathered_bytes) = (0, 0);
        if batches.is_empty() {
            return Ok(());
        }
        let rows = sorted(self.sort, &batches).map_err(|error| unmerged(self.table, &error))?;
        drop(batches);
        let written = self.writer.write(&rows).and_then(|()| self.writer.flush());
        written.map_err(|error| unmerged(self.table, &error))
    }

    /// Makes it whole. None of a single source.
    fn finish(mut self, generation: u64) -> Result<Option<Finished>, CompactError> {
        if self.sources.len() < 2 {
            return Ok(None);
        }
        self.write_out()?;
        let Key::Segment { sequence, .. } = self.first else { return Ok(None) };
        self.writer.append_key_value_metadata(pair(INCARNATION, self.incarnations.join(",")));
        self.writer.append_key_value_metadata(pair(SEQUENCE, sequence.to_string()));
        let content = self.writer.into_inner().map_err(|error| unmerged(self.table, &error))?;
        let key = self.first.of_generation(generation);
        let entry = ObjectEntry {
            key: key.relative(),
            rows: self.sources.iter().map(|source| source.rows).sum(),
            weight: self.sources.iter().map(|source| source.weight).sum(),
            bytes: content.len() as u64,
            sha256: hex(&Sha256::digest(&content)),
        };
        Ok(Some(Finished { key, sources: self.sources, content: content.into(), entry }))
    }
}

fn pair(name: &str, value: String) -> KeyValue {
    KeyValue::new(format!("{META}{name}"), value)
}

fn unmerged(table: &Table, error: &dyn std::fmt::Display) -> CompactError {
    CompactError::Merge { table: table.name.to_owned(), reason: error.to_string() }
}
