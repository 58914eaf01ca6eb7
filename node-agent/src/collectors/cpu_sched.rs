// SPDX-License-Identifier: Apache-2.0
//! `cpuSched`: how long the targets' processes ran and waited for a CPU.
//!
//! In: entries of [`CpuSlices`]. Out: rows of `cpu_sched`.

use node_agent_common::cpu_sched::{COLLECTOR, CpuSlices, OPTION_PER_THREAD, SCHED_FIELDS, at};
use node_agent_common::event::{Event, Header};
use node_agent_common::fields::{Field, TASK_FIELDS};
use node_agent_common::table::CollectorInfo;

use super::{Collector, DecodeError, Decoder, Hook, Values, Verdict};
use crate::kernel::load::{Kernel, KernelError};
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

/// The collector.
pub struct CpuSched;

const PASS: &str = "cpu_pass";
const WARM: &str = "cpu_warm";

impl Collector for CpuSched {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        const {
            &[
                Hook::on("cpu_switch", "sched_switch"),
                Hook::on("cpu_free", "sched_process_free"),
                Hook::iterator(PASS, "task"),
                Hook::run(WARM),
            ]
        }
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[TASK_FIELDS, SCHED_FIELDS]
    }

    fn state(&self) -> &'static [&'static str] {
        &["THREADS"]
    }

    fn aggregations(&self) -> &'static [Aggregation] {
        const { &[Aggregation::of::<CpuSlices>("CPU_SLICES")] }
    }

    fn decoder(&self, _values: &Values) -> Box<dyn Decoder> {
        Box::new(SliceDecoder)
    }

    fn open(&self, kernel: &mut Kernel, slot: u32, values: &Values) -> Result<(), KernelError> {
        kernel.run_everywhere(WARM)?;
        kernel.set_bit("CPU_SCHED_OPTIONS", OPTION_PER_THREAD, slot, values.bool("perThread"))
    }

    fn join(&self, kernel: &mut Kernel, _slot: u32, _cgroups: &[u64]) -> Result<(), KernelError> {
        kernel.iterate(PASS).map(drop)
    }

    fn sample(&self, kernel: &mut Kernel) -> Result<(), KernelError> {
        kernel.iterate(PASS).map(drop)
    }

    fn close(&self, kernel: &mut Kernel, slot: u32) -> Result<(), KernelError> {
        kernel.set_bit("CPU_SCHED_OPTIONS", OPTION_PER_THREAD, slot, false)
    }
}

struct SliceDecoder;

impl Decoder for SliceDecoder {
    fn decode(&mut self, _header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        let slices = CpuSlices::read(raw).ok_or(DecodeError::Length)?;
        row.process(slices.pid, slices.tid, slices.start_ns, &slices.comm);
        row.uint(at::run_sum, slices.run_sum);
        row.uint(at::wait_sum, slices.wait_sum);
        row.uint(at::voluntary, slices.voluntary);
        row.uint(at::involuntary, slices.involuntary);
        row.uint(at::migrations, slices.migrations);
        row.histogram(at::run_hist, &slices.run_hist);
        row.histogram(at::wait_hist, &slices.wait_hist);
        Ok(Verdict::Row)
    }
}
