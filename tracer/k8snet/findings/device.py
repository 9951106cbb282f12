"""Findings about what hangs at a device and takes packets there: BPF programs, tc's filters, queues."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from k8snet.findings import words
from k8snet.findings.case import UNSPECIFIED, Case, Death
from k8snet.findings.entry import Match
from k8snet.kernel.devices import Attached

# Without a reason the function is not enough: these free packets for other causes too.
_TC_SYMBOLS: Final = ("__netif_receive_skb_core", "__dev_queue_xmit", "dev_queue_xmit", "sch_handle_egress")
# veth's three are one function or another, as the compiler has inlined them.
_XDP_SYMBOLS: Final = (
    *("do_xdp_generic", "netif_receive_generic_xdp", "bpf_prog_run_generic_xdp"),
    *("veth_xdp_rcv_skb", "veth_xdp_rcv", "veth_poll"),
)
_QUEUE_SYMBOLS: Final = ("__dev_queue_xmit", "dev_queue_xmit", "kfree_skb_list", "kfree_skb_list_reason")
_QUEUE_REASONS: Final = ("QDISC_", "FQ_", "CAKE_")
_CLASSIFIERS: Final = ("clsact", "ingress")  # qdiscs that queue nothing: they only hold filters
_EGRESS_SYMBOLS: Final = ("__dev_queue_xmit", "dev_queue_xmit", "sch_handle_egress")
_OWNERS: Final = {"cil_": "Cilium", "tail_": "Cilium", "cali_": "Calico", "calico_": "Calico"}


def tc_drop(case: Case) -> Match | None:
    """A filter or program at a device's tc hook dropped it."""
    for death in words.fatal(case):
        named = death.reason.startswith("TC_")
        counted = _dropped(case, death, _CLASSIFIERS)
        if not named and not (death.reason in UNSPECIFIED and death.symbol in _TC_SYMBOLS and counted):
            continue
        direction = "egress" if death.reason == "TC_EGRESS" or death.symbol in _EGRESS_SYMBOLS else "ingress"
        device = death.event.ifname
        inside = words.enter(case, death.event.netns)
        culprits = _culprits(case, death, f"tc {direction}")
        return Match(
            title=f"{words.ended(case, death)} on {words.owner(case, words.place(case, death))} at {device}: "
            f"{_title(culprits, f'a filter or program at tc {direction}')}",
            where=words.place(case, death),
            why=f"What {'leaves' if direction == 'egress' else 'comes in'} by {device} passes tc {direction} there, "
            "and what is attached to it decided to drop this packet.",
            evidence=(
                *words.evidence(case, death),
                *(f"at {device}: {culprit}" + _count(culprit) for culprit in culprits),
                *(f"qdisc {kind} of {device}: dropped rose by {rise}" for kind, rise in counted.items()),
            ),
            fix=(
                f"{inside}tc -s filter show dev {shlex.quote(device)} {direction}",
                f"{inside}bpftool net show dev {shlex.quote(device)}",
                *_show_programs(culprits),
                *_whose(culprits),
                f"# If nobody needs it: {inside}{_remove(culprits, device, direction)}",
            ),
            direction=death.direction,
        )
    return None


def xdp_drop(case: Case) -> Match | None:
    """An XDP program of the device dropped it."""
    for death in words.fatal(case):
        culprits = _culprits(case, death, "xdp")
        by_symbol = death.reason in UNSPECIFIED and death.symbol in _XDP_SYMBOLS and bool(culprits)
        if death.reason != "XDP" and not by_symbol:
            continue
        device = death.event.ifname
        inside = words.enter(case, death.event.netns)
        return Match(
            title=f"{words.ended(case, death)} on {words.owner(case, words.place(case, death))} at {device}: "
            f"{_title(culprits, 'an XDP program')}",
            where=words.place(case, death),
            why=f"Everything that comes in by {device} passes this program before any other part of the network "
            "stack, and the program decided to drop the packet.",
            evidence=(*words.evidence(case, death), *(f"at {device}: {culprit}" for culprit in culprits)),
            fix=(
                f"{inside}bpftool net show dev {shlex.quote(device)}",
                *_show_programs(culprits),
                *_whose(culprits),
                f"# If nobody needs it: {inside}ip link set dev {shlex.quote(device)} {_xdp_off(culprits)} off",
            ),
            direction=death.direction,
            also=("the program ended with an error (XDP_ABORTED), which drops the packet as well",),
        )
    return None


