#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A session with pyarrow alone: for programs that want Arrow tables and no query engine.

Usage: with_pyarrow.py s3://bucket/prefix/namespace/name/uid

Only columns that are named are read. Words with few values are dictionaries in the files; where pyarrow has no function
for those, they are cast to strings.
"""

import sys
from collections import Counter, defaultdict

import pyarrow as pa
import pyarrow.compute as pc

from session import Session

session = Session(sys.argv[1])


def read(table, columns, where=None):
    rows = session.dataset(table).to_table(columns=columns, filter=where)
    plain = [
        pa.field(field.name, field.type.value_type if pa.types.is_dictionary(field.type) else field.type)
        for field in rows.schema
    ]
    return rows.cast(pa.schema(plain))


def totals(rows, keys, sums):
    """Sums by keys, under the names that the columns had."""
    return rows.group_by(keys).aggregate([(name, "sum") for name in sums]).rename_columns(keys + sums)


# Which programs ran, and what did they need? A process is known by node, pid and start_ns: numbers are used again.
process = ["node", "pid", "start_ns"]
starts = read("processes", process + ["pod", "exe"], pc.field("kind") == "exec")
ends = read(
    "processes",
    process + ["exit_code", "signal", "utime_ns", "stime_ns"],
    (pc.field("kind") == "exit") & ~pc.field("is_thread"),
)
runs = starts.join(ends, keys=process, join_type="inner")
failed = pc.or_(pc.not_equal(runs["exit_code"], 0), pc.not_equal(runs["signal"], 0))
cpu_ms = pc.divide(pc.cast(pc.add(runs["utime_ns"], runs["stime_ns"]), pa.float64()), 1e6)
runs = runs.append_column("runs", pa.array([1] * len(runs)))
runs = runs.append_column("failed", pc.cast(failed, pa.int64())).append_column("cpu_ms", cpu_ms)
top_programs = totals(runs, ["pod", "exe"], ["runs", "failed", "cpu_ms"]).sort_by([("cpu_ms", "descending")])

# The last connections, as tcplife prints them. time_utc is a point in time in UTC, to the microsecond.
connections = read(
    "tcp_connections",
    ["time_utc", "pid", "comm", "laddr", "lport", "raddr", "rport", "bytes_acked", "bytes_received", "duration_ns"],
)
last = connections.sort_by([("time_utc", "descending")]).slice(0, 5)
tcplife = last.rename_columns({"bytes_acked": "tx_bytes", "bytes_received": "rx_bytes"}).drop_columns("duration_ns")
tcplife = tcplife.append_column("ms", pc.divide(pc.cast(last["duration_ns"], pa.float64()), 1e6))

# Who moves the most, and with whom? A row stands for `weight` connections: more than one where the session samples.
traffic = read("tcp_connections", ["pod", "raddr", "weight", "bytes_acked", "bytes_received"])
both_ways = pc.multiply(traffic["weight"], pc.add(traffic["bytes_acked"], traffic["bytes_received"]))
traffic = traffic.rename_columns({"weight": "connections"}).append_column("bytes", both_ways)
top_talkers = totals(traffic, ["pod", "raddr"], ["connections", "bytes"]).sort_by([("bytes", "descending")]).slice(0, 5)

# How long do handshakes take? Of a hundred, 99 are not slower than this. Accepted connections have none.
times = defaultdict(list)
measured = pc.field("handshake_ns").is_valid() & pc.field("pod").is_valid()
for row in read("tcp_connections", ["pod", "handshake_ns"], measured).to_pylist():
    times[row["pod"]].append(row["handshake_ns"])
handshakes = pa.Table.from_pylist(
    [
        {"pod": pod, "handshakes": len(of), "p99_us": sorted(of)[(99 * len(of) - 1) // 100] / 1e3}
        for pod, of in sorted(times.items())
    ]
)

# The memory of the largest process, over time. A row tells of one kind of memory that changed; what did not change is
# still there. Resident are anon, file and shmem; swap is not.
identity = ["node", "pid", "start_ns", "mm_id"]
memory = read("memory_rss", identity + ["time_utc", "ts_ns", "member", "bytes", "peak_bytes"])
largest = memory.sort_by([("peak_bytes", "descending")]).slice(0, 1).select(identity)
changes = memory.join(largest, keys=identity, join_type="left semi").sort_by("ts_ns")
resident, points = {}, []
for row in changes.filter(pc.field("member") != "swap").to_pylist():
    resident[row["member"]] = row["bytes"]
    points.append({"time_utc": row["time_utc"], "rss_bytes": sum(resident.values())})
rss = pa.Table.from_pylist(points)

# Page faults: major ones waited for a disk. Rows without it tell of single faults (`events` of the collector).
faults = read("page_faults", ["pod", "comm", "major", "minor"], pc.field("major").is_valid())
faults = totals(faults, ["pod", "comm"], ["major", "minor"]).sort_by([("pod", "ascending"), ("comm", "ascending")])

# How long do pods wait for a CPU? A histogram is a list of counts: number i, from 0 on, counts times from 2^i ns to below
# 2^(i+1). Zeros at its end are left out, so lists differ in length.
slices = Counter()
for row in read("cpu_sched", ["pod", "wait_hist"]).to_pylist():
    for slot, count in enumerate(row["wait_hist"]):
        slices[row["pod"], 2**slot] += count
waits = pa.Table.from_pylist(
    [
        {"pod": pod, "at_least_ns": at_least, "slices": count}
        for (pod, at_least), count in sorted(slices.items())
        if count
    ]
)

print(session.summary())  # first of all: is everything there?
for name in ["top_programs", "tcplife", "top_talkers", "handshakes", "rss", "faults", "waits"]:
    answer = globals()[name]
    print(f"\n{name}: {', '.join(answer.column_names)}")
    for row in answer.to_pylist():
        print(*row.values(), sep="  ")
