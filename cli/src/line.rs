// SPDX-License-Identifier: Apache-2.0

//! What long work says meanwhile, on standard error: one line that is drawn again on a terminal, lines now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// To the first column, and the line is empty.
const CLEAR: &str = "\r\x1b[2K";
/// A line that is wider than the terminal is cut by it: one that wraps could not be drawn again.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";
/// Where nothing can be drawn again, the same is said this often.
const REMIND: Duration = Duration::from_secs(30);

/// The line; it is gone when this is dropped.
pub(crate) struct Line {
    live: bool,
    /// What was said last where nothing is drawn, and when.
    said: Option<(String, Instant)>,
}

impl Line {
    /// A line where there is a terminal, and somebody wants one.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { live: !quiet && std::io::stderr().is_terminal(), said: None }
    }

    /// Whether somebody sees it change.
    #[cfg(target_os = "linux")]
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Says something that stays, above the line.
    pub(crate) fn say(&self, text: &str) {
        let clear = if self.live { CLEAR } else { "" };
        crate::say(&format!("{clear}{}: {text}\n", crate::program()));
    }

    /// Draws the line, on a terminal only.
    pub(crate) fn draw(&self, text: &str) {
        if self.live {
            // A terminal that is gone is no reason to stop.
            _ = write!(std::io::stderr(), "{CLEAR}{NO_WRAP}{text}{WRAP}");
        }
    }

    /// Draws the line; where there is no terminal, says it when `key` is another than before, and now and then.
    pub(crate) fn show(&mut self, key: &str, text: &str) {
        self.draw(text);
        let is_news = self.said.as_ref().is_none_or(|(said, at)| said != key || at.elapsed() >= REMIND);
        if !self.live && is_news {
            self.say(text);
            self.said = Some((key.to_owned(), Instant::now()));
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.live {
            _ = write!(std::io::stderr(), "{CLEAR}");
        }
    }
}
