// SPDX-License-Identifier: Apache-2.0

//! Throughput: how much payload each pod received and sent over TCP, with whom, and how much of it twice.
//!
//! In: `tcp_throughput`. Out: [`Throughput`]. Sums are exact: what is beyond a window's busiest connections is in rows of its
//! own, which count for their pod and name no peer.

use serde::{Deserialize, Serialize};

use crate::engine::{Engine, ReportError, ask};
use crate::format::{Unit, things};
use crate::scope::{Scope, Section, pod};
use crate::series::{over_time, rates, window_us};
use crate::view::{Cell, Change, Chart, Figure, Series, Table, View};

const COLLECTOR: &str = "tcpThroughput";
/// Rows of each table.
const MOST: usize = 20;
/// Rows whose windows are looked at together: were each of them a window of its own, they would still have room in memory.
const TOGETHER: u64 = 1_000_000;
/// Into how many pieces a session is cut on each node, whose clocks began at different times.
const PIECES: i64 = 500;

/// The section.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throughput {
    /// All of them together.
    pub all: Moved,
    /// By pod, most first.
    pub pods: Vec<PodMoved>,
    /// Pods that are not listed.
    pub other_pods: u64,
    /// By peer, most first.
    pub peers: Vec<PeerMoved>,
    /// Beginning of the series, microseconds since 1970.
    pub from_us: i64,
    /// Length of their intervals.
    pub step_us: i64,
    /// Bits received per second, by pod.
    pub received: Vec<Series>,
    /// Bits sent per second, by pod.
    pub sent: Vec<Series>,
}

/// Payload, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Received in order.
    pub rx_bytes: u64,
    /// Handed to IP.
    pub tx_bytes: u64,
    /// Of those, again.
    pub retrans_bytes: u64,
}

/// Of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodMoved {
    /// Its name.
    pub pod: Option<String>,
    /// Its sums.
    #[serde(flatten)]
    pub moved: Moved,
    /// The most bits per second, both directions, in any window.
    #[serde(default)]
    pub peak_bps: u64,
}

/// With one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerMoved {
    /// Whose.
    pub pod: Option<String>,
    /// Address.
    pub raddr: String,
    /// The lower of both ports, as a server's is.
    pub port: i32,
    /// The sums.
    #[serde(flatten)]
    pub moved: Moved,
}

/// Reads the section.
pub(crate) async fn read(
    engine: &impl Engine,
    scope: &Scope<'_>,
) -> Result<Section<Throughput>, ReportError> {
    if let Err(why) = scope.has(COLLECTOR) {
        return Ok(Section::Absent(why));
    }
    let sums = "coalesce(sum(rx_bytes), 0) AS rx_bytes, coalesce(sum(tx_bytes), 0) AS tx_bytes, \
                coalesce(sum(retrans_bytes), 0) AS retrans_bytes";
    let all = format!("SELECT {sums} FROM tcp_throughput");
    let pods = format!(
        "SELECT pod, {sums}, sum(rx_bytes + tx_bytes) AS moved FROM tcp_throughput GROUP BY pod \
         ORDER BY moved DESC, pod NULLS FIRST LIMIT {MOST}"
    );
    #[derive(Deserialize)]
    struct Count {
        pods: u64,
    }
    let count = "SELECT count(*) AS pods FROM (SELECT pod FROM tcp_throughput GROUP BY pod) AS p";
    let peers = format!(
        "SELECT pod, raddr, least(lport, rport) AS port, {sums}, sum(rx_bytes + tx_bytes) AS moved FROM tcp_throughput WHERE raddr IS NOT NULL \
         GROUP BY pod, raddr, least(lport, rport) \
         ORDER BY moved DESC, raddr, port, pod NULLS FIRST LIMIT {MOST}"
    );
    let step_us = scope.bin_us(window_us(engine, "tcp_throughput").await?);
    let over_time =
        |bytes: &str| over_time(scope, step_us, "pod", &format!("sum({bytes}) * 8"), "tcp_throughput");
    let all: Vec<Moved> = ask(engine, &all).await?;
    let mut pods: Vec<PodMoved> = ask(engine, &pods).await?;
    peaks(engine, (scope.from_us, scope.to_us), TOGETHER, &mut pods).await?;
    let count: Vec<Count> = ask(engine, count).await?;
    Ok(Section::Data(Throughput {
        all: all.first().copied().unwrap_or_default(),
        other_pods: count.first().map_or(0, |count| count.pods).saturating_sub(pods.len() as u64),
        pods,
        peers: ask(engine, &peers).await?,
        from_us: scope.from_us,
        step_us,
        received: rates(engine, scope, step_us, &over_time("rx_bytes"), "other pods").await?,
        sent: rates(engine, scope, step_us, &over_time("tx_bytes"), "other pods").await?,
    }))
}

