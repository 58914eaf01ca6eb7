// SPDX-License-Identifier: Apache-2.0
//! What collectors share that give packets without a socket to the pod of their network namespace.

use super::Hook;
use crate::kernel::load::{Kernel, KernelError};

const SCAN: &str = "netns_scan";
const NODE: &str = "netns_of_node";

/// The programs that learn which namespaces are targets'.
pub const HOOKS: [Hook; 3] =
    [Hook::run(NODE), Hook::on("netns_exec", "sched_process_exec"), Hook::iterator(SCAN, "task")];

/// Has the node's own namespace taken down, which belongs to nobody.
///
/// # Errors
/// When the kernel refuses.
pub fn open(kernel: &mut Kernel) -> Result<(), KernelError> {
    kernel.run(NODE, &[]).map(drop)
}

/// Has the namespaces learnt of what runs in targets already.
///
/// # Errors
/// When the pass cannot be made.
pub fn join(kernel: &mut Kernel) -> Result<(), KernelError> {
    kernel.iterate(SCAN).map(drop)
}
