// SPDX-License-Identifier: Apache-2.0

//! What a session says: the report.
//!
//! In: a session's own files ([`dataset::reader::Contents`]) and an [`Engine`] that answers SQL over its tables. Out: a
//! [`Report`], which is printed ([`text`]), written as JSON (`tracelake-report/2`: fields may be added, never change their
//! meaning), or becomes one page that needs nothing else ([`page`]); two of them side by side are a [`compare::Comparison`].
//!
//! One file per section, each with what it reads, what that means, and how it is shown ([`view`]).
//! Invariants: the account comes first; a section without its collector says so; every list has an end and says what is
//! beyond it; nothing is computed from rows outside of SQL, so memory does not grow with the session.

pub mod account;
pub mod compare;
mod datafusion;
pub mod drops;
pub mod engine;
pub mod format;
pub mod memory;
pub mod page;
pub mod page_faults;
pub mod processes;
pub mod report;
pub mod retransmits;
pub mod scheduling;
mod scope;
mod series;
pub mod tcp_health;
pub mod text;
pub mod throughput;
pub mod view;

pub use engine::{Engine, ReportError};
pub use report::Report;
pub use scope::{Scope, Section};
