"""What is shipped beside the wheel: the image's recipe and krew's manifest agree with the program and its pods."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

from k8snet.remote import spec

PROJECT = Path(__file__).resolve().parents[2]
DOCKERFILE = (PROJECT / "deploy/Dockerfile").read_text()
MANIFEST = (PROJECT / "deploy/krew/k8snet.yaml").read_text()
PLACE = spec.Place("k8snet", "image")


def stage(name: str) -> str:
    """The part of the Dockerfile that makes one stage."""
    return re.split(rf"^FROM \S+ AS {name}$", DOCKERFILE, flags=re.MULTILINE)[1].partition("\nFROM ")[0]


def test_the_image_has_the_command_that_pods_run() -> None:
    pod = spec.pod(PLACE, "k8snet-1", "node-1", ["trace"], "{}", 60)
    [command] = pod["spec"]["containers"][0]["command"]
    assert f"/usr/local/bin/{command}" in DOCKERFILE


def test_the_image_has_every_package_that_the_readme_wants_on_a_node() -> None:
    wanted = re.findall(r"^\| `(\w+)` \|", (PROJECT / "README.md").read_text(), re.MULTILINE)
    last = stage("agent")
    assert {"libbpf1", "libnftables1", "iptables"} <= set(wanted)
    assert not [package for package in wanted if package in ("libbpf1", "libnftables1", "iptables") and
                not re.search(rf"\b{package}\b", last)]  # fmt: skip


def test_nothing_that_compiles_is_in_the_image() -> None:
    for name in ("agent", "watch"):
        assert not re.search(r"clang|llvm|make|pip|-dev\b|\bgit\b", stage(name))


def test_every_directory_that_is_copied_is_there_to_be_copied() -> None:
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?", DOCKERFILE, re.MULTILINE)
    copies = re.findall(r"^COPY (?:--from=(\w+) )?(\S+) (\S+)$", DOCKERFILE, re.MULTILINE)
    assert [name for _, name in stages] == ["build", "client", "agent", "watch", ""]
    assert stages[-1] == ("agent", "")
    assert [(name, source) for name, source, _ in copies] == [
        ("", "."),
        ("build", "/opt/k8snet"),
        ("client", "/opt/client"),
    ]
    assert "--target /opt/k8snet" in DOCKERFILE
    assert "--target /opt/client" in DOCKERFILE


def test_the_image_of_a_watch_has_what_a_watch_imports() -> None:
    """Beyond what an agent has; nothing is drawn there, so rich is not needed."""
    assert {"kubernetes", "urllib3"} <= set(re.findall(r'"(\w+)>=', stage("client")))
    assert "--target watch" in (PROJECT / "docs/install.md").read_text()


def test_every_requirement_of_the_agent_is_one_of_the_project() -> None:
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    taken = re.findall(r'"(\w+>=[\w.]+)"', DOCKERFILE)
    assert taken
    assert set(taken) <= set(declared)


def test_the_krew_manifest_is_one() -> None:
    manifest = yaml.safe_load(MANIFEST)
    assert (manifest["apiVersion"], manifest["kind"]) == ("krew.googlecontainertools.github.com/v1alpha2", "Plugin")
    assert manifest["metadata"]["name"] == "k8snet"
    about = manifest["spec"]
    assert {"version", "homepage", "shortDescription", "description", "platforms"} <= set(about)
    assert about["version"].startswith("v")
    # What krew's checks of its index ask for.
    assert len(about["shortDescription"]) <= 50
    assert max(map(len, about["description"].splitlines())) <= 80
    systems = [platform["selector"]["matchLabels"] for platform in about["platforms"]]
    assert len({(system["os"], system["arch"]) for system in systems}) == len(systems)
    for platform in about["platforms"]:
        assert platform["bin"] == "kubectl-k8snet"
        assert platform["uri"].endswith((".tar.gz", ".zip"))


def test_a_release_can_fill_the_krew_manifest() -> None:
    """Every placeholder is named at the top, and each checksum has one of its own."""
    head = MANIFEST.partition("apiVersion")[0]
    checksums = re.findall(r"sha256: (\S+)", MANIFEST)
    assert len(set(checksums)) == len(checksums) == 4
    assert all(checksum.startswith("SHA256_") for checksum in checksums)
    for word in ("VERSION", "URI_PREFIX", "SHA256_", "HOMEPAGE"):
        assert word in head


def test_the_plugin_is_found_by_its_name() -> None:
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["kubectl-k8snet"] == "k8snet.__main__:kubectl"


def test_the_table_of_capabilities_is_complete() -> None:
    text = (PROJECT / "docs/install.md").read_text()
    rows = ", ".join(re.findall(r"^\| ([A-Z_, ]+) \|", text, re.MULTILINE))
    assert all(re.search(rf"\b{capability}\b", rows) for capability in spec.CAPABILITIES)
