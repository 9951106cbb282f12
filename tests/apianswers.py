"""What an API server understands and what it answers, without a connection.

In: a Request, read from method and path as the API defines its paths, and a Store. Out: a code and a document, or an
ApiError, which is a Status. The texts are those that real servers give.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from apistore import BY_PLURAL, RESOURCES, BadSelectorError, Object, Resource, Store, Stored, encode, selects

VERSION: Object = json.loads((Path(__file__).parent / "data" / "kube-api" / "version.json").read_text())
PUBLIC = ("/version", "/healthz", "/livez", "/readyz")
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class User:
    name: str
    groups: tuple[str, ...] = ()


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


@dataclass
class Request:
    """One request as it was understood. `resource` is the plural, or "" for a path such as /version."""

    method: str
    path: str
    query: dict[str, str]
    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    # As it is judged, after impersonation; "" for a token that is not valid.
    user: str = ""
    groups: tuple[str, ...] = ()
    impersonated_by: str = ""
    agent: str = ""
    content_type: str = ""
    body: bytes = b""
    at: float = field(default_factory=time.monotonic)


class ApiError(Exception):
    """A Status answer."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after: int | None = None
        self.status: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        self.status |= {"message": message, "reason": reason}
        if details:
            self.status["details"] = details
        self.status["code"] = code


NO_INITIAL_EVENTS = ApiError(
    *(500, "InternalError"),
    "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled",
)


def understand(method: str, target: str) -> Request:
    """What a request means, by the rules of the API's paths."""
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    # The Python client asks for /version/.
    path = "/" + unquote(parts.path).strip("/")
    request = Request(method, path, query, method.lower())
    words = path[1:].split("/")
    if words[0] == "api" and len(words) > 2:
        request.version, rest = words[1], words[2:]
    elif words[0] == "apis" and len(words) > 3:
        request.group, request.version, rest = words[1], words[2], words[3:]
    else:
        return request
    if rest[0] == "namespaces" and len(rest) > 1:
        # A namespace is authorised as itself, as a Role in it would allow.
        request.namespace = rest[1]
        if len(rest) > 2 and rest[2] not in ("status", "finalize"):
            rest = rest[2:]
    request.resource = rest[0]
    request.name = rest[1] if len(rest) > 1 else ""
    request.subresource = "/".join(rest[2:])
    if method == "GET":
        several = "watch" if is_set(query, "watch") else "list"
        request.verb = several if not request.name else "get"
    else:
        request.verb = VERBS.get(method, method.lower())
        if request.verb == "delete" and not request.name:
            request.verb = "deletecollection"
    return request


def is_set(query: dict[str, str], name: str) -> bool:
    """Whether a flag is on, as real servers read it: older Python clients write True with a capital."""
    return query.get(name, "0").lower() not in ("0", "false")


def resource_of(request: Request) -> Resource:
    found = BY_PLURAL.get(request.resource)
    known = found is not None and (found.group, found.version) == (request.group, request.version)
    if found is None or not known or request.subresource not in ("", "status"):
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    return found


def wanted_by(request: Request, resource: Resource) -> Callable[[Stored], bool]:
    """The test for the objects that a list or a watch asks for."""
    labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
    try:
        selected = selects(resource, labels, fields)
    except BadSelectorError as error:
        asked = f'"{resource.api_version}, Resource={resource.plural}"'
        message = f'Unable to find {asked} that match label selector "{labels}", field selector "{fields}": {error}'
        raise ApiError(400, "BadRequest", message) from None
    namespace = request.namespace if resource.namespaced else ""
    return lambda stored: (not namespace or stored.namespace == namespace) and selected(stored)


def version_of(query: dict[str, str]) -> int:
    text = query.get("resourceVersion") or "0"
    if not text.isdecimal():
        message = f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        raise ApiError(400, "BadRequest", message)
    return int(text)


def answer(store: Store, request: Request) -> tuple[int, bytes]:
    """What a request that only reads is told: the code and the document."""
    if not request.resource:
        return 200, encode(discovery(request.path))
    resource = resource_of(request)
    with store.changed:
        if request.verb == "list":
            return 200, listing(store, request, resource)
        return 200, existing(store, request, resource).document


def existing(store: Store, request: Request, resource: Resource) -> Stored:
    stored = store.get(resource, request.namespace if resource.namespaced else "", request.name)
    if stored is None:
        raise not_found(resource, request.name)
    return stored


