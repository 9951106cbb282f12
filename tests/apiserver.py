"""An API server inside the test process, over TLS, for the real `kubernetes` client and kubectl.

    with ApiServer() as server:
        server.put(pod("shop/cart", "10.1.0.1"))
        server.kubeconfig(tmp_path / "config")

It speaks what the Kubernetes API documents: discovery, get, list (selectors, limit and continue, resourceVersion),
watch (bookmarks, 410 Gone), create, update, patch and delete, tokens, client certificates, impersonation, and Status
answers as a real server gave them. No scheduler and no kubelet run: a test plays them with `put` and `delete`. Faults
are switched on while it runs (`fault`, `end_watches`, `compact`, `refusing`, `foreign_certificate`), and `requests`
holds everything that was asked for, in order.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import secrets
import select
import socket
import socketserver
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from apianswers import (
    ANONYMOUS,
    NO_INITIAL_EVENTS,
    PUBLIC,
    ApiError,
    Request,
    User,
    answer,
    bookmark,
    existing,
    expired,
    forbidden,
    is_set,
    line,
    resource_of,
    unauthorized,
    understand,
    version_of,
    wanted_by,
)
from apistore import BY_KIND, BY_PLURAL, Object, Resource, Store, Stored, encode
from apiwrites import WRITES, write
from certificates import Authority, Certificate

# Far from zero, as in any cluster that lives: zero has a meaning of its own.
FIRST_VERSION = 200
# How long a watch may go without noticing that its client has gone.
GONE_CLIENT_S = 0.2

Order = Literal["", "bookmark", "close", "gone", "cut", "mute"]
Predicate = Callable[[Request], bool]


def asks(verb: str = "*", resource: str = "*", namespace: str | None = None) -> Predicate:
    """A test for requests, as `fault` and `wait_for` take it; "*" is anything, words in `verb` are alternatives."""
    return lambda request: (
        (verb == "*" or request.verb in verb.split())
        and resource in ("*", request.resource)
        and namespace in (None, request.namespace)
    )


@dataclass
class Fault:
    """What goes wrong with the next `times` requests for which `when` holds."""

    when: Predicate
    times: float
    status: int = 0
    message: str = ""
    retry_after: int | None = None
    delay: float = 0.0
    hang_up: bool = False
    cut_after: int | None = None


@dataclass(frozen=True)
class Rule:
    user: str
    verbs: frozenset[str]
    resources: frozenset[str]
    namespace: str


@dataclass
class Stream:
    """A running watch, and what it has been told to do next."""

    request: Request
    order: Order = ""
    muted: bool = False


def fault_status(fault: Fault) -> ApiError:
    reasons = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout"}
    phrase = HTTPStatus(fault.status).phrase
    details = {} if fault.retry_after is None else {"retryAfterSeconds": fault.retry_after}
    reason = reasons.get(fault.status, phrase.replace(" ", ""))
    error = ApiError(fault.status, reason, fault.message or phrase, **details)
    error.retry_after = fault.retry_after
    return error


@dataclass
class Log:
    """What a container has printed."""

    data: bytearray
    ended: bool = False


class HangUpError(Exception):
    """The connection ends here, in whatever it was doing."""


class ApiServer:
    """Runs from `with` to its end; then every thread and every connection of it has ended.

    An error inside the server is raised there too, so that it cannot pass for an error of the client.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = 0
        self.store = Store(FIRST_VERSION)
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        # A watch of a version that was compacted: an ERROR event, as servers with a watch cache do, or a plain answer.
        self.gone_as_status = False
        self._faults: list[Fault] = []
        self._rules: list[Rule] = []
        self._tokens: dict[str, User] = {}
        self._streams: list[Stream] = []
        self._logs: dict[tuple[str, str], Log] = {}
        self._listener: Listener | None = None

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="apiserver-")
        self.authority = Authority(Path(self._directory.name) / "ca")
        self.context = self._context(self.authority)
        for namespace in ("default", "kube-node-lease", "kube-public", "kube-system"):
            self._namespace(namespace)
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._directory.cleanup()
        if self.errors and error is None:
            raise self.errors[0]
        if self.errors and error is not None:
            error.add_note(f"and the API server of the tests failed with {self.errors[0]!r}")

    # Who may do what.

    def token(self, user: str, *groups: str) -> str:
        """A new bearer token; it is valid until it is revoked."""
        made = secrets.token_urlsafe(16)
        self._tokens[made] = User(user, (*groups, "system:authenticated"))
        return made

    def revoke(self, token: str) -> None:
        del self._tokens[token]

    def client_certificate(self, user: str, *groups: str) -> Certificate:
        return self.authority.issue(user, groups)

    def allow(self, user: str, verbs: str, resources: str, namespace: str = "*") -> None:
        """Adds a rule for a user or a group. Verbs and resources are words; "*" is all; "pods/log" is its own."""
        self._rules.append(Rule(user, frozenset(verbs.split()), frozenset(resources.split()), namespace))

    def kubeconfig(self, path: Path, credentials: Object | None = None, namespace: str | None = None) -> Path:
        """Writes a kubeconfig (JSON is YAML too). `credentials` is its `user`; by default someone who may do all."""
        ca = base64.b64encode(self.authority.own.certificate.read_bytes()).decode()
        user = {"token": self.token("admin", "system:masters")} if credentials is None else credentials
        context = {"cluster": "test", "user": "test"} | ({"namespace": namespace} if namespace else {})
        config: Object = {"apiVersion": "v1", "kind": "Config", "current-context": "test"}
        config["clusters"] = [{"name": "test", "cluster": {"server": self.url, "certificate-authority-data": ca}}]
        config["users"] = [{"name": "test", "user": user}]
        config["contexts"] = [{"name": "test", "context": context}]
        path.write_text(json.dumps(config, indent=2))
        return path

    def service_account(self, directory: Path, namespace: str, name: str) -> dict[str, str]:
        """Writes what the kubelet mounts for a service account; returns the environment that goes with it."""
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
        (directory / "token").write_text(self.token(f"system:serviceaccount:{namespace}:{name}", *groups))
        (directory / "ca.crt").write_bytes(self.authority.own.certificate.read_bytes())
        (directory / "namespace").write_text(namespace)
        return {"KUBERNETES_SERVICE_HOST": self.host, "KUBERNETES_SERVICE_PORT": str(self.port)}

    @property
    def url(self) -> str:
        return f"https://[{self.host}]:{self.port}" if ":" in self.host else f"https://{self.host}:{self.port}"

    # What there is.

    def put(self, *objects: Object) -> None:
        """Adds or replaces objects, and the namespaces that they need."""
        with self.store.changed:
            for value in objects:
                if BY_KIND[value["apiVersion"], value["kind"]].namespaced:
                    self._namespace(value["metadata"]["namespace"])
                self.store.put(value)

    def get(self, resource: str, namespace: str, name: str) -> Object:
        """The object as it is now; KeyError if there is none. `namespace` is "" where there is none."""
        stored = self.store.get(BY_PLURAL[resource], namespace, name)
        if stored is None:
            raise KeyError(f"{resource} {namespace}/{name}")
        return stored.value

    def delete(self, resource: str, namespace: str, name: str) -> None:
        """Takes an object away at once, as the kubelet does with a pod that has ended."""
        self.store.delete(BY_PLURAL[resource], namespace, name)

    def write_log(self, namespace: str, name: str, data: bytes = b"", *, end: bool = False) -> None:
        """Has the container of a pod print something, and perhaps end; until then the pod has no log."""
        with self.store.changed:
            log = self._logs.setdefault((namespace, name), Log(bytearray()))
            log.data += data
            log.ended |= end
            self.store.changed.notify_all()

    def _namespace(self, name: str) -> None:
        if self.store.get(BY_PLURAL["namespaces"], "", name) is None:
            metadata = {"name": name, "labels": {"kubernetes.io/metadata.name": name}}
            spec = {"finalizers": ["kubernetes"]}
            status = {"phase": "Active"}
            self.store.put(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata, "spec": spec, "status": status}
            )

    # What was asked.

    def wait_for(self, when: Predicate, count: int = 1, timeout: float = 5.0) -> Request:
        """Waits until that many requests have come for which `when` holds, and returns the last of these."""

        def matching() -> list[Request]:
            return [request for request in self.requests if when(request)]

        with self.store.changed:
            if not self.store.changed.wait_for(lambda: len(matching()) >= count, timeout):
                seen = "".join(f"\n  {request.user} {request.verb} {request.path}" for request in self.requests)
                raise AssertionError(f"{len(matching())} of {count} requests came within {timeout} s; all:{seen}")
            return matching()[count - 1]

    def watching(self, resource: str = "*") -> list[Request]:
        """The watches that run now."""
        with self.store.changed:
            return [stream.request for stream in self._streams if resource in ("*", stream.request.resource)]

    def wait_watching(self, resource: str, count: int = 1, timeout: float = 5.0) -> None:
        """Waits until exactly that many watches of a resource run."""
        with self.store.changed:
            assert self.store.changed.wait_for(lambda: len(self.watching(resource)) == count, timeout), (
                f"{len(self.watching(resource))} watches of {resource} run after {timeout} s, not {count}"
            )

    # What goes wrong.

    def fault(
        self,
        when: Predicate = asks(),  # noqa: B008 - a function that holds no state
        times: float = 1,
        *,
        status: int = 0,
        message: str = "",
        retry_after: int | None = None,
        delay: float = 0.0,
        hang_up: bool = False,
        cut_after: int | None = None,
    ) -> Fault:
        """Spoils the next `times` matching requests (math.inf: until the `times` of what is returned is set to 0).

        `status`: this answer, with `message`, perhaps with Retry-After in seconds. `delay`: seconds before whatever
        follows. `hang_up`: no answer. `cut_after`: the connection ends in the middle of the line after so many events
        of a watch or lines of a log, or, for any other request, in the middle of the answer.
        """
        fault = Fault(when, times, status, message, retry_after, delay, hang_up, cut_after)
        with self.store.changed:
            self._faults.append(fault)
        return fault

    def compact(self) -> None:
        """Forgets the past: whoever lists or watches from before now is told 410 Gone. Running watches go on."""
        self.store.compacted = self.store.version

    def bookmark(self, resource: str = "*") -> None:
        """Sends a bookmark to the running watches that asked for them."""
        self._order("bookmark", resource)

    def end_watches(self, how: Literal["close", "gone", "cut", "mute"], resource: str = "*") -> None:
        """Ends the running watches: as after a timeout, with an ERROR event 410, or in the middle of a line.

        One that is "mute" stays open and says nothing more, as when a firewall has forgotten the connection.
        """
        self._order(how, resource)

    def _order(self, order: Order, resource: str) -> None:
        """Tells the running watches what to do, and waits until they have heard it."""
        with self.store.changed:
            streams = [it for it in self._streams if resource in ("*", it.request.resource) and not it.muted]
            assert streams, f"no watch of {resource} runs; see wait_watching"
            for stream in streams:
                stream.order = order
            self.store.changed.notify_all()
            heard = self.store.changed.wait_for(lambda: not any(it.order for it in streams if it in self._streams), 5)
            assert heard, f"a watch does not {order}"

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """For as long as this lasts nobody listens on the port, and who was connected is cut off."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    @contextlib.contextmanager
    def foreign_certificate(self) -> Iterator[None]:
        """For as long as this lasts another authority has signed the server's certificate; who was connected is cut."""
        own = self.context
        self._present(self._context(Authority(Path(self._directory.name) / "foreign", "foreign")))
        try:
            yield
        finally:
            self._present(own)

    def disconnect(self) -> None:
        """Ends all connections at once, idle ones too, as a load balancer that restarts."""
        assert self._listener is not None
        self._listener.disconnect()

    def _present(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.disconnect()

    def _context(self, authority: Authority) -> ssl.SSLContext:
        own = authority.issue("kube-apiserver", hosts=("IP:127.0.0.1", "IP:::1", "DNS:localhost"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own.certificate, own.key)
        context.load_verify_locations(authority.own.certificate)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _start(self) -> None:
        self._listener = Listener(self)
        self.port = self._listener.server_address[1]

    def _stop(self) -> None:
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    # For the handlers.

    def record(self, request: Request) -> Fault | None:
        """Notes a request and returns what is to go wrong with it."""
        with self.store.changed:
            self.requests.append(request)
            self.store.changed.notify_all()
            for fault in self._faults:
                if fault.times > 0 and fault.when(request):
                    fault.times -= 1
                    return fault
        return None

    def log_of(self, request: Request) -> Log:
        existing(self.store, request, BY_PLURAL["pods"])
        log = self._logs.get((request.namespace, request.name))
        if log is None:
            message = f'container in pod "{request.name}" is waiting to start: ContainerCreating'
            raise ApiError(400, "BadRequest", message)
        return log

    def user_of(self, token: str) -> User | None:
        return self._tokens.get(token)

    def may(self, user: User, verb: str, resource: str, namespace: str) -> bool:
        if "system:masters" in user.groups:
            return True
        return any(
            rule.user in (user.name, *user.groups)
            and rule.verbs & {"*", verb}
            and rule.resources & {"*", resource}
            and rule.namespace in ("*", namespace)
            for rule in self._rules
        )

    @contextlib.contextmanager
    def streaming(self, request: Request) -> Iterator[Stream]:
        """Keeps a watch among those that run."""
        stream = Stream(request)
        with self.store.changed:
            self._streams.append(stream)
            self.store.changed.notify_all()
        try:
            yield stream
        finally:
            with self.store.changed:
                self._streams.remove(stream)
                self.store.changed.notify_all()


class Listener(socketserver.ThreadingTCPServer):
    """The port, its connections and their threads. The handshake is made in the connection's own thread."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, api: ApiServer) -> None:
        self.address_family = socket.AF_INET6 if ":" in api.host else socket.AF_INET
        super().__init__((api.host, api.port), Handler)
        self.api = api
        # By the socket that was accepted. The handshake takes its file descriptor away; the copy is to hang up by.
        self._lines: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="apiserver")
        self._thread.start()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._lines[connection] = connection.dup()
        return connection, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            with self.api.context.wrap_socket(request, server_side=True) as connection:
                Handler(connection, client_address, self)
        finally:
            with self._lock:
                self._lines.pop(request).close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        # A client that goes away, or does not like our certificate, is none of the server's errors.
        if error is not None and not isinstance(error, OSError):
            self.api.errors.append(error)

    def disconnect(self) -> None:
        """Ends all connections, whatever they are doing."""
        with self._lock:
            for line in self._lines.values():
                with contextlib.suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)
        with self.api.store.changed:
            self.api.store.changed.notify_all()

    def stop(self) -> None:
        """Nobody is let in any more, who is in is thrown out; returns when all threads have ended."""
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        self.disconnect()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, has them judged, answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener
    # Lines that may still be sent before the connection is to end.
    _left: float

    @property
    def api(self) -> ApiServer:
        return self.server.api

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base class gives it
        """The requests are in `ApiServer.requests`."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        request = understand(self.command, self.path)
        request.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        # The Python client names none; that is JSON.
        request.content_type = self.headers.get("Content-Type", "application/json").partition(";")[0].strip()
        request.agent = self.headers.get("User-Agent", "")
        try:
            who = self._identified(request)
            fault = self.api.record(request)
            cut_after = self._spoil(fault) if fault else None
            if isinstance(who, ApiError):
                raise who
            self._authorize(who, request)
            if request.verb == "watch":
                self._watch(request, cut_after)
            elif (request.resource, request.verb, request.subresource) == ("pods", "get", "log"):
                self._log(request, cut_after)
            else:
                code, document = (write if request.verb in WRITES else answer)(self.api.store, request)
                self._send(code, document, cut=cut_after is not None)
        except ApiError as error:
            self._send(error.code, encode(error.status), retry_after=error.retry_after)
        except HangUpError:
            self.close_connection = True
            # Not by SSLSocket.shutdown, which would first forget that there was TLS.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.connection, socket.SHUT_RDWR)

    def _send(
        self, code: int, body: bytes, kind: str = "application/json", retry_after: int | None = None, cut: bool = False
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            raise HangUpError

    def _spoil(self, fault: Fault) -> int | None:
        """Does what a fault says; returns after how many events the answer is to be cut."""
        if self.server.stopping.wait(fault.delay) or fault.hang_up:
            raise HangUpError
        if fault.status:
            raise fault_status(fault)
        return fault.cut_after

    def _identified(self, request: Request) -> User | ApiError:
        """Who is to be judged. A refusal waits until the request is on record."""
        try:
            user = self._user(request)
        except ApiError as error:
            return error
        request.user, request.groups = user.name, user.groups
        return user

    def _user(self, request: Request) -> User:
        """Who asks: by token, by certificate, or nobody; and for whom."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        certificate = self.connection.getpeercert()
        if scheme:
            user = self.api.user_of(token) if scheme.lower() == "bearer" else None
            if user is None:
                raise unauthorized()
        elif certificate:
            subject = [pair for part in certificate["subject"] for pair in part]
            name = next(value for key, value in subject if key == "commonName")
            groups = [value for key, value in subject if key == "organizationName"]
            user = User(name, (*groups, "system:authenticated"))
        else:
            user = ANONYMOUS
        wanted, groups = self.headers.get("Impersonate-User"), self.headers.get_all("Impersonate-Group") or []
        if wanted is None:
            return user
        request.impersonated_by = user.name
        for resource, name in [("users", wanted), *(("groups", group) for group in groups)]:
            if not self.api.may(user, "impersonate", resource, ""):
                request.user, request.groups = user.name, user.groups
                message = (
                    f'{resource} "{name}" is forbidden: User "{user.name}" cannot impersonate resource "{resource}"'
                )
                message += ' in API group "" at the cluster scope'
                raise ApiError(403, "Forbidden", message, name=name, kind=resource)
        return User(wanted, (*groups, "system:authenticated"))

    def _authorize(self, user: User, request: Request) -> None:
        if not request.resource:
            if user is ANONYMOUS and request.path not in PUBLIC:
                message = f'forbidden: User "{user.name}" cannot {request.verb} path "{request.path}"'
                raise ApiError(403, "Forbidden", message)
            return
        resource = "/".join(filter(None, (request.resource, request.subresource)))
        if not self.api.may(user, request.verb, resource, request.namespace):
            raise forbidden(user, request, resource)

    # Watching.

    def _watch(self, request: Request, cut_after: int | None) -> None:
        store, query = self.api.store, request.query
        resource = resource_of(request)
        wanted = wanted_by(request, resource)
        asked = version_of(query)
        # None and zero leave it to the server, which takes its time.
        deadline = time.monotonic() + (int(query.get("timeoutSeconds") or 0) or math.inf)
        gone = 0 < asked < store.compacted
        if gone and self.api.gone_as_status:
            raise expired(asked, store.compacted)
        self._begin("application/json", cut_after)
        if is_set(query, "sendInitialEvents"):
            self._lines([line("ERROR", encode(NO_INITIAL_EVENTS.status))])
        elif gone:
            self._lines([line("ERROR", encode(expired(asked, store.compacted).status))])
        else:
            with self.api.streaming(request) as stream:
                self._follow(stream, resource, wanted, asked, deadline)
        self.wfile.write(b"0\r\n\r\n")

    def _follow(
        self, stream: Stream, resource: Resource, wanted: Callable[[Stored], bool], version: int, deadline: float
    ) -> None:
        store = self.api.store
        bookmarks = is_set(stream.request.query, "allowWatchBookmarks")
        lines: list[bytes] = []
        with store.changed:
            if version == 0:
                version = store.version
                lines = [line("ADDED", stored.document) for stored in store.at(resource, version) if wanted(stored)]
        while True:
            with store.changed:
                changes = store.since(version)
                version = max(version, store.version)
                order, stream.order = stream.order, ""
                stream.muted = order == "mute"
                if order:
                    store.changed.notify_all()
            events = (change.event(wanted) for change in changes if change.resource is resource)
            lines += [line(kind, stored.document) for kind, stored in filter(None, events)]
            while stream.muted:
                self._check_client()
                self.server.stopping.wait(GONE_CLIENT_S)
            over = time.monotonic() >= deadline
            if bookmarks and (over or order == "bookmark"):
                lines.append(line("BOOKMARK", bookmark(resource, version)))
            if order == "gone":
                lines.append(line("ERROR", encode(expired(version, version).status)))
            elif order == "cut":
                self._left = len(lines)
                lines.append(line("BOOKMARK", bookmark(resource, version)))
            self._lines(lines)
            lines = []
            if over or order in ("close", "gone"):
                return
            self._check_client()
            with store.changed:
                if store.version <= version and not stream.order:
                    store.changed.wait(min(GONE_CLIENT_S, max(deadline - time.monotonic(), 0)))

    def _log(self, request: Request, cut_after: int | None) -> None:
        """The log of a pod, at once or as it is written."""
        changed = self.api.store.changed
        log = self.api.log_of(request)
        if not is_set(request.query, "follow"):
            self._send(200, bytes(log.data), "text/plain", cut=cut_after is not None)
            return
        self._begin("text/plain", cut_after)
        sent, ended = 0, False
        while not ended:
            with changed:
                if sent == len(log.data) and not log.ended:
                    changed.wait(GONE_CLIENT_S)
                data, ended = bytes(log.data[sent:]), log.ended
            self._lines(data.splitlines(keepends=True))
            sent += len(data)
            self._check_client()
        self.wfile.write(b"0\r\n\r\n")

    def _begin(self, kind: str, cut_after: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._left = math.inf if cut_after is None else cut_after

    def _check_client(self) -> None:
        # Whoever waits for a stream has nothing more to say but good-bye.
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        if poll.poll(0):
            raise HangUpError

    def _lines(self, lines: list[bytes]) -> None:
        """Sends lines; ends the connection in the middle of the one that is to be cut."""
        whole = lines[: int(min(self._left, len(lines)))]
        text = b"".join(whole)
        # A chunk is no line: proxies divide them anew.
        for chunk in filter(None, (text[: len(text) // 2], text[len(text) // 2 :])):
            self._chunk(chunk)
        if len(whole) < len(lines):
            torn = lines[len(whole)]
            self._chunk(torn[: len(torn) // 2])
            raise HangUpError
        self._left -= len(whole)

    def _chunk(self, chunk: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
