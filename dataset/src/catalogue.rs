// SPDX-License-Identifier: Apache-2.0

//! Collectors, their tables and parameters: which names exist and which values they take.
//!
//! In: names and text parameters, from a resource, a plan or a command line. Out: parsed values with
//! defaults filled in, or an error that lists what is known. The declarations stand beside the
//! events in `node-agent-common`; this module adds the three tables that every session has and the
//! one parser that operator and agent share, so that neither accepts what the other refuses.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

pub use node_agent_common::catalogue::COLLECTORS;
pub use node_agent_common::table::{CollectorInfo, Column, ColumnType, Param, ParamType, Table};

use crate::bookkeeping;

/// A parsed value of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParamValue {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A duration.
    Duration(Duration),
    /// One of the declared words.
    Choice(&'static str),
    /// Some of the declared words; empty means all.
    Words(Vec<&'static str>),
    /// Inclusive ranges of ports; empty means all.
    Ports(Vec<(u16, u16)>),
}

/// A collector with all its parameters: those given, and defaults.
#[derive(Clone, Debug)]
pub struct ValidCollector {
    /// The declaration.
    pub info: &'static CollectorInfo,
    /// One value for every declared parameter.
    pub params: BTreeMap<&'static str, ParamValue>,
}

/// A name or a value that the catalogue does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogueError {
    /// No collector has this name.
    UnknownCollector {
        /// As given.
        name: String,
    },
    /// The collector has no parameter of this name.
    UnknownParam {
        /// The collector.
        collector: &'static str,
        /// As given.
        param: String,
    },
    /// The parameter does not take this value.
    InvalidParam {
        /// The collector.
        collector: &'static str,
        /// The parameter.
        param: &'static str,
        /// As given.
        value: String,
        /// What it takes instead.
        expected: String,
    },
}

impl fmt::Display for CatalogueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownCollector { name } => {
                let known: Vec<_> = COLLECTORS.iter().map(|collector| collector.name).collect();
                write!(f, "there is no collector {name:?}; known collectors: {}", known.join(", "))
            }
            Self::UnknownParam { collector, param } => {
                let info = self::collector(collector);
                let known: Vec<_> =
                    info.into_iter().flat_map(|info| info.params).map(|param| param.name).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                write!(f, "collector {collector} has no parameter {param:?}; its parameters: {known}")
            }
            Self::InvalidParam { collector, param, value, expected } => {
                write!(
                    f,
                    "parameter {param} of collector {collector} cannot be {value:?}: expected {expected}"
                )
            }
        }
    }
}

impl std::error::Error for CatalogueError {}

/// The collector of that name.
pub fn collector(name: &str) -> Option<&'static CollectorInfo> {
    node_agent_common::catalogue::collector(name)
}

/// Every table that a session may have, the three that are always there included.
pub fn tables() -> impl Iterator<Item = &'static Table> {
    node_agent_common::catalogue::TABLES.iter().copied().chain(bookkeeping::TABLES.iter().copied())
}

/// The table of that name.
pub fn table(name: &str) -> Option<&'static Table> {
    tables().find(|table| table.name == name)
}

/// Checks a collector's name and parameters, and fills in defaults.
///
/// # Errors
/// The first name or value that is not known, with those that are.
pub fn validate(name: &str, params: &BTreeMap<String, String>) -> Result<ValidCollector, CatalogueError> {
    let info = collector(name).ok_or_else(|| CatalogueError::UnknownCollector { name: name.to_owned() })?;
    if let Some(unknown) =
        params.keys().find(|given| info.params.iter().all(|param| param.name != given.as_str()))
    {
        return Err(CatalogueError::UnknownParam { collector: info.name, param: unknown.clone() });
    }
    let mut values = BTreeMap::new();
    for param in info.params {
        let text = params.get(param.name).map_or(param.default, String::as_str);
        let value = parse(&param.ty, text).ok_or_else(|| CatalogueError::InvalidParam {
            collector: info.name,
            param: param.name,
            value: text.to_owned(),
            expected: expected(&param.ty),
        })?;
        values.insert(param.name, value);
    }
    Ok(ValidCollector { info, params: values })
}

/// What a type of parameter takes, for messages and docs.
pub fn expected(ty: &ParamType) -> String {
    match ty {
        ParamType::Bool => "true or false".into(),
        ParamType::Integer { min, max } => format!("a whole number from {min} to {max}"),
        ParamType::Duration { min_ms, max_ms } => {
            format!("a duration from {} to {}, such as 250ms, 5s or 1m", millis(*min_ms), millis(*max_ms))
        }
        ParamType::Choice(words) => format!("one of {}", words.join(", ")),
        ParamType::Words(words) => format!("some of {}, separated by commas", words.join(", ")),
        ParamType::Ports { max } => format!("at most {max} ports or ranges, such as 443,8000-8080"),
    }
}

