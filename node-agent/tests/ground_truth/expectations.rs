// SPDX-License-Identifier: Apache-2.0

//! What each kind of machine can run, as a table that holds both ways: a collector that stops working
//! somewhere fails here, and so does one that begins to.
//!
//! The harness names the machine in `TRACELAKE_ENVIRONMENT`.

use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use tracelake_node_agent::engine::{CollectorSpec, CollectorState, Engine, EngineConfig, SessionSpec};

/// What a machine does with a collector.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
    /// It records.
    Runs,
    /// It says why not, with these words.
    #[allow(dead_code, reason = "every collector so far runs everywhere")]
    Unsupported(&'static str),
}

use Expected::Runs;

const COLLECTORS: [&str; 12] = [
    "cpuSched",
    "memoryRss",
    "nodeInfo",
    "packetDrops",
    "pageFaults",
    "processes",
    "tcpConnections",
    "tcpListenQueue",
    "tcpReceive",
    "tcpRetransmits",
    "tcpStates",
    "tcpThroughput",
];

/// Environment, then what each of [`COLLECTORS`] does there.
const TABLE: &[(&str, [Expected; 12])] = &[
    ("host", [Runs; 12]),
    ("vm-6.1", [Runs; 12]),
    ("vm-6.12", [Runs; 12]),
    ("vm-6.18", [Runs; 12]),
    ("vm-7", [Runs; 12]),
];

#[test]
fn every_collector_does_here_what_the_table_says() {
    let environment = std::env::var("TRACELAKE_ENVIRONMENT").expect(
        "TRACELAKE_ENVIRONMENT names this machine: host, vm-6.1, ... (cargo xtask test host sets it)",
    );
    let (_, expected) = TABLE
        .iter()
        .find(|(name, _)| *name == environment)
        .unwrap_or_else(|| panic!("{environment} is not in the table of expectations"));
    let found = Engine::capabilities();
    assert_eq!(found.len(), COLLECTORS.len(), "the table lists every collector: {found:?}");
    for (collector, expected) in COLLECTORS.iter().zip(expected) {
        let capability = found.iter().find(|capability| capability.collector == *collector);
        let capability = capability.unwrap_or_else(|| panic!("{collector} is not there"));
        match expected {
            Runs => assert!(capability.supported, "{collector} should run: {}", capability.reason),
            Expected::Unsupported(why) => {
                assert!(!capability.supported, "{collector} runs, the table says it does not");
                assert!(capability.reason.contains(why), "{collector}: {}", capability.reason);
            }
        }
    }
    // What is said of the kernel beforehand is one thing, what its verifier says another.
    let before = crate::verifier::loaded();
    let (sender, _out) = sync_channel(1);
    let mut engine = Engine::start(EngineConfig::default(), sender).expect("the engine starts");
    let runs = COLLECTORS.iter().zip(expected).filter(|(_, expected)| matches!(expected, Runs));
    let specs = runs.map(|(name, _)| CollectorSpec { name: (*name).to_owned(), ..CollectorSpec::default() });
    let all = engine.open(spec("all", specs.collect()));
    // What is attached only when asked for.
    let mut asked: Vec<(&str, &str)> = vec![("events", "true")];
    if has_fentry() {
        asked.push(("detail", "fexit"));
    }
    let asked = asked.into_iter().flat_map(|(name, value)| {
        let params = [(name.to_owned(), value.to_owned())].into();
        let faults = CollectorSpec { name: "pageFaults".to_owned(), params, ..CollectorSpec::default() };
        engine.open(spec(name, vec![faults])).expect("the session opens")
    });
    for outcome in asked.chain(all.expect("the session opens")) {
        assert_eq!(outcome.state, CollectorState::Running, "{}", outcome.collector);
    }
    crate::verifier::check(&environment, &before);
}

#[test]
fn a_session_that_insists_on_hooks_is_told_where_the_kernel_has_them_not() {
    for (name, param, value, why) in
        [("tcpReceive", "hooks", "full", "hooks=full"), ("pageFaults", "detail", "fexit", "page_fault_begin")]
    {
        let state = insists(name, param, value);
        if has_fentry() {
            assert_eq!(state, CollectorState::Running, "{name}");
        } else {
            let CollectorState::Unsupported { message, .. } = state else { panic!("{name} runs") };
            assert!(message.contains(why), "{message}");
        }
    }
}

/// Whether programs can be attached to functions of this kernel. Debian's kernels, which the VMs have, let them; of another
/// machine's nothing is known beforehand, but that all collectors find the same.
pub(crate) fn has_fentry() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let environment = std::env::var("TRACELAKE_ENVIRONMENT").expect("names this machine");
    environment.starts_with("vm-")
        || *FOUND.get_or_init(|| insists("tcpReceive", "hooks", "full") == CollectorState::Running)
}

/// What becomes of a collector whose session gives it this parameter.
fn insists(name: &str, param: &str, value: &str) -> CollectorState {
    let (sender, _out) = sync_channel(1);
    let mut engine = Engine::start(EngineConfig::default(), sender).expect("the engine starts");
    let params = [(param.to_owned(), value.to_owned())].into();
    let collector = CollectorSpec { name: name.to_owned(), params, ..CollectorSpec::default() };
    let outcomes = engine.open(spec(name, vec![collector]));
    let [outcome] = outcomes.expect("the session opens").try_into().expect("of one collector");
    outcome.state
}

fn spec(uid: &str, collectors: Vec<CollectorSpec>) -> SessionSpec {
    SessionSpec {
        uid: uid.into(),
        collectors,
        containers: Vec::new(),
        rollover_interval: Duration::from_secs(1),
        rollover_bytes: 1 << 20,
        budget: Default::default(),
    }
}
