#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# PID 1 of a bare kernel VM (`cargo xtask vm`): mounts what eBPF programs and
# their tests expect of a node, runs /command as root and powers off.
#
# In: /command (a shell script), /modules (paths, in load order).
# Out: /command's output and then the marker line on the second serial port;
# the first one is the kernel's console, so the two never mix.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run /tmp /root
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr

# A module that this kernel lacks is not an error here: the test says what it needs.
while read -r module; do insmod "$module" 2>/dev/null; done < /modules

ip link set lo up
hostname vm
# As on a node: every controller is available to child cgroups, and the root holds no process.
mkdir -p /sys/fs/cgroup/init
echo $$ > /sys/fs/cgroup/init/cgroup.procs
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done
# A file system on a real block device, for programs that watch block I/O.
mkdir -p /disk
[ -b /dev/vda ] && mount -t ext4 /dev/vda /disk

stty -F /dev/ttyS1 raw -echo
setsid sh /command < /dev/null > /dev/ttyS1 2>&1
printf '\ntracelake-vm-exit %s\n' "$?" > /dev/ttyS1
# The port must be drained before the power goes.
stty -F /dev/ttyS1 cooked
poweroff -f
