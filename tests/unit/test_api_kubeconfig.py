"""Which API, as whom: the files that kubectl would take, and what a person is told when they are no good."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from apiserver import ApiServer
from k8snet.cluster.api import Api, ApiError, Query
from k8snet.cluster.kubeconfig import Access, Options, access, advice_for
from k8snet.errors import Exit, K8snetError


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


def config(path: Path, *contexts: str, current: str | None = "", **user: Any) -> Path:
    """A kubeconfig with these contexts, whose servers and users have their names; the first is the current one."""
    body = {
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": f"https://{name}.invalid:6443"}} for name in contexts],
        "users": [{"name": name, "user": user or {"token": name}} for name in contexts],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}} for name in contexts],
    }
    if current is not None:
        body["current-context"] = current or contexts[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(body))
    return path


def found(options: Options | None = None, **environ: str) -> Access:
    access_ = access(options or Options(), environ, Path("/nonexistent"))
    assert access_ is not None
    return access_


def problem(options: Options | None = None, **environ: str) -> K8snetError:
    with pytest.raises(K8snetError) as caught:
        access(options or Options(), environ, Path("/nonexistent"))
    assert caught.value.code is Exit.USAGE
    assert caught.value.remedy
    return caught.value


# --- which file -----------------------------------------------------------------------------------------------------


def test_an_option_counts_more_than_the_environment_and_that_more_than_the_home(tmp_path: Path) -> None:
    home = config(tmp_path / ".kube/config", "home").parents[1]
    named, given = config(tmp_path / "named", "named"), config(tmp_path / "given", "given")
    assert found(HOME=str(home)).server == "https://home.invalid:6443"
    assert found(HOME=str(home), KUBECONFIG=str(named)).server == "https://named.invalid:6443"
    options = Options(kubeconfig=str(given))
    assert found(options, HOME=str(home), KUBECONFIG=str(named)).server == "https://given.invalid:6443"


def test_of_several_files_the_first_that_says_something_counts(tmp_path: Path) -> None:
    one = config(tmp_path / "one", "a", "b", current=None)
    two = config(tmp_path / "two", "b", "c", current="b")
    three = config(tmp_path / "three", "c", current="c")
    # kubectl takes the first current-context; the Python client, left alone, the last.
    files = os.pathsep.join(map(str, (one, tmp_path / "missing", two, three)))
    assert found(KUBECONFIG=files).server == "https://b.invalid:6443"
    assert found(Options(context="c"), KUBECONFIG=files).server == "https://c.invalid:6443"


def test_certificates_are_found_beside_the_file_that_names_them(tmp_path: Path, server: ApiServer) -> None:
    certificate = server.client_certificate("carol", "dev")
    (tmp_path / "deep").mkdir()
    path = server.kubeconfig(tmp_path / "deep" / "config")
    body = json.loads(path.read_text())
    for name, source in (("ca.crt", server.authority.own.certificate), ("me.crt", certificate.certificate)):
        (tmp_path / "deep" / name).write_bytes(source.read_bytes())
    (tmp_path / "deep" / "me.key").write_bytes(certificate.key.read_bytes())
    body["clusters"][0]["cluster"] = {"server": server.url, "certificate-authority": "ca.crt"}
    body["users"][0]["user"] = {"client-certificate": "me.crt", "client-key": "me.key"}
    path.write_text(json.dumps(body))
    server.allow("carol", "list", "nodes")
    options = Options(kubeconfig=str(path))
    assert [page.items for page in Api(options, found(options)).pages(Query("nodes"))] == [[]]
    assert server.requests[-1].user == "carol"


def test_no_file_is_no_error(tmp_path: Path) -> None:
    assert access(Options(), {"HOME": str(tmp_path)}, tmp_path) is None
    assert access(Options(), {"KUBECONFIG": str(tmp_path / "missing"), "HOME": str(tmp_path)}, tmp_path) is None
    (tmp_path / "empty").touch()
    assert access(Options(), {"KUBECONFIG": str(tmp_path / "empty")}, tmp_path) is None


def test_in_a_pod_the_service_account_is_taken_when_no_file_is_there(tmp_path: Path, server: ApiServer) -> None:
    account = tmp_path / "account"
    account.mkdir()
    environ = server.service_account(account, "tools", "k8snet") | {"HOME": str(tmp_path)}
    server.allow("system:serviceaccount:tools:k8snet", "list", "nodes")
    inside = access(Options(), environ, account)
    assert inside is not None
    assert (inside.server, inside.namespace) == (server.url, "tools")
    list(Api(Options(), inside).pages(Query("nodes")))
    assert server.requests[-1].user == "system:serviceaccount:tools:k8snet"
    config(tmp_path / ".kube/config", "home")
    outside = access(Options(), environ, account)
    assert outside is not None
    assert outside.server == "https://home.invalid:6443"


def test_a_file_on_the_node_is_proposed_and_never_taken(tmp_path: Path) -> None:
    kubelet = config(tmp_path / "kubelet.conf", "kubelet")
    admin = config(tmp_path / "admin.conf", "admin")
    assert access(Options(), {"HOME": str(tmp_path)}, tmp_path) is None
    assert f"--kubeconfig {kubelet}," in advice_for({}, (str(tmp_path / "no"), str(kubelet)))
    assert f"--kubeconfig {admin}," in advice_for({}, (str(admin), str(kubelet)))
    assert advice_for({}, ()) == "pass --kubeconfig FILE or --inventory FILE"


# --- which context, whose name --------------------------------------------------------------------------------------


def test_the_contexts_namespace_and_identity_are_taken(tmp_path: Path) -> None:
    user: dict[str, Any] = {"token": "t", "as": "alice", "as-groups": ["dev", "ops"]}
    path = config(tmp_path / "config", "a", current="a", **user)
    body = yaml.safe_load(path.read_text())
    body["contexts"][0]["context"]["namespace"] = "shop"
    path.write_text(yaml.safe_dump(body))
    own = found(KUBECONFIG=str(path))
    assert (own.namespace, own.user, own.groups) == ("shop", "alice", ("dev", "ops"))
    given = found(Options(as_user="bob", as_groups=("qa",)), KUBECONFIG=str(path))
    assert (given.user, given.groups) == ("bob", ("qa",))
    # The groups were alice's.
    assert found(Options(as_user="bob"), KUBECONFIG=str(path)).groups == ()


def test_who_acts_as_somebody_says_so_in_each_request(tmp_path: Path, server: ApiServer) -> None:
    options = Options(kubeconfig=str(server.kubeconfig(tmp_path / "c")), as_user="bob", as_groups=("dev", "ops"))
    server.allow("ops", "list", "nodes")
    list(Api(options, found(options)).pages(Query("nodes")))
    request = server.requests[-1]
    assert (request.user, request.impersonated_by) == ("bob", "admin")


# --- what is wrong with it ------------------------------------------------------------------------------------------


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    error = problem(Options(kubeconfig=str(tmp_path / "nope")))
    assert error.problem == f"kubeconfig {tmp_path}/nope: no such file"
    assert "--kubeconfig" in error.remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clusters: [", "not YAML at line 1"),
        ("a: b\nc: [\n", "not YAML at line"),
        ("\x00", "not YAML"),
        ("just words", "not a kubeconfig"),
        ("[1, 2]", "not a kubeconfig"),
        ("contexts: {}", "has no current context"),
        ("contexts: words", "not a kubeconfig"),
        ("contexts: [1]", "an entry of contexts has no name"),
        ("contexts: [{name: a}]\ncurrent-context: a", "context a of kubeconfig"),
        ("contexts: [{name: a, context: {cluster: c, user: u}}]\ncurrent-context: a", "context a of kubeconfig"),
        ("contexts: [{name: a, context: {cluster: c}}]\nclusters: [{name: c}]\ncurrent-context: a", "context a of"),
        ("current-context: a", "there is no context 'a'"),
        ("contexts: [{name: a, context: {}}]", "has no current context"),
    ],
)
def test_a_broken_file_is_named_in_one_sentence(
    tmp_path: Path, text: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    for options in (Options(kubeconfig=str(path)), Options(context="a", kubeconfig=str(path))):
        error = problem(options)
        assert str(path) in error.problem
        assert "\n" not in error.problem + error.remedy
    assert words in problem(Options(kubeconfig=str(path))).problem
    assert capfd.readouterr() == ("", "")


def test_an_unknown_context_is_answered_with_those_there_are(tmp_path: Path) -> None:
    path = config(tmp_path / "config", "dev", "prod")
    error = problem(Options(context="pord"), KUBECONFIG=str(path))
    assert error.problem == f"there is no context 'pord' in kubeconfig {path}"
    assert error.remedy == "choose one with --context: dev, prod"
    assert "no kubeconfig was found" in problem(Options(context="prod"), HOME=str(tmp_path)).problem


def test_a_file_that_cannot_be_read() -> None:
    # To anybody, root included.
    assert problem(KUBECONFIG="/proc/self/mem").problem == "kubeconfig /proc/self/mem: Input/output error"


def test_a_path_that_cannot_be_a_file(tmp_path: Path) -> None:
    assert access(Options(), {"KUBECONFIG": "/" + "x" * 300, "HOME": str(tmp_path)}, tmp_path) is None
    assert "no such file" in problem(Options(kubeconfig="x" * 300)).problem


# --- exec plugins ---------------------------------------------------------------------------------------------------


def plugin(tmp_path: Path, script: str) -> dict[str, Any]:
    path = tmp_path / "plugin"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(stat.S_IRWXU)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path), "interactiveMode": "Never"}}


def credential(status: str) -> str:
    return f"""import json
