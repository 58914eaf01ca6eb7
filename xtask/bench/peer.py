# SPDX-License-Identifier: Apache-2.0
"""Page faults of one process by bcc, in one of two ways.

    peer.py poll|ring PID FOLDER

poll: perf buffer of 64 pages, polled, then half a second of sleep; every event becomes an object in a list. These are the settings of KernMLOps.
ring: ring buffer of 16 MiB, polled at once; rows become a polars frame and a Parquet file at every 200,000.

Says "ready" when it records. On SIGTERM it takes what is left, writes, and prints how many events it kept and how many it was told were lost.
"""

import ctypes
import json
import pathlib
import signal
import sys
import time
from dataclasses import dataclass

import polars
from bcc import BPF

PROGRAM = """
#include <linux/ptrace.h>

struct event {
    u64 ts;
    u64 address;
    u64 ip;
    u64 error_code;
    u32 pid;
    u32 tid;
    char comm[16];
};
BUFFER

RAW_TRACEPOINT_PROBE(page_fault_user)
{
    u64 id = bpf_get_current_pid_tgid();
    if (id >> 32 != PID)
        return 0;
    struct pt_regs *regs = (struct pt_regs *)ctx->args[1];
    struct event event = {};
    event.ts = bpf_ktime_get_ns();
    event.address = ctx->args[0];
    bpf_probe_read_kernel(&event.ip, sizeof(event.ip), &regs->ip);
    event.error_code = ctx->args[2];
    event.pid = id >> 32;
    event.tid = id;
    bpf_get_current_comm(event.comm, sizeof(event.comm));
    SUBMIT
    return 0;
}
"""
COLUMNS = ["ts", "address", "ip", "error_code", "pid", "tid", "comm"]
FILE_ROWS = 200_000


class Event(ctypes.Structure):
    _fields_ = [
        ("ts", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("ip", ctypes.c_uint64),
        ("error_code", ctypes.c_uint64),
        ("pid", ctypes.c_uint32),
        ("tid", ctypes.c_uint32),
        ("comm", ctypes.c_char * 16),
    ]


@dataclass(frozen=True)
class Fault:
    ts: int
    address: int
    ip: int
    error_code: int
    pid: int
    tid: int
    comm: str


def main():
    mode, pid, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    perf = mode == "poll"
    buffer = "BPF_PERF_OUTPUT(faults);" if perf else "BPF_RINGBUF_OUTPUT(faults, 4096);"
    submit = (
        "faults.perf_submit(ctx, &event, sizeof(event));"
        if perf
        else "if (faults.ringbuf_output(&event, sizeof(event), 0)) lost.increment(0);"
    )
    if not perf:
        buffer += "\nBPF_ARRAY(lost, u64, 1);"
    text = PROGRAM.replace("BUFFER", buffer).replace("PID", pid).replace("SUBMIT", submit)
    bpf = BPF(text=text)
    rows, kept, files, lost = [], 0, 0, 0

    def write():
        nonlocal files
        if rows:
            polars.DataFrame(rows, schema=None if perf else COLUMNS, orient=None if perf else "row").write_parquet(
                folder / f"{files}.parquet", compression="zstd", compression_level=1
            )
            files += 1
            rows.clear()

    def keep(_cpu, data, _size):
        nonlocal kept
        event = ctypes.cast(data, ctypes.POINTER(Event)).contents
        values = (event.ts, event.address, event.ip, event.error_code, event.pid, event.tid, event.comm.decode())
        rows.append(Fault(*values) if perf else values)
        kept += 1

    def count(missed):
        nonlocal lost
        lost += missed

    if perf:
        bpf["faults"].open_perf_buffer(keep, page_cnt=64, lost_cb=count)
    else:
        bpf["faults"].open_ring_buffer(keep)
    ended = False

    def end(_signal, _frame):
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    while not ended:
        if perf:
            bpf.perf_buffer_poll(timeout=1)
            time.sleep(0.5)
        else:
            bpf.ring_buffer_poll(timeout=100)
            if len(rows) >= FILE_ROWS:
                write()
    # What lies in the buffers still.
    if perf:
        bpf.perf_buffer_poll(timeout=1)
    else:
        bpf.ring_buffer_consume()
        lost = bpf["lost"][ctypes.c_int(0)].value
    write()
    print(json.dumps({"kept": kept, "lost": lost}), flush=True)


main()
