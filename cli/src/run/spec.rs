// SPDX-License-Identifier: Apache-2.0

//! The `TraceSession` that `tracelake run` makes: from flags, or from a file.
//!
//! Out: the object with what was said and nothing more; defaults are the API server's. Names of collectors and parameters in flags
//! are checked here, since a session with a mistyped one would be made and then fail; all else the API server checks.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use crds::{ByteSize, Cpu, GROUP, Interval, OnExceeded, StoreKind, VERSION, WorkloadKind};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::selector;
use crate::{params, program};

/// What a session without a name is called, before what the API server adds.
const GENERATED: &str = "trace-";

/// The session in flags.
#[derive(Debug, clap::Args)]
#[group(id = "flags", multiple = true)]
pub(crate) struct Flags {
    /// Record the pods with these labels, as `app=shop,tier in (web, api),!test`.
    #[arg(short = 'l', long, group = "which")]
    selector: Option<String>,
    /// Record the pods of a workload: KIND/NAME, as `deployment/checkout`.
    #[arg(short, long, value_name = "KIND/NAME", group = "which")]
    workload: Option<String>,
    /// Record these pods, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', group = "which")]
    pods: Vec<String>,
    /// Record every pod of the namespace.
    #[arg(long, group = "which")]
    all_pods: bool,
    /// Only these containers of the pods, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    containers: Vec<String>,
    /// Collectors, separated by commas. `tracelake collectors` lists them.
    #[arg(short, long, value_delimiter = ',', default_value = "processes,tcpConnections")]
    collectors: Vec<String>,
    /// A parameter of a collector: COLLECTOR.NAME=VALUE.
    #[arg(short, long = "param", value_name = "COLLECTOR.NAME=VALUE")]
    params: Vec<String>,
    /// How long to record, as 90s, 5m or 1h30m.
    #[arg(short, long, default_value = "1m")]
    duration: Interval,
    /// The store for the data: NAME of a ClusterTraceStore, or tracestore/NAME of one in the namespace; left out: the
    /// cluster's default.
    #[arg(long)]
    store: Option<String>,
    /// The session's name; left out: a new one.
    #[arg(long)]
    name: Option<String>,
    /// End when this many bytes are in the store, as 10Gi.
    #[arg(long, value_name = "SIZE")]
    budget_bytes: Option<ByteSize>,
    /// Events per second that may become rows on one node.
    #[arg(long, value_name = "NUMBER")]
    budget_events_per_second: Option<i64>,
    /// CPU that one node's agent may spend, as 200m.
    #[arg(long, value_name = "CPU")]
    budget_cpu: Option<Cpu>,
    /// What happens above the two of a node: Sample (the default) or Stop.
    #[arg(long, value_name = "WHAT")]
    budget_exceeded: Option<String>,
    /// Seconds after its end when the session is deleted; the data stay.
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u32>,
}

