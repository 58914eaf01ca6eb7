// SPDX-License-Identifier: Apache-2.0
//! The contract between the operator and the node agents.
//!
//! In: `proto/node.proto`, the single declaration of what the two sides say to each other, and `proto/data.proto`, what users
//! who read by the operator say. Out: the generated messages, clients and servers ([`v1`], [`data`]), and what all sides must
//! do alike: name a plan ([`plan`]), trust a server ([`tls`]), carry a token ([`token`]), keep to addresses that a tenant may
//! have them connect to ([`egress`]), let no store take every place ([`lanes`]), know a name ([`is_name`]).
//!
//! The generated code is committed, so that a plain build needs no `protoc`; `tests/freshness.rs`
//! regenerates it and compares.
//!
//! ```text
//!           Plan: everything this node has to do now
//! operator ------------------------------------------> agent
//!          <------------------------------------------
//!           Hello, then Reports: everything it has done
//!          <---- Grant: leave to create one object ----
//! ```

pub mod egress;
pub mod lanes;
pub mod plan;
pub mod tls;
pub mod token;

/// Messages, client and server of `tracelake.node.v1`, generated from `proto/node.proto`.
///
/// The client has no `connect` constructor: the service's own method has that name. Make a
/// [`tonic::transport::Channel`] and pass it to `NodeClient::new`.
#[allow(missing_docs, unused_qualifications, clippy::all, reason = "generated; documented in node.proto")]
pub mod v1 {
    include!("generated/tracelake.node.v1.rs");
}

/// Messages, client and server of `tracelake.data.v1`, generated from `proto/data.proto`; the client as in [`v1`].
#[allow(missing_docs, unused_qualifications, clippy::all, reason = "generated; documented in data.proto")]
pub mod data {
    include!("generated/tracelake.data.v1.rs");
}

/// Words of `SessionReport.reason` that the operator acts on; it shows the others as they are.
pub mod reason {
    /// Of `FAILED`, and of `DONE` when nothing was recorded for it: this node can run none of the collectors.
    pub const UNSUPPORTED: &str = "Unsupported";
    /// Of `PREPARING`: this node records as many sessions as it has slots for.
    pub const NODE_CAPACITY: &str = "NodeCapacity";
    /// Of `RUNNING`: some pods' cgroups are not recorded, because the node's maps are full.
    pub const TARGETS_MISSING: &str = "TargetsMissing";
    /// Of `RUNNING`: the plan's pods could not be taken over yet.
    pub const TARGETS_FAILED: &str = "TargetsFailed";
    /// Of any stage: this agent does not take the plan; a session that runs goes on as before, another one does not begin.
    pub const PLAN_REFUSED: &str = "PlanRefused";
    /// Of `DONE`: the window ended before this node recorded anything.
    pub const NEVER_STARTED: &str = "NeverStarted";
    /// Of any stage: the store answered an upload with an error.
    pub const STORE_ERROR: &str = "StoreError";
    /// Of any stage: the store did not answer an upload.
    pub const STORE_UNREACHABLE: &str = "StoreUnreachable";
}

/// The audience an agent's projected ServiceAccount token must carry, and the operator asks for.
pub const TOKEN_AUDIENCE: &str = "tracelake-operator";

/// The audience of the tokens of those who read by the operator: neither the API server nor the agents' port takes them.
pub const DATA_AUDIENCE: &str = "tracelake-data";

/// The ConfigMap, in the chart's namespace, with the CA that the operator's certificate is of.
pub const CA_CONFIG_MAP: &str = "tracelake-ca";

/// Key of the CA certificates (PEM, one or more) in it.
pub const CA_KEY: &str = "ca.crt";

/// Whether it can be the name of an object. What somebody else wrote becomes part of a URL only if it is: kube asks for
/// `x?watch=true` or `../other/x` as they are.
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=253).contains(&bytes.len())
        && bytes.iter().all(|&byte| plain(byte) || byte == b'-' || byte == b'.')
        && [bytes.first(), bytes.last()].into_iter().flatten().all(|&byte| plain(byte))
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn f26_a_name_that_would_be_another_request_is_none() {
        for name in ["agent-x7k2p", "tracelake-node-agent-9.example", "a"] {
            assert!(is_name(name), "{name}");
        }
        for name in
            ["", "?watch=true", "..", "../../nodes", "a/b", "a%2Fb", "A", "-a", "a-", &"a".repeat(254)]
        {
            assert!(!is_name(name), "{name}");
        }
    }
}
