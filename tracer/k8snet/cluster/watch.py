"""Names from the Kubernetes API that stay up to date while a trace runs.

In: an `Api` and a `Wish`. Out: at any moment the newest `Inventory`, by a reference that is swapped: whoever reads it
waits for nothing. Each query is followed by a thread of its own, list then watch, over disconnects, 410, 429, 5xx and
tokens that expire; one more thread makes the Inventory anew when something has changed.

Surprising: a pod that was deleted, or has ended, keeps its address for a minute, unless another pod has it by then:
its last packets are still under way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from http import HTTPStatus
from itertools import count
from typing import Any, Final

from k8snet.cluster.api import TO_ADD, Api, ApiError, DeniedError, Query, Watch, clock, patience, rule
from k8snet.cluster.inventory import KEPT, Inventory, Pod
from k8snet.cluster.needs import Wish, is_lookup, needed
from k8snet.cluster.objects import Value, joined, value_of
from k8snet.errors import K8snetError
from k8snet.event import Address

TOGETHER: Final = 0.1  # seconds; a rollout changes many objects at once
STEADY: Final = 1.0  # seconds; a watch that lives so long shows a server that is well
_MOST: Final = 1000  # a guess: objects that are listed to find out what a name was meant to be
_WANTED: Final = 32  # a guess: addresses that are asked for, each by a thread of its own
_FAREWELL: Final = 0.3  # seconds for the threads to end; one that waits for a connection ends with the process
_SHOWN: Final = 5  # a guess: collections that one message lists
_LONGEST: Final = 30.0  # seconds that the first answers are waited for when --request-timeout sets no limit

_Key = tuple[str, str]  # namespace and name


class Cluster:
    """The names that a wish is about. Use it as a context; `load` first."""

    def __init__(self, api: Api, wish: Wish, local: tuple[Pod, ...] = (), *, once: bool = False) -> None:
        """`local`: pods that have a name without the API; `once`: list, and watch nothing."""
        self.api = api
        self.inventory = Inventory(local, source=f"the API at {api.access.server}")
        self._wish = wish
        self._local = local
        self._once = once
        self._limit = 0.0
        self._followers: dict[Query, _Follower] = {}
        self._tables: dict[Query, dict[_Key, tuple[int, Value]]] = {}
        self._ended: dict[tuple[str, str], tuple[float, Pod]] = {}
        self._stamps = count()
        self._lock = threading.Lock()  # of the tables: among our own threads
        self._renewal = threading.Lock()
        self._renewals = 0
        self._changed = threading.Event()
        self._settled = threading.Event()
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, patience: float | None = None) -> None:
        """Ask for what is needed and wait for it, at most `patience` seconds; what fails is in `failures`."""
        limit = patience or self.api.options.request_timeout or _LONGEST
        self._limit = limit
        deadline = time.monotonic() + limit
        while fresh := self._missing():
            for query in fresh:
                self._follow(query)
            for query in fresh:
                self._followers[query].answered.wait(max(0.0, deadline - time.monotonic()))
            self._rebuild()
            if time.monotonic() >= deadline:
                return

    def widen(self) -> None:
        """Also what the names may have been meant to be: to be called when they mean nothing."""
        self._wish = replace(self._wish, wide=True)
        self.load()

    def watch(self) -> None:
        """From now on keep up with changes, until `close`."""
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="k8snet-names", daemon=True)
            self._keeper.start()

    def want(self, addresses: Iterable[Address]) -> None:
        """Find out, in the background, whose these addresses are."""
        seen = self._wish.seen
        unknown = sorted(frozenset(addresses) - seen, key=str)[: _WANTED - len(seen)]
        if unknown and not self._closing.is_set():
            self._wish = replace(self._wish, seen=seen.union(unknown))
            self._settled.clear()
            self._changed.set()

    def settle(self, seconds: float) -> None:
        """Wait until what was wanted has been answered; no longer than that."""
        if self._keeper is not None and self._wish.seen:
            self._settled.wait(seconds)

    def close(self) -> None:
        """Ask nothing more."""
        self._closing.set()
        self._changed.set()
        for follower in list(self._followers.values()):
            follower.stop()
        deadline = time.monotonic() + _FAREWELL
        for thread in (self._keeper, *self._followers.values()):
            if thread is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def failures(self) -> dict[Query, ApiError]:
        """What could not be had so far, or not within the time that was given."""
        found = {}
        for query, follower in list(self._followers.items()):
            error = follower.error
            if error is None and not follower.answered.is_set():
                error = self.api.silent(self._limit)
            # A server that does not know the selector (400) is asked in another way.
            if error is not None and error.status != HTTPStatus.BAD_REQUEST and query not in self._tables:
                found[query] = error
        return found

    @property
    def failure(self) -> K8snetError | None:
        """All of that in one error: the API itself, else everything that is forbidden, with the rule to add."""
        errors = list(self.failures.values())
        denied = [error for error in errors if isinstance(error, DeniedError)]
        other = next((error for error in errors if not isinstance(error, DeniedError)), None)
        if other or not denied:
            return other
        queries = sorted({error.query for error in denied})
        words = list(dict.fromkeys(query.words for query in queries))
        more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
        return K8snetError(
            f"{denied[0].who} may not list {', '.join(words[:_SHOWN])}{more} (403 Forbidden)",
            TO_ADD,
            more=rule(queries),
        )

    @property
    def queries(self) -> tuple[Query, ...]:
        """What has been answered."""
        return tuple(self._tables)

    @property
    def reached(self) -> bool:
        """The API has answered something, were it a refusal."""
        return bool(self._tables) or any(error.reached for error in self.failures.values())

    @property
    def obstacle(self) -> K8snetError | None:
        """Why a name may be missing: the API has trouble, or the very object is not for this user to see."""
        failures = {query: e for query, e in self.failures.items() if query.resource != "networkpolicies"}
        trouble = next((e for e in failures.values() if not isinstance(e, DeniedError)), None)
        denied = [query for query, e in failures.items() if isinstance(e, DeniedError) and query.namespace]
        if trouble or not any(is_lookup(query) for query in denied):
            return trouble
        return self.failure

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of these names: who is missing, and since when they may be wrong."""
        notes = [f"names are missing: {self.failure.problem}"] if self.failure else []
        stale = [(f.since, f.error) for f in list(self._followers.values()) if f.since and f.error]
        if stale:
            since, error = min(stale, key=lambda pair: pair[0])
            notes.append(f"names may be older than {clock(since)} UTC: {error.problem}")
        return tuple(dict.fromkeys(notes))

    @property
    def renewals(self) -> int:
        """How often the configuration has been read again."""
        return self._renewals

    def renew(self, seen: int) -> int:
        """Read the configuration again, once for all who were refused with the one before; returns which it is now."""
        with self._renewal:
            if seen == self._renewals:
                self.api.reload()
                self._renewals += 1
            return self._renewals

    def replaced(self, query: Query, values: Mapping[_Key, Value]) -> None:
        """A list has been answered."""
        table = {key: (next(self._stamps), value) for key, value in values.items()}
        with self._lock:
            before = self._tables.get(query, {})
            self._tables[query] = table
            for key, (_, value) in before.items():
                self._bury(value, values.get(key))
        self._changed.set()

    def changed(self, query: Query, event: str, body: Mapping[str, Any]) -> None:
        """A watch has told of a change."""
        value = value_of(body, query.kind) if event != "DELETED" else None
        with self._lock:
            table = self._tables[query]
            before = table.pop(_key(body), None)
            if before is not None:
                self._bury(before[1], value)
            if value is not None:
                table[_key(body)] = (next(self._stamps), value)
        if before is None or before[1] != value:  # a node says every few seconds that it is well
            self._changed.set()

    def _bury(self, old: Value, new: Value | None) -> None:
        """A pod's containers end before it is deleted: what counts is when it had its address last."""
        if isinstance(old, Pod) and not old.finished and old.ips and not old.host_network:
            alive = isinstance(new, Pod) and new.uid == old.uid and not new.finished and new.ips == old.ips
            if not alive:
                self._ended[old.key, old.uid] = (time.monotonic(), old)

    def _keep(self) -> None:
        pause = TOGETHER
        while not self._closing.is_set():
            self._changed.wait(self._until_forgotten())
            if self._closing.wait(pause):
                return
            self._changed.clear()
            began, wish = time.monotonic(), self._wish
            self._rebuild()
            # Where something always changes, a fifth of the time at most: the trace wants the CPU, too. A twentieth
            # where every Service is followed for days.
            pause = max(TOGETHER, (19 if wish.services else 4) * (time.monotonic() - began))
            fresh = self._missing()
            for query in fresh:
                self._follow(query)
            if not fresh and wish is self._wish and all(f.answered.is_set() for f in self._followers.values()):
                self._settled.set()

    def _until_forgotten(self) -> float | None:
        with self._lock:
            times = [at for at, _ in self._ended.values()]
        return max(0.0, min(times) + KEPT - time.monotonic()) if times else None

    def _missing(self) -> frozenset[Query]:
        answered = {query for query, follower in self._followers.items() if follower.answered.is_set()}
        errors = {query: self._followers[query].error for query in answered}
        refused = {q for q, e in errors.items() if e and e.status in (HTTPStatus.FORBIDDEN, HTTPStatus.BAD_REQUEST)}
        return needed(self._wish, self.inventory, answered, refused) - self._followers.keys()

    def _follow(self, query: Query) -> None:
        follower = self._followers[query] = _Follower(self, query, once=self._once or self._wish.wide)
        follower.start()

    def _rebuild(self) -> None:
        now = time.monotonic()
        with self._lock:
            self._ended = {key: (at, pod) for key, (at, pod) in self._ended.items() if now - at < KEPT}
            ended = [pod for _, pod in self._ended.values()]
            found = [(n, (q.kind, key), v) for q, table in self._tables.items() for key, (n, v) in table.items()]
        # One object may stand in the answers to several queries: what came last is true.
        values = {key: value for _, key, value in sorted(found, key=lambda one: one[0])}
        known = joined((*self._unknown(values.values()), *values.values()), self.inventory.source)
        ghosts = []
        for pod in ended:
            ips = tuple(ip for ip in pod.ips if ip not in known.pod_by_ip)
            if ips:
                ghosts.append(replace(pod, ips=ips, terminating=True))
        # In front: where a living pod has the name now, it is the one that is meant by it.
        self.inventory = replace(known, pods=(*ghosts, *known.pods)) if ghosts else known

    def _unknown(self, values: Iterable[Value]) -> Iterator[Pod]:
        """The pods that only this node knows."""
        pods = [value for value in values if isinstance(value, Pod)]
        uids, keys = {pod.uid for pod in pods}, {pod.key for pod in pods}
        yield from (pod for pod in self._local if pod.uid not in uids and pod.key not in keys)


