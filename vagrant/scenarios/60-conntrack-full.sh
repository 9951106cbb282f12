#!/usr/bin/env bash
# nf_conntrack_max is too small for the node, and reached: whatever would open a connection is dropped.
# shellcheck source=vagrant/lib/lab.sh
. "$(dirname "$0")/../lib/lab.sh"

broken() { stale_names; } # the table is full only while the traffic runs: the API could not be asked either
traffic() { in_race conntrack trace --from shop/cart --to shop/svc/payments:80 --send 3; }
expect() { echo CT_TABLE_FULL; }
mend() {
    settle
    # What filled the namespace lab's table was to stay there for long.
    [[ $lab != namespaces ]] || setting near net.netfilter.nf_conntrack_udp_timeout 30
}

play "$@"
