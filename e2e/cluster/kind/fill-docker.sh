#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Puts the folder $2 as kind's node image into the Docker engine of the root file system $1, on this machine's CPUs. Run
# in mount, pid and network namespaces of its own: Docker gets no bridge and writes no rule.
set -eu
root=$1 node=$2
# Docker remounts its root.
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t sysfs sys "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount -t tmpfs run "$root/run"
mount -t tmpfs tmp "$root/tmp"
chroot "$root" dockerd --bridge none --iptables=false --ip6tables=false --storage-driver overlay2 > "$root.log" 2>&1 &
dockerd=$!
tries=0
until chroot "$root" docker version > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { tail -n 5 "$root.log" >&2; exit 1; }
    sleep 0.1
done
tar -C "$node" --numeric-owner -c . | chroot "$root" docker import \
    --change 'ENV container=docker' --change 'STOPSIGNAL SIGRTMIN+3' \
    --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' - kindest/node:tracelake > /dev/null
kill $dockerd
wait $dockerd || true
rm "$root.log"
