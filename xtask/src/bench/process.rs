// SPDX-License-Identifier: Apache-2.0

//! What a process costs, by the kernel's own account.

use std::fs;
use std::process::{Child, ExitStatus};

use anyhow::{Context, Result, ensure};

/// What an ended process and the children that it waited for have used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub(super) cpu_ns: u64,
    /// The most memory that one of them had at once.
    pub(super) rss_bytes: u64,
}

/// Waits for the end of a child.
pub(super) fn wait(child: Child) -> Result<(ExitStatus, Usage)> {
    use std::os::unix::process::ExitStatusExt;
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid; the child is ours and nobody else waits for it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let pid = libc::wait4(child.id().cast_signed(), &raw mut status, 0, &raw mut usage);
        ensure!(pid == child.id().cast_signed(), "wait4: {}", std::io::Error::last_os_error());
        usage
    };
    let ns = |time: libc::timeval| {
        time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_usec.unsigned_abs() * 1_000
    };
    let usage = Usage {
        cpu_ns: ns(usage.ru_utime) + ns(usage.ru_stime),
        rss_bytes: usage.ru_maxrss.unsigned_abs() * 1_024,
    };
    Ok((ExitStatus::from_raw(status), usage))
}

/// Memory that a process has now.
pub(super) fn rss_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"));
    let kib: u64 = kib.with_context(|| format!("{path} names no VmRSS"))?.trim().parse()?;
    Ok(kib << 10)
}

/// CPU time that a process has used until now, all threads, to a hundredth of a second.
pub(super) fn cpu_ns(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name may hold spaces and parentheses.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).with_context(|| format!("{path}: {stat:?}"))?;
    // USER_HZ is 100 on every architecture that we build for.
    Ok((user + system) * 10_000_000)
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_ended_child_has_used_something() {
        let child = crate::exec::command("true", [""]).spawn().unwrap();
        let (status, usage) = super::wait(child).unwrap();
        assert!(status.success() && usage.rss_bytes > 4_096, "{status} {usage:?}");
        super::cpu_ns(std::process::id()).unwrap();
        assert!(super::rss_bytes(std::process::id()).unwrap() > 4_096);
    }
}
