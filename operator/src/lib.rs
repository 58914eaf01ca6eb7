// SPDX-License-Identifier: Apache-2.0
//! The operator: reconciles sessions into plans for nodes, and what nodes report into status.
//!
//! ```text
//!            TraceSession, pods, nodes                    Plan
//! API server -------------------------> session/ --> hub ------> grpc <==> node agents
//!            <-------------------------    |          ^              |
//!            status, Events                |          +-- Report ----+
//!                                          v                         |
//!            TraceStore, Secret -----> store/ <------- Grant --------+
//!                                          |
//!                                          v   session.json, manifest-<n>.json
//!                                     object store
//! ```
//! Users who may read a session's data get URLs for them by the same port ([`data`]). One replica leads ([`lease`]) and does all
//! of it; others wait to take its place. Everything it knows is in the API server, in the store, or reported again by the
//! agents: it may be killed at any time.
//!
//! The library exists for the tests; the binary is `main.rs`.

pub mod agents;
pub mod announce;
pub mod api_server;
pub mod args;
pub mod ca;
pub mod check;
pub mod connections;
pub mod data;
pub mod events;
pub mod grpc;
mod held;
pub mod hooks;
pub mod http;
pub mod hub;
pub mod lease;
pub mod metrics;
pub mod schedule;
pub mod session;
pub mod store;
pub mod telemetry;
pub mod token;
