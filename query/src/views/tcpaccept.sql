-- Connections that came to the pod, as tcpaccept prints them, one row each. `accept_delay_ms` is how long the connection waited,
-- established, for accept(2); null where nobody took it, or the kernel has no fentry.
SELECT time_utc, node, namespace, pod, container, pid, comm, family, raddr, rport, laddr, lport,
       accept_delay_ns / 1e6 AS accept_delay_ms, weight
FROM tcp_connections WHERE direction = 'passive'
