// SPDX-License-Identifier: Apache-2.0

//! `/metrics`, `/healthz` and `/readyz`.
//!
//! Healthy means that the process answers; ready, that the operator's stream is up. An agent without
//! its operator goes on recording, so readiness never restarts it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use node_agent::metrics::Metrics;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Binds, then serves until stopped.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    connected: watch::Receiver<bool>,
    stop: CancellationToken,
) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let ready = move || async move {
        match *connected.borrow() {
            true => (StatusCode::OK, "connected to the operator\n"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "no stream to the operator\n"),
        }
    };
    let encode = move || async move {
        match metrics.encode() {
            Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    };
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(encode));
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    Ok(tokio::spawn(async move { server.await }))
}
