// SPDX-License-Identifier: Apache-2.0
//! The time up to which a table's rows are safe: what a crash of the agent would lose is younger.
//!
//! In: the times of rows as they come. Out: the oldest of those that are in no sealed file yet. A batch carries a
//! [`Mark`] to whoever writes it; the rows are unsealed for as long as the mark lives.

use std::sync::{Arc, Weak};

/// Kept with rows until they are sealed, or counted as lost.
#[derive(Clone, Debug, Default)]
pub struct Mark(#[allow(dead_code, reason = "only its life counts")] Arc<()>);

/// See the module.
#[derive(Debug, Default)]
pub struct Unsealed {
    /// The oldest row that is not handed on.
    here: Option<u64>,
    /// The oldest row of each batch that was.
    under_way: Vec<(u64, Weak<()>)>,
}

impl Unsealed {
    /// Takes note of a row of that time, nanoseconds since boot.
    pub fn saw(&mut self, ts_ns: u64) {
        self.here = Some(self.here.map_or(ts_ns, |oldest| oldest.min(ts_ns)));
    }

    /// All rows so far become a batch, which takes the mark with it.
    pub fn hand_on(&mut self) -> Mark {
        self.under_way.retain(|(_, mark)| mark.strong_count() > 0);
        let mark = Mark::default();
        if let Some(oldest) = self.here.take() {
            self.under_way.push((oldest, Arc::downgrade(&mark.0)));
        }
        mark
    }

    /// The time of the oldest row that is in no sealed file; none if all are.
    pub fn oldest(&self) -> Option<u64> {
        let alive = self.under_way.iter().filter(|(_, mark)| mark.strong_count() > 0);
        alive.map(|(oldest, _)| *oldest).chain(self.here).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unsealed_until_their_mark_is_gone() {
        let mut unsealed = Unsealed::default();
        assert_eq!(unsealed.oldest(), None);
        unsealed.saw(20);
        unsealed.saw(10);
        let first = unsealed.hand_on();
        unsealed.saw(30);
        let second = unsealed.hand_on();
        unsealed.saw(25);
        assert_eq!(unsealed.oldest(), Some(10));
        drop(first);
        assert_eq!(unsealed.oldest(), Some(25));
        drop(unsealed.hand_on());
        assert_eq!(unsealed.oldest(), Some(30));
        drop(second);
        assert_eq!(unsealed.oldest(), None);
    }
}
