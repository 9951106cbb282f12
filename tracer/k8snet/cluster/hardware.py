"""What piece of hardware an interface inside a pod is: a card, or a virtual function of one that the node keeps.

In: the address that the kernel gives for the interface, and sysfs as the node sees it. An SR-IOV VF in a pod's netns
has no peer on the node; its card ("physical function") has a name there (kernel: Documentation/PCI/pci-iov-howto.rst).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from k8snet.kernel.rtnetlink import Link


@dataclass(frozen=True, slots=True)
class Hardware:
    """The device behind an interface."""

    address: str  # on its bus: "0000:3b:02.1", "virtio0"
    virtual: bool = False  # a VF
    card: str | None = None  # of a VF: the card's interface in the node, else its address


def of_link(sysfs: Path, link: Link) -> Hardware | None:
    """None where there is no hardware, or the kernel does not say (before Linux 5.14)."""
    if not link.bus or not link.hardware or "/" in link.bus + link.hardware:
        return None
    physical = sysfs / "bus" / link.bus / "devices" / link.hardware / "physfn"
    try:
        address = physical.readlink().name
    except OSError:
        return Hardware(link.hardware)
    try:
        names = sorted(entry.name for entry in (physical / "net").iterdir())
    except OSError:
        names = []
    return Hardware(link.hardware, virtual=True, card=names[0] if names else address)
