// SPDX-License-Identifier: Apache-2.0

//! What TCP health is made of: sums per pod from the five tables, and what parameters of the session left out of them.
//!
//! In: the tables. Out: [`Inputs`] for every pod; for the whole session they are added up. Each input is none where its
//! collector traced nothing, and the term that needs it is then null, not zero.

use std::collections::BTreeMap;

use dataset::catalogue;
use serde::Deserialize;

use crate::engine::{Engine, ReportError, ask, stretches, three_digits};
use crate::format::percent;
use crate::scope::Scope;

/// Namespace and name; none for what `tracelake record` recorded.
pub(crate) type Pod = (Option<String>, Option<String>);

/// A row per event stands for `weight` of them; a row per window has its sums already.
pub(crate) const SEGMENTS: &str = "sum(CASE WHEN window_ns IS NULL THEN segments * weight ELSE segments END)";
/// An active attempt whose final result is an error. `aborted` and a reset of our own are the program's own giving up.
pub(crate) const FAILED: &str = "direction = 'active' AND established_ns IS NULL AND end_reason IN ('refused', 'timeout', 'error', 'rst_in')";

/// The inputs of one pod, or of several together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) receive: Option<Receive>,
    pub(crate) drops: Option<Drops>,
    pub(crate) connections: Option<Connections>,
    pub(crate) retransmits: Option<Retransmits>,
    pub(crate) listen: Option<Listen>,
    pub(crate) leaks: Option<u64>,
    /// How often a receive window was closed, from `net_counters`: the program had not read what there was.
    pub(crate) windows_closed: Option<u64>,
    pub(crate) handshake: Option<Handshake>,
}

/// The one reason for a drop that a term of its own counts, where that term has a value.
const OF_LISTENERS: &str = "TCP_LISTEN_OVERFLOW";

impl Inputs {
    /// What was dropped as loss, by reason. A segment that a full accept queue cost is counted once: with its listener where somebody
    /// counts it there, else here.
    pub(crate) fn losses(&self, of_listener: bool) -> impl Iterator<Item = (&str, u64)> {
        let drops = self.drops.iter().flatten();
        let losses = drops.filter(|((class, _), segments)| class == "loss" && **segments > 0);
        losses
            .map(|((_, reason), segments)| (reason.as_str(), *segments))
            .filter(move |(reason, _)| !(of_listener && *reason == OF_LISTENERS))
    }
}

/// From `tcp_receive`, in segments, and from `net_counters` where hooks did not see all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Receive {
    /// By outcome.
    pub(crate) outcomes: BTreeMap<String, u64>,
    /// Whether some rows are of a kernel that does not let every packet be seen.
    pub(crate) partial: bool,
    /// The difference of TcpInSegs.
    pub(crate) counted: Option<u64>,
}

/// From `packet_drops` of TCP, in segments: class and reason.
pub(crate) type Drops = BTreeMap<(String, String), u64>;

/// From `tcp_connections`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connections {
    pub(crate) sums: ConnectionSums,
    /// Failed attempts by errno.
    pub(crate) errors: BTreeMap<i64, u64>,
    /// Data segments that adopted connections sent in the session, as far as `tcp_throughput` tells.
    pub(crate) adopted_segments: u64,
    /// Retransmissions of adopted connections of which it does not tell: left out on both sides.
    pub(crate) adopted_left_out: u64,
}

/// Counts of connections, each weighted.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct ConnectionSums {
    pub(crate) finished: u64,
    pub(crate) failed: u64,
    pub(crate) given_up: u64,
    pub(crate) passive: u64,
    pub(crate) refused_passive: u64,
    pub(crate) ended: u64,
    pub(crate) reset_in: u64,
    pub(crate) reset_out: u64,
    pub(crate) open: u64,
    /// Of before the session.
    pub(crate) adopted: u64,
    pub(crate) data_segments: u64,
    /// Milliseconds in which connections had something under way, and those of them in which the peer had no room.
    pub(crate) busy_ms: u64,
    pub(crate) stalled_ms: u64,
}

