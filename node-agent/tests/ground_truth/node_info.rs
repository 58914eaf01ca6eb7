// SPDX-License-Identifier: Apache-2.0
//! What the node is, against sysinfo(2), uname(2) and sysconf(3), which read the kernel and not its files.

use std::time::{Duration, Instant};

use node_agent_common::node_info::{MEMORY, memory};
use tracelake_node_agent::engine::CollectorSpec;
use tracelake_node_agent::kernel::clock;

use crate::expectations::has_fentry;
use crate::support::{Recording, Row, TABLE, number};

#[test]
fn the_node_is_what_the_kernel_says() {
    let spec = CollectorSpec {
        name: "nodeInfo".into(),
        interval: Duration::from_millis(200),
        ..CollectorSpec::default()
    };
    let recording = Recording::start(spec, &[]);
    let looked = || {
        recording
            .engine
            .counters(recording.session)
            .iter()
            .find(|c| c.table == "node_memory")
            .map(|c| c.emitted)
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while looked() < Some(3) {
        assert!(Instant::now() < deadline, "three windows of 200 ms within 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (rows, _) = recording.finish();
    let of = |table: &str| -> Vec<&Row> { rows.iter().filter(|row| row[TABLE] == table).collect() };
    let (info, memory_rows, net) = (of("node_info"), of("node_memory"), of("node_net"));

    // SAFETY: an all-zero sysinfo is valid, and the call fills it.
    let system = unsafe {
        let mut system: libc::sysinfo = std::mem::zeroed();
        assert_eq!(libc::sysinfo(&raw mut system), 0);
        system
    };
    let ram = system.totalram as i64 * i64::from(system.mem_unit);
    // SAFETY: the calls take no pointers.
    let (cpus, page) =
        unsafe { (libc::sysconf(libc::_SC_NPROCESSORS_ONLN), libc::sysconf(libc::_SC_PAGESIZE)) };
    assert_eq!(info.len(), 1, "once for a session: {info:?}");
    let info = info[0];
    assert_eq!(info["kernel"], tracelake_node_agent::session::uname().release);
    assert_eq!((number(info, "ram_bytes"), number(info, "threads")), (ram, cpus));
    assert_eq!(number(info, "page_size"), page);
    assert!((number(info, "clock_offset_ns") - clock::utc_offset_ns()).abs() < 1_000_000_000);
    assert_eq!(info["boot_id"].len(), 36);
    // A kernel that has what it takes may still refuse them.
    assert!(info["btf"] == "true" && (!has_fentry() || info["has_fentry"] == "true"), "{info:?}");

    assert!(memory_rows.len() >= 3, "three windows: {}", memory_rows.len());
    for row in &memory_rows {
        assert_eq!(number(row, "mem_total"), ram);
        assert!((1..ram).contains(&number(row, "mem_free")));
        assert!(number(row, "window_ns") > 0);
    }
    // As many columns as the kernel's file has keys, but for those that say nothing.
    let file = std::fs::read_to_string("/proc/meminfo").expect("is there");
    let silent = ["VmallocTotal", "VmallocChunk", "NFS_Unstable"];
    for key in file.lines().filter_map(|line| line.split_once(':')).map(|(key, _)| key) {
        let column = memory::MEMINFO.iter().find(|(name, _)| *name == key);
        let column = column.map(|(_, column)| MEMORY.columns[*column].name);
        assert!(
            column.is_some_and(|column| memory_rows[0].contains_key(column)) || silent.contains(&key),
            "{key} of /proc/meminfo has no column"
        );
    }
    let lo: Vec<_> = net.iter().filter(|row| row["ifname"] == "lo").collect();
    assert_eq!(lo.len(), memory_rows.len(), "each window has a row of lo");
    assert!(rows.iter().all(|row| row["attribution"] == "none" && !row.contains_key("pod")));
}
