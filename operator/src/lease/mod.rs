// SPDX-License-Identifier: Apache-2.0
//! Which replica leads: a `Lease`, held by one at a time, as client-go's election does it.
//!
//! In: the Lease's object, of which only changes matter. Out: [`Election::turn`] returns when this replica leads,
//! [`Election::lost`] when it does so no longer.
//! Invariant: times of other machines are never compared. A Lease is free when its holder has not renewed it for its own
//! duration by *this* process's monotonic clock, and a holder gives up [`Pace::deadline`] after its last renewal, by the same.
//! Why the process ends then, instead of waiting in line again: what it still has under way (a status, a manifest) must not
//! be written by two.
//! Why a thread with connections of its own: thousands of agents that come at once to a new leader would keep it from
//! renewing, and so would what it asks the API server about them.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use rand::Rng;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Name of the Lease, in the operator's namespace.
pub const NAME: &str = "tracelake-operator";

/// How fast all of it goes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long the Lease holds without being renewed; whole seconds.
    pub duration: Duration,
    /// For how long a holder tries to renew before it gives up: it must have ended before others may begin.
    pub deadline: Duration,
    /// Between two renewals; others look twice as often.
    pub retry: Duration,
    /// How long one call of the API server may take: several have to fail before a holder gives up.
    pub call: Duration,
}

/// The operator's.
pub const PACE: Pace = Pace {
    duration: Duration::from_secs(10),
    deadline: Duration::from_secs(7),
    retry: Duration::from_secs(2),
    call: Duration::from_secs(2),
};

/// This replica's part in the election, which goes on in a thread of its own.
pub struct Election {
    turn: oneshot::Receiver<()>,
    lost: oneshot::Receiver<Lost>,
    release: Option<oneshot::Sender<()>>,
}

impl Election {
    /// Joins it, under a name that is no other process's: that of the pod. `looked` is told after each look whether there was an
    /// answer, until this replica leads.
    ///
    /// # Errors
    /// When there is no thread, or no client of the API server.
    pub fn join(
        config: kube::Config,
        namespace: &str,
        identity: &str,
        looked: impl Fn(bool) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // A client lives in the runtime that it was made in.
        let client = {
            let _inside = runtime.enter();
            Client::try_from(config).context("make a client of the API server")?
        };
        let mut elector = Elector::new(client, namespace, identity, PACE);
        let (leads, turn) = oneshot::channel();
        let (ended, lost) = oneshot::channel();
        let (release, mut released) = oneshot::channel();
        let run = async move {
            tokio::select! {
                () = elector.acquire(looked) => {}
                _ = &mut released => return elector.release().await,
            }
            // Whoever does not listen any more has ended.
            let _ = leads.send(());
            tokio::select! {
                lost = elector.hold() => {
                    let _ = ended.send(lost);
                }
                _ = released => elector.release().await,
            }
        };
        std::thread::Builder::new().name("election".to_owned()).spawn(move || runtime.block_on(run))?;
        Ok(Self { turn, lost, release: Some(release) })
    }

    /// Waits until this replica leads.
    pub async fn turn(&mut self) {
        if (&mut self.turn).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until it leads no longer.
    pub async fn lost(&mut self) -> Lost {
        (&mut self.lost).await.unwrap_or(Lost::Late)
    }

    /// Gives the Lease back if it is this replica's, so that the next one need not wait for its end.
    pub async fn release(&mut self) {
        if let Some(release) = self.release.take() {
            let _ = release.send(());
            // Its end drops the other side.
            let _ = (&mut self.lost).await;
        }
    }
}

/// A replica's place at the Lease.
struct Elector {
    api: Api<Lease>,
    identity: String,
    pace: Pace,
    seen: Option<Seen>,
    /// When the last write that was answered was begun: on the server the renewal may be as old as that.
    renewed: Instant,
}

/// The Lease as it was when it changed last.
struct Seen {
    lease: Lease,
    at: Instant,
}

/// What a look says.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// Somebody leads.
    Wait,
    /// Nobody does, or this replica did before it was started again.
    Take,
}

