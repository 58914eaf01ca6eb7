// SPDX-License-Identifier: Apache-2.0
//! `processes`: beginnings, program changes and ends of processes in the targets.
//!
//! In: [`ProcessEvent`] and [`ProcessExec`] records. Out: rows of `processes`.
//! CPU times are scaled as the kernel scales them for getrusage(2): the scheduler's exact run time is split in the
//! proportion of the sampled user and system ticks.

use node_agent_common::event::{Event, Header};
use node_agent_common::fields::{Field, TASK_FIELDS};
use node_agent_common::processes::{
    COLLECTOR, Kind, OPTION_ARGS, OPTION_RENAMES, OPTION_THREADS, OPTIONS, ProcessEvent, ProcessExec, at,
};
use node_agent_common::table::CollectorInfo;

use super::{Attach, Better, Collector, DecodeError, Decoder, Hook, Role, Values, Verdict, record};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::load::{Kernel, KernelError};
use crate::pipeline::batch::Row;

/// The collector.
pub struct Processes;

const SNAPSHOT: &str = "process_snapshot";

const HOOKS: &[Hook] = &[
    Hook::tracepoint("sched_process_fork"),
    Hook::tracepoint("sched_process_exec"),
    Hook {
        program: "process_exit",
        // Comes after the memory's end; the name since 6.19 is the first.
        attach: Attach::Entry(&["cgroup_task_exit", "cgroup_exit"]),
        role: Role::Better(Better { than: "sched_process_exit", on: tells_of_exit_early }),
    },
    Hook::tracepoint("sched_process_exit"),
    Hook::tracepoint("cgroup_attach_task"),
    Hook::tracepoint("task_rename"),
    Hook::iterator(SNAPSHOT, "task"),
];

/// Whether `sched_process_exit` comes before the process's memory is taken down (6.16 and newer): what that costs is then
/// missing in the row. The same change gave the tracepoint its second argument.
fn tells_of_exit_early(btf: &Btf) -> bool {
    btf.tracepoint("sched_process_exit").is_some_and(|prototype| prototype.args.len() >= 2)
}

impl Collector for Processes {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        HOOKS
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[TASK_FIELDS]
    }

    fn constants(&self, btf: &Btf) -> Result<Vec<(&'static str, u64)>, BtfError> {
        Ok(vec![("EXIT_HAS_GROUP_DEAD", u64::from(tells_of_exit_early(btf)))])
    }

    fn records(&self) -> &'static [(u16, u32)] {
        const { &[record::<ProcessEvent>(), record::<ProcessExec>()] }
    }

    fn decoder(&self, values: &Values) -> Box<dyn Decoder> {
        Box::new(ProcessDecoder { args: values.bool("args"), page_bytes: super::page_bytes() })
    }

    fn open(&self, kernel: &mut Kernel, slot: u32, values: &Values) -> Result<(), KernelError> {
        for (name, option) in
            [("threads", OPTION_THREADS), ("args", OPTION_ARGS), ("renames", OPTION_RENAMES)]
        {
            kernel.set_bit("PROCESS_OPTIONS", option, slot, values.bool(name))?;
        }
        Ok(())
    }

    fn join(&self, kernel: &mut Kernel, slot: u32, cgroups: &[u64]) -> Result<(), KernelError> {
        let failed = |source| KernelError::Map { map: "SNAPSHOT", source };
        let mut wanted = kernel.hash::<u64, u64>("SNAPSHOT")?;
        for cgroup in cgroups {
            wanted.insert(cgroup, 1 << slot, 0).map_err(failed)?;
        }
        let pass = kernel.iterate(SNAPSHOT);
        let mut wanted = kernel.hash::<u64, u64>("SNAPSHOT")?;
        for cgroup in cgroups {
            wanted.remove(cgroup).map_err(failed)?;
        }
        pass.map(drop)
    }

    fn close(&self, kernel: &mut Kernel, slot: u32) -> Result<(), KernelError> {
        for option in 0..OPTIONS {
            kernel.set_bit("PROCESS_OPTIONS", option, slot, false)?;
        }
        // The next session in the slot has to be told of the processes that live on.
        let mut known = kernel.hash::<u32, [u64; 2]>("KNOWN")?;
        let entries: Vec<_> = known.iter().filter_map(Result::ok).collect();
        for (tid, [start_ns, slots]) in entries {
            let left = slots & !(1 << slot);
            let result = match left {
                _ if left == slots => Ok(()),
                0 => known.remove(&tid),
                _ => known.insert(tid, [start_ns, left], 0),
            };
            // It ended meanwhile: nothing is left to change.
            let _ = result;
        }
        Ok(())
    }
}

