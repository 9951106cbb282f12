"""Where a command has its names from, as its options say it; what is told when they cannot be had."""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from apiobjects import endpointslice, node, pod, service
from apiserver import ApiServer, asks
from k8snet import cli
from k8snet.cli import source
from k8snet.cluster.inventory import Pod
from k8snet.cluster.names import parse, resolve_from, resolve_to
from k8snet.cluster.needs import Wish
from k8snet.cluster.targets import Target
from k8snet.errors import K8snetError
from k8snet.lab.cluster import INVENTORY, objects

HERE = frozenset({ip_address("192.168.50.1")})
PAY = pod("shop/pay-1", "10.1.0.2", node="node-2", labels={"app": "payments"})
LOCAL = Pod("shop", "sidekick", "uid-1", None, (ip_address("10.1.0.40"),), False, "")


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with ApiServer() as running:
        running.put(
            node("node-1", "192.168.50.1"),
            pod("shop/cart-7d4f", "10.1.0.1", node="node-1"),
            PAY,
            service("shop/payments", "10.96.0.80"),
            endpointslice("shop/payments-1", "payments", PAY),
        )
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path / "config")))
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("SUDO_USER", raising=False)
        yield running


def arguments(*words: str) -> argparse.Namespace:
    return cli.parser().parse_args(["trace", *words])


def targets(
    client: str, to: str, *options: str, local: tuple[Pod, ...] = (), needed: bool = True
) -> tuple[Target, Target]:
    """Both names, resolved as `k8snet trace` does it."""
    args = arguments("--from", client, "--to", to, *options)
    wish = Wish(parse(client), parse(to), here=HERE, hostname="node-1")
    with source.opened(args, wish, local, needed=needed) as known:
        found = known.resolved(lambda i: (resolve_from(client, i, known.namespace), resolve_to(to, i, known.namespace)))
        known.tell()
    return found


def problem(client: str, to: str, *options: str, local: tuple[Pod, ...] = ()) -> K8snetError:
    with pytest.raises(K8snetError) as caught:
        targets(client, to, *options, local=local)
    return caught.value


# --- which source ---------------------------------------------------------------------------------------------------


def test_names_come_from_the_api(capsys: pytest.CaptureFixture[str]) -> None:
    client, to = targets("shop/cart-7d4f", "shop/svc/payments:http")
    assert (client.text, to.text) == ("pod/shop/cart-7d4f", "svc/shop/payments")
    assert to.backends == ((ip_address("10.1.0.2"), 8080),)
    assert capsys.readouterr() == ("", "")


def test_a_file_asks_no_api(server: ApiServer, tmp_path: Path) -> None:
    file = tmp_path / "inventory.json"
    file.write_text(json.dumps(objects(INVENTORY)))
    client, _ = targets("shop/cart", "shop/svc/web:80", "--inventory", str(file), "--context", "whatever")
    assert client.addresses[0] == ip_address("10.244.1.10")
    assert server.requests == []


def test_no_api_leaves_what_the_node_knows(server: ApiServer) -> None:
    client, _ = targets("shop/sidekick", "10.1.0.2:80", "--no-api", local=(LOCAL,))
    assert client.addresses == LOCAL.ips
    error = problem("shop/cart-7d4f", "10.1.0.2:80", "--no-api")
    assert error.problem == "no pod named 'cart-7d4f' in namespace 'shop'; --no-api asks nobody"
    assert "leave out --no-api" in error.remedy
    assert server.requests == []


def test_the_api_knows_better_than_the_node() -> None:
    old = Pod("shop", "cart-7d4f", "older", None, (ip_address("10.1.0.99"),), False, "")
    client, _ = targets("shop/cart-7d4f", "shop/svc/payments:http", local=(old, LOCAL))
    assert client.addresses == (ip_address("10.1.0.1"),)
    assert targets("shop/sidekick", "shop/svc/payments:http", local=(LOCAL,))[0].addresses == LOCAL.ips


def test_without_a_kubeconfig_addresses_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG")
    assert targets("10.1.0.1", "10.1.0.2:80", needed=False)[0].text == "10.1.0.1"
    error = problem("shop/cart", "10.1.0.2:80")
    assert error.problem == "no pod named 'cart' in namespace 'shop'; there is no kubeconfig"
    assert "--kubeconfig" in error.remedy


@pytest.mark.parametrize(
    ("options", "namespace"), [([], "shop"), (["-n", "other"], "other"), (["--context", "test"], "shop")]
)
def test_the_namespace_is_the_contexts_unless_one_is_given(
    server: ApiServer, tmp_path: Path, options: list[str], namespace: str
) -> None:
    server.put(pod("other/cart-7d4f", "10.1.0.50", node="node-1"))
    server.kubeconfig(tmp_path / "config", namespace="shop")
    assert targets("cart-7d4f", "10.1.0.2:80", *options)[0].text == f"pod/{namespace}/cart-7d4f"


