// SPDX-License-Identifier: Apache-2.0

//! What fails around an agent, and what it promises all the same.
//!
//! Names begin with the fault's number; CONTRIBUTING.md has the table, `cargo xtask test faults` runs them.

extern crate tracelake_node_agent as node_agent;

mod operator;
mod plan;
mod store;
#[allow(dead_code, reason = "each test of the agent uses a part of it")]
#[path = "../support/mod.rs"]
mod support;
