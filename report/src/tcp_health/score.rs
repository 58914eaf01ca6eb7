// SPDX-License-Identifier: Apache-2.0

//! The terms of TCP health and the score `tcp-health/1`, and the older formula `tcp_health_v0` for comparison.
//!
//! In: [`Inputs`]. Out: [`Health`]. Pure: the tests compute the same by hand.
//!
//! Each term is a ratio of two counts, both of which are kept. Between its two bounds it takes from nothing to its whole
//! weight off a hundred points. A term whose collector traced nothing, whose denominator is zero, or of which a parameter, a
//! limit or a loss left something out is null: it takes nothing off, and its weight is missing in `coverage`, by which the score is
//! rescaled. Of several pods a term adds up those of which it is known.

use std::collections::BTreeMap;

use serde::Serialize;

use super::inputs::{Handshake, Inputs};
use crate::view::Level;

/// The version of terms, bounds and weights.
pub const VERSION: &str = "tcp-health/1";

/// One term.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Term {
    /// As in the formula.
    pub name: &'static str,
    /// What the numerator counts.
    pub counts: &'static str,
    /// What the denominator counts.
    pub of: &'static str,
    /// How many; none where it is not known.
    pub numerator: Option<u64>,
    /// Of how many.
    pub denominator: Option<u64>,
    /// The ratio.
    pub value: Option<f64>,
    /// Up to here nothing is taken off; none for terms that only inform.
    pub warn: Option<f64>,
    /// From here on all of the weight is.
    pub crit: Option<f64>,
    /// Points.
    pub weight: u32,
    /// Points that it takes off, before rescaling.
    pub taken: f64,
    /// Where the value lies.
    pub level: Option<Level>,
    /// Why there is no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub null_because: Option<String>,
}

/// The health of one pod, or of all.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// 0 to 100; none where nothing of it is known.
    pub score: Option<u32>,
    /// The share of the weights that has data, 0 to 1.
    pub coverage: f64,
    /// Every term, also those that are null.
    pub terms: Vec<Term>,
    /// Of active connections.
    pub handshake: Option<Handshake>,
    /// Retransmitted SYN and SYN-ACK, in segments: of handshakes, so no part of `retrans_ratio`.
    pub handshake_retransmits: Option<u64>,
    /// Attempts that the program itself gave up before there was an answer: neither success nor failure.
    pub given_up: Option<u64>,
    /// The older formula, 50 to 100, with what is missing counted as fine, as it was.
    pub tcp_health_v0: f64,
}

/// Why a term has no value.
type Missing = String;
type Known<T> = Result<T, Missing>;

struct Rule {
    name: &'static str,
    counts: &'static str,
    of: &'static str,
    bounds: Option<(f64, f64)>,
    weight: u32,
    least: u64,
}

const fn rule(name: &'static str, counts: &'static str, of: &'static str) -> Rule {
    Rule { name, counts, of, bounds: None, weight: 0, least: 1 }
}

const fn scored(rule: Rule, warn: f64, crit: f64, weight: u32) -> Rule {
    Rule { bounds: Some((warn, crit)), weight, ..rule }
}

const LOSS: Rule =
    scored(rule("loss_ratio", "segments dropped as loss", "segments received, and those"), 0.001, 0.02, 25);
const REFUSED: Rule = rule("refused_ratio", "segments for a port where nobody listens", "segments received");
const RETRANS: Rule =
    scored(rule("retrans_ratio", "data segments sent again", "data segments sent"), 0.005, 0.05, 25);
const CONNECT: Rule = Rule {
    least: 5,
    ..scored(rule("connect_failure_ratio", "attempts that failed", "attempts that ended"), 0.01, 0.2, 20)
};
const ACCEPT: Rule = scored(
    rule("accept_overflow_ratio", "SYNs and ACKs that listeners dropped", "connections accepted, and those"),
    0.0,
    0.01,
    15,
);
const BACKLOG: Rule = scored(
    rule("backlog_ratio", "segments that waited for their program", "segments taken at once or later"),
    0.2,
    0.6,
    5,
);
const RESET: Rule =
    scored(rule("reset_ratio", "connections ended by a reset", "connections ended"), 0.05, 0.3, 10);
