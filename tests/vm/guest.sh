#!/bin/sh
# Inside the virtual machine, as root, started by its init: makes a world that is quick to read and partly writable, loads
# the modules, runs a command, and leaves `status` and `output` in the directory that the host shares.
# In: the virtfs tag of the host's root, the tag of the shared directory, then directory, time limit in s, command.
set -u
host_tag=$1 out_tag=$2 directory=$3 limit=$4
shift 4

# virtme-ng mounts the host's root without a cache, and Python asks for thousands of files again and again: a second,
# cached mount of the same tree makes a second start of Python three times as fast. It becomes the root, rather than a
# chroot, so that entering a namespace of init's leads to the same place.
root=/run/root
mkdir -p $root
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,access=any,msize=512000 "$host_tag" $root
mount -t tmpfs -o mode=0755 run $root/run
mkdir -p $root/run/old $root/run/out $root/run/modules
mount -t 9p -o rw,trans=virtio,version=9p2000.L,access=any "$out_tag" $root/run/out
exec >$root/run/out/output 2>&1
for shared in /proc /sys /dev; do mount --rbind $shared $root$shared; done
# Writable where programs expect it, and forgotten with the machine.
for scratch in tmp root home; do
    mkdir -p $root/run/$scratch/upper $root/run/$scratch/work
    mount -t overlay -o "xino=off,lowerdir=$root/$scratch,upperdir=$root/run/$scratch/upper,workdir=$root/run/$scratch/work" \
        $scratch $root/$scratch
done
modules=$(readlink -f "/lib/modules/$(uname -r)")
cd $root && pivot_root . run/old || exit 1
cd / && umount -l /run/old

# The kernel calls modprobe by itself too (for `ip link add type vxlan`, for a match of iptables), with its default
# directory, which need not exist on the host.
cat >/run/modules/modprobe <<EOF
#!/bin/sh
exec /usr/sbin/modprobe -d '${modules%/lib/modules/*}' "\$@"
EOF
chmod +x /run/modules/modprobe
echo /run/modules/modprobe >/proc/sys/kernel/modprobe
export PATH="/run/modules:/usr/sbin:/usr/bin:/sbin:/bin"

# One call, because starting a program is slow here; what a kernel has not is said and skipped.
modprobe -a veth bridge br_netfilter vxlan macvlan ipip sch_netem \
    nf_conntrack nf_conntrack_netlink nf_nat nf_tables nft_compat nft_chain_nat nft_ct nft_limit \
    nfnetlink_log nf_log_syslog ip_tables iptable_filter iptable_nat iptable_mangle iptable_raw nf_reject_ipv4 \
    ipt_REJECT xt_addrtype xt_comment xt_conntrack xt_mark xt_MASQUERADE xt_multiport xt_nat xt_set xt_statistic \
    xt_tcpudp xt_TRACE ip_vs

mkdir -p /sys/fs/bpf
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
# As on any node: the lab's namespaces start from these.
ip link set lo up

export K8SNET_VM=1 PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 HOME=/root
cd "$directory" || exit 1
echo "ready after $(cut -d' ' -f1 /proc/uptime) s"
# INT, so that pytest tells what it knows before it ends.
timeout -s INT -k 60 "$limit" "$@"
echo $? >/run/out/status
sync
