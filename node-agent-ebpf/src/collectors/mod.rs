// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! One module per collector: its hooks and the state they keep.

mod cpu_sched;
mod memory_rss;
mod node_info;
mod packet_drops;
mod page_faults;
mod processes;
mod tcp_connections;
mod tcp_listen_queue;
mod tcp_receive;
mod tcp_retransmits;
mod tcp_states;
mod tcp_throughput;
