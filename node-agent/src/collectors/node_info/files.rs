// SPDX-License-Identifier: Apache-2.0
//! What the kernel's files say of the node, its memory, and a network: text in, records out.

use std::collections::BTreeMap;
use std::fs;

use node_agent_common::event::{Event, Header};
use node_agent_common::node_info::counters::NetCounter;
use node_agent_common::node_info::info::NodeInfo;
use node_agent_common::node_info::memory::{ABSENT, MEMINFO, NodeMemory};
use node_agent_common::node_info::net::NodeNet;

use super::of_node;
use crate::kernel::btf::Btf;
use crate::kernel::clock;

/// Time since boot in the unit of /proc/PID/stat, which is the same on every machine.
pub(super) const fn ticks(ns: u64) -> u64 {
    ns / 10_000_000
}

/// When a process began, by its stat file.
pub(super) fn start_ticks(stat: &str) -> Option<u64> {
    // The name is in parentheses and may hold some; the start is the 22nd field.
    stat.rsplit_once(')')?.1.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// A file's text. Names in it, of processes and interfaces, may be any bytes.
pub(super) fn read(path: &str) -> String {
    fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
}

fn header<E: Event>() -> Header {
    Header { tag: E::TAG, ..of_node() }
}

/// Text in a fixed array, cut at a character's end.
pub(super) fn text<const N: usize>(text: &str) -> [u8; N] {
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

pub(super) fn node() -> NodeInfo {
    let uname = crate::session::uname();
    let cpus = read("/proc/cpuinfo");
    let (model, sockets, cores, threads) = processors(&cpus);
    let memory = meminfo(&read("/proc/meminfo"));
    let of = |name: &str| memory.get(name).copied().unwrap_or(0);
    let thp = read("/sys/kernel/mm/transparent_hugepage/enabled");
    let thp = thp.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(word, _)| word);
    // SAFETY: the call takes no pointers.
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let btf = Btf::running();
    let types = |has: &dyn Fn(&Btf) -> bool| u64::from(btf.as_ref().is_ok_and(has));
    let exists = |path: &str| u64::from(fs::exists(path).unwrap_or(false));
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
        btf: btf.is_ok().into(),
        has_fentry: types(&|btf| btf.function("register_ftrace_direct").is_some()),
        has_kprobe: exists("/sys/bus/event_source/devices/kprobe"),
        // The function is there also where it does nothing but refuse.
        has_kprobe_multi: types(&|btf| btf.member("bpf_kprobe_multi_link", "link").is_ok()),
        has_pmu: has_pmu().into(),
    }
}

