// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What the kernel programs and the agent have in common: layouts of records and maps, and the description of every
//! table and collector, declared once.
//!
//! The kernel side builds this crate for the BPF target (`no_std`, no dependencies). User space adds the feature `user`, the
//! agent `aya`.
#![cfg_attr(not(any(test, feature = "user")), no_std)]

pub mod aggregate;
pub mod catalogue;
pub mod counters;
pub mod cpu_sched;
pub mod event;
pub mod fields;
pub mod memory_rss;
pub mod node_info;
pub mod packet_drops;
pub mod page_faults;
pub mod processes;
pub mod skb;
pub mod sock;
pub mod table;
pub mod target;
pub mod tcp_connections;
pub mod tcp_listen_queue;
pub mod tcp_receive;
pub mod tcp_retransmits;
pub mod tcp_states;
pub mod tcp_throughput;
