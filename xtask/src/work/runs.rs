// SPDX-License-Identifier: Apache-2.0

//! The four kinds of run: what is recorded, what has to be equal, and what the notebooks' report said of the same.
//!
//! The notebooks are those of KernMLOps' users, whose report this project began with; the numbers quoted are what they
//! printed. Every wrong one follows from one of two causes: probes at fixed offsets in a function of the kernel, which sit on
//! comparisons that all packets pass, and numbers of enumerators that are another kernel's.

use anyhow::Result;

use super::{Check, Recorded, Work};

/// Has `ip`, which every script needs that has a network of its own.
pub(super) const TOOLS: &str = "iproute2";
/// What such a network begins with, unlike a pod's.
pub(super) const LOOPBACK: &str = "ip link set lo up";

/// What every script begins with: a word for what the network itself has counted. The recorder looks at that once a second: it
/// has time to do so before anything happens, and after.
pub(super) const BEGIN: &str = r#"
sleep 1.2
counted() {
    sleep 1.2
    awk '/^Tcp: [0-9]/ { print "ActiveOpens:", $6; print "PassiveOpens:", $7; print "RetransSegs:", $13 }' /proc/net/snmp
}
"#;

pub(super) const ALL: [Work; 4] = [
    Work {
        name: "redis-benchmark",
        title: "A key-value store under load",
        about: "Fifty clients ask a Redis for 100,000 things, one at a time each, over loopback: many small segments, few connections.",
        packages: &[TOOLS, "redis-server", "redis-tools"],
        script: r#"
redis-server --save '' --appendonly no > /dev/null &
server=$!
until redis-cli ping > /dev/null 2>&1; do sleep 0.1; done
redis-benchmark -t set,get -n 50000 -c 50 -q
redis-cli info stats | tr -d '\r' | grep -E '^total_(connections_received|commands_processed|net_input_bytes):'
counted
kill $server
wait
"#,
        checks: redis,
        notebook: r#"
Of a YCSB run against Redis it said: 14,178 packets received, `time_wait` 99.6 % of them, `new_syn_recv` 99.6 %, fast path
99.6 % and slow path 7.2 %, 0.42 % dropped (54 `no_socket`, 5 `not_for_host`), and took four points off for the drops.

- Hardly any packet met TIME_WAIT or a handshake. The probes sat on the two comparisons that every packet with a socket
  passes: 14,124 + 54 is 14,178. Really in TIME_WAIT were 14,124 less 14,119, the 5 that it called `not_for_host`.
- Fast and slow path are more than a hundred together, because `established_proc` is passed before the kernel looks whether
  the socket is in use. Taken at once were 14,101 less 1,021, 92.3 %; the other 7.2 % waited for their program, which is
  no fault. Above that is `backlog_ratio`, of segments that are in one of the two and never in both; null where the kernel,
  as this one, does not tell.
- No packet was lost. 54 were for ports where nobody listened, and the answer to those is a reset.
- Who the packets were for it could not say: it names whoever ran on the CPU when they came, and counts the whole machine's.
"#,
    },
    Work {
        name: "iperf3",
        title: "A stream over loopback",
        about: "Four streams as fast as they go, over loopback: large segments, a handful of connections, senders that wait for readers.",
        packages: &[TOOLS, "iperf3"],
        script: r#"
folder=$(mktemp -d)
iperf3 --server --one-off --json > $folder/server.json &
until grep -q ':1451 ' /proc/net/tcp6; do sleep 0.1; done
iperf3 --client 127.0.0.1 --parallel 4 --bytes 1G
wait
sed -n '/"sum_received"/,/}/s/.*"bytes":[^0-9]*\([0-9]*\).*/bytes that the server read: \1/p' $folder/server.json
rm -r $folder
counted
"#,
        checks: iperf3,
        notebook: r#"
It said: 1,819 packets received in 7,505 events, `time_wait` 99.2 %, `new_syn_recv` 99.2 %, 13.6 % slow path, 0.77 % dropped.
A second notebook took the number of `new_syn_recv` events for that of new connections, divided it by four for "connections
per stream", and printed events per second as its figure of throughput.

- 1,805 "new connections" are the packets that found a socket. Connections were established nine times in all (`listen_state`), the
  rest of the machine's among them. Here a connection is a row.
- An event was one of nineteen probes that a packet passes, four to a packet. Bytes it did not count, so a stream of segments
  of 64 KiB and one of empty ACKs were alike to it. Throughput here is the difference of TCP's own byte counters.
- The 14 "drops" were segments for closed ports.
- Server and client it told apart by `iperf3.*-s` in the name of the process, which has no arguments in it: nothing ever matched. Names
  of processes here come with `args` where a session asks for them, and connections have both their ends.
- More than a tenth on the slow path took ten points off and advised a larger `net.core.rmem_max`. A segment that comes while its
  program is in a system call on the socket waits there, however large the buffer is.
"#,
    },
    Work {
        name: "refused",
        title: "A port where nobody listens any more",
        about: "A listener that serves one connection and ends, and twenty clients, one after the other: one is served, nineteen are refused.",
        packages: &[TOOLS, "netcat-openbsd"],
        script: r#"
nc -l 127.0.0.1 8080 > /dev/null < /dev/null &
until grep -q ':1F90 ' /proc/net/tcp; do sleep 0.1; done
served=0 refused=0
for number in $(seq 20); do
    if echo 'a line of text' | nc -N 127.0.0.1 8080; then served=$((served + 1)); else refused=$((refused + 1)); fi
done
wait
echo "served: $served"
echo "refused: $refused"
counted
"#,
        checks: refused,
        notebook: r#"
Of six `nc` to a listener that serves one it said: 882 packets, 98.2 % fast path and 22.4 % slow path, 2.04 % dropped (16 `no_socket`),
and in another run of the kind a failure rate of 900 % and a score of 50 of 100, the lowest that its formula has.

- That it found something wrong was right, what it found was not. Nothing was dropped: a reset that answers a closed port is how
  refusing works. The advice was to look at the network card and the firewall.
- A rate of 900 % has probe hits above the line and finished attempts below it. `connect_failure_ratio` is a share of attempts
  that came to an end.
- 882 packets were the machine's, not the run's: the tens of segments here are all that there were.
- The advice that would have helped is the one above: who is asked, at which port, and that nobody listens there.
"#,
    },
    Work {
        name: "memory",
        title: "A program bound by memory",
        about: "A single thread that looks cross sections up in 250 MiB of tables, at random: XSBench's kernel in its smallest size, written anew \
                in `e2e/workload/src/lookups.rs`, since no package has XSBench. No network at all.",
        packages: &[TOOLS],
        script: "\nworkload lookups\n",
        checks: memory,
        notebook: r#"
Of XSBench it said: 1,284 packets received, 0.70 % dropped, 21.7 % slow path, and in a run of the second notebook, with 19 packets,
a full score with no event of XSBench among them. Of page faults in a run of the same kind it said: 9,293 major ones of 422,246, `dirname` among
those who had them.

- XSBench has no network. The packets were of an `sshd`, an editor's server and the notebook itself: it traced the machine, and had
  nothing by which to leave others out.
- A hundred points for nothing known is no praise: `tcp_health_v0`, the same formula over what is recorded here, gives them above.
  Terms without data are null, and a score of none of them is none.
- Most of its major faults were none. It tested a bit that says the page was handed over locked, which is so for every file page that
  is not mapped around another fault. Above the kernel's own counter is shown, beside what the process itself was told at its end.
- What one wants to know of such a program, its memory over time and what it waited for, its report did not have; a plot of resident
  memory came with another notebook, which left out shared pages and drew the first value back to the beginning.
"#,
    },
];

