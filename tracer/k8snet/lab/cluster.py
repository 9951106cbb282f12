"""The lab's Kubernetes: which nodes, pods and Services there are, as an Inventory and as kubectl would print it.

Nothing here touches the system. The Inventory is the one description; the topology, the servers, kube-proxy's rules
and the JSON for `--inventory FILE` are all derived from it. Addresses are those of the design's examples. Everything
is dual-stack: each IPv4 address has a twin that reads like it (10.244.1.10, fd00:10:244:1::10), and comes first.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from k8snet.cluster.inventory import Endpoint, Inventory, Node, Pod, Protocol, Service, ServicePort

CLUSTER_CIDR: Final = "10.244.0.0/16"
CLUSTER_CIDR6: Final = "fd00:10:244::/48"
CREATED: Final = "2026-01-01T00:00:00Z"
NODE_1: Final = "192.168.50.1"
NODE_2: Final = "192.168.50.2"

Object = dict[str, Any]


def twin(ip: str) -> IPv6Address:
    """The IPv6 address of whoever has this IPv4 address."""
    first, second, third, last = ip.split(".")
    return IPv6Address(f"fd00:{first}:{second}:{third}::{last}")


def _both(ip: str) -> tuple[IPv4Address, IPv6Address]:
    return IPv4Address(ip), twin(ip)


def _pod(key: str, node: str, ip: str, labels: str, *ports: tuple[str, Protocol, int]) -> Pod:
    namespace, name = key.split("/")
    pairs = tuple((label, value) for label, _, value in (pair.partition("=") for pair in labels.split(",")))
    return Pod(namespace, name, _uid("pod", key), node, _both(ip), False, "Running", pairs, ports)


def _uid(kind: str, key: str) -> str:
    # The same for the same name, so that the reports of two runs can be compared.
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{key}.{kind}.k8snet.lab"))


PODS: Final = (
    _pod("shop/cart", "node-1", "10.244.1.10", "app=cart", ("http", "TCP", 8080)),
    _pod("shop/web-1", "node-1", "10.244.1.11", "app=web", ("http", "TCP", 8080)),
    _pod("shop/web-2", "node-1", "10.244.1.12", "app=web", ("http", "TCP", 8080)),
    _pod("shop/web-3", "node-2", "10.244.2.11", "app=web,site=far", ("http", "TCP", 8080)),
    _pod(
        "shop/payments",
        "node-1",
        "10.244.1.14",
        "app=payments",
        ("http", "TCP", 8080),
        ("echo", "UDP", 7007),
        ("statsd", "UDP", 8125),
    ),
    _pod("kube-system/dns", "node-1", "10.244.1.13", "app=kube-dns", ("dns", "UDP", 53), ("dns-tcp", "TCP", 53)),
)


def _service(key: str, ip: str, backends: tuple[str, ...], *ports: tuple[str, Protocol, int, str]) -> Service:
    namespace, name = key.split("/")
    pods = tuple(pod for pod in PODS if pod.key in backends)
    return Service(
        namespace,
        name,
        _both(ip),
        tuple(
            ServicePort(
                port_name,
                protocol,
                port,
                target,
                endpoints=tuple(
                    Endpoint(p.ips[family], _number(p, target), p.key, p.node, ready=True)
                    for family in (0, 1)
                    for p in pods
                ),
            )
            for port_name, protocol, port, target in ports
        ),
    )


def _number(pod: Pod, target: str) -> int:
    return next((number for name, _, number in pod.named_ports if name == target), 0) or int(target)


def _node_port(service: Service, number: int) -> Service:
    """The same, reachable at this port of every node too."""
    return replace(service, type="NodePort", ports=tuple(replace(port, node_port=number) for port in service.ports))


def _local(service: Service) -> Service:
    """The same with the policy Local at every door that it has."""
    return replace(service, internal_local=not service.ports[0].node_port, external_local=service.type == "NodePort")


def _draining(service: Service) -> Service:
    """The same while all its pods are on their way out: they still serve, and are not ready."""

    def leaving(port: ServicePort) -> ServicePort:
        return replace(port, endpoints=tuple(replace(e, ready=False, terminating=True) for e in port.endpoints))

    return replace(service, ports=tuple(map(leaving, service.ports)))


_SERVICES: Final = (
    _service(
        "kube-system/kube-dns",
        "10.96.0.10",
        ("kube-system/dns",),
        ("dns", "UDP", 53, "53"),
        ("dns-tcp", "TCP", 53, "53"),
    ),
    _service("shop/web", "10.96.0.80", ("shop/web-1", "shop/web-2", "shop/web-3"), ("http", "TCP", 80, "8080")),
    _service("shop/empty", "10.96.0.81", (), ("http", "TCP", 80, "8080")),
    _service("shop/payments", "10.96.0.82", ("shop/payments",), ("http", "TCP", 80, "http")),
    # Nobody listens on 9090: the Service's targetPort is wrong.
    _service("shop/admin", "10.96.0.83", ("shop/payments",), ("http", "TCP", 80, "9090")),
    _service("shop/statsd", "10.96.0.84", ("shop/payments",), ("statsd", "UDP", 8125, "statsd")),
    _service("shop/echo", "10.96.0.85", ("shop/payments",), ("echo", "UDP", 7, "echo")),
    # The client's own Service, for hairpin.
    _service("shop/cart", "10.96.0.86", ("shop/cart",), ("http", "TCP", 80, "8080")),
    # One backend, on the other node.
    _service("shop/remote", "10.96.0.87", ("shop/web-3",), ("http", "TCP", 80, "8080")),
    _node_port(_service("shop/front", "10.96.0.88", ("shop/web-1",), ("http", "TCP", 80, "8080")), 30080),
    _draining(_service("shop/leaving", "10.96.0.89", ("shop/web-2",), ("http", "TCP", 80, "8080"))),
    # With a traffic policy Local: one backend, on the other node; the same at a NodePort; some on each node.
    _local(_service("shop/far-only", "10.96.0.90", ("shop/web-3",), ("http", "TCP", 80, "8080"))),
    _local(_node_port(_service("shop/far-door", "10.96.0.91", ("shop/web-3",), ("http", "TCP", 80, "8080")), 30081)),
    _local(
        _service("shop/nearest", "10.96.0.92", ("shop/web-1", "shop/web-2", "shop/web-3"), ("http", "TCP", 80, "8080"))
    ),
    # Reachable by an address that is no node's.
    replace(
        _service("shop/outer", "10.96.0.93", ("shop/web-1",), ("http", "TCP", 80, "8080")),
        external_ips=_both("192.0.2.80"),
    ),
    # Two backends that know every name; those of the second Service think about it first.
    _service("kube-system/names", "10.96.0.11", ("kube-system/dns", "shop/web-2"), ("dns", "UDP", 53, "53")),
    _service("kube-system/slow-names", "10.96.0.12", ("kube-system/dns", "shop/web-2"), ("dns", "UDP", 53, "5300")),
)


def _selector(service: Service, pods: tuple[Pod, ...]) -> dict[str, str]:
    """A label that the pods behind `service` have, and no other pod."""
    backends = {e.pod for port in service.ports for e in port.endpoints}
    labels = [label for pod in pods for label in pod.labels]
    fitting = [x for x in labels if {pod.key for pod in pods if x in pod.labels} == backends]
    return dict(fitting[:1] or [("app", service.name)])


SERVICES: Final = tuple(replace(s, selector=tuple(_selector(s, PODS).items())) for s in _SERVICES)

NODES: Final = (
    Node("node-1", _both(NODE_1), ("10.244.1.0/24", "fd00:10:244:1::/64")),
    Node("node-2", _both(NODE_2), ("10.244.2.0/24", "fd00:10:244:2::/64")),
)

INVENTORY: Final = Inventory(PODS, SERVICES, NODES, source="the lab")


def objects(inventory: Inventory) -> Object:
    """What `kubectl get pods,services,endpointslices,nodes -A -o json` prints for `inventory`: one List."""
    items = [_pod_object(pod, inventory) for pod in inventory.pods]
    items += [_service_object(service, inventory) for service in inventory.services]
    items += [_slice_object(service, ip, inventory) for service in inventory.services for ip in service.cluster_ips]
    items += [_node_object(node) for node in inventory.nodes]
    return {"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}}


def _metadata(kind: str, namespace: str | None, name: str, **more: object) -> Object:
    key = f"{namespace}/{name}" if namespace else name
    where = {"namespace": namespace} if namespace else {}
    return {
        "creationTimestamp": CREATED,
        "name": name,
        **where,
        "resourceVersion": "1",
        "uid": _uid(kind, key),
        **more,
    }


def _pod_object(pod: Pod, inventory: Inventory) -> Object:
    node = next(n for n in inventory.nodes if n.name == pod.node)
    ports = [{"containerPort": number, "name": name, "protocol": proto} for name, proto, number in pod.named_ports]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata("pod", pod.namespace, pod.name, labels=dict(pod.labels)),
        "spec": {
            "containers": [{"image": "k8snet.invalid/lab", "name": "server", "ports": ports}],
            "dnsPolicy": "ClusterFirst",
            "nodeName": pod.node,
            "restartPolicy": "Always",
        },
        "status": {
            "conditions": [{"lastProbeTime": None, "lastTransitionTime": CREATED, "status": "True", "type": "Ready"}],
            "hostIP": str(node.ips[0]),
            "hostIPs": [{"ip": str(ip)} for ip in node.ips],
            "phase": pod.phase,
            "podIP": str(pod.ips[0]),
            "podIPs": [{"ip": str(ip)} for ip in pod.ips],
            "qosClass": "BestEffort",
            "startTime": CREATED,
        },
    }


def _service_object(service: Service, inventory: Inventory) -> Object:
    is_open = service.type in ("NodePort", "LoadBalancer")
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata("service", service.namespace, service.name),
        "spec": {
            "clusterIP": str(service.cluster_ips[0]),
            "clusterIPs": [str(ip) for ip in service.cluster_ips],
            "internalTrafficPolicy": "Local" if service.internal_local else "Cluster",
            **({"externalTrafficPolicy": "Local" if service.external_local else "Cluster"} if is_open else {}),
            **({"externalIPs": [str(ip) for ip in service.external_ips]} if service.external_ips else {}),
            "ipFamilies": [_family(ip) for ip in service.cluster_ips],
            "ipFamilyPolicy": "RequireDualStack" if len(service.cluster_ips) > 1 else "SingleStack",
            "ports": [
                {
                    "name": port.name,
                    "port": port.port,
                    "protocol": port.protocol,
                    "targetPort": int(port.target_port) if port.target_port.isdigit() else port.target_port,
                    **({"nodePort": port.node_port} if port.node_port else {}),
                }
                for port in service.ports
            ],
            "selector": dict(service.selector) or _selector(service, inventory.pods),
            "sessionAffinity": "None",
            "type": service.type,
        },
        "status": {"loadBalancer": {}},
    }


def _slice_object(service: Service, ip: IPv4Address | IPv6Address, inventory: Inventory) -> Object:
    # One slice a service and family: all ports of a lab service have the same pods behind them.
    key = service.key if ip.version == 4 else f"{service.key}.{_family(ip)}"
    name = f"{service.name}-{_uid('slice', key)[:5]}"
    uids = {pod.key: pod.uid for pod in inventory.pods}
    endpoints = [
        {
            "addresses": [str(endpoint.ip)],
            "conditions": {
                "ready": endpoint.ready,
                "serving": endpoint.serving,
                "terminating": endpoint.terminating,
            },
            "nodeName": endpoint.node,
            "targetRef": {
                "kind": "Pod",
                "name": endpoint.pod.split("/")[1],
                "namespace": endpoint.pod.split("/")[0],
                "uid": uids[endpoint.pod],
            },
        }
        for endpoint in service.ports[0].endpoints
        if endpoint.pod and endpoint.ip.version == ip.version
    ]
    labels = {
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": service.name,
    }
    owner = {
        "apiVersion": "v1",
        "blockOwnerDeletion": True,
        "controller": True,
        "kind": "Service",
        "name": service.name,
        "uid": _uid("service", service.key),
    }
    ports = [
        {
            "name": port.name,
            "port": port.endpoints[0].port if port.endpoints else int(port.target_port),
            "protocol": port.protocol,
        }
        for port in service.ports
    ]
    return {
        "addressType": _family(ip),
        "apiVersion": "discovery.k8s.io/v1",
        "endpoints": endpoints or None,  # the API server sends null, not []
        "kind": "EndpointSlice",
        "metadata": _metadata(
            "slice", service.namespace, name, generateName=f"{service.name}-", labels=labels, ownerReferences=[owner]
        ),
        "ports": ports,
    }


def _node_object(node: Node) -> Object:
    addresses = [{"address": str(ip), "type": "InternalIP"} for ip in node.ips]
    addresses.append({"address": node.name, "type": "Hostname"})
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": _metadata("node", None, node.name, labels={"kubernetes.io/hostname": node.name}),
        "spec": {"podCIDR": node.pod_cidrs[0], "podCIDRs": list(node.pod_cidrs)},
        "status": {"addresses": addresses, "conditions": [{"status": "True", "type": "Ready"}]},
    }


def _family(ip: IPv4Address | IPv6Address) -> str:
    return "IPv4" if ip.version == 4 else "IPv6"
