// SPDX-License-Identifier: Apache-2.0

//! Plans of an enemy: whatever is in them, what gets through is a plan, within its bounds.

use std::collections::BTreeSet;
use std::path::Path;

use node_agent::engine::TargetSpec;
use node_agent::pipeline::spool::Spool;
use node_agent::plan::{ValidPlan, validate};
use node_api::v1::{Budget, CollectorPlan, Container, Plan, SessionPlan, Target};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use prost::Message;

/// What a path, a shell, a format string or a regular expression would make something of, and what is long.
const HOSTILE: [&str; 14] = [
    "",
    ".",
    "..",
    "../../etc/shadow",
    "/etc/shadow",
    "a/b",
    "a\\b",
    "a\0b",
    "$(reboot)",
    "{}%s%n",
    "(a+)+$",
    "\u{202e}dop\u{200d}",
    "e\u{301}",
    "kube-system/secret",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        30 => "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
        2 => prop::sample::select(&HOSTILE[..]).prop_map(str::to_owned),
        1 => ".{0,40}",
        1 => (250_usize..300).prop_map(|length| "a".repeat(length)),
    ]
}

fn container() -> impl Strategy<Value = Container> {
    (word(), prop_oneof!["[0-9a-f]{64}", word()]).prop_map(|(name, id)| Container { name, id })
}

fn target() -> impl Strategy<Value = Target> {
    let containers = prop_oneof![9 => vec(container(), 0..3), 1 => vec(container(), 60..70)];
    (word(), word(), word(), prop_oneof![Just(String::new()), word()], any::<bool>(), containers).prop_map(
        |(pod_uid, namespace, pod, cgroup_name, host_network, containers)| Target {
            pod_uid,
            namespace,
            pod,
            cgroup_name,
            host_network,
            containers,
        },
    )
}

fn collector() -> impl Strategy<Value = CollectorPlan> {
    let known: Vec<String> =
        dataset::catalogue::COLLECTORS.iter().map(|collector| collector.name.to_owned()).collect();
    let name = prop_oneof![3 => prop::sample::select(known), 1 => word()];
    let params = prop_oneof![3 => Just(Default::default()), 1 => btree_map(word(), word(), 0..40)];
    (name, params, any::<u64>(), any::<u32>(), any::<u64>(), any::<bool>(), any::<bool>()).prop_map(
        |(name, params, interval_ms, sample_every, max_events_per_second, optional, whole)| {
            let params = params.into_iter().collect();
            let sha256 = Vec::new();
            let plan = CollectorPlan {
                name,
                params,
                interval_ms,
                sample_every,
                max_events_per_second,
                optional,
                sha256,
            };
            if whole { node_api::plan::sealed(plan) } else { plan }
        },
    )
}

fn session() -> impl Strategy<Value = SessionPlan> {
    let collectors = prop_oneof![3 => vec(collector(), 0..4), 1 => vec(collector(), 30..36)];
    // Of many pods what they have of their own is their number; making up each of them takes the time of all other cases.
    let many = (target(), 1_020_usize..1_030).prop_map(|(target, count)| {
        (0..count).map(|number| Target { pod_uid: format!("pod-{number}"), ..target.clone() }).collect()
    });
    let targets = prop_oneof![6 => vec(target(), 0..4), 1 => many];
    let containers = prop_oneof![4 => vec(word(), 0..3), 1 => vec(word(), 60..70)];
    let budget = proptest::option::of(
        (any::<u64>(), any::<u32>(), any::<bool>())
            .prop_map(|(events_per_second, cpu_millis, stop)| Budget { events_per_second, cpu_millis, stop }),
    );
    (word(), word(), word(), collectors, targets, containers, any::<u64>(), any::<u64>(), budget).prop_map(
        |(
            uid,
            namespace,
            name,
            collectors,
            targets,
            containers,
            rollover_interval_ms,
            rollover_bytes,
            budget,
        )| {
            SessionPlan {
                uid,
                namespace,
                name,
                collectors,
                targets,
                containers,
                rollover_interval_ms,
                rollover_bytes,
                budget,
            }
        },
    )
}

fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=253).contains(&text.len()) && !text.starts_with('.') && text.chars().all(good)
}

