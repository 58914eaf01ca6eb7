// SPDX-License-Identifier: Apache-2.0
//! The client of the API server, as it is to behave when that one does not.
//!
//! In: what the environment says of the API server. Out: a [`Client`] that waits for nothing for ever and asks for nothing
//! without a pause. kube's own defaults do neither in three cases:
//! - a connection that is silently gone is noticed in an open watch alone; a list, the beginning of a watch and every write
//!   would wait until the kernel gives up, or for ever behind a proxy that holds the connection. [`SILENCE`] ends them;
//! - 429, 503 and 504 are asked again inside the client, up to fifteen times over minutes, and who asked hears of nothing.
//!   Everybody here tries again by himself, within half a minute, so the client does not;
//! - a watch that ends at once, with no error, is begun again at once, and so on. [`Paced`] keeps them apart.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use http::{Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use rand::Rng;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the next byte of an answer. Longer than a watch lives in which nothing happens, by its own timeout (290 s, and five more
/// until kube gives it up).
pub const SILENCE: Duration = Duration::from_secs(305);
/// Between the beginnings of two watches of the same objects, up to half of it more.
pub const WATCH_SPACING: Duration = Duration::from_secs(2);
/// Turns are given no further ahead: who gives up has taken his all the same, and the others would wait for all of those.
pub const WATCH_AHEAD: Duration = Duration::from_secs(15);

/// What the environment says of the API server.
///
/// # Errors
/// When it says nothing.
pub async fn config() -> anyhow::Result<Config> {
    use anyhow::Context as _;
    Ok(bounded(Config::infer().await.context("find the API server")?))
}

/// A configuration whose client waits for nothing for ever.
pub fn bounded(mut config: Config) -> Config {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(SILENCE);
    // A connection that was idle for a while has its whole time for the next answer.
    config.reset_reader_on_write = true;
    config.default_retry = false;
    // The environment names one for stores alone. In a pod kube asks for none; with a kubeconfig it would take `HTTPS_PROXY`.
    config.proxy_url = None;
    config
}

/// A client that begins no watch without a pause.
///
/// # Errors
/// When the configuration is not usable, for example its certificates.
pub fn client(config: Config) -> kube::Result<Client> {
    Ok(ClientBuilder::try_from(config)?.with_layer(&Paced::default()).build())
}

/// Keeps the beginnings of watches apart.
#[derive(Clone, Default)]
pub struct Paced {
    /// By path and selectors: when the next one may begin.
    next: Arc<Mutex<HashMap<String, Instant>>>,
}

impl<S> Layer<S> for Paced {
    type Service = PacedService<S>;

    fn layer(&self, inner: S) -> PacedService<S> {
        PacedService { inner, paced: self.clone() }
    }
}

impl Paced {
    /// When this request may be sent; none: at once.
    fn turn<B>(&self, request: &Request<B>) -> Option<Instant> {
        let query = request.uri().query()?;
        let is_watch = query.split('&').any(|one| one == "watch=true" || one == "watch=1");
        if !is_watch {
            return None;
        }
        // Where the watch goes on is another place each time.
        let of = query.split('&').filter(|one| !one.starts_with("resourceVersion="));
        let key = format!("{}?{}", request.uri().path(), of.collect::<Vec<_>>().join("&"));
        let now = Instant::now();
        let pause = WATCH_SPACING.mul_f64(rand::rng().random_range(1.0..1.5));
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        // Namespaces come and go.
        next.retain(|_, at| *at > now);
        let at = next.get(&key).copied().unwrap_or(now);
        next.insert(key, (at.max(now) + pause).min(now + WATCH_AHEAD));
        (at > now).then_some(at)
    }
}

/// See [`Paced`].
#[derive(Clone)]
pub struct PacedService<S> {
    inner: S,
    paced: Paced,
}

impl<S, B> Service<Request<Body>> for PacedService<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let turn = self.paced.turn(&request);
        // Nothing is sent before this is polled.
        let answer = self.inner.call(request);
        async move {
            if let Some(turn) = turn {
                tokio::time::sleep_until(turn).await;
            }
            answer.await.map_err(Into::into)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_that_nobody_took_put_off_the_next_one_by_seconds_only() {
        let (paced, now) = (Paced::default(), Instant::now());
        let watch =
            || Request::get("/api/v1/namespaces/shop/pods?watch=true&resourceVersion=7").body(()).unwrap();
        assert_eq!(paced.turn(&watch()), None, "the first one begins at once");
        assert!(paced.turn(&watch()).is_some_and(|at| at >= now + WATCH_SPACING));
        let last = (0..1_000).filter_map(|_| paced.turn(&watch())).max().unwrap();
        assert!(last <= Instant::now() + WATCH_AHEAD, "{:?}", last - now);
        let other = Request::get("/api/v1/namespaces/bank/pods?watch=true").body(()).unwrap();
        assert_eq!(paced.turn(&other), None, "others are not put off");
    }
}
