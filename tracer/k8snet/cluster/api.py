"""The Kubernetes API as it is asked here: list a collection page by page, and watch it. What writes (agent pods alone)
is in `k8snet.remote`.

In: an `Access`, and a `Query`. Out: objects as plain dicts, as JSON has them; an `ApiError` for everything else, with
the sentence and the next step for the user, and whether another try may go better. The `kubernetes` package brings
credentials and TLS; its models, which cost seconds and forget fields that they do not know, are left aside.

Surprising: a short list is asked for "as the server has it in its cache" (resourceVersion=0), as every controller does;
the watch that follows brings what was missing. But the server sends that in one piece, whatever `limit` says: a long
list must be the newest to come in pages, and so must one after "410 Gone".
"""

from __future__ import annotations

import json
import logging
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode

from k8snet import __version__
from k8snet.cluster.kubeconfig import Access, Options, access, advice_for, listening
from k8snet.errors import K8snetError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

PAGE: Final = 500  # objects; what kubectl asks for at once
SILENCE: Final = 120.0  # seconds; servers send a bookmark about once a minute: a watch that says less is dead
RENEW: Final = (300, 600)  # seconds after which the server is to end a watch, so that they do not all end at once
TO_ADD: Final = "add to the rules of a ClusterRole that is bound to this user:"
_LISTENERS: Final = 32  # a guess: connections that are kept open; one a watch
_PASSING: Final = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)


class Resource(NamedTuple):
    """Where a collection is."""

    group: str
    version: str
    kind: str  # of each object
    namespaced: bool = True


RESOURCES: Final = {
    "pods": Resource("", "v1", "Pod"),
    "services": Resource("", "v1", "Service"),
    "nodes": Resource("", "v1", "Node", namespaced=False),
    "endpointslices": Resource("discovery.k8s.io", "v1", "EndpointSlice"),
    "networkpolicies": Resource("networking.k8s.io", "v1", "NetworkPolicy"),
    "ingresses": Resource("networking.k8s.io", "v1", "Ingress"),
    "deployments": Resource("apps", "v1", "Deployment"),
    "replicasets": Resource("apps", "v1", "ReplicaSet"),
    "statefulsets": Resource("apps", "v1", "StatefulSet"),
    "daemonsets": Resource("apps", "v1", "DaemonSet"),
    "jobs": Resource("batch", "v1", "Job"),
    "cronjobs": Resource("batch", "v1", "CronJob"),
}


@dataclass(frozen=True, slots=True, order=True)
class Query:
    """Objects of one resource: in one namespace ("": in all), chosen by selectors as kubectl takes them."""

    resource: str
    namespace: str = ""
    fields: str = ""
    labels: str = ""

    @property
    def kind(self) -> str:
        """Of the objects."""
        return RESOURCES[self.resource].kind

    @property
    def path(self) -> str:
        """Behind the server's address."""
        where = RESOURCES[self.resource]
        base = f"/apis/{where.group}/{where.version}" if where.group else f"/api/{where.version}"
        return f"{base}/namespaces/{self.namespace}/{self.resource}" if self.namespace else f"{base}/{self.resource}"

    @property
    def selectors(self) -> dict[str, str]:
        """As parameters."""
        both = {"fieldSelector": self.fields, "labelSelector": self.labels}
        return {name: value for name, value in both.items() if value}

    @property
    def words(self) -> str:
        """For messages."""
        if not RESOURCES[self.resource].namespaced:
            return self.resource
        return f"{self.resource} in {f'namespace {self.namespace}' if self.namespace else 'all namespaces'}"


class ApiError(K8snetError):
    """An answer that is none.

    `passing`: another try may go better, not before `wait` seconds; `reached`: the server is there, and has trouble.
    """

    def __init__(
        self,
        problem: str,
        remedy: str,
        *,
        status: int = 0,
        passing: bool = False,
        reached: bool = False,
        wait: float = 0.0,
        more: tuple[str, ...] = (),
    ) -> None:
        super().__init__(problem, remedy, more=more)
        self.status = status
        self.passing = passing
        self.reached = reached or bool(status)
        self.wait = wait

    @property
    def is_gone(self) -> bool:
        """The resourceVersion, or the page, is too old: list again."""
        return self.status == HTTPStatus.GONE


class DeniedError(ApiError):
    """403: this user may not do that."""

    def __init__(self, query: Query, verb: str, user: str) -> None:
        super().__init__(
            f"{_who(user)} may not {verb} {query.words} (403 Forbidden)",
            TO_ADD,
            status=HTTPStatus.FORBIDDEN,
            more=rule([query]),
        )
        self.query = query
        self.who = _who(user)