def test_as_asks_as_somebody_else(server: ApiServer) -> None:
    server.allow("qa", "list watch", "*")
    targets("shop/cart-7d4f", "shop/svc/payments:http", "--as", "bob", "--as-group", "qa")
    assert {request.user for request in server.requests} == {"bob"}
    assert "--as USER" in problem("shop/cart-7d4f", "10.1.0.2", "--as-group", "qa").remedy


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("0s", 0.0), ("5s", 5.0), ("1m30s", 90.0), ("500ms", 0.5)])
def test_a_request_timeout_is_written_as_for_kubectl(text: str, seconds: float) -> None:
    args = arguments("--from=a", "--to=b", "--request-timeout", text)
    assert source.options_of(args).request_timeout == seconds


@pytest.mark.parametrize("text", ["-1s", "x", "", "5 s"])
def test_what_is_no_timeout_is_refused(text: str) -> None:
    with pytest.raises(K8snetError, match="--request-timeout"):
        arguments("--from=a", "--to=b", f"--request-timeout={text}")


# --- what is told ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "to", "meant"),
    [
        ("shop/cart", "10.1.0.2:80", "shop/po/cart-7d4f"),
        ("shop/crat-7d4f", "10.1.0.2:80", "shop/po/cart-7d4f"),
        ("shop/cart-7d4f", "shop/svc/paymnets:http", "shop/svc/payments:http"),
        ("shpo/cart-7d4f", "10.1.0.2:80", "shop"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(client: str, to: str, meant: str) -> None:
    assert meant in problem(client, to).remedy


def test_what_is_forbidden_is_told_and_the_rest_goes_on(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.kubeconfig(tmp_path / "config", {"token": server.token("bob")}, namespace="shop")
    server.allow("bob", "list watch", "pods services endpointslices networkpolicies", "shop")
    client, _ = targets("cart-7d4f", "payments:http")
    assert client.text == "pod/shop/cart-7d4f"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "k8snet: some names are missing: user 'bob' may not list nodes, pods in all namespaces (403 Forbidden)",
        "  add to the rules of a ClusterRole that is bound to this user:",
        '  - apiGroups: [""]',
        "    resources: [nodes, pods]",
        "    verbs: [list, watch]",
    ]


def test_what_is_forbidden_and_named_is_the_error(server: ApiServer, tmp_path: Path) -> None:
    server.kubeconfig(tmp_path / "config", {"token": server.token("bob")})
    error = problem("shop/cart-7d4f", "shop/svc/payments:http")
    assert "user 'bob' may not list" in error.problem
    assert '- apiGroups: [""]' in error.more


@pytest.mark.parametrize("options", [[], ["--context", "test"]], ids=["default", "asked-for"])
def test_a_dead_api_is_an_error_only_for_who_needs_it(
    server: ApiServer, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with server.refusing():
        assert "refuses connections" in problem("shop/cart-7d4f", "10.1.0.2:80", *options).problem
        if options:  # the user wants this very API
            with pytest.raises(K8snetError, match="refuses connections"):
                targets("10.1.0.1", "10.1.0.2:80", *options, needed=False)
            return
        assert targets("10.1.0.1", "10.1.0.2:80", needed=False)[0].text == "10.1.0.1"
    assert "k8snet: some names are missing: the API at" in capsys.readouterr().err


def test_a_silent_api_holds_up_who_does_not_need_it_only_shortly(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(source, "SOON", 0.5)
    server.fault(asks(), math.inf, delay=5.0)
    assert targets("10.1.0.1", "10.1.0.2:80", needed=False)[0].text == "10.1.0.1"
    assert "has not answered within 0.5s" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
def test_who_waits_at_a_terminal_is_told_for_what(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(source, "TOLD_AFTER", 0.2)
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    targets("shop/cart-7d4f", "shop/svc/payments:http")
    server.fault(asks("list", "nodes"), 1, delay=0.6)
    targets("shop/cart-7d4f", "shop/svc/payments:http")
    assert screen.getvalue() == (f"k8snet: waiting for the API at {server.url}\n" if terminal else "")


def test_a_broken_kubeconfig_is_an_error_only_for_who_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config").write_text("{")
    assert "not YAML" in problem("shop/cart", "10.1.0.2:80").problem
    assert targets("10.1.0.1", "10.1.0.2:80", needed=False)[0].text == "10.1.0.1"
    assert "not YAML" in capsys.readouterr().err


def test_an_unknown_pod_of_a_dead_api_is_not_said_to_be_missing(server: ApiServer) -> None:
    server.fault(asks("list", "pods"), math.inf, status=500)
    args = ["--request-timeout", "1s"]
    error = problem("shop/cart-7d4f", "shop/svc/payments:http", *args)
    assert "answers 500 Internal Server Error" in error.problem
    assert "kubectl get --raw /readyz?verbose" in error.remedy


def test_help_imports_no_client() -> None:
    code = (
        "import sys; from k8snet import cli; cli.execute(['trace', '--help']); "
        "sys.exit(any(name.split('.')[0] in ('kubernetes', 'urllib3', 'yaml') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False, timeout=60)
    assert done.returncode == 0
