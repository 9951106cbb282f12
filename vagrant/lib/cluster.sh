# The interface of lab.sh to a real cluster on Vagrant's machines. In, from vagrant/run.py: K8SNET_SSH (a file, what
# `vagrant ssh-config` printed), K8SNET_KIND (k3s, kubeadm), K8SNET_CNI, K8SNET_PROXY. Nothing but ssh is needed here:
# kubectl and k8snet run on the control node.
# shellcheck shell=bash

# shellcheck disable=SC2034 # for the scenarios
backend=$K8SNET_PROXY network=$K8SNET_CNI iptables=iptables
policy=k8snet-scenario
# Files on the control node.
kubeconfig=/root/.kube/config
stale=/run/k8snet-scenario.json

on() {
    local node
    case $1 in near) node=control ;; far) node=worker-1 ;; *) node=$1 ;; esac
    # One connection for all: a new one might not get through what was broken.
    ssh -F "$K8SNET_SSH" -o ControlMaster=auto -o "ControlPath=$K8SNET_SSH.%n" -o ControlPersist=10m "$node" \
        "sudo -- $(printf '%q ' "${@:2}")"
}

kube() { on near kubectl --kubeconfig "$kubeconfig" "$@"; }

address_of() { kube -n "${1%/*}" get pod "${1#*/}" -o 'jsonpath={.status.podIP}'; }

# By its address: container runtimes give a netns a name that says nothing.
in_pod() {
    local ip
    ip=$(address_of "$1")
    # shellcheck disable=SC2016 # expanded there
    on near bash -c 'for name in $(ip netns list | cut -d" " -f1); do
        if ip -n "$name" -4 -o addr show to "$1/32" | grep -q .; then shift; exec ip netns exec "$name" "$@"; fi
    done; echo "no network namespace has $1" >&2; exit 1' in_pod "$ip" "${@:2}"
}

trace() {
    local status=0
    # shellcheck disable=SC2016 # expanded there
    on near bash -c 'stale=$1 config=$2; shift 2
        if [[ -e $stale ]]; then names=(--inventory "$stale"); else names=(--kubeconfig "$config"); fi
        exec k8snet trace "${names[@]}" -o json "$@"' trace "$stale" "$kubeconfig" --wait "${K8SNET_WAIT:-2s}" "$@" ||
        status=$?
    ((status == 0 || status == 1 || status == 3)) || return "$status"
}

stale_names() {
    # shellcheck disable=SC2016
    on near bash -c 'kubectl --kubeconfig "$1" get pods,services,endpointslices,nodes -A -o json >"$2"' stale \
        "$kubeconfig" "$stale"
}

select_pods() {
    kube -n "${1%/*}" patch service "${1#*/}" --type json -p \
        "[{\"op\": \"replace\", \"path\": \"/spec/selector\", \"value\": {\"${2%%=*}\": \"${2#*=}\"}}]" >/dev/null
    sleep 3 # for the endpoints' controller, and for kube-proxy's next turn
}

stop_proxy() {
    [[ $backend != ipvs ]] ||
        cannot "IPVS keeps a Service's address on the node: without its rules it is refused there, which is another fault"
    if [[ $K8SNET_KIND == k3s ]]; then
        on near systemctl stop k3s # kube-proxy is a part of it; the pods stay
    else
        kube -n kube-system patch daemonset kube-proxy -p \
            '{"spec": {"template": {"spec": {"nodeSelector": {"k8snet.io/stopped": "true"}}}}}' >/dev/null
        kube -n kube-system wait --for=delete pod -l k8s-app=kube-proxy --timeout=60s >/dev/null
    fi
    if [[ $backend == nftables ]]; then
        on near nft flush table ip kube-proxy
    else
        on near iptables -w -t nat -F KUBE-SERVICES
    fi
}

settle() {
    if [[ $K8SNET_KIND == k3s ]]; then
        on near systemctl start k3s
    else
        kube -n kube-system patch daemonset kube-proxy --type json -p \
            '[{"op": "replace", "path": "/spec/template/spec/nodeSelector", "value": {"kubernetes.io/os": "linux"}}]' \
            >/dev/null
        kube -n kube-system rollout status daemonset kube-proxy --timeout=120s >/dev/null
    fi
    on near rm -f "$stale"
}

let_in() {
    [[ $K8SNET_KIND == k3s || $K8SNET_CNI == calico ]] || cannot "flannel alone enforces no NetworkPolicy: CNI=calico, or LAB=k3s"
    local app
    app=$(kube -n "${1%/*}" get pod "${1#*/}" -o 'jsonpath={.metadata.labels.app}')
    kube apply -f - >/dev/null <<EOF
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: $policy, namespace: ${1%/*}}
spec:
  podSelector: {matchLabels: {app: $app}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {${2%%=*}: ${2#*=}}}}]}]
EOF
    sleep 5 # until the node has it as rules
}

let_all_in() { kube -n shop delete networkpolicy "$policy" --ignore-not-found >/dev/null; }

# A real race is a chance: many tries, by a program in the clients' network namespaces.
begin_race() {
    local python=/opt/k8snet/bin/python load=/srv/k8snet/vagrant/lib/load.py server old
    racers=()
    case $1 in
    dns)
        server=$(kube -n kube-system get service kube-dns -o 'jsonpath={.spec.clusterIP}')
        in_pod shop/cart timeout 120 "$python" "$load" dns "$server" &
        racers+=($!)
        ;;
    snat)
        server=$(kube get node worker-1 -o 'jsonpath={.status.addresses[?(@.type=="InternalIP")].address}')
        in_pod shop/cart timeout 120 "$python" "$load" snat "$server" &
        racers+=($!)
        in_pod shop/web-1 timeout 120 "$python" "$load" snat "$server" &
        racers+=($!)
        ;;
    conntrack)
        old=$(on near cat /proc/sys/net/netfilter/nf_conntrack_max)
        # Somebody who was cut off here could not set it back: the node does that by itself.
        # shellcheck disable=SC2016
        on near bash -c 'systemd-run --quiet --collect --unit=k8snet-conntrack --on-active=90 \
            sysctl -qw "net.netfilter.nf_conntrack_max=$1"
            cat /proc/sys/net/netfilter/nf_conntrack_count >/proc/sys/net/netfilter/nf_conntrack_max' full "$old"
        ;;
    esac
}

end_race() {
    local pid
    for pid in "${racers[@]}"; do
        kill "$pid" 2>/dev/null || true # ssh: what it has started ends with its input
        wait "$pid" 2>/dev/null || true
    done
    # The unit that waits does at once what it would do later.
    on near bash -c 'systemctl is-active --quiet k8snet-conntrack.timer &&
        systemctl start k8snet-conntrack.service && systemctl stop k8snet-conntrack.timer || true'
}
