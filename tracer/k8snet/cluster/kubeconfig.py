"""How to reach the Kubernetes API: kubectl's configuration, found and read as kubectl does it.

In: the command line's options and the environment. Out: an `Access`, or None where nothing is configured; a K8snetError
for configuration that is broken. --kubeconfig, else $KUBECONFIG (several files), else ~/.kube/config, else the service
account of the pod that we run in. The `kubernetes` package reads certificates, tokens and exec plugins.

Surprising: of several files the first one that says something counts, also for current-context, where that package
takes the last; and a node's own kubeconfig (kubelet's) is proposed, never taken, for it is somebody else's identity.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from k8snet.errors import K8snetError

if TYPE_CHECKING:
    from kubernetes.client import Configuration

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# On a node: what an operator with a root shell can use. The kubelet's own comes last: it sees this node only.
ON_NODE: Final = (
    "/etc/kubernetes/admin.conf",
    "/etc/rancher/k3s/k3s.yaml",
    "/etc/rancher/rke2/rke2.yaml",
    "/var/lib/k0s/pki/admin.conf",
    "/etc/kubernetes/kubelet.conf",
    "/var/lib/kubelet/kubeconfig",
)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says of the API, with kubectl's words."""

    kubeconfig: str | None = None
    context: str | None = None
    request_timeout: float = 10.0  # seconds for one answer; 0: any time
    as_user: str | None = None
    as_groups: tuple[str, ...] = ()

    @property
    def given(self) -> bool:
        """The user asks for this very API: not reaching it is an error, whatever the trace could do without."""
        return bool(self.kubeconfig or self.context or self.as_user)

    @property
    def words(self) -> str:
        """These options, to be put behind a `kubectl` that the user is told to type."""
        pairs = (("--kubeconfig", self.kubeconfig), ("--context", self.context), ("--as", self.as_user))
        return "".join(f" {option} {shlex.quote(value)}" for option, value in pairs if value)


@dataclass(frozen=True)
class Access:
    """One API server and who we are to it."""

    configuration: Configuration
    source: str  # for messages: "context prod of /root/.kube/config"
    namespace: str | None  # the context's
    user: str | None = None  # whom we act as
    groups: tuple[str, ...] = ()

    @property
    def server(self) -> str:
        """Its URL."""
        return str(self.configuration.host)


def access(options: Options, environ: Mapping[str, str] = os.environ, account: Path = ACCOUNT) -> Access | None:
    """How the API is reached, None when nothing says so. Raises K8snetError for configuration that cannot be used."""
    files = _files(options, environ)
    merged = _merged(files)
    if merged.contexts or merged.current or options.context or options.kubeconfig:
        return _from_files(merged, options)
    if environ.get("KUBERNETES_SERVICE_HOST") and (account / "token").is_file():
        return _in_cluster(options, environ, account)
    return None


def advice_for(environ: Mapping[str, str] = os.environ, candidates: tuple[str, ...] = ON_NODE) -> str:
    """The next step for somebody without configuration: the best file that is at hand here."""
    user = environ.get("SUDO_USER")
    own = [str(Path(f"~{user}/.kube/config").expanduser())] if user and user != "root" else []
    for path in (*own, *candidates):
        if _is_file(path):
            return f"pass --kubeconfig {path}, which is on this machine, or --inventory FILE"
    return "pass --kubeconfig FILE or --inventory FILE"


@dataclass(frozen=True, slots=True)
class _Merged:
    """Several files as one; the first that names something counts."""

    files: tuple[str, ...]
    current: str | None
    contexts: dict[str, Mapping[str, Any]]
    users: dict[str, Mapping[str, Any]]

    @property
    def words(self) -> str:
        return f"kubeconfig {':'.join(self.files)}"


def _files(options: Options, environ: Mapping[str, str]) -> tuple[str, ...]:
    if options.kubeconfig:
        if not _is_file(options.kubeconfig):
            raise K8snetError(f"kubeconfig {options.kubeconfig}: no such file", advice_for(environ))
        return (options.kubeconfig,)
    if environ.get("KUBECONFIG"):
        found = [path for path in environ["KUBECONFIG"].split(os.pathsep) if path]
    else:
        found = [str(Path(environ.get("HOME") or "~").expanduser() / ".kube/config")]
    return tuple(path for path in dict.fromkeys(found) if _is_file(path))


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # in a directory that is not for us, or with a name that is too long
        return False


