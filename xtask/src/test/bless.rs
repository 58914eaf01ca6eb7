// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask test --bless`: what the verifiers of the VMs go through, written down anew.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::{PARTS, Run, ground_truth_in};
use crate::{cache, exec};

/// Writes what the verifiers of these VMs say now to the file that `ground_truth/verifier.rs` compares with.
pub(super) fn bless(parts: &[String], reason: &str) -> Result<()> {
    ensure!(!reason.trim().is_empty() && !reason.contains('\n'), "the reason is one line of text");
    let path = cache::repository().join("node-agent/tests/ground_truth/verifier.txt");
    let vms = PARTS.iter().filter_map(|part| match part.run {
        Run::Vm(machine, "") if parts.is_empty() || parts.iter().any(|name| name == part.name) => {
            Some((part.name, machine))
        }
        _ => None,
    });
    let vms: Vec<_> = vms.collect();
    let other = parts.iter().find(|part| vms.iter().all(|(name, _)| name != part));
    ensure!(other.is_none(), "{} is no VM with all of ground truth", other.map_or("", String::as_str));
    let day = exec::output(&mut exec::command("date", ["-u", "+%F"]))?;
    for (environment, machine) in vms {
        // Fails where it differs, and names every program with its number then.
        let command = format!(
            "TRACELAKE_BLESS=1 TRACELAKE_ENVIRONMENT={environment} /ground_truth --test-threads=1 every_collector_does_here"
        );
        let mut found: Vec<String> = Vec::new();
        let mine = format!("{environment} ");
        ground_truth_in(machine, &command, &mut |line| {
            print!("{environment}: {line}");
            if line.starts_with(&mine) {
                found.push(line.trim().to_owned());
            }
        })?;
        ensure!(!found.is_empty(), "{environment} named no program");
        let old = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let others = old
            .lines()
            .filter(|line| !line.starts_with(&mine) && !line.starts_with(&format!("# {environment}, ")));
        let mut lines: Vec<String> = others.map(str::to_owned).collect();
        lines.push(format!("# {environment}, {}: {}", day.trim(), reason.trim()));
        lines.append(&mut found);
        fs::write(&path, lines.join("\n") + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("== {environment}: renewed in {}", path.display());
    }
    Ok(())
}
