// SPDX-License-Identifier: Apache-2.0

//! One table of a session: the objects of all its nodes, as the manifests list them.
//!
//! In: a schema, keys and lengths. Out: a scan of those objects and no others; where a question names a few nodes, of theirs.
//! Lengths come from the manifest, so that no object is asked for before its footer is read. Which columns and row groups are
//! read is DataFusion's Parquet reader's work, by projection, statistics and page index; footers are kept for the next query.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, BooleanArray, StringViewArray};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{Column, DFSchema, ScalarValue, Statistics, project_schema};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use dataset::key::Key;
use dataset::manifest::ObjectEntry;

use crate::STORE;

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    schema: SchemaRef,
    objects: Vec<ObjectEntry>,
}

/// Whose each object is, for filters: all rows of an object are of the node that its key names, under which alone an agent
/// may write.
struct Nodes(ArrayRef);

impl Nodes {
    fn of(objects: &[ObjectEntry]) -> Self {
        let node = |object: &ObjectEntry| match Key::parse(&object.key) {
            Ok(Key::Segment { node, .. }) => Some(node),
            _ => None,
        };
        Self(Arc::new(objects.iter().map(node).collect::<StringViewArray>()))
    }
}

impl PruningStatistics for Nodes {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        (column.name == "node").then(|| self.0.clone())
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.min_values(column)
    }

    fn num_containers(&self) -> usize {
        self.0.len()
    }

    fn null_counts(&self, _: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        None
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

impl Table {
    pub(crate) fn new(schema: SchemaRef, objects: Vec<ObjectEntry>) -> Self {
        Self { schema, objects }
    }

    /// Those that may have rows that pass.
    fn objects(&self, state: &dyn Session, filters: &[Expr]) -> Vec<&ObjectEntry> {
        let pruned = |filter| {
            let schema = DFSchema::try_from(self.schema.clone())?;
            let filter = state.create_physical_expr(filter, &schema)?;
            let pruning =
                PruningPredicateBuilder::new().with_file_schema(self.schema.clone()).try_build(filter)?;
            pruning.prune(&Nodes::of(&self.objects))
        };
        match conjunction(filters.to_vec()).map(pruned) {
            Some(Ok(keep)) => {
                let objects = self.objects.iter().zip(keep);
                objects.filter_map(|(object, keep)| keep.then_some(object)).collect()
            }
            // A filter of which nothing can be said but by reading.
            Some(Err(_)) | None => self.objects.iter().collect(),
        }
    }

    /// What manifests say is for planning alone: no answer is made of it.
    fn statistics_of<'a>(&self, objects: impl Iterator<Item = &'a ObjectEntry> + Clone) -> Statistics {
        let sum = |of: fn(&ObjectEntry) -> u64| {
            let sum = objects.clone().map(of).fold(0, u64::saturating_add);
            Precision::Inexact(usize::try_from(sum).unwrap_or(usize::MAX))
        };
        Statistics {
            num_rows: sum(|object| object.rows),
            total_byte_size: sum(|object| object.bytes),
            ..Statistics::new_unknown(&self.schema)
        }
    }
}

#[async_trait]
impl TableProvider for Table {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(self.statistics_of(self.objects.iter()))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let objects = self.objects(state, filters);
        if objects.is_empty() {
            // A scan of no files has no partition, of which a sort cannot make the one that it wants.
            return Ok(Arc::new(EmptyExec::new(project_schema(&self.schema, projection)?)));
        }
        let url = ObjectStoreUrl::parse(STORE)?;
        let runtime = state.runtime_env();
        let store = runtime.object_store(&url)?;
        let reader =
            CachedParquetFileReaderFactory::new(store, runtime.cache_manager.get_file_metadata_cache());
        let parquet = &state.config_options().execution.parquet;
        let mut source = ParquetSource::new(self.schema.clone())
            .with_table_parquet_options(state.table_options().parquet.clone())
            .with_parquet_file_reader_factory(Arc::new(reader));
        if let Some(bytes) = parquet.metadata_size_hint {
            source = source.with_metadata_size_hint(bytes);
        }
        let files = objects.iter().map(|object| PartitionedFile::new(object.key.as_str(), object.bytes));
        let groups = FileGroup::new(files.collect()).split_files(state.config().target_partitions());
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(self.statistics_of(objects.iter().copied()))
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}
