// SPDX-License-Identifier: Apache-2.0
//! What is told of a session's budget, and how often: the newest word, now and then. Pure.
//!
//! In: each [`Excess`] as it is found. Out: the one that stands in reports.
//! Loses: what is replaced before it was its turn. The first word, and that the session was ended, are told at once.

use std::time::{Duration, Instant};

use super::Excess;

/// How long a word stands at least: each is written into the session's status, and sampling may change every second.
const STANDS: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Default)]
pub struct Told {
    said: Option<Excess>,
    since: Option<Instant>,
    next: Option<Excess>,
}

impl Told {
    /// Goes on with what an earlier process has said.
    pub fn before(said: Option<Excess>) -> Self {
        Self { said, since: None, next: None }
    }

    /// Takes note of a word. Nothing is said any more after that the session was ended.
    pub fn hear(&mut self, excess: Excess, now: Instant) {
        if !self.stopped() {
            self.next = Some(excess);
            self.turn(now);
        }
    }

    /// Says the next word, if it is its turn.
    pub fn turn(&mut self, now: Instant) {
        let stands = self.since.is_some_and(|since| now.saturating_duration_since(since) < STANDS);
        if let Some(excess) = self.next.take_if(|next| next.stopped || !stands) {
            (self.said, self.since) = (Some(excess), Some(now));
        }
    }

    /// What was said last.
    pub fn said(&self) -> Option<&Excess> {
        self.said.as_ref()
    }

    /// Whether the session was ended for its budget.
    pub fn stopped(&self) -> bool {
        self.said().is_some_and(|excess| excess.stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stands_for_a_while_and_the_newest_follows() {
        let excess =
            |message: &str, stopped| Excess { budget: "cpu".into(), stopped, message: message.into() };
        let (began, mut told) = (Instant::now(), Told::before(Some(excess("of before", false))));
        let at = |seconds| began + Duration::from_secs(seconds);
        let said = |told: &Told| told.said().unwrap().message.clone();
        told.hear(excess("one", false), at(0));
        assert_eq!(said(&told), "one", "the first is told at once");
        told.hear(excess("two", false), at(1));
        told.hear(excess("three", false), at(2));
        told.turn(at(29));
        assert_eq!(said(&told), "one");
        told.turn(at(30));
        assert_eq!(said(&told), "three", "none is kept for ever");
        told.turn(at(90));
        told.hear(excess("the end", true), at(91));
        told.hear(excess("after the end", false), at(200));
        assert_eq!((said(&told).as_str(), told.stopped()), ("the end", true));
    }
}