/// Time that says little if there is little of it.
const PEER_STALL: Rule = Rule {
    least: 100,
    ..scored(
        rule(
            "peer_stall_ratio",
            "milliseconds in which the peer had no room for more",
            "milliseconds in which connections had something to send",
        ),
        0.1,
        0.5,
        0,
    )
};
/// The terms that are a number, not a ratio.
pub(crate) const WINDOWS_CLOSED: &str = "windows_closed";
pub(crate) const LEAK_SUSPECTS: &str = "leak_suspects";
const WINDOWS: Rule = Rule {
    least: 0,
    ..rule(WINDOWS_CLOSED, "times that this side had no room for more", "connections that were established")
};
const LEAKS: Rule = Rule {
    least: 0,
    ..rule(
        LEAK_SUSPECTS,
        "sockets in CLOSE_WAIT for more than 60 s at the end",
        "connections open at the end",
    )
};

/// Whether the term of that name is read as a number.
pub(crate) fn is_number(name: &str) -> bool {
    [WINDOWS_CLOSED, LEAK_SUSPECTS].contains(&name)
}

impl Rule {
    fn term(&self, counts: Known<(u64, u64)>) -> Term {
        let mut term = Term {
            name: self.name,
            counts: self.counts,
            of: self.of,
            numerator: None,
            denominator: None,
            value: None,
            warn: self.bounds.map(|bounds| bounds.0),
            crit: self.bounds.map(|bounds| bounds.1),
            weight: self.weight,
            taken: 0.0,
            level: None,
            null_because: None,
        };
        let (numerator, denominator) = match counts {
            Ok(counts) => counts,
            Err(why) => return Term { null_because: Some(why), ..term },
        };
        (term.numerator, term.denominator) = (Some(numerator), Some(denominator));
        if denominator < self.least {
            term.null_because = Some(if self.least == 1 {
                "there were none".to_owned()
            } else {
                format!("fewer than {}", self.least)
            });
            return term;
        }
        let value = if denominator == 0 { 0.0 } else { numerator as f64 / denominator as f64 };
        term.value = Some(value);
        term.level = Some(Level::Info);
        if let Some((warn, crit)) = self.bounds {
            let over = ((value - warn) / (crit - warn)).clamp(0.0, 1.0);
            term.taken = f64::from(self.weight) * over;
            term.level = Some(match value {
                x if x >= crit => Level::Crit,
                x if x > warn => Level::Warn,
                _ => Level::Ok,
            });
        }
        term
    }
}

/// Why what a collector's tables hold of a pod, or of all, cannot be counted. By its name.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeftOut {
    /// What they lack, by a parameter of the session for one.
    pub(crate) some: BTreeMap<&'static str, String>,
    /// Why there is nothing of it.
    pub(crate) absent: BTreeMap<&'static str, String>,
}

impl LeftOut {
    fn input<'a, T>(&self, input: Option<&'a T>, collector: &str) -> Known<&'a T> {
        if let Some(what) = self.some.get(collector) {
            return Err(format!("the session left some out: {what}"));
        }
        let why = || self.absent.get(collector).cloned();
        input.ok_or_else(|| why().unwrap_or_else(|| format!("{collector} traced nothing")))
    }

    fn windows_closed(&self, inputs: &Inputs) -> Known<(u64, u64)> {
        let connections = inputs.connections.as_ref().map_or(0, |all| all.sums.ended + all.sums.open);
        let why = || self.absent.get("nodeInfo").cloned();
        let closed = inputs.windows_closed.ok_or_else(|| {
            why().unwrap_or_else(|| "nodeInfo did not look at its network twice".to_owned())
        })?;
        Ok((closed, connections))
    }
}

const TERMS: usize = 10;
/// In the order in which they are told.
const RULES: [&Rule; TERMS] =
    [&LOSS, &REFUSED, &RETRANS, &CONNECT, &ACCEPT, &BACKLOG, &RESET, &PEER_STALL, &WINDOWS, &LEAKS];

/// What the terms count, of one pod or of several together: of each term over those pods of which both of its counts are known, so
/// that a node that could not run a collector gives neither side of a ratio.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    terms: [Known<(u64, u64)>; TERMS],
    /// The first term's numerator by reason.
    pub(crate) losses: BTreeMap<String, u64>,
    handshake_retransmits: Option<u64>,
    given_up: Option<u64>,
    v0: V0,
}

/// What the older formula counts; what is not known is 0 there.
#[derive(Clone, Copy, Debug, Default)]
struct V0 {
    packets: u64,
    dropped: u64,
    slow: u64,
    failed: u64,
    attempts: u64,
}

