-- TCP packets that the kernel dropped, as tcpdrop prints them, with reason and place. `class` tells losses from packets that nobody
-- wanted (refused, policy, teardown). Addresses are there with the parameter `events`; `packets` is how many the row stands for,
-- `bytes` what they have together.
SELECT time_utc, node, namespace, pod, container, laddr, lport, raddr, rport, sk_state AS state, reason, class, location,
       weight AS packets, CASE WHEN window_ns IS NULL THEN bytes * weight ELSE bytes END AS bytes
FROM packet_drops WHERE ip_proto = 6