def _merged(files: tuple[str, ...]) -> _Merged:
    merged = _Merged(files, None, {}, {})
    current: str | None = None
    for path in files:
        body = _read(path)
        current = current or (str(body["current-context"]) if body.get("current-context") else None)
        for part, key, into in (("contexts", "context", merged.contexts), ("users", "user", merged.users)):
            for item in body.get(part) or ():
                if not isinstance(item, dict) or "name" not in item:
                    raise _broken(path, f"an entry of {part} has no name")
                inner = item.get(key)
                into.setdefault(str(item["name"]), inner if isinstance(inner, dict) else {})
    return _Merged(files, current, merged.contexts, merged.users)


def _read(path: str) -> Mapping[str, Any]:
    import yaml

    try:
        body = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise K8snetError(f"kubeconfig {path}: {error.strerror}", f"see: ls -l {path}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}" if mark else ""
        raise _broken(path, f"not YAML{at}") from None
    if body is None:
        return {}
    if not isinstance(body, dict) or not all(
        isinstance(body.get(part) or [], list) for part in ("clusters", "contexts", "users")
    ):
        raise _broken(path, "not a kubeconfig")
    return body


def _broken(path: str, why: str) -> K8snetError:
    return K8snetError(f"kubeconfig {path}: {why}", f"see: kubectl config view --kubeconfig {path}")


def _from_files(merged: _Merged, options: Options) -> Access:
    from kubernetes import config
    from kubernetes.client import Configuration

    load: Any = config.load_kube_config  # the package has no types for it
    names = ", ".join(sorted(merged.contexts)) or "none"
    context = options.context or merged.current
    if context is None:
        raise K8snetError(f"{merged.words} has no current context", f"choose one with --context: {names}")
    if context not in merged.contexts:
        if not merged.files:
            raise K8snetError(f"there is no context {context!r}: no kubeconfig was found", advice_for())
        raise K8snetError(f"there is no context {context!r} in {merged.words}", f"choose one with --context: {names}")
    chosen = merged.contexts[context]
    configuration = Configuration()
    with listening() as said:
        try:
            # Rotated refresh tokens are written back, as kubectl does it: else the file is of no more use to its owner.
            load(os.pathsep.join(merged.files), context=context, client_configuration=configuration)
        except Exception as error:  # a file that a person wrote, read by others' code: it raises anything
            said.append(str(error) or type(error).__name__)
    if said:
        raise K8snetError(
            f"context {context} of {merged.words} cannot be used: {_sentence(said)}",
            f"see whether kubectl can: kubectl{options.words} version",
        )
    user = merged.users.get(str(chosen.get("user"))) or {}
    groups = user.get("as-groups")
    return Access(
        configuration,
        f"context {context} of {merged.words}",
        str(chosen["namespace"]) if chosen.get("namespace") else None,
        options.as_user or (str(user["as"]) if user.get("as") else None),
        options.as_groups or (tuple(map(str, groups)) if isinstance(groups, list) and not options.as_user else ()),
    )


def _in_cluster(options: Options, environ: Mapping[str, str], account: Path) -> Access:
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, incluster_config

    loader: Any = incluster_config.InClusterConfigLoader  # the package has no types for it
    configuration = Configuration()
    try:
        loader(str(account / "token"), str(account / "ca.crt"), environ=environ).load_and_set(configuration)
    except (ConfigException, OSError) as error:
        raise K8snetError(
            f"the pod's service account cannot be used: {_sentence([str(error)])}", f"see: ls -l {account}"
        ) from None
    space = account / "namespace"
    namespace = space.read_text().strip() if space.is_file() else ""
    return Access(configuration, "the pod's service account", namespace or None, options.as_user, options.as_groups)


@contextmanager
def listening() -> Iterator[list[str]]:
    """What the client logs while it reads a configuration: it tells of exec plugins that fail in no other way."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                said.append(record.getMessage())

    ear = Ear()
    logging.getLogger().addHandler(ear)
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(ear)


def _sentence(said: list[str]) -> str:
    """The first line of the first thing that was said."""
    return said[0].strip().split("\n")[0].removesuffix(".")