/// A pod's rate in a window is that of all its rows of that window, on all nodes that have it: one. A part of the windows at a time,
/// since a session may have as many of them as rows; of a part only its own row groups are read, besides what says where they are.
async fn peaks(
    engine: &impl Engine,
    session_us: (i64, i64),
    together: u64,
    pods: &mut [PodMoved],
) -> Result<(), ReportError> {
    #[derive(Deserialize)]
    struct Peak {
        pod: Option<String>,
        bps: u64,
    }
    for (from, until) in parts(engine, session_us, together).await? {
        let sql = format!(
            "WITH windows AS (SELECT pod, sum(rx_bps + tx_bps) AS bps FROM tcp_throughput WHERE ts_ns >= {from} AND ts_ns < {until} \
                 GROUP BY ts_ns, node, pod) \
             SELECT pod, CAST(round(coalesce(max(bps), 0)) AS BIGINT) AS bps FROM windows GROUP BY pod"
        );
        for peak in ask::<Peak>(engine, &sql).await? {
            let of = pods.iter_mut().find(|one| one.pod == peak.pod);
            _ = of.map(|one| one.peak_bps = one.peak_bps.max(peak.bps));
        }
    }
    Ok(())
}

/// Stretches of `ts_ns` that have all rows: each is made of so many pieces that it has `together` rows, or of one that has more.
async fn parts(
    engine: &impl Engine,
    (from_us, to_us): (i64, i64),
    together: u64,
) -> Result<Vec<(i64, i64)>, ReportError> {
    #[derive(Deserialize)]
    struct Part {
        from: i64,
        last: i64,
    }
    let length = ((to_us - from_us).saturating_mul(1_000) / PIECES).max(1);
    let began = format!("ts_ns - ts_ns % {length}");
    let sql = format!(
        "WITH pieces AS (SELECT {began} AS began, CAST(count(*) AS BIGINT) AS n FROM tcp_throughput GROUP BY {began}), \
         counted AS (SELECT began, CAST(sum(n) OVER (ORDER BY began) AS BIGINT) - n AS before FROM pieces) \
         SELECT min(began) AS \"from\", max(began) AS last FROM counted GROUP BY before - before % {together} ORDER BY last"
    );
    let parts: Vec<Part> = ask(engine, &sql).await?;
    Ok(parts.iter().map(|part| (part.from, part.last.saturating_add(length))).collect())
}

impl Throughput {
    /// As it is shown.
    pub(crate) fn view(&self, scope: &Scope<'_>, view: &mut View) {
        let all = &self.all;
        let seconds = (scope.to_us - scope.from_us) as f64 / 1e6;
        let mean = |bytes: u64| (seconds > 0.0).then(|| bytes as f64 * 8.0 / seconds);
        view.figures = vec![
            Figure::total("Received", Unit::Bytes, all.rx_bytes),
            Figure::maybe("On average", Unit::BitsPerSecond, mean(all.rx_bytes)),
            Figure::total("Sent", Unit::Bytes, all.tx_bytes),
            Figure::maybe("Sent on average", Unit::BitsPerSecond, mean(all.tx_bytes)),
            Figure::cell("Sent again", Cell::share(all.retrans_bytes, all.tx_bytes), Change::Share),
        ];
        view.notes.push(
            "Payload of TCP, without headers. What one traced pod sends to another is sent by the one and received by the other."
                .to_owned(),
        );
        let chart = |title: &str, series: &[Series]| Chart::Series {
            title: title.to_owned(),
            unit: Unit::BitsPerSecond,
            from_us: self.from_us,
            step_us: self.step_us,
            series: series.to_vec(),
        };
        view.charts.push(chart("Received, by pod", &self.received));
        view.charts.push(chart("Sent, by pod", &self.sent));
        let columns = ["pod", "received", "sent", "sent again", "share of sent", "busiest window"];
        let mut pods = Table::new("By pod", &columns);
        pods.rows.extend(self.pods.iter().map(|one| {
            let mut row = vec![Cell::text(pod(one.pod.as_deref()))];
            row.extend(moved(&one.moved));
            row.push(Cell::number(Unit::BitsPerSecond, one.peak_bps));
            row
        }));
        let rest = rest(all, self.pods.iter().map(|one| &one.moved));
        if self.other_pods > 0 {
            pods.note = format!("{}: {rest}.", things(self.other_pods, "other pod", "other pods"));
        }
        view.tables.push(pods);
        let columns = ["peer", "server's port", "pod", "received", "sent", "sent again", "share of sent"];
        let mut peers = Table::new("By peer", &columns);
        peers.rows.extend(self.peers.iter().map(|one| {
            let mut row = vec![
                Cell::text(&one.raddr),
                Cell::id(i64::from(one.port)),
                Cell::text(pod(one.pod.as_deref())),
            ];
            row.extend(moved(&one.moved));
            row
        }));
        let rest = self::rest(all, self.peers.iter().map(|one| &one.moved));
        if !rest.is_empty() {
            peers.note = format!("Other peers, and connections beyond topN, which name none: {rest}.");
        }
        view.tables.push(peers);
    }
}

