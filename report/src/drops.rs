// SPDX-License-Identifier: Apache-2.0

//! Dropped packets: why, where in the kernel, whose, and to or from whom where that was recorded.
//!
//! In: `packet_drops`. Out: [`Drops`]. Only class loss is a loss: a packet for a closed port is refused, one that a filter
//! drops was meant to be, and what is left over from a connection that ended was not wanted any more.

use serde::{Deserialize, Serialize};

use crate::engine::{Engine, ReportError, ask};
use crate::format::{Unit, things};
use crate::scope::{Scope, Section, pod};
use crate::series::{over_time, sums, window_us};
use crate::view::{Cell, Chart, Figure, Level, Series, Table, View};

const COLLECTOR: &str = "packetDrops";
/// Rows of each table.
const MOST: usize = 20;

/// The section.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Drops {
    /// Packets by class.
    pub classes: Vec<Class>,
    /// By pod, reason and place.
    pub reasons: Vec<Reason>,
    /// By peer, where the session asked for each drop.
    pub peers: Vec<Peer>,
    /// Beginning of the series, microseconds since 1970.
    pub from_us: i64,
    /// Length of their intervals.
    pub step_us: i64,
    /// Packets per interval, by class and reason.
    pub over_time: Vec<Series>,
}

/// One class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// loss, refused, policy, teardown or unknown.
    pub class: String,
    /// Packets.
    pub packets: u64,
    /// Segments on the wire.
    pub segments: u64,
    /// Bytes.
    pub bytes: u64,
}

/// One reason at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Whose.
    pub pod: Option<String>,
    /// As the kernel calls it.
    pub reason: String,
    /// What that means.
    pub class: String,
    /// Function of the kernel.
    pub location: Option<String>,
    /// Protocol above IP.
    pub ip_proto: Option<i32>,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Whose.
    pub pod: Option<String>,
    /// Address.
    pub raddr: String,
    /// As the kernel calls it.
    pub reason: String,
    /// What that means.
    pub class: String,
    /// Packets.
    pub packets: u64,
}

/// Reads the section.
pub(crate) async fn read(engine: &impl Engine, scope: &Scope<'_>) -> Result<Section<Drops>, ReportError> {
    if let Err(why) = scope.has(COLLECTOR) {
        return Ok(Section::Absent(why));
    }
    let per_event = |column: &str| {
        format!("sum(CASE WHEN window_ns IS NULL THEN {column} * weight ELSE {column} END) AS {column}")
    };
    let (segments, bytes) = (per_event("segments"), per_event("bytes"));
    let classes = format!(
        "SELECT class, sum(weight) AS packets, {segments}, {bytes} FROM packet_drops GROUP BY class ORDER BY packets DESC, class"
    );
    let reasons = format!(
        "SELECT pod, reason, class, location, ip_proto, sum(weight) AS packets, {bytes} FROM packet_drops \
         GROUP BY pod, reason, class, location, ip_proto \
         ORDER BY CASE WHEN class = 'loss' THEN 0 ELSE 1 END, packets DESC, reason, location NULLS FIRST, pod NULLS FIRST LIMIT {MOST}"
    );
    let peers = format!(
        "SELECT pod, raddr, reason, class, sum(weight) AS packets FROM packet_drops WHERE raddr IS NOT NULL \
         GROUP BY pod, raddr, reason, class ORDER BY packets DESC, raddr, reason, pod NULLS FIRST LIMIT {MOST}"
    );
    let step_us = scope.bin_us(window_us(engine, "packet_drops").await?);
    let over_time = over_time(scope, step_us, "class || ': ' || reason", "sum(weight)", "packet_drops");
    Ok(Section::Data(Drops {
        classes: ask(engine, &classes).await?,
        reasons: ask(engine, &reasons).await?,
        peers: ask(engine, &peers).await?,
        from_us: scope.from_us,
        step_us,
        over_time: sums(engine, scope, step_us, &over_time, "other reasons").await?,
    }))
}

/// A protocol above IP by its name.
fn protocol(number: Option<i32>) -> String {
    match number {
        Some(6) => "TCP".to_owned(),
        Some(17) => "UDP".to_owned(),
        Some(1) => "ICMP".to_owned(),
        Some(58) => "ICMPv6".to_owned(),
        Some(number) => number.to_string(),
        None => "not IP".to_owned(),
    }
}

fn class(name: &str) -> Cell {
    let cell = Cell::text(name);
    if name == "loss" { cell.marked(Level::Warn) } else { cell }
}

impl Drops {
    /// As it is shown.
    pub(crate) fn view(&self, view: &mut View) {
        let packets =
            |class: &str| self.classes.iter().find(|one| one.class == class).map_or(0, |one| one.packets);
        let all: u64 = self.classes.iter().map(|class| class.packets).sum();
        view.figures = vec![Figure::total("Packets dropped", Unit::Count, all)];
        for name in ["loss", "refused", "policy", "teardown", "unknown"] {
            view.figures.push(Figure::total(&format!("Class {name}"), Unit::Count, packets(name)));
        }
        view.notes.push(
            "Loss was wanted and had no room or was damaged; refused is for a port where nobody listens; policy is what a filter \
             says; teardown is left over from connections that ended."
                .to_owned(),
        );
        if all == 0 {
            return;
        }
        view.charts.push(Chart::Series {
            title: "Packets dropped, by class and reason".to_owned(),
            unit: Unit::Count,
            from_us: self.from_us,
            step_us: self.step_us,
            series: self.over_time.clone(),
        });
        let columns = ["reason", "class", "pod", "place in the kernel", "protocol", "packets", "bytes"];
        let mut table = Table::new("By reason, pod and place; losses first", &columns);
        table.rows.extend(self.reasons.iter().map(|reason| {
            vec![
                Cell::text(&reason.reason),
                class(&reason.class),
                Cell::text(pod(reason.pod.as_deref())),
                Cell::text(reason.location.as_deref().unwrap_or("–")),
                Cell::text(protocol(reason.ip_proto)),
                Cell::number(Unit::Count, reason.packets),
                Cell::number(Unit::Bytes, reason.bytes),
            ]
        }));
        let listed: u64 = self.reasons.iter().map(|reason| reason.packets).sum();
        if all > listed {
            table.note = format!(
                "{} for other reasons, in other pods or places.",
                things(all - listed, "packet", "packets")
            );
        }
        view.tables.push(table);
        if self.peers.is_empty() {
            view.notes.push(
                "To and from whom is recorded with the parameter `events` of packetDrops alone.".to_owned(),
            );
            return;
        }
        let mut table = Table::new("By peer", &["peer", "reason", "class", "pod", "packets"]);
        table.rows.extend(self.peers.iter().map(|one| {
            vec![
                Cell::text(&one.raddr),
                Cell::text(&one.reason),
                class(&one.class),
                Cell::text(pod(one.pod.as_deref())),
                Cell::number(Unit::Count, one.packets),
            ]
        }));
        view.tables.push(table);
    }
}
