-- Throughput by connection and window, as tcptop prints it: payload in KiB within the window that ends at `time_utc`. `rank` 1 moved
-- the most; `others` marks the row that adds up the connections without a row of their own.
SELECT time_utc, node, namespace, pod, container, pid, comm, laddr, lport, raddr, rport, rx_bytes / 1024.0 AS rx_kb, tx_bytes / 1024.0 AS tx_kb,
       rank, others
FROM tcp_throughput
