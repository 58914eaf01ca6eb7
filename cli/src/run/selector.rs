// SPDX-License-Identifier: Apache-2.0

//! Labels as kubectl's `-l` takes them: `app=shop,tier in (web, api),track!=canary,!test`.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use crds::{PodSelector, SelectorOperator, SelectorRequirement};

/// A selector of pods.
///
/// # Errors
/// When it is none; the API server checks keys and values.
pub(crate) fn parse(text: &str) -> Result<PodSelector> {
    let mut selector = PodSelector { match_labels: BTreeMap::new(), match_expressions: Vec::new() };
    for part in parts(text)? {
        let requirement = |key: &str, operator, values: Vec<&str>| SelectorRequirement {
            key: key.trim().to_owned(),
            operator,
            values: values.into_iter().map(|value| value.trim().to_owned()).collect(),
        };
        let found = if let Some((key, values)) = set(part) {
            let values = values.split(',').collect();
            match key.rsplit_once(char::is_whitespace) {
                Some((key, "in")) => requirement(key, SelectorOperator::In, values),
                Some((key, "notin")) => requirement(key, SelectorOperator::NotIn, values),
                _ => bail!("{part:?} is no requirement on a label: a set comes after `in` or `notin`"),
            }
        } else if let Some((key, value)) = part.split_once("!=") {
            requirement(key, SelectorOperator::NotIn, vec![value])
        } else if let Some((key, value)) = part.split_once('=') {
            let value = value.strip_prefix('=').unwrap_or(value).trim().to_owned();
            let key = key.trim().to_owned();
            match selector.match_labels.get(&key) {
                Some(other) if *other != value => {
                    bail!("no pod has label {key} both as {other:?} and {value:?}")
                }
                _ => selector.match_labels.insert(key, value),
            };
            continue;
        } else if let Some(key) = part.strip_prefix('!') {
            requirement(key, SelectorOperator::DoesNotExist, Vec::new())
        } else {
            requirement(part, SelectorOperator::Exists, Vec::new())
        };
        selector.match_expressions.push(found);
    }
    let keys = selector.match_labels.keys().chain(selector.match_expressions.iter().map(|one| &one.key));
    for key in keys {
        let is_key = !key.is_empty() && !key.contains(|c: char| c.is_whitespace() || "()!=,".contains(c));
        ensure!(is_key, "{text:?} is no selector: {key:?} is not the name of a label");
    }
    Ok(selector)
}

/// What stands between commas that are in no parentheses.
fn parts(text: &str) -> Result<Vec<&str>> {
    let (mut parts, mut begin, mut inside) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '(' | ')' => {
                ensure!(inside == (c == ')'), "{text:?} is no selector: its parentheses do not match");
                inside = c == '(';
            }
            ',' if !inside => {
                parts.push(text[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    ensure!(!inside, "{text:?} is no selector: its parentheses do not match");
    parts.push(text[begin..].trim());
    ensure!(
        parts.iter().all(|part| !part.is_empty()),
        "{text:?} is no selector: a requirement is missing; --all-pods selects every pod"
    );
    Ok(parts)
}

/// `KEY in` and the values of `KEY in (VALUES)`.
fn set(part: &str) -> Option<(&str, &str)> {
    let (key, values) = part.strip_suffix(')')?.split_once('(')?;
    Some((key.trim(), values))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(text: &str) -> Value {
        serde_json::to_value(parse(text).unwrap()).unwrap()
    }

    #[test]
    fn every_form_of_kubectl_is_read() {
        assert_eq!(parsed("app=shop"), json!({ "matchLabels": { "app": "shop" } }));
        assert_eq!(parsed("app == shop , x="), json!({ "matchLabels": { "app": "shop", "x": "" } }));
        let expressions = json!({ "matchLabels": { "app.kubernetes.io/name": "shop" }, "matchExpressions": [
            { "key": "tier", "operator": "In", "values": ["web", "api"] },
            { "key": "track", "operator": "NotIn", "values": ["canary"] },
            { "key": "zone", "operator": "NotIn", "values": ["a"] },
            { "key": "test", "operator": "DoesNotExist" },
            { "key": "owner", "operator": "Exists" },
        ] });
        let text = "app.kubernetes.io/name=shop,tier in (web, api),track!=canary,zone notin (a),!test,owner";
        assert_eq!(parsed(text), expressions);
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in [
            "",
            "a=b,",
            "a in (b",
            "a in b)",
            "a of (b)",
            "in (b)",
            "=b",
            "!",
            "a b",
            "a=1,a=2",
            "a in ((b))",
        ] {
            assert!(parse(text).is_err(), "{text:?}: {:?}", parse(text));
        }
        assert!(parse("").unwrap_err().to_string().contains("--all-pods"));
    }
}
