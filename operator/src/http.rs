// SPDX-License-Identifier: Apache-2.0
//! `/metrics`, `/healthz`, `/readyz`, in plain HTTP for the kubelet and Prometheus.
//!
//! Ready means of a replica that leads: the certificate is there, the stream's port is bound, and every session that existed
//! at the start was looked at, so that an agent that connects gets a whole plan. One that waits for its turn is ready when it
//! follows what a leader has to know: an update that ends the leader then costs the agents no lists of thousands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::hub::Hub;
use crate::metrics::Metrics;

/// What the endpoints show.
#[derive(Clone)]
pub struct Shown {
    /// All metrics, registered.
    pub registry: Arc<Registry>,
    /// Their values, for gauges that are read when asked.
    pub metrics: Metrics,
    /// Streams and sessions.
    pub hub: Arc<Hub>,
    /// What this replica does.
    pub role: Role,
}

/// What a replica does; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Role(Arc<Does>);

#[derive(Debug, Default)]
struct Does {
    part: AtomicU8,
    follows: AtomicBool,
}

impl Role {
    /// It cannot ask whose turn it is.
    const BLIND: u8 = 0;
    const WAITING: u8 = 1;
    const LEADING: u8 = 2;
    const SERVING: u8 = 3;

    /// It looked whose turn it is: another's, or it had no answer.
    pub fn looked(&self, answered: bool) {
        self.0.part.store(if answered { Self::WAITING } else { Self::BLIND }, Ordering::Relaxed);
    }

    /// It has at hand what it follows while it waits.
    pub fn follows(&self) {
        self.0.follows.store(true, Ordering::Relaxed);
    }

    /// It leads, and gets ready.
    pub fn leads(&self) {
        self.0.part.store(Self::LEADING, Ordering::Relaxed);
    }

    /// Agents find it.
    pub fn serves(&self) {
        self.0.part.store(Self::SERVING, Ordering::Relaxed);
    }

    fn part(&self) -> u8 {
        self.0.part.load(Ordering::Relaxed)
    }

    fn is_leading(&self) -> bool {
        matches!(self.part(), Self::LEADING | Self::SERVING)
    }
}

/// Serves until stopped.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, shown: Shown, stop: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready))
        .with_state(shown);
    axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    shown.metrics.streams.set(i64::try_from(shown.hub.streams()).unwrap_or(i64::MAX));
    shown.metrics.sessions.set(i64::try_from(shown.hub.sessions()).unwrap_or(i64::MAX));
    shown.metrics.leads.set(shown.role.is_leading().into());
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shown.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn ready(State(shown): State<Shown>) -> (StatusCode, &'static str) {
    let role = shown.role.part();
    if role == Role::BLIND {
        (StatusCode::SERVICE_UNAVAILABLE, "it is not known who leads: the Lease cannot be read")
    } else if role == Role::WAITING && !shown.role.0.follows.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "another replica leads; sessions and their pods are not listed yet")
    } else if role == Role::WAITING {
        (StatusCode::OK, "another replica leads")
    } else if role == Role::LEADING {
        (StatusCode::SERVICE_UNAVAILABLE, "agents cannot find it yet")
    } else if !shown.hub.is_open() {
        (StatusCode::SERVICE_UNAVAILABLE, "sessions are not all looked at yet")
    } else {
        (StatusCode::OK, "ok")
    }
}
