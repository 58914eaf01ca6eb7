-- Page faults of each process: with and without IO, and per second over the windows in which it had any. Rows of single faults are left
-- out: of a session with the parameter `events`, which has no others, nothing is in it.
WITH windows AS (
    SELECT node, namespace, pod, container, pid, start_ns, comm, time_utc, sum(major) AS major, sum(minor) AS minor,
           max(window_ns) AS window_ns
    FROM page_faults WHERE major IS NOT NULL GROUP BY node, namespace, pod, container, pid, start_ns, comm, ts_ns, time_utc
)
SELECT node, namespace, pod, container, pid, start_ns, comm, sum(major) AS major, sum(minor) AS minor,
       1e9 * sum(major) / sum(window_ns) AS major_per_s, 1e9 * sum(minor) / sum(window_ns) AS minor_per_s,
       min(time_utc) AS first_window_until, max(time_utc) AS last_window_until
FROM windows GROUP BY node, namespace, pod, container, pid, start_ns, comm
