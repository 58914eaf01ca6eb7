# SPDX-License-Identifier: Apache-2.0
"""The questions of `answers.rs` to Polars: `answers.py FOLDER QUESTION` prints the answer as CSV."""

import sys

import polars as pl

FOLDER, QUESTION = sys.argv[1:]


def table(name):
    return pl.scan_parquet(f"{FOLDER}/{name}/*.parquet")


def count():
    names = ["memory_rss", "page_faults", "tcp_connections", "tcp_retransmits", "tcp_throughput"]
    counts = [table(name).select(pl.lit(name).alias("name"), pl.len().cast(pl.Int64).alias("n")) for name in names]
    return pl.concat(counts)


def talkers():
    total = (pl.col("tx_bytes") + pl.col("rx_bytes")).sum().alias("bytes")
    groups = table("tcp_throughput").group_by("pod", "raddr").agg(total)
    return first(groups, "bytes")


def handshake():
    p99 = (pl.col("handshake_ns").quantile(0.99, "linear") / 1000).round().cast(pl.Int64).alias("p99_us")
    return table("tcp_connections").group_by("pod").agg(p99).with_columns(pl.col("pod").cast(pl.String)).sort("pod")


def rss():
    own = table("memory_rss").filter((pl.col("node") == "node-1") & (pl.col("pid") == 1100))
    at = (pl.col("ts_ns") - pl.col("ts_ns") % 10_000_000_000).alias("at_ns")
    groups = own.group_by(at, pl.col("member").cast(pl.String)).agg(pl.col("bytes").max())
    return groups.sort("at_ns", "member")


def retransmits():
    joined = table("tcp_retransmits").select("node", "sock_id", "segments").join(
        table("tcp_connections").select("node", "sock_id", "pod", "raddr"), on=["node", "sock_id"]
    )
    return first(joined.group_by("pod", "raddr").agg(pl.col("segments").sum()), "segments")


def first(groups, by):
    """The twenty largest; words sort as text, not by their place in a dictionary."""
    text = groups.with_columns(pl.col("pod", "raddr").cast(pl.String))
    return text.sort(by, "pod", "raddr", descending=[True, False, False]).head(20)


answer = globals()[QUESTION]().collect(engine="streaming")
sys.stdout.write(answer.write_csv())
