#!/usr/bin/env bash
# The node does not forward: what goes to a pod of another node dies in the routing decision.
# shellcheck source=vagrant/lib/lab.sh
. "$(dirname "$0")/../lib/lab.sh"

broken() { setting near net.ipv4.ip_forward 0; }
traffic() { trace --from shop/cart --to shop/svc/remote:80 --send 1; }
expect() { echo IP_FORWARD_OFF; }
mend() { setting near net.ipv4.ip_forward 1; }

play "$@"
