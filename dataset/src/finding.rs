// SPDX-License-Identifier: Apache-2.0

//! What is not as a session's manifests say, and how it is told.
//!
//! In: what a [`reader`](crate::reader) found. Out: a sentence each, in which text of others is shown plain.

use std::fmt;

use crate::ledger::Imbalance;

/// What is shown of a text that a store holds.
pub(crate) const SHOWN: usize = 200;

/// Something that is not as the manifests say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A manifest lists an object that the store does not.
    Missing {
        /// Relative to the session's folder.
        key: String,
    },
    /// Store and manifest disagree about the length.
    Length {
        /// Relative to the session's folder.
        key: String,
        /// In the manifest, bytes.
        listed: u64,
        /// In the store, bytes.
        stored: u64,
    },
    /// The store holds a segment that no manifest lists, or a manifest whose place another took: not a part of the dataset.
    Unlisted {
        /// Relative to the session's folder.
        key: String,
    },
    /// An object that is none of this format.
    Unknown {
        /// Relative to the session's folder.
        key: String,
    },
    /// A node manifest lists a key that is not its own node's and boot's, or lists one twice.
    Foreign {
        /// The node manifest.
        manifest: String,
        /// The listed key.
        key: String,
    },
    /// The content is not what the manifest says.
    Content {
        /// Relative to the session's folder.
        key: String,
        /// What differs.
        reason: String,
    },
    /// A row of a ledger does not balance.
    Ledger(Imbalance),
    /// The ledger says another number of events or rows exported than the objects hold.
    Exported {
        /// The node manifest.
        manifest: String,
        /// The table.
        table: String,
        /// Events and rows, in the ledger.
        ledger: (u64, u64),
        /// Events and rows, in the listed objects.
        objects: (u64, u64),
    },
    /// The session's manifest does not agree with the node manifests.
    Manifest {
        /// What differs.
        reason: String,
    },
}

impl fmt::Display for Finding {
    /// What manifests and stores say is shown without control characters, and cut where it is long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |text: &str| plain(text, SHOWN);
        match self {
            Self::Missing { key } => write!(f, "{} is listed but not in the store", plain(key)),
            Self::Length { key, listed, stored } => {
                write!(f, "{} has {stored} bytes in the store, {listed} in the manifest", plain(key))
            }
            Self::Unlisted { key } => write!(f, "{} is in the store but in no manifest", plain(key)),
            Self::Unknown { key } => write!(f, "{} is not a file of this format", plain(key)),
            Self::Foreign { manifest, key } => {
                write!(f, "{} lists {}, which it does not own or lists twice", plain(manifest), plain(key))
            }
            Self::Content { key, reason } => write!(f, "{}: {}", plain(key), plain(reason)),
            Self::Ledger(imbalance) => f.write_str(&plain(&imbalance.to_string())),
            Self::Exported { manifest, table, ledger, objects } => write!(
                f,
                "{}: the ledger of {} says {} events in {} rows exported, its objects hold {} in {}",
                plain(manifest),
                plain(table),
                ledger.0,
                ledger.1,
                objects.0,
                objects.1
            ),
            Self::Manifest { reason } => write!(f, "the session's manifest: {}", plain(reason)),
        }
    }
}

/// Text of others as it may stand on a terminal, in a log or in a status: without control characters, and at most so many
/// characters of it.
pub fn plain(text: &str, most: usize) -> String {
    let mut plain = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == most {
            plain.push('…');
            break;
        }
        if c.is_control() { plain.extend(c.escape_default()) } else { plain.push(c) }
    }
    plain
}

impl Finding {
    /// Whether data that a manifest promises are wrong or absent. Objects that nobody lists do no harm: an upload
    /// may have reached the store after its session was given up.
    pub fn is_error(&self) -> bool {
        !matches!(self, Self::Unlisted { .. } | Self::Unknown { .. })
    }
}
