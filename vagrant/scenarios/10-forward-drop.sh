#!/usr/bin/env bash
# The policy of FORWARD is DROP, as docker sets it, and no rule accepts what goes from pod to pod. (A CNI that adds such
# rules would hide the fault; a RETURN in front of them brings back the node that has no such CNI.)
# shellcheck source=vagrant/lib/lab.sh
. "$(dirname "$0")/../lib/lab.sh"

around=(FORWARD -p tcp --dport 8080 -m conntrack --ctstate NEW -j RETURN)

broken() {
    on near "$iptables" -w -I "${around[@]}"
    on near "$iptables" -w -P FORWARD DROP
}
traffic() { trace --from shop/cart --to shop/svc/payments:80 --send 1; }
expect() { echo FORWARD_POLICY_DROP; }
mend() {
    on near "$iptables" -w -P FORWARD ACCEPT
    on near "$iptables" -w -D "${around[@]}" 2>/dev/null || true
}

play "$@"
