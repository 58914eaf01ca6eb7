// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Keys and values of the maps by which hooks find out whether anybody asked for what they see.
//!
//! A session holds one of 64 slots; a set of sessions is a mask of slots. Cgroup ids and pod UIDs map to masks.

use crate::event;

/// Sessions a node can record at the same time.
pub const SLOTS: u32 = 64;

/// Cgroups that can be targets at the same time; beyond it a cgroup is not traced and counted as such.
pub const MAX_TARGETS: u32 = 16_384;

/// Bytes that say of a cgroup's id whether it may be a target's: see [`hint`].
pub const HINTS: u32 = 16_384;

/// The byte of a cgroup's id. It is set before the cgroup becomes a target and never cleared, so one that is 0 spares a hook
/// the look into the map of targets, which costs it five times as much.
pub const fn hint(cgroup_id: u64) -> u32 {
    cgroup_id as u32 % HINTS
}

/// Pods that can be waited for at the same time.
pub const MAX_PODS: u32 = 4_096;

/// [`Event::TABLE`](crate::event::Event::TABLE) of records that become no row.
pub const CONTROL: u32 = u32::MAX;

/// A pod's UID as its cgroup spells it, separators normalised to `-`. Static pods have the 32 digits of their
/// configuration's hash instead, followed by zeros.
pub type PodKey = [u8; 36];

/// Longest cgroup name that the kernel side passes on, including the NUL.
pub const CGROUP_NAME: usize = 128;

/// The key of a pod by the name in its cgroup: a UID (36 characters, `_` or `-`) or a hash (32); `None` for others.
pub fn pod_key(name: &str) -> Option<PodKey> {
    let bytes = name.as_bytes();
    if bytes.len() != 36 && bytes.len() != 32 {
        return None;
    }
    let mut key = [0; 36];
    for (i, &byte) in bytes.iter().enumerate() {
        let separator = bytes.len() == 36 && matches!(i, 8 | 13 | 18 | 23);
        key[i] = match byte {
            b'-' | b'_' if separator => b'-',
            b'0'..=b'9' | b'a'..=b'f' if !separator => byte,
            _ => return None,
        };
    }
    Some(key)
}

event! {
    /// A cgroup was made inside a target: the kernel has entered it in the target map already.
    pub struct CgroupMade: tag 1, table CONTROL => {
        /// Id of the cgroup above.
        parent_id: u64,
        /// Last part of the path, NUL-terminated.
        name: [u8; CGROUP_NAME],
    }
}

event! {
    /// A cgroup that was a target is gone: the kernel has taken it out of the target map already.
    pub struct CgroupGone: tag 2, table CONTROL => {
        /// Zero.
        unused: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uid_has_one_key_in_both_spellings_and_a_hash_its_own() {
        let plain = pod_key("0a1b2c3d-0000-4111-8222-0123456789ab").unwrap();
        assert_eq!(pod_key("0a1b2c3d_0000_4111_8222_0123456789ab"), Some(plain));
        assert_eq!(&pod_key("0123456789abcdef0123456789abcdef").unwrap()[30..], b"ef\0\0\0\0");
        for wrong in
            ["", "kubepods", "0a1b2c3d-0000-4111-8222-0123456789a", "0a1b2c3d-0000-4111-8222/0123456789ab"]
        {
            assert_eq!(pod_key(wrong), None, "{wrong}");
        }
    }
}