fn millis(ms: u64) -> String {
    match ms {
        ms if ms >= 60_000 && ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        ms if ms >= 1_000 && ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

fn parse(ty: &ParamType, text: &str) -> Option<ParamValue> {
    match ty {
        ParamType::Bool => text.parse().ok().map(ParamValue::Bool),
        ParamType::Integer { min, max } => {
            digits(text.strip_prefix('-').unwrap_or(text))?;
            text.parse().ok().filter(|value| (min..=max).contains(&value)).map(ParamValue::Integer)
        }
        ParamType::Duration { min_ms, max_ms } => {
            let ms = duration_ms(text).filter(|ms| (min_ms..=max_ms).contains(&ms))?;
            Some(ParamValue::Duration(Duration::from_millis(ms)))
        }
        ParamType::Choice(words) => {
            words.iter().find(|word| **word == text).map(|word| ParamValue::Choice(word))
        }
        ParamType::Words(_) if text.is_empty() => Some(ParamValue::Words(Vec::new())),
        ParamType::Words(words) => {
            let known = |given: &str| words.iter().copied().find(|word| *word == given);
            text.split(',').map(known).collect::<Option<_>>().map(ParamValue::Words)
        }
        ParamType::Ports { max } => ports(text).filter(|ranges| ranges.len() <= *max).map(ParamValue::Ports),
    }
}

fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

fn duration_ms(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    digits(number)?.parse::<u64>().ok()?.checked_mul(factor)
}

fn ports(text: &str) -> Option<Vec<(u16, u16)>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let port = |text: &str| digits(text)?.parse::<u16>().ok().filter(|port| *port > 0);
    text.split(',')
        .map(|entry| {
            let (low, high) = entry.split_once('-').unwrap_or((entry, entry));
            let range = (port(low)?, port(high)?);
            (range.0 <= range.1).then_some(range)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ty: ParamType, good: &[(&str, ParamValue)], bad: &[&str]) {
        for (text, value) in good {
            assert_eq!(parse(&ty, text).as_ref(), Some(value), "{text:?}");
        }
        for text in bad {
            assert_eq!(parse(&ty, text), None, "{text:?}");
        }
    }

    #[test]
    fn values_have_one_spelling_and_bounds() {
        use ParamValue::{Bool, Choice, Integer, Ports};
        check(
            ParamType::Bool,
            &[("true", Bool(true)), ("false", Bool(false))],
            &["", "True", "1", "yes", " true"],
        );
        let integer = ParamType::Integer { min: -2, max: 10 };
        check(
            integer,
            &[("-2", Integer(-2)), ("10", Integer(10))],
            &["", "-3", "11", "+1", "1.0", "1e1", "٣"],
        );
        let seconds = |s| ParamValue::Duration(Duration::from_secs(s));
        let duration = ParamType::Duration { min_ms: 1_000, max_ms: 3_600_000 };
        check(
            duration,
            &[("1s", seconds(1)), ("1000ms", seconds(1)), ("5m", seconds(300)), ("1h", seconds(3600))],
            &[
                "",
                "1",
                "s",
                "999ms",
                "2h",
                "1 s",
                "-1s",
                "1.5s",
                "99999999999999999999h",
                "18446744073709551615h",
            ],
        );
        check(ParamType::Choice(&["auto", "full"]), &[("full", Choice("full"))], &["", "Full", "auto,full"]);
        check(
            ParamType::Ports { max: 2 },
            &[
                ("", Ports(vec![])),
                ("443", Ports(vec![(443, 443)])),
                ("80,8000-8080", Ports(vec![(80, 80), (8000, 8080)])),
            ],
            &["0", "65536", "80-", "-80", "90-80", "80,", "1,2,3", "80 ,81", "http"],
        );
    }

    #[test]
    fn an_unknown_collector_is_refused_with_the_known_ones_named() {
        let error = validate("processess", &BTreeMap::new()).unwrap_err().to_string();
        for collector in COLLECTORS {
            assert!(error.contains(collector.name), "{error}");
        }
    }

    #[test]
    fn an_unknown_parameter_is_refused_with_the_known_ones_named() {
        for collector in COLLECTORS {
            let params = BTreeMap::from([("noSuchParameter".to_owned(), "1".to_owned())]);
            let error = validate(collector.name, &params).unwrap_err().to_string();
            for param in collector.params {
                assert!(error.contains(param.name), "{error}");
            }
        }
    }

    #[test]
    fn every_declared_default_is_valid_and_every_parameter_gets_a_value() {
        for collector in COLLECTORS {
            let valid = validate(collector.name, &BTreeMap::new()).unwrap();
            assert_eq!(valid.params.len(), collector.params.len(), "{}", collector.name);
        }
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_the_range() {
        for collector in COLLECTORS {
            for param in collector.params {
                let params = BTreeMap::from([(param.name.to_owned(), "no such value".to_owned())]);
                let error = validate(collector.name, &params).unwrap_err().to_string();
                assert!(error.contains(&expected(&param.ty)) && error.contains(param.name), "{error}");
            }
        }
    }

    #[test]
    fn names_of_tables_are_unique_and_no_column_is_named_like_a_part_of_a_path() {
        let mut names: Vec<_> = tables().map(|table| table.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        for table in tables() {
            for column in table.columns {
                assert!(!names.contains(&column.name), "{}.{}", table.name, column.name);
            }
        }
    }
}
