// SPDX-License-Identifier: Apache-2.0
//! When a schedule is due: a cron expression in a time zone.
//!
//! In: `spec.schedule` and `spec.timeZone`. Out: the due times before and after a moment. Pure.
//!
//! One time a day is due once on every day, also when the clock changes: one that summer time skips is due at the first moment
//! after it, one that is repeated is due the first time. (`CronJob` would leave the one day out and run twice on the other.)
//! Several times a day, as lists, ranges and steps, go by the clock: those that are skipped are left out, those that are
//! repeated are due twice, as with `CronJob`.

use std::fmt;

use crds::conditions::reason;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// See the module.
#[derive(Clone, Debug)]
pub struct Times {
    cron: Cron,
    zone: TimeZone,
}

/// Why a schedule has no times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoTimes {
    /// Of the condition.
    pub reason: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Times {
    /// Reads the expression.
    ///
    /// # Errors
    /// When it is none, when it never comes true, or when nobody knows the time zone.
    pub fn new(schedule: &str, zone: Option<&str>) -> Result<Times, NoTimes> {
        let zone = zone.unwrap_or("UTC");
        let found = TimeZone::get(zone).map_err(|_| NoTimes {
            reason: reason::UNKNOWN_TIME_ZONE,
            message: format!("there is no time zone {zone:?}; names are those of IANA, as Europe/Berlin"),
        })?;
        let invalid = |error: &dyn fmt::Display| NoTimes {
            reason: reason::INVALID_SCHEDULE,
            message: format!(
                "{schedule:?} is not a cron expression (minute, hour, day of month, month, day of week, as \"0 3 * * 1-5\"): {error}"
            ),
        };
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let times = Times { cron: parser.parse(schedule).map_err(|error| invalid(&error))?, zone: found };
        // As the 30th of February: better told now than waited for.
        match times.after(Timestamp::now()) {
            Some(_) => Ok(times),
            None => Err(invalid(&"it never comes true")),
        }
    }

    /// The first due time after a moment.
    pub fn after(&self, moment: Timestamp) -> Option<Timestamp> {
        let from = moment.to_zoned(self.zone.clone());
        self.cron.find_next_occurrence(&from, false).ok().map(|due| due.timestamp())
    }

    /// The last due time up to a moment, if it is after `since`.
    pub fn between(&self, since: Timestamp, moment: Timestamp) -> Option<Timestamp> {
        let to = moment.to_zoned(self.zone.clone());
        let due = self.cron.find_previous_occurrence(&to, true).ok()?.timestamp();
        (due > since && due <= moment).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The next due times after a moment.
    fn next(schedule: &str, zone: &str, moment: &str, count: usize) -> Vec<String> {
        let times = Times::new(schedule, Some(zone)).unwrap();
        let following = |moment: &Timestamp| times.after(*moment);
        std::iter::successors(times.after(at(moment)), following)
            .take(count)
            .map(|due| due.to_string())
            .collect()
    }

    #[test]
    fn a_daily_time_is_due_once_on_each_day_of_a_change_to_and_from_summer_time() {
        // Berlin skips 02:00 to 03:00 on 29 March 2026 and repeats it on 25 October.
        assert_eq!(
            next("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 3),
            ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
        );
        assert_eq!(
            next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
        // Several times a day go by the clock.
        assert_eq!(
            next("0,30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 1),
            ["2026-03-30T00:00:00Z"]
        );
        assert_eq!(
            next("0,30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 4),
            ["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z"]
        );
        // What is due each hour goes by the hours there are.
        assert_eq!(
            next("0 * * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", 4),
            ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z", "2026-10-25T03:00:00Z"]
        );
    }

    #[test]
    fn looking_back_finds_the_same_times_as_looking_ahead() {
        for (schedule, zone) in [
            ("30 2 * * *", "Europe/Berlin"),
            ("*/20 * * * *", "America/New_York"),
            ("0 0 1,15 * 1", "UTC"),
            ("45 23 L * *", "Asia/Kathmandu"),
        ] {
            let times = Times::new(schedule, Some(zone)).unwrap();
            for start in [
                "2026-03-28T00:00:00Z",
                "2026-03-08T00:00:00Z",
                "2026-10-24T12:00:00Z",
                "2026-11-01T00:00:00Z",
            ] {
                let mut before = at(start);
                for _ in 0..100 {
                    let due = times.after(before).unwrap();
                    assert_eq!(times.between(before, due), Some(due), "{schedule} {zone} after {before}");
                    let second_before = due - jiff::SignedDuration::from_secs(1);
                    assert_eq!(times.between(before, second_before), None, "{schedule} {zone} before {due}");
                    before = due;
                }
            }
        }
    }

    #[test]
    fn days_of_month_and_week_are_alternatives() {
        assert_eq!(
            next("0 0 1 * 1", "UTC", "2026-05-30T00:00:00Z", 3),
            ["2026-06-01T00:00:00Z", "2026-06-08T00:00:00Z", "2026-06-15T00:00:00Z"]
        );
        assert_eq!(next("@weekly", "UTC", "2026-05-30T00:00:00Z", 1), ["2026-05-31T00:00:00Z"]);
    }

    #[test]
    fn what_is_no_schedule_says_what_one_is() {
        for (schedule, says) in [
            ("", "not a cron expression"),
            ("* * * *", "not a cron expression"),
            ("0 0 3 * * *", "5 fields"),
            ("61 * * * *", "not a cron expression"),
            ("0 0 30 2 *", "never comes true"),
            ("every day", "not a cron expression"),
        ] {
            let error = Times::new(schedule, None).unwrap_err();
            assert_eq!(error.reason, reason::INVALID_SCHEDULE);
            assert!(error.message.contains(says), "{schedule:?}: {}", error.message);
        }
        assert_eq!(
            Times::new("@daily", Some("Europe/Atlantis")).unwrap_err().reason,
            reason::UNKNOWN_TIME_ZONE
        );
    }
}