/// What holds of a plan that got through.
fn within_bounds(body: &SessionPlan, valid: &ValidPlan) {
    let ValidPlan { spec, targets, refused, .. } = valid;
    for name in [&body.uid, &body.namespace, &body.name] {
        assert!(is_name(name), "{name:?}");
    }
    let root = tempfile::tempdir().unwrap();
    let spool = Spool::open(root.path(), 0).unwrap();
    let folder = spool.session_dir(&spec.uid).unwrap();
    assert_eq!(folder.parent().map(Path::to_owned), Some(root.path().to_owned()), "a folder of the spool");

    assert!(spec.containers.len() <= 64 && spec.containers.iter().all(|name| is_name(name)));
    assert!(targets.len() <= 1_024);
    let mut uids = BTreeSet::new();
    for target in targets {
        let TargetSpec::Pod(pod) = target else { panic!("a plan names pods only: {target:?}") };
        assert!(uids.insert(&pod.uid), "{} is there twice", pod.uid);
        let names = [&pod.uid, &pod.namespace, &pod.pod].into_iter().chain(&pod.cgroup_name);
        let names = names.chain(pod.containers.iter().flat_map(|(name, id)| [name, id]));
        names.for_each(|name| assert!(is_name(name), "{name:?}"));
        assert!(pod.containers.len() <= 64);
    }
    assert!(spec.collectors.len() + refused.len() <= 32);
    for collector in &spec.collectors {
        dataset::catalogue::validate(&collector.name, &collector.params).unwrap();
        assert!((10..=3_600_000).contains(&collector.interval.as_millis()), "{:?}", collector.interval);
    }
    assert!((1..=3_600).contains(&spec.rollover_interval.as_secs()));
    assert!((64 << 10..=1 << 30).contains(&spec.rollover_bytes));
}

/// Nothing is believed of a body but what the checks let through.
fn check(body: &SessionPlan) -> bool {
    match validate(body, "hash") {
        Ok(valid) => {
            within_bounds(body, &valid);
            true
        }
        Err(error) => {
            // A refusal goes into a report and a log: a line of it, and not the whole of what was sent.
            let text = error.to_string();
            assert!(text.len() < 1_000 && !text.contains(['\n', '\0', '\u{202e}']), "{text:?}");
            false
        }
    }
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) }
}

#[test]
fn f26_of_hostile_plans_only_what_is_within_bounds_gets_through() {
    let through = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(config());
    let tried = runner.run(&session(), |body| {
        through.set(through.get() + u32::from(check(&body)));
        Ok(())
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
    assert!((20..380).contains(&through.get()), "of 400 plans {} got through", through.get());
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn f26_whatever_bytes_come_as_a_plan_are_refused_or_within_bounds(bytes in vec(any::<u8>(), 0..400)) {
        if let Ok(plan) = Plan::decode(bytes.as_slice()) {
            plan.bodies.iter().for_each(|body| _ = check(body));
        }
    }

    #[test]
    fn f26_a_plan_with_damaged_bytes_is_refused_or_within_bounds(
        at in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let good = SessionPlan {
            uid: "5e0e4a58-0000-4000-8000-000000000001".to_owned(),
            namespace: "shop".to_owned(),
            name: "checkout".to_owned(),
            collectors: vec![node_api::plan::sealed(CollectorPlan {
                name: "processes".to_owned(),
                params: [("args".to_owned(), "true".to_owned())].into(),
                ..CollectorPlan::default()
            })],
            targets: vec![Target {
                pod_uid: "0a4c6d1e-2f3b-4c5d-8e9f-a0b1c2d3e4f5".to_owned(),
                namespace: "shop".to_owned(),
                pod: "redis".to_owned(),
                containers: vec![Container { name: "app".to_owned(), id: "a".repeat(64) }],
                ..Target::default()
            }],
            rollover_interval_ms: 60_000,
            rollover_bytes: 1 << 26,
            ..SessionPlan::default()
        };
        assert!(check(&good), "the one that is damaged is good");
        let mut bytes = good.encode_to_vec();
        for (at, byte) in at {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(body) = SessionPlan::decode(bytes.as_slice()) {
            check(&body);
        }
    }
}
