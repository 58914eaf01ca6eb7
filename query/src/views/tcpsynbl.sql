-- How full listen queues were, as tcpsynbl shows it: windows by how many connections waited for accept(2) at their end, for each
-- listener and limit, with the handshakes that were dropped.
SELECT node, namespace, pod, container, comm, laddr, lport, accept_max AS backlog_limit, accept_len AS backlog, count(*) AS windows,
       sum(drops) AS drops, sum(overflows) AS overflows
FROM tcp_listen_queue GROUP BY node, namespace, pod, container, comm, laddr, lport, accept_max, accept_len
