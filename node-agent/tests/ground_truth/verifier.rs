// SPDX-License-Identifier: Apache-2.0
//! What each program costs the verifier, against `verifier.txt`: a program that grows without a reason is one that some
//! kernel will refuse.
//!
//! Lines of the file: environment, program (the 15 bytes that the kernel keeps of its name, and which of those that share them), instructions that the verifier
//! went through; before those of an environment stands when and why they were renewed last, by
//! `cargo xtask test --bless REASON`.

use std::collections::{BTreeMap, BTreeSet};

use aya::programs::{ProgramInfo, loaded_programs};

use crate::support::as_root;

const BASELINE: &str = include_str!("verifier.txt");
/// The verifier gives up at a million; other kernels may need twice what these do.
const MOST: u32 = 500_000;

/// Programs that are loaded now.
pub(crate) fn loaded() -> BTreeSet<u32> {
    as_root(|| loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect())
}

/// Checks those that came since `before`.
pub(crate) fn check(environment: &str, before: &BTreeSet<u32>) {
    let new: Vec<_> = as_root(|| loaded_programs().filter_map(Result::ok).collect());
    let mut all: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for program in new.iter().filter(|program| !before.contains(&program.id())) {
        let instructions = ProgramInfo::verified_instruction_count(program).expect("kernels since 5.16 say");
        all.entry(program.name_as_str().expect("a name in ASCII").to_owned()).or_default().push(instructions);
    }
    // Where 15 bytes are the same for several programs, they are told apart by their cost.
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    for (name, mut instructions) in all {
        instructions.sort_unstable();
        found.extend(
            instructions.into_iter().enumerate().map(|(place, one)| (format!("{name}/{place}"), one)),
        );
    }
    assert!(found.len() > 20, "every collector is loaded: {found:?}");
    let large: Vec<_> = found.iter().filter(|(_, instructions)| **instructions > MOST).collect();
    assert!(large.is_empty(), "close to what the verifier refuses: {large:?}");
    // The host's kernel is whatever it is.
    if environment == "host" {
        return;
    }
    let mut expected: BTreeMap<String, u32> = BTreeMap::new();
    for line in BASELINE.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        if words[0] == environment {
            expected.insert(words[1].to_owned(), words[2].parse().expect("a number"));
        }
    }
    let same = |(name, instructions): (&String, &u32)| {
        expected.get(name).is_some_and(|before| *instructions <= before + before / 5)
    };
    let blessed = std::env::var_os("TRACELAKE_BLESS").is_some();
    if blessed || found.keys().ne(expected.keys()) || !found.iter().all(same) {
        let lines: Vec<String> =
            found.iter().map(|(name, instructions)| format!("{environment} {name} {instructions}")).collect();
        panic!(
            "programs were added, removed or grew by more than a fifth since verifier.txt. If that is meant, run `cargo xtask test \
             --bless 'why' {environment}`. Now they are:\n{}",
            lines.join("\n")
        );
    }
}
