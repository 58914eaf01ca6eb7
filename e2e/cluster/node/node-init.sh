#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# PID 1 of a node VM: a node needs few services and emulation is slow, so a
# script that starts exactly those replaces systemd.
#
# In: /etc/tracelake, written by the initramfs: `node.env` (NAME, ADDRESS,
# POD_RANGE, GATEWAY, ROUTES as "range via address" lines), kubeconfigs, CA.
# Out: a Kubernetes node; logs in /var/log/*.log, which the kubelet serves at
# /api/v1/nodes/NAME/proxy/logs/.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
. /etc/tracelake/node.env

mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount --make-rshared /

# Controllers can be enabled only where the root cgroup holds no process.
mkdir -p /sys/fs/cgroup/init
echo $$ > /sys/fs/cgroup/init/cgroup.procs
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done

modprobe -a virtio_net overlay br_netfilter veth bridge nf_conntrack nf_tables \
    nft_chain_nat nft_compat nft_ct nft_masq nft_nat nft_fib_ipv4 nft_numgen nft_reject_ipv4 2>/dev/null

hostname "$NAME"
printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$NAME" > /etc/hosts
: > /etc/resolv.conf
ip link set lo up
ip link set eth0 up
ip address add "$ADDRESS/24" dev eth0
ip route add default via "$GATEWAY"
echo "$ROUTES" | while read -r range via address; do
    [ -n "$range" ] && ip route add "$range" "$via" "$address"
done
for setting in net/ipv4/ip_forward net/bridge/bridge-nf-call-iptables; do
    echo 1 > /proc/sys/$setting
done

# Restarts a service that ends; its output goes to its log.
service() {
    name=$1
    shift
    while :; do
        "$@" >> "/var/log/$name.log" 2>&1
        echo "node-init: $name ended with $?, starting it again" >> "/var/log/$name.log"
        sleep 1
    done
}

mkdir -p /root/.ssh /etc/dropbear /etc/cni/net.d /var/lib/kubelet
cp /etc/tracelake/authorized_keys /root/.ssh/authorized_keys
chmod 700 /root /root/.ssh
service dropbear dropbear -F -R -E -s &

sed "s|@POD_RANGE@|$POD_RANGE|" /etc/tracelake-node/cni.conflist > /etc/cni/net.d/10-tracelake.conflist
export GOGC=400
service containerd containerd --config /etc/tracelake-node/containerd.toml &
until ctr version > /dev/null 2>&1; do sleep 0.2; done

service kubelet kubelet --config=/etc/tracelake-node/kubelet.yaml --kubeconfig=/etc/tracelake/kubelet.conf \
    --hostname-override="$NAME" --node-ip="$ADDRESS" --node-labels="tracelake.dev/kernel=$(uname -r | cut -d. -f1,2)" &
service kube-proxy kube-proxy --config=/etc/tracelake-node/kube-proxy.yaml --hostname-override="$NAME" &

echo "node-init: $NAME runs" > /dev/console

# PID 1 has to stay and reap.
while :; do wait; sleep 1; done
