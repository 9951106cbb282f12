"""The World, kept up to date: pods come and go while a trace runs.

In: the kernel's news of links, addresses and netns ids in each node's netns, and the newest Inventory. Out: a `World`
by a reference that is swapped: whoever reads it waits for nothing. After a change only the nodes, new netns and those
that changed are looked at again; names are made anew from what was seen when the Inventory is another one.

Surprising: the kernel gives the lowest free inode to the next netns, so that a netns of the same number may be another
pod's a moment later; the former owner is in `World.former` for a minute, as are the owners of netns that are gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from k8snet.cluster.interfaces import Former, Interface, Owner, Role, World, in_use, read, translated, world
from k8snet.cluster.inventory import KEPT, Inventory
from k8snet.cluster.runtimes import Claim
from k8snet.kernel import netns as kernel_netns
from k8snet.kernel.netns import Netns
from k8snet.kernel.rtnetlink import Changes

TOGETHER: Final = 0.05  # seconds; a CNI makes several changes for each pod
UNNOTICED: Final = 1.0  # seconds; a guess: so late may it be seen that a netns's number is another pod's
TICK: Final = 0.2  # seconds between looks at the Inventory
SOON: Final = 0.2  # seconds after which a new netns that lacks its address or name is looked at again; then twice that
LATE: Final = 10.0  # seconds after which it is not: a guess; an image may have to be pulled


class Named(Protocol):
    """Whoever has an Inventory, the newest at any time."""

    @property
    def inventory(self) -> Inventory:
        """The newest."""


class Follower:
    """Inside its context it goes on looking, from a first look on; `world` is the newest."""

    def __init__(
        self,
        first: World,
        names: Named,
        proc: Path = Path("/proc"),
        root: Path | None = None,
        *,
        kept: float = KEPT,
    ) -> None:
        self.world = first
        self._kept = kept
        self._names = names
        self._inventory = names.inventory
        self._proc, self._root, self._host = proc, root, first.host
        self._hostname = socket.gethostname()
        self._seen = {one.netns.inum: one for one in first.seen}
        self._young: dict[int, tuple[float, float]] = {}  # when to look again, and how long to wait after that
        self._memo: dict[tuple[Path, str], Claim] = {}
        self._listening: dict[int, Changes] = {}
        self._wake = -1
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Follower:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._listen()
        self._thread = threading.Thread(target=self._run, name="k8snet-follow", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        os.close(self._wake)
        for changes in self._listening.values():
            changes.close()
        self._listening.clear()

    def last(self) -> World:
        """The world with everything that is known by now; from here on it stays as it is."""
        self._stop()
        with contextlib.suppress(OSError):
            self._look(self._changed())
        return self.world

    def _stop(self) -> None:
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        pause = TOGETHER
        pending = {self._host}  # what happened since the first look, before we listened
        while True:
            news = [changes.fileno() for changes in self._listening.values()]
            ready, _, _ = select.select([self._wake, *news], [], [], TICK)
            if ready and self._wake not in ready:
                ready, _, _ = select.select([self._wake], [], [], pause)
            if self._wake in ready:
                return
            began = time.monotonic()
            # What cannot be read now (too many open files) is tried again.
            with contextlib.suppress(OSError):
                pending |= self._changed() | {inum for inum, (when, _) in self._young.items() if when <= began}
                if pending:
                    self._look(pending)
                    pending = set()
                    # On a node where something always changes, no more than half of one CPU.
                    pause = max(TOGETHER, time.monotonic() - began)
                elif self._names.inventory is not self._inventory or self._expired():
                    self._publish()

    def _changed(self) -> set[int]:
        """The netns of which there is news; all, when too much happened to be told."""
        found: set[int] = set()
        for inum, changes in self._listening.items():
            try:
                ids = changes.taken()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                return set(self._seen)
            known = self._seen[inum].nsids if inum in self._seen else {}
            found |= {inum if nsid is None else known.get(nsid, inum) for nsid in ids}
        return found

    def _expired(self) -> bool:
        return any(time.monotonic() - former.until >= self._kept for former in self.world.former.values())

    def _look(self, changed: Collection[int]) -> None:
        found = kernel_netns.scan(self._proc)
        nodes = {inum for inum, owner in self.world.owners.items() if owner.role is Role.NODE}
        fresh = {i for i, netns in found.items() if i not in self._seen or _moved(self._seen[i].netns, netns)}
        again = [netns for inum, netns in found.items() if inum in fresh | nodes | set(changed)]
        ones = read(again, self._host, self._proc, self._root, ask=False, memo=self._memo)
        looked = {one.netns.inum: one for one in ones}
        seen = {inum: looked.get(inum) or self._seen.get(inum) for inum in found}
        self._seen = {one.netns.inum: one for one in translated((s for s in seen.values() if s), self._host)}
        self._publish()
        now = time.monotonic()
        # Not only those whose number is new: it may have been used again before we looked.
        self._young |= dict.fromkeys(looked.keys() & fresh, (now, SOON))
        waiting = {inum: after for inum, after in self._young.items() if not _complete(self.world, inum)}
        self._young = {
            inum: (now + pause, pause * 2) if when <= now else (when, pause)
            for inum, (when, pause) in waiting.items()
            if inum in self._seen and pause < LATE
        }
        self._listen()

    def _publish(self) -> None:
        self._inventory = self._names.inventory
        new = world(self._seen.values(), self._host, self._inventory, self._hostname)
        self.world = succeeded(self.world, new, time.monotonic(), self._kept)

    def _listen(self) -> None:
        """In the netns of each node, where the ends of all its pods' veths are."""
        nodes = {inum for inum, owner in self.world.owners.items() if owner.role is Role.NODE} & self._seen.keys()
        for inum in self._listening.keys() - nodes:
            self._listening.pop(inum).close()
        for inum in nodes - self._listening.keys():
            with contextlib.suppress(OSError):  # gone meanwhile
                fd = kernel_netns.opened(self._seen[inum].netns)
                try:
                    self._listening[inum] = Changes(fd)
                finally:
                    os.close(fd)


