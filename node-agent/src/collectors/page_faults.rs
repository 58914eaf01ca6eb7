// SPDX-License-Identifier: Apache-2.0
//! `pageFaults`: page faults of the targets' processes, summed up per window, or each by itself.
//!
//! In: entries of [`PageFaults`], and [`PageFaultEvent`] records for sessions with the parameter `events`. Out: rows of
//! `page_faults`.
//! A session's first pass takes down what every thread has had before; the last one comes before its slot is disabled.

use node_agent_common::event::{Event, Header};
use node_agent_common::fields::{Field, TASK_FIELDS};
use node_agent_common::page_faults::{COLLECTOR, INDEX, PageFaultEvent, PageFaults, REGS_FIELDS, at, cause};
use node_agent_common::table::CollectorInfo;

use super::{Collector, DecodeError, Decoder, Hook, Values, Verdict, record};
use crate::kernel::load::{Kernel, KernelError};
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

/// The collector.
pub struct PageFaultsCollector;

const PASS: &str = "page_fault_pass";

impl Collector for PageFaultsCollector {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        const {
            &[
                Hook::on("page_fault_fork", "sched_process_fork"),
                Hook::on("page_fault_exec", "sched_process_exec"),
                Hook::on("page_fault_exit", "sched_process_exit"),
                Hook::on("page_fault_move", "cgroup_attach_task"),
                Hook::on("page_fault_single", "page_fault_user"),
                Hook::iterator(PASS, "task"),
            ]
        }
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[TASK_FIELDS, REGS_FIELDS]
    }

    fn records(&self) -> &'static [(u16, u32)] {
        const { &[record::<PageFaultEvent>()] }
    }

    fn state(&self) -> &'static [&'static str] {
        &["FAULTS_SEEN"]
    }

    fn aggregations(&self) -> &'static [Aggregation] {
        const { &[Aggregation::of::<PageFaults>("PAGE_FAULTS").exact()] }
    }

    fn decoder(&self, _values: &Values) -> Box<dyn Decoder> {
        Box::new(FaultDecoder)
    }

    fn open(&self, kernel: &mut Kernel, slot: u32, values: &Values) -> Result<(), KernelError> {
        kernel.set_each(INDEX, slot, values.bool("events"))
    }

    fn join(&self, kernel: &mut Kernel, _slot: u32, _cgroups: &[u64]) -> Result<(), KernelError> {
        self.sample(kernel)
    }

    fn sample(&self, kernel: &mut Kernel) -> Result<(), KernelError> {
        kernel.iterate(PASS).map(drop)
    }
}

struct FaultDecoder;

impl Decoder for FaultDecoder {
    fn decode(&mut self, header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        if header.tag == PageFaults::TAG {
            let sums = PageFaults::read(raw).ok_or(DecodeError::Length)?;
            row.process(sums.pid, sums.pid, sums.start_ns, &sums.comm);
            row.uint(at::major, sums.major);
            row.uint(at::minor, sums.minor);
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
