// SPDX-License-Identifier: Apache-2.0
//! Budgets against rates and costs that are known.

use super::*;

#[test]
fn small_rates_are_left_alone_and_the_others_share_what_they_leave() {
    assert_eq!(shares(&[10.0, 9_000.0], 100.0), [1, 128]);
    assert_eq!(shares(&[500.0, 500.0, 1.0], 101.0), [12, 12, 1]);
    assert_eq!(shares(&[40.0, 60.0], 100.0), [1, 1]);
    assert_eq!(shares(&[1e12], 1.0), [MOST]);
    assert_eq!(shares(&[1.2e6, 2e6], 0.9), [MOST, MOST], "one takes more than its part");
    assert_eq!(shares(&[5.0, 7.0], f64::INFINITY), [1, 1]);
    assert_eq!(shares(&[], 1.0), [0u64; 0]);
}

#[test]
fn weights_are_few_so_that_they_come_again() {
    let steps: Vec<u64> = (1..=33).map(|times| step(f64::from(times) - 0.5)).collect();
    let mut distinct = steps.clone();
    distinct.dedup();
    assert_eq!(distinct, [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]);
    assert!(steps.iter().zip(1..).all(|(step, times)| *step >= times && *step * 2 <= times * 3));
    assert_eq!((step(1e18), step(f64::INFINITY)), (MOST, MOST));
}

/// A session of two tables whose events come at so many a second, and which also has rows of sums.
struct Case {
    meter: Meter,
    hits: [u64; 2],
    spent: Spent,
    /// What a row costs.
    row: Duration,
    /// Rows of sums in a second.
    sums: u64,
}

impl Case {
    fn new(budget: Budget) -> Self {
        let meter = Meter::new(budget, Duration::ZERO, [("faults", 1), ("execs", 1)]);
        let (hits, spent) = ([0; 2], Spent::default());
        Case { meter, hits, spent, row: Duration::from_micros(10), sums: 0 }
    }

    fn second(&mut self, rates: [u64; 2]) -> Option<Excess> {
        self.hits.iter_mut().zip(rates).for_each(|(hits, rate)| *hits += rate);
        let events: u64 = self.weights().into_iter().zip(rates).map(|(weight, rate)| rate / weight).sum();
        self.spent.events += events;
        self.spent.records += events + self.sums;
        self.spent.cpu += self.row * (events + self.sums) as u32;
        let hits = self.hits;
        self.meter.look(1.0, |table| hits[usize::from(table == "execs")], self.spent)
    }

    /// What the seconds of so many periods say.
    fn periods(&mut self, periods: usize, rates: [u64; 2]) -> Vec<Excess> {
        (0..5 * periods).filter_map(|_| self.second(rates)).collect()
    }

    fn weights(&self) -> Vec<u64> {
        self.meter.weights().map(|(_, weight)| weight).collect()
    }
}

const EVENTS_1000: Budget = Budget { events_per_second: 1_000, cpu_millis: 0, stop: false };
const CPU_100M: Budget = Budget { events_per_second: 0, cpu_millis: 100, stop: false };

#[test]
fn a_rate_above_the_budget_is_sampled_at_once_and_below_it_again_after_ten_seconds() {
    let mut case = Case::new(EVENTS_1000);
    assert_eq!(case.second([900, 10]), None);
    let excess = case.second([8_000, 10]).unwrap();
    assert_eq!(
        (excess.budget.as_str(), excess.stopped, excess.message.as_str()),
        (
            "eventsPerSecond",
            false,
            "eventsPerSecond is 1000, 8010 a second were found: of faults 1 of 12 becomes a row"
        )
    );
    assert_eq!(case.weights(), [12, 1], "the few events of the other table are all there");
    assert_eq!(case.second([11_000, 10]), None, "a rate that wavers changes nothing");
    let seconds = (0..20).position(|_| case.second([100, 10]).is_some()).unwrap();
    assert_eq!((seconds, case.weights()), (9, vec![1, 1]));
}

