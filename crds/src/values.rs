// SPDX-License-Identifier: Apache-2.0
//! Values that are text in YAML and numbers in the program.
//!
//! Each type holds the text as written, so that an object read and written again is unchanged, beside the
//! number it stands for. Its pattern is in the schema: parsing accepts everything that the pattern accepts
//! (ranges that depend on the field are CEL rules at the field).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Why a text is not a value of its type; the message shows the text and what is expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ValueError {
    text: String,
    expected: &'static str,
}

impl ValueError {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(64).collect(), expected }
    }
}

/// A text type whose schema is a bounded string with a pattern.
macro_rules! text_value {
    ($name:ident, $pattern:expr, $max:expr) => {
        impl TryFrom<String> for $name {
            type Error = ValueError;
            fn try_from(text: String) -> Result<Self, ValueError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "minLength": 1, "maxLength": $max })
            }
        }
    };
}

/// A length of time: whole hours, minutes, seconds and milliseconds in that order, as `1h30m`, `5m`, `500ms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Interval {
    text: String,
    duration: Duration,
}

text_value!(Interval, r"^([0-9]{1,5}h)?([0-9]{1,7}m)?([0-9]{1,9}s)?([0-9]{1,12}ms)?$", 32);

impl Interval {
    /// A whole number of seconds.
    pub fn from_secs(seconds: u32) -> Self {
        Self { text: format!("{seconds}s"), duration: Duration::from_secs(seconds.into()) }
    }

    /// The length itself.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

impl FromStr for Interval {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error =
            || ValueError::new(text, "a length of time such as \"90s\", \"5m\", \"1h30m\" or \"500ms\"");
        const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
        let mut rest = text;
        let mut total: u64 = 0;
        let mut next = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 || digits > 12 {
                return Err(error());
            }
            let (number, tail) = rest.split_at(digits);
            let letters = tail.bytes().take_while(u8::is_ascii_lowercase).count();
            let (unit, tail) = tail.split_at(letters);
            let (at, &(_, millis)) =
                UNITS.iter().enumerate().skip(next).find(|(_, (name, _))| *name == unit).ok_or_else(error)?;
            let number: u64 = number.parse().map_err(|_| error())?;
            total = total.saturating_add(number.saturating_mul(millis));
            next = at + 1;
            rest = tail;
        }
        if text.is_empty() {
            return Err(error());
        }
        Ok(Self { text: text.to_owned(), duration: Duration::from_millis(total) })
    }
}

/// A number of bytes: digits, then optionally Ki, Mi, Gi, Ti (powers of 1024) or k, M, G, T (of 1000), as `64Mi`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize {
    text: String,
    bytes: u64,
}

text_value!(ByteSize, r"^[1-9][0-9]{0,14}(Ki|Mi|Gi|Ti|k|M|G|T)?$", 18);

impl ByteSize {
    /// The number of bytes; `u64::MAX` for what does not fit.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A whole number of mebibytes.
    pub fn from_mebibytes(mebibytes: u32) -> Self {
        Self { text: format!("{mebibytes}Mi"), bytes: u64::from(mebibytes) << 20 }
    }
}

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::new(text, "a number of bytes such as \"64Mi\", \"10Gi\" or \"1000000\"");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if digits == 0 || digits > 15 || number.starts_with('0') {
            return Err(error());
        }
        let factor: u64 = match unit {
            "" => 1,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            _ => return Err(error()),
        };
        let number: u64 = number.parse().map_err(|_| error())?;
        Ok(Self { text: text.to_owned(), bytes: number.saturating_mul(factor) })
    }
}

/// A share of CPU: thousandths of one CPU as `200m`, or whole CPUs as `2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cpu {
    text: String,
    millis: u32,
}

text_value!(Cpu, r"^[1-9][0-9]{0,5}m?$", 7);

impl Cpu {
    /// Thousandths of one CPU.
    pub fn millis(&self) -> u32 {
        self.millis
    }
}

impl FromStr for Cpu {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::new(text, "a share of CPU such as \"200m\" or \"2\"");
        let (number, factor) = match text.strip_suffix('m') {
            Some(number) => (number, 1),
            None => (text, 1_000),
        };
        if number.is_empty()
            || number.len() > 6
            || number.starts_with('0')
            || !number.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(error());
        }
        let number: u32 = number.parse().map_err(|_| error())?;
        Ok(Self { text: text.to_owned(), millis: number.saturating_mul(factor) })
    }
}

/// The name of a collector in lower camel case, as `tcpConnections`. Which ones exist is the catalogue's
/// business, not the schema's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CollectorName {
    text: String,
}

text_value!(CollectorName, r"^[a-z][A-Za-z0-9]*$", 63);

impl CollectorName {
    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for CollectorName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let named = text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.len() <= 63
            && text.bytes().all(|b| b.is_ascii_alphanumeric());
        if !named {
            return Err(ValueError::new(text, "a collector's name such as \"tcpConnections\""));
        }
        Ok(Self { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_in_every_unit() {
        let cases = [
            ("500ms", 500),
            ("90s", 90_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1h2m3s4ms", 3_723_004),
            ("0s", 0),
        ];
        for (text, millis) in cases {
            let interval: Interval = text.parse().unwrap();
            assert_eq!(interval.duration(), Duration::from_millis(millis), "{text}");
            assert_eq!(String::from(interval), text);
        }
    }

    #[test]
    fn intervals_in_another_form_are_refused() {
        for text in ["", "5", "m", "5m1h", "1.5h", "5 m", "-5m", "5m5m", "5us", "9999999999999ms"] {
            assert!(text.parse::<Interval>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_in_every_unit() {
        let cases =
            [("1", 1), ("64Mi", 64 << 20), ("10Gi", 10 << 30), ("5k", 5_000), ("2T", 2_000_000_000_000)];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
        assert_eq!("999999999999999Ti".parse::<ByteSize>().unwrap().bytes(), u64::MAX);
        for text in ["", "0", "-1", "1.5Gi", "Mi", "5mi", "5KiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn cpu_is_read_in_thousandths_and_whole_cpus() {
        assert_eq!("200m".parse::<Cpu>().unwrap().millis(), 200);
        assert_eq!("2".parse::<Cpu>().unwrap().millis(), 2_000);
        for text in ["", "m", "0", "0.5", "+1", "2c"] {
            assert!(text.parse::<Cpu>().is_err(), "{text}");
        }
    }

    #[test]
    fn collector_names_are_lower_camel_case() {
        assert_eq!("tcpConnections".parse::<CollectorName>().unwrap().as_str(), "tcpConnections");
        for text in ["", "TcpConnections", "tcp_connections", "tcp-connections", "tcp connections", "9p"] {
            assert!(text.parse::<CollectorName>().is_err(), "{text}");
        }
    }
}
