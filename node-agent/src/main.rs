// SPDX-License-Identifier: Apache-2.0

//! The node agent's binary: see the library.

extern crate tracelake_node_agent as node_agent;

mod args;
mod http;
mod telemetry;

/// musl's own gives large pieces back at once, so that every batch of rows costs the kernel as much as the rows cost us.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    args::parse_and_run()
}
