#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Imports the image archives $2... into the containerd of the root file system $1, on this machine's CPUs, and gives the
# images the names that kubeadm and kind look for: pairs OLD=NEW in $NAMES. Run in mount and pid namespaces of its own.
set -eu
root=$1
shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs run "$root/run"
mount -t tmpfs tmp "$root/tmp"
chroot "$root" containerd > "$root.log" 2>&1 &
containerd=$!
tries=0
until chroot "$root" ctr version > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { tail -n 5 "$root.log" >&2; exit 1; }
    sleep 0.1
done
for archive; do chroot "$root" ctr -n k8s.io images import - < "$archive"; done
for pair in $NAMES; do chroot "$root" ctr -n k8s.io images tag "${pair%%=*}" "${pair#*=}"; done
kill $containerd
wait $containerd || true
rm "$root.log"
