"""What a name means as the client: the side that opens the connection.

Pods, workloads (one of their pods) and nodes do; services, endpoints and Ingresses do not, and the pods behind them
are listed instead.
"""

from __future__ import annotations

from dataclasses import replace

from k8snet.cluster.inventory import Endpoint, Service
from k8snet.cluster.lookup import Lookup, endpoint_ports, listed, thing_of
from k8snet.cluster.near import Thing
from k8snet.cluster.targets import Target
from k8snet.errors import K8snetError
from k8snet.event import Address


class Client(Lookup):
    """The side that opens the connection."""

    def found(self) -> list[Thing]:
        # A service of the same name is no rival: it opens no connections.
        if self.asked.kind is None and (pods := self.find("po")):
            return pods
        if self.asked.kind is None and (services := self.find("svc")):
            return services[:1]
        if self.asked.kind is None:
            raise self.not_found("po")
        return super().found()

    def meant(self, thing: Thing) -> Target:
        match thing.kind:
            case "po":
                return self.of_pod(self.pod(f"{thing.namespace}/{thing.name}"))
            case "no":
                return self.of_node(thing.name)
            case "svc":
                raise self.no_client("a service", self.service(thing))
            case "ep":
                ends = self.ends_of(thing)
                raise self.no_client("a list of addresses", *ends)
            case "ing":
                raise K8snetError(
                    f"{self.asked.text!r} is an Ingress, and an Ingress opens no connections",
                    "name the pod of its controller: kubectl get pods -A | grep -i ingress",
                )
        pods = self.running(thing)
        return replace(self.of_pod(pods[0]), workload=f"{thing.kind}/{thing.namespace}/{thing.name}", pods=tuple(pods))

    def ends_of(self, thing: Thing) -> list[Endpoint]:
        """The endpoints of a service or a slice."""
        return [end for port in endpoint_ports(self.inventory, thing) for end in port.endpoints]

    def at(self, address: Address) -> Target:
        known = self.inventory
        services = [*known.service_by_outer_ip.get(address, ())]
        if address in known.service_by_ip:
            services.append(known.service_by_ip[address])
        if services:
            raise self.no_client("the address of a service", *services)
        if pod := known.pod_by_ip.get(address):
            return replace(self.of_pod(pod), addresses=(address,))
        if node := known.node_by_ip.get(address):
            # A node's port says nothing of a NodePort when the node is the client.
            return Target(f"node/{node.name}", (address,), self.asked.number, self.protocol, node=node)
        return Target(str(address), (address,), self.asked.number, self.protocol)

    def external(self) -> Target:
        raise K8snetError(
            "a trace follows one client by its address, and 'external' is no address",
            "name the client's address: --from 203.0.113.7; who tries to connect, through or not:\n"
            "  tcpdump -nni any 'tcp[tcpflags] & tcp-syn != 0 and dst port 30080', or see the load balancer's log",
        )

    def no_client(self, what: str, *behind: Service | Endpoint) -> K8snetError:
        """The error that this opens no connections, with the pods behind it."""
        keys = {
            end.pod: None
            for one in behind
            for end in ([one] if isinstance(one, Endpoint) else [e for port in one.ports for e in port.endpoints])
            if end.pod
        }
        pods = self.copyable(thing_of(self.pod(key)) for key in keys if key in self.inventory.pod_by_key)
        return K8snetError(
            f"{self.asked.text!r} is {what}, and that opens no connections"
            if what != "a service"
            else f"{self.asked.text!r} is a service, and a service opens no connections",
            f"name the pod that does{': ' + listed(pods) if pods else ''}",
        )