def succeeded(old: World, new: World, now: float, kept: float = KEPT) -> World:
    """`new` with the former owners of its netns, and of those that `old` had: each for `kept` seconds."""
    former = dict(old.former)
    for inum, owner in old.owners.items():
        known = inum in former and _is(former[inum].owner, owner)
        if _is_somebody(owner) and not known and not _is(owner, new.owner(inum)):
            former[inum] = Former(owner, old.netns[inum], old.inside.get(inum, ()), now)
    # Back again is who could not be read for once, or whose process is seen only now.
    former = {
        inum: one for inum, one in former.items() if now - one.until < kept and not _is(one.owner, new.owner(inum))
    }
    gone = {inum: one for inum, one in former.items() if inum not in new.owners}
    return replace(
        new,
        netns={inum: one.netns for inum, one in gone.items()} | new.netns,
        interfaces=(*new.interfaces, *(i for one in gone.values() for i in one.interfaces)),
        owners=new.owners | {inum: one.owner for inum, one in former.items() if _still(one, new, inum)},
        former=former,
    )


def owners_at(
    owners: Mapping[int, Owner], handed: Mapping[int, tuple[Former, Former]], passed: Mapping[int, Collection[int]]
) -> dict[int, Owner]:
    """`owners`, with those of numbers that several netns had in turn as they were when packets passed, or nobody.

    `handed`: their first and last former owners; `passed`: when packets were seen there, in ns of the monotonic clock.
    """
    found = dict(owners)
    for inum, (first, last) in handed.items():
        # Of one that is gone, or dying, nobody came after.
        if inum not in passed or inum not in owners or owners[inum] == last.owner:
            continue
        if max(passed[inum]) < (first.until - UNNOTICED) * 1e9:
            found[inum] = first.owner
        elif min(passed[inum]) < last.until * 1e9:
            found[inum] = replace(owners[inum], pod=None, uid=None, containers=(), named_by="")
    return found


def _moved(old: Netns, new: Netns) -> bool:
    """Perhaps another netns under the number of one that is gone: other processes, another way in."""
    return (old.path, old.pids) != (new.path, new.pids)


def _is_somebody(owner: Owner) -> bool:
    return owner.pod is not None or owner.uid is not None


def _is(one: Owner, other: Owner) -> bool:
    """They are the same pod for sure."""
    if one.uid and other.uid:
        return one.uid == other.uid
    return one.pod is not None and other.pod is not None and one.pod.key == other.pod.key


def _still(former: Former, new: World, inum: int) -> bool:
    """The netns is gone or dying, and nobody else's: its last packets are its former owner's."""
    if _is_somebody(new.owner(inum)) or new.owner(inum).role is Role.NODE:
        return False
    now = _macs(new.inside.get(inum, ()))
    return not now or bool(now & _macs(former.interfaces))


def _macs(interfaces: Iterable[Interface]) -> frozenset[str]:
    return frozenset(i.mac for i in interfaces if in_use(i) and i.mac)


def _complete(world: World, inum: int) -> bool:
    owner = world.owner(inum)
    if inum in world.former and owner == world.former[inum].owner:
        return False  # that is who it was; somebody else may be moving in
    addresses = any(
        not address.ip.is_link_local for i in world.inside.get(inum, ()) if in_use(i) for address in i.addresses
    )
    return addresses and (owner.pod is not None or owner.role is Role.NODE)
