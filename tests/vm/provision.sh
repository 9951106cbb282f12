#!/bin/sh
# Inside the virtual machine, as root, started by its init: makes a fresh Debian the root, writable in memory, and runs
# what `vagrant up` with LAB=netns would run there, then all scenarios.
# In: the virtfs tags of the host's root, of the fresh root and of the shared directory; the kernel's modules on the host.
# Out, in the shared directory: `status` and `output`.
set -u
host_tag=$1 fresh_tag=$2 out_tag=$3 modules=$4

root=/run/root below=/run/below
mkdir -p $root $below /run/host /run/fresh
options=trans=virtio,version=9p2000.L,access=any,msize=512000
mount -t 9p -o "ro,cache=loose,$options" "$fresh_tag" /run/fresh
mount -t 9p -o "ro,cache=loose,$options" "$host_tag" /run/host
# What is installed lands in memory, and is gone with the machine.
mount -t tmpfs -o size=90% memory $below
mkdir -p $below/upper $below/work
mount -t overlay -o "xino=off,lowerdir=/run/fresh,upperdir=$below/upper,workdir=$below/work" fresh $root
mkdir -p "$root/lib/modules" $root/mnt/out $root/mnt/old
mount --bind "/run/host$modules" $root/lib/modules
mount -t 9p -o "rw,$options" "$out_tag" $root/mnt/out
exec >$root/mnt/out/output 2>&1
for shared in /proc /sys /dev; do mount --rbind $shared $root$shared; done
mount -t tmpfs -o mode=0755 run $root/run
cd $root && pivot_root . mnt/old || exit 1
cd / && umount -l /mnt/old

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
echo /sbin/modprobe >/proc/sys/kernel/modprobe
ip link set lo up
mkdir -p /sys/fs/bpf
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf

# The machine is there for nothing else: scenarios may change all of it. Emulated, answers take longer.
export K8SNET_VM=1 K8SNET_WAIT=6s
lap() { echo "== $1, $(cut -d' ' -f1 /proc/uptime) s after boot"; }
# shellcheck source=/dev/null
lap "$(. /etc/os-release && echo "$PRETTY_NAME"), kernel $(uname -r)"
bash /srv/k8snet/vagrant/provision/k8snet.sh && lap "k8snet is installed" &&
    bash /srv/k8snet/vagrant/provision/netns.sh && lap "the lab works" &&
    python3 /srv/k8snet/vagrant/run.py --lab namespaces
echo $? >/mnt/out/status
lap "the end"
sync
