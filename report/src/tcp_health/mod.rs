// SPDX-License-Identifier: Apache-2.0

//! TCP health: how well the targets' TCP does, by pod and altogether, with every term of the score.
//!
//! In: `tcp_receive`, `tcp_connections`, `tcp_retransmits`, `packet_drops`, `tcp_listen_queue`, and for suspects of leaks
//! `tcp_states` ([`inputs`]). Out: [`TcpHealth`]. The formula is in [`score`], what follows from it in [`advice`].

mod advice;
mod inputs;
pub mod score;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::inputs::Handshake;
pub(crate) use self::inputs::SEGMENTS;
use self::inputs::{Connections, FAILED, Inputs, Receive};
use self::score::{Counts, Health, LeftOut, Term, VERSION};
use crate::engine::{Engine, ReportError, ask};
use crate::format::{Unit, things};
use crate::scope::{Scope, Section, pod};
use crate::view::{Advice, Cell, Change, Chart, Figure, Level, Table, View};

/// Its collectors; one of them is enough.
const COLLECTORS: [&str; 5] =
    ["tcpReceive", "tcpConnections", "tcpRetransmits", "packetDrops", "tcpListenQueue"];
/// Pods that are listed, worst first.
const MOST_PODS: usize = 25;
/// Targets of failed attempts that are listed.
const MOST_TARGETS: usize = 10;

/// The section.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpHealth {
    /// Of the formula.
    pub version: &'static str,
    /// All pods together.
    pub all: Health,
    /// What to look at next, for all pods together.
    pub advice: Vec<Advice>,
    /// Each pod, worst first.
    pub pods: Vec<PodHealth>,
    /// Pods that are not listed.
    pub other_pods: u64,
    /// Segments received, by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Targets to which most attempts failed.
    pub failed_targets: Vec<FailedTarget>,
    /// Inputs that are missing, with the reason.
    pub missing: Vec<String>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PodHealth {
    /// Its name; none for what `tracelake record` recorded.
    pub pod: Option<String>,
    /// Its health.
    #[serde(flatten)]
    pub health: Health,
    /// What to look at next there.
    pub advice: Vec<Advice>,
}

/// Attempts to one target that failed in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedTarget {
    /// Who tried.
    pub pod: Option<String>,
    /// Address.
    pub raddr: String,
    /// Port.
    pub rport: i32,
    /// Error number.
    pub error: i32,
    /// How often.
    pub attempts: u64,
}

/// Reads the section.
pub(crate) async fn read(engine: &impl Engine, scope: &Scope<'_>) -> Result<Section<TcpHealth>, ReportError> {
    let absent = inputs::absent(scope, None);
    if COLLECTORS.iter().all(|collector| absent.contains_key(collector)) {
        let why: Vec<&str> =
            COLLECTORS.iter().filter_map(|collector| absent.get(collector)).map(String::as_str).collect();
        return Ok(Section::Absent("none of its collectors traced anything: ".to_owned() + &why.join("; ")));
    }
    let mut by_pod = inputs::read(engine, scope).await?;
    let left_out = inputs::left_out(scope, None);
    let mut health: Option<Counts> = None;
    let mut pods = Vec::new();
    for (pod, inputs) in &mut by_pod {
        let absent = inputs::absent(scope, Some(pod));
        // A collector that traced, and has no row of a pod, says that nothing happened there.
        inputs::fill(&absent, inputs);
        // A node whose events were cut is likely the one that had most to tell: without it the session would look better.
        let mut without = LeftOut { some: left_out.clone(), absent };
        let counts = Counts::of(inputs, &without);
        without.some = inputs::left_out(scope, Some(pod));
        let own = Counts::of(inputs, &without);
        let lost = own.losses.clone();
        let own = own.health(inputs.handshake);
        let advice = advice::advise(inputs, &lost, &own);
        pods.push(PodHealth { pod: pod.1.clone(), health: own, advice });
        health = Some(match health {
            Some(sum) => sum.add(&counts),
            None => counts,
        });
    }
    let mut all = sum(by_pod.values());
    let all_counts = health.unwrap_or_else(|| {
        inputs::fill(&absent, &mut all);
        Counts::of(&all, &LeftOut { some: left_out, absent: absent.clone() })
    });
    let health = all_counts.health(inputs::handshake(engine).await?);
    all.handshake = health.handshake;
    pods.sort_by_key(|pod| pod.health.score.unwrap_or(u32::MAX));
    let other_pods = pods.len().saturating_sub(MOST_PODS) as u64;
    pods.truncate(MOST_PODS);
    let sql = format!(
        "SELECT pod, raddr, rport, error, sum(weight) AS attempts FROM tcp_connections WHERE {FAILED} \
         GROUP BY pod, raddr, rport, error ORDER BY attempts DESC, raddr, rport, error, pod NULLS FIRST LIMIT {MOST_TARGETS}"
    );
    let partly = inputs::COLLECTORS.iter().filter_map(|collector| scope.partly(collector));
    Ok(Section::Data(TcpHealth {
        version: VERSION,
        advice: advice::advise(&all, &all_counts.losses, &health),
        all: health,
        pods,
        other_pods,
        outcomes: all.receive.map(|receive| receive.outcomes).unwrap_or_default(),
        failed_targets: ask(engine, &sql).await?,
        missing: inputs::COLLECTORS
            .iter()
            .filter_map(|collector| absent.get(collector).cloned())
            .chain(partly)
            .collect(),
    }))
}

