#!/usr/bin/env bash
# Two pods speak to one target outside from the same port at the same moment, and the node gives both the same port of
# its own: who comes to conntrack's table second is dropped.
# shellcheck source=vagrant/lib/lab.sh
. "$(dirname "$0")/../lib/lab.sh"

broken() { :; }
traffic() {
    if [[ $lab == namespaces ]]; then
        in_race snat trace --from shop/cart --to 198.51.100.1:80 --protocol tcp --send 1
    else
        # Outside of the pods' network, which is what counts.
        in_race snat trace --from shop/cart --to no/worker-1:9 --protocol udp --count 5000 --timeout 20s
    fi
}
expect() { if [[ $lab == namespaces ]]; then echo SNAT_PORT_CLASH; else echo maybe SNAT_PORT_CLASH; fi; }
mend() { settle; }

play "$@"