def _who(user: str) -> str:
    return f"user {user!r}" if user else "this user"


def rule(queries: list[Query]) -> tuple[str, ...]:
    """What a ClusterRole must have so that all of this can be listed and watched: YAML, ready to be pasted."""
    groups: dict[str, dict[str, None]] = {}
    for query in queries:
        groups.setdefault(RESOURCES[query.resource].group, {})[query.resource] = None
    lines: list[str] = []
    for group, resources in groups.items():
        lines += [
            f'- apiGroups: ["{group}"]',
            f"  resources: [{', '.join(sorted(resources))}]",
            "  verbs: [list, watch]",
        ]
    return tuple(lines)


class Page(NamedTuple):
    """A part of a list."""

    items: list[dict[str, Any]]
    version: str  # resourceVersion of the whole list
    follows: str  # the token for the next part; empty: this was the last one


class Api:
    """One API server. Usable from several threads at once."""

    def __init__(self, options: Options, found: Access) -> None:
        self.options = options
        self._access = found
        self._client = _client(found)
        self._lock = threading.Lock()

    @property
    def access(self) -> Access:
        """As it was read last."""
        return self._access

    def reload(self) -> None:
        """Read the configuration again: a token may have been replaced. Raises K8snetError when it cannot be read."""
        found = access(self.options)
        if found is None:
            raise K8snetError("the API's configuration is gone", advice_for())
        with self._lock:
            self._access, self._client = found, _client(found)

    def pages(self, query: Query, *, newest: bool = False, most: int | None = None) -> Iterator[Page]:
        """All that the query finds; at most about `most` objects. Raises ApiError, also between two pages."""
        asked = {**query.selectors, "limit": str(PAGE)}
        parameters = {**asked, "resourceVersion": "0"} if query.selectors and not newest else asked
        count = 0
        while True:
            page = self._page(query, parameters)
            yield page
            count += len(page.items)
            if not page.follows or (most is not None and count >= most):
                return
            parameters = {**asked, "continue": page.follows}

    def watch(self, query: Query, version: str) -> Watch:
        """What happens to the query's objects after `version`; ends by itself after some minutes. Raises ApiError."""
        parameters = {
            **query.selectors,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(random.randint(*RENEW)),  # noqa: S311 - not a secret
        }
        return Watch(self, query, self._ask(query, "watch", parameters, silence=SILENCE))

    def _page(self, query: Query, parameters: Mapping[str, str]) -> Page:
        response = self._ask(query, "list", parameters)
        try:
            body = _json(response.read(decode_content=True))
            response.release_conn()
            metadata = body["metadata"]
            items = [item for item in body["items"] or () if isinstance(item, dict)]  # null: empty, made in Go
            return Page(items, metadata.get("resourceVersion") or "", metadata.get("continue") or "")
        except Exception as error:
            response.close()
            raise self.failed(error) from None

    def _ask(
        self, query: Query, verb: str, parameters: Mapping[str, str], silence: float | None = None
    ) -> BaseHTTPResponse:
        """The answer's head; its body is to be read by the caller. Raises ApiError for everything but 200."""
        # gzip not of a watch: a proxy would hold events back to fill a block
        response = self.request("GET", query.path, parameters, silence=silence, gzip=verb == "list")
        if response.status == HTTPStatus.OK:
            return response
        body, after = status_of(response)
        raise self.refused(query, verb, response.status, body, after)

    def request(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        *,
        silence: float | None = None,
        gzip: bool = False,
    ) -> BaseHTTPResponse:
        """One answer's head, whatever its status; the caller reads its body. Raises ApiError when there is none.

        `silence`: seconds without a byte after which reading what follows ends with an error.
        """
        from urllib3 import Timeout

        patience = self.options.request_timeout or None
        client = self._client
        try:
            headers = self._headers()
            if gzip:
                headers["Accept-Encoding"] = "gzip"
            if body is not None:
                headers["Content-Type"] = "application/json"
            # Not by call_api(): its arguments change from release to release, and --as-group needs repeated headers.
            response: BaseHTTPResponse = client.rest_client.pool_manager.request(
                method,
                f"{self.access.server}{path}?{urlencode(parameters)}" if parameters else self.access.server + path,
                body=json.dumps(body).encode() if body is not None else None,
                headers=headers,
                timeout=Timeout(connect=patience, read=patience),
                retries=False,
                redirect=False,
                preload_content=False,
            )
        except Exception as error:
            raise self.failed(error) from None
        sock = getattr(response.connection, "sock", None)
        if silence and sock is not None and response.status == HTTPStatus.OK:
            sock.settimeout(silence)  # the head comes at once, what follows when it happens
        return response

    def _headers(self) -> Any:
        from urllib3 import HTTPHeaderDict

        headers = HTTPHeaderDict({"Accept": "application/json", "User-Agent": f"k8snet/{__version__}"})
        # The client's hook, which renews a token that has expired, is not made for several threads.
        with self._lock, listening() as said:
            for setting in self._client.configuration.auth_settings().values():
                if setting["value"]:
                    headers[setting["key"]] = setting["value"]
        if said:
            raise K8snetError(f"no credentials for the API: {said[0]}", f"kubectl{self.options.words} version")
        if self._access.user:
            headers["Impersonate-User"] = self._access.user
            for group in self._access.groups:
                headers.add("Impersonate-Group", group)
        return headers

    def refused(
        self, query: Query, verb: str, status: int, body: Mapping[str, Any], retry_after: str | None = None
    ) -> ApiError:
        """The error that an answer or a watch's ERROR event stands for; `body` is its Status, if it has one."""
        server = self.access.server
        message = str(body.get("message") or "").strip().split("\n")[0]
        said = f": {message}" if message else ""
        details = body.get("details")
        after = details.get("retryAfterSeconds") if isinstance(details, dict) else None
        wait = _seconds(retry_after) or (float(after) if isinstance(after, int) else 0.0)
        if status == HTTPStatus.FORBIDDEN and (match := re.search(r'User "([^"]*)" cannot (\w+) resource', message)):
            if match[2] in ("list", "watch"):
                return DeniedError(query, verb, match[1])
            return ApiError(f"the API at {server} forbids it{said}", self._check("auth whoami"), status=status)
        if status == HTTPStatus.FORBIDDEN:
            return DeniedError(query, verb, self.access.user or "")
        if status == HTTPStatus.UNAUTHORIZED:
            return ApiError(
                f"the API at {server} does not know us (401 Unauthorized): the credentials of {self.access.source}"
                " have expired, or belong to another cluster",
                self._check("auth whoami"),
                status=status,
            )
        if status == HTTPStatus.GONE:
            return ApiError(f"the API at {server} has forgotten where we were (410 Gone)", "try again", status=status)
        if status == HTTPStatus.NOT_FOUND:
            return ApiError(
                f"the API at {server} has no {query.resource} (404 Not Found)",
                self._check(f"api-resources | grep {query.resource}"),
                status=status,
            )
        name = next((s.phrase for s in HTTPStatus if s == status), "")
        return ApiError(
            f"the API at {server} answers {status} {name}".rstrip() + said,
            self._check("get --raw /readyz?verbose"),
            status=status,
            passing=status in _PASSING,
            wait=wait,
        )

    def failed(self, error: Exception) -> ApiError:
        """The error that the client's exception stands for, in words."""
        from urllib3 import exceptions as http

        if isinstance(error, ApiError):
            return error
        if isinstance(error, K8snetError):
            return ApiError(error.problem, error.remedy)
        server = self.access.server
        cause = _innermost(error)
        tls = _tls_words(error)
        if tls:
            return ApiError(
                f"no TLS with the API at {server}: {tls}", self._check("config view --minify"), passing=True
            )
        if isinstance(error, http.LocationValueError):
            return ApiError(
                f"the server in {self.access.source} is no URL: {server!r}", self._check("config view --minify")
            )
        if isinstance(error, http.NameResolutionError):
            return ApiError(
                f"the host of the API at {server} is not known here", f"see: getent hosts {_host(server)}", passing=True
            )
        if isinstance(error, http.ProxyError):
            return ApiError(f"the proxy to the API at {server} cannot be used: {cause}", "see: env | grep -i proxy")
        if isinstance(cause, ConnectionRefusedError):
            return ApiError(
                f"the API at {server} refuses connections: nothing listens there",
                f"see: curl -k {server}/readyz; to trace without names, give IP addresses and --no-api",
                passing=True,
            )
        if isinstance(error, http.NewConnectionError) and isinstance(cause, OSError):
            return ApiError(
                f"the API at {server} cannot be reached: {cause.strerror or cause}",
                f"see: curl -k {server}/readyz; to trace without names, give IP addresses and --no-api",
                passing=True,
            )
        if isinstance(error, http.TimeoutError | TimeoutError):
            return self.silent(self.options.request_timeout)
        if isinstance(error, http.HTTPError | ConnectionError):
            return ApiError(
                f"the API at {server} has ended the connection",
                self._check("get --raw /readyz?verbose"),
                passing=True,
                reached=True,
            )
        if isinstance(error, KeyError | AttributeError | TypeError):  # of the fields that each list has
            return ApiError(f"what answers at {server} is no Kubernetes API", self._check("config view --minify"))
        return ApiError(f"the API at {server} cannot be used: {cause}", self._check("config view --minify"))

    def silent(self, seconds: float) -> ApiError:
        """The error that nothing has been heard for so long."""
        return ApiError(
            f"the API at {self.access.server} has not answered within {seconds:g}s",
            "wait longer with --request-timeout 60s, or do without it: --no-api",
            passing=True,
        )

    def _check(self, command: str) -> str:
        return f"see: kubectl{self.options.words} {command}"


