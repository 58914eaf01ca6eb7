// SPDX-License-Identifier: Apache-2.0
//! Who this process is, and the parts that all its sessions share.

use std::sync::Arc;

use dataset::key::Boot;
use tokio::runtime::Handle;

use crate::metrics::Metrics;
use crate::pipeline::segment::Sinks;
use crate::pipeline::spool::Spool;
use crate::pipeline::upload::Uploader;

/// Who this process is, and the parts that all its sessions share.
#[derive(Clone)]
pub struct Node {
    /// Kubernetes name of the node.
    pub name: Arc<str>,
    /// This boot.
    pub boot: Boot,
    /// This process, 32 hexadecimal digits.
    pub incarnation: Arc<str>,
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub arch: String,
    /// Sealed files.
    pub spool: Spool,
    /// Where the segment thread looks sessions up.
    pub sinks: Sinks,
    /// Puts files into the store.
    pub uploader: Arc<Uploader>,
    /// Runs uploads.
    pub runtime: Handle,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl Node {
    /// The boot id of the running kernel.
    ///
    /// # Errors
    /// When /proc does not tell.
    pub fn current_boot() -> anyhow::Result<Boot> {
        const PATH: &str = "/proc/sys/kernel/random/boot_id";
        let text =
            std::fs::read_to_string(PATH).map_err(|error| anyhow::anyhow!("cannot read {PATH}: {error}"))?;
        Ok(text.trim().replace('-', "").parse()?)
    }

    /// A name for one life of one process: 32 hexadecimal digits.
    pub fn new_incarnation() -> Arc<str> {
        uuid::Uuid::new_v4().simple().to_string().into()
    }
}

/// What `uname` tells.
#[derive(Clone, Debug)]
pub struct Uname {
    /// `uname -n`.
    pub node: String,
    /// `uname -r`.
    pub release: String,
    /// `uname -m`.
    pub machine: String,
}

/// The running kernel's names.
pub fn uname() -> Uname {
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    Uname { node: text(uname.nodename()), release: text(uname.release()), machine: text(uname.machine()) }
}
