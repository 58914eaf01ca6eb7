// SPDX-License-Identifier: Apache-2.0

//! The account in which every hit on a target ends under one name.
//!
//! One row per session, table, node, boot and incarnation (one life of an agent's process):
//! ```text
//! emitted = exported + sampled_out + rate_limited + filtered + lost, by stage
//! ```
//! Each term is counted where it happens; none is computed from the others, so the identity is a
//! check and not a definition. All terms are events: a row that stands for ten events counts ten.
//!
//! An incarnation that ends by a crash takes the kernel's counters with it. Its `emitted` is then
//! unknown (null) and its other terms are the last that it wrote down, at most some seconds old:
//! lower bounds, but for `exported`, which is always exact because it is counted from the store's
//! acknowledgements.

use std::borrow::Cow;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// Declares the ledger's terms once: the enum, its names and docs, and the list of all.
macro_rules! terms {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $place:ident;)+) => {
        /// A name under which an emitted event can end.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Term {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Term {
            /// All of them, in the order of the table's columns.
            pub const ALL: &[Term] = &[$(Term::$variant,)+];

            /// The column's name.
            pub const fn name(self) -> &'static str {
                match self { $(Term::$variant => $name,)+ }
            }

            /// The column's description.
            pub const fn doc(self) -> &'static str {
                match self { $(Term::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// Whether the event should have been stored and was not.
            pub const fn is_loss(self) -> bool {
                matches!(match self { $(Term::$variant => Place::$place,)+ }, Place::Lost)
            }
        }
    };
}

enum Place {
    Kept,
    Cut,
    Lost,
}

terms! {
    /// In objects that the store acknowledged.
    Exported = "exported", Kept;
    /// Left out by sampling; the rows that were kept carry the weight.
    SampledOut = "sampled_out", Cut;
    /// Cut by the session's limit of events per second.
    RateLimited = "rate_limited", Cut;
    /// Did not pass the session's filters, or came from a container that it does not record.
    Filtered = "filtered", Cut;
    /// Lost because the ring between kernel and agent was full.
    LostRingFull = "lost_ring_full", Lost;
    /// Lost because a map in the kernel was full.
    LostMapFull = "lost_map_full", Lost;
    /// Lost because the kernel does not run a program inside itself.
    LostRecursion = "lost_recursion", Lost;
    /// Lost because the agent could not decode the record.
    LostDecodeError = "lost_decode_error", Lost;
    /// Lost from memory: the session was given up, or its segment could not be written.
    LostBatchCut = "lost_batch_cut", Lost;
    /// Lost because the spool had reached its limit or its disk was full.
    LostSpoolFull = "lost_spool_full", Lost;
    /// Lost because a sealed file was damaged or missing when the agent started.
    LostSpoolCorrupt = "lost_spool_corrupt", Lost;
    /// Lost because a sealed file was given up before the store took it.
    LostUploadAbandoned = "lost_upload_abandoned", Lost;
}

/// One row of the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRow {
    /// Kubernetes name of the node.
    pub node: String,
    /// Boot id, 32 hexadecimal digits.
    pub boot: String,
    /// One life of the agent's process, 32 hexadecimal digits.
    pub incarnation: String,
    /// The table whose events are accounted for.
    pub table: String,
    /// Hits on targets, counted in the kernel; none if the counters were lost with the process.
    pub emitted: Option<u64>,
    /// The other side of the account.
    pub terms: Terms,
    /// Rows in acknowledged objects.
    pub rows: u64,
}

/// A count for every [`Term`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms([u64; Term::ALL.len()]);

impl Terms {
    /// The count of one term, in events.
    pub fn get(&self, term: Term) -> u64 {
        self.0[term as usize]
    }

    /// Adds events to one term.
    pub fn add(&mut self, term: Term, events: u64) {
        self.0[term as usize] = self.0[term as usize].saturating_add(events);
    }

