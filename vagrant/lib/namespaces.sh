# The interface of lab.sh to the namespace lab (`k8snet lab`), which is up on this machine; needs root.
# shellcheck shell=bash

: "${lib:?sourced by lab.sh}"
checkout=$(cd "$lib/../.." && pwd)
python=${K8SNET_PYTHON:-}
for candidate in "$checkout/.venv/bin/python" /opt/k8snet/bin/python python3; do
    [[ -n $python ]] || ! command -v "$candidate" >/dev/null || python=$candidate
done
inventory=/run/k8snet/lab/inventory.json

helper() { "$python" "$lib/namespaces.py" "$@"; }

# Prints the netns of near, far, or a pod.
netns() {
    case $1 in
    near) printf k8snet-node-1 ;;
    far) printf k8snet-node-2 ;;
    *) printf 'k8snet-%s' "${1//\//-}" ;;
    esac
}

on() { ip netns exec "$(netns "$1")" "${@:2}"; }
in_pod() { on "$@"; }

trace() {
    local status=0
    "$python" -m k8snet trace --inventory "$inventory" --wait "${K8SNET_WAIT:-2s}" -o json "$@" || status=$?
    # 1: it has found something; 3: it has not seen all. Both are in the report.
    ((status == 0 || status == 1 || status == 3)) || return "$status"
}

stale_names() { :; } # they always are: there is no API
select_pods() { helper select "$1" "$2"; }
settle() { helper proxy; }

stop_proxy() {
    if [[ $backend == nftables ]]; then
        on near nft flush table ip kube-proxy
    elif [[ $backend == ipvs ]]; then
        cannot "IPVS keeps a Service's address on the node: without its rules it is refused there, which is another fault"
    else
        on near "$iptables" -w -t nat -F PREROUTING
        on near "$iptables" -w -t nat -F KUBE-SERVICES
    fi
}

# As the programs that enforce policies write them: kube-router's rules, or a table of its own.
let_in() {
    [[ "$1 $2" == "shop/payments app=web" ]] || cannot "the lab has rules for one policy only"
    local policies=$checkout/tracer/k8snet/lab/policies
    if [[ $backend == iptables-legacy ]]; then
        command -v ipset >/dev/null || cannot "no ipset here"
        on near ipset restore -file "$policies/kube-router.ipset"
        on near iptables-legacy-restore --noflush "$policies/kube-router-ingress.rules"
    else
        on near nft -f "$policies/nftables-ingress.nft"
    fi
}

let_all_in() {
    if [[ $backend == iptables-legacy ]]; then
        helper proxy # writes all of iptables' tables anew
        on near ipset list -name | while read -r set; do on near ipset destroy "$set"; done
    else
        on near nft delete table inet network-policy 2>/dev/null || true
    fi
}

# The lab makes a certainty of what is a chance elsewhere: it holds the packets and lets them go in the wrong order.
begin_race() {
    local word=""
    coproc RACE { helper race "$1"; }
    # shellcheck disable=SC2153 # coproc sets it
    race_pid=$RACE_PID
    # The helper has said why if it cannot, and ends with 77.
    if ! read -r word <&"${RACE[0]}" || [[ $word != on ]]; then
        wait "$race_pid"
        exit 1
    fi
    race_input=${RACE[1]}
}

end_race() {
    exec {race_input}>&-
    wait "$race_pid"
}

facts=$(helper facts)
# shellcheck disable=SC2034 # for the scenarios
backend=${facts%% *} network=${facts##* }
# Beside kube-proxy's nftables mode, other programs' iptables rules are nf_tables'.
iptables="iptables-nft"
[[ $backend != iptables-legacy ]] || iptables="iptables-legacy"
