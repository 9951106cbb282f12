#!/usr/bin/env bash
# LAB=k3s: one server, and agents that join it by TOKEN. flannel (VXLAN), kube-router's network policies, CoreDNS and
# kube-proxy are k3s' own. In: NODE, NODE_IP, CONTROL_IP, TOKEN, PROXY.
# shellcheck source=vagrant/provision/common.sh
. "$(dirname "$0")/common.sh"

[[ $(uname -m) == x86_64 ]] || die "the pinned k3s is for x86-64, this is $(uname -m)" "LAB=kubeadm"
packages=(ca-certificates curl)
[[ $PROXY != ipvs ]] || packages+=(ipvsadm)
install "${packages[@]}"
if [[ ! -x /usr/local/bin/k3s ]]; then
    download "https://github.com/k3s-io/k3s/releases/download/${K3S_VERSION/+/%2B}/k3s" "$K3S_SHA256" /usr/local/bin/k3s
    chmod 0755 /usr/local/bin/k3s
fi
download "https://raw.githubusercontent.com/k3s-io/k3s/${K3S_VERSION/+/%2B}/install.sh" "$K3S_INSTALL_SHA256" \
    /usr/local/sbin/k3s-install.sh

# Not the device of the default route: on VirtualBox that is a network that each machine has for itself.
device=$(ip -o -4 addr show to "$NODE_IP/32" | awk '{print $2; exit}')
[[ -n $device ]] || die "no device has $NODE_IP" "ip addr; vagrant reload $NODE"
arguments=(--node-name "$NODE" --node-ip "$NODE_IP" --flannel-iface "$device" --kube-proxy-arg "proxy-mode=$PROXY")

export INSTALL_K3S_SKIP_DOWNLOAD=true K3S_TOKEN=$TOKEN
if [[ $NODE == control ]]; then
    sh /usr/local/sbin/k3s-install.sh server "${arguments[@]}" --advertise-address "$NODE_IP" \
        --write-kubeconfig-mode 600 --disable traefik,servicelb,metrics-server
    # In one place for both kinds of cluster.
    mkdir -p /root/.kube
    ln -sf /etc/rancher/k3s/k3s.yaml /root/.kube/config
else
    K3S_URL=https://$CONTROL_IP:6443 sh /usr/local/sbin/k3s-install.sh agent "${arguments[@]}"
fi