impl Connections {
    /// Adds another pod's.
    pub(crate) fn add(&mut self, other: &Self) {
        let (sums, more) = (&mut self.sums, &other.sums);
        for (sum, more) in [
            (&mut sums.finished, more.finished),
            (&mut sums.failed, more.failed),
            (&mut sums.given_up, more.given_up),
            (&mut sums.passive, more.passive),
            (&mut sums.refused_passive, more.refused_passive),
            (&mut sums.ended, more.ended),
            (&mut sums.reset_in, more.reset_in),
            (&mut sums.reset_out, more.reset_out),
            (&mut sums.open, more.open),
            (&mut sums.adopted, more.adopted),
            (&mut sums.data_segments, more.data_segments),
            (&mut sums.busy_ms, more.busy_ms),
            (&mut sums.stalled_ms, more.stalled_ms),
            (&mut self.adopted_segments, other.adopted_segments),
            (&mut self.adopted_left_out, other.adopted_left_out),
        ] {
            *sum += more;
        }
        other.errors.iter().for_each(|(errno, n)| *self.errors.entry(*errno).or_default() += n);
    }
}

/// From `tcp_retransmits`, in segments that were sent.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Retransmits {
    /// Of data.
    pub(crate) data: u64,
    /// SYN and SYN-ACK.
    pub(crate) handshake: u64,
}

/// From `tcp_listen_queue`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Listen {
    /// Whatever the reason.
    pub(crate) drops: u64,
    /// Because the queue was full; none where the kernel does not tell.
    pub(crate) overflows: Option<u64>,
}

/// Quantiles of `handshake_ns` of active connections, to three digits; the largest is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Handshake {
    /// Handshakes.
    pub count: u64,
    /// Half were as fast.
    #[serde(alias = "p50")]
    pub p50_ns: u64,
    /// Nineteen of twenty were as fast.
    #[serde(alias = "p95")]
    pub p95_ns: u64,
    /// Ninety-nine of a hundred were as fast.
    #[serde(alias = "p99")]
    pub p99_ns: u64,
    /// The slowest.
    #[serde(alias = "largest")]
    pub max_ns: u64,
}

#[derive(Deserialize)]
struct Of<T> {
    namespace: Option<String>,
    pod: Option<String>,
    #[serde(flatten)]
    rest: T,
}

impl<T> Of<T> {
    fn split(self) -> (Pod, T) {
        ((self.namespace, self.pod), self.rest)
    }
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    error: i64,
    segments: u64,
}

/// Reads all of them, by pod: what there are rows of. What it means that there are none, [`fill`] adds.
pub(crate) async fn read(
    engine: &impl Engine,
    scope: &Scope<'_>,
) -> Result<BTreeMap<Pod, Inputs>, ReportError> {
    let mut pods: BTreeMap<Pod, Inputs> = BTreeMap::new();
    receive(engine, scope, &mut pods).await?;
    if scope.has("packetDrops").is_ok() {
        let sql = format!(
            "SELECT namespace, pod, class AS kind, reason AS name, {SEGMENTS} AS segments FROM packet_drops \
             WHERE ip_proto = 6 GROUP BY namespace, pod, class, reason"
        );
        for (pod, row) in ask::<Of<Named>>(engine, &sql).await?.into_iter().map(Of::split) {
            let drops = pods.entry(pod).or_default().drops.get_or_insert_default();
            drops.insert((row.kind, row.name), row.segments);
        }
    }
    connections(engine, scope, &mut pods).await?;
    if scope.has("tcpRetransmits").is_ok() {
        let of =
            |kinds: &str| format!("coalesce({SEGMENTS} FILTER (WHERE kind {kinds} ('syn', 'synack')), 0)");
        let sql = format!(
            "SELECT namespace, pod, {} AS data, {} AS handshake FROM tcp_retransmits WHERE err = 0 GROUP BY namespace, pod",
            of("NOT IN"),
            of("IN")
        );
        for (pod, row) in ask::<Of<Retransmits>>(engine, &sql).await?.into_iter().map(Of::split) {
            pods.entry(pod).or_default().retransmits = Some(row);
        }
    }
    if scope.has("tcpListenQueue").is_ok() {
        let sql = "SELECT namespace, pod, sum(drops) AS drops, sum(overflows) AS overflows FROM tcp_listen_queue \
                   GROUP BY namespace, pod";
        for (pod, row) in ask::<Of<Listen>>(engine, sql).await?.into_iter().map(Of::split) {
            pods.entry(pod).or_default().listen = Some(row);
        }
    }
    leaks(engine, scope, &mut pods).await?;
    counted(engine, scope, &mut pods).await?;
    Ok(pods)
}

