// SPDX-License-Identifier: Apache-2.0

//! Real faults under the real `tracelake record`: each moves its own term of the report and no other, takes off the score
//! what the term's weight says, and is named by the advice. The same programs without a fault move nothing.
//!
//! Needs root, a kernel with BTF and iproute2; no VM, no cluster: `cargo xtask test sick`. What is injected is real (a queue
//! that is too short, a listener that nobody serves, a limit of memory), never rows that a test wrote: those are in the crate
//! `report`.

#![cfg(all(feature = "sql", target_os = "linux"))]

mod network;
mod pressure;
mod recording;
mod workload;

use std::sync::OnceLock;

use network::Link;
use recording::Report;

/// Runs before the test harness: this binary is also the workload.
#[used]
#[unsafe(link_section = ".init_array")]
static WORKLOAD: extern "C" fn() = {
    extern "C" fn workload() {
        workload::workload();
    }
    workload
};

/// The network's programs without a fault; what every faulty run is compared with.
fn healthy() -> &'static Report {
    static HEALTHY: OnceLock<Report> = OnceLock::new();
    HEALTHY.get_or_init(|| recording::network("none", Link::AMPLE, None))
}

#[test]
fn without_a_fault_nothing_moves() {
    let report = healthy();
    assert_eq!(report.moved(), [""; 0], "{:#?}", report.advice());
    assert_eq!(report.score(), Some(100));
    let unknown: Vec<&str> = report.unknown();
    // Without fentry the kernel does not tell who waited.
    assert!(unknown.is_empty() || unknown == ["backlog_ratio"], "{unknown:?}");
}

/// One term moved, past its second bound or by as much as said, and the score fell by what it is worth.
fn only(report: &Report, term: &str, causes: &[&str]) {
    all(report, &[term], causes);
}

fn all(report: &Report, terms: &[&str], causes: &[&str]) {
    assert_eq!(report.moved(), terms, "{:#?}", report.advice());
    report.assert_score();
    for cause in causes {
        let found = report.advice().iter().any(|advice| advice.contains(cause));
        assert!(found, "nothing says {cause:?}: {:#?}", report.advice());
    }
    assert_eq!(report.advice().len(), causes.len(), "each fault is named once: {:#?}", report.advice());
}

#[test]
fn loss_on_the_path_is_data_that_is_sent_again() {
    let report = recording::network("none", Link::SHORT, None);
    only(&report, "retrans_ratio", &["crit: Data has to be sent again: the path loses or reorders segments"]);
    assert_eq!(report.taken("retrans_ratio"), 25.0);
}

/// Both move, since both are true: what the pod's own queue drops is a drop in the pod, and where it was a part of a large
/// packet that TCP believes to be on its way, it is sent again. A packet that is dropped whole is refused to TCP's face,
/// which keeps it and counts no retransmission: so more is dropped here than sent again.
#[test]
fn loss_in_the_pods_own_queue_is_a_drop_there_as_well() {
    let report = recording::network("none", Link::AMPLE, Some(Link::SHORT));
    all(
        &report,
        &["loss_ratio", "retrans_ratio"],
        &[
            "A queueing discipline dropped what was to be sent (QDISC_DROP)",
            "Data has to be sent again: the path loses or reorders segments",
        ],
    );
    assert!(report.numerator("loss_ratio") > report.numerator("retrans_ratio"));
}

#[test]
fn a_full_accept_queue_is_the_listeners_alone() {
    let report = recording::network("full-queue", Link::AMPLE, None);
    only(&report, "accept_overflow_ratio", &["crit: Listeners drop what connects to them"]);
    assert_eq!(report.taken("accept_overflow_ratio"), 15.0);
    // The kernel told of the same segments twice: as the listener's, and where it dropped them.
    assert!(report.dropped("TCP_LISTEN_OVERFLOW") > 0, "the ACKs of those who came at once");
}

#[test]
fn refused_ports_are_attempts_that_failed() {
    let report = recording::network("refused", Link::AMPLE, None);
    only(
        &report,
        "connect_failure_ratio",
        &["crit: Nobody listens where the pod connects to (ECONNREFUSED)"],
    );
    assert_eq!(report.numerator("connect_failure_ratio"), workload::REFUSED as u64);
}

