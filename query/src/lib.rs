// SPDX-License-Identifier: Apache-2.0

//! SQL over the tables of one session, by DataFusion.
//!
//! In: the store and the [`Contents`] of a session, finished or not. Out: [`open`], a [`SessionContext`] in which every table
//! of the catalogue exists, and every view of [`views::VIEWS`]. Rows are those of the objects that the highest manifest counts,
//! as `tracelake verify` does; what merely lies in the folder is never read. A table without objects is empty.
//!
//! Loses: nothing. An object that is missing, shorter or no Parquet is an error of the query that needs it.
//!
//! Invariants: the store is read, never written; of an object only the footer, and the columns and row groups that a query
//! needs; memory of operators stays below [`Limits::memory_bytes`], what has no room is spilled to [`Limits::spill_to`].
//!
//! DataFusion is on other versions of arrow, parquet and `object_store` than what writes datasets. They meet in two places only:
//! `objects.rs` hands it the store, `columns.rs` the schemas. Users of this crate take those versions from [`datafusion`].

mod columns;
mod objects;
pub mod output;
mod plan;
mod table;
pub mod views;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::common::TableReference;
use datafusion::error::Result;
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use dataset::catalogue;
use dataset::key::Key;
use dataset::reader::Contents;
use object_store::ObjectStore;

pub use datafusion;
pub use plan::{QueryError, is_whole, plan, statements, tables};

/// Under which name DataFusion knows the session's store.
const STORE: &str = "session://objects";
/// How much of an object's end is read at once: footers of our files are shorter, and so are most small files.
const FOOTER_BYTES: usize = 64 << 10;
/// Of those who hold memory, how many an error names when there is none left.
const NAMED_CONSUMERS: NonZeroUsize = NonZeroUsize::new(3).unwrap();

/// What a query may take of this machine.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Memory of sorts, groups and joins together. Batches on their way come on top: a few MiB for each thread.
    pub memory_bytes: usize,
    /// Where what has no room in memory is written; the system's folder for temporary files if none. Files go with the context.
    pub spill_to: Option<PathBuf>,
    /// The most that is written there.
    pub spill_bytes: u64,
    /// Threads that read and compute at the same time; as many as there are CPUs if none.
    pub threads: Option<NonZeroUsize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: 512 << 20, spill_to: None, spill_bytes: 100 << 30, threads: None }
    }
}

/// Opens a session's tables and views for queries. Nothing of an object is read before a query needs it.
///
/// # Errors
/// When the folder for temporary files cannot be used, or a view of ours is wrong.
pub async fn open(
    store: Arc<dyn ObjectStore>,
    contents: &Contents,
    limits: &Limits,
) -> Result<SessionContext> {
    let pool = TrackConsumersPool::new(FairSpillPool::new(limits.memory_bytes), NAMED_CONSUMERS);
    let mut runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_max_temp_directory_size(limits.spill_bytes);
    if let Some(folder) = &limits.spill_to {
        runtime = runtime.with_temp_file_path(folder);
    }
    let mut config = SessionConfig::new().with_information_schema(true);
    if let Some(threads) = limits.threads {
        config = config.with_target_partitions(threads.get());
    }
    // What each thread's sort keeps aside for merging what it has spilled: of little memory, little.
    let aside = limits.memory_bytes / (8 * config.target_partitions());
    let execution = &mut config.options_mut().execution;
    execution.sort_spill_reservation_bytes = execution.sort_spill_reservation_bytes.min(aside);
    execution.parquet.metadata_size_hint = Some(FOOTER_BYTES);
    let context = SessionContext::new_with_config_rt(config, runtime.build_arc()?);
    let url = ObjectStoreUrl::parse(STORE)?;
    let objects = objects::Objects { store, prefix: contents.prefix.clone() };
    context.register_object_store(url.as_ref(), Arc::new(objects));
    let mut listed = contents.tables();
    for table in catalogue::tables() {
        let objects = listed.remove(table.name).unwrap_or_default();
        let table_of_session = table::Table::new(columns::schema(table)?, objects);
        context.register_table(TableReference::bare(table.name), Arc::new(table_of_session))?;
    }
    views::register(&context).await?;
    Ok(context)
}

/// What somebody who asks should know of the session before he believes an answer, a sentence each.
pub fn notes(contents: &Contents) -> Vec<String> {
    let mut notes = Vec::new();
    match &contents.manifest {
        None => notes.push(format!(
            "the session is not over: it has no manifest yet, and only the {} nodes that are done count",
            contents.nodes.len()
        )),
        Some(manifest) => {
            notes.extend(manifest.incomplete().into_iter().map(|why| format!("incomplete: {why}")));
        }
    }
    let known = |key: &Key| {
        contents.nodes.contains_key(key) || contents.unreadable.iter().any(|(other, _)| other == key)
    };
    let named =
        contents.manifest.iter().flat_map(|manifest| &manifest.nodes).flat_map(|node| &node.manifests);
    let gone = named.filter(|name| !Key::parse(name).is_ok_and(|key| known(&key)));
    notes.extend(
        gone.map(|name| format!("{name} is not there: the rows that it lists are missing from answers")),
    );
    notes.extend(contents.unreadable_parts().map(|(key, reason)| {
        format!("{key} cannot be read, and the rows that it lists are missing from answers: {reason}")
    }));
    let newer = contents.tables().into_keys().filter(|name| catalogue::table(name).is_none());
    notes.extend(
        newer.map(|name| format!("table {name} is of a newer version, this program does not know it")),
    );
    notes
}