impl Elector {
    fn new(client: Client, namespace: &str, identity: &str, pace: Pace) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, identity: identity.to_owned(), pace, seen: None, renewed: Instant::now() }
    }

    /// Waits until this replica leads. Errors of the API server are logged and tried again; `looked` is told after each look
    /// whether there was an answer.
    async fn acquire(&mut self, looked: impl Fn(bool)) {
        let mut told = None;
        loop {
            match self.attempt().await {
                Ok(None) => return,
                Ok(Some(holder)) => {
                    looked(true);
                    if told.as_ref() != Some(&holder) {
                        tracing::info!(holder, "another replica leads, waiting");
                        told = Some(holder);
                    }
                }
                // Of two that found it free, one was faster.
                Err(error) if error.is(409) => looked(true),
                Err(error) => {
                    looked(false);
                    tracing::warn!(%error, "cannot ask for the Lease, will retry");
                }
            }
            let share = rand::rng().random_range(0.4..=0.5);
            tokio::time::sleep(self.pace.retry.mul_f64(share)).await;
        }
    }

    /// Renews until that fails for [`Pace::deadline`], or the Lease is another's.
    async fn hold(&mut self) -> Lost {
        let Pace { deadline, retry, .. } = self.pace;
        let mut pause = retry;
        loop {
            let until = self.renewed + deadline;
            let next = async {
                tokio::time::sleep(pause).await;
                self.renew().await
            };
            match tokio::time::timeout_at(until, next).await {
                Ok(Ok(true)) => pause = retry,
                Ok(Ok(false)) => return Lost::Taken,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot renew the Lease, will retry");
                    pause = retry / 4;
                }
                Err(_) => return Lost::Late,
            }
        }
    }

    /// Gives the Lease back if it is this replica's, so that the next one need not wait for its end. An error only makes it wait.
    async fn release(&mut self) {
        // What it is now: a write may have been under way when its caller gave up.
        let given = async {
            let Some(mut lease) = self.call(self.api.get_opt(NAME)).await? else { return Ok(false) };
            if holder(&lease) != Some(&self.identity) {
                return Ok(false);
            }
            if let Some(spec) = &mut lease.spec {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
            }
            self.call(self.api.replace(NAME, &PostParams::default(), &lease)).await.map(|_| true)
        };
        let given: Result<bool, Failure> = given.await;
        match given {
            Ok(true) => tracing::info!("gave the Lease back"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot give the Lease back"),
        }
    }

    /// One try; `None` when this replica leads, else who does.
    async fn attempt(&mut self) -> Result<Option<String>, Failure> {
        let Some(lease) = self.call(self.api.get_opt(NAME)).await? else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let fresh = Lease { metadata, spec: Some(self.spec(None)) };
            let began = Instant::now();
            let lease = self.call(self.api.create(&PostParams::default(), &fresh)).await?;
            self.seen = Some(Seen { lease, at: Instant::now() });
            self.renewed = began;
            return Ok(None);
        };
        if self.turn(lease) == Turn::Wait {
            return Ok(self.seen.as_ref().and_then(Seen::holder).map(str::to_owned));
        }
        // A conflict is an error that the next look explains.
        self.write().await.map(|()| None)
    }

    /// Takes over what the server says, and decides.
    fn turn(&mut self, lease: Lease) -> Turn {
        let now = Instant::now();
        if self.seen.as_ref().is_none_or(|seen| seen.lease.spec != lease.spec) {
            self.seen = Some(Seen { lease, at: now });
        } else if let Some(seen) = &mut self.seen {
            seen.lease = lease;
        }
        let free = self.seen.as_ref().is_none_or(|seen| match seen.holder() {
            None => true,
            Some(holder) => {
                holder == self.identity
                    || now.duration_since(seen.at) >= seen.duration().unwrap_or(self.pace.duration)
            }
        });
        if free { Turn::Take } else { Turn::Wait }
    }

    /// False when the Lease is another's.
    async fn renew(&mut self) -> Result<bool, Failure> {
        match self.write().await {
            Err(error) if error.is(409) || error.is(404) => {
                let now = self.call(self.api.get_opt(NAME)).await?;
                let Some(lease) = now.filter(|lease| holder(lease) == Some(&self.identity)) else {
                    return Ok(false);
                };
                // Somebody has labelled it, or a renewal arrived whose answer did not: neither is a renewal of now.
                self.seen = Some(Seen { lease, at: Instant::now() });
                self.write().await.map(|()| true)
            }
            written => written.map(|()| true),
        }
    }

    /// Makes this replica the holder of the version that was seen.
    async fn write(&mut self) -> Result<(), Failure> {
        let Some(seen) = &self.seen else { return Ok(()) };
        let lease =
            Lease { metadata: seen.lease.metadata.clone(), spec: Some(self.spec(seen.lease.spec.as_ref())) };
        let began = Instant::now();
        let lease = self.call(self.api.replace(NAME, &PostParams::default(), &lease)).await?;
        self.seen = Some(Seen { lease, at: Instant::now() });
        self.renewed = began;
        Ok(())
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
        tokio::time::timeout(self.pace.call, call).await.map_err(|_| Failure::Silent)?.map_err(Failure::Api)
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(jiff::Timestamp::now());
        let own = before.filter(|before| before.holder_identity.as_deref() == Some(&self.identity));
        let transitions = before.and_then(|before| before.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.pace.duration.as_secs()).ok(),
            acquire_time: own.and_then(|own| own.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions + i32::from(before.is_some() && own.is_none())),
            ..LeaseSpec::default()
        }
    }
}

impl Seen {
    fn holder(&self) -> Option<&str> {
        holder(&self.lease)
    }

    /// What the holder has promised to renew within.
    fn duration(&self) -> Option<Duration> {
        let seconds = self.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        Some(Duration::from_secs(seconds?.try_into().ok()?))
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// Why a replica leads no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Another has it, or it was deleted.
    #[error("the Lease {NAME} is not this replica's any more")]
    Taken,
    /// The API server could not be asked for too long.
    #[error("the Lease {NAME} could not be renewed in time")]
    Late,
}

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the API server does not answer")]
    Silent,
}

impl Failure {
    fn is(&self, code: u16) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.code == code)
    }
}

#[cfg(test)]
mod tests;
