# What every scenario sources: the four words it answers to, and how to reach the lab, whichever it is.
# In: K8SNET_LAB, "namespaces" (the default) or "cluster". The functions that differ are in the file of that name, under
# the same names and with the same arguments:
#
#   on NODE COMMAND...        on a node, as root; NODE is near (the client's) or far
#   in_pod POD COMMAND...     in a pod's network namespace
#   trace ARGUMENT...         `k8snet trace` on the near node; the report as JSON on stdout
#   stale_names               from now on names come from a file: the API will not answer
#   select_pods SERVICE LABEL which pods are behind a Service
#   stop_proxy                kube-proxy of the near node, and its rules
#   settle                    takes back what stop_proxy, stale_names and begin_race have changed
#   let_in POD LABEL          a NetworkPolicy: only pods with this label; let_all_in takes it back
#   begin_race RACE           provokes a race (dns, snat) or fills a table (conntrack) until end_race
#
# and the variables backend (iptables…, nftables, ipvs), network (bridge, routed, vxlan, ipip; flannel, calico) and
# iptables (the program). Here, for both: setting, device_of, in_race, and cannot, for what this lab cannot play.
#
# `expect` prints one line: codes of which one must be found; or "none"; "maybe CODE..." where it is a chance.
# shellcheck shell=bash
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
lib=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lab=${K8SNET_LAB:-namespaces}

NOT_HERE=77 # automake's exit code for a test that was skipped

cannot() {
    printf '%s\n' "$*" >&2
    exit $NOT_HERE
}

backend="" network="" iptables=""
case $lab in
namespaces | cluster)
    # shellcheck source=vagrant/lib/namespaces.sh
    . "$lib/$lab.sh"
    [[ $backend && $network && $iptables ]]
    ;;
*)
    printf 'K8SNET_LAB=%s: there is no such lab\n  namespaces or cluster\n' "$lab" >&2
    exit 2
    ;;
esac

# sysctl(8) is not everywhere.
setting() {
    # shellcheck disable=SC2016 # expanded there
    on "$1" bash -c 'printf %s "$2" >"/proc/sys/${1//.//}"' setting "$2" "$3"
}

# The node's end of a pod's veth pair.
device_of() {
    local index
    index=$(in_pod "$1" cat /sys/class/net/eth0/iflink)
    on near ip -o link show | sed -n "s/^$index: \([^:@]*\).*/\1/p"
}

in_race() {
    begin_race "$1"
    "${@:2}"
    end_race
}

# `break` is a word of the shell: a scenario's function is called broken.
play() {
    case ${1:-} in
    break) broken ;;
    traffic | expect | mend) "$1" ;;
    *)
        printf 'usage: %s break|traffic|expect|mend\n' "$0" >&2
        exit 2
        ;;
    esac
}