impl Flags {
    /// The object.
    ///
    /// # Errors
    /// When a flag says nothing that can be meant.
    pub(crate) fn object(&self) -> Result<Value> {
        let collectors = params::collectors(&self.collectors, &self.params)
            .with_context(|| {
                let program = program();
                format!("`{program} collectors` says what there is; what only a newer operator knows goes into a file (-f)")
            })?;
        let collectors: Vec<Value> = collectors
            .into_iter()
            .map(|(name, params)| match params.is_empty() {
                true => json!({ "name": name }),
                false => json!({ "name": name, "params": params }),
            })
            .collect();
        let mut spec =
            json!({ "target": self.target()?, "collectors": collectors, "duration": self.duration });
        if let Some(store) = &self.store {
            spec["storeRef"] = store_ref(store)?;
        }
        let budget = self.budget()?;
        if !budget.is_empty() {
            spec["budget"] = Value::Object(budget);
        }
        if let Some(ttl) = self.ttl {
            spec["ttlSecondsAfterFinished"] = json!(ttl);
        }
        let metadata = match &self.name {
            Some(name) => json!({ "name": name }),
            None => json!({ "generateName": GENERATED }),
        };
        Ok(json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "TraceSession", "metadata": metadata, "spec": spec,
        }))
    }

    fn target(&self) -> Result<Value> {
        let mut target = if let Some(text) = &self.selector {
            json!({ "podSelector": selector::parse(text)? })
        } else if let Some(text) = &self.workload {
            json!({ "workloadRef": workload(text)? })
        } else if !self.pods.is_empty() {
            json!({ "podNames": self.pods })
        } else if self.all_pods {
            json!({ "podSelector": {} })
        } else {
            bail!(
                "nothing to record: say which pods with -l LABELS, --workload KIND/NAME, --pods NAMES or --all-pods, or give a \
                 file with -f"
            );
        };
        if !self.containers.is_empty() {
            target["containers"] = json!(self.containers);
        }
        Ok(target)
    }

    fn budget(&self) -> Result<Map<String, Value>> {
        let mut budget = Map::new();
        let mut set = |field: &str, value: Option<Value>| {
            if let Some(value) = value {
                budget.insert(field.to_owned(), value);
            }
        };
        set("bytes", self.budget_bytes.as_ref().map(|bytes| json!(bytes)));
        set("eventsPerSecond", self.budget_events_per_second.map(|events| json!(events)));
        set("cpu", self.budget_cpu.as_ref().map(|cpu| json!(cpu)));
        if let Some(text) = &self.budget_exceeded {
            let what = OnExceeded::deserialize(Value::from(text.as_str()))
                .ok()
                .with_context(|| format!("--budget-exceeded is Sample or Stop, not {text:?}"))?;
            set("onExceeded", Some(json!(what)));
        }
        Ok(budget)
    }
}

/// Kinds by the words that kubectl takes for them.
const WORKLOADS: [(WorkloadKind, &[&str]); 6] = [
    (WorkloadKind::Deployment, &["deployment", "deployments", "deploy"]),
    (WorkloadKind::StatefulSet, &["statefulset", "statefulsets", "sts"]),
    (WorkloadKind::DaemonSet, &["daemonset", "daemonsets", "ds"]),
    (WorkloadKind::ReplicaSet, &["replicaset", "replicasets", "rs"]),
    (WorkloadKind::Job, &["job", "jobs"]),
    (WorkloadKind::CronJob, &["cronjob", "cronjobs", "cj"]),
];

fn workload(text: &str) -> Result<Value> {
    let (word, name) = text.split_once('/').with_context(|| format!("{text:?} is not KIND/NAME"))?;
    let word = word.to_lowercase();
    let kind = WORKLOADS.iter().find(|(_, words)| words.contains(&word.as_str()));
    let (kind, _) = kind.with_context(|| {
        let known: Vec<_> = WORKLOADS.iter().map(|(kind, _)| format!("{kind:?}")).collect();
        format!("{word:?} is no kind of workload; known: {}", known.join(", "))
    })?;
    Ok(json!({ "kind": kind, "name": name }))
}

fn store_ref(text: &str) -> Result<Value> {
    let (kind, name) = match text.split_once('/') {
        None => (StoreKind::ClusterTraceStore, text),
        Some((word, name)) => match word.to_lowercase().as_str() {
            "clustertracestore" => (StoreKind::ClusterTraceStore, name),
            "tracestore" => (StoreKind::TraceStore, name),
            _ => bail!("{word:?} is no kind of store: it is clustertracestore or tracestore"),
        },
    };
    Ok(json!({ "kind": kind, "name": name }))
}

/// The one `TraceSession` of a file.
///
/// # Errors
/// When it cannot be read, or holds something else.
pub(crate) fn read(path: &Path) -> Result<Value> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("standard input cannot be read")?;
    } else {
        text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    }
    parse(&text).with_context(|| format!("{} is no TraceSession", path.display()))
}

