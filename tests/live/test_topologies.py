"""The lab's topologies: what is special about the wires of each must be seen in the path that a report draws."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from k8snet.lab import cni, overlay, topology
from k8snet.lab.lab import Lab
from k8snet.lab.needs import missing
from k8snet.lab.play import play
from k8snet.lab.scenarios import by_name
from k8snet.render.text import render
from k8snet.report import Report
from k8snet.send import Sender, Traffic
from live.conftest import patience


def up(name: str) -> Lab:
    """The lab in that topology; skips where the kernel has not got what it needs."""
    if why := missing(topology.TOPOLOGIES[name].needs):
        pytest.skip(why)
    return Lab.up(topology=name)


def traced(lab: Lab, scenario: str) -> Report:
    report = play(lab, by_name(scenario), patience=patience())
    assert not report.findings, render(report)
    return report


def devices(report: Report, direction: str, node: str) -> Sequence[tuple[str, str]]:
    """(device, direction) of the hops on that node."""
    (path,) = (p for p in report.paths if p.direction == direction)
    return [(h.device or "", h.direction) for h in path.hops if h.node == node and h.pod is None and h.device]


@pytest.mark.parametrize(
    ("name", "tunnel", "kind"),
    [
        pytest.param("vxlan", overlay.VXLAN, "vxlan", id="vxlan"),
        pytest.param("ipip", overlay.IPIP, "ipip", id="ipip"),
    ],
)
def test_a_tunnel_is_drawn_with_its_device_and_its_outer_addresses(name: str, tunnel: str, kind: str) -> None:
    with up(name) as lab:
        report = traced(lab, f"healthy-tcp-remote-{name}")
    for direction, sender, receiver in (("request", "node-1", "node-2"), ("reply", "node-2", "node-1")):
        assert devices(report, direction, sender)[-2:] == [(tunnel, "out"), ("eth0", "out")], render(report)
        assert devices(report, direction, receiver)[:2] == [("eth0", "in"), (tunnel, "in")], render(report)
        (path,) = (p for p in report.paths if p.direction == direction)
        ends = ("192.168.50.1", "192.168.50.2") if sender == "node-1" else ("192.168.50.2", "192.168.50.1")
        wrapped = [h.encap for h in path.hops if h.encap]
        assert wrapped == [f"{kind} {ends[0]} > {ends[1]}"] * 2, render(report)
        assert all(str(h.header.daddr) not in ends for h in path.hops), "hops show the packet inside"


def test_routed_pods_have_no_bridge_on_their_way() -> None:
    with up("routed") as lab:
        near, far = traced(lab, "healthy-tcp-pod-routed"), traced(lab, "healthy-tcp-remote-routed")
        route = lab.run_in("shop/cart", ["ip", "route", "show", "default"], check=True).stdout
    assert devices(near, "request", "node-1") == [("vethcart", "in"), ("vethweb-1", "out")], render(near)
    assert devices(far, "request", "node-1") == [("vethcart", "in"), ("eth0", "out")], render(far)
    assert f"default via {cni.NEXT_HOP} dev eth0" in route


@pytest.mark.parametrize("name", topology.TOPOLOGIES)
def test_what_a_pod_sends_fits_every_device_behind_it(name: str) -> None:
    with up(name) as lab:
        sizes = {}
        for where, device in (("shop/cart", "eth0"), ("node-1", "vethcart"), ("node-1", "eth0")):
            shown = lab.run_in(where, ["ip", "link", "show", "dev", device], check=True).stdout.split()
            sizes[where, device] = int(shown[shown.index("mtu") + 1])
        overhead = {"vxlan": 50, "ipip": 20}.get(name, 0)
        assert sizes["shop/cart", "eth0"] == sizes["node-1", "vethcart"] == sizes["node-1", "eth0"] - overhead
        largest = sizes["shop/cart", "eth0"] - 28
        echo = Traffic(ip_address("10.244.2.11"), 0, socket.IPPROTO_ICMP, 1, wait=5 * patience(), size=largest)
        sender = Sender(lab.netns_of("shop/cart"), echo)
        sender.start()
        sender.join()
        assert [attempt.result for attempt in sender.attempts] == ["answered"]