def listing(store: Store, request: Request, resource: Resource) -> bytes:
    wanted = wanted_by(request, resource)
    query = request.query
    cached = store.ignores_limit and query.get("resourceVersion") == "0"
    limit = 0 if cached else int(query.get("limit") or 0)
    version, start = store.version, ("", "")
    if token := query.get("continue"):
        if query.get("resourceVersion", "0") not in ("", "0"):
            raise ApiError(400, "BadRequest", "specifying resource version is not allowed when using continue")
        version, start = continued(token)
        if 0 < version < store.compacted:
            raise expired_list(encode_continue(0, start))
        version = version or store.version
    else:
        asked, match = version_of(query), query.get("resourceVersionMatch", "")
        if match and not query.get("resourceVersion"):
            message = "resourceVersionMatch is forbidden unless resourceVersion is provided"
            raise ApiError(400, "BadRequest", message)
        if asked > store.version:
            raise too_large(asked, store.version)
        if match == "Exact":
            if asked < store.compacted:
                raise ApiError(410, "Expired", "The resourceVersion for the provided list is too old.")
            version = asked
    found = [stored for stored in store.at(resource, version) if (stored.namespace, stored.name) > start]
    found = [stored for stored in found if wanted(stored)]
    metadata: Object = {"resourceVersion": str(version)}
    if limit and len(found) > limit:
        last = found[limit - 1]
        metadata["continue"] = encode_continue(version, (last.namespace, last.name))
        if not query.get("labelSelector") and not query.get("fieldSelector"):
            metadata["remainingItemCount"] = len(found) - limit
        found = found[:limit]
    head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata}
    return encode(head)[:-1] + b',"items":[' + b",".join(stored.body for stored in found) + b"]}"


def encode_continue(version: int, start: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode(encode({"version": version, "start": start})).decode().rstrip("=")


def continued(token: str) -> tuple[int, tuple[str, str]]:
    try:
        value = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, name = value["start"]
        return value["version"], (namespace, name)
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise ApiError(400, "BadRequest", "continue key is not valid") from None


def discovery(path: str) -> Object:
    """What is at a path that is no resource."""
    groups = {resource.group: resource.version for resource in RESOURCES if resource.group}
    if path == "/version":
        version: Object = VERSION
        return version
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "/apis":
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group(*item) for item in groups.items()]}
    if path.startswith("/openapi/v3"):
        return openapi(path.removeprefix("/openapi/v3").strip("/"))
    words = path.strip("/").split("/")
    if words[0] == "apis" and len(words) == 2 and words[1] in groups:
        return {"kind": "APIGroup", "apiVersion": "v1"} | group(words[1], groups[words[1]])
    group_version = path.strip("/").partition("/")[2]
    resources = [described(resource) for resource in RESOURCES if resource.api_version == group_version]
    if resources:
        head = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version}
        return head | {"resources": resources}
    raise ApiError(404, "NotFound", "the server could not find the requested resource")


def openapi(name: str) -> Object:
    """The little of the API's description that kubectl needs before it applies: that checking fields is left to us."""
    versions = {f"apis/{it.api_version}" if it.group else f"api/{it.version}": it.api_version for it in RESOURCES}
    if not name:
        return {"paths": {version: {"serverRelativeURL": f"/openapi/v3/{version}"} for version in versions}}
    paths = {}
    for resource in RESOURCES:
        if resource.api_version == versions.get(name):
            kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
            checks = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
            patch = {"x-kubernetes-group-version-kind": kind, "parameters": checks, "responses": {}}
            paths[f"/{name}/{resource.plural}/{{name}}"] = {"patch": patch}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1"}, "paths": paths}


def group(name: str, version: str) -> Object:
    offered = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [offered], "preferredVersion": offered}


def described(resource: Resource) -> Object:
    verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    names = {"name": resource.plural, "singularName": resource.kind.lower(), "kind": resource.kind}
    short = {"shortNames": [resource.short]} if resource.short else {}
    return names | {"namespaced": resource.namespaced, "verbs": verbs} | short


def line(kind: str, document: bytes) -> bytes:
    """One event of a watch."""
    return b'{"type":"%b","object":%b}\n' % (kind.encode(), document)


def bookmark(resource: Resource, version: int) -> bytes:
    metadata = {"resourceVersion": str(version)}
    return encode({"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata})


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def about(resource: Resource, name: str) -> dict[str, str]:
    """The details of a Status about one object."""
    return {"name": name} | ({"group": resource.group} if resource.group else {}) | {"kind": resource.plural}


def not_found(resource: Resource, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{resource.qualified} "{name}" not found', **about(resource, name))


def forbidden(user: User, request: Request, resource: str) -> ApiError:
    qualified = f"{request.resource}.{request.group}" if request.group else request.resource
    what = f'{qualified} "{request.name}"' if request.name else qualified
    scope = f'in the namespace "{request.namespace}"' if request.namespace else "at the cluster scope"
    message = f'{what} is forbidden: User "{user.name}" cannot {request.verb} resource "{resource}"'
    details = {"name": request.name, "group": request.group, "kind": request.resource}
    given = {key: value for key, value in details.items() if value}
    return ApiError(403, "Forbidden", f'{message} in API group "{request.group}" {scope}', **given)


def expired(asked: int, oldest: int) -> ApiError:
    return ApiError(410, "Expired", f"too old resource version: {asked} ({oldest})")


def expired_list(token: str) -> ApiError:
    """A list that cannot be continued as it was; with the token it can, from today's state."""
    error = ApiError(
        *(410, "Expired"),
        "The provided continue parameter is too old to display a consistent list result. You can start a new list "
        "without the continue parameter, or use the continue token in this response to retrieve the remainder of the "
        "results. Continuing with the provided token results in an inconsistent list - objects that were created, "
        "modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    )
    error.status["metadata"] = {"continue": token}
    return error


def too_large(asked: int, current: int) -> ApiError:
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return ApiError(504, "Timeout", message, causes=causes, retryAfterSeconds=1)
