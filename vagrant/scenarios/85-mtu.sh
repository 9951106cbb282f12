#!/usr/bin/env bash
# The node's end of a pod's veth pair takes 1400 bytes, everything else more: small packets pass, big ones die there. A
# bridge tells nobody; a node that routes tells the client, which then sends smaller ones.
# shellcheck source=vagrant/lib/lab.sh
. "$(dirname "$0")/../lib/lab.sh"

broken() { on near ip link set dev "$(device_of shop/payments)" mtu 1400; }
# One segment, so that no card cuts it later; smaller than what flannel leaves of 1500.
traffic() { trace --from shop/cart --to shop/svc/payments:80 --send 1 --size 1390; }
expect() { case $network in calico | routed | ipip) echo PMTU_DISCOVERED ;; *) echo MTU_EXCEEDED ;; esac; }
mend() { on near ip link set dev "$(device_of shop/payments)" mtu "$(in_pod shop/payments cat /sys/class/net/eth0/mtu)"; }

play "$@"