/// All pods' inputs together, each of those pods of which it is known: what advice and outcomes are told of. Terms are added up by
/// [`Counts`].
fn sum<'a>(pods: impl Iterator<Item = &'a Inputs>) -> Inputs {
    fn add<T: Clone>(sum: Option<T>, more: Option<&T>, join: impl Fn(&mut T, &T)) -> Option<T> {
        match (sum, more) {
            (Some(mut sum), Some(more)) => {
                join(&mut sum, more);
                Some(sum)
            }
            (sum, more) => sum.or_else(|| more.cloned()),
        }
    }
    pods.fold(Inputs::default(), |sum, pod| Inputs {
        receive: add(sum.receive, pod.receive.as_ref(), |sum: &mut Receive, pod| {
            pod.outcomes.iter().for_each(|(name, n)| *sum.outcomes.entry(name.clone()).or_default() += n);
            sum.partial |= pod.partial;
            sum.counted = Some(sum.counted.unwrap_or(0) + pod.counted.unwrap_or(0))
                .filter(|_| sum.counted.is_some() && pod.counted.is_some());
        }),
        drops: add(sum.drops, pod.drops.as_ref(), |sum, pod| {
            pod.iter().for_each(|(name, n)| *sum.entry(name.clone()).or_default() += n);
        }),
        connections: add(sum.connections, pod.connections.as_ref(), Connections::add),
        retransmits: add(sum.retransmits, pod.retransmits.as_ref(), |sum, pod| {
            sum.data += pod.data;
            sum.handshake += pod.handshake;
        }),
        listen: add(sum.listen, pod.listen.as_ref(), |sum, pod| {
            sum.drops += pod.drops;
            sum.overflows = match (sum.overflows, pod.overflows) {
                (Some(a), Some(b)) => Some(a + b),
                // A pod without listeners, too, has none of them: it takes nothing away.
                (a, b) => a.or(b),
            };
        }),
        leaks: add(sum.leaks, pod.leaks.as_ref(), |sum, pod| *sum += pod),
        windows_closed: add(sum.windows_closed, pod.windows_closed.as_ref(), |sum, pod| *sum += pod),
        handshake: None,
    })
}

impl TcpHealth {
    /// As it is shown.
    pub(crate) fn view(&self, view: &mut View) {
        let score = |health: &Health| match health.score {
            Some(score) => Cell::number(Unit::Count, u64::from(score)).marked(worst(&health.terms)),
            None => Cell::text("–"),
        };
        let v0 = Cell {
            text: format!("{:.0}", self.all.tcp_health_v0),
            value: Some(self.all.tcp_health_v0),
            level: None,
        };
        view.figures = vec![
            Figure::cell("Health, of 100", score(&self.all), Change::Points),
            Figure::cell("Share of the score with data", Cell::ratio(self.all.coverage), Change::Share),
            Figure::cell("Older formula (tcp_health_v0)", v0, Change::Points),
        ];
        view.figures.extend(self.all.terms.iter().map(|term| {
            let change = match term.name {
                score::WINDOWS_CLOSED => Change::Total,
                name if score::is_number(name) => Change::Points,
                _ => Change::Share,
            };
            Figure::cell(term.name, value(term), change)
        }));
        view.advice = self.all_advice();
        view.notes.push(format!(
            "{VERSION}: a hundred points, less what each term takes off between its two bounds, over the share of weights with data."
        ));
        view.notes.extend(self.missing.iter().map(|why| format!("Missing: {why}.")));
        if let Some(given_up) = self.all.given_up.filter(|given_up| *given_up > 0) {
            view.notes.push(format!(
                "{given_up} attempts were given up by the program itself before there was an answer: they are neither success nor failure."
            ));
        }
        if let Some(again) = self.all.handshake_retransmits.filter(|again| *again > 0) {
            view.notes.push(format!("{again} SYN and SYN-ACK segments were sent again; they are of handshakes, not of data, and in no ratio."));
        }
        view.tables.push(terms(&self.all.terms));
        let mut pods =
            Table::new("By pod, worst first", &["pod", "health", "with data", "terms past a bound"]);
        for one in &self.pods {
            let past: Vec<String> = one
                .health
                .terms
                .iter()
                .filter(|term| term.level >= Some(Level::Warn))
                .map(|term| format!("{} {}", term.name, value(term).text))
                .collect();
            let past = if past.is_empty() { "none".to_owned() } else { past.join(", ") };
            pods.rows.push(vec![
                Cell::text(pod(one.pod.as_deref())),
                score(&one.health),
                Cell::ratio(one.health.coverage),
                Cell::text(past),
            ]);
        }
        if self.other_pods > 0 {
            pods.note = format!("{} other pods, none with a lower score.", self.other_pods);
        }
        view.tables.push(pods);
        self.handshakes(view);
        if !self.failed_targets.is_empty() {
            let mut table = Table::new("Where attempts failed most", &["pod", "target", "error", "attempts"]);
            table.rows.extend(self.failed_targets.iter().map(|target| {
                vec![
                    Cell::text(pod(target.pod.as_deref())),
                    Cell::text(peer(&target.raddr, target.rport)),
                    Cell::text(advice::errno(target.error.into())),
                    Cell::number(Unit::Count, target.attempts),
                ]
            }));
            view.tables.push(table);
        }
        if !self.outcomes.is_empty() {
            let mut bars: Vec<(String, f64)> =
                self.outcomes.iter().map(|(name, n)| (name.clone(), *n as f64)).collect();
            bars.sort_by(|a, b| b.1.total_cmp(&a.1));
            view.charts.push(Chart::Bars {
                title: "What became of received segments".to_owned(),
                unit: Unit::Count,
                bars,
            });
        }
    }

