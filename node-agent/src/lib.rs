// SPDX-License-Identifier: Apache-2.0

//! The node agent, as a library for its own binary and for `tracelake record`.
//!
//! ```text
//!               plan                                       report
//!  operator  ---------->  agent  ------------------------------------------->  operator
//!  (stream)               |  ^                                                 (stream)
//!                    open |  | counters, coverage
//!                         v  |
//!                        engine <== rings, maps ==  kernel: hooks, filtered by cgroup
//!                         |
//!                         | batches (bounded channel)
//!                         v
//!                       segment --> spool --> upload --> store
//!                       Parquet     journal   presigned PUT, create-only
//! ```
//! - [`agent`] decides: what the plan wants, when a window ends, what is reported. One thread.
//! - [`session`] is one session's life, with or without a plan: recording, draining, books, manifest.
//! - [`engine`] with [`kernel`], [`collectors`] and [`targets`] is everything that touches the kernel.
//! - [`pipeline`] is everything between the rings and the store.
//! - [`operator`] is the stream; [`plan`] checks what comes through it.
//!
//! The agent has no Kubernetes permission and no store credential. It never believes a plan and is
//! never believed: the operator composes keys, signs every upload and lists the store itself.

pub mod agent;
pub mod budget;
pub mod collectors;
mod coverage;
pub mod engine;
mod govern;
pub mod kernel;
mod limits;
pub mod metrics;
pub mod operator;
pub mod pipeline;
pub mod plan;
pub mod session;
pub mod targets;
