// SPDX-License-Identifier: Apache-2.0

//! Collectors and their parameters as flags give them: `-c processes,cpuSched -p processes.args=true`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use dataset::catalogue;

/// A collector's name, and its parameters.
pub(crate) type Chosen = (String, BTreeMap<String, String>);

/// Each collector once, in the order given, with what is said of it.
///
/// # Errors
/// A name or value that the catalogue does not know, with those that it does.
pub(crate) fn collectors(names: &[String], params: &[String]) -> Result<Vec<Chosen>> {
    let mut given: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    for param in params {
        let parts = param.split_once('=').and_then(|(name, value)| Some((name.split_once('.')?, value)));
        let ((collector, name), value) =
            parts.with_context(|| format!("{param:?} is not COLLECTOR.NAME=VALUE"))?;
        given.entry(collector).or_default().insert(name.to_owned(), value.to_owned());
    }
    if let Some(other) = given.keys().find(|collector| names.iter().all(|name| name != *collector)) {
        bail!("there is a parameter for {other:?}, which is not among the collectors {}", names.join(", "));
    }
    let mut chosen: Vec<Chosen> = Vec::new();
    for name in names {
        ensure!(chosen.iter().all(|(other, _)| other != name), "collector {name} is given twice");
        let params = given.remove(name.as_str()).unwrap_or_default();
        catalogue::validate(name, &params)?;
        chosen.push((name.clone(), params));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn refused(names: &str, params: &str) -> String {
        collectors(&words(names), &words(params)).unwrap_err().to_string()
    }

    #[test]
    fn each_collector_gets_its_own_parameters() {
        let chosen = collectors(
            &words("tcpConnections processes"),
            &words("tcpConnections.flushOpen=false processes.threads=true"),
        )
        .unwrap();
        let flush_open = BTreeMap::from([("flushOpen".to_owned(), "false".to_owned())]);
        assert_eq!(chosen[0], ("tcpConnections".to_owned(), flush_open));
        assert_eq!(chosen[1].1["threads"], "true");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_can() {
        assert!(refused("tcpConections", "").contains("known collectors: cpuSched, "));
        assert!(refused("processes", "processes.thread=true").contains("its parameters: "));
        assert!(refused("processes", "processes.threads=1").contains("expected true or false"));
        assert!(refused("processes", "threads=true").contains("is not COLLECTOR.NAME=VALUE"));
        assert!(
            refused("processes", "cpuSched.x=1").contains("not among the collectors processes"),
            "of another"
        );
        assert!(refused("processes processes", "").contains("given twice"));
    }
}
