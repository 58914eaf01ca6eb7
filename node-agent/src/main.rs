// SPDX-License-Identifier: Apache-2.0

//! The node agent's binary: see the library.

extern crate tracelake_node_agent as node_agent;

mod args;
mod http;
mod telemetry;

fn main() -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    args::parse_and_run()
}
