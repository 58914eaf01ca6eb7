-- The questions of the examples, once for `tracelake sql` and DuckDB, which take the same text. `found` is what there is to find in one
-- session; of several sessions it is asked of each, and what follows of all that was found. 'SESSION' is the session then.

-- top_programs
WITH found AS (
    SELECT x.pod, x.exe, e.exit_code, e.signal, e.utime_ns + e.stime_ns AS cpu_ns
    FROM processes x JOIN processes e USING (node, pid, start_ns)
    WHERE x.kind = 'exec' AND e.kind = 'exit' AND NOT e.is_thread
)
SELECT pod, exe, count(*) AS runs, count(*) FILTER (WHERE exit_code <> 0 OR signal <> 0) AS failed, sum(cpu_ns) / 1e6 AS cpu_ms
FROM found GROUP BY pod, exe ORDER BY cpu_ms DESC;

-- tcplife
WITH found AS (
    SELECT time_utc, pid, comm, laddr, lport, raddr, rport, bytes_acked AS tx_bytes, bytes_received AS rx_bytes,
           duration_ns / 1e6 AS ms
    FROM tcp_connections
)
SELECT * FROM found ORDER BY CAST(time_utc AS TIMESTAMP) DESC LIMIT 5;

-- top_talkers
WITH found AS (
    SELECT pod, raddr, sum(weight) AS connections, sum(weight * (bytes_acked + bytes_received)) AS bytes
    FROM tcp_connections GROUP BY pod, raddr
)
SELECT pod, raddr, CAST(sum(connections) AS BIGINT) AS connections, CAST(sum(bytes) AS BIGINT) AS bytes
FROM found GROUP BY pod, raddr ORDER BY 4 DESC LIMIT 5;

-- handshakes
WITH found AS (
    SELECT pod, handshake_ns FROM tcp_connections WHERE handshake_ns IS NOT NULL AND pod IS NOT NULL
)
SELECT pod, max(n) AS handshakes, min(handshake_ns) / 1e3 AS p99_us
FROM (SELECT pod, handshake_ns, row_number() OVER (PARTITION BY pod ORDER BY handshake_ns) AS place,
             count(*) OVER (PARTITION BY pod) AS n FROM found) places
WHERE 100 * place >= 99 * n GROUP BY pod ORDER BY pod;

-- rss
WITH found AS (
    SELECT 'SESSION' AS session, node, pid, start_ns, mm_id, time_utc, ts_ns, member, bytes, peak_bytes FROM memory_rss
)
SELECT time_utc, CAST(sum(change) OVER (ORDER BY ts_ns) AS BIGINT) AS rss_bytes
FROM (SELECT time_utc, ts_ns, bytes - coalesce(lag(bytes) OVER (PARTITION BY member ORDER BY ts_ns), 0) AS change
      FROM found JOIN (SELECT session, node, pid, start_ns, mm_id FROM found ORDER BY peak_bytes DESC LIMIT 1) largest
           USING (session, node, pid, start_ns, mm_id)
      WHERE member <> 'swap') changes
ORDER BY ts_ns;

-- faults
WITH found AS (
    SELECT pod, comm, sum(major) AS major, sum(minor) AS minor
    FROM page_faults WHERE major IS NOT NULL GROUP BY pod, comm
)
SELECT pod, comm, CAST(sum(major) AS BIGINT) AS major, CAST(sum(minor) AS BIGINT) AS minor
FROM found GROUP BY pod, comm ORDER BY pod, comm;

-- waits
WITH found AS (
    SELECT pod, slot, sum(slices) AS slices
    FROM (SELECT pod, unnest(wait_hist) AS slices, unnest(range(0, CAST(array_length(wait_hist) AS BIGINT))) AS slot
          FROM cpu_sched) slots
    WHERE slices > 0 GROUP BY pod, slot
)
SELECT pod, CAST(power(2, slot) AS BIGINT) AS at_least_ns, CAST(sum(slices) AS BIGINT) AS slices
FROM found GROUP BY pod, slot ORDER BY pod, slot;
