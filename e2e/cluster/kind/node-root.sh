#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Makes of a Debian root file system what kind's own Dockerfile (images/base in its module) makes of it, with Debian's
# containerd, runc and CNI plugins in place of those that it compiles.
#
# In: the root $1, kind's module $2, the folder of the Kubernetes binary $3, this folder $4, Kubernetes' version $5.
set -eu
root=$1 kind=$2 kubernetes=$3 assets=$4 version=$5

cp -r "$kind/images/base/files/etc" "$kind/images/base/files/kind" "$root/"
cp "$kind/images/base/files/usr/local/bin/entrypoint" "$root/usr/local/bin/"
chmod -R u=rwX,go=rX "$root/etc/systemd/system" "$root/etc/containerd" "$root/etc/sysctl.d" "$root/kind"
chmod 0755 "$root/kind/bin/"* "$root/usr/local/bin/entrypoint"

wants=$root/usr/lib/systemd/system
rm -f "$wants"/sysinit.target.wants/systemd-tmpfiles-setup.service "$wants"/multi-user.target.wants/* \
    "$root"/etc/systemd/system/*.wants/* "$wants"/local-fs.target.wants/* "$wants"/sockets.target.wants/*udev* \
    "$wants"/sockets.target.wants/*initctl* "$wants"/basic.target.wants/*
mkdir -p "$root/etc/systemd/journald.conf.d" "$root/etc/systemd/system.conf.d"
printf '[Journal]\nReadKMsg=no\n' > "$root/etc/systemd/journald.conf.d/kind.conf"
# Memory is cheaper here than CPU time.
printf '[Manager]\nDefaultEnvironment=GOGC=400 GOMAXPROCS=1\n' > "$root/etc/systemd/system.conf.d/tracelake.conf"
chroot "$root" systemctl enable kubelet.service containerd.service undo-mount-hacks.service
chroot "$root" systemctl mask systemd-binfmt.service
# Only what the node needs: on emulated CPUs each unit counts.
rm -rf "$root/usr/lib/systemd/system-generators"
for unit in "$wants"/sysinit.target.wants/* "$wants"/sockets.target.wants/* "$wants"/timers.target.wants/*; do
    case $unit in
        */systemd-journald*|*/systemd-sysctl.service|*/sys-kernel-debug.mount|*/sys-kernel-tracing.mount) ;;
        *) rm -f "$unit" ;;
    esac
done

# Probes that are late because the CPUs are must not end what they ask: each start of a server costs minutes.
mkdir -p "$root/kind/patches"
for name in etcd kube-apiserver kube-controller-manager kube-scheduler; do
    readiness='readinessProbe: null'
    [ $name = kube-apiserver ] && readiness='readinessProbe: {periodSeconds: 15, timeoutSeconds: 15}'
    printf 'spec: {containers: [{name: %s, livenessProbe: null, startupProbe: null, %s}]}\n' $name "$readiness" \
        > "$root/kind/patches/$name+strategic.yaml"
done

# kind's unit names this path.
for name in containerd ctr; do ln -sf "/usr/bin/$name" "$root/usr/local/bin/$name"; done
# Without kind's hook, which hides the machine's identity from containers.
chroot "$root" ctr oci spec | chroot "$root" jq 'del(.process.rlimits)' > "$root/etc/containerd/cri-base.json"
mkdir -p "$root/opt/cni/bin" "$root/etc/kubernetes/manifests" "$root/kind/manifests"
for name in host-local loopback ptp portmap; do cp "$root/usr/lib/cni/$name" "$root/opt/cni/bin/"; done
cp "$kubernetes/kubernetes" "$root/usr/bin/kubernetes"
for name in kubelet kubeadm kubectl; do ln -sf kubernetes "$root/usr/bin/$name"; done
cp "$assets/default-cni.yaml" "$assets/default-storage.yaml" "$root/kind/manifests/"
printf '%s' "$version" > "$root/kind/version"
chown -R 0:0 "$root/etc" "$root/kind" "$root/usr/local"
