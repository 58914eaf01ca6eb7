#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Network of a kind node: see e2e/cluster/kind/default-cni.yaml, which starts this in every node's network.
#
# In: NODE, POD_SUBNET, CONTROL_PLANE_ENDPOINT (from kind, because Services are not there yet). Out: the container
# runtime's configuration, routes, and one rule.
set -eu
account=/var/run/secrets/kubernetes.io/serviceaccount

nft -f - <<RULES
table ip kind-cni
delete table ip kind-cni
table ip kind-cni {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        ip saddr $POD_SUBNET ip daddr != $POD_SUBNET fib daddr type != local masquerade
    }
}
RULES

while :; do
    kubectl --server="https://$CONTROL_PLANE_ENDPOINT" --certificate-authority="$account/ca.crt" \
        --token="$(cat $account/token)" get nodes --watch --no-headers \
        --output custom-columns=:.metadata.name,:.spec.podCIDR,:.status.addresses[0].address |
        while read -r name range address; do
            case $range in *.*) ;; *) continue ;; esac
            if [ "$name" != "$NODE" ]; then
                ip route replace "$range" via "$address"
                continue
            fi
            cat > /etc/cni/net.d/.tmp <<CONFIGURATION
{"cniVersion": "0.3.1", "name": "kindnet", "plugins": [
  {"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state",
    "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "$range"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CONFIGURATION
            mv /etc/cni/net.d/.tmp /etc/cni/net.d/10-kindnet.conflist
        done
    # The API server ends a watch after a while, and is away when its node starts.
    sleep 5
done