print(json.dumps({{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {status}}}))
"""


def test_a_plugins_token_is_used(tmp_path: Path, server: ApiServer) -> None:
    user = plugin(tmp_path, credential(f"{{'token': {server.token('dave', 'system:masters')!r}}}"))
    options = Options(kubeconfig=str(server.kubeconfig(tmp_path / "config", user)))
    list(Api(options, found(options)).pages(Query("nodes")))
    assert server.requests[-1].user == "dave"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; sys.exit('the password has expired')", "the password has expired"),
        ("print('no json')", "failed to decode process output"),
        (credential("{}"), "missing token"),
        (None, "No such file"),
    ],
    ids=["fails", "prints-rubbish", "has-no-token", "is-missing"],
)
def test_a_plugin_that_fails_is_told_and_leaks_nothing(
    tmp_path: Path, server: ApiServer, script: str | None, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    user = plugin(tmp_path, script or "")
    if script is None:
        (tmp_path / "plugin").unlink()
    options = Options(kubeconfig=str(server.kubeconfig(tmp_path / "config", user)))
    error = problem(options)
    assert words in error.problem
    assert error.remedy == f"see whether kubectl can: kubectl --kubeconfig {tmp_path}/config version"
    assert capfd.readouterr() == ("", "")


def test_insecure_skip_tls_verify_is_the_users_choice(
    tmp_path: Path, server: ApiServer, capfd: pytest.CaptureFixture[str]
) -> None:
    path = server.kubeconfig(tmp_path / "config")
    body = json.loads(path.read_text())
    body["clusters"][0]["cluster"] = {"server": server.url, "insecure-skip-tls-verify": True}
    path.write_text(json.dumps(body))
    options = Options(kubeconfig=str(path))
    assert list(Api(options, found(options)).pages(Query("nodes")))
    assert capfd.readouterr() == ("", "")


def test_a_plain_http_server_is_no_api(tmp_path: Path, server: ApiServer) -> None:
    path = server.kubeconfig(tmp_path / "config")
    path.write_text(path.read_text().replace("https:", "http:"))
    options = Options(kubeconfig=str(path))
    with pytest.raises(ApiError) as caught:
        list(Api(options, found(options)).pages(Query("nodes")))
    assert server.url.removeprefix("https:") in caught.value.problem


@pytest.mark.parametrize(
    ("cluster", "user", "words"),
    [
        ({"certificate-authority-data": "bm8gY2VydGlmaWNhdGU="}, {}, "no TLS with the API at"),
        ({"certificate-authority-data": "abc"}, {}, "cannot be used: Incorrect padding"),
        ({"certificate-authority": "/nonexistent/ca.crt"}, {}, "File does not exist: /nonexistent/ca.crt"),
        ({"server": "not a url"}, {}, "is no URL: 'not a url'"),
        ({"server": "https://"}, {}, "is no URL: 'https:'"),
        ({}, {"client-certificate": "/nonexistent/me.crt", "client-key": "/nonexistent/me.key"}, "/nonexistent/me.crt"),
        ({}, {"client-certificate-data": "bm8=", "client-key-data": "bm8="}, "certificate or key cannot be read"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_inside_is_said_in_one_sentence(
    tmp_path: Path,
    server: ApiServer,
    cluster: dict[str, str],
    user: dict[str, str],
    words: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = server.kubeconfig(tmp_path / "config", {"token": "t", **user})
    body = json.loads(path.read_text())
    inside = body["clusters"][0]["cluster"]
    if any(name.startswith("certificate") for name in cluster):
        del inside["certificate-authority-data"]
    inside |= cluster
    path.write_text(json.dumps(body))
    options = Options(kubeconfig=str(path))
    with pytest.raises(K8snetError) as caught:
        list(Api(options, found(options)).pages(Query("nodes")))
    assert words in caught.value.problem
    assert "\n" not in caught.value.problem
    assert caught.value.remedy
    assert capfd.readouterr() == ("", "")
