-- One row for each process: when it started and ended, what it ran, what it used. Processes that were there before the session, or
-- outlived it, are in it too: `start_known` and `end_known` say what was seen; without both, `duration_ms` is null. `comm` and `exe` are the
-- last that it had.
WITH mine AS (
    SELECT * FROM processes WHERE NOT is_thread
), named AS (
    SELECT node, pid, start_ns, comm, row_number() OVER (PARTITION BY node, pid, start_ns ORDER BY ts_ns DESC) AS nth
    FROM mine WHERE comm IS NOT NULL
), ran AS (
    SELECT node, pid, start_ns, exe, row_number() OVER (PARTITION BY node, pid, start_ns ORDER BY ts_ns DESC) AS nth
    FROM mine WHERE exe IS NOT NULL
), seen AS (
    SELECT node, pid, start_ns, max(namespace) AS namespace, max(pod) AS pod, max(container) AS container, max(ppid) AS ppid, max(uid) AS uid,
           min(CASE WHEN kind = 'start' THEN time_utc END) AS start_utc, max(CASE WHEN kind = 'exit' THEN time_utc END) AS end_utc,
           max(CASE WHEN kind = 'exit' THEN ts_ns END) AS end_ns, count(CASE WHEN kind IN ('start', 'snapshot') THEN 1 END) > 0 AS start_known,
           max(exit_code) AS exit_code, max(signal) AS signal, max(utime_ns) / 1e6 AS user_ms, max(stime_ns) / 1e6 AS system_ms,
           max(max_rss_bytes) AS max_rss_bytes, max(maj_flt) AS maj_flt, max(min_flt) AS min_flt
    FROM mine GROUP BY node, pid, start_ns
)
SELECT s.node, namespace, pod, container, s.pid, s.start_ns, ppid, uid, comm, exe, start_utc, end_utc, start_known, end_ns IS NOT NULL AS end_known,
       CASE WHEN start_known THEN (end_ns - s.start_ns) / 1e6 END AS duration_ms, exit_code, signal, user_ms, system_ms, max_rss_bytes, maj_flt,
       min_flt
FROM seen s LEFT JOIN named n ON n.node = s.node AND n.pid = s.pid AND n.start_ns = s.start_ns AND n.nth = 1
     LEFT JOIN ran r ON r.node = s.node AND r.pid = s.pid AND r.start_ns = s.start_ns AND r.nth = 1
