// SPDX-License-Identifier: Apache-2.0

//! What to look at next, by cause. Nothing is said unless a term is past its first bound, or informs and is not zero.
//!
//! In: the terms, the sums behind them, and what was lost by reason. Out: [`Advice`], each with a cause, the numbers that say so, and one next step.

use std::collections::BTreeMap;

use super::inputs::{Drops, Handshake, Inputs};
use super::score::{Health, LEAK_SUSPECTS, Term, WINDOWS_CLOSED};
use crate::format::{Unit, percent, things};
use crate::view::{Advice, Level};

/// An error number of Linux with its name, what it means here, and where to look.
const ERRORS: &[(i64, &str, &str, &str)] = &[
    (
        111,
        "ECONNREFUSED",
        "Nobody listens where the pod connects to",
        "`ss -ltn` on the target: is the server up, on that port and address?",
    ),
    (
        110,
        "ETIMEDOUT",
        "Connection attempts get no answer",
        "A filter that drops silently, a host that is down, or a full accept queue: the target's own drops tell, if it is traced too.",
    ),
    (101, "ENETUNREACH", "There is no route to the network", "`ip route get ADDRESS` in the pod: routes."),
    (
        113,
        "EHOSTUNREACH",
        "There is no route to the host",
        "`ip route get ADDRESS` and `ip neigh` in the pod: routes and neighbours.",
    ),
    (
        99,
        "EADDRNOTAVAIL",
        "Ephemeral ports are exhausted",
        "`net.ipv4.ip_local_port_range`, and who opens so many connections to one target: reuse them.",
    ),
    (
        104,
        "ECONNRESET",
        "The target resets during the handshake",
        "The target's own log; a load balancer without a backend does this.",
    ),
];

/// The name of an error number.
pub(crate) fn errno(number: i64) -> String {
    ERRORS
        .iter()
        .find(|(known, ..)| *known == number)
        .map_or_else(|| format!("errno {number}"), |(_, name, ..)| (*name).to_owned())
}

/// Reasons of drops with what they mean and where to look; the first that fits.
const DROPS: &[(&str, &str, &str)] = &[
    (
        "SOCKET_BACKLOG",
        "The reader is too slow for its socket's buffers (sk_rcvbuf + sk_sndbuf)",
        "The program that reads: CPU it waits for (scheduling), or work it does between reads.",
    ),
    (
        "SOCKET_RCVBUFF",
        "A socket's receive buffer was full",
        "Whether the program sets SO_RCVBUF: only then raise it, with `net.core.rmem_max`; else `net.ipv4.tcp_rmem`'s third value.",
    ),
    (
        "TCP_LISTEN_OVERFLOW",
        "A listener's accept queue was full",
        "The backlog argument of listen(2) and `net.core.somaxconn`; then how fast the program accepts.",
    ),
    (
        "QDISC",
        "A queueing discipline dropped what was to be sent",
        "`tc -s qdisc` on the node and in the pod: a limit, a shaper, or a link that is full.",
    ),
    ("FULL_RING", "A device's ring was full", "`ethtool -S` and `ethtool -g` of the device."),
    (
        "CPU_BACKLOG",
        "A CPU could not keep up with received packets",
        "`/proc/net/softnet_stat`, `net.core.netdev_max_backlog`, and how receive interrupts are spread over CPUs.",
    ),
    ("PROTO_MEM", "TCP as a whole was out of memory", "`net.ipv4.tcp_mem` and `/proc/net/sockstat`."),
    ("NOMEM", "The kernel was out of memory", "Memory of the node and of the pod's cgroup."),
    (
        "TCP_CSUM",
        "Segments arrived damaged",
        "`ethtool -S` of the devices on the path, and checksum offload.",
    ),
    (
        "TCP_OFO_QUEUE_PRUNE",
        "Segments that came out of order did not fit",
        "The path's loss first; then the reader, as for a full receive buffer.",
    ),
];

