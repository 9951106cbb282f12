"""Two machines' agents on one stage: what each kernel reported, as the lines that its agent would have written.

shop/cart (netns 10) is on node-1 (netns 1), shop/web-3 on node-2. The two kernels have given the same numbers: node-2's
own netns is 1 too, and the pod's is 10. Service shop/remote 10.96.0.87:80 stands for web-3. node-2's clock is ahead.
"""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Final

from k8snet.agent import lines
from k8snet.agent.report import Reporter, Text
from k8snet.cluster.interfaces import Owner, Role, World
from k8snet.cluster.inventory import Endpoint, Node, Service, ServicePort
from k8snet.cluster.targets import Target
from k8snet.event import LAYOUT, Address, CtStatus, Event, FiveTuple
from k8snet.findings.case import Surroundings
from k8snet.flow.correlate import Correlator
from k8snet.judge import Observation
from k8snet.kernel.netns import Netns
from k8snet.path import Surface
from k8snet.trace import Request
from unit import story
from unit.story import CART, NODE, addresses, into, out

WEB_3: Final = 10  # CART's number, on the other kernel
AHEAD_NS: Final = 3_600_000_000_000  # node-2 was booted an hour before node-1
WIRE_NS: Final = 70_000
VIP, FAR = "10.96.0.87:80", "10.244.2.11:8080"
NATTED, WAY_BACK = f"{story.CLIENT} > {FAR}", f"{FAR} > {story.CLIENT}"
ENTRY = {"orig": f"{story.CLIENT} > {VIP}", "reply": WAY_BACK, "status": story.CONFIRMED}

INVENTORY: Final = replace(
    story.INVENTORY,
    services=(
        Service("shop", "remote", addresses("10.96.0.87"), (
            ServicePort("http", "TCP", 80, "8080", endpoints=(
                Endpoint(IPv4Address("10.244.2.11"), 8080, "shop/web-3", "node-2", ready=True),)),)),
    ),
    nodes=(Node("node-1", addresses("192.168.50.1")), Node("node-2", addresses("192.168.50.2"))),
)  # fmt: skip
REQUEST: Final = Request(
    client=Target("pod/shop/cart", addresses("10.244.1.10"), pod=INVENTORY.pods[0]),
    server=Target(
        "svc/shop/remote",
        addresses("10.96.0.87"),
        80,
        "TCP",
        service=INVENTORY.services[0],
        all_endpoints=INVENTORY.services[0].ports[0].endpoints,
    ),
    inventory=INVENTORY,
    protocol="tcp",
)
PODS: Final = {"node-1": INVENTORY.pods[0], "node-2": INVENTORY.pods[2]}
BOOTED: Final = {"node-1": 1_800_000_000_000_000_000, "node-2": 1_800_000_000_000_000_000 - AHEAD_NS}


def syn(us: int = 1000, ip_id: int = 5189) -> tuple[list[Event], list[Event]]:
    """What node-1 and node-2 see of a SYN to the Service; node-2 by its own clock."""
    wire = us + WIRE_NS // 1000 + AHEAD_NS // 1000
    fields = {"ip_id": ip_id}
    return [
        out(f"{story.CLIENT} > {VIP}", CART, "eth0", us=us, **fields),
        into(f"{story.CLIENT} > {VIP}", NODE, "veth-cart", us=us + 10, **fields),
        out(NATTED, NODE, "eth0", us=us + 30, **fields, **ENTRY),
    ], [
        into(NATTED, NODE, "eth0", us=wire + 30, **fields),
        out(NATTED, NODE, "veth-web-3", us=wire + 50, **fields),
        into(NATTED, WEB_3, "eth0", us=wire + 60, **fields),
    ]