fn parse(text: &str) -> Result<Value> {
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        documents.push(Value::deserialize(document)?);
    }
    documents.retain(|document| !document.is_null());
    ensure!(
        documents.len() == 1,
        "it holds {} objects: one session is run at a time, `kubectl create -f` makes several",
        documents.len()
    );
    let object = documents.remove(0);
    let of = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    let (version, kind) = (of("apiVersion"), of("kind"));
    ensure!(
        version == format!("{GROUP}/{VERSION}") && kind == "TraceSession",
        "it holds apiVersion {version:?} and kind {kind:?}, not {GROUP}/{VERSION} and TraceSession"
    );
    ensure!(object["metadata"].is_object() && object["spec"].is_object(), "it has no metadata or no spec");
    Ok(object)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use crds::TraceSession;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        flags: Flags,
    }

    fn object(line: &str) -> Result<Value, String> {
        let parsed = Only::try_parse_from(["run"].into_iter().chain(line.split_whitespace()));
        parsed.map_err(|error| error.to_string())?.flags.object().map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn flags_become_what_they_say_and_nothing_more() {
        let made = object("-l app=shop").unwrap();
        let spec = json!({ "target": { "podSelector": { "matchLabels": { "app": "shop" } } }, "duration": "1m",
            "collectors": [{ "name": "processes" }, { "name": "tcpConnections" }] });
        assert_eq!(made["spec"], spec);
        assert_eq!(made["metadata"], json!({ "generateName": "trace-" }));

        let made = object(
            "--workload sts/redis --containers app,sidecar -c processes,cpuSched -p processes.threads=true -d 1h30m \
             --store tracestore/mine --name x --budget-bytes 10Gi --budget-events-per-second 5000 --budget-cpu 200m \
             --budget-exceeded Stop --ttl 60",
        )
        .unwrap();
        let spec = json!({
            "target": { "workloadRef": { "kind": "StatefulSet", "name": "redis" }, "containers": ["app", "sidecar"] },
            "collectors": [{ "name": "processes", "params": { "threads": "true" } }, { "name": "cpuSched" }],
            "duration": "1h30m", "storeRef": { "kind": "TraceStore", "name": "mine" }, "ttlSecondsAfterFinished": 60,
            "budget": { "bytes": "10Gi", "eventsPerSecond": 5000, "cpu": "200m", "onExceeded": "Stop" },
        });
        assert_eq!(made["spec"], spec);
        assert_eq!(made["metadata"], json!({ "name": "x" }));
        for line in ["--pods a,b", "--all-pods", "-w Deployment/x --store default"] {
            let made = object(line).unwrap();
            let read: TraceSession = serde_json::from_value(made.clone()).unwrap();
            // Everything that was said is a field of the kind.
            let again = serde_json::to_value(&read).unwrap();
            assert_eq!(again["spec"]["target"], made["spec"]["target"], "{line}");
        }
    }

    #[test]
    fn flags_that_cannot_be_meant_are_refused_with_what_can() {
        let cases = [
            ("", "nothing to record: say which pods with -l"),
            ("-l a=b --all-pods", "cannot be used with"),
            ("--all-pods -c tcpConections", "known collectors: "),
            ("--all-pods -p processes.threads=maybe", "expected true or false"),
            ("--all-pods -d 5", "5m"),
            ("--all-pods --budget-cpu 0.5", "200m"),
            ("--all-pods --budget-exceeded stop", "Sample or Stop"),
            ("--all-pods --store s3/x", "clustertracestore or tracestore"),
            ("-w pod/x", "known: Deployment, "),
            ("-w checkout", "is not KIND/NAME"),
        ];
        for (line, words) in cases {
            let refused = object(line).unwrap_err();
            assert!(refused.contains(words), "{line:?}: {refused}");
        }
    }

    #[test]
    fn every_example_session_is_read_and_other_objects_are_not() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut sessions = 0;
        for folder in ["examples", "crds/examples"] {
            for entry in fs::read_dir(root.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if !name.ends_with(".yaml") {
                    continue;
                }
                let is_session = name.starts_with("tracesession");
                sessions += usize::from(is_session);
                assert_eq!(read(&path).is_ok(), is_session, "{}: {:?}", path.display(), read(&path));
            }
        }
        assert!(sessions >= 4);
        let both = "apiVersion: tracelake.dev/v1alpha1\nkind: TraceSession\nmetadata: {}\nspec: {}\n";
        assert!(parse(&format!("---\n{both}---\n")).is_ok());
        assert!(parse(&format!("{both}---\n{both}")).unwrap_err().to_string().contains("2 objects"));
        assert!(parse("").is_err() && parse("a: [").is_err());
    }
}
