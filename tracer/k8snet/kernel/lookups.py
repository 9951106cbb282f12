"""What the kernel's tables say of packets that came to nothing: routes, neighbours, the state of devices.

In: questions, as the packets asked them (`RouteQuestion`), and netns whose devices matter. Out: the answers as they are
after the trace. Read only, and only asked when something went wrong: a healthy trace costs nothing here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from k8snet.kernel import rtnetlink
from k8snet.kernel.netns import Netns, opened
from k8snet.kernel.rtnetlink import InterfaceAddress, Link, Neighbour, Route, RouteQuestion


@dataclass(slots=True)
class Answers:
    """What the tables say; a netns that is gone, or that refuses, is missing."""

    routes: dict[RouteQuestion, Route] = field(default_factory=dict)
    neighbours: dict[int, tuple[Neighbour, ...]] = field(default_factory=dict)  # by netns
    links: dict[int, dict[str, Link]] = field(default_factory=dict)  # netns -> device
    forwarding: dict[int, tuple[Neighbour, ...]] = field(default_factory=dict)  # by netns: of its tunnel devices
    addresses: dict[int, dict[str, tuple[InterfaceAddress, ...]]] = field(default_factory=dict)  # likewise


def ask(questions: Collection[RouteQuestion], devices_of: Collection[int], places: Mapping[int, Netns]) -> Answers:
    """Answer the questions, and read the devices of those netns and of the questions'."""
    answers = Answers()
    for inum in dict.fromkeys([*(q.netns for q in questions), *devices_of]):
        if inum not in places:
            continue
        with contextlib.suppress(OSError):
            there = opened(places[inum])
            try:
                with rtnetlink.opened(there) as netlink:
                    links = netlink.links()
                    names = {link.ifindex: link.name for link in links}
                    answers.links[inum] = {link.name: link for link in links}
                    answers.addresses[inum] = {names.get(i, str(i)): a for i, a in netlink.addresses().items()}
                    own = [q for q in questions if q.netns == inum]
                    answers.routes |= {q: netlink.route(q) for q in own}
                    if own:
                        answers.neighbours[inum] = netlink.neighbours()
                        answers.forwarding[inum] = netlink.forwarding()
            finally:
                os.close(there)
    return answers


def is_resolving(place: Netns) -> bool:
    """The netns is asking who has some address, and has no answer yet."""
    with contextlib.suppress(OSError):
        there = opened(place)
        try:
            with rtnetlink.opened(there) as netlink:
                return any(n.state == "INCOMPLETE" for n in netlink.neighbours())
        finally:
            os.close(there)
    return False