/// Everything that the terms give reason to say.
pub(crate) fn advise(inputs: &Inputs, lost: &BTreeMap<String, u64>, health: &Health) -> Vec<Advice> {
    let mut advice = Vec::new();
    for term in &health.terms {
        let past = term.level.filter(|level| *level >= Level::Warn);
        match (term.name, past) {
            ("loss_ratio", Some(level)) => advice.extend(losses(lost, level, term)),
            ("retrans_ratio", Some(level)) => advice.push(Advice {
                level,
                cause: "Data has to be sent again: the path loses or reorders segments".to_owned(),
                evidence: evidence(term),
                next: "The section on retransmissions: to which peers, and noticed how; then drops with class loss on both ends.".to_owned(),
            }),
            ("connect_failure_ratio", Some(level)) => failures(inputs, level, term, &mut advice),
            ("accept_overflow_ratio", Some(level)) => advice.push(overflow(inputs, level, term)),
            ("backlog_ratio", Some(level)) => advice.push(Advice {
                level,
                cause: "Many segments find their socket in use and wait for the program".to_owned(),
                evidence: evidence(term),
                next: "Waiting is no loss. If latency matters: threads that share one socket, or a reader that waits for a CPU (scheduling).".to_owned(),
            }),
            ("reset_ratio", Some(level)) => advice.push(Advice {
                level,
                cause: "Established connections end by a reset".to_owned(),
                evidence: resets(inputs, term),
                next: "Sent by this side: a program that closes with data unread, or SO_LINGER 0. Received: the same at the peer, or a middlebox that forgot the connection.".to_owned(),
            }),
            ("peer_stall_ratio", Some(level)) => advice.push(Advice {
                level,
                cause: "Peers do not read what this side sends: their windows have no room".to_owned(),
                evidence: evidence(term),
                next: "The program at the other end: CPU it waits for, or work it does between reads; then its receive buffer (`net.ipv4.tcp_rmem`).".to_owned(),
            }),
            (WINDOWS_CLOSED, None) if term.numerator.is_some_and(|times| times > 0) => advice.push(Advice {
                level: Level::Info,
                cause: "The program does not read what arrives, until its peers may send no more".to_owned(),
                evidence: format!("a window was closed {}", things(term.numerator.unwrap_or(0), "time", "times")),
                next: "`ss -tm` in the pod: a Recv-Q that stays high names the socket; then CPU the program waits for (scheduling), or work it does between reads.".to_owned(),
            }),
            ("refused_ratio", None) if term.numerator.is_some_and(|segments| segments > 0) => advice.push(Advice {
                level: Level::Info,
                cause: "Peers ask for ports where nobody listens".to_owned(),
                evidence: evidence(term),
                next: "tcp_receive (outcome no_socket) names the ports: a server that is not up, a Service with another target port, a probe.".to_owned(),
            }),
            (LEAK_SUSPECTS, None) if term.numerator.is_some_and(|sockets| sockets > 0) => advice.push(Advice {
                level: Level::Info,
                cause: "The peer has closed, and the program does not".to_owned(),
                evidence: format!(
"{} in CLOSE_WAIT for more than 60 s at the end", things(term.numerator.unwrap_or(0), "socket has been", "sockets have been")),
                next: "`ss -tnp state close-wait` in the pod names the program: it leaks descriptors, or waits for something else before it closes.".to_owned(),
            }),
            _ => {}
        }
    }
    advice.extend(inputs.drops.as_ref().and_then(filtered));
    advice.extend(inputs.handshake.and_then(|handshake| slow(&handshake)));
    // The worst first; of the same level in the order of the terms.
    advice.sort_by_key(|one| std::cmp::Reverse(one.level));
    advice
}

fn evidence(term: &Term) -> String {
    let count = |value: Option<u64>| Unit::Count.format(value.unwrap_or(0) as f64);
    let value = percent(term.value.unwrap_or(0.0));
    format!("{} {value}: {} of {}", term.name, count(term.numerator), count(term.denominator))
}

/// One for each reason, the largest first.
fn losses(lost: &BTreeMap<String, u64>, level: Level, term: &Term) -> Vec<Advice> {
    let mut reasons: Vec<(&str, u64)> = lost.iter().map(|(reason, n)| (reason.as_str(), *n)).collect();
    reasons.sort_by_key(|(_, segments)| std::cmp::Reverse(*segments));
    let all = term.numerator.unwrap_or(0).max(1);
    let advice = |(reason, segments): (&str, u64)| {
        let known = DROPS.iter().find(|(known, ..)| reason.starts_with(known));
        let (cause, next) = known.map_or(
            ("Segments were dropped", "The section on drops: where in the kernel."),
            |(_, cause, next)| (*cause, *next),
        );
        Advice {
            level,
            cause: format!("{cause} ({reason})"),
            evidence: format!(
                "{} by {reason}, {} of the losses; {}",
                things(segments, "segment", "segments"),
                percent(segments as f64 / all as f64),
                evidence(term)
            ),
            next: next.to_owned(),
        }
    };
    reasons.into_iter().take(4).map(advice).collect()
}

