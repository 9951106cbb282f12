#!/usr/bin/env bash
# LAB=netns: what the namespace lab wants of the machine, and the proof that it works: a lab, broken and diagnosed.
# shellcheck source=vagrant/provision/common.sh
. "$(dirname "$0")/common.sh"

# The lab loads what it lacks by itself; at boot they are there before anybody asks.
mkdir -p /etc/modules-load.d
printf '%s\n' br_netfilter nf_conntrack vxlan >/etc/modules-load.d/k8snet.conf
modprobe -a br_netfilter nf_conntrack vxlan

say "a lab whose FORWARD policy is DROP"
k8snet lab run forward-policy-drop
say "ready. All faults, one after the other: make vagrant-lab. One: k8snet lab run rp-filter. By hand: k8snet lab up"
