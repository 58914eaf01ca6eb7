// SPDX-License-Identifier: Apache-2.0

//! The page of one run, in Markdown.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result};

use super::{APART, Check, Recorded, Work, runs};
use crate::bench::COLLECTORS;
use crate::bench::report::table;
use crate::{cache, exec, tools};

/// Lines of what a program prints that the page shows.
const MOST_LINES: usize = 60;

pub(super) fn page(work: &Work, recorded: &Recorded, report: &str, checked: &[Check]) -> Result<String> {
    let mut text = format!("# {}\n\n{}\n\n", work.title, work.about);
    _ = writeln!(
        text,
        "Written by `cargo xtask work {}`, all of it in one run: {}.\n",
        work.name,
        machine(work)?
    );
    text += "## What ran\n\n```sh\n";
    _ = writeln!(text, "{}\n```\n", work.script.trim());
    text += "after `ip link set lo up`, in a network and in process ids of its own (`counted` prints what that network counted), under\n\n```sh\n";
    _ = writeln!(
        text,
        "tracelake record --interval 1 -c {COLLECTORS} -- {} sh -ec SCRIPT\n```\n",
        APART.join(" ")
    );
    text += "It printed:\n\n";
    text += &block(&printed(&recorded.printed));
    text += "\n## Number by number\n\n";
    text += &checks(checked);
    text += "\nThe tables were asked:\n\n```sql\n";
    for check in checked {
        _ = writeln!(text, "{};", check.sql);
    }
    text += "```\n\n## What the report says\n\n";
    text += &block(report);
    _ = write!(text, "\n## What the notebook's report said\n\n{}\n", work.notebook.trim());
    Ok(text)
}

/// The table of what both sides say.
pub(super) fn checks(checks: &[Check]) -> String {
    let rows: Vec<Vec<String>> = checks
        .iter()
        .map(|check| {
            let verdict = match (check.holds(), check.own == check.ours) {
                (true, true) => "equal".to_owned(),
                (true, false) => format!("within {}: {}", check.within, check.why),
                (false, _) => "NOT EQUAL".to_owned(),
            };
            vec![
                check.what.to_owned(),
                check.source.clone(),
                check.own.to_string(),
                check.ours.to_string(),
                verdict,
            ]
        })
        .collect();
    table(&["what", "who says so", "it says", "tracelake says", ""], &rows)
}

fn machine(work: &Work) -> Result<String> {
    let kernel =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let day = exec::output(&mut exec::command("date", ["-u", "+%F"]))?;
    let commit = exec::output(
        exec::command("git", ["rev-parse", "--short=12", "HEAD"]).current_dir(cache::repository()),
    )?;
    let load = fs::read_to_string("/proc/loadavg").context("cannot read the load")?;
    let mut text = format!(
        "{} CPUs with a load of {}, kernel {}, commit {}, {}",
        std::thread::available_parallelism()?,
        load.split(' ').next().unwrap_or_default(),
        kernel.trim(),
        commit.trim(),
        day.trim()
    );
    for package in work.packages.iter().filter(|package| **package != runs::TOOLS) {
        _ = write!(text, ", {package} {}", tools::debian_version(package)?);
    }
    Ok(text)
}

/// Without the line that carriage returns draw anew, and not all of what is long.
fn printed(text: &str) -> String {
    let lines: Vec<&str> =
        text.lines().map(|line| line.rsplit('\r').next().unwrap_or_default().trim_end()).collect();
    if lines.len() <= MOST_LINES {
        return lines.join("\n");
    }
    let more = lines.len() - MOST_LINES;
    lines[..MOST_LINES].join("\n") + &format!("\n({more} more lines)")
}

fn block(text: &str) -> String {
    format!("```text\n{}\n```\n", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_drawn_anew_is_shown_as_it_was_left() {
        assert_eq!(printed("SET: rps=1\rSET: rps=2\rSET: 3 requests\nend "), "SET: 3 requests\nend");
        let long = "x\n".repeat(MOST_LINES + 2);
        assert!(printed(&long).ends_with("x\n(2 more lines)"));
    }

    #[test]
    fn what_is_apart_says_why_or_that_it_should_not_be() {
        let check = |ours, within| Check {
            what: "bytes",
            source: "it".into(),
            own: 100,
            sql: String::new(),
            ours,
            within,
            why: "headers",
        };
        let text = checks(&[check(100, 0), check(99, 5), check(94, 5)]);
        assert!(
            text.contains("equal") && text.contains("within 5: headers") && text.contains("NOT EQUAL"),
            "{text}"
        );
    }
}
