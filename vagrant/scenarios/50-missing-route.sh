#!/usr/bin/env bash
# The route to the other node's pods is missing, and no default route takes its place.
# shellcheck source=vagrant/lib/lab.sh
. "$(dirname "$0")/../lib/lab.sh"

kept=/run/k8snet-scenario.routes

broken() {
    [[ $network != calico ]] || cannot "Calico puts the route back before anybody can look"
    # shellcheck disable=SC2016 # expanded there
    on near bash -c 'ip -4 route show | grep -E "^(default|10\.[0-9.]+/[0-9]+ via) " >"$1"
        while read -r route; do ip -4 route del $route; done <"$1"' delete "$kept"
}
traffic() { trace --from shop/cart --to shop/svc/remote:80 --send 1; }
expect() { echo NO_ROUTE; }
mend() {
    # shellcheck disable=SC2016
    on near bash -c '[[ ! -e $1 ]] || { while read -r route; do ip -4 route replace $route; done <"$1"; rm "$1"; }' \
        restore "$kept"
}

play "$@"
