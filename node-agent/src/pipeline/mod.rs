// SPDX-License-Identifier: Apache-2.0

//! From the kernel's rings to files in the store.
//!
//! ```text
//! ring -> decode -> batch -> segment -> spool -> upload
//!  |        |         |         |         |        |
//!  bytes  records  columns   Parquet   journal   presigned PUT, or a store of our own
//! ```
//! | stage | thread | bound | may drop |
//! | --- | --- | --- | --- |
//! | [`ring`], [`decode`], [`batch`] | one drains all rings | the ring's size | the kernel, when the ring is full |
//! | [`segment`] | one | [`OUTPUTS`] batches wait before it | nothing but what the disk refuses |
//! | [`spool`] | the caller's | its byte limit | rows that come above the limit |
//! | [`upload`] | tokio | a few at a time | nothing |
//!
//! Back pressure goes one way: a slow disk fills the channel, a full channel blocks the drain, a drain
//! that stands fills the ring, and the ring counts what it loses. Each stage imports from the one
//! before it and none that comes later.

pub mod batch;
pub mod cost;
pub mod decode;
pub mod ring;
pub mod segment;
pub mod spool;
pub mod unsealed;
pub mod upload;
pub mod window;

/// Outputs of the engine that may wait for the segment thread: some seconds of a slow disk; at the engine's size of
/// batches a few tens of megabytes.
pub const OUTPUTS: usize = 16;
