// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Every collector and every table: the list that the kernel side, the agent, the dataset and the operator share.

use crate::table::{CollectorInfo, Table};
use crate::{
    cpu_sched, memory_rss, node_info, packet_drops, page_faults, processes, tcp_connections,
    tcp_listen_queue, tcp_receive, tcp_retransmits, tcp_states, tcp_throughput,
};

/// Every table, ordered by [`Table::index`].
pub const TABLES: &[&Table] = &[
    &processes::TABLE,
    &tcp_connections::TABLE,
    &tcp_states::TABLE,
    &tcp_retransmits::TABLE,
    &page_faults::TABLE,
    &cpu_sched::TABLE,
    &packet_drops::TABLE,
    &tcp_listen_queue::TABLE,
    &tcp_throughput::TABLE,
    &node_info::INFO,
    &node_info::MEMORY,
    &node_info::NET,
    &memory_rss::TABLE,
    &tcp_receive::TABLE,
    &node_info::COUNTERS,
];

/// Every collector, sorted by name.
pub const COLLECTORS: &[&CollectorInfo] = &[
    &cpu_sched::COLLECTOR,
    &memory_rss::COLLECTOR,
    &node_info::COLLECTOR,
    &packet_drops::COLLECTOR,
    &page_faults::COLLECTOR,
    &processes::COLLECTOR,
    &tcp_connections::COLLECTOR,
    &tcp_listen_queue::COLLECTOR,
    &tcp_receive::COLLECTOR,
    &tcp_retransmits::COLLECTOR,
    &tcp_states::COLLECTOR,
    &tcp_throughput::COLLECTOR,
];

/// The collector of that name (camelCase), if there is one.
pub fn collector(name: &str) -> Option<&'static CollectorInfo> {
    COLLECTORS.iter().find(|collector| collector.name == name).copied()
}

/// The table of that name (snake_case), if there is one.
pub fn table(name: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.name == name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_stand_at_their_index() {
        for (index, table) in TABLES.iter().enumerate() {
            assert_eq!(table.index as usize, index, "{}", table.name);
            assert!(
                index < crate::counters::MAX_TABLES as usize,
                "{} has no room in the kernel's counters",
                table.name
            );
        }
    }

    #[test]
    fn names_are_unique_and_collectors_sorted() {
        assert!(COLLECTORS.is_sorted_by(|a, b| a.name < b.name));
        for table in TABLES {
            assert!(
                collector(table.collector).is_some_and(|c| c.tables.iter().any(|t| t.name == table.name))
            );
            let mut names: Vec<_> = table.columns.iter().map(|column| column.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), table.columns.len(), "a column of {} is there twice", table.name);
        }
    }

    #[test]
    fn every_collector_asks_one_question_and_says_what_it_cannot() {
        for collector in COLLECTORS {
            let question = collector.question;
            assert!(question.ends_with('?') && !question.contains('.'), "{}: {question}", collector.name);
            for text in [collector.doc, collector.exact, collector.bounded, collector.unseen] {
                assert!(text.ends_with('.'), "{}: {text}", collector.name);
            }
        }
    }

    #[test]
    fn every_column_is_documented_and_numbers_carry_a_unit() {
        use crate::table::ColumnType::{Float64, Int32, Int64, TimeUtc};
        for table in TABLES {
            for column in table.columns {
                assert!(column.doc.len() > 10, "{}.{} has no documentation", table.name, column.name);
                if matches!(column.ty, Int32 | Int64 | Float64 | TimeUtc) {
                    assert!(!column.unit.is_empty(), "{}.{} has no unit", table.name, column.name);
                }
            }
        }
    }
}
