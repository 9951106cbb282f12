#!/usr/bin/env bash
# kube-proxy has stopped, and its rules are gone: nobody translates a Service's address, which leaves the node as it is.
# shellcheck source=vagrant/lib/lab.sh
. "$(dirname "$0")/../lib/lab.sh"

broken() {
    stale_names # with k3s the API goes as well
    stop_proxy
}
traffic() { trace --from shop/cart --to shop/svc/payments:80 --send 1; }
expect() { echo DNAT_MISS; }
mend() { settle; }

play "$@"
