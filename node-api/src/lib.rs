// SPDX-License-Identifier: Apache-2.0
//! The contract between the operator and the node agents.
//!
//! In: `proto/node.proto`, the single declaration of what the two sides say to each other. Out: the
//! generated messages, client and server ([`v1`]), and what both sides must do alike: name a plan
//! ([`plan`]), trust a server ([`tls`]), carry a token ([`token`]), keep to addresses that a tenant may have
//! them connect to ([`egress`]).
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
    /// Of `DONE`: the window ended before this node recorded anything.
    pub const NEVER_STARTED: &str = "NeverStarted";
}

/// The audience an agent's projected ServiceAccount token must carry, and the operator asks for.
pub const TOKEN_AUDIENCE: &str = "tracelake-operator";

/// Key of the CA certificates (PEM, one or more) in the ConfigMap that agents mount.
pub const CA_KEY: &str = "ca.crt";
