// SPDX-License-Identifier: Apache-2.0
//! Names a session's plan for one node by what it says.
//!
//! In: a [`SessionPlan`]. Out: a [`Body`] to keep, and the hash that [`SessionRef::hash`](crate::v1::SessionRef) carries, so
//! that a body crosses the wire once however often the plan is sent. Maps are ordered and protobuf
//! writes fields in the order of their numbers, so equal plans have equal hashes on both sides.
//!
//! A body that carries a field which the receiver does not know hashes differently after decoding
//! (the field is gone): [`matches()`] tells an agent that it holds less than the operator meant, [`is_whole()`] of which
//! collector.

use prost::Message;
use sha2::{Digest, Sha256};

use crate::v1::{CollectorPlan, SessionPlan, Target};

/// Pods of one session on one node; a plan that names more is refused.
pub const TARGETS_MAX: usize = 1_024;
/// Containers of one of them, with those that they replaced: the same.
pub const CONTAINERS_MAX: usize = 64;
/// Bytes of a session's targets on one node, and of the bodies in one message unless it has one alone: half of what a
/// message may have.
pub const BYTES_MAX: usize = MESSAGE_MAX / 2;
/// Neither side takes a longer message.
pub const MESSAGE_MAX: usize = 8 << 20;

/// SHA-256 of the plan's encoding, 64 lower-case hex digits.
pub fn hash(plan: &SessionPlan) -> String {
    name(&plan.encode_to_vec())
}

fn name(encoded: &[u8]) -> String {
    hex::encode(Sha256::digest(encoded))
}

/// A plan as the operator holds one for each node of each session: encoded, as that takes less memory, with its name.
#[derive(Clone, Debug, Eq)]
pub struct Body {
    encoded: Box<[u8]>,
    hash: Box<str>,
}

impl Body {
    /// Of this plan.
    pub fn of(plan: &SessionPlan) -> Self {
        let encoded = plan.encode_to_vec();
        Self { hash: name(&encoded).into(), encoded: encoded.into() }
    }

    /// [`hash()`] of the plan.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// How many bytes of a message it takes.
    pub fn bytes(&self) -> usize {
        self.encoded.len()
    }

    /// The plan.
    pub fn plan(&self) -> SessionPlan {
        SessionPlan::decode(&*self.encoded).expect("it was encoded here")
    }
}

/// Equal plans have equal names.
impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

/// How many bytes of a plan a target takes.
pub fn bytes(target: &Target) -> usize {
    target.encoded_len()
}

/// Whether `plan` as decoded here is the whole of what `hash` names.
pub fn matches(plan: &SessionPlan, hash: &str) -> bool {
    self::hash(plan) == hash
}

/// The collector's plan with the digest by which a receiver notices that it does not know all of it.
pub fn sealed(collector: CollectorPlan) -> CollectorPlan {
    CollectorPlan { sha256: digest(&collector), ..collector }
}

/// Whether a collector's plan as decoded here is the whole of what the sender meant, as far as the sender told.
pub fn is_whole(collector: &CollectorPlan) -> bool {
    collector.sha256.is_empty() || collector.sha256 == digest(collector)
}

fn digest(collector: &CollectorPlan) -> Vec<u8> {
    let bare = CollectorPlan { sha256: Vec::new(), ..collector.clone() };
    Sha256::digest(bare.encode_to_vec()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(params: &[(&str, &str)]) -> SessionPlan {
        let params = params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let collector = CollectorPlan { name: "processes".to_owned(), params, ..Default::default() };
        SessionPlan { uid: "u".to_owned(), collectors: vec![collector], ..Default::default() }
    }

    #[test]
    fn equal_plans_have_equal_names_whatever_the_order_of_their_parameters() {
        assert_eq!(hash(&plan(&[("a", "1"), ("b", "2")])), hash(&plan(&[("b", "2"), ("a", "1")])));
        assert_ne!(hash(&plan(&[("a", "1")])), hash(&plan(&[("a", "2")])));
        let body = Body::of(&plan(&[("a", "1")]));
        assert_eq!((body.hash(), body.plan()), (&*hash(&plan(&[("a", "1")])), plan(&[("a", "1")])));
        assert_ne!(body, Body::of(&plan(&[("a", "2")])));
    }

    #[test]
    fn a_field_of_a_newer_operator_is_noticed() {
        let mut wire = plan(&[]).encode_to_vec();
        // Field 100, varint 1: what an operator of a later version might add.
        wire.extend([0xa0, 0x06, 0x01]);
        let named = hex::encode(Sha256::digest(&wire));
        let decoded = SessionPlan::decode(wire.as_slice()).unwrap();
        assert_eq!(decoded, plan(&[]));
        assert!(!matches(&decoded, &named));
    }

    #[test]
    fn a_collector_of_a_newer_operator_is_not_whole() {
        let collector = sealed(plan(&[("a", "1")]).collectors.remove(0));
        assert!(is_whole(&collector) && is_whole(&CollectorPlan::default()));
        // The same with field 100, as a newer operator would send and digest it.
        let mut newer = CollectorPlan { sha256: Vec::new(), ..collector.clone() }.encode_to_vec();
        newer.extend([0xa0, 0x06, 0x01]);
        let sha256 = Sha256::digest(&newer).to_vec();
        newer.extend(CollectorPlan { sha256, ..Default::default() }.encode_to_vec());
        assert!(!is_whole(&CollectorPlan::decode(newer.as_slice()).unwrap()));
    }
}
