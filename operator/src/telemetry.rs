// SPDX-License-Identifier: Apache-2.0
//! Logs: one JSON object per line on standard output, with `session`, `node` and `collector` as fields.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Starts logging; `filter` as in `RUST_LOG`, for example `info,tracelake_operator=debug`.
///
/// # Errors
/// When the filter cannot be parsed, or logging was started before.
pub fn start(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(filter)?;
    fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_env_filter(filter)
        .try_init()
        .map_err(|error| anyhow::anyhow!("logging: {error}"))
}
