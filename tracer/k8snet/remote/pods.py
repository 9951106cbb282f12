"""The four requests about agent pods: create, get, delete, read the log; and what a refusal of each means.

In: an `Api` and the namespace of the agents. Out: objects as JSON has them, or an ApiError with the next step for the
user: the rights to add, the label that the namespace lacks, the namespace itself. A token that has expired is renewed
once and the request asked again; anything else is the caller's to try again.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from k8snet.cluster.api import Api, ApiError, Query, status_of
from k8snet.errors import K8snetError
from k8snet.remote.spec import ENFORCE, IMAGE, SELECTOR, Object

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

# What whoever starts agents must be allowed in their namespace.
RIGHTS: Final = (
    '- apiGroups: [""]',
    "  resources: [pods]",
    "  verbs: [create, delete, get, list]",
    '- apiGroups: [""]',
    "  resources: [pods/log, namespaces]",
    "  verbs: [get]",
)
SILENCE: Final = (
    60.0  # seconds; a guess: load balancers forget a silent connection after a few minutes, and say nothing
)


class Pods:
    """The pods of one namespace. Usable from several threads at once."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self._path = f"/api/v1/namespaces/{namespace}"

    def image(self) -> str | None:
        """The image that the namespace names for its agents. Raises ApiError when the namespace does not exist."""
        try:
            found = self._object("GET", self._path, "get", "namespaces")
        except ApiError as error:
            if error.status == HTTPStatus.FORBIDDEN:  # who may not see it may perhaps use it
                return None
            raise
        metadata = found.get("metadata") or {}
        return str((metadata.get("annotations") or {}).get(IMAGE) or "") or None

    def create(self, body: Object) -> None:
        """Raises ApiError; that it exists already is none, for its name is ours alone: an answer was lost."""
        try:
            self._object("POST", f"{self._path}/pods", "create", "pods", body)
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise

    def get(self, name: str) -> Object | None:
        """None when there is no such pod. Raises ApiError."""
        try:
            return self._object("GET", f"{self._path}/pods/{name}", "get", "pods")
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def delete(self, name: str) -> bool:
        """False when there was none. Raises ApiError."""
        try:
            self._object("DELETE", f"{self._path}/pods/{name}", "delete", "pods")
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    def agents(self) -> list[Object]:
        """All agents of the namespace, whoever started them. Raises ApiError."""
        path = f"{self._path}/pods"
        found = self._object("GET", path, "list", "pods", parameters={"labelSelector": SELECTOR})
        return [item for item in found.get("items") or () if isinstance(item, dict)]

    def log(self, name: str, *, follow: bool) -> BaseHTTPResponse:
        """What the agent has written so far, from its beginning, and with `follow` goes on to. Raises ApiError."""
        path = f"{self._path}/pods/{name}/log"
        parameters = {"follow": "true"} if follow else {}
        return self._answer("GET", path, "get", "pods/log", None, parameters, SILENCE)

    def _object(
        self,
        method: str,
        path: str,
        verb: str,
        resource: str,
        body: Object | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> Object:
        response = self._answer(method, path, verb, resource, body, parameters, None)
        try:
            found = json.loads(response.read(decode_content=True))
            response.release_conn()
        except Exception as error:
            response.close()
            raise self.api.failed(error) from None
        return found if isinstance(found, dict) else {}

    def _answer(
        self,
        method: str,
        path: str,
        verb: str,
        resource: str,
        body: Object | None,
        parameters: Mapping[str, str] | None,
        silence: float | None,
    ) -> BaseHTTPResponse:
        for renewed in (False, True):
            response = self.api.request(method, path, parameters, body, silence=silence)
            if response.status < HTTPStatus.MULTIPLE_CHOICES:
                return response
            said, after = status_of(response)
            if response.status != HTTPStatus.UNAUTHORIZED or renewed:
                break
            self.api.reload()
        raise self._refused(verb, resource, response.status, said, after)

    def _refused(self, verb: str, resource: str, status: int, body: Mapping[str, Any], after: str | None) -> ApiError:
        message = str(body.get("message") or "").strip().split("\n")[0]
        if status == HTTPStatus.FORBIDDEN:
            return self._forbidden(verb, resource, message)
        details = body.get("details")
        kind = details.get("kind") if isinstance(details, dict) else None
        if status == HTTPStatus.NOT_FOUND and (verb == "create" or resource == "namespaces") and kind == "namespaces":
            return ApiError(
                f"there is no namespace {self.namespace!r} for the agent pods",
                f"make it: {self._install()}; or choose another: --agent-namespace NS",
                status=status,
            )
        query = Query("pods", self.namespace)
        found = self.api.refused(query, verb, status, body, after)
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY):
            return ApiError(f"{found.problem}: {message}", found.remedy, status=status)
        return found

    def _forbidden(self, verb: str, resource: str, message: str) -> ApiError:
        status = int(HTTPStatus.FORBIDDEN)
        if match := re.search(r'User "([^"]*)" cannot', message):
            return ApiError(
                f"user {match[1]!r} may not {verb} {resource} in namespace {self.namespace} (403 Forbidden)",
                f"add to the rules of a Role in {self.namespace} that is bound to this user:",
                status=status,
                more=RIGHTS,
            )
        if "violates PodSecurity" in message:
            label = f"{ENFORCE}=privileged"
            return ApiError(
                f"namespace {self.namespace} does not let the agent in: {_after(message, 'forbidden: ')}",
                f"allow it there: kubectl{self.api.options.words} label --overwrite namespace {self.namespace} {label}",
                status=status,
            )
        return ApiError(
            f"the cluster's admission does not let the agent in (403 Forbidden): {message or 'no reason given'}",
            "ask who keeps that rule to exempt the namespace; or choose one that is: --agent-namespace NS",
            status=status,
        )

    def _install(self) -> str:
        return f"kubectl k8snet install --print --image IMAGE | kubectl{self.api.options.words} apply -f -"

    def command(self, *words: str) -> str:
        """A kubectl for the user to type, about these pods."""
        return f"kubectl{self.api.options.words} -n {self.namespace} {shlex.join(words)}"


