// SPDX-License-Identifier: Apache-2.0
//! `nodeInfo`: what the node is, and its memory and interfaces over time.
//!
//! In: the kernel's own files, read at the end of each window. Out: rows of `node_info`, `node_memory` and `node_net`.
//! A file that is not there, or says something else than expected, leaves its columns zero or null: none of them is worth a
//! session.

use std::collections::BTreeMap;
use std::fs;

use node_agent_common::event::{Attribution, Event, Header, until_nul};
use node_agent_common::fields::Field;
use node_agent_common::node_info::info::{self, NodeInfo};
use node_agent_common::node_info::memory::{self, NodeMemory};
use node_agent_common::node_info::net::{self, NodeNet};
use node_agent_common::node_info::{COLLECTOR, INFO_INDEX, MEMORY_INDEX};
use node_agent_common::table::CollectorInfo;

use super::{Collector, DecodeError, Decoder, Hook, Values, Verdict};
use crate::kernel::clock;
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

/// The collector.
pub struct NodeInfoCollector;

/// The network namespace of the node: that of its first process, whose other files are closed to a least-privileged agent.
const INTERFACES: &str = "/proc/1/net/dev";

impl Collector for NodeInfoCollector {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        &[]
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[]
    }

    fn aggregations(&self) -> &'static [Aggregation] {
        const {
            &[
                Aggregation::gathered::<NodeInfo>().once(),
                Aggregation::gathered::<NodeMemory>(),
                Aggregation::gathered::<NodeNet>(),
            ]
        }
    }

    fn decoder(&self, _values: &Values) -> Box<dyn Decoder> {
        Box::new(NodeDecoder)
    }

    fn gather(&self, aggregation: &Aggregation, out: &mut dyn FnMut(&[u8])) {
        match aggregation.table {
            INFO_INDEX => out(node().bytes()),
            MEMORY_INDEX => out(memory_of(&read("/proc/meminfo"), &|file| read(file)).bytes()),
            _ => interfaces(&read(INTERFACES)).iter().for_each(|one| out(one.bytes())),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn header<E: Event>() -> Header {
    Header { tag: E::TAG, attribution: Attribution::Node as u8, ..Header::default() }
}

/// Text in a fixed array, cut at a character's end.
fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    let end = (0..N).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0).min(text.len());
    out[..end].copy_from_slice(&text.as_bytes()[..end]);
    out
}

/// A number with the kernel's unit, as `32K` or `1024 kB`, in bytes.
fn size(text: &str) -> u64 {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().unwrap_or(0);
    match text[split..].trim_start().bytes().next() {
        Some(b'K' | b'k') => number << 10,
        Some(b'M') => number << 20,
        _ => number,
    }
}

fn node() -> NodeInfo {
    let uname = crate::session::uname();
    let cpus = read("/proc/cpuinfo");
    let (model, sockets, cores, threads) = processors(&cpus);
    let memory = meminfo(&read("/proc/meminfo"));
    let of = |name: &str| memory.get(name).copied().unwrap_or(0);
    let thp = read("/sys/kernel/mm/transparent_hugepage/enabled");
    let thp = thp.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(word, _)| word);
    // SAFETY: the call takes no pointers.
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    NodeInfo {
        header: header::<NodeInfo>(),
        kernel_raw: text(&uname.release),
        arch_raw: text(&uname.machine),
        cpu_model_raw: text(&model),
        thp_raw: text(thp),
        boot_id_raw: text(read("/proc/sys/kernel/random/boot_id").trim()),
        count: 1,
        sockets,
        cores,
        threads,
        l1d_bytes: cache(1),
        l2_bytes: cache(2),
        l3_bytes: cache(3),
        ram_bytes: of("MemTotal"),
        swap_bytes: of("SwapTotal"),
        page_size: u64::try_from(page_size).unwrap_or(0),
        clock_offset_ns: clock::utc_offset_ns().cast_unsigned(),
    }
}

/// Name, packages, cores and threads by /proc/cpuinfo.
fn processors(text: &str) -> (String, u64, u64, u64) {
    let (mut model, mut threads) = (String::new(), 0);
    let (mut packages, mut cores) = (BTreeMap::new(), BTreeMap::new());
    for cpu in text.split("\n\n") {
        let field = |name: &str| {
            let line = cpu.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let Some(processor) = field("processor") else { continue };
        threads += 1;
        if let Some(name) = field("model name") {
            model = name;
        }
        // Machines that tell neither have one package, and a core for each thread.
        let package = field("physical id").unwrap_or_default();
        let core = field("core id").unwrap_or(processor);
        packages.insert(package.clone(), ());
        cores.insert((package, core), ());
    }
    (model, packages.len() as u64, cores.len() as u64, threads)
}

/// The first CPU's data or unified cache of that level.
fn cache(level: u32) -> u64 {
    (0..8)
        .map(|index| format!("/sys/devices/system/cpu/cpu0/cache/index{index}/"))
        .find(|folder| {
            read(&format!("{folder}level")).trim() == level.to_string()
                && read(&format!("{folder}type")).trim() != "Instruction"
        })
        .map_or(0, |folder| size(&read(&format!("{folder}size"))))
}

/// /proc/meminfo, in bytes; what has no unit there is a number.
fn meminfo(text: &str) -> BTreeMap<String, u64> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.to_owned(), size(value))).collect()
}

