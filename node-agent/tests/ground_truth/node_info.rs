// SPDX-License-Identifier: Apache-2.0
//! What the node is, against sysinfo(2), uname(2) and sysconf(3), which read the kernel and not its files.

use std::time::Duration;

use tracelake_node_agent::engine::CollectorSpec;
use tracelake_node_agent::kernel::clock;

use crate::support::{Recording, Row, TABLE, number};

#[test]
fn the_node_is_what_the_kernel_says() {
    let spec = CollectorSpec {
        name: "nodeInfo".into(),
        interval: Duration::from_millis(200),
        ..CollectorSpec::default()
    };
    let recording = Recording::start(spec, &[]);
    std::thread::sleep(Duration::from_millis(700));
    let (rows, _) = recording.finish();
    let of = |table: &str| -> Vec<&Row> { rows.iter().filter(|row| row[TABLE] == table).collect() };
    let (info, memory, net) = (of("node_info"), of("node_memory"), of("node_net"));

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

    assert!(memory.len() >= 3, "every 200 ms: {}", memory.len());
    for row in &memory {
        assert_eq!(number(row, "mem_total"), ram);
        assert!((1..ram).contains(&number(row, "mem_free")));
        assert!(number(row, "window_ns") > 0);
    }
    let lo: Vec<_> = net.iter().filter(|row| row["ifname"] == "lo").collect();
    assert_eq!(lo.len(), memory.len(), "each window has a row of lo");
    assert!(rows.iter().all(|row| row["attribution"] == "none" && !row.contains_key("pod")));
}
