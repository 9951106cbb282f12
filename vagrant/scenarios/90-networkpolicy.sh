#!/usr/bin/env bash
# A NetworkPolicy lets only the pods of app=web in to payments, and the client is not one of them.
# shellcheck source=vagrant/lib/lab.sh
. "$(dirname "$0")/../lib/lab.sh"

broken() { let_in shop/payments app=web; }
traffic() { trace --from shop/cart --to shop/svc/payments:80 --send 1; }
expect() { echo NETPOL_DENY; }
mend() { let_all_in; }

play "$@"
