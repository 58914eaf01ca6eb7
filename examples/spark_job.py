#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Many sessions with Spark: the way out when one machine is not enough.

Usage: spark_job.py s3://bucket/prefix/namespace/name/uid ...

As it is, it runs on all CPUs of this machine. On a cluster, each machine of which needs the AWS variables:

    spark-submit --master ... --packages org.apache.hadoop:hadoop-aws:3.5.0 --py-files session.py spark_job.py s3://...
"""

import os
import sys

from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.window import Window

from session import Session

# S3A is Hadoop's client of S3. Its version is that of the Hadoop in PySpark; Spark fetches it on the first run.
builder = (
    SparkSession.builder.appName("tracelake")
    .config("spark.jars.packages", "org.apache.hadoop:hadoop-aws:3.5.0")
    .config("spark.sql.session.timeZone", "UTC")  # points in time are shown in the local time zone otherwise
)
if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
    # A store that is not Amazon's is reached by paths: its buckets have no host names.
    builder = builder.config("spark.hadoop.fs.s3a.endpoint", endpoint)
    builder = builder.config("spark.hadoop.fs.s3a.endpoint.region", os.environ.get("AWS_REGION", "us-east-1"))
    builder = builder.config("spark.hadoop.fs.s3a.path.style.access", "true")
spark = builder.getOrCreate()

# Only files that the sessions' manifests list are read: session.py says why.
sessions = [Session(url) for url in sys.argv[1:]]
files_read = 0


def table(name):
    """The rows of all sessions, each with its session's folder: several may have recorded the same process."""
    global files_read
    files = [[file.replace("s3://", "s3a://", 1) for file in session.files(name)] for session in sessions]
    files_read += sum(map(len, files))
    # Sessions of several versions differ in columns; of each session the first file has all.
    schema = spark.read.option("mergeSchema", "true").parquet(*(of_session[0] for of_session in files)).schema
    folder = F.regexp_extract("_metadata.file_path", "^(.*)/[^/]+/[^/]+$", 1)
    rows = spark.read.schema(schema).parquet(*(file for of_session in files for file in of_session))
    return rows.withColumn("session", folder)


# Which programs ran, and what did they need? A process is known by node, pid and start_ns: numbers are used again.
processes = table("processes")
process = ["session", "node", "pid", "start_ns"]
starts = processes.where("kind = 'exec'").select(*process, "pod", "exe")
ends = processes.where("kind = 'exit' AND NOT is_thread").select(*process, "exit_code", "signal", "utime_ns", "stime_ns")
top_programs = (
    starts.join(ends, process)
    .groupBy("pod", "exe")
    .agg(
        F.count("*").alias("runs"),
        F.expr("count_if(exit_code <> 0 OR signal <> 0)").alias("failed"),
        (F.sum(F.col("utime_ns") + F.col("stime_ns")) / 1e6).alias("cpu_ms"),
    )
    .orderBy(F.desc("cpu_ms"))
)

# The last connections, as tcplife prints them. time_utc is a point in time in UTC, to the microsecond.
connections = table("tcp_connections")
tcplife = (
    connections.orderBy(F.desc("time_utc"))
    .limit(5)
    .selectExpr(
        *["time_utc", "pid", "comm", "laddr", "lport", "raddr", "rport"],
        *["bytes_acked AS tx_bytes", "bytes_received AS rx_bytes", "duration_ns / 1e6D AS ms"],
    )
)

# Who moves the most, and with whom? A row stands for `weight` connections: more than one where the session samples.
top_talkers = (
    connections.groupBy("pod", "raddr")
    .agg(
        F.sum("weight").alias("connections"),
        F.expr("sum(weight * (bytes_acked + bytes_received))").alias("bytes"),
    )
    .orderBy(F.desc("bytes"))
    .limit(5)
)

# How long do handshakes take? Of a hundred, 99 are not slower than this. Accepted connections have none.
handshakes = (
    connections.where("handshake_ns IS NOT NULL AND pod IS NOT NULL")
    .groupBy("pod")
    .agg(
        F.count("*").alias("handshakes"),
        F.expr("percentile_disc(0.99) WITHIN GROUP (ORDER BY handshake_ns) / 1e3D").alias("p99_us"),
    )
    .orderBy("pod")
)

# The memory of the largest process, over time. A row tells of one kind of memory that changed; what did not change is
# still there. Resident are anon, file and shmem; swap is not.
memory = table("memory_rss")
identity = [*process, "mm_id"]
largest = memory.orderBy(F.desc("peak_bytes")).limit(1).select(identity)
until_now = Window.partitionBy(identity).orderBy("ts_ns")
still_there = [
    F.coalesce(F.last(F.expr(f"if(member = '{member}', bytes, NULL)"), ignorenulls=True).over(until_now), F.lit(0))
    for member in ["anon", "file", "shmem"]
]
rss = (
    memory.join(largest, identity, "semi")
    .where("member <> 'swap'")
    .select("time_utc", "ts_ns", sum(still_there).alias("rss_bytes"))
    .orderBy("ts_ns")
    .select("time_utc", "rss_bytes")
)

# Page faults: major ones waited for a disk. Rows without it tell of single faults (`events` of the collector).
faults = (
    table("page_faults")
    .where("major IS NOT NULL")
    .groupBy("pod", "comm")
    .agg(F.sum("major").alias("major"), F.sum("minor").alias("minor"))
    .orderBy("pod", "comm")
)

# How long do pods wait for a CPU? A histogram is a list of counts: number i, from 0 on, counts times from 2^i ns to below
# 2^(i+1). Zeros at its end are left out, so lists differ in length.
waits = (
    table("cpu_sched")
    .select("pod", F.posexplode("wait_hist").alias("slot", "slices"))
    .where("slices > 0")
    .groupBy("pod", F.expr("shiftleft(1L, slot)").alias("at_least_ns"))
    .agg(F.sum("slices").alias("slices"))
    .orderBy("pod", "at_least_ns")
)

for session in sessions:
    print(session.url, session.summary())  # first of all: is everything there?
print(files_read, "files")
for name in ["top_programs", "tcplife", "top_talkers", "handshakes", "rss", "faults", "waits"]:
    print(name)
    globals()[name].show(truncate=False)
