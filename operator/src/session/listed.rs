// SPDX-License-Identifier: Apache-2.0
//! Whether a watch's first list is complete, for any number of waiters.
//!
//! In: the events of a watch, after its reflector. `Store::wait_until_ready` of kube 5.0 wakes only the waiter that asked
//! last: all of them share the one waker of a oneshot channel. The others wait for ever.

use kube::runtime::watcher;
use tokio::sync::watch;

/// See the module. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub struct Listed(watch::Sender<bool>);

impl Listed {
    /// Takes note of an event.
    pub fn saw<K>(&self, event: &watcher::Result<watcher::Event<K>>) {
        if matches!(event, Ok(watcher::Event::InitDone)) {
            self.0.send_replace(true);
        }
    }

    /// Waits for the end of the first list.
    pub async fn complete(&self) {
        // This is a sender of the channel, so it is open.
        let _ = self.0.subscribe().wait_for(|listed| *listed).await;
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[tokio::test]
    async fn every_waiter_is_woken() {
        let listed = Listed::default();
        let wait = || {
            let listed = listed.clone();
            tokio::spawn(async move { listed.complete().await })
        };
        let waiters = [wait(), wait(), wait()];
        tokio::task::yield_now().await;
        listed.saw::<Pod>(&Ok(watcher::Event::Init));
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
        listed.saw::<Pod>(&Ok(watcher::Event::InitDone));
        for waiter in waiters {
            waiter.await.unwrap();
        }
        listed.complete().await;
    }
}
