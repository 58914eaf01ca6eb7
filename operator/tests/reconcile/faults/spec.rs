// SPDX-License-Identifier: Apache-2.0
//! Specs of an enemy, as if the API server had let them through.

use crds::TraceSessionSpec;
use dataset::catalogue;
use proptest::prelude::*;
use serde_json::{Value, json};
use tracelake_operator::session::validate::validate;

use super::*;

fn hostile() -> impl Strategy<Value = String> {
    const WORDS: [&str; 9] =
        ["", "..", "kube-system/coredns", "(a+)+$", "{}%s", "$(reboot)", "\u{202e}x", "a\0b", "a\nb"];
    prop_oneof![
        3 => "[a-z0-9]([a-z0-9-]{0,12}[a-z0-9])?",
        2 => prop::sample::select(&WORDS[..]).prop_map(str::to_owned),
        1 => ".{0,30}",
        1 => (250_usize..2_000).prop_map(|length| "x".repeat(length)),
    ]
}

fn hostile_spec() -> impl Strategy<Value = Value> {
    let known: Vec<String> = catalogue::COLLECTORS.iter().map(|one| one.name.to_owned()).collect();
    let name = prop_oneof![3 => prop::sample::select(known), 1 => hostile()];
    let params = prop_oneof![
        2 => Just(Default::default()),
        1 => prop::collection::btree_map(hostile(), hostile(), 0..20),
    ];
    let collector = (name, params, any::<i64>(), any::<Option<i64>>()).prop_map(|(name, params, every, most)| {
        json!({"name": name, "params": params, "sampleEvery": every, "maxEventsPerSecond": most})
    });
    let target = prop_oneof![
        prop::collection::vec(hostile(), 0..300).prop_map(|names| json!({"podNames": names})),
        prop::collection::btree_map(hostile(), hostile(), 0..20)
            .prop_map(|labels| json!({"podSelector": {"matchLabels": labels}})),
        (hostile(), hostile(), prop::collection::vec(hostile(), 0..5)).prop_map(|(key, operator, values)| {
            json!({"podSelector": {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}})
        }),
        (hostile(), hostile()).prop_map(|(kind, name)| json!({"workloadRef": {"kind": kind, "name": name}})),
        Just(json!({"podNames": ["a"], "podSelector": {}})),
        Just(json!({})),
    ];
    let duration = prop_oneof![4 => Just("1m".to_owned()), 1 => hostile()];
    (target, prop::collection::vec(collector, 0..20), duration, prop::collection::vec(hostile(), 0..70))
        .prop_map(|(mut target, collectors, duration, containers)| {
            target["containers"] = json!(containers);
            json!({"target": target, "collectors": collectors, "duration": duration})
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn f26_what_the_api_server_let_through_is_checked_again(spec in hostile_spec()) {
        let Ok(spec) = serde_json::from_value::<TraceSessionSpec>(spec) else { return Ok(()) };
        match validate(&spec) {
            Ok(valid) => {
                for collector in &valid.collectors {
                    let params = collector.params.iter().map(|(name, value)| (name.clone(), value.clone()));
                    catalogue::validate(&collector.name, &params.collect()).unwrap();
                    prop_assert!(collector.sample_every >= 1);
                }
            }
            Err(rejection) => {
                prop_assert!(!rejection.reason.is_empty());
                prop_assert!(
                    !rejection.message.contains(['\n', '\0', '\u{202e}']) && rejection.message.len() < 32_768,
                    "{:?}", rejection.message
                );
            }
        }
    }
}

#[tokio::test]
async fn f26_a_session_finds_pods_of_its_own_namespace_only_whatever_it_names() {
    let spec = spec().replace(
        "{podSelector: {}}",
        "{podNames: [web-0, ../kube-system/pods/dns, kube-system/dns, '?watch=1']}",
    );
    let scenario = Scenario::new(&spec, "http://127.0.0.1:9");
    scenario.started();
    scenario.api.add_pod("web-0", "node-1");
    scenario.pass().await;
    let published = scenario.hub.published(UID).unwrap();
    let pods: Vec<_> = published.nodes.values().flat_map(|one| one.body.plan().targets).collect();
    assert_eq!(pods.iter().map(|pod| (&*pod.namespace, &*pod.pod)).collect::<Vec<_>>(), [("shop", "web-0")]);
    let asked = scenario.api.0.lock().unwrap().requests.clone();
    assert!(asked.iter().all(|(_, what)| !what.contains("kube-system") && !what.contains("..")), "{asked:?}");
}

#[tokio::test]
async fn f26_a_name_in_a_spec_or_of_a_pods_owner_becomes_no_other_request() {
    let spec = spec()
        .replace("{podSelector: {}}", "{workloadRef: {kind: Deployment, name: 'web?watch=true'}}")
        .replace("storeRef: {name: main}", "storeRef: {name: 'main?watch=true'}");
    let scenario = Scenario::new(&spec, "http://127.0.0.1:9");
    let pass = async || {
        let pass = tokio::time::timeout(Duration::from_secs(10), scenario.pass()).await;
        pass.expect("an answer that never ends is waited for");
    };
    pass().await;
    assert_eq!(scenario.condition(condition::STORE_READY).1, reason::STORE_NOT_FOUND);
    scenario.api.change("/apis/tracelake.dev/v1alpha1/clustertracestores/main", |store| {
        store["spec"]["credentials"]["secretRef"]["name"] = "key?watch=true".into();
    });
    scenario.started();
    let pod = json!({"metadata": {"name": "web-0", "namespace": "shop", "uid": "uid", "ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web?watch=true", "uid": "rs", "controller": true}]},
        "spec": {"nodeName": "node-1", "containers": []}, "status": {"phase": "Running"}});
    scenario.api.0.lock().unwrap().pods.push(pod);
    scenario.context.clock.advance(Duration::from_secs(60));
    pass().await;
    assert_eq!(scenario.condition(condition::STORE_READY).1, reason::SECRET_NOT_FOUND);
    assert_eq!(scenario.condition(condition::TARGETS_RESOLVED).1, reason::WORKLOAD_NOT_FOUND);
    let asked = scenario.api.0.lock().unwrap().requests.clone();
    for what in ["clustertracestores/main", "secrets/key", "deployments/web", "replicasets/web"] {
        let watch = asked.iter().find(|(_, asked)| asked.starts_with("WATCH") && asked.ends_with(what));
        assert!(watch.is_none(), "{watch:?}");
    }
}
