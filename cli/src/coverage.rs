// SPDX-License-Identifier: Apache-2.0

//! What was traced of each container, as a table: what a missing event means.
//!
//! In: the nodes' own lists of a session that is over. Out: a row for each stretch of time of a container under a collector, by pod,
//! container and collector. Inside a `traced` stretch what is not there did not happen, or the ledger counts it as lost; inside a `gap`
//! nobody looked, and an `unsupported` collector never did.

use anstyle::Style;
use dataset::coverage::{CoverageKind, CoverageRow};
use dataset::reader::Contents;
use k8s_openapi::jiff::Timestamp;

use crate::output::{self, BAD, Cell, GOOD, WARNING, age};

/// Below this many seconds a length has a decimal.
const SHORT: i64 = 10;

/// All stretches.
pub(crate) fn table(contents: &Contents) -> String {
    let mut rows: Vec<&CoverageRow> = contents.parts().flat_map(|(_, node)| &node.coverage).collect();
    if rows.is_empty() {
        return "\nno container was traced\n".to_owned();
    }
    let key = |row: &&CoverageRow| {
        let names = (row.pod.clone(), row.container.clone(), row.collector.clone());
        (names, row.node.clone(), row.from_utc_us)
    };
    rows.sort_by_cached_key(key);
    let rows: Vec<Vec<Cell>> = rows.into_iter().map(cells).collect();
    let headings = [
        "POD",
        "CONTAINER",
        "COLLECTOR",
        "COVERAGE",
        "FROM",
        "FOR",
        "FIRST PROCESS",
        "NODE",
        "HOOKS",
        "REASON",
    ];
    format!("\n{}", output::table(&headings, &rows))
}

fn cells(row: &CoverageRow) -> Vec<Cell> {
    let style = match row.kind {
        CoverageKind::Traced => GOOD,
        CoverageKind::Gap => WARNING,
        CoverageKind::Unsupported => BAD,
    };
    let is_time = row.kind != CoverageKind::Unsupported;
    let name = |text: &str| Cell::new(if text.is_empty() { "-" } else { text });
    let from = Timestamp::from_microsecond(row.from_utc_us).ok().filter(|_| is_time);
    let from = from.and_then(|from| Timestamp::from_second(from.as_second()).ok());
    let seen = if row.from_start { "seen" } else { "ran before" };
    vec![
        name(&row.pod),
        name(&row.container),
        name(&row.collector),
        Cell::painted(style, row.kind),
        Cell::painted(Style::new(), from.map_or_else(|| "-".to_owned(), |from| from.to_string())),
        name(&if is_time { length(row.to_ns.saturating_sub(row.from_ns)) } else { String::new() }),
        name(if row.kind == CoverageKind::Traced { seen } else { "" }),
        name(&row.node),
        name(&row.hooks),
        Cell::new(&row.reason),
    ]
}

/// Of a stretch, by the node's own clock.
fn length(ns: u64) -> String {
    let seconds = i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX);
    if seconds < SHORT { format!("{:.1}s", ns as f64 / 1e9) } else { age(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::tests::{at, session};

    fn row(pod: &str, container: &str, kind: CoverageKind, from: u64, to: u64) -> CoverageRow {
        CoverageRow {
            node: "n".to_owned(),
            boot: String::new(),
            incarnation: String::new(),
            namespace: "shop".to_owned(),
            pod: pod.to_owned(),
            container: container.to_owned(),
            pod_uid: String::new(),
            collector: "processes".to_owned(),
            kind,
            from_ns: from,
            to_ns: to,
            from_utc_us: 1_795_406_706_789_012 + from as i64 / 1_000,
            to_utc_us: 0,
            from_start: from == 0,
            hooks: "tp_btf\u{1b}[2J".to_owned(),
            reason: if kind == CoverageKind::Traced { String::new() } else { "Because".to_owned() },
        }
    }

    #[tokio::test]
    async fn each_container_has_its_stretches_in_order() {
        let (store, _) = session("uid", &[]).await;
        let mut contents = at(&store).contents().await.unwrap();
        assert_eq!(table(&contents), "\nno container was traced\n");
        let second = 1_000_000_000;
        contents.nodes.values_mut().next().unwrap().coverage = vec![
            row("web", "app", CoverageKind::Traced, 31 * second, 400 * second),
            row("web", "app", CoverageKind::Gap, 1_500_000_000, 31 * second),
            row("web", "app", CoverageKind::Traced, 0, 1_500_000_000),
            row("db", "", CoverageKind::Unsupported, 0, 0),
        ];
        let text = table(&contents);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(!text.contains('\u{1b}'), "{text:?}");
        let rows: Vec<Vec<&str>> = text
            .lines()
            .skip(2)
            .map(|line| line.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect())
            .collect();
        let hooks = "tp_btf\\u{1b}[2J";
        assert_eq!(rows[0], ["db", "-", "processes", "unsupported", "-", "-", "-", "n", hooks, "Because"]);
        assert_eq!(
            rows[1],
            ["web", "app", "processes", "traced", "2026-11-23T04:05:06Z", "1.5s", "seen", "n", hooks]
        );
        assert_eq!(
            rows[2],
            ["web", "app", "processes", "gap", "2026-11-23T04:05:08Z", "29s", "-", "n", hooks, "Because"]
        );
        assert_eq!(
            rows[3],
            ["web", "app", "processes", "traced", "2026-11-23T04:05:37Z", "6m9s", "ran before", "n", hooks]
        );
    }
}
