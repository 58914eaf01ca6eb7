// SPDX-License-Identifier: Apache-2.0
//! `pageFaults`: page faults of the targets' processes, summed up per window, or each by itself.
//!
//! In: entries of [`PageFaults`], and [`PageFaultEvent`] records for sessions with the parameter `events`. Out: rows of
//! `page_faults`.
//! A session's first pass takes down what every thread has had before; the last one comes before its slot is disabled.

use node_agent_common::event::{Event, Header};
use node_agent_common::fields::{Field, TASK_FIELDS};
use node_agent_common::page_faults::{
    COLLECTOR, DETAILS, Kind, OPTION_DETAIL, PageFaultEvent, PageFaults, REGS_FIELDS, VMA_FIELDS, at, cause,
};
use node_agent_common::table::CollectorInfo;

use super::{Attach, Collector, DecodeError, Decoder, Hook, Role, Values, Verdict, record, word};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::load::{Kernel, KernelError};
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

/// The collector.
pub struct PageFaultsCollector;

const PASS: &str = "page_fault_pass";
/// The hook of single faults.
const SINGLE: &[&str] = &["page_fault_single"];
/// The hooks of faults that are told apart.
const APART: &[&str] = &["page_fault_begin", "page_fault_end"];
const HANDLER: &[&str] = &["handle_mm_fault"];
/// What enum `vm_fault_reason` calls errors; `VM_FAULT_ERROR` itself is a macro.
const ERRORS: &[&str] = &[
    "VM_FAULT_OOM",
    "VM_FAULT_SIGBUS",
    "VM_FAULT_SIGSEGV",
    "VM_FAULT_HWPOISON",
    "VM_FAULT_HWPOISON_LARGE",
    "VM_FAULT_FALLBACK",
];

impl Collector for PageFaultsCollector {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        const {
            &[
                Hook::on("page_fault_fork", "sched_process_fork"),
                Hook::on("page_fault_exit", "sched_process_exit"),
                Hook::on("page_fault_free", "sched_process_free"),
                Hook::on("page_fault_move", "cgroup_attach_task"),
                Hook::iterator(PASS, "task"),
                Hook { role: Role::Asked, ..Hook::on(SINGLE[0], "page_fault_user") },
                Hook { program: APART[0], attach: Attach::Entry(HANDLER), role: Role::AskedExtra },
                Hook { program: APART[1], attach: Attach::Exit(HANDLER), role: Role::Asked },
            ]
        }
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[TASK_FIELDS, REGS_FIELDS, VMA_FIELDS]
    }

    fn constants(&self, btf: &Btf) -> Result<Vec<(&'static str, u64)>, BtfError> {
        let bit = |of: &str, name: &str| btf.enumerator(Some(of), name).map(i64::cast_unsigned);
        let (flag, result) = (|name| bit("fault_flag", name), |name: &str| bit("vm_fault_reason", name));
        let errors = ERRORS.iter().map(|name| result(name)).sum::<Result<u64, _>>()?;
        Ok(vec![
            ("FAULT_WRITE", flag("FAULT_FLAG_WRITE")?),
            ("FAULT_EXEC", flag("FAULT_FLAG_INSTRUCTION")?),
            ("FAULT_TRIED", flag("FAULT_FLAG_TRIED")?),
            ("RESULT_MAJOR", result("VM_FAULT_MAJOR")?),
            ("RESULT_RETRY", result("VM_FAULT_RETRY")?),
            ("RESULT_ERROR", errors),
        ])
    }

    fn records(&self) -> &'static [(u16, u32)] {
        const { &[record::<PageFaultEvent>()] }
    }

    fn state(&self) -> &'static [&'static str] {
        &["FAULTS_SEEN", "FAULT_ATTEMPTS"]
    }

    fn aggregations(&self) -> &'static [Aggregation] {
        const { &[Aggregation::of::<PageFaults>("PAGE_FAULTS").exact()] }
    }

    fn each(&self, values: &Values) -> bool {
        values.bool("events")
    }

    fn asks(&self, values: &Values) -> &'static [&'static str] {
        match (values.bool("events"), apart(values)) {
            (true, _) => SINGLE,
            (false, true) => APART,
            (false, false) => &[],
        }
    }

    fn decoder(&self, _values: &Values) -> Box<dyn Decoder> {
        Box::new(FaultDecoder)
    }

    fn open(&self, kernel: &mut Kernel, slot: u32, values: &Values) -> Result<(), KernelError> {
        kernel.set_bit("PAGE_FAULT_OPTIONS", OPTION_DETAIL, slot, apart(values))
    }

    fn join(&self, kernel: &mut Kernel, _slot: u32, _cgroups: &[u64]) -> Result<(), KernelError> {
        self.sample(kernel)
    }

    fn sample(&self, kernel: &mut Kernel) -> Result<(), KernelError> {
        kernel.iterate(PASS).map(drop)
    }
}

/// Whether a session wants faults told apart.
fn apart(values: &Values) -> bool {
    !values.bool("events") && values.choice("detail") == DETAILS[1]
}

struct FaultDecoder;

impl Decoder for FaultDecoder {
    fn decode(&mut self, header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        if header.tag == PageFaults::TAG {
            let sums = PageFaults::read(raw).ok_or(DecodeError::Length)?;
            row.process(sums.pid, sums.pid, sums.start_ns, &sums.comm);
            row.uint(at::major, sums.major);
            row.uint(at::minor, sums.minor);
            if sums.kind_raw != 0 {
                row.word(at::kind, word(Kind::NAMES, sums.kind_raw, "kind")?);
                row.uint(at::writes, sums.writes);
                row.uint(at::execs, sums.execs);
                row.uint(at::retries, sums.retries);
                row.uint(at::failed, sums.failed);
                row.histogram(at::latency_hist, &sums.latency_hist);
            }
        } else {
            let fault = PageFaultEvent::read(raw).ok_or(DecodeError::Length)?;
            row.process(fault.pid, fault.tid, fault.start_ns, &fault.comm);
            row.int(at::address, fault.address.cast_signed());
            row.int(at::ip, fault.ip.cast_signed());
            row.bool(at::write, fault.error_code & cause::WRITE != 0);
            row.bool(at::exec, fault.error_code & cause::EXEC != 0);
        }
        Ok(Verdict::Row)
    }
}