class Watch:
    """One running watch: its events, until it ends; another thread may stop it."""

    def __init__(self, api: Api, query: Query, response: BaseHTTPResponse) -> None:
        self._api = api
        self._query = query
        self._response = response

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(ADDED, MODIFIED, DELETED or BOOKMARK, object), as they come. Raises ApiError, also for an ERROR event."""
        try:
            for line in self._lines():
                event = _json(line)
                kind, body = event.get("type"), event.get("object")
                if (
                    not isinstance(kind, str)
                    or not isinstance(body, dict)
                    or not isinstance(body.get("metadata"), dict)
                ):
                    raise ApiError(
                        f"the API at {self._api.access.server} sends a watch that makes no sense",
                        "see: kubectl get pods --watch",
                        passing=True,
                        reached=True,
                    )
                if kind == "ERROR":
                    code = body.get("code")
                    # What it could not name was wrong on its side.
                    status = code if isinstance(code, int) and code else int(HTTPStatus.INTERNAL_SERVER_ERROR)
                    raise self._api.refused(self._query, "watch", status, body)
                yield kind, body
        except ApiError:
            raise
        except Exception as error:
            raise self._api.failed(error) from None
        finally:
            self._response.close()

    def stop(self) -> None:
        """End it; whoever iterates sees the end, or an ApiError."""
        try:
            self._response.shutdown()
        except (OSError, ValueError):  # it has ended by itself
            self._response.close()

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        for chunk in self._response.stream(1 << 16, decode_content=True):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from filter(None, lines)


def patience(tries: int) -> float:
    """Seconds until the next try: as Kubernetes' own clients wait, from 0.8 s doubling to 30 s, each up to twice that.

    The random part is there so that the clients of a server that was away do not come back all at once.
    """
    return float(min(30.0, 0.8 * 2.0 ** min(tries, 10)) * random.uniform(1.0, 2.0))  # noqa: S311 - not a secret


def status_of(response: BaseHTTPResponse) -> tuple[Mapping[str, Any], str | None]:
    """The Status that an answer brings ({}: none), and its Retry-After; ends the connection."""
    try:
        text = response.read(decode_content=True)
    except Exception:
        text = b""
    response.close()
    return _json(text), response.headers.get("Retry-After")


def _client(found: Access) -> Any:
    import urllib3
    from kubernetes.client import ApiClient

    urllib3.disable_warnings()  # insecure-skip-tls-verify was the user's own choice
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    found.configuration.connection_pool_maxsize = _LISTENERS  # else the pool logs each connection beyond
    return ApiClient(found.configuration)


def _json(text: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _seconds(text: str | None) -> float:
    """A Retry-After header (RFC 9110: seconds or a date)."""
    if not text:
        return 0.0
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _innermost(error: BaseException) -> BaseException:
    """urllib3 wraps what happened, by arguments or by cause."""
    seen = {id(error)}
    while True:
        inner = next((a for a in error.args if isinstance(a, BaseException)), None)
        inner = inner or getattr(error, "reason", None) or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException) or id(inner) in seen:
            return error
        seen.add(id(inner))
        error = inner


def _tls_words(error: BaseException) -> str:
    import ssl

    from urllib3.exceptions import SSLError

    cause = _innermost(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted ({cause.verify_message})"
    if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return ""  # a connection that was cut, not one that could not be agreed on
    if "PEM lib" in str(cause):  # all that OpenSSL says of it
        return "the client's certificate or key cannot be read"
    if isinstance(cause, ssl.SSLError):
        return (cause.reason or str(cause)).replace("_", " ").lower()
    return str(cause) if isinstance(error, SSLError) else ""


def _host(server: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(server).hostname or server


def clock(seconds: float) -> str:
    """A time of day, UTC, as reports print it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S")