    /// Of all pods together, and what is true of some pod alone: beside many that do well, one that does not is below every bound. Of
    /// several such pods the worst is shown.
    fn all_advice(&self) -> Vec<Advice> {
        let mut of_pods: BTreeMap<&str, (usize, &PodHealth, &Advice)> = BTreeMap::new();
        for one in &self.pods {
            for own in
                one.advice.iter().filter(|own| self.advice.iter().all(|known| known.cause != own.cause))
            {
                let (pods, worst, advice) = of_pods.entry(&own.cause).or_insert((0, one, own));
                *pods += 1;
                if own.level > advice.level {
                    (*worst, *advice) = (one, own);
                }
            }
        }
        let of_pods = of_pods.into_values().map(|(pods, worst, advice)| {
            let others = match pods - 1 {
                0 => String::new(),
                more => format!(" (and {})", things(more as u64, "other pod", "other pods")),
            };
            let evidence = format!("{}{others}: {}", pod(worst.pod.as_deref()), advice.evidence);
            Advice { evidence, ..advice.clone() }
        });
        let mut advice: Vec<Advice> = self.advice.iter().cloned().chain(of_pods).collect();
        advice.sort_by_key(|one| std::cmp::Reverse(one.level));
        advice
    }

    fn handshakes(&self, view: &mut View) {
        let mut table = Table::new(
            "Handshakes of active connections",
            &["pod", "handshakes", "p50", "p95", "p99", "slowest"],
        );
        let row = |name: String, of: &Handshake| {
            let ns = |value: u64| Cell::number(Unit::Nanoseconds, value);
            let count = Cell::number(Unit::Count, of.count);
            vec![Cell::text(name), count, ns(of.p50_ns), ns(of.p95_ns), ns(of.p99_ns), ns(of.max_ns)]
        };
        table.rows.extend(self.all.handshake.map(|all| row("all".to_owned(), &all)));
        if self.pods.len() > 1 {
            table.rows.extend(
                self.pods.iter().filter_map(|one| Some(row(pod(one.pod.as_deref()), &one.health.handshake?))),
            );
        }
        if !table.rows.is_empty() {
            table.note = "Quantiles are rounded down to three digits. Accepted connections have no socket during their handshake, \
                          so its time is not measured there."
                .to_owned();
            view.tables.push(table);
        }
    }
}

/// The worst level of scored terms, which is the score's own.
fn worst(terms: &[Term]) -> Level {
    terms.iter().filter(|term| term.weight > 0).filter_map(|term| term.level).max().unwrap_or(Level::Info)
}

fn value(term: &Term) -> Cell {
    let Some(value) = term.value else { return Cell::text("–") };
    // A number is read as such, whatever it is a share of.
    let cell = match term.numerator {
        Some(number) if score::is_number(term.name) => Cell::number(Unit::Count, number),
        _ => Cell::ratio(value),
    };
    match term.level {
        Some(level) if term.weight > 0 => cell.marked(level),
        _ => cell,
    }
}

fn terms(terms: &[Term]) -> Table {
    let columns = [
        "term",
        "value",
        "numerator",
        "denominator",
        "warn",
        "crit",
        "weight",
        "taken off",
        "what is counted",
    ];
    let mut table = Table::new("Every term of the score", &columns);
    table.whole = true;
    for term in terms {
        let bound = |bound: Option<f64>| bound.map_or_else(|| Cell::text("–"), Cell::ratio);
        let taken = Cell { text: format!("{:.1}", term.taken), value: Some(term.taken), level: None };
        let counted = match &term.null_because {
            Some(why) => format!("null: {why}"),
            None => format!("{} / {}", term.counts, term.of),
        };
        table.rows.push(vec![
            Cell::text(term.name),
            value(term),
            Cell::maybe(Unit::Count, term.numerator),
            Cell::maybe(Unit::Count, term.denominator),
            bound(term.warn),
            bound(term.crit),
            Cell::number(Unit::Count, u64::from(term.weight)),
            if term.weight == 0 { Cell::text("–") } else { taken },
            Cell::text(counted),
        ]);
    }
    table
}

/// Address and port as one writes them.
fn peer(address: &str, port: i32) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}
