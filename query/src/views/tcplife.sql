-- TCP connections with lifespan and bytes, as tcplife prints them, one row each. `tx_kb` is payload that the peer acknowledged,
-- `rx_kb` payload received in order, `ms` from established (else opened) to closed; null where the session ended first.
SELECT time_utc, node, namespace, pod, container, pid, comm, direction, laddr, lport, raddr, rport,
       bytes_acked / 1024.0 AS tx_kb, bytes_received / 1024.0 AS rx_kb, duration_ns / 1e6 AS ms, end_reason, weight
FROM tcp_connections
