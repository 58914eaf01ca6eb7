// SPDX-License-Identifier: Apache-2.0

//! From text to something that can run, with errors that say what to do next.
//!
//! In: SQL. Out: statements, and for each the frame of its rows. A name that is no table is answered with the names that are
//! (a name that is no column, by DataFusion itself, with the closest ones). What would write somewhere is refused: a session is
//! read, and results go where the caller puts them. Views may be made; they live as long as the context.

use datafusion::arrow::error::ArrowError;
use datafusion::common::DataFusionError;
use datafusion::dataframe::DataFrame;
use datafusion::execution::context::SQLOptions;
use datafusion::parquet::errors::ParquetError;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// No table or view has the name.
    #[error("there is no table {name:?}; there are {}", .known.join(", "))]
    UnknownTable {
        /// As written.
        name: String,
        /// Those that are.
        known: Vec<String>,
    },
    /// What cannot be spilled has no room.
    #[error("{0}; give the query more memory (--memory), or ask for less at a time")]
    Memory(DataFusionError),
    /// Everything else, in DataFusion's words.
    #[error("{0}")]
    DataFusion(DataFusionError),
    /// The rows cannot be written.
    #[error("the rows cannot be written: {0}")]
    Write(#[from] std::io::Error),
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => Self::Memory(error),
            _ => Self::DataFusion(error),
        }
    }
}

impl From<ArrowError> for QueryError {
    fn from(error: ArrowError) -> Self {
        DataFusionError::from(error).into()
    }
}

impl From<ParquetError> for QueryError {
    fn from(error: ParquetError) -> Self {
        DataFusionError::from(error).into()
    }
}

/// Takes text apart at its semicolons.
///
/// # Errors
/// When it is no SQL.
pub fn statements(sql: &str) -> Result<Vec<Statement>, QueryError> {
    Ok(DFParser::parse_sql(sql)?.into())
}

/// Whether text ends with the end of a statement: a semicolon that is no part of a string or a comment.
pub fn is_whole(text: &str) -> bool {
    match Tokenizer::new(&GenericDialect {}, text).tokenize() {
        Ok(tokens) => {
            let last = tokens.iter().rfind(|token| !matches!(token, Token::Whitespace(_)));
            matches!(last, Some(Token::SemiColon))
        }
        // What is no SQL at all is whole as well: its error is to be seen.
        Err(error) => {
            let goes_on = error.message.contains("nterminated") || error.message.contains("EOF");
            !goes_on && text.trim_end().ends_with(';')
        }
    }
}

/// Names of all tables and views, sorted.
pub fn tables(context: &SessionContext) -> Vec<String> {
    let options = &context.copied_config().options().catalog.clone();
    let schema = context.catalog(&options.default_catalog);
    let schema = schema.and_then(|catalog| catalog.schema(&options.default_schema));
    let mut names = schema.map(|schema| schema.table_names()).unwrap_or_default();
    names.sort();
    names
}

/// Makes a statement ready to run. Nothing but footers is read.
///
/// # Errors
/// When a table or column is not there, types do not fit, or the statement would write.
pub async fn plan(context: &SessionContext, statement: Statement) -> Result<DataFrame, QueryError> {
    let state = context.state();
    for reference in state.resolve_table_references(&statement)? {
        // generate_series(0, 9) stands where a table does.
        let is_function = state.table_functions().contains_key(reference.table());
        if !is_function && !context.table_exist(reference.clone())? {
            return Err(QueryError::UnknownTable { name: reference.to_string(), known: tables(context) });
        }
    }
    let plan = state.statement_to_plan(statement).await?;
    SQLOptions::new().with_allow_dml(false).verify_plan(&plan)?;
    Ok(context.execute_logical_plan(plan).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_ends_at_a_semicolon_outside_of_strings_and_comments() {
        for whole in
            ["SELECT 1;", "SELECT ';';  ", "SELECT 1; -- done", "SELECT 'a\nb';", "SELECT 1; SELECT 2;"]
        {
            assert!(is_whole(whole), "{whole}");
        }
        for part in ["", "SELECT 1", "SELECT ';", "SELECT 1 -- ;", "SELECT /* ;", "SELECT \";"] {
            assert!(!is_whole(part), "{part}");
        }
    }
}
