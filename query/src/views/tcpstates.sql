-- Changes of a socket's TCP state, as tcpstates prints them. `ms` is the time spent in the old state.
SELECT time_utc, node, namespace, pod, container, laddr, lport, raddr, rport, old_state, new_state, in_state_ns / 1e6 AS ms, weight
FROM tcp_states WHERE kind = 'transition'