fn failures(inputs: &Inputs, level: Level, term: &Term, advice: &mut Vec<Advice>) {
    let errors = inputs.connections.as_ref().map(|connections| &connections.errors);
    let mut errors: Vec<(i64, u64)> =
        errors.into_iter().flatten().map(|(errno, attempts)| (*errno, *attempts)).collect();
    errors.sort_by_key(|(errno, attempts)| (std::cmp::Reverse(*attempts), *errno));
    for (number, attempts) in errors.into_iter().take(4) {
        let known = ERRORS.iter().find(|(known, ..)| *known == number);
        let (cause, next) = known.map_or(
            ("Connection attempts fail", "The table of failed attempts: to whom."),
            |(_, _, cause, next)| (*cause, *next),
        );
        advice.push(Advice {
            level,
            cause: format!("{cause} ({})", errno(number)),
            evidence: format!(
                "{} with {}; {}",
                things(attempts, "attempt", "attempts"),
                errno(number),
                evidence(term)
            ),
            next: next.to_owned(),
        });
    }
}

fn overflow(inputs: &Inputs, level: Level, term: &Term) -> Advice {
    let full = inputs.listen.as_ref().and_then(|listen| listen.overflows);
    let told = match full {
        Some(full) => format!(", {} of them because the queue was full", Unit::Count.format(full as f64)),
        None => ", for whatever reason: this kernel does not tell which".to_owned(),
    };
    Advice {
        level,
        cause: "Listeners drop what connects to them".to_owned(),
        evidence: evidence(term) + &told,
        next:
            "The backlog argument of listen(2) and `net.core.somaxconn`; then how fast the program accepts."
                .to_owned(),
    }
}

fn resets(inputs: &Inputs, term: &Term) -> String {
    let sums = inputs.connections.as_ref().map(|connections| &connections.sums);
    let (from_peer, own) = sums.map_or((0, 0), |sums| (sums.reset_in, sums.reset_out));
    let count = |value: u64| Unit::Count.format(value as f64);
    format!("{}; {} received, {} sent by this side", evidence(term), count(from_peer), count(own))
}

/// Drops by policy are no loss and have no term, but somebody decided them.
fn filtered(drops: &Drops) -> Option<Advice> {
    let of = |((class, reason), segments): (&(String, String), &u64)| {
        (class == "policy" && *segments > 0).then(|| (reason.clone(), *segments))
    };
    let filtered: Vec<(String, u64)> = drops.iter().filter_map(of).collect();
    let all: u64 = filtered.iter().map(|(_, segments)| segments).sum();
    let (reason, _) = filtered.into_iter().max_by_key(|(_, segments)| *segments)?;
    Some(Advice {
        level: Level::Info,
        cause: format!("A filter drops packets ({reason})"),
        evidence: format!("{} dropped by policy", things(all, "segment", "segments")),
        next: "Network policies of the pod and its peers, and `iptables-save -c` or `nft list ruleset` on the node.".to_owned(),
    })
}

/// A tail of slow handshakes: the slowest of a hundred takes more than 200 ms, and three times what half of them take.
fn slow(handshake: &Handshake) -> Option<Advice> {
    let slow = handshake.p99_ns > 200_000_000 && handshake.p99_ns > 3 * handshake.p50_ns;
    let shown = |ns: u64| Unit::Nanoseconds.format(ns as f64);
    slow.then(|| Advice {
        level: Level::Info,
        cause: "Some handshakes take far longer than most".to_owned(),
        evidence: format!("p99 {}, p50 {}", shown(handshake.p99_ns), shown(handshake.p50_ns)),
        next: "A SYN that is lost is sent again after a second: retransmissions of kind syn, and the targets' accept queues.".to_owned(),
    })
}
