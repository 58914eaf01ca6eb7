// SPDX-License-Identifier: Apache-2.0

//! The workload of benchmarks: a process with exactly so many page faults in user mode, as fast as asked.
//!
//! A fault is the first read of a page of private anonymous memory, which the kernel answers with its page of zeros: the
//! cheapest fault there is, so that what is compared is the recording. It begins when its standard input ends or brings a
//! line, so that a recorder can be told its number first, and prints one line of JSON ([`Outcome`]).

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use serde::{Deserialize, Serialize};

use super::process;

const PAGE: usize = 4_096;
/// Pages of one thread, given back when all are there: few enough for the caches.
const PAGES: usize = 4_096;
/// Faults that one measurement of time is about.
const BATCH: usize = 512;
/// How often a paced thread looks at the clock.
const PACE: Duration = Duration::from_millis(1);

/// `cargo xtask bench-load`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Faults per second of all threads together; 0 is as many as possible.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    #[arg(long)]
    seconds: u64,
    #[arg(long, default_value_t = 1)]
    threads: u64,
}

/// What a load did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Faults in user mode; those of starting and ending are not counted.
    pub(super) faults: u64,
    /// How long they took, sleep included.
    pub(super) wall_ns: u64,
    /// CPU time of this process.
    pub(super) cpu_ns: u64,
    /// Median over batches of the time of one fault.
    pub(super) ns_per_fault: f64,
    /// CPU time that its parent had used when the first fault was made.
    pub(super) parent_cpu_ns: u64,
}

/// One thread's part.
struct Part {
    faults: u64,
    ns_per_fault: Vec<f64>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    ensure!(args.threads > 0 && args.seconds > 0, "nothing to do");
    std::io::stdin().read(&mut [0]).context("waiting for the start")?;
    let parent_cpu_ns = process::cpu_ns(std::os::unix::process::parent_id()).unwrap_or_default();
    let began = Instant::now();
    let (until, rate) = (began + Duration::from_secs(args.seconds), args.rate / args.threads);
    let parts = std::thread::scope(|scope| -> Result<Vec<Part>> {
        let threads: Vec<_> = (0..args.threads).map(|_| scope.spawn(|| part(rate, until))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a load does not panic")).collect()
    })?;
    let wall_ns = began.elapsed().as_nanos().try_into()?;
    let mut times: Vec<f64> = parts.iter().flat_map(|part| part.ns_per_fault.iter().copied()).collect();
    let outcome = Outcome {
        faults: parts.iter().map(|part| part.faults).sum(),
        wall_ns,
        cpu_ns: process::cpu_ns(std::process::id())?,
        ns_per_fault: super::report::median(&mut times),
        parent_cpu_ns,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn part(rate: u64, until: Instant) -> Result<Part> {
    // SAFETY: a new mapping that nothing else knows; it lives as long as the process.
    let memory = unsafe {
        let (length, private) = (PAGES * PAGE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        let memory = mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ, private)?;
        madvise(memory, length, Advice::LinuxNoHugepage)?;
        memory.cast::<u8>()
    };
    let began = Instant::now();
    let mut part = Part { faults: 0, ns_per_fault: Vec::with_capacity(1 << 20) };
    let mut next = 0;
    while Instant::now() < until {
        let due = match rate {
            0 => BATCH as u64,
            rate => {
                let due = (began.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000) as u64;
                due.saturating_sub(part.faults)
            }
        };
        if due == 0 {
            std::thread::sleep(PACE);
            continue;
        }
        for _ in 0..due.div_ceil(BATCH as u64) {
            if next == PAGES {
                // SAFETY: this thread's own mapping.
                unsafe { madvise(memory.cast(), PAGES * PAGE, Advice::LinuxDontNeed)? };
                next = 0;
            }
            let start = Instant::now();
            for page in next..next + BATCH {
                // SAFETY: inside the mapping, which is readable.
                unsafe { std::ptr::read_volatile(memory.add(page * PAGE)) };
            }
            next += BATCH;
            part.faults += BATCH as u64;
            if part.ns_per_fault.len() < part.ns_per_fault.capacity() {
                part.ns_per_fault.push(start.elapsed().as_nanos() as f64 / BATCH as f64);
            }
        }
    }
    Ok(part)
}