fn redis(run: &Recorded) -> Result<Vec<Check>> {
    let of_server = "FROM tcp_connections WHERE direction = 'passive' AND lport = 6379";
    let mut checks = vec![
        run.equal(
            "connections accepted",
            "redis: total_connections_received",
            run.said("total_connections_received")?,
            &format!("SELECT count(*) {of_server}"),
        )?,
        run.equal(
            "bytes of requests",
            "redis: total_net_input_bytes",
            run.said("total_net_input_bytes")?,
            &format!("SELECT sum(bytes_received) {of_server}"),
        )?,
        run.near(
            "requests, a segment each",
            "redis: total_commands_processed",
            run.said("total_commands_processed")?,
            "SELECT sum(data_segs_out) FROM tcp_connections WHERE direction = 'active' AND rport = 6379",
            8,
            "`info` counts those before it, and the benchmark's first two commands share a segment",
        )?,
    ];
    checks.extend(network(run)?);
    Ok(checks)
}

fn iperf3(run: &Recorded) -> Result<Vec<Check>> {
    let read = run.said("bytes that the server read")?;
    let mut checks = vec![
        run.equal(
            "bytes of the streams",
            "iperf3's server, each stream's 37 bytes of greeting left out",
            read,
            "SELECT sum(bytes_received) - 4 * 37 FROM (SELECT bytes_received FROM tcp_connections \
             WHERE direction = 'passive' AND lport = 5201 ORDER BY bytes_received DESC LIMIT 4)",
        )?,
        run.near(
            "the same, added up by second",
            "iperf3's server",
            read,
            "SELECT sum(rx_bytes) FROM tcp_throughput WHERE lport = 5201",
            100_000,
            "greetings, and the connection by which iperf3's two sides talk",
        )?,
    ];
    checks.extend(network(run)?);
    Ok(checks)
}

