#!/usr/bin/env bash
# Somebody has renamed a label: the Service's selector matches no pod any more.
# shellcheck source=vagrant/lib/lab.sh
. "$(dirname "$0")/../lib/lab.sh"

broken() { select_pods shop/web app=website; }
traffic() { trace --from shop/cart --to shop/svc/web:80 --send 1; }
expect() { echo NO_ENDPOINTS; }
mend() { select_pods shop/web app=web; }

play "$@"