impl Counts {
    /// Of one pod.
    pub(crate) fn of(inputs: &Inputs, left_out: &LeftOut) -> Self {
        let receive = left_out.input(inputs.receive.as_ref(), "tcpReceive");
        let drops = left_out.input(inputs.drops.as_ref(), "packetDrops");
        let connections = left_out.input(inputs.connections.as_ref(), "tcpConnections");
        let retransmits = left_out.input(inputs.retransmits.as_ref(), "tcpRetransmits");
        let listen = left_out.input(inputs.listen.as_ref(), "tcpListenQueue");
        let leaks = left_out.input(inputs.leaks.as_ref(), "tcpStates");
        let received = receive.clone().and_then(|receive| match (receive.partial, receive.counted) {
            // A kernel that showed none of the pod's segments.
            (false, Some(counted)) if receive.outcomes.is_empty() => Ok(counted),
            (false, _) => Ok(receive.outcomes.values().sum()),
            (true, Some(counted)) => Ok(counted),
            (true, None) => Err(
                "this kernel shows not every segment (coverage: hooks), and nodeInfo has not their number"
                    .to_owned(),
            ),
        });
        let outcome = |name: &str| {
            let receive = receive.clone()?;
            if receive.partial {
                return Err("this kernel does not tell (coverage: hooks)".to_owned());
            }
            Ok(receive.outcomes.get(name).copied().unwrap_or(0))
        };
        let sums = connections.clone().map(|connections| &connections.sums);
        let accept = both(&listen, &sums).map(|(listen, sums)| (listen.drops, sums.passive + listen.drops));
        let has_accept = accept.as_ref().is_ok_and(|(_, all)| *all >= ACCEPT.least);
        let losses: Known<BTreeMap<String, u64>> = drops.clone().map(|_| {
            inputs.losses(has_accept).map(|(reason, segments)| (reason.to_owned(), segments)).collect()
        });
        let loss = losses.clone().map(|losses| losses.values().sum::<u64>());
        let no_socket =
            receive.clone().map(|receive| receive.outcomes.get("no_socket").copied().unwrap_or(0));
        let terms = [
            both(&loss, &received).map(|(loss, received)| (loss, received + loss)),
            both(&no_socket, &received).map(|(refused, received)| {
                (refused + sums.as_ref().map_or(0, |sums| sums.refused_passive), received)
            }),
            both(&retransmits, &connections).map(|(again, connections)| {
                let sent = connections.sums.data_segments + connections.adopted_segments;
                (again.data.saturating_sub(connections.adopted_left_out), sent)
            }),
            sums.clone().map(|sums| (sums.failed, sums.finished)),
            accept,
            both(&outcome("backlog"), &outcome("direct"))
                .map(|(backlog, direct)| (backlog, direct + backlog)),
            sums.clone().map(|sums| (sums.reset_in + sums.reset_out, sums.ended)),
            sums.clone().map(|sums| (sums.stalled_ms, sums.busy_ms)),
            left_out.windows_closed(inputs),
            leaks.map(|leaks| (*leaks, inputs.connections.as_ref().map_or(0, |all| all.sums.open))),
        ];
        let (failed, attempts) = sums.as_ref().map_or((0, 0), |sums| (sums.failed, sums.finished));
        Self {
            v0: V0 {
                packets: received.unwrap_or(0),
                dropped: loss.unwrap_or(0),
                slow: outcome("backlog").unwrap_or(0),
                failed,
                attempts,
            },
            losses: losses.ok().filter(|_| terms[0].is_ok()).unwrap_or_default(),
            terms,
            handshake_retransmits: retransmits.ok().map(|again| again.handshake),
            given_up: sums.ok().map(|sums| sums.given_up),
        }
    }

    /// Adds another pod's. What is known of one of them only is that one's.
    pub(crate) fn add(mut self, other: &Self) -> Self {
        for (sum, more) in self.terms.iter_mut().zip(&other.terms) {
            match (&mut *sum, more) {
                (Ok(sum), Ok(more)) => *sum = (sum.0 + more.0, sum.1 + more.1),
                (Err(_), Ok(more)) => *sum = Ok(*more),
                (_, Err(_)) => {}
            }
        }
        other.losses.iter().for_each(|(reason, n)| *self.losses.entry(reason.clone()).or_default() += n);
        let either = |sum: Option<u64>, more: Option<u64>| match (sum, more) {
            (Some(sum), Some(more)) => Some(sum + more),
            (sum, more) => sum.or(more),
        };
        self.handshake_retransmits = either(self.handshake_retransmits, other.handshake_retransmits);
        self.given_up = either(self.given_up, other.given_up);
        let (sum, more) = (&mut self.v0, &other.v0);
        sum.packets += more.packets;
        sum.dropped += more.dropped;
        sum.slow += more.slow;
        sum.failed += more.failed;
        sum.attempts += more.attempts;
        self
    }