struct ProcessDecoder {
    args: bool,
    page_bytes: u64,
}

impl Decoder for ProcessDecoder {
    fn decode(&mut self, header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        if header.tag == ProcessExec::TAG {
            self.exec(&ProcessExec::read(raw).ok_or(DecodeError::Length)?, row);
        } else {
            self.event(&ProcessEvent::read(raw).ok_or(DecodeError::Length)?, row)?;
        }
        Ok(Verdict::Row)
    }
}

impl ProcessDecoder {
    fn event(&self, event: &ProcessEvent, row: &mut Row<'_>) -> Result<(), DecodeError> {
        row.process(event.pid, event.tid, event.start_ns, &event.comm);
        row.word(at::kind, Kind::name(event.what).ok_or(DecodeError::Value("what"))?);
        row.int(at::ppid, event.ppid.into());
        row.int(at::uid, event.uid.into());
        row.int(at::nice, event.nice.into());
        row.bool(at::is_thread, event.pid != event.tid);
        if event.what == Kind::Exit as u32 {
            let (user, system) = adjusted(event.utime_ns, event.stime_ns, event.runtime_ns);
            row.uint(at::maj_flt, event.maj_flt);
            row.uint(at::min_flt, event.min_flt);
            row.uint(at::utime_ns, user);
            row.uint(at::stime_ns, system);
            row.uint(at::max_rss_bytes, event.max_rss_pages.saturating_mul(self.page_bytes));
            row.int(at::exit_code, (event.status >> 8 & 0xff).into());
            row.int(at::signal, (event.status & 0x7f).into());
            row.bool(at::group_dead, event.whole != 0);
        }
        Ok(())
    }

    fn exec(&self, event: &ProcessExec, row: &mut Row<'_>) {
        row.process(event.pid, event.tid, event.start_ns, &event.comm);
        row.word(at::kind, "exec");
        row.int(at::ppid, event.ppid.into());
        row.int(at::uid, event.uid.into());
        row.int(at::nice, event.nice.into());
        row.bool(at::is_thread, false);
        row.bytes(at::exe, &event.exe);
        let args = event.args.get(..event.args_len as usize).unwrap_or_default();
        // Another session of the same target may have asked for arguments; this one gets them only if it did.
        if self.args && !args.is_empty() {
            let words = args.strip_suffix(&[0]).unwrap_or(args);
            row.text(at::args, &String::from_utf8_lossy(words).replace('\0', " "));
        }
    }
}

/// User and system time, scaled to the exact run time (`cputime_adjust` of kernel/sched/cputime.c).
fn adjusted(user: u64, system: u64, runtime: u64) -> (u64, u64) {
    if system == 0 {
        return (runtime, 0);
    }
    if user == 0 {
        return (0, runtime);
    }
    let scaled = u128::from(system) * u128::from(runtime) / (u128::from(system) + u128::from(user));
    // Below runtime, since the divisor is larger than the factor.
    let system = scaled as u64;
    (runtime - system, system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_split_as_getrusage_splits_it() {
        assert_eq!(adjusted(0, 0, 1_700_000), (1_700_000, 0));
        assert_eq!(adjusted(0, 4_000_000, 3_000_000), (0, 3_000_000));
        assert_eq!(adjusted(12_000_000, 4_000_000, 20_000_000), (15_000_000, 5_000_000));
        assert_eq!(adjusted(u64::MAX, u64::MAX, u64::MAX), (u64::MAX - u64::MAX / 2, u64::MAX / 2));
    }
}