fn refused(run: &Recorded) -> Result<Vec<Check>> {
    let mut checks = vec![
        run.equal(
            "attempts that were served",
            "nc's exit status",
            run.said("served")?,
            "SELECT count(*) FROM tcp_connections WHERE direction = 'active' AND established_ns IS NOT NULL",
        )?,
        run.equal(
            "attempts that were refused",
            "nc's exit status",
            run.said("refused")?,
            "SELECT count(*) FROM tcp_connections WHERE direction = 'active' AND end_reason = 'refused' AND error = 111",
        )?,
        run.equal(
            "segments that met nobody",
            "one for each of them",
            run.said("refused")?,
            "SELECT sum(segments) FROM packet_drops WHERE reason = 'NO_SOCKET'",
        )?,
        run.equal(
            "programs `nc` that were started",
            "the script: one listener, twenty clients",
            21,
            "SELECT count(*) FROM processes WHERE kind = 'exec' AND comm = 'nc'",
        )?,
    ];
    checks.extend(network(run)?);
    Ok(checks)
}

fn memory(run: &Recorded) -> Result<Vec<Check>> {
    let own = "FROM processes WHERE kind = 'exit' AND comm = 'workload'";
    let most = run.said("VmHWM")? * 1_024;
    Ok(vec![
        run.near(
            "the most memory it had, bytes",
            "VmHWM in /proc/self/status",
            most,
            &format!("SELECT max(max_rss_bytes) {own}"),
            1 << 20,
            "the kernel counts on each CPU, 64 pages at a time",
        )?,
        run.near(
            "the same, looked at once a second",
            "VmHWM in /proc/self/status",
            most,
            "SELECT max(bytes) FROM (SELECT ts_ns, sum(peak_bytes) AS bytes FROM memory_rss \
             WHERE comm = 'workload' AND member <> 'swap' GROUP BY ts_ns)",
            16 << 20,
            "pages of files that did not change are in an earlier row",
        )?,
        run.near(
            "page faults without I/O",
            "getrusage, before it prints",
            run.said("minor faults")?,
            "SELECT sum(minor) FROM page_faults WHERE comm = 'workload'",
            100,
            "those of its end come after",
        )?,
        run.near(
            "page faults with I/O",
            "getrusage, before it prints",
            run.said("major faults")?,
            "SELECT sum(major) FROM page_faults WHERE comm = 'workload'",
            10,
            "those of its end come after",
        )?,
    ])
}

/// What the network has counted since it was made, which is the run's alone.
fn network(run: &Recorded) -> Result<Vec<Check>> {
    Ok(vec![
        run.equal(
            "connections that were begun",
            "the network's ActiveOpens",
            run.said("ActiveOpens")?,
            "SELECT count(*) FROM tcp_connections WHERE direction = 'active'",
        )?,
        run.equal(
            "connections that came",
            "the network's PassiveOpens",
            run.said("PassiveOpens")?,
            "SELECT count(*) FROM tcp_connections WHERE direction = 'passive'",
        )?,
        run.equal(
            "segments sent again",
            "the network's RetransSegs",
            run.said("RetransSegs")?,
            "SELECT coalesce(sum(segments), 0) FROM tcp_retransmits WHERE err = 0",
        )?,
    ])
}