    /// The terms and the score.
    pub(crate) fn health(&self, handshake: Option<Handshake>) -> Health {
        let terms: Vec<Term> =
            RULES.iter().zip(&self.terms).map(|(rule, counts)| rule.term(counts.clone())).collect();
        let weight = |of: &dyn Fn(&Term) -> bool| {
            terms.iter().filter(|term| of(term)).map(|term| term.weight).sum::<u32>()
        };
        let coverage = f64::from(weight(&|term| term.value.is_some())) / f64::from(weight(&|_| true));
        let taken: f64 = terms.iter().map(|term| term.taken).sum();
        let score = (coverage > 0.0).then(|| (100.0 - taken / coverage).round().clamp(0.0, 100.0) as u32);
        Health {
            score,
            coverage,
            tcp_health_v0: v0(&self.v0),
            terms,
            handshake,
            handshake_retransmits: self.handshake_retransmits,
            given_up: self.given_up,
        }
    }
}

fn both<A: Clone, B: Clone>(a: &Known<A>, b: &Known<B>) -> Known<(A, B)> {
    Ok((a.clone()?, b.clone()?))
}

/// `100 - min(20, 10 x drop %) - 10 [if more than 10 % went the slow way] - min(20, 5 x failure %)`.
fn v0(counts: &V0) -> f64 {
    let percent = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    let mut score = 100.0;
    score -= (10.0 * percent(counts.dropped, counts.packets)).min(20.0);
    if percent(counts.slow, counts.packets) > 10.0 {
        score -= 10.0;
    }
    score - (5.0 * percent(counts.failed, counts.attempts)).min(20.0)
}

#[cfg(test)]
mod tests {
    use super::super::inputs::{ConnectionSums, Connections, Listen, Receive, Retransmits};
    use super::*;

    /// Everything within bounds but what a test changes: 10,000 segments, 100 connections each way.
    fn healthy() -> Inputs {
        let outcomes = [("direct".to_owned(), 9_000), ("backlog".to_owned(), 1_000)].into();
        let sums = ConnectionSums {
            finished: 100,
            passive: 100,
            ended: 200,
            data_segments: 10_000,
            busy_ms: 10_000,
            ..ConnectionSums::default()
        };
        Inputs {
            receive: Some(Receive { outcomes, ..Receive::default() }),
            drops: Some([].into()),
            connections: Some(Connections { sums, ..Connections::default() }),
            retransmits: Some(Retransmits::default()),
            listen: Some(Listen::default()),
            leaks: Some(0),
            windows_closed: Some(0),
            handshake: None,
        }
    }

    fn of(inputs: &Inputs) -> Health {
        with(inputs, &LeftOut::default())
    }

    fn with(inputs: &Inputs, left_out: &LeftOut) -> Health {
        Counts::of(inputs, left_out).health(None)
    }