/// The share of ten seconds in /proc/pressure, in hundredths of a percent plus one; 0 where there is none.
fn pressure(text: &str, who: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(who));
    let share = line.and_then(|line| line.split_whitespace().find_map(|word| word.strip_prefix("avg10=")));
    let share: Option<f64> = share.and_then(|share| share.parse().ok());
    share.map_or(0, |share| (share * 100.0).round() as u64 + 1)
}

fn memory_of(meminfo_text: &str, file: &dyn Fn(&str) -> String) -> NodeMemory {
    let memory = meminfo(meminfo_text);
    let of = |name: &str| memory.get(name).copied().unwrap_or(0);
    let (cpu, mem, io) =
        (file("/proc/pressure/cpu"), file("/proc/pressure/memory"), file("/proc/pressure/io"));
    NodeMemory {
        header: header::<NodeMemory>(),
        reserved: 0,
        count: 1,
        mem_total: of("MemTotal"),
        mem_free: of("MemFree"),
        mem_available: of("MemAvailable"),
        buffers: of("Buffers"),
        cached: of("Cached"),
        swap_cached: of("SwapCached"),
        swap_total: of("SwapTotal"),
        swap_free: of("SwapFree"),
        dirty: of("Dirty"),
        writeback: of("Writeback"),
        anon_pages: of("AnonPages"),
        mapped: of("Mapped"),
        shmem: of("Shmem"),
        slab_reclaimable: of("SReclaimable"),
        slab_unreclaimable: of("SUnreclaim"),
        kernel_stack: of("KernelStack"),
        page_tables: of("PageTables"),
        committed: of("Committed_AS"),
        anon_huge_pages: of("AnonHugePages"),
        huge_pages_total: of("HugePages_Total"),
        huge_pages_free: of("HugePages_Free"),
        cpu_some_raw: pressure(&cpu, "some"),
        memory_some_raw: pressure(&mem, "some"),
        memory_full_raw: pressure(&mem, "full"),
        io_some_raw: pressure(&io, "some"),
        io_full_raw: pressure(&io, "full"),
    }
}

/// The lines of /proc/net/dev.
fn interfaces(text: &str) -> Vec<NodeNet> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        // bytes, packets, errs, drop, fifo, frame, compressed, multicast; then the same of sending, with other last four.
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_drops,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_drops,
        ] = *numbers.first_chunk()?;
        Some(NodeNet {
            header: header::<NodeNet>(),
            ifname_raw: self::text(name.trim()),
            count: 1,
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_drops,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_drops,
        })
    };
    text.lines().filter_map(line).collect()
}

struct NodeDecoder;

fn set_text(row: &mut Row<'_>, column: usize, value: &[u8]) {
    if !until_nul(value).is_empty() {
        row.bytes(column, value);
    }
}

impl Decoder for NodeDecoder {
    fn decode(&mut self, header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        match header.tag {
            NodeInfo::TAG => info_row(&NodeInfo::read(raw).ok_or(DecodeError::Length)?, row),
            NodeMemory::TAG => memory_row(&NodeMemory::read(raw).ok_or(DecodeError::Length)?, row),
            _ => net_row(&NodeNet::read(raw).ok_or(DecodeError::Length)?, row),
        }
        Ok(Verdict::Row)
    }
}

fn info_row(node: &NodeInfo, row: &mut Row<'_>) {
    use info::at;
    row.bytes(at::kernel, &node.kernel_raw);
    row.bytes(at::arch, &node.arch_raw);
    set_text(row, at::cpu_model, &node.cpu_model_raw);
    set_text(row, at::thp, &node.thp_raw);
    row.bytes(at::boot_id, &node.boot_id_raw);
    row.uint(at::sockets, node.sockets);
    row.uint(at::cores, node.cores);
    row.uint(at::threads, node.threads);
    row.uint(at::l1d_bytes, node.l1d_bytes);
    row.uint(at::l2_bytes, node.l2_bytes);
    row.uint(at::l3_bytes, node.l3_bytes);
    row.uint(at::ram_bytes, node.ram_bytes);
    row.uint(at::swap_bytes, node.swap_bytes);
    row.uint(at::page_size, node.page_size);
    row.int(at::clock_offset_ns, node.clock_offset_ns.cast_signed());
}

