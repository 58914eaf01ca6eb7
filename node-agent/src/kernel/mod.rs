// SPDX-License-Identifier: Apache-2.0
//! The kernel's side of the agent: what the running kernel can do, the object of programs, the clock they use.

pub mod btf;
pub mod clock;
pub mod entries;
pub mod load;
pub mod names;
pub mod probe;