#[test]
fn a_little_above_the_budget_counts_when_it_stays_so() {
    for stop in [false, true] {
        let mut case = Case::new(Budget { stop, ..EVENTS_1000 });
        assert_eq!(case.second([1_100, 0]), None);
        assert_eq!(case.second([900, 0]), None);
        assert_eq!(case.second([1_100, 0]), None);
        assert_eq!(case.second([1_100, 0]).unwrap().stopped, stop);
        assert!(
            Case::new(Budget { stop, ..EVENTS_1000 }).second([1_250, 0]).is_some(),
            "much more does at once"
        );
    }
}

#[test]
fn what_cannot_be_sampled_further_is_said_once() {
    let mut case = Case::new(Budget { events_per_second: 1, ..Budget::default() });
    let said = case.periods(4, [1 << 30, 0]);
    assert_eq!((said.len(), case.weights()), (1, vec![MOST, 1]), "{said:?}");
}

#[test]
fn a_session_that_is_to_stop_stops_once() {
    let mut case = Case::new(Budget { stop: true, ..EVENTS_1000 });
    assert_eq!(case.second([500, 500]), None);
    assert!(case.second([900, 900]).unwrap().stopped);
    assert_eq!((case.second([900, 900]), case.weights()), (None, vec![1, 1]));
}

#[test]
fn cpu_above_its_budget_leaves_fewer_rows_until_it_fits_and_more_when_there_is_room() {
    let mut case = Case::new(CPU_100M);
    assert_eq!(case.periods(1, [9_000, 0]), []);
    let excess = case.periods(1, [40_000, 0]).pop().unwrap();
    assert_eq!(
        (excess.budget.as_str(), excess.message.as_str()),
        (
            "cpu",
            "cpu is 100m and allows 10000 rows a second, 40000 were found: of faults 1 of 6 becomes a row"
        )
    );
    assert_eq!(case.periods(3, [40_000, 0]), []);
    let said = case.periods(3, [1_000, 0]);
    assert_eq!((said.len(), case.weights()), (1, vec![1, 1]), "{said:?}");
    let all = "cpu is 100m: events were sampled for a time, all become rows again";
    assert_eq!((said[0].budget.as_str(), said[0].message.as_str()), ("cpu", all));
}

#[test]
fn all_tables_together_have_to_fit_before_a_cpu_budget_is_lifted() {
    let mut case = Case::new(CPU_100M);
    case.periods(1, [8_000, 8_000]);
    let sampled = case.weights();
    assert_eq!(sampled, [2, 2]);
    // Each table alone would fit.
    assert_eq!(case.periods(6, [8_000, 8_000]), []);
    assert_eq!(case.weights(), sampled);
}

#[test]
fn what_sums_cost_is_not_taken_for_the_cost_of_events() {
    let mut case = Case { sums: 6_000, ..Case::new(CPU_100M) };
    // 60m of sums leave 40m, which are 4,000 rows.
    let excess = case.periods(1, [8_000, 0]).pop().unwrap();
    assert!(excess.message.contains("allows 4000 rows a second"), "{}", excess.message);
    assert_eq!(case.weights(), [3, 1]);
    assert_eq!(case.periods(6, [8_000, 0]), [], "that is enough");
}

#[test]
fn a_session_that_has_sums_alone_says_that_they_cannot_be_sampled() {
    let mut case = Case { sums: 25_000, ..Case::new(CPU_100M) };
    let said = case.periods(8, [0, 0]);
    let message = "cpu is 100m, 250m went into the session: it has no rows of single events, and sums cannot be sampled";
    assert_eq!(said.iter().map(|one| one.message.as_str()).collect::<Vec<_>>(), [message]);
    assert!(!said[0].stopped);
}

#[test]
fn cpu_ends_a_session_that_is_to_stop_when_it_stays_above_and_not_before() {
    let mut case = Case { sums: 25_000, ..Case::new(Budget { stop: true, ..CPU_100M }) };
    assert_eq!(case.periods(2, [0, 0]), []);
    case.sums = 5_000;
    assert_eq!(case.periods(1, [0, 0]), []);
    case.sums = 25_000;
    assert_eq!(case.periods(2, [0, 0]), []);
    let excess = case.periods(3, [0, 0]);
    assert_eq!(excess.len(), 1);
    assert_eq!(excess[0].message, "cpu is 100m, 250m went into the session: recording ended");
}
