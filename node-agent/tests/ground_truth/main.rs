// SPDX-License-Identifier: Apache-2.0
//! Known workloads, exact counts, no loss: each collector against what the programs themselves know. Needs root, on the
//! host, in a virtual machine with nothing but this binary, or in a privileged pod. The engines have the capabilities of the
//! chart's pod there, the workloads those of root ([`support::as_root`]).

#![allow(clippy::zombie_processes, reason = "they are reaped by wait4, which also says what they used")]

mod budgets;
mod cpu_sched;
mod expectations;
mod losses;
mod memory_rss;
mod network;
mod node_info;
mod page_faults;
mod processes;
mod rings;
mod support;
mod tcp_connections;
mod tcp_listen_queue;
mod tcp_loss;
mod tcp_throughput;
mod verifier;

/// Runs before the test harness: this binary is also the workload.
#[used]
#[unsafe(link_section = ".init_array")]
static WORKLOAD: extern "C" fn() = {
    extern "C" fn workload() {
        tcp_connections::workload();
        support::workload();
        support::undisturbed();
        support::least_privilege();
    }
    workload
};
