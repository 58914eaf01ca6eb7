-- How often sockets came to each TCP state, by pod: what one counts with a probe on inet_sock_set_state. Unlike one on tcp_set_state,
-- it has SYN_RECV and LISTEN.
SELECT node, namespace, pod, new_state, sum(weight) AS changes
FROM tcp_states WHERE kind = 'transition' GROUP BY node, namespace, pod, new_state