/// Whether the kernel offers counters of the processors: one device for all of them, or one for each kind.
fn has_pmu() -> bool {
    let devices = fs::read_dir("/sys/bus/event_source/devices").into_iter().flatten().flatten();
    devices.into_iter().any(|device| {
        let name = device.file_name();
        name == "cpu" || ["cpu_", "armv"].iter().any(|kind| name.to_string_lossy().starts_with(kind))
    })
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

pub(super) fn memory_of(meminfo_text: &str, file: &dyn Fn(&str) -> String) -> NodeMemory {
    let memory = meminfo(meminfo_text);
    let (cpu, mem, io) =
        (file("/proc/pressure/cpu"), file("/proc/pressure/memory"), file("/proc/pressure/io"));
    NodeMemory {
        header: header::<NodeMemory>(),
        reserved: 0,
        count: 1,
        meminfo_raw: MEMINFO.map(|(key, _)| memory.get(key).copied().unwrap_or(ABSENT)),
        cpu_some_raw: pressure(&cpu, "some"),
        memory_some_raw: pressure(&mem, "some"),
        memory_full_raw: pressure(&mem, "full"),
        io_some_raw: pressure(&io, "some"),
        io_full_raw: pressure(&io, "full"),
    }
}

/// The lines of /proc/net/dev.
pub(super) fn interfaces(text: &str, of: Header) -> Vec<NodeNet> {
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
            header: Header { tag: NodeNet::TAG, ..of },
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

/// The counters of a network that get rows, by the names that nstat gives them: traffic, and what says that something went
/// wrong. The kernel has some three hundred.
const COUNTERS: &[&str] = &[
    "IpInReceives",
    "IpInDiscards",
    "IpOutRequests",
    "IpOutDiscards",
    "IpOutNoRoutes",
    "IpReasmFails",
    "IpExtInOctets",
    "IpExtOutOctets",
    "Ip6InReceives",
    "Ip6InDiscards",
    "Ip6OutRequests",
    "Ip6OutDiscards",
    "TcpActiveOpens",
    "TcpPassiveOpens",
    "TcpAttemptFails",
    "TcpEstabResets",
    "TcpCurrEstab",
    "TcpInSegs",
    "TcpOutSegs",
    "TcpRetransSegs",
    "TcpInErrs",
    "TcpOutRsts",
    "TcpInCsumErrors",
    "TcpExtListenOverflows",
    "TcpExtListenDrops",
    "TcpExtSyncookiesSent",
    "TcpExtTCPReqQFullDrop",
    "TcpExtTCPTimeouts",
    "TcpExtTCPLossProbes",
    "TcpExtTCPFastRetrans",
    "TcpExtTCPSlowStartRetrans",
    "TcpExtTCPSynRetrans",
    "TcpExtTCPLostRetransmit",
    "TcpExtTCPSpuriousRTOs",
    "TcpExtTCPBacklogDrop",
    "TcpExtTCPRcvQDrop",
    "TcpExtTCPZeroWindowDrop",
    "TcpExtTCPToZeroWindowAdv",
    "TcpExtPruneCalled",
    "TcpExtRcvPruned",
    "TcpExtTCPRcvCollapsed",
    "TcpExtTCPOFOQueue",
    "TcpExtTCPOFODrop",
    "TcpExtTCPAbortOnData",
    "TcpExtTCPAbortOnClose",
    "TcpExtTCPAbortOnMemory",
    "TcpExtTCPAbortOnTimeout",
    "TcpExtTCPMemoryPressures",
    "TcpExtTCPTimeWaitOverflow",
    "UdpInDatagrams",
    "UdpOutDatagrams",
    "UdpNoPorts",
    "UdpInErrors",
    "UdpRcvbufErrors",
    "UdpSndbufErrors",
    "Udp6InDatagrams",
    "Udp6OutDatagrams",
    "Udp6NoPorts",
    "Udp6InErrors",
    "Udp6RcvbufErrors",
    "Udp6SndbufErrors",
];

/// Those of [`COUNTERS`] that files like /proc/net/snmp, netstat and snmp6 have, also where they are 0.
pub(super) fn net_counters(files: &[String], of: Header) -> Vec<NetCounter> {
    let mut found: Vec<NetCounter> = Vec::new();
    let mut take = |name: &str, value: &str| {
        if let (true, Ok(value)) = (COUNTERS.contains(&name), value.parse()) {
            let header = Header { tag: NetCounter::TAG, ..of };
            found.push(NetCounter { header, counter_raw: text(name), count: 1, value });
        }
    };
    for text in files {
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some((protocol, names)) = line.split_once(": ") {
                // Two lines of words: names, then their values.
                let values = lines.next().and_then(|line| line.split_once(": ")).map_or("", |(_, v)| v);
                for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
                    take(&format!("{protocol}{name}"), value);
                }
            } else if let Some((name, value)) = line.split_once(char::is_whitespace) {
                take(name, value.trim());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use node_agent_common::event::until_nul;

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
        let of = |key: &str| {
            found.meminfo_raw[MEMINFO.iter().position(|(name, _)| *name == key).expect("is known")]
        };
        assert_eq!((of("MemTotal"), of("HugePages_Total"), of("MemFree")), (100 << 10, 3, ABSENT));
        assert_eq!((found.memory_some_raw, found.memory_full_raw, found.cpu_some_raw), (126, 1, 0));
    }

    #[test]
    fn interfaces_are_read() {
        let text =
            "Inter-|   Receive  |  Transmit\n face |bytes packets\n  eth0: 1 2 3 4 0 0 0 9 5 6 7 8 0 0 0 0\n";
        let [one] = interfaces(text, of_node()).try_into().expect("one interface");
        assert_eq!(until_nul(&one.ifname_raw), b"eth0");
        assert_eq!((one.rx_bytes, one.rx_drops, one.tx_bytes, one.tx_drops), (1, 4, 5, 8));
    }

    #[test]
    fn counters_have_the_names_that_nstat_prints() {
        let snmp = "Ip: Forwarding InReceives\nIp: 1 7\nTcp: MaxConn RetransSegs CurrEstab\nTcp: -1 3 0\nIcmp: InMsgs\nIcmp: 5\n";
        let snmp6 =
            "Ip6InReceives                   \t9\nIcmp6InMsgs \t4\nUdp6NoPorts \t2\nUdpLite6InErrors 1\n";
        let found =
            net_counters(&[snmp, "TcpExt: ListenDrops\nTcpExt: 11\n", snmp6].map(str::to_owned), of_node());
        let found: Vec<_> = found
            .iter()
            .map(|one| (String::from_utf8_lossy(until_nul(&one.counter_raw)).into_owned(), one.value))
            .collect();
        let expected = [
            ("IpInReceives", 7),
            ("TcpRetransSegs", 3),
            ("TcpCurrEstab", 0),
            ("TcpExtListenDrops", 11),
            ("Ip6InReceives", 9),
            ("Udp6NoPorts", 2),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn the_start_of_a_process_is_the_22nd_field() {
        let fields: Vec<String> = (3..=30).map(|field| field.to_string()).collect();
        assert_eq!(start_ticks(&format!("7 (a) b) {}", fields.join(" "))), Some(22));
        assert_eq!(start_ticks(""), None);
    }

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(text::<4>("a\u{e9}\u{e9}"), [b'a', 0xc3, 0xa9, 0]);
        assert_eq!(text::<4>("abc"), *b"abc\0");
    }
}
