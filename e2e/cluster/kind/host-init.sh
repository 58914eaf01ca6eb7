#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# PID 1 of the VM that holds a kind cluster: Docker, ssh and what both need; no systemd, which emulated CPUs would be
# busy with.
#
# In: /etc/tracelake, written by the initramfs: `node.env` (NAME, ADDRESS, GATEWAY) and authorized_keys.
# Out: a Docker engine with the node image; logs in /var/log/*.log.
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

# A node container loads none itself: what its pods, kube-proxy and tests need has to be there.
modprobe -a virtio_net overlay br_netfilter veth bridge nf_conntrack nf_tables nft_chain_nat nft_compat nft_ct \
    nft_masq nft_nat nft_fib_inet nft_fib_ipv4 nft_fib_ipv6 nft_numgen nft_reject_ipv4 nft_reject_ipv6 \
    xt_addrtype xt_conntrack xt_MASQUERADE xt_comment xt_mark xt_nat dummy loop 2>/dev/null

hostname "$NAME"
printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$NAME" > /etc/hosts
: > /etc/resolv.conf
ip link set lo up
ip link set eth0 up
ip address add "$ADDRESS/24" dev eth0
ip route add default via "$GATEWAY"
for setting in net/ipv4/ip_forward net/bridge/bridge-nf-call-iptables; do
    echo 1 > /proc/sys/$setting
done
# systemd in every node takes many.
echo 1024 > /proc/sys/fs/inotify/max_user_instances
echo 524288 > /proc/sys/fs/inotify/max_user_watches

mkdir -p /root/.ssh /etc/dropbear /var/log
cp /etc/tracelake/authorized_keys /root/.ssh/authorized_keys
chmod 700 /root /root/.ssh
export GOGC=400
dropbear -R -E -s 2>> /var/log/dropbear.log
dockerd --exec-opt native.cgroupdriver=cgroupfs --storage-driver overlay2 > /var/log/dockerd.log 2>&1 &
until docker version > /dev/null 2>&1; do sleep 0.5; done

echo "host-init: $NAME runs" > /dev/console

# PID 1 has to stay and reap.
while :; do wait; sleep 1; done
