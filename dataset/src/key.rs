// SPDX-License-Identifier: Apache-2.0

//! Where every object of a session lies.
//!
//! In: names (namespace, session, uid, node, boot, table, sequence). Out: keys, and names back from
//! keys. Nothing is escaped and nothing repaired: a name that could leave its folder, be read as
//! another name, or be changed on its way into the store is an error.
//!
//! Invariant: `parse(key.relative()) == key`, and no two different names give one key. Boot, generation and
//! sequence have a fixed form, so a node's name may contain `_` or `.` without ambiguity.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use object_store::path::Path;

/// The folder of a session's own files; no table may have its name.
pub const INTERNAL: &str = "_tracelake";
/// Written first: [`SessionFile`](crate::manifest::SessionFile).
pub const SESSION_FILE: &str = "session.json";
/// Sequences are written with at least this many digits, so that names sort as numbers do.
const SEQUENCE_DIGITS: usize = 6;
const BOOT_DIGITS: usize = 32;
/// The longest name of a Kubernetes object.
const MAX_NAME: usize = 253;

/// A name that cannot be part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// `what` is empty, too long or holds a character outside `A-Z a-z 0-9 . _ -`, or starts with a dot.
    #[error(
        "{what} {value:?} cannot be part of a key: use 1 to {MAX_NAME} of A-Z a-z 0-9 . _ - and no leading dot"
    )]
    Name {
        /// Which name.
        what: &'static str,
        /// As given.
        value: String,
    },
    /// A boot id is not 32 lower-case hexadecimal digits.
    #[error("boot id {0:?} is not 32 lower-case hexadecimal digits")]
    Boot(String),
    /// A store's prefix is not a path of an object store.
    #[error("prefix {value:?} is not a path: {reason}")]
    Prefix {
        /// As given.
        value: String,
        /// What the path parser said.
        reason: String,
    },
    /// A key is none of this format.
    #[error("{0:?} is not the key of an object of a session")]
    Unknown(String),
}

/// Checks one path segment.
fn name(what: &'static str, value: &str) -> Result<Arc<str>, KeyError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if value.is_empty() || value.len() > MAX_NAME || value.starts_with('.') || !value.bytes().all(good) {
        return Err(KeyError::Name { what, value: value.to_owned() });
    }
    Ok(value.into())
}

/// One boot of one machine: the kernel's boot id without dashes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Boot(Arc<str>);

