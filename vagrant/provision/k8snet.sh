#!/usr/bin/env bash
# k8snet from the checkout: compiled here, in /opt/k8snet, with the packages that it and the lab use. Needs apt and
# PyPI (or whatever apt and pip are configured to use), nothing else.
# shellcheck source=vagrant/provision/common.sh
. "$(dirname "$0")/common.sh"

install "${PACKAGES[@]}"

say "installing k8snet from $checkout into /opt/k8snet ($(python3 --version))"
[[ -x /opt/k8snet/bin/python ]] || python3 -m venv --clear /opt/k8snet
# Python compiles a module when it is first used; most of the Kubernetes client never is.
retry /opt/k8snet/bin/python -m pip install --quiet --disable-pip-version-check --no-compile "$checkout"
ln -sf /opt/k8snet/bin/k8snet /opt/k8snet/bin/kubectl-k8snet /usr/local/bin/

# 1: a part is missing, which costs a detail; 2: nothing can be traced.
status=0
k8snet check || status=$?
((status < 2)) || die "this kernel cannot be traced" "KERNEL=backports, or another BOX"
