#!/usr/bin/env bash
# LAB=kubeadm: the distribution's containerd, kubeadm from Kubernetes' own packages, and a CNI from its manifest.
# In: NODE, NODE_IP, CONTROL_IP, TOKEN, CNI, PROXY.
# shellcheck source=vagrant/provision/common.sh
. "$(dirname "$0")/common.sh"

packages=(ca-certificates containerd curl gnupg)
[[ $PROXY != ipvs ]] || packages+=(ipvsadm)
install "${packages[@]}"

printf '%s\n' br_netfilter overlay vxlan >/etc/modules-load.d/k8s.conf
modprobe -a br_netfilter overlay vxlan
printf '%s = 1\n' net.ipv4.ip_forward net.bridge.bridge-nf-call-iptables net.bridge.bridge-nf-call-ip6tables \
    >/etc/sysctl.d/99-k8s.conf
sysctl -q --system
swapoff -a
sed -i '/\sswap\s/s/^[^#]/#&/' /etc/fstab

# The distribution's default looks for CNI plugins elsewhere, and leaves cgroups to runc instead of systemd.
mkdir -p /etc/containerd
containerd config default |
    sed -e 's/SystemdCgroup = false/SystemdCgroup = true/' -e 's,bin_dir = .*,bin_dir = "/opt/cni/bin",' \
        >/etc/containerd/config.toml
systemctl restart containerd

minor=${KUBERNETES_VERSION%.*}
repository=https://pkgs.k8s.io/core:/stable:/v$minor/deb/
key=/usr/share/keyrings/kubernetes.asc
retry curl -fsSL --proto '=https' --tlsv1.2 -o "$key" "${repository}Release.key"
# One key and no other, or apt would believe both.
found=$(gpg --show-keys --with-colons "$key" | awk -F: '/^pub/ {p = 1} /^fpr/ && p {print $10; p = 0}')
[[ $found == "$KUBERNETES_KEY" ]] || die "the key of $repository is ${found//$'\n'/ }" "vagrant/versions.env says $KUBERNETES_KEY"
printf 'deb [signed-by=%s] %s /\n' "$key" "$repository" >/etc/apt/sources.list.d/kubernetes.list
install "kubeadm=$KUBERNETES_VERSION-*" "kubelet=$KUBERNETES_VERSION-*" "kubectl=$KUBERNETES_VERSION-*" kubernetes-cni
apt-mark -q hold kubeadm kubelet kubectl >/dev/null
# Not the address of the default route: on VirtualBox each machine has the same one there.
printf 'KUBELET_EXTRA_ARGS=--node-ip=%s\n' "$NODE_IP" >/etc/default/kubelet

if [[ $NODE != control ]]; then
    [[ -e /etc/kubernetes/kubelet.conf ]] && exit 0
    # The token is known to these machines alone, and they are on a network of their own.
    kubeadm join "$CONTROL_IP:6443" --token "$TOKEN" --node-name "$NODE" --discovery-token-unsafe-skip-ca-verification
    exit 0
fi

if [[ ! -e /etc/kubernetes/admin.conf ]]; then
    cat >/root/kubeadm.yaml <<EOF
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
bootstrapTokens: [{token: "$TOKEN", ttl: 0s}]
localAPIEndpoint: {advertiseAddress: $NODE_IP}
nodeRegistration:
  name: $NODE
  taints: []
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v$KUBERNETES_VERSION
networking: {podSubnet: 10.244.0.0/16, serviceSubnet: 10.96.0.0/16}
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: $PROXY
EOF
    kubeadm init --config /root/kubeadm.yaml
fi
mkdir -p /root/.kube
ln -sf /etc/kubernetes/admin.conf /root/.kube/config
export KUBECONFIG=/root/.kube/config

if [[ $CNI == flannel ]]; then
    download "https://raw.githubusercontent.com/flannel-io/flannel/$FLANNEL_VERSION/Documentation/kube-flannel.yml" \
        "$FLANNEL_SHA256" /root/cni.yaml
    sed -i "s/^\( *\)- --kube-subnet-mgr/&\n\1- --iface-regex=^${CONTROL_IP%.*}\\\\./" /root/cni.yaml
    grep -q iface-regex /root/cni.yaml || die "flannel's manifest has no --kube-subnet-mgr any more" "look at /root/cni.yaml"
    kubectl apply -f /root/cni.yaml
else
    download "https://raw.githubusercontent.com/projectcalico/calico/$CALICO_VERSION/manifests/calico.yaml" \
        "$CALICO_SHA256" /root/cni.yaml
    # Its own guess would be the address of the default route; the pods' network it reads from kubeadm.
    kubectl apply -f /root/cni.yaml
    kubectl -n kube-system set env daemonset/calico-node IP_AUTODETECTION_METHOD=kubernetes-internal-ip
fi