def _after(message: str, mark: str) -> str:
    return message.partition(mark)[2] or message


class Log:
    """The lines of one agent's log, each once, over broken connections.

    A connection that breaks is opened again and the log read from its beginning, without the lines that are known:
    `sinceTime` counts whole seconds, and the log of an agent is short. Whether it still is the same beginning is
    checked: the kubelet begins a new file after 10 MiB.
    """

    def __init__(self, pods: Pods, name: str) -> None:
        self._pods = pods
        self._name = name
        self._count = 0
        self._hash = 0
        self._response: BaseHTTPResponse | None = None
        self._stopped = False

    def read(self, *, follow: bool = True) -> Iterator[bytes]:
        """The lines that no call before has given, until this connection ends. Raises ApiError when it breaks."""
        self._response = response = self._pods.log(self._name, follow=follow)
        if self._stopped:
            response.close()
            return
        known, seen, rest = self._count, 0, b""
        passed = 0
        try:
            for chunk in response.stream(1 << 16, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    seen += 1
                    if seen > known:
                        self._count, self._hash = seen, hash((self._hash, line))
                        yield line
                        continue
                    passed = hash((passed, line))
                    if seen == known and passed != self._hash:
                        raise K8snetError(
                            "the agent's log was begun anew while the connection to it was broken",
                            "trace again, with a narrower --to or less --count",
                        )
        except K8snetError:
            raise
        except Exception as error:
            raise self._pods.api.failed(error) from None
        finally:
            response.close()

    def stop(self) -> None:
        """End it; whoever reads sees the end, or an ApiError."""
        self._stopped = True
        if self._response is not None:
            try:
                self._response.shutdown()
            except (OSError, ValueError):  # it has ended by itself
                self._response.close()
