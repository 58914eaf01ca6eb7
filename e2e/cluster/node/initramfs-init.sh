#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# First program of a node VM: loads the disk's driver, mounts the root file
# system, copies what differs between clusters and nodes (/config: keys,
# certificates, addresses) into it, and hands over to /sbin/node-init.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

mount -t devtmpfs dev /dev
while read -r module; do insmod "$module"; done < /modules
# The disk appears a moment after its driver.
until mount -t ext4 /dev/vda /root 2>/dev/null; do usleep 50000; done
mkdir -p /root/etc/tracelake
cp -r /config/. /root/etc/tracelake/
mount --move /dev /root/dev
exec switch_root /root /sbin/node-init