class _Follower(threading.Thread):
    """Lists and then watches what one query finds, for as long as it can."""

    def __init__(self, cluster: Cluster, query: Query, *, once: bool) -> None:
        super().__init__(name=f"k8snet-{query.resource}", daemon=True)
        self.answered = threading.Event()  # listed, or given up
        self.error: ApiError | None = None  # the last one, while it lasts
        self.since: float | None = None  # the time of day since which we may have missed something
        self._cluster = cluster
        self._query = query
        self._once = once
        self._stopped = threading.Event()
        self._watch: Watch | None = None
        self._version = ""  # resourceVersion; empty: to be listed
        self._newest = False  # a list after 410 Gone
        self._tries = 0
        self._renewed: int | None = None  # the configuration with which we were refused before

    def stop(self) -> None:
        """End soon."""
        self._stopped.set()
        watch = self._watch
        if watch is not None:
            watch.stop()

    def run(self) -> None:
        """Until stopped, or until there is nothing more to be had."""
        while not self._stopped.is_set():
            configuration = self._cluster.renewals
            try:
                if not self._version and not self._list():
                    break
                self._stopped.wait(self._listen())
            except ApiError as error:
                if self._stopped.is_set():
                    break
                wait = self._after(error, configuration)
                if wait is None:
                    break
                self._stopped.wait(wait)
        self.answered.set()

    def _list(self) -> bool:
        """False when that was all."""
        query = self._query
        values: dict[_Key, Value] = {}
        version = ""
        for page in self._cluster.api.pages(query, newest=self._newest, most=_MOST if self._once else None):
            for body in page.items:  # page by page: as values they take a twentieth of the memory
                value = value_of(body, query.kind)
                if value is not None:
                    values[_key(body)] = value
            version = page.version
            if self._stopped.is_set():
                return False
        self._cluster.replaced(query, values)
        self._version = version
        self._well()
        self.answered.set()
        return not self._once and bool(values or not is_lookup(query)) and bool(version)

    def _listen(self) -> float:
        """Until the watch ends, as each does; returns seconds to wait, for a server that ends them at once."""
        began = time.monotonic()
        self._watch = watch = self._cluster.api.watch(self._query, self._version)
        if self._stopped.is_set():
            watch.stop()
        self._well()
        try:
            for event, body in watch:
                self._version = body["metadata"].get("resourceVersion") or self._version
                if event != "BOOKMARK":
                    self._cluster.changed(self._query, event, body)
                self._tries = 0
        finally:
            if time.monotonic() - began > STEADY:
                self._tries = 0
        if time.monotonic() - began > STEADY:
            return 0.0
        self._tries += 1
        return patience(self._tries)

    def _well(self) -> None:
        self.error, self.since, self._renewed = None, None, None

    def _after(self, error: ApiError, configuration: int) -> float | None:
        """Seconds to wait before the next try, None: there is no use in one."""
        self._tries += 1
        self.error = error
        if self._version and self.since is None:
            self.since = time.time()
        if error.is_gone:
            self._version, self._newest = "", True
            return 0.0 if self._tries == 1 else patience(self._tries)
        if error.status == HTTPStatus.UNAUTHORIZED and self._renewed is None:
            try:
                self._renewed = self._cluster.renew(configuration)
            except K8snetError as broken:
                self.error = ApiError(broken.problem, broken.remedy)
                return None
            return 0.0
        if not error.passing or not (self.answered.is_set() or error.reached):
            return None  # the user, who waits for the first answer, is told at once
        return max(error.wait, patience(self._tries))


def _key(body: Mapping[str, Any]) -> _Key:
    metadata = body.get("metadata") or {}
    return str(metadata.get("namespace") or ""), str(metadata.get("name") or "")