def syn_ack(us: int = 1400) -> tuple[list[Event], list[Event]]:
    """The answer: node-1, node-2."""
    there = us + AHEAD_NS // 1000
    fields = {"flags": 0x12, "ip_id": 0, "seq": 7000, "skb": 0xFFFF_0000_0000_6790}
    entry = {**ENTRY, "status": story.CONFIRMED | CtStatus.SEEN_REPLY, "info": 3}
    wire = us + WIRE_NS // 1000
    return [
        into(WAY_BACK, NODE, "eth0", us=wire + 20, **fields),
        out(f"{VIP} > {story.CLIENT}", NODE, "veth-cart", us=wire + 40, **fields, **entry),
        into(f"{VIP} > {story.CLIENT}", CART, "eth0", us=wire + 50, **fields),
    ], [
        out(WAY_BACK, WEB_3, "eth0", us=there, **fields),
        into(WAY_BACK, NODE, "veth-web-3", us=there + 10, **fields),
        out(WAY_BACK, NODE, "eth0", us=there + 20, **fields),
    ]


def world(node: str) -> World:
    """What the agent there sees of its machine."""
    owners = {NODE: Owner(node, role=Role.NODE), 10: Owner(node, PODS[node], role=Role.POD)}
    return World({n: Netns(n, f"/run/netns/{n}") for n in owners}, (), owners, NODE)


def stream(node: str, events: Sequence[Event], *, lost: int = 0, until_us: int = 5_000_000, **around: object) -> str:
    """The whole output of the agent on that node. `around`: fields of its Surroundings."""
    written = io.StringIO()
    reporter = Reporter(Text(written), story.Kernel())
    reporter.hello(node)
    reporter.asked(REQUEST)
    seen = told(reporter, node, events, lost=lost, **around)
    reporter.finish(seen, INVENTORY)
    return timed(written.getvalue(), node, until_us)


def told(reporter: Reporter, node: str, events: Sequence[Event], *, lost: int = 0, **around: object) -> Observation:
    """Let the reporter see this; what a trace on that node would have to judge."""
    client = CART if node == "node-1" else None
    backends: dict[Address, int] = {PODS[node].ips[0]: 10}
    here = world(node)
    reporter.begun(here, client, backends)
    correlator = Correlator(REQUEST.client.addresses)
    for event in events:
        reporter.saw(event, record_of(event))
        correlator.feed(event)
    reporter.moment(here, ())
    fields: dict[str, object] = {
        "inventory": INVENTORY,
        "owners": here.owners,
        "kernel": story.Kernel(),
        "client_netns": client,
        "backend_netns": backends,
        "enter": {NODE: f"nsenter --net={node} "},
        "lost": lost,
    }
    known = Surroundings(**(fields | around))  # type: ignore[arg-type]  # a builder by field name
    return Observation(
        request=REQUEST,
        flows=correlator.flows,
        around=known,
        surface=Surface(here.owners, frozenset({10})),
        lost={"kfree_skb": lost} if lost else {},
        rule_naming="nftrace",
        boot_ns=BOOTED[node],
    )


def timed(text: str, node: str, until_us: int) -> str:
    """The same as if it had begun when its kernel's story began, and ended when that was over."""
    ahead = AHEAD_NS if node == "node-2" else 0
    changed = []
    for line in map(lines.understood, text.splitlines()):
        assert line is not None
        if isinstance(line, lines.Hello):
            line = replace(line, monotonic_ns=ahead, realtime_ns=BOOTED[node] + ahead)
        elif isinstance(line, lines.Ready):
            line = replace(line, ktime_ns=ahead)
        elif isinstance(line, lines.Bye):
            line = replace(line, ktime_ns=ahead + until_us * 1000)
        changed.append(lines.written(line) + "\n")
    return "".join(changed)


def record_of(event: Event) -> bytes:
    """The kernel's record of an event: the decoder's way back."""
    *plain, packet, outer, ct_orig, ct_reply, ifname, table, payload = event
    tail = b"".join(map(_tuple, (packet, outer, ct_orig, ct_reply)))
    return LAYOUT.pack(*plain, tail + ifname.encode().ljust(16, b"\0") + table.encode().ljust(16, b"\0")) + payload


def _tuple(five: FiveTuple | None) -> bytes:
    if five is None:
        return bytes(40)
    family = socket.AF_INET if five.saddr.version == 4 else socket.AF_INET6
    packed = b"".join(address.packed.ljust(16, b"\0") for address in (five.saddr, five.daddr))
    ports = b"".join(number.to_bytes(2, sys.byteorder) for number in (five.sport, five.dport))
    return packed + ports + bytes((five.protocol, family, 0, 0))