impl Boot {
    /// The id as text, 32 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same text, shared.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl FromStr for Boot {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != BOOT_DIGITS || !text.bytes().all(hex) {
            return Err(KeyError::Boot(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The folder of one session in a store: `<prefix>/<namespace>/<session>/<uid>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionPrefix(Path);

impl SessionPrefix {
    /// Composes the folder of a session. An empty `store_prefix` is the root of the store.
    ///
    /// # Errors
    /// When the prefix is not a path, or a name could not stand in one.
    pub fn new(store_prefix: &str, namespace: &str, session: &str, uid: &str) -> Result<Self, KeyError> {
        let root = Self::root(store_prefix)?;
        let (namespace, session, uid) =
            (name("namespace", namespace)?, name("session", session)?, name("uid", uid)?);
        Self::root(&join(root.0.as_ref(), &format!("{namespace}/{session}/{uid}")))
    }

    /// A folder that holds one session and nothing else, as `tracelake record` writes it.
    ///
    /// # Errors
    /// When `folder` is not a path.
    pub fn root(folder: &str) -> Result<Self, KeyError> {
        // `parse` keeps every character; `from` would change some.
        Path::parse(folder)
            .map(Self)
            .map_err(|error| KeyError::Prefix { value: folder.to_owned(), reason: error.to_string() })
    }

    /// The path of an object of this session.
    pub fn object(&self, key: &Key) -> Path {
        let relative = key.relative();
        Path::parse(join(self.0.as_ref(), &relative)).expect("names were checked when the key was made")
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The key of an object of this session, relative to this folder; none if it lies elsewhere.
    pub fn strip<'a>(&self, path: &'a Path) -> Option<&'a str> {
        let path = path.as_ref();
        match self.0.as_ref() {
            "" => Some(path),
            root => path.strip_prefix(root)?.strip_prefix('/'),
        }
    }
}

fn join(root: &str, rest: &str) -> String {
    if root.is_empty() { rest.to_owned() } else { format!("{root}/{rest}") }
}

impl fmt::Display for SessionPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_ref())
    }
}

/// One object of a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// `_tracelake/session.json`
    Session,
    /// `_tracelake/<node>_<boot>.json`, `_tracelake/<node>_<boot>_<generation>.json`
    NodeManifest {
        /// The node that wrote it.
        node: Arc<str>,
        /// The boot whose objects it lists.
        boot: Boot,
        /// As of a segment.
        generation: u64,
    },
    /// `_tracelake/manifest-<n>.json`
    Manifest {
        /// Rising; readers take the highest.
        number: u64,
    },
    /// `<table>/<node>_<boot>_<sequence>.parquet`, `<table>/<node>_<boot>_<generation>_<sequence>.parquet`
    Segment {
        /// The table, a folder.
        table: Arc<str>,
        /// The node that wrote it.
        node: Arc<str>,
        /// The boot during which its rows were made.
        boot: Boot,
        /// Zero for what the agent wrote; for what was merged since, the number of the manifest that was the first to name it.
        generation: u64,
        /// Rising per session, table and boot; gaps are segments that were never sealed. Of merged ones, that of the first.
        sequence: u64,
    },
}

impl Key {
    /// The key of a segment.
    ///
    /// # Errors
    /// When a name cannot stand in a key or `table` is the internal folder.
    pub fn segment(table: &str, node: &str, boot: &Boot, sequence: u64) -> Result<Self, KeyError> {
        if table == INTERNAL {
            return Err(KeyError::Name { what: "table", value: table.to_owned() });
        }
        Ok(Self::Segment {
            table: name("table", table)?,
            node: name("node", node)?,
            boot: boot.clone(),
            generation: 0,
            sequence,
        })
    }

    /// The key of what a node says about one of its boots.
    ///
    /// # Errors
    /// When the node's name cannot stand in a key.
    pub fn node_manifest(node: &str, boot: &Boot) -> Result<Self, KeyError> {
        Ok(Self::NodeManifest { node: name("node", node)?, boot: boot.clone(), generation: 0 })
    }

    /// Which generation it is of; zero for what is of none.
    pub fn generation(&self) -> u64 {
        match self {
            Self::NodeManifest { generation, .. } | Self::Segment { generation, .. } => *generation,
            Self::Session | Self::Manifest { .. } => 0,
        }
    }

    /// Whether a segment is of the node and boot of a node manifest.
    pub fn is_of_boot_of(&self, manifest: &Key) -> bool {
        match (self, manifest) {
            (Self::Segment { node, boot, .. }, Self::NodeManifest { node: of_node, boot: of_boot, .. }) => {
                node == of_node && boot == of_boot
            }
            _ => false,
        }
    }

    /// The same key of another generation. Files that have none stay as they are.
    pub fn of_generation(mut self, of: u64) -> Self {
        if let Self::NodeManifest { generation, .. } | Self::Segment { generation, .. } = &mut self {
            *generation = of;
        }
        self
    }

    /// The key of the session's manifest number `number`.
    pub fn manifest(number: u64) -> Self {
        Self::Manifest { number }
    }

    /// The key below the session's folder.
    pub fn relative(&self) -> String {
        match self {
            Self::Session => format!("{INTERNAL}/{SESSION_FILE}"),
            Self::NodeManifest { node, boot, generation: 0 } => format!("{INTERNAL}/{node}_{boot}.json"),
            Self::NodeManifest { node, boot, generation } => {
                format!("{INTERNAL}/{node}_{boot}_{generation}.json")
            }
            Self::Manifest { number } => format!("{INTERNAL}/manifest-{number}.json"),
            Self::Segment { table, node, boot, generation: 0, sequence } => {
                format!("{table}/{node}_{boot}_{sequence:0SEQUENCE_DIGITS$}.parquet")
            }
            Self::Segment { table, node, boot, generation, sequence } => {
                format!("{table}/{node}_{boot}_{generation}_{sequence:0SEQUENCE_DIGITS$}.parquet")
            }
        }
    }

    /// Reads a key relative to its session's folder.
    ///
    /// # Errors
    /// When it is not exactly what [`relative`](Self::relative) would write.
    pub fn parse(relative: &str) -> Result<Self, KeyError> {
        let key = Self::parse_parts(relative).ok_or_else(|| KeyError::Unknown(relative.to_owned()))?;
        // A number with leading zeros or a sign would be a second spelling of one key.
        if key.relative() == relative { Ok(key) } else { Err(KeyError::Unknown(relative.to_owned())) }
    }

    fn parse_parts(relative: &str) -> Option<Self> {
        let (folder, file) = relative.split_once('/')?;
        if folder != INTERNAL {
            let stem = file.strip_suffix(".parquet")?;
            let (rest, sequence) = stem.rsplit_once('_')?;
            let (node, boot, generation) = owner(rest)?;
            let segment = Self::segment(folder, node, &boot, sequence.parse().ok()?);
            return Some(segment.ok()?.of_generation(generation));
        }
        let stem = file.strip_suffix(".json")?;
        if file == SESSION_FILE {
            return Some(Self::Session);
        }
        // A node manifest first: its boot id has a fixed form, which `manifest-7` never has.
        if stem.contains('_') {
            let (node, boot, generation) = owner(stem)?;
            return Some(Self::node_manifest(node, &boot).ok()?.of_generation(generation));
        }
        Some(Self::manifest(stem.strip_prefix("manifest-")?.parse().ok()?))
    }
}

/// Node, boot and generation of `<node>_<boot>` or `<node>_<boot>_<generation>`: a number of 64 bits has fewer digits than a boot id.
fn owner(text: &str) -> Option<(&str, Boot, u64)> {
    let (rest, last) = text.rsplit_once('_')?;
    if let Ok(boot) = last.parse() {
        return Some((rest, boot, 0));
    }
    let (node, boot) = rest.rsplit_once('_')?;
    Some((node, boot.parse().ok()?, last.parse().ok()?))
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.relative())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "0123456789abcdef0123456789abcdef";

    fn boot() -> Boot {
        BOOT.parse().unwrap()
    }

    #[test]
    fn every_key_is_read_back_as_it_was_written() {
        for node in ["node-1", "a.b.c", "odd_node_name", "manifest-3"] {
            for key in [
                Key::Session,
                Key::manifest(0),
                Key::manifest(12),
                Key::node_manifest(node, &boot()).unwrap(),
                Key::segment("processes", node, &boot(), 7).unwrap(),
                Key::segment("processes", node, &boot(), 12_345_678).unwrap(),
                Key::segment("processes", node, &boot(), 7).unwrap().of_generation(3),
                Key::segment("processes", &format!("{node}_{BOOT}_3"), &boot(), 7).unwrap(),
                Key::segment("processes", node, &boot(), 7).unwrap().of_generation(u64::MAX),
                Key::node_manifest(node, &boot()).unwrap().of_generation(3),
                Key::node_manifest(&format!("{node}_{BOOT}"), &boot()).unwrap(),
            ] {
                assert_eq!(Key::parse(&key.relative()), Ok(key.clone()), "{key}");
            }
        }
    }

    #[test]
    fn a_segments_key_names_its_session_table_node_boot_and_sequence() {
        let prefix = SessionPrefix::new("traces/prod", "shop", "checkout", "u-1").unwrap();
        let key = Key::segment("processes", "node-1", &boot(), 42).unwrap();
        assert_eq!(
            prefix.object(&key).as_ref(),
            format!("traces/prod/shop/checkout/u-1/processes/node-1_{BOOT}_000042.parquet")
        );
        assert_eq!(prefix.strip(&prefix.object(&key)), Some(key.relative().as_str()));
    }

    #[test]
    fn a_store_without_prefix_begins_with_the_namespace() {
        let prefix = SessionPrefix::new("", "shop", "checkout", "u-1").unwrap();
        assert_eq!(prefix.object(&Key::Session).as_ref(), "shop/checkout/u-1/_tracelake/session.json");
        assert_eq!(prefix.strip(&Path::parse("shop/checkout/u-10/x").unwrap()), None);
    }

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ü", "a\n", "a%2f", &"x".repeat(MAX_NAME + 1)] {
            assert!(SessionPrefix::new("p", bad, "s", "u").is_err(), "{bad:?}");
            assert!(SessionPrefix::new("p", "n", bad, "u").is_err(), "{bad:?}");
            assert!(Key::segment(bad, "node", &boot(), 0).is_err(), "{bad:?}");
            assert!(Key::segment("table", bad, &boot(), 0).is_err(), "{bad:?}");
        }
        assert!(SessionPrefix::new("a//b", "n", "s", "u").is_err());
        assert!(SessionPrefix::new("a/../b", "n", "s", "u").is_err());
        assert!(Key::segment(INTERNAL, "node", &boot(), 0).is_err());
    }

    #[test]
    fn other_spellings_of_a_key_are_refused() {
        for bad in [
            format!("processes/node_{BOOT}_42.parquet"),
            format!("processes/node_{BOOT}_+00042.parquet"),
            format!("processes/node_{BOOT}_0000042.parquet"),
            format!("processes/node_{}_000042.parquet", BOOT.to_uppercase()),
            format!("processes/deeper/node_{BOOT}_000042.parquet"),
            format!("_tracelake/node_{BOOT}_000042.parquet"),
            format!("processes/node_{BOOT}_0_000042.parquet"),
            format!("processes/node_{BOOT}_03_000042.parquet"),
            format!("processes/node_{BOOT}_3_4_000042.parquet"),
            format!("_tracelake/node_{BOOT}_0.json"),
            format!("_tracelake/node_{BOOT}_+3.json"),
            "_tracelake/manifest-01.json".into(),
            "_tracelake/manifest-.json".into(),
            "_tracelake/other.json".into(),
            "session.json".into(),
        ] {
            assert_eq!(Key::parse(&bad), Err(KeyError::Unknown(bad.clone())), "{bad}");
        }
    }

    #[test]
    fn the_stores_prefix_keeps_every_character() {
        let odd = "a b+c:d@e,f;g&h=i~j*k%l";
        assert_eq!(SessionPrefix::root(odd).unwrap().path().as_ref(), odd);
    }
}
