-- Connections that the pod opened, as tcpconnect prints them, one row for each attempt. `error` is the errno it ended with, 0 if none;
-- `handshake_ms` is null for those that were never established.
SELECT time_utc, node, namespace, pod, container, pid, comm, family, laddr AS saddr, raddr AS daddr, rport AS dport,
       handshake_ns / 1e6 AS handshake_ms, error, weight
FROM tcp_connections WHERE direction = 'active'