    /// Replaces one term by a counter's present value.
    pub fn set(&mut self, term: Term, events: u64) {
        self.0[term as usize] = events;
    }

    /// Adds another account, term by term.
    pub fn merge(&mut self, other: &Self) {
        for term in Term::ALL {
            self.add(*term, other.get(*term));
        }
    }

    /// The sum of all terms, in events.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, value| sum.saturating_add(*value))
    }

    /// The sum of the terms that are losses, in events.
    pub fn lost(&self) -> u64 {
        Term::ALL.iter().filter(|term| term.is_loss()).map(|term| self.get(*term)).sum()
    }
}

// As an object of named counts, so that JSON readers need no list of terms; unknown names are kept out.
impl Serialize for Terms {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Term::ALL.iter().map(|term| (term.name(), self.get(*term))))
    }
}

impl<'de> Deserialize<'de> for Terms {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Named)
    }
}

/// Keeps the names that it knows, one by one: a file may have millions of others.
struct Named;

impl<'de> Visitor<'de> for Named {
    type Value = Terms;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of counts by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Terms, A::Error> {
        let mut terms = Terms::default();
        while let Some((name, count)) = map.next_entry::<Cow<'de, str>, u64>()? {
            if let Some(term) = Term::ALL.iter().find(|term| term.name() == name) {
                terms.set(*term, count);
            }
        }
        Ok(terms)
    }
}

/// An account that does not balance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imbalance {
    /// The row.
    pub row: Box<LedgerRow>,
    /// Its right side.
    pub accounted: u64,
}

impl fmt::Display for Imbalance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LedgerRow { node, incarnation, table, emitted, .. } = &*self.row;
        let (emitted, accounted) = (emitted.unwrap_or_default(), self.accounted);
        write!(
            f,
            "the ledger of {table} on node {node} (incarnation {incarnation}) does not balance: \
             {emitted} events emitted, {accounted} accounted for"
        )
    }
}

impl LedgerRow {
    /// Checks the identity. A row whose `emitted` is unknown cannot be checked and passes.
    ///
    /// # Errors
    /// The row and its right side, when they differ.
    pub fn check(&self) -> Result<(), Imbalance> {
        let accounted = self.terms.total();
        match self.emitted {
            Some(emitted) if emitted != accounted => {
                Err(Imbalance { row: Box::new(self.clone()), accounted })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(emitted: Option<u64>, counts: &[(Term, u64)]) -> LedgerRow {
        let mut row = LedgerRow { emitted, table: "processes".into(), ..LedgerRow::default() };
        counts.iter().for_each(|(term, count)| row.terms.add(*term, *count));
        row
    }

    #[test]
    fn an_account_balances_when_every_event_has_one_name() {
        let counts: Vec<_> = Term::ALL.iter().enumerate().map(|(i, term)| (*term, 1 << i)).collect();
        assert_eq!(row(Some((1 << Term::ALL.len()) - 1), &counts).check(), Ok(()));
    }

    #[test]
    fn an_event_missing_or_counted_twice_is_found_in_every_term() {
        for term in Term::ALL {
            for counted in [6, 8] {
                let bad = row(Some(7), &[(*term, counted)]);
                assert_eq!(bad.check().unwrap_err().accounted, counted, "{}", term.name());
            }
        }
    }

    #[test]
    fn an_incarnation_that_crashed_is_not_judged() {
        assert_eq!(row(None, &[(Term::Exported, 7)]).check(), Ok(()));
    }

    #[test]
    fn losses_are_the_terms_named_lost() {
        for term in Term::ALL {
            assert_eq!(term.is_loss(), term.name().starts_with("lost_"), "{}", term.name());
        }
    }

    #[test]
    fn a_term_added_later_reads_as_zero_from_older_files() {
        let terms: Terms = serde_json::from_str(r#"{"exported": 3, "a_term_of_the_future": 4}"#).unwrap();
        assert_eq!((terms.get(Term::Exported), terms.total()), (3, 3));
    }
}