fn memory_row(memory: &NodeMemory, row: &mut Row<'_>) {
    use memory::at;
    for (column, bytes) in [
        (at::mem_total, memory.mem_total),
        (at::mem_free, memory.mem_free),
        (at::mem_available, memory.mem_available),
        (at::buffers, memory.buffers),
        (at::cached, memory.cached),
        (at::swap_cached, memory.swap_cached),
        (at::swap_total, memory.swap_total),
        (at::swap_free, memory.swap_free),
        (at::dirty, memory.dirty),
        (at::writeback, memory.writeback),
        (at::anon_pages, memory.anon_pages),
        (at::mapped, memory.mapped),
        (at::shmem, memory.shmem),
        (at::slab_reclaimable, memory.slab_reclaimable),
        (at::slab_unreclaimable, memory.slab_unreclaimable),
        (at::kernel_stack, memory.kernel_stack),
        (at::page_tables, memory.page_tables),
        (at::committed, memory.committed),
        (at::anon_huge_pages, memory.anon_huge_pages),
        (at::huge_pages_total, memory.huge_pages_total),
        (at::huge_pages_free, memory.huge_pages_free),
    ] {
        row.uint(column, bytes);
    }
    for (column, share) in [
        (at::cpu_some, memory.cpu_some_raw),
        (at::memory_some, memory.memory_some_raw),
        (at::memory_full, memory.memory_full_raw),
        (at::io_some, memory.io_some_raw),
        (at::io_full, memory.io_full_raw),
    ] {
        if share != 0 {
            row.float(column, (share - 1) as f64 / 100.0);
        }
    }
}

fn net_row(one: &NodeNet, row: &mut Row<'_>) {
    use net::at;
    row.bytes(at::ifname, &one.ifname_raw);
    row.uint(at::rx_bytes, one.rx_bytes);
    row.uint(at::rx_packets, one.rx_packets);
    row.uint(at::rx_errors, one.rx_errors);
    row.uint(at::rx_drops, one.rx_drops);
    row.uint(at::tx_bytes, one.tx_bytes);
    row.uint(at::tx_packets, one.tx_packets);
    row.uint(at::tx_errors, one.tx_errors);
    row.uint(at::tx_drops, one.tx_drops);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_kernels_units() {
        assert_eq!(
            (size("  16384 kB"), size("32K\n"), size("7"), size("2M"), size("")),
            (16 << 20, 32 << 10, 7, 2 << 20, 0)
        );
    }

    #[test]
    fn processors_are_counted_by_package_and_core() {
        let cpu = |n: u32, package: u32, core: u32| {
            format!("processor\t: {n}\nmodel name\t: A B\nphysical id\t: {package}\ncore id\t: {core}")
        };
        let text = [cpu(0, 0, 0), cpu(1, 0, 0), cpu(2, 0, 1), cpu(3, 1, 0)].join("\n\n");
        assert_eq!(processors(&text), ("A B".to_owned(), 2, 3, 4));
        assert_eq!(processors("processor : 0\n\nprocessor : 1\n"), (String::new(), 1, 2, 2));
    }

    #[test]
    fn memory_and_pressure_are_read() {
        let files = |path: &str| match path {
            "/proc/pressure/memory" => "some avg10=1.25 avg60=0.00\nfull avg10=0.00 avg60=0.00\n".to_owned(),
            _ => String::new(),
        };
        let found = memory_of("MemTotal:       100 kB\nHugePages_Total:       3\n", &files);
        assert_eq!((found.mem_total, found.huge_pages_total, found.mem_free), (100 << 10, 3, 0));
        assert_eq!((found.memory_some_raw, found.memory_full_raw, found.cpu_some_raw), (126, 1, 0));
    }

    #[test]
    fn interfaces_are_read() {
        let text =
            "Inter-|   Receive  |  Transmit\n face |bytes packets\n  eth0: 1 2 3 4 0 0 0 9 5 6 7 8 0 0 0 0\n";
        let [one] = interfaces(text).try_into().expect("one interface");
        assert_eq!(until_nul(&one.ifname_raw), b"eth0");
        assert_eq!((one.rx_bytes, one.rx_drops, one.tx_bytes, one.tx_drops), (1, 4, 5, 8));
    }

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(text::<4>("a\u{e9}\u{e9}"), [b'a', 0xc3, 0xa9, 0]);
        assert_eq!(text::<4>("abc"), *b"abc\0");
    }
}
