-- Resident memory of each process over time, in bytes: `rss` is file + anon + shmem, each its last value up to then (0 before the first:
-- less than the collector's `minChangeKiB`). `swap` is not resident and stands beside. Draw it in steps.
WITH told AS (
    SELECT node, namespace, pod, container, pid, start_ns, mm_id, comm, time_utc, ts_ns,
           max(CASE WHEN member = 'file' THEN bytes END) AS file, max(CASE WHEN member = 'anon' THEN bytes END) AS anon,
           max(CASE WHEN member = 'shmem' THEN bytes END) AS shmem, max(CASE WHEN member = 'swap' THEN bytes END) AS swap
    FROM memory_rss GROUP BY node, namespace, pod, container, pid, start_ns, mm_id, comm, time_utc, ts_ns
), held AS (
    SELECT node, namespace, pod, container, pid, start_ns, mm_id, comm, time_utc, ts_ns,
           coalesce(last_value(file IGNORE NULLS) OVER w, 0) AS file, coalesce(last_value(anon IGNORE NULLS) OVER w, 0) AS anon,
           coalesce(last_value(shmem IGNORE NULLS) OVER w, 0) AS shmem, coalesce(last_value(swap IGNORE NULLS) OVER w, 0) AS swap
    FROM told WINDOW w AS (PARTITION BY node, pid, start_ns, mm_id ORDER BY ts_ns)
)
SELECT time_utc, ts_ns, node, namespace, pod, container, pid, start_ns, mm_id, comm, file + anon + shmem AS rss, file, anon, shmem, swap
FROM held
