#!/usr/bin/env bash
# A pod calls its own Service, and its bridge port does not send back where a packet came from.
# shellcheck source=vagrant/lib/lab.sh
. "$(dirname "$0")/../lib/lab.sh"

broken() {
    [[ $network != calico && $network != routed && $network != ipip ]] || cannot "no bridge here: nodes route to each pod"
    on near bridge link set dev "$(device_of shop/cart)" hairpin off
}
traffic() { trace --from shop/cart --to shop/svc/cart:80 --send 1; }
expect() { echo HAIRPIN_OFF; }
mend() {
    case $network in calico | routed | ipip) return ;; esac
    on near bridge link set dev "$(device_of shop/cart)" hairpin on
}

play "$@"
