// SPDX-License-Identifier: Apache-2.0

//! What lies in the store: the specification of a Tracelake dataset, and the code that both writers
//! and readers of it use.
//!
//! # Layout
//! One folder per session, which nothing else writes to:
//! ```text
//! <prefix>/<namespace>/<session>/<uid>/
//!   _tracelake/session.json              first: what was asked for, versions, schemas
//!   _tracelake/<node>_<boot>.json        by each node when it is done: objects, ledger, coverage, clock anchors
//!   _tracelake/manifest-<n>.json         last, n rising from 1: nodes, totals, verdict; readers take the highest n
//!   <table>/<node>_<boot>_<seq>.parquet  segments
//!   session_nodes/ coverage/ ledger/     ordinary tables, always there
//! ```
//! A session that was compacted ([`compact`]) has merged segments instead, `<table>/<node>_<boot>_<n>_<seq>.parquet`, in node manifests
//! `_tracelake/<node>_<boot>_<n>.json` that `manifest-<n>.json` was the first to name.
//!
//! `tracelake record` writes the same folder, wherever it is told to.
//!
//! # Rules
//! 1. **Every object is created once and never overwritten or deleted by its writer.** Writers use create-only puts; a
//!    refused put whose object has the same length and checksum is the writer's own earlier success. [`compact`] alone deletes
//!    objects, when a higher manifest lists their rows elsewhere.
//! 2. **What no manifest lists does not exist.** `manifest-<n>.json` names the node manifests, each of which names its
//!    objects with rows, weight, length and SHA-256. A higher `n` replaces a lower one whole; what a lower one names may be gone.
//! 3. **A key says who wrote it.** `<boot>` is the kernel's boot id, 32 hexadecimal digits; `<seq>` rises per session,
//!    table and boot, with at least six digits. A gap in the sequence is a segment that was never sealed. See [`key`].
//! 4. **Every event has one name.** The [`ledger`] balances for every node, table and agent process, or says that a
//!    process crashed and its count is not known. The [`coverage`] says from when to when each target was traced.
//! 5. **Nothing is believed.** Before writing a manifest the operator lists the folder and compares keys and lengths, in
//!    memory that what lies there does not decide ([`closing`]); [`check::verify`] also reads every object.
//!
//! # Parquet
//! Types are what every engine reads: signed integers, UTF-8 with dictionaries, timestamps in microseconds UTC. Each row
//! group is sorted by `ts_ns`; statistics are on; zstd level 1. Each field's Arrow metadata has `unit` and `doc`. File metadata:
//! `tracelake.table`, `.schema_version`, `.session`, `.node`, `.boot`, `.incarnation`, `.sequence`.
//! Columns may be added, never change type; that raises the schema's version, and a file of a lower one may lack what was added since,
//! which reads as null. `schemas/*.txt` are golden files. See [`schema`](mod@schema).
//!
//! # Versions
//! `formatVersion` in every JSON file is that of the layout; readers refuse a higher one. Unknown JSON fields and unknown
//! columns are ignored.

pub mod bookkeeping;
pub mod catalogue;
pub mod check;
pub mod closing;
pub mod compact;
pub mod coverage;
mod finding;
pub mod key;
pub mod ledger;
pub mod listing;
pub mod manifest;
pub mod reader;
pub mod render;
mod restated;
pub mod schema;
pub mod sort;

pub use schema::schema;
