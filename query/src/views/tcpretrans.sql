-- What TCP sent again, as tcpretrans prints it. `kind` says how the loss was noticed (rto, fast, tlp, syn, synack), `segments` how many
-- wire segments it was (one event may be several); attempts that failed are left out, `weight` is how many events the row stands for.
SELECT time_utc, node, namespace, pod, container, family, laddr, lport, raddr, rport, state, kind, segments, bytes, weight
FROM tcp_retransmits WHERE err = 0
