// SPDX-License-Identifier: Apache-2.0

//! Retransmissions: how a loss was noticed, in which pod, on the way to whom.
//!
//! In: `tcp_retransmits`. Out: [`Retransmits`], in segments on the wire, which one packet of the stack may hold several of.

use serde::{Deserialize, Serialize};

use crate::engine::{Engine, ReportError, ask};
use crate::format::{Unit, things};
use crate::scope::{Scope, Section, pod};
use crate::series::{over_time, rates, window_us};
use crate::tcp_health::SEGMENTS;
use crate::view::{Cell, Chart, Figure, Series, Table, View};

const COLLECTOR: &str = "tcpRetransmits";
/// Peers that are listed.
const MOST: usize = 20;

/// The section.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retransmits {
    /// By kind.
    pub kinds: Vec<Kind>,
    /// Segments by pod, most first.
    pub pods: Vec<PodRetransmits>,
    /// By peer, most segments first.
    pub peers: Vec<PeerRetransmits>,
    /// Segments that could not be handed to IP.
    pub not_sent: u64,
    /// Beginning of the series, microseconds since 1970.
    pub from_us: i64,
    /// Length of their intervals.
    pub step_us: i64,
    /// Segments per second, by kind.
    pub over_time: Vec<Series>,
}

/// One kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// rto, fast, tlp, syn, synack or other.
    pub kind: String,
    /// Segments that were sent.
    pub segments: u64,
    /// Payload, bytes.
    pub bytes: u64,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRetransmits {
    /// Its name.
    pub pod: Option<String>,
    /// Segments that were sent.
    pub segments: u64,
    /// Of those, after a timeout.
    pub rto: u64,
    /// Connections with any.
    pub connections: u64,
}

/// One peer of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRetransmits {
    /// Whose.
    pub pod: Option<String>,
    /// Address.
    pub raddr: String,
    /// The lower of both ports, as a server's is.
    pub port: i32,
    /// Segments that were sent.
    pub segments: u64,
    /// Of those, after a timeout.
    pub rto: u64,
    /// Payload, bytes.
    pub bytes: u64,
    /// The longest timeout met, milliseconds.
    pub longest_rto_ms: Option<u64>,
    /// The longest smoothed round trip met, microseconds.
    pub longest_srtt_us: Option<u64>,
}

/// What each kind tells.
const KINDS: &[(&str, &str)] = &[
    ("rto", "the timer ran out"),
    ("fast", "acknowledgements told of a loss"),
    ("tlp", "a probe for a lost tail"),
    ("syn", "a SYN was not answered"),
    ("synack", "a SYN-ACK was not answered"),
    ("other", "as after the path's MTU became smaller"),
];

/// Reads the section.
pub(crate) async fn read(
    engine: &impl Engine,
    scope: &Scope<'_>,
) -> Result<Section<Retransmits>, ReportError> {
    if let Err(why) = scope.has(COLLECTOR) {
        return Ok(Section::Absent(why));
    }
    let bytes = "sum(CASE WHEN window_ns IS NULL THEN bytes * weight ELSE bytes END) AS bytes";
    let rto = format!("coalesce({SEGMENTS} FILTER (WHERE kind = 'rto'), 0) AS rto");
    let kinds = format!(
        "SELECT kind, {SEGMENTS} AS segments, {bytes} FROM tcp_retransmits WHERE err = 0 GROUP BY kind \
         ORDER BY segments DESC, kind"
    );
    let pods = format!(
        "WITH own AS (SELECT pod, count(*) AS connections FROM (\
             SELECT pod FROM tcp_retransmits WHERE err = 0 GROUP BY sock_id, node, pod) AS c GROUP BY pod), \
         again AS (SELECT pod, {SEGMENTS} AS segments, {rto} FROM tcp_retransmits WHERE err = 0 GROUP BY pod) \
         SELECT a.pod, a.segments, a.rto, o.connections FROM again a JOIN own o ON a.pod IS NOT DISTINCT FROM o.pod \
         ORDER BY a.segments DESC, a.pod NULLS FIRST LIMIT {MOST}"
    );
    let peers = format!(
        "SELECT pod, raddr, least(lport, rport) AS port, {SEGMENTS} AS segments, {rto}, {bytes}, \
         max(rto_ms) AS longest_rto_ms, max(srtt_us) AS longest_srtt_us FROM tcp_retransmits WHERE err = 0 \
         GROUP BY pod, raddr, least(lport, rport) ORDER BY segments DESC, raddr, port, pod NULLS FIRST LIMIT {MOST}"
    );
    #[derive(Deserialize)]
    struct NotSent {
        segments: u64,
    }
    let not_sent = format!("SELECT coalesce({SEGMENTS}, 0) AS segments FROM tcp_retransmits WHERE err <> 0");
    let not_sent: Vec<NotSent> = ask(engine, &not_sent).await?;
    let step_us = scope.bin_us(window_us(engine, "tcp_retransmits").await?);
    let over_time = over_time(scope, step_us, "kind", SEGMENTS, "tcp_retransmits WHERE err = 0");
    Ok(Section::Data(Retransmits {
        kinds: ask(engine, &kinds).await?,
        pods: ask(engine, &pods).await?,
        peers: ask(engine, &peers).await?,
        not_sent: not_sent.first().map_or(0, |row| row.segments),
        from_us: scope.from_us,
        step_us,
        over_time: rates(engine, scope, step_us, &over_time, "other kinds").await?,
    }))
}

