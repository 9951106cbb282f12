"""What a name means as the server, as the client addresses it: pods, services, endpoints, workloads, Ingresses, nodes.

A service is its own addresses, not its endpoints'; `ep` and workloads are the pods' addresses, without a service.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

from k8snet.cluster.inventory import Endpoint, Pod, Protocol, Route, Service, ServicePort
from k8snet.cluster.lookup import Lookup, dns_hint, endpoint_ports, kubectl, listed, thing_of
from k8snet.cluster.near import Thing
from k8snet.cluster.spelling import EXTERNAL, bracketed, spell
from k8snet.cluster.targets import Target
from k8snet.errors import K8snetError
from k8snet.event import Address


class Server(Lookup):
    """The side that is connected to."""

    def meant(self, thing: Thing) -> Target:
        match thing.kind:
            case "po":
                return self.with_named_port(self.of_pod(self.pod(f"{thing.namespace}/{thing.name}")))
            case "no":
                return self.on_node(self.of_node(thing.name))
            case "svc":
                return self.of_service(self.service(thing))
            case "ep":
                return self.of_endpoints(thing)
            case "ing":
                return self.of_ingress(thing)
        return self.of_workload(thing)

    def external(self) -> Target:
        if self.asked.port is not None and self.asked.number is None:
            raise K8snetError(f"nothing outside has a port named {self.asked.port!r}", "write external:443")
        return Target(EXTERNAL, (), self.asked.number, self.protocol, outside=True)

    def with_named_port(self, target: Target) -> Target:
        """A pod's target with the number of the port that was named."""
        pod, port = cast(Pod, target.pod), self.asked.port
        if port is None or target.port is not None:
            return target
        fit = list(dict.fromkeys(self.numbers_of(pod)))
        if len(fit) == 1:
            return replace(target, protocol=fit[0][0], port=fit[0][1])
        known = [f"{name} ({number}/{protocol})" for name, protocol, number in pod.named_ports]
        raise K8snetError(
            f"pod {pod.key} has {'several ports' if fit else 'no port'} named {port!r}",
            f"it names {listed(known)}" if known else "it names none: write the port's number",
        )

    def numbers_of(self, pod: Pod) -> list[tuple[Protocol, int]]:
        """The pod's ports of the name that was asked for."""
        return [
            (protocol, number)
            for name, protocol, number in pod.named_ports
            if name == self.asked.port and self.protocol in (None, protocol)
        ]

    def of_workload(self, thing: Thing) -> Target:
        """All its pods, each at its own address."""
        pods = self.running(thing)
        port, protocol = self.asked.number, self.protocol
        if self.asked.port is not None and port is None:
            fit = list(dict.fromkeys(number for pod in pods for number in self.numbers_of(pod)))
            if len(fit) != 1:
                named = listed(f"{n} ({number}/{p})" for pod in pods for n, p, number in pod.named_ports)
                raise K8snetError(
                    f"the pods of {thing.spelled} have {'several ports' if fit else 'no port'} "
                    f"named {self.asked.port!r}",
                    f"they name {named}" if named else "they name none: write the port's number",
                )
            protocol, port = fit[0]
        ends = tuple(Endpoint(ip, port, pod.key, pod.node, pod.ready) for pod in pods for ip in pod.ips if port)
        addresses = tuple(dict.fromkeys(ip for pod in pods for ip in pod.ips))
        text = f"{thing.kind}/{thing.namespace}/{thing.name}"
        return _with_a_note(Target(text, addresses, port, protocol, all_endpoints=ends), len(pods), "pods")

    def of_endpoints(self, thing: Thing) -> Target:
        """The endpoints of a service or a slice, at their own addresses: without the service's."""
        ports = endpoint_ports(self.inventory, thing)
        number, name = self.asked.number, self.asked.port
        chosen = [
            (port.protocol, end)
            for port in ports
            for end in port.endpoints
            if (name is None or (end.port == number if number else port.name == name))
            and self.protocol in (None, port.protocol)
        ]
        if not chosen:
            known = {
                f"{thing.spelled}:{port.name or end.port} ({end.port}/{port.protocol})": None
                for port in ports
                for end in port.endpoints
            }
            wanted = " ".join(filter(None, [self.protocol, f"port {name}" if name else ""]))
            raise K8snetError(
                f"{thing.spelled} has no endpoints" + (f" with {wanted}" if wanted else ""),
                f"it has {listed(known)}"
                if known
                else f"see: {kubectl('get', 'endpointslices', thing.namespace, '-o', 'wide')}",
            )
        # The first is the one that --send takes.
        chosen.sort(key=lambda one: not one[1].ready)
        ends = tuple(dict.fromkeys(end for _, end in chosen))
        addresses = tuple(dict.fromkeys(end.ip for end in ends))
        protocols, numbers = {protocol for protocol, _ in chosen}, {end.port for end in ends}
        target = Target(
            f"ep/{thing.namespace}/{thing.name}",
            addresses,
            numbers.pop() if len(numbers) == 1 else None,
            protocols.pop() if len(protocols) == 1 else self.protocol,
            all_endpoints=ends,
        )
        return _with_a_note(target, len({end.pod or end.ip for end in ends}), "endpoints")

    def of_ingress(self, thing: Thing) -> Target:
        """The service behind it; raises K8snetError that lists them when there are several."""
        ingress = next(
            one for one in self.inventory.ingresses if (one.namespace, one.name) == (thing.namespace, thing.name)
        )

        def spelled(route: Route) -> str:
            found = spell("svc", ingress.namespace, route.service)
            return f"{found}:{route.port}" if route.port else found

        wanted = self.asked.port
        fit = [route for route in ingress.routes if wanted in (None, route.port)]
        backends = list(dict.fromkeys(map(spelled, fit or ingress.routes)))
        if len(backends) == 1 and fit:
            try:
                target = self.again(backends[0])
            except K8snetError as error:
                raise K8snetError(f"{thing.spelled} leads to {backends[0]}: {error.problem}", error.remedy) from None
            note = f"{thing.spelled} leads to {backends[0]}; most controllers connect to {thing.namespace}/ep/"
            return replace(target, notes=(*target.notes, f"{note}{fit[0].service} instead"))
        if not ingress.routes:
            raise K8snetError(
                f"{thing.spelled} leads to no service",
                f"see: {kubectl('describe', 'ing', ingress.namespace, ingress.name)}",
            )
        ways = [f"{spelled(r)} ({r.host or '*'}{r.path or '/'})" for r in fit or ingress.routes]
        raise K8snetError(
            f"{thing.spelled} leads to {len(backends)} services" if fit else f"{thing.spelled} has no port {wanted}",
            f"choose one: {listed(ways)}",
        )

    def of_service(self, service: Service) -> Target:
        """Its ClusterIPs; a headless one's only pod."""
        if service.type == "ExternalName" or service.external_name:
            alias = service.external_name or "its externalName"
            raise K8snetError(
                f"service {service.key} is only another name for {alias} (ExternalName): it has no address",
                dns_hint(alias, self.asked),
            )
        fit = self.fitting(service)
        if not service.cluster_ips:
            return self.of_headless(service, fit)
        target = _with_ports(Target(f"svc/{service.key}", service.cluster_ips, service=service), fit, self.protocol)
        return _with_affinity(target, service)

    def of_headless(self, service: Service, fit: tuple[ServicePort, ...]) -> Target:
        """Clients get its pods' addresses from DNS: which pod is meant has to be said when there are several."""
        every_end = [end for port in fit for end in port.endpoints]
        # DNS keeps quiet about the others.
        ends = [end for end in every_end if end.ready or service.publishes_not_ready] or every_end
        found: dict[str, None] = {}
        for end in ends:
            there = self.inventory.pod_by_key.get(end.pod or "")
            where = thing_of(there).spelled if there is not None and end.ip in there.ips else bracketed(end.ip)
            found[f"{where}:{end.port}"] = None
        known = [text for text in found if self.can_be_had(text)]
        if len(known) == 1:
            kind = "pod" if len(ends) == len(every_end) else "ready pod"
            note = f"service {service.key} is headless: clients connect to its only {kind}"
            target = self.again(known[0])
            return replace(target, notes=(*target.notes, note))
        every = self.asked.spelled(spell("ep", service.namespace, service.name))
        either = f"; or any of them: {every if self.can_be_had(every) else every.split(':')[0]}"
        raise K8snetError(
            f"service {service.key} is headless: clients connect to its pods, not to an address of its own",
            f"name one of them: {listed(known)}{either}" if known else "name the pod (it has no endpoints now)",
        )

    def fitting(self, service: Service) -> tuple[ServicePort, ...]:
        """Its ports that were asked for; raises K8snetError with those there are."""
        port, number = self.asked.port, self.asked.number
        same = [p for p in service.ports if port is None or (p.port == number if number else p.name == port)]
        fit = tuple(p for p in same if self.protocol in (None, p.protocol))
        if fit or not (port or self.protocol):
            return fit
        own = spell("svc", service.namespace, service.name)
        known = [f"{own}:{p.name or p.port} ({p.port}/{p.protocol}, to {p.target_port} in the pod)"
                 for p in service.ports]  # fmt: skip
        wanted = " ".join(filter(None, [self.protocol, "port", port]))
        remedy = f"it has {listed(known)}" if known else f"it has no ports: {kubectl('get', 'svc', service.namespace)}"
        nodes = (f"no/{node.name}:{number}" for node in self.inventory.nodes)
        if any(p.node_port == number for p in service.ports if number) and (there := self.had(nodes)):
            remedy += f"; {number} is its port on every node: {there}"
        return _refuse(f"service {service.key} has no {wanted}", remedy)

    def had(self, texts: Iterable[str]) -> str | None:
        """The first that can be looked up."""
        return next((text for text in texts if self.helpful and self.can_be_had(text)), None)

    def at(self, address: Address) -> Target:
        inventory, number = self.inventory, self.asked.number
        services = list(inventory.service_by_outer_ip.get(address, ()))
        if address in inventory.service_by_ip:
            services.insert(0, inventory.service_by_ip[address])
        if pod := inventory.pod_by_ip.get(address):
            return replace(self.with_named_port(self.of_pod(pod)), addresses=(address,))
        if self.asked.port is not None and number is None and not services:
            raise K8snetError(
                f"{self.asked.text!r}: nothing is known at {address} that has a port named {self.asked.port!r}",
                f"write its number, such as {bracketed(address)}:80",
            )
        target = Target(str(address), (address,), number, self.protocol)
        if services:
            return self.at_service(services, replace(target, text=f"svc/{services[0].key}", service=services[0]))
        if node := inventory.node_by_ip.get(address):
            return self.on_node(replace(target, text=f"node/{node.name}", node=node))
        return target

    def at_service(self, services: list[Service], target: Target) -> Target:
        """An address that belongs to one service, or, if it is a load balancer's, to several, by their ports."""
        number, name = self.asked.number, self.asked.port
        own = [s for s in services if any(name in (None, p.name) or p.port == number for p in s.ports)]
        service = (own or services)[0]
        target = replace(target, text=f"svc/{service.key}", service=service)
        if number and all(port.port != number for port in service.ports):
            # Packets to such a port are real, and a fault worth seeing: no error, as there is for a name.
            return target
        return _with_affinity(_with_ports(replace(target, port=None), self.fitting(service), self.protocol), service)

    def on_node(self, target: Target) -> Target:
        """A node's target, with the service whose NodePort was named."""
        for service in self.inventory.services:
            for port in service.ports:
                if target.port and port.node_port == target.port and target.protocol in (None, port.protocol):
                    return replace(
                        target,
                        service=service,
                        service_port=port,
                        protocol=port.protocol,
                        all_endpoints=port.endpoints,
                    )
        return target


def _refuse(problem: str, remedy: str) -> tuple[ServicePort, ...]:
    raise K8snetError(problem, remedy)


def _with_ports(target: Target, fit: tuple[ServicePort, ...], protocol: Protocol | None) -> Target:
    numbers, protocols = {port.port for port in fit}, {port.protocol for port in fit}
    return replace(
        target,
        port=numbers.pop() if len(numbers) == 1 else None,
        protocol=protocols.pop() if len(protocols) == 1 else protocol,
        service_port=fit[0] if len(fit) == 1 else None,
        all_endpoints=tuple(end for port in fit for end in port.endpoints),
    )


def _with_affinity(target: Target, service: Service) -> Target:
    if service.affinity is None or len(target.backends) < 2:
        return target
    note = f"{target.text} keeps a client at one endpoint for {service.affinity} s (sessionAffinity: ClientIP)"
    return replace(target, notes=(*target.notes, note))


def _with_a_note(target: Target, count: int, what: str) -> Target:
    if count < 2:
        return target
    note = f"{target.text} stands for {count} {what}: --send takes the first, {bracketed(target.addresses[0])}"
    return replace(target, notes=(*target.notes, note))