def qdisc_drop(case: Case) -> Match | None:
    """The queue in front of a device dropped it."""
    for death in words.fatal(case):
        if not death.reason.startswith(_QUEUE_REASONS) and not (
            death.reason in UNSPECIFIED and death.symbol in _QUEUE_SYMBOLS
        ):
            continue
        device = death.event.ifname
        # A device that is down has a queue that drops as well (noop), and that one counts nothing.
        queues = _dropped(case, death, other_than=_CLASSIFIERS)
        if not queues:
            continue
        inside = words.enter(case, death.event.netns)
        kinds = " and ".join(queues)
        return Match(
            title=f"{words.ended(case, death)} on {words.owner(case, words.place(case, death))} at {device}: "
            f"its queue ({kinds}) dropped the packet",
            where=words.place(case, death),
            why=f"What leaves by {device} goes through the queueing discipline {kinds}: "
            "it is full, limits the rate, or drops on purpose.",
            evidence=(
                *words.evidence(case, death),
                *(f"qdisc {kind} of {device}: dropped rose by {rise}" for kind, rise in queues.items()),
            ),
            fix=(
                f"{inside}tc -s qdisc show dev {shlex.quote(device)}",
                "# A pod's bandwidth limit is such a queue: see the annotations kubernetes.io/ingress-bandwidth and "
                "kubernetes.io/egress-bandwidth.",
                f"# If nobody needs it: {inside}tc qdisc del dev {shlex.quote(device)} root",
            ),
            direction=death.direction,
            also=("the device is slower than what is sent through it, and the queue is full for a moment",),
        )
    return None


def _dropped(case: Case, death: Death, kinds: Sequence[str] = (), other_than: Sequence[str] = ()) -> dict[str, int]:
    """By how much the drop counters of the device's qdiscs rose, by kind."""
    head, tail = f"qdisc.{death.event.ifname}.", ".dropped"
    rises = case.around.rises.get(death.event.netns, {})
    found = {
        name.removeprefix(head).removesuffix(tail): rise
        for name, rise in rises.items()
        if name.startswith(head) and name.endswith(tail) and rise > 0
    }
    return {kind: rise for kind, rise in found.items() if kind not in other_than and (not kinds or kind in kinds)}


def _culprits(case: Case, death: Death, hook: str) -> tuple[Attached, ...]:
    """What hangs at that hook of the device; where some of it has counted drops, only that."""
    here = [a for a in case.around.attached.get((death.event.netns, death.event.ifname), ()) if a.hook == hook]
    return tuple([a for a in here if a.dropped] or here)


def _title(culprits: tuple[Attached, ...], unknown: str) -> str:
    if not culprits:
        return f"{unknown} dropped the packet"
    if len(culprits) > 1:
        return f"one of {len(culprits)} filters or programs at {culprits[0].hook} dropped the packet"
    one = culprits[0]
    if one.id is None:
        return f"the filter {one.kind} at {one.hook} dropped the packet"
    spot = f"the {one.kind} XDP" if one.hook == "xdp" else f"the {one.hook}"
    return f"{spot} program {one.name or '(without a name)'} (id {one.id}) dropped the packet"


def _count(culprit: Attached) -> str:
    return f", its actions have dropped {culprit.dropped}" if culprit.dropped else ""


def _show_programs(culprits: tuple[Attached, ...]) -> tuple[str, ...]:
    return tuple(f"bpftool prog show id {culprit.id}" for culprit in culprits if culprit.id is not None)


def _whose(culprits: tuple[Attached, ...]) -> tuple[str, ...]:
    owners = {owner for a in culprits for start, owner in _OWNERS.items() if a.name.startswith(start)}
    return tuple(f"# Its name is {owner}'s: change the policy that made it drop." for owner in sorted(owners))


def _remove(culprits: tuple[Attached, ...], device: str, direction: str) -> str:
    if culprits and all(culprit.kind == "tcx" for culprit in culprits):
        return f"bpftool net detach tcx_{direction} dev {shlex.quote(device)}"
    return f"tc filter del dev {shlex.quote(device)} {direction}"


def _xdp_off(culprits: tuple[Attached, ...]) -> str:
    return {"generic": "xdpgeneric", "native": "xdpdrv"}.get(culprits[0].kind if culprits else "", "xdp")