impl Retransmits {
    /// As it is shown.
    pub(crate) fn view(&self, view: &mut View) {
        let all: u64 = self.kinds.iter().map(|kind| kind.segments).sum();
        let of = |kind: &str| self.kinds.iter().find(|one| one.kind == kind).map_or(0, |one| one.segments);
        view.figures = vec![
            Figure::total("Segments sent again", Unit::Count, all),
            Figure::total("After a timeout", Unit::Count, of("rto")),
            Figure::total("SYN and SYN-ACK", Unit::Count, of("syn") + of("synack")),
        ];
        if self.not_sent > 0 {
            view.notes.push(format!(
                "{} could not be handed to IP.",
                things(self.not_sent, "more segment", "more segments")
            ));
        }
        if all == 0 {
            return;
        }
        view.charts.push(Chart::Series {
            title: "Segments sent again, by kind".to_owned(),
            unit: Unit::PerSecond,
            from_us: self.from_us,
            step_us: self.step_us,
            series: self.over_time.clone(),
        });
        let count = |value: u64| Cell::number(Unit::Count, value);
        let mut kinds =
            Table::new("By kind", &["kind", "how it was noticed", "segments", "share", "payload"]);
        kinds.rows.extend(self.kinds.iter().map(|kind| {
            let meaning =
                KINDS.iter().find(|(name, _)| *name == kind.kind).map_or("", |(_, meaning)| *meaning);
            let bytes = Cell::number(Unit::Bytes, kind.bytes);
            vec![
                Cell::text(&kind.kind),
                Cell::text(meaning),
                count(kind.segments),
                Cell::share(kind.segments, all),
                bytes,
            ]
        }));
        view.tables.push(kinds);
        let mut pods = Table::new("By pod", &["pod", "segments", "after a timeout", "connections"]);
        pods.rows.extend(self.pods.iter().map(|one| {
            vec![
                Cell::text(pod(one.pod.as_deref())),
                count(one.segments),
                count(one.rto),
                count(one.connections),
            ]
        }));
        pods.note = rest(all, self.pods.iter().map(|one| one.segments), "in other pods");
        view.tables.push(pods);
        let columns = [
            "peer",
            "server's port",
            "pod",
            "segments",
            "after a timeout",
            "payload",
            "longest timeout",
            "longest round trip",
        ];
        let mut peers = Table::new("By peer", &columns);
        peers.rows.extend(self.peers.iter().map(|one| {
            vec![
                Cell::text(&one.raddr),
                Cell::id(i64::from(one.port)),
                Cell::text(pod(one.pod.as_deref())),
                count(one.segments),
                count(one.rto),
                Cell::number(Unit::Bytes, one.bytes),
                Cell::maybe(Unit::Nanoseconds, one.longest_rto_ms.map(|ms| ms as f64 * 1e6)),
                Cell::maybe(Unit::Nanoseconds, one.longest_srtt_us.map(|us| us as f64 * 1e3)),
            ]
        }));
        peers.note = rest(all, self.peers.iter().map(|one| one.segments), "to other peers");
        view.tables.push(peers);
    }
}

fn rest(all: u64, listed: impl Iterator<Item = u64>, where_to: &str) -> String {
    match all.saturating_sub(listed.sum()) {
        0 => String::new(),
        more => format!("{} {where_to}.", things(more, "segment", "segments")),
    }
}
