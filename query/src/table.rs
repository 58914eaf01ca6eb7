// SPDX-License-Identifier: Apache-2.0

//! One table of a session: the objects of all its nodes, as the manifests list them.
//!
//! In: a schema, keys and lengths. Out: a scan of those objects and no others. Lengths come from the manifest, so that no
//! object is asked for before its footer is read. Which columns and row groups are read is DataFusion's Parquet reader's work,
//! by projection, statistics and page index; footers are kept for the next query.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{Statistics, project_schema};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use dataset::manifest::ObjectEntry;

use crate::STORE;

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    schema: SchemaRef,
    files: Vec<PartitionedFile>,
    statistics: Statistics,
}

impl Table {
    pub(crate) fn new(schema: SchemaRef, objects: &[ObjectEntry]) -> Result<Self> {
        let sum = |of: fn(&ObjectEntry) -> u64| {
            let sum = objects.iter().map(of).fold(0, u64::saturating_add);
            // What manifests say is for planning alone: no answer is made of it.
            Precision::Inexact(usize::try_from(sum).unwrap_or(usize::MAX))
        };
        let statistics = Statistics {
            num_rows: sum(|object| object.rows),
            total_byte_size: sum(|object| object.bytes),
            ..Statistics::new_unknown(&schema)
        };
        let file = |object: &ObjectEntry| PartitionedFile::new(object.key.as_str(), object.bytes);
        Ok(Self { schema, files: objects.iter().map(file).collect(), statistics })
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
        Some(self.statistics.clone())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if self.files.is_empty() {
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
        let groups = FileGroup::new(self.files.clone()).split_files(state.config().target_partitions());
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(self.statistics.clone())
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}
