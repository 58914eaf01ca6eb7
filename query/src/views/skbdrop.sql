-- Why and where packets of any protocol were dropped, counted by pod, as skbdrop does by stack.
SELECT node, namespace, pod, reason, class, location, sum(weight) AS packets,
       sum(CASE WHEN window_ns IS NULL THEN segments * weight ELSE segments END) AS segments,
       sum(CASE WHEN window_ns IS NULL THEN bytes * weight ELSE bytes END) AS bytes
FROM packet_drops GROUP BY node, namespace, pod, reason, class, location
