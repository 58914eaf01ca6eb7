// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask test faults`: what fails around the product, injected, and what is promised all the same.
//!
//! Such a test lies where its subject does and is found by its name, which begins with the fault's number (`f04_...`). So
//! `unit` runs it as well; this part runs these alone, and fails if one of [`FAULTS`] has no test. What each promises is in
//! CONTRIBUTING.md; a test here keeps that table and the code together.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::exec;

/// The faults that these tests inject. Those of spool, kernel and whole nodes are injected by `host`, the VMs and the cluster.
const FAULTS: [&str; 14] =
    ["f04", "f05", "f06", "f07", "f08", "f09", "f10", "f11", "f15", "f16", "f17", "f18", "f26", "f27"];

/// Runs all of them with this `cargo test`, which is called once more to list them.
pub(crate) fn run(mut cargo: impl FnMut() -> Result<Command>) -> Result<()> {
    let mut filtered = |more: &[&str]| -> Result<Command> {
        let mut cargo = cargo()?;
        cargo.args(["--no-fail-fast", "--"]).args(more).args(FAULTS.map(|fault| format!("{fault}_")));
        Ok(cargo)
    };
    let listed = exec::output(&mut filtered(&["--list"])?)?;
    let found = by_fault(listed.lines().filter_map(|line| line.strip_suffix(": test")));
    let without: Vec<_> = FAULTS.iter().filter(|fault| !found.contains_key(**fault)).collect();
    ensure!(without.is_empty(), "no test's name begins with {without:?}");
    exec::loud(&mut filtered(&[])?)?;
    for (fault, tests) in found {
        println!("{fault}: {}", tests.into_iter().collect::<Vec<_>>().join(", "));
    }
    Ok(())
}

/// Tests by the fault whose number their names begin with.
fn by_fault<'a>(tests: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for test in tests {
        let name = test.rsplit("::").next().unwrap_or(test);
        if let Some((fault, _)) = name.split_once('_')
            && FAULTS.contains(&fault)
        {
            found.entry(fault).or_default().insert(name);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cache, tidy};

    #[test]
    fn a_test_is_its_faults_whatever_module_it_is_in() {
        let tests = ["faults::store::f04_one", "f04_two", "pipeline::f99_none", "the_f05_of", "f15_three"];
        let found = by_fault(tests.into_iter());
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), ["f04", "f15"]);
        assert_eq!(found["f04"].len(), 2);
    }

    #[test]
    fn every_fault_has_its_line_and_every_test_of_one_is_in_it() {
        let text = std::fs::read_to_string(cache::repository().join("CONTRIBUTING.md")).unwrap();
        let table: BTreeMap<String, &str> = text
            .lines()
            .filter_map(|line| Some((line.strip_prefix("| F")?.split_once(' ')?.0, line)))
            .filter_map(|(number, line)| Some((format!("f{:02}", number.parse::<u8>().ok()?), line)))
            .collect();
        assert_eq!(table.keys().map(String::as_str).collect::<Vec<_>>(), FAULTS);
        let sources: Vec<String> =
            tidy::sources().iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        let functions = sources.iter().flat_map(|text| text.split("fn ").skip(1));
        let names = functions.filter_map(|rest| rest.split_once('(').map(|(name, _)| name));
        let names: Vec<&str> = names.filter(|name| name.matches('_').count() > 3).collect();
        let found = by_fault(names.into_iter());
        for (fault, line) in table {
            let cited: BTreeSet<&str> = line.split('`').filter(|word| word.starts_with(&fault)).collect();
            assert_eq!(cited, found[fault.as_str()], "{fault} in CONTRIBUTING.md and in the code");
        }
    }
}