/// The collectors that terms are made of.
pub(crate) const COLLECTORS: [&str; 7] = [
    "tcpReceive",
    "packetDrops",
    "tcpConnections",
    "tcpRetransmits",
    "tcpListenQueue",
    "tcpStates",
    "nodeInfo",
];

/// Why there is nothing of a collector, by its name: of a pod, or of the whole session.
pub(crate) fn absent(scope: &Scope<'_>, pod: Option<&Pod>) -> BTreeMap<&'static str, String> {
    let why = |collector: &str| match pod {
        Some((_, pod)) => scope.traced(collector, pod.as_deref()).err(),
        None => scope.has(collector).err(),
    };
    COLLECTORS.into_iter().filter_map(|collector| Some((collector, why(collector)?))).collect()
}

/// What collectors that traced say of whom they have no row. Of those that did not trace there nothing is known, whatever came
/// from elsewhere.
pub(crate) fn fill(absent: &BTreeMap<&'static str, String>, inputs: &mut Inputs) {
    fn known<T>(traced: bool, input: Option<T>, nothing: impl FnOnce() -> T) -> Option<T> {
        traced.then(|| input.unwrap_or_else(nothing))
    }
    let traced = |collector: &str| !absent.contains_key(collector);
    // Who received nothing is counted: nothing.
    let nothing = || Receive { counted: Some(0), ..Receive::default() };
    inputs.receive = known(traced("tcpReceive"), inputs.receive.take(), nothing);
    inputs.drops = known(traced("packetDrops"), inputs.drops.take(), Drops::default);
    inputs.connections = known(traced("tcpConnections"), inputs.connections.take(), Connections::default);
    inputs.retransmits = known(traced("tcpRetransmits"), inputs.retransmits.take(), Retransmits::default);
    inputs.listen = known(traced("tcpListenQueue"), inputs.listen.take(), Listen::default);
    inputs.leaks = known(traced("tcpStates"), inputs.leaks, || 0);
}

async fn receive(
    engine: &impl Engine,
    scope: &Scope<'_>,
    pods: &mut BTreeMap<Pod, Inputs>,
) -> Result<(), ReportError> {
    if scope.has("tcpReceive").is_err() {
        return Ok(());
    }
    let sql = "SELECT namespace, pod, outcome AS name, hooks AS kind, sum(segments) AS segments FROM tcp_receive \
               GROUP BY namespace, pod, outcome, hooks";
    for (pod, row) in ask::<Of<Named>>(engine, sql).await?.into_iter().map(Of::split) {
        let receive = pods.entry(pod).or_default().receive.get_or_insert_default();
        *receive.outcomes.entry(row.name).or_default() += row.segments;
        receive.partial |= row.kind != "full";
    }
    Ok(())
}

/// Counters of a network: segments received, and times that a window was closed to a peer.
const RECEIVED: &str = "TcpInSegs";
const CLOSED: &str = "TcpExtTCPToZeroWindowAdv";

/// What was counted since a network was made: by how much it grew from each look to the next, where there were two. Also of a pod
/// whose kernel showed none of its segments. The kernel gives a network's number to another one later: what fell since the look
/// before is of another, and counts from there on. Containers of a pod may have looked at their network each.
async fn counted(
    engine: &impl Engine,
    scope: &Scope<'_>,
    pods: &mut BTreeMap<Pod, Inputs>,
) -> Result<(), ReportError> {
    if scope.has("nodeInfo").is_err() {
        return Ok(());
    }
    let sql = format!(
        "WITH looks AS (SELECT namespace, pod, pod_uid, node, netns, counter, ts_ns, max(value) AS value FROM net_counters \
             WHERE counter IN ('{RECEIVED}', '{CLOSED}') AND attribution = 'netns' \
             GROUP BY namespace, pod, pod_uid, node, netns, counter, ts_ns), \
         grown AS (SELECT namespace, pod, counter, \
             value - lag(value) OVER (PARTITION BY namespace, pod, pod_uid, node, netns, counter ORDER BY ts_ns) AS by_how_much FROM looks) \
         SELECT namespace, pod, counter AS name, sum(greatest(by_how_much, 0)) AS segments FROM grown \
         WHERE by_how_much IS NOT NULL GROUP BY namespace, pod, counter"
    );
    for (pod, row) in ask::<Of<Named>>(engine, &sql).await?.into_iter().map(Of::split) {
        let Some(inputs) = pods.get_mut(&pod) else { continue };
        if row.name == CLOSED {
            inputs.windows_closed = Some(row.segments);
        } else if scope.has("tcpReceive").is_ok() {
            inputs.receive.get_or_insert_default().counted = Some(row.segments);
        }
    }
    Ok(())
}

async fn connections(
    engine: &impl Engine,
    scope: &Scope<'_>,
    pods: &mut BTreeMap<Pod, Inputs>,
) -> Result<(), ReportError> {
    if scope.has("tcpConnections").is_err() {
        return Ok(());
    }
    let count = |condition: &str| format!("coalesce(sum(weight) FILTER (WHERE {condition}), 0)");
    // Those of adopted connections run since they were opened.
    let milliseconds = |column: &str| {
        format!(
            "CAST(coalesce(sum({column} * weight) FILTER (WHERE direction <> 'adopted'), 0) / 1000000 AS BIGINT)"
        )
    };
    let was = "(established_ns IS NOT NULL OR direction = 'adopted')";
    let over = "end_reason <> 'open_at_stop'";
    let sql = format!(
        "SELECT namespace, pod, {} AS finished, {} AS failed, {} AS given_up, {} AS passive, {} AS refused_passive, \
         {} AS ended, {} AS reset_in, {} AS reset_out, {} AS open, {} AS adopted, \
         coalesce(sum(data_segs_out * weight) FILTER (WHERE direction <> 'adopted'), 0) AS data_segments, \
         {} AS busy_ms, {} AS stalled_ms \
         FROM tcp_connections GROUP BY namespace, pod",
        count(&format!("direction = 'active' AND established_ns IS NOT NULL OR {FAILED}")),
        count(FAILED),
        count("direction = 'active' AND established_ns IS NULL AND end_reason IN ('aborted', 'rst_out')"),
        count("direction = 'passive'"),
        count("direction = 'passive' AND error = 111"),
        count(&format!("{was} AND {over}")),
        count(&format!("{was} AND end_reason = 'rst_in'")),
        count(&format!("{was} AND end_reason = 'rst_out'")),
        count("end_reason = 'open_at_stop'"),
        count("direction = 'adopted'"),
        milliseconds("busy_ns"),
        milliseconds("rwnd_limited_ns"),
    );
    for (pod, sums) in ask::<Of<ConnectionSums>>(engine, &sql).await?.into_iter().map(Of::split) {
        pods.entry(pod).or_default().connections = Some(Connections { sums, ..Connections::default() });
    }
    let sql = format!(
        "SELECT namespace, pod, error, sum(weight) AS segments FROM tcp_connections WHERE {FAILED} \
         GROUP BY namespace, pod, error"
    );
    for (pod, row) in ask::<Of<Named>>(engine, &sql).await?.into_iter().map(Of::split) {
        let connections = pods.get_mut(&pod).and_then(|inputs| inputs.connections.as_mut());
        _ = connections.map(|connections| connections.errors.insert(row.error, row.segments));
    }
    let has_adopted = |inputs: &Inputs| inputs.connections.as_ref().is_some_and(|of| of.sums.adopted > 0);
    if pods.values().any(has_adopted) {
        adopted(engine, pods).await?;
    }
    let bucket = three_digits("handshake_ns");
    let sql = format!(
        "WITH buckets AS (SELECT namespace, pod, {bucket} AS ns, sum(weight) AS n, max(handshake_ns) AS largest \
         FROM tcp_connections WHERE direction = 'active' AND handshake_ns IS NOT NULL GROUP BY namespace, pod, {bucket}), \
         sums AS (SELECT *, sum(n) OVER (PARTITION BY namespace, pod ORDER BY ns) AS upto, \
         sum(n) OVER (PARTITION BY namespace, pod) AS total FROM buckets) \
         SELECT namespace, pod, {QUANTILES} FROM sums GROUP BY namespace, pod"
    );
    for (pod, handshake) in ask::<Of<Handshake>>(engine, &sql).await?.into_iter().map(Of::split) {
        pods.entry(pod).or_default().handshake = Some(handshake);
    }
    Ok(())
}

/// Of rows with a bucket's value (`ns`), its count (`n`), the count up to it (`upto`) and of all (`total`).
const QUANTILES: &str = "max(total) AS count, min(ns) FILTER (WHERE upto >= 0.5 * total) AS p50, \
    min(ns) FILTER (WHERE upto >= 0.95 * total) AS p95, min(ns) FILTER (WHERE upto >= 0.99 * total) AS p99, \
    max(largest) AS largest";

/// The quantiles of all pods together.
pub(crate) async fn handshake(engine: &impl Engine) -> Result<Option<Handshake>, ReportError> {
    let bucket = three_digits("handshake_ns");
    let sql = format!(
        "WITH buckets AS (SELECT {bucket} AS ns, sum(weight) AS n, max(handshake_ns) AS largest FROM tcp_connections \
         WHERE direction = 'active' AND handshake_ns IS NOT NULL GROUP BY {bucket}), \
         sums AS (SELECT *, sum(n) OVER (ORDER BY ns) AS upto, sum(n) OVER () AS total FROM buckets) \
         SELECT {QUANTILES} FROM sums HAVING count(*) > 0"
    );
    Ok(ask(engine, &sql).await?.into_iter().next())
}

/// Connections that were open before the session count since their beginning: what they sent in the session is told by
/// `tcp_throughput`, in bytes, and their own mean makes segments of them. It tells all of it where their pod has no row of what was
/// beyond topN; elsewhere it is not known what was sent, and what was sent again is left out as well.
async fn adopted(engine: &impl Engine, pods: &mut BTreeMap<Pod, Inputs>) -> Result<(), ReportError> {
    #[derive(Deserialize)]
    struct Adopted {
        sent: Option<f64>,
        left_out: Option<u64>,
    }
    // Of the others that a row stands for it is known no better: they sent as much, and as much of it again.
    let sql = format!(
        "WITH adopted AS (SELECT namespace, pod, node, sock_id, sum(data_segs_out * weight) AS segs, sum(bytes_sent) AS bytes, max(weight) AS weight \
             FROM tcp_connections WHERE direction = 'adopted' GROUP BY namespace, pod, node, sock_id), \
         hidden AS (SELECT namespace, pod, node, count(*) AS windows FROM tcp_throughput WHERE others GROUP BY namespace, pod, node), \
         sockets AS (SELECT node, sock_id FROM adopted GROUP BY node, sock_id), \
         moved AS (SELECT t.node, t.sock_id, sum(t.tx_bytes) AS tx FROM sockets s JOIN tcp_throughput t \
             ON s.node = t.node AND s.sock_id = t.sock_id GROUP BY t.sock_id, t.node), \
         again AS (SELECT node, sock_id, {SEGMENTS} AS segments FROM tcp_retransmits \
             WHERE err = 0 AND kind NOT IN ('syn', 'synack') GROUP BY node, sock_id), \
         known AS (SELECT a.namespace, a.pod, a.segs, a.bytes, r.segments * a.weight AS segments, CASE WHEN h.windows IS NULL THEN m.tx END AS tx \
             FROM adopted a LEFT JOIN moved m ON a.node = m.node AND a.sock_id = m.sock_id \
             LEFT JOIN again r ON a.node = r.node AND a.sock_id = r.sock_id \
             LEFT JOIN hidden h ON a.node = h.node AND (a.namespace IS NOT DISTINCT FROM h.namespace) \
                 AND (a.pod IS NOT DISTINCT FROM h.pod)) \
         SELECT namespace, pod, \
             sum(CASE WHEN tx IS NOT NULL AND bytes > 0 THEN segs * least(CAST(tx AS DOUBLE) / bytes, 1.0) END) AS sent, \
             coalesce(sum(segments) FILTER (WHERE tx IS NULL), 0) AS left_out \
         FROM known GROUP BY namespace, pod"
    );
    for (pod, row) in ask::<Of<Adopted>>(engine, &sql).await?.into_iter().map(Of::split) {
        if let Some(connections) = pods.get_mut(&pod).and_then(|inputs| inputs.connections.as_mut()) {
            connections.adopted_segments = row.sent.unwrap_or(0.0).round() as u64;
            connections.adopted_left_out = row.left_out.unwrap_or(0);
        }
    }
    Ok(())
}

/// Sockets that have been in CLOSE_WAIT for longer than a minute when their node's tracing ended: entered before that, and never left.
/// Of what was entered before a time in which nobody looked, nobody knows whether it was left then.
async fn leaks(
    engine: &impl Engine,
    scope: &Scope<'_>,
    pods: &mut BTreeMap<Pod, Inputs>,
) -> Result<(), ReportError> {
    if scope.has("tcpStates").is_err() || lacks(scope, "tcpStates").is_some() {
        return Ok(());
    }
    let blind = scope.blind("tcpStates");
    let last = |node: &str| blind.get(node).into_iter().flatten().map(|(_, to)| *to).max().unwrap_or(0);
    let looked = scope.ended("tcpStates").into_iter().map(|(node, end)| (node, last(node), end - 60_000_000));
    let looked = stretches(looked);
    let sql = format!(
        "WITH looked AS ({looked}) SELECT namespace, pod, count(*) AS segments FROM (\
             SELECT namespace, pod, node, sock_id, max(CASE WHEN new_state = 'CLOSE_WAIT' THEN CAST(time_utc AS BIGINT) END) AS since, \
                 max(CASE WHEN old_state = 'CLOSE_WAIT' THEN 1 ELSE 0 END) AS gone \
             FROM tcp_states WHERE kind = 'transition' AND sock_id IS NOT NULL \
                 AND (new_state = 'CLOSE_WAIT' OR old_state = 'CLOSE_WAIT') \
             GROUP BY namespace, pod, node, sock_id\
         ) AS s JOIN looked l ON s.node = l.node WHERE gone = 0 AND since >= from_us AND since < until_us GROUP BY namespace, pod"
    );
    for (pod, row) in ask::<Of<Named>>(engine, &sql).await?.into_iter().map(Of::split) {
        pods.entry(pod).or_default().leaks = Some(row.segments);
    }
    Ok(())
}

/// What tables lack that a term needs, by collector: of a pod, or of the whole session.
pub(crate) fn left_out(scope: &Scope<'_>, pod: Option<&Pod>) -> BTreeMap<&'static str, String> {
    let cut = |collector: &str| {
        let tables = catalogue::collector(collector).map_or(&[] as &[_], |collector| collector.tables);
        tables.iter().find_map(|table| {
            let share = scope.cut(table.name, pod.map(|(_, pod)| pod.as_deref()))?;
            Some(format!("{} of the events of {} were rate limited or lost", percent(share), table.name))
        })
    };
    let why = |collector: &str| lacks(scope, collector).or_else(|| cut(collector));
    COLLECTORS.into_iter().filter_map(|collector| Some((collector, why(collector)?))).collect()
}

/// A parameter that leaves out of a table what a term needs, as `collector.name = value`.
fn lacks(scope: &Scope<'_>, collector: &str) -> Option<String> {
    let names: &[(&str, &[&str])] = match collector {
        "tcpConnections" => {
            &[("includeFailed", &["true"]), ("minDuration", &["0s", "0ms"]), ("flushOpen", &["true"])]
        }
        "tcpRetransmits" => &[("kinds", &[])],
        "packetDrops" => &[("classes", &[]), ("ethertypes", &[])],
        // An entry into a state says nothing without what would have told of its end.
        "tcpStates" => &[
            ("mode", &["event"]),
            ("kinds", &[]),
            ("states", &[]),
            ("sampleEvery", &[]),
            ("maxEventsPerSecond", &[]),
        ],
        _ => &[],
    };
    let by_parameter = names.iter().chain([&("ports", &[] as &[&str])]).find_map(|(name, harmless)| {
        let value = scope.param(collector, name)?;
        let harmful = !value.is_empty() && !harmless.contains(&value);
        harmful.then(|| format!("{collector}.{name} = {value}"))
    });
    by_parameter.or_else(|| {
        let missing = if collector == "tcpStates" { scope.missing("tcp_states") } else { 0 };
        (missing > 0).then(|| format!("{missing} events of tcp_states were sampled out, limited or lost"))
    })
}
