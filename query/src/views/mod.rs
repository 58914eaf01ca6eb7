// SPDX-License-Identifier: Apache-2.0

//! What well-known tools print, as views over a session's tables.
//!
//! One file of SQL each, whose head says what it answers; the same text runs in DuckDB over the files
//! (`query/tests/views.rs` compares the answers). A row of a table may stand for more than one event (`weight`); views that
//! add up do so by it, the others pass it on.
//!
//! Views of collectors that are not there yet come with these: sockstat, sofamily, soprotocol, soconnect, socketio and their like.

use std::sync::Arc;

use datafusion::common::TableReference;
use datafusion::datasource::ViewTable;
use datafusion::error::Result;
use datafusion::prelude::SessionContext;

/// A view of ours.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// As in SQL, and its file.
    pub name: &'static str,
    /// The file: comments that say what it answers, and one SELECT.
    pub sql: &'static str,
}

macro_rules! views {
    ($($name:literal),* $(,)?) => {
        /// Every view, by name.
        pub const VIEWS: &[View] = &[$(View { name: $name, sql: include_str!(concat!($name, ".sql")) }),*];
    };
}

views!(
    "page_fault_summary",
    "process_table",
    "quanta_queued_time",
    "quanta_runtime",
    "rss",
    "skbdrop",
    "tcp_state_counts",
    "tcpaccept",
    "tcpconnect",
    "tcpdrop",
    "tcplife",
    "tcpretrans",
    "tcpstates",
    "tcpsynbl",
    "tcptop",
);

impl View {
    /// What it answers: the comments at its head, a line each.
    pub fn doc(&self) -> impl Iterator<Item = &'static str> {
        self.sql.lines().map_while(|line| line.strip_prefix("--")).map(str::trim)
    }
}

/// Makes all views known.
pub(crate) async fn register(context: &SessionContext) -> Result<()> {
    for view in VIEWS {
        let plan = context.state().create_logical_plan(view.sql).await?;
        let table = ViewTable::new(plan, Some(view.sql.to_owned()));
        context.register_table(TableReference::bare(view.name), Arc::new(table))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_sorted_documented_and_no_tables() {
        assert!(VIEWS.is_sorted_by_key(|view| view.name));
        for view in VIEWS {
            assert!(view.doc().count() > 0, "{}", view.name);
            assert!(dataset::catalogue::table(view.name).is_none(), "{}", view.name);
        }
    }
}