    fn term<'a>(health: &'a Health, name: &str) -> &'a Term {
        health.terms.iter().find(|term| term.name == name).unwrap()
    }

    #[test]
    fn weights_are_a_hundred_and_a_healthy_pod_has_all_of_them() {
        let health = of(&healthy());
        assert_eq!(health.terms.iter().map(|term| term.weight).sum::<u32>(), 100);
        assert_eq!((health.score, health.coverage, health.tcp_health_v0), (Some(100), 1.0, 100.0));
    }

    #[test]
    fn each_fault_moves_its_own_term_and_no_other() {
        type Fault = fn(&mut Inputs);
        let faults: [(&str, Fault); 6] = [
            ("loss_ratio", |inputs| {
                inputs.drops = Some([(("loss".to_owned(), "QDISC_DROP".to_owned()), 100)].into());
            }),
            ("retrans_ratio", |inputs| inputs.retransmits = Some(Retransmits { data: 200, handshake: 9 })),
            ("connect_failure_ratio", |inputs| {
                let sums = &mut inputs.connections.as_mut().unwrap().sums;
                (sums.failed, sums.finished) = (10, 110);
            }),
            ("accept_overflow_ratio", |inputs| inputs.listen = Some(Listen { drops: 1, overflows: Some(1) })),
            ("backlog_ratio", |inputs| {
                let outcomes = &mut inputs.receive.as_mut().unwrap().outcomes;
                outcomes.insert("direct".to_owned(), 5_000);
                outcomes.insert("backlog".to_owned(), 5_000);
            }),
            ("reset_ratio", |inputs| inputs.connections.as_mut().unwrap().sums.reset_in = 20),
        ];
        for (name, fault) in faults {
            let mut inputs = healthy();
            fault(&mut inputs);
            let health = of(&inputs);
            let moved: Vec<&str> =
                health.terms.iter().filter(|term| term.taken > 0.0).map(|term| term.name).collect();
            assert_eq!(moved, [name]);
            assert!(health.score < Some(100), "{name}: {:?}", health.score);
        }
    }

    #[test]
    fn what_a_full_accept_queue_cost_is_counted_once() {
        let mut inputs = healthy();
        let overflow = ("loss".to_owned(), "TCP_LISTEN_OVERFLOW".to_owned());
        inputs.drops = Some([(overflow, 50)].into());
        inputs.listen = Some(Listen { drops: 50, overflows: Some(50) });
        let health = of(&inputs);
        assert_eq!(term(&health, "loss_ratio").numerator, Some(0));
        assert_eq!(term(&health, "accept_overflow_ratio").numerator, Some(50));
        // Nobody else counts it where the queues were not traced, or their term has no value for another reason.
        inputs.listen = None;
        assert_eq!(term(&of(&inputs), "loss_ratio").numerator, Some(50));
        inputs.listen = Some(Listen::default());
        inputs.connections.as_mut().unwrap().sums.passive = 0;
        assert_eq!(term(&of(&inputs), "loss_ratio").numerator, Some(50));
        inputs.listen = Some(Listen { drops: 50, overflows: Some(50) });
        for collector in ["tcpConnections", "tcpListenQueue"] {
            let some = [(collector, format!("{collector}.ports = 80"))].into();
            let health = with(&inputs, &LeftOut { some, ..LeftOut::default() });
            assert_eq!(term(&health, "accept_overflow_ratio").numerator, None);
            assert_eq!(term(&health, "loss_ratio").numerator, Some(50), "{collector}");
        }
    }

    #[test]
    fn readers_that_stall_are_told_on_both_sides_and_cost_no_points() {
        let mut inputs = healthy();
        let sums = &mut inputs.connections.as_mut().unwrap().sums;
        (sums.busy_ms, sums.stalled_ms) = (2_000, 600);
        let health = of(&inputs);
        let stall = term(&health, "peer_stall_ratio");
        assert_eq!((stall.value, stall.level, stall.taken), (Some(0.3), Some(Level::Warn), 0.0));
        inputs.connections.as_mut().unwrap().sums.busy_ms = 99;
        assert_eq!(term(&of(&inputs), "peer_stall_ratio").null_because.as_deref(), Some("fewer than 100"));
        inputs.windows_closed = Some(3);
        let closed = of(&inputs);
        assert_eq!((term(&closed, "windows_closed").numerator, closed.score), (Some(3), Some(100)));
    }

    #[test]
    fn a_term_takes_nothing_up_to_its_first_bound_and_all_from_the_second_on() {
        for (segments, taken, level) in [
            (50, 0.0, Level::Ok),
            (275, 12.5, Level::Warn),
            (500, 25.0, Level::Crit),
            (9_999, 25.0, Level::Crit),
        ] {
            let mut inputs = healthy();
            inputs.retransmits = Some(Retransmits { data: segments, handshake: 0 });
            let health = of(&inputs);
            let term = term(&health, "retrans_ratio");
            assert!((term.taken - taken).abs() < 1e-9, "{segments}: {}", term.taken);
            assert_eq!(term.level, Some(level));
        }
    }

    #[test]
    fn what_is_missing_neither_improves_nor_lowers_and_the_score_is_of_the_rest() {
        let mut inputs = healthy();
        inputs.retransmits = Some(Retransmits { data: 275, handshake: 0 });
        assert_eq!(of(&inputs).score, Some(88), "100 - 12.5, rounded away from zero");
        (inputs.drops, inputs.listen) = (None, None);
        let health = of(&inputs);
        // 25 and 15 of a hundred are missing: 12.5 of 60 is 20.8 of 100.
        assert_eq!((health.coverage, health.score), (0.6, Some(79)));
        assert_eq!(term(&health, "loss_ratio").null_because.as_deref(), Some("packetDrops traced nothing"));
        assert_eq!(of(&Inputs::default()).score, None);
    }

    #[test]
    fn fewer_than_five_attempts_and_no_traffic_say_nothing() {
        let mut inputs = healthy();
        inputs.connections.as_mut().unwrap().sums =
            ConnectionSums { finished: 4, failed: 4, ..ConnectionSums::default() };
        let health = of(&inputs);
        assert_eq!(term(&health, "connect_failure_ratio").value, None);
        assert_eq!(term(&health, "reset_ratio").null_because.as_deref(), Some("there were none"));
        // Of 100: without retransmissions' 25, attempts' 20, accepts' 15 and resets' 10.
        assert_eq!((health.coverage, health.score), (0.3, Some(100)));
    }

    #[test]
    fn a_kernel_that_shows_not_every_segment_needs_the_networks_own_count() {
        let mut inputs = healthy();
        let receive = inputs.receive.as_mut().unwrap();
        receive.partial = true;
        let health = of(&inputs);
        assert_eq!((term(&health, "loss_ratio").value, term(&health, "backlog_ratio").value), (None, None));
        inputs.receive.as_mut().unwrap().counted = Some(12_345);
        let health = of(&inputs);
        assert_eq!(term(&health, "loss_ratio").denominator, Some(12_345));
        assert_eq!(term(&health, "backlog_ratio").value, None);
    }

    #[test]
    fn a_parameter_that_leaves_out_failures_makes_no_good_score() {
        let some = [("tcpConnections", "tcpConnections.includeFailed = false".to_owned())].into();
        let health = with(&healthy(), &LeftOut { some, ..LeftOut::default() });
        for name in ["connect_failure_ratio", "retrans_ratio", "reset_ratio", "accept_overflow_ratio"] {
            let why = term(&health, name).null_because.clone().unwrap();
            assert_eq!(why, "the session left some out: tcpConnections.includeFailed = false");
        }
    }

    #[test]
    fn a_pod_of_which_one_side_is_not_known_is_in_neither_side_of_the_sum() {
        let (mut lossy, mut unseen) = (healthy(), healthy());
        let qdisc = ("loss".to_owned(), "QDISC_DROP".to_owned());
        lossy.drops = Some([(qdisc.clone(), 100)].into());
        unseen.drops = Some([(qdisc, 5_000)].into());
        unseen.receive = None;
        let left_out =
            |why: &str| LeftOut { absent: [("tcpReceive", why.to_owned())].into(), ..LeftOut::default() };
        let counts = |inputs: &Inputs| Counts::of(inputs, &left_out("tcpReceive did not run on node b"));
        for (one, other) in [(&lossy, &unseen), (&unseen, &lossy)] {
            let both = counts(one).add(&counts(other));
            assert_eq!(both.losses, [("QDISC_DROP".to_owned(), 100)].into());
            let health = both.health(None);
            let loss = term(&health, "loss_ratio");
            assert_eq!((loss.numerator, loss.denominator), (Some(100), Some(10_100)));
            assert_eq!(term(&health, "reset_ratio").denominator, Some(400), "of both");
        }
        let why = term(&counts(&unseen).health(None), "loss_ratio").null_because.clone();
        assert_eq!(why.as_deref(), Some("tcpReceive did not run on node b"));
    }

    #[test]
    fn the_older_formula_is_reproduced() {
        let of =
            |packets, dropped, slow, (failed, attempts)| v0(&V0 { packets, dropped, slow, failed, attempts });
        assert!((of(1_000, 1, 0, (0, 10)) - 99.0).abs() < 1e-9, "0.1 % of drops take one point");
        assert!((of(1_000, 500, 101, (9, 10)) - 50.0).abs() < 1e-9, "it never falls below 50");
        assert!((of(1_000, 0, 100, (1, 100)) - 95.0).abs() < 1e-9);
        assert!((of(0, 0, 0, (0, 0)) - 100.0).abs() < 1e-9, "nothing known scores 100");
    }
}