#[test]
fn who_asks_the_pod_for_a_port_that_it_has_not_costs_it_nothing() {
    let report = recording::network("nobody-here", Link::AMPLE, None);
    only(&report, "refused_ratio", &["info: Peers ask for ports where nobody listens"]);
    assert_eq!((report.numerator("refused_ratio"), report.score()), (workload::REFUSED as u64, Some(100)));
}

#[test]
fn resets_are_told_by_who_sent_them() {
    for (fault, told) in [("resets", "0 received, 12 sent"), ("reset-by-peer", "12 received, 0 sent")] {
        let report = recording::network(fault, Link::AMPLE, None);
        only(&report, "reset_ratio", &["warn: Established connections end by a reset"]);
        assert_eq!(report.numerator("reset_ratio"), workload::RESET as u64);
        assert!(report.advice()[0].contains(told), "{:?}", report.advice());
    }
}

#[test]
fn a_peer_that_does_not_read_is_told_by_the_time_that_it_cost() {
    let report = recording::network("stalled-peer", Link::AMPLE, None);
    only(&report, "peer_stall_ratio", &["Peers do not read what this side sends"]);
    // Of the pause, what was left of it when the buffers were full.
    let (stalled, pause) = (report.numerator("peer_stall_ratio"), workload::STALL.as_millis() as u64);
    assert!((pause / 2..pause + 200).contains(&stalled), "{stalled} of {pause} ms");
    // The program asked the kernel itself, a moment before the end; other connections were hardly held up.
    let told: u64 = report.printed().parse().expect("milliseconds");
    assert!(stalled.abs_diff(told) <= 20, "{stalled} ms, by TCP_INFO {told} ms");
}

#[test]
fn a_pod_that_does_not_read_is_told_by_its_closed_window() {
    let report = recording::network("stalled-reader", Link::AMPLE, None);
    only(&report, "windows_closed", &["info: The program does not read what arrives"]);
}

#[test]
fn a_limit_of_memory_shows_as_pages_that_are_read_again() {
    let (enough, short) = (recording::memory(false), recording::memory(true));
    assert_eq!(enough.moved(), [""; 0], "{:#?}", enough.advice());
    only(&short, "pageFaults", &["Memory is short: pages are read again that had been there"]);
    let faults = |report: &Report, name: &str| report.section("pageFaults")["totals"][name].as_u64();
    assert!(faults(&enough, "major") < Some(pressure::PAGES as u64 / 10));
    // Read in order, what was least recently used is what is needed next: every page, in each pass.
    let all = (pressure::PASSES * pressure::PAGES) as u64;
    assert!((Some(all)..Some(all + 500)).contains(&faults(&short, "major")), "{:?}", faults(&short, "major"));
}

/// The only fault that others on the machine may add to, so the kernel's own account of the threads says what is to be expected.
#[test]
fn threads_on_one_cpu_wait_for_each_other() {
    for threads in [1, 2] {
        let report = recording::cpu(threads);
        let told: Vec<f64> = report.printed().split(' ').map(|ns| ns.parse().expect("a number")).collect();
        let all = &report.section("scheduling")["all"];
        for (name, told) in ["run_ns", "wait_ns"].into_iter().zip(&told) {
            let found = all[name].as_f64().expect("a number");
            // Beside the threads there is the one that waits for them, and the program's start.
            assert!(
                (found - told).abs() <= 0.05 * told + 1e8,
                "{threads} threads, {name}: {found}, by schedstat {told}"
            );
        }
        let share = told[1] / (told[0] + told[1]);
        match share {
            share if share > 0.15 => only(&report, "scheduling", &["Threads that could run wait for a CPU"]),
            share if share < 0.05 => assert_eq!(report.moved(), [""; 0], "{:#?}", report.advice()),
            // Close to the bound, where the start of the program decides.
            _ => {}
        }
        assert!(threads == 1 || share > 0.4, "each of the two waits while the other runs: {share}");
    }
}