fn moved(moved: &Moved) -> [Cell; 4] {
    let bytes = |value: u64| Cell::number(Unit::Bytes, value);
    [
        bytes(moved.rx_bytes),
        bytes(moved.tx_bytes),
        bytes(moved.retrans_bytes),
        Cell::share(moved.retrans_bytes, moved.tx_bytes),
    ]
}

/// What is not listed; empty if nothing.
fn rest<'a>(all: &Moved, listed: impl Iterator<Item = &'a Moved>) -> String {
    let (rx, tx) = listed.fold((0, 0), |(rx, tx), one| (rx + one.rx_bytes, tx + one.tx_bytes));
    let (rx, tx) = (all.rx_bytes.saturating_sub(rx), all.tx_bytes.saturating_sub(tx));
    let bytes = |value: u64| Unit::Bytes.format(value as f64);
    if rx + tx == 0 { String::new() } else { format!("{} received, {} sent", bytes(rx), bytes(tx)) }
}

#[cfg(test)]
mod tests {
    use query::datafusion::prelude::SessionContext;

    use super::*;

    /// Windows of two nodes whose clocks began at different times, some of them with several connections of a pod.
    #[tokio::test]
    async fn a_pods_busiest_window_is_the_same_in_one_part_and_in_many() {
        let second = 1_000_000_000_i64;
        let rows = (0..600_i64).flat_map(|window| {
            let (node, began) = [("a", 40 * second), ("b", 9_000 * second)][(window % 2) as usize];
            let ts_ns = began + window / 2 * second;
            // Of the connections of a window each is slow, and all of the busiest one together are not.
            (0..1 + window % 7).map(move |connection| {
                let pod = ["web", "db"][(connection % 2) as usize];
                format!("({ts_ns}, '{node}', '{pod}', {}.0, 2.0)", (window * 37 + connection * 11) % 501)
            })
        });
        let rows: Vec<String> = rows.collect();
        let engine = SessionContext::new();
        let table = format!(
            "CREATE TABLE tcp_throughput AS SELECT * FROM (VALUES {}) AS v(ts_ns, node, pod, rx_bps, tx_bps)",
            rows.join(", ")
        );
        engine.sql(&table).await.unwrap().collect().await.unwrap();
        let session_us = (0, 300 * 1_000_000);
        let mut answers = Vec::new();
        for (together, at_least) in [(1_000_000, 1), (500, 4), (1, 300)] {
            let parts = parts(&engine, session_us, together).await.unwrap();
            assert!(parts.len() >= at_least, "{together} rows: {} parts", parts.len());
            assert!(parts.is_sorted_by(|one, next| one.1 <= next.0), "{parts:?}");
            let mut pods = ["web", "db"].map(|pod| PodMoved {
                pod: Some(pod.to_owned()),
                moved: Moved::default(),
                peak_bps: 0,
            });
            peaks(&engine, session_us, together, &mut pods).await.unwrap();
            answers.push(pods);
        }
        assert!(answers[0].iter().all(|pod| pod.peak_bps > 1_000), "{answers:?}");
        assert_eq!(answers[0], answers[1]);
        assert_eq!(answers[0], answers[2]);
    }
}
