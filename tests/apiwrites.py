"""What an API server does with create, update, patch and delete: the part of it that a client can rely on.

Objects are stored nearly as they come: a pod gets the defaults that a client may read, other kinds get none, and fields
are not checked. Nothing runs in the background: a pod that is deleted with a grace period stays, marked, until a test
deletes it as the kubelet would, and so does a namespace until it is empty.
"""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

from apianswers import ApiError, Request, about, existing, not_found, resource_of, wanted_by
from apistore import BY_PLURAL, Object, Resource, Store, Stored, encode, now

WRITES = ("create", "update", "patch", "delete", "deletecollection")
POD_SPEC: Object = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": 30,
    "dnsPolicy": "ClusterFirst",
    "securityContext": {},
    "schedulerName": "default-scheduler",
    "enableServiceLinks": True,
}
JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGES = ("application/merge-patch+json", "application/strategic-merge-patch+json")

# The merge keys of the types that a pod is made of.
STRATEGIC = {
    **dict.fromkeys(("containers", "initContainers", "volumes", "env", "imagePullSecrets"), "name"),
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "conditions": "type",
}


def write(store: Store, request: Request) -> tuple[int, bytes]:
    """Does what a request wants changed; returns the code and the document of the answer."""
    resource = resource_of(request)
    body = decoded(request)
    if "All" in (request.query.get("dryRun"), *(body.get("dryRun") or () if isinstance(body, dict) else ())):
        raise ApiError(400, "BadRequest", "this server of the tests has no dry run")
    with store.changed:
        if request.verb == "create":
            return 201, create(store, request, resource, body).document
        if request.verb == "deletecollection":
            wanted = wanted_by(request, resource)
            for stored in store.at(resource, store.version):
                if wanted(stored):
                    delete(store, stored, body, request)
            return 200, encode({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
        stored = existing(store, request, resource)
        if request.verb == "delete":
            return 200, delete(store, stored, body, request)
        value = body if request.verb == "update" else patched(stored.value, body, request.content_type)
        return 200, update(store, request, stored, value).document


def decoded(request: Request) -> Any:
    if not request.body:
        return {}
    accepted = (JSON_PATCH, *MERGES) if request.verb == "patch" else (JSON,)
    if request.content_type not in accepted:
        message = (
            f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}"
        )
        raise ApiError(415, "UnsupportedMediaType", message)
    try:
        return json.loads(request.body)
    except ValueError as error:
        raise ApiError(400, "BadRequest", f"the object provided is unrecognized: {error}") from None


def create(store: Store, request: Request, resource: Resource, value: Object) -> Stored:
    if (value.get("apiVersion"), value.get("kind")) != (resource.api_version, resource.kind):
        raise ApiError(400, "BadRequest", f"the API version or kind in the data is not {resource.kind}")
    metadata: Object = value.setdefault("metadata", {})
    if resource.namespaced:
        if metadata.setdefault("namespace", request.namespace) != request.namespace:
            message = "the namespace of the provided object does not match the namespace sent on the request"
            raise ApiError(400, "BadRequest", message)
        if store.get(BY_PLURAL["namespaces"], "", request.namespace) is None:
            raise not_found(BY_PLURAL["namespaces"], request.namespace)
    if prefix := metadata.get("generateName"):
        metadata.setdefault("name", prefix + secrets.token_hex(3)[:5])
    if not metadata.get("name"):
        raise invalid(resource, "", "metadata.name: Required value: name or generateName is required")
    name = metadata["name"]
    if store.get(resource, metadata["namespace"] if resource.namespaced else "", name):
        raise ApiError(409, "AlreadyExists", f'{resource.qualified} "{name}" already exists', **about(resource, name))
    if resource.kind == "Pod":
        spec = value.get("spec") or {}
        if not spec.get("containers"):
            raise invalid(resource, name, "spec.containers: Required value")
        value["spec"] = POD_SPEC | spec
        value["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
    if resource.kind == "Namespace":
        value["status"] = {"phase": "Active"}
    return store.put(value)


def update(store: Store, request: Request, stored: Stored, value: Object) -> Stored:
    """Replaces an object, or its status; status is not changed with the rest."""
    before, resource = stored.value, stored.resource
    # What the URL says need not be said again.
    metadata = {key: before["metadata"][key] for key in ("name", "namespace") if key in before["metadata"]}
    metadata |= value.get("metadata") or {}
    value = value | {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
    if metadata.get("resourceVersion", before["metadata"]["resourceVersion"]) != before["metadata"]["resourceVersion"]:
        raise conflict(
            stored, "the object has been modified; please apply your changes to the latest version and try again"
        )
    if (metadata.get("namespace", ""), metadata["name"]) != (stored.namespace, stored.name):
        raise ApiError(400, "BadRequest", "the name of the object does not match the name on the URL")
    if request.subresource == "status":
        value = before | {"status": value.get("status", {})}
    elif "status" in before and resource.kind in ("Pod", "Node", "Service", "Namespace"):
        value = value | {"status": before["status"]}
    return store.put(value)


def delete(store: Store, stored: Stored, options: Object, request: Request) -> bytes:
    """Deletes an object at once, or marks a pod that a kubelet would have to stop first."""
    resource, value = stored.resource, stored.value
    for key, expected in (options.get("preconditions") or {}).items():
        if expected != value["metadata"][key]:
            raise conflict(stored, f"Precondition failed: {key} in precondition: {expected}, in object meta: …")
    if resource.kind == "Pod":
        grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
        grace = value["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else int(grace)
        ended = value["status"].get("phase") in ("Succeeded", "Failed") or not value["spec"].get("nodeName")
        if grace and not ended:
            until = (datetime.now(UTC) + timedelta(seconds=grace)).strftime("%Y-%m-%dT%H:%M:%SZ")
            value["metadata"] |= {"deletionTimestamp": until, "deletionGracePeriodSeconds": grace}
            return store.put(value).document
    if resource.kind == "Namespace" and store.within(stored.name):
        value["metadata"]["deletionTimestamp"] = now()
        return store.put(value | {"status": {"phase": "Terminating"}}).document
    store.delete(resource, stored.namespace, stored.name)
    if resource.kind == "Pod":
        return stored.document
    details = about(resource, stored.name) | {"uid": stored.uid}
    return encode({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})


def patched(value: Object, patch: Any, content_type: str) -> Object:
    if content_type in MERGES:
        if not isinstance(patch, dict):
            raise ApiError(400, "BadRequest", "a merge patch must be an object")
        return merge(value, patch, STRATEGIC if content_type == MERGES[1] else {})
    for operation in patch:
        value = json_patch(value, operation)
    return value


def merge(value: Any, patch: Object, keys: dict[str, str]) -> Object:
    """RFC 7386; and a strategic merge patch, which also merges the lists that have a key, item by item."""
    merged = dict(value) if isinstance(value, dict) else {}
    for name, part in patch.items():
        if keys and name.startswith("$"):
            # How items are ordered and what else is kept: nothing that a test would look at.
            continue
        if part is None:
            merged.pop(name, None)
        elif isinstance(part, dict):
            merged[name] = merge(merged.get(name), part, keys)
        elif name in keys and all(keys[name] in item for item in part):
            merged[name] = merge_items(merged.get(name) or [], part, keys[name], keys)
        else:
            merged[name] = part
    return merged


def merge_items(items: list[Object], patches: list[Object], key: str, keys: dict[str, str]) -> list[Object]:
    merged = {item[key]: item for item in items}
    for patch in patches:
        if patch.get("$patch") == "delete":
            merged.pop(patch[key], None)
        else:
            merged[patch[key]] = merge(merged.get(patch[key]), patch, keys)
    return list(merged.values())


def json_patch(document: Object, operation: Object) -> Object:
    """One operation of RFC 6902: add, remove, replace or test."""
    words = [word.replace("~1", "/").replace("~0", "~") for word in operation["path"].split("/")[1:]]
    holder: Any = document
    try:
        for word in words[:-1]:
            holder = holder[int(word)] if isinstance(holder, list) else holder[word]
        place: Any = words[-1]
        if isinstance(holder, list):
            place = len(holder) if place == "-" else int(place)
        what = operation["op"]
        if what == "add" and isinstance(holder, list):
            holder.insert(place, operation["value"])
        elif what == "add" or (what == "replace" and holder[place] is not None):
            holder[place] = operation["value"]
        elif what == "remove":
            del holder[place]
        elif what != "test" or holder[place] != operation["value"]:
            raise KeyError(what)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ApiError(
            422, "Invalid", f"the server rejected our request due to an error in our request: {error}"
        ) from None
    return document


def invalid(resource: Resource, name: str, cause: str) -> ApiError:
    return ApiError(422, "Invalid", f'{resource.kind} "{name}" is invalid: {cause}', **about(resource, name))


def conflict(stored: Stored, why: str) -> ApiError:
    message = f'Operation cannot be fulfilled on {stored.resource.qualified} "{stored.name}": {why}'
    return ApiError(409, "Conflict", message, **about(stored.resource, stored.name))
