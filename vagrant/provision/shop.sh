#!/usr/bin/env bash
# The sample pods and Services, the same names as in the namespace lab. Does not wait: some of them are for workers that
# have not come yet.
# shellcheck source=vagrant/provision/common.sh
. "$(dirname "$0")/common.sh"

export KUBECONFIG=/root/.kube/config
kubectl=(kubectl)
command -v kubectl >/dev/null || kubectl=(k3s kubectl)
# The API server answers some seconds after its process has started.
for _ in $(seq 60); do
    "${kubectl[@]}" get --raw /readyz >/dev/null 2>&1 && break
    sleep 2
done
retry "${kubectl[@]}" apply -f "$vagrant/shop.yaml"
