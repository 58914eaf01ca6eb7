-- How long programs run before they leave the CPU: `slices` of at least `from_us` and less than `to_us`, by pod and program.
-- The last slot of the collector's histogram has no upper end: its `to_us` is null.
WITH slots AS (
    SELECT node, namespace, pod, comm, unnest(run_hist) AS slices, unnest(range(0, CAST(array_length(run_hist) AS BIGINT))) AS slot
    FROM cpu_sched
)
SELECT node, namespace, pod, comm, CASE WHEN slot = 0 THEN 0 ELSE power(2, slot) / 1e3 END AS from_us,
       CASE WHEN slot < 39 THEN power(2, slot + 1) / 1e3 END AS to_us, sum(slices) AS slices
FROM slots WHERE slices > 0 GROUP BY node, namespace, pod, comm, slot
