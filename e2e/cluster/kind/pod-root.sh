#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Makes an archive ($2) of busybox and of nft with its libraries, taken from the root file system $1: what kube-proxy and
# the network's pods need beside the Kubernetes binary.
set -eu
root=$1 archive=$2
folder=$archive.folder
rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/usr/sbin" "$folder/usr/local/bin" "$folder/etc" "$folder/tmp" "$folder/var/run"
for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl; do
    ln -s kubernetes "$folder/usr/local/bin/$name"
done
cp /usr/bin/busybox "$folder/bin/busybox"
for applet in $(busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$folder/bin/$applet"; done
for file in /usr/sbin/nft $(chroot "$root" ldd /usr/sbin/nft | grep -o '/[^ ]*'); do
    mkdir -p "$folder$(dirname "$file")"
    cp -L "$root$file" "$folder$file"
done
tar -C "$folder" --owner 0 --group 0 --numeric-owner --mtime @0 --sort name -cf "$archive" .
rm -rf "$folder"
