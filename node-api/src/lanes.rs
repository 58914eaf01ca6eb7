// SPDX-License-Identifier: Apache-2.0
//! Places for work that may hang, shared out among those who can make it hang.
//!
//! In: how many places there are, and for each piece of work who its owners are (a store, a namespace) with the most that each
//! of them may hold. Out: a [`Place`], given back when it is dropped. Loses: nothing; who finds no place waits or is told so.
//!
//! Invariant: an owner holds no more than its share, whatever others do, and who waits for its own share holds none of the
//! places that all have. So one store that does not answer leaves the others their places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An owner, by any name, and the most places that it may hold.
pub type Share<'a> = (&'a str, usize);

/// See the module.
#[derive(Debug)]
pub struct Lanes {
    all: Arc<Semaphore>,
    /// Of owners that hold a place or wait for one.
    owners: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Leave to work, until it is dropped.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct Place {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Lanes {
    /// So many places.
    pub fn new(all: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), owners: Mutex::default() }
    }

    /// A place, once each of these owners may have one more and one is free. Callers name kinds of owners in one order.
    pub async fn take(&self, shares: &[Share<'_>]) -> Place {
        let mut permits = Vec::with_capacity(shares.len() + 1);
        for lane in self.of(shares) {
            permits.push(lane.acquire_owned().await.expect("it is never closed"));
        }
        Place { _permits: permits }
    }

    /// A place, if there is one now.
    pub fn try_take(&self, shares: &[Share<'_>]) -> Option<Place> {
        let permits = self.of(shares).into_iter().map(|lane| lane.try_acquire_owned().ok());
        permits.collect::<Option<_>>().map(|permits| Place { _permits: permits })
    }

    /// What has to be had, in this order: the owners' shares, then one of all places.
    fn of(&self, shares: &[Share<'_>]) -> Vec<Arc<Semaphore>> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, lane| lane.strong_count() > 0);
        let mut lanes = Vec::with_capacity(shares.len() + 1);
        for &(owner, most) in shares {
            let known = owners.get(owner).and_then(Weak::upgrade);
            lanes.push(known.unwrap_or_else(|| {
                let lane = Arc::new(Semaphore::new(most));
                owners.insert(owner.to_owned(), Arc::downgrade(&lane));
                lane
            }));
        }
        lanes.push(self.all.clone());
        lanes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_owner_takes_more_than_its_share_and_all_together_take_what_there_is() {
        let lanes = Lanes::new(3);
        let store = [("store", 2)];
        let one = lanes.try_take(&store).unwrap();
        let _two = lanes.try_take(&store).unwrap();
        assert!(lanes.try_take(&store).is_none(), "its share is taken");
        let other = lanes.try_take(&[("other", 2)]).unwrap();
        assert!(lanes.try_take(&[("third", 2)]).is_none(), "all are taken");
        drop(other);
        assert!(lanes.try_take(&[("third", 2)]).is_some());
        drop(one);
        assert!(lanes.try_take(&store).is_some(), "what is given back may be taken again");
    }

    #[test]
    fn a_refusal_of_one_owner_costs_the_other_nothing() {
        let lanes = Lanes::new(9);
        let both = [("namespace", 2), ("store", 1)];
        let held = lanes.try_take(&both).unwrap();
        assert!(lanes.try_take(&both).is_none());
        assert!(lanes.try_take(&[("namespace", 2), ("another store", 1)]).is_some());
        drop(held);
        assert!(lanes.try_take(&both).is_some());
        // Owners that hold nothing are not remembered.
        let _other = lanes.try_take(&[("other", 1)]).unwrap();
        assert_eq!(lanes.owners.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn who_waits_for_its_share_keeps_nobody_else_waiting() {
        let lanes = Arc::new(Lanes::new(2));
        let held = lanes.take(&[("slow", 1)]).await;
        let waiting = tokio::spawn({
            let lanes = lanes.clone();
            async move { lanes.take(&[("slow", 1)]).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let other = tokio::time::timeout(Duration::from_secs(5), lanes.take(&[("quick", 1)])).await;
        assert!(other.is_ok() && !waiting.is_finished());
        drop((held, other));
        drop(tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap());
    }
}
