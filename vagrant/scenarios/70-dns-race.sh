#!/usr/bin/env bash
# A resolver asks for A and AAAA from one socket at the same moment, and both queries race for conntrack's table.
# shellcheck source=vagrant/lib/lab.sh
. "$(dirname "$0")/../lib/lab.sh"

broken() { :; }
traffic() {
    if [[ $lab == namespaces ]]; then
        in_race dns trace --from shop/cart --to kube-system/svc/names:53 --send 1 --dns web.shop.svc.cluster.local
    else
        in_race dns trace --from shop/cart --to kube-system/svc/kube-dns:dns --count 2000 --timeout 20s
    fi
}
expect() {
    if [[ $lab == namespaces ]]; then echo CT_CLASH_RESOLVED; else echo maybe CT_CLASH_RESOLVED CT_CLASH_DROP DNS_CLASH_LOST; fi
}
mend() { settle; }

play "$@"
